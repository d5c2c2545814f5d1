"""Vocabularies: from characters or bytes to ids and back."""

import itertools
import re
import string
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rnnjax.checks import check_instance
from rnnjax.errors import InvalidInputError

TUTORIAL_CHARACTERS = string.ascii_letters + ".,! -'" + string.digits
"""The 68 characters of the tutorial: ASCII letters, some punctuation, the space, digits."""


@dataclass(frozen=True)
class Vocabulary:
    """Distinct characters; the position of each is its id.

    Any Unicode character is allowed. A vocabulary is hashable, and equal to another one with the
    same characters in the same order.

    Args:
        characters: the characters in the order of their ids.

    Raises:
        InvalidInputError: ``characters`` is not a text, is empty, or has a character twice.

    Example:
        >>> vocabulary = Vocabulary("abc ")
        >>> vocabulary.encode("a cab").tolist()
        [0, 3, 2, 0, 1]
        >>> vocabulary.decode([2, 0, 1])
        'cab'
        >>> len(vocabulary)
        4
    """

    characters: str
    unit: ClassVar[str] = "character"
    """The unit in which a text is counted."""

    def __post_init__(self) -> None:
        _check_text(self.characters)
        if not self.characters:
            raise InvalidInputError(
                "a vocabulary needs at least one character, but an empty string came; "
                "pass its characters, or a text to learn them from"
            )
        for character, times in Counter(self.characters).items():
            if times > 1:
                raise InvalidInputError(
                    f"the characters of a vocabulary must be distinct, but {character!r} occurs "
                    "more than once; use Vocabulary.learned(text) to collect those of a text"
                )

    @classmethod
    def tutorial(cls) -> Self:
        """Return the vocabulary of the tutorial, `TUTORIAL_CHARACTERS`."""
        return cls(TUTORIAL_CHARACTERS)

    @classmethod
    def learned(cls, text: str) -> Self:
        r"""Return the vocabulary of a text: its distinct characters in the order of Unicode.

        Raises:
            InvalidInputError: the text is empty, or not a text.

        Example:
            >>> Vocabulary.learned("naïve\n").characters
            '\naenvï'
        """
        _check_text(text)
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the id of every character of a text, int32, shape `(len(text),)`.

        Raises:
            InvalidInputError: the text holds a character outside the vocabulary.

        Example:
            >>> Vocabulary.tutorial().encode("Alice").tolist()
            [26, 11, 8, 2, 4]
        """
        _check_text(text)
        # As an iterator of C functions: a text of 5 million characters takes a quarter of a second.
        ids = np.fromiter(map(self._ids.get, text, itertools.repeat(-1)), np.int32, len(text))
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            distinct = list(dict.fromkeys(text[position] for position in unknown))
            more = f" and {len(distinct) - 5} more" if len(distinct) > 5 else ""
            raise InvalidInputError(
                f"every character must be one of the vocabulary's {len(self)}, but the text holds "
                f"{', '.join(map(repr, distinct[:5]))}{more}, first at position {unknown[0]}; "
                "drop them with Vocabulary.clean(text), or use Vocabulary.learned(text)"
            )
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids, an array or a sequence of shape `(length,)`.

        Raises:
            InvalidInputError: the ids are not integers in `[0, len(self))` in one dimension.

        Example:
            >>> Vocabulary.tutorial().decode([26, 11, 8, 2, 4])
            'Alice'
        """
        return "".join(map(self.characters.__getitem__, as_ids(ids, len(self)).tolist()))

    def clean(self, text: str) -> str:
        r"""Return the text as the tutorial cleans it, so that `encode` takes it.

        Newlines become spaces, unless the vocabulary itself holds the newline; characters outside
        the vocabulary are dropped; then every run of spaces becomes one.

        Example:
            >>> Vocabulary.tutorial().clean("So it was\r\n* * *\r\nindeed (she said)")
            'So it was indeed she said'
        """
        _check_text(text)
        if "\n" not in self.characters:
            text = text.replace("\r", " ").replace("\n", " ")
        # Dropping comes first: a dropped character between two spaces leaves a run of them.
        return re.sub(" {2,}", " ", "".join(filter(self._ids.__contains__, text)))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters)}


@dataclass(frozen=True)
class ByteVocabulary:
    """The 256 bytes of a text's UTF-8 form: it encodes any text without a learned vocabulary.

    Bytes of the command line or terminal that are not UTF-8 (lone surrogates in Python, by
    ``surrogateescape``) are encoded as these bytes.

    Example:
        >>> vocabulary = ByteVocabulary()
        >>> vocabulary.encode("né").tolist()
        [110, 195, 169]
        >>> vocabulary.decode([110, 195, 169]), vocabulary.decode([110, 195])
        ('né', 'n\ufffd')
        >>> len(vocabulary)
        256
    """

    unit: ClassVar[str] = "byte"
    """The unit in which a text is counted."""

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the bytes of a text, int32, shape `(bytes,)`."""
        _check_text(text)
        try:
            encoded = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # surrogates that stand for no byte
            encoded = text.encode("utf-8", "surrogatepass")
        return np.frombuffer(encoded, np.uint8).astype(np.int32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of bytes; those that are not UTF-8 become U+FFFD.

        Raises:
            InvalidInputError: the ids are not integers in `[0, 256)` in one dimension.
        """
        return as_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")


def plain_lines(text: str) -> str:
    r"""Return a text as one line: each line stripped, in lower case and ASCII, joined by spaces.

    Lines that become empty are dropped.

    Example:
        >>> plain_lines("  So it was\n\nIn d\u00e9ed!\n")
        'so it was in ded!'
    """
    _check_text(text)
    lines = (
        line.strip().lower().encode("ascii", "ignore").decode("ascii") for line in text.split("\n")
    )
    return " ".join(line for line in lines if line)


def as_ids(ids: npt.ArrayLike, size: int | None = None) -> npt.NDArray[np.integer]:
    """Return ids as a NumPy array, checked.

    Args:
        ids: integers, shape `(length,)`: a NumPy or JAX array, or a sequence.
        size: the size of the vocabulary, for a check of the range.

    Raises:
        InvalidInputError: the ids are not integers, not one-dimensional, or not in `[0, size)`.

    Example:
        >>> as_ids([3, 1]).tolist()
        [3, 1]
    """
    array = np.asarray(as_integers("ids", ids))
    if array.ndim != 1:
        raise InvalidInputError(
            f"ids must have one dimension, but their shape is {array.shape}; pass one text's ids"
        )
    outside: Any = [] if size is None else np.flatnonzero((array < 0) | (array >= size))
    if len(outside):
        raise InvalidInputError(
            f"ids must lie in [0, {size}), but {array[outside[0]]} came at position {outside[0]}; "
            "decode with the vocabulary that encoded the text"
        )
    return array


def as_integers(name: str, ids: npt.ArrayLike) -> Any:
    """Convert by NumPy unless it is a JAX array: JAX would compile for each length of a text."""
    try:
        array = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    except ValueError:  # of rows of several lengths
        array = np.array(None)
    if array.size and not jnp.issubdtype(array.dtype, jnp.integer):
        raise InvalidInputError(
            f"{name} must be integers, the ids of characters, but are {array.dtype}; encode a text "
            "by Vocabulary.encode"
        )
    return array if array.size else array.astype(np.int32)  # NumPy takes an empty list for floats


def _check_text(text: Any) -> None:
    check_instance("a text", text, str, "a str (decode bytes first)")
