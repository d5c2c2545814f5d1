"""Layers of one cell in every JAX library, with the same weights, and the gradient of their loss.

`layers`, `compile_time` and `memory` share it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

GATES: dict[str, Sequence[str]] = {"rnn": ("",), "lstm": "ifgo", "gru": "rzn"}
FINGERPRINT = "rms of the inputs' gradient"

Outputs = Callable[[Any, Any], Any]
"""``(params, xs) -> ys``."""

Gradient = Callable[[Any, Any], tuple[Any, tuple[Any, Any]]]
"""``(params, xs) -> (loss, (gradient of params, gradient of xs))``, to be compiled."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What runs over which inputs; by default these have as many features as there are units."""

    cell: str = "lstm"
    layers: int = 1
    hidden_size: int = 128
    batch_size: int = 16
    time: int = 100
    features: int = 0

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise ValueError(f"cell must be one of {', '.join(GATES)}, but is {self.cell!r}")
        object.__setattr__(self, "features", self.features or self.hidden_size)

    def __str__(self) -> str:
        layers = f"{self.layers} x " if self.layers > 1 else ""
        return (
            f"{layers}{self.cell.upper()}({self.hidden_size}), batch {self.batch_size}, "
            f"{self.time:,} steps, forward and backward, the gradients of all parameters and of "
            "the inputs"
        )


def weights(shape: Shape) -> list[dict[str, np.ndarray]]:
    """Each layer's kernel, recurrent kernel and bias, the gates side by side in `GATES`' order.

    In Flax nnx a GRU has no bias on the recurrent side, so nobody's has one here.
    """
    rng = np.random.default_rng(0)
    size, width = shape.hidden_size, len(GATES[shape.cell]) * shape.hidden_size

    def draw(*dimensions: int) -> np.ndarray:
        return rng.uniform(-(size**-0.5), size**-0.5, dimensions).astype(np.float32)

    return [
        {"kernel": draw(rows, width), "recurrent_kernel": draw(size, width), "bias": draw(width)}
        for rows in (shape.features, *[size] * (shape.layers - 1))
    ]


def inputs(shape: Shape) -> np.ndarray:
    """Return the inputs of all contenders, ``(time, batch, features)``."""
    dimensions = (shape.time, shape.batch_size, shape.features)
    return np.random.default_rng(1).standard_normal(dimensions, np.float32)


def root_mean_square(array: Any) -> float:
    """A fingerprint of an array of any library: every number has a part in it."""
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def gradient_of(outputs: Outputs) -> Gradient:
    """The gradient of half the sum of the squares of ``outputs(params, xs)``."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(outputs(params, xs)))

    return jax.value_and_grad(loss, argnums=(0, 1))


def rnnjax_stack(shape: Shape) -> tuple[Any, Any, Any]:
    """The cells, the parameters and the inputs in rnnjax."""
    import jax
    import jax.numpy as jnp

    import rnnjax

    kinds = {"rnn": rnnjax.SimpleRNNCell, "lstm": rnnjax.LSTMCell, "gru": rnnjax.GRUCell}
    stack = rnnjax.Stack([kinds[shape.cell](shape.hidden_size)] * shape.layers)
    params = weights(shape)
    if shape.cell == "gru":
        params = [{**layer, "recurrent_bias": np.zeros_like(layer["bias"])} for layer in params]
    return stack, jax.tree.map(jnp.asarray, tuple(params)), jnp.asarray(inputs(shape))


def rnnjax_layers(shape: Shape, method: Any = None) -> tuple[Outputs, Any, Any]:
    """The function, the parameters and the inputs in rnnjax; ``method`` None is its default."""
    import jax

    import rnnjax

    stack, params, xs = rnnjax_stack(shape)
    chosen = rnnjax.Auto() if method is None else method

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return rnnjax.unroll(stack, params, xs, method=chosen)[1]

    return outputs, params, xs


def linen_layers(shape: Shape, remat: bool = False) -> tuple[Outputs, Any, Any]:
    """Build it in Flax linen; with ``remat`` the backward pass computes each step again."""
    import flax.linen as nn
    import jax.numpy as jnp

    cell = {"rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[shape.cell]
    cell = nn.remat(cell) if remat else cell
    model = nn.Sequential(
        [nn.RNN(cell(shape.hidden_size), time_major=True) for _ in range(shape.layers)]
    )
    params = {
        f"layers_{number}": {"cell": linen_params(shape.cell, layer)}
        for number, layer in enumerate(weights(shape))
    }
    return (
        lambda params, xs: model.apply({"params": params}, xs),
        params,
        jnp.asarray(inputs(shape)),
    )


def linen_params(cell: str, layer: dict[str, np.ndarray]) -> dict[str, Any]:
    """A layer's weights as linen's cells keep them: a dense layer a gate, on each side of the sum.

    The bias of an LSTM's gate is on the recurrent side; of a GRU's on the inputs', and the
    candidate has another one.
    """
    import jax.numpy as jnp

    gates = GATES[cell]
    kernels, recurrent_kernels, biases = (
        [jnp.asarray(part) for part in np.split(layer[name], len(gates), axis=-1)]
        for name in ("kernel", "recurrent_kernel", "bias")
    )
    params: dict[str, Any] = {}
    for gate, kernel, recurrent_kernel, bias in zip(
        gates, kernels, recurrent_kernels, biases, strict=True
    ):
        params[f"i{gate}"] = {"kernel": kernel}
        params[f"h{gate}"] = {"kernel": recurrent_kernel}
        params[f"h{gate}" if cell == "lstm" else f"i{gate}"]["bias"] = bias
    if cell == "gru":
        params["hn"]["bias"] = jnp.zeros_like(biases[-1])
    return params


def nnx_layers(shape: Shape) -> tuple[Outputs, Any, Any]:
    """Build the layer in Flax nnx."""
    import jax.numpy as jnp
    from flax import nnx

    cell = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[shape.cell]
    size, rngs = shape.hidden_size, nnx.Rngs(0)
    widths = [shape.features, *[size] * (shape.layers - 1)]
    cells: list[Any] = [cell(width, size, rngs=rngs) for width in widths]
    for one, arrays in zip(cells, weights(shape), strict=True):
        biased = one.dense_h if shape.cell == "lstm" else one.dense_i
        one.dense_i.kernel[...] = jnp.asarray(arrays["kernel"])
        one.dense_h.kernel[...] = jnp.asarray(arrays["recurrent_kernel"])
        biased.bias[...] = jnp.asarray(arrays["bias"])
    layers = nnx.Sequential(*(nnx.RNN(one, time_major=True) for one in cells))
    static, params, *counters = nnx.split(layers, nnx.Param, ...)

    def outputs(params: Any, xs: Any) -> Any:
        # The initial carry counts up the random numbers drawn, though it draws none: on a copy.
        return nnx.merge(static, params, *counters, copy=True)(xs)

    return outputs, params, jnp.asarray(inputs(shape))


def cudnn_layers(shape: Shape) -> tuple[Outputs, Any, Any]:
    """Build it on cuDNN, which JAX calls for an LSTM alone, and only with a CUDA card."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import rnn

    if shape.cell != "lstm":
        raise ValueError(f"of cuDNN's layers JAX has the LSTM alone, but {shape.cell} came")
    size, rows = shape.hidden_size, shape.batch_size
    params = tuple(jax.tree.map(jnp.asarray, layer) for layer in weights(shape))
    zeros = jnp.zeros((shape.layers, rows, size))
    whole = jnp.full(rows, shape.time, jnp.int32)

    def outputs(params: Any, xs: Any) -> Any:
        # All matrices of all layers, the gates below each other, and then their two biases.
        flat = [layer[n].T.ravel() for layer in params for n in ("kernel", "recurrent_kernel")]
        flat += [b for layer in params for b in (layer["bias"], jnp.zeros_like(layer["bias"]))]
        packed = jnp.concatenate(flat)
        return rnn.lstm(
            xs, zeros, zeros, packed, whole, shape.features, size, shape.layers, 0.0, False
        )[0]

    return outputs, params, jnp.asarray(inputs(shape).swapaxes(0, 1))


def keras_layers(shape: Shape) -> tuple[Outputs, Any, Any]:
    """Build it in Keras on JAX, whose layers are batch first."""
    import jax.numpy as jnp

    model = keras_model(shape)
    params = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]
    return (
        lambda params, xs: model.stateless_call(params, rest, xs)[0],
        params,
        jnp.asarray(inputs(shape).swapaxes(0, 1)),
    )


def keras_model(shape: Shape) -> Any:
    """The layers in Keras, whichever its backend."""
    import keras

    kinds = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    layers = [
        kinds[shape.cell](shape.hidden_size, return_sequences=True) for _ in range(shape.layers)
    ]
    given = keras.Input((shape.time, shape.features), batch_size=shape.batch_size)
    model = keras.Sequential([given, *layers])
    for layer, arrays in zip(layers, weights(shape), strict=True):
        if shape.cell == "gru":  # In Keras z, r, n, and a bias on each side.
            parts = {name: np.split(array, 3, axis=-1) for name, array in arrays.items()}
            arrays = {name: np.concatenate([z, r, n], -1) for name, (r, z, n) in parts.items()}
            arrays["bias"] = np.stack([arrays["bias"], np.zeros_like(arrays["bias"])])
        layer.set_weights([arrays[name] for name in ("kernel", "recurrent_kernel", "bias")])
    return model
