import json
import sys
from pathlib import Path

import pytest

from benchmarks import reports, timing
from benchmarks.reports import Outcome, Report, Result
from benchmarks.timing import Question

# The same contenders in the worker and here: the worker's program is this text.
FAKES = """
import itertools
import os
import sys
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

CONTENDERS = [
    Contender("steady", steady, ["json"]),
    Contender("slower", slower, note="estimated"),
    Contender("wrong", wrong),
    Contender("absent", steady, ["a_package_nobody_has"]),
    Contender("broken", broken),
    Contender("breaks later", breaks_later),
    Contender("killed", killed),
    Contender("environment", environment, environment={"FAKE": "0.25"}),
]
if __name__ == "__main__":
    serve(CONTENDERS, sys.argv[-1])
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


def ask(folder: Path, *names: str, tolerance: float | None = None, rounds: int = 3) -> Report:
    program = folder / "fakes.py"
    program.write_text(FAKES)
    namespace: dict = {"__name__": "fakes"}
    exec(FAKES, namespace)
    contenders = [one for one in namespace["CONTENDERS"] if one.name in names]
    question = Question("fakes", "How long?", contenders, "steady", "loss", tolerance)
    command = [sys.executable, str(program)]
    return timing.ask(question, {"seconds": 0.25}, rounds, command, say=lambda line: None)


def test_first_calls_are_kept_apart_and_rounds_are_compared(tmp_path):
    steady, slower = ask(tmp_path, "steady", "slower").results
    assert steady.first == Outcome(2.5, 0.5)
    assert steady.amounts == [0.25, 0.5, 0.75]
    assert slower.later[0] == Outcome(0.75, 0.5004, {"more": [1, 2]})
    assert reports.ratio(slower.amounts, steady.amounts) == 3
    assert steady.versions == {"json": json.__version__}


def test_the_ratio_is_the_median_of_the_rounds():
    # The machine slows down tenfold for a round: the medians' ratio would be 3, not 2.
    assert reports.ratio([2, 20, 2, 3], [1, 10, 1, 1]) == 2
    assert reports.ratio([1, 2], []) is None


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
    assert "2 of 3 contenders is 0.5000 to within 4.0e-04" in report.remarks[0]


def test_a_loss_that_is_not_a_number_agrees_with_nobody():
    results = [Result(name, first=Outcome(1, value)) for name, value in (("a", 1), ("b", 0))]
    results[1].first = Outcome(1, float("nan"))
    timing.compare(Question("q", "How long?", [], "a", "loss", 1e-3), results)
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
    assert reports.table(report_of(results)).splitlines() == [
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
    reports.write(report, tmp_path / "new", "name")
    kept = json.loads((tmp_path / "new" / "name.json").read_text())
    assert kept["results"][0]["later"] == [{"amount": 0.5, "value": 0.5, "details": {}}]
    assert kept["machine"]["cpu"] == "a CPU"
    text = (tmp_path / "new" / "name.md").read_text()
    assert "- Something was found." in text
    assert reports.BUSY not in text
    report.machine["load_before"] = 2.0
    assert reports.BUSY in reports.text(report)


def test_the_environment_is_the_same_for_all_but_for_what_a_contender_asks_for(tmp_path):
    (result,) = ask(tmp_path, "environment", rounds=1).results
    assert result.later == [Outcome(timing.usable_cores(), 0.25)]


def test_the_machine_is_described():
    machine = timing.machine()
    assert machine["cores"] >= 1
    assert machine["cpu"]
