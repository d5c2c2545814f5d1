"""``python -m experiments.forecast``: see the README beside this."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments.forecast import baselines, export, intervals, model, output
from experiments.forecast.config import Config
from experiments.forecast.output import OURS, Coming, Result
from experiments.forecast.problem import Problem, pose
from experiments.forecast.tables import read_series
from experiments.shared import data, plots, runs
from rnnjax.errors import InvalidInputError
from rnnjax.training import load_params, save_params
from rnnjax.training.files import write_json

# Without a file: the series, and their units.
KNOWN = {"airline-passengers": "thousands", "monthly-sunspots": "spots",
         "daily-min-temperatures": "°C"}  # fmt: skip
SAVED = ("target", "past", "future", "static", "by", "time", "date_form", "unit",
         "horizon", "level", "period")  # fmt: skip
OF_BACKTEST = ("who", "steps", "MASE", "sMAPE", "pinball", "coverage", "width")
OF_FORECASTS = ("time", "series", "forecast", "lower", "upper")


def bytes_of(path: Path) -> bytes:
    """A file of the user's."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{path} must be a file to read, but is not ({error.strerror}); name another one"
        ) from error


def sources(config: Config) -> dict[str, tuple[str, bytes]]:
    """The files: for the network of each its name and bytes."""
    if config.file is None:
        names = KNOWN if config.data != data.MADE else list(KNOWN)[:1]
        return {name: (name, data.table(name, config.data)) for name in names}
    return {"network": (config.file.name, bytes_of(config.file))}


def backtested(config: Config, problem: Problem, path: Path) -> Result:
    """Train, calibrate, and compare with the baselines."""
    trained = model.train(problem, config.seeds, config.seed, config.epochs)
    scores = intervals.scores(trained.ys, problem.steps.targets)
    factors = intervals.factors(
        scores, problem.cuts[0], problem.first, problem.level, config.calibration
    )
    place = np.arange(len(problem.ends))
    ys = problem.values_of(intervals.widened(trained.ys, factors))
    last = factors[np.maximum(problem.ends, problem.first), place]
    print("the baselines", file=sys.stderr, flush=True)
    found = {OURS: ys, **baselines.compare(problem)}
    save_params(path, trained.params)
    coming = trained.coming.copy()
    coming[problem.ends, place] = intervals.widened(coming[problem.ends, place], last)
    about = {"names": problem.series.names, "known": problem.cuts[0], "scale": problem.scale,
             "begin": str(problem.series.times[0]), "epochs": trained.epochs,
             "factors": last.tolist()}  # fmt: skip
    rows = output.backtest_rows(problem, found)
    return Result(ys, Coming.of(problem, problem.values_of(coming)), rows, about)


def again(problem: Problem, about: dict[str, Any], path: Path) -> Result:
    """Forecast by the networks of another run."""
    params = jax.tree.map(lambda leaf: leaf[None], load_params(path))
    ys = np.array(jax.jit(model.expect)(params, model.arrays_of(problem))[0])
    place = problem.ends, np.arange(len(problem.ends))
    ys[place] = intervals.widened(ys[place], np.array(about["factors"]))
    ys = problem.values_of(ys)
    return Result(None, Coming.of(problem, ys), [], about)


def read(config: Config, file: str, raw: bytes, about: dict[str, Any] | None) -> Problem:
    """The problem of a file, for new networks or for those that there is something ``about``."""
    series = read_series(
        raw, file, config.target, past=config.past, future=config.future, static=config.static,
        by=config.by, time=config.time, date_form=config.date_form,
    )  # fmt: skip
    problem = pose(series, file, config.horizon, config.level, config.origins, config.period)
    if about is None:
        return problem
    if about["names"] != series.names or about["begin"] != str(series.times[0]):
        raise InvalidInputError(
            f"{file} must have the series that the network knows, {', '.join(about['names'])} from "
            f"{about['begin']} on, but has {', '.join(series.names)} from {series.times[0]} on; "
            "train another one"
        )
    return problem.for_network(file, about["known"], about["scale"])


def result_of(folder: Path) -> dict[str, Any]:
    """What a forecast wrote into its ``--run-dir``."""
    saved = json.loads(bytes_of(folder / "result.json"))
    if "networks" not in saved:
        raise InvalidInputError(
            f"{folder} must be the --run-dir of a forecast, but is of {saved['program']}; "
            "name another one"
        )
    return saved


def run(config: Config) -> int:
    """Forecast what comes after each file, and say how good such forecasts were; or export."""
    began, saved = time.perf_counter(), None
    if config.export is not None:
        for name in result_of(config.export)["networks"]:
            path = config.export / f"{name}.safetensors"
            print(export.write(load_params(path), path.with_suffix("")))
        return 0
    if config.load is not None:
        saved = result_of(config.load)
        config = dataclasses.replace(config, **saved["options"])
    problems = {
        folder: (file, read(config, file, raw, saved and saved["networks"][folder]))
        for folder, (file, raw) in sources(config).items()
    }
    run_dir = runs.new_folder("forecast", config.run_dir)
    networks, table, backtest, rows = {}, [], [], []
    panels: dict[str, Any] = {}
    for folder, (file, problem) in problems.items():
        count, path = len(problem.series.names), run_dir / f"{folder}.safetensors"
        print(f"{file}: {count} series, {output.span(problem)}, {problem.horizon} ahead")
        if saved and config.load:
            about = saved["networks"][folder]
            result = again(problem, about, config.load / f"{folder}.safetensors")
        else:
            result = backtested(config, problem, path)
            print("\n".join(["", f"backtest from {problem.origins} origins, of each series",
                             *output.table(result.rows), output.verdict(result.rows)]))  # fmt: skip
        title = "" if config.file else file
        print("\n".join(["", *output.coming_lines(problem, result.coming, config.level)]))
        networks[folder] = result.about
        table += output.forecast_rows(problem, result.coming, title)
        backtest += [(f"{title} {who}".strip(), steps, *one) for who, steps, one in result.rows]
        rows += [
            {"name": f"{file}: {who}", "score": one.mase, "shown": f"{one.mase:.3f}",
             "source": "here"}
            for who, steps, one in result.rows if steps == "all"
        ]  # fmt: skip
        for k, name in enumerate(problem.series.names):
            if len(panels) < 4:
                lines = output.panel(problem, result, k)
                panels[title or name] = config.unit or KNOWN.get(folder, ""), lines
    pd.DataFrame(table, columns=OF_FORECASTS).to_csv(run_dir / "forecasts.csv", index=False)
    if backtest:
        pd.DataFrame(backtest, columns=OF_BACKTEST).to_csv(run_dir / "backtest.csv", index=False)
    plots.forecasts(run_dir / "forecasts.png", panels)
    seconds = time.perf_counter() - began
    write_json(run_dir / "result.json", {
        "program": "forecast", "measure": "mean absolute scaled error", "seconds": seconds,
        "rows": rows, "accepts": [], "networks": networks,
        "options": {name: getattr(config, name) for name in SAVED},
    })  # fmt: skip
    print(f"\n{seconds:.0f} s; the forecasts are in {run_dir / 'forecasts.csv'}, "
          "the picture in forecasts.png beside it")  # fmt: skip
    return 0


main = runs.command(run, Config, "forecast", "sales.csv --target amount --horizon 12")
if __name__ == "__main__":
    runs.exit_with(main)
