"""What all online learners have in common: their state, a step, and the gradients of its output."""

import abc
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from rnnjax.cells.arguments import (
    as_array,
    as_inputs,
    brief,
    check_batch_shape,
    check_instance,
    check_step,
    is_floating,
    usual_promotion,
)
from rnnjax.cells.base import Carry, Cell, Inputs, Params
from rnnjax.engine.core.masking import without
from rnnjax.errors import InvalidInputError
from rnnjax.layers.attention import AttentionCell
from rnnjax.online.influence import Influence


class OnlineState(NamedTuple):
    """What a learner carries from step to step; its size does not depend on their number.

    Attributes:
        carry: the carry of the cell.
        influence: of the parameters on the carry; its arrays begin with the batch axes.
        key: for what the next steps draw; None where nothing is drawn.
    """

    carry: Carry
    influence: Any
    key: jax.Array | None = None


register_namedtuple_serialization(OnlineState, serialized_name="rnnjax.OnlineState")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "carry", "influence", "x", "reset"),
    meta_fields=("learner",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pull:
    """``pull(dy) -> gradients``: by the parameters, for the cotangent of one step's output.

    A pytree: it may leave ``jit``, and be called later or several times.
    """

    learner: "Learner"
    params: Params
    carry: Carry
    influence: Any
    x: Any
    reset: jax.Array | None

    @usual_promotion()
    def __call__(self, dy: jax.Array) -> Params:
        """The gradients, summed over the batch.

        Args:
            dy: ``(*batch, output_size)``: the derivative of this step's loss by its output, or any
                other learning signal.

        Returns:
            a tree like the parameters.
        """
        return _pulled(self, as_array("dy", dy))


@dataclasses.dataclass(frozen=True)
class Learner(abc.ABC):
    """Learns while a cell runs, without going back in time; its options are its fields.

    A subclass defines its `influence`, and its docstring says how exact its gradients are.
    """

    cell: Cell

    def __post_init__(self) -> None:
        check_instance("cell", self.cell, Cell, "a Cell such as rnnjax.MinGRUCell(50)")
        reason = _never(self.cell) or self.refusal()
        if reason:
            raise InvalidInputError(
                f"{type(self).__name__} cannot serve {brief(self.cell)}, because {reason}"
            )

    def refusal(self) -> str | None:
        """Why this learner cannot serve the cell, and what to do; else None."""
        return None

    @property
    @abc.abstractmethod
    def influence(self) -> Influence:
        """What it carries forward with the state."""

    @usual_promotion()
    def init(
        self, params: Params, batch_shape: tuple[int, ...] = (), key: jax.Array | None = None
    ) -> OnlineState:
        """The state before the first step.

        Args:
            params: as ``cell.init`` returns them.
            batch_shape: the axes of the batch, as ``(8,)``.
            key: for what the learner draws; only `UORO` draws.

        Returns:
            the carry with which a sequence begins, and its influence.

        Raises:
            InvalidInputError: ``batch_shape`` is no tuple of sizes, or ``key`` no random key.
        """
        check_batch_shape(batch_shape)
        batch_shape, draw = tuple(batch_shape), None
        carry = self.influence.start(params, batch_shape)
        for leaf in jax.tree.leaves(carry):
            if not is_floating(leaf.dtype):
                raise InvalidInputError(
                    f"the carry of {brief(self.cell)} must hold floating-point numbers alone to be "
                    f"differentiated, but holds {leaf.dtype}; keep others outside of the cell"
                )
        if key is not None:
            key, draw = jax.random.split(key)
        return OnlineState(carry, self.influence.initial(params, batch_shape, draw), key)

    @usual_promotion()
    def step(
        self, params: Params, state: OnlineState, x: Inputs, reset: jax.Array | None = None
    ) -> tuple[OnlineState, jax.Array, Pull]:
        """Run one time step.

        Args:
            params: the cell's. They may change from step to step, as where each step updates them;
                gradients then sum the effects of each step's parameters.
            state: as `init` or the step before returned it.
            x: ``(*batch, input_size)``.
            reset: booleans ``(*batch,)``, True where a row begins a new sequence with this step:
                its carry and influence are forgotten, be they NaN.

        Returns:
            the new state, ``y (*batch, output_size)``, and ``pull``: ``pull(dy)`` are the gradients
            by the parameters, summed over the batch, for the cotangent ``dy`` of ``y``.

        Raises:
            InvalidInputError: an argument has the wrong shape or type.
        """
        x = as_inputs(x)
        check_step(self.cell, state.carry, x)
        return _stepped(self, params, state, x, _marks(reset, x.shape[:-1]))


@functools.partial(jax.jit, static_argnums=0)
def _stepped(
    learner: Learner, params: Params, state: OnlineState, x: Any, reset: jax.Array | None
) -> tuple[OnlineState, jax.Array, Pull]:
    """Compiled here, so that a Python loop over the steps compiles once."""
    rule, (carry, influence, key) = learner.influence, state
    draw = None
    if key is not None:
        key, draw = jax.random.split(key)
    influence = without(reset, influence)
    new, y = rule.run(params, carry, x, reset)
    after = rule.after(params, influence, carry, x, reset, draw)
    # A loop's state keeps its types, whatever those of the parameters are.
    after = jax.tree.map(lambda m, old: m.astype(old.dtype), after, influence)
    return OnlineState(new, after, key), y, Pull(learner, params, carry, influence, x, reset)


@jax.jit
def _pulled(pull: Pull, dy: jax.Array) -> Params:
    """The gradients through this step's parameters, and through the state before it."""
    rule = pull.learner.influence
    y, back = jax.vjp(
        lambda params, carry: rule.run(params, carry, pull.x, pull.reset)[1],
        pull.params,
        pull.carry,
    )
    if dy.shape != y.shape:
        raise InvalidInputError(
            f"dy must have the shape of y, {y.shape}, but has {dy.shape}; give the derivative of "
            "the loss by y"
        )
    d_params, d_carry = back(dy.astype(y.dtype))
    before = rule.credit(pull.params, pull.influence, d_carry)
    return jax.tree.map(lambda d, more: d + more.astype(d.dtype), d_params, before)


def _marks(reset: Any, batch: tuple[int, ...]) -> jax.Array | None:
    """The resets of all rows, or None."""
    if reset is None:
        return None
    reset = as_array("reset", reset)
    if reset.dtype != jnp.bool_:
        raise InvalidInputError(
            f"reset must be booleans, but is {reset.dtype}; write reset.astype(bool)"
        )
    if reset.shape != batch[: reset.ndim]:
        raise InvalidInputError(
            f"reset must have shape {batch}, a boolean for each row of x, but has {reset.shape}; "
            "give those of this step alone"
        )
    return jnp.broadcast_to(reset.reshape(*reset.shape, *[1] * (len(batch) - reset.ndim)), batch)


def _never(cell: Cell) -> str | None:
    """Why no learner can serve a cell; None where one may."""
    if isinstance(cell, AttentionCell):
        return "it looks back on a memory of the whole batch; train it by rnnjax.unroll"
    if cell.is_stochastic:
        return "a learner has no key for what it draws in training; give it the cell inside"
    if cell.raw_inputs:
        return "its raw inputs are no part of a product; train it by rnnjax.unroll"
    if cell.carry is not None and len(cell.parameters(1)["kernel"].shape) != 2:
        return "its state is a grid whose points see each other; train it by rnnjax.unroll"
    return None
