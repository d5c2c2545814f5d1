"""Rewrites dates as people write them, "Sat 7 of March 98", as 1998-03-07: sequence to sequence.

An encoder reads the characters in both directions; a decoder with attention (Bahdanau et al., 2015)
writes the date, a character a step. While it learns, it reads the right character before each one,
whatever it would have written (teacher forcing: Williams & Zipser, 1989). Later it reads its own:
greedily the most probable, or by beam search, which follows the few most probable beginnings.
`translation` does the same with sentences of two languages. The data are made.

    python -m experiments.cookbook.seq2seq

For pairs of your own, return them in `dates`, and put their characters and lengths into
`CHARACTERS`, `READ` and `LENGTH`. All dates have ten characters. If what is written differs in
length, end each with a sign that says so, and leave the padding out of the loss, as `translation`.
"""

import dataclasses
from datetime import date, timedelta
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common.beam import search
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, minibatches

# %b is "Mar", %B "March", %a "Sat", %A "Saturday"; %y is two digits of the year.
FORMS = ("%A, %d of %B %Y", "%d %b %Y", "%B %d, %Y", "%m/%d/%y", "%d.%m.%Y", "%a %d of %B %y",
         "%Y %b %d", "%b %d %y")  # fmt: skip
BEGIN, LENGTH, READ = "^", 10, 32  # a date has ten characters; the longest that is read, 31
CHARACTERS = ["", BEGIN, *sorted({*"0123456789-/., ", *"abcdefghijklmnopqrstuvwxyz"})]
NUMBER = {character: i for i, character in enumerate(CHARACTERS)}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Learn to write dates in one form, greedily and by beam search."""

    dates: int = 10_000
    """The number of dates to learn from; a tenth as many test."""
    epochs: int = 8
    """The number of passes over the dates."""
    units: int = 64
    """The number of units of the encoder, each way, and of the decoder."""
    beam: int = 4
    """The number of beginnings that beam search follows."""


def dates(seed: Any, count: int) -> tuple[list[str], list[str]]:
    """Dates from 1970 to 2039 as people write them, and in the form of ISO 8601."""
    rng = np.random.default_rng(seed)
    found = [date(1970, 1, 1) + timedelta(int(days)) for days in rng.integers(0, 25_567, count)]
    forms = rng.choice(FORMS, count)
    return [f"{day:{form}}".lower() for day, form in zip(found, forms, strict=True)], [
        day.isoformat() for day in found
    ]


def numbered(texts: list[str], size: int) -> Any:
    """Characters as numbers ``(size, texts)``, and their lengths."""
    return rnnjax.pad([np.array([NUMBER[c] for c in text]) for text in texts], sizes=[size])


# --8<-- [start:model]
class Model:
    """The encoder, and the decoder that looks back on what it read."""

    def __init__(self, units: int):
        self.encoder = rnnjax.Bidirectional(rnnjax.GRUCell(units))
        self.decoder = rnnjax.AttentionCell(rnnjax.GRUCell(units), 2 * units, units)
        self.units = units

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters."""
        keys, units, known = jax.random.split(key, 5), self.units, len(CHARACTERS)
        draw = jax.nn.initializers.glorot_uniform()
        return {
            "embedding": jax.random.normal(keys[0], (known, units)),
            "encoder": self.encoder.init(keys[1], units),
            "decoder": self.decoder.init(keys[2], units),
            "bridge": draw(keys[3], (2 * units, units)),
            "kernel": draw(keys[4], (3 * units, known)),
        }

    def read(self, params: Any, text: Any, lengths: Any) -> tuple[Any, Any]:
        """The decoder's first state, and its parameters with what it looks back on."""
        xs = params["embedding"][text]
        carry, memory = rnnjax.unroll(self.encoder, params["encoder"], xs, lengths=lengths)
        last = jnp.concatenate([one.hidden for one in carry], axis=-1)
        valid = rnnjax.valid_steps(lengths, len(text))
        ready = self.decoder.over(params["decoder"], memory, valid)
        return rnnjax.GRUCarry(jnp.tanh(last @ params["bridge"])), ready
        # --8<-- [end:model]

    # --8<-- [start:loss]
    def loss(self, params: Any, batch: Any, key: Any = None) -> jax.Array:
        """The mean of all characters, each after the right ones before it: teacher forcing."""
        carry, ready = self.read(params, batch["text"], batch["lengths"])
        right = batch["iso"]
        before = jnp.concatenate([jnp.full_like(right[:1], NUMBER[BEGIN]), right[:-1]])
        _, ys = rnnjax.unroll(self.decoder, ready, params["embedding"][before], carry)
        losses = optax.softmax_cross_entropy_with_integer_labels(ys @ params["kernel"], right)
        return losses.mean()
        # --8<-- [end:loss]

    # --8<-- [start:write]
    def write(self, params: Any, text: Any, length: Any, beam: int) -> tuple[Any, Any]:
        """The best of ``beam`` dates for one text ``(READ,)``, and what was looked at for it."""
        text, lengths = jnp.tile(text[:, None], (1, beam)), jnp.full(beam, length)
        carry, ready = self.read(params, text, lengths)

        def think(state: Any, before: jax.Array, at: jax.Array) -> tuple[Any, jax.Array]:
            carry, seen = state
            seen = seen.at[:, at].set(self.decoder.weights(ready, carry).T)
            carry, y = self.decoder.step(ready, carry, params["embedding"][before])
            return (carry, seen), y @ params["kernel"]

        begin = carry, jnp.zeros((beam, LENGTH, READ))
        (_, seen), written, _ = search(think, begin, NUMBER[BEGIN], beam, LENGTH)
        return written[0], seen[0]
        # --8<-- [end:write]


def run(config: Config) -> int:
    """Train, write the dates of the test part, and draw what was looked at for one of them."""
    report = Report.begin("seq2seq", "dates that are right, in %", config, 1)
    model, key = Model(config.units), jax.random.key(config.seed)
    texts, right = dates((config.seed, 0), config.dates)
    asked, wanted = dates((config.seed, 1), max(10, config.dates // 10))
    text, lengths = numbered(texts, READ)
    batch = {"text": text, "iso": numbered(right, LENGTH).xs, "lengths": lengths}
    batches = minibatches(batch, 50, axis={"text": 1, "iso": 1, "lengths": 0}, seed=config.seed)
    rates = optax.cosine_decay_schedule(3e-3, config.epochs * (config.dates // 50))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    params = fit(model.loss, model.init(key), optimizer, batches, config.epochs, key=key,
                 hooks=[Silent()]).params  # fmt: skip
    known = dict(zip(texts, right, strict=True))
    seen = np.mean([known.get(text) == iso for text, iso in zip(asked, wanted, strict=True)])
    report.add("dates that were learned from", 100 * float(seen))
    write = jax.jit(jax.vmap(model.write, (None, 1, 0, None)), static_argnums=3)
    for name, beam in (("greedy", 1), (f"beam of {config.beam}", config.beam)):
        written, looked = write(params, *numbered(asked, READ), beam)
        found = ["".join(CHARACTERS[i] for i in row) for row in np.asarray(written)]
        score = 100 * float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))
        report.add(name, score)
    one = max(range(len(asked)), key=lambda i: len(asked[i]))
    weights = np.asarray(looked)[one, :, : len(asked[one])]
    picture = report.run_dir / "attention.png"
    plots.matrix(picture, weights, rows=[*found[one]], columns=[*asked[one]], x="read", y="written")
    print(f"{asked[one]!r} is written as {found[one]}")
    report.accept("dates by beam search", score, 97, "least")
    return report.end()


main = runs.command(run, Config, "cookbook.seq2seq", "--epochs 4")
if __name__ == "__main__":
    runs.exit_with(main)
