"""Reading ONNX files that nobody vouches for: what they declare is checked, then believed."""

import importlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.files import in_a_line, package

# By TensorProto.DataType.
_TYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_EXTERNAL = 1  # TensorProto.DataLocation
TENSOR, GRAPH = 4, 5  # AttributeProto.AttributeType


def import_onnx() -> Any:
    """The package, which is needed for nothing but files of its format."""
    return package("onnx", "ONNX models", "onnx")


def read_model(source: Any) -> tuple[Any, pathlib.Path | None]:
    """The model as a message of its own, and the folder in which external data may lie."""
    onnx = import_onnx()
    model, folder = onnx.ModelProto(), None
    if isinstance(source, onnx.ModelProto):
        model.CopyFrom(source)
        return model, None
    if isinstance(source, bytes | bytearray | memoryview):
        content, where = bytes(source), "the bytes given"
    elif isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        folder, where = path.parent, str(path)
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            reason = getattr(error, "strerror", None) or error
            raise InteropError(
                f"cannot read {path}: {reason}; give the path of an .onnx file"
            ) from None
    else:
        raise InvalidInputError(
            f"source must be a path, bytes, or an onnx.ModelProto, but is a {type(source).__name__}"
        )
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model.ParseFromString(content)
    except (decode_error, RuntimeError, ValueError, RecursionError):
        model.Clear()
    if not model.HasField("graph"):
        raise InteropError(
            f"{where} holds no whole ONNX graph; it may be cut off, or a model of another format"
        )
    return model, folder


def dtype_of(data_type: Any, what: str) -> np.dtype[Any]:
    """The type with that number in ONNX; ``what`` has it, for the error."""
    if data_type not in _TYPES:
        raise InteropError(
            f"{what} is of ONNX's data type {data_type}, which is not read here; these are: "
            f"{', '.join(_TYPES.values())}"
        )
    return jnp.dtype(_TYPES[data_type])


def holders(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What holds an array in a graph and inside of its nodes, by the name of the value."""
    for tensor in graph.initializer:
        yield prefix + text(tensor.name), tensor
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == GRAPH:
                yield from holders(attribute.g, inside(prefix, i, attribute.name))
            elif node.op_type == "Constant" and node.output:
                yield prefix + text(node.output[0]), attribute


def inside(prefix: str, place: int, attribute: str) -> str:
    """What stands before the names in a graph inside of a node; no two graphs have the same."""
    return f"{prefix}{place}.{attribute}/"


def text(name: Any) -> str:
    """The name of a value, which may be any bytes."""
    if not isinstance(name, str):  # bytes that are no UTF-8
        raise InteropError(f"the name {name!r} of a value is no text")
    return name


def read_array(holder: Any, folder: pathlib.Path | None, what: str) -> np.ndarray:
    """The array of a ``TensorProto`` or of an attribute; data that lie in the folder are put in.

    Nothing is allocated for numbers that are not there: shape and type have to account for every
    byte present.
    """
    onnx = import_onnx()
    tensor = holder if isinstance(holder, onnx.TensorProto) else holder.t
    if tensor is not holder and holder.type != TENSOR:
        if holder.name.removesuffix("s") not in ("value_float", "value_int"):
            raise InteropError(f"{what} is neither numbers nor an array, which is not read here")
        value = onnx.helper.get_attribute_value(holder)
        return np.asarray(value, np.float32 if "float" in holder.name else np.int64)
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
        array: np.ndarray = onnx.numpy_helper.to_array(tensor)
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
    try:
        path = folder / name
        odd = path.name != name or "\\" in name or ":" in name
        if odd or path.is_symlink() or not path.is_file():
            raise ValueError("it is no plain file beside the model")
        offset, length = (int(entries.get(k, n)) for k, n in (("offset", 0), ("length", size)))
        # O_NOFOLLOW: a link could lead out of the folder. Not every system has it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            there = os.fstat(descriptor).st_size
            if offset < 0 or length != size or offset + length > there:
                raise ValueError(f"{length} bytes from {offset} of {there} are not its {size}")
            file.seek(offset)
            return file.read(length)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or in_a_line(error)
        raise InteropError(
            f"{what} lies in {name!r}, which cannot be read: {reason}; save the model with its "
            "data in one file"
        ) from None
