"""Tags the names in a sentence: a BiLSTM-CRF, with BIO tags, padding, and F1 of whole names.

Named entity recognition (Lample et al., 2016). A bidirectional LSTM scores the tags of each word,
and a conditional random field (Lafferty et al., 2001) scores each tag behind the one before, so
that the best *sequence* is found, in which no I-PER follows a B-LOC:

    score(tags) = sum_t e_t[tag_t] + A[tag_(t-1), tag_t],     loss = log sum_tags exp(score) - score

The sentences are made. Their names are those of people, places and companies alike, so that a word
alone does not tell; the word before does, or the one behind, and now and then none.

    python -m experiments.cookbook.tagging

For sentences of your own, put their kinds, words and longest length into `KINDS`, `WORDS` and
`LONGEST`, with one more word for those that come once or never, and return them in `sentences`.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

KINDS = "PER", "LOC", "ORG"
TAGS = ["O", *(f"{part}-{kind}" for kind in KINDS for part in "BI")]  # B begins a name, I goes on
BEFORE = {"PER": "mr", "LOC": "in", "ORG": "rival"}
BEHIND = {"PER": "said", "LOC": "airport", "ORG": "shares"}
NAMES = "jordan paris lincoln florence sydney chelsea austin carson madison phoenix dallas hudson"
OTHER = "the markets fell today as rain came late and nobody knew why it would end"
WORDS = ["", *NAMES.split(), *OTHER.split(), *BEFORE.values(), *BEHIND.values()]  # "" is padding
LONGEST = 4 * (3 + 1 + 3)  # four names of three words, each behind three others and beside one


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Tag names by a BiLSTM-CRF, and without the CRF, beside the most frequent tag of a word."""

    sentences: int = 4000
    """The number of sentences to learn from; half as many test."""
    epochs: int = 10
    """The number of passes over the sentences."""
    units: int = 32
    """The number of units of each direction, and the size of a word's embedding."""


def sentence(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The words and tags of a sentence, as numbers of `WORDS` and `TAGS`."""
    words: list[str] = []
    tags: list[str] = []
    for _ in range(rng.integers(1, 5)):
        kind = rng.choice(KINDS)
        side = rng.choice(["before", "behind", "neither"], p=[0.5, 0.4, 0.1])
        name = rng.choice(NAMES.split(), rng.integers(1, 4), replace=False).tolist()
        other = rng.choice(OTHER.split(), rng.integers(1, 4)).tolist()
        left, right = (BEFORE[kind],) * (side == "before"), (BEHIND[kind],) * (side == "behind")
        words += [*other, *left, *name, *right]
        tags += ["O"] * len([*other, *left]) + [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
        tags += ["O"] * len(right)
    return np.array([WORDS.index(w) for w in words]), np.array([TAGS.index(t) for t in tags])


def sentences(seed: Any, count: int) -> dict[str, np.ndarray]:
    """So many sentences, padded: ``words`` and ``tags (time, count)``, and their ``lengths``."""
    rng = np.random.default_rng(seed)
    words, tags = zip(*(sentence(rng) for _ in range(count)), strict=True)
    (xs, lengths), (ys, _) = (rnnjax.pad(each, sizes=[LONGEST]) for each in (words, tags))
    return {"words": xs, "tags": ys, "lengths": lengths}


def init(config: Config, key: jax.Array) -> dict[str, Any]:
    """Draw the parameters: an embedding, the network, the scores of tags, and of pairs of them."""
    size, keys = config.units, jax.random.split(key, 3)
    return {
        "embedding": jax.random.normal(keys[0], (len(WORDS), size)),
        "network": network(config).init(keys[1], size),
        "kernel": jax.nn.initializers.glorot_uniform()(keys[2], (2 * size, len(TAGS))),
        "pairs": jnp.zeros((len(TAGS), len(TAGS))),
    }


# --8<-- [start:model]
def network(config: Config) -> Any:
    """What reads a sentence in both directions."""
    return rnnjax.Bidirectional(rnnjax.LSTMCell(config.units))


def emissions(config: Config, params: Any, words: Any, lengths: Any) -> jax.Array:
    """The scores of all tags ``(time, sentences, tags)``; padding is read by neither direction."""
    xs = params["embedding"][words]
    _, ys = rnnjax.unroll(network(config), params["network"], xs, lengths=lengths)
    return ys @ params["kernel"]
    # --8<-- [end:model]


# --8<-- [start:loss]
def total(scores: Any, pairs: Any, valid: Any, add: Any = jax.nn.logsumexp) -> jax.Array:
    """Sum over all sequences of tags, as a logarithm, by the forward algorithm."""

    def step(before: jax.Array, at: Any) -> tuple[jax.Array, None]:
        scores, valid = at
        after = add(before[:, :, None] + pairs, axis=1) + scores
        return jnp.where(valid[:, None], after, before), None

    last, _ = jax.lax.scan(step, scores[0], (scores[1:], valid[1:]))
    return add(last, axis=-1)


def best(scores: jax.Array, pairs: jax.Array, valid: jax.Array) -> jax.Array:
    """The most probable tags: the largest sum grows with the scores on its path alone (Viterbi)."""
    return jax.grad(lambda scores: total(scores, pairs, valid, jnp.max).sum())(scores).argmax(-1)


def log_likelihood(scores: Any, pairs: Any, tags: jax.Array, valid: jax.Array) -> jax.Array:
    """The log probability of ``tags (time, sentences)``, ``(sentences,)``."""
    own = jnp.take_along_axis(scores, tags[..., None], axis=-1)[..., 0]
    own = own.at[1:].add(pairs[tags[:-1], tags[1:]])
    return (own * valid).sum(axis=0) - total(scores, pairs, valid)
    # --8<-- [end:loss]


def names_in(tags: Any) -> set[tuple[int, int, str]]:
    """The names in a sentence: begin, end, and kind; an I behind no B of its kind is no name.

    >>> sorted(names_in([TAGS.index(tag) for tag in ("B-PER", "I-PER", "O", "I-LOC", "B-ORG")]))
    [(0, 2, 'PER'), (4, 5, 'ORG')]
    """
    width = 1 + max(map(len, TAGS))  # every tag ends with a space
    text = "".join(f"{TAGS[tag]:<{width}}" for tag in tags)
    found = re.finditer(r"B-(\S+) +(I-\1 +)*", text)
    return {(m.start() // width, m.end() // width, m[1]) for m in found}


def f1(found: np.ndarray, right: np.ndarray, lengths: np.ndarray) -> float:
    """The F1 score in %, of whole names: the begin, the end and the kind have to be right."""
    pairs = [
        (names_in(f[:n]), names_in(r[:n]))
        for f, r, n in zip(found.T, right.T, lengths, strict=True)
    ]
    same, both = sum(len(f & r) for f, r in pairs), sum(len(f) + len(r) for f, r in pairs)
    return 200 * same / max(1, both)


def learn(config: Config, batches: Any, crf: bool) -> Any:
    """Train with the CRF's loss, or with each tag by itself, which leaves ``pairs`` at zero."""

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        words, tags, lengths = batch["words"], batch["tags"], batch["lengths"]
        scores = emissions(config, params, words, lengths)
        pairs = params["pairs"] if crf else jnp.zeros_like(params["pairs"])
        valid = rnnjax.valid_steps(lengths, len(words))
        return -log_likelihood(scores, pairs, tags, valid).sum() / lengths.sum()

    params = init(config, jax.random.key(config.seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    return fit(loss_fn, params, optimizer, batches, config.epochs, key=jax.random.key(config.seed),
               hooks=[Silent()]).params  # fmt: skip


def run(config: Config) -> int:
    """Train with and without a CRF, tag sentences that are new, and draw the scores of pairs."""
    report = Report.begin("tagging", "F1 of whole names in %", config, 1)
    train = sentences((config.seed, 0), config.sentences)
    test = sentences((config.seed, 1), config.sentences // 2)
    axis = {"words": 1, "tags": 1, "lengths": 0}
    batches = minibatches(train, 50, axis=axis, seed=config.seed)
    words, right, lengths = (np.asarray(test[name]) for name in axis)
    counts = np.zeros((len(WORDS), len(TAGS)), int)
    np.add.at(counts, (np.asarray(train["words"]), np.asarray(train["tags"])), 1)
    report.add("each word's most frequent tag", f1(counts.argmax(axis=1)[words], right, lengths))
    valid, scores = rnnjax.valid_steps(jnp.array(lengths), len(words)), {}
    for name, crf in (("BiLSTM, each tag by itself", False), ("BiLSTM-CRF", True)):
        params = learn(config, batches, crf)
        found = best(emissions(config, params, words, lengths), params["pairs"], valid)
        scores[name] = f1(np.asarray(found), right, lengths)
        report.add(name, scores[name])
    shown = np.asarray(params["pairs"])
    plots.matrix(
        report.run_dir / "pairs.png", shown, rows=TAGS, columns=TAGS, x="tag", y="the tag before",
        bar="score",
    )  # fmt: skip
    report.accept("F1 of the CRF", scores["BiLSTM-CRF"], 90, "least")
    line = " ".join(
        f"{WORDS[w]}/{TAGS[t]}" for w, t in zip(words[: lengths[0], 0], found[:, 0], strict=False)
    )
    print(f"the first test sentence: {line}")
    return report.end(sentence=line)


main = runs.command(run, Config, "cookbook.tagging", "--epochs 5")
if __name__ == "__main__":
    runs.exit_with(main)
