import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import book_curve, command, plots, reports, timing
from benchmarks.reports import Outcome, Point, Report, Result
from benchmarks.timing import Contender, Question
from experiments.text_generator.config import Text
from experiments.text_generator.data import Data

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

def broken(settings):
    raise ValueError("no such backend")
    yield

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
    Contender("broken", broken),
    Contender("breaks later", breaks_later),
    Contender("killed", killed),
    Contender("fails at zero", fails_at_zero),
    Contender("dies at zero", dies_at_zero),
    Contender("hangs at zero", hangs_at_zero),
    Contender("precise", slower, tolerance=1e-5),
    Contender("environment", environment, environment={"FAKE": "0.25"}),
]
if __name__ == "__main__":
    serve(CONTENDERS, sys.argv[-1])
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(timing, "LOOK_SECONDS", 0.02)


def ask(folder: Path, *names: str, rounds: int = 3, **options: Any) -> Report:
    program = folder / "fakes.py"
    program.write_text(FAKES)
    namespace: dict = {"__name__": "fakes"}
    exec(FAKES, namespace)
    contenders = [one for one in namespace["CONTENDERS"] if one.name in names]
    question = Question("fakes", "How long?", contenders, "steady", "loss", **options)
    command = [sys.executable, str(program)]
    return timing.ask(question, {"seconds": 0.25}, rounds, command, say=lambda line: None)


def test_first_calls_are_kept_apart_and_rounds_are_compared(tmp_path):
    report = ask(tmp_path, "steady", "slower")
    steady, slower = report.results
    assert steady.first == Outcome(2.5, 0.5)
    assert steady.amounts == [0.25, 0.5, 0.75]
    assert slower.later[0] == Outcome(0.75, 0.5004, {"more": [1, 2]})
    assert report.ratios(slower) == [3, 3, 3]
    assert steady.versions == {"json": json.__version__}


def test_the_ratio_is_the_median_of_the_rounds():
    # The machine slows down tenfold for a round: the medians' ratio would be 3, not 2.
    results = [
        Result("a", later=[Outcome(amount, 0) for amount in (1, 10, 1, 1)]),
        Result("b", first=Outcome(1, 0), later=[Outcome(amount, 0) for amount in (2, 20, 2, 3)]),
    ]
    report = report_of(results)
    assert report.ratios(results[1]) == [2, 2, 2, 3]
    assert "| 2.00 |" in reports.tables(report)
    results[0].problem = "failed"
    assert report.ratios(results[1]) == []


def test_a_contender_without_its_package_is_absent(tmp_path):
    report = ask(tmp_path, "steady", "absent")
    assert report.results[1].problem == "absent: a_package_nobody_has not installed"
    assert len(report.results[0].later) == 3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("broken", "failed: ValueError: no such backend"),
        ("breaks later", "failed: ValueError: out of luck"),
        ("killed", "failed: exit status 7"),
    ],
)
def test_a_contender_that_fails_stops_nobody_else(tmp_path, name, problem):
    results = {result.name: result for result in ask(tmp_path, "steady", name).results}
    assert results[name].problem == problem
    assert len(results["steady"].later) == 3


def test_who_computes_something_else_is_not_timed(tmp_path):
    report = ask(tmp_path, "steady", "slower", "wrong", tolerance=1e-3)
    steady, slower, wrong = report.results
    assert (steady.problem, slower.problem) == ("", "")
    assert wrong.problem == "not timed: its loss is 0.6000, steady's 0.5000"
    assert wrong.later == []
    assert "loss of 2 of 3 results is steady's, to within 4.0e-04 where 0.001" in report.remarks[0]


def test_a_contender_can_have_a_tolerance_of_its_own(tmp_path):
    report = ask(tmp_path, "steady", "slower", "precise", tolerance=1e-3)
    assert [bool(result.problem) for result in report.results] == [False, False, True]


def test_a_tolerance_can_be_a_part_of_the_value(tmp_path):
    report = ask(tmp_path, "steady", "slower", "wrong", tolerance=1e-3, relative=True)
    assert report.results[1].distance == pytest.approx(8e-4)
    assert report.results[2].distance == pytest.approx(0.2)
    assert "results is steady's, as a part of it, to within 8.0e-04" in report.remarks[0]


def test_who_does_not_answer_in_time_is_ended(tmp_path):
    report = ask(tmp_path, "steady", "hangs at zero", points=points(0, 1), patience=2)
    problems = [result.problem for result in report.results]
    assert problems == ["", "failed: no answer within 2 s", "", ""]


def points(*seconds: float) -> list[Point]:
    return [Point(f"at {number}", {"seconds": number}) for number in seconds]


def test_the_same_workers_serve_all_points(tmp_path):
    report = ask(tmp_path, "steady", "fails at zero", points=points(1, 2))
    assert [result.point for result in report.results] == ["at 1", "at 1", "at 2", "at 2"]
    first, second = (report.at(point) for point in report.points)
    assert first["steady"].amounts == [1, 2, 3]
    assert second["steady"].amounts == [2, 4, 6]
    assert report.ratios(second["fails at zero"]) == [0.25, 0.125, 1 / 12]
    assert first["fails at zero"].first.value == second["fails at zero"].first.value  # Its process.


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fails at zero", "failed: ZeroDivisionError: division by zero"),
        ("dies at zero", "failed: exit status 7"),
    ],
)
def test_who_fails_at_one_point_goes_on_at_the_next(tmp_path, name, problem):
    report = ask(tmp_path, "steady", name, points=points(1, 0, 2))
    before, failed, after = (report.at(point)[name] for point in report.points)
    assert failed.problem == problem
    assert (before.problem, after.problem) == ("", "")
    assert len(after.later) == 3
    same_process = before.first.value == after.first.value
    assert same_process == (name == "fails at zero")


def test_times_are_compared_with_the_ceiling_where_the_operations_are_stated(tmp_path, monkeypatch):
    # Speeds of 3, 6 and 9 GF/s, in place of a matrix product's.
    ceiling = Contender("slower", lambda settings: iter(()))
    monkeypatch.setattr(timing, "CEILING", ceiling)
    report = ask(tmp_path, "steady", points=[Point("", {"seconds": 1}, flops=1e9)])
    assert report.share_of_ceiling(report.results[0]) == 1 / 12
    assert "| 8.3% | 0.5 |" in reports.tables(report)
    assert "6.00 GF/s (3.00 – 9.00)" in reports.text(report, "")


def test_the_speed_of_large_matrix_products():
    first = next(timing.matrix_products({}))
    assert first.amount > 0.1


def test_a_loss_that_is_not_a_number_agrees_with_nobody():
    results = [Result(name, first=Outcome(1, value)) for name, value in (("a", 1), ("b", 0))]
    results[1].first = Outcome(1, float("nan"))
    contenders = [Contender(name, lambda settings: iter(())) for name in ("a", "b")]
    timing.compare(Question("q", "How long?", contenders, "a", "loss", 1e-3), results)
    assert results[1].problem.startswith("not timed")


def report_of(results: list[Result]) -> Report:
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 0.0}
    return Report("q", "How long?", "a", "loss", {"rounds": 2}, machine, results)


def test_the_table():
    results = [
        Result("a", first=Outcome(12.345, 0.5), later=[Outcome(0.5, 0.5), Outcome(1.0, 0.5)]),
        Result("b", "estimated", first=Outcome(1234.5, 0.25), later=[Outcome(2, 0), Outcome(3, 0)]),
        Result("c", "estimated", "absent: c not installed"),
    ]
    assert reports.tables(report_of(results)).splitlines() == [
        "|  | first call, s | median, s | min – max, s | x a | loss |  |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| a | 12.3 | 0.750 | 0.500 – 1.00 | 1.00 | 0.5 |  |",
        "| b | 1234 | 2.50 | 2.00 – 3.00 | 3.50 | 0.25 | estimated |",
        "| c | – | – | – | – | – | estimated; absent: c not installed |",
    ]


def test_the_report_is_kept(tmp_path):
    results = [Result("a", first=Outcome(1.0, 0.5), later=[Outcome(0.5, 0.5)])]
    report = report_of(results)
    report.remarks = ["Something was found."]
    reports.write(report, reports.tables(report), tmp_path / "new", "name")
    kept = json.loads((tmp_path / "new" / "name.json").read_text())
    assert kept["results"][0]["later"] == [{"amount": 0.5, "value": 0.5, "details": {}}]
    assert kept["machine"]["cpu"] == "a CPU"
    text = (tmp_path / "new" / "name.md").read_text()
    assert "- Something was found." in text
    assert reports.BUSY not in text
    report.machine["load_before"] = 2.0
    assert reports.BUSY in reports.text(report, "")


def test_the_unit_is_in_the_header():
    report = report_of([Result("a")])
    report.unit = "MB"
    assert "| first call, MB | median, MB | min – max, MB |" in reports.tables(report)


def test_points_have_tables_of_their_own():
    report = report_of([Result("a", point="small"), Result("a", point="large")])
    report.points = [Point("small"), Point("large")]
    assert reports.tables(report).count("| a |") == 2
    assert "## large\n\n|" in reports.tables(report)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    asked = {}

    def ask(question, settings, rounds, command):
        asked.update(settings=settings, rounds=rounds, command=command)
        return report_of([Result("a", first=Outcome(1, 1), later=[Outcome(1, 1), Outcome(2, 1)])])

    @dataclasses.dataclass(frozen=True)
    class Settings:
        size: int = 100
        weights: str = ""

    def adjust(settings, options):
        return dataclasses.replace(settings, size=options.size) if options.size else settings

    module = SimpleNamespace(
        Settings=Settings,
        QUICK=Settings(1),
        question=lambda settings: Question(
            "asked", "How?", [Contender("a", lambda settings: iter(()))], "a", "loss", rounds=7
        ),
        remarks=lambda report: ["Something was found."],
        write_weights=lambda settings: Path(settings.weights).write_text("weights"),
    )

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *arguments, "--results", str(tmp_path)])
        command.main(
            "benchmarks.script",
            {"one": module},
            lambda parser: parser.add_argument("--size", type=int),
            adjust,
        )

    monkeypatch.setattr(timing, "ask", ask)
    run()
    assert asked["settings"]["size"] == 100
    assert asked["rounds"] == 7
    assert asked["command"][1:] == ["-m", "benchmarks.script", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "asked.json",
        "asked.md",
        "asked.png",
    ]
    assert "- Something was found." in (tmp_path / "asked.md").read_text()
    assert (tmp_path / "asked.png").read_bytes().startswith(b"\x89PNG")

    run("one", "--quick", "--rounds", "4", "--size", "5")
    assert asked["settings"]["size"] == 5
    assert asked["rounds"] == 4
    assert json.loads((tmp_path / "asked_quick.json").read_text())["settings"]["quick"]

    with pytest.raises(SystemExit, match=r"takes some of \['a'\], but got \['nobody'\]"):
        run("--contenders", "nobody")
    with pytest.raises(SystemExit):
        run("--rounds", "0")
    assert "expected a whole number above 0, but got '0'" in capsys.readouterr().err


def test_contenders_have_the_same_colour_in_all_plots():
    assert plots.colour("rnnjax") == plots.colour("rnnjax, keep_every=10")
    assert plots.colour("rnnjax, Scan()") != plots.colour("rnnjax")
    assert plots.colour("PyTorch nn.LSTM") == plots.colour("PyTorch nn.GRU")
    assert len({*plots.COLOURS.values(), plots.OTHERS}) == len(plots.COLOURS) + 1


def test_a_plot_has_a_bar_for_each_and_the_problem_of_those_who_have_none():
    results = [
        Result("a", later=[Outcome(1, 0), Outcome(2, 0)]),
        Result("b", later=[Outcome(40, 0), Outcome(40, 0)]),
        Result("c", problem="absent: c not installed"),
    ]
    (axes,) = plots.bars(report_of(results)).axes
    assert [bar.get_width() for bar in axes.patches] == [1, 30]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert " absent" in [text.get_text() for text in axes.texts]


def test_the_environment_is_the_same_for_all_but_for_what_a_contender_asks_for(tmp_path):
    (result,) = ask(tmp_path, "environment", rounds=1).results
    assert result.later == [Outcome(timing.usable_cores(), 0.25)]


def test_the_machine_is_described():
    machine = timing.machine()
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert machine["load_before"] >= 0


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


@pytest.mark.slow
def test_keras_learns_the_book(tmp_path: Path, environment: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Alice was beginning to get very tired of sitting by her sister. " * 40)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.book_curve", "--corpus", path, "--epochs", "8",
         "--hidden-size", "16"],
        env=environment(KERAS_BACKEND="jax"), capture_output=True, text=True,
    )  # fmt: skip
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(losses) == 8, done.stderr
    assert losses[-1] < losses[0] - 0.05
