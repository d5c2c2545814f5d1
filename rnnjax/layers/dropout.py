"""Dropout of the inputs of a layer, per step or per sequence."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from rnnjax.checks import Advised, check_choice
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Dropout(Advised):
    """Sets random features to zero, and scales the others to preserve the mean.

    Args:
        rate: the probability of dropping a feature, in [0, 1).
        per: ``"step"`` samples a new mask at each time step (Srivastava et al., 2014; between
            layers: Zaremba et al., 2014); ``"sequence"`` drops the same features at all steps of a
            call (variational dropout: Gal & Ghahramani, 2016).

    Raises:
        InvalidInputError: the rate is not in [0, 1), or ``per`` is another word.

    >>> xs = Dropout(0.25, per="sequence").apply(jax.random.key(0), jnp.ones((10, 2, 50)))
    >>> bool(jnp.all(xs == xs[0])), sorted({round(float(x), 3) for x in xs[0, 0]})
    (True, [0.0, 1.333])
    """

    rate: float
    per: Literal["step", "sequence"] = "step"

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)
        check_choice("per", self.per, ("step", "sequence"))

    def apply(self, key: jax.Array | None, xs: jax.Array) -> jax.Array:
        """Drop features of ``xs (time, *batch, features)``; without a key, return ``xs``."""
        if key is None or self.rate == 0:
            return xs
        # With an axis of size 1 along time: a row drops the same features at all steps.
        shape = xs.shape if self.per == "step" else (1, *xs.shape[1:])
        # Factors are float32, and would widen bfloat16; in it they are rounded by up to 2^-8.
        return xs * factors(key, self.rate, shape).astype(xs.dtype)


def factors(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Sample factors: 0 with probability ``rate``, else ``1 / (1 - rate)``."""
    # Their mean is (1 - rate) / (1 - rate) = 1, so that nothing has to be scaled in prediction.
    return jnp.where(jax.random.bernoulli(key, 1 - rate, shape), 1 / (1 - rate), 0.0)


def check_rate(name: str, rate: float) -> None:
    """Raise unless ``rate`` is a number in [0, 1)."""
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise InvalidInputError(f"{name} must be at least 0 and below 1, but is {rate!r}")
