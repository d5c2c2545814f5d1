"""Reading ONNX files that nobody vouches for: what they declare is checked, then believed."""

import importlib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.whole import package

# By TensorProto.DataType: the type, and the field that holds the numbers where raw_data does not.
_TYPES: Mapping[int, tuple[Any, str]] = {
    1: (np.float32, "float_data"),
    2: (np.uint8, "int32_data"),
    3: (np.int8, "int32_data"),
    4: (np.uint16, "int32_data"),
    5: (np.int16, "int32_data"),
    6: (np.int32, "int32_data"),
    7: (np.int64, "int64_data"),
    9: (np.bool_, "int32_data"),
    10: (np.float16, "int32_data"),
    11: (np.float64, "double_data"),
    12: (np.uint32, "uint64_data"),
    13: (np.uint64, "uint64_data"),
    16: (ml_dtypes.bfloat16, "int32_data"),
    17: (ml_dtypes.float8_e4m3fn, "int32_data"),
    18: (ml_dtypes.float8_e4m3fnuz, "int32_data"),
    19: (ml_dtypes.float8_e5m2, "int32_data"),
    20: (ml_dtypes.float8_e5m2fnuz, "int32_data"),
}
_TYPE_NAMES = ", ".join(np.dtype(dtype).name for dtype, _ in _TYPES.values())
_EXTERNAL = 1  # TensorProto.DataLocation


def import_onnx() -> Any:
    """The package, which is needed for nothing but files of its format."""
    return package("onnx", "ONNX models", "onnx")


def read_model(source: Any) -> tuple[Any, pathlib.Path | None]:
    """The model as a message of its own, and the folder beside which external data may lie."""
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model, None
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(onnx, bytes(source), "the bytes given"), None
    if not isinstance(source, str | os.PathLike):
        raise InvalidInputError(
            f"source must be a path, bytes, or an onnx.ModelProto, but is a {type(source).__name__}"
        )
    path = pathlib.Path(source)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise InteropError(
            f"cannot read {path}: {reason}; give the path of an .onnx file"
        ) from None
    return _parse(onnx, content, str(path)), path.parent


def _parse(onnx: Any, content: bytes, where: str) -> Any:
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (decode_error, RuntimeError, ValueError, RecursionError):
        raise InteropError(
            f"{where} is not a whole ONNX model; it may be cut off or of another format"
        ) from None
    if not model.HasField("graph"):
        raise InteropError(f"{where} holds no ONNX graph; is it a model of another format?")
    return model


def dtype_of(data_type: int, what: str) -> np.dtype[Any]:
    """The type with that number in ONNX; ``what`` has it, for the error."""
    if data_type not in _TYPES:
        raise InteropError(
            f"{what} is of ONNX's data type {data_type}, which is not read here; these are: "
            f"{_TYPE_NAMES}"
        )
    return np.dtype(_TYPES[data_type][0])


def read_tensor(tensor: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a ``TensorProto``; a file with external data may lie in the folder.

    Nothing is allocated for numbers that are not there: shape and type have to account for every
    byte present.
    """
    dtype = dtype_of(tensor.data_type, what)
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or tensor.HasField("segment"):
        raise InteropError(f"{what} is damaged: its shape is {list(shape)}")
    count = math.prod(shape)
    if tensor.data_location == _EXTERNAL:
        raw = _external(tensor, folder, count * dtype.itemsize, what)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _typed(tensor, dtype, shape, count, what)
    if len(raw) != count * dtype.itemsize:
        raise InteropError(
            f"{what} is damaged: {dtype.name}{list(shape)} takes {count * dtype.itemsize} bytes, "
            f"but {len(raw)} are there"
        )
    return _filled(np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype), shape, what)


def _typed(
    tensor: Any, dtype: np.dtype[Any], shape: tuple[int, ...], count: int, what: str
) -> np.ndarray:
    numbers: Any = getattr(tensor, _TYPES[tensor.data_type][1])
    if len(numbers) != count:
        raise InteropError(
            f"{what} is damaged: {dtype.name}{list(shape)} takes {count} numbers, but "
            f"{len(numbers)} are there"
        )
    if dtype.kind in "iub":
        return _filled(_integers(numbers, dtype, what), shape, what)
    if dtype.itemsize < 4:  # bits in the place of integers
        bits = np.dtype(f"u{dtype.itemsize}")
        return _filled(_integers(numbers, bits, what).view(dtype), shape, what)
    return _filled(np.array(numbers, dtype), shape, what)


def _integers(numbers: Any, dtype: Any, what: str) -> np.ndarray:
    # The fields of ONNX are of 32 or 64 bits, so that the numbers may be too large for the type.
    if min(numbers, default=0) < 0 and np.dtype(dtype).kind == "u":
        raise InteropError(f"{what} is damaged: it has negative numbers, but is {np.dtype(dtype)}")
    wide = np.array(numbers, np.uint64 if np.dtype(dtype).kind == "u" else np.int64)
    narrow = wide.astype(dtype)
    if not np.array_equal(narrow.astype(wide.dtype), wide):
        raise InteropError(f"{what} is damaged: it has numbers that {np.dtype(dtype)} cannot hold")
    return narrow


def _filled(array: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        if math.prod(max(1, size) for size in shape) > 2**48:  # beside a size of 0
            raise ValueError
        return array.reshape(shape)
    except ValueError:  # more axes than NumPy has, or sizes beside a zero that overflow
        raise InteropError(f"{what} is damaged: its shape is {list(shape)[:8]}") from None


def _external(tensor: Any, folder: pathlib.Path | None, size: int, what: str) -> bytes:
    """The bytes of a tensor from a file beside the model's, which could name any other."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if folder is None:
        raise InteropError(
            f"{what} lies in another file, {name!r}, and a model that is given as bytes or as a "
            "message has none beside it; give the path of the .onnx file"
        )
    if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", ":", "\0")):
        raise InteropError(
            f"{what} lies in {name!r}, but only a file beside the model's is read; save the model "
            "with its data in one file"
        )
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", size))
    except ValueError:
        raise InteropError(f"{what} is damaged: {entries} is no place in a file") from None
    path = folder / name
    try:
        # O_NOFOLLOW: a link could lead out of the folder. Not every system has it.
        if path.is_symlink() or not path.is_file():
            raise InteropError(f"{what} lies in {name!r}, which is no plain file beside the model")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            there = os.fstat(descriptor).st_size
            if offset < 0 or length != size or offset + length > there:
                raise InteropError(
                    f"{what} should be {size} bytes of {name!r}, but the model gives it {length} "
                    f"bytes from {offset} of {there}"
                )
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise InteropError(f"cannot read {name!r}, where {what} lies: {error.strerror}") from None
