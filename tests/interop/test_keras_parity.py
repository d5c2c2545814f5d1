"""Drawn Keras 3 models, run live on its JAX backend, against `rnnjax.interop.keras`.

For each: outputs, and the way back, bit for bit. States are compared in test_keras_graphs.py.
"""

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import arrays_of, distance, drawn, same_arrays

from rnnjax.interop import Model, Recurrent
from rnnjax.interop import keras as interop

keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
layers = keras.layers

# Keras's variables give their arrays to NumPy 2 in the way of NumPy 1, where it saves a model.
# And it warns of a softmax over a single feature.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
]

TIME, BATCH, WORDS = 4, 3, 5
TOLERANCE = 1e-5  # of the largest number

# All functions are compared in test_keras_functions.py.
FUNCTIONS = st.sampled_from(["tanh", "tanh", "tanh", "relu", "gelu", "leaky_relu", "softmax"])
GATES = ["sigmoid", "sigmoid", "hard_sigmoid", "softsign", "tanh"]


Draw = Callable[[Any], Any]


def cell_options(draw: Draw, kind: str, units: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "units": units,
        "activation": draw(FUNCTIONS),
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


def both_directions(draw: Draw, sequences: bool, units: int) -> Any:
    forward = recurrent(draw, sequences, units, draw(st.booleans()))
    other = None
    if forward.go_backwards or draw(st.booleans()):
        other = recurrent(draw, sequences, units, not forward.go_backwards)
    mode = draw(st.sampled_from(["concat", "sum", "mul", "ave"]))
    return layers.Bidirectional(forward, merge_mode=mode, backward_layer=other)


BETWEEN = [
    lambda: layers.Dropout(0.4),
    lambda: layers.SpatialDropout1D(0.4),
    lambda: layers.Activation("gelu"),
    lambda: layers.ReLU(max_value=6),
    lambda: layers.LeakyReLU(0.15),
    lambda: layers.Dense(2, activation="softplus"),
    lambda: layers.TimeDistributed(layers.Dense(2, use_bias=False)),
    lambda: layers.TimeDistributed(layers.Dense(2, activation="tanh")),
]


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
            layer = both_directions(draw, sequences, units)
        else:
            layer = recurrent(draw, sequences, units, draw(st.booleans()))
        row.append(layer)
        if sequences and not last and draw(st.booleans()):
            row.append(draw(st.sampled_from(BETWEEN))())
        if tail:
            row.append(layers.Dense(2, activation=draw(FUNCTIONS)))
    ids = source in ("Embedding", "words")
    start = keras.Input((TIME,) if ids else (TIME, features), dtype="int32" if ids else "float32")
    if draw(st.booleans()):
        model = keras.Model(start, functools.reduce(lambda end, layer: layer(end), row, start))
    else:
        model = keras.Sequential([start, *row])
    return model, source, draw(st.integers(0, 2**16))


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


def check_equal(model: Any, source: str, seed: int) -> None:
    """Outputs of a Keras model and of ours, and the way back."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(0.6 * rng.standard_normal(variable.shape).astype(np.float32))
    xs, mask = inputs_of(model, source, rng)
    more = {} if mask is None else {"mask": mask}
    weights = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def theirs(xs: Any) -> Any:
        return model.stateless_call(weights, fixed, xs, training=False, **more)[0]

    ours = interop.load(model)
    turned = np.swapaxes(xs, 0, 1), None if mask is None else np.swapaxes(mask, 0, 1)
    carry, ys = jax.jit(lambda xs, mask: ours(xs, mask=mask))(*turned)
    assert jax.tree.structure(carry) == jax.tree.structure(ours.initial_carry((BATCH,)))
    last = [layer for layer in ours.layers.values() if isinstance(layer, Recurrent)][-1]
    if last.return_sequences:
        ys = jax.tree.map(lambda y: np.swapaxes(y, 0, 1), ys)
    assert distance(*map(jax.tree.leaves, (ys, theirs(xs)))) < TOLERANCE, ours.network

    before = arrays_of(model)
    with tempfile.TemporaryDirectory() as folder:
        interop.save(ours, f"{folder}/ours.weights.h5")
        model.load_weights(f"{folder}/ours.weights.h5")
        # A row that is written anew is the same model in Keras.
        interop.save(Model(ours.network, ours.params), f"{folder}/ours.keras")
        again = keras.saving.load_model(f"{folder}/ours.keras")
    assert interop.load(again).network == ours.network
    for one in (model, again):
        same_arrays(one, before)


@pytest.mark.parametrize("count", [2, pytest.param(500, marks=pytest.mark.slow)])
def test_drawn_models(count: int) -> None:
    left = count

    @drawn(count)
    @given(st.data())  # drawn inside, because Keras's layers use Python's random numbers
    def check(data: Any) -> None:
        nonlocal left
        left -= 1
        check_equal(*models(data.draw))
        if left % 20 == 0:
            jax.clear_caches()
            keras.backend.clear_session()

    check()
