"""Drawn faults: each is put into the copy and taken out, and only a failed test has noticed one."""

from pathlib import Path

import mutants
import pytest
from mutants import Copy, Mutant, verdict


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [
        (1, "FAILED t/a.py::test_b[c d] - assert 1 == 2 - 3\n", "caught by t/a.py::test_b[c d]"),
        (1, "F\nERROR t/a.py::test_b - of a fixture\n", "caught by t/a.py::test_b"),
        (0, "3 passed\n", "MISSED"),
        (1, "ERROR t/a.py - ImportError\n1 error in 1s\n", "BROKEN, status 1: 1 error in 1s"),
        (2, "FAILED t/a.py::test_b\nno luck\n\n", "BROKEN, status 2: no luck"),
        (5, "", "BROKEN, status 5: no output"),
        (None, "FAILED t/a.py::test_b\n", f"TIMEOUT after {mutants.PATIENCE:.0f} s"),
    ],
)
def test_only_a_failed_test_is_one_that_noticed(status: int | None, output: str, said: str) -> None:
    assert verdict(status, output) == said


def test_too_few_are_fewer_than_chance_leaves() -> None:
    """A night draws 33; a run by hand draws 200, whose share is known better."""
    fails = [[n for n in range(most) if mutants.likely(n, most) < mutants.CHANCE][-1] + 1
             for most in (33, 200)]  # fmt: skip
    assert fails == [25, 170]
    assert mutants.likely(33, 33) == pytest.approx(1)


@pytest.mark.slow
def test_the_copy_is_afterwards_what_it_was(tmp_path: Path) -> None:
    """A small tree, whose one test notices one change and not the other, and has bounded memory."""
    copy = Copy.__new__(Copy)
    copy.folder = tmp_path
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text(
        "from sums import add\ndef test_add(): assert add(2, 2) == 4\n"
    )
    said = [
        copy.judge(Mutant("", "sums.py", f"def add(a, b):\n    return {new}\n", ("test_sums.py",)))
        for new in ("a - b", f"4 if bytes({mutants.MEMORY}) else 4", "a * b", "a +")
    ]
    assert said[:3] == ["caught by test_sums.py::test_add"] * 2 + ["MISSED"]
    assert said[3].startswith("BROKEN, status ")
    assert (tmp_path / "sums.py").read_text() == "def add(a, b):\n    return a + b\n"
