"""``python -m experiments``: list the programs."""

import ast
from pathlib import Path

LOCAL = Path(__file__).parent


def programs() -> dict[str, str]:
    """The programs by name, with the first line of what each says of itself; none is imported."""
    files = {path.parent.name: path.parent / "__init__.py" for path in LOCAL.glob("*/__main__.py")}
    files |= {
        f"cookbook.{path.stem}": path
        for path in (LOCAL / "cookbook").glob("*.py")
        if not path.stem.startswith("__")
    }
    return {name: _first_line(path) for name, path in sorted(files.items())}


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main() -> None:
    """Print them."""
    print("Example: python -m experiments.alphabet\n")
    print("Every program says what it takes with --help:\n")
    for name, what in programs().items():
        print(f"  python -m experiments.{name:<24} {what}")


if __name__ == "__main__":
    main()
