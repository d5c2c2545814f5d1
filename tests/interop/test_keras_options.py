"""Each option that any version of Keras writes is read, known to be without effect, or refused."""

import copy
import json
from typing import Any

import pytest

from rnnjax import InteropError
from rnnjax.interop.keras.layers import _LAYERS, entry_of, layer_of

KINDS = sorted(kind for kind in _LAYERS if not kind.startswith("ops."))
CONVOLUTIONS = (
    "Conv1D", "Conv2D", "SeparableConv1D", "SeparableConv2D", "ConvLSTM1D", "ConvLSTM2D",
)  # fmt: skip
OF_KERAS_2 = ("CuDNNGRU", "CuDNNLSTM")

DROPOUTS = ("", ""), ("Spatial", "1D"), ("Gaussian", ""), ("Alpha", "")

MADE: dict[str, dict[str, Any]] = {
    **{kind: {"units": 2} for kind in ("SimpleRNN", "LSTM", "GRU", "Dense", *OF_KERAS_2)},
    **{kind: {"filters": 2, "kernel_size": 2} for kind in CONVOLUTIONS},
    **{f"ConvLSTM{n}D": {"filters": 2, "kernel_size": (2,) * n, "padding": "same"} for n in (1, 2)},
    **{f"{kind}Pooling{n}D": {"pool_size": 2} for kind in ("Max", "Average") for n in (1, 2)},
    **{f"{kind}Dropout{end}": {"rate": 0.1} for kind, end in DROPOUTS},
    **{f"DepthwiseConv{n}D": {"kernel_size": 2} for n in (1, 2)},
    "Rescaling": {"scale": 2},
    "GaussianNoise": {"stddev": 0.1},
    "Dot": {"axes": 2},
    "Reshape": {"target_shape": (2,)},
    "Permute": {"dims": (2, 1)},
    "RepeatVector": {"n": 2},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 2},
    "Embedding": {"input_dim": 3, "output_dim": 2},
    "Activation": {"activation": "relu"},
}

# What no number depends on, by the reason.
WITHOUT_EFFECT = {
    "trainable", "dtype", "dynamic",  # types are those of the arrays
    "batch_input_shape", "input_length", "query_shape", "key_shape", "value_shape",  # of the inputs
    "seed", "momentum", "virtual_batch_size", "synchronized",  # of training
    "renorm_clipping", "renorm_momentum",
    "implementation", "unroll", "time_major",  # how it is computed, and which axis is time
    "stateful", "return_state",  # a carry is always given and returned
}  # fmt: skip
OF_TRAINING = ("_initializer", "_regularizer", "_constraint")


def made(keras: Any, kind: str) -> dict[str, Any]:
    """A layer as this Keras writes it."""
    layers = keras.layers
    if kind == "RNN":
        layer = layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)])
    elif kind == "Bidirectional":
        layer = layers.Bidirectional(layers.GRU(2), backward_layer=layers.GRU(2, go_backwards=True))
    elif kind == "TimeDistributed":
        layer = layers.TimeDistributed(layers.Dense(2))
    else:
        layer = getattr(layers, kind)(**MADE.get(kind, {}))
    said: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    said["config"]["name"] = "it"
    return said


def configs_in(said: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of a layer, and of the layers and cells inside of it."""
    config = said["config"]
    inside = [config.get(name) for name in ("layer", "backward_layer", "cell")]
    inside += config.get("cells", [])
    return [config, *(each for one in inside if isinstance(one, dict) for each in configs_in(one))]


def check_options(said: dict[str, Any], version: float) -> tuple[set[str], set[str]]:
    """Say which options of a layer are read, and which are known to be without effect."""
    expected = layer_of(entry_of(said, "a layer", version))
    read, without = set(), set()
    for i, config in enumerate(configs_in(said)):
        for name in [*config, "of_later"]:
            if name == "name":
                continue
            other = copy.deepcopy(said)
            configs_in(other)[i][name] = {"strange": 1}
            if name in WITHOUT_EFFECT or name.endswith(OF_TRAINING):
                without.add(name)
                assert layer_of(entry_of(other, "a layer", version)) == expected, name
                continue
            read.add(name)
            option = {"cells": "cell", "quantization_config": "is quantised"}.get(name, name)
            option = "activation" if "activation" in name else option
            if said["class_name"] == "LeakyReLU" and name == "alpha":
                option = "negative_slope"
            says = rf"\b{option} of .*layer '.*'|layer '.*'.* {option}|'it' .*'{option}'"
            with pytest.raises(InteropError, match=says):
                layer_of(entry_of(other, "a layer", version))
    return read - {"of_later"}, without


@pytest.mark.parametrize("kind", KINDS)
def test_each_option_of_keras_3(kind: str) -> None:
    keras = pytest.importorskip("keras", reason="keras is in the group `test`")
    if kind not in OF_KERAS_2:
        check_options(made(keras, kind), 3)


@pytest.mark.slow
def test_each_option_of_keras_2() -> None:
    keras = pytest.importorskip("tf_keras", reason="tf_keras is in the extra `parity`")
    for kind in KINDS:
        if kind in OF_KERAS_2:
            layer = getattr(keras.src.layers, kind)(2)
            said = {"class_name": kind, "config": {**layer.get_config(), "name": "it"}}
        elif not hasattr(keras.layers, kind):
            continue  # of Keras 3 alone
        else:
            said = made(keras, kind)
        read, without = check_options(said, 2.15)
        print(f"{kind}: read {sorted(read)}, without effect {sorted(without)}")


LSTM = {"class_name": "LSTMCell", "config": {"units": 2}}
# What the versions before wrote, and others do not.
OLD: list[tuple[float, str, dict[str, Any]]] = [
    (1, "LSTM", {
        "output_dim": 2, "init": "a", "inner_init": "b", "forget_bias_init": "one",
        "activation": "tanh", "inner_activation": "sigmoid", "W_regularizer": {"l2": 0.1},
        "U_regularizer": None, "b_regularizer": None, "dropout_W": 0.0, "dropout_U": 0.0,
        "return_sequences": True, "go_backwards": False, "stateful": True, "unroll": True,
        "consume_less": "gpu", "batch_input_shape": [1, 2, 3], "input_dim": 3,
        "input_length": 2, "input_dtype": "float32", "trainable": True}),
    (1, "TimeDistributedDense", {
        "output_dim": 2, "init": "a", "activation": "relu", "bias": True, "input_dim": 3,
        "input_length": 2, "W_constraint": None, "b_constraint": {"name": "MaxNorm"}}),
    (1, "Embedding", {
        "input_dim": 3, "output_dim": 2, "init": "uniform", "mask_zero": True, "dropout": 0.0,
        "input_length": 4, "activity_regularizer": None, "input_dtype": "int32"}),
    (1, "BatchNormalization", {"mode": 0, "axis": -1, "epsilon": 1e-3, "momentum": 0.99}),
    (1, "MaxPooling1D", {"pool_length": 2, "stride": 1, "border_mode": "same"}),
    (2, "SpatialDropout1D", {"rate": 0.1, "noise_shape": None, "seed": 3}),
    (2, "GRU", {"units": 2, "implementation": 2, "num_constants": None, "reset_after": True}),
    (2, "Conv1D", {**MADE["Conv1D"], "data_format": "channels_last"}),
    (2.06, "BatchNormalization", {"fused": True, "renorm": False, "virtual_batch_size": None}),
    (2.06, "Attention", {"use_scale": True, "causal": False, "dropout": 0.0}),
    (2.06, "Flatten", {"data_format": "channels_last", "dynamic": False}),
]  # fmt: skip


@pytest.mark.parametrize(("version", "kind", "config"), OLD, ids=lambda one: f"{one!s:.20}")
def test_options_of_old_versions(version: float, kind: str, config: dict[str, Any]) -> None:
    said = {"class_name": kind, "config": {"name": "it", **config}}
    layer_of(entry_of(said, "a layer", version))


@pytest.mark.parametrize(
    ("version", "kind", "config"),
    [
        (1, "BatchNormalization", {"mode": 1}),
        (1, "MaxPooling2D", {"dim_ordering": "th"}),
        (1, "Embedding", {"dropout": 0.5}),
        (2.06, "Attention", {"causal": True}),
        (2.06, "RNN", {"num_constants": 1, "cell": LSTM}),
        (2.06, "BatchNormalization", {"renorm": True}),
        (3, "LayerNormalization", {"rms_scaling": True}),
        (3, "MultiHeadAttention", {"use_gate": True}),
        (3, "MultiHeadAttention", {"sliding_window": 2}),
        (3, "GlobalAveragePooling1D", {"keepdims": True}),
        (3, "LSTM", {"peepholes": True}),
        (3, "ConvLSTM1D", {"padding": "valid"}),
        (3, "ConvLSTM2D", {"strides": [2, 2]}),
        (3, "ConvLSTM2D", {"dilation_rate": [1, 2]}),
        (3, "Dense", {"activation": {"class_name": "ReLU", "config": {"max": 6}}}),
    ],
)
def test_an_option_that_changes_numbers_is_refused(version: float, kind: str, config: Any) -> None:
    said = {"class_name": kind, "config": {"name": "it", **MADE.get(kind, {}), **config}}
    option = "max" if "activation" in config else next(iter(config))
    with pytest.raises(InteropError, match=rf"{option} of layer 'it' \(\w+\) should be .*, but is"):
        layer_of(entry_of(said, "a layer", version))
