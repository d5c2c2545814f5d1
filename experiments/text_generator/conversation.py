"""A conversation with a model: `generate --interactive`."""

import sys

import jax
import numpy as np

from experiments.text_generator.author import Author, Decoder, Position
from experiments.text_generator.data import encode

_HELP = "each line is answered; /reset forgets the conversation, /quit or end of input ends it"


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
    start = author.read(author.start(), encode(author.vocabulary, prime, "the prime text"))
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
            _note("nothing is left of this line, and there is no text to go on from")
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
