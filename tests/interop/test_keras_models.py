"""Models of ours as files of Keras, and what `rnnjax.interop.keras` says of others."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from interop_helpers import arrays_of, at_once, random_model, same_arrays

import rnnjax
from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Activation, Dense, Dropout, Embedding, OneHotIds, Recurrent
from rnnjax.interop import keras as interop
from rnnjax.interop.functions import Nonlinearity

keras = pytest.importorskip("keras", reason="keras is in the group `test`")
layers = keras.layers
# Keras's variables give their arrays to NumPy 2 in the way of NumPy 1, where it saves a model.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TIME, BATCH, FEATURES = 4, 3, 2


def built(*row: Any) -> Any:
    return keras.Sequential([keras.Input((TIME, FEATURES)), *row])


# --- in ---


def test_classes_of_ones_own_are_refused(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class LSTM(layers.LSTM):
        pass

    class Mine(keras.Sequential):
        pass

    model = built(LSTM(2))
    model.save(tmp_path / "mine.keras")
    mine = Mine([keras.Input((TIME, FEATURES)), layers.LSTM(2)])
    for source in (model, tmp_path / "mine.keras", mine):
        with pytest.raises(InteropError, match="a class that Keras has not"):
            interop.load(source)


def test_what_is_no_model() -> None:
    lstm: Any = built(layers.LSTM(2))
    for call, says in (
        (lambda: interop.load(3), r"a Keras model, .*; put a layer into a keras"),
        (lambda: interop.load(layers.LSTM(2)), r"a Keras model, .*; put a layer into a keras"),
        (lambda: interop.load(lstm, like=interop.load(lstm)), "weights alone"),
        (lambda: interop.load("x.weights.h5", like=lstm), "like must be"),
        (lambda: interop.save(lstm, "model.keras"), r"model must be a rnnjax\.interop\.Model"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            call()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_types_stay_what_they_are(dtype: str, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.weights.h5", tmp_path / "ours.weights.h5"
    with jax.enable_x64(dtype == "float64"):
        model = built(layers.GRU(2, dtype=dtype, recurrent_initializer="normal"))
        read, before = interop.load(model), arrays_of(model)
        assert before[0].dtype == dtype
        model.save_weights(theirs)
        interop.save(interop.load(theirs, like=read), ours)
        model.load_weights(ours)
        same_arrays(model, before)
    if dtype == "float64":
        with pytest.raises(InteropError, match="jax_enable_x64"):
            interop.load(ours, like=read)


# --- out ---


def every_layer() -> list[Any]:
    """All that can be written, with options away from their defaults."""
    lstm = rnnjax.LSTMCell(3, activation="softsign", unit_forget_bias=False, use_bias=False)
    gru = rnnjax.GRUCell(2, recurrent_activation="hard_sigmoid", kernel_init="he_normal")
    stack = rnnjax.Stack([rnnjax.Regularized(gru, input_dropout=0.1), rnnjax.SimpleRNNCell(2)])
    backward = rnnjax.GRUCell(2, reset_after=False, activation=Nonlinearity("LeakyRelu", 0.3))
    return [
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
    ]


WRITTEN: dict[str, list[Any]] = {
    "every layer": every_layer(),
    "one-hot ids": [OneHotIds("ids", 6), Dense("dense", 3), Recurrent("gru", rnnjax.GRUCell(2))],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_keras_opens_what_is_written(name: str, tmp_path: Path) -> None:
    """One-hot ids are vectors there; of masks, `row` is written in test_keras_graphs."""
    model, path = random_model(*WRITTEN[name], inputs=FEATURES), tmp_path / "ours.keras"
    interop.save(model, path)
    interop.save(model, tmp_path / "ours.weights.h5")
    theirs, read = keras.saving.load_model(path), interop.load(path)
    xs: Any = np.array([[1, 2, 0, 0], [3, 4, 5, 1], [0, 1, 0, 2]], np.int32)
    given = np.eye(6, dtype=np.float32)[xs] if name == "one-hot ids" else xs
    expected, before = np.asarray(at_once(theirs, given)), arrays_of(theirs)
    for one, inputs in ((model, xs), (read, given)):
        ys = np.asarray(at_once(one, inputs.swapaxes(0, 1))[1])
        ys = ys if name == "every layer" else ys.swapaxes(0, 1)
        np.testing.assert_allclose(ys, expected, atol=1e-6)
    for variable in theirs.weights:
        variable.assign(np.zeros(variable.shape, np.float32))
    theirs.load_weights(tmp_path / "ours.weights.h5")
    same_arrays(theirs, before)
    same_arrays(read, arrays_of(model))
