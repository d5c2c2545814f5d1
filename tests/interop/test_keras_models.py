"""What `rnnjax.interop.keras` says of live models and of ours: each kind of layer, and refusals."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop_helpers import arrays_of, random_model, same_arrays

import rnnjax
from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Masking,
    Model,
    OneHotIds,
    Recurrent,
)
from rnnjax.interop import keras as interop
from rnnjax.interop.functions import Nonlinearity
from rnnjax.training import keras_adam

keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
layers = keras.layers
# Keras's variables give their arrays to NumPy 2 in the way of NumPy 1, where it saves a model.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TIME, BATCH, FEATURES = 4, 3, 2


def built(*row: Any, features: int = FEATURES) -> Any:
    return keras.Sequential([keras.Input((TIME, features)), *row])


def twice(x: Any) -> Any:
    return 2 * x


def computed(model: Any, xs: Any) -> Any:
    """The outputs, ours or Keras's, in one program, which is three times as quick."""
    if isinstance(model, Model):
        return jax.device_get(jax.jit(lambda xs: model(xs)[1])(xs))
    variables = model.trainable_variables, model.non_trainable_variables
    values = [[variable.value for variable in some] for some in variables]
    return jax.device_get(jax.jit(lambda xs: model.stateless_call(*values, xs)[0])(xs))


def opened(model: Model, folder: Path) -> Any:
    """What we write, as Keras opens it."""
    interop.save(model, folder / "ours.keras")
    return keras.saving.load_model(folder / "ours.keras")


# --- in ------------------------------------------------------------------------------------------


def test_a_layer_and_its_states() -> None:
    """The carry always comes out; stateful is feeding it back."""
    x = keras.Input((TIME, FEATURES), batch_size=BATCH)
    layer = layers.LSTM(3, return_sequences=True, return_state=True, stateful=True)
    live = keras.Model(x, layer(x))
    model = interop.load(live)
    xs = np.random.default_rng(0).standard_normal((BATCH, TIME, FEATURES)).astype(np.float32)
    name, carry = layer.name, None
    for part in (xs, -2 * xs):
        ys, hidden, cell = layer(part)
        carry, (ours, *_) = model(jnp.swapaxes(part, 0, 1), carry)
        np.testing.assert_allclose(jnp.swapaxes(ours, 0, 1), np.asarray(ys), atol=1e-6)
        np.testing.assert_allclose(carry[name].hidden, np.asarray(hidden), atol=1e-6)
        np.testing.assert_allclose(carry[name].cell, np.asarray(cell), atol=1e-6)


def test_dropout_acts_where_there_is_a_key() -> None:
    model = interop.load(built(layers.LSTM(3, dropout=0.4, recurrent_dropout=0.2)))
    (layer,) = model.layers.values()
    assert isinstance(layer, Recurrent)
    cell = rnnjax.LSTMCell(3)
    assert layer.cell == rnnjax.Regularized(cell, input_dropout=0.4, recurrent_dropout=0.2)
    xs = jnp.ones((TIME, BATCH, FEATURES))
    assert not np.allclose(model(xs)[1], model(xs, key=jax.random.key(0))[1])


def test_the_old_files_of_keras_3(tmp_path: Path) -> None:
    """It still writes them: a Sequential, and a functional model with its mask spelled out."""

    def row() -> list[Any]:
        return [
            layers.Masking(0.5),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)], return_sequences=True),
            layers.TimeDistributed(layers.Dense(2, activation="relu")),
            layers.SimpleRNN(2),
        ]

    start = keras.Input((TIME, FEATURES))
    together = functools.reduce(lambda end, layer: layer(end), row(), start)
    for model in (built(*row()), keras.Model(start, together)):
        live = interop.load(model)
        model.save(tmp_path / "old.h5")
        model.save_weights(tmp_path / "theirs.weights.h5")
        read = interop.load(tmp_path / "old.h5")
        assert read.network == live.network
        same_arrays(read, arrays_of(live))
        same_arrays(interop.load(tmp_path / "theirs.weights.h5", like=live), arrays_of(live))


def test_weights_alone(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((TIME,), dtype="int32"),
            layers.Embedding(7, 3),
            layers.Bidirectional(layers.GRU(2, return_sequences=True, reset_after=False)),
            layers.LSTM(5, return_sequences=True, use_bias=False),
            layers.SimpleRNN(6, return_sequences=True),
            layers.TimeDistributed(layers.Dense(1)),
        ]
    )
    model.save_weights(tmp_path / "model.weights.h5")
    like = interop.load(model)
    like = like.with_params(jax.tree.map(jnp.zeros_like, like.params))
    read = interop.load(tmp_path / "model.weights.h5", like=like)
    ids = np.array([[1, 2, 0, 6], [3, 3, 5, 1]], np.int32)
    expected = computed(model, ids)
    np.testing.assert_allclose(computed(read, ids.T).swapaxes(0, 1), expected, atol=1e-6)
    interop.save(read, tmp_path / "again.weights.h5")
    before = arrays_of(model)
    model.load_weights(tmp_path / "again.weights.h5")
    same_arrays(model, before)


@pytest.mark.filterwarnings("ignore:The `lora_alpha`")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: [layers.Lambda(lambda x: x), layers.LSTM(2)], "Lambda, which holds code"),
        (lambda: [layers.SeparableConv1D(2, 2)], "'separable_conv1d.*Conv1D'"),
        (lambda: [layers.Masking(1.0), layers.Masking()], "'masking.*comes after layer 'masking"),
        (
            lambda: [layers.Masking(), layers.TimeDistributed(layers.Softmax())],
            "'time_distributed.*comes after layer 'masking",
        ),
        (lambda: [layers.LSTM(2, dropout=1.0)], "dropout of layer 'lstm.*below 1"),
        (lambda: [layers.Dense(2, lora_rank=1)], "adapters of low rank"),
        (lambda: [layers.LSTM(2, activation=twice)], "the activation of layer 'lstm"),
        (
            lambda: [layers.TimeDistributed(layers.GroupNormalization(1))],
            "applies a layer of class 'GroupNormalization'",
        ),
    ],
)
def test_what_is_refused_on_the_way_in(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InteropError, match=says):
        interop.load(built(*make()))


def test_classes_of_ones_own_are_refused(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class LSTM(layers.LSTM):
        pass

    model = built(LSTM(2))
    model.save(tmp_path / "mine.keras")
    for source in (model, tmp_path / "mine.keras"):
        with pytest.raises(InteropError, match="a class that Keras has not"):
            interop.load(source)

    class Mine(keras.Sequential):
        pass

    with pytest.raises(InteropError, match="a class that Keras has not"):
        interop.load(Mine([keras.Input((TIME, FEATURES)), layers.LSTM(2)]))


def test_what_is_no_model() -> None:
    for source in (3, layers.LSTM(2)):
        with pytest.raises(InvalidInputError, match=r"a Keras model, .*; put a layer into a keras"):
            interop.load(source)
    model = interop.load(built(layers.LSTM(2)))
    with pytest.raises(InvalidInputError, match="weights alone"):
        interop.load(built(layers.LSTM(2)), like=model)
    with pytest.raises(InvalidInputError, match=r"expected a rnnjax\.interop\.Model"):
        interop.save(3, "model.keras")
    number: Any = 3
    with pytest.raises(InvalidInputError, match="like should be"):
        interop.load("x.weights.h5", like=number)


def test_float64_needs_x64(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        read = interop.load(built(layers.LSTM(2, dtype="float64")))
        assert arrays_of(read)[0].dtype == np.float64
        interop.save(read, tmp_path / "double.weights.h5")
        same_arrays(interop.load(tmp_path / "double.weights.h5", like=read), arrays_of(read))
    with pytest.raises(InteropError, match="jax_enable_x64"):
        interop.load(tmp_path / "double.weights.h5", like=read)


def test_bfloat16(tmp_path: Path) -> None:
    model = built(layers.GRU(2, dtype="bfloat16", recurrent_initializer="normal"))
    read = interop.load(model)
    model.save_weights(tmp_path / "theirs.weights.h5")
    like = interop.load(tmp_path / "theirs.weights.h5", like=read)
    interop.save(like, tmp_path / "ours.weights.h5")
    before = arrays_of(model)
    model.load_weights(tmp_path / "ours.weights.h5")
    assert before[0].dtype == jnp.bfloat16
    same_arrays(model, before)


# --- out -----------------------------------------------------------------------------------------


def every_layer() -> Model:
    """All that can be written, with options away from their defaults."""
    lstm = rnnjax.LSTMCell(3, activation="softsign", unit_forget_bias=False, use_bias=False)
    gru = rnnjax.GRUCell(2, recurrent_activation="hard_sigmoid", kernel_init="he_normal")
    stack = rnnjax.Stack([rnnjax.Regularized(gru, input_dropout=0.1), rnnjax.SimpleRNNCell(2)])
    backward = rnnjax.GRUCell(2, reset_after=False, activation=Nonlinearity("LeakyRelu", 0.3))
    chain = (
        Embedding("words", 6, 3, mask_zero=True),
        Recurrent("both", rnnjax.Bidirectional(gru, backward, "average")),
        Dropout("drop", rnnjax.Dropout(0.3)),
        Dropout("same", rnnjax.Dropout(0.3, per="sequence")),
        Recurrent("stack", stack, masked_outputs="last"),
        Activation("leaky", Nonlinearity("LeakyRelu", 0.3)),
        Activation("swish", "silu"),
        Dense("wide", 5, "exact_gelu"),
        Recurrent("back", lstm, reverse=True, keep_order=False, return_sequences=False),
        Dense("head", 2, "softmax", use_bias=False),
    )
    return random_model(*chain)


def test_keras_opens_what_is_written(tmp_path: Path) -> None:
    model = every_layer()
    interop.save(model, tmp_path / "ours.weights.h5")
    theirs = opened(model, tmp_path)
    ids = np.array([[1, 2, 0, 0], [3, 4, 5, 1], [0, 1, 0, 2]], np.int32)
    expected, ours = computed(theirs, ids), computed(model, ids.T)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    before = arrays_of(theirs)
    for variable in theirs.weights:
        variable.assign(np.zeros(variable.shape, np.float32))
    theirs.load_weights(tmp_path / "ours.weights.h5")
    same_arrays(theirs, before)
    read = interop.load(tmp_path / "ours.keras")
    same_arrays(read, arrays_of(model))
    np.testing.assert_array_equal(computed(read, ids.T), ours)


def test_one_hot_ids_are_vectors_in_keras(tmp_path: Path) -> None:
    lstm = Recurrent("lstm", rnnjax.LSTMCell(3))
    model = random_model(OneHotIds("ids", 5), lstm, Dense("head", 5))
    ids = np.array([[1, 4], [0, 2], [3, 3]])
    expected = computed(opened(model, tmp_path), np.eye(5, dtype=np.float32)[ids.T])
    np.testing.assert_allclose(computed(model, ids).swapaxes(0, 1), expected, atol=1e-6)


def test_masking_and_both_directions(tmp_path: Path) -> None:
    both = rnnjax.Bidirectional(rnnjax.LSTMCell(2))
    chain = (Masking("mask", -1.0), Recurrent("both", both, return_sequences=False))
    model = random_model(*chain, inputs=2)
    xs = np.random.default_rng(0).standard_normal((BATCH, TIME, 2)).astype(np.float32)
    xs[0, 2:] = -1
    expected = computed(opened(model, tmp_path), xs)
    np.testing.assert_allclose(computed(model, xs.swapaxes(0, 1)), expected, atol=1e-6)


def test_a_softmax_behind_the_last_output_has_no_mask() -> None:
    model = keras.Sequential(
        [layers.Embedding(7, 3, mask_zero=True), layers.LSTM(2), layers.Softmax()]
    )
    ids = np.array([[1, 2, 0, 0], [3, 3, 5, 1]], np.int32)
    model.build(ids.shape)
    expected = computed(model, ids)
    np.testing.assert_allclose(computed(interop.load(model), ids.T), expected, rtol=0, atol=1e-6)


# --- training ---


def test_ten_steps_of_adam() -> None:
    """In Keras and here, from the same weights, they end at the same weights."""
    model = built(layers.LSTM(5, return_sequences=True), layers.LSTM(4), layers.Dense(2))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(0.6 * rng.standard_normal(variable.shape).astype(np.float32))
    xs, targets = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((10, BATCH, TIME, FEATURES), (10, BATCH, 2))
    )
    ours = interop.load(model)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    theirs = [float(model.train_on_batch(x, y)) for x, y in zip(xs, targets, strict=True)]

    optimizer = keras_adam(0.01)

    def step(state: Any, batch: Any) -> Any:
        (params, inner), (x, y) = state, batch

        def loss(params: Any) -> jax.Array:
            return jnp.mean((ours.apply(params, jnp.swapaxes(x, 0, 1))[1] - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, inner = optimizer.update(gradient, inner)
        return (optax.apply_updates(params, updates), inner), value

    begin = ours.params, optimizer.init(ours.params)
    (params, _), losses = jax.jit(functools.partial(jax.lax.scan, step))(begin, (xs, targets))
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    for start, end, expected in zip(
        arrays_of(ours), jax.tree.leaves(params), arrays_of(interop.load(model)), strict=True
    ):
        np.testing.assert_allclose(end, expected, rtol=0, atol=1e-4)
        assert np.abs(np.asarray(end) - start).max() > 0.02
