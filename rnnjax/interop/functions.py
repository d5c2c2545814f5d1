"""Functions that other frameworks know as activations and rnnjax's cells do not name."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.errors import InvalidInputError

Function = Callable[[jax.Array], jax.Array]
"""From an array to one of the same shape; hashable by what it computes."""

# Those with numbers in them are frozen dataclasses, so that equal ones hash alike and a network
# that is built twice is compiled once.


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


class Spelling(NamedTuple):
    """How other formats spell a function of ours."""

    keras: str = ""  # its name in Keras 3; empty where it has none
    onnx: str = ""  # the operator of ONNX that is it; empty where it takes several
    numbers: Mapping[str, Any] = MappingProxyType({})  # the attributes of that; of a class, where
    # it is left to its defaults
    in_cells: bool = False  # whether ONNX's recurrent operators have it too


SPELLINGS: Mapping[str | type[Any], Spelling] = {
    "tanh": Spelling("tanh", "Tanh", in_cells=True),
    "sigmoid": Spelling("sigmoid", "Sigmoid", in_cells=True),
    "relu": Spelling("relu", "Relu", in_cells=True),
    "softplus": Spelling("softplus", "Softplus", in_cells=True),
    "softsign": Spelling("softsign", "Softsign", in_cells=True),
    "linear": Spelling("linear", "Affine", {"alpha": 1.0, "beta": 0.0}, in_cells=True),
    "elu": Spelling("elu", "Elu", {"alpha": 1.0}, in_cells=True),
    "hard_sigmoid": Spelling(
        "hard_sigmoid", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, in_cells=True
    ),
    "legacy_hard_sigmoid": Spelling("", "HardSigmoid", {"alpha": 0.2, "beta": 0.5}, in_cells=True),
    ELU: Spelling("", "Elu", {"alpha": 1.0}, in_cells=True),
    HardSigmoid: Spelling("", "HardSigmoid", {"alpha": 0.2, "beta": 0.5}, in_cells=True),
    LeakyReLU: Spelling("", "LeakyRelu", {"alpha": 0.01}, in_cells=True),
    "selu": Spelling("selu", "Selu"),
    "exponential": Spelling("exponential", "Exp"),
    "hard_silu": Spelling("hard_silu", "HardSwish"),
    "softmax": Spelling("softmax", "Softmax", {"axis": -1}),
    "log_softmax": Spelling("log_softmax", "LogSoftmax", {"axis": -1}),
    "hard_tanh": Spelling("hard_tanh"),
    "relu6": Spelling("relu6"),
    "silu": Spelling("silu"),
    "mish": Spelling("mish", "Mish"),
    "log_sigmoid": Spelling("log_sigmoid"),
    "gelu": Spelling("", "Gelu", {"approximate": "tanh"}),
    "exact_gelu": Spelling("gelu", "Gelu"),
}
"""By a name of ``FUNCTIONS``, or a class whose fields are the numbers, its spellings."""


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
