"""From a corpus to the batches of each epoch."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from experiments.text_generator.config import Train
from rnnjax.errors import InvalidInputError
from rnnjax.text import Vocabulary, load_corpus, shuffled_batches, streams, windows


@dataclasses.dataclass(frozen=True)
class Data:
    """A text as ids, cut into windows or streams.

    Attributes:
        vocabulary: what the ids mean.
        length: characters of the text.
        digest: of the text, to notice that a file changed before a run goes on.
        inputs: ``(windows, seq_length)``, or ``(steps, batch_size, seq_length)`` for streams.
        targets: ``inputs``, one character on.
    """

    vocabulary: Vocabulary
    length: int
    digest: str
    inputs: np.ndarray
    targets: np.ndarray
    config: Train

    @classmethod
    def load(cls, config: Train) -> "Data":
        """Read, clean and cut the corpus of a configuration."""
        text = load_corpus(config.corpus, strip_licence=config.strip_licence)
        if config.vocabulary == "tutorial":
            vocabulary = Vocabulary.tutorial()
            text = clean(text, vocabulary)
        else:
            vocabulary = Vocabulary.learned(text)
        ids = vocabulary.encode(text)
        if config.carry_state:
            inputs, targets = streams(ids, config.batch_size, config.seq_length)
        else:
            inputs, targets = windows(ids, config.seq_length)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(vocabulary, len(text), digest, inputs, targets, config)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; the last one of windows may be smaller than the others."""
        return (
            len(self.inputs)
            if self.config.carry_state
            else -(-len(self.inputs) // self.config.batch_size)
        )

    @property
    def characters_per_epoch(self) -> int:
        """Characters that one epoch predicts."""
        return self.targets.size

    def batches(self, epoch: int) -> dict[str, Any]:
        """The batches of one epoch, with a leading axis of steps."""
        if self.config.carry_state:
            weights = np.ones(self.inputs.shape[:2], np.float32)
            return {"inputs": self.inputs, "targets": self.targets, "weights": weights}
        indices, weights = shuffled_batches(
            len(self.inputs), self.config.batch_size, seed=self.config.seed, epoch=epoch
        )
        return {
            "inputs": self.inputs[indices],
            "targets": self.targets[indices],
            "weights": weights,
        }


def clean(text: str, vocabulary: Vocabulary) -> str:
    """The text in the tutorial's characters, of which something has to be left."""
    cleaned = vocabulary.clean(text)
    if not cleaned.strip():
        raise InvalidInputError(
            "the text has none of the tutorial's characters (ASCII letters, digits, .,!-'); "
            "use --vocabulary learned"
        )
    return cleaned
