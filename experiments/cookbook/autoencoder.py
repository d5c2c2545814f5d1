"""Learns to keep the image of a digit in 32 numbers, and to draw it again from them.

The LSTM autoencoder (Srivastava et al., 2015): an LSTM reads the 28 rows of an image, one a step; a
code of 32 numbers is all that another LSTM gets, which writes the rows again. The baseline is the
best linear code of 32 numbers, the principal components of the same training images. The picture:
digits written again, and what lies between two digits in the space of codes.

MNIST (LeCun et al., 1998): 55,000 images to learn from, 5,000 choose the epoch, 10,000 test.

    python -m experiments.cookbook.autoencoder
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import PCA

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import fit, minibatches

SIZE, CODE = 28, 32  # rows of an image, and columns; numbers of a code, and components
BATCH, SHOWN = 50, 10  # images of an update, and in a row of the picture


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Learn to rewrite a digit's rows from a few numbers, compared with principal components."""

    data: str | None = None
    """A folder with the MNIST file, or "made" for synthetic data."""
    seeds: int = 3
    """The number of networks to train, one after the other."""
    hidden_size: int = 128
    """The number of hidden units of encoder and decoder."""
    epochs: int = 3
    """The number of passes over the training part, in batches of 50."""
    learning_rate: float = 3e-3
    """The highest learning rate of Adam; a cosine decreases it to a hundredth."""


def grey_digits(config: Config) -> dict[str, np.ndarray]:
    """Images from 0 to 1, rows first: ``(SIZE, n, SIZE)`` for train, validation and test."""
    parts = data.digit_parts(config.data)
    return {part: x.swapaxes(0, 1).astype(np.float32) / 255 for part, (x, _) in parts.items()}


def init(config: Config, key: jax.Array) -> dict[str, Any]:
    """The parameters: of two LSTMs, and of the layers around the code and before the rows."""
    size, draw = config.hidden_size, jax.nn.initializers.glorot_uniform()
    cell, keys = rnnjax.LSTMCell(size), jax.random.split(key, 5)
    sizes = {"code": (size, CODE), "carry": (CODE, 2 * size), "row": (size, SIZE)}
    layers = {
        name: {"kernel": draw(k, shape), "bias": jnp.zeros(shape[1])}
        for k, (name, shape) in zip(keys, sizes.items(), strict=False)
    }
    return {"encoder": cell.init(keys[3], SIZE), "decoder": cell.init(keys[4], CODE), **layers}


# --8<-- [start:model]
def encode(config: Config, params: Any, images: Any) -> jax.Array:
    """The codes ``(batch, CODE)`` of images ``(SIZE, batch, SIZE)``: of the last state."""
    carry, _ = rnnjax.unroll(rnnjax.LSTMCell(config.hidden_size), params["encoder"], images)
    return carry.hidden @ params["code"]["kernel"] + params["code"]["bias"]


def decode(config: Config, params: Any, codes: Any) -> jax.Array:
    """The images ``(SIZE, batch, SIZE)`` that codes stand for."""
    first = jnp.tanh(codes @ params["carry"]["kernel"] + params["carry"]["bias"])
    carry = rnnjax.LSTMCarry(*jnp.split(first, 2, axis=-1))
    # The code is also what each step reads; the rows written before are not.
    xs = jnp.broadcast_to(codes, (SIZE, *codes.shape))
    _, ys = rnnjax.unroll(rnnjax.LSTMCell(config.hidden_size), params["decoder"], xs, carry)
    return jax.nn.sigmoid(ys @ params["row"]["kernel"] + params["row"]["bias"])
    # --8<-- [end:model]


# --8<-- [start:loss]
def error(config: Config, params: Any, images: Any) -> jax.Array:
    """The mean squared error of a pixel."""
    return jnp.mean((decode(config, params, encode(config, params, images)) - images) ** 2)
    # --8<-- [end:loss]


def learn(config: Config, parts: dict[str, np.ndarray], seed: int) -> Any:
    """Train; returns the parameters of the best epoch."""
    validate = jax.jit(lambda params: error(config, params, parts["validation"]))
    top, steps = config.learning_rate, config.epochs * parts["train"].shape[1] // BATCH
    rates = optax.warmup_cosine_decay_schedule(0, top, min(100, steps // 2), steps, top / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    return fit(
        lambda params, images, key: error(config, params, images),
        init(config, jax.random.key(seed)), optimizer,
        minibatches(parts["train"], BATCH, seed=seed, axis=1), config.epochs,
        key=jax.random.key(seed), evaluate=lambda params: {"validation_loss": validate(params)},
    ).params  # fmt: skip


def run(config: Config) -> int:
    """Train, score the test part, and draw."""
    report = Report.begin("autoencoder", "mean squared error of a test pixel", config, 5)
    parts = grey_digits(config)
    train, test = parts["train"], parts["test"]
    report.add("mean image", float(((test - train.mean(1, keepdims=True)) ** 2).mean()))
    known, asked = (x.swapaxes(0, 1).reshape(-1, SIZE * SIZE) for x in (train, test))
    axes = PCA(CODE, random_state=0).fit(known)
    linear = axes.inverse_transform(axes.transform(asked)).clip(0, 1)
    linear = linear.reshape(-1, SIZE, SIZE).swapaxes(0, 1)
    pca = float(((linear - test) ** 2).mean())
    report.add(f"PCA, {CODE} components", pca)
    found = [learn(config, parts, config.seed + i) for i in range(config.seeds)]
    scores = [float(error(config, params, test)) for params in found]
    report.add(f"LSTM autoencoder, {CODE} numbers", scores)
    codes, share = encode(config, found[0], test[:, :SHOWN]), np.linspace(0, 1, SHOWN)[:, None]
    between = [(1 - share) * codes[i] + share * codes[i + 1] for i in (0, 2, 4)]
    written = (decode(config, found[0], each) for each in (codes, *between))
    names = ["test images", f"PCA, {CODE} components", "LSTM autoencoder"]
    names += [f"codes from image {i} to image {i + 1}" for i in (1, 3, 5)]
    rows = (np.asarray(x[:, :SHOWN]).swapaxes(0, 1) for x in (test, linear, *written))
    plots.images(report.run_dir / "digits.png", dict(zip(names, rows, strict=True)))
    report.accept("error, with PCA's for bound", float(np.mean(scores)), pca)
    return report.end()


main = runs.command(run, Config, "cookbook.autoencoder", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
