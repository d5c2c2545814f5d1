"""From a corpus to the ids of its text, in pieces, so that a long text does not fill the memory."""

import codecs
import dataclasses
import hashlib
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from experiments.shared.corpora import CorpusError, UndecodableError, corpus_pieces, file_pieces
from experiments.text_generator.config import Text
from rnnjax.errors import InvalidInputError
from rnnjax.text.vocabulary import ByteVocabulary, Vocabulary, plain_lines
from rnnjax.training.processes import is_first

AnyVocabulary = Vocabulary | ByteVocabulary
Source = str | os.PathLike[str]
Piece = TypeVar("Piece", str, bytes)


@dataclasses.dataclass(frozen=True, eq=False)
class ReadText:
    """A text as ids.

    Attributes:
        ids: of its characters, or its bytes, in the narrowest type that holds the vocabulary.
        vocabulary: what they mean.
        digest: the SHA-256 of the cleaned text, to notice that it changed.
        characters: of the text before it was cleaned; where it is bytes, these.
        dropped: those of them, except white space, that the vocabulary has not.
    """

    ids: np.ndarray
    vocabulary: AnyVocabulary
    digest: str
    characters: int
    dropped: int = 0

    @property
    def dropped_share(self) -> float:
        """The share of the characters that was dropped."""
        return self.dropped / max(1, self.characters)

    @property
    def dropped_note(self) -> str:
        """A sentence on what was dropped, if anything was, to follow another."""
        if not self.dropped:
            return ""
        return (
            f"; {self.dropped:,} of the {self.characters:,} characters of the whole text "
            f"({self.dropped_share:.2%}) were dropped before, because the model does not know them"
        )


def read_text(options: Text, known: AnyVocabulary | None = None) -> ReadText:
    """Read and clean a text.

    Args:
        options: which text, in which characters.
        known: the vocabulary; by default that of the options, which may be learned from the text.

    Raises:
        InvalidInputError: nothing is left of the text, or ``known`` lacks a character of it.
        CorpusError: there is no such text, or it cannot be read.
    """
    source, kind = options.corpus, options.vocabulary
    if kind == "bytes":
        data = text_bytes(source, options.encoding, strip_licence=options.strip_licence)
        ids = np.frombuffer(data, np.uint8)
        return ReadText(ids, ByteVocabulary(), hashlib.sha256(data).hexdigest(), len(ids))
    came, kept, digest, pieces = _Counts(), _Counts(), hashlib.sha256(), deque[bytes]()
    whole = _told(
        corpus_pieces(source, strip_licence=options.strip_licence, encoding=options.encoding),
        source,
    )
    for piece in kept.counted(cleaned_pieces(came.counted(whole), kind)):
        # In UTF-8, because a str with one emoji takes four bytes for each of its characters.
        pieces.append(piece.encode("utf-8", "surrogatepass"))
        digest.update(pieces[-1])
    vocabulary = vocabulary_of(kept.characters(), kind) if known is None else known
    require_known(vocabulary, kept.characters(), source)
    ids, end = np.empty(kept.total, narrowest(len(vocabulary))), 0
    while pieces:  # each is let go as its ids are there
        piece = pieces.popleft().decode("utf-8", "surrogatepass")
        begin, end = end, end + len(piece)
        ids[begin:end] = vocabulary.encode(piece)
    return ReadText(ids, vocabulary, digest.hexdigest(), came.total, came.dropped(kind))


def text_bytes(source: Source, encoding: str = "utf-8", *, strip_licence: bool = False) -> bytes:
    """The UTF-8 form of a text; of a file that is not UTF-8, though it should be, its bytes."""
    text = corpus_pieces(source, strip_licence=strip_licence, encoding=encoding)
    try:
        return b"".join(piece.encode("utf-8", "surrogatepass") for piece in _told(text, source))
    except UndecodableError:
        if strip_licence or codecs.lookup(encoding).name != "utf-8":
            raise
        return b"".join(_told(file_pieces(Path(source)), source))


def dropped_of(text: str, vocabulary: str) -> int:
    r"""How many characters of a text, except white space, a choice of vocabulary leaves out.

    >>> dropped_of("naïve*\n", "tutorial"), dropped_of("naïve*\n", "lines")
    (2, 1)
    """
    counts = _Counts()
    for _ in counts.counted([text]):
        pass
    return counts.dropped(vocabulary)


def cleaned_as(text: str, vocabulary: str) -> str:
    """The text as a choice of vocabulary has it, of which perhaps nothing is left."""
    return "".join(cleaned_pieces([text], vocabulary))


def cleaned_pieces(pieces: Iterable[str], vocabulary: str) -> Iterator[str]:
    r"""A text in pieces, each cleaned as if the text were whole.

    >>> list(cleaned_pieces(["So *", " it", " was"], "tutorial"))
    ['So ', 'it', ' was']
    >>> list(cleaned_pieces(["So ", "it\n\nWA", "S\n"], "lines"))
    ['so it', ' was']
    """
    if vocabulary == "tutorial":
        known, last = Vocabulary.tutorial(), ""
        for piece in pieces:
            # A run of spaces may reach over the end of a piece.
            text = known.clean(piece)
            text = text.removeprefix(" ") if last == " " else text
            if text:
                yield text
                last = text[-1]
    elif vocabulary == "lines":
        unfinished, space = "", ""
        for piece in itertools.chain(pieces, ["\n"]):
            lines, _, unfinished = (unfinished + piece).rpartition("\n")
            if text := plain_lines(lines):
                yield space + text
                space = " "
    else:
        yield from pieces


def vocabulary_of(characters: str, vocabulary: str) -> AnyVocabulary:
    """The vocabulary of a cleaned text that has these characters."""
    if not (characters.strip() if vocabulary == "tutorial" else characters):
        raise InvalidInputError(
            f"the text must have characters that --vocabulary {vocabulary} keeps, but has none; "
            "use --vocabulary learned"
        )
    return Vocabulary.tutorial() if vocabulary == "tutorial" else Vocabulary.learned(characters)


def require_known(vocabulary: AnyVocabulary, text: Iterable[str], name: Source) -> None:
    """Raise InvalidInputError if a text, which the user knows by a name, has other characters."""
    known = None if isinstance(vocabulary, ByteVocabulary) else set(vocabulary.characters)
    unknown = [] if known is None else [c for c in dict.fromkeys(text) if c not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InvalidInputError(
            f"{name} must be of characters that the model was trained on, but has "
            f"{', '.join(map(repr, unknown[:5]))}{more}; leave them out"
        )


def require_there(corpus: str) -> None:
    """Raise CorpusError if the text of a run is a file that is not there any more."""
    path = Path(corpus).absolute()
    if corpus not in ("alice", "python-docs") and not path.exists():
        raise CorpusError(
            f"the text of the run must be where it says, but there is no file {path}; name the new "
            "place of that text by --corpus"
        )


def narrowest(size: int) -> type[np.integer]:
    """The type in which the ids of a vocabulary take the least memory.

    >>> [narrowest(size).__name__ for size in (256, 257, 65_536, 65_537)]
    ['uint8', 'uint16', 'uint16', 'int32']
    """
    return np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int32


class _Counts:
    """How often each character occurs in a text that comes in pieces."""

    def __init__(self) -> None:
        self._counts = np.zeros(sys.maxunicode + 1, np.int64)

    def counted(self, pieces: Iterable[str]) -> Iterator[str]:
        """Count pieces as they pass."""
        for piece in pieces:
            points = piece.encode("utf-32-le", "surrogatepass")  # a lone surrogate is a character
            found = np.bincount(np.frombuffer(points, "<u4"))
            self._counts[: len(found)] += found
            yield piece

    @property
    def total(self) -> int:
        """The length of the text."""
        return int(self._counts.sum())

    def characters(self) -> str:
        """The distinct characters, in the order of Unicode."""
        return "".join(map(chr, np.flatnonzero(self._counts)))

    def dropped(self, vocabulary: str) -> int:
        """How many of these, except white space, a choice of vocabulary leaves out."""
        lost = (c for c in self.characters() if not (c.isspace() or cleaned_as(c, vocabulary)))
        return sum(int(self._counts[ord(c)]) for c in lost)


def _told(pieces: Iterable[Piece], source: Source) -> Iterator[Piece]:
    """Pass pieces on, and say after 1, 2, 4 ... seconds how far the reading is."""
    began, pause, done = time.monotonic(), 1.0, 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if time.monotonic() - began > pause:
            pause *= 2
            if is_first():
                unit = "byte" if isinstance(piece, bytes) else "character"
                print(f"reading {source}: {done:,} {unit}s so far", file=sys.stderr, flush=True)
