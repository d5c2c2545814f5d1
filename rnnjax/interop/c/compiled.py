"""The C of a step, compiled by the compiler of this machine and called from Python."""

import ctypes
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from rnnjax.cells.base import Carry
from rnnjax.checks import check_size
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.c.forms import ARRAYS, kind_of
from rnnjax.interop.c.program import Program, program_of
from rnnjax.interop.c.source import written

# A step reads each weight once, and loads decide its time while the weights fit in the L2 cache.
# GCC makes vectors of 256 bits even for AVX-512, which once lowered the clock: 1.25 times the time
# at 64 to 256 units. Elsewhere this changes nothing; GCC knows it from 8 on, for x86 alone. Not
# tried: an old CPU with AVX-512, where the clock would decide.
_WIDE = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
# As C (-xc), because a compiler of C++ gives functions other names.
_OPTIONS = [
    "-O3", "-march=native", *_WIDE, "-shared", "-fPIC", "-o", "net.so", "-xc", "net.c", "-lm",
]  # fmt: skip


class _Compiled(NamedTuple):
    """What all copies of a stream share."""

    program: Program
    library: ctypes.CDLL
    constants: list[np.ndarray]  # to which the library points


class Stream:
    """A step of a cell or model as machine code, with a state that goes on from call to call.

    `stream` makes one. ``y = stream(x)`` takes one step, ``ys = stream(xs)`` as many as there are,
    and both continue where the last call ended. Inputs become float32, and ids int32; outputs are
    new arrays of NumPy:

    ==============================  ======================  ============================
    inputs                          a step                  several
    ==============================  ======================  ============================
    of a stream                     ``(features,)``         ``(time, features)``
    with ``rows=R``                 ``(R, features)``       ``(time, R, features)``
    ids, of a model that embeds     ``()`` or ``(R,)``      ``(time,)`` or ``(time, R)``
    ==============================  ======================  ============================

    A cell over a grid has its axes before the features. Several inputs of a model are a tuple, or a
    dict by their names in C; outputs come as the model gives them. What a cell takes as it is
    (``raw``) are the last features, as in `rnnjax.unroll`.

    `copy` makes a stream of its own that continues from the same state: keep one to roll back, or
    make several to branch. While a step runs other threads do too; a stream belongs to one thread,
    and copies may run in others.

    Attributes:
        rows: how many sequences are stepped together, or None for one without an axis of rows.
    """

    def __init__(self, compiled: _Compiled, rows: int | None) -> None:
        self.rows, self._compiled, self._count = rows, compiled, rows or 1
        program, batch = compiled.program, () if rows is None else (rows,)
        words = compiled.library.net_words()  # as floats: those of the state, then scratch
        self._memory = _aligned(np.zeros((self._count, words), np.float32))
        self._leaves, at = list[np.ndarray](), 0  # the state, in the shapes of the carry
        for leaf in program.state.values():
            shape = (self._count, *leaf.shape[1:]) if program.has_batch else (*batch, *leaf.shape)
            self._leaves.append(self._memory[:, at : at + leaf.size].reshape(shape))
            at += leaf.size
        # The buffers of a single step, whose addresses are bound once: that saves 3 us a call.
        self._x, self._y = (
            {key: np.zeros((*batch, *program.shapes[key]), ARRAYS[kind_of(one.dtype)])
             for key, one in arrays.items()}
            for arrays in (program.inputs, program.outputs)
        )  # fmt: skip
        (self._first, *more), plain = self._x.values(), jax.tree_util.treedef_is_leaf(program.ys)
        fast = plain and not more and self._first.dtype == np.float32
        self._alone, (self._only, *_) = self._first.shape if fast else None, self._y.values()
        self._state = ctypes.c_void_p(self._memory.ctypes.data)
        self._bound = _addresses(self._x.values()), _addresses(self._y.values())
        self._one, self._rows = ctypes.c_long(1), ctypes.c_long(self._count)
        self._run = compiled.library.net_run
        self.reset()

    def __call__(self, xs: Any) -> Any:
        """Take one step or several, and return the outputs.

        Raises:
            InvalidInputError: an input has another shape, or is not of numbers that fit.
        """
        if type(xs) is np.ndarray and xs.shape == self._alone and xs.dtype == np.float32:
            self._first[...] = xs  # the way of what is called most
            self._run(self._state, *self._bound, self._one, self._rows)
            return self._only.copy()
        arrays, steps = self._checked(xs if isinstance(xs, Mapping) else self._named(xs))
        if steps is None:
            for into, array in zip(self._x.values(), arrays, strict=True):
                into[...] = array
            self._run(self._state, *self._bound, self._one, self._rows)
            made = [y.copy() for y in self._y.values()]
        else:
            made = [np.empty((steps, *y.shape), y.dtype) for y in self._y.values()]
            every = _addresses(arrays), _addresses(made)
            self._run(self._state, *every, ctypes.c_long(steps), self._rows)
        return jax.tree.unflatten(self._compiled.program.ys, made)

    def reset(self) -> None:
        """Begin new sequences, as `rnnjax.Cell.start` does."""
        self._compiled.library.net_resets(self._state, self._rows)

    @property
    def carry(self) -> Carry:
        """The state as the cell's or the model's own carry, with which `rnnjax.unroll` goes on.

        It has the axis of ``rows``, and a model's has an axis of one row at least. Set it to
        continue from another carry; what is read is a copy.
        """
        leaves = [leaf.copy() for leaf in self._leaves]
        return jax.tree.unflatten(self._compiled.program.carry, leaves)

    @carry.setter
    def carry(self, carry: Carry) -> None:
        wanted, came = (jax.tree.map(np.shape, one) for one in (self.carry, carry))
        if jax.tree.structure(carry) != self._compiled.program.carry or wanted != came:
            raise InvalidInputError(
                f"the carry should have the shapes {wanted}, but has {came}; set one that `carry` "
                "or the cell's unroll gave for as many rows"
            )
        for into, leaf in zip(self._leaves, jax.tree.leaves(carry), strict=True):
            into[...] = leaf

    def copy(self) -> Self:
        """Return a stream of its own that continues from this state."""
        other = type(self)(self._compiled, self.rows)
        other._memory[...] = self._memory
        return other

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    __copy__ = copy

    def __reduce__(self) -> Any:
        raise TypeError("a Stream is code of this process; save its `carry`, and stream again")

    def __repr__(self) -> str:
        return f"Stream of {self._compiled.program.title}, rows={self.rows}"

    def _named(self, xs: Any) -> dict[str, Any]:
        """The inputs by name of one array, whose last features a cell may take as they are."""
        names, several = [*self._x], isinstance(xs, tuple)
        if len(names) == 1 or self._compiled.program.has_batch:
            return dict(zip(names, xs if len(names) > 1 and several else [xs], strict=False))
        xs, sizes = np.asarray(xs), [x.shape[-1] for x in self._x.values()]
        if xs.shape[-1:] != (sum(sizes),):
            raise InvalidInputError(
                f"inputs should have {sum(sizes)} features ({', '.join(names)}: {sizes}), but have "
                f"shape {xs.shape}"
            )
        return dict(zip(names, np.split(xs, np.cumsum(sizes)[:-1], -1), strict=True))

    def _checked(self, given: Mapping[str, Any]) -> tuple[list[np.ndarray], int | None]:
        """The arrays in C's order and types, and the number of steps; None for one alone."""
        if given.keys() != self._x.keys():
            raise InvalidInputError(
                f"the inputs should be a dict of {', '.join(self._x)}, but "
                f"{', '.join(map(str, given)) or 'nothing'} came; give each by its name"
            )
        found, steps = list[np.ndarray](), dict[str, int | None]()
        for key, into in self._x.items():
            array, shape = np.asarray(given[key]), into.shape
            time = array.ndim - len(shape)
            if time not in (0, 1) or array.shape[time:] != shape:
                several = f"({', '.join(map(str, ('time', *shape)))})"
                raise InvalidInputError(
                    f"{key} should have shape {shape} for one step, or {several} for more, but has "
                    f"{array.shape}; make the stream with rows= for rows side by side"
                )
            kinds = "biu" if into.dtype.kind == "i" else "fiu"
            if array.dtype.kind not in kinds and array.dtype.name != "bfloat16":
                raise InvalidInputError(
                    f"{key} should be numbers for {into.dtype}, but is {array.dtype}; convert it"
                )
            found.append(np.ascontiguousarray(array, into.dtype))
            steps[key] = array.shape[0] if time else None
        if len({*steps.values()}) > 1:
            raise InvalidInputError(f"inputs should have as many steps each, but have {steps}")
        return found, next(iter(steps.values()))


def stream(  # noqa: D417  # `save` tells of the others
    *what: Any, rows: int | None = None, input_size: Any = None, weights: str = "float32",
    data: Any = None,
) -> Stream:  # fmt: skip  # of the others `save` tells
    """Compile one step of a cell or model for this machine, to be called from Python.

    Call it as ``stream(cell, params)`` or ``stream(model)``. The C is that of
    `rnnjax.interop.c.save`, except that constants stay arrays, and ``$CC``, or ``cc``, compiles it.
    Use it for one row in float32 on one core: a call then costs 1 or 2 microseconds more than the
    step itself, and a jitted one about 20. With 16 rows `rnnjax.unroll` takes half of the time or
    less, because it multiplies all rows by the weights at once. Numbers, bounds and refusals are
    those of `save`.

    Args:
        rows: the number of sequences that are stepped together; then all inputs and outputs have
            an axis of as many. By default there is one sequence, without such an axis.
        input_size, weights, data: as `rnnjax.interop.c.save` has them.

    Raises:
        InteropError: there is no compiler, or it makes nothing that this process can load; and
            where `save` raises it.
        InvalidInputError: as `save`, or ``rows`` is not a positive integer.

    >>> import rnnjax
    >>> from rnnjax.interop.c import stream
    >>> cell = rnnjax.LSTMCell(16)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> step = stream(cell, params)
    >>> xs = np.ones((20, 3), np.float32)
    >>> step(xs[0]).shape
    (16,)
    >>> before = step.copy()  # to come back to
    >>> ys = step(xs[1:])
    >>> carry, expected = rnnjax.unroll(cell, params, xs)
    >>> bool(np.allclose(ys, expected[1:], atol=1e-6))
    True
    >>> np.array_equal(before(xs[1:]), ys)
    True
    >>> bool(np.allclose(step.carry[0], carry[0], atol=1e-6))  # goes on in `unroll`, and back
    True
    """
    if rows is not None:
        check_size("rows", rows)
    if len(what) not in (1, 2):
        raise InvalidInputError(
            f"stream takes (cell, params) or (model), but {len(what)} arguments came"
        )
    program = program_of(what, input_size, weights, data)
    source, header, constants = written(program, "net", data, apart=True)
    arrays = [*map(_aligned, constants)]
    library = _built(source, header)
    library.net_bind(_addresses(arrays))
    return Stream(_Compiled(program, library, arrays), rows)


def _built(source: str, header: str) -> ctypes.CDLL:
    """Compile and load, and leave no file behind."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    command = next((shlex.split(one) for one in compilers if shutil.which(shlex.split(one)[0])), [])
    if not command:
        raise InteropError(
            f"a stream needs a compiler of C, but {' or '.join(compilers)} is not installed; "
            "install one, such as gcc, or name one in the environment variable CC"
        )
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "net.c").write_text(source)
        pathlib.Path(folder, "net.h").write_text(header)
        done = subprocess.run([*command, *_OPTIONS], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "no reason")
            raise InteropError(
                f"{shlex.join(command)} should compile the step for this machine, but says "
                f"{said.strip()!r}; name another compiler in the environment variable CC"
            )
        try:
            return ctypes.CDLL(str(pathlib.Path(folder, "net.so")))
        except OSError as error:
            raise InteropError(
                f"this process should load what {shlex.join(command)} made, but cannot ({error}); "
                "take a compiler for this machine in CC, and a folder whose files may be executed "
                "in TMPDIR"
            ) from error


def _aligned(array: np.ndarray) -> np.ndarray:
    """Copy an array to an address that is a multiple of 64 bytes, where a line of the cache begins.

    NumPy aligns to 16 bytes, and then a load of 64 bytes reads two lines: 1.25 times the time of an
    LSTM(128).
    """
    room = np.empty(array.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    into = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    into[...] = array
    return into


def _addresses(arrays: Collection[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
