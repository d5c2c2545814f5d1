"""The tasks that tell recurrent cells apart, and a table of what each cell learns of each.

Words of a regular language up to 40 symbols long are learned, and words of 41 to 160 are asked
(Deletang et al., 2023; Beck et al., 2024): what has to be tracked is a state. Letters are copied
from among blanks (Gu & Dao, 2023), values recalled by their keys (Arora et al., 2024), and two
tasks are 1,000 steps long (Hochreiter & Schmidhuber, 1997; Arjovsky et al., 2016).

    python -m experiments.tasks
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments import runs
from experiments.cookbook.common import plots
from experiments.cookbook.common.report import Report
from experiments.tasks import data
from rnnjax.errors import InvalidInputError
from rnnjax.training import Silent, fit
from rnnjax.training.files import new_folder


def _behind_convolution(cell: Any) -> Callable[[int], rnnjax.Cell]:
    """As in the authors' blocks, a matrix memory reads what a short convolution makes."""
    return lambda units: rnnjax.Stack([rnnjax.TemporalConvCell(units), cell(units, heads=2)])


def _around_zero(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Recurrent weights from -4 to 4: from 0 to 1, the cell's own, parity stays at 0.50."""
    return jax.random.uniform(key, shape, dtype, -4, 4)


CELLS: dict[str, Callable[[int], rnnjax.Cell]] = {
    "LSTM": rnnjax.LSTMCell, "GRU": rnnjax.GRUCell, "sLSTM": rnnjax.SLSTMCell,
    "DiagonalLSTM": lambda units: rnnjax.DiagonalLSTMCell(
        units, recurrent_kernel_init=_around_zero
    ),
    "minGRU": rnnjax.MinGRUCell,
    "LRU": rnnjax.LRUCell, "S6": rnnjax.S6Cell,
    "mLSTM": _behind_convolution(rnnjax.MLSTMCell),
    "GatedDeltaNet": _behind_convolution(rnnjax.GatedDeltaNetCell),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
    """How a task is drawn and learned: a hundred updates an epoch, and at most so many seeds."""

    draw: Callable[..., data.Drawn]
    symbols: int  # 0: vectors
    answers: int  # 1: a number
    learned: tuple[int, int] = (1, 40)  # the shortest and the longest
    tested: tuple[int, int] | None = (41, 160)  # None: the same
    cells: tuple[str, ...] = tuple(CELLS)
    epochs: int = 20
    layers: int = 1
    units: int = 32
    rows: int = 64
    seeds: int = 3
    learning_rate: float = 1e-2


PATIENCE = 8  # epochs without a better loss
_SLOW: Any = {"epochs": 60, "learning_rate": 3e-3}
_ONE: Any = {"tested": None, "seeds": 1, "rows": 32, "units": 64}
TASKS: dict[str, Task] = {
    "parity": Task(data.parity, 2, 2),
    "even_pairs": Task(data.even_pairs, 2, 2),
    "cycle": Task(data.cycle, 3, data.MODULUS, **_SLOW),
    "arithmetic": Task(data.arithmetic, data.MODULUS + 3, data.MODULUS, **_SLOW),
    "recall": Task(
        data.recall, 4 * data.PAIRS, 2 * data.PAIRS, (1, 3 * data.PAIRS), **_ONE,
        cells=("LSTM", "GRU", "minGRU", "mLSTM", "GatedDeltaNet"),
    ),
    "selective_copying": Task(
        data.selective_copying, data.LETTERS + 2, data.LETTERS, (1, 32), **_ONE,
        cells=("GRU", "minGRU", "LRU", "S6"), layers=3, epochs=40, learning_rate=3e-3,
    ),
    "copying": Task(
        data.copying, data.LETTERS + 2, data.LETTERS, (1, 1020), **_ONE,
        cells=("GRU", "LRU"), learning_rate=3e-3,
    ),
    "adding": Task(
        data.adding, 0, 1, (1, 1000), **_ONE, cells=("LSTM", "GRU", "LRU"), learning_rate=3e-3
    ),
}  # fmt: skip
# Shares of right answers. Grazzi et al. state (share - chance) / (1 - chance), of words of 40 to
# 256 symbols, two blocks; their Mamba stands for S6 here, their DeltaNet for the gated one.
_WORDS, _COPIES = "Grazzi et al. 2025", "Feng et al. 2024"
PUBLISHED = {
    "parity: sLSTM": (1.0, _WORDS), "parity: mLSTM": (0.544, _WORDS),
    "parity: S6": (0.5, _WORDS), "parity: GatedDeltaNet": (0.509, _WORDS),
    "arithmetic: sLSTM": (0.83, _WORDS), "arithmetic: mLSTM": (0.232, _WORDS),
    "arithmetic: S6": (0.276, _WORDS), "arithmetic: GatedDeltaNet": (0.451, _WORDS),
    "selective_copying: minGRU": (0.995, _COPIES), "selective_copying: S6": (0.998, _COPIES),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn the tasks with the cells, and compare."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Their names."""
    cells: tuple[str, ...] = tuple(CELLS)
    """Their names."""
    quick: bool = False
    """A try: short sequences and few updates, without bounds."""
    run_dir: Path | None = None
    """Where the picture and result.json go; by default a new folder under runs/tasks."""
    seeds: int = 3
    """Networks of each kind, at most, side by side in one vmap."""
    seed: int = 0
    """Of weights and data."""


def logits(cell: rnnjax.Cell, symbols: int, params: Any, xs: jax.Array) -> jax.Array:
    """A network's answer at each step: the layers, and a head of two, the same for all cells."""
    inputs = rnnjax.OneHot(xs, symbols) if symbols else xs
    ys = rnnjax.unroll(cell, params["cell"], inputs)[1]
    hidden = jax.nn.relu(ys @ params["hidden_kernel"] + params["hidden_bias"])
    return hidden @ params["kernel"] + params["bias"]


def measure(outputs: jax.Array, targets: Any, places: Any) -> tuple[Any, Any]:
    """The mean loss of a network over the places that count, and which of them are right."""
    if outputs.shape[-1] == 1:
        errors = outputs[..., 0] - targets
        losses, right = errors**2, jnp.abs(errors) < 0.16  # Hochreiter & Schmidhuber, 1997
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        right = outputs.argmax(axis=-1) == targets
    return jnp.where(places, losses, 0).sum() / places.sum(), right & places


def learn(config: Config, task: Task, kind: str) -> tuple[list[float], np.ndarray, int]:
    """Train networks of a kind: each one's score, what is right at each step, and the epochs."""
    cell = rnnjax.Stack([CELLS[kind](task.units)] * task.layers)
    keys = jax.random.split(jax.random.key(config.seed), min(config.seeds, task.seeds))
    lecun = jax.nn.initializers.lecun_normal()

    def begin(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "cell": cell.init(keys[0], task.symbols or 2),
            "hidden_kernel": lecun(keys[1], (cell.output_size, task.units)),
            "hidden_bias": jnp.zeros(task.units),
            "kernel": lecun(keys[2], (task.units, task.answers)),
            "bias": jnp.zeros(task.answers),
        }

    def of_all(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        xs, targets, places = batch

        def of_one(params: Any) -> Any:
            return measure(logits(cell, task.symbols, params, xs), targets, places)

        return jax.vmap(of_one)(params)

    def drawn(lengths: tuple[int, int], rows: int, *seed: int) -> data.Drawn:
        return task.draw(np.random.default_rng((config.seed, *seed)), *lengths, rows)

    def batches(epoch: int) -> Any:
        several = [drawn(task.learned, task.rows, 1, epoch, i) for i in range(100)]
        return tuple(map(np.stack, zip(*several, strict=True)))

    held_out, test = drawn(task.learned, 256, 2), drawn(task.tested or task.learned, 500, 3)
    evaluated = jax.jit(of_all)

    def evaluate(params: Any) -> dict[str, Any]:
        # A loss below this is none: nothing is better, and patience ends the run.
        return {"validation_loss": jnp.maximum(evaluated(params, held_out)[0], 1e-4).mean()}

    # The optimiser, too, is mapped over networks: each has a norm of its own to be clipped.
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(task.learning_rate))
    mapped = optax.GradientTransformation(jax.vmap(adam.init), jax.vmap(adam.update))
    result = fit(
        lambda params, batch, key: of_all(params, batch)[0].sum(), jax.jit(jax.vmap(begin))(keys),
        mapped, batches, task.epochs, key=keys[0], evaluate=evaluate, patience=PATIENCE,
        progress=Silent(),
    )  # fmt: skip
    right = np.asarray(evaluated(result.params, test)[1])
    scores = right.sum(axis=(1, 2)) / test[2].sum()
    return scores.tolist(), right.mean(axis=(0, 2)), len(result.history)


def table(scores: dict[str, dict[str, list[float]]]) -> str:
    """Cells by tasks, as Markdown: the mean, and the worst network where one is worse."""

    def shown(found: list[float] | None) -> str:
        if found is None:
            return ""
        mean, worst = f"{np.mean(found):.3f}", f"{min(found):.3f}"
        return mean if mean == worst else f"{mean} ({worst})"

    lines = [f"| cell | {' | '.join(scores)} |", f"|---{'|---' * len(scores)}|"]
    for kind in CELLS:
        of_kind = [shown(found.get(kind)) for found in scores.values()]
        lines += [f"| {kind} | {' | '.join(of_kind)} |"] if any(of_kind) else []
    return "\n".join(lines)


def run(config: Config) -> int:
    """Learn all tasks, and compare."""
    for what, names, known in (("task", config.tasks, TASKS), ("cell", config.cells, CELLS)):
        if unknown := sorted(set(names) - set(known)):
            raise InvalidInputError(
                f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}"
            )
    if config.seeds < 1:
        raise InvalidInputError(f"--seeds must be at least 1, but is {config.seeds}")
    folder = new_folder("tasks", config.run_dir)
    report = Report("tasks", "share of right answers", folder, 3)
    scores: dict[str, dict[str, list[float]]] = {}
    by_length: dict[str, list[float]] = {}
    for name in config.tasks:
        task, scores[name] = TASKS[name], {}
        if config.quick:
            tested = task.tested and (25, 48)
            task = dataclasses.replace(task, learned=(1, 24), tested=tested, epochs=2, units=16)
        first = (task.tested or task.learned)[0]
        for kind in (kind for kind in task.cells if kind in config.cells):
            began = time.perf_counter()
            found, right, epochs = learn(config, task, kind)
            scores[name][kind] = found
            report.add(f"{name}: {kind}", found)
            if f"{name}: {kind}" in PUBLISHED:
                report.add(f"{name}: {kind}", *PUBLISHED[f"{name}: {kind}"])
            if name == "parity":
                by_length[kind] = right[first - 1 :].tolist()
            told = " ".join(f"{one:.3f}" for one in found)
            seconds = time.perf_counter() - began
            print(f"{name}: {kind} {told} after {epochs} epochs, {seconds:.0f} s", flush=True)
    if by_length:
        plots.curves(folder / "parity.png", by_length, x="length - 41", y="right answers")
    for kind, found in scores.get("parity", {}).items() if not config.quick else ():
        if kind in ("sLSTM", "DiagonalLSTM"):
            report.accept(f"parity, {kind}", min(found), 0.9995, "least")
        if kind in ("minGRU", "mLSTM"):
            report.accept(f"parity, {kind}", max(found), 0.6)
    print(f"\n{table(scores)}")
    (folder / "table.md").write_text(f"{table(scores)}\n", encoding="utf-8")
    return report.end(parity_by_length=by_length)


def main() -> int:
    """Read the options, and run."""
    return run(runs.options(Config, "tasks", "--tasks parity --cells sLSTM mLSTM"))


if __name__ == "__main__":
    runs.exit_with(main)
