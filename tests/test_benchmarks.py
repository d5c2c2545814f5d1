"""How contenders are timed and told of, those of every question, and what is compiled."""

import dataclasses
import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from cell_table import CELLS, PUBLIC

os.environ["KERAS_BACKEND"] = "jax"  # the one that all tests of a process share

import rnnjax
from benchmarks import accelerators, book_curve, command, plots, reports, timing
from benchmarks.compiled import Compiled
from benchmarks.keras_programs import PROGRAMS, epochs, lines
from benchmarks.questions import cells, gradients, layer_peers, layers, lengths, packing, writing
from benchmarks.questions.book_model import Settings as Book
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
from benchmarks.reports import Outcome
from benchmarks.timing import Contender, serve

def steady(settings, factor=1, value=0.5):
    print("a library that prints")
    for number in itertools.count():
        yield Outcome(factor * settings["seconds"] * (number or 10), value, {"more": [1, 2]})

def breaks_later(settings):
    yield Outcome(1.0, 0.5)
    raise ValueError("out of luck")

CONTENDERS = [
    Contender("steady", steady, ["json"]),
    Contender("slower", lambda settings: steady(settings, 3, 0.5004)),
    Contender("wrong", lambda settings: steady(settings, 1, 0.6)),
    Contender("absent", steady, ["a_package_nobody_has"]),
    Contender("breaks later", breaks_later),
    Contender("dies at 0", lambda at: steady(at) if at["seconds"] else os._exit(7)),
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


def test_what_becomes_of_each_contender(tmp_path: Path) -> None:
    """Workers serve all points, and who fails at one goes on at the next."""
    (tmp_path / "fakes.py").write_text(FAKES)
    namespace: dict = {"__name__": "fakes"}
    exec(FAKES, namespace)
    points = [Point(f"at {number}", {"seconds": number}) for number in (0, 0.25)]
    question = Question("fakes", "How long?", namespace["CONTENDERS"], "steady", "loss", 1e-3,
                        points=points)  # fmt: skip
    command = [sys.executable, str(tmp_path / "fakes.py")]
    report = timing.ask(question, {}, 3, command, say=lambda line: None)
    before, at = (report.at(point) for point in points)
    problems = {name: result.problem for name, result in at.items() if result.problem}
    assert problems == {
        "wrong": "not timed: its loss is 0.6000, steady's 0.5000",
        "absent": "absent: a_package_nobody_has not installed",
        "breaks later": "failed: ValueError: out of luck",
    }
    assert before["dies at 0"].problem == "failed: exit status 7"
    assert at["steady"].first == Outcome(2.5, 0.5, {"more": [1, 2]})
    assert at["steady"].amounts == at["dies at 0"].amounts == [0.25, 0.5, 0.75]
    assert at["steady"].versions == {"json": json.__version__}
    assert report.ratios(at["slower"]) == [3, 3, 3]
    assert "loss of 7 of 9 results is steady's, to within 4.0e-04 where 0.001" in report.remarks[0]


def report_of(question: Question, seconds: dict[str, float]) -> Report:
    """As if contenders had taken so long at every point."""
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 2.0}
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
    assert " absent" in [text.get_text() for text in plots.bars(report).axes[0].texts]
    report.remarks = ["Something was found."]
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


def test_a_loss_that_is_not_a_number_agrees_with_nobody() -> None:
    contenders = [Contender(name, lambda settings: iter(())) for name in "abc"]
    results = [
        Result(name, first=Outcome(1, value))
        for name, value in [("a", 4.0), ("b", 4.01), ("c", np.nan)]
    ]
    timing.compare(Question("q", "", contenders, "a", "loss", 1e-2, relative=True), results)
    assert results[1].distance == pytest.approx(0.0025)
    assert [one.problem.partition(":")[0] for one in results] == ["", "", "not timed"]


def test_the_command_line(tmp_path: Path, monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def ask(question: Question, settings: Any, rounds: int, command: list[str]) -> Report:
        asked.update(settings=settings, rounds=rounds, command=command)
        return report_of(question, {one.name: 1.0 for one in question.contenders})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *arguments, "--results", str(tmp_path)])
        command.main("benchmarks.script", {"one": packing})

    monkeypatch.setattr(timing, "ask", ask)
    run()
    assert asked["command"][1:] == ["-m", "benchmarks.script", "one"]
    assert (tmp_path / "packing.png").read_bytes().startswith(b"\x89PNG")
    run("one", "--quick", "--rounds", "4")
    assert asked["rounds"] == 4
    assert len(command.only(layers.question(layers.QUICK), ["Scan()", "PyTorch"]).contenders) == 3
    assert json.loads((tmp_path / "packing_quick.json").read_text())["settings"]["quick"]
    with pytest.raises(SystemExit, match=r"takes some of .*, but got \['nobody'\]"):
        run("--contenders", "nobody")
    with pytest.raises(SystemExit):
        run("--rounds", "0")


# ---- the questions

LAYER, BOOK = Shape("lstm", 1, 3, 2, 4), {"layers": 1, "hidden_size": 5, "vocabulary_size": 7}
STEP = Book(**BOOK, batch_size=2, time=4, steps=2)
# With these settings, or else with its own quick ones.
QUESTIONS: dict[str, Any] = {
    "layers": layers.Settings(("lstm",), ("backward",), ((4, 3),), 5),
    "layers, forward": layers.Settings(("gru",), ("forward",), ((4, 3, 5, 2),)),
    "cells": dataclasses.replace(cells.QUICK, cells=("ProjectionLSTMCell",)),
    "memory": LAYER,
    "compile_time": LAYER,
    "train_step": STEP,
    "train_step_types": STEP,
    "writing": writing.Settings(**BOOK, batch_size=3, length=6),
    "writing, one": writing.Settings(**BOOK, batch_size=1, length=6),
    **dict.fromkeys(
        ("steps", "features", "loops", "products", "packing", "online", "keyword", "parallel",
         "recurrences", "resets", "time_cells", "lengths", "alphabet", "generation",
         "language_models", "streaming")
    ),
}  # fmt: skip
# Contenders by name, with and without gradients; and a model that writes, from a file of weights.
ORDINARY = {"layers, forward", "writing"}
SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in sorted({*QUESTIONS} - ORDINARY)]
# Keras 3.15 converts its variables in a way that NumPy 2 warns of.
KERAS_CONVERTS = "ignore:__array__ implementation doesn't accept:DeprecationWarning"
# Without gradients; without a CPU that multiplies in bfloat16; and without a compiler.
MAY_FAIL = {"onnxruntime", "PyTorch nn.LSTM, bfloat16 autocast", "stream"}


@pytest.mark.filterwarnings(KERAS_CONVERTS)
@pytest.mark.parametrize("name", [*sorted(ORDINARY), *SLOW])
def test_the_contenders_of_a_question_run_and_agree(name: str, tmp_path: Path) -> None:
    """All that this process can be: it has one backend of Keras."""
    module = importlib.import_module(f"benchmarks.questions.{name.partition(',')[0]}")
    settings = QUESTIONS[name] or module.QUICK
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
            if result.problem or one.environment.get("KERAS_BACKEND", "jax") != "jax":
                result.problem = "absent"
                continue
            try:
                result.first, again = itertools.islice(one.repetitions(given), 2)
            except (ValueError, RuntimeError):
                assert one.name in MAY_FAIL
                result.problem = "failed: as it may"
                continue
            result.later = [again, again]
            assert min(result.first.amount, again.amount) > 0
        timing.compare(question, results)
        assert not [result for result in results if result.problem.startswith("not timed")]
        assert len([result for result in results if result.later]) > 1
        report.results += results
    assert question.baseline in getattr(module, "tables", reports.tables)(report)
    assert all(sentence.endswith(".") for sentence in module.remarks(report))
    assert getattr(module, "plot", plots.bars)(report).axes


def test_a_shape_of_two_sizes_has_as_many_inputs_as_units() -> None:
    assert layers.full(layers.Settings(shapes=((9, 2), (9, 2, 50), (9, 2, 50, 3)))) == [
        (9, 2, 100, 9),
        (9, 2, 50, 9),
        (9, 2, 50, 3),
    ]


def test_lengths_are_told_by_the_step() -> None:
    question = lengths.question(lengths.Settings())
    report = report_of(question, {"rnnjax": 2.0, "PyTorch": 3.0})
    report.ceilings = [
        Result("products", point=point.name, later=[Outcome(point.flops / 1e9, 0)])
        for point in question.points
    ]
    assert lengths.tables(report).count("| 10,000 | 200 | 2000 | 50% | 1.50 |") == 2


@pytest.mark.parametrize("module", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_hardly_longer_than_in_keras(module: Any) -> None:
    assert 9 < lines(module.in_rnnjax) <= 1.2 * lines(module.in_keras)


@pytest.mark.filterwarnings(KERAS_CONVERTS)
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("side", ["in_keras", "in_rnnjax"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_both_learn(name: str, side: str) -> None:
    """In full size: the contender raises if the error is larger than a program that learned has."""
    pytest.importorskip("keras", reason="Keras is in the group `test`")
    settings = dataclasses.asdict(epochs.Settings(program=name))
    assert next(getattr(epochs, side)(settings)).value <= PROGRAMS[name].LEARNED


def test_epochs_of_rnnjax_are_timed() -> None:
    settings = dataclasses.replace(epochs.QUICK, program="forecast, state carried")
    whole, epoch = itertools.islice(epochs.in_rnnjax(dataclasses.asdict(settings)), 2)
    assert 0 < epoch.amount < whole.amount
    report = report_of(epochs.question(epochs.QUICK), {"rnnjax": 1.0, "Keras, JAX": 3.0})
    assert epochs.tables(report).endswith("| 1.00, 1.00 | 3.00, 1.00 | 1, 1 | 3.00 |")


def test_the_curve_of_keras_is_that_of_our_windows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Alice was beginning to get very tired of sitting by her sister. " * 8)
    inputs, targets, *sizes = book_curve.load(str(path))
    data = Data.load(Text(corpus=str(path)), 0)
    ours = data.batches(0)["inputs"].reshape(-1, 100)[: len(inputs)]
    assert sorted(map(bytes, inputs)) == sorted(map(bytes, ours.astype(inputs.dtype)))
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert sizes == [68, 12]


# A convolution's inputs have a grid of their own.
FLAT = [kind for kind in PUBLIC if kind is not rnnjax.ConvLSTMCell]


@pytest.mark.parametrize("kind", FLAT, ids=lambda kind: kind.__name__)
def test_every_cell_is_compiled_by_every_method_that_runs_it(kind: type[rnnjax.Cell]) -> None:
    names = [name for name, cell in accelerators.CELLS.items() if type(cell) is kind]
    served = [c for c in CELLS.values() if type(c) is kind and not rnnjax.Fused().refusal(c)]
    assert names or not served, f"add {kind.__name__} to CELLS in benchmarks/accelerators.py"
    rows = {name for target, name, *_ in accelerators.read() if target == "v5e"}
    target = Mock(kind="v5e")
    for label, _ in accelerators.programs(target):
        assert label in rows or label.split(",")[0] not in names, (
            f'`make accelerators OPTIONS="--only {kind.__name__} --keep"` writes {label} into '
            "benchmarks/accelerators.csv"
        )


def test_what_cannot_be_compiled_fails(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(accelerators, "Target", Mock())
    monkeypatch.setattr(accelerators, "TABLE", tmp_path / "table.csv")
    monkeypatch.setattr(accelerators, "compiler", lambda target: "jax 1")
    fails = Mock(side_effect=RuntimeError("no"))
    monkeypatch.setattr(accelerators, "programs", lambda target: iter([("LSTM", fails)]))
    monkeypatch.setattr(sys, "argv", ["accelerators", "--only", "LSTM", "--keep"])
    with pytest.raises(SystemExit, match="LSTM: it could not be compiled"):
        accelerators.main()


def test_what_got_worse_fails(monkeypatch) -> None:
    monkeypatch.setattr(accelerators, "compiler", lambda target: "jax 1")
    kept = [["v5e", name, "100", "1", "jax 1"] for name in "acde"]
    kept += [["v4", "f", "100", "1", "jax 1"]]
    kept += [["v5e", "g", "100", "1", "jax 0"]]
    found = {
        "a": Compiled(100, 1), "c": Compiled(102, 1), "d": Compiled(50, 2), "h": Compiled(100, 1),
        "g": Compiled(102, 1),  # another compiler schedules otherwise
    }  # fmt: skip
    worse = list(accelerators.regressions("v5e", found, kept, complete=True))
    assert [line[0] for line in worse] == ["c", "d", "e", "h"]
    assert worse[0] == "c: 100 a step before, now 102"
    some = list(accelerators.regressions("v5e", {"c": found["c"]}, kept, complete=False))
    assert some == worse[:1]
