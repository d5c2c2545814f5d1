"""Everything that a training run is made of, in one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one optimiser step takes and returns, and what a checkpoint holds.

    Attributes:
        step: optimiser steps done, an int32 scalar.
        params: the parameters, any pytree.
        opt_state: the state of the optax optimiser.
        carry: the recurrent state that the next batch continues, or ``()`` where batches are
            independent.
        key: of the run; step ``n`` draws from ``jax.random.fold_in(key, n)``.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    carry: Any
    key: jax.Array

    @classmethod
    def create(
        cls,
        params: Any,
        optimizer: optax.GradientTransformation,
        *,
        key: jax.Array,
        carry: Any = (),
    ) -> "TrainState":
        """The state before the first step.

        >>> state = TrainState.create({"w": jnp.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
        >>> int(state.step)
        0
        """
        return cls(jnp.int32(0), params, optimizer.init(params), carry, key)
