"""``python -m experiments``: list the programs."""

import ast
from pathlib import Path

LOCAL = Path(__file__).parent
PURPOSES = {
    "to begin with": "alphabet",
    "text": "text_generator language_models cookbook.word_model",
    "words and sentences": """cookbook.classification cookbook.tagging cookbook.seq2seq
        cookbook.translation""",
    "series and signals": """forecast cookbook.recommendation cookbook.remaining_life
        cookbook.anomalies cookbook.spoken_digits cookbook.music""",
    "images": """cookbook.rows_of_digits cookbook.autoencoder cookbook.pixel_rnn cookbook.video
        cookbook.captions""",
    "agents": "cookbook.ppo cookbook.r2d2",
    "how networks learn and remember": """tasks cookbook.gradients cookbook.online cookbook.spirals
        cookbook.many_models cookbook.dynamics cookbook.flip_flop""",
    "all of the cookbook, and one table": "cookbook",
}


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
    """Print them by what they are for."""
    print("Example: python -m experiments.alphabet\n")
    print("Every program says what it takes with --help.")
    found = programs()
    for purpose, names in PURPOSES.items():
        print(f"\n{purpose}:")
        for name in names.split():
            print(f"  python -m experiments.{name:<24} {found[name]}")


if __name__ == "__main__":
    main()
