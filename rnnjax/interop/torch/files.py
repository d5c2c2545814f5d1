"""Named arrays in a ``.safetensors`` file."""

import json
import os
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

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


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors`` file, in the order of their names.

    Nothing is allocated by the sizes that it states: it is read as far as it goes, and what it
    states is compared with that.
    """
    deserialize = package("safetensors", "files in .safetensors", "safetensors").deserialize
    _check_header(content)
    try:
        entries = deserialize(content)
    except Exception as error:  # the package's own error, which is no class of Python's
        raise InteropError(f"it is damaged ({in_a_line(error)}); get it again") from error
    arrays = {}
    for name, entry in sorted(entries, key=itemgetter(0)):  # the package's is another each time
        if entry["dtype"] not in DTYPES:
            raise InteropError(
                f"{name[:80]!r} is of type {entry['dtype']}, but should be one of "
                f"{', '.join(DTYPES)}; convert it before it is saved"
            )
        flat = np.frombuffer(entry["data"], np.dtype(DTYPES[entry["dtype"]]))
        try:
            arrays[name] = flat.reshape(entry["shape"])
        except ValueError as error:  # more axes, or longer ones, than NumPy has
            raise InteropError(
                f"{name[:80]!r} has a shape that no array has ({in_a_line(error)}); get it again"
            ) from error
    return arrays


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file, whose arrays were read."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
    return header.get("__metadata__", {})


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Any = None
) -> None:
    """Write named arrays; a file of that name is replaced, and only by a whole one."""
    check_path(path, ".safetensors")
    package("safetensors", "files in .safetensors", "safetensors")
    from safetensors.numpy import save

    write_whole(path, save(dict(arrays), {"format": "pt", **(metadata or {})}))


def _check_header(content: bytes) -> None:
    """What the package does not say plainly: other formats, and headers that would take memory."""
    size, what = int.from_bytes(content[:8], "little"), describe(content[:16])
    if what and content[8:9] != b"{":
        raise InteropError(f"it is {what}")
    if len(content) < 10 or size > len(content) - 8 or content[8:9] != b"{":
        raise InteropError(
            f"it is no .safetensors file, or not a whole one, and none that torch.save wrote since "
            f"2018: its {len(content)} bytes do not begin with a header that fits in; get it again"
        )
    if size > _LONGEST_HEADER:
        raise InteropError(
            f"its header has {size} bytes, but at most {_LONGEST_HEADER} are read; split the file"
        )
