"""Learns to translate sentences from German into English, with attention.

Multi30k (Elliott et al., 2016; github.com/multi30k/dataset): 29,000 descriptions of pictures with
their translations. The last states of a bidirectional GRU, through a dense layer, begin one that
writes (Cho et al., 2014; Sutskever et al., 2014). Its attention (Bahdanau et al., 2015) comes after
the loop (Luong et al., 2015), which stays fast: python -m experiments.cookbook.translation
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from sklearn.feature_extraction.text import TfidfVectorizer

import rnnjax
from experiments.cookbook.common.beam import search
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import fit, minibatches

PADDING, UNKNOWN, BEGIN, END = range(4)
# Of a sentence in lower case; the ends of "man's" and "don't", and each sign, stand alone.
words_of = re.compile(r"'\w+|\w+|[^\w\s]").findall
NO_SPACE = re.compile(r"(?<=[-(#$]) | (?=[-.,;:!?)]|'\w)")  # between words of an English sentence


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Translate German into English."""

    data: str | None = None
    """A folder with Multi30k, or "made" for synthetic data."""
    seeds: int = 1
    """The number of models to train, one after the other."""
    epochs: int = 8
    """The number of passes over the pairs; scores are checked with 8 or more."""
    size: int = 192
    """The size of a word's embedding, and of each of the three GRUs."""
    dropout: float = 0.3
    """Dropout of the embeddings, the encoder's outputs, and the input of the softmax."""


def numbered(pairs: list[tuple[str, str]], known: Any, parts: int = 3) -> tuple[Any, ...]:
    """Sorted pairs as numbers ``(time, pairs)``, in parts: half the padding, yet one program."""
    german = [[known[0].get(word, UNKNOWN) for word in words_of(g)] for g, _ in pairs]
    english = [[known[1].get(word, UNKNOWN) for word in words_of(e)] + [END] for _, e in pairs]
    sides = [[np.array(row) for row in rows] for rows in (german, english)]
    cuts = [slice(len(pairs) * i // parts, len(pairs) * (i + 1) // parts) for i in range(parts)]
    sized = [[(rows[cut], max(map(len, rows[cut]))) for rows in sides] for cut in cuts]
    return tuple([np.asarray(rnnjax.pad(rows, sizes=[n]).xs) for rows, n in part] for part in sized)


class Model:
    """The two networks, and attention between them."""

    def __init__(self, size: int, dropout: float):
        self.encoder = rnnjax.Bidirectional(rnnjax.GRUCell(size), merge="sum")
        self.decoder = rnnjax.GRUCell(size)
        # The same features at all steps (Gal & Ghahramani, 2016): few random numbers to draw.
        self.drop = rnnjax.Dropout(dropout, per="sequence").apply

    def init(self, key: jax.Array, german: int, english: int) -> dict[str, Any]:
        """Draw the parameters, for so many words of both languages."""
        keys, size = jax.random.split(key, 6), self.decoder.hidden_size
        glorot_uniform = jax.nn.initializers.glorot_uniform()
        return {
            "german": size**-0.5 * jax.random.normal(keys[0], (german, size)),
            # Reads the word before, and is the output's kernel too (Press & Wolf, 2017).
            "english": size**-0.5 * jax.random.normal(keys[1], (english, size)),
            "bias": jnp.zeros(english),
            "encoder": self.encoder.init(keys[2], size),
            "decoder": self.decoder.init(keys[3], size),
            "bridge": glorot_uniform(keys[4], (2 * size, size)),
            "combine": glorot_uniform(keys[5], (2 * size, size)),
        }

    # --8<-- [start:model]
    def read(self, params: Any, german: jax.Array, key: jax.Array | None = None) -> Any:
        """The decoder's first state, and what it looks back on, with what of it is valid."""
        keys, lengths = rnnjax.split_key(key, 2), (german != PADDING).sum(axis=0)
        xs = self.drop(keys[0], params["german"][german])
        carry, ys = rnnjax.unroll(self.encoder, params["encoder"], xs, lengths=lengths)
        memory = self.drop(keys[1], ys), rnnjax.valid_steps(lengths, len(german))
        last = jnp.concatenate([each.hidden for each in carry], axis=-1)
        return rnnjax.GRUCarry(jnp.tanh(last @ params["bridge"])), memory

    def choose(self, params: Any, states: jax.Array, memory: Any, key: Any = None) -> Any:
        """Logits of the next words after states of the decoder, and what it looked at for them."""
        contexts, weights = rnnjax.attend(states, memory[0], *memory)
        combined = jnp.tanh(jnp.concatenate([states, contexts], axis=-1) @ params["combine"])
        return self.drop(key, combined) @ params["english"].T + params["bias"], weights
        # --8<-- [end:model]

    # --8<-- [start:loss]
    def losses(self, params: Any, german: Any, english: Any, key: Any = None) -> Any:
        """Return the loss of each English word, and its attention weights."""
        keys = rnnjax.split_key(key, 3)
        carry, memory = self.read(params, german, keys[0])
        before = jnp.concatenate([jnp.full_like(english[:1], BEGIN), english[:-1]])
        xs = self.drop(keys[1], params["english"][before])
        _, states = rnnjax.unroll(self.decoder, params["decoder"], xs, carry)
        logits, weights = self.choose(params, states, memory, keys[2])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, english)
        if key is not None:  # a tenth of the target goes to all words alike (Szegedy et al., 2016)
            losses += 0.1 * (jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1) - losses)
        return jnp.where(english != PADDING, losses, 0), weights

    def loss(self, params: Any, parts: Any, key: jax.Array | None = None) -> jax.Array:
        """The mean of all English words of several arrays of pairs."""
        pairs = zip(parts, rnnjax.split_key(key, len(parts)), strict=True)
        found = [self.losses(params, g, e, k)[0].sum() for (g, e), k in pairs]
        return sum(found) / sum((english != PADDING).sum() for _, english in parts)
        # --8<-- [end:loss]

    # --8<-- [start:search]
    def search(self, params: Any, german: jax.Array, beam: int, most: int = 40) -> Any:
        """The best translation ``(most,)`` of one sentence ``(time,)``, of ``beam`` followed."""
        carry, memory = self.read(params, german)
        carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (beam, *x.shape)), carry)

        def think(carry: Any, before: jax.Array, _: jax.Array) -> tuple[Any, jax.Array]:
            carry, ys = self.decoder.step(params["decoder"], carry, params["english"][before])
            # The beam stands where `attend` has the steps of a decoder: all share the memory.
            return carry, self.choose(params, ys, memory)[0].at[:, :END].set(-jnp.inf)

        _, written, scores = search(think, carry, BEGIN, beam, most, END)
        # By a power of the length, else short ones win (Wu et al., 2016).
        return written[(scores / (1 + (written != END).sum(axis=1)) ** 0.6).argmax()]
        # --8<-- [end:search]


def run(config: Config) -> int:
    """Train, translate the test sentences, and compare."""
    report = Report.begin("translation", "BLEU, and perplexity of a word", config)
    parts = (data.pairs(part, config.data) for part in ("train", "val", "test_2016_flickr"))
    lower = ([(german.lower(), english.lower()) for german, english in part] for part in parts)
    train, valid, test = (sorted(p, key=lambda q: max(map(len, map(words_of, q)))) for p in lower)
    asked, references = zip(*test, strict=True)
    german, english = (TfidfVectorizer(analyzer=words_of, min_df=2) for _ in range(2))
    seen, _ = german.fit_transform(g for g, _ in train), english.fit(e for _, e in train)
    words = [["", "", "", "", *each.get_feature_names_out()] for each in (german, english)]
    known = [{word: i for i, word in enumerate(each)} for each in words]
    short = numbered(train[: len(train) * 49 // 150 * 3], known)  # the longest 2 %: most padding
    valid_ids, test_ids = numbered(valid, known), numbered(test, known)
    model, steps = Model(config.size, config.dropout), config.epochs * (short[0][0].shape[1] // 43)
    rates = optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 16, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates))
    loss, bleu = jax.jit(model.loss), sacrebleu.BLEU(lowercase=True)
    translate = jax.jit(jax.vmap(model.search, (None, 1, None)), static_argnums=2)
    scores: dict[str, list[float]] = {"perplexity": [], "BLEU, greedy": [], "BLEU, beam of 5": []}
    for seed in range(config.seed, config.seed + config.seeds):
        params = fit(
            model.loss, model.init(jax.random.key(seed), *map(len, words)), optimizer,
            minibatches(short, 43, seed=seed, axis=1), config.epochs, key=jax.random.key(seed),
            evaluate=lambda params: {"validation_loss": loss(params, valid_ids)},
        ).params  # fmt: skip
        scores["perplexity"].append(float(jnp.exp(loss(params, test_ids))))
        for name, beam in (("BLEU, greedy", 1), ("BLEU, beam of 5", 5)):
            found = np.asarray(translate(params, numbered(test, known, 1)[0][0], beam))
            written = [[words[1][i] for i in row if i != END] for row in found]
            texts = [NO_SPACE.sub("", " ".join(each)) for each in written]
            scores[name].append(bleu.corpus_score(texts, [references]).score)
    for name, values in scores.items():
        report.add(name, values)
    report.add("perplexity, reading its own words", 23.18, "Trevett (2018), notebook 4: GRU(512)")
    report.add("BLEU, greedy, its own tokens", 28.11, "Trevett (2018), notebook 4: GRU(512)")
    alike = [train[i][1] for i in np.ravel((german.transform(asked) @ seen.T).argmax(axis=1))]
    report.add("BLEU, training sentence most alike", bleu.corpus_score(alike, [references]).score)
    if config.epochs >= 8:
        report.accept("perplexity", sum(scores["perplexity"]) / config.seeds, 22)
        report.accept("BLEU", sum(scores["BLEU, beam of 5"]) / config.seeds, 28, "least")
    one = len(test) // 3  # the first of the second third, in which none is long
    row, columns = [*written[one], "(end)"], words_of(asked[one])
    weights = model.losses(params, test_ids[1][0][:, :1], found[one, : len(row), None])[1][..., 0]
    picture, weights = report.run_dir / "attention.png", weights[:, : len(columns)]
    plots.matrix(picture, weights, rows=row, columns=columns, x="read", y="written")
    return report.end(signature=str(bleu.get_signature()), translations=texts)


main = runs.command(run, Config, "cookbook.translation", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
