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


def alone(
    op_type: str, shape: Any, *, to: Any = ("y",), opset: int = 17, held: Any = None, **options: Any
) -> Any:
    """A model of one node of ``x``, with arrays behind that."""
    held = {name: np.asarray(array) for name, array in (held or {}).items()}
    nodes, outputs = [node(op_type, ["x", *held], to, **options)], [*filter(None, to)]
    return proto_of(nodes, [value("x", shape)], outputs, opset=opset, **held)


def part(start: int, end: int, axis: int, step: int) -> Any:
    return {"starts": [start], "ends": [end], "axes": [axis], "steps": [step]}


PLANE, BLOCK = (2, 3), (2, 3, 8)
FAR = 2**63
EXACT: dict[str, tuple[Any, Any]] = {
    # As ONNX says and onnxruntime does; the reference of the package `onnx` takes nothing.
    **{f"a negative step starts within the axis, to {end}": (
        alone("Slice", BLOCK, held=part(-9, end, 2, -1)), lambda x, n=size: x[..., :n])
       for end, size in ((-99, 1), (0, 0), (1, 0))},
    # Where a step beyond the axis overflowed 64 bits, XLA ended the process.
    **{f"a step of {step}": (alone("Slice", PLANE, held=part(0, FAR - 1, 1, step)),
                             lambda x: x[:, :1]) for step in (2**31, FAR - 1)},
    **{f"a step of {step}": (alone("Slice", PLANE, held=part(-1, -FAR, 1, step)),
                             lambda x: x[:, -1:]) for step in (-(2**31), -FAR)},
    # A matrix has no space: onnxruntime refuses both, and ONNX's reference returns a maximum.
    "a mean over no space": (alone("GlobalAveragePool", PLANE), lambda x: x),
    "a maximum over no space": (alone("GlobalMaxPool", PLANE), lambda x: x),
    "an output without a name": (
        alone("MaxPool", BLOCK, to=["y", ""], kernel_shape=[2], strides=[2]),
        lambda x: x.reshape(2, 3, 4, 2).max(-1)),
    "the other name of the domain": (alone("Neg", PLANE, domain="ai.onnx"), lambda x: -x),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_what_numpy_computes_too(name: str) -> None:
    proto, expected = EXACT[name]
    model = rnnjax_onnx.load(proto)
    x = normal(*model.network.inputs[0].shape)
    np.testing.assert_array_equal(jax.jit(model.__call__)(x)[1], expected(x))


SCATTERED = np.array([[0]]), np.ones((1, 3), np.float32)
BY_REFERENCE: dict[str, Any] = {
    "negative places in integers": lambda: run_node(
        "Gather", np.arange(6, dtype=np.int32).reshape(3, 2), np.array([-1, 0, -3])),
    # As exporters write what is reversed in time.
    "backwards to the first step": lambda: run_node(
        "Slice", normal(3, 2), constants=(*part(-1, 1 - FAR, 0, -1).values(),)),
    "each row backwards, up to its length": lambda: run_node(
        "ReverseSequence", normal(4, 3, 2), np.array([4, 1, 3])),
    "a norm of integers is one": lambda: run_node(
        "ReduceL2", np.array([[3, 4], [1, 1]], np.int32), axes=[1]),
    "ids of few bits are one of many": lambda: run_node(
        "OneHot", np.array([1, -1, 100], np.int8), constants=(np.array(200), np.float32([0, 1]))),
    "a reduction of what is scattered": lambda: run_node(
        "ScatterND", normal(2, 3), constants=SCATTERED, reduction="mul"),
    **{f"{op_type} with {options}": lambda op_type=op_type, options=options: run_node(
        op_type, normal(2, 3, 7, 6), **options)
       for op_type, own in (("MaxPool", {"dilations": [2, 1]}),
                            ("AveragePool", {"count_include_pad": 1}))
       for around in [{"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}]
       for options in (
           around, around | own, {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER"},
           # A last window goes over the end.
           {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1},
           around | {"ceil_mode": 1}, around | {"strides": [3, 4], "ceil_mode": 1})},
}  # fmt: skip


@pytest.mark.parametrize("name", BY_REFERENCE)
def test_what_the_reference_of_onnx_computes_too(name: str) -> None:
    BY_REFERENCE[name]()


REFUSED: dict[str, tuple[Any, str]] = {
    # Also by onnxruntime.
    "an axis of a slice twice": (
        alone("Slice", PLANE, held={"starts": [1, 0], "ends": [3, 1], "axes": [0, -2]}),
        r"axes .0, 0."),
    "an axis of pads twice": (
        alone("Pad", PLANE, opset=18, held={"pads": [1, 2, 0, 0], "value": np.float32(9),
                                            "axes": [-1, 1]}), "the axes .1, 1."),
    "unequal parts before opset 18": (
        alone("Split", PLANE, to=["a", "b"], axis=1), r"sizes .1, 1. are not the 3 of"),
    "a reduction that scatter has not": (
        alone("ScatterND", PLANE, held=dict(zip("ab", SCATTERED, strict=True)), reduction="divide"),
        "ScatterND cannot take inputs"),
    "the places of a maximum": (
        alone("MaxPool", BLOCK, to=["y", "places"], kernel_shape=[2]),
        "its second output, of places, is not read"),
    # As Caffe2 wrote before opset 9: the mean of each channel was taken instead.
    "a normalisation of each place by itself": (
        alone("BatchNormalization", (2, 3, 3), opset=7, spatial=0,
              held={name: np.ones((3, 3), np.float32) for name in "abcd"}),
        "spatial is not read here; export"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_node_cannot_do_is_refused_in_a_sentence(name: str) -> None:
    proto, says = REFUSED[name]
    with pytest.raises(InteropError, match=says):
        rnnjax_onnx.load(proto)(normal(*(BLOCK if "maximum" in name else PLANE)))


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


SUMS = {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1, "count_include_pad": 1}
BY_RUNTIME: list[tuple[str, dict[str, Any]]] = [
    # As PyTorch exports nn.AvgPool2d(ceil_mode=True): zeros around count, and nothing beyond them.
    *(("AveragePool", SUMS | {"pads": pads}) for pads in ([0, 0, 0, 0], [1, 0, 0, 1])),
    # The reference of `onnx` takes neither groups nor sizes.
    *(("ConvTranspose", options) for options in (
        {},
        {"strides": [3, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        {"dilations": [2, 1], "strides": [1, 2], "group": 2},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "output_shape": [9, 12]},
        {"strides": [2, 3], "output_shape": [9, 11], "auto_pad": "SAME_UPPER"},
    )),
]  # fmt: skip


@needs_runtime
@pytest.mark.parametrize(("op_type", "options"), BY_RUNTIME)
def test_what_onnxruntime_computes_too(
    op_type: str, options: dict[str, Any], assert_close: Any
) -> None:
    held, x = dict[str, Any](), normal(2, 4, 7, 8)
    if op_type == "ConvTranspose":
        held, x = (
            {"w": normal(4, 2, 3, 2), "b": normal(2 * options.get("group", 1))},
            x[..., :5, :4],
        )
    proto = alone(op_type, x.shape, opset=19, held=held, **options)
    (expected,) = session(proto).run(None, {"x": x})
    model = rnnjax_onnx.load(proto)
    assert_close(model(x)[1], expected, TOLERANCE)
    assert jax.tree.map(np.shape, dict(model.params.get("constants", {}))) == jax.tree.map(
        np.shape, held
    )


def test_what_an_old_dropout_keeps_is_of_the_type_of_its_input() -> None:
    for opset, kind in ((7, np.float32), (10, np.bool_)):
        drop = node("Dropout", ["x"], ["y", "kept"])
        proto = proto_of([drop], [value("x", [2])], ["y", "kept"], opset=opset)
        kept = rnnjax_onnx.load(proto)(normal(2))[1]["kept"]
        assert kept.dtype == kind
        assert kept.all()


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
ORDER = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


@st.composite
def drawn_nodes(draw: st.DrawFn) -> tuple[Any, ...]:
    """The operator, its attributes and arrays, which outputs are read as bits, and the opset."""

    def one_of(*of: Any) -> Any:
        return draw(st.sampled_from(of))

    op_type, direction = one_of(*RECURRENT), one_of("forward", "reverse", "bidirectional")
    time, batch, features, hidden = (draw(st.integers(1, 4)) for _ in range(4))
    rng, n, rows = np.random.default_rng(draw(st.integers(0, 2**16))), 1, GATES[op_type] * hidden
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if direction != "forward" or draw(st.booleans()):
        attributes["direction"], n = direction, 1 + (direction == "bidirectional")
    shapes = {
        "X": (time, batch, features), "W": (n, rows, features), "R": (n, rows, hidden),
        "B": (n, 2 * rows), "initial_h": (n, batch, hidden), "initial_c": (n, batch, hidden),
        "P": (n, 3 * hidden),
    }  # fmt: skip
    arrays = {
        name: (0.7 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
        if name in "XWR" or ((op_type == "LSTM" or name[-1] not in "cP") and one_of(1, 1, 0))
    }
    if draw(st.booleans()):
        arrays["sequence_lens"] = rng.integers(1, time + 1, batch).astype(np.int32)
    if op_type == "GRU" and draw(st.booleans()):
        attributes["linear_before_reset"] = 1
    if draw(st.booleans()):
        slots, names = {"LSTM": 3, "GRU": 2, "RNN": 1}[op_type], list[str]()
        for slot in range(slots * n):
            # The gates have to stay bounded, or numbers grow out of all proportion.
            gate = op_type != "RNN" and slot % slots == 0
            again = op_type == "LSTM" and slot % slots == 2  # candidate and output have one
            names.append(names[-1] if again else one_of(*(SQUASHING if gate else sorted(NEEDS))))
        attributes["activations"] = names
        for key, lowest in (("alpha", 0.25), ("beta", 0.5)):
            takers = [name for name in names if key in NEEDS[name]]
            if takers and draw(st.booleans()):
                attributes[f"activation_{key}"] = [one_of(lowest, 0.375, 0.75)] * len(takers)
    read = draw(st.integers(1, 7 if op_type == "LSTM" else 3))
    return op_type, attributes, arrays, read, one_of(7, 11, 14, 22)


def without_end(names: list[str]) -> list[str]:
    """Names without the last ones that are empty."""
    return names[: len(names) - next(i for i, name in enumerate(names[::-1]) if name)]


def make_model(op_type: str, attributes: Any, arrays: Any, opset: int, outputs: list[str]) -> Any:
    """A model of one node, with its weights as initialisers."""
    inputs = without_end([name if name in arrays else "" for name in ORDER])
    held = {name: array for name, array in arrays.items() if name in "WRBP"}
    given = [described(n, x) for n, x in arrays.items() if n not in held]
    nodes = [node(op_type, inputs, outputs, **attributes)]
    return proto_of(nodes, given, [*filter(None, outputs)], opset=opset, **held)


def check_node(drawn: Any, assert_close: Any) -> bool:
    """Outputs and states equal both implementations; True if the reference could judge."""
    op_type, attributes, arrays, read, opset = drawn
    names = ["Y", "Y_h", "Y_c"] if op_type == "LSTM" else ["Y", "Y_h"]
    proto = make_model(op_type, attributes, arrays, opset, names)
    fed = {one.name: arrays[one.name] for one in proto.graph.input}
    expected = dict(zip(names, session(proto).run(None, fed), strict=True))
    # The reference ignores most of the attributes.
    judged = "activations" not in attributes and "sequence_lens" not in arrays
    if judged:
        assert_close(by_reference(proto, fed), expected, TOLERANCE)
    names = without_end([name if read >> i & 1 else "" for i, name in enumerate(expected)])
    proto = make_model(op_type, attributes, arrays, opset, names)
    model = rnnjax_onnx.load(proto.SerializeToString())
    carry, ys = jax.device_get(jax.jit(model.__call__)(fed))
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
    def check(drawn: Any) -> None:
        judged.append(check_node(drawn, assert_close))
        if len(judged) % 50 == 0:
            jax.clear_caches()

    check()
    print(f"{len(judged)} nodes, {sum(judged)} of them by the reference as well")
