"""Learning while a network runs: gradients at every step, without storing a sequence.

A learner does not go back through stored steps. It carries the *influence* of the parameters on the
state forward in time: that of each parameter on its own unit only. `RTRL` is exact for cells whose
units do not interact. `SnAp1` ignores the effect of a recurrent product between units.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Coupling, Inputs, Params, exportable
from rnnjax.cells.composite import CompositeCell
from rnnjax.cells.declarations import kernels_outside
from rnnjax.cells.onehot import is_array
from rnnjax.cells.products import product
from rnnjax.cells.step import (
    apply_readout,
    apply_update,
    loop_params,
    multiplied,
    update_input,
    update_params,
)
from rnnjax.cells.validation import as_inputs, check_step
from rnnjax.checks import (
    as_array,
    brief,
    check_batch_shape,
    check_instance,
    is_floating,
    state_type,
    usual_promotion,
)
from rnnjax.engine.core.masking import StepMarks, Steps, expand, without
from rnnjax.engine.core.method import why_no_equation
from rnnjax.engine.core.validation import checked_marks, entered
from rnnjax.errors import InvalidInputError

__all__ = ["RTRL", "Learner", "OnlineState", "Pull", "SnAp1"]


@exportable
class OnlineState(NamedTuple):
    """The state of a learner; its size does not depend on the number of steps.

    Attributes:
        carry: the carry of the cell.
        influence: the influence of the parameters on the carry: by name of the parameter, for each
            leaf of the carry, an array ``(*batch, rows, gates, units)``. A kernel has a row for
            each number that it multiplies; other parameters have one row.
    """

    carry: Carry
    influence: dict[str, list[jax.Array]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "state", "x"),
    meta_fields=("cell",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pull:
    """``pull(dy) -> gradients`` of the parameters, for the cotangent of one step's output.

    It is a pytree: it may leave ``jit``, and be called later or several times.
    """

    cell: Cell
    params: Params
    state: OnlineState
    x: Any

    @usual_promotion()
    def __call__(self, dy: jax.Array) -> Params:
        """Compute the gradients, summed over the batch.

        Args:
            dy: ``(*batch, output_size)``: the derivative of this step's loss by its output, or any
                other learning signal.

        Returns:
            a tree like the parameters.
        """
        return _pulled(self, as_array("dy", dy))


@dataclasses.dataclass(frozen=True)
class Learner:
    """The base class of learners, which learn while a cell runs, without going back in time.

    The docstring of a subclass says how exact its gradients are, and which cells it takes.
    """

    cell: Cell

    mixes: ClassVar[bool]
    """Whether a product may mix the units before the update."""

    def __post_init__(self) -> None:
        if type(self) is Learner:
            raise InvalidInputError("Learner is what learners are made of; take RTRL or SnAp1")
        check_instance("cell", self.cell, Cell, "a Cell such as rnnjax.MinGRUCell(50)")
        reason, advice = why_not_unitwise(self.cell), "train it by rnnjax.unroll"
        if reason is None and self.cell.recurrent is not None and not self.mixes:
            reason = "its units see each other's state in a product"
            advice = f"take SnAp1, which leaves that out, or {advice}"
        if reason:
            raise InvalidInputError(
                f"{type(self).__name__} cannot serve {brief(self.cell)}, because {reason}; {advice}"
            )

    @usual_promotion()
    def init(self, params: Params, batch_shape: tuple[int, ...] = ()) -> OnlineState:
        """Return the state before the first step: the carry at the start of a sequence, and zeros.

        Args:
            params: as ``cell.init`` returns them.
            batch_shape: the batch axes, such as ``(8,)``.

        Raises:
            InvalidInputError: ``batch_shape`` is not a tuple of sizes.
        """
        check_batch_shape(batch_shape)
        carry = _start(self.cell, params, tuple(batch_shape))
        influence = {
            name: [
                jnp.zeros((*batch_shape, *_by_unit(self.cell, name, param).shape), leaf.dtype)
                for leaf in jax.tree.leaves(carry)
            ]
            for name, param in loop_params(self.cell, params).items()
        }
        return OnlineState(carry, influence)

    @usual_promotion()
    def step(
        self, params: Params, state: OnlineState, x: Inputs, reset: jax.Array | None = None
    ) -> tuple[OnlineState, jax.Array, Pull]:
        """Run one time step.

        Args:
            params: the parameters of the cell. They may change at each step; gradients then sum
                the effects of each step's parameters.
            state: as `init` or the step before returned it.
            x: ``(*batch, input_size)``, or a `rnnjax.OneHot` or a pair, as `rnnjax.unroll` takes
                them.
            reset: booleans ``(*batch,)``, True if a row begins a new sequence at this step: its
                carry and influence are cleared, even if NaN.

        Returns:
            the new state, ``y (*batch, output_size)``, and ``pull``: ``pull(dy)`` returns the
            gradients of the parameters, summed over the batch, for the cotangent ``dy`` of ``y``.

        Raises:
            InvalidInputError: an argument has the wrong shape or type.
        """
        check_instance("state", state, OnlineState, "that of init, in step(params, state, x)")
        given = as_inputs(x)
        check_step(self.cell, state.carry, given)
        if reset is not None:
            reset, batch = (
                checked_marks("reset", reset, given, of="x", steps=False),
                given.shape[:-1],
            )
            reset = jnp.broadcast_to(expand(reset, jnp.empty(batch)), batch)
        return _stepped(self.cell, params, state, given, reset)


class RTRL(Learner):
    r"""Real-time recurrent learning (Williams & Zipser, 1989): the exact gradient, forward in time.

    .. math::
        J_t &= \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1} \\
        \frac{\partial L_t}{\partial w} &= \frac{\partial L_t}{\partial w}\Big|_{s_{t-1}}
            + \frac{\partial L_t}{\partial s_{t-1}} J_{t-1}

    with the state :math:`s_t`, the parameters :math:`w`, and :math:`J_0 = 0`. The sum over the
    steps is **exactly** that of backpropagation through time, as long as the parameters do not
    change. If each step updates them, :math:`J` contains the influence of each step's own
    parameters, as in the paper, so updates must be small.

    It takes cells whose units do not interact: `MinGRUCell`, `LRUCell`,
    `DiagonalLSTMCell` and others of their families. There each parameter influences only its own
    unit (Zucchet et al., 2023). For each row, :math:`J` has as many numbers as the parameters times
    the leaves of the carry. For other cells it would have the size of the state times that of the
    parameters, which is feasible only for tiny networks.

    Args:
        cell: a cell without a recurrent product, whose coupling is at least
            `rnnjax.Coupling.ELEMENTWISE`. Entry ``k`` of each parameter must belong to unit ``k %
            hidden_size``, as with concatenated gates.

    Raises:
        InvalidInputError: the cell is not of this kind.

    A loop that stores no sequence, with one update per step, and ``pull`` called in its own step:

    >>> import rnnjax
    >>> learner = RTRL(rnnjax.MinGRUCell(5))
    >>> params = learner.cell.init(jax.random.key(0), input_size=3)
    >>> def update(both, at):
    ...     (params, state), (x, target) = both, at
    ...     state, y, pull = learner.step(params, state, x)
    ...     gradients = pull(y - target)
    ...     params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
    ...     return (params, state), jnp.square(y - target).mean()
    >>> xs, targets = jnp.ones((100, 8, 3)), jnp.zeros((100, 8, 5))
    >>> both = params, learner.init(params, (8,))
    >>> (params, state), errors = jax.lax.scan(update, both, (xs, targets))
    >>> bool(errors[-1] < errors[5])
    True
    >>> state.influence["kernel"][0].shape  # (batch, inputs, gates, units)
    (8, 3, 2, 5)
    """

    mixes = False


class SnAp1(Learner):
    r"""SnAp-1 (Menick et al., 2021): carries only the influence of a parameter on its own unit.

    .. math::
        J_t = M \odot \Big(\frac{\partial s_t}{\partial w}
            + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1}\Big)

    with :math:`M` = 1 where a parameter reaches a unit in one step, and 0 elsewhere. A column of a
    kernel reaches one unit, in all leaves of the carry. So of :math:`\partial s_t / \partial
    s_{t-1}` only each unit's own block is needed, with the diagonal of ``recurrent_kernel``.

    The gradient is **not exact** but biased: it ignores the effect of a unit on itself through
    other units. The gradient of a step's output by the parameters of that step is exact. For a cell
    without a recurrent product it equals `RTRL`. For each row, :math:`J` has as many numbers as the
    parameters times the leaves of the carry.

    Args:
        cell: a cell whose coupling is at least `rnnjax.Coupling.ELEMENTWISE` after products that
            may mix units: `LSTMCell`, `GRUCell`, `SimpleRNNCell` and others. Entry ``k`` of each
            parameter must belong to unit ``k % hidden_size``, as with concatenated gates.

    Raises:
        InvalidInputError: the cell declares no such coupling, because of a layer norm or a product
            in its update; or it is made of other cells, or has its own ``step``.

    >>> import rnnjax
    >>> learner = SnAp1(rnnjax.GRUCell(5))
    >>> params = learner.cell.init(jax.random.key(0), input_size=3)
    >>> state = learner.init(params, (8,))
    >>> for x in jnp.ones((10, 8, 3)):
    ...     state, y, pull = learner.step(params, state, x)
    >>> gradients = pull(y - 1)  # of half the squared distance of the last output from 1
    >>> state.influence["recurrent_kernel"][0].shape, gradients["recurrent_kernel"].shape
    ((8, 5, 3, 5), (5, 15))
    """

    mixes = True


def why_not_unitwise(cell: Cell) -> str | None:
    """Return why a cell does not declare that parameters belong to units; else None."""
    if isinstance(cell, CompositeCell):
        return "it is made of other cells"
    if reason := why_no_equation(cell):
        return reason
    if cell.is_stochastic:
        return "it draws in training, for which a learner has no key"
    carry = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
    if not all(is_floating(leaf.dtype) for leaf in carry):
        return "its carry does not hold floating-point numbers alone"
    if type(cell).start is not Cell.start:
        return "its sequences begin with a state that is made of parameters"
    declared = cell.parameters(1 + cell.raw_size)
    if len(declared["kernel"].shape) != 2:
        return "its state is a grid whose points see each other"
    if cell.coupling < Coupling.ELEMENTWISE:
        return f"its coupling is declared as {cell.coupling.name}, not as ELEMENTWISE or more"
    shapes = {*cell.carry_shapes.values()}
    if len(shapes) > 1 or len(min(shapes)) != 1:
        return "the leaves of its carry have not all one number for each unit"
    for name, (shape, *_) in loop_params(cell, declared).items():
        entries = shape[-1] if name in kernels_outside(cell) else math.prod(shape)
        if entries % _units(cell):
            return f"{name} of shape {shape} has not as many entries for each of its units"
    return None


# ---- a step, compiled here, so that a Python loop over the steps compiles once


@functools.partial(jax.jit, static_argnums=0)
def _stepped(
    cell: Cell, params: Params, state: OnlineState, x: Any, reset: jax.Array | None
) -> tuple[OnlineState, jax.Array, Pull]:
    if reset is not None:
        start = _start(cell, params, reset.shape)
        start = jax.tree.map(lambda leaf, now: leaf.astype(now.dtype), start, state.carry)
        carry = Steps(start=start).reset(state.carry, StepMarks(resets=reset))
        state = OnlineState(carry, without(reset, state.influence))
    new, y = _run(cell, params, state.carry, x)
    # The state of a loop must keep its types, whatever those of the parameters.
    influence = jax.tree.map(
        lambda m, old: m.astype(old.dtype), _influence(cell, params, state, x), state.influence
    )
    return OnlineState(new, influence), y, Pull(cell, params, state, x)


@jax.jit
def _pulled(pull: Pull, dy: jax.Array) -> Params:
    """Sum the gradients through this step's parameters and through the state before it."""
    y, back = jax.vjp(
        lambda params, carry: _run(pull.cell, params, carry, pull.x)[1],
        pull.params,
        pull.state.carry,
    )
    if dy.shape != y.shape:
        raise InvalidInputError(
            f"dy must have the shape of y, {y.shape}, but has {dy.shape}; give the derivative of "
            "the loss by y"
        )
    gradients, d_carry = back(dy.astype(y.dtype))
    batch = math.prod(y.shape[:-1])
    # dL/ds J, where the number (r, g, u) of a parameter reaches unit u alone: no sum over units,
    # but one over the rows of the batch and the leaves of the carry.
    for name, leaves in pull.state.influence.items():
        before = sum(
            jnp.einsum("bu,brgu->rgu", *(a.reshape(batch, *a.shape[y.ndim - 1 :]) for a in both))
            for both in zip(jax.tree.leaves(d_carry), leaves, strict=True)
        )
        gradients[name] += jnp.reshape(before, gradients[name].shape).astype(gradients[name].dtype)
    return gradients


def _start(cell: Cell, params: Params, batch_shape: tuple[int, ...]) -> Carry:
    """Return the state at the start of a sequence, in float32 or the parameters' type if wider."""
    return cell.start(params, batch_shape, state_type(params))


# ---- units: entry k of an array that an update reads belongs to unit k % units


def _units(cell: Cell) -> int:
    return next(iter(cell.carry_shapes.values()))[0]


def _by_unit(cell: Cell, name: str, array: jax.Array) -> jax.Array:
    """Reshape a parameter to ``(rows, gates, units)``."""
    rows = array.shape[0] if name in kernels_outside(cell) else 1
    return array.reshape(rows, -1, _units(cell))


def _run(cell: Cell, params: Params, carry: Carry, x: Any) -> tuple[Carry, jax.Array]:
    """Compute the values of ``cell.step``, with the derivatives of a learner."""
    x, raw = entered(cell, params, x)
    new, emitted = _update(cell, _read(cell, params, carry, x), carry, raw)
    return new, apply_readout(cell, params, emitted, x)


def _read(cell: Cell, params: Params, carry: Carry, x: Any) -> dict[str, jax.Array]:
    """Return what the update reads besides the carry, with products in place of their kernels.

    The derivative of the recurrent product by the state is only that of each unit by itself: the
    product of the state less itself with the diagonal is 0, but has this derivative.
    """
    read = update_params(cell, params) | {"kernel": multiplied(cell, params, x, cell.dtype)}
    if cell.recurrent is not None:
        state = getattr(carry, cell.recurrent)
        constant = jax.lax.stop_gradient(state)
        recurrent = product(constant, params["recurrent_kernel"], cell.dtype)
        read["recurrent_kernel"] = recurrent + _diagonal_product(cell, params, state - constant)
    return read


def _diagonal_product(cell: Cell, params: Params, state: jax.Array) -> jax.Array:
    """Multiply a state ``(..., units)`` by the diagonal of each gate's recurrent kernel."""
    kernel = _by_unit(cell, "recurrent_kernel", params["recurrent_kernel"])
    # Constant, as the derivative by the kernel is that of the whole product.
    diagonal = jax.lax.stop_gradient(jnp.diagonal(kernel, axis1=0, axis2=2))
    return (diagonal * state[..., None, :]).reshape(*state.shape[:-1], diagonal.size)


def _update(
    cell: Cell, read: dict[str, jax.Array], carry: Carry, raw: Mapping[str, jax.Array]
) -> tuple[Carry, jax.Array]:
    """Call the cell's update with products in place of their kernels."""
    x = update_input(cell, read, read["kernel"], carry, lambda _: read["recurrent_kernel"])
    return apply_update(cell, read, x, carry, raw)


def _influence(cell: Cell, params: Params, state: OnlineState, x: Any) -> dict[str, Any]:
    """Compute the influence after a step, of its parameters and through the state before it."""
    x, raw = entered(cell, params, x)
    carry, read, units = state.carry, _read(cell, params, state.carry, x), _units(cell)

    # No unit sees another's entries or state. So one number added to all units at once has the
    # derivatives of each (Curtis, Powell & Reid, 1974): a number for each gate, and each leaf.
    def new(gates: dict[str, jax.Array], leaves: Carry) -> list[jax.Array]:
        moved = {}
        for name, array in read.items():
            own = jnp.broadcast_to(gates[name][:, None], (len(gates[name]), units))
            moved[name] = array + own.reshape(array.shape[-1:] if name in kernels else array.shape)
        if cell.recurrent is not None:
            shift = jnp.broadcast_to(getattr(leaves, cell.recurrent), (units,))
            moved["recurrent_kernel"] += _diagonal_product(cell, params, shift)
        old = jax.tree.map(jnp.add, carry, leaves)
        return jax.tree.leaves(_update(cell, moved, old, raw)[0])

    kernels = kernels_outside(cell)
    sizes = {name: _by_unit(cell, name, params[name]).shape[1] for name in read}
    gates = {name: jnp.zeros(size, read[name].dtype) for name, size in sizes.items()}
    nothing = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), carry)
    made, factors = zip(*jax.jacfwd(lambda both: new(*both))((gates, nothing)), strict=True)

    multiplied = {"kernel": x if is_array(x) else x.dense(jnp.float32)}
    if cell.recurrent is not None:
        multiplied["recurrent_kernel"] = getattr(carry, cell.recurrent)
    after: dict[str, Any] = {}
    for name, before in state.influence.items():
        after[name] = []
        for own, row in zip(made, factors, strict=True):
            total = jnp.moveaxis(own[name], -1, -2)[..., None, :, :]  # (*batch, 1, gates, units)
            if name in multiplied:
                total = multiplied[name][..., None, None] * total
            for factor, m in zip(jax.tree.leaves(row), before, strict=True):
                total += factor[..., None, None, :] * m
            after[name].append(total)
    return after
