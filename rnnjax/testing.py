"""`check_cell` tests in one line whether a cell satisfies what it declares."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Carry, Cell, Coupling, Params, Role
from rnnjax.cells.composite import CompositeCell
from rnnjax.cells.step import apply_update, multiplied, split_raw, update_input
from rnnjax.checks import (
    brief,
    check_flag,
    check_instance,
    check_size,
    is_floating,
    usual_promotion,
)
from rnnjax.engine import Auto, Method, Scan, unroll
from rnnjax.engine.parallel.linear_recurrence import affine
from rnnjax.online import why_not_unitwise

__all__ = ["check_cell"]

# Many rows, of which pairs, halves, thirds and near ones may interact; and two axes of rows, the
# second at the position of the units of a single axis.
_BATCHES = (12,), (3, 2)
# A row that is this much larger than the others affects them in a norm or a maximum.
_LARGE = 2000
# The sizes of states, one per row: a cell may be affine only for small ones.
_SIZES = np.logspace(-2, 6, 64)
# The results of a step that are compared, in order.
_BY = (f"gradient by the {argument}" for argument in ("carry", "inputs", "parameters"))
_RESULTS = "new carry", "output", *_BY


@usual_promotion()
def check_cell(cell: Cell, *, input_size: int | None = None, online: bool = False) -> None:
    """Raise unless a cell satisfies what it declares; for the tests of your own cell.

    The methods do not verify what a cell promises, and a false promise gives wrong numbers. This
    function runs the cell on a few random numbers, and names the first law that does not hold:

    - The parameters are the same for every number of input features, except the sizes of kernels.
    - A step with the same arguments has the same results.
    - No row of a batch depends on another, in values and gradients, for any number of batch axes.
      So axes must be counted from the last.
    - The `rnnjax.Coupling` holds, for states from 0.01 to a million in size.
    - No NaN of a masked step reaches outputs or gradients, and `rnnjax.Auto` gives the numbers of
      `rnnjax.Scan`.
    - Each number of the parameters can learn from where `init` lets it begin. At 0 behind a relu
      it could not: its gradient is 0 in every step of training.

    For a cell with its own ``step``, whose rows may interact, only the second and the last two are
    checked. For a combination of cells, such as a `rnnjax.Stack`, only the last two are checked.

    Random numbers cannot prove a law. A promise that fails only for a few inputs, as at a threshold
    between two close states, may pass.

    Args:
        cell: a small cell, for example of 4 units: it is compiled five times.
        input_size: the number of input features, by default three and those that ``raw`` names.
            The latter are sampled as gaps and marks: none is below zero, and some are zero.
        online: whether to check also what `rnnjax.online` needs: entry ``k`` of a parameter belongs
            to unit ``k % hidden_size``.

    Raises:
        AssertionError: a law does not hold, in one sentence.
        InvalidInputError: an argument has the wrong type.

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
    if input_size is None:
        input_size = 3 + cell.raw_size
    check_size("input_size", input_size)
    check_flag("online", online)
    with jax.default_matmul_precision("highest"):
        params = jax.device_get(cell.init(jax.random.key(0), input_size))
        if cell.carry is not None:
            _parameters_stay(cell, input_size)
        if not isinstance(cell, CompositeCell):
            _rows_are_apart(cell, params, input_size)
        if cell.coupling > Coupling.ANY:
            _coupling_holds(cell, params, input_size)
        _masks_hold(cell, params, input_size)
        if online:
            _entries_belong_to_units(cell, params, input_size)


# ---- the laws: each raises one sentence


def _parameters_stay(cell: Cell, input_size: int) -> None:
    """Check the parameters, which the engine may ask for with one input feature."""

    def fixed(size: int) -> dict[str, Any]:
        found = {}
        for name, (shape, _, role) in cell.parameters(size).items():
            # The kernels of the inputs have an axis of features.
            shapes = {Role.INPUT: (*shape[:-2], *shape[-1:]), Role.OUT: ()}
            found[name] = role, shapes.get(role, shape)
        return found

    expected = fixed(1 + cell.raw_size)
    sizes = {2, 7, input_size, cell.output_size}.union(*cell.carry_shapes.values())
    for size in sorted(sizes):
        try:
            came = fixed(size)
        except (ValueError, AssertionError):  # a size that the cell refuses
            continue
        odd = [name for name in came | expected if came.get(name) != expected.get(name)]
        if odd:
            raise AssertionError(
                f"parameters of {brief(cell)} must be the same for any number of input features, "
                f"except the sizes of kernels, but {odd[0]} is another with {size} than with 1; "
                "make what it depends on a field of the cell"
            )


def _rows_are_apart(cell: Cell, params: Params, input_size: int) -> None:
    """Check that a row does not depend on others, except in a user's own ``step``."""
    by_itself = cell.carry is not None

    @functools.partial(jax.jit, static_argnums=3)
    def run(params: Params, carry: Carry, x: jax.Array, axes: int) -> Any:
        alone: Any = cell.step
        for _ in range(axes):
            alone = jax.vmap(alone, in_axes=(None, 0, 0))
        return [_results(step, params, carry, x) for step in (cell.step, cell.step, alone)]

    for batch in _BATCHES if by_itself else _BATCHES[:1]:
        axes = len(batch) if by_itself else 0
        used, carry, x = _drawn(cell, params, input_size, batch)
        larger = jax.tree.map(_with_a_large_row, (carry, x))
        try:
            whole, again, alone = jax.device_get(run(used, carry, x, axes))
            large = jax.device_get(run(used, *larger, axes))
        except Exception as error:  # whatever a user's own update raises
            raise AssertionError(
                f"{brief(cell)} must run over any number of batch axes, and over none, but with "
                f"those of {batch} it raised {_first_line(error)}; count axes from the last"
            ) from error
        if odd := _differs(cell, again, whole):
            raise AssertionError(
                f"the step of {brief(cell)} must be a function of its arguments, but its {odd} "
                "differs from one call to the next of the same ones; let it draw and remember "
                "nothing"
            )
        # The gradient of the parameters is a sum over all rows, which hides small rows.
        others = [jax.tree.map(lambda leaf: leaf[1:], found[:-1]) for found in large]
        if odd := _differs(cell, whole, alone) or _differs(cell, others[0], others[2]):
            raise AssertionError(
                f"rows of a batch must not interact in {brief(cell)}, but in a batch of {batch} "
                f"the {odd} is not that of each row by itself; count axes from the last, or write "
                "a step of its own"
            )


def _coupling_holds(cell: Cell, params: Params, input_size: int) -> None:
    word = cell.coupling
    promise = f"coupling of {brief(cell)} is declared as {word.name}, but"
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
    if len({leaf.shape for leaf in leaves}) > 1 or not all(is_floating(v.dtype) for v in leaves):
        kinds = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in leaves)
        raise AssertionError(
            f"{promise} its carry has the leaves {kinds}, of which no units are made; declare ANY"
        )

    @jax.jit
    def run(params: Params, x: jax.Array, *carries: Carry) -> Any:
        x, raw = split_raw(cell, x)
        given = update_input(cell, params, multiplied(cell, params, x, cell.dtype), carries[0])

        def update(carry: Carry) -> Carry:
            return apply_update(cell, params, given, carry, raw)[0]

        zeros = jax.tree.map(jnp.zeros_like, carries[0])
        parts = affine(update, zeros) if word >= Coupling.AFFINE else (zeros, None)
        return [update(carry) for carry in carries], *parts

    for noise in (0.1, 3.0):
        used, one, x = _drawn(cell, params, input_size, _SIZES.shape, noise, _SIZES)
        _, other, _ = _drawn(cell, params, input_size, _SIZES.shape, noise, _SIZES, seed=2)
        chosen = np.random.default_rng(1).random(one[0].shape) < 0.5
        mixed = jax.tree.map(functools.partial(np.where, chosen), one, other)
        try:
            new, constants, factors = jax.device_get(run(used, x, one, other, mixed))
        except Exception as error:  # whatever a user's own derivative raises
            raise AssertionError(
                f"{promise} its update raised {_first_line(error)}; declare what it can do"
            ) from error
        if _reach_others(cell, chosen, *new):
            raise AssertionError(
                f"{promise} units see each other's state in its update; declare ANY"
            )
        if factors is None:
            continue
        for leaf, constant, row in zip(new[0], constants, factors, strict=True):
            terms = [constant, *(f * s for f, s in zip(row, one, strict=True))]
            scale = np.sum([_largest(term) for term in terms], axis=0)
            if not _near(cell, leaf, np.sum(terms, axis=0), scale):
                raise AssertionError(
                    f"{promise} its new state is not affine in the old one; declare ELEMENTWISE"
                )
        matrices = np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in factors], -2)
        norm = np.linalg.norm(matrices.astype(np.float64), 2, (-2, -1)).max()
        if word is Coupling.CONTRACTING and not norm <= 1 + 10 * _tolerance(cell):
            raise AssertionError(f"{promise} a state grows by {norm:.3g} in a step; declare AFFINE")


def _entries_belong_to_units(cell: Cell, params: Params, input_size: int) -> None:
    if reason := why_not_unitwise(cell):
        raise AssertionError(f"{brief(cell)} cannot learn online unit by unit, because {reason}")
    one, carry, x = _drawn(cell, params, input_size, (3,), noise=1.0)
    other, _, _ = _drawn(cell, params, input_size, (3,), noise=1.0, seed=2)
    ((units,),) = {*cell.carry_shapes.values()}
    chosen = np.random.default_rng(3).permutation(units) < units / 2

    def mixture(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
        places = np.arange(mine.size).reshape(mine.shape) % units
        return np.where(chosen[places], mine, others)

    step = jax.jit(lambda params: cell.step(params, carry, x)[0])
    mixed = jax.tree.map(mixture, one, other)
    if _reach_others(cell, chosen, *jax.device_get([step(p) for p in (one, other, mixed)])):
        raise AssertionError(
            f"entry k of each parameter of {brief(cell)} must belong to unit k % {units}, as "
            "learners of rnnjax.online take it, but one reaches another unit; let gates stand "
            "side by side"
        )


def _masks_hold(cell: Cell, params: Params, input_size: int) -> None:
    """Check masks where biases are still zero, so that a masked step may divide by zero inputs."""
    _, _, xs = _drawn(cell, params, input_size, (12, 8))
    mask = np.ones((12, 8), bool)
    mask[1, 0] = mask[4:, 1] = mask[:2, 2] = False
    xs[~mask] = np.nan

    @functools.partial(jax.jit, static_argnums=0)
    def run(method: Method, params: Params, xs: jax.Array) -> Any:
        def all_steps(params: Params, _: Any, xs: jax.Array) -> Any:
            return unroll(cell, params, xs, mask=mask, method=method)

        return _results(all_steps, params, (), xs)

    scan, auto = (jax.device_get(run(method, params, xs)) for method in (Scan(), Auto()))
    for name, found in zip(_RESULTS, scan, strict=True):
        if not all(np.isfinite(v.astype(np.float64)).all() for v in jax.tree.leaves(found)):
            raise AssertionError(
                f"what {brief(cell)} returns must be finite where masked inputs alone are NaN, but "
                f"its {name} is not; let it divide by nothing that is zero where inputs are zeros "
                "or nothing comes back"
            )
    if odd := _differs(cell, scan, auto):
        raise AssertionError(
            f"all ways of running {brief(cell)} must give the same numbers, but the {odd} of "
            "Auto() is not that of Scan(); count axes from the last, and declare no more than holds"
        )
    _begins_well(cell, params, lambda params: run(Scan(), params, xs)[-1])


def _begins_well(cell: Cell, params: Params, gradient: Any) -> None:
    """Check that no gradient is 0, whatever comes in, where a number begins but not elsewhere.

    A gradient may be 0 everywhere, as behind a ``stop_gradient``, or until another parameter has
    moved, as behind a factor that begins at 0.
    """
    rng, (paths, tree) = np.random.default_rng(4), jax.tree_util.tree_flatten_with_path(params)

    def learn(moved: Sequence[Any]) -> list[np.ndarray]:
        """Mark the numbers that have a gradient where the marked ones have moved."""
        pairs = [(v, m * rng.normal(size=v.shape)) for (_, v), m in zip(paths, moved, strict=True)]
        there = jax.tree.unflatten(tree, [v + noise.astype(v.dtype) for v, noise in pairs])
        return [np.asarray(slope) != 0 for slope in jax.tree.leaves(gradient(there))]

    now = learn([0] * len(paths))
    for _ in range(3):
        now = [*map(np.logical_or, now, learn(now))]
    draws = [learn([is_floating(v.dtype) for _, v in paths]) for _ in range(6)]
    for (path, _), can, *drawn in zip(paths, now, *draws, strict=True):
        if dead := np.sum(np.any(drawn, axis=0) & ~can):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise AssertionError(
                f"{name} of {brief(cell)} must begin where it can learn, but the gradient of "
                f"{dead} of its {can.size} numbers is 0 there and not elsewhere; begin with "
                "others, such as positive ones before a relu"
            )


# ---- numbers


def _drawn(
    cell: Cell,
    params: Params,
    input_size: int,
    batch: tuple[int, ...],
    noise: float = 0.1,
    sizes: Any = 1.0,
    seed: int = 1,
) -> tuple[Params, Any, Any]:
    """Sample parameters, a carry, and the inputs of a step, as NumPy arrays.

    Leaves that may not hold arbitrary numbers keep their initial value: leaves of a carry that are
    not free, those of a user's own ``step``, and integers.
    """
    rng = np.random.default_rng(seed)

    def noisy(leaf: np.ndarray, sizes: Any) -> np.ndarray:
        if not is_floating(leaf.dtype):
            return leaf
        return leaf + (sizes * rng.normal(size=leaf.shape).T).T.astype(leaf.dtype)

    params = jax.tree.map(functools.partial(noisy, sizes=noise), params)
    grid = [3] * (params["kernel"].ndim - 2) if cell.carry is not None else []
    carry = jax.device_get(cell.initial_carry((*batch, *grid)))
    if cell.carry is not None:
        free = getattr(carry, "free", carry._fields)
        carry = carry._replace(**{name: noisy(getattr(carry, name), sizes) for name in free})
    # With other sizes than the states of the same rows.
    sizes = rng.permutation(np.minimum(sizes, 10)) if np.ndim(sizes) else sizes
    x = noisy(np.zeros((*batch, *grid, input_size), np.float32), sizes)
    gaps = x[..., input_size - cell.raw_size :]
    np.maximum(gaps, 0, out=gaps)
    return params, carry, x


def _with_a_large_row(leaf: np.ndarray) -> np.ndarray:
    return np.concatenate([_LARGE * leaf[:1], leaf[1:]]) if is_floating(leaf.dtype) else leaf


def _results(step: Any, params: Params, carry: Carry, x: jax.Array) -> tuple[Any, ...]:
    """Return the results of a step, and the gradients of a sum with distinct weights."""

    def loss(carry: Carry, x: jax.Array, params: Params) -> Any:
        out = step(params, carry, x)
        total = jnp.float32(0)
        for leaf in jax.tree.leaves(out):
            if is_floating(leaf.dtype):
                weights = 1 + jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)
                total += (weights * leaf.astype(jnp.float32)).sum()
        return total, out

    def comparable(leaf: Any) -> Any:
        if leaf.dtype == jax.dtypes.float0:
            return jnp.zeros(leaf.shape)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    derive = jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    gradients, out = derive(carry, x, params)
    return jax.tree.map(comparable, (*out, *gradients))


def _differs(cell: Cell, one: Sequence[Any], other: Sequence[Any]) -> str | None:
    """Say which results of two steps differ; None if they agree."""
    for name, mine, others in zip(_RESULTS, one, other, strict=False):
        leaves = jax.tree_util.tree_leaves_with_path(mine)
        for (path, a), b in zip(leaves, jax.tree.leaves(others), strict=True):
            if not _near(cell, a, b, _largest(b, 0)):
                return name + jax.tree_util.keystr(path)
    return None


def _reach_others(cell: Cell, chosen: np.ndarray, one: Any, other: Any, mixed: Any) -> bool:
    """Whether ``mixed`` differs from the chosen units of ``one`` or the rest of ``other``."""
    return not all(
        _near(cell, c, np.where(chosen, a, b), np.maximum(_largest(a), _largest(b)))
        for a, b, c in zip(one, other, mixed, strict=True)
    )


def _largest(leaf: np.ndarray, rows: int = 1) -> np.ndarray:
    """Return the largest finite entry of each row."""
    leaf = np.abs(np.nan_to_num(leaf.astype(np.float64), posinf=0, neginf=0))
    return leaf.max(axis=tuple(range(rows, leaf.ndim)), keepdims=True, initial=1e-6)


def _near(cell: Cell, a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> bool:
    """Whether two arrays agree to a tolerance at that scale; NaN agrees with NaN."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity, where both overflow
        near = np.abs(a - b) <= _tolerance(cell) * scale
    return bool(np.all(near | (a == b) | (np.isnan(a) & np.isnan(b))))


def _tolerance(cell: Cell) -> float:
    """Return a few roundings of the type that the cell computes in."""
    dtypes = [d for d in (cell.dtype, cell.param_dtype) if d is not None]
    return max(1e-4, *(16 * float(jnp.finfo(dtype).eps) for dtype in dtypes))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]
