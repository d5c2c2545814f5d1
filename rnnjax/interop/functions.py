"""Functions that other frameworks know as activations and rnnjax's cells do not name."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.errors import InvalidInputError

Function = Callable[[jax.Array], jax.Array]
"""From an array to one of the same shape; hashable by what it computes."""

# Those with numbers in them are frozen dataclasses, so that equal ones hash alike and a network
# that is built twice is compiled once.


@dataclasses.dataclass(frozen=True)
class Affine:
    """``alpha x + beta``."""

    alpha: float = 1.0
    beta: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        return self.alpha * x + self.beta


@dataclasses.dataclass(frozen=True)
class HardSigmoid:
    """``clip(alpha x + beta, 0, 1)``."""

    alpha: float = 0.2
    beta: float = 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        return jnp.clip(self.alpha * x + self.beta, 0, 1)


@dataclasses.dataclass(frozen=True)
class LeakyReLU:
    """``x`` where it is not negative, else ``alpha x``."""

    alpha: float = 0.01

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        return jnp.where(x >= 0, x, self.alpha * x)


@dataclasses.dataclass(frozen=True)
class ELU:
    """``x`` where it is not negative, else ``alpha (exp(x) - 1)``."""

    alpha: float = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        return jnp.where(x >= 0, x, self.alpha * jnp.expm1(jnp.minimum(x, 0)))


@dataclasses.dataclass(frozen=True)
class CutReLU:
    """Keras's layer ``ReLU``: ``x`` above ``threshold``, else ``slope (x - threshold)``.

    With ``max_value`` the first is kept between 0 and that.
    """

    max_value: float | None = None
    slope: float = 0.0
    threshold: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        above = x if self.max_value is None else jnp.clip(x, 0, self.max_value)
        return jnp.where(x > self.threshold, above, self.slope * (x - self.threshold))


def exact_gelu(x: jax.Array) -> jax.Array:
    """``x`` times the normal distribution function of ``x``; ``"gelu"`` approximates it by tanh."""
    return jax.nn.gelu(x, approximate=False)


FUNCTIONS: Mapping[str, Function] = {
    **ACTIVATIONS,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "log_sigmoid": jax.nn.log_sigmoid,
    "exponential": jnp.exp,
    "relu6": jax.nn.relu6,
    "mish": jax.nn.mish,
    "hard_silu": jax.nn.hard_silu,
    "exact_gelu": exact_gelu,
}


def get_function(function: str | Function) -> Function:
    """Return the function of that name; a callable is returned as it is.

    >>> print(get_function("softmax")(jnp.zeros(2)), HardSigmoid()(jnp.zeros(1)))
    [0.5 0.5] [0.5]
    """
    if callable(function):
        return function
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    raise InvalidInputError(
        f"unknown function {function!r}; give one of {', '.join(FUNCTIONS)}, or a callable"
    )
