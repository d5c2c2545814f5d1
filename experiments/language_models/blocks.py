"""What the families of language models share: products, norms, and the parts of a flat dict.

Every family is one file with the same names:

- ``Config``, a frozen dataclass, so that it can be a static argument of ``jax.jit``;
- ``read_config(fields) -> Config`` from `folders.Fields`, which refuses what is not supported;
- ``shapes(config) -> {name: shape}`` of every tensor in the peer's file;
- ``begin(config, batch, capacity, dtype=float32) -> carry``, the state before the first token.
  ``capacity`` is the number of tokens that full attention can hold, and ``dtype`` that of its keys
  and values; a recurrent state has one size, and is float32;
- ``apply(config, params, tokens, carry, resets=None) -> (carry, logits)`` with ``tokens (time,
  batch)``, logits ``(time, batch, vocabulary)`` in float32, and ``resets (time, batch)``, true at
  the first token of a document, which then depends on nothing before. The carry that comes out has
  the shapes and types of that which went in, so the same function reads a prompt, makes single
  steps, and trains.

``params`` is a flat dict from the names of the peer's tensors to arrays of their shapes, so a model
is saved as it was read. A family may also have ``LEFT_OUT``, prefixes of tensors that are in public
files but not in its text model.

In bfloat16, weights multiply in their own type, and states and decays are float32.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]

# ---- a flat dict


def under(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what a prefix of names holds, by the rest of each name.

    >>> under({"layers.0.norm.weight": 1, "layers.1.norm.weight": 2}, "layers.1.")
    {'norm.weight': 2}
    """
    return {name[len(prefix) :]: x for name, x in params.items() if name.startswith(prefix)}


def within(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return shapes with a prefix before each name: the inverse of `under`."""
    return {prefix + name: shape for name, shape in shapes.items()}


def linear_shapes(name: str, outputs: int, inputs: int, *, bias: bool = False) -> Shapes:
    """Return the shapes of what `linear` reads."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


# ---- products


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Compute ``x W^T``, plus the bias if there is one, in the type of the weight.

    PyTorch stores ``W (outputs, inputs)``. The product contracts the last axes of both: of one
    token, XLA for a CPU runs it five times as fast as the product with a transpose.
    """
    weight = params[f"{name}.weight"]
    y = product(x, weight)
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias.astype(y.dtype)


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute ``x W^T`` for ``W (outputs, inputs)``, in the type of the weight."""
    axes = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x.astype(weight.dtype), weight, axes)


def logits(params: Params, head: str, embedding: str, x: jax.Array) -> jax.Array:
    """Compute the logits, in float32, by the head, or by the embedding if that is the head."""
    weight = params.get(head, params[embedding])
    return product(x, weight).astype(jnp.float32)


# ---- norms


def normed(x: jax.Array, epsilon: float, groups: int = 1) -> jax.Array:
    """Divide by the root of the mean square of each of the groups of features, in float32."""
    x = x.astype(jnp.float32)
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    scale = jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + epsilon)
    return (parts * scale).reshape(x.shape)


def rms_norm(
    params: Params, name: str, x: jax.Array, epsilon: float, *, groups: int = 1
) -> jax.Array:
    """Normalise by the mean square (Zhang & Sennrich, 2019), and multiply by the weight.

    As the peers do it: float32 inside, the type of ``x`` before the weight.
    """
    weight = params[f"{name}.weight"]
    return weight * normed(x, epsilon, groups).astype(x.dtype)


# ---- convolutions and steps


def softplus(x: jax.Array) -> jax.Array:
    """Compute ``log(1 + exp(x))``; above 20 it is ``x``, as in PyTorch."""
    return jnp.where(x > 20, x, jax.nn.softplus(x))


def taps(params: Params, name: str) -> tuple[jax.Array, jax.Array | None]:
    """Return the taps ``(n, features)`` and the bias of a ``Conv1d`` with a group per feature."""
    return params[f"{name}.weight"][:, 0].T, params.get(f"{name}.bias")
