"""Text: vocabularies, batches to train on, and sampling from a model."""

from rnnjax.text.batches import shuffled_batches, streams, window_starts, windows
from rnnjax.text.sampling import Sampling, sample
from rnnjax.text.streaming import Stream, Text, read, stream
from rnnjax.text.vocabulary import TUTORIAL_CHARACTERS, ByteVocabulary, Vocabulary, plain_lines

__all__ = [
    "TUTORIAL_CHARACTERS",
    "ByteVocabulary",
    "Sampling",
    "Stream",
    "Text",
    "Vocabulary",
    "plain_lines",
    "read",
    "sample",
    "shuffled_batches",
    "stream",
    "streams",
    "window_starts",
    "windows",
]
