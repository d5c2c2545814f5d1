"""Text: vocabularies, batches to train on, and sampling from a model."""

from rnnjax import checks
from rnnjax.text.batches import shuffled_batches as shuffled_batches
from rnnjax.text.batches import streams as streams
from rnnjax.text.batches import window_starts as window_starts
from rnnjax.text.batches import windows as windows
from rnnjax.text.sampling import Sampling as Sampling
from rnnjax.text.sampling import sample as sample
from rnnjax.text.streaming import Stream as Stream
from rnnjax.text.streaming import Text as Text
from rnnjax.text.streaming import read as read
from rnnjax.text.streaming import stream as stream
from rnnjax.text.vocabulary import TUTORIAL_CHARACTERS as TUTORIAL_CHARACTERS
from rnnjax.text.vocabulary import ByteVocabulary as ByteVocabulary
from rnnjax.text.vocabulary import Vocabulary as Vocabulary
from rnnjax.text.vocabulary import plain_lines as plain_lines

__all__ = checks.public(vars())
