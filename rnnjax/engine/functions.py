"""Recurrences without a cell: arrays go in, and the states of all steps come out."""

import collections
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import as_array, brief, usual_promotion
from rnnjax.cells.base import Cell, Coupling
from rnnjax.cells.heads import MatrixCell, parts
from rnnjax.cells.matrix import MatrixCarry, Memory
from rnnjax.engine.auto import Auto
from rnnjax.engine.core.method import Method
from rnnjax.engine.unroll import unroll
from rnnjax.errors import InvalidInputError


@usual_promotion()
def linear_recurrence(
    decay: jax.Array,
    drive: jax.Array,
    carry: jax.Array | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    method: Method = Auto(),
) -> tuple[jax.Array, jax.Array]:
    r"""Return the states of a linear recurrence, and the last of them first.

    .. math::
        h_t = a_t \odot h_{t-1} + b_t

    Real or complex, with exact gradients of every order. It is run as a cell is by `unroll`: step
    by step, or in blocks side by side, with masks, lengths and resets (Blelloch, 1990; Martin &
    Cundy, 2018).

    Args:
        decay: :math:`a`, of the shape of ``drive``, or of one that broadcasts to it. With two axes
            more, ``(time, *batch, features, k, k)``, a matrix for each group of k numbers.
        drive: :math:`b` ``(time, *batch, features)``, or ``(time, *batch, features, k)`` then.
        carry: the state before the first step, ``drive``'s shape without time; zeros by default.
        lengths: as in `unroll`, and so are the other arguments. A reset puts zeros.
        mask: see there.
        resets: see there.
        reverse: see there.
        method: see there. In blocks, products of many decays above 1 may overflow.

    Returns:
        the last state, and all states, of the shape of ``drive``.

    Raises:
        InvalidInputError: the shapes do not fit each other, or as `unroll`.

    >>> carry, h = linear_recurrence(jnp.full((4, 1), 0.5), jnp.ones((4, 1)))
    >>> print(h[:, 0], carry)
    [1.    1.5   1.75  1.875] [1.875]
    """
    decay, drive = as_array("decay", decay), as_array("drive", drive)
    groups = decay.ndim == drive.ndim + 1
    shape = (*drive.shape, drive.shape[-1]) if groups else drive.shape
    spread = *[1] * (len(shape) - decay.ndim), *decay.shape
    fits = all(size in (1, whole) for size, whole in zip(spread, shape, strict=False))
    some = 0 not in shape[-1 - 2 * groups :]
    if drive.ndim < 2 + groups or len(spread) != len(shape) or not fits or not some:
        raise InvalidInputError(
            f"decay must have the shape of drive, (time, *batch, features), or of matrices "
            f"(time, *batch, features, k, k) beside (time, *batch, features, k), but decay has "
            f"{decay.shape} and drive {drive.shape}; check the order of their axes, and that there "
            "are features"
        )
    carries = () if carry is None else (as_array("carry", carry),)
    dtype = jnp.result_type(decay, drive, *(leaf.dtype for leaf in carries))
    turning = jnp.issubdtype(dtype, jnp.complexfloating)
    if turning and groups:
        raise InvalidInputError(
            f"decay, drive and carry must be real where decay is matrices, but one is {dtype}; "
            "write a complex number as a matrix of two rows"
        )
    decay, size = jnp.broadcast_to(decay, shape), drive.shape[-1] if groups else 1 + turning

    def split(x: jax.Array, axes: int) -> list[jax.Array]:
        """The arrays of one number for each feature."""
        if turning:
            return [x.real, x.imag]
        if not axes:
            return [x]
        # Not -1, which no size is found for where there are no rows.
        return list(jnp.moveaxis(x.reshape(*x.shape[: x.ndim - axes], size**axes), -1, 0))

    def whole(parts: list[jax.Array]) -> jax.Array:
        if turning:
            return jax.lax.complex(*parts)
        return jnp.stack(parts, axis=-1) if groups else parts[0]

    cell = _affine_cell(size, turning)(drive.shape[-2] if groups else drive.shape[-1])
    xs = jnp.concatenate([*split(decay, 2 * groups), *split(drive, groups)], axis=-1)
    for carry in carries:
        if carry.shape != drive.shape[1:]:
            raise InvalidInputError(
                f"carry must have shape {drive.shape[1:]}, that of drive without time, but has "
                f"{carry.shape}; check which axis is time"
            )
        carry = cell.carry(*split(carry.astype(dtype), groups))
    marks: Any = {"lengths": lengths, "mask": mask, "resets": resets, "reverse": reverse}
    last, ys = unroll(cell, _no_params(xs.dtype), xs, carry, **marks, method=method)
    return whole(list(last)), whole(jnp.split(ys, size, axis=-1))


@usual_promotion()
def matrix_memory(
    memory: Memory,
    carry: MatrixCarry | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    method: Method = Auto(),
) -> tuple[MatrixCarry, jax.Array]:
    r"""Return the last state of a memory that is a matrix, and what each step reads of it.

    .. math::
        S_t = S_{t-1} A_t \, (I - (e_t \odot k_t) \, k_t^\top) + \beta_t \, v_t k_t^\top, \qquad
        y_t = S_t q_t

    Linear attention with decays, and the gated delta rule with ``erase`` (Yang et al., 2024), in
    chunks of steps as products of matrices. It is run as a cell is by `unroll`. Several writes a
    step, as in DeltaProduct, are as many steps, of which the last is read.

    Args:
        memory: of all steps, ``(time, *batch, heads, ...)`` each, without ``log_beta``.
        carry: the state before the first step, ``(*batch, heads, value_size, key_size)``; zeros by
            default.
        lengths: as in `unroll`, and so are the other arguments. A reset puts zeros.
        mask: see there.
        resets: see there.
        reverse: see there.
        method: see there.

    Returns:
        the last state, and the reads ``(time, *batch, heads, value_size)``.

    Raises:
        InvalidInputError: the shapes do not fit each other, or as `unroll`.

    >>> q = k = v = jnp.ones((5, 2, 1, 3))  # 5 steps, 2 rows, one head, sizes of 3
    >>> decay = jnp.zeros((5, 2, 1))
    >>> carry, y = matrix_memory(Memory(q, k / 3, v, decay, beta=decay + 1, erase=decay + 3))
    >>> y.shape, carry.memory.shape, bool(jnp.allclose(y, 1))
    ((5, 2, 1, 3), (2, 1, 3, 3), True)
    """
    if not isinstance(memory, Memory) or any(x is None for x in memory[:4]):
        raise InvalidInputError(
            "memory must be a rnnjax.Memory with query, key, value and log_decay, but is "
            f"{brief(memory)}; write Memory(query, key, value, log_decay)"
        )
    given = {name: as_array(name, x) for name, x in memory._asdict().items() if x is not None}
    if "log_beta" in given:
        raise InvalidInputError(
            "memory must have no log_beta, whose stabilizer belongs to a cell, but has one; give "
            "beta, or write a cell with a memory"
        )
    rows, key_size = given["key"].shape[:-1], given["key"].shape[-1]
    fits = {"query": (key_size,), "key": (key_size,), "value": given["value"].shape[-1:]}
    for name, x in given.items():
        some = [fits[name]] if name in fits else [(), (key_size,)][: 1 + (name != "beta")]
        if x.shape not in [(*rows, *last) for last in some] or len(rows) < 2:
            raise InvalidInputError(
                f"{name} must have shape {' or '.join(str((*rows, *last)) for last in some)}, "
                f"(time, *batch, heads, ...) as the key, but has {x.shape}; check its axes"
            )
    sizes = tuple((name, x.shape[len(rows) :]) for name, x in given.items())
    cell = _MemoryCell(rows[-1] * given["value"].shape[-1], heads=rows[-1], sizes=sizes)
    flat = [x.reshape(*rows[:-1], math.prod(x.shape[len(rows) - 1 :])) for x in given.values()]
    xs = jnp.concatenate(flat, axis=-1)
    marks: Any = {"lengths": lengths, "mask": mask, "resets": resets, "reverse": reverse}
    last, ys = unroll(cell, _no_params(xs.dtype), xs, carry, **marks, method=method)
    return last, ys.reshape(given["value"].shape)


# ---- the cells that these are: all of their inputs are raw


def _no_params(dtype: Any) -> dict[str, jax.Array]:
    return {"kernel": jnp.zeros((0, 0), dtype)}


@functools.cache
def _affine_cell(size: int, turning: bool) -> Any:
    """The class of cells ``h' = a h + b`` of groups of ``size`` numbers, whose inputs are a and b.

    Args:
        size: of a group, each number of which is a leaf of the carry.
        turning: whether a is a complex number, and a group its two parts.
    """
    numbers = 2 if turning else size**2

    @dataclasses.dataclass(frozen=True)
    class AffineCell(Cell):
        hidden_size: int
        # Type checkers know only fields that are written out, and here `size` says how many.
        carry = collections.namedtuple(  # type: ignore[misc]
            "RecurrenceCarry", [f"h{i}" for i in range(size)]
        )
        gates = ()
        recurrent, output, use_bias = None, None, False
        coupling = Coupling.CONTRACTING
        raw_inputs = property(lambda self: self.hidden_size * (numbers + size))
        output_size = property(lambda self: self.hidden_size * size)

        def update(self, params: Any, x: jax.Array, carry: Any) -> Any:
            decays = jnp.split(x, numbers + size, axis=-1)
            drives = [decays.pop() for _ in carry][::-1]
            if turning:
                real, imag = decays
                decays = [real, -imag, imag, real]
            rows = [decays[i * size : (i + 1) * size] for i in range(size)]
            new = [
                sum((a * h for a, h in zip(row, carry, strict=True)), start=b)
                for row, b in zip(rows, drives, strict=True)
            ]
            return type(carry)(*new), jnp.concatenate(new, axis=-1)

    return AffineCell


@dataclasses.dataclass(frozen=True)
class _MemoryCell(MatrixCell[MatrixCarry]):
    """A cell whose inputs are the parts of its memory, by name and with their shapes in a head."""

    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    gates = ()
    use_bias = False

    @property
    def keys(self) -> int:
        return dict(self.sizes)["key"][0]

    @property
    def raw_inputs(self) -> int:
        return self.heads * sum(math.prod(size) for _, size in self.sizes)

    def memory(self, params: Any, x: jax.Array) -> Memory:
        widths = [self.heads * math.prod(size) for _, size in self.sizes]
        return Memory(**{
            name: part.reshape(*part.shape[:-1], self.heads, *size)
            for (name, size), part in zip(self.sizes, parts(x, widths), strict=True)
        })  # fmt: skip
