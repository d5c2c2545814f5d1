"""The questions of ``benchmarks.sequences`` at tiny sizes: every contender runs, and they agree."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.questions import (
    cells,
    features,
    gradients,
    loops,
    packing,
    parallel,
    recurrences,
    time_cells,
)
from benchmarks.timing import Question, missing
from rnnjax.engine.fused import plan


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition is a call or two."""
    monkeypatch.setattr(gradients, "LEAST_SECONDS", 1e-6)


def values(question: Question, settings: dict[str, Any], names: Any) -> dict[str, float]:
    """The first value of each contender, which the second repeats."""
    found = {}
    for contender in question.contenders:
        if contender.name in names:
            first, second = itertools.islice(contender.repetitions(settings), 2)
            assert first.amount > 0
            assert second.amount > 0
            assert first.value == second.value
            found[contender.name] = first.value
    assert set(found) == set(names)
    return found


def test_the_features_differ_from_the_plain_layer() -> None:
    question = features.question(features.QUICK)
    names = [contender.name for contender in question.contenders if "Keras" not in contender.name]
    (point,) = question.points
    found = values(question, dict(point.settings), names)
    assert len(names) == 5
    assert len(set(found.values())) == 5


def test_keras_computes_the_same_layer_with_and_without_dropout() -> None:
    os.environ["KERAS_BACKEND"] = "jax"  # the one that all tests of a process share
    pytest.importorskip("keras")
    question = features.question(features.QUICK)
    names = [contender.name for contender in question.contenders if "Keras" in contender.name]
    found = values(question, dict(question.points[0].settings), names)
    assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    "point",
    [  # of these a contender makes one with an argument more
        pytest.param(p, id=p.name, marks=[] if "Projection" in p.name else pytest.mark.slow)
        for p in cells.question(cells.QUICK).points
    ],
)
def test_both_methods_agree_on_every_cell(point: Any) -> None:
    question = cells.question(cells.QUICK)
    found = values(question, dict(point.settings), ["Fused()", "Scan()"])
    assert found["Fused()"] == pytest.approx(found["Scan()"], rel=1e-4)


@pytest.mark.parametrize("point", parallel.question(parallel.QUICK).points, ids=lambda p: p.name)
def test_blocks_agree_with_steps(point: Any) -> None:
    names = ["Fused()", "Parallel()"]
    found = values(parallel.question(parallel.QUICK), dict(point.settings), names)
    assert found["Fused()"] == pytest.approx(found["Parallel()"], rel=1e-4)


@pytest.mark.parametrize(
    "point", recurrences.question(recurrences.QUICK).points, ids=lambda p: p.name
)
def test_functions_agree_with_what_is_written_out(point: Any) -> None:
    names = ["rnnjax", "lax.scan", recurrences.WRITTEN_OUT]
    found = values(recurrences.question(recurrences.QUICK), dict(point.settings), names)
    assert list(found.values()) == pytest.approx([found["rnnjax"]] * 3, rel=1e-4)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(p, id=p.name, marks=[] if p.settings["backward"] else pytest.mark.slow)
        for p in time_cells.question(time_cells.QUICK).points
    ],
)
def test_cells_that_read_the_time_agree_with_other_libraries(point: Any) -> None:
    os.environ["KERAS_BACKEND"] = "jax"  # the one that all tests of a process share
    question = time_cells.question(time_cells.QUICK)
    names = [one.name for one in question.contenders if not missing(one.packages)]
    found = values(question, dict(point.settings), names)
    assert list(found.values()) == pytest.approx([found["rnnjax"]] * len(names), rel=1e-4)


def test_all_loops_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.LayerPlan, "of", plan.LayerPlan.of)  # which is put back
    question = loops.question(loops.QUICK)
    found = values(
        question, dict(question.points[0].settings), ["as it runs", "ahead", "not ahead"]
    )
    assert list(found.values()) == pytest.approx([found["ahead"]] * 3, rel=1e-5)


def test_every_cell_of_the_question_can_be_made() -> None:
    settings = dataclasses.replace(cells.QUICK, cells=cells.CELLS)
    assert len(cells.question(settings).points) == len(cells.CELLS)


def test_packed_and_padded_agree() -> None:
    question = packing.question(packing.QUICK)
    names = [packing.PADDED, packing.PACKED]
    found = values(question, dataclasses.asdict(packing.QUICK), names)
    assert found[packing.PADDED] == pytest.approx(found[packing.PACKED], rel=1e-4)


@pytest.mark.slow
def test_the_script_writes_its_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sequences", "packing", "--quick"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--results", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "packing_quick.md").read_text()
    assert "times the part of the padded time that is valid steps" in text
    assert (tmp_path / "packing_quick.json").exists()
