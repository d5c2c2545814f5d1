"""Files: what they are, which packages know them, and how they are written, whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rnnjax.checks import check_instance
from rnnjax.checks import package as package
from rnnjax.errors import InteropError, InvalidInputError

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
TORCH_STREAM = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What begins a file that torch.save wrote before PyTorch 1.6, after the head of a pickle."""


def describe(start: bytes, members: Sequence[str] = ()) -> str | None:
    """A file in words, by its first bytes and the members of an archive; None if it is unknown.

    >>> describe(bytes(4) + b"TFL3")[:15]
    'a TFLite model,'
    """
    inside = {member.partition("/")[2] for member in members}
    if start[4:8] == b"TFL3":
        return "a TFLite model, which is compiled; load the Keras model that it was converted from"
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return (
            "a TorchScript program; load it in PyTorch, and torch.save(module.state_dict(), path)"
        )
    if "data.pkl" in inside or TORCH_STREAM in start:
        return "a file of torch.save; call rnnjax.interop.torch.load"
    if start[8:10] == b'{"':
        return "a .safetensors file; call rnnjax.interop.torch.load"
    if start.startswith(HDF5) or "config.json" in members:
        return "a model of Keras; call rnnjax.interop.keras.load"
    archive = "an archive, as PyTorch and Keras write them; call rnnjax.interop.load"
    return archive if start.startswith(b"PK") else None


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for reading; errors about what is in it then name it."""
    check_path(path)
    try:
        file = pathlib.Path(path).open("rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        said = getattr(error, "strerror", None) or error
        raise InteropError(f"{path} cannot be read: {said}; check the path") from error
    try:
        with file:
            yield file
    except (InteropError, OSError) as error:
        raise InteropError(f"{path} cannot be loaded: {error}") from error


def check_path(path: Any, *suffixes: str) -> None:
    """Raise InvalidInputError unless it is a path, whose name ends in one of the suffixes."""
    check_instance("path", path, str | os.PathLike, "the name of a file")
    if suffixes and not (name := pathlib.Path(path).name).endswith(suffixes):
        ends = " or ".join(suffixes)
        raise InvalidInputError(
            f"the name of the file should end in {ends}, but is {name!r}; rename it"
        )


def in_a_line(error: BaseException) -> str:
    """Return the message of an error in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def write_whole(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Put a file in the place of ``path`` in one move; whatever fails, an old one stays.

    Processes and threads may write one path at once: the last one's file stays. A process that is
    killed can leave ``.NAME.XXXXXXXXXXXXXXXX.new`` beside it, which nothing reads: delete it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/model.onnx", b"bytes")
    ...     os.listdir(folder)
    ['model.onnx']
    """
    path = pathlib.Path(path)
    # Not by `tempfile`, whose files nobody else may read, whatever the umask says.
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with new.open("xb") as file:
            file.writelines(parts)
        new.replace(path)
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        said = getattr(error, "strerror", None) or error
        raise InteropError(
            f"{path} cannot be written: {said}; check the name, the folder and its free space"
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            new.unlink(missing_ok=True)
