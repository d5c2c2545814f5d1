"""Learns what kind of answer a question wants, and which language a family name is from.

Questions are read word by word: "Who wrote Hamlet ?" wants a person, one of six kinds of answers
(TREC: Li & Roth, 2002; 5,452 to train on, 500 to test). Family names are read letter by letter, and
are from one of 18 languages (of the tutorials of PyTorch, where many stand up to 100 times: each
counts once for a language, and all that are spelled alike are in one part).

A CNN of three widths (Kim, 2014) and recurrent networks of about as many parameters hand the
maximum of their outputs over time to a last layer; an LSTM also, as in many a tutorial, the last
output. The baselines: logistic regressions on words and pairs. Each seed holds out another tenth of
the training part, for the choice of settings and of the best epoch.

    python -m experiments.cookbook.classification
"""

import collections
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

KINDS = ("description", "entity", "abbreviation", "person", "place", "number")
# What the classes are called; steps (1 % are longer, and cut), numbers of the vector of a word or
# letter, units, epochs, rows of a batch, learning rate, dropout of vectors and of what is pooled.
SETTINGS: dict[str, Any] = {
    "questions": (KINDS, 20, 64, 64, 7, 64, 3e-3, rnnjax.Dropout(0.4), rnnjax.Dropout(0.5)),
    "names": (data.LANGUAGES, 14, 32, 48, 5, 128, 15e-3, rnnjax.Dropout(0.0), rnnjax.Dropout(0.3)),
}
# At least so many percents, about a point below the lowest mean of three seeds that was seen: over
# six values of --seed 88.0 to 89.1 for a GRU (18 seeds, each 86.8 to 89.8), and 88.7 to 89.8 for a
# CNN (each 88.4 to 90.2). Another machine rounds otherwise, and differs as another seed does.
BOUNDS = {"questions: CNN": 87.5, "questions: bidirectional GRU": 87}
# Each has about as many parameters as the CNN, and as the GRU of so many units in both directions.
CELLS: dict[str, Any] = {
    "SimpleRNN": lambda units: rnnjax.SimpleRNNCell(3 * units),
    "LSTM, last output": lambda units: rnnjax.LSTMCell(4 * units // 3),
    "LSTM": lambda units: rnnjax.LSTMCell(4 * units // 3),
    "bidirectional GRU": lambda units: rnnjax.Bidirectional(rnnjax.GRUCell(units)),
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Compare a bag of words, a CNN and recurrent networks on questions and on names."""

    data: str | None = None
    """A folder with the questions and the names, or "made" for synthetic data."""
    seeds: int = 3
    """The number of networks of each kind, in one vmap."""


class Task(NamedTuple):
    """Sequences of words or letters as integers, and which of them are for what."""

    name: str
    ids: jax.Array  # (time, n), 0 for rare ones
    lengths: jax.Array  # (n,)
    labels: jax.Array  # (n,)
    train: np.ndarray  # (rows, seeds), as each seed holds out others
    held_out: np.ndarray  # (rows, seeds)
    test: np.ndarray  # (rows, seeds), of all alike


def prepare(config: Config, name: str, texts: Any, labels: Any, known: int) -> Task:
    """Number the words that are not rare; the first ``known`` texts are not for the test."""
    count = collections.Counter(word for text in texts[:known] for word in text)
    numbers = {x: i for i, x in enumerate((x for x in count if count[x] > 1), start=1)}
    most = SETTINGS[name][1]
    rows = [np.array([numbers.get(word, 0) for word in text[:most]]) for text in texts]
    ids, lengths = map(jnp.asarray, rnnjax.pad(rows, sizes=[most]))
    rngs = map(np.random.default_rng, range(config.seed, config.seed + config.seeds))
    held_out, train = np.split(np.stack([r.permutation(known) for r in rngs], 1), [known // 10])
    test = np.repeat(np.arange(known, len(texts))[:, None], config.seeds, axis=1)
    return Task(name, ids, lengths, jnp.asarray(labels), train, held_out, test)


def tasks(config: Config) -> list[Task]:
    """The questions, and the names."""
    (known, labels), (others, kinds) = (data.questions(x, config.data) for x in ("train", "test"))
    pairs = set(zip(*data.names(config.data), strict=True))
    drawn = np.random.default_rng(0).permutation(sorted({name for name, _ in pairs})).tolist()
    place = {name: i for i, name in enumerate(drawn)}  # the last tenth is for the test
    names, languages = zip(*sorted(pairs, key=lambda p: (place[p[0]], p[1])), strict=True)
    first = sum(place[name] < len(place) * 9 // 10 for name in names)
    return [prepare(config, "questions", known + others, [*labels, *kinds], len(known)),
            prepare(config, "names", names, languages, first)]  # fmt: skip


def init(name: str, task: Task, key: jax.Array) -> dict[str, Any]:
    """The parameters of a network: vectors of words, what reads them, a last layer."""
    _, _, embedding, units, *_ = SETTINGS[task.name]
    draw, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(key, 6)
    # Small vectors: what is rare says little. (Of the size 0.25, the CNN has 78 %, and not 87 %.)
    words = 0.03 * jax.random.normal(keys[0], (int(task.ids.max()) + 1, embedding))
    if name == "CNN":
        reads = [draw(k, (w * embedding, units)) for k, w in zip(keys[3:], (3, 4, 5), strict=True)]
    else:
        reads = CELLS[name](units).init(keys[1], embedding)
    size = 3 * units if name == "CNN" else CELLS[name](units).output_size
    head = draw(keys[2], (size, int(task.labels.max()) + 1))
    return {"words": words, "reads": reads, "head": head, "bias": jnp.zeros(head.shape[1])}


# --8<-- [start:model]
def apply(name: str, task: Task, params: Any, rows: jax.Array, key: Any = None) -> jax.Array:
    """Logits ``(batch, classes)`` of some rows."""
    units, xs_dropout, ys_dropout = (SETTINGS[task.name][i] for i in (3, -2, -1))
    xs_key, ys_key = rnnjax.split_key(key, 2)
    xs, lengths = params["words"][task.ids[:, rows]], task.lengths[rows]
    xs, valid = xs_dropout.apply(xs_key, xs), rnnjax.valid_steps(lengths, len(xs))
    if name == "CNN":
        # Convolutions as products of shifted copies; a vmapped convolution crawls on a CPU.
        padded = jnp.pad(jnp.where(valid[..., None], xs, 0), ((2, 2), (0, 0), (0, 0)))
        near = jnp.concatenate([padded[i : i + len(xs)] for i in range(5)], axis=-1)
        ys = jnp.concatenate([near[..., : len(w)] @ w for w in params["reads"]], axis=-1)
        ys = jax.nn.relu(ys)
    else:
        _, ys = rnnjax.unroll(CELLS[name](units), params["reads"], xs, lengths=lengths)
    pooled = rnnjax.pool(ys, "last" if "last" in name else "max", valid)
    return ys_dropout.apply(ys_key, pooled) @ params["head"] + params["bias"]
    # --8<-- [end:model]


def learn(config: Config, task: Task, name: str) -> np.ndarray:
    """Train networks of all seeds; returns the classes ``(seeds, rows)`` of the test part."""
    *_, epochs, batch_size, learning_rate, _, _ = SETTINGS[task.name]

    # --8<-- [start:loss]
    def loss(params: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        part_key, order_key, key = jax.random.split(key, 3)
        logits = apply(name, task, params, rows, key)
        classes = jax.nn.one_hot(task.labels[rows], logits.shape[1])
        # Two rows are mixed (Guo et al., 2019): with it 87.7 % of the questions held out, not 86.7.
        part, order = jax.random.uniform(part_key), jax.random.permutation(order_key, len(rows))
        mixed = [part * x + (1 - part) * x[order] for x in (logits, classes)]
        return optax.softmax_cross_entropy(*mixed).mean()
        # --8<-- [end:loss]

    losses = jax.vmap(loss, (0, 1, 0))
    classes = jax.jit(jax.vmap(lambda p, r: apply(name, task, p, r).argmax(axis=-1), (0, 1)))
    held_out = task.labels[task.held_out].T
    keys = jax.random.split(jax.random.key(config.seed), config.seeds + 1)
    batch_size = min(batch_size, len(task.train))
    steps = epochs * (len(task.train) // batch_size)
    result = fit(
        # A sum over seeds: with Adam, which looks at each number alone, none knows of the others.
        lambda p, rows, key: losses(p, rows, jax.random.split(key, config.seeds)).sum(),
        jax.vmap(lambda key: init(name, task, key))(keys[1:]),
        optax.adam(optax.linear_schedule(learning_rate, 0, steps)),
        minibatches(task.train, batch_size, axis=0, seed=config.seed), epochs,
        evaluate=lambda p: {"validation_loss": (classes(p, task.held_out) != held_out).mean()},
        key=keys[0], hooks=[Silent()],
    )  # fmt: skip
    return np.asarray(classes(result.params, task.test))


def bag(task: Task) -> np.ndarray:
    """The classes ``(seeds, rows)`` by logistic regressions on single words and pairs of them."""
    ids, lengths, labels = (np.asarray(x) for x in (task.ids.T, task.lengths, task.labels))
    texts = [row[:length].astype(str) for row, length in zip(ids, lengths, strict=True)]
    words = CountVectorizer(analyzer=lambda x: [*x, *map(" ".join, itertools.pairwise(x))])
    xs, linear = words.fit_transform(texts), LogisticRegression(C=3, max_iter=1000)
    test = xs[task.test[:, 0]]
    return np.stack([linear.fit(xs[rows], labels[rows]).predict(test) for rows in task.train.T])


def run(config: Config) -> int:
    """Train all networks on both tasks, and compare them."""
    report = Report.begin("classification", "test part named correctly, %", config, 1)
    report.add("questions: CNN", 91.2, "Kim 2014, CNN-rand")
    for task in tasks(config):
        kinds, true = SETTINGS[task.name][0], np.asarray(task.labels)[task.test].T
        for name in ("bag of words and pairs", "CNN", *CELLS):
            found = bag(task) if name.startswith("bag") else learn(config, task, name)
            label, scores = f"{task.name}: {name}", 100 * (found == true).mean(axis=1)
            report.add(label, scores.tolist())
            if label in BOUNDS:
                report.accept(f"{label}, mean", scores.mean(), BOUNDS[label], "least")
        pairs, every = (true.ravel(), found.ravel()), range(len(kinds))
        table = confusion_matrix(*pairs, labels=every, normalize="true")
        plots.matrix(report.run_dir / f"{task.name}.png", table, rows=kinds, columns=kinds, x=name)
    return report.end()


main = runs.command(run, Config, "cookbook.classification", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
