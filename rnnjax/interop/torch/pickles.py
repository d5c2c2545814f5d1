"""What ``torch.save`` writes, read without PyTorch, and without running anything that it holds.

Since PyTorch 1.6 it is a zip of bare entries: ``data.pkl``, a pickle in which each tensor names its
storage, and ``data/0``, ``data/1`` ..., the bytes of the storages. Before that it was one stream:
five pickles, and then the storages.

A pickle is a program for a machine with a stack. The machine here has the steps that make dicts,
lists, tuples, text, numbers and tensors, and the functions in ``_FUNCTIONS``; a name that stands in
no table here is refused and not looked up.
"""

import dataclasses
import functools
import io
import math
import pickletools
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError

# A step makes 100 bytes at most besides its own. A vocabulary of 400,000 words has 1.6 million.
_LONGEST_PICKLE, _MOST_STEPS = 64 * 2**20, 2_000_000
_LONGEST_DIRECTORY = 16 * 2**20  # of a zip: some 200,000 entries
_MOST_AXES = 64  # NumPy's

_DTYPES: Mapping[str, Any] = {
    "torch DoubleStorage": np.float64,
    "torch FloatStorage": np.float32,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": jnp.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
    "torch ComplexDoubleStorage": np.complex128,
    "torch ComplexFloatStorage": np.complex64,
}


class Place(NamedTuple):
    """Where bytes lie in a file; without a checksum in a stream."""

    start: int
    size: int
    checksum: int | None = None


@dataclasses.dataclass(eq=False)
class Storage:
    """Numbers that tensors are views of.

    Attributes:
        key: its name in the file.
        dtype: of the numbers, in the order of bytes of this machine.
        size: how many they are.
        read: gives their bytes, in the order of ``dtype``.
    """

    key: str
    dtype: np.dtype[Any]
    size: int
    read: Callable[["Storage"], np.ndarray]

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Read when they are asked for, and once."""
        return self.read(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in a file, which NumPy makes an array of.

    Attributes:
        storage: whose numbers it shows.
        offset: of its first number there.
        shape: its axes.
        strides: between two entries of each axis, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the array that it becomes, which may be more than its storage has."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        flat = self.storage.numbers[self.offset :]
        strides = [stride * flat.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.array(view, dtype)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle uses, of a function or of a type: only a name."""

    name: str


def is_saved_by_torch(start: bytes) -> bool:
    """Whether a file begins so that `read_saved` is the reader to ask."""
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[2:15] == _MAGIC)


def read_saved(file: BinaryIO) -> Any:
    """What was saved: dicts, lists, tuples, text, numbers and `Tensor`, which reads from ``file``.

    Raises:
        InteropError: it is damaged, another format, holds anything else, or means to use more
            memory than it has itself.
    """
    source = _Source(file, file.seek(0, io.SEEK_END))
    try:
        return (_read_zip if source.bytes(Place(0, 1)) == b"P" else _read_stream)(source)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        said = " ".join(str(error).split())[:120]
        raise InteropError(f"it is damaged ({said}); get it again") from error


# --- The files ---


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file and its length, beyond which nothing is looked for and no memory taken."""

    file: BinaryIO
    length: int

    def bytes(self, place: Place) -> bytes:
        """Those that lie there."""
        if place.start < 0 or not 0 <= place.size <= self.length - place.start:
            raise InteropError("it is cut off; get it again")
        self.file.seek(place.start)
        content = self.file.read(place.size)
        if place.checksum is not None and zlib.crc32(content) != place.checksum:
            raise InteropError("it is damaged: a checksum is another; get it again")
        return content


def _read_zip(source: _Source) -> Any:
    places = _directory(source)
    root = next(iter(places), "").partition("/")[0]
    strange = [n for n in places if not n.startswith(f"{root}/") or ".." in n.split("/")]
    if not root or strange or f"{root}/data.pkl" not in places:
        why = f"has an entry {strange[0][:80]!r}" if strange else "has no data.pkl"
        raise InteropError(
            f"it is a zip that torch.save did not write: it {why}; check which file it is"
        )
    pickled, order = places[f"{root}/data.pkl"], places.get(f"{root}/byteorder", Place(0, 0))
    if pickled.size > _LONGEST_PICKLE or order.size > len("little"):
        raise InteropError(
            f"its data.pkl has {pickled.size:,} bytes, where {_LONGEST_PICKLE:,} are read at most; "
            "save the state dict alone: torch.save(model.state_dict(), 'model.pt')"
        )
    swapped = source.bytes(order) == b"big"

    def read(storage: Storage) -> np.ndarray:
        content = source.bytes(places[f"{root}/data/{storage.key}"])
        numbers = np.frombuffer(content, storage.dtype)
        return numbers.byteswap() if swapped else numbers

    storages: dict[str, Storage] = {}
    pickles = io.BytesIO(source.bytes(pickled))
    tree = _run(pickles, functools.partial(_storage, storages, read))
    for key, storage in storages.items():
        place = places.get(f"{root}/data/{key}")
        _check_size(storage, None if place is None else place.size)
    return tree


def _read_stream(source: _Source) -> Any:
    """The form before PyTorch 1.6; its numbers are little-endian, whatever the machine was."""
    places: dict[str, Place] = {}
    storages: dict[str, Storage] = {}

    def read(storage: Storage) -> np.ndarray:
        return np.frombuffer(source.bytes(places[storage.key]), storage.dtype)

    pickles = io.BytesIO(source.bytes(Place(0, min(source.length, _LONGEST_PICKLE))))
    found = functools.partial(_storage, storages, read)
    _, version, _, tree, keys = (_run(pickles, found) for _ in range(5))
    if version != 1001 or type(keys) is not list:
        raise InteropError("it is of a form that PyTorch has left; save it again with a new one")
    at = pickles.tell()
    for key in keys:
        if type(key) is not str or key not in storages:
            raise ValueError("it has a storage that no tensor is in")
        (size,) = struct.unpack("<q", source.bytes(Place(at, 8)))
        places[key] = Place(at + 8, size * storages[key].dtype.itemsize)
        at += 8 + places[key].size
        _check_size(storages[key], places[key].size if at <= source.length else None)
    for key, storage in storages.items():
        _check_size(storage, places[key].size if key in places else None)
    return tree


def _directory(source: _Source) -> dict[str, Place]:
    """The entries of a zip by name, none of them compressed, and no byte in two of them."""
    end = source.bytes(Place(source.length - 22, 22))
    signature, _, _, _, _, size, start, _ = struct.unpack("<4s4H2LH", end)
    if signature != b"PK\x05\x06":
        raise ValueError("it has no directory at its end")
    locator = source.bytes(Place(max(source.length - 42, 0), 20))
    if locator[:4] == b"PK\x06\x07":  # sizes of 64 bits are told in front of it
        end = source.bytes(Place(struct.unpack_from("<Q", locator, 8)[0], 56))
        signature, *_, size, start = struct.unpack("<4sQ2H2L4Q", end)
        if signature != b"PK\x06\x06":
            raise ValueError("its directory is not where it should be")
    if size > _LONGEST_DIRECTORY:
        raise ValueError(f"its directory has {size} bytes")
    directory, at = source.bytes(Place(start, size)), 0
    places: dict[str, Place] = {}
    headers: list[tuple[int, int]] = []
    while at < size:
        name, place, header, at = _entry(directory, at)
        fields = struct.unpack("<4s5H3L2H", source.bytes(Place(header, 30)))
        if fields[0] != b"PK\x03\x04" or name in places or at > size:
            raise ValueError(f"its entry {name[:80]!r} is there twice, or not where it should be")
        places[name] = place._replace(start=header + 30 + sum(fields[-2:]))
        headers.append((header, places[name].start + place.size))
    headers.sort()
    following = [*(first for first, _ in headers[1:]), start]
    if any(end > next_one for (_, end), next_one in zip(headers, following, strict=False)):
        raise ValueError("its entries overlap")
    return places


def _entry(directory: bytes, at: int) -> tuple[str, Place, int, int]:
    """An entry of the directory, where its header is in the file, and where the next entry is."""
    fields = struct.unpack_from("<4s6H3L5H2L", directory, at)
    flags, method = fields[3:5]
    checksum, packed, size, name_size, extra_size, comment_size = fields[7:13]
    if fields[0] != b"PK\x01\x02":
        raise ValueError("its directory holds something else")
    name = directory[at + 46 : at + 46 + name_size].decode()
    extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
    header = fields[-1]
    while len(extra) >= 4:
        kind, extent = struct.unpack_from("<2H", extra)
        if kind == 1:  # 64 bits, of those that do not fit in 32
            wide = iter(struct.unpack_from(f"<{extent // 8}Q", extra, 4))
            size, packed, header = (
                next(wide, 0) if value == 2**32 - 1 else value for value in (size, packed, header)
            )
        extra = extra[4 + extent :]
    if method or flags & 1 or packed != size:
        raise InteropError(
            f"its entry {name[:80]!r} is compressed or encrypted, which torch.save never does; "
            "save it again"
        )
    return name, Place(0, size, checksum), header, at + 46 + name_size + extra_size + comment_size


# --- The pickle ---

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of a stream, behind its protocol
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_OTHERS = {
    "PROTO", "FRAME", "STOP", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS",
    "SETITEM", "SETITEMS", "BUILD", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "BINPERSID", "GLOBAL", "STACK_GLOBAL", "REDUCE",
}  # fmt: skip
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_ALONE = "save the parameters alone, where the model is: torch.save(model.state_dict(), 'model.pt')"


def _steps(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """The steps of a pickle to its last, with what is written behind each."""
    known = _LITERALS | _OTHERS | {*_CONSTANTS, *_EMPTY}
    for _ in range(_MOST_STEPS):
        opcode = _OPCODES.get(stream.read(1))
        if opcode is None:
            raise ValueError("its pickle has no end, or a step that no pickle has")
        if opcode.name not in known:
            raise InteropError(
                f"its pickle has a step {opcode.name}, which no parameters need; {_ALONE}"
            )
        if opcode.name == "GLOBAL":  # in which the reader of pickletools would look for escapes
            yield "GLOBAL", [stream.readline()[:-1].decode() for _ in range(2)]
        else:
            yield opcode.name, None if opcode.arg is None else opcode.arg.reader(stream)
        if opcode.name == "STOP":
            return
    raise InteropError(f"its pickle has more than {_MOST_STEPS:,} steps; {_ALONE}")


def _run(stream: io.BytesIO, storage: Callable[[Any], Storage]) -> Any:
    """What one pickle makes; the stream is then behind it."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(count: int) -> list[Any]:
        if count > len(stack):
            raise ValueError("its pickle takes what it has not made")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    for name, argument in _steps(stream):
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(take(int(name[-1]))))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "BINPERSID":
            stack.append(storage(*take(1)))
        elif name == "GLOBAL":
            stack.append(_known(*argument))
        elif name == "STACK_GLOBAL":
            stack.append(_known(*take(2)))
        elif name == "REDUCE":
            stack.append(_call(*take(2)))
        elif name in ("APPEND", "SETITEM", "BUILD"):
            _add(name, stack, take(1 + (name == "SETITEM")))
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items = take(max(len(stack) - marks.pop(), 0))
            if name == "TUPLE":
                stack.append(tuple(items))
            else:
                _add(name, stack, items)
    if len(stack) != 1:
        raise ValueError("its pickle ends with more than one value, or none")
    return stack[0]


def _add(name: str, stack: list[Any], items: list[Any]) -> None:
    """Put items into the list or the dict on top of the stack."""
    whole = stack[-1]
    if name.startswith("APPEND") and type(whole) is list:
        whole += items
    elif name.startswith("SETITEM") and type(whole) is dict:
        _set(whole, zip(items[::2], items[1::2], strict=True))
    elif name != "BUILD" or type(whole) is not dict:  # where it holds the versions of modules
        raise ValueError(f"its pickle has a {name} of a {type(whole).__name__}")


def _set(whole: dict[Any, Any], pairs: Any) -> dict[Any, Any]:
    """Nothing but text and numbers is a key: the hash of a tuple in tuples might take for ever."""
    for key, value in pairs:
        if not isinstance(key, str | int | float):
            raise ValueError(f"its pickle has a {type(key).__name__} for a key")
        whole[key] = value
    return whole


def _known(module: Any, short: Any) -> _Global:
    if type(module) is not str or type(short) is not str:
        raise ValueError("its pickle names something by no text")
    name = f"{module} {short}"
    if name not in _FUNCTIONS and name not in _DTYPES:
        shown = f"{module}.{short}"[:80]
        raise InteropError(
            f"it holds {shown!r}, and not parameters alone, which it would take code to build, and "
            f"no code in a file is run; {_ALONE}"
        )
    return _Global(name)


def _call(function: Any, args: Any) -> Any:
    if type(function) is not _Global or function.name not in _FUNCTIONS or type(args) is not tuple:
        raise ValueError("its pickle calls what is no function")
    return _FUNCTIONS[function.name](*args[:7])


def _dict(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        pairs = pairs.items()
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("its pickle has a dict of something else than pairs")
    return _set({}, pairs)


def _size(axes: Any = (), *_: Any) -> tuple[Any, ...]:
    if not isinstance(axes, tuple | list):
        raise ValueError("its pickle has a torch.Size of something else than numbers")
    return tuple(axes)


def _tensor(
    storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *rest: Any
) -> Tensor:
    """A tensor, all of whose entries lie in its storage."""
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not isinstance(storage, Storage) or not whole or len(shape) > _MOST_AXES:
        raise ValueError("its pickle has a tensor without a storage, a shape or strides")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("its pickle has a tensor with an offset, a shape or strides of no kind")
    # NumPy's limit, also where an axis has no entry.
    if math.prod(max(n, 1) for n in shape) * storage.dtype.itemsize >= 2**62:
        raise ValueError("its pickle has a tensor of a size that no memory has")
    # Where no step is made along an axis, its stride says nothing.
    strides = tuple(s * (n > 1 and 0 not in shape) for n, s in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"its pickle has a tensor that ends behind {storage.size} numbers")
    if len(rest) > 2 and rest[2]:
        raise InteropError("it has a tensor that is negated or conjugated when read; save a copy")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any = None, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("its pickle has a Parameter of something else than a tensor")
    return data


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": _dict,
    "collections Counter": _dict,  # in the state of a schedule
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}


def _storage(
    storages: dict[str, Storage], read: Callable[[Storage], np.ndarray], came: Any
) -> Storage:
    """The storage that a pickle names, by what it says of it."""
    if type(came) is not tuple or len(came) not in (5, 6) or came[5:] not in ((), (None,)):
        raise ValueError("its pickle names something else than a storage")
    kind, name, key, _, size = came[:5]
    if kind != "storage" or not isinstance(name, _Global) or name.name not in _DTYPES:
        raise ValueError("its pickle names something else than a storage of numbers")
    whole = isinstance(key, str) and key.isascii() and key.isdecimal()
    if not whole or type(size) is not int or not 0 <= size < 2**58:
        raise ValueError("its pickle names a storage without a number and a size")
    storage = Storage(key, np.dtype(_DTYPES[name.name]), size, read)
    first = storages.setdefault(key, storage)
    if (first.dtype, first.size) != (storage.dtype, size):
        raise ValueError(f"its storage {key} is named twice, with other types or sizes")
    return first


def _check_size(storage: Storage, size: int | None) -> None:
    if size != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"its storage {storage.key[:20]} should have {storage.size} numbers in {storage.dtype},"
            f" but {'is not there' if size is None else f'has {size} bytes'}"
        )
