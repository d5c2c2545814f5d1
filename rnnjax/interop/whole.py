"""Files that are written whole, or not at all."""

import contextlib
import os
import pathlib

from rnnjax.errors import InteropError


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Put a file in the place of ``path`` in one move; whatever fails, an old one stays.

    Raises:
        InteropError: it cannot be written.

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
