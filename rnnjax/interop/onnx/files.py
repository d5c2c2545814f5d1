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
from rnnjax.interop.files import in_a_line, package

# By TensorProto.DataType.
_TYPES: Mapping[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
    16: ml_dtypes.bfloat16,
}
_EXTERNAL = 1  # TensorProto.DataLocation


def import_onnx() -> Any:
    """The package, which is needed for nothing but files of its format."""
    return package("onnx", "ONNX models", "onnx")


def read_model(source: Any) -> tuple[Any, pathlib.Path | None]:
    """The model as a message of its own, and the folder in which external data may lie."""
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
        names = ", ".join(np.dtype(dtype).name for dtype in _TYPES.values())
        raise InteropError(
            f"{what} is of ONNX's data type {data_type}, which is not read here; these are: {names}"
        )
    return np.dtype(_TYPES[data_type])


def read_tensor(tensor: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a ``TensorProto``; one whose data lie in the folder is given them.

    Nothing is allocated for numbers that are not there: shape and type have to account for every
    byte present.
    """
    dtype, shape = dtype_of(tensor.data_type, what), tuple(tensor.dims)
    # Beyond 2^48 sizes next to one of 0 overflow; NumPy has no more than 64 axes.
    absurd = len(shape) > 64 or math.prod(max(1, size) for size in shape) > 2**48
    if any(size < 0 for size in shape) or tensor.HasField("segment") or absurd:
        raise InteropError(f"{what} is damaged: its shape is {list(shape)[:8]}")
    size = math.prod(shape) * dtype.itemsize
    if tensor.data_location == _EXTERNAL:
        tensor.raw_data = _external(tensor, folder, size, what)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise InteropError(
            f"{what} is damaged: {dtype.name}{list(shape)} takes {size} bytes, but "
            f"{len(tensor.raw_data)} are there"
        )
    try:
        array: np.ndarray = import_onnx().numpy_helper.to_array(tensor)
    except (TypeError, ValueError, OverflowError) as error:
        raise InteropError(f"{what} is damaged: {in_a_line(error)}") from error
    return array


def _external(tensor: Any, folder: pathlib.Path | None, size: int, what: str) -> bytes:
    """The bytes of a tensor from a file in the model's folder, which could name any other."""
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
