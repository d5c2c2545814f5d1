"""How contenders are timed and told of; and that those of every question run, and agree."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "jax"  # the one that all tests of a process share

from benchmarks import book_curve, command, plots, reports, timing
from benchmarks.keras_programs import PROGRAMS, epochs, lines
from benchmarks.questions import (
    alphabet,
    book_model,
    cells,
    compile_time,
    features,
    generation,
    gradients,
    import_time,
    jax_layers,
    keyword,
    layer_peers,
    layers,
    lengths,
    loops,
    memory,
    online,
    packing,
    parallel,
    recurrences,
    resets,
    steps,
    time_cells,
    train_step,
    train_step_types,
    writing,
)
from benchmarks.questions.jax_layers import Shape
from benchmarks.reports import Outcome, Point, Report, Result
from benchmarks.timing import Contender, Question
from experiments.text_generator.config import Text
from experiments.text_generator.data import Data
from rnnjax.engine.fused import plan

# The same contenders in the worker and here: the worker's program is this text.
FAKES = """
import itertools
import os
import sys
import time
from benchmarks.reports import Outcome
from benchmarks.timing import Contender, serve

def steady(settings):
    print("a library that prints")
    for number in itertools.count():
        yield Outcome(settings["seconds"] * (10 if number == 0 else number), 0.5)

def slower(settings):
    for outcome in steady(settings):
        yield Outcome(3 * outcome.amount, 0.5004, {"more": [1, 2]})

def wrong(settings):
    for outcome in steady(settings):
        yield Outcome(outcome.amount, 0.6)

def breaks_later(settings):
    yield Outcome(1.0, 0.5)
    raise ValueError("out of luck")

def environment(settings):
    while True:
        yield Outcome(float(os.environ["OMP_NUM_THREADS"]), float(os.environ["FAKE"]))

def killed(settings):
    os._exit(7)
    yield

def fails_at_zero(settings):
    for outcome in steady(settings):
        yield Outcome(1 / settings["seconds"], os.getpid())

def dies_at_zero(settings):
    for outcome in steady(settings):
        if not settings["seconds"]:
            os._exit(7)
        yield Outcome(1.0, os.getpid())

def hangs_at_zero(settings):
    if not settings["seconds"]:
        time.sleep(60)
    return steady(settings)

CONTENDERS = [
    Contender("steady", steady, ["json"]),
    Contender("slower", slower, note="estimated"),
    Contender("wrong", wrong),
    Contender("absent", steady, ["a_package_nobody_has"]),
    Contender("breaks later", breaks_later),
    Contender("killed", killed),
    Contender("precise", slower, tolerance=1e-5),
    Contender("environment", environment, environment={"FAKE": "0.5"}),
    Contender("fails at zero", fails_at_zero),
    Contender("dies at zero", dies_at_zero),
    Contender("hangs at zero", hangs_at_zero),
]
if __name__ == "__main__":
    serve(CONTENDERS, sys.argv[-1])
"""


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses, and of as few calls as can be."""
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(timing, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(gradients, "LEAST_SECONDS", 1e-6)
    monkeypatch.setattr(layer_peers, "LEAST_SECONDS", 1e-6)
    monkeypatch.setattr(plan.LayerPlan, "of", plan.LayerPlan.of)  # which a contender exchanges


def ask(folder: Path, among: slice, **options: Any) -> tuple[Report, list[dict[str, Result]]]:
    """The report, and the results of each point by name."""
    program = folder / "fakes.py"
    program.write_text(FAKES)
    namespace: dict = {"__name__": "fakes"}
    exec(FAKES, namespace)
    contenders = namespace["CONTENDERS"][among]
    question = Question("fakes", "How long?", contenders, contenders[0].name, "loss", **options)
    report = timing.ask(
        question, {"seconds": 0.25}, 3, [sys.executable, str(program)], say=lambda line: None
    )
    return report, [report.at(point) for point in report.points]


def test_what_becomes_of_each_contender(tmp_path: Path) -> None:
    report, (at,) = ask(tmp_path, slice(8), tolerance=1e-3)
    problems = {name: result.problem for name, result in at.items() if result.problem}
    assert problems == {
        "wrong": "not timed: its loss is 0.6000, steady's 0.5000",
        "absent": "absent: a_package_nobody_has not installed",
        "breaks later": "failed: ValueError: out of luck",
        "killed": "failed: exit status 7",
        "precise": "not timed: its loss is 0.5004, steady's 0.5000",
    }
    assert at["steady"].first == Outcome(2.5, 0.5)
    assert at["steady"].amounts == [0.25, 0.5, 0.75]
    assert at["steady"].versions == {"json": json.__version__}
    assert at["slower"].later[0] == Outcome(0.75, 0.5004, {"more": [1, 2]})
    assert report.ratios(at["slower"]) == [3, 3, 3]
    assert report.ratios(at["wrong"]) == at["wrong"].later == []
    assert at["environment"].amounts == [timing.usable_cores()] * 3
    assert "loss of 4 of 6 results is steady's, to within 4.0e-04 where 0.001" in report.remarks[0]
    assert report.machine["cores"] >= 1
    assert report.machine["cpu"]


def test_workers_serve_all_points_and_who_fails_at_one_goes_on_at_the_next(tmp_path: Path) -> None:
    points = [Point(f"at {number}", {"seconds": number}) for number in (1, 0, 2)]
    _, (before, failed, after) = ask(tmp_path, slice(8, 11), points=points, patience=5)
    assert {name: result.problem for name, result in failed.items()} == {
        "fails at zero": "failed: ZeroDivisionError: division by zero",
        "dies at zero": "failed: exit status 7",
        "hangs at zero": "failed: no answer within 5 s",
    }
    for name in failed:
        assert (before[name].problem, after[name].problem) == ("", "")
        assert len(after[name].later) == 3
    processes = [before[name].first.value == after[name].first.value for name in failed]
    assert processes[:2] == [True, False]
    assert after["hangs at zero"].amounts == [2, 4, 6]


def report_of(question: Question, seconds: dict[str, float]) -> Report:
    """As if contenders had taken so long at every point."""
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 0.0}
    results = [
        Result(name, "", "", point.name, first=Outcome(1, 1), later=[Outcome(amount, 1)] * 2)
        for point in question.points
        for name, amount in seconds.items()
    ]
    return Report(
        question.name, question.title, question.baseline, question.value_name, {"rounds": 2},
        machine, results, points=[*question.points],
    )  # fmt: skip


def test_reports_in_numbers_words_and_pictures(tmp_path: Path) -> None:
    nobody = Question("q", "How long?", [], "a", "loss")
    report = report_of(nobody, dict.fromkeys("abc", 1.0))
    a, b, c = report.results
    # The machine slows down tenfold for a round: the medians' ratio would be 3, not 2.
    a.later = [Outcome(amount, 0) for amount in (1, 10, 1, 1)]
    b.later, b.note = [Outcome(amount, 0) for amount in (2, 20, 2, 3)], "estimated"
    a.first, b.first, c.problem = Outcome(12.345, 0.5), Outcome(1234.5, 0.25), "absent: no c"
    assert reports.tables(report).splitlines() == [
        "|  | first call, s | median, s | min – max, s | x a | loss |  |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| a | 12.3 | 1.00 | 1.00 – 10.0 | 1.00 | 0.5 |  |",
        "| b | 1234 | 2.50 | 2.00 – 20.0 | 2.00 | 0.25 | estimated |",
        "| c | – | – | – | – | – | absent: no c |",
    ]
    (axes,) = plots.bars(report).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert " absent" in [text.get_text() for text in axes.texts]
    report.remarks, report.machine["load_before"] = ["Something was found."], 2.0
    reports.write(report, reports.tables(report), tmp_path / "new", "name")
    kept = json.loads((tmp_path / "new" / "name.json").read_text())
    assert kept["results"][0]["later"][1] == {"amount": 10, "value": 0, "details": {}}
    text = (tmp_path / "new" / "name.md").read_text()
    assert "- Something was found." in text
    assert reports.BUSY in text
    # Beside the ceiling, where the operations are stated: speeds of 3, 6 and 9 GF/s.
    report.points = [Point("", flops=1e9)]
    report.ceilings = [Result("products", later=[Outcome(speed, 0) for speed in (3, 6, 9)])]
    assert report.share_of_ceiling(a) == 1 / 6
    assert "| 17% | 0.5 |" in reports.tables(report)
    a.problem = "failed"
    assert report.ratios(b) == []


def test_a_loss_that_is_not_a_number_agrees_with_nobody() -> None:
    contenders = [Contender(name, lambda settings: iter(())) for name in "ab"]
    results = [Result("a", first=Outcome(1, 4.0)), Result("b", first=Outcome(1, float("nan")))]
    timing.compare(Question("q", "How long?", contenders, "a", "loss", 1e-3), results)
    assert results[1].problem.startswith("not timed")
    results[1] = Result("b", first=Outcome(1, 4.01))
    timing.compare(Question("q", "", contenders, "a", "loss", 1e-2, relative=True), results)
    assert results[1].distance == pytest.approx(0.0025)
    assert not results[1].problem


def test_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    asked: dict[str, Any] = {}

    def ask(question: Question, settings: Any, rounds: int, command: list[str]) -> Report:
        asked.update(settings=settings, rounds=rounds, command=command)
        return report_of(question, {one.name: 1.0 for one in question.contenders})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *arguments, "--results", str(tmp_path)])
        command.main("benchmarks.script", {"one": packing})

    monkeypatch.setattr(timing, "ask", ask)
    run()
    assert asked["settings"] == dataclasses.asdict(packing.Settings())
    assert asked["command"][1:] == ["-m", "benchmarks.script", "one"]
    assert (tmp_path / "packing.png").read_bytes().startswith(b"\x89PNG")
    run("one", "--quick", "--rounds", "4")
    assert asked["rounds"] == 4
    assert json.loads((tmp_path / "packing_quick.json").read_text())["settings"]["quick"]
    with pytest.raises(SystemExit, match=r"takes some of .*, but got \['nobody'\]"):
        run("--contenders", "nobody")
    with pytest.raises(SystemExit):
        run("--rounds", "0")
    assert "expected a whole number above 0, but got '0'" in capsys.readouterr().err


# ---- the questions

LAYER = Shape("lstm", 1, 3, 2, 4)
BOOK = {"layers": 1, "hidden_size": 5, "vocabulary_size": 7, "batch_size": 2}
STEP = book_model.Settings(**BOOK, time=4, steps=2)
QUESTIONS: dict[str, tuple[ModuleType, Any]] = {
    "shapes": (layers, layers.Settings(("lstm",), ("backward",), ((4, 3),), 5)),
    "shapes, forward": (layers, layers.Settings(("gru",), ("forward",), ((4, 3),), 5)),
    "steps": (steps, steps.QUICK),
    "features": (features, features.QUICK),
    "cells": (cells, dataclasses.replace(cells.QUICK, cells=("ProjectionLSTMCell",))),
    "loops": (loops, loops.QUICK),
    "packing": (packing, packing.QUICK),
    "online": (online, online.QUICK),
    "keyword": (keyword, keyword.QUICK),
    "parallel": (parallel, parallel.QUICK),
    "recurrences": (recurrences, recurrences.QUICK),
    "resets": (resets, resets.QUICK),
    "time": (time_cells, time_cells.QUICK),
    "memory": (memory, LAYER),
    "train_step": (train_step, STEP),
    "train_step_types": (train_step_types, STEP),
    "writing": (writing, writing.Settings(**(BOOK | {"batch_size": 3}), length=6)),
    "writing one": (writing, writing.Settings(**(BOOK | {"batch_size": 1}), length=6)),
    "compile_time": (compile_time, LAYER),
    "lengths": (lengths, lengths.QUICK),
    "alphabet": (alphabet, alphabet.QUICK),
    "generation": (generation, generation.QUICK),
}
# In an ordinary run one of each kind: layers, steps, methods, a model that learns and one that
# writes.
SLOW = QUESTIONS.keys() - {
    *("shapes", "shapes, forward", "steps", "cells", "loops", "packing"),
    *("train_step_types", "writing"),
}
# Without gradients; and without a CPU that multiplies in bfloat16.
MAY_FAIL = {"onnxruntime", "PyTorch nn.LSTM, bfloat16 autocast"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in QUESTIONS],
)
def test_the_contenders_of_a_question_run_and_agree(name: str, tmp_path: Path) -> None:
    """All that this process can be: it has one backend of Keras, and the packages it has."""
    module, settings = QUESTIONS[name]
    if hasattr(module, "write_weights"):
        settings = dataclasses.replace(settings, weights=str(tmp_path / "weights.npz"))
        module.write_weights(settings)
    question = module.question(settings)
    report = report_of(question, {})
    report.settings |= dataclasses.asdict(settings)
    for point in question.points:
        results, given = [], dataclasses.asdict(settings) | dict(point.settings)
        for one in question.contenders:
            result = Result(one.name, one.note, timing.missing(one.packages), point.name)
            results.append(result)
            if one.environment.get("KERAS_BACKEND", "jax") != "jax":
                result.problem = "absent: a backend of another process"
            if result.problem:
                continue
            try:
                result.first, again = itertools.islice(one.repetitions(given), 2)
            except (ValueError, RuntimeError):
                assert one.name in MAY_FAIL
                result.problem = "failed: as it may"
                continue
            result.later = [again, again]
            assert result.first.amount > 0
            assert again.amount > 0
        timing.compare(question, results)
        assert not [result for result in results if result.problem.startswith("not timed")]
        assert len([result for result in results if result.later]) > 1
        report.results += results
    assert question.baseline in getattr(module, "tables", reports.tables)(report)
    assert all(sentence.endswith(".") for sentence in module.remarks(report))
    assert getattr(module, "plot", plots.bars)(report).axes


def test_swapped_gates_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape("lstm", 1, 4, 3, 5)
    (right,) = jax_layers.weights(shape)

    def value() -> float:
        (ours,) = (one for one in layer_peers.contenders() if one.name == "rnnjax")
        return next(ours.repetitions(dict(layer_peers.point("", shape, True).settings))).value

    expected = value()
    gates = [np.split(right["kernel"], 4, axis=-1)[gate] for gate in (0, 2, 1, 3)]
    swapped = [{**right, "kernel": np.concatenate(gates, axis=-1)}]
    monkeypatch.setattr(jax_layers, "weights", lambda shape: swapped)
    assert value() != pytest.approx(expected, rel=10 * layer_peers.TOLERANCE)


def test_the_operations_are_those_of_the_products_and_the_lengths_are_told_by_the_step() -> None:
    shape = Shape("lstm", 1, 128, 16, 100)
    flops = [layer_peers.point("", shape, backward).flops for backward in (False, True)]
    assert flops == [n * 2 * 100 * 16 * (128 + 128) * 4 * 128 for n in (1, 3)]
    question = lengths.question(lengths.Settings())
    report = report_of(question, {"rnnjax": 2.0, "PyTorch nn": 3.0})
    report.ceilings = [
        Result("products", point=point.name, later=[Outcome(point.flops / 1e9, 0)])
        for point in question.points
    ]
    assert lengths.tables(report).count("| 10,000 | 200 | 2000 | 50% | 1.50 |") == 2


def test_an_import_is_timed_in_a_new_interpreter() -> None:
    (outcome,) = itertools.islice(import_time.importing("json")({"imports": 1}), 1)
    assert 0 < outcome.amount < 5
    assert outcome.value > 10


def test_what_needs_too_much_memory_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", 10)
    (ours, *_) = memory.question(LAYER).contenders
    with pytest.raises(MemoryError, match="temporary, and more than 0 are not tried"):
        next(ours.repetitions(dataclasses.asdict(LAYER)))


@pytest.mark.slow
def test_the_script_writes_its_reports(tmp_path: Path) -> None:
    ran = [sys.executable, "-m", "benchmarks.sequences", "packing", "--quick", "--rounds", "1"]
    subprocess.run([*ran, "--results", str(tmp_path)], check=True, capture_output=True)
    text = (tmp_path / "packing_quick.md").read_text()
    assert "times the part of the padded time that is valid steps" in text


# ---- programs in Keras and here


def two() -> int:
    """Lines are counted without comments and docstrings.

    As this one, of two paragraphs.
    """
    # Not this one.
    one = 1  # but this

    return one + 1


@pytest.mark.parametrize("module", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_hardly_longer_than_in_keras(module: ModuleType) -> None:
    assert lines(two) == two()
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
    settings = dataclasses.asdict(epochs.Settings(program=name))
    assert next(getattr(epochs, side)(settings)).value <= PROGRAMS[name].LEARNED


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n.startswith("forecast") else pytest.mark.slow) for n in PROGRAMS],
)
def test_epochs_of_rnnjax_are_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.asdict(dataclasses.replace(epochs.QUICK, program=name))
    whole, epoch = itertools.islice(epochs.in_rnnjax(settings), 2)
    assert 0 < epoch.amount < whole.amount
    made = dict.fromkeys(("make", "in_rnnjax"), lambda *given: (9,))
    fake = SimpleNamespace(SIZE=1, EPOCHS=9, LEARNED=0.5, score=lambda *_: 9, **made)
    with monkeypatch.context() as patch:
        patch.setitem(PROGRAMS, "fake", fake)
        with pytest.raises(RuntimeError, match=r"it has not learned: the error is 9, not 0\.5"):
            next(epochs.in_rnnjax({"program": "fake"}))
    report = report_of(epochs.question(epochs.QUICK), {"rnnjax": 1.0, "Keras, jax": 3.0})
    assert epochs.tables(report).endswith("| 1.00, 1.00 | 3.00, 1.00 | 1, 1 | 3.00 |")


def test_the_curve_of_keras_is_that_of_our_windows(tmp_path: Path) -> None:
    """All of them, each with the character that follows its every one, and none twice."""
    path = tmp_path / "text.txt"
    path.write_text("Alice was beginning to get very tired of sitting by her sister. " * 8)
    inputs, targets, size, batch_size = book_curve.load(str(path))
    data = Data.load(dataclasses.replace(Text(), corpus=str(path)), 0)
    ours = np.asarray(data.batches(0)["inputs"]).reshape(-1, 100)[: len(inputs)]
    assert sorted(map(bytes, inputs)) == sorted(map(bytes, ours.astype(inputs.dtype)))
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert (size, batch_size) == (68, 12)
