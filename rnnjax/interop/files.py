"""Files: what they are, which packages know them, and how they are written, whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from rnnjax.errors import InteropError

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
TORCH_STREAM = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file that torch.save wrote before PyTorch 1.6, after its protocol."""


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
            "a TorchScript program, whose code is not run; load it in PyTorch, and save its "
            "parameters: torch.save(module.state_dict(), 'model.pt')"
        )
    if "data.pkl" in inside or start[2:].startswith(TORCH_STREAM):
        return "a file of torch.save; call rnnjax.interop.torch.load"
    if start[8:10] == b'{"':
        return "a .safetensors file; call rnnjax.interop.torch.load"
    if start.startswith(HDF5) or "config.json" in members:
        return "a model of Keras; call rnnjax.interop.keras.load"
    return None


def package(name: str, what: str, extra: str) -> Any:
    """The package that ``what`` needs, which is in an extra of ours."""
    try:
        return __import__(name)
    except ImportError as error:
        raise InteropError(
            f"{what} need the package {name}, which is not installed; run pip install "
            f"'rnnjax[{extra}]'"
        ) from error


def in_a_line(error: BaseException) -> str:
    """Return the message of an error in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Put a file in the place of ``path`` in one move; whatever fails, an old one stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/model.onnx", b"bytes")
    ...     os.listdir(folder)
    ['model.onnx']
    """
    path = pathlib.Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(content)
        new.replace(path)
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        said = getattr(error, "strerror", None) or error
        raise InteropError(
            f"{path} cannot be written: {said}; check the name, the folder and its free space"
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            new.unlink(missing_ok=True)
