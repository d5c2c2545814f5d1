"""One layer in every library, forward or with its gradients: who answers `layers` and `lengths`.

A point's settings hold ``shape``, a `Shape`, and ``backward``: whether the gradients of half the
sum of the squares of the outputs are computed, of all parameters and of the inputs.
"""

import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions import jax_layers
from benchmarks.questions.jax_layers import GATES, Outputs, Shape, root_mean_square
from benchmarks.reports import Outcome, Point
from benchmarks.timing import Contender, usable_cores

LEAST_SECONDS = 0.1
"""The shortest repetition: a call that takes less is repeated."""

VALUE_NAME = "rms"
TOLERANCE = 1e-3
BFLOAT16_TOLERANCE = 3e-2

Call = Callable[[], Sequence[Any]]
"""Returns the outputs alone, or the gradients: of the inputs first, then of every parameter."""


def contenders() -> list[Contender]:
    """Every library's layer; cuDNN's where JAX can call it."""
    cards = any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13))
    cudnn = contender("cuDNN, by JAX", jax_call(jax_layers.cudnn_layers), ["jax"])
    return [
        *([cudnn] if cards else []),
        contender("rnnjax", jax_call(jax_layers.rnnjax_layers), ["rnnjax", "jax"]),
        contender("rnnjax, cores", rnnjax_cores, ["rnnjax", "jax"]),
        contender("rnnjax, Scan()", jax_call(rnnjax_scan), ["rnnjax", "jax"]),
        dataclasses.replace(
            contender("rnnjax, bfloat16 products", jax_call(rnnjax_bfloat16), ["rnnjax", "jax"]),
            tolerance=BFLOAT16_TOLERANCE,
        ),
        contender("Flax linen", jax_call(jax_layers.linen_layers), ["flax", "jax"]),
        contender("Flax nnx", jax_call(jax_layers.nnx_layers), ["flax", "jax"]),
        contender("PyTorch", torch_call, ["torch"]),
        contender("onnxruntime", onnxruntime_call, ["onnxruntime", "onnx"]),
        contender("Keras, JAX", jax_call(jax_layers.keras_layers), ["keras", "jax"], "jax"),
        contender("Keras, TF", tensorflow_call, ["keras", "tensorflow"], "tensorflow"),
        contender("Keras, torch", keras_torch_call, ["keras", "torch"], "torch"),
    ]


def contender(
    name: str,
    build: Callable[[Shape, bool], Call],
    packages: Sequence[str],
    keras_backend: str | None = None,
) -> Contender:
    """A contender that builds its call, calls it, and times as many calls as a repetition needs."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        for package in packages:
            importlib.import_module(package)
        began = perf_counter()
        call = build(Shape(**settings["shape"]), settings["backward"])
        arrays = call()
        seconds = perf_counter() - began
        value = fingerprint(arrays)
        yield Outcome(seconds, value)
        del arrays  # Else they would still be there in the next call.
        began = perf_counter()
        call()
        calls = math.ceil(LEAST_SECONDS / (perf_counter() - began))
        while True:
            began = perf_counter()
            for _ in range(calls):
                call()
            yield Outcome((perf_counter() - began) / calls, value, {"calls": calls})

    environment = {"KERAS_BACKEND": keras_backend} if keras_backend else {}
    return Contender(name, repetitions, packages, environment)


def fingerprint(arrays: Sequence[Any]) -> float:
    """The root mean square of the outputs; or, of the gradients, the geometric mean of two.

    One is of the inputs' gradient, the other of all kernels' together. Those do not depend on the
    order in which a library keeps gates and axes. Biases, of which some have two, are left out,
    and with them the kernel of one input or two.
    """
    first, *others = (np.asarray(array, np.float64) for array in arrays)
    kernels = [array.ravel() for array in others if array.ndim == 2 and min(array.shape) > 2]
    if not kernels:
        return root_mean_square(first)
    return math.sqrt(root_mean_square(first) * root_mean_square(np.concatenate(kernels)))


def point(name: str, shape: Shape, backward: bool) -> Point:
    """The point of a shape and a pass, with its operations: those of the matrix products."""
    rows = shape.features + (2 * shape.layers - 1) * shape.hidden_size  # of all kernels together
    products = len(GATES[shape.cell]) * shape.hidden_size * rows
    flops = 2 * shape.time * shape.batch_size * products
    # Backward, each product has two more: the gradients of its two operands.
    settings = {"shape": dataclasses.asdict(shape), "backward": backward}
    return Point(name, settings, flops * (3 if backward else 1))


# ---- how each library is called


def jax_call(build: Callable[[Shape], tuple[Outputs, Any, Any]]) -> Callable[[Shape, bool], Call]:
    """A library on JAX, under ``jax.jit``."""

    def prepare(shape: Shape, backward: bool) -> Call:
        import jax

        outputs, params, xs = build(shape)
        function = jax.jit(arrays_of(outputs, backward))
        return lambda: jax.block_until_ready(function(params, xs))

    return prepare


def arrays_of(outputs: Outputs, backward: bool) -> Callable[[Any, Any], list[Any]]:
    """What a call computes, to be compiled by JAX."""
    import jax

    gradient = jax_layers.gradient_of(outputs)

    def forward(params: Any, xs: Any) -> list[Any]:
        return [outputs(params, xs)]

    def gradients(params: Any, xs: Any) -> list[Any]:
        _, (of_params, of_xs) = gradient(params, xs)
        return [of_xs, *jax.tree.leaves(of_params)]

    return gradients if backward else forward


def rnnjax_cores(shape: Shape, backward: bool) -> Call:
    """The rows over the cores of the CPU, where ``fit(sharding="cores")`` would divide them.

    What it is given lies there already, as parameters and the rows of a batch do in a training.
    """
    import jax

    from rnnjax.training import Sharding, use_cores
    from rnnjax.training.sharding import cores_for

    use_cores()
    outputs, params, xs = jax_layers.rnnjax_layers(shape)
    function = jax.jit(arrays_of(outputs, backward))
    cores = cores_for(params, shape.batch_size)
    if cores == 1:
        return lambda: jax.block_until_ready(function(params, xs))
    sharding = Sharding.over(cores)
    params = jax.device_put(params, jax.sharding.NamedSharding(sharding.mesh, jax.P()))
    xs = sharding.put_batches(xs)

    def call() -> Any:
        with jax.set_mesh(sharding.mesh):
            return jax.block_until_ready(function(params, xs))

    return call


def onnxruntime_call(shape: Shape, backward: bool) -> Call:
    """Our layers, exported, in onnxruntime: its operators LSTM, GRU and RNN."""
    if backward:
        raise ValueError("onnxruntime has no gradients: it runs models forward alone")
    session, given = onnx_session(shape)
    name = session.get_outputs()[0].name
    return lambda: session.run([name], given)


def onnx_session(shape: Shape) -> tuple[Any, dict[str, Any]]:
    """A session of onnxruntime, and the inputs and first states by their names."""
    import onnxruntime

    proto, given = onnx_file(shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(proto, options, providers=providers), given


def onnx_file(shape: Shape) -> tuple[bytes, dict[str, Any]]:
    """Our layers as ONNX, and the inputs and first states by their names."""
    from rnnjax.interop import Model, Recurrent, Sequential, onnx

    stack, params, xs = jax_layers.rnnjax_stack(shape)
    layers = tuple(Recurrent(f"layer_{i}", cell) for i, cell in enumerate(stack.cells))
    named = {layer.name: arrays for layer, arrays in zip(layers, params, strict=True)}
    model = Model(Sequential(layers), named)
    proto = onnx.to_proto(model)
    data, *states = proto.graph.input
    zeros = np.zeros((1, shape.batch_size, shape.hidden_size), np.float32)
    return proto.SerializeToString(), {data.name: np.asarray(xs)} | {s.name: zeros for s in states}


def rnnjax_scan(shape: Shape) -> tuple[Outputs, Any, Any]:
    """Our own plain scan, with JAX's own gradient."""
    import rnnjax

    return jax_layers.rnnjax_layers(shape, rnnjax.Scan())


def rnnjax_bfloat16(shape: Shape) -> tuple[Outputs, Any, Any]:
    """The fast path with bfloat16 operands of the products; all else is float32."""
    import jax.numpy as jnp

    import rnnjax

    return jax_layers.rnnjax_layers(shape, rnnjax.Fused(product_dtype=jnp.bfloat16))


def torch_call(shape: Shape, backward: bool) -> Call:
    """PyTorch's ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``."""
    module, xs = torch_module(shape)
    return eager_call(lambda xs: module(xs)[0], list(module.parameters()), xs, backward)


def torch_module(shape: Shape) -> tuple[Any, Any]:
    """The layers with the weights, and the inputs."""
    import torch

    kinds = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    module = kinds[shape.cell](shape.features, shape.hidden_size, shape.layers)
    arrays = {}
    for number, layer in enumerate(jax_layers.weights(shape)):
        given = {name: torch.from_numpy(array) for name, array in layer.items()}
        arrays[f"weight_ih_l{number}"] = given["kernel"].T
        arrays[f"weight_hh_l{number}"] = given["recurrent_kernel"].T
        arrays[f"bias_ih_l{number}"] = given["bias"]
        arrays[f"bias_hh_l{number}"] = torch.zeros_like(given["bias"])
    module.load_state_dict(arrays)
    return module, torch.from_numpy(jax_layers.inputs(shape))


def keras_torch_call(shape: Shape, backward: bool) -> Call:
    """Keras's layer on PyTorch, eager as PyTorch is."""
    import torch

    model = jax_layers.keras_model(shape)
    parameters = [variable.value for variable in model.trainable_variables]
    xs = torch.from_numpy(jax_layers.inputs(shape)).transpose(0, 1).contiguous()
    return eager_call(model, parameters, xs, backward)


def eager_call(
    outputs: Callable[[Any], Any], parameters: Sequence[Any], xs: Any, backward: bool
) -> Call:
    """PyTorch's forward without a record for gradients, or its gradients."""
    import torch

    def forward() -> list[Any]:
        with torch.inference_mode():
            return [outputs(xs)]

    def gradients() -> Sequence[Any]:
        loss = 0.5 * outputs(xs).square().sum()
        return torch.autograd.grad(loss, [xs, *parameters])

    if not backward:
        return forward
    xs.requires_grad_()
    return gradients


def tensorflow_call(shape: Shape, backward: bool) -> Call:
    """Keras's layer on TensorFlow, under ``tf.function``."""
    import tensorflow as tf

    model = jax_layers.keras_model(shape)
    parameters = [variable.value for variable in model.trainable_variables]
    inputs = tf.constant(jax_layers.inputs(shape).swapaxes(0, 1))

    def forward(xs: Any) -> list[Any]:
        return [model(xs)]

    def gradients(xs: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(xs)
            loss = 0.5 * tf.reduce_sum(tf.square(model(xs)))
        return tape.gradient(loss, [xs, *parameters])

    function = tf.function(gradients if backward else forward)
    return lambda: function(inputs)
