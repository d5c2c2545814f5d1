"""Six programs in Keras and in rnnjax: as long, and both learn."""

import itertools
import os
from dataclasses import asdict, replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "jax"

from benchmarks.keras_programs import PROGRAMS, classification, epochs, lines
from benchmarks.reports import Outcome, Report, Result


def two() -> int:
    """Lines are counted without comments and docstrings.

    As this one, of two paragraphs.
    """
    # Not this one.
    one = 1  # but this

    return one + 1


def test_lines_are_those_of_code() -> None:
    assert two() == 2
    assert lines(two) == 2


@pytest.mark.parametrize("module", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_hardly_longer_than_in_keras(module: ModuleType) -> None:
    assert lines(module.in_rnnjax) <= 1.2 * lines(module.in_keras)


# Keras 3.15 converts its variables in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("side", ["in_keras", "in_rnnjax"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_both_learn(name: str, side: str) -> None:
    """In full size: the contender raises if the error is larger than a program that learned has."""
    pytest.importorskip("keras", reason="Keras is in the extra `test`")
    settings = asdict(epochs.Settings(program=name))
    whole = next(getattr(epochs, side)(settings))
    assert whole.value <= PROGRAMS[name].LEARNED


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith("forecast") else pytest.mark.slow)
        for name in PROGRAMS
    ],
)
def test_epochs_of_rnnjax_are_timed(name: str) -> None:
    settings = asdict(replace(epochs.QUICK, program=name))
    whole, epoch = itertools.islice(epochs.in_rnnjax(settings), 2)
    assert 0 < epoch.amount < whole.amount
    assert epoch.value >= 0


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_who_does_not_learn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And Keras's epochs are timed too: of three, two are after the first."""
    keras = pytest.importorskip("keras", reason="Keras is in the extra `test`")
    ends: list[float] = []
    with epochs.keras_clock(ends):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(loss="mse")
        model.fit(np.ones((4, 1)), np.ones((4, 1)), epochs=3, verbose=0)
    assert len(ends) == 3
    fake = SimpleNamespace(
        SIZE=1,
        EPOCHS=9,
        LEARNED=0.5,
        make=lambda size: (size,),
        in_rnnjax=lambda size, epochs: epochs,
        score=lambda found, size: found,
    )
    monkeypatch.setitem(PROGRAMS, "fake", fake)
    with pytest.raises(RuntimeError, match=r"it has not learned: the error is 9, not 0\.5"):
        next(epochs.in_rnnjax({"program": "fake"}))


def test_the_table_has_keras_first() -> None:
    results = []
    for name in PROGRAMS:
        for peer, amount in (("rnnjax", 1.0), ("Keras, jax", 3.0)):
            later = [Outcome(amount, 0.1), Outcome(2 * amount, 0.1)]
            results.append(Result(peer, point=name, first=Outcome(10 * amount, 0.1), later=later))
    results[1].problem = "failed: it has not learned"
    question = epochs.question(epochs.QUICK)
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 0.0}
    report = Report(
        "q", question.title, "rnnjax", "error", {}, machine, results, points=[*question.points]
    )
    head, _, failed, classes, *_ = epochs.tables(report).splitlines()
    assert head.startswith("|  | lines: Keras, rnnjax | whole program, s: Keras, rnnjax |")
    assert head.endswith("| Keras's epoch, x rnnjax's |")
    assert "Keras, jax: failed: it has not learned" in failed
    count = ", ".join(
        str(lines(program)) for program in (classification.in_keras, classification.in_rnnjax)
    )
    assert classes.endswith(f"| {count} | 30.0, 10.0 | 4.50, 1.50 | 0.1, 0.1 | 3.00 |")
    (remark,) = epochs.remarks(report)
    assert "in the mean, at most 1." in remark
