"""Learns to add two numbers from far back in a sequence, and measures how far gradients reach.

The last output is differentiated by the states before each of 100 steps, with the initial recurrent
weights and with scaled ones: gradients vanish or explode (Bengio et al., 1994; Pascanu et al.,
2013). "An LSTM fixes that" is half right: its gates tame the explosion, but hand on only what the
forget gates let through, with a bias of 1 (Jozefowicz et al., 2015) some sigmoid(1) = 0.73 a step.
Then the adding problem (Hochreiter & Schmidhuber, 1997): the sum of two marked numbers among 200.

    python -m experiments.cookbook.gradients
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

SCALES = (0.5, 1.0, 1.5, 3.0)  # of the recurrent weights
KINDS: dict[str, tuple[Any, float | None]] = {  # the forget gate's bias
    "SimpleRNN": (rnnjax.SimpleRNNCell, None), "LSTM": (rnnjax.LSTMCell, None),
    "LSTM, forget bias 5": (rnnjax.LSTMCell, 5.0), "GRU": (rnnjax.GRUCell, None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Measure how far gradients reach, and train on the adding problem."""

    data: str | None = None
    """All data are made here; with "made" there are only a SimpleRNN and a GRU, without bounds."""
    seeds: int = 3
    """The number of trained networks of each kind, in one vmap."""
    numbers: int = 200
    """The number of steps of the adding problem."""
    epochs: int = 8
    """The number of epochs of the trained networks: 100 updates each, on 64 new sequences."""


# --8<-- [start:model]
def draw(kind: str, size: int, seed: int, seeds: int) -> tuple[Any, Any]:
    """A cell, and parameters of networks with it, whose heads make a number of the last output."""
    new, bias = KINDS[kind]
    keys = jax.random.split(jax.random.key(seed), seeds)
    params = jax.vmap(lambda key: new(size).init(key, 2))(keys)
    if bias is not None:
        params["bias"] = params["bias"].at[:, size : 2 * size].set(bias)
    head = jax.random.normal(keys[0], (seeds, size)) / size**0.5
    return new(size), {"cell": params, "kernel": head, "bias": jnp.zeros(seeds)}
    # --8<-- [end:model]


# --8<-- [start:loss]
def losses(cell: Any, params: Any, xs: Any, ys: Any) -> jax.Array:
    """The mean squared error of each network."""

    def loss(params: Any) -> jax.Array:
        last = rnnjax.unroll(cell, params["cell"], xs)[1][-1]
        return ((last @ params["kernel"] + params["bias"] - ys) ** 2).mean()

    return jax.vmap(loss)(params)
    # --8<-- [end:loss]


# --8<-- [start:reach]
def reach(cell: Any, params: Any, xs: Any, scales: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """The gradient by a state, over that by the last: norms' geometric mean, ``(scales, time)``."""

    def gradients(params: Any, scale: jax.Array) -> jax.Array:
        scaled = dict(params["cell"])
        if "recurrent_kernel" in scaled:
            scaled["recurrent_kernel"] = scale * scaled["recurrent_kernel"]
        _, states = rnnjax.state_gradients(
            lambda carry, ys: (ys[-1] @ params["kernel"]).sum(), cell, scaled, xs
        )
        return jnp.concatenate(jax.tree.leaves(states), axis=-1)

    of_all = jax.jit(jax.vmap(jax.vmap(gradients, (0, None)), (None, 0)))
    # In float64: the square of 1e-20 is 0 in float32, and a GRU would seem to hand on nothing.
    norms = np.linalg.norm(np.asarray(of_all(params, jnp.array(scales)), np.float64), axis=-1)
    return np.exp(np.log(np.maximum(norms / norms[:, :, -1:], 1e-37)).mean(axis=(1, 3)))
    # --8<-- [end:reach]


def learn(config: Config, kind: str) -> tuple[Any, Any]:
    """Train networks of a kind to add: the cell, and the parameters of the epoch that adds best."""
    cell, params = draw(kind, 32, config.seed, config.seeds)
    # The optimiser, too, is mapped over networks: each has a norm of its own to be clipped.
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    mapped = optax.GradientTransformation(jax.vmap(adam.init), jax.vmap(adam.update))
    held_out = data.sums((config.seed, 1), config.numbers, 256)
    return cell, fit(
        lambda params, batch, key: losses(cell, params, *batch).sum(), params, mapped,
        lambda epoch: data.sums((config.seed, 2, epoch), config.numbers, 100, 64),
        config.epochs, key=jax.random.key(config.seed), hooks=[Silent()],
        evaluate=lambda params: {"validation_loss": losses(cell, params, *held_out).mean()},
    ).params  # fmt: skip


def run(config: Config) -> int:
    """Look at gradients, train, and compare."""
    report = Report.begin("gradients", "adding, mean squared error", config, digits=5)
    xs, ys = data.sums((config.seed, 3), 100, 8)
    test = data.sums((config.seed, 4), config.numbers, 1000)
    report.add("the mean, whatever comes", float(np.mean((test[1] - 1) ** 2)))
    shares: dict[str, np.ndarray] = {}
    for kind in KINDS if config.data != data.MADE else ("SimpleRNN", "GRU"):
        rows = reach(*draw(kind, 64, config.seed, 10), xs, SCALES)
        shares |= {f"{kind} x {scale:g}": row for scale, row in zip(SCALES, rows, strict=True)}
        cell, params = learn(config, kind)
        report.add(kind, np.asarray(losses(cell, params, *test)).tolist())
        shares[f"{kind}, trained"] = reach(cell, params, xs)[0]
    for kind, score in (("RNN", 0.177), ("LSTM", 0.164), ("GRU", 5.3e-5)):
        report.add(f"{kind}, 600 numbers", score, "Bai et al. 2018")
    far = {name: float(row[0]) for name, row in shares.items()}
    told = "\n  ".join(f"{name:<26}{share:8.1e}" for name, share in far.items())
    print(f"The gradient by the state 99 steps back, over that by the last one:\n  {told}")
    colours = np.clip(np.stack(list(shares.values()))[:, ::-1], 1e-12, 1e12)
    plots.matrix(
        report.run_dir / "reach.png", colours, rows=list(shares), x="steps back",
        bar="gradient, as a part of the last step's", log=True,
    )  # fmt: skip
    cell, params = draw("SimpleRNN", 64, config.seed, 1)
    params["cell"]["recurrent_kernel"] *= 3
    step = jax.grad(lambda params: losses(cell, params, xs, ys).sum())(params)
    clipped, _ = optax.clip_by_global_norm(1.0).update(step, optax.EmptyState())
    norms = [float(optax.tree.norm(tree)) for tree in (params, step, clipped)]
    print("SimpleRNN x 3: weights of {:.1f}, a gradient of {:.0e}, clipped {:.1f}".format(*norms))
    if config.data != data.MADE:
        scores = {row.name: float(np.mean(row.score)) for row in report.rows}
        report.accept("SimpleRNN x 3, reach", far["SimpleRNN x 3"], 1e12, "least")
        report.accept("LSTM x 3, reach", far["LSTM x 3"], 100)
        report.accept("forget bias 5, reach", far["LSTM, forget bias 5 x 1"], 0.1, "least")
        report.accept("GRU, adding", scores["GRU"], 1e-3)
        report.accept("SimpleRNN, adding", scores["SimpleRNN"], 0.1, "least")
    return report.end(reach=far, clipping=norms)


main = runs.command(run, Config, "cookbook.gradients", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
