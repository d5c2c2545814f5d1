"""Pickles of ``torch.save``, unpickled by Python with the steps that parameters need alone.

A pickle is a program for a machine with a stack. It makes dicts, lists, tuples, text, numbers and
tensors here, and calls the functions in ``_FUNCTIONS``; a name that stands in no table here is
refused, and looked up nowhere.
"""

import dataclasses
import functools
import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError

ALONE = "save the parameters alone, where the model is: torch.save(model.state_dict(), 'model.pt')"

# A step takes 100 bytes at most. A vocabulary of 400,000 words has 1.6 million.
_MOST_STEPS = 2_000_000
_MOST_AXES = 16  # a kernel of a convolution has 5

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


@dataclasses.dataclass(eq=False)
class Storage:
    """Numbers that tensors are views of."""

    key: str  # its name in the file
    dtype: np.dtype[Any]  # of the numbers, in the order of bytes of this machine
    size: int  # how many they are
    read: Callable[[], bytes] = bytes  # gives their bytes; set by who knows where they lie
    swapped: bool = False  # whether these are in the other order

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Read when they are asked for, and once."""
        numbers = np.frombuffer(self.read(), self.dtype)
        return numbers.byteswap() if self.swapped else numbers


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A tensor in a file, which NumPy makes an array of."""

    storage: Storage  # whose numbers it shows
    offset: int  # of its first number there
    shape: tuple[int, ...]  # its axes
    strides: tuple[int, ...]  # between two entries of each axis, in numbers

    @property
    def nbytes(self) -> int:
        """Of the array that it becomes, which may be more than its storage has."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        flat = self.storage.numbers[self.offset :]
        # Where no step is made along an axis, its stride says nothing, and may be of any size.
        steps = (s * (n > 1 and 0 not in self.shape) for n, s in _axes(self.shape, self.strides))
        strides = [step * flat.itemsize for step in steps]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.array(view, dtype)


def _axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return zip(shape, strides, strict=True)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle uses, of a function or of a type: only a name."""

    name: str


# Private, and so unknown to type checkers, but in every Python: what `pickle.Unpickler` is
# without its part in C.
_BASE: Any = pickle._Unpickler


class _Unpickler(_BASE):  # type: ignore[misc]
    """Python's own, that in Python: the one in C takes memory by the sizes that a pickle states.

    The steps by which a pickle could call, change or hash something are done here.
    """

    def __init__(self, stream: io.BytesIO, storages: dict[str, Storage]):
        super().__init__(stream, encoding="latin-1")
        self.storages, self.dispatch = storages, _Steps(_STEPS)

    def find_class(self, module: str, name: str) -> "_Global":
        """A name, which stands for what it names."""
        known = _GLOBALS.get(f"{module} {name}")
        if known is None or " " in module:
            raise InteropError(
                f"it holds {f'{module}.{name}'[:80]!r}, and not parameters alone, which it would "
                f"take code to build, and no code in a file is run; {ALONE}"
            )
        return known

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor is a view of."""
        return _storage(self.storages, pid)

    def call(self) -> None:
        """``REDUCE``: one of the functions here."""
        args, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or function.name not in _FUNCTIONS:
            raise ValueError("its pickle calls what is no function")
        if type(args) is not tuple:
            raise ValueError("its pickle calls what is no function with a tuple")
        # No more than they take: a pickle might give the same million a million times.
        self.append(_FUNCTIONS[function.name](*args[:7]))

    def build(self) -> None:
        """``BUILD``: the versions of modules, and what is not read, are all that has a state."""
        self.stack.pop()
        if type(self.stack[-1]) not in (dict, _Global):
            raise ValueError(f"its pickle has a BUILD of a {type(self.stack[-1]).__name__}")

    def set_item(self) -> None:
        """``SETITEM``."""
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], [(key, value)])

    def set_items(self) -> None:
        """``SETITEMS``."""
        items = self.pop_mark()
        _set(self.stack[-1], zip(items[::2], items[1::2], strict=True))


class _Steps(dict[int, Callable[[_Unpickler], None]]):
    """What is done at each step, and how many may still come."""

    left = _MOST_STEPS

    def __getitem__(self, code: int) -> Callable[[_Unpickler], None]:
        self.left -= 1
        if self.left < 0:
            raise InteropError(f"its pickle has more than {_MOST_STEPS:,} steps; {ALONE}")
        if code not in self:
            if code not in _NAMES:
                raise ValueError("its pickle has a step that no pickle has")
            raise InteropError(
                f"its pickle has a step {_NAMES[code]}, which no parameters need; {ALONE}"
            )
        return super().__getitem__(code)


_NAMES = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and type(value) is bytes and len(value) == 1
}
_ALLOWED = (
    "PROTO", "FRAME", "STOP", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "BINPERSID", "GLOBAL", "STACK_GLOBAL",
)  # fmt: skip
_DISPATCH = _BASE.dispatch
_STEPS: Mapping[int, Callable[[_Unpickler], None]] = {
    **{code: _DISPATCH[code] for code, name in _NAMES.items() if name in _ALLOWED},
    # A set is a list here: what it holds might take for ever to hash.
    pickle.EMPTY_SET[0]: _DISPATCH[pickle.EMPTY_LIST[0]],
    pickle.ADDITEMS[0]: _DISPATCH[pickle.APPENDS[0]],
    pickle.REDUCE[0]: _Unpickler.call,
    pickle.BUILD[0]: _Unpickler.build,
    pickle.SETITEM[0]: _Unpickler.set_item,
    pickle.SETITEMS[0]: _Unpickler.set_items,
}


def run_pickle(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """What one pickle makes; the stream is then behind it.

    The storages that it names get into ``storages``, by their keys.
    """
    return _Unpickler(stream, storages).load()


def _set(whole: dict[Any, Any], pairs: Any) -> dict[Any, Any]:
    """Text and numbers are keys: the hash of a tuple in tuples might take for ever.

    So might a dict of integers of one hash, which has their remainder of 2**61 - 1.
    """
    if type(whole) is not dict:
        raise ValueError(f"its pickle has a SETITEM of a {type(whole).__name__}")
    for key, value in pairs:
        if type(key) is _Global:  # a number of NumPy's, which no parameter has for a key
            continue
        if not isinstance(key, str | int | float) or (type(key) is int and abs(key) >= 2**61 - 1):
            raise ValueError(f"its pickle has a {type(key).__name__} for a key, or a huge number")
        whole[key] = value
    return whole


# None of these functions copies what it is given: a pickle might give the same a million times.


def _dict(pairs: Any = None, *_: Any) -> dict[Any, Any]:
    if pairs is None or type(pairs) is dict:
        return {} if pairs is None else pairs
    if type(pairs) is not list or not all(type(p) is list and len(p) == 2 for p in pairs):
        raise ValueError("its pickle has a dict of something else than pairs")
    whole = _set({}, pairs)
    pairs.clear()
    return whole


def _size(axes: Any = (), *_: Any) -> tuple[Any, ...]:
    if type(axes) is not tuple:
        raise ValueError("its pickle has a torch.Size of something else than numbers")
    return axes


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
    last = offset + sum((n - 1) * s for n, s in _axes(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"its pickle has a tensor that ends behind {storage.size} numbers")
    if len(rest) > 2 and rest[2]:
        raise InteropError("it has a tensor that is negated or conjugated when read; save a copy")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any = None, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("its pickle has a Parameter of something else than a tensor")
    return data


def _unread(*_: Any) -> _Global:
    """What checkpoints hold besides, and no parameter is: a name stands for it."""
    return _GLOBALS["torch Size"]


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": _dict,
    "collections Counter": _dict,  # in the state of a schedule
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    **dict.fromkeys(
        [
            "numpy.core.multiarray scalar",
            "numpy._core.multiarray scalar",
            "numpy.core.multiarray _reconstruct",
            "numpy._core.multiarray _reconstruct",
            "numpy.core.numeric _frombuffer",
            "numpy._core.numeric _frombuffer",
            "numpy dtype",
            "_codecs encode",
            "torch device",
            "builtins set",
            "__builtin__ set",
        ],
        _unread,
    ),
}


_GLOBALS = {name: _Global(name) for name in [*_FUNCTIONS, *_DTYPES, "numpy ndarray"]}


def _storage(storages: dict[str, Storage], came: Any) -> Storage:
    """The storage that a pickle names, by what it says of it."""
    if type(came) is not tuple or len(came) not in (5, 6) or came[5:] not in ((), (None,)):
        raise ValueError("its pickle names something else than a storage")
    kind, name, key, _, size = came[:5]
    if kind != "storage" or not isinstance(name, _Global) or name.name not in _DTYPES:
        raise ValueError("its pickle names something else than a storage of numbers")
    whole = isinstance(key, str) and key.isascii() and key.isdecimal()
    if not whole or type(size) is not int or not 0 <= size < 2**58:
        raise ValueError("its pickle names a storage without a number and a size")
    storage = Storage(key, np.dtype(_DTYPES[name.name]), size)
    first = storages.setdefault(key, storage)
    if (first.dtype, first.size) != (storage.dtype, size):
        raise ValueError(f"its storage {key[:20]} is named twice, with other types or sizes")
    return first
