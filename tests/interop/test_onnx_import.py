"""Whole ONNX graphs: as exporters make them, run, streamed, trained, and written again."""

import io
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import pytest
from interop_helpers import at_once
from onnx import TensorProto, numpy_helper
from onnx_helpers import (
    BATCH,
    FEATURES,
    HIDDEN,
    TIME,
    TOLERANCE,
    by_reference,
    graph_of,
    needs_runtime,
    node,
    nodes_of,
    normal,
    proto_of,
    session,
    value,
    weights,
)

import rnnjax
from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Model, Recurrent
from rnnjax.interop import onnx as rnnjax_onnx

# --- Graphs as exporters make them ---


def tagger() -> Any:
    """Batch first, as a converter of Keras writes GRU, dense layer and softmax."""
    gru = {"hidden_size": HIDDEN, "linear_before_reset": 1}
    nodes = [
        *nodes_of("Transpose x > t perm=[1,0,2]"),
        node("GRU", ["t", "W", "R", "B"], ["Y", ""], "model/gru/scan", **gru),
        *nodes_of("Squeeze Y one > s; Transpose s > b perm=[1,0,2]"),
        node("MatMul", ["b", "kernel"], ["m"], "model/dense/MatMul"),
        *nodes_of("Add m bias > a; Softmax a > y axis=-1"),
    ]
    arrays = {"one": np.array([1]), "kernel": normal(HIDDEN, 3), "bias": normal(3)}
    return proto_of(nodes, [value("x", ["N", "T", FEATURES])], ["y"], **weights(3), **arrays)


def test_layers_have_names_and_rnnjaxs_layout() -> None:
    model = rnnjax_onnx.load(tagger())
    gru = Recurrent("model/gru/scan", rnnjax.GRUCell(HIDDEN))
    assert model.layers == {gru.name: gru}
    kernels = {"kernel": (FEATURES, 12), "recurrent_kernel": (HIDDEN, 12)}
    assert jax.tree.map(np.shape, model.params) == {
        gru.name: kernels | {"bias": (12,), "recurrent_bias": (12,)},
        "constants": {"kernel": (HIDDEN, 3), "bias": (3,)},
    }
    assert "GRUCell(4)" in str(model)
    assert str(model).endswith("the graph's own")
    assert hash(model.network) == hash(rnnjax_onnx.load(tagger()).network)


def test_what_is_no_weight_is_not_trained() -> None:
    """A bias of one number is; statistics, values of one-hot vectors and single numbers are not."""
    arrays: dict[str, Any] = dict.fromkeys(("scale", "shift", "mean", "variance"), np.ones(2, "f"))
    arrays |= {"kernel": normal(2, 1), "bias": normal(1), "epsilon": np.full(1, 1e-5, "f")}
    arrays |= {"half": np.float32(0.5), "values": np.array([0, 1], "f"), "depth": np.array(2)}
    nodes = nodes_of(
        "OneHot ids depth values > x; BatchNormalization x scale shift mean variance > n; "
        "Mul n half > m; Add m epsilon > a; MatMul a kernel > p; Add p bias > y"
    )
    proto = proto_of(nodes, [value("ids", ["N"], TensorProto.INT64)], ["y"], **arrays)
    assert set(rnnjax_onnx.load(proto).params["constants"]) == {"scale", "shift", "kernel", "bias"}


# --- What PyTorch exports ---


def module_of(run: Callable[..., Any], **parts: Any) -> Any:
    """A module of PyTorch of parts by their names, which ``run`` takes and inputs."""

    nn: Any = pytest.importorskip("torch", reason="torch is in the extra `parity`").nn
    module = type("Module", (nn.Module,), {"forward": run})()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class Export:
    """A module of PyTorch with random weights, and its ONNX file."""

    def __init__(self, module: Any, given: Sequence[Any], names: list[str], **options: Any) -> None:
        import torch

        self.module, self.tensors = module, given
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.tensor(normal(*parameter.shape)))
            module.eval()
            outputs = module(*given)
        self.outputs = [y.numpy() for y in jax.tree.leaves(outputs)]
        self.given = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, given, buffer, input_names=names, dynamo=False, **options)
        self.file = buffer.getvalue()


def torch_tagger(kind: str, fold: bool = True, **options: Any) -> Export:
    """Embedding, recurrent layers with states in and out, and a linear layer."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    sides, lstm = 2 if options.get("bidirectional") else 1, kind == "LSTM"

    def run(module: Any, ids: Any, *states: Any) -> Any:
        ys, finals = module.rnn(module.embedding(ids), states if lstm else states[0])
        return module.fc(ys), *(finals if lstm else (finals,))

    rnn = getattr(torch.nn, kind)(FEATURES, HIDDEN, **options)
    parts = {"embedding": torch.nn.Embedding(7, FEATURES), "rnn": rnn}
    module = module_of(run, **parts, fc=torch.nn.Linear(sides * HIDDEN, 6))
    shape = (BATCH, TIME) if options.get("batch_first") else (TIME, BATCH)
    ids = torch.tensor(np.random.default_rng(2).integers(0, 7, shape))
    sizes = sides * options.get("num_layers", 1), BATCH, HIDDEN
    states = [torch.tensor(normal(*sizes)) for _ in range(1 + lstm)]
    names = ["ids", "h", "c"][: 1 + len(states)]
    axes = {name: {1: "batch"} for name in names} | {"ids": {0: "a", 1: "b"}}
    return Export(module, (ids, *states), names, dynamic_axes=axes, do_constant_folding=fold)


def first_of(model: Any, ys: Any) -> Any:
    """States that are no output of a node, as those of two layers in one array, are data."""
    return ys[model.network.outputs[0]] if isinstance(ys, dict) else ys


TAGGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm-2": ("LSTM", {"num_layers": 2}),
    "gru-batch-first": ("GRU", {"batch_first": True}),
    "lstm-2-bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("name", TAGGERS)
def test_models_of_torch_stream_and_train(name: str, assert_close: Any) -> None:
    """States given by name, and in the carry between two pieces, give what PyTorch gives."""
    kind, options = TAGGERS[name]
    export = torch_tagger(kind, **options)
    model = rnnjax_onnx.load(export.file)
    assert model.network.inputs[0].name == "ids"
    assert set(model.params["constants"]) >= {"embedding.weight", "fc.bias"}
    assert ("rnn_1" in model.layers) == (options.get("num_layers") == 2)

    def run(*given: Any) -> Any:
        carry, ys = jax.jit(model.__call__)(*given)
        return carry, first_of(model, ys)

    carry, ys = run(export.given)
    assert_close(ys, export.outputs[0], TOLERANCE)
    layers = [
        c for layer in carry.values() for c in ([layer] if hasattr(layer, "hidden") else layer)
    ]
    finals = [np.stack(leaves) for leaves in zip(*layers, strict=True)]
    assert_close(finals, export.outputs[1:], TOLERANCE)

    if not options.get("bidirectional"):
        axis = 1 if options.get("batch_first") else 0
        first, second = np.split(export.given["ids"], [2], axis=axis)
        between, head = run(export.given | {"ids": first})
        after, tail = run(second, between)
        assert_close(np.concatenate([head, tail], axis=axis), export.outputs[0], TOLERANCE)
        assert_close(after, carry, TOLERANCE)


TUNED = [
    ("RNN", True, optax.sgd(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    ("LSTM", True, optax.adamw(1e-3, weight_decay=0.1), "AdamW", {"lr": 1e-3, "weight_decay": 0.1}),
    ("GRU", True, optax.adam(1e-3), "Adam", {"lr": 1e-3}),
    ("GRU", False, optax.sgd(0.1), "SGD", {"lr": 0.1}),
]


@pytest.mark.parametrize(("kind", "fold", "ours", "theirs", "options"), TUNED)
def test_fine_tuning_is_that_of_torch(
    kind: str, fold: bool, ours: Any, theirs: str, options: dict[str, float], assert_close: Any
) -> None:
    """Twenty steps of an optimizer: both biases of a gate move, as they do there.

    Also where the nodes put the weights together, and the arrays are those of PyTorch.
    """
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    export, targets = torch_tagger(kind, fold), normal(TIME, BATCH, 6)
    model, module = rnnjax_onnx.load(export.file), export.module

    @jax.jit
    def tuned(params: Any) -> Any:
        def made(params: Any) -> jax.Array:
            return first_of(model, model.apply(params, export.given)[1])

        def step(state: Any, _: None) -> Any:
            params, inner = state
            gradients = jax.grad(lambda params: jnp.mean((made(params) - targets) ** 2))(params)
            updates, inner = ours.update(gradients, inner, params)
            return (optax.apply_updates(params, updates), inner), None

        (params, _), _ = jax.lax.scan(step, (params, ours.init(params)), length=20)
        return params, made(params)

    optimizer = getattr(torch.optim, theirs)(module.parameters(), **options)
    for _ in range(20):
        optimizer.zero_grad()
        ((module(*export.tensors)[0] - torch.tensor(targets)) ** 2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        expected = module(*export.tensors)[0].numpy()
    params, ys = tuned(model.params)
    assert_close(ys, expected, TOLERANCE)
    assert ({"bias", "recurrent_bias"} <= set(params.get("rnn", ()))) == fold


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "not folded"])
def test_packed_sequences_and_computed_states_of_torch(fold: bool, assert_close: Any) -> None:
    """Zeros of a computed shape as states, an input of lengths, weights put together by nodes."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")

    def run(module: Any, x: Any, lengths: Any) -> Any:
        ys, h = module.gru(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))
        return torch.nn.utils.rnn.pad_packed_sequence(ys)[0], h

    module = module_of(run, gru=torch.nn.GRU(FEATURES, HIDDEN, bidirectional=True))
    given = torch.tensor(normal(TIME, BATCH, FEATURES)), torch.tensor([TIME, 3, 2])
    axes = {"x": {0: "time", 1: "batch"}, "lengths": {0: "batch"}}
    options = {"do_constant_folding": fold, "dynamic_axes": axes}
    export = Export(module, given, ["x", "lengths"], **options)
    model = rnnjax_onnx.load(export.file)
    carry, ys = at_once(model, export.given)
    assert_close(jax.tree.leaves(ys)[0], export.outputs[0], TOLERANCE)
    assert set(model.params) == ({"gru"} if fold else {"constants"})
    assert isinstance(carry["gru"], rnnjax.Directions)
    untouched = rnnjax_onnx.to_proto(model)
    assert untouched == onnx.load_from_string(export.file)
    doubled = model.with_params(jax.tree.map(lambda array: 2 * np.asarray(array), model.params))
    changed = rnnjax_onnx.load(rnnjax_onnx.to_proto(doubled))
    assert changed.network == model.network
    assert_close(changed.params, doubled.params, TOLERANCE)


# --- Shared tensors, states and lengths ---


def enhancer(norm: str) -> Any:
    """Strided convolutions with normalised weights, an LSTM, and their transposes behind it."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    nn, turned = torch.nn, torch.nn.ConvTranspose1d
    normed = (nn.utils.parametrizations if norm == "parametrized" else nn.utils).weight_norm

    def run(module: Any, x: Any) -> Any:
        y = nn.functional.glu(module.down[1](module.slope(module.down[0](x))), dim=1)
        y = y + module.lstm(y.transpose(1, 2))[0].transpose(1, 2)
        return torch.tanh(module.up[1](torch.relu(module.up[0](y))))

    down = [normed(nn.Conv1d(a, b, 4, 2, padding=1)) for a, b in ((1, 4), (4, 12))]
    up = [
        normed(turned(6, 4, 4, 2, padding=1, output_padding=1, groups=2)),
        normed(turned(4, 1, 4, 2, padding=1, dilation=2)),
    ]
    lstm, slope = nn.LSTM(6, 6, batch_first=True), nn.PReLU(4)
    return module_of(run, down=nn.ModuleList(down), lstm=lstm, up=nn.ModuleList(up), slope=slope)


def crnn(_: str) -> Any:
    """Images of text: convolutions, pools whose last window is not whole, and both directions."""
    nn = pytest.importorskip("torch", reason="torch is in the extra `parity`").nn
    image = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0), ceil_mode=True),
    )  # fmt: skip

    def run(module: Any, x: Any) -> Any:
        y = module.image(x).flatten(1, 2).permute(2, 0, 1)
        return module.head(module.rnn(y)[0]).log_softmax(2)

    rnn = nn.LSTM(6 * 3, 4, bidirectional=True, num_layers=2)
    return module_of(run, image=image, rnn=rnn, head=nn.Linear(8, 5))


FILES: list[Any] = [
    pytest.param(enhancer, "parametrized", True, (2, 1, 38), marks=pytest.mark.slow),
    (enhancer, "hooked", False, (2, 1, 38)),
    pytest.param(enhancer, "hooked", True, (2, 1, 38), marks=pytest.mark.slow),
    (crnn, "", True, (2, 1, 9, 13)),
]


@needs_runtime
@pytest.mark.parametrize(("build", "norm", "fold", "shape"), FILES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_an_enhancer_and_a_reader_of_images_of_torch(
    build: Any, norm: str, fold: bool, shape: Any, assert_close: Any
) -> None:
    """Of any number of rows; weights that nodes put together are the parameters that they are."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    axes = {"x": {0: "batch"}}
    export = Export(
        build(norm), (torch.tensor(normal(*shape)),), ["x"], do_constant_folding=fold,
        dynamic_axes=axes,
    )  # fmt: skip
    model, proto = rnnjax_onnx.load(export.file), onnx.load_from_string(export.file)
    for rows in (2, 3):
        xs = normal(rows, *shape[1:])
        (expected,) = session(proto).run(None, {"x": xs})
        assert_close(jax.jit(model.__call__)(xs)[1], expected, TOLERANCE)
    assert_close(at_once(model, export.given)[1], export.outputs[0], TOLERANCE)
    directions = [n for n in model.params["constants"] if n.endswith(("weight_v", "original1"))]
    assert len(directions) == (4 if build is enhancer else 0)
    assert rnnjax_onnx.to_proto(model) == proto


def test_a_tensor_of_two_nodes_is_one_parameter(assert_close: Any) -> None:
    """One matrix both as the look-up table and, transposed, as the last layer."""
    nodes = nodes_of(
        f"Gather table ids > x; LSTM x W R B > Y hidden_size={HIDDEN}; Squeeze Y one > s; "
        "MatMul s down > d; Transpose table > up perm=[1,0]; MatMul d up > y"
    )
    arrays = {"table": normal(6, FEATURES), "down": normal(HIDDEN, FEATURES), "one": np.array([1])}
    inputs = [value("ids", ["T", "N"], TensorProto.INT64)]
    proto = proto_of(nodes, inputs, ["y"], **weights(4), **arrays)
    model = rnnjax_onnx.load(proto)
    assert set(model.params["constants"]) == {"table", "down"}
    run, ids = jax.jit(model.apply), np.random.default_rng(1).integers(0, 6, (TIME, BATCH))
    assert_close(run(model.params, ids)[1], by_reference(proto, {"ids": ids})["y"], TOLERANCE)
    params = jax.tree.map(lambda array: 2 * np.asarray(array), model.params)
    changed = rnnjax_onnx.to_proto(model.with_params(params))
    expected = by_reference(changed, {"ids": ids})["y"]
    assert_close(run(params, ids)[1], expected, TOLERANCE)
    gradients = jax.jit(jax.grad(lambda p: model.apply(p, ids)[1].sum()))(model.params)
    assert np.all(np.isfinite(gradients["constants"]["table"]))


def one_lstm(order: Sequence[str] = (), inputs: Sequence[Any] = (), **more: Any) -> Any:
    """Its inputs behind W, R and B; attributes of the node, and arrays."""
    arrays = {**weights(4), **{k: v for k, v in more.items() if isinstance(v, np.ndarray)}}
    attributes = {"hidden_size": HIDDEN} | {k: v for k, v in more.items() if k not in arrays}
    outputs = ["Y", "Yh", "Yc"]
    lstm = node("LSTM", ["x", "W", "R", "B", *order], outputs, **attributes)
    return proto_of([lstm], [value("x", ["a", "b", FEATURES]), *inputs], outputs, **arrays)


def test_constant_states_are_trained_and_a_carry_takes_their_place(assert_close: Any) -> None:
    states = {name: normal(1, BATCH, HIDDEN) for name in ("h0", "c0")}
    proto = one_lstm(["", *states], **states)
    model = rnnjax_onnx.load(proto)
    xs = normal(TIME, BATCH, FEATURES)
    run = jax.jit(model.__call__)
    carry, ys = run(xs)
    assert_close(ys, by_reference(proto, {"x": xs})["Y"], TOLERANCE)
    assert set(model.params["constants"]) == {"h0", "c0"}
    _, second = run(xs, carry)
    longer = jax.device_get(run(np.concatenate([xs, xs]))[1])
    assert_close(second, longer[TIME:], TOLERANCE)


@pytest.mark.parametrize("way", ["constant", "batch first", "time first"])
def test_lengths_go_to_the_nodes(way: str, assert_close: Any) -> None:
    """A graph has lengths, or a call gives them along the time axis of the nodes.

    Steps after a row's last are zero, and its states are those of that step.
    """
    lengths, held = np.array([2, 5, 1], np.int32), weights(4)
    proto = tagger() if way == "batch first" else one_lstm(direction="reverse", **held)
    given: Any = {"lengths": lengths}
    model = rnnjax_onnx.load(proto)
    if way == "constant":
        model = rnnjax_onnx.load(one_lstm(["n"], n=lengths, direction="reverse", **held))
        given = {}
    axis, xs = int(way != "batch first"), normal(BATCH, TIME, FEATURES)
    xs = xs.swapaxes(0, axis)
    carry, ys = jax.device_get(jax.jit(lambda xs: model(xs, **given))(xs))
    ys = ys[:, 0] if axis else ys
    for row, length in enumerate(lengths):
        alone = by_reference(proto, {"x": xs.take([row], axis).take(range(length), 1 - axis)})
        mine, expected = ys.take(row, axis), alone["Y"][:, 0, 0] if axis else alone["y"][0]
        assert_close(mine[:length], expected, TOLERANCE)
        if axis:
            assert not mine[length:].any()
            assert_close(carry["lstm"].cell[row], alone["Yc"][0, 0], TOLERANCE)


@pytest.mark.parametrize(
    "nodes",
    [
        "LSTM x W R B > Y hidden_size=4; ReduceMean Y > y axes=[0]",
        "LSTM x W R B > Y hidden_size=4; Gather Y last > y axis=0",
        "Softmax x > s axis=0; LSTM s W R B > y hidden_size=4",
        "Relu x > y",
    ],
)
def test_lengths_are_for_graphs_whose_other_nodes_keep_steps_apart(nodes: str) -> None:
    given = [value("x", ["a", "b", FEATURES])], ["y"]
    model = rnnjax_onnx.load(proto_of(nodes_of(nodes), *given, **weights(4), last=np.int64(-1)))
    with pytest.raises(InvalidInputError, match="or use its own sequence_lens"):
        model(normal(TIME, BATCH, FEATURES), lengths=np.array([2, 5, 4]))


def test_a_clip_that_nothing_reaches_is_none(assert_close: Any) -> None:
    proto, xs = one_lstm(clip=50000.0), normal(TIME, BATCH, FEATURES)
    model = rnnjax_onnx.load(proto)
    assert_close(model(xs)[1], by_reference(proto, {"x": xs})["Y"], TOLERANCE)


def test_dropout_drops_with_a_key() -> None:
    nodes = nodes_of("Dropout x > d ratio=0.5; LSTM d W R B > Y hidden_size=4")
    inputs = [value("x", [None, None, FEATURES])]
    model = rnnjax_onnx.load(proto_of(nodes, inputs, ["Y"], opset=11, **weights(4)))
    xs = normal(TIME, BATCH, FEATURES)
    plain, dropped = jax.jit(lambda key: (model(xs)[1], model(xs, key=key)[1]))(jax.random.key(0))
    assert np.max(np.abs(plain - dropped)) > 1e-3


def test_types(x64: None, assert_close: Any) -> None:
    """float64 where JAX has it; half precision computes and returns half precision."""
    xs = normal(TIME, BATCH, FEATURES)
    plain = one_lstm()
    expected = by_reference(plain, {"x": xs})["Y"]
    for kind, dtype, tolerance in (
        (TensorProto.DOUBLE, np.float64, 1e-5),
        (TensorProto.FLOAT16, np.float16, 5e-3),
    ):
        proto = onnx.ModelProto.FromString(plain.SerializeToString())
        for tensor in proto.graph.initializer:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        proto.graph.input[0].type.tensor_type.elem_type = kind
        model = rnnjax_onnx.load(proto)
        _, ys = jax.jit(model.__call__)(xs.astype(dtype))
        assert ys.dtype == dtype
        assert_close(ys, expected, tolerance)
        assert rnnjax_onnx.to_proto(model) == proto


# --- Bad input ---


def tensor_of(graph: Any, name: str) -> Any:
    (tensor,) = (t for t in graph.initializer if t.name == name)
    return tensor


def changed(change: Callable[[Any], Any]) -> Any:
    """The LSTM, as it is after a change of its graph."""
    proto = one_lstm()
    change(proto.graph)
    return proto


def claim(name: str, dims: list[int]) -> Any:
    return changed(lambda graph: tensor_of(graph, name).dims.__setitem__(slice(None), dims))


def cycle(graph: Any) -> None:
    graph.node.insert(0, node("Add", ["Y", "x"], ["loop"]))
    graph.node[1].input[0] = "loop"


def put_type(graph: Any) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


BAD = {
    "missing input": (changed(lambda graph: graph.node[0].input.insert(0, "nowhere")),
                      "no earlier node, input or initialiser makes its input"),
    "cycle": (changed(cycle), "no earlier node"),
    "operator": (changed(lambda graph: setattr(graph.node[0], "domain", "com.example")),
                 "the operator LSTM of 'com.example' is not read here; export"),
    "branch": (changed(lambda graph: graph.node.append(
        node("If", ["x"], ["z"], then_branch=graph, else_branch=graph)
    )), "its branches should have no inputs, but one has"),
    "output": (changed(lambda graph: graph.output.append(value("z", None))),
               "nothing makes the graph's"),
    "left out": (changed(lambda graph: graph.node.append(node("Mul", ["x", ""], ["z"]))),
                 "input 1 is marked single but has an empty string"),
    "float64": (changed(put_type), "jax_enable_x64"),
    **{says: (one_lstm(**attributes), says) for attributes, says in [
        ({"direction": "up"}, "'up' is no direction"),
        ({"hidden_size": 4.0}, "Mismatched attribute type"),
        ({"units": 4}, "Unrecognized attribute: units"),
        ({"hidden_size": 3}, "its W is float32.1, 16, 2., but with 3"),
        ({"direction": "bidirectional"}, "2 directions it should be floats"),
        ({"clip": 1.0}, "it clips at 1.0, which no cell does"),
        ({"clip": 50000.0, "activations": ["Sigmoid", "Relu", "Relu"]},  # which does not end
         "node 0 .LSTM.: it clips at 50000.0"),
        ({"input_forget": 1}, "input_forget is not read here; exp"),
        ({"activations": ["Sin", "Tanh", "Tanh"]}, "'Sin' is not an activ"),
        ({"activations": ["Tanh"]}, "1 activations, but LSTM takes 3"),
        ({"activations": ["Sigmoid", "Elu", "Tanh"], "activation_alpha": [0.0, 0.5, 0.0]},
         "activation_alpha has numbers that none of the activations Sigmoid, Elu, Tanh takes"),
        ({"activations": ["Sigmoid", "Affine", "Tanh"], "activation_alpha": [2.0]},
         "the activation Affine with .'alpha': 2.0, 'beta': 0.0. is none that a cell has"),
        ({"W": normal(16, 2)}, "its W is float32.16, 2."),
        ({"R": np.zeros((1, 16, 4), np.int32)}, "its R is int32"),
    ]},
    "size": (claim("W", [1, 16, 2**40]), "takes 70368744177664 bytes, but 128 are there"),
    "negative": (claim("W", [1, -16, -2]), "its shape is"),
    "newer": (proto_of([], [], [], opset=1000), "opset 1000"),
    "empty": (b"", "holds no whole ONNX graph"),
    "a zip": (b"PK\x03\x04 nothing", "holds no whole ONNX graph"),
    "cut off": (tagger().SerializeToString()[:-40], "holds no whole ONNX graph"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_models_get_one_sentence(name: str) -> None:
    source, message = BAD[name]
    with pytest.raises(InteropError, match=message) as caught:
        rnnjax_onnx.load(source)
    assert "\n" not in str(caught.value)


def test_bad_arguments() -> None:
    model, xs = rnnjax_onnx.load(tagger()), normal(BATCH, TIME, FEATURES)
    bare = Model(model.network, model.params)
    wrong = Model(model.network, {**model.params, "model/gru/scan": {}}, model.origin)
    bad: Any = 3
    marks = np.zeros((TIME, BATCH), bool)
    for call, says in (
        (lambda: rnnjax_onnx.load(bad), r"must be a path, bytes, or an onnx.ModelProto"),
        (lambda: rnnjax_onnx.to_proto(bare), r"read from, but this model has none; keep"),
        (lambda: rnnjax_onnx.to_proto(wrong), "do not belong to this model"),
        (lambda: model(xs, resets=marks), "no place for resets; leave them out"),
        (lambda: model(normal(BATCH, TIME, 4)), r"has shape \(any, any, 2\), but got \(3, 5, 4\)"),
        (lambda: model(np.ones(xs.shape, np.int32)), "is float32, but got int32"),
        (lambda: model("text"), "'x' must be an array of numbers, but str came"),
        (lambda: model({"y": xs}), r"the graph takes .'x'., but xs has .'y'."),
        (lambda: model({}), r"its outputs do not follow without .'x'."),
    ):
        with pytest.raises(InvalidInputError, match=says):
            call()
    states = [value(n, [1, "b", HIDDEN]) for n in ("h", "c")]
    streamed = rnnjax_onnx.load(one_lstm(["", "h", "c"], states))
    with pytest.raises(InteropError, match=r"an initial state has shape .1, 4, 4., but should"):
        streamed({"x": xs, "h": normal(1, 4, HIDDEN), "c": normal(1, 4, HIDDEN)})


WIDE = {"kernel_shape": [2**30], "pads": [2**29] * 2}
ABSURD: dict[str, tuple[list[Any], dict[str, Any]]] = {
    # Nodes, each with the operator, the names of its inputs, and its attributes; and arrays.
    "zeros": ([("ConstantOfShape", ["a"], {})], {"a": np.array([2**20, 2**20])}),
    "copies": ([("Expand", ["b", "a"], {})], {"b": normal(1), "a": np.array([2**40])}),
    "tiles": ([("Tile", ["b", "a"], {})], {"b": normal(4), "a": np.array([2**40])}),
    "numbers": ([("Range", ["z", "a", "d"], {})], {"z": 0, "a": 2**60, "d": 1}),
    "vectors": ([("OneHot", ["z", "a", "d"], {})], {"z": [0], "a": 2**60, "d": [0, 1]}),
    **{f"reflections {n}": ([("Pad", ["x", "a"], {"mode": "reflect"})], {"a": [0, 0, n, 0, 0, 0]})
       for n in (2**40, 50_000)},
    "less than nothing": ([("Pad", ["x", "a"], {})], {"a": [0, 0, -(2**40), 0, 0, 0]}),
    "more around than away": ([("Pad", ["x", "a"], {})], {"a": [0, 2**62, 0, 0, -(2**62), 0]}),
    "more around a constant": ([("ConstantOfShape", ["size"], {}), ("Pad", ["y0", "a"], {})],
                               {"a": [2**62, 0, -(2**62), 0], "size": [2, 3]}),
    **{f"{name} {more}": ([(name, ["x", "K"], more)], {"K": normal(1, 1, 3)})
       for name, more in (("Conv", {"pads": [2**30] * 2}), ("ConvTranspose", {"strides": [2**30]}),
                          ("ConvTranspose", {"output_shape": [2**62]}))},
    "a maximum": ([("MaxPool", ["x"], WIDE)], {}), "a mean": ([("AveragePool", ["x"], WIDE)], {}),
    "the sum of nothing, many times": (
        [("ConstantOfShape", ["size"], {}), ("ReduceSum", ["y0", "axis"], {"keepdims": 0})],
        {"size": [0, 2**17, 2**17], "axis": [0]}),
    "nothing, in an absurd shape": (
        [("Slice", ["x", "z", "z"], {}), ("Reshape", ["y0", "a"], {"allowzero": 1})],
        {"z": [0], "a": [0, 2**62]}),
    "more parts than outputs": ([("Split", ["x"], {"num_outputs": 2**28})], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_refused_in_a_sentence(name: str) -> None:
    described, arrays = ABSURD[name]
    nodes = [
        node(operator, inputs, [f"y{i}"], **attributes)
        for i, (operator, inputs, attributes) in enumerate(described)
    ]
    opset = 18 if "Split" in described[0] else 17
    proto = proto_of(nodes, [value("x", [1, 1, 8])], [f"y{len(nodes) - 1}"], opset=opset, **arrays)
    given = {"x": normal(1, 1, 8)} if "x" in described[0][1] else {}
    messages = r"elements may still be made|take away more than|parts of sizes .* are not the"
    with pytest.raises(InteropError, match=messages) as caught:
        rnnjax_onnx.load(proto)(given)
    assert "\n" not in str(caught.value)


def test_fewer_outputs_than_are_named_are_said() -> None:
    one = graph_of([node("Neg", ["x"], ["inner"])], [], ["inner"])
    branch = node("If", ["yes"], ["y", "z"], then_branch=one, else_branch=one)
    proto = proto_of([branch], [value("x", [2, 3])], ["y", "z"], yes=np.array(True))
    with pytest.raises(InteropError, match="the graph gives 'z', which no node makes"):
        rnnjax_onnx.load(proto)(normal(2, 3))


# --- Data outside of the file ---


def outside(proto: Any, tensor: Any, folder: pathlib.Path, **places: str) -> pathlib.Path:
    """A model with a tensor's data in another file; ``places`` replace what it says of these."""
    (folder / "data.bin").write_bytes(b"12345678" + tensor.raw_data)
    entries = {"location": "data.bin", "offset": "8", "length": str(len(tensor.raw_data))} | places
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def an_initializer() -> tuple[Any, Any, np.ndarray]:
    """A model, one of its tensors, and what to give it."""
    proto = tagger()
    return proto, tensor_of(proto.graph, "W"), normal(BATCH, TIME, FEATURES)


def a_constant() -> tuple[Any, Any, np.ndarray]:
    array = numpy_helper.from_array(normal(2, 3))
    nodes = [node("Constant", [], ["k"], value=array), node("MatMul", ["x", "k"], ["y"])]
    proto = proto_of(nodes, [value("x", ["N", 2])], ["y"])
    return proto, proto.graph.node[0].attribute[0].t, normal(3, 2)


@pytest.mark.parametrize("make", [an_initializer, a_constant])
def test_external_data_beside_the_model(
    make: Callable[[], Any], tmp_path: pathlib.Path, assert_close: Any
) -> None:
    """They are in the model behind, so that it can be saved elsewhere."""
    proto, tensor, xs = make()
    expected = by_reference(proto, {"x": xs})["y"]
    path = outside(proto, tensor, tmp_path)
    model = rnnjax_onnx.load(path)
    (tmp_path / "data.bin").unlink()
    for one in (model, rnnjax_onnx.load(rnnjax_onnx.to_proto(model))):
        assert_close(one(xs)[1], expected, TOLERANCE)
    with pytest.raises(InteropError, match="has none next to it"):
        rnnjax_onnx.load(path.read_bytes())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        *(
            ({"location": location}, "it is no plain file next to the model")
            for location in ("../data.bin", "/etc/hostname", "..", "", "link.bin", "missing.bin")
        ),
        ({"offset": "16"}, "bytes from 16 of"),
        ({"offset": "-8"}, "bytes from -8 of"),
        ({"length": "1000000000000"}, "1000000000000 bytes from 8"),
        ({"offset": "first"}, "cannot be read: invalid literal"),
    ],
)
def test_external_data_elsewhere_are_refused(
    places: dict[str, str], message: str, tmp_path: pathlib.Path
) -> None:
    proto, tensor, _ = an_initializer()
    path = outside(proto, tensor, tmp_path, **places)
    (tmp_path / "link.bin").symlink_to(tmp_path / "data.bin")
    with pytest.raises(InteropError, match=message):
        rnnjax_onnx.load(path)
