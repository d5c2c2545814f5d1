"""Runs the tests that a change can break: what `make check` does.

    python -m tests.affected -n 2  # options of pytest

What differs is counted from the commit at which this branch left main, on main itself from the last
commit; what is not committed and what is new counts. A change of a cell's file, alone or with its
rows and equation in the tests, takes the rows of its cells alone, and of these the long ones too: a
cell has few that are quick. Where a page differs the tests of pages are taken too. All quick tests,
of the programs those marked `smoke`, are taken where nothing differs, where there is no git, and
where a file of `EVERYTHING` differs. It is a table and no graph of imports, by which a change of
any cell would take nearly all tests.
"""

import inspect
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[1]
QUICK = "not slow and not docs and not long"
EVERYTHING = (
    "conftest.py", "tests/conftest.py", "pyproject.toml", "Makefile", "rnnjax/__init__.py",
    "rnnjax/checks.py", "rnnjax/errors.py", "rnnjax/meshes.py", "tests/cell_table.py",
)  # fmt: skip
# The laws, and what else holds each row of the table of cells.
ROWS = """test_laws test_reference test_cells test_arguments test_declarations test_flax_wrappers
    test_explain test_export test_prepare test_online test_testing interop/test_c
    interop/test_options interop/test_flax interop/test_torch interop/test_onnx_export"""
ENGINE = f"{ROWS} test_fused_forms test_primitive test_onehot test_shard_map test_own_method"
KERAS = """interop/test_keras_models interop/test_keras_graphs interop/test_keras_functions
    interop/test_keras_options interop/test_keras_old_files interop/test_keras_damaged_files"""
ONNX = """interop/test_onnx_export interop/test_onnx_import interop/test_onnx_nodes
    interop/test_onnx_control interop/test_onnx_fuzz interop/test_onnx_silero interop/test_leaving
    interop/test_models_out interop/test_jaxprs interop/test_causal"""
C = """interop/test_c interop/test_c_models interop/test_c_stream test_microcontrollers
    interop/test_jaxprs"""
TORCH = "interop/test_torch interop/test_torch_files"
MODELS = f"{KERAS} {TORCH} interop/test_flax interop/test_model interop/test_formats"
GENERATOR = """experiments/test_text_generator experiments/test_text_generator_export
    experiments/test_text_generator_options experiments/test_generation experiments/test_reading
    experiments/test_inspection experiments/test_pages experiments/test_corpora"""
# Of each module the tests that its change can break, by their names below `tests`, and folders. The
# rows of all patterns that a file matches are taken.
TABLE = {
    "rnnjax/cells/*": f"{ROWS} test_gallery test_package",
    "rnnjax/engine/* rnnjax/engine/*/*": f"{ENGINE} test_functions test_between_networks",
    "rnnjax/engine/parallel/*": "test_parallel test_linear_family",
    "rnnjax/engine/functions.py": "test_linear_family test_gallery",
    "rnnjax/layers/*": f"{ROWS} test_between_networks test_package",
    "rnnjax/packing.py": "test_packing test_arguments",
    "rnnjax/online.py": "test_online",
    "rnnjax/testing.py": "test_testing",
    "rnnjax/flax_cells.py": "test_flax_wrappers interop/test_flax",
    "rnnjax/linen.py": "test_flax_wrappers",
    "rnnjax/nnx.py": "test_flax_wrappers",
    "rnnjax/training/*": "training",
    "rnnjax/text/*": "text experiments/test_generation",
    "rnnjax/__main__.py": "interop/test_convert",
    "rnnjax/interop/keras/*": f"{KERAS} interop/test_formats",
    "rnnjax/interop/onnx/*": f"{ONNX} interop/test_options interop/test_formats",
    "rnnjax/interop/c/*": f"{C} interop/test_options interop/test_leaving",
    "rnnjax/interop/torch/*": f"{TORCH} interop/test_options interop/test_formats training",
    "rnnjax/interop/flax.py": "interop/test_flax interop/test_options interop/test_formats",
    "rnnjax/interop/*": f"{MODELS} {ONNX} {C} interop/test_options interop/test_convert",
    "experiments/*": "experiments/test_programs",
    "experiments/alphabet/*": "experiments/test_alphabet",
    "experiments/cookbook/* experiments/cookbook/common/*": "experiments/cookbook",
    "experiments/forecast/*": "experiments/forecast",
    "experiments/language_models/*": "experiments/language_models",
    "experiments/shared/*": "experiments",
    "experiments/tasks/*": "experiments/test_tasks experiments/test_published",
    "experiments/text_generator/* experiments/text_generator/*/*": GENERATOR,
    "benchmarks/* benchmarks/*/*": "test_benchmarks test_others test_keras_page",
    "docs/*": "test_package",
}


def changed() -> list[str] | None:
    """The files that differ from main, from the root of the tree; None where git says nothing."""

    def git(*words: str) -> list[str]:
        said = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
        return said.stdout.splitlines()

    try:
        branch = git("rev-parse", "--abbrev-ref", "HEAD")[0]
        (base,) = ["HEAD"] if branch in ("main", "HEAD") else git("merge-base", "main", "HEAD")
        new = git("ls-files", "--others", "--exclude-standard")
        return sorted({*git("diff", "--name-only", base), *new})
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def rows_of(module: str) -> list[str]:
    """The names of the rows of the table of cells whose class is defined in a file."""
    from cell_table import CELLS

    return [name for name, cell in CELLS.items()
            if Path(inspect.getfile(type(cell))) == (ROOT / module).resolve()]  # fmt: skip


def taken_for(path: str) -> set[str]:
    """The files and folders of tests, from the root of the tree, that a change of one can break."""
    if path.startswith("tests/"):
        name = Path(path).name
        return {path} if name.startswith("test_") else set()
    wanted = set[str]()
    for patterns, words in TABLE.items():
        if any(map(PurePath(path).match, patterns.split())):
            wanted.update(words.split())
    folders = {word for word in wanted if (ROOT / "tests" / word).is_dir()}
    found = {f"tests/{word}" if word in folders else f"tests/{word}.py" for word in wanted}
    return found | ({path} if path.startswith(("rnnjax/", "experiments/")) else set())


def arguments(files: Iterable[str]) -> list[str]:
    """What pytest takes for a change of these files; nothing for all quick tests."""
    given = [*files]
    files = [f for f in given if f.endswith(".py") or f in EVERYTHING]
    pages = {"tests/test_package.py", "tests/test_pages.py"} if len(files) < len(given) else set()
    if given and not files:
        return sorted(pages)
    if any(f.startswith("rnnjax/cells/") and rows_of(f) for f in files):
        files = [f for f in files if f not in ("tests/cell_table.py", "tests/reference.py")]
    gone = [f for f in files if not (ROOT / f).exists()]
    helpers = [f for f in files if f.startswith("tests/") and not taken_for(f)]
    if not files or gone or helpers or any(f in EVERYTHING for f in files):
        return []
    chosen = sorted(pages.union(*map(taken_for, files)))
    inside = [f for f in chosen if not any(f != g and f.startswith(f"{g}/") for g in chosen)]
    rows = [rows_of(f) if f.startswith("rnnjax/cells/") else [] for f in files]
    if all(rows):  # cells alone: of each file of tests what names a row, and what is in no table
        names = {*itertools.chain(*rows), *(Path(f).stem for f in files)}
        least = sorted(n for n in names if not any(m != n and m in n for m in names))
        return [*inside, "-m", "not slow and not docs", "-k", " or ".join(least)]
    return inside


def main() -> None:
    """Run pytest in the place of this program, and say for what."""
    sys.path.insert(0, str(ROOT / "tests"))
    files = changed() or []
    chosen = arguments(files)
    which = (
        "all" if not chosen else f"those of {len(files)} files that differ: {shlex.join(chosen)}"
    )
    print(f"tests: {which}", flush=True)
    marks = QUICK if chosen else f"{QUICK} and not programs"
    command = [sys.executable, "-m", "pytest", "-m", marks, *sys.argv[1:], *chosen]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
