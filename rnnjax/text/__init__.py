"""Text as training data: corpora, vocabularies, batches. NumPy only."""

from rnnjax.text.batches import shuffled_batches, streams, windows
from rnnjax.text.corpora import load_corpus
from rnnjax.text.vocabulary import TUTORIAL_CHARACTERS, Vocabulary

__all__ = [
    "TUTORIAL_CHARACTERS",
    "Vocabulary",
    "load_corpus",
    "shuffled_batches",
    "streams",
    "windows",
]
