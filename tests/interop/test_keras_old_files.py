"""Files of Keras 1 and 2, made here with h5py from known gates: the same numbers come out."""

from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
from interop_helpers import Named, at_once, random_model, sequential, write_old

import rnnjax
from rnnjax import GRUCell, InteropError, InvalidInputError, LSTMCell, SimpleRNNCell
from rnnjax.interop import Model, Recurrent
from rnnjax.interop import keras as interop
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.layers import entry_of, layer_of, version_of
from rnnjax.interop.layers import Context, Flow

IN, SIZE = 3, 4


def gates(seed: int, count: int) -> list[tuple[np.ndarray, ...]]:
    """For each gate W, U and two biases, with no two numbers alike."""
    rng = np.random.default_rng(seed)
    shapes = (IN, SIZE), (SIZE, SIZE), (SIZE,), (SIZE,)
    return [tuple(rng.standard_normal(s).astype(np.float32) for s in shapes) for _ in range(count)]


def side_by_side(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)


def node(kind: str, name: str, *takes: str, **config: Any) -> dict[str, Any]:
    """A layer of a graph, which takes the first outputs of others."""
    to = [[[one, 0, 0, {}] for one in takes]] if takes else []
    return {
        "class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": to,
    }  # fmt: skip


def graph_of(nodes: list[Any], inputs: Any, outputs: Any) -> dict[str, Any]:
    """A functional model, with the names of its inputs and of its outputs."""
    begin, end = ([[name, 0, 0] for name in names] for names in (inputs, outputs))
    inner = {"name": "m", "layers": nodes, "input_layers": begin, "output_layers": end}
    return {"class_name": "Model", "config": inner}


def check_same(model: Model, cell: rnnjax.Cell, params: Any) -> None:
    xs = jax.device_put(np.random.default_rng(9).standard_normal((5, 2, IN)).astype(np.float32))
    expected = rnnjax.unroll(cell, jax.device_put(params), xs)
    carry, ys = model(xs)
    name = next(iter(model.layers))
    np.testing.assert_array_equal(np.asarray(ys), np.asarray(expected[1]))
    for a, e in zip(jax.tree.leaves(carry[name]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


def gates_of(kind: str, seed: int = 0) -> tuple[rnnjax.Cell, Any, list[tuple[np.ndarray, ...]]]:
    """A cell, its parameters, and its gates in the order of Keras."""
    ours = gates(seed, 4 if kind == "LSTM" else 3)
    w, u, b, c = (side_by_side(*parts) for parts in zip(*ours, strict=True))
    params = {"kernel": w, "recurrent_kernel": u}
    if kind == "LSTM":
        return LSTMCell(SIZE), params | {"bias": b + c}, ours
    r, z, n = ours
    return GRUCell(SIZE), params | {"bias": b, "recurrent_bias": c}, [z, r, n]


def cudnn(parts: list[tuple[np.ndarray, ...]]) -> list[tuple[str, np.ndarray]]:
    """CuDNN has for each gate the transposed matrices in a row, and all biases one after another.

    Keras kept these bytes in arrays of the plain layer's shapes.
    """
    kernel = side_by_side(*(np.ascontiguousarray(w.T).reshape(IN, SIZE) for w, *_ in parts))
    recurrent = side_by_side(*(u.T for _, u, *_ in parts))
    bias = np.concatenate([b for *_, b, _ in parts] + [c for *_, c in parts])
    return [("a/kernel:0", kernel), ("a/recurrent_kernel:0", recurrent), ("a/bias:0", bias)]


@pytest.mark.parametrize("form", ["whole", "like"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_cudnn(kind: str, form: str, tmp_path: Path) -> None:
    cell, params, parts = gates_of(kind)
    options = {"name": "a", "units": SIZE, "return_sequences": True}
    config = sequential((f"CuDNN{kind}", options)) if form == "whole" else None
    path = write_old(tmp_path / "old.h5", {"a": cudnn(parts)}, config, "2.2.4")
    like = Model.of(cell, jax.tree.map(np.zeros_like, params)) if form == "like" else None
    check_same(interop.load(path, like=like), cell, params)


def test_cudnn_in_both_directions(tmp_path: Path) -> None:
    (cell, *forward), (_, *backward) = (gates_of("LSTM", seed) for seed in range(2))
    inner = {"class_name": "CuDNNLSTM", "config": {"units": SIZE, "return_sequences": True}}
    config = sequential(("Bidirectional", {"name": "b", "layer": inner, "merge_mode": "ave"}))
    sides = ("f", forward[1]), ("b", backward[1])
    arrays = [(f"{side}/{key}", array) for side, g in sides for key, array in cudnn(g)]
    model = interop.load(write_old(tmp_path / "old.h5", {"b": arrays}, config, "2.2.4"))
    both = rnnjax.Bidirectional(cell, merge="average")
    check_same(model, both, rnnjax.Directions(forward[0], backward[0]))


def keras_1(parts: dict[str, tuple[np.ndarray, ...]], name: str) -> list[tuple[str, np.ndarray]]:
    return [
        (f"{name}_{letter}_{gate}", array)
        for gate, (w, u, b, c) in parts.items()
        for letter, array in zip("WUb", (w, u, b), strict=True)
    ]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_keras_1(kind: str, tmp_path: Path) -> None:
    """Three arrays for each gate, option names of its own, and the old hard sigmoid by default."""
    hard = {"recurrent_activation": "legacy_hard_sigmoid"}
    of_keras = {"LSTM": "icfo", "GRU": "zrh", "SimpleRNN": "s"}[kind]
    named = dict(zip(of_keras, gates(0, len(of_keras)), strict=True))
    arrays = keras_1(named, "rnn_1")
    parts = [named[gate] for gate in {"LSTM": "ifco", "GRU": "rzh", "SimpleRNN": "s"}[kind]]
    cell = {
        "LSTM": LSTMCell(SIZE, **hard), "GRU": GRUCell(SIZE, reset_after=False, **hard),
        "SimpleRNN": SimpleRNNCell(SIZE),
    }[kind]  # fmt: skip
    w, u, b, _ = (side_by_side(*part) for part in zip(*parts, strict=True))
    options = {
        "name": "rnn_1", "output_dim": SIZE, "activation": "tanh", "return_sequences": True,
        "dropout_W": 0.0, "dropout_U": 0.0, "consume_less": "cpu",
        "batch_input_shape": [None, None, IN],
    } | ({} if kind == "SimpleRNN" else {"inner_activation": "hard_sigmoid"})  # fmt: skip
    config = sequential((kind, options))
    model = interop.load(write_old(tmp_path / "old.h5", {"rnn_1": arrays}, config, None))
    check_same(model, cell, {"kernel": w, "recurrent_kernel": u, "bias": b})
    weights = write_old(tmp_path / "weights.h5", {"rnn_1": arrays}, None, None)
    check_same(interop.load(weights, like=model), cell, model.params["rnn_1"])


def test_keras_1_model_of_several_layers(tmp_path: Path) -> None:
    """Its names for the options of other layers, a functional model, and names in pieces."""
    i, f, g, o = gates(0, 4)
    rng = np.random.default_rng(3)
    table, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((7, IN), (SIZE, 2), (2,)))
    dense = {"class_name": "Dense", "config": {"output_dim": 2}}
    nodes = [
        node("InputLayer", "input_1", batch_input_shape=[None, None]),
        node("Embedding", "emb", "input_1", input_dim=7, output_dim=IN, mask_zero=True),
        node("LSTM", "rnn", "emb", output_dim=SIZE, return_sequences=True, dropout_U=0.25),
        node("Dropout", "drop", "rnn", p=0.5),
        node("TimeDistributed", "head", "drop", layer=dense),
        node("Activation", "soft", "head", activation="softmax"),
    ]
    config = graph_of(nodes, ["input_1"], ["soft"])
    arrays: Named = {
        "input_1": [], "emb": [("emb_W", table)], "drop": [],
        "rnn": keras_1({"i": i, "c": g, "f": f, "o": o}, "rnn"),
        "head": [("head_W", w), ("head_b", b)], "soft": [],
    }  # fmt: skip
    model = interop.load(write_old(tmp_path / "old.h5", arrays, config, "1.2.2", split=True))
    assert list(model.layers) == ["emb", "rnn", "drop", "head", "soft"]
    rnn: Any = model.layers["rnn"]
    assert rnn.cell.recurrent_dropout == 0.25
    ids = np.array([[1, 2], [3, 0], [0, 4]])
    kernel, recurrent, bias, _ = (side_by_side(*part) for part in zip(i, f, g, o, strict=True))
    cell = LSTMCell(SIZE, recurrent_activation="legacy_hard_sigmoid")
    params = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}

    @jax.jit
    def run(key: jax.Array) -> Any:
        _, hidden = rnnjax.unroll(cell, params, table[ids], mask=ids != 0, masked_outputs="last")
        expected = jax.nn.softmax(hidden @ w + b)
        return model(ids)[1], expected, model(ids, key=key)[1]

    ys, expected, noisy = run(jax.random.key(0))
    np.testing.assert_allclose(ys, expected, rtol=1e-6)
    assert not np.allclose(ys, noisy)


@pytest.mark.parametrize("version", ["2.1.5", "2.2.4-tf", "2.11.0", "3.1.0"])
def test_defaults_are_those_of_the_version(version: str, tmp_path: Path) -> None:
    """Options that are left out have that version's default; those written count."""
    reset_after = version != "2.1.5"
    gate = "sigmoid" if reset_after else "legacy_hard_sigmoid"
    _, params, zrn = gates_of("GRU")
    w, u, b, c = (side_by_side(*part) for part in zip(*zrn, strict=True))
    bias = np.stack([b, c]) if reset_after else b
    arrays: Named = {"g": [("g/kernel:0", w), ("g/recurrent_kernel:0", u), ("g/bias:0", bias)]}
    options = {"name": "g", "units": SIZE, "return_sequences": True, "time_major": True}
    path = tmp_path / "old.h5"
    model = interop.load(write_old(path, arrays, sequential(("GRU", options)), version))
    cell = GRUCell(SIZE, reset_after=reset_after, recurrent_activation=gate)
    params = params if reset_after else {k: params[k] for k in params if k != "recurrent_bias"}
    check_same(model, cell, params)
    with pytest.raises(InvalidInputError, match="time_major=True, so that its data are time first"):
        interop.load(path, time_first=False)

    written = {**options, "recurrent_activation": "hard_sigmoid", "reset_after": reset_after}
    model = interop.load(write_old(path, arrays, sequential(("GRU", written)), version))
    old = "hard_sigmoid" if version.startswith("3") else "legacy_hard_sigmoid"
    cell = GRUCell(SIZE, reset_after=reset_after, recurrent_activation=old)
    assert model.layers["g"] == Recurrent("g", cell, masked_outputs="last")


def written(path: Path, version: str, graph: list[Any], **arrays: np.ndarray) -> Model:
    """A model of two inputs of words, masked where they are 0; each of its nodes is an output."""
    words = {"input_dim": 5, "output_dim": 2, "mask_zero": True}
    begin = {"batch_input_shape": [None, 4], "dtype": "int32"}
    nodes = [*(node("InputLayer", name, **begin) for name in "ij"),
             *(node("Embedding", *names, **words) for names in ("ai", "bj")), *graph]  # fmt: skip
    held: Named = {one["name"]: [] for one in nodes}
    held |= {name: [(f"{name}/embeddings:0", arrays[name])] for name in ("a", "b")}
    own = [(f"rnn/{i}:0", arrays[f"w{i}"]) for i in range(len(arrays) - 2)]
    held |= {one["name"]: own for one in graph if own and "RNN" in str(one)}
    config = graph_of(nodes, "ij", [one["name"] for one in graph])
    return interop.load(write_old(path, held, config, version), time_first=False)


WORDS = np.array([[1, 2, 0, 0], [3, 0, 4, 1], [0, 2, 2, 0]])
OTHERS = np.array([[2, 0, 3, 0], [1, 1, 0, 2], [4, 0, 0, 3]])


@pytest.mark.parametrize("version", ["2.2.4", "2.15.0", "3.3.3", "3.4.0", "3.15.1"])
def test_masks_are_merged_as_that_version_does(version: str, tmp_path: Path) -> None:
    """Until Keras 3.3 all masks that there are have to hold, and a product or maximum is one."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((5, 2)).astype(np.float32) for _ in range(2))
    new = version in ("3.4.0", "3.15.1")
    graph = {"Multiply": {}, "Maximum": {}, "Add": {}, "Concatenate": {"axis": -1}}
    built = [node(kind, kind, "a", "b", **config) for kind, config in graph.items()]
    built += [node("GlobalAveragePooling1D", f"of {kind}", kind) for kind in graph]
    built += [node("RepeatVector", "free", "of Add", n=4), node("Average", "Average", "a", "free"),
              node("GlobalAveragePooling1D", "mean", "Average")]  # fmt: skip
    model = written(tmp_path / "a.h5", version, built, a=a, b=b)
    made = at_once(model, (WORDS, OTHERS))[1]
    ys = {one["name"]: np.asarray(y) for one, y in zip(built, made, strict=True)}

    x, y, m, n = a[WORDS], b[OTHERS], (WORDS != 0)[..., None], (OTHERS != 0)[..., None]
    product = np.where(m | n, np.where(m, x, 1) * np.where(n, y, 1), 0) if new else x * y
    np.testing.assert_allclose(ys["Multiply"], product, rtol=1e-6)
    seen = np.maximum(*(np.where(mask, z, -np.inf) for z, mask in ((x, m), (y, n))))
    top = np.where(m | n, seen, x) if new else np.maximum(x, y)
    np.testing.assert_array_equal(ys["Maximum"], top)
    some = m | n if new else m & n

    def mean(z: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (z * mask).sum(1) / mask.sum(1)

    for kind in graph:
        np.testing.assert_allclose(ys[f"of {kind}"], mean(ys[kind], some), rtol=1e-5)
    whole = np.ones_like(m) if new else m
    np.testing.assert_allclose(ys["mean"], mean(ys["Average"], whole), rtol=1e-5)


@pytest.fixture
def tables() -> dict[str, np.ndarray]:
    """The weights of two embeddings."""
    rng = np.random.default_rng(2)
    return {name: rng.standard_normal((5, 2)).astype(np.float32) for name in "ab"}


def test_masks_of_keras_2_go_to_keras_3(tables: Any, tmp_path: Path) -> None:
    """Where both make the same of them, also behind several layers."""
    keras = pytest.importorskip("keras", reason="keras is in the group `test`")
    built = [
        node("Dropout", "c", "a", rate=0.1),
        node("Add", "sum", "a", "c"),
        node("Concatenate", "beside", "sum", "a", axis=-1),
        node("Concatenate", "behind", "a", "b", axis=1),
        node("Concatenate", "longer", "behind", "sum", axis=-2),
        *(node("GlobalAveragePooling1D", f"of {one}", one) for one in ("beside", "longer")),
    ]
    model = written(tmp_path / "a.h5", "2.15.0", built, **tables)
    expected = [np.asarray(y) for y in at_once(model, (WORDS, OTHERS))[1]]
    interop.save(model, tmp_path / "a.keras")
    again = at_once(interop.load(tmp_path / "a.keras", time_first=False), (WORDS, OTHERS))[1]
    theirs = at_once(keras.saving.load_model(tmp_path / "a.keras"), [WORDS, OTHERS])
    for ys in (again, theirs):
        for y, e in zip(ys, expected, strict=True):
            np.testing.assert_allclose(np.asarray(y), e, atol=1e-5)


BOTH = node("Concatenate", "both", "a", "b", axis=1)
MEAN, FREE = node("GlobalAveragePooling1D", "mean", "a"), node("RepeatVector", "free", "mean", n=4)
BEGUN = node("SimpleRNN", "it", units=2)
BEGUN["inbound_nodes"] = [[["both", 0, 0, {"initial_state": [["mean", 0, 0]]}]]]


@pytest.mark.parametrize(
    "built",
    [
        [node("Multiply", "it", "a", "a")],
        [node("Maximum", "it", "a", "b")],
        [node("Add", "it", "a", "b")],
        [MEAN, FREE, node("Add", "it", "a", "free")],
        [MEAN, BOTH, BEGUN],
    ],
)
def test_masks_that_keras_3_would_merge_otherwise(built: Any, tables: Any, tmp_path: Path) -> None:
    if BEGUN in built:
        tables |= {f"w{i}": np.ones((2, 2)[: 2 - i // 2], "f") for i in range(3)}
    built = [*built, node("Flatten", "flat", "b")]
    model = written(tmp_path / "a.h5", "2.15.0", built, **tables)
    at_once(model, (WORDS, OTHERS))
    with pytest.raises(InteropError, match=r"'it', .* masks that Keras 3 .* otherwise; .*onnx"):
        interop.save(model, tmp_path / "a.keras")


@pytest.mark.parametrize("version", ["1.2.2", "2.2.4", "2.3.1", "2.4.0", "2.2.4-tf", "3.0.0"])
def test_masked_outputs_of_both_directions(version: str, tmp_path: Path) -> None:
    """Before that of TensorFlow each repeats its last output, in its own order of steps."""
    rng = np.random.default_rng(1)
    shapes = ((2, 3), (3, 3), (3,)) * 2
    weights = {f"w{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    table = rng.standard_normal((5, 2)).astype(np.float32)
    inner = {"class_name": "SimpleRNN", "config": {"units": 3, "return_sequences": True}}
    both = node("Bidirectional", "rnn", "a", layer=inner, merge_mode="concat")
    if version == "1.2.2":
        inner["config"]["output_dim"] = inner["config"].pop("units")
    graph = [both, node("Flatten", "flat", "b")]
    model = written(tmp_path / "a.h5", version, graph, a=table, b=table, **weights)
    ys, _ = model((WORDS, OTHERS))[1]
    expected = np.zeros((3, 4, 6), np.float32)
    for way, steps in enumerate((range(4), range(3, -1, -1))):
        w, u, b = (weights[f"w{3 * way + i}"] for i in range(3))
        h = np.zeros((3, 3), np.float32)
        for t in steps:
            valid = (WORDS[:, t] != 0)[:, None]
            h = np.where(valid, np.tanh(table[WORDS[:, t]] @ w + h @ u + b), h)
            old = version in ("1.2.2", "2.2.4", "2.3.1")
            expected[:, t, 3 * way : 3 * way + 3] = h if old else np.where(valid, h, 0)
    np.testing.assert_allclose(ys, expected, atol=1e-6)


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0", "3.9.0", "3.10.0"])
def test_masks_of_heads_are_those_of_the_version(version: str) -> None:
    """Before Keras 2.10 heads saw none; from 3.10 on weights of a query without a key are 0."""
    options = {"name": "it", "num_heads": 1, "key_dim": 2, "use_bias": False, "dropout": 0.5}
    said = {"class_name": "MultiHeadAttention", "config": options}
    layer = layer_of(entry_of(said, "it", version_of(version)))
    eye = np.eye(2, dtype=np.float32)
    params = {f"{name}_kernel": eye[:, None] for name in ("query", "key", "value")}
    params["output_kernel"] = eye[None]
    x, mask = np.random.default_rng(0).normal(size=(3, 1, 2)), np.array([[True], [False], [True]])
    flow = Flow(x.astype(np.float32), mask, sequence=True)
    _, out = layer.run(params, (flow, flow), None, Context())
    scores = x[:, 0] @ x[:, 0].T / np.sqrt(2)
    seen = np.ones((3, 3), bool) if version == "2.9.0" else mask & mask.T
    scores = np.where(seen, scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    weights = np.where(seen, weights, 0) if version == "3.10.0" else weights
    np.testing.assert_allclose(out.xs[:, 0], weights @ x[:, 0], atol=1e-6)
    assert (out.mask is None) == (version == "2.9.0")


def test_inputs_of_an_inner_model_in_a_dict() -> None:
    """As Keras 2 lists them at its call, in the order of their names."""

    def inputs(names: str) -> list[Any]:
        return [node("InputLayer", name, batch_input_shape=[None, None, IN]) for name in names]

    inner = graph_of([*inputs("ab"), node("Subtract", "s", "b", "a")], (), "s")
    inner["config"]["input_layers"] = {name: [name, 0, 0] for name in "ba"}
    inner |= {"class_name": "Functional", "name": "inner"}
    inner["inbound_nodes"] = [{"b": ["q", 0, 0, {}], "a": ["p", 0, 0, {}]}]
    whole = graph_of([*inputs("pq"), inner], "pq", ())
    whole["config"]["output_layers"] = [["inner", 1, 0]]
    (call,) = network_of("Functional", whole["config"], 2.15).calls
    assert [value.source for value in call.takes] == ["q", "p"]


def test_like_has_to_fit(tmp_path: Path) -> None:
    arrays: Named = {"a": cudnn(gates_of("LSTM")[2])}
    path = write_old(tmp_path / "old.h5", arrays, None, "2.2.4")
    one, two, gru = (*(Recurrent(n, LSTMCell(SIZE)) for n in "ab"), Recurrent("a", GRUCell(SIZE)))
    whole = sequential(("CuDNNLSTM", {"name": "a", "units": SIZE}))
    other = write_old(tmp_path / "whole.h5", arrays, whole, "2.2.4")
    for source, like, kind, says in (
        (path, random_model(gru, inputs=IN), InteropError, "arrays of th"),
        (path, random_model(one, inputs=IN + 1), InteropError, "another model"),
        (path, random_model(one, two, inputs=IN), InteropError, "1 layers, but the model given as"),
        (path, None, InteropError, r"weights alone.*load\(path, like=model\)"),
        (other, random_model(one, inputs=IN), InvalidInputError, "weights alone"),
    ):
        with pytest.raises(kind, match=says):
            interop.load(source, like=like)


def test_files_of_windows(tmp_path: Path) -> None:
    """Keras 2.13 to 2.15 joined the paths in a file by the separator of the system."""
    cell, path = LSTMCell(SIZE), tmp_path / "model.weights.h5"
    model = random_model(Recurrent("lstm", cell), inputs=IN)
    interop.save(model, path)
    with h5py.File(path, "r+") as file:
        file.move("layers/lstm/cell", "layers\\lstm\\cell")
        del file["layers"]
    like = model.with_params(jax.tree.map(np.zeros_like, model.params))
    check_same(interop.load(path, like=like), cell, model.params["lstm"])
