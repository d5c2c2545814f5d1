"""Predicts the remaining useful life of engines, whose histories are of uneven length.

Prognostics, as with NASA's turbofan data (Saxena et al., 2008): every engine is run until it fails,
and a GRU says at each cycle how many are left, capped at 125, because wear shows only towards the
end (Heimes, 2008). Histories are padded, and steps of padding count for nothing. An engine that is
tested has run up to some cycle, and its last prediction counts, so the form is many to one where it
is used, and many to many where it is learned: each cycle of a history is an example.

The engines are made. Wear grows the faster, the more there is, at a rate of each engine, and six
sensors show it under noise and three loads that change from cycle to cycle.

    python -m experiments.cookbook.remaining_life

For machines of your own, return their features and the cycles left in `histories`, more than 41
cycles each. Scale each feature by its mean and deviation over the machines that are learned from,
set `CAP`, above which all counts as new, and `LONGEST`, and split by machines, because the cycles
of one machine are alike.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import RidgeCV

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

CAP, LONGEST, SENSORS, LOADS = 125, 320, 6, 3


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Predict how many cycles an engine has left, beside a regression on what was last seen."""

    engines: int = 200
    """The number of engines to learn from; half as many test."""
    seeds: int = 3
    """The number of networks to train, one after the other."""
    epochs: int = 30
    """The number of passes over the engines."""
    units: int = 32
    """The number of units of the GRU."""


def histories(seed: Any, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sensors and load ``(cycles, features)`` of engines until they fail, and the cycles left."""
    fixed, rng = np.random.default_rng(5), np.random.default_rng(seed)
    offset, gain = fixed.normal(size=(LOADS, SENSORS)), fixed.normal(size=SENSORS)
    power = fixed.uniform(1, 3, SENSORS)
    seen, left = list[np.ndarray](), list[np.ndarray]()
    while len(seen) < count:
        rate, wear, rows = rng.uniform(0.004, 0.02), rng.uniform(0, 0.1), list[np.ndarray]()
        while wear < 1 and len(rows) < LONGEST:
            load = rng.integers(LOADS)
            wear += rate * (0.2 + wear) * rng.uniform(0, 2) * (1 + 0.3 * load)
            shown = offset[load] + gain * min(wear, 1) ** power + 0.1 * rng.normal(size=SENSORS)
            rows.append(np.concatenate([shown, np.eye(LOADS)[load]]))
        if wear >= 1 and len(rows) > 45:  # so that there is something to see
            seen.append(np.array(rows, np.float32))
            left.append(np.minimum(np.arange(len(rows))[::-1], CAP).astype(np.float32))
    return seen, left


# --8<-- [start:model]
def predict(config: Config, params: Any, xs: Any, lengths: Any) -> jax.Array:
    """The cycles left ``(time, engines)``."""
    _, ys = rnnjax.unroll(rnnjax.GRUCell(config.units), params["gru"], xs, lengths=lengths)
    return CAP * jax.nn.sigmoid(ys @ params["kernel"] + params["bias"])
    # --8<-- [end:model]


def learn(config: Config, seen: list[np.ndarray], left: list[np.ndarray], seed: int) -> Any:
    """Train on whole histories: the parameters."""
    xs, lengths = rnnjax.pad(seen, sizes=[LONGEST])
    parts = {"xs": xs, "left": rnnjax.pad(left, sizes=[LONGEST]).xs, "lengths": lengths}

    # --8<-- [start:loss]
    def loss_fn(params: Any, batch: Any, key: jax.Array) -> Any:
        found = predict(config, params, batch["xs"], batch["lengths"])
        valid = rnnjax.valid_steps(batch["lengths"], LONGEST)
        squares = jnp.where(valid, ((found - batch["left"]) / CAP) ** 2, 0)
        return squares.sum() / valid.sum(), {"weight": valid.sum()}
        # --8<-- [end:loss]

    cell, key = rnnjax.GRUCell(config.units), jax.random.key(seed)
    params = {"gru": cell.init(key, SENSORS + LOADS), "bias": jnp.zeros(())}
    params["kernel"] = jnp.zeros(config.units)
    axis = {"xs": 1, "left": 1, "lengths": 0}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    return fit(
        loss_fn, params, optimizer, minibatches(parts, 20, axis=axis, seed=seed), config.epochs,
        key=key, hooks=[Silent()],
    ).params  # fmt: skip


def features(history: np.ndarray) -> np.ndarray:
    """What a regression is given: means of the last 20 cycles, of the 20 before, and the age."""
    age = len(history), np.log(len(history))
    return np.concatenate([history[-20:].mean(axis=0), history[-40:-20].mean(axis=0), age])


def regression(seen: list[np.ndarray], left: list[np.ndarray]) -> Any:
    """Ridge regression on features of histories that end at some cycle."""
    ends = [(one, there, end) for one, there in zip(seen, left, strict=True)
            for end in range(41, len(one), 5)]  # fmt: skip
    return RidgeCV(np.logspace(-3, 3, 7)).fit(
        [features(one[:end]) for one, _, end in ends], [there[end - 1] for _, there, end in ends]
    )


def run(config: Config) -> int:
    """Train, predict for engines that still run, and draw some of them."""
    report = Report.begin("remaining_life", "root mean squared error, in cycles", config, 1)
    seen, left = histories((config.seed, 0), config.engines)
    whole, after = histories((config.seed, 1), config.engines // 2)
    rng = np.random.default_rng((config.seed, 2))
    ends = [int(rng.integers(41, len(one))) for one in whole]
    asked = [one[:end] for one, end in zip(whole, ends, strict=True)]
    right = np.array([there[end - 1] for there, end in zip(after, ends, strict=True)])

    def error(found: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(found) - right) ** 2)))

    report.add("the mean of all", error(np.full(len(right), np.concatenate(left).mean())))
    linear = regression(seen, left).predict([features(one) for one in asked]).clip(0, CAP)
    report.add("ridge regression on the last 40 cycles and the age", error(linear))
    xs, lengths = rnnjax.pad(asked, sizes=[LONGEST])
    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        params = learn(config, seen, left, seed)
        every = np.asarray(predict(config, params, xs, lengths))
        found.append(error(every[lengths - 1, np.arange(len(asked))]))
    report.add("GRU", found)
    xs, lengths = rnnjax.pad(whole[:4], sizes=[LONGEST])
    every = np.asarray(predict(config, params, xs, lengths))
    panels = {
        f"engine {i + 1}": ("cycles left", {
            "right": (np.arange(n), after[i]), "GRU": (np.arange(n), every[:n, i])
        })
        for i, n in enumerate(lengths)
    }  # fmt: skip
    plots.forecasts(report.run_dir / "engines.png", panels)
    report.accept("error, with the regression's for bound", float(np.mean(found)), error(linear))
    return report.end()


main = runs.command(run, Config, "cookbook.remaining_life", "--seeds 1")
if __name__ == "__main__":
    runs.exit_with(main)
