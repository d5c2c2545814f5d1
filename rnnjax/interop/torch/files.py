"""Named arrays in ``.safetensors`` files, and the index of several files."""

import json
import mmap
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.files import check_path, describe, in_a_line, package, write_whole

# NumPy has no bfloat16 of its own, and the package's reader for NumPy none therefore.
DTYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_LONGEST_HEADER = 10 * 2**20  # some hundred thousand arrays; parsed, it is several times as large


def read_arrays(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a ``.safetensors`` file, in the order of their names, and its metadata.

    The arrays are views of the file, of which nothing is read yet. Nothing is allocated by the
    sizes that it states: they are compared with its length.
    """
    safe_open = package("safetensors", "files in .safetensors", "safetensors").safe_open
    file.seek(0)
    start, length = file.read(16), file.seek(0, os.SEEK_END)
    _check_header(start, length)
    begin = 8 + int.from_bytes(start[:8], "little")
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        with safe_open(file.name, "numpy"):  # which compares all that the header says
            header = json.loads(content[8:begin])
    except Exception as error:  # the package's own error, which is no class of Python's
        raise InteropError(f"it is damaged ({in_a_line(error)}); get it again") from error
    metadata, data, arrays = header.pop("__metadata__", {}), memoryview(content)[begin:], {}
    for name, entry in sorted(header.items()):
        if entry["dtype"] not in DTYPES:
            raise InteropError(
                f"{name[:80]!r} is of type {entry['dtype']}, but should be one of "
                f"{', '.join(DTYPES)}; convert it before it is saved"
            )
        flat = np.frombuffer(data[slice(*entry["data_offsets"])], np.dtype(DTYPES[entry["dtype"]]))
        try:
            arrays[name] = flat.reshape(entry["shape"])
        except ValueError as error:  # more axes, or longer ones, than NumPy has
            raise InteropError(
                f"{name[:80]!r} has a shape that no array has ({in_a_line(error)}); get it again"
            ) from error
    return arrays, metadata


def read_index(path: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """The file of each array that an index names, which lies beside it."""
    path = pathlib.Path(path)
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InteropError(
            f"it is no index: it should be JSON with a weight_map from names to files "
            f"({in_a_line(error)}); get it again"
        ) from error
    for file in {str(file) for _, file in weight_map}:
        if set(file) & set("/\\:\0") or not file.strip(".") or ".json" in file:
            raise InteropError(
                f"it names {file[:80]!r}, but should name files of arrays in its own folder; get "
                "it again"
            )
    return {name: path.parent / str(file) for name, file in weight_map}


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Any = None
) -> None:
    """Write named arrays; a file of that name is replaced, and only by a whole one.

    The same arrays and metadata give the same bytes.
    """
    check_path(path, ".safetensors")
    package("safetensors", "files in .safetensors", "safetensors")
    from safetensors.numpy import save

    content = memoryview(save(dict(arrays), {"format": "pt", **(metadata or {})}))
    begin = 8 + int.from_bytes(content[:8], "little")
    # The package has the metadata in the order of a hash map, whose seed is random.
    header = json.dumps(json.loads(bytes(content[8:begin])), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # so that the arrays are aligned
    write_whole(path, len(header).to_bytes(8, "little"), header, content[begin:])


def _check_header(start: bytes, length: int) -> None:
    """What the package does not say plainly: other formats, and headers that would take memory."""
    size, what = int.from_bytes(start[:8], "little"), describe(start)
    if what and start[8:9] != b"{":
        raise InteropError(f"it is {what}")
    if length < 10 or size > length - 8 or start[8:9] != b"{":
        raise InteropError(
            f"it is no .safetensors file, or not a whole one, and none that torch.save wrote since "
            f"2018: its {length} bytes do not begin with a header that fits in; get it again"
        )
    if size > _LONGEST_HEADER:
        raise InteropError(
            f"its header has {size} bytes, but at most {_LONGEST_HEADER} are read; split the file"
        )
