"""Finds anomalies in a series by an autoencoder that saw none, with a threshold and its errors.

An LSTM encoder-decoder (Malhotra et al., 2016) learns to write windows of a normal series again
from a code of a few numbers. What it cannot write again is unusual: the anomaly score of a window
is its squared error. The threshold is the 99 % quantile of the scores of normal windows that were
not learned from, so it needs no anomaly either; so some 1 % of normal windows raise an alarm.

The series are made: heart beats of three leads. Their anomalies are a beat that comes early, one
that has lost its wave, one whose wave is slow, and two leads that are swapped. None of them has a
value that is unusual by itself.

    python -m experiments.cookbook.anomalies

For a series of your own, scale each lead by its mean and deviation over the normal part, because
codes lie between -1 and 1, and take windows of about three periods, as here. Windows that overlap
share values, so take those of the threshold from a later part than those that are learned from.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import PCA
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

STEPS, LEADS, CODE, MORE = 60, 3, 6, 40  # numbers of a code, and of a longer one that is linear
KINDS = "early beat", "lost wave", "swapped leads", "slow wave"


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Score windows of a series by how well an autoencoder writes them again."""

    windows: int = 4000
    """The number of normal windows to learn from."""
    epochs: int = 20
    """The number of passes over the windows."""
    units: int = 48
    """The number of units of encoder and decoder."""


def beats(rng: np.random.Generator, count: int, kind: str | None = None) -> np.ndarray:
    """Windows ``(STEPS, count, LEADS)`` of a heart's beat, with an anomaly of a kind or without."""
    time, rows = np.arange(STEPS), np.empty((STEPS, count, LEADS))
    for row in range(count):
        gap, first = rng.uniform(17, 21), rng.uniform(0, 20)
        at = np.arange(first - gap, STEPS + gap, gap)
        at += rng.normal(0, 0.4, len(at))  # no two beats are equally far apart
        centre = int(np.argmin(np.abs(at - rng.uniform(25, 35))))
        heights, widths = np.ones(len(at)), np.full(len(at), 3.0)
        if kind == "early beat":
            at[centre] -= 0.35 * gap
        if kind == "slow wave":
            widths[centre] = 5.0
        if kind == "lost wave":
            heights[centre] = 0.3
        distance = time[:, None] - at
        peak = (np.exp(-(distance**2) / 2)).sum(axis=1)
        wave = (heights * np.exp(-((distance - 6) ** 2) / 2 / widths**2)).sum(axis=1)
        leads = [peak + 0.4 * wave, 0.6 * peak - 0.3 * wave, 0.8 * wave - 0.2 * peak]
        order = (1, 0, 2) if kind == "swapped leads" else (0, 1, 2)
        rows[:, row] = np.stack([leads[k] for k in order], axis=-1)
    return (rows + rng.normal(0, 0.05, rows.shape)).astype(np.float32)


def init(config: Config, key: jax.Array) -> dict[str, Any]:
    """Draw the parameters of both LSTMs, and of the products around the code."""
    cell, keys, size = rnnjax.LSTMCell(config.units), jax.random.split(key, 5), config.units
    draw = jax.nn.initializers.glorot_uniform()
    return {
        "encoder": cell.init(keys[0], LEADS), "decoder": cell.init(keys[1], CODE),
        "code": draw(keys[2], (size, CODE)), "begin": draw(keys[3], (CODE, 2 * size)),
        "values": draw(keys[4], (size, LEADS)), "bias": jnp.zeros(LEADS),
    }  # fmt: skip


# --8<-- [start:model]
def rewrite(config: Config, params: Any, xs: Any) -> jax.Array:
    """Windows ``(STEPS, rows, LEADS)`` written again from a code of their last state."""
    cell = rnnjax.LSTMCell(config.units)
    carry, _ = rnnjax.unroll(cell, params["encoder"], xs)
    code = jnp.tanh(carry.hidden @ params["code"])
    begin = rnnjax.LSTMCarry(*jnp.split(jnp.tanh(code @ params["begin"]), 2, axis=-1))
    given = jnp.broadcast_to(code, (len(xs), *code.shape))
    _, ys = rnnjax.unroll(cell, params["decoder"], given, begin)
    return ys @ params["values"] + params["bias"]
    # --8<-- [end:model]


def learn(config: Config, train: np.ndarray) -> Any:
    """Train on normal windows: the parameters."""

    # --8<-- [start:loss]
    def loss_fn(params: Any, xs: Any, key: jax.Array) -> jax.Array:
        return jnp.mean((rewrite(config, params, xs) - xs) ** 2)
        # --8<-- [end:loss]

    key, steps = jax.random.key(config.seed), config.epochs * (train.shape[1] // 50)
    rates = optax.warmup_cosine_decay_schedule(0, 5e-3, min(100, steps // 2), steps, 5e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    batches = minibatches(train, 50, axis=1, seed=config.seed)
    return fit(loss_fn, init(config, key), optimizer, batches, config.epochs, key=key,
               hooks=[Silent()]).params  # fmt: skip


def run(config: Config) -> int:
    """Train, choose the threshold on normal windows, and score windows with anomalies."""
    report = Report.begin("anomalies", "area under the ROC curve, in %", config, 1)
    rng = np.random.default_rng(config.seed)
    train, held, normal = (beats(rng, n) for n in (config.windows, 1000, 1000))
    odd = np.concatenate([beats(rng, 100, kind) for kind in KINDS], axis=1)
    test = np.concatenate([normal, odd], axis=1)
    right = np.arange(test.shape[1]) >= normal.shape[1]
    params = learn(config, train)
    flat = [x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in (train, held, test)]
    axes = {size: PCA(size, random_state=0).fit(flat[0]) for size in (CODE, MORE)}
    mean, deviation = train.mean(axis=(0, 1)), train.std(axis=(0, 1))

    def scores_of(xs: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        wrong = {k: rows - axis.inverse_transform(axis.transform(rows)) for k, axis in axes.items()}
        return {
            "the largest value": np.abs((xs - mean) / deviation).max(axis=(0, 2)),
            **{f"PCA, {k} components": (left**2).mean(axis=1) for k, left in wrong.items()},
            f"LSTM autoencoder, {CODE} numbers": np.asarray(
                ((rewrite(config, params, xs) - xs) ** 2).mean(axis=(0, 2))
            ),
        }

    known, found = scores_of(held, flat[1]), scores_of(test, flat[2])
    for name, scores in found.items():  # the last one is that of the autoencoder, as below
        report.add(name, 100 * roc_auc_score(right, scores))
    for k, kind in enumerate(KINDS):
        rows = np.r_[0:1000, 1000 + 100 * k : 1100 + 100 * k]
        report.add(f"{name}: {kind}", 100 * roc_auc_score(right[rows], scores[rows]))
    alarm = scores > np.quantile(known[name], 0.99)
    precision, recall, f1, _ = precision_recall_fscore_support(right, alarm, average="binary")
    for measure, score in (("precision", precision), ("recall", recall), ("F1", f1)):
        report.add(f"{measure} at the threshold", 100 * score)
    again = np.asarray(rewrite(config, params, test))
    panels = {
        name: ("first lead", {
            "measured": (np.arange(STEPS), test[:, at, 0]),
            "written again": (np.arange(STEPS), again[:, at, 0]),
        })
        for name, at in (("normal", 0), ("early beat", 1000), ("lost wave", 1100))
    }  # fmt: skip
    plots.forecasts(report.run_dir / "windows.png", panels)
    report.accept("area of the autoencoder", 100 * roc_auc_score(right, scores), 95, "least")
    return report.end()


main = runs.command(run, Config, "cookbook.anomalies", "--epochs 10")
if __name__ == "__main__":
    runs.exit_with(main)
