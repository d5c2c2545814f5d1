"""A model that reads and writes a text, and keeps its state between the two."""

import codecs
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.text_generator.config import ProductType
from experiments.text_generator.data import AnyVocabulary
from experiments.text_generator.model import CharacterModel
from rnnjax.errors import InvalidInputError
from rnnjax.text import ByteVocabulary, Sampling, Stream, read, stream

# Long texts are read in pieces of so many characters, for which the input products are one.
_PIECE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Position:
    """Where texts stand.

    Attributes:
        carry: the state after all characters but the last.
        ids: ``(n, batch)``, the characters so far; none where the text has yet to begin.
    """

    carry: Any
    ids: np.ndarray

    def repeated(self, rows: int) -> "Position":
        """The same position of one text, for so many."""
        carry = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=0), self.carry)
        return Position(carry, np.repeat(self.ids, rows, axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Author:
    """A trained model with the manner in which it writes.

    Attributes:
        model: predicts the next character.
        vocabulary: what its ids mean.
        params: its parameters.
        sampling: how characters are drawn.
        length: characters that it writes at a time, at most.
        products: the type of the operands of the products as it writes.
    """

    model: CharacterModel
    vocabulary: AnyVocabulary
    params: Any
    sampling: Sampling
    length: int
    products: ProductType = "float32"

    def start(self) -> Position:
        """Before the first character of one text."""
        return Position(self.model.initial_carry(1), np.zeros((0, 1), np.int32))

    def read(self, position: Position, ids: np.ndarray) -> Position:
        """Read on in one text."""
        text = np.concatenate([position.ids, ids[:, None]])
        carry, at = position.carry, max(0, len(position.ids) - 1)
        while len(text) - 1 - at >= _PIECE:
            carry = _read_piece(self.model, self.params, carry, text[at : at + _PIECE])
            at += _PIECE
        carry = read(_Step(self.model), self.params, carry, text[at : max(0, len(text) - 1)])
        return Position(carry, text)

    def write(self, position: Position, keys: jax.Array, stops: Sequence[np.ndarray]) -> Stream:
        """Write on from a position that has at least one character."""
        model, params = self.model.prepared(self.params, len(keys), self.products)
        return stream(
            _Step(model), params, position.carry, jnp.asarray(position.ids[-1]),
            key=keys, length=self.length, sampling=self.sampling, stops=stops,
            history=position.ids[-self.sampling.penalty_window :],
        )  # fmt: skip

    def stop_ids(self, stop: str) -> np.ndarray:
        """The ids of a stop string.

        Raises:
            InvalidInputError: the model does not know all of its characters.
        """
        known, unknown = self.known(stop)
        if unknown:
            raise InvalidInputError(
                f"--stop must be of characters that the model knows, or it never stops, but "
                f"{', '.join(map(repr, unknown))} in {stop!r} is none of them; choose another"
            )
        return self.vocabulary.encode(known)

    def known(self, text: str) -> tuple[str, list[str]]:
        """The text without the characters that the model does not know, and which these are."""
        if isinstance(self.vocabulary, ByteVocabulary):
            return text, []
        characters = set(self.vocabulary.characters)
        unknown = [character for character in dict.fromkeys(text) if character not in characters]
        return "".join(character for character in text if character in characters), unknown


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of a model, equal to that of an equal model: so nothing is compiled twice."""

    model: CharacterModel

    def __call__(self, params: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        return self.model.step(params, carry, tokens)


class Decoder:
    """From the ids of one text to its characters, as they come.

    Of the bytes vocabulary, a character whose bytes have not all come is held back.

    >>> decoder = Decoder(ByteVocabulary())
    >>> [decoder.text(np.array([byte])) for byte in "né".encode()], decoder.end()
    (['n', '', 'é'], '')
    """

    def __init__(self, vocabulary: AnyVocabulary):
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, ids: np.ndarray) -> str:
        """What becomes known with these ids."""
        if isinstance(self._vocabulary, ByteVocabulary):
            return self._bytes.decode(ids.astype(np.uint8).tobytes())
        return self._vocabulary.decode(ids)

    def end(self) -> str:
        """What stands for a character that has no end."""
        return self._bytes.decode(b"", final=True)


@functools.partial(jax.jit, static_argnums=0)
def _read_piece(model: CharacterModel, params: Any, carry: Any, ids: jax.Array) -> Any:
    return model.unroll(params, ids, carry)[0]
