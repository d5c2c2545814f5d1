"""`check_cell`: whether a cell keeps what it declares, in one line of its own tests."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import (
    brief,
    check_flag,
    check_instance,
    check_size,
    is_floating,
    usual_promotion,
)
from rnnjax.cells.base import Carry, Cell, Coupling, Params, Role
from rnnjax.cells.composite import CompositeCell
from rnnjax.engine import Auto, Method, Scan, unroll
from rnnjax.engine.parallel.linear_recurrence import affine
from rnnjax.online.units import why_not_unitwise

__all__ = ["check_cell"]

# Many rows, of which pairs, halves, thirds and those a few apart may interact; and two axes of
# rows, of which the second stands where the units of a single one do.
_ROWS, _GRID = (12,), (3, 2)
# A row that is so much larger than the others shows in them, as in a norm or a maximum.
_LARGE = 2000
# The sizes of states, one of each row: a cell may be affine where they are small alone.
_SIZES = np.logspace(-2, 6, 64)
# What of a step is compared, in this order.
_BY_PARAMETERS = "gradient by the parameters"
_RETURNED = "new carry", "output"
_RESULTS = *_RETURNED, _BY_PARAMETERS, "gradient by the carry", "gradient by the inputs"


@usual_promotion()
def check_cell(cell: Cell, *, input_size: int = 3, online: bool = False) -> None:
    """Raise unless a cell keeps what it declares; for the tests of a cell of one's own.

    No way of running a cell verifies what the cell promises, and a false promise gives wrong
    numbers. Here a few numbers are drawn, the cell runs, and the first law that does not hold is
    named:

    - its parameters are those of every number of input features, but for the sizes of kernels;
    - a step of the same arguments has the same results;
    - no row of a batch depends on another, in values and in gradients, over any number of batch
      axes, so that axes are counted from the last;
    - its `rnnjax.Coupling` holds, for states of sizes from 0.01 to a million;
    - no NaN of a masked step is in outputs and gradients, and `rnnjax.Auto` gives the numbers of
      `rnnjax.Scan`.

    Of a cell with a ``step`` of its own, whose rows may interact, the second and the last are
    checked; of a combination of cells, as a `rnnjax.Stack`, the last.

    Numbers that are drawn cannot prove a law. A promise that is broken in few places, as by a
    threshold between two close states, may pass.

    Args:
        cell: a small one, as of 4 units: it is compiled four times.
        input_size: the number of input features.
        online: whether it has to serve those learners of `rnnjax.online` that take each unit by
            itself, too: entry ``k`` of a parameter belongs to unit ``k % hidden_size``.

    Raises:
        AssertionError: a law does not hold, in one sentence, as tests expect it.
        InvalidInputError: an argument is of the wrong type.

    >>> import rnnjax
    >>> check_cell(rnnjax.MinGRUCell(4))
    >>> class BatchNormCell(rnnjax.MinGRUCell):
    ...     def update(self, params, x, carry):
    ...         return super().update(params, x - x.mean(axis=0), carry)
    >>> check_cell(BatchNormCell(4))
    Traceback (most recent call last):
        ...
    AssertionError: rows of a batch must not interact in BatchNormCell(4), but in a batch of (12,) \
the new carry.hidden is not that of each row by itself; count axes from the last, or write a step \
of its own
    """
    check_instance("cell", cell, Cell, "a cell such as rnnjax.LSTMCell(4)")
    check_size("input_size", input_size)
    check_flag("online", online)
    laws: list[Callable[[Cell, Params, int], str | None]] = [_masks_hold]
    if cell.carry is not None:
        laws = [_parameters_stay, _rows_are_apart, _coupling_holds, _masks_hold]
        laws += [_entries_belong_to_units] if online else []
    elif not isinstance(cell, CompositeCell):
        laws = [_step_repeats, _masks_hold]
    with jax.default_matmul_precision("highest"):
        params = _initialised(cell, input_size)
        for law in laws:
            if broken := law(cell, params, input_size):
                raise AssertionError(broken)


# ---- the laws: each returns what is broken, in a sentence


def _parameters_stay(cell: Cell, params: Params, input_size: int) -> str | None:
    """Whether the engine may ask for them with one input feature."""

    def fixed(size: int) -> dict[str, Any]:
        found = {}
        for name, (shape, _, role) in cell.parameters(size).items():
            # The kernels of the inputs have an axis of so many features.
            shapes = {Role.INPUT: (*shape[:-2], *shape[-1:]), Role.OUT: ()}
            found[name] = role, shapes.get(role, shape)
        return found

    expected, others = fixed(1), {input_size, 2, 7}
    for shape in cell.carry_shapes.values():
        others |= {*shape, math.prod(shape)}
    for size in sorted(others):
        try:
            came = fixed(size)
        except Exception:  # whatever a user's own method raises for a size that it does not take
            if size == input_size:
                raise
            continue
        odd = [name for name in came | expected if came.get(name) != expected.get(name)]
        if odd:
            return (
                f"parameters of {brief(cell)} must be the same for any number of input features, "
                f"but for the sizes of kernels, but {odd[0]} is another with {size} than with 1; "
                "make what it depends on a field of the cell"
            )
    return None


def _step_repeats(cell: Cell, params: Params, input_size: int) -> str | None:
    args = _drawn(cell, params, input_size, (3,))

    @jax.jit
    def run(*args: Any) -> Any:
        return _named(*cell.step(*args)), _named(*cell.step(*args))

    (first, second), (again, _) = jax.device_get((run(*args), run(*args)))
    odd = _differs(cell, first, second) or _differs(cell, first, again)
    return odd and _not_repeated(cell, odd)


def _not_repeated(cell: Cell, odd: str) -> str:
    return (
        f"the step of {brief(cell)} must be a function of its arguments, but its {odd} differs "
        "from one call to the next of the same ones; let it draw and remember nothing"
    )


def _rows_are_apart(cell: Cell, params: Params, input_size: int) -> str | None:
    """Each row is to be what it is by itself, and so is what comes back to it."""

    @functools.partial(jax.jit, static_argnums=3)
    def run(params: Params, carry: Carry, x: jax.Array, axes: int) -> Any:
        alone: Any = cell.step
        for _ in range(axes):
            alone = jax.vmap(alone, in_axes=(None, 0, 0))
        whole, again = (_named(*cell.step(params, carry, x)) for _ in range(2))
        if axes > 1:  # what comes back is seen in one batch
            return whole, _named(*alone(params, carry, x)), again
        return *(_with_gradients(step, params, carry, x) for step in (cell.step, alone)), again

    for batch in (_ROWS, _GRID):
        used, carry, x = _drawn(cell, params, input_size, batch)
        try:
            whole, alone, again = jax.device_get(run(used, carry, x, len(batch)))
        except Exception as error:  # whatever a user's own update raises
            return (
                f"{brief(cell)} must run over any number of batch axes, and over none, but with "
                f"those of {batch} it raised {_first_line(error)}; count axes from the last"
            )
        if odd := _differs(cell, again, whole):
            return _not_repeated(cell, odd)
        odd = _differs(cell, whole, alone)
        if odd is None:
            carry, x = jax.tree.map(_with_a_large_row, (carry, x))
            found = jax.device_get(run(used, carry, x, len(batch))[:2])
            # The gradient by the parameters is a sum over all rows, in which the others are small.
            rows = [{n: v for n, v in one.items() if n != _BY_PARAMETERS} for one in found]
            odd = _differs(cell, *jax.tree.map(lambda leaf: leaf[1:], rows))
        if odd:
            return (
                f"rows of a batch must not interact in {brief(cell)}, but in a batch of {batch} "
                f"the {odd} is not that of each row by itself; count axes from the last, or write "
                "a step of its own"
            )
    return None


def _coupling_holds(cell: Cell, params: Params, input_size: int) -> str | None:
    word = cell.coupling
    if word is Coupling.ANY:
        return None
    promise = f"coupling of {brief(cell)} is declared as {word.name}, but"
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
    if len({leaf.shape for leaf in leaves}) > 1 or not all(is_floating(v.dtype) for v in leaves):
        kinds = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in leaves)
        return (
            f"{promise} its carry has the leaves {kinds}, of which no units are made; declare ANY"
        )

    @jax.jit
    def run(params: Params, x: jax.Array, one: Carry, other: Carry, chosen: jax.Array) -> Any:
        met = cell.meet(cell.project(params, x), cell.recur(params, one))

        def update(carry: Carry) -> Carry:
            return cell.advance(params, met, carry)[0]

        mixed = jax.tree.map(functools.partial(jnp.where, chosen), one, other)
        new, *others = (update(carry) for carry in (one, other, mixed))
        if word < Coupling.AFFINE:
            return new, others, None
        return new, others, affine(update, jax.tree.map(jnp.zeros_like, one))

    rng = np.random.default_rng(1)
    for noise in (0.1, 3.0):
        used, one, x = _drawn(cell, params, input_size, _SIZES.shape, _SIZES, noise)
        _, other, _ = _drawn(cell, params, input_size, _SIZES.shape, _SIZES, noise, seed=2)
        chosen = rng.random(one[0].shape) < 0.5
        try:
            found = run(used, x, one, other, chosen)
        except Exception as error:  # whatever a user's own derivative raises
            return f"{promise} its update raised {_first_line(error)}; declare what it can do"
        new, (new_other, new_mixed), solved = jax.device_get(found)
        for a, b, c in zip(new, new_other, new_mixed, strict=True):
            if not _near(c, np.where(chosen, a, b), _largest(a) + _largest(b), cell):
                return f"{promise} units see each other's state in its update; declare ANY"
        if solved is None:
            continue
        constants, factors = solved
        for leaf, constant, row in zip(new, constants, factors, strict=True):
            parts = [constant, *(f * s for f, s in zip(row, one, strict=True))]
            scale = np.sum([_largest(part) for part in parts], axis=0)
            if not _near(leaf, np.sum(parts, axis=0), scale, cell):
                return f"{promise} its new state is not affine in the old one; declare ELEMENTWISE"
        matrices = np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in factors], -2)
        norm = np.linalg.norm(matrices.astype(np.float64), 2, (-2, -1)).max()
        if word is Coupling.CONTRACTING and not norm <= 1 + 10 * _tolerance(cell):
            return f"{promise} a state grows by {norm:.3g} in a step; declare AFFINE"
    return None


def _entries_belong_to_units(cell: Cell, params: Params, input_size: int) -> str | None:
    if reason := why_not_unitwise(cell):
        return f"{brief(cell)} cannot learn online unit by unit, because {reason}"
    one, carry, x = _drawn(cell, params, input_size, (3,), noise=1.0)
    other, _, _ = _drawn(cell, params, input_size, (3,), noise=1.0, seed=2)
    units = carry[0].shape[-1]
    chosen = np.random.default_rng(3).permutation(units) < (units + 1) // 2

    def mixed(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
        places = np.arange(mine.size).reshape(mine.shape) % units
        return np.where(chosen[places], mine, others)

    @jax.jit
    def run(every: list[Params], carry: Carry, x: jax.Array) -> Any:
        return [cell.step(params, carry, x)[0] for params in every]

    every = [one, other, jax.tree.map(mixed, one, other)]
    new, new_other, new_mixed = jax.device_get(run(every, carry, x))
    for a, b, c in zip(new, new_other, new_mixed, strict=True):
        if not _near(c, np.where(chosen, a, b), _largest(a) + _largest(b), cell):
            return (
                f"entry k of each parameter of {brief(cell)} must belong to unit k % {units}, as "
                "learners of rnnjax.online take it, but one reaches another unit; let gates stand "
                "side by side, or learn by RTRL(cell, dense=True) or UORO(cell)"
            )
    return None


def _masks_hold(cell: Cell, params: Params, input_size: int) -> str | None:
    """As parameters are drawn, with biases of zeros: a masked step may divide by its inputs."""
    _, _, xs = _drawn(cell, params, input_size, (6, 3))
    mask = np.ones((6, 3), bool)
    mask[1, 0] = mask[4:, 1] = mask[:2, 2] = False
    xs[~mask] = np.nan

    @jax.jit
    def run(params: Params, xs: jax.Array, mask: jax.Array) -> Any:
        def results(method: Method) -> Any:
            def all_steps(params: Params, _: Any, xs: jax.Array) -> Any:
                return unroll(cell, params, xs, mask=mask, method=method)

            return _with_gradients(all_steps, params, (), xs)

        return results(Scan()), results(Auto())

    scan, auto = jax.device_get(run(params, xs, mask))
    for name, found in scan.items():
        if not all(np.isfinite(v.astype(np.float64)).all() for v in jax.tree.leaves(found)):
            return (
                f"what {brief(cell)} returns must be finite where masked inputs alone are NaN, but "
                f"its {name} is not; let it divide by nothing that is zero where inputs are zeros "
                "or nothing comes back"
            )
    if odd := _differs(cell, scan, auto):
        return (
            f"all ways of running {brief(cell)} must give the same numbers, but the {odd} of "
            "Auto() is not that of Scan(); count axes from the last, and declare no more than holds"
        )
    return None


# ---- numbers


def _initialised(cell: Cell, input_size: int) -> Params:
    try:
        return jax.jit(cell.init, static_argnums=1)(jax.random.key(0), input_size)
    except Exception:  # an initialiser of a user's own need not be traceable
        return cell.init(jax.random.key(0), input_size)


def _drawn(
    cell: Cell,
    params: Params,
    input_size: int,
    batch: tuple[int, ...],
    sizes: Any = 1.0,
    noise: float = 0.1,
    seed: int = 1,
) -> tuple[Params, Any, np.ndarray]:
    """Parameters, a carry of so many rows and of these sizes, and the inputs of a step, as NumPy's.

    What must not be any number stays as it begins: the leaves of a carry that are not free, those
    of a step of a user's own, and integers.
    """
    rng = np.random.default_rng(seed)

    def noisy(leaf: Any, sizes: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if not is_floating(leaf.dtype):
            return leaf
        sizes = np.reshape(sizes, np.shape(sizes) + (1,) * (leaf.ndim - np.ndim(sizes)))
        return leaf + (sizes * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params = jax.tree.map(functools.partial(noisy, sizes=noise), jax.device_get(params))
    grid = [3] * (params["kernel"].ndim - 2) if cell.carry is not None else []
    carry = jax.device_get(cell.initial_carry((*batch, *grid)))
    if cell.carry is not None:
        free = getattr(carry, "free", carry._fields)
        carry = carry._replace(**{name: noisy(getattr(carry, name), sizes) for name in free})
    # Of other sizes than the states of the same rows.
    sizes = rng.permutation(np.minimum(sizes, 10)) if np.ndim(sizes) else sizes
    return params, carry, noisy(np.zeros((*batch, *grid, input_size), np.float32), sizes)


def _with_a_large_row(leaf: np.ndarray) -> np.ndarray:
    leaf = leaf.copy()
    if is_floating(leaf.dtype):
        leaf[0] *= _LARGE
    return leaf


def _with_gradients(step: Any, params: Params, carry: Carry, x: jax.Array) -> dict[str, Any]:
    """What a step returns, and the gradients of a sum in which no two numbers weigh the same."""

    def loss(params: Params, carry: Carry, x: jax.Array) -> Any:
        out = step(params, carry, x)
        total = jnp.float32(0)
        for leaf in jax.tree.leaves(out):
            if is_floating(leaf.dtype):
                weights = 1 + jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)
                total += (weights * leaf.astype(jnp.float32)).sum()
        return total, out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)(
        params, carry, x
    )
    found = dict(zip(_RESULTS, (*out, *gradients), strict=True))
    return jax.tree.map(lambda v: jnp.zeros(v.shape) if v.dtype == jax.dtypes.float0 else v, found)


def _named(carry: Carry, y: jax.Array) -> dict[str, Any]:
    return dict(zip(_RETURNED, (carry, y), strict=True))


def _differs(cell: Cell, one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What of two results differs, in words; None where nothing does."""
    for name in (name for name in _RESULTS if name in one):
        leaves = jax.tree_util.tree_leaves_with_path(one[name])
        for (path, a), b in zip(leaves, jax.tree.leaves(other[name]), strict=True):
            if not _near(a, b, _largest(b, 0), cell):
                return name + jax.tree_util.keystr(path)
    return None


def _largest(leaf: np.ndarray, rows: int = 1) -> np.ndarray:
    """The largest entry that is a number, of each row."""
    leaf = np.abs(np.nan_to_num(leaf.astype(np.float64), posinf=0, neginf=0))
    return leaf.max(axis=tuple(range(rows, leaf.ndim)), keepdims=True, initial=1e-6)


def _near(a: np.ndarray, b: np.ndarray, scale: np.ndarray, cell: Cell) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    near = np.abs(a - b) <= _tolerance(cell) * scale
    return bool(np.all(near | (a == b) | (np.isnan(a) & np.isnan(b))))


def _tolerance(cell: Cell) -> float:
    """Some roundings of the type that the cell computes in."""
    dtypes = [d for d in (cell.dtype, cell.param_dtype) if d is not None]
    return max(1e-4, *(16 * float(jnp.finfo(dtype).eps) for dtype in dtypes))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]
