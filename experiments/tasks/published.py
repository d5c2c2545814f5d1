"""Published tables, run again: each row prints what came out here beside what the paper states.

A row is a task, a few networks and a size that ends within ten minutes of a core. Where the paper
states a number for the same task and size, it stands beside ours; where it does not, the row says
so. Nothing is chosen on a test part.

    python -m experiments.tasks.published narma10 mnist1d
"""

import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import rnnjax
from experiments.shared import runs
from experiments.shared.report import Report
from experiments.tasks import __main__ as tasks
from experiments.tasks import networks, series
from rnnjax.errors import InvalidInputError

Scores = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Run rows of published tables again, and print ours beside theirs."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The names of the rows; by default all."""
    quick: bool = False
    """A quick try: small networks, short series and few updates."""
    run_dir: Path | None = None
    """Where the tables go; by default a new folder under runs/tasks."""
    seeds: int | None = None
    """The number of networks of each kind; by default that of the row."""
    seed: int = 0
    """The first seed of weights and data."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What is run, and what was published.

    Attributes:
        measure: what the scores are, with their unit.
        run: ``(config, seeds) -> scores`` by the name of the network.
        published: by the name of the network a number, and the paper that states it.
        seeds: how many by default.
        digits: shown after the point.
    """

    measure: str
    run: Callable[[Config, range], Scores]
    published: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    seeds: int = 2
    digits: int = 3


# ---- series

ATTRACTOR = series.Reservoir(400, leak=0.396, radius=0.79 / 0.9, density=0.0125, scale=0.56,
                             bias=0.028)  # fmt: skip
MOVING_AVERAGE = series.Reservoir(50, leak=1.0, radius=0.8, density=0.2, scale=0.2, bias=0.0)
RIDGE = 1e-12  # of reservoirpy on the attractor: the best of 0, 1e-12, 1e-10 and 1e-8


def echo_states(run: Callable[[str, Any, int], float], seeds: range, ridge: float) -> Scores:
    """A score by seed of the library, and of reservoirpy where it is installed.

    Args:
        run: ``(which, readout, seed) -> score``; ``which`` is a method of `series.Reservoir`.
        seeds: one by one.
        ridge: of reservoirpy's readout.
    """
    scores = {"LeakyRNNCell": [run("run", series.least_squares, seed) for seed in seeds]}
    if not importlib.util.find_spec("reservoirpy"):
        print("reservoirpy is not installed, and left out; pip install reservoirpy adds its lines")
        return scores

    def theirs(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return series.ridge_of_reservoirpy(features, targets, ridge)

    which = "run_by_reservoirpy"
    scores["reservoirpy"] = [run(which, theirs, seed) for seed in seeds]
    same = [run(which, series.least_squares, seed) for seed in seeds]
    return scores | {"reservoirpy, our readout": same}


def mackey_glass(config: Config, seeds: range) -> Scores:
    """Echo states go on by themselves for 84 steps, as in section 6.4 of Jaeger (2001)."""
    rows, learned, forced = (4, 600, 300) if config.quick else (20, 3000, 1000)
    reservoir = ATTRACTOR
    if config.quick:
        reservoir = dataclasses.replace(ATTRACTOR, units=100, density=0.05)

    def run(which: str, readout: Any, seed: int) -> float:
        rng = np.random.default_rng((config.seed, seed))
        train = np.tanh(series.mackey_glass(rng, learned + 1) - 1)
        tests = series.mackey_glass(rng, forced + 84, rows)
        read = getattr(reservoir, which)
        states = read(train[:-1], seed).states[forced:, 0]
        weights = readout(states, train[forced + 1 :, 0])
        outputs = read(np.tanh(tests[:forced] - 1), seed).free(weights, 84)[-1]
        found = np.arctanh(np.clip(outputs, -0.999, 0.999)) + 1
        return float(np.sqrt(np.mean((found - tests[-1]) ** 2) / tests.var()))

    return echo_states(run, seeds, RIDGE)


def narma10(config: Config, seeds: range) -> Scores:
    """50 echo states and their squares say the next value, from 1,000 steps."""
    steps, left_out = (200, 50) if config.quick else (1000, 100)

    def run(which: str, readout: Any, seed: int, squares: bool = True) -> float:
        rng = np.random.default_rng((config.seed, seed))
        u, y = series.narma10(rng, 2 * steps + left_out)
        states = getattr(MOVING_AVERAGE, which)(u[:, None] - 0.25, seed).states[:, 0]
        if squares:
            states = np.concatenate([states, states**2], axis=1)
        train, test = slice(left_out, left_out + steps), slice(left_out + steps, None)
        weights = readout(states[train], y[train])
        errors = states[test] @ weights[:-1] + weights[-1] - y[test]
        return float(np.mean(errors**2) / y[test].var())

    plain = [run("run", series.least_squares, seed, False) for seed in seeds]
    found = echo_states(run, seeds, 1e-8)
    return found | {"LeakyRNNCell, no squares": plain}


LAYERS: dict[str, list[rnnjax.Cell]] = {
    "LMU": [networks.LMUCell(49)] * 4, "LSTM": [rnnjax.LSTMCell(25)] * 4,
}  # fmt: skip


def ahead(kind: str) -> Callable[[Config, range], Scores]:
    """A row of Voelker et al. (2019): where a series is 15 steps later.

    They learn from 5,000 steps of each series, which takes five times as long; here from 1,000.
    """

    def run(config: Config, seeds: range) -> Scores:
        rows, steps, updates = (4, 60, 2) if config.quick else (32, 5015, 400)
        scores: Scores = {kind: [], "the value now": []}
        for seed in seeds:
            rng = np.random.default_rng(seed)
            made = np.tanh(series.mackey_glass(rng, steps, 4 * rows, washout=100) - 1)
            train, validation, test = np.split(made - made.mean(), [rows, 2 * rows], axis=1)
            named = {"train": train[:1015], "validation": validation[:1015], "test": test}
            found = networks.predict_ahead(LAYERS[kind], named, 15, updates, seed)
            scores[kind].append(found)
            print(f"{kind} {found:.3f}", flush=True)
            now = np.square(test[15:] - test[:-15]).mean() / np.square(test[15:]).mean()
            scores["the value now"].append(float(np.sqrt(now)))
        return scores

    return run


# ---- classification


def mnist1d(config: Config, seeds: range) -> Scores:
    """A GRU of both directions, on the published data where the package of it is installed."""
    updates, scores = 40 if config.quick else 6000, Scores()
    if importlib.util.find_spec("mnist1d"):
        module = importlib.import_module("mnist1d.data")
        theirs = module.make_dataset(module.get_dataset_args())
        parts = {
            "train": (theirs["x"].T.astype(np.float32), theirs["y"]),
            "test": (theirs["x_test"].T.astype(np.float32), theirs["y_test"]),
        }
        found = [networks.classify_1d(6, parts, updates, seed) for seed in seeds]
        scores["GRU, 6 units"] = found
    else:
        print("mnist1d is not installed: other templates stand for its digits, which are no row")
    rng = np.random.default_rng(config.seed)
    templates = np.cumsum(rng.normal(size=(10, networks.LENGTH)), axis=1) / 6
    xs, labels = networks.digits_1d(rng, templates - templates[:, :1], 5000)
    made = {"train": (xs[:, :4000], labels[:4000]), "test": (xs[:, 4000:], labels[4000:])}
    found = [networks.classify_1d(6, made, updates, seed) for seed in seeds]
    return scores | {"GRU, 6 units, made curves": found}


# ---- the tasks of this folder


def task(
    name: str, *cells: str, scale: Callable[[float], float] = float
) -> Callable[[Config, range], Scores]:
    """A row that `experiments.tasks` learns by some of its cells, all seeds in one vmap."""

    def run(config: Config, seeds: range) -> Scores:
        one = tasks.quick(tasks.TASKS[name]) if config.quick else tasks.TASKS[name]
        settings = tasks.Config(seeds=len(seeds), seed=seeds[0])
        scores = Scores()
        for kind in cells:
            scores[kind] = [scale(share) for share in tasks.learn(settings, one, kind)[0]]
            print(f"{name}: {kind} {np.mean(scores[kind]):.3f}", flush=True)
        return scores | {"chance": [scale(1 / one.answers)]}

    return run


def as_return(share: float) -> float:
    """The return of POPGym's games from the share of right answers: a wrong one costs as much."""
    return 2 * share - 1


_JAEGER, _VOELKER = "Jaeger 2001, section 6.4", "Voelker et al. 2019, Mackey-Glass table"
_FENG = "Feng et al. 2024, length 4,096"
_RETURN, _SHARE = "return, from -1 to 1, of answers learned, not of PPO", "share of right answers"
ROWS: dict[str, Row] = {
    "mackey_glass": Row(
        "NRMSE 84 steps ahead", mackey_glass, {"LeakyRNNCell": (0.00028, _JAEGER)}, 10, 5
    ),
    "narma10": Row(
        "NMSE, 50 units, 1,000 steps", narma10,
        {"LeakyRNNCell": (0.107, "Vinckier et al. 2015"),
         "LeakyRNNCell, no squares": (0.16, "Appeltant et al. 2011, a linear shift register")},
        10,
    ),
    "mackey_glass_lmu": Row(
        "NRMSE 15 steps ahead", ahead("LMU"), {"LMU": (0.049, _VOELKER)}, 3
    ),
    "mackey_glass_lstm": Row(
        "NRMSE 15 steps ahead", ahead("LSTM"), {"LSTM": (0.059, _VOELKER)}, 3
    ),
    "mnist1d": Row(
        "% right of 1,000", mnist1d, {"GRU, 6 units": (91, "Greydanus 2020, table 1")}, 3, 1
    ),
    "selective_copying": Row(
        _SHARE, task("selective_copying", "GRU", "minGRU"), {"minGRU": (0.995, _FENG)}
    ),
    "mqar": Row(_SHARE, task("mqar", "GRU", "mLSTM")),
    "S5": Row(_SHARE, task("S5", "LSTM", "DeltaProduct-4")),
    "repeat_previous": Row(_RETURN, task("repeat_previous", "GRU", "LRU", scale=as_return)),
    "autoencode": Row(_RETURN, task("autoencode", "GRU", "LRU", scale=as_return)),
}  # fmt: skip


def table(found: dict[str, Scores]) -> str:
    """Rows as Markdown: ours beside theirs."""
    lines = ["| row | network | here | published | by |", "|---|---|---|---|---|"]
    for name, scores in found.items():
        row = ROWS[name]
        for network in dict.fromkeys([*scores, *row.published]):
            number, paper = row.published.get(network, ("", ""))
            each, ours = scores.get(network, []), ""
            if each:
                ours = f"{np.mean(each):.{row.digits}f}"
            if len(each) > 1:
                ours += f" ± {np.std(each, ddof=1):.{row.digits}f}"
            lines.append(f"| `{name}` | {network} | {ours} | {number} | {paper} |")
    return "\n".join(lines)


def run(config: Config) -> int:
    """Run the rows one after the other."""
    runs.check_names("row", config.rows, ROWS)
    if config.seeds is not None and config.seeds < 1:
        raise InvalidInputError(f"--seeds must be at least 1, but is {config.seeds}")
    folder, found = runs.new_folder("tasks", config.run_dir), dict[str, Scores]()
    for name in dict.fromkeys(config.rows or ROWS):
        row, began = ROWS[name], time.process_time()
        report = Report(name, row.measure, folder / name, row.digits)
        report.run_dir.mkdir()
        seeds = config.seeds or (1 if config.quick else row.seeds)
        found[name] = row.run(config, range(config.seed, config.seed + seeds))
        for network, scores in found[name].items():
            report.add(network, scores)
        for network, (number, paper) in row.published.items():
            report.add(network, number, paper)
        cpu = time.process_time() - began
        report.end(seconds_of_a_core=cpu, seeds=seeds)
        print(f"  {cpu:.0f} s of a core, {seeds} seeds from {config.seed} on", flush=True)
    print(f"\n{table(found)}")
    (folder / "table.md").write_text(f"{table(found)}\n", encoding="utf-8")
    return 0


main = runs.command(run, Config, "tasks.published", "narma10 mnist1d")
if __name__ == "__main__":
    runs.exit_with(main)
