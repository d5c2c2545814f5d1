"""Learns to remember three bits, and is taken apart to see by which states it does so.

Pulses come on three channels, and each output is the sign of its channel's last one. How that was
learned is read off the network's step without input (Sussillo & Barak, "Opening the black box",
2013): a state that it maps to itself is a memory where it is stable, and elsewhere a saddle that
parts two of them. Three bits, each of two stable points and one between, are 3 ** 3 = 27: the
corners, edges, faces and the centre of a cube, with 0, 1, 2 and 3 directions that lead away.

    python -m experiments.cookbook.flip_flop --cell GRU
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common import dynamics
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.errors import InvalidInputError
from rnnjax.training import Silent, fit

KINDS = ("stable", "one way out", "two ways out", "three ways out")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Train a flip-flop, find its fixed points, and draw them."""

    cell: str = "SimpleRNN"
    """Its class without "Cell", such as GRU, LSTM or MGU."""
    units: int = 16
    """The number of units of the cell."""
    bits: int = 3
    """The number of channels, at most three."""
    epochs: int = 30
    """The number of epochs, of a hundred updates each."""
    starts: int = 2000
    """The number of states from which Newton's method begins."""


def draw(seed: Any, *shape: int, rate: float = 0.1) -> dict[str, np.ndarray]:
    """Pulses, and what each leaves, ``shape``: ``(..., time, rows, bits)``; all begin with one."""
    rng = np.random.default_rng(seed)
    pulses = rng.choice([-1.0, 1.0], shape) * (rng.uniform(size=shape) < rate)
    pulses[..., 0, :, :] = rng.choice([-1.0, 1.0], (*shape[:-3], *shape[-2:]))
    time = np.arange(shape[-3])[:, None, None]
    last = np.maximum.accumulate(np.where(pulses != 0, time, 0), axis=-3)
    held = np.take_along_axis(pulses, last, axis=-3)
    return {"pulses": pulses.astype(np.float32), "held": held.astype(np.float32)}


def learn(config: Config, cell: Any) -> Any:
    """Train a network: its parameters."""
    key = jax.random.key(config.seed)
    # --8<-- [start:model]
    params = {"cell": cell.init(key, config.bits), "bias": jnp.zeros(config.bits)}
    params["kernel"] = jnp.zeros((cell.output_size, config.bits))
    # --8<-- [end:model]

    # --8<-- [start:loss]
    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        ys = rnnjax.unroll(cell, params["cell"], batch["pulses"])[1]
        return ((ys @ params["kernel"] + params["bias"] - batch["held"]) ** 2).mean()
        # --8<-- [end:loss]

    rate = optax.cosine_decay_schedule(1e-2, 100 * config.epochs)
    return fit(
        loss_fn, params, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        lambda epoch: draw((config.seed, epoch), 100, 60, 32, config.bits), config.epochs,
        key=key, hooks=[Silent()],
    ).params  # fmt: skip


def fixed_points(config: Config, cell: Any, params: Any) -> tuple[dynamics.FixedPoints, np.ndarray]:
    """The fixed points without input, and the paths along the ways out of saddles with one.

    Returns:
        the points; and where those with one way out lead to, both ways, ``(time, paths, size)``.
    """
    pulses = draw((config.seed, 1), 100, 100, config.bits)["pulses"]
    states = dynamics.visited(cell, params, pulses)[10:]
    starts = dynamics.mixtures(states, config.starts, config.seed)
    x = np.zeros(config.bits)
    points = dynamics.fixed_points(cell, params, starts, x)
    return points, dynamics.escapes(cell, params, points, x)


def run(config: Config) -> int:
    """Train, take apart, and draw."""
    cell = dynamics.named_cell(config.cell, config.units)
    if config.bits > 3:
        raise InvalidInputError(f"--bits must be at most 3, but is {config.bits}; say 3")
    report = Report.begin("flip_flop", "fixed points, and bits that are right in %", config, 1)
    params = learn(config, cell)
    test = draw((config.seed, 2), 1000, 100, config.bits, rate=0.01)  # ten times as long to hold
    ys = rnnjax.unroll(cell, params["cell"], test["pulses"])[1] @ params["kernel"] + params["bias"]
    right = float(100 * ((ys > 0) == (test["held"] > 0)).mean())
    report.add("bits, by the pulse of the step", 50 + 50 * float((test["pulses"] != 0).mean()))
    report.add(f"bits, by the {config.cell}", right)
    points, paths = fixed_points(config, cell, params["cell"])
    states, ways, residuals = points.states, points.ways_out, points.residuals
    counts = [int((ways == k).sum()) for k in range(config.bits + 1)]
    report.add("fixed points of a cube", 3**config.bits, f"3 ** {config.bits}")
    report.add("fixed points", len(states))
    for k, count in enumerate(counts):
        cube = math.comb(config.bits, k) * 2 ** (config.bits - k)
        report.add(KINDS[k], count, f"here; of a cube {cube}")
    if len(states) > 2:
        centre = states.mean(axis=0)
        axes = np.linalg.svd(states - centre)[2][:3]  # principal components of the points
        marks = {KINDS[k]: (states[ways == k] - centre) @ axes.T for k in range(config.bits + 1)}
        plots.space(report.run_dir / "fixed-points.png", marks, (paths - centre) @ axes.T)
    report.accept("bits", right, 99.9, "least")
    report.accept("stable points", counts[0], 2**config.bits, "least")
    report.accept("fixed points", len(states), 3**config.bits, "least")
    report.accept("fixed points", len(states), 3**config.bits)
    report.accept("residual", max(residuals, default=math.inf), dynamics.RESIDUAL)
    return report.end(residual=max(residuals, default=math.nan), points=states.tolist())


main = runs.command(run, Config, "cookbook.flip_flop", "--cell GRU")
if __name__ == "__main__":
    runs.exit_with(main)
