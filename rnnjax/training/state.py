"""The state of training, which a step updates and a checkpoint saves."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.checks import advised
from rnnjax.errors import InvalidInputError, RnnjaxError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training, which an optimiser step updates and a checkpoint saves.

    Attributes:
        step: the number of optimiser steps done, an int32 scalar.
        params: the parameters, any pytree.
        opt_state: the state of the optax optimiser.
        carry: the recurrent state that the next batch continues, or ``()`` if batches are
            independent.
        key: the random key of the run; step ``n`` uses ``jax.random.fold_in(key, n)``.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    carry: Any
    key: jax.Array

    @classmethod
    @advised
    def create(
        cls,
        params: Any,
        optimizer: optax.GradientTransformation,
        *,
        key: jax.Array,
        carry: Any = (),
    ) -> "TrainState":
        """Return the state before the first step, with copies of all arrays for donation.

        >>> state = TrainState.create({"w": jnp.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
        >>> int(state.step)
        0
        """
        with optimizer_errors("begin"):
            opt_state = optimizer.init(params)
        given = params, opt_state, carry, key
        return cls(jnp.int32(0), *jax.tree.map(jnp.array, given))


def check_params(params: Any) -> None:
    """Raise unless every parameter has a type with a gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(dtype_of(leaf), jnp.inexact):
            way = "close over it in loss_fn, or cast it by astype(float)"
            if is_key(leaf) or dtype_of(leaf) == np.uint32:
                way = "leave random state out, as of a module by nnx.split(module, nnx.Param, ...)"
            raise InvalidInputError(
                f"params must be floating-point arrays, but params{jax.tree_util.keystr(path)} is "
                f"{dtype_of(leaf)}, which has no gradient; {way}"
            )


@contextmanager
def optimizer_errors(what: str) -> Iterator[None]:
    """Convert errors of an optimiser to an InvalidInputError."""
    try:
        yield
    except RnnjaxError:
        raise
    except Exception as error:
        says = str(error).partition("\n")[0]
        raise InvalidInputError(
            f"the optimizer could not {what} ({type(error).__name__}: {says}); see in its "
            "documentation what it asks of parameters and arguments, or take another one"
        ) from error


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys, possibly abstract."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_bits(leaf: Any) -> Any:
    """Return random keys as their bits, and any other leaf unchanged."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def as_keys(bits: Any, like: Any) -> Any:
    """Undo `as_bits`: ``like`` is an array of the same kind, possibly abstract."""
    if not is_key(like):
        return bits
    # Of an abstract array JAX does not tell the kind of its keys.
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(jnp.empty(0, like.dtype)))


def dtype_of(leaf: Any) -> Any:
    """Return the type of an array, possibly abstract, or of a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
