"""The influence of each parameter on every unit."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rnnjax.cells.base import Carry, Params
from rnnjax.online.influence import Influence, over_rows


@dataclasses.dataclass(frozen=True)
class Dense(Influence):
    r"""The whole of :math:`J_t = \partial s_t / \partial w`, for any cell with a step.

    .. math::
        J_t = \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1}

    Stored as a tree like the parameters, of arrays ``(*batch, state, *shape)``, where ``state`` is
    the size of the flattened carry.
    """

    def initial(self, params: Params, batch_shape: tuple[int, ...], key: jax.Array | None) -> Any:
        """That on the initial state: zeros, unless the initial state is learned."""
        started = jax.jacrev(lambda params: ravel_pytree(self.start(params, ()))[0])(params)
        return jax.tree.map(lambda m: jnp.broadcast_to(m, (*batch_shape, *m.shape)), started)

    def after(
        self,
        params: Params,
        influence: Any,
        carry: Carry,
        x: Any,
        reset: jax.Array | None,
        key: jax.Array | None,
    ) -> Any:
        """One step of the recursion of the class."""

        def of_row(influence: Any, carry: Carry, x: Any, reset: jax.Array | None) -> Any:
            state, unravel = ravel_pytree(carry)

            def new(params: Params, state: jax.Array) -> jax.Array:
                return ravel_pytree(self.run(params, unravel(state), x, reset)[0])[0]

            made, factors = jax.jacrev(new, argnums=(0, 1))(params, state)
            return jax.tree.map(
                lambda own, before: own + jnp.tensordot(factors, before, 1), made, influence
            )

        return over_rows(of_row, x.ndim - 1)(influence, carry, x, reset)

    def credit(self, params: Params, influence: Any, d_carry: Carry) -> Params:
        """The cotangent of the state times :math:`J`."""

        def of_leaf(param: jax.Array, m: jax.Array) -> jax.Array:
            state = m.ndim - param.ndim  # the axes of the batch, and that of the state
            batch = m.shape[: state - 1]
            d = [_flat(leaf, len(batch)) for leaf in jax.tree.leaves(d_carry)]
            return jnp.tensordot(jnp.concatenate(d, axis=-1), m, state)

        return jax.tree.map(of_leaf, params, influence)


def _flat(leaf: jax.Array, axes: int) -> jax.Array:
    """Flatten all axes after those of the batch, which may be empty."""
    return leaf.reshape(*leaf.shape[:axes], math.prod(leaf.shape[axes:]))
