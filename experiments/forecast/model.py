"""The networks: a GRU that reads, and quantiles of the next values, at every time.

At each time one state gives all next steps at once, as in MQ-RNN (Wen et al., 2017). What is known
of a later time enters at the step that it belongs to. Networks that know the series up to
different times train side by side: they are one `jax.vmap`, and read the same arrays.
"""

import dataclasses
import itertools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.forecast.problem import Problem
from rnnjax.training import EarlyStopping, Silent, fit, minibatches

CELL, DROPOUT, LOCAL = rnnjax.GRUCell(32), rnnjax.Dropout(0.2), 8
WINDOW, ROWS, PATIENCE, RATE = 200, 16, 8, 2e-3
ONE = float(np.log(np.e - 1))  # its softplus is 1


def init(key: jax.Array, features: int, later: int, static: int, horizon: int) -> Any:
    """The parameters of one network, whose first forecast is the expectation and a width of 1."""
    keys = jax.random.split(key, 4)
    params = {
        "cell": CELL.init(keys[0], features),
        "kernel": jnp.zeros((CELL.hidden_size, 3 * horizon)),
        "bias": jnp.tile(jnp.array([0.0, ONE, ONE]), horizon),
    }
    if static:
        params["static"] = 0.3 * jax.random.normal(keys[1], (static, CELL.hidden_size))
    if later:
        params["later"] = {
            "state": jax.random.normal(keys[2], (CELL.hidden_size, LOCAL)) / CELL.hidden_size**0.5,
            "known": jax.random.normal(keys[3], (later, LOCAL)) / later**0.5,
            "kernel": jnp.zeros((LOCAL + later, 3)),
        }
    return params


def apply(params: Any, xs: Any, later: Any, static: Any, key: Any = None, mask: Any = None) -> Any:
    """Quantiles ``(time, rows, horizon, 3)`` of the next values: lower, middle and upper.

    Args:
        params: of `init`.
        xs: ``(time, rows, features)``.
        later: ``(time, rows, horizon, columns)``, known of the next times.
        static: ``(rows, columns)``, of which the first carry is made.
        key: of the dropout; without one there is none.
        mask: ``(time, rows)``, the steps that a series has.
    """
    carry = CELL.initial_carry(xs.shape[1:2])
    if "static" in params:
        carry = jax.tree.map(lambda leaf: leaf + jnp.tanh(static @ params["static"]), carry)
    _, ys = rnnjax.unroll(CELL, params["cell"], xs, carry, mask=mask)
    return quantiles(params, DROPOUT.apply(key, ys), later)


def quantiles(params: Any, ys: Any, later: Any) -> Any:
    """The quantiles ``(..., horizon, 3)`` of outputs of the cell."""
    out = (ys @ params["kernel"] + params["bias"]).reshape(*ys.shape[:-1], -1, 3)
    if "later" in params:
        local = params["later"]
        seen = (ys @ local["state"])[..., None, :] + later @ local["known"]
        out += jnp.concatenate([jnp.tanh(seen), later], axis=-1) @ local["kernel"]
    middle, width = out[..., 0], jax.nn.softplus(out[..., 1:])  # so that no two of them cross
    return jnp.stack([middle - width[..., 0], middle, middle + width[..., 1]], axis=-1)


def pinball(ys: Any, targets: Any, level: float) -> Any:
    """The mean of the pinball losses of three quantiles ``(..., 3)`` (Koenker & Bassett, 1978).

    With ``e = y - q``: ``max(tau e, (tau - 1) e)``, which is least at the quantile ``tau``.
    """
    taus = jnp.array([(1 - level) / 2, 0.5, (1 + level) / 2])
    missed = targets[..., None] - ys
    return jnp.maximum(taus * missed, (taus - 1) * missed).mean(axis=-1)


@dataclasses.dataclass
class Trained:
    """What networks forecast of each origin that they had not seen, and the last of them.

    Attributes:
        ys: quantiles ``(time, series, horizon, 3)``, NaN before the first origin, in the sizes of
            `Steps`.
        coming: as those, by the networks that know all: what comes behind the end of each series.
        params: of these networks, ``(seeds, ...)``.
        epochs: how long each group of networks trained.
    """

    ys: np.ndarray
    coming: np.ndarray
    params: Any
    epochs: list[int]


def expect(params: Any, arrays: Any) -> jax.Array:
    """What the mean of the networks of each group forecasts, ``(groups, time, series, ...)``."""
    xs, later, static, valid = arrays

    def one(params: Any) -> jax.Array:
        return apply(params, xs, later, static, mask=valid)

    # One group after the other: all at once would take as much more memory.
    return jax.lax.map(lambda group: jax.vmap(one)(group).mean(axis=0), params)


def arrays_of(problem: Problem) -> tuple[np.ndarray, ...]:
    """What `expect` reads."""
    steps = problem.steps
    return steps.xs, steps.later, steps.static.astype(np.float32), steps.valid


def rows_of(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Stack windows of all series as rows, and say for each array which axis has the rows.

    A gap, and the end of a row behind the end of its series, have no weight in the loss.
    """
    steps, place = problem.steps, np.arange(len(problem.series.values))
    then = place[:, None] + np.arange(1, problem.horizon + 1)
    known, rows = np.isfinite(steps.targets), []
    for k, valid in enumerate(steps.valid.T):
        if len(times := np.flatnonzero(valid)[:-1]):
            for cut in np.array_split(times, -(-len(times) // WINDOW)):
                rows.append((cut, k))
    longest = max(len(cut) for cut, _ in rows)

    def stacked(of: Any, filling: float = 0.0) -> np.ndarray:
        parts = [of(cut, k) for cut, k in rows]
        shape = (longest, len(rows), *parts[0].shape[1:])
        array = np.full(shape, filling, parts[0].dtype)
        for row, part in enumerate(parts):
            array[: len(part), row] = part
        return array

    targets = np.nan_to_num(steps.targets).astype(np.float32)
    # The time of a target that is not known is behind all cuts.
    when = np.where(known, then[:, None], len(place) + problem.horizon).astype(np.int32)
    arrays = {
        "xs": stacked(lambda cut, k: steps.xs[cut, k]),
        "later": stacked(lambda cut, k: steps.later[cut, k]),
        "targets": stacked(lambda cut, k: targets[cut, k]),
        "when": stacked(lambda cut, k: when[cut, k], len(place) + problem.horizon),
        "static": np.stack([steps.static[k] for _, k in rows]).astype(np.float32),
    }
    return arrays, {name: int(name != "static") for name in arrays}


def train(problem: Problem, seeds: int, seed: int, epochs: int) -> Trained:
    """Train the networks of all cuts at once, ``seeds`` of each.

    A group trains on what is known at its cut alone, for as many epochs as were best for the
    groups before it on what these had not seen; only the first group, whose forecasts calibrate
    and are not tested, ends at its own best.
    """
    arrays, axes = rows_of(problem)
    cuts, features = np.array(problem.cuts), arrays["xs"].shape[-1]
    count = arrays["xs"].shape[1]
    size = min(ROWS, count)
    copies = -(-8 * size // count)  # of each row in an epoch, for eight updates at least
    arrays = {name: np.repeat(a, copies, axis=axes[name]) for name, a in arrays.items()}
    batches = minibatches(arrays, size, axis=axes, seed=seed)
    init_key, key = jax.random.split(jax.random.key(seed))
    sizes = arrays["later"].shape[-1], arrays["static"].shape[-1], problem.horizon
    keys = jax.random.split(init_key, (len(cuts), seeds))
    make = jax.vmap(jax.vmap(lambda key: init(key, features, *sizes)))
    groups = jnp.array(cuts + (np.arange(len(cuts)) == len(cuts) - 1))  # the last one knows all

    def loss_of(params: Any, cut: Any, batch: Any, key: Any) -> Any:
        ys = apply(params, batch["xs"], batch["later"], batch["static"], key)
        weights = batch["when"] < cut
        losses = pinball(ys, batch["targets"], problem.level)
        return (weights * losses).sum() / jnp.maximum(weights.sum(), 1)

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, (len(cuts), seeds))
        each = jax.vmap(jax.vmap(loss_of, (0, None, None, 0)), (0, 0, None, 0))
        # A sum: with Adam, which takes each number for itself, no network knows of the others.
        return each(params, groups, batch, keys).sum()

    best = Best(problem, epochs)
    fit(
        loss_fn, jax.jit(make)(keys), optax.adam(RATE), batches, epochs, key=key,
        evaluate=best.evaluate, hooks=[Silent(), EarlyStopping(PATIENCE)],
    )  # fmt: skip
    return Trained(best.ys, best.coming, best.params, best.epochs)


class Best:
    """Keeps of each group of networks what it forecast when the groups before it were best."""

    def __init__(self, problem: Problem, epochs: int) -> None:
        self.problem, self.limit = problem, epochs
        self.expect, self.arrays = jax.jit(expect), arrays_of(problem)
        self.lowest = [np.inf] * len(problem.cuts)
        self.epochs, self.epoch = [0] * len(problem.cuts), 0
        self.ys = np.full((*problem.steps.targets.shape, 3), np.nan, np.float32)
        self.coming, self.params = self.ys, None
        self.times: list[float] = [time.perf_counter()]

    def evaluate(self, params: Any) -> dict[str, float]:
        """Forecast what each group has not seen, and keep what is to be kept."""
        problem, self.epoch = self.problem, self.epoch + 1
        found = np.asarray(self.expect(params, self.arrays))
        losses, known = [], []
        for group, part in enumerate(itertools.starmap(slice, itertools.pairwise(problem.cuts))):
            each = np.asarray(
                pinball(found[group, part], problem.steps.targets[part], problem.level)
            )
            # What comes behind the next cut is not known at it.
            then = np.arange(part.start, part.stop)[:, None] + np.arange(1, problem.horizon + 1)
            there = np.isfinite(each) & (then <= part.stop)[:, None]
            there &= problem.steps.valid[part, :, None]
            losses.append(each[there].sum())
            known.append(there.sum())
        for group, begin in enumerate(problem.cuts):
            # What the groups before had not seen is known at this one's cut.
            before = slice(max(group, 1))
            loss = float(sum(losses[before]) / max(sum(known[before]), 1))
            if loss < self.lowest[group]:
                self.lowest[group], self.epochs[group] = loss, self.epoch
                end = next(iter(problem.cuts[group + 1 :]), None)
                self.ys[begin:end] = found[group, begin:end]
                if end is None:
                    self.coming = found[group]
                    self.params = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), params)
        self.tell()
        return {"validation_loss": loss}

    def tell(self) -> None:
        """After two epochs, say how long the others take at most."""
        self.times.append(time.perf_counter())
        if len(self.times) == 3:
            left = (self.limit - 2) * (self.times[2] - self.times[1])
            print(f"training: at most {left:.0f} s more", file=sys.stderr, flush=True)
