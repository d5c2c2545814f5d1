"""Learns which of a piano's 88 keys sound next in chorales of Bach, or in folk tunes.

A network reads the chords so far, and gives each key a probability of being pressed in the next
one. The data: 382 chorales of Bach (JSB), or folk tunes (`--pieces Nottingham --epochs 6`), in the
parts of Boulanger-Lewandowski et al. (2012), as in Bai et al. (2018), whose scores are shown too.

The score is the negative log-likelihood of a chord in nats, the sum over its 88 keys; the mean over
all chords but the first of each piece. The validation part chose the settings, and chooses the
epoch. The picture: how the GRU continues the first bars of a test chorale, and how Bach does.

    python -m experiments.cookbook.music
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

CELLS: dict[str, Any] = {
    "SimpleRNN": rnnjax.SimpleRNNCell, "LSTM": rnnjax.LSTMCell, "GRU": rnnjax.GRUCell, "TCN": None
}  # fmt: skip
ROW, BATCH = 130, 16  # steps of a row in training, with a few pieces in it; rows of an update
GIVEN = 16  # chords of a test piece that the GRU continues
LEVELS = 3  # of the TCN, each of two convolutions: they look 1, 2 and 4 steps back, 14 in all
PUBLISHED = {
    "JSB_Chorales": {"SimpleRNN": 8.91, "LSTM": 8.45, "GRU": 8.43, "TCN": 8.10},
    "Nottingham": {"SimpleRNN": 4.05, "LSTM": 3.29, "GRU": 3.46, "TCN": 3.07},
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Predict the next chord of a chorale by a SimpleRNN, an LSTM, a GRU and a TCN."""

    data: str | None = None
    """A folder with the pieces, or "made" for synthetic data."""
    seeds: int = 3
    """The number of networks of each kind, one after the other."""
    pieces: Literal["JSB_Chorales", "Nottingham"] = "JSB_Chorales"
    """Chorales of Bach, or folk tunes."""
    epochs: int = 30
    """The number of passes over the training part."""
    learning_rate: float = 0.015
    """The highest learning rate of AdamW, after a tenth of the updates; a cosine follows."""
    units: int = 150
    """The number of units of a chord's embedding and of each layer."""
    dropout: float = 0.3
    """Dropout before the head, and after each convolution of the TCN."""
    recurrent_dropout: float = 0.4
    """Dropout of the hidden state in the recurrent product."""


def lay(pieces: list[np.ndarray], row_length: int) -> dict[str, np.ndarray]:
    """Pieces end to end in rows, time first: chords, those that come next, where pieces begin."""
    pieces = [one[i : i + row_length] for one in pieces for i in range(0, len(one) - 1, row_length)]
    # Padded to the longest of 129 chords, which are 60 on the average, half of the work is wasted.
    packed = rnnjax.pack([piece[:-1] for piece in pieces], row_length)
    following = packed.lay([piece[1:] for piece in pieces])
    return {"xs": packed.xs, "ys": following, "resets": packed.resets, "mask": packed.mask}


def tcn(config: Config, layers: Any, xs: jax.Array, resets: jax.Array, key: Any) -> jax.Array:
    """A temporal convolutional network (Bai et al., 2018): causal convolutions past shortcuts."""
    time, keys = jnp.arange(len(xs))[:, None], iter(rnnjax.split_key(key, 2 * LEVELS))
    age = (time - jax.lax.cummax(jnp.where(resets, time, 0)))[..., None]  # steps into the piece
    dropout = rnnjax.Dropout(config.dropout, per="sequence")  # whole channels, as in the paper
    ys = xs
    for i, layer in enumerate(layers):
        back = 2 ** (i // 2)
        # Of every step, and of that 1, 2 or 4 steps before in the same piece, one product.
        copies = [jnp.roll(ys, back, axis=0) * (age >= back), ys]
        ys = jnp.concatenate(copies, axis=-1) @ layer["kernel"] + layer["bias"]
        ys = dropout.apply(next(keys), jax.nn.relu(ys))
        if i % 2:
            xs = ys = jax.nn.relu(xs + ys)
    return ys


def init(config: Config, cell: rnnjax.Cell | None, key: jax.Array) -> dict[str, Any]:
    """The parameters, except for the bias of the head; without a cell those of a TCN."""
    units, keys = config.units, iter(jax.random.split(key, 3 + 2 * LEVELS))
    glorot, he = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.he_normal()
    params = {"embedding": glorot(next(keys), (88, units)), "head": glorot(next(keys), (units, 88))}
    if cell is not None:
        return {**params, "body": cell.init(next(keys), units)}
    kernels = (he(next(keys), (2 * units, units)) for _ in range(2 * LEVELS))
    return {**params, "body": [{"kernel": kernel, "bias": jnp.zeros(units)} for kernel in kernels]}


# --8<-- [start:model]
def apply(config: Config, cell: Any, params: Any, batch: Any, key: Any = None) -> jax.Array:
    """Logits ``(time, rows, 88)`` of the next chords."""
    key, body_key = rnnjax.split_key(key, 2)
    xs = jnp.tanh(batch["xs"] @ params["embedding"])  # without it a GRU loses 0.1 nats
    if cell is None:
        ys = tcn(config, params["body"], xs, batch["resets"], body_key)
    else:
        _, ys = rnnjax.unroll(cell, params["body"], xs, resets=batch["resets"], key=body_key)
    return rnnjax.Dropout(config.dropout).apply(key, ys) @ params["head"] + params["bias"]
    # --8<-- [end:model]


# --8<-- [start:loss]
def nats(logits: jax.Array, batch: Any) -> jax.Array:
    """The mean negative log-likelihood of a chord over all steps of the pieces."""
    losses = optax.sigmoid_binary_cross_entropy(logits, batch["ys"]).sum(axis=-1)
    return (losses * batch["mask"]).sum() / batch["mask"].sum()
    # --8<-- [end:loss]


def counted(batch: Any, where: Any = True) -> jax.Array:
    """Logits of how often keys are pressed, once more each way, so that nothing is impossible."""
    where = batch["mask"][..., None] & where
    pressed = (batch["ys"] * where).sum(axis=(0, 1)) + 1
    return jnp.log(pressed / (where.sum(axis=(0, 1)) + 2 - pressed))


def learn(config: Config, cell: Any, parts: dict[str, Any], seed: int) -> Any:
    """Train a network; returns the parameters of its best epoch."""

    def loss_fn(params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
        return nats(apply(config, cell, params, batch, key), batch)

    measure = jax.jit(loss_fn)
    batches = minibatches(parts["train"], BATCH, seed=seed, axis=1)
    steps = config.epochs * len(batches(0)["xs"])
    # The height matters: an LSTM's validation loss was 8.24 at 0.006, 8.16 at 0.01.
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1), optax.adamw(rate, weight_decay=0.01))
    key = jax.random.key(seed)
    params = {**init(config, cell, key), "bias": counted(parts["train"])}
    return fit(
        loss_fn, params, optimizer, batches, config.epochs, key=key, hooks=[Silent()],
        evaluate=lambda params: {"validation_loss": measure(params, parts["valid"])},
    ).params  # fmt: skip


def write(cell: rnnjax.Cell, params: Any, given: Any, num: int, key: jax.Array) -> jax.Array:
    """The chords ``(num, 88)`` that a network draws after those given, ``(time, 88)``."""

    def step(state: Any, key: jax.Array) -> Any:
        carry, y = cell.step(params["body"], state[0], jnp.tanh(state[1] @ params["embedding"]))
        # Each key is drawn for itself, as the loss has it: so more of them clash than in Bach.
        pressed = jax.nn.sigmoid(y @ params["head"] + params["bias"])
        chord = jax.random.bernoulli(key, pressed).astype(jnp.float32)
        return (carry, chord), chord

    carry, _ = rnnjax.unroll(cell, params["body"], jnp.tanh(given[:-1] @ params["embedding"]))
    return jax.lax.scan(step, (carry, given[-1]), jax.random.split(key, num))[1]


def run(config: Config) -> int:
    """Train all networks, and compare them."""
    report = Report.begin("music", f"{config.pieces}, nats a chord", config)
    pieces = data.chords(config.pieces, config.data)
    parts = {k: lay(p, ROW if k == "train" else max(map(len, p))) for k, p in pieces.items()}
    train, test = parts["train"], parts["test"]
    report.add("how often a key is pressed", float(nats(counted(train), test)))
    on, off = (counted(train, train["xs"] == was) for was in (1, 0))
    report.add("the same after it was, or not", float(nats(jnp.where(test["xs"], on, off), test)))
    for name, kind in CELLS.items():
        rate = config.recurrent_dropout
        cell = kind and rnnjax.Regularized(kind(config.units), recurrent_dropout=rate)
        scores = []
        for seed in range(config.seed, config.seed + config.seeds):
            params = learn(config, cell, parts, seed)
            scores.append(float(nats(apply(config, cell, params, test), test)))
        report.add(name, scores)
        if config.data != data.MADE:
            report.add(name, PUBLISHED[config.pieces][name], "Bai et al. 2018")
            if name in ("LSTM", "GRU") and config.pieces == "JSB_Chorales":
                report.accept(f"{name}, mean of the seeds", float(np.mean(scores)), 8.45)
        if name == "GRU":
            given, true = pieces["test"][0][:GIVEN], pieces["test"][0]
            rest = write(cell, params, given, len(true) - GIVEN, jax.random.key(config.seed))
            rolls = np.concatenate([true, np.concatenate([given, rest])], axis=1)
            rolls[GIVEN:] *= 0.55  # grey; what was given is black
            keys = "keys: above as the GRU goes on, below as Bach does"
            plots.matrix(report.run_dir / "written.png", rolls.T[::-1], x="step", y=keys)
    return report.end()


main = runs.command(run, Config, "cookbook.music", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
