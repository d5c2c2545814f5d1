"""From a corpus to the batches of each epoch."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.text_generator.config import Text
from rnnjax.errors import CorpusError, InvalidInputError
from rnnjax.text.batches import shuffled_batches, streams, window_starts
from rnnjax.text.corpora import load_corpus
from rnnjax.text.vocabulary import ByteVocabulary, Vocabulary, plain_lines

AnyVocabulary = Vocabulary | ByteVocabulary


@dataclasses.dataclass(frozen=True)
class Data:
    """A text as ids, in the parts to train on, to validate and to test, cut for training."""

    options: Text
    vocabulary: AnyVocabulary
    digest: str  # of the text, to notice that a file changed before a run goes on
    train: np.ndarray
    validation: np.ndarray  # behind those, perhaps none
    test: np.ndarray  # at the end, perhaps none
    seed: int  # of the order of the windows
    rows: np.ndarray | None = None  # of every batch, those that this process reads; None is all
    dropped: int = 0  # characters of the text, but for white space, that the vocabulary has not

    @classmethod
    def load(cls, options: Text, seed: int) -> "Data":
        """Read, clean and cut the corpus of these options."""
        whole = load_corpus(
            options.corpus, strip_licence=options.strip_licence, encoding=options.encoding
        )
        text, vocabulary = read_as(whole, options.vocabulary)
        dropped = 0
        if options.vocabulary == "tutorial":
            unknown = set("".join(whole.split())) - set(text)
            dropped = sum(map(whole.count, unknown))
        ids = vocabulary.encode(text)
        test = len(ids) - round(len(ids) * options.test)
        validation = test - round(len(ids) * options.validation)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        train, held_out, last = ids[:validation], ids[validation:test], ids[test:]
        for name, part in (("validation", held_out), ("test", last)):
            if getattr(options, name) and len(part) < 2:
                raise InvalidInputError(
                    f"--{name} {getattr(options, name)} of {len(ids)} characters is {len(part)}, "
                    "but at least 2 are needed; take a longer text or a larger share"
                )
        data = cls(options, vocabulary, digest, train, held_out, last, seed, dropped=dropped)
        _ = data.steps_per_epoch  # too short a text is refused here
        return data

    @property
    def length(self) -> int:
        """Characters of the whole text."""
        return len(self.train) + len(self.validation) + len(self.test)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one of windows may be smaller than the others."""
        rows = 1 if self.options.carry_state else self.options.batch_size
        return -(-len(self._starts) // rows)

    @property
    def characters_per_step(self) -> float:
        """Characters read in one step, on average over an epoch."""
        return self._starts.size * self.options.seq_length / self.steps_per_epoch

    def batches(self, epoch: int) -> dict[str, Any]:
        """The batches of an epoch, cut on the device, with a first axis of steps.

        Streams are the same in every epoch; windows come in an order of its own.
        """
        starts, weights = self._starts, np.ones(self._starts.shape, np.float32)
        if not self.options.carry_state:
            indices, weights = shuffled_batches(
                len(starts), self.options.batch_size, seed=self.seed, epoch=epoch
            )
            starts = starts[indices]
        mine = slice(None) if self.rows is None else self.rows
        inputs, targets = _cut(self._on_device, starts[:, mine], self.options.seq_length)
        return {"inputs": inputs, "targets": targets, "weights": weights[:, mine]}

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Where each window begins; of streams each piece, ``(steps, rows)``."""
        length, options = len(self.train), self.options
        if options.carry_state:
            return streams(np.arange(length), options.batch_size, options.seq_length)[0][..., 0]
        return window_starts(length, options.seq_length, options.stride)

    @functools.cached_property
    def _on_device(self) -> jax.Array:
        return jnp.asarray(self.train)


def require_there(corpus: str) -> None:
    """Raise CorpusError if the text of a run is a file that is not there any more."""
    path = Path(corpus).absolute()
    if corpus not in ("alice", "python-docs") and not path.exists():
        raise CorpusError(
            f"the text of the run must be where it says, but there is no file {path}; name the new "
            "place of that text by --corpus"
        )


def read_as(text: str, vocabulary: str) -> tuple[str, AnyVocabulary]:
    """The text as it is read with a choice of vocabulary, and that vocabulary."""
    text = cleaned_as(text, vocabulary)
    if vocabulary == "bytes":
        return text, ByteVocabulary()
    if not (text.strip() if vocabulary == "tutorial" else text):
        raise InvalidInputError(
            f"the text must have characters that --vocabulary {vocabulary} keeps, but has none; "
            "use --vocabulary learned"
        )
    return text, Vocabulary.tutorial() if vocabulary == "tutorial" else Vocabulary.learned(text)


def cleaned_as(text: str, vocabulary: str) -> str:
    """The text as a choice of vocabulary has it, of which perhaps nothing is left."""
    if vocabulary == "tutorial":
        return Vocabulary.tutorial().clean(text)
    return plain_lines(text) if vocabulary == "lines" else text


@functools.partial(jax.jit, static_argnums=2)
def _cut(ids: jax.Array, starts: jax.Array, seq_length: int) -> tuple[jax.Array, jax.Array]:
    windows = ids[starts[..., None] + jnp.arange(seq_length + 1)]
    return windows[..., :-1], windows[..., 1:]
