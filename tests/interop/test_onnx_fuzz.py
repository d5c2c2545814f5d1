"""Damaged and hostile ONNX files: each is read or refused in a sentence, fast and in bounds."""

import contextlib
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from interop_helpers import change, check_damaged, random_model
from onnx import TensorProto, helper, numpy_helper
from onnx_helpers import graph_of, node, nodes_of, normal, proto_of, value

import rnnjax
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Dense, Embedding, Model, Recurrent
from rnnjax.interop import onnx as rnnjax_onnx

OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}


def traced(path: pathlib.Path) -> Model:
    model = rnnjax_onnx.load(path)
    given = {
        one.name: jax.ShapeDtypeStruct(
            tuple(3 if n is None else n for n in one.shape or ()), one.dtype
        )
        for one in model.network.inputs
    }
    try:
        jax.eval_shape(model.apply, model.params, given)
    except InvalidInputError as error:  # of these inputs
        raise InteropError(str(error)) from error
    return model


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_traced_or_refused(count: int, tmp_path: pathlib.Path) -> None:
    models = [read_aloud(), heard()]
    contents = (mutated(number, models) for number in range(count))
    said = check_damaged(tmp_path / "a.onnx", contents, traced)
    print(f"{len(said)} of {count} mutations are refused")
    assert count // 3 < len(said) < count - count // 20


def test_the_name_of_a_node_that_is_no_text() -> None:
    proto = read_aloud()
    name = next(one.name for one in proto.graph.node if one.op_type == "GRU").encode()
    field = b"\x1a" + bytes([len(name)])  # the third of a node, as protobuf writes it
    content = proto.SerializeToString().replace(field + name, field + b"\xff" * len(name))
    with pytest.raises(InteropError, match=r"the name b'\\xff.*' is no text; get the file again"):
        rnnjax_onnx.load(content)


# --- The files ---


def read_aloud() -> Any:
    """Ids, recurrent nodes of each kind with states and lengths, and a linear layer."""
    both = rnnjax.Bidirectional(rnnjax.LSTMCell(4, activation="elu"))
    stack = rnnjax.Stack([both, rnnjax.GRUCell(3), rnnjax.SimpleRNNCell(3)])
    row = Embedding("table", 6, 3), Recurrent("rnn", stack), Dense("head", 5, "log_softmax")
    return rnnjax_onnx.to_proto(random_model(*row), lengths=True)


def heard() -> Any:
    """Convolutions, pools, indices, branches and loops, all of which name sizes."""

    state = value("s", [2, 4])
    step = graph_of(
        nodes_of("Mul s half > h; Add h m > t; Identity more > again"),
        [value("i", [], TensorProto.INT64), value("more", [], TensorProto.BOOL), state],
        ["again", "t", "h"],
    )
    given = [state, value("one", [2, 4])]
    scanned = graph_of(nodes_of("Add s one > t; Tanh t > u"), given, ["t", "u"])
    branches = [graph_of([node(name, ["last"], [name])], [], [name]) for name in ("Neg", "Exp")]
    nodes = nodes_of("""
        Pad x around > p mode='reflect';
        Conv p K k > c group=2 dilations=[2] strides=[2] pads=[1,1]; Concat c c c > d axis=2;
        MaxPool d > e kernel_shape=[2] strides=[2];
        AveragePool e > f kernel_shape=[2] count_include_pad=1 pads=[1,0];
        Slice f zero four two > g; BatchNormalization g k k k k > b;
        ReduceMean b > w axes=[1] keepdims=0; CumSum w one > m""")
    nodes += [
        node("Loop", ["trips", "", "m"], ["last", "all"], body=step),
        node("Scan", ["m", "all"], ["v", "us"], body=scanned, num_scan_inputs=1),
        *nodes_of("ReduceSum v > sum keepdims=0; Less sum half > below"),
        node("If", ["below"], ["z"], then_branch=branches[0], else_branch=branches[1]),
    ]
    nodes += nodes_of("""
        ArgMax z > place axis=1; Tile place times > places; OneHot places four values > hot axis=0;
        GatherElements z places > there axis=1; ScatterND there where new > put;
        Expand put shape > wide; Add wide hot > y""")
    arrays = {
        "around": np.array([0, 0, 2, 0, 0, 1]), "zero": np.array([0]), "four": np.array([4]),
        "two": np.array([2]), "one": np.array(1), "trips": np.array(5), "times": np.array([1, 4]),
        "shape": np.array([4, 2, 4]), "where": np.array([[1, 2]]), "new": normal(1),
        "values": normal(2), "half": np.array(0.5, np.float32), "k": np.abs(normal(2)),
        "K": normal(2, 1, 3),
    }  # fmt: skip
    return proto_of(nodes, [value("x", [2, 2, 9])], ["y"], **arrays)


# --- What is done to them: to the bytes, and to what they mean ---

NUMBERS = (0, 1, -1, 2, 3, 4, 7, 2**20, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "nowhere", "Y", "W", "reverse", "Tanh", *sorted(OPERATORS))


def places(message: Any) -> Iterator[tuple[Any, str, int | None]]:
    """Every number and text in a message: what holds it, the field, and the place in a list."""
    for field, held in message.ListFields():
        listed = hasattr(held, "__len__") and not isinstance(held, str | bytes)
        for i, one in enumerate(held if listed else [held]):
            if hasattr(one, "ListFields"):
                yield from places(one)
            else:
                yield message, field.name, i if listed else None


def change_value(proto: Any, rng: random.Random) -> None:
    """A number, a name or bytes, anywhere."""
    found = list(places(proto))
    holder, field, i = rng.choice(found)
    old = getattr(holder, field) if i is None else getattr(holder, field)[i]
    new: Any = rng.choice([0.5, float("nan"), -1e30])
    if isinstance(old, int):
        new = rng.choice(NUMBERS)
    elif isinstance(old, str):  # any other text of the model, most often a name
        texts = [getattr(h, f) if n is None else getattr(h, f)[n] for h, f, n in found]
        new = rng.choice([*TEXTS, *[one for one in texts if isinstance(one, str)] * 4])
    elif isinstance(old, bytes):
        numbers = np.array(rng.choices(NUMBERS, k=len(old) // 8 + 1), np.int64).tobytes()
        new = rng.choice([numbers[: len(old)], rng.randbytes(len(old)), b"\xff"])
    with contextlib.suppress(ValueError):  # of a field of 32 bits
        if i is None:
            setattr(holder, field, new)
        else:
            getattr(holder, field)[i] = new


def change_list(proto: Any, rng: random.Random) -> None:
    """Inputs, outputs or sizes: one more, or one less."""
    holders = [*proto.graph.node, *proto.graph.initializer]
    holder = rng.choice(holders)
    field = "dims" if hasattr(holder, "dims") else rng.choice(["input", "output"])
    values = getattr(holder, field)
    if values and rng.random() < 0.5:
        del values[rng.randrange(len(values))]
    else:
        values.extend(rng.choices(NUMBERS if field == "dims" else TEXTS, k=rng.choice([1, 3, 100])))


def change_attribute(proto: Any, rng: random.Random) -> None:
    """One of another type."""
    attribute = rng.choice([one for node in proto.graph.node for one in node.attribute])
    kinds = [7, [2**40] * 4, 0.5, [0.5] * 6, "reverse", ["Tanh"] * 3, proto.graph]
    new = rng.choice([*kinds, numpy_helper.from_array(np.ones(3))])
    attribute.CopyFrom(helper.make_attribute(attribute.name, new))


def shuffle_nodes(proto: Any, rng: random.Random) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(rng.sample(nodes, len(nodes)))


def lead_outside(proto: Any, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=rng.choice(["/dev/zero", "../x", "x\0y", "x"]))


def grow_without_end(proto: Any, rng: random.Random) -> None:
    """Each node twice as large as the one before."""
    graph = proto.graph
    name = rng.choice([t.name for t in graph.initializer])
    for i in range(rng.choice([10, 60, 1200])):
        graph.node.insert(i, node("Concat", [name, name], [f"{name}+"], axis=0))
        name = f"{name}+"
    graph.output.add().CopyFrom(value(name))


STRUCTURAL: tuple[Callable[[Any, random.Random], None], ...] = (
    *[change_value] * 6,
    change_list,
    change_attribute,
    shuffle_nodes,
    lead_outside,
    grow_without_end,
)


def mutated(number: int, models: list[Any]) -> bytes:
    """One file, always the same for its number."""
    rng = random.Random(number)
    proto = onnx.ModelProto()
    proto.CopyFrom(rng.choice(models))
    if rng.random() < 0.4:
        return change(rng, proto.SerializeToString())
    rng.choice(STRUCTURAL)(proto, rng)
    if rng.random() < 0.3:
        rng.choice(STRUCTURAL[:-1])(proto, rng)
    return bytes(proto.SerializeToString())
