"""How far a gradient reaches: the derivative of a loss by the state of every step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Carry, CarryT, Cell, Params
from rnnjax.cells.validation import as_inputs
from rnnjax.checks import check_instance, number_types
from rnnjax.errors import InvalidInputError


def state_gradients(
    loss: Callable[[CarryT, jax.Array], jax.Array],
    cell: Cell[CarryT],
    params: Params,
    xs: Any,
    carry: CarryT | None = None,
) -> tuple[jax.Array, CarryT]:
    r"""Compute a loss and its gradient by the state before each step.

    .. math::
        \frac{\partial L}{\partial s_{t-1}} \quad \text{through step } t \text{ and all that follow}

    Its norm over :math:`t` shows whether the gradient vanishes or explodes (Bengio et al., 1994;
    Pascanu et al., 2013). Entry 0 is that by the initial carry. `rnnjax.unroll` computes gradients
    from all steps at once and cannot return it, so `Cell.step` runs in a plain scan.

    Args:
        loss: ``(carry, ys) -> scalar``, of the last carry and all outputs ``(time, *batch, ...)``.
        cell: any cell.
        params: its parameters.
        xs: ``(time, *batch, input_size)``.
        carry: the state before the first step; by default the start of a sequence.

    Returns:
        the loss, and a carry whose leaves have a first axis of time: zeros for a counter, a flag or
        a random key, by which there is no derivative.

    Raises:
        InvalidInputError: ``cell`` is not a cell, or the loss is not a scalar.

    >>> import rnnjax
    >>> cell = rnnjax.SimpleRNNCell(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> loss = lambda carry, ys: ys[-1].sum()
    >>> _, gradients = state_gradients(loss, cell, params, jnp.ones((10, 2, 3)))
    >>> gradients.hidden.shape
    (10, 2, 4)
    """
    check_instance("cell", cell, Cell, "a Cell such as rnnjax.LSTMCell(50)")
    xs = as_inputs(xs)
    if carry is None:
        carry = cell.start(params, xs.shape[1:-1])
    # Before the step, not after it: the last output may be no leaf of the state, as of an LRU, and
    # its derivative by the state after it is 0.
    # Zeros added to the state before each step: the derivative by them is that by the state.
    zeros = jax.tree.map(
        # A counter has zeros too, which nothing reads, or the trees would differ.
        lambda leaf: jnp.zeros((xs.shape[0], *leaf.shape), (*number_types(leaf), jnp.float32)[0]),
        carry,
    )

    def add(leaf: jax.Array, zero: jax.Array) -> jax.Array:
        return leaf + zero if number_types(leaf) else leaf

    def perturbed(perturbations: Carry) -> jax.Array:
        def step(carry: Carry, at: Any) -> tuple[Carry, jax.Array]:
            x, added = at
            return cell.step(params, jax.tree.map(add, carry, added), x)

        value = loss(*jax.lax.scan(step, carry, (xs, perturbations)))
        if np.shape(value):
            raise InvalidInputError(
                f"loss must return a scalar, but returned one of shape {np.shape(value)}; take "
                "the sum or the mean"
            )
        return value

    return jax.value_and_grad(perturbed)(zeros)
