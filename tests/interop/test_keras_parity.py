"""Drawn Keras 3 models, run live on its JAX backend, against `rnnjax.interop.keras`.

For each: outputs, final states, gradients of inputs and weights, and the way back, bit for bit.
Keras is batch-major; every comparison is made with time first.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rnnjax.interop import Model, Recurrent
from rnnjax.interop import keras as interop

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
assert keras.backend.backend() == "jax", "keras was imported with another backend before"
layers = keras.layers

# Keras's variables give their arrays to NumPy 2 in the way of NumPy 1, where it saves a model.
# And it warns of a softmax over a single feature.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
    pytest.mark.filterwarnings("ignore:the gradient of .* is taken without its dropout"),
]

TIME, BATCH, WORDS = 4, 3, 5
TOLERANCE = 1e-5  # of the largest number among the outputs, or among the gradients

FUNCTIONS = [
    "tanh", "sigmoid", "relu", "elu", "selu", "softsign", "softplus", "hard_sigmoid", "gelu",
    "silu", "linear", "leaky_relu", "hard_tanh", "mish", "relu6", "softmax", "log_sigmoid",
    "hard_silu",
]  # fmt: skip
GATES = ["sigmoid", "sigmoid", "hard_sigmoid", "softsign", "tanh"]


Draw = Callable[[Any], Any]


def functions() -> st.SearchStrategy[str]:
    return st.one_of(st.just("tanh"), st.sampled_from(FUNCTIONS))


def cell_options(draw: Draw, kind: str, units: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "units": units,
        "activation": draw(functions()),
        "use_bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options |= {"dropout": 0.3, "recurrent_dropout": draw(st.sampled_from([0.0, 0.4]))}
    if kind != "SimpleRNN":
        options["recurrent_activation"] = draw(st.sampled_from(GATES))
    if kind == "LSTM":
        options["unit_forget_bias"] = draw(st.booleans())
    if kind == "GRU":
        options["reset_after"] = draw(st.booleans())
    return options


def recurrent(draw: Draw, sequences: bool, units: int, backwards: bool) -> Any:
    """A layer that runs in one direction."""
    kind = draw(st.sampled_from(["SimpleRNN", "LSTM", "GRU"]))
    common = {
        "return_sequences": sequences,
        "go_backwards": backwards,
        "zero_output_for_mask": sequences and draw(st.booleans()),
    }
    form = draw(st.sampled_from(["layer", "layer", "layer", "cell", "cells"]))
    if form == "layer":
        return getattr(layers, kind)(**cell_options(draw, kind, units), **common)
    cells = [getattr(layers, f"{kind}Cell")(**cell_options(draw, kind, units))]
    if form == "cells":
        first = draw(st.sampled_from(["SimpleRNN", "LSTM", "GRU"]))
        cells.insert(0, getattr(layers, f"{first}Cell")(**cell_options(draw, first, 2)))
    return layers.RNN(cells if len(cells) > 1 else cells[0], **common)


def both_directions(draw: Draw, sequences: bool, units: int, last: bool) -> Any:
    forward = recurrent(draw, sequences, units, draw(st.booleans()))
    other = None
    if forward.go_backwards or draw(st.booleans()):
        other = recurrent(draw, sequences, units, not forward.go_backwards)
    mode = draw(st.sampled_from(["concat", "sum", "mul", "ave", *([None] if last else [])]))
    return layers.Bidirectional(forward, merge_mode=mode, backward_layer=other)


def between(draw: Draw) -> Any:
    return draw(
        st.sampled_from(
            [
                lambda: layers.Dropout(0.4),
                lambda: layers.SpatialDropout1D(0.4),
                lambda: layers.Activation("gelu"),
                lambda: layers.ReLU(max_value=6),
                lambda: layers.LeakyReLU(0.15),
                lambda: layers.Dense(2, activation="softplus"),
                lambda: layers.TimeDistributed(layers.Dense(2, use_bias=False)),
                lambda: layers.TimeDistributed(layers.Dense(2, activation="tanh")),
            ]
        )
    )()


def models(draw: Draw) -> tuple[Any, str, int]:
    """A Sequential, or a functional model of the same layers; where its mask comes from; a seed."""
    row, source = [], draw(st.sampled_from(["none", "given", "Masking", "Embedding", "words"]))
    features = draw(st.integers(1, 3))
    if source == "Masking":
        row.append(layers.Masking(draw(st.sampled_from([0.0, -1.5]))))
    elif source in ("Embedding", "words"):
        row.append(layers.Embedding(WORDS, features, mask_zero=source == "Embedding"))
    count = draw(st.integers(1, 3))
    for i in range(count):
        last = i == count - 1
        sequences = not last or draw(st.booleans())
        tail = last and draw(st.booleans())
        units = draw(st.integers(1, 3))
        if draw(st.integers(0, 2)) == 0:
            layer = both_directions(draw, sequences, units, last and not tail)
        else:
            layer = recurrent(draw, sequences, units, draw(st.booleans()))
        row.append(layer)
        if sequences and not last and draw(st.booleans()):
            row.append(between(draw))
        if tail:
            row.append(layers.Dense(2, activation=draw(functions())))
    ids = source in ("Embedding", "words")
    start = keras.Input((TIME,) if ids else (TIME, features), dtype="int32" if ids else "float32")
    functional = draw(st.booleans())
    if functional:
        end = start
        for layer in row:
            end = layer(end)
        model = keras.Model(start, end)
    else:
        model = keras.Sequential([start, *row])
    return model, source, draw(st.integers(0, 2**16))


def swap(array: Any) -> Any:
    return jnp.swapaxes(jnp.asarray(array), 0, 1)


def time_first(tree: Any, sequences: bool) -> Any:
    return jax.tree.map(swap, tree) if sequences else tree


def inputs_of(model: Any, source: str, rng: Any) -> tuple[Any, Any]:
    """Inputs with batch first, and the mask that is given by hand."""
    mask = rng.random((BATCH, TIME)) < 0.6
    if source in ("Embedding", "words"):
        return np.where(mask, rng.integers(1, WORDS, mask.shape), 0).astype(np.int32), None
    xs = rng.standard_normal((BATCH, TIME, model.input_shape[-1])).astype(np.float32)
    if source == "Masking":
        first = next(layer for layer in model.layers if isinstance(layer, layers.Masking))
        xs[~mask] = first.mask_value
    return xs, mask if source == "given" else None


def with_states(layer: Any) -> Any:
    """Rebuild the layer with ``return_state=True``."""
    config = layer.get_config()
    if isinstance(layer, layers.Bidirectional):
        for direction in ("layer", "backward_layer"):
            config[direction]["config"]["return_state"] = True
    else:
        config["return_state"] = True
    return type(layer).from_config(config)


def keras_states(model: Any, xs: Any, mask: Any) -> list[Any]:
    """The final states of all recurrent layers, run one by one."""
    states = []
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer) or not isinstance(layer, keras.Layer):
            continue
        if isinstance(layer, layers.RNN | layers.Bidirectional):
            twin = with_states(layer)
            twin.build(xs.shape)
            weights = [variable.value for variable in layer.trainable_variables]
            fixed = [variable.value for variable in twin.non_trainable_variables]
            out, _ = twin.stateless_call(weights, fixed, xs, mask=mask)
            outputs = 2 if getattr(layer, "merge_mode", "") is None else 1
            states += jax.tree.leaves(out[outputs:])
            xs = out[:outputs] if outputs == 2 else out[0]
            mask = mask if layer.return_sequences else None
        else:
            after = layer.compute_mask(xs, mask)
            xs = layer(xs, training=False)
            mask = after
    return states


def randomise(model: Any, rng: Any) -> None:
    for variable in model.weights:
        variable.assign(0.6 * rng.standard_normal(variable.shape).astype(np.float32))


def error_of(actual: Any, expected: Any) -> float:
    """The largest difference, as a part of the largest number that is expected."""
    a, e = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert [np.shape(x) for x in a] == [np.shape(x) for x in e]
    if not e:
        return 0.0
    scale = max(1e-3, *(float(np.max(np.abs(x), initial=0.0)) for x in e))
    assert np.isfinite(scale)
    return (
        max(
            float(np.max(np.abs(np.asarray(x) - y), initial=0.0)) for x, y in zip(a, e, strict=True)
        )
        / scale
    )


def check_equal(model: Any, source: str, seed: int) -> dict[str, float]:
    """Outputs, states and gradients of a Keras model and of ours, and the way back."""
    rng = np.random.default_rng(seed)
    randomise(model, rng)
    xs, mask = inputs_of(model, source, rng)
    more = {} if mask is None else {"mask": mask}
    weights = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    shape = jax.eval_shape(lambda: model.stateless_call(weights, fixed, xs, training=False)[0])
    parts = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shape)
    floats = source not in ("Embedding", "words")
    wanted = (0, 1) if floats else (0,)

    def theirs(weights: Any, xs: Any) -> Any:
        out, _ = model.stateless_call(weights, fixed, xs, training=False, **more)
        return sum(map(jnp.vdot, jax.tree.leaves(parts), jax.tree.leaves(out))), out

    gradients, out = jax.jit(jax.grad(theirs, argnums=wanted, has_aux=True))(weights, xs)
    states = jax.jit(lambda xs: keras_states(model, xs, mask))(xs)

    ours = interop.load(model)
    last = [layer for layer in ours.layers.values() if isinstance(layer, Recurrent)][-1]
    sequences = last.return_sequences

    def loss(params: Any, xs: Any) -> Any:
        carry, ys = ours.apply(params, xs, mask=None if mask is None else swap(mask))
        weight = time_first(parts, sequences)
        total = sum(map(jnp.vdot, jax.tree.leaves(weight), jax.tree.leaves(ys)))
        return total, (carry, ys)

    (d_params, *d_xs), (carry, ys) = jax.jit(jax.grad(loss, argnums=wanted, has_aux=True))(
        ours.params, swap(xs)
    )
    assert jax.tree.structure(carry) == jax.tree.structure(ours.initial_carry((BATCH,)))
    errors = {
        "outputs": error_of(time_first(ys, sequences), out),
        "states": error_of([carry[name] for name in ours.layers if name in carry], states),
    }
    before = [np.asarray(variable.value) for variable in model.weights]
    put(model, ours.with_params(d_params))  # our gradients, in Keras's places
    mapped = [np.asarray(variable.value) for variable in model.trainable_variables]
    errors["gradients"] = error_of((mapped, [swap(d) for d in d_xs]), gradients)

    put(model, ours)
    for variable, array in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable.value), array)
    return errors


def put(model: Any, ours: Model) -> None:
    with tempfile.TemporaryDirectory() as folder:
        interop.save(ours, f"{folder}/ours.weights.h5")
        model.load_weights(f"{folder}/ours.weights.h5")


def check_written(model: Any, folder: Path) -> None:
    """A row that is written anew is the same model in Keras, to the bit."""
    live = interop.load(model)
    interop.save(Model(live.network, live.params), folder / "ours.keras")
    again = keras.saving.load_model(folder / "ours.keras")
    assert interop.load(again).network == live.network
    for variable, expected in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(variable.value), np.asarray(expected.value))


def run_drawn(part: int, count: int, check: Callable[[Any, str, int], None]) -> None:
    drawing = settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a smaller failing model would take minutes to find
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    # Drawn inside of the test, because Keras's layers use Python's random numbers.
    drawing(seed(part)(given(st.data())(lambda data: check(*models(data.draw)))))()


def check_drawn(part: int, count: int, folder: Path) -> None:
    worst: dict[str, float] = {}

    def check(model: Any, source: str, seed: int) -> None:
        for name, error in check_equal(model, source, seed).items():
            worst[name] = max(worst.get(name, 0.0), error)
            assert error < TOLERANCE, (name, error, interop.load(model).network)
        check_written(model, folder)

    run_drawn(part, count, check)
    print(f"{count} models, largest errors {worst}")


def test_drawn_models(tmp_path: Path) -> None:
    check_drawn(0, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 26))
def test_many_drawn_models(part: int, tmp_path: Path) -> None:
    check_drawn(part, 20, tmp_path)
    jax.clear_caches()
    keras.backend.clear_session()
