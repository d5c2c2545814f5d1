"""Activations and initialisers by name, so that a cell built twice from names is the same cell."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rnnjax.errors import InvalidInputError

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


def legacy_hard_sigmoid(x: jax.Array) -> jax.Array:
    """The hard sigmoid of Keras 1 and 2, ``clip(0.2 x + 0.5, 0, 1)``.

    Keras 3, PyTorch and JAX use ``clip(x / 6 + 0.5, 0, 1)``, here named ``"hard_sigmoid"``.
    (The slope 0.2 is that of Theano's and Courbariaux et al.'s early hard sigmoids, 2015.)

    >>> print(legacy_hard_sigmoid(jnp.array([-3.0, 0.0, 1.0])))
    [0.  0.5 0.7]
    """
    return jnp.clip(0.2 * x + 0.5, 0.0, 1.0)


def linear(x: jax.Array) -> jax.Array:
    """Return ``x`` unchanged: the identity activation."""
    return x


ACTIVATIONS: Mapping[str, Activation] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "legacy_hard_sigmoid": legacy_hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "linear": linear,
}

INITIALIZERS: Mapping[str, Initializer] = {
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
    "glorot_normal": jax.nn.initializers.glorot_normal(),
    "he_uniform": jax.nn.initializers.he_uniform(),
    "he_normal": jax.nn.initializers.he_normal(),
    "lecun_uniform": jax.nn.initializers.lecun_uniform(),
    "lecun_normal": jax.nn.initializers.lecun_normal(),
    "orthogonal": jax.nn.initializers.orthogonal(),
    "unit_uniform": jax.nn.initializers.uniform(1.0),
    "zeros": jax.nn.initializers.zeros,
    "ones": jax.nn.initializers.ones,
}


def get_activation(activation: str | Activation) -> Activation:
    """Return the function of that name; a callable is returned as it is.

    Raises:
        InvalidInputError: the name is not in ``ACTIVATIONS``.

    >>> float(get_activation("hard_sigmoid")(jnp.float32(0.0)))
    0.5
    """
    return _look_up(activation, ACTIVATIONS, "activation", "jax.nn.leaky_relu")


def get_initializer(initializer: str | Initializer) -> Initializer:
    """Return the initialiser ``(key, shape, dtype) -> array`` of that name, or the callable given.

    Raises:
        InvalidInputError: the name is not in ``INITIALIZERS``.
    """
    return _look_up(initializer, INITIALIZERS, "initializer", "jax.nn.initializers.normal(0.1)")


@dataclasses.dataclass(frozen=True)
class WithGates:
    """An initialiser of a bias that sets some gates to constants.

    Args:
        initializer: initialiser of the other gates.
        values: one entry per gate, in order: its constant, or None to use ``initializer``.

    >>> print(WithGates("zeros", (None, 1.0, None))(jax.random.key(0), (6,), jnp.float32))
    [0. 0. 1. 1. 0. 0.]
    """

    initializer: str | Initializer
    values: tuple[float | None, ...]

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Return the bias; ``shape`` is ``(gates * hidden_size,)``."""
        # Sampled whole, so that the other gates begin as they would without any constant.
        drawn = jnp.split(get_initializer(self.initializer)(key, shape, dtype), len(self.values))
        parts = zip(drawn, self.values, strict=True)
        return jnp.concatenate([p if v is None else jnp.full_like(p, v) for p, v in parts])


def _look_up(
    given: Any, table: Mapping[str, Callable[..., Any]], kind: str, example: str
) -> Callable[..., Any]:
    if callable(given):
        return given
    if isinstance(given, str) and given in table:
        return table[given]
    raise InvalidInputError(
        f"unknown {kind} {given!r}; give one of {', '.join(table)}, or a callable such as {example}"
    )


# ---- gates


RESIDUAL = "residual"
"""The name of the residuals of a step, for `jax.ad_checkpoint.checkpoint_name`.

Gate values have this name if all gates are tanh or sigmoid. A cell whose derivative needs more than
these values and its carry, such as a GRU, names the rest in its `update`. Values without the name
are recomputed in the backward pass.
"""

# With it LSTMCell(5, activation=jnp.tanh) equals LSTMCell(5), and both share one compiled program.
_BY_FUNCTION: dict[Any, str] = {function: name for name, function in ACTIVATIONS.items()}


def named(activation: str | Activation) -> str | Activation:
    """Return the name of a function in ``ACTIVATIONS``; return anything else unchanged.

    >>> named(jnp.tanh), named("tanh")
    ('tanh', 'tanh')
    """
    return _BY_FUNCTION.get(activation, activation) if callable(activation) else activation


def activate_gates(gates: jax.Array, activations: Sequence[str | Activation]) -> jax.Array:
    r"""Split ``gates (*batch, n * hidden_size)`` into n equal parts and activate each by its own.

    If all activations are tanh or sigmoid, they are computed as one tanh over the whole array,
    with :math:`\sigma(x) = (1 + \tanh(x / 2)) / 2`. Compilers vectorise that several times better
    than functions of slices, which they also recompute for each reader. The derivative then comes
    from the saved values (see `RESIDUAL`), without a transcendental function. JAX differentiates
    other activations.

    >>> print(activate_gates(jnp.zeros((8, 10)), ["sigmoid", "tanh"])[0, ::5])
    [0.5 0. ]
    """
    names = tuple(map(named, activations))
    if all(name in ("tanh", "sigmoid") for name in names):
        return _one_tanh(gates, names)
    parts = jnp.split(gates, len(names), axis=-1)
    activated = [get_activation(f)(part) for f, part in zip(names, parts, strict=True)]
    return jnp.concatenate(activated, axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _one_tanh(gates: jax.Array, names: tuple[str, ...]) -> jax.Array:
    # sigmoid(x) = e^(x/2) / (e^(x/2) + e^(-x/2)) = (1 + tanh(x/2)) / 2, where nothing overflows.
    # The sum cancels for negative x: its error is 1e-7 in float32, however small the gate, and
    # below about -16 the gate is 0 instead of e^x. Cells that need the logarithm of a gate, or a
    # quotient of gates, therefore take jax.nn.log_sigmoid of its argument.
    half = _per_gate(names, gates, sigmoid=0.5, tanh=1.0)
    shift = _per_gate(names, gates, sigmoid=0.5, tanh=0.0)
    # The barrier keeps the tanh of all gates in one piece.
    return shift + half * jax.lax.optimization_barrier(jnp.tanh(half * gates))


@_one_tanh.defjvp
def _one_tanh_jvp(
    names: tuple[str, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    values = checkpoint_name(_one_tanh(primals[0], names), RESIDUAL)
    return values, tangents[0] * gate_slopes(values, names)


def gate_slopes(activated: jax.Array, activations: Sequence[str | Activation]) -> jax.Array:
    """Return the derivatives of `activate_gates` from its values, without transcendental functions.

    >>> print(gate_slopes(jnp.array([0.5, 0.0]), ["sigmoid", "tanh"]))
    [0.25 1.  ]
    """
    # A sigmoid s has the slope s (1 - s), a tanh t the slope 1 - t^2 = (t + 1) (1 - t): both are
    # the distance from the lower bound times the distance to the upper bound, 1.
    floor = _per_gate(activations, activated, sigmoid=0.0, tanh=-1.0)
    return (activated - floor) * (1 - activated)


def _per_gate(
    activations: Sequence[Any], gates: jax.Array, *, sigmoid: float, tanh: float
) -> jax.Array:
    """Return one constant per position of the last axis, chosen by the gate's activation."""
    values = [sigmoid if f == "sigmoid" else tanh for f in activations]
    # Spelled out in full by NumPy: XLA would divide indices to look up a shorter array.
    return jnp.asarray(np.repeat(values, gates.shape[-1] // len(activations)), gates.dtype)
