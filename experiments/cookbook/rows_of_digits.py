"""Learns to tell digits apart, row by row or pixel by pixel, and a CNN by whole images.

MNIST (LeCun et al., 1998): an image is 28 steps of 28 numbers for a GRU and an LSTM, whose last
output says which digit it is; a smaller CNN sees the whole image at once. Then pixels come one by
one, a task made to be hard (Le et al., 2015): what counts is hundreds of steps back. For the time
it is 14 x 14 here, 196 steps, and two epochs; the published figures are of 28 x 28 (Bai et al.,
2018, *An Empirical Evaluation of Generic Convolutional and Recurrent Networks*). 55,000 images are
for training, 5,000 chose settings and epoch, 10,000 test. The picture: what only one reads wrongly.

    python -m experiments.cookbook.rows_of_digits
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common.images import convolve
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

# Which of Config.epochs, and the cell; without one it is the CNN.
NETWORKS: dict[str, tuple[int, Any]] = {
    "GRU by rows": (0, rnnjax.GRUCell(96)), "LSTM by rows": (0, rnnjax.LSTMCell(96)),
    "CNN": (1, None), "SimpleRNN by pixels": (2, rnnjax.SimpleRNNCell(64)),
    "LSTM by pixels": (2, rnnjax.LSTMCell(64)), "GRU by pixels": (2, rnnjax.GRUCell(64)),
}  # fmt: skip
PUBLISHED = {"SimpleRNN": 21.5, "LSTM": 87.2, "GRU": 96.2, "TCN": 99.0}
BOUNDS = {"GRU by rows": 98.5, "CNN": 99.0}
KERNELS = (5, 5, 1, 24), (3, 3, 24, 32), (3, 3, 32, 48)  # of the CNN; 4 x 4 places come out


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Classify digits by rows and by pixels, compared with a CNN."""

    data: str | None = None
    """A folder with the MNIST file, or "made" for synthetic data."""
    seeds: int = 3
    """The number of networks of each kind, one after the other; one of each by pixels."""
    epochs: tuple[int, int, int] = (4, 7, 2)
    """The number of passes over the training part: by rows, of the CNN, and by pixels."""
    batch_size: int = 64
    """The number of images of an update."""
    learning_rate: float = 4e-3
    """The highest learning rate of Adam, after a fifth of the updates."""


def init(cell: rnnjax.Cell | None, features: int, key: jax.Array) -> dict[str, Any]:
    """The parameters; without a cell those of the CNN."""
    keys, draw = jax.random.split(key, 2 + len(KERNELS)), jax.nn.initializers.he_normal()
    cnn = [(draw(keys[2 + i], shape), jnp.zeros(shape[3])) for i, shape in enumerate(KERNELS)]
    head = draw(keys[1], (4 * 4 * 48 if cell is None else cell.output_size, 10))
    body = cnn if cell is None else cell.init(keys[0], features)
    return {"body": body, "head": head, "bias": jnp.zeros(10)}


# --8<-- [start:model]
def apply(name: str, params: Any, images: jax.Array, key: Any = None) -> jax.Array:
    """Logits ``(n, 10)`` of the digits in images ``(rows, n, columns)``."""
    (which, cell), xs = NETWORKS[name], images.astype(jnp.float32) / 255
    if which == 2:  # of 2 x 2 pixels the mean
        xs = xs.reshape(14, 2, -1, 14, 2).mean(axis=(1, 4)).swapaxes(1, 2).reshape(196, -1, 1)
    if cell is not None:
        ys = rnnjax.unroll(cell, params["body"], xs)[1][-1]
    else:
        ys = xs.swapaxes(0, 1)[..., None]
        for kernel, bias in params["body"]:
            ys = jax.nn.relu(convolve(ys, kernel, stride=2) + bias)
        ys = rnnjax.Dropout(0.3).apply(key, ys.reshape(len(ys), -1))
    return ys @ params["head"] + params["bias"]
    # --8<-- [end:model]


def learn(config: Config, name: str, parts: list[Any], seed: int) -> np.ndarray:
    """Train a network; returns the digits that it reads in the test part."""
    which, cell = NETWORKS[name]

    # --8<-- [start:loss]
    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        key, shift_key = jax.random.split(key)
        # Each batch is moved by a pixel or not: 99.0 % for 98.9 % (the CNN's validation images).
        xs = jnp.roll(batch["xs"], jax.random.randint(shift_key, (2,), -1, 2), (0, 2))
        logits = apply(name, params, xs, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["ys"][0]).mean()
        # --8<-- [end:loss]

    predict = jax.jit(lambda params, xs: apply(name, params, xs))
    epochs, (train, held_out, test) = config.epochs[which], parts

    def evaluate(params: Any) -> dict[str, Any]:
        wrong = predict(params, held_out["xs"]).argmax(axis=-1) != held_out["ys"][0]
        return {"validation_loss": 100 * wrong.mean()}

    batches = minibatches(train, config.batch_size, seed=seed, axis=1)
    steps = epochs * (train["ys"].size // config.batch_size)
    rate = optax.cosine_onecycle_schedule(steps, config.learning_rate, pct_start=0.2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    init_key, key = jax.random.split(jax.random.key(seed))
    params = init(cell, 1 if which == 2 else 28, init_key)
    result = fit(loss_fn, params, optimizer, batches, epochs, key=key, evaluate=evaluate,
                 hooks=[Silent()])  # fmt: skip
    halves = np.array_split(test["xs"], 2, axis=1)  # for the memory
    return np.concatenate([predict(result.params, half).argmax(axis=-1) for half in halves])


def run(config: Config) -> int:
    """Train all networks, and compare them."""
    report = Report.begin("rows_of_digits", "% of test digits read rightly", config)
    digits, right = data.digit_parts(config.data), dict[str, np.ndarray]()
    parts = [{"xs": x.swapaxes(0, 1), "ys": y[None].astype(np.int32)} for x, y in digits.values()]
    test_x, test_y = digits["test"]
    for name, (which, _) in NETWORKS.items():
        seeds = range(config.seed, config.seed + (1 if which == 2 else config.seeds))
        read = [learn(config, name, parts, seed) for seed in seeds]
        right[name] = np.stack(read) == test_y
        scores = (100 * right[name].mean(axis=1)).tolist()
        report.add(f"{name}, 14 x 14" if which == 2 else name, scores)
        if name in BOUNDS:
            report.accept(name, float(np.mean(scores)), BOUNDS[name], "least")
    for name, score in PUBLISHED.items():
        report.add(f"{name} by pixels, 28 x 28", score, "Bai et al. 2018")
    gru, cnn = right["GRU by rows"][0], right["CNN"][0]
    chosen = {"both are right": gru & cnn, "the GRU alone is wrong": ~gru & cnn,
              "the CNN alone is wrong": gru & ~cnn, "both are wrong": ~gru & ~cnn}  # fmt: skip
    pictures = {name: test_x[which][:10] / 255 for name, which in chosen.items()}
    plots.images(report.run_dir / "wrong.png", pictures)
    return report.end(images={name: int(which.sum()) for name, which in chosen.items()})


main = runs.command(run, Config, "cookbook.rows_of_digits", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
