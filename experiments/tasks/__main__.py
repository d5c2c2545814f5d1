"""The tasks that tell recurrent cells apart, and a table of what each cell learns of each.

Words of a regular language up to 40 symbols long are learned, and words of 41 to 160 are asked
(Deletang et al., 2023; Beck et al., 2024): what has to be tracked is a state. Letters are copied
from among blanks (Gu & Dao, 2023), values recalled by their keys (Arora et al., 2024), two tasks
are 1,000 steps long (Hochreiter & Schmidhuber, 1997; Arjovsky et al., 2016), and the digits of
MNIST are read pixel by pixel (Le et al., 2015).

    python -m experiments.tasks
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.data import MADE, digit_parts
from experiments.shared.report import Report
from experiments.tasks import data
from rnnjax.errors import InvalidInputError
from rnnjax.training import EarlyStopping, Silent, fit


def _behind_convolution(cell: Any) -> Callable[[int], rnnjax.Cell]:
    """As in the authors' blocks, a matrix memory reads what a short convolution makes."""
    return lambda units: rnnjax.Stack([rnnjax.TemporalConvCell(units), cell(units, heads=2)])


@dataclasses.dataclass(frozen=True)
class DeltaProductCell(rnnjax.Cell):
    """DeltaNet with several writes a step (Siems et al., 2025), and beta up to 2: reflections."""

    hidden_size: int
    heads: int = 2
    writes: int = 1

    carry = rnnjax.MatrixCarry
    recurrent, output = None, None
    gates = property(lambda self: ("q", *("k", "v", "beta") * self.writes))
    size = property(lambda self: self.hidden_size // self.heads)
    carry_shapes = property(lambda self: {"memory": (self.heads, self.size, self.size)})

    def update(self, params: Any, x: jax.Array, carry: Any) -> Any:
        """``S (I - beta k k) + beta v k`` for each write, and the norm of ``S q``."""
        parts = x.reshape(*x.shape[:-1], len(self.gates), self.heads, self.size)
        q, *writes = jnp.moveaxis(parts, -3, 0)
        state = carry.memory
        for k, v, beta in zip(writes[::3], writes[1::3], writes[2::3], strict=True):
            k, v, beta = _unit(jax.nn.silu(k)), jax.nn.silu(v), 2 * jax.nn.sigmoid(beta[..., :1])
            found = (state @ k[..., None])[..., 0]
            state += (beta * (v - found))[..., None] * k[..., None, :]
        y = self.size**0.5 * _unit((state @ _unit(jax.nn.silu(q))[..., None])[..., 0])
        return rnnjax.MatrixCarry(state), y.reshape(*y.shape[:-2], self.hidden_size)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


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
    "GatedDeltaNet-negative": _behind_convolution(
        functools.partial(rnnjax.GatedDeltaNetCell, negative_eigenvalues=True)
    ),
    **{
        f"DeltaProduct-{writes}": _behind_convolution(
            functools.partial(DeltaProductCell, writes=writes)
        )
        for writes in (1, 2, 4)
    },
    # Two that begin with memories of up to a thousand steps.
    "minGRU-Chrono": lambda units: rnnjax.MinGRUCell(
        units, bias_init=rnnjax.cells.Chrono(1000, (-1, 0))
    ),
    "LRU-ring": lambda units: rnnjax.LRUCell(units, ring_init=rnnjax.cells.Ring(0.999, 1.0, 2.0)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
    """How a task is sampled and learned: a hundred updates an epoch, at a rate that falls to 0."""

    draw: Callable[..., data.Drawn]
    symbols: int  # 0: vectors
    answers: int  # 1: a number
    cells: tuple[str, ...]
    learned: tuple[int, int] = (1, 40)  # the shortest and the longest
    tested: tuple[int, int] | None = (41, 160)  # None: the same
    epochs: int = 20
    patience: int = 5  # epochs without a better loss
    floor: float = 1e-4  # of the loss: below it nothing is better
    layers: int = 1
    units: int = 32
    rows: int = 64
    test_rows: int = 500
    learning_rate: float = 1e-2


_CYCLES: Any = {"epochs": 60, "patience": 12}
_ONE: Any = {"tested": None, "rows": 32, "units": 64}
TASKS: dict[str, Task] = {
    "parity": Task(
        data.parity, 2, 2,
        ("LSTM", "GRU", "sLSTM", "DiagonalLSTM", "minGRU", "LRU", "S6", "mLSTM", "GatedDeltaNet",
         "GatedDeltaNet-negative"), floor=0.0,
    ),
    # Rotations of a triangle that may be turned over, and of an icosahedron: each is two
    # reflections. The words of A5 are of two of its elements, of which all others are made.
    "S3": Task(
        functools.partial(data.products, data.S3), 6, 6,
        ("LSTM", "DeltaProduct-1", "DeltaProduct-2"), epochs=12, floor=0.0,
    ),
    "A5": Task(
        functools.partial(data.products, data.A5, generators=data.GENERATORS), 2, 60,
        ("LSTM", "DeltaProduct-1", "DeltaProduct-2"), (1, 20), (21, 80), floor=0.0,
    ),
    "S5": Task(
        functools.partial(data.products, data.S5, generators=data.SWAP_AND_CYCLE), 2, 120,
        ("LSTM", "DeltaProduct-2", "DeltaProduct-4"), (1, 20), (21, 80), floor=0.0,
    ),
    "even_pairs": Task(data.even_pairs, 2, 2, ("sLSTM", "minGRU")),
    "cycle": Task(data.cycle, 3, data.MODULUS, ("GRU", "sLSTM", "minGRU"), **_CYCLES),
    "arithmetic": Task(data.arithmetic, data.MODULUS + 3, data.MODULUS, ("sLSTM",), **_CYCLES),
    "recall": Task(
        data.recall, 4 * data.PAIRS, 2 * data.PAIRS, ("GRU", "minGRU", "mLSTM"),
        (1, 3 * data.PAIRS), **_ONE,
    ),
    "selective_copying": Task(
        data.selective_copying, data.LETTERS + 2, data.LETTERS, ("GRU", "minGRU", "LRU"),
        (1, 32), **_ONE, layers=3, epochs=40, learning_rate=3e-3,
    ),
    "mqar": Task(
        data.mqar, 2 * data.WORDS + 1, data.WORDS, ("GRU", "mLSTM", "GatedDeltaNet"), (1, 64),
        **_ONE,
    ),
    # The suits of POPGym's games: RepeatPreviousMedium has two decks, AutoencodeEasy one.
    "repeat_previous": Task(
        data.repeat_previous, data.SUITS, data.SUITS, ("GRU", "LRU", "mLSTM"), (1, 103), **_ONE,
    ),
    "autoencode": Task(
        data.autoencode, 2 * data.SUITS + 1, data.SUITS, ("GRU", "LRU", "mLSTM"), (1, 103), **_ONE,
    ),
    "copying": Task(
        data.copying, data.LETTERS + 2, data.LETTERS, ("LRU", "LRU-ring"), (1, 1020), **_ONE,
        epochs=8,
    ),
    "adding": Task(data.adding, 0, 1, ("minGRU", "minGRU-Chrono"), (1, 1000), **_ONE, epochs=10),
    "pixels": Task(
        data.pixels, 0, 10, ("minGRU", "minGRU-Chrono", "LRU-ring"), (1, 784), **_ONE,
        test_rows=10_000, epochs=12,
    ),
}  # fmt: skip
# Shares of right answers. Grazzi et al. state (share - chance) / (1 - chance), of words of 40 to
# 256 symbols, two blocks; their Mamba stands for S6 here, their DeltaNet for the gated one.
_WORDS, _COPIES = "Grazzi et al. 2025", "Feng et al. 2024"
PUBLISHED = {
    "parity: sLSTM": (1.0, _WORDS), "parity: mLSTM": (0.544, _WORDS),
    "parity: S6": (0.5, _WORDS), "parity: GatedDeltaNet": (0.509, _WORDS),
    "parity: GatedDeltaNet-negative": (1.0, _WORDS),
    "arithmetic: sLSTM": (0.83, _WORDS), "arithmetic: mLSTM": (0.232, _WORDS),
    "arithmetic: S6": (0.276, _WORDS), "arithmetic: GatedDeltaNet": (0.451, _WORDS),
    "selective_copying: minGRU": (0.995, _COPIES), "selective_copying: S6": (0.998, _COPIES),
    "pixels: LSTM": (0.872, "Bai et al. 2018"), "pixels: GRU": (0.962, "Bai et al. 2018"),
    "pixels: uRNN": (0.951, "Arjovsky et al. 2016"), "pixels: IRNN": (0.97, "Le et al. 2015"),
}  # fmt: skip
# What tells cells apart: of several networks the worst is asked, or the best.
BOUNDS = {
    "parity: sLSTM": (0.9995, "least"), "parity: DiagonalLSTM": (0.9995, "least"),
    "parity: minGRU": (0.6, "most"), "parity: mLSTM": (0.6, "most"),
    "parity: GatedDeltaNet": (0.6, "most"), "parity: GatedDeltaNet-negative": (0.99, "least"),
    "S3: DeltaProduct-2": (0.99, "least"),
    "copying: LRU-ring": (0.9, "least"), "copying: LRU": (0.3, "most"),
    "adding: minGRU-Chrono": (0.8, "least"), "adding: minGRU": (0.5, "most"),
    "pixels: LRU-ring": (0.7, "least"), "pixels: minGRU": (0.5, "most"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the cells on the tasks, and compare them."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """The names of the tasks."""
    cells: tuple[str, ...] = ()
    """The names of the cells; by default those that show the difference for each task."""
    data: str | None = None
    """A folder that has the file of MNIST, or "made"."""
    quick: bool = False
    """A quick try: short sequences and few updates, without checking the scores."""
    run_dir: Path | None = None
    """Where the picture and result.json go; by default a new folder under runs/tasks."""
    seeds: int = 1
    """The number of networks of each kind, in one vmap."""
    seed: int = 0
    """The seed of weights and data."""


def logits(cell: rnnjax.Cell, symbols: int, params: Any, xs: jax.Array, steps: int) -> jax.Array:
    """A network's last answers: the layers, and a head of two, the same for all cells."""
    inputs = rnnjax.OneHot(xs, symbols) if symbols else xs
    carry = None
    if steps < len(xs):  # of the steps before no output is made
        carry, inputs = rnnjax.unroll(cell, params["cell"], inputs[:-steps])[0], inputs[-steps:]
    ys = rnnjax.unroll(cell, params["cell"], inputs, carry)[1]
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
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    lecun = jax.nn.initializers.lecun_normal()

    def begin(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "cell": cell.init(keys[0], task.symbols or held_out[0].shape[-1]),
            "hidden_kernel": lecun(keys[1], (cell.output_size, task.units)),
            "hidden_bias": jnp.zeros(task.units),
            "kernel": lecun(keys[2], (task.units, task.answers)),
            "bias": jnp.zeros(task.answers),
        }

    def of_all(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        xs, targets, places = batch

        def of_one(params: Any) -> Any:
            return measure(logits(cell, task.symbols, params, xs, len(targets)), targets, places)

        return jax.vmap(of_one)(params)

    draws = dict.fromkeys(("train", "validation", "test"), task.draw)
    if task.draw is data.pixels:
        parts = digit_parts(MADE if config.quick else config.data)
        draws = {part: functools.partial(data.pixels, *images) for part, images in parts.items()}

    def drawn(part: str, lengths: tuple[int, int], rows: int, *seed: int) -> data.Drawn:
        return draws[part](np.random.default_rng((config.seed, *seed)), *lengths, rows)

    def batches(epoch: int) -> Any:
        several = [drawn("train", task.learned, task.rows, 1, epoch, i) for i in range(100)]
        return tuple(map(np.stack, zip(*several, strict=True)))

    held_out = drawn("validation", task.learned, 500, 2)
    test = drawn("test", task.tested or task.learned, task.test_rows, 3)
    evaluated = jax.jit(of_all)

    def evaluate(params: Any) -> dict[str, Any]:
        return {"validation_loss": jnp.maximum(evaluated(params, held_out)[0], task.floor).mean()}

    # The optimiser, too, is mapped over networks: each has a norm of its own to be clipped.
    rate = optax.cosine_decay_schedule(task.learning_rate, 100 * task.epochs)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    mapped = optax.GradientTransformation(jax.vmap(adam.init), jax.vmap(adam.update))
    result = fit(
        lambda params, batch, key: of_all(params, batch)[0].sum(), jax.jit(jax.vmap(begin))(keys),
        mapped, batches, task.epochs, key=keys[0], evaluate=evaluate,
        hooks=[Silent(), EarlyStopping(task.patience)],
    )  # fmt: skip
    right = np.concatenate([  # not of all rows at once, for the memory
        evaluated(result.params, [of[:, at : at + 500] for of in test])[1]
        for at in range(0, test[2].shape[1], 500)
    ], axis=2)  # fmt: skip
    scores = right.sum(axis=(1, 2)) / test[2].sum()
    return scores.tolist(), right.mean(axis=(0, 2)), len(result.history)


def quick(task: Task) -> Task:
    """A try of a task: short sequences, few updates."""
    tested = task.tested and (25, 48)
    return dataclasses.replace(task, learned=(1, 24), tested=tested, epochs=2, units=16)


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
    runs.check_names("task", config.tasks, TASKS)
    runs.check_names("cell", config.cells, CELLS)
    if config.seeds < 1:
        raise InvalidInputError(f"--seeds must be at least 1, but is {config.seeds}")
    folder = runs.new_folder("tasks", config.run_dir)
    report = Report("tasks", "share of right answers", folder, 3)
    scores: dict[str, dict[str, list[float]]] = {}
    by_length: dict[str, list[float]] = {}
    for name in config.tasks:
        task, scores[name] = TASKS[name], {}
        if config.quick:
            task = quick(task)
        first = (task.tested or task.learned)[0]
        for kind in config.cells or task.cells:
            began = time.process_time()
            found, right, epochs = learn(config, task, kind)
            scores[name][kind] = found
            report.add(f"{name}: {kind}", found)
            if f"{name}: {kind}" in BOUNDS and config.data != MADE and not config.quick:
                bound, at = BOUNDS[f"{name}: {kind}"]
                worst = min(found) if at == "least" else max(found)
                report.accept(f"{name}, {kind}", worst, bound, at)
            if name == "parity":
                by_length[kind] = right[first - 1 :].tolist()
            told = " ".join(f"{one:.3f}" for one in found)
            seconds = time.process_time() - began
            print(
                f"{name}: {kind} {told} after {epochs} epochs, {seconds:.0f} s of a core",
                flush=True,
            )
        for row, published in PUBLISHED.items():
            if row.startswith(f"{name}: "):
                report.add(row, *published)
    if by_length:
        plots.curves(folder / "parity.png", by_length, x="length - 41", y="right answers")
    print(f"\n{table(scores)}")
    (folder / "table.md").write_text(f"{table(scores)}\n", encoding="utf-8")
    return report.end(parity_by_length=by_length)


main = runs.command(run, Config, "tasks", "--tasks parity --cells sLSTM mLSTM")
if __name__ == "__main__":
    runs.exit_with(main)
