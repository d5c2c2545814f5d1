"""The table of what a change can break names every module, and every file of tests."""

from pathlib import Path

import pytest
from affected import EVERYTHING, ROOT, TABLE, arguments, rows_of, taken_for
from cell_table import PUBLIC

MODULES = [
    str(path.relative_to(ROOT))
    for folder in ("rnnjax", "experiments", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_in_a_row(module: str) -> None:
    if module not in EVERYTHING:
        named = [path for path in taken_for(module) if path.startswith("tests/")]
        assert named, f"add {module} to a row of TABLE in tests/affected.py"


def test_every_file_that_a_row_names_exists_and_every_file_of_tests_is_named() -> None:
    words = {word for row in TABLE.values() for word in row.split()}
    paths = {ROOT / "tests" / word for word in words}
    paths = {path if path.is_dir() else path.with_suffix(".py") for path in paths}
    assert not [path for path in paths if not path.exists()]
    tests = list((ROOT / "tests").rglob("test_*.py"))
    words = "types habits errors pages mutants try_next affected published"  # of many rooms, or
    alone = {f"test_{word}" for word in words.split()}  # of the tests themselves
    missing = [p.name for p in tests if p.stem not in alone and not paths & {p, *p.parents}]
    assert not missing, "add them to a row of TABLE in tests/affected.py"


def test_a_cell_takes_its_own_rows() -> None:
    assert rows_of("rnnjax/cells/gru.py") == ["gru", "gru-no-bias", "gru-reset-before"]
    assert arguments(["rnnjax/cells/gru.py"])[-2:] == ["-k", "gru"]
    assert arguments(["rnnjax/cells/deltanet.py", "rnnjax/cells/s5.py"])[-1] == "deltanet or s5"
    option = ["rnnjax/cells/gru.py", "tests/cell_table.py", "tests/reference.py", "CHANGELOG.md"]
    assert {"gru", "tests/test_pages.py", "tests/test_laws.py"} <= {*arguments(option)}
    alone = {kind.__module__.replace(".", "/") + ".py" for kind in PUBLIC}
    assert all(rows_of(module) for module in alone)


@pytest.mark.parametrize(
    ("files", "some"),
    [
        ([], False),
        (["rnnjax/checks.py", "rnnjax/cells/gru.py"], False),
        (["tests/reference.py"], False),
        (["docs/learn/state.md"], True),
        (["tests/test_laws.py"], True),
        (["rnnjax/training/fitting.py", "docs/learn/state.md"], True),
    ],
)
def test_everything_is_taken_where_a_table_cannot_know(files: list[str], some: bool) -> None:
    assert bool(arguments(files)) == some
    assert all((ROOT / path).exists() for path in arguments(files))


def test_a_folder_is_named_once() -> None:
    chosen = arguments(["experiments/shared/runs.py", "experiments/forecast/model.py"])
    assert "tests/experiments" in chosen
    assert not [path for path in chosen if path.startswith("tests/experiments/")]
    assert Path("experiments/shared/runs.py").as_posix() in chosen
