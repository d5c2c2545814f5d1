"""Whole models of Keras go out: to ONNX, as onnxruntime runs them, and to files of Keras 3."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell, begun
from interop_helpers import at_once, distance, random_model
from made_models import LAYERS, MODELS, inputs_of, model_of
from onnx_helpers import needs_runtime, session

import rnnjax
from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Dense, Functional, Layer, Model, Recurrent, export, keras, onnx
from rnnjax.interop.model import Call, Input, Value

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*therefore destroy the mask information"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
MOST = 1e-5
FEW = ("lrcn", "transformer", "translator_masked")


def both(*few: str) -> list[Any]:
    """The tables of models, and what people keep by both packages; in an ordinary run a few."""
    rows = []
    for name, builds in (("keras", LAYERS + MODELS), ("tf_keras", MODELS)):
        for build in builds:
            marks = [] if name == "keras" and build.__name__ in few else pytest.mark.slow
            rows.append(pytest.param(name, build, id=f"{name}-{build.__name__}", marks=marks))
    return rows


def read(name: str, build: Any, folder: Path) -> tuple[Model, list[np.ndarray], list[np.ndarray]]:
    """A model out of a file, its inputs, batch first, and what its package makes of them."""
    of = pytest.importorskip(name, reason=f"{name} is in the extra `parity`")
    model = model_of(build, of)
    arrays = inputs_of(model)
    path = folder / ("theirs.h5" if name == "tf_keras" else "theirs.keras")
    model.save(path)
    run = functools.partial(at_once, model) if name == "keras" else model
    ys = run(arrays if arrays[1:] else arrays[0], training=False)
    expected = [*map(np.asarray, jax.tree.leaves(ys))]
    return keras.load(path, time_first=False), arrays, expected


def run(proto: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of arrays, in the order of the inputs."""
    runner = session(proto)
    pairs = zip(runner.get_inputs(), arrays, strict=True)
    wide = {one.name: a.astype(np.int64) if "int64" in one.type else a for one, a in pairs}
    return list(runner.run(None, wide))


@needs_runtime
@pytest.mark.parametrize(("name", "build"), both(*FEW))
def test_to_onnx(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """Read back, the graph computes what the model does."""
    model, arrays, expected = read(name, build, tmp_path)
    proto = onnx.to_proto(model, states=False)
    assert distance(run(proto, arrays), expected) < MOST
    named = dict(zip([one.name for one in proto.graph.input], arrays, strict=True))
    ys = at_once(onnx.load(proto), named)[1]
    ys = [ys[one.name] for one in proto.graph.output] if isinstance(ys, dict) else [ys]
    assert distance(ys, expected) < MOST


@pytest.mark.parametrize(("name", "build"), both("translator_masked"))
def test_to_keras(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """Out of a file of either package, as Keras 3 opens it."""
    model, arrays, expected = read(name, build, tmp_path)
    if (name, build.__name__) == ("tf_keras", "translator_masked"):
        # Keras 3 hands no mask to a layer that begins with states.
        with pytest.raises(InteropError, match="has masks that Keras 3 merges or uses otherwise"):
            keras.save(model, tmp_path / "ours.keras")
        return
    keras.save(model, tmp_path / "ours.keras")
    opened = pytest.importorskip("keras").saving.load_model(tmp_path / "ours.keras")
    ys = at_once(opened, arrays if arrays[1:] else arrays[0])
    assert distance([*map(np.asarray, jax.tree.leaves(ys))], expected) < MOST


def of_one(layer: Layer, params: Any = None, inputs: str = "x", size: int = 4) -> Model:
    """A graph of one layer, which takes the first input."""
    given = tuple(Input(name, (None, size)) for name in inputs)
    call = Call(layer.name, layer.name, (Value("x"),))
    network = Functional(given, (layer,), (call,), (Value(layer.name),))
    return Model(network, {} if params is None else {layer.name: params})


def test_names_of_layers_in_a_file(tmp_path: Path) -> None:
    """Keras 3 takes no slash in them; no format takes one for two."""
    dense, params = Dense("a/b", 2), {"kernel": np.ones((3, 2), "f"), "bias": np.ones(2, "f")}
    keras.save(of_one(dense, params, size=3), tmp_path / "a.keras")
    opened = pytest.importorskip("keras").saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(opened(np.ones((1, 4, 3), "f")), np.full((1, 4, 2), 4))
    twice = of_one(dense, params, "xx", 3)
    with pytest.raises(InteropError, match="two values of the graph would be named 'x'"):
        onnx.to_proto(twice)
    for model in (twice, random_model(Dense("a/b", 2), Dense("a_b", 2), inputs=3)):
        with pytest.raises(InteropError, match="two layers or inputs of the model would have one"):
            keras.save(model, tmp_path / "b.keras")
    assert not (tmp_path / "b.keras").exists()


@dataclasses.dataclass(frozen=True)
class Own(Layer):
    """A layer of the user's own."""

    name: str
    function: Any

    def run(self, params: Any, flow: Any, carry: Any, context: Any) -> Any:
        return None, flow._replace(xs=self.function(flow.xs))


def spectrum(x: jax.Array) -> jax.Array:
    return jnp.abs(jnp.fft.fft(x))


@needs_runtime
def test_a_layer_of_ones_own(tmp_path: Path) -> None:
    """To ONNX it goes by what it computes; Keras has no class for it."""
    xs = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    for function in (jnp.square, spectrum):
        model = of_one(Own("own", function))
        if function is jnp.square:
            assert distance(run(onnx.to_proto(model), [xs]), [xs**2]) < MOST
            continue
        with pytest.raises(InteropError, match=r"layer 'own' computes .*, which is not written to"):
            onnx.to_proto(model)
        with pytest.raises(InteropError, match="own") as caught:
            keras.save(model, tmp_path / "own.keras")
        assert "\n" not in str(caught.value)


def test_a_layer_of_a_fixed_number_of_steps() -> None:
    """JAX has no associative scan over an axis of any size."""
    model = of_one(Own("own", lambda x: jax.lax.associative_scan(jnp.add, x)))
    for write in (onnx.to_proto, export):
        with pytest.raises(InvalidInputError, match="for a fixed number of steps alone") as caught:
            write(model)
        assert "\n" not in str(caught.value)


@needs_runtime
def test_an_output_that_is_a_mask(tmp_path: Path) -> None:
    of = pytest.importorskip("keras", reason="keras is in the extra `parity`")
    ids = of.layers.Input((None,), dtype="int32")
    embedding = of.layers.Embedding(5, 3, mask_zero=True)
    mask = of.layers.LSTM(3)(embedding(ids)), embedding.compute_mask(ids)
    theirs, given = of.Model(ids, mask), np.array([[1, 2, 0], [4, 0, 0]], np.int32)
    theirs.save(tmp_path / "mask.keras")
    expected = [np.asarray(y) for y in at_once(theirs, given)]
    model = keras.load(tmp_path / "mask.keras", time_first=False)
    made = run(onnx.to_proto(model, states=False), [given])
    assert made[1].dtype == bool
    np.testing.assert_array_equal(made[1], expected[1])
    assert distance(made[0], expected[0]) < MOST


@needs_runtime
def test_sizes_that_are_certain_of_long_sequences_alone(tmp_path: Path) -> None:
    """Without padding a convolution of five steps that strides gives none of four."""
    of = pytest.importorskip("keras", reason="keras is in the extra `parity`")
    i = of.layers.Input((None, 4))
    theirs = of.Model(i, of.layers.GRU(3)(of.layers.Conv1D(3, 5, strides=2)(i[:, 1:])))
    theirs.save(tmp_path / "strides.keras")
    model = keras.load(tmp_path / "strides.keras", time_first=False)
    proto, program = onnx.to_proto(model, states=False), export(model)
    for time in (6, 8, 11):
        xs = np.random.default_rng(time).standard_normal((2, time, 4), np.float32)
        expected = [np.asarray(at_once(theirs, xs))]
        assert distance(run(proto, [xs]), expected) < MOST
        if time >= 8:
            state = jax.tree.leaves(model.initial_carry((2,)))
            assert distance([program.call(state, xs)[1]], expected) < MOST


@needs_runtime
def test_an_output_that_is_an_input() -> None:
    """In a graph of ONNX no two values have one name."""
    model = of_one(Dense("d", 2, use_bias=False), {"kernel": np.eye(3, 2, dtype="f")}, size=3)
    network: Any = dataclasses.replace(model.network, outputs=(Value("x"), Value("d")))
    proto = onnx.to_proto(Model(network, model.params))
    xs = np.ones((2, 4, 3), np.float32)
    assert [one.name for one in proto.graph.output] == ["x_0", "d"]
    assert distance(run(proto, [xs]), [xs, xs[..., :2]]) < MOST


def test_outputs_in_a_dict_whose_keys_are_not_in_order(tmp_path: Path) -> None:
    """Keras 3 counts the places of arrays of layers of one class in the order of the keys."""
    of = pytest.importorskip("keras", reason="keras is in the extra `parity`")
    i = of.layers.Input((None, 3))
    x = of.layers.GRU(2)(i)
    theirs = of.Model(i, {"up": of.layers.Dense(2)(x), "down": of.layers.Dense(2)(x)})
    theirs.save(tmp_path / "theirs.h5")
    model = keras.load(tmp_path / "theirs.h5", time_first=False)
    keras.save(model, tmp_path / "ours.keras")
    opened = of.saving.load_model(tmp_path / "ours.keras")
    xs = np.random.default_rng(0).standard_normal((2, 4, 3), np.float32)
    ours, expected = (jax.device_get(at_once(one, xs)) for one in (opened, theirs))
    assert distance(ours, expected) < MOST
    assert distance(ours["up"], expected["down"]) > 0.1


def test_a_cell_whose_kernel_does_not_tell_its_features() -> None:
    """Its rows are those of the inputs and of the state; see `test_leaving` for a Functional."""
    cell = OwnStepCell(5)
    model = Model.of(cell, begun(cell, 3))
    for write in (onnx.to_proto, export):
        with pytest.raises(InvalidInputError, match="such a cell in a Functional, whose Input"):
            write(model)


def test_a_stack_in_both_directions_becomes_layers(tmp_path: Path) -> None:
    """As of an nn.LSTM with num_layers=2 and bidirectional=True, which is no cell of Keras."""
    of = pytest.importorskip("keras", reason="keras is in the extra `parity`")
    both = [rnnjax.Bidirectional(rnnjax.LSTMCell(n)) for n in (4, 3)]
    stack = rnnjax.Stack(both, rnnjax.Dropout(0.5))
    layer = Recurrent("lstm", stack, return_sequences=False)
    model = random_model(layer, Dense("head", 2), inputs=5)
    keras.save(model, tmp_path / "model.keras")
    opened = of.saving.load_model(tmp_path / "model.keras")
    xs = np.random.default_rng(0).standard_normal((2, 7, 5), np.float32)
    expected = at_once(model, xs.swapaxes(0, 1))[1]
    assert distance([np.asarray(at_once(opened, xs))], [np.asarray(expected)]) < MOST
    read = keras.load(tmp_path / "model.keras", time_first=False)
    assert [*read.layers] == ["lstm_0", "lstm_0_dropout", "lstm_1", "head"]
    assert distance([np.asarray(at_once(read, xs)[1])], [np.asarray(expected)]) < MOST
    short = {**model.params, "lstm": model.params["lstm"][:1]}
    with pytest.raises(InvalidInputError, match="should be a tuple with 2 entries"):
        keras.save(Model(model.network, short), tmp_path / "m.keras")
