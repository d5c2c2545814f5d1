"""The errors of rnnjax. Each message says what was expected, what came and what to do."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

__all__ = [
    "CheckpointError", "DamagedCheckpointError", "InteropError", "InvalidInputError",
    "NonFiniteError", "PeerEndedError", "RnnjaxError",
]  # fmt: skip
_WORDS = contextvars.ContextVar[Mapping[str, str]]("_WORDS")


def called(word: str) -> str:
    """Return an argument, axes or advice of `rnnjax.unroll` in the words of its caller."""
    return _WORDS.get({}).get(word, word)


@contextlib.contextmanager
def calling(words: Mapping[str, str]) -> Iterator[None]:
    """Let the errors of `rnnjax.unroll` say these words for its own."""
    # No argument of `unroll`: a static one would compile each layer anew for each wording.
    token = _WORDS.set(words)
    try:
        yield
    finally:
        _WORDS.reset(token)


class RnnjaxError(Exception):
    """Base of every error that rnnjax raises on purpose."""


class InvalidInputError(RnnjaxError, ValueError):
    """A value, shape or option that the called function cannot use."""


class CheckpointError(RnnjaxError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are incomplete or were changed.

    Attributes:
        reason: the first half of the message, which says which one is damaged, and how.
    """

    def __init__(self, reason: str, advice: str):
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


class PeerEndedError(RnnjaxError):
    """Another process of the run has ended, so that this one cannot go on."""


class NonFiniteError(RnnjaxError, ArithmeticError):
    """A loss or gradient in training, or the logits in sampling, are NaN or infinite."""


class InteropError(RnnjaxError):
    """A model of another framework, or its file, that cannot be read, converted or written."""
