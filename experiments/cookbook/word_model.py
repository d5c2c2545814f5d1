"""Learns to tell the next word of Shakespeare and of Alice, better than a Kneser-Ney trigram.

A language model says how probable each word is as the next one; at a perplexity of 80 it is as
unsure as if it chose among 80. A trigram counts which words came after two others, and falls back
on one and on none (Kneser & Ney, 1995; Chen & Goodman, 1999). The LSTM carries its state over; it
reads and expects the same vectors (Press & Wolf, 2017; Inan et al., 2017), and drops the same
numbers at all steps (Gal & Ghahramani, 2016). Of a text's last tenth, half chose the settings.

    python -m experiments.cookbook.word_model
"""

import collections
import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, truncated_loss, windows

UNKNOWN, STEPS, UNITS, LEARNING_RATE = 0, 35, 128, 5e-3  # the number of rare words; of an update
# How often a word is there at least; epochs; rows side by side; the rate of dropout.
TEXTS = {"tinyshakespeare": (3, 7, 16, 0.2), "alice_gutenberg11": (2, 15, 8, 0.3)}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Predict the next word of a text, by an LSTM and by counting."""

    data: str | None = None
    """A folder with the texts, or "made" for synthetic data."""
    seeds: int = 2
    """The number of LSTMs for each text, one after the other."""


def kneser_ney(words: list[int], known: int, size: int, order: int = 3) -> np.ndarray:
    """Logarithms of the probabilities of the words after the ``known`` ones, which are counted."""
    counts = collections.Counter(zip(*(words[i:known] for i in range(order)), strict=False))
    orders = []
    for length in range(order, 0, -1):
        once, twice = (list(counts.values()).count(n) for n in (1, 2))
        totals, kinds = collections.Counter[Any](), collections.Counter(g[:-1] for g in counts)
        for gram, count in counts.items():
            totals[gram[:-1]] += count
        orders.append((length, counts, totals, kinds, once / max(once + 2 * twice, 1)))
        # Of a shorter one counts not how often it is there, but after how many words.
        counts = collections.Counter(gram[1:] for gram in counts)
    chances = np.full(len(words) - known, 1 / size)
    for length, counts, totals, kinds, discount in reversed(orders):
        for row, end in enumerate(range(known + 1, len(words) + 1)):
            gram = tuple(words[end - length : end])
            if total := totals[gram[:-1]]:
                rest = discount * kinds[gram[:-1]] * chances[row]
                chances[row] = (max(counts[gram] - discount, 0) + rest) / total
    return np.log(chances)


def read(name: str, config: Config) -> tuple[list[int], int, int, int]:
    """The words as numbers; sizes of the training part, the validation part, the vocabulary."""
    parts = re.split(r"\n\*\*\* ?(?:START|END) .*\n", data.text(name, config.data))
    text = max(parts, key=len).lower()  # without the licence around it
    words = re.findall(r"[a-z]+(?:['’-][a-z]+)*|\n\n+|[^\w\s]", text)
    known, valid = len(words) * 9 // 10, len(words) // 20
    count = collections.Counter(words[:known])
    often = (word for word in count if count[word] >= TEXTS[name][0])
    numbers = {word: i for i, word in enumerate(often, start=1)}
    return [numbers.get(word, UNKNOWN) for word in words], known, valid, len(numbers) + 1


def learn(config: Config, name: str, number: int) -> np.ndarray:
    """Train an LSTM; the logarithms of the probabilities of the words after the training part."""
    (words, known, valid, size), (_, epochs, rows, rate) = read(name, config), TEXTS[name]
    dropout = rnnjax.Dropout(rate, per="sequence")
    cell = rnnjax.Regularized(rnnjax.LSTMCell(UNITS), recurrent_dropout=rate)

    # --8<-- [start:model]
    def logits(params: Any, carry: Any, ids: Any, key: Any = None) -> tuple[Any, jax.Array]:
        keys = rnnjax.split_key(key, 3)
        xs = dropout.apply(keys[0], params["words"][ids])
        carry, ys = rnnjax.unroll(cell, params["cell"], xs, carry, key=keys[1])
        return carry, dropout.apply(keys[2], ys) @ params["words"].T + params["bias"]
        # --8<-- [end:model]

    losses, ids = optax.softmax_cross_entropy_with_integer_labels, np.array(words)
    logs = jax.jit(lambda params, ids: -losses(logits(params, None, ids[:-1])[1], ids[1:]))
    streams = ids[: known // rows * rows].reshape(rows, -1).T
    keys = jax.random.split(jax.random.key(config.seed + number), 3)
    batches = windows(streams[:-1], streams[1:], steps=STEPS)
    schedule = optax.linear_schedule(LEARNING_RATE, 0, epochs * len(batches.counted))
    draw = jax.jit(lambda keys: {
        "words": 0.1 * jax.random.normal(keys[0], (size, UNITS)), "bias": jnp.zeros(size),
        "cell": cell.init(keys[1], UNITS),
    })  # fmt: skip
    # --8<-- [start:loss]
    params = fit(
        truncated_loss(logits, losses), draw(keys),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)), batches, epochs,
        evaluate=lambda p: {"validation_loss": -logs(p, ids[known - 1 : known + valid]).mean()},
        carry=cell.initial_carry((rows,)), key=keys[2], hooks=[Silent()],
    ).params  # fmt: skip
    # --8<-- [end:loss]
    return np.asarray(logs(params, ids[known - 1 :]))


def perplexity(logs: np.ndarray) -> float:
    """Among how many words a model chooses that gives the right ones these probabilities."""
    return float(np.exp(-logs.mean()))


def run(config: Config) -> int:
    """Count, train, and score the test part."""
    report, lines = Report.begin("word_model", "perplexity of the test part", config, 1), {}
    for name in TEXTS:
        words, known, valid, size = read(name, config)
        unknown = words[known + valid :].count(UNKNOWN) / (len(words) - known - valid)
        print(f"{name}: {size:,} words; {unknown:.1%} of the test part are unknown", flush=True)
        for order, label in enumerate(("single words", "bigram", "trigram"), start=1):
            counted = kneser_ney(words, known, size, order)
            report.add(f"{name}: {label}", bound := perplexity(counted[valid:]))
        learned = [learn(config, name, number) for number in range(config.seeds)]
        report.add(f"{name}: LSTM", scores := [perplexity(logs[valid:]) for logs in learned])
        both = [np.logaddexp(logs, counted) - np.log(2) for logs in learned]
        report.add(f"{name}: mean of trigram and LSTM", [perplexity(logs[valid:]) for logs in both])
        report.accept(f"{name}: LSTM, mean", float(np.mean(scores)), bound)
        pairs = collections.Counter(itertools.pairwise(words[:known]))
        seen = [pairs[pair] for pair in itertools.pairwise(words[known + valid - 2 : -1])]
        for label, logs in (("trigram", counted), ("LSTM", learned[0])):
            eighths = np.array_split(logs[valid:][np.argsort(seen, kind="stable")], 8)
            lines[f"{name}: {label}"] = [perplexity(each) for each in eighths]
    plots.curves(report.run_dir / "seen.png", lines, y="perplexity", log=True,
                 x="eighth of the test part, by counts of the two words before")  # fmt: skip
    return report.end()


main = runs.command(run, Config, "cookbook.word_model", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
