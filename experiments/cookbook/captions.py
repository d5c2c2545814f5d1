"""Learns to describe an image in a sentence: which digits are in it, such as "a 3 above a 7".

A scene has one or two digits of MNIST (LeCun et al., 1998), at half their size, above or beside one
another in 24 x 24 pixels. A CNN reads it, and what it finds is the first state of a GRU that writes
word by word, each from the one before (as in *Show and Tell*, Vinyals et al., 2015), up to the end.

Scenes are made anew for every epoch. The digits of the validation and of the test part are others,
and stand in places where none stands in training. A sentence is right if all its words are. The
baseline: a layer of its own for each word, learned with the same CNN, which knows of no other word.

    python -m experiments.cookbook.captions
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common import images
from experiments.cookbook.common.images import LENGTH, WORDS
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit

# Of the CNN; 6 x 6 places come out. (With 3 x 3, and without the loss of each word for itself,
# 8.1 % of the validation sentences were wrong, and not 5.5 %.)
STRIDES, KERNELS = (2, 2, 1), ((5, 5, 1, 16), (3, 3, 16, 32), (3, 3, 32, 64))
CELL, BATCH = rnnjax.GRUCell(192), 32  # scenes of an update


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Learn to describe what is in a scene."""

    data: str | None = None
    """A folder with the MNIST file, or "made" for synthetic data."""
    seeds: int = 1
    """The number of networks of each kind, one after the other."""
    scenes: int = 20000
    """The number of scenes of an epoch; validation and test have a tenth as many."""
    epochs: int = 20
    """The number of epochs, each of new scenes."""


def init(key: jax.Array) -> dict[str, Any]:
    """The parameters: of the CNN, two layers after it, one for a word of the GRU, one for all."""
    keys, draw, num = jax.random.split(key, 8), jax.nn.initializers.he_normal(), len(WORDS)
    shapes = *KERNELS, (6 * 6 * 64, 256), (256, 192), (192, num), (192, LENGTH * num)
    layers = [(draw(keys[1 + i], shape), jnp.zeros(shape[-1])) for i, shape in enumerate(shapes)]
    return {"cell": CELL.init(keys[0], num), "layers": layers}


# --8<-- [start:model]
def look(params: Any, scenes: jax.Array) -> jax.Array:
    """What the CNN finds in scenes, the first state of the GRU ``(n, 192)``."""
    xs, (*convolutions, hidden, dense, _, _) = scenes[0, ..., None], params["layers"]
    for stride, (kernel, bias) in zip(STRIDES, convolutions, strict=True):
        xs = jax.nn.relu(images.convolve(xs, kernel, stride) + bias)
    xs = jax.nn.relu(xs.reshape(len(xs), -1) @ hidden[0] + hidden[1])
    return jnp.tanh(xs @ dense[0] + dense[1])


def apply(params: Any, part: Any) -> tuple[jax.Array, jax.Array]:
    """Logits ``(LENGTH, n, words)`` of each word for itself, and of the GRU after those before."""
    found, (*_, word, words) = look(params, part["scenes"]), params["layers"]
    alone = (found @ words[0] + words[1]).reshape(-1, LENGTH, len(WORDS)).swapaxes(0, 1)
    before = jnp.pad(part["words"][:-1], ((1, 0), (0, 0)))  # a "." begins
    xs, carry = rnnjax.OneHot(before, len(WORDS)), rnnjax.GRUCarry(found)
    _, ys = rnnjax.unroll(CELL, params["cell"], xs, carry)
    return alone, ys @ word[0] + word[1]
    # --8<-- [end:model]


@jax.jit
def write(params: Any, part: Any) -> list[jax.Array]:
    """The likeliest words ``(LENGTH, n)``, each for itself, and each after those written."""
    (alone, _), (kernel, bias) = apply(params, part), params["layers"][-2]

    def step(state: Any, _: None) -> Any:
        carry, y = CELL.step(params["cell"], state[0], rnnjax.OneHot(state[1], len(WORDS)))
        word = (y @ kernel + bias).argmax(axis=-1)
        return (carry, word), word

    first = rnnjax.GRUCarry(look(params, part["scenes"])), jnp.zeros(alone.shape[1], int)
    both = alone.argmax(axis=-1), jax.lax.scan(step, first, length=LENGTH)[1]
    return [words * (jnp.cumsum(words == 0, axis=0) == 0) for words in both]  # up to the end


def right(words: Any, part: Any) -> np.ndarray:
    """Which sentences are right."""
    return np.asarray((words == part["words"]).all(axis=0))


# --8<-- [start:loss]
def loss_fn(params: Any, part: Any, key: jax.Array) -> jax.Array:
    """The cross-entropy of a sentence, in both ways together."""
    words, logits = part["words"], jnp.stack(apply(params, part))
    valid = rnnjax.valid_steps((words > 0).sum(axis=0) + 1, LENGTH)  # the end, and no more
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.stack([words, words]))
    return (losses * valid).sum() / words.shape[1]
    # --8<-- [end:loss]


def learn(config: Config, source: images.Source, parts: Any, seed: int) -> np.ndarray:
    """Train; returns the words that are written of the test part, both ways ``(2, LENGTH, n)``."""
    held_out, steps = parts["validation"], config.scenes // BATCH

    def batches(epoch: int) -> dict[str, np.ndarray]:
        drawn = images.draw_scenes(source, "train", steps * BATCH, (seed, epoch))
        return {name: x.reshape(len(x), steps, BATCH, *x.shape[2:]).swapaxes(0, 1)
                for name, x in drawn.items()}  # fmt: skip

    def evaluate(params: Any) -> dict[str, Any]:
        # Of both ways: the epoch is as good for the one as for the other.
        wrong = [(~right(words, held_out)).mean() for words in write(params, held_out)]
        return {"validation_loss": sum(wrong) / 2}

    total, (init_key, key) = steps * config.epochs, jax.random.split(jax.random.key(seed))
    rate = optax.cosine_onecycle_schedule(total, 3e-3, pct_start=0.2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    result = fit(loss_fn, init(init_key), optimizer, batches, config.epochs, key=key,
                 evaluate=evaluate, hooks=[Silent()])  # fmt: skip
    return np.stack(write(result.params, parts["test"]))


def run(config: Config) -> int:
    """Learn to write, and compare."""
    report = Report.begin("captions", "% of sentences that are right", config)
    sources, count = images.small_digits(config.data), config.scenes // 10
    source = sources.pop("train")
    parts = {part: images.draw_scenes(digits, part, count, 0) for part, digits in sources.items()}
    drawn = images.draw_scenes(source, "train", config.scenes, 1)["words"]
    sentences, counts = np.unique(drawn, axis=1, return_counts=True)
    found = np.stack([learn(config, source, parts, config.seed + i) for i in range(config.seeds)])
    ways = {"the most frequent sentence": sentences[None, :, np.argmax(counts), None],
            "each word for itself": found[:, 0], "a GRU, word by word": found[:, 1]}  # fmt: skip
    for name, written in ways.items():
        scores = [100 * float(right(words, parts["test"]).mean()) for words in written]
        report.add(name, scores)
    rows, said, is_right = {}, found[0, 1], right(found[0, 1], parts["test"])
    long_ones = is_right & (said[2] > 0)
    for n in (*np.flatnonzero(long_ones)[:5], *np.flatnonzero(~is_right)[:3]):
        sentence = " ".join(WORDS[i] for i in said[:, n] if i) + " (wrong)" * (not is_right[n])
        scene = np.maximum(parts["test"]["scenes"][:, n], 0.1)
        rows[sentence] = np.pad(scene, ((0, 2), (0, 0), (0, 0)))  # the space for its sentence
    plots.images(report.run_dir / "scenes.png", rows)
    report.accept("sentences that the GRU wrote right", float(np.mean(scores)), 95, "least")
    return report.end()


main = runs.command(run, Config, "cookbook.captions", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
