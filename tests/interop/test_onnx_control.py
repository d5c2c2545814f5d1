"""Branches and loops of ONNX: what is known is chosen when the graph is read, the rest runs."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_helpers import (
    FEATURES,
    HIDDEN,
    TOLERANCE,
    by_reference,
    graph_of,
    node,
    nodes_of,
    normal,
    proto_of,
    value,
    weights,
)

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import onnx as rnnjax_onnx
from rnnjax.interop.onnx import operators

FLAG = value("flag", [], TensorProto.BOOL)
SAME = node("Identity", ["more"], ["again"])


def lstm(name: str, x: str, y: str) -> Any:
    return node("LSTM", [x, f"W{name}", f"R{name}"], [y], name, hidden_size=HIDDEN)


def weights_of(name: str, features: int = FEATURES) -> dict[str, np.ndarray]:
    return {f"{letter}{name}": weights(4, features=features)[letter] for letter in "WR"}


def one_of_two_lstms(condition: list[Any]) -> Any:
    """The second branch has its weights inside, the first sees them from there."""
    then = graph_of([lstm("first", "x", "a"), node("Neg", ["a"], ["b"])], [], ["b"])
    other = graph_of([lstm("second", "x", "a")], [], ["a"], **weights_of("second"))
    branch = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = [value("x", ["T", "N", FEATURES]), FLAG]
    return proto_of([*condition, branch], inputs, ["y"], **weights_of("first"))


def test_a_branch_that_is_constant_has_a_state(assert_close: Any) -> None:
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    proto, xs = one_of_two_lstms([constant]), normal(5, 4, FEATURES)
    carry, ys = rnnjax_onnx.load(proto)({"x": xs})
    assert_close(ys, by_reference(proto, {"x": xs, "flag": np.array(True)})["y"], TOLERANCE)
    assert [*carry] == ["first"]


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_is_chosen_where_the_condition_is_known_and_else_as_it_runs(
    flag: bool, assert_close: Any
) -> None:
    """Its parameters are written back into it."""
    proto, xs = one_of_two_lstms([node("Identity", ["flag"], ["c"])]), normal(5, 4, FEATURES)
    model, given = rnnjax_onnx.load(proto), {"x": xs, "flag": np.array(flag)}
    assert {"first", "second"} <= set(model.layers)
    assert model.initial_carry((4,)) == {}
    expected = by_reference(proto, given)["y"]
    carry, ys = model({"x": xs, "flag": flag})  # a boolean of Python's is known
    assert_close(ys, expected, TOLERANCE)
    assert [*carry] == ["first" if flag else "second"]
    program = jax.jit(model.apply)
    carry, ys = program(model.params, given)
    assert_close(ys, expected, TOLERANCE)
    assert carry == {}
    state = model.layers["first"].cell.initial_carry((4,))
    with pytest.raises(InvalidInputError, match=r"'first' has no state of its own; leave it out"):
        program(model.params, given, {"first": state})
    assert rnnjax_onnx.to_proto(model) == proto
    tuned = model.with_params(jax.tree.map(lambda a: 2 * a, model.params))
    expected = by_reference(rnnjax_onnx.to_proto(tuned), given)["y"]
    assert_close(tuned({"x": xs, "flag": flag})[1], expected, TOLERANCE)


def test_branches_that_do_not_fit_are_refused_in_a_sentence() -> None:
    inside = [graph_of([node("Identity", ["x"], [n])], [], [n]) for n in "ab"]
    inside[1].node[0].op_type = "Shape"
    branch = node("If", ["flag"], ["y"], then_branch=inside[0], else_branch=inside[1])
    model = rnnjax_onnx.load(proto_of([branch], [value("x", [2]), FLAG], ["y"]))
    with pytest.raises(InteropError, match=r"node 0 \(If\): If cannot take inputs") as caught:
        jax.jit(model.apply)(model.params, {"x": normal(2), "flag": np.array(True)})
    assert "\n" not in str(caught.value)
    assert model({"x": normal(2), "flag": False})[1] == 2
    wrong = node("If", ["x"], ["y"], then_branch=inside[0], else_branch=inside[0])
    model = rnnjax_onnx.load(proto_of([wrong], [value("x", [2]), FLAG], ["y"]))
    with pytest.raises(InteropError, match=r"its condition is float32.2., but should be one bool"):
        model({"x": normal(2), "flag": False})


# --- Loops ---


def looped(nodes: list[Any], states: str, outputs: list[str]) -> Any:
    """What a loop runs: a condition and states, and what a step makes."""
    inputs = [value("i", [], TensorProto.INT64), value("more", [], TensorProto.BOOL)]
    return graph_of(nodes, [*inputs, *map(value, states.split())], outputs)


def loop_of(count: list[Any], goes_on: list[Any], outputs: list[str], **arrays: Any) -> Any:
    """``s = 0.5 s + x``, with what a step makes behind the state."""
    nodes = [*nodes_of("Mul s half > h; Add h x > next; Neg next > minus"), *goes_on]
    inside = looped(nodes, "s", ["again", "next", "minus"][: 1 + len(outputs)])
    loop = node("Loop", ["n" if "n" in arrays or count else "", "", "x"], outputs, body=inside)
    inputs = [value("x", [2]), value("steps", [], TensorProto.INT64)]
    arrays |= {"half": np.float32(0.5), "one": np.float32(1)}
    return proto_of([*count, loop], inputs, outputs, **arrays)


@pytest.mark.parametrize("steps", [0, 1, 7, 1000])
def test_a_loop_with_a_number_of_trips_is_a_scan(steps: int, assert_close: Any) -> None:
    proto = loop_of([], [SAME], ["y", "all"], n=np.array(steps))
    model, x = rnnjax_onnx.load(proto), normal(2)
    states = [x]
    for _ in range(steps):
        states.append(states[-1] / 2 + x)
    _, ys = jax.jit(lambda x: model({"x": x, "steps": 0}))(x)
    made = -np.array(states[1:]).reshape(-1, 2)
    assert_close(ys, {"y": states[-1], "all": made}, TOLERANCE)
    if steps == 7:  # d y / d x = 1 + 1/2 + ... + 1/2^7
        slopes = jax.grad(lambda x: model({"x": x, "steps": 0})[1]["y"].sum())(x)
        np.testing.assert_allclose(slopes, [2 - 0.5**7] * 2, rtol=1e-6)


BELOW = nodes_of("ReduceSum next > sum keepdims=0; Less sum one > again")
ENDLESS = node("Loop", ["", "yes", "x"], ["y"], body=looped([], "s", ["more", "s"]))
REFUSED = {
    "the number of an input": (
        loop_of([node("Identity", ["steps"], ["n"])], [SAME], ["y"]), "steps it runs follows from"),
    "the condition of an input": (
        loop_of([], BELOW, ["y"], n=np.array(9)), "how many steps it runs follows from an input"),
    "trips": (loop_of([], [SAME], ["y", "all"], n=np.array(2**60)), "but at most 1,048,576"),
    "trips alone": (loop_of([], [SAME], ["y"], n=np.array(2**60)), "but at most 1,048,576"),
    "neither": (loop_of([], [SAME], ["y"]), "nothing ends it: it has no number of"),
    "no node": (proto_of([ENDLESS], [value("x", [2]), value("steps", [], TensorProto.INT64)], ["y"],
                         yes=np.array(True)), "nothing ends it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_and_endless_numbers_of_steps_are_refused(name: str) -> None:
    proto, message = REFUSED[name]
    model = rnnjax_onnx.load(proto)
    with pytest.raises(InteropError, match=message) as caught:
        jax.jit(model.apply)(model.params, {"x": normal(2), "steps": np.array(9)})
    assert "\n" not in str(caught.value)


def test_a_layer_in_a_loop_begins_anew_in_each_step(assert_close: Any) -> None:
    """What a step hands on is what the graph says, no carry."""
    arrays = {**weights_of("in", HIDDEN), "one": np.array([1])}
    nodes = [lstm("in", "s", "Y"), node("Squeeze", ["Y", "one"], ["next"]), SAME]
    loop = node("Loop", ["n", "", "x"], ["y"], body=looped(nodes, "s", ["again", "next"]))
    model = rnnjax_onnx.load(proto_of([loop], [value("x")], ["y"], n=np.array(3), **arrays))
    once = rnnjax_onnx.load(proto_of([lstm("in", "x", "y")], [value("x")], ["y"], **arrays))
    xs = expected = normal(4, 2, HIDDEN)
    carry, ys = model(xs)
    for _ in range(3):
        expected = once(expected)[1][:, 0]
    assert_close(ys, expected, TOLERANCE)
    assert carry == {}


def test_a_scan_runs_a_recurrent_equation(assert_close: Any) -> None:
    nodes = nodes_of("Mul s half > h; Add h x_t > next; Identity next > y_t")
    inside = graph_of(nodes, [value("s", [3]), value("x_t", [3])], ["next", "y_t"])
    scan = node("Scan", ["s0", "x"], ["last", "y"], body=inside, num_scan_inputs=1)
    arrays = {"s0": np.ones(3, np.float32), "half": np.float32(0.5)}
    proto, x = proto_of([scan], [value("x", ["T", 3])], ["last", "y"], **arrays), normal(5, 3)
    assert_close(rnnjax_onnx.load(proto)(x)[1], by_reference(proto, {"x": x}), TOLERANCE)
    scan.attribute.append(helper.make_attribute("scan_input_directions", [1]))
    with pytest.raises(InteropError, match="scan_input_directions is not read here; export"):
        rnnjax_onnx.load(proto_of([scan], [value("x", ["T", 3])], ["y"], **arrays))


# --- Loops that count ---

ON = nodes_of("Add n one > n1; Less n1 end > again")
# As converters of while loops write it: its end is the shape of an input, not its numbers.
SUMMED = nodes_of("Gather x n > x_t; Add s x_t > t; Tanh t > next; Identity next > y_t") + ON
SIZE = nodes_of("Shape x > sizes; Gather sizes zero > end")
# As TensorFlow writes ``x[i]``: its size is 1 if that axis is squeezed.
SLICED = nodes_of(
    "Unsqueeze n first > start; Add n one > n1; Unsqueeze n1 first > to; Identity more > again; "
    "Slice x start to first > part; Squeeze part squeezed > x_t; Sub x_t s > next"
)


def counting(
    shape: Any, nodes: Any, given: str, *made: str, around: Any = (), **arrays: Any
) -> Any:
    """A loop of a state that counts and another one; ``given`` are its inputs."""
    outputs, inside = ["last", "y"][: len(made)], looped(nodes, "n s", ["again", "n1", *made])
    loop = node("Loop", given.split(" "), ["", *outputs], body=inside)
    proto = proto_of([*around, loop], [value("x", shape)], outputs, zero=0, one=1, **arrays)
    return rnnjax_onnx.load(proto)


@pytest.mark.parametrize("steps", [5, 7000])
def test_a_loop_that_counts_in_a_state_runs(steps: int, assert_close: Any) -> None:
    given, x = {"around": SIZE, "trips": 2**63 - 1, "s0": np.zeros(2, np.float32)}, normal(steps, 2)
    model = counting(["T", 2], SUMMED, "trips  zero s0", "next", "y_t", **given)
    ys = [*itertools.accumulate(x, lambda s, x_t: np.tanh(s + x_t), initial=np.zeros(2))][1:]
    assert_close(jax.jit(model.__call__)(x)[1], {"last": ys[-1], "y": np.stack(ys)}, TOLERANCE)


@pytest.mark.parametrize("squeezed", [0, -2, 1])
def test_a_loop_slices_the_step_that_it_counts(squeezed: int, assert_close: Any) -> None:
    arrays, x = {"trips": 5, "s0": normal(2), "first": [0], "squeezed": [squeezed]}, normal(5, 2)
    model = counting([5, 2], SLICED, "trips  zero s0", "next", **arrays)
    if squeezed == 1:  # of any size
        with pytest.raises(InteropError, match="its starts follow from the values of an input"):
            model(x)
    else:
        expected = functools.reduce(lambda s, x_t: x_t - s, x, arrays["s0"])
        assert_close(jax.jit(model.__call__)(x)[1], expected, TOLERANCE)


def test_nodes_that_nothing_runs_are_not_counted() -> None:
    """Only what ends a loop is run to count its steps; the layers in it are not."""
    end, layers = 4000, 40
    nodes = [node("Add", [f"h{i}", "x"], [f"h{i + 1}"]) for i in range(1, layers)]
    nodes = [node("Add", ["s", "x"], ["h1"]), *nodes, node("Identity", [f"h{layers}"], ["next"])]
    model = counting([2], nodes + ON, " yes zero x", "next", end=end, yes=np.array(True))
    x = np.float32([1, -2])
    np.testing.assert_array_equal(model(x)[1], (1 + end * layers) * x)


def test_a_loop_may_have_no_state() -> None:
    inside = looped([SAME, *nodes_of("Mul i i > square")], "", ["again", "square"])
    loop = node("Loop", ["n", ""], ["y"], body=inside)
    model = rnnjax_onnx.load(proto_of([loop], [value("x", [2])], ["y"], n=np.array(4)))
    assert model(normal(2))[1].tolist() == [0, 1, 4, 9]


def test_trips_of_loops_in_each_other_are_bounded() -> None:
    inside = [node("Add", ["s", "s"], ["next"])]
    for state in ("s", "s", "x"):
        step = looped([*inside, SAME], "s", ["again", "next"])
        inside = [node("Loop", ["n", "", state], ["next"], body=step)]
    model = rnnjax_onnx.load(proto_of(inside, [value("x", [1])], ["next"], n=np.array(1000)))
    message = "loops in each other run 1,000,000,000 trips, but at most 1,048,576 are run; check"
    with pytest.raises(InteropError, match=message):
        model(normal(1))


def test_all_that_a_graph_makes_is_bounded() -> None:
    """Each array may be small enough, and all of them too large."""
    doubled = [node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], axis=0) for i in range(34)]
    spread = [node("Expand", ["x0", "sizes"], [f"y{i}"]) for i in range(40)]
    long = node("LSTM", ["steps", "W1", "R1"], ["z"], hidden_size=HIDDEN)
    hidden = [node("Expand", ["x0", "time"], ["steps"]), long]
    arrays = {"sizes": np.array([2**24]), "time": np.array([2**22, 1, 1]), **weights_of("1", 1)}
    cases = (doubled, ["x34"]), (spread, [f"y{i}" for i in range(40)]), (hidden, ["z"])
    for nodes, outputs in cases:
        proto = proto_of(nodes, [value("x0", [1])], outputs, **arrays)
        with pytest.raises(InteropError, match=r"at most [\d,]+ elements may still be made; check"):
            jax.eval_shape(rnnjax_onnx.load(proto), normal(1))


def doublings(known: bool) -> Any:
    """Forty of an input, or of an initialiser that an input picks from."""
    nodes = [node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], axis=0) for i in range(40)]
    if not known:
        return proto_of(nodes, [value("x0", [None, 2])], ["x40"])
    nodes += [node("Gather", ["x40", "which"], ["y"])]
    which = value("which", [None], TensorProto.INT64)
    return proto_of(nodes, [which], ["y"], x0=np.arange(2))


def test_what_is_refused_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that grows with the inputs would come after the memory is gone."""
    made: list[Any] = []

    def concat(at: Any, *xs: Any) -> Any:
        made.append(original(at, *xs))
        return made[-1]

    original = operators.OPERATORS["Concat"]
    monkeypatch.setitem(operators.OPERATORS, "Concat", concat)
    with pytest.raises(InteropError, match=r"node \d+ \(Concat\): .* elements may still be made"):
        rnnjax_onnx.load(doublings(known=False))(normal(100, 2))
    assert made
    assert all(isinstance(one, jax.core.Tracer) for one in made)
    with pytest.raises(InteropError, match=r"at most [\d,]+ elements may still be made; check"):
        rnnjax_onnx.load(doublings(known=True))(np.zeros(10**6, np.int32))
    assert max(one.size for one in made if isinstance(one, np.ndarray)) < 2**23
