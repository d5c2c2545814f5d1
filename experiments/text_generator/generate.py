"""The command `generate`: a model that reads and writes, alone or in turns with you."""

import codecs
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.corpora import load_corpus
from experiments.shared.runs import Seed, check_ranges
from experiments.text_generator.config import ProductType
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.reading import (
    AnyVocabulary,
    cleaned_as,
    dropped_of,
    require_known,
    text_bytes,
)
from experiments.text_generator.trained import OfRun, Trained
from rnnjax.errors import InvalidInputError
from rnnjax.text import ByteVocabulary, Sampling, Stream, read, stream

FromOne = Annotated[int, (1, math.inf)]
FromZero = Annotated[int, (0, math.inf)]

_INTERRUPTED = 130  # as a shell reports SIGINT
_HELP = "each line is answered; /reset forgets the conversation, /quit or end of input ends it"
# Long texts are read in pieces of so many characters, for which the input products are one.
_PIECE = 256


@dataclasses.dataclass(frozen=True)
class Generate(OfRun):
    """Write text with a trained model: continue a text, or take turns with you."""

    length: FromOne = 500
    """The number of characters (bytes, for a byte vocabulary) to write after the prime text, or in
    each answer."""
    prime: str = ""
    """The beginning of the text; by default one random character."""
    prime_file: Path | None = None
    """A text file (UTF-8) with the beginning, cleaned like the training text."""
    samples: FromOne = 1
    """The number of texts to write, in one batch. The first does not depend on the number."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable character, 1 samples as predicted."""
    top_k: FromZero = 0
    """Sample from this many most probable characters (Fan et al., 2018); 0 for all."""
    top_p: float = 1.0
    """Sample from the most probable characters that have this share of the probability (Holtzman et
    al., 2020); 1 for all."""
    repetition_penalty: float = 1.0
    """Above 1 penalises the last characters (Keskar et al., 2019); 1 does not."""
    penalty_window: FromOne = 64
    """The number of last characters to penalise."""
    seed: Seed = 0
    """The seed of the samples, and of the random first character."""
    products: ProductType = "float32"
    """The type in which the recurrent layers multiply matrices as they write; bfloat16 is faster
    for many samples, and may choose another character where two are as probable."""
    stop: str | None = None
    """End before this string, once the model writes it. With --interactive an answer ends with the
    line, if the model knows the newline; --stop "" has answers of --length characters."""
    interactive: bool = False
    """Read lines from standard input, and answer each."""

    @property
    def sampling(self) -> Sampling:
        """How the characters are drawn."""
        return Sampling(
            self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.penalty_window
        )

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        _ = self.sampling  # checks the others
        if self.prime and self.prime_file is not None:
            raise InvalidInputError(
                "--prime and --prime-file are both the beginning of the text; leave one of them out"
            )
        if self.prime_file is not None and not self.prime_file.is_file():
            raise InvalidInputError(
                f"--prime-file must name a text file, but {self.prime_file} is none; check the "
                "spelling"
            )
        if self.interactive and self.samples > 1:
            raise InvalidInputError(
                f"--interactive is one conversation, but --samples is {self.samples}; leave one of "
                "them out"
            )


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
        """Repeat the position of one text for several texts."""
        carry = jax.tree.map(lambda leaf: np.repeat(leaf, rows, axis=0), self.carry)
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

    def start(self, prime: str) -> Position:
        """Read the beginning of one text, which may be empty.

        Raises:
            InvalidInputError: the model does not know all of its characters.
        """
        require_known(self.vocabulary, prime, "the prime text")
        empty = Position(self.model.initial_carry(1), np.zeros((0, 1), np.int32))
        return self.read(empty, self.vocabulary.encode(prime))

    def read(self, position: Position, ids: np.ndarray) -> Position:
        """Read on in one text."""
        text = np.concatenate([position.ids, ids[:, None]])
        carry, at = position.carry, max(0, len(position.ids) - 1)
        while len(text) - 1 - at >= _PIECE:
            carry = _read_piece(self.model, self.params, carry, text[at : at + _PIECE])
            at += _PIECE
        carry = read(self.model, self.params, carry, text[at : max(0, len(text) - 1)])
        return Position(carry, text)

    def write(self, position: Position, keys: jax.Array, stops: Sequence[np.ndarray]) -> Stream:
        """Write on from a position that has at least one character."""
        model, params = self.model.prepared(self.params, len(keys), self.products)
        return stream(
            model, params, position.carry, position.ids[-1],
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


def run_generation(config: Generate) -> int:
    """Print what a trained model writes: nothing but that goes to the standard output."""
    config.check()
    try:
        trained = Trained.load(config.run_dir, config.step)
        author = Author(
            trained.model, trained.vocabulary, trained.params, config.sampling, config.length,
            config.products,
        )  # fmt: skip
        prime = prime_of(config, trained)
        if config.interactive:
            converse(author, prime, stop=config.stop, seed=config.seed)
        else:
            print_samples(author, prime, config)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print()
        return _INTERRUPTED
    return 0


def prime_of(config: Generate, trained: Trained) -> str:
    """The beginning of the text, which may be empty."""
    if config.prime_file is None:
        return config.prime
    vocabulary = trained.config.text.vocabulary
    if vocabulary == "bytes":
        return text_bytes(config.prime_file).decode("utf-8", "surrogateescape")
    text = load_corpus(config.prime_file)
    if dropped := dropped_of(text, vocabulary):
        _note(
            f"dropped {dropped:,} of the {len(text):,} characters of {config.prime_file}, because "
            "the model does not know them"
        )
    return cleaned_as(text, vocabulary)


def print_samples(author: Author, prime: str, config: Generate) -> None:
    """Write ``--samples`` texts in one batch: one alone as it is made, more one after the other."""
    began = time.perf_counter()
    keys = sample_keys(jax.random.key(config.seed), config.samples)
    stops = [author.stop_ids(config.stop)] if config.stop else []
    position, draws = begin(author, prime, keys)
    decoders = [Decoder(author.vocabulary) for _ in range(config.samples)]
    texts = [decoder.text(row) for decoder, row in zip(decoders, position.ids.T, strict=True)]
    alone = config.samples == 1
    if alone:
        print(texts[0], end="", flush=True)
    written = author.write(position, draws, stops)
    characters = 0
    for pieces in written:
        for row, (decoder, piece) in enumerate(zip(decoders, pieces, strict=True)):
            text = decoder.text(piece)
            characters += len(piece)
            if alone:
                print(text, end="", flush=True)
            else:
                texts[row] += text
    if alone:
        print(decoders[0].end())
    else:
        for row, (text, decoder) in enumerate(zip(texts, decoders, strict=True)):
            print(f"--- sample {row + 1} of {config.samples} ---")
            print(text + decoder.end())
    sys.stdout.flush()
    seconds = time.perf_counter() - began
    unit = author.vocabulary.unit
    print(f"[{characters} {unit}s in {seconds:.2f} s, compilation included]", file=sys.stderr)


@functools.partial(jax.jit, static_argnums=1)
def sample_keys(key: jax.Array, samples: int) -> jax.Array:
    """A key for each sample, which does not depend on how many there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(samples))


@functools.partial(jax.jit, static_argnums=1)
def _first_draws(keys: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """For each key one of so many characters, and the key of the draws that follow."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, draws = jax.random.split(key)
        return jax.random.randint(first, (), 0, size), draws

    return jax.vmap(one)(keys)


def begin(author: Author, prime: str, keys: jax.Array) -> tuple[Position, jax.Array]:
    """Read ``prime`` or, if it is empty, one random character for each of the keys.

    Returns:
        where that leads, and the keys of the draws that follow.
    """
    first, draws = _first_draws(keys, len(author.vocabulary))
    if prime:
        return author.start(prime).repeated(len(keys)), draws
    carry = author.model.initial_carry(len(keys))
    return Position(carry, np.asarray(first, np.int32)[None]), draws


def converse(author: Author, prime: str, *, stop: str | None, seed: int) -> None:
    """Read lines from the standard input and answer each, with the state kept.

    A line ends with a newline for the model too, or with a space if it knows none. An answer ends
    before the stop string, which by default is that newline, or after the author's ``length``; the
    model has then read the stop string that it wrote, or else the end of a line.

    Args:
        author: answers.
        prime: read before the first line, and kept when the conversation is forgotten.
        stop: the stop string; None is the newline if the model knows it, and "" is none.
        seed: of the draws; the answers do not depend on what was forgotten.
    """
    line_end = author.known("\n")[0] or author.known(" ")[0]
    if stop is None:
        stop = author.known("\n")[0]
    stops = [author.stop_ids(stop)] if stop else []
    start = author.start(prime)
    if sys.stdin is None:  # closed from the beginning, as services have it
        return
    if hasattr(sys.stdin, "reconfigure"):
        # A byte that is no UTF-8 stays itself for a model of bytes; another does not know it.
        sys.stdin.reconfigure(errors="surrogateescape")
    terminal = sys.stdin.isatty()
    if terminal:
        _note(_HELP)
    position, turn = start, 0
    while (line := _line(terminal)) is not None:
        if line == "/quit":
            return
        if line == "/reset":
            position, turn = start, 0
            continue
        text, unknown = author.known(line)
        if unknown:
            _note(
                f"dropped {', '.join(map(repr, unknown))}, which the model has never seen in "
                "training"
            )
        position = author.read(position, author.vocabulary.encode(text + line_end))
        if not len(position.ids):
            _note("nothing is left of this line, and there is no text to continue")
            continue
        key = jax.random.fold_in(jax.random.key(seed), turn)
        position, stopped = _answer(author, position, key, stops)
        end = author.stop_ids(stop) if stopped and stop else author.vocabulary.encode(line_end)
        position = author.read(position, end)
        turn += 1


def _answer(
    author: Author, position: Position, key: jax.Array, stops: list[np.ndarray]
) -> tuple[Position, bool]:
    """Write an answer as it is made; returns where it leads, and whether it met a stop string."""
    written = author.write(position, key[None], stops)
    decoder = Decoder(author.vocabulary)
    ids = [position.ids]
    for (piece,) in written:
        ids.append(piece[:, None])
        print(decoder.text(piece), end="", flush=True)
    print(decoder.end(), flush=True)
    return Position(written.text.carry, np.concatenate(ids)), bool(written.stopped[0])


def _line(terminal: bool) -> str | None:
    """The next line, or None at the end of input; asked for only where somebody reads it."""
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n").removesuffix("\r") if line else None


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
