"""Shows on known and on made series whether intervals cover, beside ETS and ARIMA.

Three well-known series and three made ones (seasonal, a change of regime, heavy tails): how often
intervals of 80 % cover, by every way to calibrate them. With ``--many`` 60 made series of uneven
length with gaps, in one model. Both tables are Markdown, and are made again by their seed.

    python -m experiments.forecast.backtest
"""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.forecast import baselines, intervals, made, model
from experiments.forecast.output import OURS
from experiments.forecast.problem import Problem
from experiments.forecast.scores import score
from experiments.forecast.tables import Series, read_series
from experiments.shared import data, runs
from experiments.shared.runs import Positive, Seed
from rnnjax.training.files import write_json

HORIZON, LEVEL = 12, 0.8
PLAIN = 22  # origins by which plain split conformal calibrates, as the last rows before a test
# How many origins are tested.
FILES = {"airline-passengers": 60, "monthly-sunspots": 400, "daily-min-temperatures": 400}
MADE = {"seasonal": 100, "regime": 100, "tails": 100}
MANY = 24


@dataclasses.dataclass(frozen=True)
class Config:
    """Test how often intervals cover, on six series; or one model of 60 series, with --many."""

    names: tuple[str, ...] = ()
    """Some of the series; by default all."""
    many: bool = False
    """Forecast 60 made series by one model instead."""
    data: str | None = None
    """A folder with the well-known files, or "made", which leaves them out."""
    run_dir: Path | None = None
    """Where result.json goes; by default a new folder under runs/forecast."""
    seeds: Positive = 5
    """The number of networks for each part of the backtest."""
    seed: Seed = 0
    """The seed of the networks and of the made series."""
    epochs: Positive = 60
    """At most so many."""


def problems(config: Config) -> Iterator[tuple[str, Problem]]:
    """The series, each with its origins."""

    def wanted(name: str) -> bool:
        return not config.names or name in config.names

    def posed(series: Series, origins: int) -> Problem:
        return Problem(series, HORIZON, series.periods, origins, LEVEL)

    if config.many:
        yield "60 made series", posed(made.many(config.seed), MANY)
        return
    for name, origins in FILES.items() if config.data != data.MADE else ():
        if wanted(name):
            yield name, posed(read_series(data.table(name, config.data), name), origins)
    for name, origins in MADE.items():
        if wanted(name):
            yield name, posed(made.single(name, config.seed), origins)


def plain(problem: Problem, ys: np.ndarray) -> np.ndarray:
    """Split conformal as it is usual: absolute errors, in values, of a few origins, once for all.

    That is the middle of ``ys (time, series, horizon, 3)``, and on both sides of it the quantile.
    """
    errors = np.abs(problem.truth - ys[..., 1])
    width = np.empty(errors.shape[1:])
    for k in range(1, problem.horizon + 1):
        part = errors[problem.first + 1 - k - PLAIN : problem.first + 1 - k, :, k - 1]
        width[:, k - 1] = intervals.quantile(part, problem.level)
    return ys[..., 1:2] + width[..., None] * np.array([-1, 0, 1])


def compare(config: Config, problem: Problem) -> dict[str, np.ndarray]:
    """What the network forecasts with each way to calibrate, and what the baselines do."""
    trained = model.train(problem, config.seeds, config.seed, config.epochs)
    scores = intervals.scores(trained.ys, problem.steps.targets)
    found = {f"{OURS}, plain split of {PLAIN}": plain(problem, problem.values_of(trained.ys))}
    for method in intervals.METHODS:
        factors = intervals.factors(scores, problem.cuts[0], problem.first, LEVEL, method)
        ys = problem.values_of(intervals.widened(trained.ys, factors))
        found[f"{OURS}, {method}"] = ys
    return found | baselines.compare(problem)


def tables(results: list[dict[str, Any]]) -> list[str]:
    """Two Markdown tables, a row for each series: coverage and width of intervals, and MASE.

    × marks a coverage outside of the bounds. The columns before those of the baselines are ways
    to calibrate the network.
    """
    series = {one["series"]: one for one in results}
    found = {(one["series"], one["who"]): one for one in results}
    who = [one["who"] for one in results if one["series"] == results[0]["series"]]

    def cell(name: str, each: str) -> str:
        one = found[name, each]
        mark = "" if abs(one["coverage"] - LEVEL) <= one["bound"] else " ×"
        return f"{one['coverage']:.2f}{mark}, {one['width']:.2f}"

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    shown = [each for each in who if "naive" not in each]
    titles = [each.removeprefix(f"{OURS}, ") for each in shown]
    lines = [row(["coverage, width", "n", "bounds", *titles]), row(["---"] * (len(titles) + 3))]
    for name, one in series.items():
        bounds = f"{LEVEL - one['bound']:.2f} to {LEVEL + one['bound']:.2f}"
        lines.append(row([name, str(one["n"]), bounds, *(cell(name, each) for each in shown)]))
    models = [OURS, *(each for each in who if not each.startswith(OURS))]
    whose = {model: model if model in who else f"{OURS}, heads" for model in models}
    lines += ["", row(["MASE", *models]), row(["---"] * (len(models) + 1))]
    return lines + [
        row([name, *(f"{found[name, whose[model]]['mase']:.3f}" for model in models)])
        for name in series
    ]


def run(config: Config) -> int:
    """Print the tables."""
    run_dir, began = runs.new_folder("forecast", config.run_dir), time.perf_counter()
    results: list[dict[str, Any]] = []
    for name, problem in problems(config):
        print(f"{name}, at {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        bound = 2 * np.sqrt(LEVEL * (1 - LEVEL) / problem.origins)
        about = {"series": name, "n": problem.origins, "bound": float(bound)}
        results += [
            {**about, "who": who, **score(problem, ys)._asdict()}
            for who, ys in compare(config, problem).items()
        ]
    print("\n".join(tables(results)))
    seconds, cpu = time.perf_counter() - began, time.process_time()
    write_json(run_dir / "result.json",
               {"seconds": seconds, "cpu_seconds": cpu, "results": results})  # fmt: skip
    print(f"{seconds:.0f} s, {cpu:.0f} of CPU; result.json in {run_dir}", file=sys.stderr)
    return 0


main = runs.command(run, Config, "forecast.backtest", "--many")
if __name__ == "__main__":
    runs.exit_with(main)
