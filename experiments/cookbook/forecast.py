"""Learns to forecast the series of a CSV file, with the baselines that it has to beat.

Without a file: airline passengers (Box & Jenkins, 1976), monthly sunspots and Melbourne's daily
minimum temperatures. A GRU reads each series, its state carried over, and forecasts the next values
of the last third; an earlier part says how it reads them and how long it trains, and which ETS and
ARIMA (Hyndman & Athanasopoulos, "Forecasting", 2021) are its baselines. The LSTMs of a much copied
tutorial (Brownlee, 2016) miss the airline by 47.5 to 58.9 passengers, the last month by 48.0.

    python -m experiments.cookbook.forecast sales.csv --target amount --horizon 12
"""

import csv
import dataclasses
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import rnnjax
from experiments import runs
from experiments.cookbook.common import data, plots, tables
from experiments.cookbook.common.baselines import SCALES, Problem, compare, overall
from experiments.cookbook.common.report import Report
from rnnjax.errors import InvalidInputError
from rnnjax.training import EarlyStopping, Silent, fit, load_params, minibatches

# Without a file: the series, and their units.
KNOWN = {"airline-passengers": "thousands", "monthly-sunspots": "spots",
         "daily-min-temperatures": "°C"}  # fmt: skip
PUBLISHED = {"value": 47.53, "window": 58.03, "steps": 58.88, "stateful": 52.23, "stacked": 56.35}
SAVED = ("target", "inputs", "by", "time", "unit", "horizon", "period")  # options of a network
WINDOW = 200  # steps of a training sequence
CELL, DROPOUT, OURS = rnnjax.GRUCell(32), rnnjax.Dropout(0.3), "GRU, mean forecast"


@dataclasses.dataclass(frozen=True)
class Config:
    """Forecast series by a GRU, compared with methods without a network."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A CSV file with one row per time; by default three well-known series."""
    target: tuple[str, ...] = ()
    """The columns to forecast; by default the only numeric one."""
    inputs: tuple[str, ...] = ()
    """Other columns to read, each up to the time at which it is forecast."""
    by: str | None = None
    """The column that names the series of a row, if there are several."""
    time: str | None = None
    """The column of the times; by default the first one that holds dates."""
    unit: str = ""
    """The unit of the values, for the picture."""
    horizon: int = 1
    """The number of next values to forecast at each time."""
    period: tuple[int, ...] = ()
    """The number of steps of each season; by default what the dates suggest."""
    load: Path | None = None
    """The --run-dir of an earlier run, whose network forecasts without training."""
    data: str | None = None
    """A folder with the well-known files, or "made" for synthetic data."""
    run_dir: Path | None = None
    """Where the picture and result.json go; by default a new folder under runs/cookbook."""
    seeds: int = 10
    """The number of networks in one vmap; their mean is the forecast."""
    seed: int = 0
    """The seed of weights, dropout and the order of the data."""
    epochs: int = 60
    """At most so many, of ten updates or more; ten without a better validation error end it."""


def pose(config: Config, series: tables.Series, name: str, about: Any = None) -> Problem:
    """The problem of a file, for a new network, or for one that there is something ``about``.

    Raises:
        InvalidInputError: it is too short, one of its series does not change, or there are others.
    """
    if about and about["names"] != series.names:
        raise InvalidInputError(
            f"{name} must have the series that the network knows, {', '.join(about['names'])}, but "
            f"has {', '.join(series.names)}; train another one"
        )

    def filled(values: np.ndarray) -> np.ndarray:
        place = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
        last = np.maximum.accumulate(np.where(np.isnan(values), 0, place), axis=0)
        return np.take_along_axis(values, last, axis=0)

    total = len(series.values)
    least = max(40 + 6 * config.horizon, 4 * max(config.period, default=0))
    if total < least:
        raise InvalidInputError(
            f"{name} must have at least {least} times for a --horizon of {config.horizon} and a "
            f"--period of {config.period}, but has {total}; take smaller ones, or a longer file"
        )
    periods = tuple(m for m in config.period or series.periods if 1 < m <= total // 4)
    periods = tuple(about["periods"]) if about else periods
    problem = Problem(
        series.values, filled(series.values), filled(series.inputs), periods, config.horizon
    )
    begin, _ = problem.parts
    needed = 10 + config.horizon
    for label, column in zip(series.names, series.values[:begin].T, strict=True):
        values = column[~np.isnan(column)]
        if len(values) < needed or np.ptp(values) == 0:
            raise InvalidInputError(
                f"{label} of {name} must have at least {needed} values that differ among the first "
                f"{begin} times, to learn from, but has {len(set(values))}; leave it out"
            )
    return problem._replace(lag=about["lag"] if about else problem.telling())


def read(
    problem: Problem, scale: str, level: bool, train: int, moments: Any = None
) -> dict[str, Any]:
    """What the network reads and is to say at each time.

    Returns:
        ``xs (time, series, features)``; ``ys``, the changes from now to each of the next values;
        ``known``, whether the file has those; ``valid (time, series)``, whether the series has
        begun; ``now`` on the scale; ``moments``, mean and size of all numbers before ``train``.
    """
    there, _ = SCALES[scale]
    now, time = there(problem.filled), np.arange(1, len(problem.filled) + 1)
    changes = now - problem.later(now, -1)
    columns = [changes[..., None], *[now[..., None]] * level]
    for m in [problem.lag] if problem.lag else []:  # what came next a season ago
        before = problem.later(now, -m)
        columns += [
            problem.ahead(now, m) - before[..., None],
            problem.later(changes, -m)[..., None],
        ]
    valid = np.isfinite(np.concatenate(columns, axis=-1)).all(axis=-1)
    both = np.concatenate([problem.ahead(now) - now[..., None], *columns, problem.inputs], axis=-1)
    if moments is None:
        part = np.where(valid[..., None], both, np.nan)[: train - problem.horizon]
        moments = np.nanmean(part, axis=0), np.maximum(np.nanstd(part, axis=0), 1e-9)
    both = np.nan_to_num((both - moments[0]) / moments[1])
    angles = 2 * np.pi * time[:, None, None] / np.array(problem.periods)
    season = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    season = np.broadcast_to(season, (*both.shape[:2], season.shape[-1]))
    xs = np.concatenate([both[..., problem.horizon :], season], axis=-1, dtype=np.float32)
    return {"xs": xs, "ys": both[..., : problem.horizon], "valid": valid, "now": now,
            "known": np.isfinite(problem.ahead(problem.values)), "moments": moments}  # fmt: skip


def apply(params: Any, xs: Any, key: jax.Array | None = None, **marks: Any) -> jax.Array:
    """The changes that one network expects, ``(time, rows, horizon)``."""
    _, ys = rnnjax.unroll(CELL, params["cell"], xs, **marks)
    return DROPOUT.apply(key, ys) @ params["kernel"] + params["bias"]


@jax.jit
def expect(params: Any, xs: Any, valid: Any) -> jax.Array:
    """Return the forecasts of all networks, with the state carried through the whole series."""
    return jax.vmap(lambda params: apply(params, xs, mask=valid))(params)


def forecast(params: Any, steps: dict[str, Any], scale: str) -> np.ndarray:
    """The next values at each time, ``(seeds, time, series, horizon)``."""
    ys = np.asarray(expect(params, steps["xs"], steps["valid"]), np.float64)
    mean, size = (moment[:, : ys.shape[-1]] for moment in steps["moments"])
    with np.errstate(over="ignore"):
        return SCALES[scale][1](steps["now"][..., None] + mean + size * ys)


def learn(
    config: Config, problem: Problem, scale: str, level: bool, train: int, epochs: int = 0,
    run_dir: Path | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """Train on the times before ``train``: forecasts, and what is to be known of the networks.

    Without ``epochs`` the part after those times says which of them was the best.
    """
    steps = read(problem, scale, level, train)
    inside = np.arange(len(problem.values))[:, None] + np.arange(1, problem.horizon + 1) < train
    numbers = np.concatenate(
        [steps["xs"], steps["ys"], steps["known"] & inside[:, None]], axis=-1, dtype=np.float32
    )
    windows = []
    for column, valid in enumerate(steps["valid"][: train - 1].T):
        if len(times := np.flatnonzero(valid)):
            cuts = np.array_split(times, -(-len(times) // WINDOW))
            windows += [numbers[cut, column] for cut in cuts]
    rows = rnnjax.pad(windows, sizes=(max(map(len, windows)),))
    size = min(32, len(windows))
    copies = -(-10 * size // len(windows))  # of each window in an epoch
    batches = minibatches(
        jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=int(leaf.ndim > 1)), rows), size,
        axis=(1, 0), seed=config.seed,
    )  # fmt: skip
    features = steps["xs"].shape[-1]

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        xs, targets, known = jnp.split(batch.xs, (features, features + problem.horizon), axis=-1)
        keys = jax.random.split(key, config.seeds)
        run = jax.vmap(lambda params, key: apply(params, xs, key, lengths=batch.lengths))
        # A sum over seeds: with Adam, which takes each number for itself, none knows of the others.
        return (known * (run(params, keys) - targets) ** 2).sum() / known.sum()

    keys = jax.random.split(jax.random.key(config.seed), config.seeds + 1)
    init = jax.jit(jax.vmap(lambda key: CELL.init(key, features)))
    # A head of zeros forecasts the mean change: what is learned is how a change differs.
    params = {"cell": init(keys[1:]),
              "kernel": np.zeros((config.seeds, CELL.hidden_size, problem.horizon), np.float32),
              "bias": np.zeros((config.seeds, problem.horizon), np.float32)}  # fmt: skip
    _, known = problem.parts
    hooks: list[Any] = [Silent()] if epochs else [Silent(), EarlyStopping(10)]

    def evaluate(params: Any) -> dict[str, float]:
        found = forecast(params, steps, scale).mean(axis=0)
        return {"validation_loss": problem.loss(found, train, known)}

    result = fit(
        loss_fn, params, optax.adam(3e-3), batches, epochs or config.epochs, key=keys[0],
        run_dir=run_dir, evaluate=None if epochs else evaluate, hooks=hooks,
    )  # fmt: skip
    entry = result.best or result.history[-1]
    about = {"scale": scale, "level": level, "epochs": entry["epoch"],
             "loss": entry.get("validation_loss"), "train": train,
             "periods": problem.periods, "lag": problem.lag,
             "moments": [moment.tolist() for moment in steps["moments"]]}  # fmt: skip
    return forecast(result.params, steps, scale), about


def train(config: Config, problem: Problem, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Choose by a few networks how all of them read and how long they train, and train them."""
    begin, known = problem.parts
    few = dataclasses.replace(config, seeds=min(3, config.seeds))
    ways = [(problem, scale, level) for scale in problem.scales for level in (False, True)]
    tried = []
    for number, way in enumerate(ways, 1):
        print(f"trying how to read: {number} of {len(ways)}", file=sys.stderr, flush=True)
        tried.append(learn(few, *way, begin)[1])
    best = min(tried, key=lambda about: about["loss"])
    if problem.periods:  # a season that is none is only something more to learn by heart
        plain = problem._replace(periods=(), lag=0)
        other = learn(few, plain, best["scale"], best["level"], begin)[1]
        problem, best = (plain, other) if other["loss"] <= best["loss"] else (problem, best)
    print(f"training {config.seeds} networks", file=sys.stderr, flush=True)
    return learn(config, problem, best["scale"], best["level"], known, best["epochs"], folder)


def again(problem: Problem, about: dict[str, Any], folder: Path) -> np.ndarray:
    """Forecast by the networks of another run."""
    if about["scale"] not in problem.scales:
        raise InvalidInputError(
            f"a network{about['scale']} must have values above 0, but the least is "
            f"{np.nanmin(problem.values)}; train another one"
        )
    moments = [np.array(moment) for moment in about["moments"]]
    steps = read(problem, about["scale"], about["level"], 0, moments)
    return forecast(load_params(folder), steps, about["scale"])


def bytes_of(path: Path) -> bytes:
    """A file of the user's."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{path} must be a file to read, but is not ({error.strerror}); name another one"
        ) from error


def sources(config: Config) -> dict[str, tuple[str, bytes]]:
    """The files: for the folder of each its name and bytes."""
    if config.file is None:
        names = KNOWN if config.data != data.MADE else list(KNOWN)[:1]
        return {name: (name, data.table(name, config.data)) for name in names}
    return {"network": (config.file.name, bytes_of(config.file))}


def drawn(problem: Problem, times: Any, k: int, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The end of a series, and what was forecast of it at every ``horizon``-th time."""
    known, total = problem.parts[1], len(times)
    first = max(known, total - max(48, 2 * problem.horizon))
    at, whole = np.arange(first, total), slice(max(0, 2 * first - total), total)
    ahead = (at - first) % problem.horizon
    return {"measured": (times[whole], problem.values[whole, k])} | {
        label: (times[at], each[at - ahead - 1, k, ahead]) for label, each in found.items()
    }


def run(config: Config) -> int:
    """Forecast the test parts, compare, and forecast what comes after the file."""
    saved: dict[str, Any] = {"networks": {}}
    if config.load is not None:
        saved = json.loads(bytes_of(config.load / "result.json"))
        if "networks" not in saved:
            raise InvalidInputError(
                f"{config.load} must be the --run-dir of a forecast, but is of {saved['program']}; "
                "name another one"
            )
        config = dataclasses.replace(config, **saved["options"])
    report = Report.begin("forecast", "root mean squared error", config)
    panels: dict[str, Any] = {}
    networks: dict[str, Any] = {}
    table: list[tuple[Any, ...]] = [("time", "series", "forecast", "error")]
    for folder, (file, raw) in sources(config).items():
        more: Any = {"inputs": config.inputs, "by": config.by, "time": config.time}
        series = tables.read_series(raw, file, config.target, **more)
        about = saved["networks"].get(folder)
        problem, times = pose(config, series, file, about), series.times
        if about and config.load:
            found = {OURS: again(problem, about, config.load / folder).mean(axis=0)}
        else:
            print(f"{file}: {len(times)} times; the baselines, then the networks", file=sys.stderr)
            found = compare(problem)
            each, about = train(config, problem, report.run_dir / folder)
            found[OURS] = each.mean(axis=0)
            about["errors"] = {
                label: problem.errors(ys, problem.parts[1], len(times)).tolist()
                for label, ys in found.items()
            }
        networks[folder] = about | {"names": series.names}
        errors = {label: np.array(error, float) for label, error in about["errors"].items()}
        score = {label: float(np.nanmean(overall(error))) for label, error in errors.items()}
        then = times[-1] + (times[-1] - times[-2]) * np.arange(1, config.horizon + 1)
        for k, name in enumerate(series.names):
            title = name if config.file else file
            for label, error in errors.items():
                report.add(f"{title}: {label}", float(overall(error)[k]))
            rows = zip(then, found[OURS][-1, k], errors[OURS][k], strict=True)
            table += [(str(time), title, value, error) for time, value, error in rows]
            best = min(score.keys() & found.keys() - {OURS}, key=score.__getitem__, default=OURS)
            if len(panels) < 4:
                shown = drawn(problem, times, k, {label: found[label] for label in (best, OURS)})
                shown["GRU, next"] = then, found[OURS][-1, k]
                panels[title] = config.unit or KNOWN.get(folder, ""), shown
        for kind in () if config.load or find_spec("statsmodels") else ("ETS", "ARIMA"):
            report.add(f"{file}: {kind}", np.nan, "needs statsmodels")
        naive = min(score[label] for label in score if not label.startswith(("ETS", "AR", "GRU")))
        if config.file is None and config.data != data.MADE:
            report.accept(f"{file}, against the best without a model", score[OURS], naive)
        for label, published in PUBLISHED.items() if file.startswith("airline") else ():
            report.add(f"{file}: LSTM, {label}", published, "Brownlee 2016")
    with (report.run_dir / "forecasts.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(table)
    plots.forecasts(report.run_dir / "forecasts.png", panels)
    options = {name: getattr(config, name) for name in SAVED}
    return report.end(options=options, networks=networks)


def main() -> int:
    """Read the options, and run."""
    return run(runs.options(Config, "cookbook.forecast", "sales.csv --target amount --horizon 12"))


if __name__ == "__main__":
    runs.exit_with(main)
