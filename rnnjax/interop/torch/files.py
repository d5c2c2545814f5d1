"""Named arrays in a ``.safetensors`` file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.whole import write_whole

# NumPy has no bfloat16 of its own, and the package's reader for NumPy none therefore.
_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LONGEST_HEADER = 10 * 2**20  # some hundred thousand arrays; parsed, it is several times as large


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors`` file by name.

    The file is recognised by its content. Nothing is allocated by the sizes that it states: it is
    read as far as it goes, and what it states is compared with that.

    Raises:
        InvalidInputError: ``path`` is no path.
        InteropError: there is no such file, the package safetensors is missing, the file is a
            pickle or another format, is damaged, or holds a type that is not known here.
    """
    _check_path(path)
    deserialize = _package().deserialize
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        said = getattr(error, "strerror", None) or error
        _refuse(path, f"it cannot be read: {said}; check the path", error)
    _check_header(path, content)
    try:
        entries = deserialize(content)
    except Exception as error:  # the package's own error, which is no class of Python's
        _refuse(path, f"it is damaged ({_short(error)}); get it again", error)
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            _refuse(
                path,
                f"{name[:80]!r} is of type {entry['dtype']}, which is none of {', '.join(_DTYPES)};"
                " convert it before it is saved",
            )
        flat = np.frombuffer(entry["data"], np.dtype(_DTYPES[entry["dtype"]]))
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; a file of that name is replaced, and only by a whole one.

    Raises:
        InvalidInputError: ``path`` is no path, or does not end in ``.safetensors``.
        InteropError: the package safetensors is missing, or the file cannot be written.
    """
    _check_path(path)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InvalidInputError(
            f"the name of the file should end in .safetensors, but is {path.name!r}; rename it"
        )
    _package()
    from safetensors.numpy import save

    write_whole(path, save(dict(arrays), {"format": "pt"}))


def _check_path(path: Any) -> None:
    """Raise InvalidInputError unless it is a path."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path should be the name of a file, but is {type(path)}")


def _package() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise InteropError(
            "files in .safetensors need the package safetensors, which is not installed; "
            "pip install 'rnnjax[safetensors]'"
        ) from error
    return safetensors


def _check_header(path: str | os.PathLike[str], content: bytes) -> None:
    """What the package does not say, or not plainly: other formats, and names that occur twice."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 10 or size > len(content) - 8 or content[8:9] != b"{":
        _refuse_other(path, content)
    if size > _LONGEST_HEADER:
        _refuse(path, f"its header has {size} bytes, more than {_LONGEST_HEADER}; split the file")
    twice: list[str] = []

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(entries)
        if len(found) != len(entries):
            names = [name for name, _ in entries]
            twice.append(next(name for i, name in enumerate(names) if name in names[:i]))
        return found

    try:
        json.loads(content[8 : 8 + size].decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is damaged ({_short(error)}); get it again", error)
    if twice:
        _refuse(path, f"its header names {twice[0][:80]!r} twice; save it again")


def _refuse_other(path: str | os.PathLike[str], content: bytes) -> NoReturn:
    zipped = content[:4] == b"PK\x03\x04"
    # The zip that torch.save writes holds data.pkl; before 2020 it wrote a bare pickle.
    if (zipped and b"data.pkl" in content) or (content[:1] == b"\x80" and content[1:2] <= b"\x05"):
        _refuse(
            path,
            "it is a pickle of PyTorch, which is never loaded here, because loading one can run "
            "any code; convert it where PyTorch is installed: "
            f"state = torch.load({str(path)!r}, weights_only=True); safetensors.torch.save_file("
            'state, "model.safetensors")',
        )
    if zipped:
        _refuse(path, "it is a zip, not a .safetensors file; check which file it is")
    _refuse(
        path,
        f"it is no .safetensors file, or a damaged one: {len(content)} bytes that do not begin "
        "with a header that fits in; get it again, or check which file it is",
    )


def _refuse(path: str | os.PathLike[str], why: str, error: BaseException | None = None) -> NoReturn:
    raise InteropError(f"{path} cannot be loaded: {why}") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
