"""Damaged and hostile ONNX files: each is read or refused in a sentence, fast and in bounds.

The files are read in a process of their own, whose memory is limited: this file is its program.
"""

import collections
import contextlib
import json
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
SECONDS, BYTES = 5, 2**30


def run_child(first: int, count: int) -> dict[str, Any]:
    """Outcomes of so many mutated files, by their names; fails with the child."""
    child = subprocess.run(
        [sys.executable, __file__, str(first), str(count)],
        capture_output=True,
        text=True,
        timeout=60 + count * SECONDS,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-4000:]
    outcomes: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    assert sum(outcomes["counts"].values()) == count
    assert set(outcomes["counts"]) <= {"read", "read and traced", "refused"}, outcomes
    return outcomes


def test_some_mutated_files() -> None:
    outcomes = run_child(0, 60)
    assert outcomes["counts"]["refused"] > 20
    assert outcomes["counts"]["read and traced"] > 3  # not all are refused out of hand


@pytest.mark.slow
def test_many_mutated_files() -> None:
    outcomes = run_child(1000, 2000)
    print(outcomes)
    assert outcomes["counts"]["read and traced"] > 100


# --- The files ---


def seeds() -> list[Any]:
    """Small models with all kinds of things in them."""
    return [read_aloud(), heard()]


def model(nodes: list[Any], inputs: list[Any], arrays: dict[str, np.ndarray]) -> Any:
    """With the output y."""
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "seed", inputs, [info("y", None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


RNG = np.random.default_rng(0)
node = helper.make_node


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def read_aloud() -> Any:
    """Ids, three recurrent nodes with states and lengths, and a linear layer."""
    lstm = {"activations": ["Sigmoid", "Elu", "Elu"] * 2, "activation_alpha": [0.5] * 4}
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Shape", ["e"], ["all"]),
        node("Slice", ["all", "one", "two"], ["n"]),
        node("Concat", ["two", "n", "units"], ["sizes"], axis=0),
        node("ConstantOfShape", ["sizes"], ["h0"]),
        node("LSTM", ["e", "W", "R", "B", "", "h0", "h0"], ["Y"], hidden_size=4,
             direction="bidirectional", **lstm),
        node("Transpose", ["Y"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "shape"], ["r"]),
        node("Split", ["h"], ["h1", "h2"], axis=0),
        node("Cast", ["lengths"], ["n32"], to=TensorProto.INT32),
        node("GRU", ["r", "W1", "R1", "B1", "n32", "h1"], ["Y1"], hidden_size=3,
             linear_before_reset=1),
        node("Squeeze", ["Y1", "one"], ["s"]),
        node("RNN", ["s", "W2", "R2", "", "", "h2"], ["Y2"], hidden_size=3),
        node("MatMul", ["Y2", "K"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("LogSoftmax", ["a"], ["y"], axis=-1),
    ]  # fmt: skip
    arrays = {
        "table": normal(6, 3), "one": np.array([1]), "two": np.array([2]), "units": np.array([4]),
        "W": normal(2, 16, 3), "R": normal(2, 16, 4), "B": normal(2, 32),
        "shape": np.array([0, 0, -1]), "W1": normal(1, 9, 8), "R1": normal(1, 9, 3),
        "B1": normal(1, 18), "W2": normal(1, 3, 3), "R2": normal(1, 3, 3), "K": normal(3, 5),
        "b": normal(5),
    }  # fmt: skip
    ids, lengths = (info(n, s, TensorProto.INT64) for n, s in (("ids", "TN"), ("lengths", "N")))
    return model(nodes, [ids, lengths, info("h", [2, "N", None])], arrays)


def heard() -> Any:
    """Convolutions, pools, indices, branches and loops, all of which name sizes."""

    def body(nodes: list[Any], inputs: list[Any], outputs: list[str]) -> Any:
        return helper.make_graph(nodes, "body", inputs, [info(name, None) for name in outputs])

    state = info("s", [2, 4])
    step = body(
        [node("Mul", ["s", "half"], ["h"]), node("Add", ["h", "m"], ["t"]),
         node("Identity", ["more"], ["again"])],
        [info("i", [], TensorProto.INT64), info("more", [], TensorProto.BOOL), state],
        ["again", "t", "h"],
    )  # fmt: skip
    scanned = body(
        [node("Add", ["s", "one"], ["t"]), node("Tanh", ["t"], ["u"])],
        [state, info("one", [2, 4])],
        ["t", "u"],
    )
    branches = [body([node(name, ["last"], [name])], [], [name]) for name in ("Neg", "Exp")]
    nodes = [
        node("Pad", ["x", "around"], ["p"], mode="reflect"),
        node("Conv", ["p", "K", "k"], ["c"], group=2, dilations=[2], strides=[2], pads=[1, 1]),
        node("Concat", ["c", "c", "c"], ["d"], axis=2),
        node("MaxPool", ["d"], ["e"], kernel_shape=[2], strides=[2]),
        node("AveragePool", ["e"], ["f"], kernel_shape=[2], count_include_pad=1, pads=[1, 0]),
        node("Slice", ["f", "zero", "four", "two"], ["g"]),
        node("BatchNormalization", ["g", "k", "k", "k", "k"], ["b"]),
        node("ReduceMean", ["b"], ["w"], axes=[1], keepdims=0),
        node("CumSum", ["w", "one"], ["m"]),
        node("Loop", ["trips", "", "m"], ["last", "all"], body=step),
        node("Scan", ["m", "all"], ["v", "us"], body=scanned, num_scan_inputs=1),
        node("ReduceSum", ["v"], ["sum"], keepdims=0),
        node("Less", ["sum", "half"], ["below"]),
        node("If", ["below"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        node("ArgMax", ["z"], ["place"], axis=1),
        node("Tile", ["place", "times"], ["places"]),
        node("OneHot", ["places", "four", "values"], ["hot"], axis=0),
        node("GatherElements", ["z", "places"], ["there"], axis=1),
        node("ScatterND", ["there", "where", "new"], ["put"]),
        node("Expand", ["put", "shape"], ["wide"]),
        node("Add", ["wide", "hot"], ["y"]),
    ]
    arrays = {
        "around": np.array([0, 0, 2, 0, 0, 1]), "zero": np.array([0]), "four": np.array([4]),
        "two": np.array([2]), "one": np.array(1), "trips": np.array(5), "times": np.array([1, 4]),
        "shape": np.array([4, 2, 4]), "where": np.array([[1, 2]]), "new": normal(1),
        "values": normal(2), "half": np.array(0.5, np.float32), "k": np.abs(normal(2)),
        "K": normal(2, 1, 3),
    }  # fmt: skip
    return model(nodes, [info("x", [2, 2, 9])], arrays)


# --- What is done to them: to the bytes, and to what they mean ---


def damage(data: bytearray, rng: random.Random) -> None:
    """Bits flipped, bytes written over, repeated or left out, or the end cut off."""
    start, size, kind = rng.randrange(len(data)), rng.randint(1, 32), rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[start : start + size] = rng.randbytes(size)
    elif kind == 2:
        data[start:start] = data[start : start + size]
    else:
        del data[start : start + size if kind == 3 else None]


NUMBERS = (0, 1, -1, 2, 3, 4, 7, 2**20, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "nowhere", "Y", "W", "reverse", "Tanh", *sorted(OPERATORS))


def places(message: Any) -> Iterator[tuple[Any, str, int | None]]:
    """Every number and text in a message: what holds it, the field, and the place in a list."""
    for field, value in message.ListFields():
        listed = hasattr(value, "__len__") and not isinstance(value, str | bytes)
        for i, one in enumerate(value if listed else [value]):
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
    value = rng.choice([*kinds, numpy_helper.from_array(np.ones(3))])
    attribute.CopyFrom(helper.make_attribute(attribute.name, value))


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
        graph.node.insert(i, helper.make_node("Concat", [name, name], [f"{name}+"], axis=0))
        name = f"{name}+"
    graph.output.add().CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


STRUCTURAL: tuple[Callable[[Any, random.Random], None], ...] = (
    *[change_value] * 6,
    change_list,
    change_attribute,
    shuffle_nodes,
    lead_outside,
    grow_without_end,
)


def mutated(number: int, models: list[Any]) -> tuple[str, bytes]:
    """One file, always the same for its number, and what was done to it."""
    rng = random.Random(number)
    proto = onnx.ModelProto()
    proto.CopyFrom(rng.choice(models))
    if rng.random() < 0.4:
        data = bytearray(proto.SerializeToString())
        damage(data, rng)
        return "damage", bytes(data)
    structural = rng.choice(STRUCTURAL)
    structural(proto, rng)
    if rng.random() < 0.3:
        rng.choice(STRUCTURAL[:-1])(proto, rng)
    return structural.__name__, proto.SerializeToString()


# --- The child ---


def outcome(data: bytes) -> str:
    """Whether a file was read and traced, read, or refused."""
    import jax

    from rnnjax.errors import InteropError, InvalidInputError
    from rnnjax.interop import onnx as rnnjax_onnx

    try:
        model = rnnjax_onnx.load(data)
    except InteropError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    given = {
        one.name: jax.ShapeDtypeStruct(
            tuple(3 if n is None else n for n in one.shape or ()), one.dtype
        )
        for one in model.network.inputs
    }
    try:
        jax.eval_shape(model.apply, model.params, given)
    except (InteropError, InvalidInputError):
        return "read"
    return "read and traced"


def main() -> None:
    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} seconds")

    signal.signal(signal.SIGPROF, too_long)
    counts: collections.Counter[str] = collections.Counter()
    models, slowest = seeds(), 0.0
    for model in models:
        outcome(model.SerializeToString())  # all modules are there before memory is limited
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    first, count = map(int, sys.argv[1:])
    for number in range(first, first + count):
        change, data = mutated(number, models)
        # Of the processor, so that a busy machine fails no test.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        begun = time.process_time()
        try:
            counts[outcome(data)] += 1
        except BaseException as error:
            print(f"file {number}, {change}: {error!r}", flush=True)
            raise
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - begun)
    print(json.dumps({"counts": counts, "slowest": slowest}))


if __name__ == "__main__":
    main()
