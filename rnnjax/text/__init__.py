"""Text: corpora, vocabularies, batches to train on, and sampling from a model."""

from rnnjax.text.batches import shuffled_batches, streams, windows
from rnnjax.text.corpora import load_corpus
from rnnjax.text.sampling import sample
from rnnjax.text.vocabulary import TUTORIAL_CHARACTERS, Vocabulary

__all__ = [
    "TUTORIAL_CHARACTERS",
    "Vocabulary",
    "load_corpus",
    "sample",
    "shuffled_batches",
    "streams",
    "windows",
]
