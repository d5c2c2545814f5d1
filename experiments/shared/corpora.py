"""Texts to learn from: by name, or from a file."""

import codecs
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pooch

from rnnjax.errors import RnnjaxError
from rnnjax.training.files import write_whole

ALICE_URL = "https://www.gutenberg.org/cache/epub/11/pg11.txt"
"""Alice's Adventures in Wonderland by Lewis Carroll, Project Gutenberg #11."""

_PIECE = 2**20  # bytes that are read, or characters that are handed on, at a time


class CorpusError(RnnjaxError):
    """A text that could not be found, downloaded, verified or decoded."""


class UndecodableError(CorpusError):
    """A file whose bytes are not text in the encoding that it should have."""


def load_corpus(
    source: str | os.PathLike[str], *, strip_licence: bool = False, encoding: str = "utf-8"
) -> str:
    r"""Return the text of a corpus.

    Args:
        source: "alice" (Project Gutenberg #11, downloaded once, to the folder that the environment
            variable `RNNJAX_CACHE` names, or else to the user's cache of the operating system),
            "python-docs" (the documentation that ships inside CPython), or the path of a text
            file, whose byte-order mark is dropped. Line ends become `\n`. A file that bears
            the name of a corpus can be given as a `Path`.
        strip_licence: keep only what lies between the lines `*** START OF ... ***` and
            `*** END OF ... ***` of a Project Gutenberg text (to the end, if there is no END).
        encoding: of a text file, by a name that Python knows.

    Returns:
        The text, at least one character before the licence is stripped.

    Raises:
        CorpusError: the source is neither a corpus nor a readable, non-empty file in that
            encoding; the download failed; or there is no licence.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "poem.txt")
        ...     _ = path.write_bytes(b"*** START OF THE POEM ***\r\nHow doth\r\n")
        ...     load_corpus(path, strip_licence=True)
        'How doth\n'
    """
    return "".join(corpus_pieces(source, strip_licence=strip_licence, encoding=encoding))


def corpus_pieces(
    source: str | os.PathLike[str], *, strip_licence: bool = False, encoding: str = "utf-8"
) -> Iterator[str]:
    """Yield the text that `load_corpus` returns, in pieces: a file is never in memory as a whole.

    A licence alone is looked for in the whole text.
    """
    pieces: Iterable[str]
    if source == "python-docs":
        pieces = [_python_docs()]
    else:
        path, encoding = (_alice(), "utf-8") if source == "alice" else (Path(source), encoding)
        pieces = _decoded(file_pieces(path), str(path), encoding)
    if strip_licence:
        pieces = [_without_licence("".join(pieces), source)]
    for piece in pieces:
        yield from (piece[begin : begin + _PIECE] for begin in range(0, len(piece), _PIECE))


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(
            "the corpus 'python-docs' is pydoc_data.topics of CPython, but this interpreter ships "
            "without it; give another corpus or the path of a text file"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def file_pieces(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces.

    Raises:
        CorpusError: there is no such file, or it cannot be read.
    """
    # Asked first because opening a folder is a PermissionError on Windows.
    if os.path.isdir(path):
        raise CorpusError(
            f"a corpus must be a text file, but {path} is a folder; give a file in it"
        )
    try:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_PIECE), b"")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise CorpusError(
            "a corpus must be 'alice', 'python-docs' or the path of a text file, but no file "
            f"{str(path)!r} exists; check the spelling"
        ) from None
    except OSError as error:
        raise CorpusError(
            f"{path} must be a readable text file, but opening it failed ({error.strerror}); "
            "check its name and permissions"
        ) from None


def _decoded(pieces: Iterable[bytes], origin: str, encoding: str = "utf-8") -> Iterator[str]:
    r"""Decode bytes that come in pieces, without a byte-order mark, and with line ends `\n`."""
    name = encoding.upper()
    try:
        "".encode(encoding)  # of the codecs that are not for text, such as "hex", this is an error
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError:
        raise CorpusError(
            "encoding must be one that Python knows, such as utf-8 or cp1252, but is "
            f"{encoding!r}; check the spelling"
        ) from None
    read, begun, empty, held = 0, False, True, ""
    for piece in itertools.chain(pieces, [b""]):
        try:
            text = held + _next(decoder, piece)
        except UnicodeDecodeError as error:
            # The decoder counts from the first byte of a character that the last piece cut through.
            offset = read + len(piece) - len(error.object) + error.start
            raise UndecodableError(
                f"{origin} must be {name} text, but the byte 0x{error.object[error.start]:02x} at "
                f"offset {offset} is not; convert it to {name}, or name its encoding"
            ) from None
        read += len(piece)
        if not begun:
            # Not "utf-8-sig", which counts the offset of an error from after the byte-order mark.
            begun, text = bool(text), text.removeprefix("\ufeff")
        empty = empty and not text
        # Perhaps the next piece begins with the other half of a line end.
        held = "\r" if piece and text.endswith("\r") else ""
        text = text.removesuffix(held).replace("\r\n", "\n")
        if text:
            yield text
    if empty:
        raise CorpusError(f"{origin} must hold text, but it is empty; give another file")


def _next(decoder: codecs.IncrementalDecoder, piece: bytes) -> str:
    """The text that is known with another piece; the last one is empty."""
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeError:  # from Python 3.13 on a UnicodeDecodeError in either case
        if getattr(decoder, "decoder", "known") is not None:
            raise
        # UTF-16 or UTF-32 without a byte-order mark: in the machine's order, as `bytes.decode` has
        # it.
        decoder.setstate((decoder.getstate()[0], 0))
        return decoder.decode(piece, final=not piece)


def _without_licence(text: str, source: str | os.PathLike[str]) -> str:
    # A long title is wrapped, so the closing stars may stand a line or two below.
    marker = r"^\*\*\* ?{} OF\b.*?(?:\n.+?){{0,2}}?\*\*\*.*\n?"
    start = re.search(marker.format("START"), text, re.MULTILINE)
    if start is None:
        raise CorpusError(
            f"strip_licence needs a line '*** START OF ... ***', but {os.fspath(source)!r} has "
            "none; leave strip_licence off for a text that is not from Project Gutenberg"
        )
    rest = text[start.end() :]
    end = re.search(marker.format("END"), rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def _alice() -> Path:
    """The file of *Alice*, which is downloaded once; what is cached is whole, and plain text."""
    folder = Path(os.environ.get("RNNJAX_CACHE") or pooch.os_cache("rnnjax")).expanduser()
    path, data = folder / "alice.txt", io.BytesIO()
    if os.path.exists(path):
        return path
    try:
        # The downloader itself, because `pooch.retrieve` logs, and writes to the cache before it
        # knows of success. Unstreamed, because pooch leaves a failed stream's socket open.
        pooch.HTTPDownloader(stream=False)(ALICE_URL, data, None)
        text = "".join(_decoded([data.getvalue()], ALICE_URL))
        if text.lstrip().lower().startswith(("<!doctype html", "<html")):
            raise CorpusError(
                f"{ALICE_URL} must be plain text, but a web page came (perhaps the network's "
                "login); try again, or save the text by hand and give its path"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, data.getvalue())
    except OSError as error:  # as every error of requests is
        response = getattr(error, "response", None)
        reason = type(error).__name__ if response is None else f"HTTP {response.status_code}"
        # `from None`, because the causes are pages of connection pools.
        raise CorpusError(
            f"the download of {ALICE_URL} to {folder} failed ({reason}); check the network, name "
            "another folder by RNNJAX_CACHE, or save the text by hand and give the path of that "
            "file as the corpus"
        ) from None
    return path
