"""Branches and loops of ONNX: what is known is chosen when the graph is read, the rest runs."""

from typing import Any

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import onnx as rnnjax_onnx

TOLERANCE = 1e-5
HIDDEN, FEATURES = 3, 2
node = helper.make_node


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def held(arrays: dict[str, Any]) -> list[Any]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def body(nodes: list[Any], inputs: list[Any], outputs: list[str], **arrays: Any) -> Any:
    kinds = {"more": TensorProto.BOOL, "again": TensorProto.BOOL}
    described = [value(n, None, kinds.get(n, TensorProto.FLOAT)) for n in outputs]
    return helper.make_graph(nodes, "body", inputs, described, held(arrays))


def model_of(
    nodes: list[Any], inputs: list[Any], outputs: list[str], opset: int = 17, **arrays: Any
) -> Any:
    graph = helper.make_graph(
        nodes, "graph", inputs, [value(n, None) for n in outputs], held(arrays)
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def lstm(name: str, x: str, y: str) -> Any:
    return node("LSTM", [x, f"W{name}", f"R{name}"], [y], name, hidden_size=HIDDEN)


def weights(name: str) -> dict[str, np.ndarray]:
    return {f"W{name}": normal(1, 12, FEATURES), f"R{name}": normal(1, 12, HIDDEN)}


def one_of_two_lstms(condition: list[Any]) -> Any:
    """The second branch has its weights inside, the first sees them from there."""
    then = body([lstm("first", "x", "a"), node("Neg", ["a"], ["b"])], [], ["b"])
    other = body([lstm("second", "x", "a")], [], ["a"], **weights("second"))
    branch = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model_of(
        [*condition, branch],
        [value("x", ["T", "N", FEATURES]), value("flag", [], TensorProto.BOOL)],
        ["y"],
        **weights("first"),
    )


def test_a_branch_that_is_constant_has_a_state(assert_close: Any) -> None:
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    proto = one_of_two_lstms([constant])
    model = rnnjax_onnx.load(proto)
    xs = normal(5, 4, FEATURES)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": xs, "flag": np.array(True)})
    carry, ys = model({"x": xs})
    assert_close(ys, expected, TOLERANCE)
    assert [*carry] == ["first"]


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_is_chosen_where_the_condition_is_known_and_else_as_it_runs(
    flag: bool, assert_close: Any
) -> None:
    proto = one_of_two_lstms([node("Identity", ["flag"], ["c"])])
    model = rnnjax_onnx.load(proto)
    assert {"first", "second"} <= set(model.layers)
    assert model.initial_carry((4,)) == {}
    xs = normal(5, 4, FEATURES)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": xs, "flag": np.array(flag)})
    carry, ys = model({"x": xs, "flag": flag})  # a boolean of Python's is known
    assert_close(ys, expected, TOLERANCE)
    assert [*carry] == ["first" if flag else "second"]
    program = jax.jit(model.apply)
    carry, ys = program(model.params, {"x": xs, "flag": np.array(flag)})
    assert_close(ys, expected, TOLERANCE)
    assert carry == {}
    state = model.layers["first"].cell.initial_carry((4,))
    with pytest.raises(InvalidInputError, match=r"'first' has no state of its own; leave it out"):
        program(model.params, {"x": xs, "flag": np.array(flag)}, {"first": state})


def test_parameters_of_a_branch_are_written_back_into_it(assert_close: Any) -> None:
    proto = one_of_two_lstms([node("Identity", ["flag"], ["c"])])
    model = rnnjax_onnx.load(proto)
    assert rnnjax_onnx.to_proto(model) == proto
    tuned = model.with_params(jax.tree.map(lambda a: 2 * a, model.params))
    again = rnnjax_onnx.to_proto(tuned)
    xs = normal(5, 4, FEATURES)
    for flag in (True, False):
        (expected,) = ReferenceEvaluator(again).run(None, {"x": xs, "flag": np.array(flag)})
        assert_close(tuned({"x": xs, "flag": flag})[1], expected, TOLERANCE)


def loop_of(count: list[Any], goes_on: list[Any], outputs: list[str], **arrays: Any) -> Any:
    """``s = 0.5 s + x``, with what a step makes behind the state."""
    inside = body(
        [
            node("Mul", ["s", "half"], ["h"]),
            node("Add", ["h", "x"], ["next"]),
            node("Neg", ["next"], ["minus"]),
            *goes_on,
        ],
        [value("i", [], TensorProto.INT64), value("more", [], TensorProto.BOOL), value("s", [2])],
        ["again", "next", *(["minus"] if len(outputs) > 1 else [])],
    )
    loop = node("Loop", ["n", "", "x"], outputs, body=inside)
    inputs = [value("x", [2]), value("steps", [], TensorProto.INT64)]
    return model_of(
        [*count, loop], inputs, outputs, half=np.float32(0.5), one=np.float32(1), **arrays
    )


def by_steps(x: np.ndarray, steps: int, ends: bool) -> dict[str, np.ndarray]:
    """What such a loop makes."""
    state, made = x, []
    for _ in range(steps):
        state = state / 2 + x
        made.append(-state)
        if ends and state.sum() >= 1:
            break
    return {"y": state, "all": np.array(made).reshape(-1, 2)}


SAME = node("Identity", ["more"], ["again"])
BELOW = [
    node("ReduceSum", ["next"], ["sum"], keepdims=0),
    node("Less", ["sum", "one"], ["again"]),
]


@pytest.mark.parametrize("steps", [0, 1, 7, 1000])
def test_a_loop_with_a_number_of_trips_is_a_scan(steps: int, assert_close: Any) -> None:
    proto = loop_of([], [SAME], ["y", "all"], n=np.array(steps))
    model, x = rnnjax_onnx.load(proto), normal(2)
    _, ys = jax.jit(lambda x: model({"x": x, "steps": 0}))(x)
    assert_close(ys, by_steps(x, steps, ends=False), TOLERANCE)
    if steps == 7:  # d y / d x = 1 + 1/2 + ... + 1/2^7
        slopes = jax.grad(lambda x: model({"x": x, "steps": 0})[1]["y"].sum())(x)
        np.testing.assert_allclose(slopes, [2 - 0.5**7] * 2, rtol=1e-6)


def test_how_often_a_loop_runs_needs_to_be_known() -> None:
    for count, goes_on in (([node("Identity", ["steps"], ["n"])], [SAME]), ([], BELOW)):
        arrays = {} if count else {"n": np.array(9)}
        model = rnnjax_onnx.load(loop_of(count, goes_on, ["y"], **arrays))
        with pytest.raises(InteropError, match="how many steps it runs follows from an input") as e:
            jax.jit(model.apply)(model.params, {"x": normal(2), "steps": np.array(9)})
        assert "\n" not in str(e.value)


def test_a_layer_in_a_loop_begins_anew_in_each_step(assert_close: Any) -> None:
    """Written out or not: what a step hands on is what the graph says, no carry."""
    arrays = {"Win": normal(1, 12, HIDDEN), "Rin": normal(1, 12, HIDDEN), "one": np.array([1])}
    inside = body(
        [lstm("in", "s", "Y"), node("Squeeze", ["Y", "one"], ["next"]), SAME],
        [
            value("i", [], TensorProto.INT64),
            value("more", [], TensorProto.BOOL),
            value("s", ["T", "N", HIDDEN]),
        ],
        ["again", "next"],
    )
    proto = model_of(
        [node("Loop", ["n", "", "x"], ["y"], body=inside)],
        [value("x", ["T", "N", HIDDEN])],
        ["y"],
        **arrays,
        n=np.array(3),
    )
    model, xs = rnnjax_onnx.load(proto), normal(4, 2, HIDDEN)
    carry, ys = model(xs)
    once = model_of([lstm("in", "x", "y")], [value("x", ["T", "N", HIDDEN])], ["y"], **arrays)
    expected = xs
    for _ in range(3):
        expected = rnnjax_onnx.load(once)(expected)[1][:, 0]
    assert_close(ys, expected, TOLERANCE)
    assert carry == {}


def test_a_scan_runs_a_recurrent_equation(assert_close: Any) -> None:
    inside = body(
        [node("Mul", ["s", "half"], ["h"]), node("Add", ["h", "x_t"], ["next"]),
         node("Identity", ["next"], ["y_t"])],
        [value("s", [3]), value("x_t", [3])],
        ["next", "y_t"],
    )  # fmt: skip
    scan = node("Scan", ["s0", "x"], ["last", "y"], body=inside, num_scan_inputs=1)
    arrays = {"s0": np.ones(3, np.float32), "half": np.float32(0.5)}
    proto = model_of([scan], [value("x", ["T", 3])], ["last", "y"], **arrays)
    model, x = rnnjax_onnx.load(proto), normal(5, 3)
    steps, state = [], np.ones(3)
    for x_t in x:
        state = state / 2 + x_t
        steps.append(state)
    assert_close(model(x)[1], {"last": state, "y": np.stack(steps)}, TOLERANCE)
    scan.attribute.append(helper.make_attribute("scan_input_directions", [1]))
    with pytest.raises(InteropError, match="with scan_input_directions; read is what opset 9"):
        rnnjax_onnx.load(model_of([scan], [value("x", ["T", 3])], ["y"], **arrays))(x)


ENDLESS = {
    "trips": (loop_of([], [SAME], ["y", "all"], n=np.array(2**60)), "trips, but at most 1,048,576"),
    "neither": (loop_of([], [SAME], ["y"], n=np.array(1)), "nothing ends it: it has no number of"),
    "trips alone": (loop_of([], [SAME], ["y"], n=np.array(2**60)), "trips, but at most 1,048,576"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_loops_are_refused(name: str) -> None:
    proto, message = ENDLESS[name]
    if name == "neither":
        proto.graph.node[-1].input[0] = ""
    model = rnnjax_onnx.load(proto)
    with pytest.raises(InteropError, match=message):
        model({"x": normal(2), "steps": 0})


def nested(levels: int, inner: Any) -> list[Any]:
    """So many loops of ``n`` trips in each other, around a node from ``s`` to ``next``."""
    inside = [inner]
    for level in range(levels):
        step = body(
            [*inside, node("Identity", ["more"], ["again"])],
            [
                value("i", [], TensorProto.INT64),
                value("more", [], TensorProto.BOOL),
                value("s", None),
            ],
            ["again", "next"],
        )
        state = "s" if level < levels - 1 else "x"
        inside = [node("Loop", ["n", "", state], ["next"], body=step)]
    return inside


def counting(steps: list[Any], trips: Any, length: int | None = None) -> Any:
    """A loop whose condition counts in a state, as converters of while loops write them."""
    inside = body(
        [
            *steps,
            node("Add", ["n", "one"], ["n1"]),
            node("Less", ["n1", "end"], ["again"]),
        ],
        [
            value("i", [], TensorProto.INT64),
            value("more", [], TensorProto.BOOL),
            value("n", [], TensorProto.INT64),
            value("s", None),
        ],
        ["again", "n1", "next", "y_t"],
    )
    return model_of(
        [
            node("Shape", ["x"], ["sizes"]),
            node("Gather", ["sizes", "zero"], ["end"]),
            node("Loop", ["trips", "", "zero", "s0"], ["", "last", "y"], body=inside),
        ],
        [value("x", ["T", 2])],
        ["last", "y"],
        zero=np.array(0),
        one=np.array(1),
        trips=np.array(trips),
        s0=np.zeros(2, np.float32),
    )


@pytest.mark.parametrize("steps", [5, 7000])
def test_a_loop_that_counts_in_a_state_runs(steps: int, assert_close: Any) -> None:
    """How often follows from the shape of an input, not from its numbers."""
    proto = counting(
        [
            node("Gather", ["x", "n"], ["x_t"]),
            node("Add", ["s", "x_t"], ["t"]),
            node("Tanh", ["t"], ["next"]),
            node("Identity", ["next"], ["y_t"]),
        ],
        2**63 - 1,
    )
    x, state, ys = normal(steps, 2), np.zeros(2), []
    for x_t in x:
        state = np.tanh(state + x_t)
        ys.append(state)
    _, made = jax.jit(rnnjax_onnx.load(proto).__call__)(x)
    assert_close(made, {"last": state, "y": np.stack(ys)}, TOLERANCE)


def test_trips_of_loops_in_each_other_are_bounded() -> None:
    inside = nested(3, node("Add", ["s", "s"], ["next"]))
    model = rnnjax_onnx.load(model_of(inside, [value("x", [1])], ["next"], n=np.array(1000)))
    message = "loops in each other run 1,000,000,000 trips, but at most 1,048,576 are run; check"
    with pytest.raises(InteropError, match=message):
        model(normal(1))


def test_all_that_a_graph_makes_is_bounded() -> None:
    """Each array may be small enough, and all of them too large."""
    nodes = [node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], axis=0) for i in range(34)]
    model = rnnjax_onnx.load(model_of(nodes, [value("x0", [1])], ["x34"]))
    with pytest.raises(InteropError, match=r"at most [\d,]+ elements may still be made; check"):
        jax.eval_shape(model, normal(1))
    spread = [node("Expand", ["x", "sizes"], [f"y{i}"]) for i in range(40)]
    proto = model_of(spread, [value("x", [1])], ["y0", "y39"], sizes=np.array([2**24]))
    del proto.graph.output[:]
    proto.graph.output.extend(value(f"y{i}", None) for i in range(40))
    with pytest.raises(InteropError, match=r"at most [\d,]+ elements may still be made; check"):
        jax.eval_shape(rnnjax_onnx.load(proto), normal(1))


def test_branches_that_do_not_fit_are_refused_in_a_sentence() -> None:
    inside = [body([node("Identity", ["x"], [n])], [], [n]) for n in "ab"]
    inside[1].node[0].op_type = "Shape"
    branch = node("If", ["flag"], ["y"], then_branch=inside[0], else_branch=inside[1])
    inputs = [value("x", [2]), value("flag", [], TensorProto.BOOL)]
    model = rnnjax_onnx.load(model_of([branch], inputs, ["y"]))
    with pytest.raises(InteropError, match=r"node 0 \(If\): If cannot take inputs") as caught:
        jax.jit(model.apply)(model.params, {"x": normal(2), "flag": np.array(True)})
    assert "\n" not in str(caught.value)
    assert model({"x": normal(2), "flag": False})[1] == 2
    wrong = node("If", ["x"], ["y"], then_branch=inside[0], else_branch=inside[0])
    model = rnnjax_onnx.load(model_of([wrong], inputs, ["y"]))
    with pytest.raises(InteropError, match=r"its condition is float32.2., but should be one bool"):
        model({"x": normal(2), "flag": False})
