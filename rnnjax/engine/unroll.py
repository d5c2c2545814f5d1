"""`unroll`: check the arguments, choose the method, run the cell over the sequence; `explain`."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from rnnjax.cells.arguments import as_array, as_inputs, brief, check_carry, check_key
from rnnjax.cells.base import Carry, Cell, Inputs, Params
from rnnjax.cells.composite import CompositeCell, Noise
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.products import at_least_float32
from rnnjax.engine.fused import Fused
from rnnjax.engine.method import Method
from rnnjax.engine.plan import this_platform
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps, expand
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """Choose for each layer: `Fused` where it can serve the cell, else `Scan`.

    A sequence of one step has nothing to take out of the loop, so it runs on `Scan`, which then
    needs no loop: at LSTM(50), batch 1, forward and backward, this compiles and runs in 0.93 of the
    time.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def choose(self, cell: Cell, num_steps: int = 2) -> Method:
        """Return the method that runs ``cell`` over so many steps.

        >>> from rnnjax import GRUCell
        >>> Auto().choose(GRUCell(4)) == Fused()
        True
        >>> Auto().choose(GRUCell(4), num_steps=1)
        Scan()
        """
        return Scan() if num_steps == 1 or Fused().refusal(cell) else Fused()

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen."""
        return self.choose(cell, xs.shape[0]).run(cell, params, xs, carry, reverse, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Which method is chosen, why, and how that would run."""
        chosen = self.choose(cell, shape[0])
        reason = Fused().refusal(cell)
        if reason:
            why = f"Scan(), because {reason}"
        elif shape[0] == 1:
            why = "Scan(), because a single step has nothing to take out of a loop"
        else:
            why = "Fused(), because the cell declares its equation"
        return [f"chose {why}", *chosen.explain(cell, params, shape, platform)]


def unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_carry: Carry | None = None,
    masked_outputs: Literal["zero", "last"] = "zero",
    reverse: bool = False,
    key: jax.Array | None = None,
    method: Method = Auto(),
) -> tuple[Carry, jax.Array]:
    """Run a cell, or a stack of them, over a sequence.

    Equal to this loop, in outputs and gradients, whatever the method::

        for t in range(len(xs)):              # from the last step to the first with reverse
            carry = where(resets[t], reset_carry, carry)
            new, ys[t] = cell.step(params, carry, xs[t])
            carry = where(mask[t], new, carry)
            ys[t] = where(mask[t], ys[t], 0)

    State goes in and comes out. Feeding the carry back is Keras's ``stateful=True``; leaving it out
    is ``reset_states()``; ``jax.lax.stop_gradient`` on it truncates backpropagation through time.

    Args:
        cell: what one time step computes.
        params: the cell's parameters, as ``cell.init`` returns them.
        xs: ``(time, *batch, input_size)``, time first; usually one batch axis. One-hot vectors can
            be given as ``rnnjax.OneHot(ids, input_size)``.
        carry: the state before the first step; left out, that with which a sequence begins:
            ``reset_carry`` if that is given, else ``cell.start``, which is zeros for most cells,
            in float32 or the parameters' type if that is wider.
        lengths: integers ``(*batch,)``, the valid steps of each row, of which those after them are
            padding: masked. Of 0 to ``time``; inside of ``jit``, where values are not known, larger
            ones count as ``time``.
        mask: booleans ``(time, *batch)``, False where a step of a row is to be skipped: it holds
            the carry, its output is zero, and its inputs have no influence, be they NaN. The final
            carry is that of each row's last valid step. With ``lengths`` both must be true.
        resets: booleans ``(time, *batch)``, True where a new sequence begins with that step of that
            row: whatever came before is cut off, values and gradients. Running forward,
            ``reset_carry`` takes the place of the carry before step t, and running in reverse,
            of that between t and t - 1. A reset counts at a masked step too.
        reset_carry: the state with which a sequence begins at a reset, shaped like the carry or
            without the batch axes; its gradient is that of all resets. Left out, ``cell.start``.
        masked_outputs: ``"zero"``, or ``"last"`` for the output of the row's last valid step, zeros
            where there is none since the sequence began (Keras's default).
        reverse: run from the last step to the first. ``ys[t]`` still belongs to ``xs[t]``; with
            ``lengths`` each row begins at its own last step.
        key: of the random numbers of `Regularized` cells and of dropout in a `Stack`, which without
            one draw nothing, as for prediction.
        method: how to run: ``Scan()``, ``Fused()`` or ``Auto()``. All give the same numbers; one
            that is named either runs or raises.

    ``lengths``, ``mask`` and ``resets`` may leave out batch axes at the end, and then are for all
    rows along those.

    Returns:
        the carry after the last step that ran, and ``ys (time, *batch, output_size)``.

    Raises:
        InvalidInputError: an argument has the wrong rank, type, features, structure or batch, or
            the named method cannot run this cell.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jnp.ones((10, 8, 3))
    >>> carry, ys = rnnjax.unroll(cell, params, xs)
    >>> carry.hidden.shape, ys.shape
    ((8, 5), (10, 8, 5))
    >>> carry, first = rnnjax.unroll(cell, params, xs[:4])
    >>> carry, second = rnnjax.unroll(cell, params, xs[4:], carry)
    >>> bool(jnp.allclose(ys, jnp.concatenate([first, second])))
    True

    The first row has three steps, and a new sequence begins at its second:

    >>> lengths = jnp.array([3] + [10] * 7)
    >>> resets = jnp.zeros((10, 8), bool).at[1, 0].set(True)
    >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=lengths, resets=resets)
    >>> bool(jnp.all(ys[3:, 0] == 0)), bool(jnp.allclose(ys[1, 0], ys[0, 0]))
    (True, True)
    """
    xs, carry = _checked(cell, params, xs, carry, reset_carry, method)
    valid = _valid(xs, lengths, mask)
    if resets is not None:
        resets = _checked_marks("resets", resets, xs)
        begin = _begin(cell, params, xs, reset_carry, carry)
        carry = jax.tree.map(_Leaf, carry, begin)
    elif reset_carry is not None:
        _begin(cell, params, xs, reset_carry, carry)
    if masked_outputs not in ("zero", "last"):
        raise InvalidInputError(
            f'masked_outputs must be "zero" or "last", but is {brief(masked_outputs)}'
        )
    if key is not None:
        check_key(key)
    if not isinstance(reverse, bool | np.bool_):
        raise InvalidInputError(
            f"reverse must be True or False, known before the program runs, but is {brief(reverse)}"
        )
    how = _How(method, masked_outputs == "last")
    return _unroll(cell, params, xs, carry, _Marks(valid, resets), key, how, bool(reverse))


class _Leaf(NamedTuple):
    """A leaf of the carry together with that of the start of a sequence, where there are resets.

    So that composites split both with one tree.
    """

    now: jax.Array
    start: jax.Array


class _Marks(NamedTuple):
    valid: jax.Array | None = None
    resets: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class _How:
    """All of a call that is static, and the same for every layer."""

    method: Method
    last_outputs: bool


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    marks: _Marks,
    key: jax.Array | None,
    how: _How,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """Compiled here, so that calls outside of jit compile once per shape too."""
    if marks.valid is not None:
        xs = _without_masked(xs, marks.valid)

    def run(
        cell: Cell,
        params: Params,
        xs: Any,
        carry: Carry,
        *,
        key: jax.Array | None = None,
        reverse: bool = False,
        noise: Noise | None = None,
        outer_reverse: bool = reverse,
    ) -> tuple[Carry, jax.Array]:
        reverse = reverse != outer_reverse
        if isinstance(cell, CompositeCell):
            inner = functools.partial(run, outer_reverse=reverse)
            return cell.unroll_layers(inner, params, xs, carry, key)
        return _unroll_layer(cell, params, xs, carry, marks, noise or Noise(), how, reverse)

    return run(cell, params, xs, carry, key=key)


# Compiled by itself, so that equal layers of a stack are traced once.
@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _unroll_layer(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry,
    marks: _Marks,
    noise: Noise,
    how: _How,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    _check_method(cell, how.method)
    _check_noise(cell, noise)
    params, xs, carry, marks, noise = _alike_over_devices((params, xs, carry, marks, noise))
    valid, resets = marks
    start = None
    if resets is not None:
        carry, start = (_part(carry, part) for part in ("now", "start"))
        if reverse:  # the border before step t is crossed after it
            resets = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    steps = Steps.of(valid, resets, start, noise)
    carry, ys = how.method.run(cell, params, xs, carry, reverse, steps)
    if how.last_outputs and valid is not None:
        ys = _hold(ys, valid, resets, reverse)
    return carry, ys


def _alike_over_devices(tree: Any) -> Any:
    """The same arrays, all of them varying over the mesh axes over which any does.

    Inside of ``jax.shard_map`` a loop's state has to vary over the same axes as what is added to
    it. The gradient of an array that is the same on all devices is then their sum, as it should be.
    """
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def varying(leaf: Any) -> Any:
        missing = axes - _varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(varying, tree) if axes else tree


def _varying_axes(leaf: Any) -> frozenset[str]:
    """The mesh axes over which an array varies; JAX before 0.10 had another name for them."""
    kind: Any = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())


def _part(carry: Carry, name: str) -> Carry:
    return jax.tree.map(
        lambda leaf: getattr(leaf, name), carry, is_leaf=lambda node: isinstance(node, _Leaf)
    )


def _without_masked(xs: Any, valid: jax.Array) -> Any:
    """The inputs with zeros at masked steps, so that whatever stood there has no gradient."""
    if isinstance(xs, OneHot):
        return OneHot(jnp.where(expand(valid, xs.ids), xs.ids, -1), xs.size)
    return jnp.where(expand(valid, xs), xs, 0)


def _hold(ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool) -> jax.Array:
    """At masked steps the output of the last valid one before, in the order in which they ran."""

    def step(last: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        y, valid, resets = at
        if resets is not None:
            last = jnp.where(expand(resets, last), 0, last)
        last = jnp.where(expand(valid, y), y, last)
        return last, last

    zeros, ys = _alike_over_devices((jnp.zeros(ys.shape[1:], ys.dtype), ys))
    return jax.lax.scan(step, zeros, (ys, valid, resets), reverse=reverse)[1]


def _check_method(cell: Cell, method: Method) -> None:
    reason = method.refusal(cell)
    if reason:
        raise InvalidInputError(
            f"{method} cannot run {brief(cell)}, because {reason}; use method=Scan() or "
            "method=Auto()"
        )


def _check_noise(cell: Cell, noise: Noise) -> None:
    if noise and cell.carry is None:
        raise InvalidInputError(
            f"recurrent dropout and zoneout cannot reach inside of {brief(cell)}, because it "
            "declares no carry and update, but a step; use them with another cell"
        )
    if noise.recurrent is not None and cell.recurrent is None:
        raise InvalidInputError(
            f"recurrent dropout needs a product of the state before the update, which "
            f"{brief(cell)} has not; leave it out"
        )


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How each layer would run; its string is meant to be read.

    Attributes:
        layers: for each layer its cell, the shape of its inputs, and phrases on how it runs.
    """

    layers: tuple[tuple[Cell, tuple[int, ...], tuple[str, ...]], ...]

    def __str__(self) -> str:
        lines = []
        for cell, shape, phrases in self.layers:
            name = f"{type(cell).__name__}({getattr(cell, 'hidden_size', cell.output_size)})"
            lines += [f"{name} over inputs {shape}", *(f"- {phrase}" for phrase in phrases)]
        return "\n".join(lines)


def explain(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry | None = None,
    *,
    method: Method = Auto(),
    platform: str | None = None,
) -> Explanation:
    """Say which method and form `unroll` would run each layer by, and why; nothing is computed.

    Args:
        cell: as in `unroll`, and so are the other arguments; arrays can be given as
            ``jax.ShapeDtypeStruct``.
        params: see there.
        xs: see there.
        carry: see there.
        method: see there.
        platform: for which the program would be lowered, such as ``"cpu"``, ``"tpu"`` or
            ``"cuda"``; None for that of JAX's first device.

    Raises:
        InvalidInputError: as `unroll` would.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> print(explain(cell, params, jnp.ones((10, 8, 3)), method=rnnjax.Scan()))
    LSTMCell(5) over inputs (10, 8, 3)
    - the cell's step at each time step, differentiated by JAX
    """
    layers = []

    def run(cell: Cell, params: Params, xs: Any, carry: Carry, **_: Any) -> tuple[Carry, jax.Array]:
        if isinstance(cell, CompositeCell):
            return cell.unroll_layers(run, params, xs, carry, None)
        _check_method(cell, method)
        result = method.run(cell, params, xs, carry, False, Steps())  # raises what unroll would
        phrases = method.explain(cell, params, xs.shape, platform or this_platform())
        layers.append((cell, xs.shape, tuple(phrases)))
        return result

    def whole(params: Params, xs: Any, carry: Carry | None) -> Any:
        return run(cell, params, *_checked(cell, params, xs, carry, None, method))

    jax.eval_shape(whole, params, xs, carry)
    return Explanation(tuple(layers))


def _checked(
    cell: Cell, params: Params, xs: Any, carry: Carry | None, reset_carry: Carry, method: Method
) -> tuple[Any, Carry]:
    """The inputs as arrays, and the carry, made if there is none."""
    if not isinstance(cell, Cell):
        raise InvalidInputError(
            f"cell must be a Cell such as rnnjax.LSTMCell(50), but is {brief(cell)}; it comes "
            "first, (cell, params, xs), and a class has to be called with its hidden size before"
        )
    if not isinstance(method, Method):
        raise InvalidInputError(f"method must be Scan(), Fused() or Auto(), but is {brief(method)}")
    xs = as_inputs(xs)
    if xs.ndim < 2:
        raise InvalidInputError(
            f"xs must be (time, batch, features), or (time, features) without a batch, but has "
            f"shape {xs.shape}; add the axes that are missing"
        )
    if carry is None:
        types = [jnp.float32]
        types += [leaf.dtype for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
        carry = cell.start(params, xs.shape[1:-1], at_least_float32(jnp.result_type(*types)))
        if reset_carry is not None:
            carry = _begin(cell, params, xs, reset_carry, carry)
    else:
        carry = jax.tree.map(functools.partial(as_array, "carry"), carry)
        check_carry("carry", cell, carry, xs.shape[1:-1])
    return xs, carry


def _begin(cell: Cell, params: Params, xs: Any, reset_carry: Carry | None, like: Carry) -> Carry:
    """The carry with which a sequence begins, in the shapes and types of ``like``."""
    batch = xs.shape[1:-1]
    if reset_carry is None:
        reset_carry = cell.start(params, batch)
    else:
        reset_carry = jax.tree.map(functools.partial(as_array, "reset_carry"), reset_carry)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(reset_carry)]
        alone = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_carry))]
        check_carry("reset_carry", cell, reset_carry, () if shapes == alone else batch)
    return jax.tree.map(
        lambda leaf, now: jnp.broadcast_to(leaf, now.shape).astype(now.dtype), reset_carry, like
    )


def _valid(xs: Any, lengths: Any, mask: Any) -> jax.Array | None:
    """Where steps are valid, from the lengths and the mask; None where all are."""
    if mask is not None:
        mask = _checked_marks("mask", mask, xs)
    if lengths is None:
        return mask
    # As NumPy's where they are known, for inside of jit JAX would trace even constants.
    known: Any = None if isinstance(lengths, jax.core.Tracer) else lengths
    lengths, batch = as_array("lengths", lengths), xs.shape[1:-1]
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidInputError(
            f"lengths must be integers, the number of valid steps of each row, but are "
            f"{lengths.dtype}; booleans for each step are given as mask"
        )
    if lengths.shape != batch[: lengths.ndim]:
        raise InvalidInputError(
            f"lengths must have shape {batch}, for the batch {batch} of xs, but has "
            f"{lengths.shape}; give one length for each row"
        )
    if known is not None and lengths.size:
        known = np.asarray(known)
        least, most = int(known.min()), int(known.max())
        num_steps = xs.shape[0]
        if least < 0 or (not is_symbolic_dim(num_steps) and most > num_steps):
            raise InvalidInputError(
                f"lengths must lie between 0 and the {num_steps} steps of xs, but go from {least} "
                f"to {most}; check that time is the first axis of xs {xs.shape}"
            )
    times = jnp.arange(xs.shape[0]).reshape(-1, *[1] * lengths.ndim)
    valid = times < lengths
    if mask is None:
        return valid
    axes = max(valid.ndim, mask.ndim)
    valid, mask = (m.reshape(*m.shape, *[1] * (axes - m.ndim)) for m in (valid, mask))
    return valid & mask


def _checked_marks(name: str, marks: Any, xs: Any) -> jax.Array:
    """The mask or the resets as an array ``(time, *rows)``."""
    marks, wanted = as_array(name, marks), xs.shape[:-1]
    if marks.dtype != jnp.bool_:
        raise InvalidInputError(
            f"{name} must be booleans, but are {marks.dtype}; write {name}.astype(bool)"
        )
    if marks.ndim == 0 or marks.shape != wanted[: marks.ndim]:
        raise InvalidInputError(
            f"{name} must have shape {wanted}, (time, *batch), for xs {xs.shape}, but has "
            f"{marks.shape}; check which axis is time"
        )
    return marks
