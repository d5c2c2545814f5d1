"""ONNX's operators: its own node tests, and drawn nodes against two independent implementations."""

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import drawn
from onnx import TensorProto, helper, numpy_helper
from onnx_helpers import (
    BATCH,
    FEATURES,
    HIDDEN,
    TIME,
    TOLERANCE,
    by_reference,
    needs_runtime,
    node,
    normal,
    proto_of,
    session,
    value,
    weights,
)

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import onnx as rnnjax_onnx
from rnnjax.interop.layers import Context
from rnnjax.interop.onnx.operators import OPERATORS
from rnnjax.layers import Directions

# --- ONNX's own tests of its operators ---


PACKAGE = importlib.import_module("onnx.backend.test.case.node")
RECURRENT = ("LSTM", "GRU", "RNN")


def operators_in(graph: Any) -> Iterator[Any]:
    """All nodes, with those inside of others."""
    for each in graph.node:
        yield each
        for attribute in each.attribute:
            yield from operators_in(attribute.g)


def node_cases() -> list[Any]:
    """The cases of ONNX's package for operators in the table, except pools.

    The package makes them as its modules are imported; pools take it 7 s.
    """
    slow, known = ("averagepool", "lppool", "maxpool"), {"Constant", *OPERATORS, *RECURRENT}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(PACKAGE.__path__):
            if module.name not in slow:
                importlib.import_module(f"{PACKAGE.__name__}.{module.name}")
    return [
        case
        for case in {case.name: case for case in PACKAGE._NodeTestCases}.values()
        if all(node.op_type in known and not node.domain for node in operators_in(case.model.graph))
        # Which draws as NumPy draws, or names outputs that are not read.
        and not any(word in case.name for word in ("training_dropout", "training_mode"))
    ]


def array_of(x: Any) -> np.ndarray:
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def outcome(case: Any, known: Callable[[int, Any], bool]) -> list[Any]:
    """The outputs; inputs that are to be known are constants."""
    data = {
        v.name: array_of(x)
        for v, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False)
    }
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    constant = [name for i, (name, x) in enumerate(data.items()) if known(i, x)]
    proto.graph.initializer.extend(numpy_helper.from_array(data.pop(n), n) for n in constant)
    model = rnnjax_onnx.load(proto)
    # The mean and deviation of a LayerNormalization are not made.
    names = [described.name for described in proto.graph.output]

    @jax.jit
    def made(data: Any) -> list[Any]:
        _, values = model.network.values(model.params, data, {}, Context())
        return [values[name] for name in names if name in values]

    return [*map(np.asarray, made(data))]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_node_cases(every: bool, x64: None) -> None:
    """All of recurrent operators, and one of each operator in the table, or all."""
    covered, chosen = set[str](), []
    for case in node_cases():
        names = {node.op_type for node in operators_in(case.model.graph)}
        new = names - covered and "empty_set" not in case.name
        if every or new or names & {*RECURRENT}:
            chosen.append(case)
            covered |= names
    missing = set(OPERATORS) - covered - {"AveragePool", "MaxPool"}
    assert not missing, f"no case of onnx has {missing}: write a test of it, and leave it out here"
    refused = []
    for case in chosen:
        # Axes and shapes have to be known, other inputs have not.
        for known in (
            lambda i, x: False,
            lambda i, x: i > 0 and x.dtype.kind in "iub",
            lambda i, x: True,
        ):
            try:
                computed = outcome(case, known)
            except (InteropError, InvalidInputError):
                continue
            outputs = map(array_of, case.data_sets[0][1])
            for actual, expected in zip(computed, outputs, strict=len(computed) > 1):
                assert actual.shape == expected.shape, case.name
                most = 1e-2 if expected.dtype.itemsize == 2 else 1e-5
                both = actual.astype(np.float64), expected.astype(np.float64)
                np.testing.assert_allclose(*both, rtol=most, atol=most, err_msg=case.name)
            break
        else:
            refused.append(case.name)
    print(refused)
    assert len(chosen) - len(refused) >= (800 if every else 75)
    words = "layer_normalization", "lstm", "gru", "rnn"
    assert every or not any(word in name for name in refused for word in words)


def described(name: str, array: np.ndarray) -> Any:
    return value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))


def run_node(op_type: str, *inputs: Any, constants: tuple[Any, ...] = (), **attributes: Any) -> Any:
    """A graph of one node on inputs that are traced, and constants behind them."""
    arrays = {f"x{i}": np.asarray(x) for i, x in enumerate(inputs)}
    held = {f"c{i}": np.asarray(c) for i, c in enumerate(constants)}
    node = helper.make_node(op_type, [*arrays, *held], ["y"], **attributes)
    given = [described(name, x) for name, x in arrays.items()]
    proto = proto_of([node], given, ["y"], **held)
    model = rnnjax_onnx.load(proto)
    actual = jax.jit(lambda arrays: model(arrays)[1])(arrays)
    np.testing.assert_allclose(actual, by_reference(proto, arrays)["y"], rtol=1e-6)
    return model


def test_negative_places_in_integers_count_from_the_end() -> None:
    run_node("Gather", np.arange(6, dtype=np.int32).reshape(3, 2), np.array([-1, 0, -3]))


def test_a_slice_goes_backwards_to_the_first_step() -> None:
    """As exporters write what is reversed in time."""
    where = np.array([-1]), np.array([-(2**63) + 1]), np.array([0]), np.array([-1])
    run_node("Slice", np.arange(6, dtype=np.float32).reshape(3, 2), constants=where)


@pytest.mark.parametrize(("end", "size"), [(-99, 1), (0, 0), (1, 0)])
def test_a_negative_step_starts_within_the_axis(end: int, size: int) -> None:
    """As ONNX says and onnxruntime does; the reference of the package `onnx` takes nothing."""
    arrays = {"starts": [-9], "ends": [end], "axes": [2], "steps": [-1]}
    slices = [node("Slice", ["x", *arrays], ["y"])]
    proto = proto_of(slices, [value("x", [2, 3, 4])], ["y"], **jax.tree.map(np.array, arrays))
    x = normal(2, 3, 4)
    np.testing.assert_array_equal(rnnjax_onnx.load(proto)(x)[1], x[..., :size])


@pytest.mark.parametrize("step", [2**31, 2**63 - 1, -(2**31), -(2**63)])
def test_a_step_beyond_the_axis_takes_one_entry(step: int) -> None:
    """Where it overflowed 64 bits, XLA ended the process."""
    first, last = (0, 2**63 - 1) if step > 0 else (-1, -(2**63))
    where = (np.array([n]) for n in (first, last, 1, step))
    arrays = dict(zip(("starts", "ends", "axes", "steps"), where, strict=True))
    proto = proto_of([node("Slice", ["x", *arrays], ["y"])], [value("x", [2, 3])], ["y"], **arrays)
    x, model = normal(2, 3), rnnjax_onnx.load(proto)
    ys = jax.jit(model.__call__)(x)[1]
    np.testing.assert_array_equal(ys, x[:, :1] if step > 0 else x[:, -1:])


def test_axes_that_are_named_twice_are_refused() -> None:
    """Also by onnxruntime."""
    twice = {"starts": [1, 0], "ends": [3, 1], "axes": [0, -2]}
    pads: dict[str, Any] = {"pads": [1, 2, 0, 0], "value": np.float32(9), "axes": [-1, 1]}
    for op_type, arrays, says in (
        ("Slice", twice, r"axes .0, 0."),
        ("Pad", pads, "the axes .1, 1."),
    ):
        proto = proto_of(
            [node(op_type, ["x", *arrays], ["y"])], [value("x", [3, 4])], ["y"], opset=18, **arrays
        )
        with pytest.raises(InteropError, match=says):
            rnnjax_onnx.load(proto)(normal(3, 4))


def test_parts_are_equal_before_opset_18() -> None:
    parts = node("Split", ["x"], ["a", "b", "c"], axis=1)
    model = rnnjax_onnx.load(proto_of([parts], [value("x", [2, 7])], ["a", "b", "c"]))
    with pytest.raises(InteropError, match=r"sizes .2, 2, 2. are not the 7 of axis 1 for 3"):
        model(normal(2, 7))


def test_a_norm_of_integers_is_an_integer() -> None:
    run_node("ReduceL2", np.array([[3, 4], [1, 1]], np.int32), axes=[1])


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_a_pool_over_no_space_changes_nothing(op_type: str) -> None:
    """A matrix has no space: onnxruntime refuses both, and ONNX's reference returns a maximum."""
    proto, x = proto_of([node(op_type, ["x"], ["y"])], [value("x", [2, 3])], ["y"]), normal(2, 3)
    np.testing.assert_array_equal(rnnjax_onnx.load(proto)(x)[1], x)


def test_a_reduction_that_scatter_has_not_is_refused() -> None:
    where = np.array([[0]]), np.ones((1, 3), np.float32)
    run_node("ScatterND", normal(2, 3), constants=where, reduction="mul")
    with pytest.raises(InteropError, match="ScatterND cannot take inputs"):
        run_node("ScatterND", normal(2, 3), constants=where, reduction="divide")


def test_integers_beyond_32_bits_become_no_others() -> None:
    """What would wrap around is refused, or computed where JAX has 64 bits."""
    far, ids = np.array([2**40]), np.array([5, -3])
    held = proto_of([helper.make_node("Identity", ["far"], ["y"])], [], ["y"], far=far)
    table = [helper.make_node("Gather", ["far", "x"], ["y"])], [described("x", ids)], ["y"]
    cases: dict[str, Callable[[], Any]] = {
        "y has int64": lambda: rnnjax_onnx.load(held)({}),
        "Gather.*it has": lambda: rnnjax_onnx.load(proto_of(*table, far=far))(np.array([0, 0])),
        "input 'x0' has": lambda: run_node("Neg", ids)(far + np.array([0, 1])),
        "Mul": lambda: run_node("Mul", ids, constants=(far,)),
        "Clip": lambda: run_node("Clip", ids, constants=(np.array(0), np.array(2**63 - 1))),
    }
    for place, run in cases.items():
        match = rf"{place}.* numbers that do not fit into int32; set .*jax_enable_x64"
        with pytest.raises(InteropError, match=match):
            run()
        with jax.enable_x64(True):
            run()


def test_ids_of_few_bits_are_one_of_many() -> None:
    depth_and_values = np.array(200), np.array([0, 1], np.float32)
    run_node("OneHot", np.array([1, -1, 100], np.int8), constants=depth_and_values)


@pytest.mark.parametrize(
    ("op_type", "counted"),
    [("MaxPool", {"dilations": [2, 1]}), ("AveragePool", {"count_include_pad": 1})],
)
def test_windows_stand_where_onnx_has_them(op_type: str, counted: dict[str, Any]) -> None:
    """With strides, what is around counted or not, and a last one that goes over the end."""
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype(np.float32)
    around = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
    for options in (around, around | counted, {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER"}):
        run_node(op_type, x, **options)
    for last in ({"kernel_shape": [2, 3], "strides": [2, 3]}, around, around | {"strides": [3, 4]}):
        run_node(op_type, x, **last, ceil_mode=1)


@needs_runtime
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_a_mean_counts_zeros_around_and_nothing_beyond(pads: list[int], assert_close: Any) -> None:
    """As PyTorch exports nn.AvgPool2d(ceil_mode=True), and as onnxruntime runs it."""
    options = {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1, "count_include_pad": 1}
    nodes = [node("AveragePool", ["x"], ["y"], pads=pads, **options)]
    x = normal(2, 3, 7, 8)
    proto = proto_of(nodes, [value("x", x.shape)], ["y"], opset=19)
    (expected,) = session(proto).run(None, {"x": x})
    assert_close(rnnjax_onnx.load(proto)(x)[1], expected, TOLERANCE)


def test_places_of_a_maximum_that_nobody_asks_for() -> None:
    """An output without a name is none."""
    x = normal(2, 3, 8)
    for names in (["y", ""], ["y", "places"]):
        pools = [node("MaxPool", ["x"], names, kernel_shape=[2], strides=[2])]
        model = rnnjax_onnx.load(proto_of(pools, [value("x", x.shape)], ["y"]))
        if names[1]:
            with pytest.raises(InteropError, match="its second output, of places, is not read"):
                model(x)
        else:
            np.testing.assert_array_equal(model(x)[1], x.reshape(2, 3, 4, 2).max(-1))


def test_what_an_old_dropout_keeps_is_of_the_type_of_its_input() -> None:
    for opset, kind in ((7, np.float32), (10, np.bool_)):
        drop = node("Dropout", ["x"], ["y", "kept"])
        proto = proto_of([drop], [value("x", [2])], ["y", "kept"], opset=opset)
        kept = rnnjax_onnx.load(proto)(normal(2))[1]["kept"]
        assert kept.dtype == kind
        assert kept.all()


def test_a_normalisation_of_each_place_by_itself_is_refused() -> None:
    """As Caffe2 wrote before opset 9: the mean of each channel was taken instead."""
    held = {name: np.abs(normal(3, 3)) for name in "abcd"}
    for spatial in (0, 1):
        norm = node("BatchNormalization", ["x", *held], ["y"], spatial=spatial)
        proto = proto_of([norm], [value("x", [2, 3, 3])], ["y"], opset=7, **held)
        if spatial:
            assert rnnjax_onnx.load(proto)
            continue
        with pytest.raises(InteropError, match="spatial is not read here; export"):
            rnnjax_onnx.load(proto)


def test_the_domain_of_onnx_has_two_names() -> None:
    x = normal(2, 3)
    proto = proto_of([node("Neg", ["x"], ["y"], domain="ai.onnx")], [value("x", [2, 3])], ["y"])
    np.testing.assert_array_equal(rnnjax_onnx.load(proto)(x)[1], -x)


@needs_runtime
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": [3, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        {"dilations": [2, 1], "strides": [1, 2], "group": 2},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "output_shape": [9, 12]},
        {"strides": [2, 3], "output_shape": [9, 11], "auto_pad": "SAME_UPPER"},
    ],
)
def test_a_transposed_convolution(options: dict[str, Any], assert_close: Any) -> None:
    """As onnxruntime runs it: the reference of `onnx` takes neither groups nor sizes."""
    held = {"w": normal(4, 2, 3, 2), "b": normal(2 * options.get("group", 1))}
    x = normal(2, 4, 5, 4)
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], **options)]
    proto = proto_of(nodes, [value("x", x.shape)], ["y"], **held)
    (expected,) = session(proto).run(None, {"x": x})
    model = rnnjax_onnx.load(proto)
    assert_close(model(x)[1], expected, TOLERANCE)
    assert model.params["constants"]["w"].shape == (4, 2, 3, 2)


def test_relu_has_no_derivative_at_zero() -> None:
    """As PyTorch and Keras have it: padding is zeros."""
    model = run_node("Relu", np.array([-1, 0, 2], np.float32))
    slopes = jax.grad(lambda x: model(x)[1].sum())(np.array([-1, 0, 2], np.float32))
    np.testing.assert_array_equal(slopes, [0, 0, 1])


# --- Drawn nodes ---

NEEDS: dict[str, tuple[str, ...]] = {  # of each activation the numbers it takes
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
}
SQUASHING = ("Tanh", "Sigmoid", "Softsign", "HardSigmoid")


@pytest.mark.parametrize("begun", [False, True])
def test_a_graph_of_64_bits_has_a_state_of_64(begun: bool, x64: None) -> None:
    """The cell does not know them: its kernel comes as the graph runs."""
    rng = np.random.default_rng(0)
    xs, h = rng.normal(size=(TIME, BATCH, FEATURES)), begun * rng.normal(size=(BATCH, HIDDEN))
    arrays = {name: array.astype(np.float64) for name, array in weights(1).items()}
    arrays |= {"begin": h[None]} if begun else {}
    given = ["x", "W", "R", "B", *(["", "begin"] if begun else [])]
    nodes = [node("RNN", given, ["Y", "last"], hidden_size=HIDDEN)]
    data = {"x": xs, "W": arrays.pop("W")}
    inputs = [value(name, array.shape, TensorProto.DOUBLE) for name, array in data.items()]
    _, found = rnnjax_onnx.load(proto_of(nodes, inputs, ["last"], **arrays))(data)
    for x in xs:
        h = np.tanh(x @ data["W"][0].T + h @ arrays["R"][0].T + arrays["B"].reshape(2, -1).sum(0))
    np.testing.assert_allclose(np.squeeze(found), h, atol=1e-12)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@st.composite
def drawn_nodes(draw: st.DrawFn) -> dict[str, Any]:
    """Everything about a node but its numbers, which follow from the seed."""
    op_type = draw(st.sampled_from(RECURRENT))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    directions = 2 if direction == "bidirectional" else 1
    optional = {"B", "sequence_lens", "initial_h"}
    optional |= {"initial_c", "P"} if op_type == "LSTM" else set()
    config = {
        "op_type": op_type,
        "directions": directions,
        "sizes": [draw(st.integers(1, 4)) for _ in range(4)],  # time, batch, features, hidden
        "inputs": {name for name in sorted(optional) if draw(st.booleans())},
        "outputs": draw(st.integers(1, 7 if op_type == "LSTM" else 3)),  # bits: which are read
        "opset": draw(st.sampled_from([7, 11, 14, 22])),
        "seed": draw(st.integers(0, 2**16)),
    }
    attributes: dict[str, Any] = {}
    if direction != "forward" or draw(st.booleans()):
        attributes["direction"] = direction
    if op_type == "GRU" and draw(st.booleans()):
        attributes["linear_before_reset"] = 1
    if draw(st.booleans()):
        slots = {"LSTM": 3, "GRU": 2, "RNN": 1}[op_type]
        names = []
        for slot in range(slots * directions):
            # The gates have to stay bounded, or numbers grow out of all proportion.
            gate = op_type != "RNN" and slot % slots == 0
            again = op_type == "LSTM" and slot % slots == 2  # candidate and output have one
            drawn = st.sampled_from(SQUASHING if gate else sorted(NEEDS))
            names.append(names[-1] if again else draw(drawn))
        attributes["activations"] = names
        for key, lowest in (("alpha", 0.25), ("beta", 0.5)):
            takers = [name for name in names if key in NEEDS[name]]
            if takers and draw(st.booleans()):
                number = draw(st.sampled_from([lowest, 0.375, 0.75]))
                attributes[f"activation_{key}"] = [number] * len(takers)
    config["attributes"] = attributes
    return config


def arrays_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random inputs of the node, by the operator's names."""
    rng = np.random.default_rng(config["seed"])
    time, batch, features, hidden = config["sizes"]
    n, gates = config["directions"], GATES[config["op_type"]]
    shapes = {
        "X": (time, batch, features),
        "W": (n, gates * hidden, features),
        "R": (n, gates * hidden, hidden),
        "B": (n, 2 * gates * hidden),
        "initial_h": (n, batch, hidden),
        "initial_c": (n, batch, hidden),
        "P": (n, 3 * hidden),
    }
    arrays = {
        name: (0.7 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
        if name in ("X", "W", "R") or name in config["inputs"]
    }
    if "sequence_lens" in config["inputs"]:
        arrays["sequence_lens"] = rng.integers(1, time + 1, batch).astype(np.int32)
    return arrays


ORDER = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def make_model(config: dict[str, Any], arrays: dict[str, np.ndarray], *, outputs: list[str]) -> Any:
    """A model of one node, with its weights as initialisers."""
    order = ORDER if config["op_type"] == "LSTM" else ORDER[:6]
    inputs = [name if name in arrays else "" for name in order]
    while not inputs[-1]:
        inputs.pop()
    attributes = {**config["attributes"], "hidden_size": config["sizes"][3]}
    node = helper.make_node(config["op_type"], inputs, outputs, **attributes)
    weights = [name for name in ("W", "R", "B", "P") if name in arrays]
    given = [described(n, x) for n, x in arrays.items() if n not in weights]
    held, names = {name: arrays[name] for name in weights}, filter(None, outputs)
    return proto_of([node], given, [*names], opset=config["opset"], **held)


def check_node(config: dict[str, Any], assert_close: Any) -> bool:
    """Outputs and states equal both implementations; True if the reference could judge."""
    arrays = arrays_of(config)
    names = ["Y", "Y_h", "Y_c"] if config["op_type"] == "LSTM" else ["Y", "Y_h"]
    proto = make_model(config, arrays, outputs=names)
    fed = {one.name: arrays[one.name] for one in proto.graph.input}
    expected = dict(zip(names, session(proto).run(None, fed), strict=True))
    # The reference ignores most of the attributes.
    judged = "activations" not in config["attributes"] and "sequence_lens" not in arrays
    if judged:
        assert_close(by_reference(proto, fed), expected, TOLERANCE)
    names = [name if config["outputs"] >> i & 1 else "" for i, name in enumerate(expected)]
    while not names[-1]:
        names.pop()
    proto = make_model(config, arrays, outputs=names)
    model = rnnjax_onnx.load(proto.SerializeToString())
    given = {value.name: arrays[value.name] for value in proto.graph.input}
    carry, ys = jax.device_get(jax.jit(model.__call__)(given))
    data = model.network.outputs
    ys = ys if len(data) > 1 else {data[0]: ys}
    assert_close(ys, {name: expected[name] for name in data}, TOLERANCE)
    # The states, whether or not they are outputs.
    (state,) = carry.values()
    each = state if isinstance(state, Directions) else (state,)
    made = {
        name: np.stack(leaves)
        for name, leaves in zip(("Y_h", "Y_c"), zip(*each, strict=True), strict=False)
    }
    assert_close(made, {name: expected[name] for name in made}, TOLERANCE)
    # What came unchanged goes back unchanged.
    assert rnnjax_onnx.to_proto(model) == proto
    return judged


@needs_runtime
@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_drawn_nodes(count: int, assert_close: Any) -> None:
    """Guards the order of the peepholes, and the second bias."""
    judged = []

    @drawn(count)
    @given(drawn_nodes())
    def check(config: dict[str, Any]) -> None:
        judged.append(check_node(config, assert_close))
        if len(judged) % 50 == 0:
            jax.clear_caches()

    check()
    print(f"{len(judged)} nodes, {sum(judged)} of them by the reference as well")
