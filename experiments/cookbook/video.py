"""Learns which two digits move in a film and where they go, and draws the frames that follow.

Two different digits of MNIST (LeCun et al., 1998), at half their size, cross a frame of 20 x 20 and
bounce off its borders for ten frames, much as in Srivastava et al. (2015), *Unsupervised Learning
of Video Representations using LSTMs*. Films are made anew for every epoch; the validation and the
test part have digits of their own. A CNN for each frame and a GRU over the frames say after each
frame which digits there are, and in which of four ways each goes; the baseline is the CNN without
a GRU, on the best frame. Then networks see five frames and draw five more, each from the one that
they drew before: a ConvLSTM (Shi et al., 2015), with a state for each place and everywhere the same
kernels, and an LSTM over whole frames; the baselines are the last frame, and the mean of all.

    python -m experiments.cookbook.video
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common.images import (
    FRAME,
    FRAMES,
    Source,
    convolve,
    draw_films,
    small_digits,
)
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit

SEEN, GRID = 5, 10  # frames before the others are drawn; patches of 2 x 2 pixels of a frame
# Whether it draws, the cell, epochs, films of an update.
NETWORKS: dict[str, tuple[bool, Any, int, int]] = {
    "CNN": (False, None, 15, 16), "CNN + GRU": (False, rnnjax.GRUCell(96), 15, 16),
    "LSTM": (True, rnnjax.LSTMCell(256), 10, 32), "ConvLSTM": (True, rnnjax.ConvLSTMCell(32), 4, 4),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Classify the digits of films, and predict the next frames."""

    data: str | None = None
    """A folder with the MNIST file, or "made" for synthetic data."""
    seeds: int = 1
    """The number of networks of each kind, one after the other."""
    films: int = 3000
    """The number of films of an epoch; validation and test have a third as many."""


def init(draws: bool, cell: Any, key: jax.Array) -> dict[str, Any]:
    """The parameters of the CNN, which drawing needs not, of the cell, and of the head."""
    keys, draw = jax.random.split(key, 5), jax.nn.initializers.he_normal()
    shapes = () if draws else ((3, 3, 4, 16), (3, 3, 16, 32), (GRID * GRID // 4 * 32, 96))
    layers = [(draw(keys[2 + i], shape), jnp.zeros(shape[-1])) for i, shape in enumerate(shapes)]
    size = 4 if isinstance(cell, rnnjax.ConvLSTMCell) else FRAME * FRAME  # of what a step draws
    inputs, outputs = (size, size) if draws else (96, 50)
    size = 96 if cell is None else cell.output_size
    head = jax.nn.initializers.glorot_uniform()(keys[1], (size, outputs))
    return {"cnn": layers, "cell": cell and cell.init(keys[0], inputs),
            "head": head, "bias": jnp.zeros(outputs)}  # fmt: skip


# --8<-- [start:model]
def recognise(cell: rnnjax.Cell | None, params: Any, films: jax.Array) -> jax.Array:
    """Logits ``(FRAMES, n, 10, 5)`` of the targets, after each frame."""
    xs, (*convolutions, (dense, dense_bias)) = films, params["cnn"]
    for stride, (kernel, bias) in enumerate(convolutions, start=1):
        xs = jax.nn.relu(convolve(xs, kernel, stride) + bias)
    xs = jax.nn.relu(xs.reshape(*xs.shape[:2], -1) @ dense + dense_bias)
    if cell is not None:
        _, xs = rnnjax.unroll(cell, params["cell"], xs)
    return (xs @ params["head"] + params["bias"]).reshape(*films.shape[:2], 10, 5)


def go_on(cell: rnnjax.Cell, params: Any, films: jax.Array) -> jax.Array:
    """Logits of all frames but the first; after ``SEEN`` each from the one drawn before it."""
    xs = films if isinstance(cell, rnnjax.ConvLSTMCell) else films.reshape(*films.shape[:2], -1)

    def step(state: Any, frame: Any) -> Any:
        (carry, drawn), (number, seen) = state, frame
        x = jnp.where(number < SEEN, seen, drawn)
        carry, y = cell.step(params["cell"], carry, x)
        logits = y @ params["head"] + params["bias"]
        return (carry, jax.nn.sigmoid(logits)), logits

    first = cell.initial_carry(xs.shape[1:-1]), xs[0]
    _, logits = jax.lax.scan(step, first, (jnp.arange(FRAMES - 1), xs[:-1]))
    return logits.reshape(FRAMES - 1, *films.shape[1:])
    # --8<-- [end:model]


def learn(config: Config, name: str, source: Source, parts: Any, seed: int) -> dict[str, jax.Array]:
    """Train a network; returns its logits of each part."""
    draws, cell, epochs, size = NETWORKS[name]
    steps, held_out = config.films // size, parts["validation"]
    apply = jax.jit(functools.partial(go_on if draws else recognise, cell))

    # --8<-- [start:loss]
    def loss_fn(params: Any, part: Any, key: Any = None) -> jax.Array:
        logits, films, targets = apply(params, part["films"]), part["films"], part["targets"]
        if not draws:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses.sum(axis=-1).mean()
        # To draw from what is seen teaches the same, and sooner: both halves count alike.
        losses = optax.sigmoid_binary_cross_entropy(logits, films[1:])
        return losses[: SEEN - 1].mean() + losses[SEEN - 1 :].mean()
        # --8<-- [end:loss]

    def batches(epoch: int) -> dict[str, np.ndarray]:
        drawn = draw_films(source, steps * size, (seed, epoch))
        return {name: xs.reshape(FRAMES, steps, size, *xs.shape[2:]).swapaxes(0, 1)
                for name, xs in drawn.items()}  # fmt: skip

    rate = optax.cosine_onecycle_schedule(steps * epochs, 4e-3, pct_start=0.2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    init_key, key = jax.random.split(jax.random.key(seed))
    result = fit(loss_fn, init(draws, cell, init_key), optimizer, batches, epochs, key=key,
                 evaluate=lambda params: {"validation_loss": loss_fn(params, held_out)},
                 hooks=[Silent()])  # fmt: skip
    return {part: apply(result.params, parts[part]["films"]) for part in parts}


def right(logits: jax.Array, part: Any) -> np.ndarray:
    """After each frame: the share of films with both digits right, and with their ways too."""
    absent, targets = jax.nn.log_softmax(logits)[..., 0], part["targets"]
    digits = ((absent.argsort().argsort() < 2) == (targets > 0)).all(axis=-1)  # least absent
    ways = ((1 + logits[..., 1:].argmax(axis=-1) == targets) | (targets == 0)).all(axis=-1)
    return np.stack([digits.mean(axis=1), (digits & ways).mean(axis=1)])


def run(config: Config) -> int:
    """Name what is in the films, continue them, and compare."""
    report = Report.begin("video", "share of films, or error of a pixel", config, digits=4)
    sources, count = small_digits(config.data), config.films // 3
    source = sources.pop("train")
    parts = {part: draw_films(digits, count, 0) for part, digits in sources.items()}
    films, scores = parts["test"]["films"], dict[str, list[float]]()
    pictures: dict[str, Any] = {
        "five frames of two films": films[:SEEN],
        "the true next ones": films[SEEN:],
    }

    def error(drawn: Any) -> float:
        return float(jnp.mean((drawn - films[SEEN:]) ** 2))

    for name, seed in itertools.product(NETWORKS, range(config.seed, config.seed + config.seeds)):
        logits = learn(config, name, source, parts, seed)
        if NETWORKS[name][0]:
            pictures[name] = jax.nn.sigmoid(logits["test"][SEEN - 1 :])
            scores.setdefault(name, []).append(error(pictures[name]))
            continue
        # The GRU has seen all at the end; without it, the frame after which most is right.
        after = right(logits["validation"], parts["validation"])
        best = after.argmax(axis=1) if name == "CNN" else [FRAMES - 1] * 2
        score = right(logits["test"], parts["test"])[[0, 1], best].tolist()
        for what, one in zip(("both digits", "digits and ways"), score, strict=True):
            scores.setdefault(f"{name}: {what}", []).append(one)
    scores["the last frame again"] = [error(films[SEEN - 1])]
    mean = draw_films(source, count, 2)["films"].mean(axis=(0, 1))
    scores["the mean of all frames"] = [error(mean)]
    for name, each in scores.items():
        report.add(name, each)
    for name, xs in pictures.items():  # frames of the one film, a gap, those of the other
        cut = np.asarray(xs)[:, :2].reshape(-1, 2, GRID, GRID, 2, 2).transpose(1, 0, 2, 4, 3, 5)
        pictures[name] = np.insert(cut.reshape(-1, FRAME, FRAME), len(xs), 0, axis=0)
    plots.images(report.run_dir / "films.png", pictures)
    if report.is_asked:
        single, film, conv, lstm, last = (float(np.mean(scores[name])) for name in (
            "CNN: both digits", "CNN + GRU: both digits", "ConvLSTM", "LSTM", "the last frame again"
        ))  # fmt: skip
        report.accept("CNN + GRU above the best frame", film, single, "least")
        report.accept("ConvLSTM below the LSTM", conv, lstm)
        report.accept("LSTM below the last frame again", lstm, last)
    return report.end()


main = runs.command(run, Config, "cookbook.video", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
