"""Read what ``torch.save`` writes, without PyTorch.

Since PyTorch 1.6 it is a zip of bare entries: ``data.pkl``, a pickle in which each tensor names its
storage, and ``data/0``, ``data/1`` ..., the bytes of the storages. Before that it was one stream:
five pickles, and then the storages.

A pickle is a program for a machine with a stack. Python's own runs it, with the steps that
parameters need alone: it makes dicts, lists, tuples, text, numbers and arrays, and calls the
functions in ``_KNOWN``. A name that is not there is looked up nowhere, and what it would make is
left out.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.files import TORCH_STREAM, ZIP, describe, in_a_line

ALONE = "save the parameters alone, where the model is: torch.save(model.state_dict(), 'model.pt')"
_LONGEST_PICKLE = 32 * 2**20  # which may be a text that takes four bytes a letter
_LONGEST_DIRECTORY = 16 * 2**20  # of a zip: some 200,000 entries, which take 20 times as much
# A step takes 100 bytes at most. A vocabulary of 400,000 words has 1.6 million.
_MOST_STEPS = 2_000_000
# zipfile raises NotImplementedError for a compression method that it does not know.
_DAMAGED = (ValueError, LookupError, OverflowError, AttributeError, struct.error, EOFError, OSError,
            zipfile.BadZipFile, pickle.UnpicklingError, NotImplementedError)  # fmt: skip

Numbers = Callable[[str, np.dtype[Any], int], np.ndarray]
"""Gives the numbers of a storage, by its key in the file, their type and how many they are."""


def is_saved_by_torch(start: bytes) -> bool:
    """Whether a file begins so that `read_saved` is the reader to ask."""
    return start.startswith(ZIP) or (start[:1] == b"\x80" and TORCH_STREAM in start)


def read_saved(file: BinaryIO) -> tuple[Any, str]:
    """Return what was saved: containers of text, numbers and arrays; the file is closed.

    And the first name of what was left out, if there is one.
    """
    file.seek(0)
    read = _read_zip if file.read(1) == b"P" else _read_stream
    try:
        with _Bounded(file) as bounded:  # type: ignore[arg-type]  # it calls what every BinaryIO has
            return read(bounded)
    except _DAMAGED as error:
        said = f"it is damaged ({in_a_line(error)})"
        if "CRC" in said:
            said += ", unless torch.serialization.set_crc32_options(False) was called to save it"
        raise InteropError(f"{said}; get it again") from error


class _Bounded(io.BufferedReader):
    """A file of which nothing longer is read than a directory may be, until ``most`` says so."""

    most = _LONGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        """The next, at most so many bytes."""
        if size is not None and size > self.most:
            raise ValueError(f"{size} bytes of it should be read, but {self.most} are the most")
        return super().read(size)


def _check_size(key: str, dtype: np.dtype[Any], size: int, came: int | None) -> None:
    if came != size * dtype.itemsize:
        has = "is not there" if came is None else f"has {came} bytes"
        raise ValueError(f"its storage {key[:20]!r} should have {size} numbers, but {has}")


def _read_zip(file: _Bounded) -> tuple[Any, str]:
    length = file.seek(0, io.SEEK_END)
    archive = zipfile.ZipFile(file)
    entries, names = archive.infolist(), archive.namelist()
    root, sizes = next(iter(names), "").partition("/")[0], dict.fromkeys(names, 0)
    what = describe(b"", names)
    if what and "torch.load" not in what:
        raise InteropError(f"it is {what}")
    pickled, order = f"{root}/data.pkl", f"{root}/byteorder"
    if pickled not in sizes:
        raise InteropError("it is a zip of another program: it has no data.pkl; check it")
    for entry in entries:
        sizes[entry.filename] += entry.file_size
        if entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise InteropError(
                f"its entry {entry.filename[:80]!r} is compressed or encrypted; {ALONE}"
            )
    # Entries that lie in each other would let the same bytes be read again and again.
    places = {entry.header_offset for entry in entries}
    if min(len(sizes), len(places)) < len(names) or sum(sizes.values()) > length:
        raise ValueError("its entries overlap, or two have one name")
    if sizes[pickled] > _LONGEST_PICKLE or sizes.get(order, 0) > len("little"):
        raise InteropError(
            f"its data.pkl has {sizes[pickled]:,} bytes, where {_LONGEST_PICKLE:,} are read at "
            f"most, or its byteorder is none; {ALONE}"
        )
    file.most = length
    swapped = order in sizes and archive.read(order) == b"big"

    def numbers(key: str, dtype: np.dtype[Any], size: int) -> np.ndarray:
        name = f"{root}/data/{key}"
        _check_size(key, dtype, size, sizes.get(name))
        flat = np.frombuffer(archive.read(name), dtype)
        return flat.byteswap() if swapped else flat

    machine = _Unpickler(io.BytesIO(archive.read(pickled)), numbers)
    return machine.load(), machine.unknown


def _read_stream(file: _Bounded) -> tuple[Any, str]:
    """The form before PyTorch 1.6; its numbers are little-endian, whatever the machine was.

    They lie after the pickles, and are put into the arrays that are there by then.
    """
    file.most = left = file.seek(0, io.SEEK_END)
    storages: dict[str, np.ndarray] = {}

    def numbers(key: str, dtype: np.dtype[Any], size: int) -> np.ndarray:
        nonlocal left
        left -= size * dtype.itemsize
        if left < 0:
            raise ValueError("it is cut off")
        return storages.setdefault(key, np.zeros(size, dtype))

    file.seek(0)
    pickles = io.BytesIO(file.read(_LONGEST_PICKLE) if left > _LONGEST_PICKLE else file.read())
    machines = [_Unpickler(pickles, numbers) for _ in range(5)]
    _, version, _, tree, keys = (machine.load() for machine in machines)
    unknown = machines[3].unknown
    if version != 1001:
        raise InteropError("it is of a form that PyTorch has left; save it again with a new one")
    if type(keys) is not list:
        raise ValueError("its storages are no list")
    file.seek(pickles.tell())
    for key in keys:
        storage = storages.pop(key, None) if type(key) is str else None
        if storage is None and unknown:
            raise InteropError(
                f"it holds {unknown!r} and numbers of a type that is not read, whose end this old "
                f"form does not say; {ALONE}"
            )
        if storage is None:
            raise ValueError("it has a storage that no tensor is in")
        size = struct.unpack("<q", file.read(8))[0] * storage.itemsize
        _check_size(key, storage.dtype, len(storage), size)
        data = file.read(size)
        _check_size(key, storage.dtype, len(storage), len(data))
        storage[:] = np.frombuffer(data, storage.dtype)
    for key, storage in storages.items():
        _check_size(key, storage.dtype, len(storage), None)
    return tree, unknown


# Private, and so unknown to type checkers, but in every Python: what `pickle.Unpickler` is without
# its part in C, which takes memory by the sizes that a pickle states.
_BASE: Any = pickle._Unpickler


class _Unpickler(_BASE):  # type: ignore[misc]  # _BASE is private, hence Any
    """Python's own; the steps by which a pickle could call, change or hash something are here."""

    dispatch = property(lambda self: self)  # an attribute would be a cycle, and keep the arrays

    def __init__(self, stream: io.BytesIO, numbers: Numbers):
        super().__init__(stream, encoding="latin-1")
        self.numbers, self.left = numbers, _MOST_STEPS
        self.storages: dict[str, np.ndarray] = {}
        self.unknown = ""  # the first name that is not read

    def __getitem__(self, code: int) -> Any:
        """The function of a step; it limits how many steps run."""
        self.left -= 1
        if self.left < 0:
            raise InteropError(f"its pickle has more than {_MOST_STEPS:,} steps; {ALONE}")
        if code not in _NAMES:
            raise ValueError("its pickle has a step that no pickle has")
        if code not in _STEPS:
            raise InteropError(f"its pickle has step {_NAMES[code]}, which no array needs; {ALONE}")
        return _STEPS[code]

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _KNOWN:
            self.unknown = self.unknown or f"{module}.{name}"[:80]
        return _KNOWN.get(f"{module} {name}", UNREAD)

    def persistent_load(self, pid: Any) -> Any:
        """The storage that a tensor is a view of, by what the pickle says of it."""
        if type(pid) is tuple and pid[:1] == ("module",):  # with the source of its class
            return UNREAD
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[5:] not in ((), (None,)):
            raise ValueError("its pickle names something else than a storage")
        _, dtype, key, _, size = pid[:5]
        if dtype is UNREAD:
            return UNREAD
        if not isinstance(dtype, np.dtype) or type(key) is not str or type(size) is not int:
            raise ValueError("its pickle names a storage without a type, a name or a size")
        if key not in self.storages:
            self.storages[key] = self.numbers(key, dtype, size)
        storage = self.storages[key]
        if (storage.dtype, storage.size) != (dtype, size):
            raise ValueError(f"its storage {key[:20]!r} is named twice, with other types or sizes")
        return storage

    def call(self, by_name: Any = None) -> None:
        """``REDUCE`` or ``NEWOBJ``: one of the functions here, without arguments by name."""
        args, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(args) is not tuple:
            raise ValueError("its pickle calls what is no function, or with no tuple")
        # No more than they take: a pickle might give the same million a million times.
        self.append(function(*args[:7]))

    def set_items(self, items: list[Any]) -> None:
        """``SETITEM`` or ``SETITEMS``: keys, each with its value behind it."""
        _set(self.stack[-1], zip(items[::2], items[1::2], strict=True))


_NAMES = {ord(step.code): step.name for step in pickletools.opcodes}
_ALLOWED = (
    "PROTO", "FRAME", "STOP", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "BINGET", "LONG_BINGET", "BINPERSID", "GLOBAL", "STACK_GLOBAL",
)  # fmt: skip
_STEPS: Mapping[int, Callable[[_Unpickler], Any]] = {
    **{code: _BASE.dispatch[code] for code, name in _NAMES.items() if name in _ALLOWED},
    # No set is made: what it holds might take for ever to hash.
    pickle.EMPTY_SET[0]: _BASE.dispatch[pickle.EMPTY_LIST[0]],
    pickle.ADDITEMS[0]: _BASE.dispatch[pickle.APPENDS[0]],
    # Python's own would make an array of the size that is stated.
    pickle.BYTEARRAY8[0]: _BASE.dispatch[pickle.BINBYTES8[0]],
    pickle.FROZENSET[0]: _BASE.dispatch[pickle.TUPLE[0]],
    **dict.fromkeys((pickle.REDUCE[0], pickle.NEWOBJ[0]), _Unpickler.call),
    pickle.NEWOBJ_EX[0]: lambda machine: machine.call(machine.stack.pop()),
    # The versions of modules, and what is not read, are all that has a state.
    pickle.BUILD[0]: lambda machine: machine.stack.pop(),
    pickle.SETITEM[0]: lambda machine: machine.set_items([machine.stack.pop(i) for i in (-2, -1)]),
    pickle.SETITEMS[0]: lambda machine: machine.set_items(machine.pop_mark()),
}


def _set(whole: Any, pairs: Any) -> Any:
    """Text and numbers are keys: the hash of a tuple in tuples might take for ever.

    So might a dict of integers of one hash, which has their remainder of 2**61 - 1.
    """
    if whole is UNREAD:
        return whole
    if type(whole) is not dict:
        raise ValueError(f"its pickle has a SETITEM of a {type(whole).__name__}")
    for key, value in pairs:
        if key is UNREAD:  # a number of NumPy's, which no parameter has for a key
            continue
        kinds = str | int | float | bytes | None
        if not isinstance(key, kinds) or (type(key) is int and abs(key) >= 2**61 - 1):
            raise InteropError(
                f"its pickle has a {type(key).__name__} for a key, or a huge number; {ALONE}"
            )
        whole[key] = value
    return whole


# None of these functions copies what it is given: a pickle might give the same a million times.


def _dict(pairs: Any = None, *_: Any) -> Any:
    if pairs is None or type(pairs) is dict:
        return {} if pairs is None else pairs
    if type(pairs) is not list or not all(type(p) is list and len(p) == 2 for p in pairs):
        raise ValueError("its pickle has a dict of something else than pairs")
    whole = _set({}, pairs)
    pairs.clear()
    return whole


def _tensor(
    storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *rest: Any
) -> Any:
    """A view of a storage, all of whose entries lie in it, as NumPy makes sure."""
    if storage is UNREAD:
        return storage
    # A tensor in the place of a storage may show more numbers than there are.
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ValueError("its pickle has a tensor without a storage")
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not tuples or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError("its pickle has a tensor without an offset, a shape or strides")
    if len(rest) > 2 and rest[2]:
        raise InteropError("it has a tensor that is negated or conjugated when read; save a copy")
    size = storage.itemsize
    view = np.ndarray(shape, storage.dtype, storage, offset * size, [n * size for n in strides])
    view.flags.writeable = False
    return view


def _first(value: Any = None, *_: Any) -> Any:
    return value


class Unread:
    """A stand-in for anything in a checkpoint that is not a parameter; a call returns itself."""

    def __call__(self, *_: Any) -> Any:
        """Return the stand-in itself, whatever the arguments."""
        return self

    append = extend = __call__


UNREAD = Unread()
_STORAGES: Mapping[str, Any] = {
    "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
    "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
    "Bool": np.bool_, "ComplexDouble": np.complex128, "ComplexFloat": np.complex64,
}  # fmt: skip
_KNOWN: Mapping[str, Any] = {
    **{f"torch {name}Storage": np.dtype(kind) for name, kind in _STORAGES.items()},
    "collections OrderedDict": _dict,
    "collections Counter": _dict,  # in the state of a schedule
    "collections defaultdict": lambda *_: {},
    "torch Size": _first,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,  # with attributes of Python
}
