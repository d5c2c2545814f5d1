"""Learns which way a spiral turns, from points at irregular times.

Points run around the origin, clockwise or against it, and towards it. First the data and the budget
of Diffrax's page on neural controlled differential equations (Kidger et al., 2020), where points
are equally far apart in time: 256 spirals of 100 points, 20 updates. Then few points at times of
their own, with noise: a turn by more than a half circle is one by less the other way, unless it is
known how long it took. S5 (Smith et al., 2023) takes the time between two points for the length of
its step; the others have it as one more feature, or not at all.

    python -m experiments.cookbook.spirals
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit

UNITS, SPAN, TURN, SHRINK = 32, 4 * np.pi, 2.0, 0.3
KINDS: dict[str, tuple[Any, bool]] = {  # whether it is told the time
    "S5, time as its step": (rnnjax.S5Cell(UNITS, intervals=True), True),
    "S5, time as a feature": (rnnjax.S5Cell(UNITS), True),
    "GRU, time as a feature": (rnnjax.GRUCell(UNITS), True),
    "GRU without the time": (rnnjax.GRUCell(UNITS), False),
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Classify spirals, at regular and at irregular times."""

    data: str | None = None
    """All data are made here; with "made" there is the first kind alone, without bounds."""
    seeds: int = 3
    """The number of networks of each kind, in one vmap."""
    points: int = 16
    """The number of points of a spiral, at irregular times."""
    noise: float = 0.1
    """The standard deviation of the noise of the points."""
    epochs: int = 10
    """The number of epochs at irregular times, of 100 updates each, on 64 new spirals."""


def draw(
    key: Any, count: int, points: int, noise: float, irregular: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Points and the times since the one before, ``(points, count, 3)``; and who turns left."""
    rng = np.random.default_rng(key)
    times = np.broadcast_to(np.linspace(0, SPAN, points)[:, None], (points, count))
    if irregular:
        times = np.sort(rng.uniform(0, SPAN, (points, count)), axis=0)
    left = rng.permutation(count) < count // 2
    angles = rng.uniform(0, 2 * np.pi, count) + np.where(left, TURN, -TURN) * times
    xs = np.exp(-SHRINK * times)[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    xs += noise * rng.normal(size=xs.shape)
    # In units of the mean interval, which is then a step of a network that knows no time.
    gaps = np.diff(times, axis=0, prepend=times[:1]) * (points - 1) / SPAN
    return np.concatenate([xs, gaps[..., None]], axis=-1).astype(np.float32), left


# --8<-- [start:model]
def logits(kind: str, params: Any, xs: jax.Array) -> jax.Array:
    """How sure a network is of a left turn after each point: the mean of two layers' answers."""
    cell, timed = KINDS[kind]
    if getattr(cell, "intervals", False):  # by a first step of length 0 the first point is lost
        xs = jnp.asarray(xs).at[0, ..., 2].set(1)
    _, ys = rnnjax.unroll(cell, params["cell"], xs if timed else xs[..., :2])
    hidden = jax.nn.relu(ys @ params["hidden_kernel"] + params["hidden_bias"])
    answers = hidden @ params["kernel"] + params["bias"]
    return answers.cumsum(axis=0) / jnp.arange(1, len(xs) + 1)[:, None]
    # --8<-- [end:model]


# --8<-- [start:loss]
def measure(kind: str, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each network, and its right answers in % after each point."""
    xs, left = batch
    found = jax.vmap(lambda params: logits(kind, params, xs))(params)
    losses = optax.sigmoid_binary_cross_entropy(found[:, -1], jnp.asarray(left, found.dtype))
    return losses.mean(axis=1), 100 * ((found > 0) == left).mean(axis=2)
    # --8<-- [end:loss]


def learn(config: Config, kind: str, batches: Any, epochs: int, rate: float) -> Any:
    """The parameters of networks of a kind that saw these spirals."""
    cell, timed = KINDS[kind]
    lecun = jax.nn.initializers.lecun_normal()

    def begin(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "cell": cell.init(keys[0], 2 + timed),
            "hidden_kernel": lecun(keys[1], (UNITS, UNITS)), "hidden_bias": jnp.zeros(UNITS),
            "kernel": lecun(keys[2], (UNITS, 1))[:, 0], "bias": jnp.zeros(()),
        }  # fmt: skip

    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    # The optimiser, too, is mapped over networks: each has a norm of its own to be clipped.
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    mapped = optax.GradientTransformation(jax.vmap(adam.init), jax.vmap(adam.update))
    return fit(
        lambda params, batch, key: measure(kind, params, batch)[0].sum(),
        jax.jit(jax.vmap(begin))(keys), mapped, batches, epochs, key=keys[0], hooks=[Silent()],
    ).params  # fmt: skip


def page(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The 20 batches of 32 that Diffrax's page learns from, of 256 spirals in three orders."""
    xs, left = draw((seed, 1), 256, 100, 0, False)
    rng = np.random.default_rng((seed, 2))
    orders = np.concatenate([rng.permutation(256) for _ in range(3)])[: 20 * 32].reshape(20, 32)
    return xs[:, orders].swapaxes(0, 1), left[orders]


def run(config: Config) -> int:
    """Learn from spirals of both kinds, and compare."""
    report = Report.begin("spirals", "right answers, %", config, 1)
    made, irregular = config.data == data.MADE, (config.points, config.noise, True)
    seen, losses = {}, {}

    def batches(epoch: int) -> Any:
        several = [draw((config.seed, 3, epoch, i), 64, *irregular) for i in range(100)]
        return tuple(map(np.stack, zip(*several, strict=True)))

    for kind in KINDS if not made else list(KINDS)[:1]:
        params = learn(config, kind, page(config.seed), 1, 1e-2)
        found, right = measure(kind, params, draw((config.seed, 4), 256, 100, 0, False))
        losses[kind] = found.tolist()
        report.add(f"100 regular points: {kind}", right[:, -1].tolist())
        params = learn(config, kind, batches, config.epochs, 3e-3)
        right = measure(kind, params, draw((config.seed, 5), 2000, *irregular))[1]
        seen[kind] = right.mean(axis=0).tolist()
        report.add(f"{config.points} irregular points: {kind}", right[:, -1].tolist())
    report.add("100 regular points: neural CDE, a loss of 0.106", 100, "Diffrax's page")
    plots.curves(report.run_dir / "points.png", seen, x="points", y="right answers, %",
                 xs=range(1, config.points + 1))  # fmt: skip
    if not made:
        scores = {row.name: float(np.mean(row.score)) for row in report.rows}
        few = f"{config.points} irregular points"
        regular = scores["100 regular points: S5, time as its step"]
        report.accept("S5, regular points", regular, 99, "least")
        report.accept("S5, irregular", scores[f"{few}: S5, time as its step"], 98, "least")
        report.accept("GRU without the time", scores[f"{few}: GRU without the time"], 97)
    return report.end(losses=losses, seen=seen)


main = runs.command(run, Config, "cookbook.spirals", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
