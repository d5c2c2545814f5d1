"""The table of `faults` is kept up with the tree, and only a failed test has noticed one."""

from pathlib import Path

import faults
import pytest
from faults import FAULTS, ROOT, Fault, StaleFaultError, planted, targets_of, verdict


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted(fault: Fault) -> None:
    assert planted(fault, (ROOT / fault.path).read_text(encoding="utf-8"))
    assert all((ROOT / target.partition("::")[0]).is_file() for target in fault.tests)
    with pytest.raises(StaleFaultError, match=r"no longer stands once in .*; adapt it in"):
        planted(fault, "")
    with pytest.raises(StaleFaultError):
        planted(fault, 2 * fault.old)


def test_every_room_has_faults_of_different_names() -> None:
    rooms = {part for fault in FAULTS for part in fault.room.split("/")}
    assert rooms >= {
        "cells",
        "engine",
        "flax_cells",
        "layers",
        "online",
        "packing",
        "training",
        "text",
    }
    for folder in ("rnnjax/interop", "experiments"):
        here = {path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()}
        assert here <= rooms, f"plant a fault in {here - rooms}: TABLE of tests/faults.py"
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [
        (1, "FAILED t/a.py::test_b[c d] - assert 1 == 2 - 3\n", "caught by t/a.py::test_b[c d]"),
        (1, "F\nERROR t/a.py::test_b - of a fixture\n", "caught by t/a.py::test_b"),
        (0, "3 passed\n", "MISSED"),
        (1, "ERROR t/a.py - ImportError\n1 error in 1s\n", "BROKEN, status 1: 1 error in 1s"),
        (2, "FAILED t/a.py::test_b\nno luck\n\n", "BROKEN, status 2: no luck"),
        (5, "", "BROKEN, status 5: no output"),
        (None, "FAILED t/a.py::test_b\n", f"TIMEOUT after {faults.PATIENCE:.0f} s"),
    ],
)
def test_only_a_failed_test_is_one_that_noticed(status: int | None, output: str, said: str) -> None:
    assert verdict(status, output) == said


def test_each_test_runs_once_without_faults() -> None:
    one, two, three = (
        Fault("", "", "", "", "", tests)
        for tests in [("a.py::b", "c.py"), ("a.py",), ("a.py::d", "e.py::f", "e.py::f")]
    )
    assert targets_of([one, two, three]) == ["c.py", "a.py", "e.py::f"]


@pytest.mark.slow
def test_a_fault_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    """A small tree, whose one test notices one fault and not the other."""
    copy = faults.Copy.__new__(faults.Copy)
    copy.folder = tmp_path
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text(
        "from sums import add\ndef test_add(): assert add(2, 2) == 4\n"
    )
    said = [
        copy.judge(Fault("", "", "sums.py", "a + b", new, ("test_sums.py",)))
        for new in ("a - b", "a * b", "a +")
    ]
    assert said[:2] == ["caught by test_sums.py::test_add", "MISSED"]
    assert said[2].startswith("BROKEN, status ")
    assert (tmp_path / "sums.py").read_text() == "def add(a, b):\n    return a + b\n"
