"""Models of Keras, PyTorch and ONNX, read and written as C, beside their own framework."""

from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from c_helpers import Stream, library
from cell_table import begun
from interop_helpers import at_once, distance, random_model
from made_models import randomized
from onnx_helpers import needs_runtime, nodes_of, normal, proto_of, session, value

import rnnjax
from rnnjax import GRUCell, LSTMCell, SimpleRNNCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import (
    Activation,
    Dense,
    Embedding,
    Masking,
    Model,
    OneHotIds,
    Recurrent,
    c,
    convert,
)  # fmt: skip
from rnnjax.interop import keras as from_keras
from rnnjax.interop import onnx as from_onnx
from rnnjax.interop import torch as from_torch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
layers, TIME, FEATURES, SIZE = keras.layers, 12, 3, 7


def keras_model(*given: Any, ids: bool = False) -> Any:
    shape = keras.Input((None,), dtype="int32") if ids else keras.Input((None, FEATURES))
    return randomized(keras.Sequential([shape, *given]))


def branches() -> Any:
    """Two recurrent layers beside each other, and what goes around both."""
    x = keras.Input((None, FEATURES), name="sound")
    a, b = (kind(4, return_sequences=True)(x) for kind in (layers.LSTM, layers.GRU))
    y = layers.Dense(FEATURES)(layers.Concatenate()([a, b]))
    return randomized(keras.Model(x, layers.Add()([x, y])))


KERAS = {
    "lstm": lambda: keras_model(layers.LSTM(5, return_sequences=True), layers.Dense(2)),
    "gru_last": lambda: keras_model(layers.GRU(5), layers.Dense(2, "softmax")),
    "simple": lambda: keras_model(layers.SimpleRNN(5, "relu", return_sequences=True)),
    "deep": lambda: keras_model(
        layers.LSTM(4, return_sequences=True), layers.Dropout(0.5), layers.GRU(3, reset_after=False)
    ),
    "text": lambda: keras_model(
        layers.Embedding(SIZE, 4), layers.GRU(5, return_sequences=True), layers.Dense(SIZE),
        ids=True,
    ),
    "masked": lambda: keras_model(layers.Masking(), layers.LSTM(4)),
    "padded": lambda: keras_model(
        layers.Embedding(SIZE, 4, mask_zero=True), layers.LSTM(5), ids=True
    ),
    "norms": lambda: keras_model(
        layers.BatchNormalization(), layers.LSTM(4, return_sequences=True),
        layers.LayerNormalization(), layers.Dense(3, "gelu"), layers.Activation("hard_sigmoid"),
    ),
    "conv": lambda: keras_model(
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"),
        layers.Conv1D(4, 2, padding="causal"), layers.GRU(4, return_sequences=True),
    ),
    "groups": lambda: keras_model(layers.Conv1D(6, 3, padding="causal", groups=3)),
    "each": lambda: keras_model(
        layers.TimeDistributed(layers.Dense(4, "elu")), layers.LSTM(4, return_sequences=True)
    ),
    "branches": branches,
}  # fmt: skip


TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm_plain": ("LSTM", {}), "lstm_two": ("LSTM", {"num_layers": 2}),
    "lstm_projected": ("LSTM", {"proj_size": 3}), "gru_two": ("GRU", {"num_layers": 2}),
    "rnn_plain": ("RNN", {}),
}  # fmt: skip
ONNX = {
    "lstm": [Recurrent("a", LSTMCell(5)), Dense("b", 3, "tanh")],
    "stack": [Recurrent("a", Stack([GRUCell(4), SimpleRNNCell(3)])), Activation("b", "softmax")],
    "ids": [OneHotIds("a", SIZE), Recurrent("b", GRUCell(4)), Dense("c", SIZE, "log_softmax")],
    "rows": [Embedding("a", SIZE, 3), Recurrent("b", LSTMCell(4), return_sequences=False)],
}


def inputs(ids: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    if ids:
        return np.append(rng.integers(0, SIZE, TIME - 2), [0, 0]).astype(np.int32)
    xs = rng.normal(size=(TIME, FEATURES)).astype(np.float32)
    xs[[0, 4, 10, 11]] = 0  # steps that Masking leaves out
    return xs


def check(models: dict[str, Any], folder: Path) -> None:
    """Write all, compile them by one call, and run each: models and what their framework gives."""
    for name, (model, _, _) in models.items():
        c.save(model, folder / f"{name}.c")
    lib = library(folder)
    for name, (_, xs, wanted) in models.items():
        stream = Stream(lib, folder, name)
        ys = np.stack([stream.step(x) for x in xs])
        assert distance(ys if wanted.ndim == 2 else ys[-1], wanted) < 1e-5, name


def up_to_each_step(model: Any, xs: np.ndarray) -> np.ndarray:
    """What a model of Keras makes of the steps so far, at each step."""
    ends = range(1, len(xs) + 1)
    return np.stack(at_once(lambda x: [model(x[None, :end])[0] for end in ends], xs))


def of_keras(name: str) -> tuple[Any, ...]:
    model, xs = KERAS[name](), inputs(name in ("text", "padded"))
    wanted = np.asarray(at_once(model, xs[None]))[0]
    if wanted.ndim == 1:  # of all steps up to each one
        wanted = up_to_each_step(model, xs)
    return from_keras.load(model), xs, np.asarray(wanted)


def of_torch(name: str) -> tuple[Any, ...]:
    torch, xs = pytest.importorskip("torch", reason="torch is in the extra `parity`"), inputs(False)
    torch.manual_seed(0)
    kind, options = TORCH[name]
    module = getattr(torch.nn, kind)(FEATURES, 5, **options)
    wanted = module(torch.tensor(xs)[:, None])[0][:, 0].detach().numpy()
    return from_torch.from_state_dict(module.state_dict()), xs, wanted


def of_onnx(name: str) -> tuple[Any, ...]:
    """Read as a graph, whose recurrent nodes have states."""
    ids = name in ("ids", "rows")
    proto, xs = from_onnx.to_proto(random_model(*ONNX[name], inputs=FEATURES)), inputs(ids)
    run = session(proto)
    given = {one.name: np.zeros([n if isinstance(n, int) else 1 for n in one.shape], np.float32)
             for one in run.get_inputs()}  # fmt: skip
    given["ids" if ids else "xs"] = xs[:, None].astype(np.int64) if ids else xs[:, None]
    wanted = run.run(["ys"], given)[0]
    rows = wanted.reshape(-1, wanted.shape[-1])[slice(None) if wanted.ndim == 3 else 0]
    return from_onnx.load(proto), xs, rows


@needs_runtime
def test_models_are_what_their_framework_computes(tmp_path: Path) -> None:
    models = {name: of_keras(name) for name in ("text", "conv", "masked")}
    check(models | {"of_onnx": of_onnx("lstm")}, tmp_path)


@needs_runtime
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_all_models_are_what_their_framework_computes(tmp_path: Path) -> None:
    models = {f"{of.__name__}_{name}": of(name)
              for of, names in ((of_keras, KERAS), (of_torch, TORCH), (of_onnx, ONNX))
              for name in names}  # fmt: skip
    assert len(models) == 21
    check(models, tmp_path)


def test_the_command_writes_c(tmp_path: Path, capsys: Any) -> None:
    cell = GRUCell(4)
    model = Model.of(cell, begun(cell, 3))
    from_keras.save(model, tmp_path / "model.keras")
    assert convert.main(["convert", f"{tmp_path}/model.keras", f"{tmp_path}/model.c"]) == 0
    assert f"wrote {tmp_path}/model.c" in capsys.readouterr().out
    library(tmp_path)


def behind(*given: Any) -> Any:
    """A graph of layers behind the last output of a recurrent one."""
    x = keras.Input((None, FEATURES))
    y = layers.LSTM(4)(x)
    for layer in given:
        y = layer(y)
    return randomized(keras.Model(x, y))


def test_behind_the_last_output_there_is_no_time(tmp_path: Path) -> None:
    norms = layers.BatchNormalization(axis=1), layers.LayerNormalization(axis=1)
    models = {
        "flat": behind(layers.Flatten(), layers.Dense(2)),
        "norms": behind(*norms, layers.Softmax(axis=1)),
        "repeated": behind(layers.RepeatVector(3), layers.Dense(2), layers.Flatten()),
        "one_by_one": keras_model(layers.LSTM(4), layers.Flatten(), norms[0], layers.Dense(2)),
    }
    xs = inputs(False)
    wanted = {n: np.asarray(at_once(m, xs[None]))[0] for n, m in models.items()}
    check({n: (from_keras.load(m), xs, wanted[n]) for n, m in models.items()}, tmp_path)


@pytest.mark.parametrize("masked", [False, True])
def test_a_slice_of_the_last_step_is_the_last_output(masked: bool, tmp_path: Path) -> None:
    """Also where a padded step is last: Keras holds the output there, or says zeros."""
    found, xs = {}, inputs(False)
    for name, options in {"held": {}, "zeros": {"zero_output_for_mask": True}}.items():
        x = keras.Input((None, FEATURES))
        y = layers.LSTM(4, return_sequences=True)(layers.Masking()(x) if masked else x)
        y = layers.Dense(5, "relu")(y)
        cell = layers.GRUCell(3)
        y = layers.RNN(cell, return_sequences=True, **options)(y)[:, -1, :]
        model = randomized(keras.Model(x, layers.Dense(2, "softmax")(y)))
        found[name] = from_keras.load(model), xs, up_to_each_step(model, xs)
    check(found, tmp_path)


def first(build: Any) -> Any:
    """A graph of what is made of the outputs of a recurrent layer."""
    x = keras.Input((None, FEATURES))
    return keras.Model(x, build(layers.GRU(3, return_sequences=True)(x)))


def of_a_state() -> Any:
    """A layer that begins with the end of another."""
    x = keras.Input((None, FEATURES))
    _, *states = layers.LSTM(4, return_state=True)(x)
    return keras.Model(x, layers.LSTM(4, name="second")(x, initial_state=states))


def over_time() -> Any:
    """A softmax whose axis is the last one, as is that of the features elsewhere."""
    x = keras.Input((None, FEATURES))
    scores = keras.ops.sum(layers.LSTM(4, return_sequences=True)(x), axis=-1)
    return keras.Model(x, layers.Softmax()(scores))


def for_a_batch() -> Model:
    proto = from_onnx.to_proto(random_model(Recurrent("a", GRUCell(4)), inputs=3), states=False)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    return from_onnx.load(proto)


def of_any_size() -> Any:
    x = keras.Input((None, None), name="any")
    return keras.Model(x, layers.Add()([x, x]))


def padded(masked: bool = True, **options: Any) -> Model:
    """Padding needs a state that holds the output, where a model has a mask and says no zeros."""
    row = [Masking("m")] * masked + [Recurrent("lru", rnnjax.LRUCell(4), **options)]
    return random_model(*row, inputs=FEATURES)


LAST: Any = {"name": "last"}
WHOLE: list[tuple[Any, str]] = [
    (lambda: keras_model(layers.Bidirectional(layers.LSTM(2))), r"'\w+', Bidirectional\(LSTMCell"),
    (lambda: keras_model(layers.LSTM(2, go_backwards=True)), r"'\w+', LSTMCell\(2\), reverse"),
    (lambda: first(layers.GlobalAveragePooling1D()), ".*GlobalAverage"),
    (lambda: keras_model(layers.Conv1D(2, 3)), ".*Conv1D"),
    (lambda: keras_model(layers.Conv1D(2, 3, padding="causal", strides=2)), ".*Conv1D"),
    (lambda: keras_model(layers.MaxPooling1D(2), layers.GRU(2)), ".*MaxPooling1D"),
    (of_a_state, "'second'"),
    # Other steps than the last, a state behind the last one, and outputs that ran backwards.
    *(
        (lambda part=part: first(lambda y: y[:, part]), "'get_item")
        for part in (0, -2, np.s_[-3:], np.s_[::2], np.s_[:20])
    ),
    (lambda: first(lambda y: layers.LSTM(2, **LAST)(y[:, -1, None])), "'last"),
    (lambda: first(layers.LSTM(2, go_backwards=True, name="back")), "'back"),
    # These would go on from one step to the next, where each begins a sequence of its own.
    (lambda: behind(layers.RepeatVector(3), layers.LSTM(3, **LAST)), "'last'"),
    (lambda: behind(layers.RepeatVector(3), layers.Conv1D(3, 2, padding="causal", **LAST)), "'la"),
    (over_time, "'softmax.*, does not"),
]
REFUSED = [
    *((build, f"takes one step at a time, but layer {named}") for build, named in WHOLE),
    (for_a_batch, "one row, but the graph is for 32; export it for one"),
    (of_any_size, "input 'any' has a shape that is not known"),
    (lambda: padded(return_sequences=False), r"layer 'lru', LRUCell.* does not hold"),
    (lambda: padded(masked_outputs="last"), r"layer 'lru', LRUCell.* does not hold"),
]


@pytest.mark.parametrize(("build", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_c_does_not_take_is_refused_by_name(build: Any, says: str, tmp_path: Path) -> None:
    made, kind = build(), InvalidInputError if "not known" in says else InteropError
    with pytest.raises(kind, match=says):
        c.save(made if isinstance(made, Model) else from_keras.load(made), tmp_path / "model.c")


@pytest.mark.parametrize("options", [{}, {"masked": False, "return_sequences": False}])
def test_padding_of_zeros_and_no_padding_need_no_output(options: Any, tmp_path: Path) -> None:
    c.save(padded(**options), tmp_path / "model.c")


TURNED, BACK = "Transpose x > a perm=[0,2,1];", "; Transpose b > y perm=[0,2,1]"
GRAPHS = {  # that are batch first, and have no state
    "softmax": "Softmax x > y axis=1",
    "mean": "ReduceMean x > m axes=[1]; Sub x m > y",
    "first": "Gather x zero > y axis=1",
    # Of more steps than are followed.
    "delay": "Pad x pads > p; Slice p from to along > d; Add x d > y",
    "joined": "Concat held x > p axis=1; Slice p from to along > d; Add x d > y",
    "long_ago": f"{TURNED} Conv a w > b pads=[8,0] dilations=[8] {BACK}",
    "negative": f"{TURNED} Conv a w > c pads=[1,0]; Relu c > b {BACK}",
}


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_mixes_steps_is_refused(name: str, batch: Any, tmp_path: Path) -> None:
    """Also where it mixes no rows of the batch, which is before, and sees but negative numbers."""
    graph = nodes_of(GRAPHS[name]), [value("x", [batch, "time", FEATURES])], ["y"]
    w = -np.abs(normal(FEATURES, FEATURES, 2))
    delay: dict[str, Any] = {
        "pads": [0, 1300, 0, 0, 0, 0],
        "from": [0],
        "to": [-1300],
        "along": [1],
    }
    delay["held"] = np.zeros((1, 1300, FEATURES), np.float32)
    model = from_onnx.load(
        proto_of(*graph, zero=np.int64(0), w=w, **{key: np.array(n) for key, n in delay.items()})
    )
    with pytest.raises(InteropError, match="this model gives other outputs then"):
        c.save(model, tmp_path / "model.c")


def test_a_graph_without_a_state_is_its_step(tmp_path: Path) -> None:
    """Its output may have another axis of time, and its input the name of a function of C."""
    models, xs = {}, inputs(False)
    for name, axes in {"rows": ["batch", "time"], "columns": ["time", "batch"]}.items():
        nodes = nodes_of("Abs fabsf > a; ReduceSum a last > y keepdims=0")
        proto = proto_of(nodes, [value("fabsf", [*axes, FEATURES])], ["y"], last=np.array([-1]))
        models[name] = from_onnx.load(proto), xs, np.abs(xs).sum(-1, keepdims=True)
    check(models, tmp_path)


def test_a_learned_state_is_where_a_model_begins(tmp_path: Path) -> None:
    cell = rnnjax.LearnedCarry(GRUCell(4))
    params = jax.device_get(begun(cell, FEATURES))
    params["initial_carry"] = jax.tree.map(lambda a: a + np.float32(0.7), params["initial_carry"])
    model, xs = Model.of(cell, params), inputs(False)
    wanted = np.asarray(at_once(model, xs[:, None])[1])[:, 0]
    check({"learned": (model, xs, wanted)}, tmp_path)


def test_a_causal_convolution_goes_on_from_its_window() -> None:
    """In two calls as in one, with any split, and by one that was made for a batch."""
    model = from_keras.load(KERAS["conv"]())
    xs = np.random.default_rng(0).normal(size=(TIME, 2, FEATURES)).astype(np.float32)
    run = jax.jit(model.__call__)
    end, ys = run(xs)
    for split in (1, 5):
        carry, first = run(xs[:split], model.initial_carry((2,)))
        carry, rest = run(xs[split:], carry)
        assert distance(np.concatenate([first, rest]), np.asarray(ys)) < 1e-6
        assert distance(carry, end) < 1e-6
    with pytest.raises(InvalidInputError, match=r"'conv.* which resets do not cut off here; call"):
        run(xs, resets=np.ones((TIME, 2), bool))
    shapes = [leaf.shape for name, leaf in end.items() if name.startswith("conv")]
    assert shapes == [(2, 4, FEATURES), (2, 1, 4)]


@pytest.mark.slow
def test_a_published_detector_of_speech(tmp_path: Path) -> None:
    """The spectrogram of silero-vad is a convolution with strides inside of a step."""
    silero = pytest.importorskip("silero_vad", reason="silero-vad is in the extra `parity`")
    folder = Path(silero.__file__).parent / "data"
    model = from_onnx.load(folder / "silero_vad_16k_sequence.onnx")
    c.save(model, tmp_path / "vad.c")
    stream, carry = Stream(library(tmp_path), tmp_path, "vad"), None
    for x in 0.3 * np.random.default_rng(0).normal(size=(20, 1, 576)).astype(np.float32):
        carry, y = model(x, carry)
        assert np.abs(stream.step(x) - np.ravel(y)) < 1e-6  # a probability
    assert stream.sizes["SCRATCH_BYTES"] < 16_000
