"""Files: the packages that know their formats, and how they are written whole or not at all."""

import contextlib
import os
import pathlib
from typing import Any

from rnnjax.errors import InteropError


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
    """What an error says."""
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
