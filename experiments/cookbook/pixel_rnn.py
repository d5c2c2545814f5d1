"""Learns to draw digits pixel by pixel, and completes images of which it sees the upper half.

The Row LSTM of PixelRNN (van den Oord et al., 2016), in small: a pixel's probability follows from
those above it and to its left. A masked convolution reads the near ones; then LSTMs run from row
to row, each point from three states of the row above. The loss is minus the log of an image's
probability, in nats. MNIST (LeCun et al., 1998) is in black and white as in the published figures:
each pixel is drawn once with its grey for probability (Salakhutdinov & Murray, 2008; here by
another draw), not cut at 0.5, which makes smooth images that cost fewer nats. Of the images 50,000
are for training, 10,000 choose the epoch, and 10,000 test.

    python -m experiments.cookbook.pixel_rnn
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import fit, minibatches

SIZE, ABOVE, SIDE = 28, 3, 3  # of an image; rows above and columns beside a pixel that are read
# The pixels of that window before the one in question: rows and columns, from its corner.
BEFORE = [(i, j) for i in range(ABOVE + 1) for j in range(2 * SIDE + 1)][: -SIDE - 1]


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Learn the probability of binary digits, pixel by pixel, and complete their lower halves."""

    data: str | None = None
    """A folder with the MNIST file, or "made" for synthetic data."""
    seeds: int = 1
    """The number of networks to train, one after the other."""
    channels: int = 16
    """The number of channels of the input layer and of each LSTM."""
    layers: int = 2
    """The number of row LSTMs, each with a residual connection."""
    epochs: int = 4
    """The number of passes over the training part."""
    batch_size: int = 16
    """The number of images of an update."""
    learning_rate: float = 0.01
    """The highest learning rate of Adam; a cosine decreases it to a hundredth."""


def binary_digits(config: Config) -> dict[str, np.ndarray]:
    """Images of 0 and 1, ``(rows, n, columns)``, for train, validation and test."""
    parts, rng = data.digit_parts(config.data, share=6), np.random.default_rng(1)  # for all seeds
    black = {part: 255 * rng.random(grey.shape) < grey for part, (grey, _) in parts.items()}
    return {part: x.astype(np.uint8).swapaxes(0, 1) for part, x in black.items()}


def init(config: Config, key: jax.Array) -> dict[str, Any]:
    """The parameters."""
    size, draw = config.channels, jax.nn.initializers.glorot_uniform()
    cell = rnnjax.ConvLSTMCell(size, kernel_shape=(3,))
    keys = jax.random.split(key, 3 + config.layers)
    return {
        "window": draw(keys[0], (len(BEFORE), size)),
        # A convolution knows no places: 99.6 nats without this, 95.0 with it (10,000 images).
        "place": jnp.zeros((SIZE, SIZE, size)),
        "layers": [cell.init(key, size) for key in keys[3:]],
        "hidden": {"kernel": draw(keys[1], (size, 32)), "bias": jnp.zeros(32)},
        "output": {"kernel": draw(keys[2], (32, 1)), "bias": jnp.zeros(1)},
    }


# --8<-- [start:model]
def network(
    config: Config, params: Any, rows: jax.Array, carries: Any = None, first: Any = 0
) -> tuple[Any, jax.Array]:
    """The states after the last row, and logits ``(n, batch, SIZE)``, each of the pixels before.

    ``rows (ABOVE + n, batch, SIZE)`` begin above the ``first``, before which ``carries`` stand.
    """
    num = len(rows) - ABOVE
    padded = jnp.pad(rows.astype(jnp.float32), ((0, 0), (0, 0), (SIDE, SIDE)))
    # The masked convolution, as one product with what is not masked.
    near = jnp.stack([padded[i : i + num, :, j : j + SIZE] for i, j in BEFORE], axis=-1)
    place = jax.lax.dynamic_slice_in_dim(params["place"], first, num)[:, None]
    xs, last = near @ params["window"] + place, list[Any]()
    cell = rnnjax.ConvLSTMCell(config.channels, kernel_shape=(3,))  # time runs downwards
    # On the fast path the kernel's gradient is a convolution over the batch: inside of the loop of
    # `fit` it takes 24 times as long on a CPU (16 channels, batch 64).
    for i, layer in enumerate(params["layers"]):
        # Masked on the right alone: what comes in at a point is of pixels before it already. The
        # states are of the row above, and need no mask.
        masked = {**layer, "kernel": layer["kernel"] * jnp.array([1.0, 1.0, 0.0])[:, None, None]}
        carry, ys = rnnjax.unroll(cell, masked, xs, carries and carries[i], method=rnnjax.Scan())
        xs, last = xs + ys, [*last, carry]
    for layer in (params["hidden"], params["output"]):
        xs = jax.nn.relu(xs) @ layer["kernel"] + layer["bias"]
    return last, xs[..., 0]
    # --8<-- [end:model]


# --8<-- [start:loss]
def nats(config: Config, params: Any, images: jax.Array) -> jax.Array:
    """Minus the logarithm of the probability of each image ``(SIZE, batch, SIZE)``."""
    _, logits = network(config, params, jnp.pad(images, ((ABOVE, 0), (0, 0), (0, 0))))
    return optax.sigmoid_binary_cross_entropy(logits, images.astype(jnp.float32)).sum((0, 2))
    # --8<-- [end:loss]


def learn(config: Config, parts: dict[str, np.ndarray], seed: int) -> tuple[Any, float]:
    """Train; returns the parameters of the best epoch, and the nats of a test image by them."""
    total = jax.jit(lambda params, images: nats(config, params, images).sum())

    def score(params: Any, images: np.ndarray) -> float:
        pieces = np.array_split(images, -(-images.shape[1] // 250), axis=1)
        return sum(float(total(params, piece)) for piece in pieces) / images.shape[1]

    top, steps = config.learning_rate, config.epochs * parts["train"].shape[1] // config.batch_size
    rates = optax.warmup_cosine_decay_schedule(0, top, min(50, steps // 2), steps, top / 100)
    # Without clipping 94.0 nats for 92.4 (validation, after 10,000 images, two layers).
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    result = fit(
        lambda params, images, key: nats(config, params, images).mean(),
        init(config, jax.random.key(seed)), optimizer,
        minibatches(parts["train"], config.batch_size, seed=seed, axis=1), config.epochs,
        key=jax.random.key(seed),
        evaluate=lambda params: {"validation_loss": score(params, parts["validation"])},
    )  # fmt: skip
    return result.params, score(result.params, parts["test"])


def complete(config: Config, params: Any, images: Any, known: int, key: jax.Array) -> jax.Array:
    """Images ``(SIZE, batch, SIZE)`` with all but their first ``known`` rows sampled anew."""
    canvas = jnp.pad(images[:known], ((ABOVE, SIZE - known), (0, 0), (0, 0)))
    carries, _ = network(config, params, canvas[: ABOVE + known])

    def draw_row(state: Any, row: jax.Array) -> tuple[Any, None]:
        def run(canvas: jax.Array) -> tuple[Any, jax.Array]:
            near = jax.lax.dynamic_slice_in_dim(canvas, row, ABOVE + 1)
            return network(config, params, near, state[1], row)

        def draw_pixel(column: Any, canvas: jax.Array) -> jax.Array:
            at = jax.random.fold_in(key, row * SIZE + column)
            drawn = jax.random.bernoulli(at, jax.nn.sigmoid(run(canvas)[1][0, :, column]))
            return canvas.at[ABOVE + row, :, column].set(drawn.astype(canvas.dtype))

        canvas = jax.lax.fori_loop(0, SIZE, draw_pixel, state[0])
        return (canvas, run(canvas)[0]), None  # the states advance when the row is whole

    state, _ = jax.lax.scan(draw_row, (canvas, carries), jnp.arange(known, SIZE))
    return state[0][ABOVE:]


def run(config: Config) -> int:
    """Train, score the test part, and complete some of its images."""
    report = Report.begin("pixel_rnn", "nats of a test image", config)
    parts = binary_digits(config)
    share = (parts["train"].sum(axis=1, keepdims=True) + 1) / (parts["train"].shape[1] + 2)
    alone = -np.log(np.where(parts["test"], share, 1 - share)).sum((0, 2)).mean()
    report.add("each pixel for itself", float(alone))
    _, score = learn(dataclasses.replace(config, layers=0), parts, config.seed)
    report.add("the masked convolution, without an LSTM", score)
    found = [learn(config, parts, config.seed + i) for i in range(config.seeds)]
    scores = [score for _, score in found]
    report.add(f"Row LSTM, {config.layers} x {config.channels} channels", scores)
    report.add("NADE", 88.33, "Larochelle & Murray 2011, their draw of the pixels")
    report.add("MADE", 86.64, "Germain et al. 2015, the same draw")
    report.add("Row LSTM", 80.54, "van den Oord et al. 2016, the same draw")
    began = time.perf_counter()
    images = np.tile(parts["test"][:, :10], (1, 3, 1))  # three times each
    draw = jax.jit(lambda images, key: complete(config, found[0][0], images, SIZE // 2, key))
    drawn = np.asarray(draw(images, jax.random.key(config.seed)))
    seconds = time.perf_counter() - began
    given = np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, images, 0.2)
    names = "test images", "the half that is given", "completed", "completed again", "and again"
    rows = np.concatenate([images[:, :10], given[:, :10], drawn], axis=1).swapaxes(0, 1)
    pictures = dict(zip(names, np.split(rows, 5), strict=True))
    plots.images(report.run_dir / "completions.png", pictures)
    report.accept("nats", float(np.mean(scores)), 88.3)
    return report.end(seconds_to_complete=seconds)


main = runs.command(run, Config, "cookbook.pixel_rnn", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
