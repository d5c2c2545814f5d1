"""The vocabulary of RWKV's "World" models, a text file beside the .pth."""

import ast
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnnjax import InvalidInputError

_LARGEST = 2**26  # bytes; the authors' file has about a million


class WorldVocabulary:
    r"""Tokens of bytes: a text is cut from its start into the longest ones that there are.

    Id 0 is the end of a text. It is not in the file, and decodes to nothing.

    Args:
        path: ``rwkv_vocab_v20230424.txt``. A line has an id, the token as text or bytes of Python,
            and its number of bytes; each byte alone is a token.

    Raises:
        InvalidInputError: it is no such file.

    Example:
        >>> import tempfile
        >>> lines = [f"{i + 1} {bytes([i])} 1\n" for i in range(256)] + ["257 'né' 3\n"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "vocabulary.txt")
        ...     _ = path.write_text("".join(lines), encoding="utf-8")
        ...     vocabulary = WorldVocabulary(path)
        >>> vocabulary.encode("néné!").tolist(), vocabulary.decode([257, 34, 0])
        ([257, 257, 34], 'né!')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._tokens, self._ids = {0: b""}, {b"": 0}
        try:
            with Path(path).open("rb") as file:
                lines = file.read(_LARGEST).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{path} cannot be read ({error}); give rwkv_vocab_v20230424.txt, which is beside "
                "the .pth files of its authors"
            ) from error
        for number, line in enumerate(lines, 1):
            token_id, token = _entry(line)
            if token_id in self._tokens or token in self._ids:
                raise InvalidInputError(
                    f"line {number} of {path} must be a new id, a new token and its bytes, as in "
                    f"258 '\\n\\n' 2, but is {line[:80]!r}; give rwkv_vocab_v20230424.txt"
                )
            self._tokens[token_id], self._ids[token] = token, token_id
        if missing := [i for i in range(256) if bytes([i]) not in self._ids]:
            raise InvalidInputError(
                f"{path} must have a token for each byte, but has none for {missing[0]}; give a "
                "whole rwkv_vocab_v20230424.txt"
            )
        sizes: dict[int, set[int]] = {i: set() for i in range(256)}
        for token in self._ids.keys() - {b""}:
            sizes[token[0]].add(len(token))
        self._sizes = {first: sorted(found, reverse=True) for first, found in sizes.items()}

    def __len__(self) -> int:
        return 1 + max(self._tokens)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of the tokens of a text, int32, shape `(tokens,)`."""
        data, at, ids = text.encode("utf-8", "surrogateescape"), 0, []
        while at < len(data):
            sizes = self._sizes[data[at]]
            token = next(x for x in (data[at : at + n] for n in sizes) if x in self._ids)
            ids.append(self._ids[token])
            at += len(token)
        return np.array(ids, np.int32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids; those without a token, and bytes of no text, become U+FFFD."""
        unknown = "\ufffd".encode()
        found = (self._tokens.get(int(i), unknown) for i in np.asarray(ids).ravel())
        return b"".join(found).decode("utf-8", "replace")

    restore = decode  # no token is special


def _entry(line: str) -> tuple[int, bytes]:
    """Return the id and the token of a line; the empty token of id 0 if it has none."""
    first, _, rest = line.partition(" ")
    literal, _, size = rest.rpartition(" ")
    try:
        token = ast.literal_eval(literal)  # no code of the file is run
        token = token.encode() if isinstance(token, str) else token
        if isinstance(token, bytes) and len(token) == int(size) and 0 < int(first) < 2**31:
            return int(first), token
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    return 0, b""
