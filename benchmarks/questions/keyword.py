"""A keyword spotter as it ships, one step a call: a GRU and its head, the state in and out."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.questions import layer_peers, layers
from benchmarks.questions.jax_layers import Shape
from benchmarks.questions.layer_peers import Call
from benchmarks.reports import Point, Report
from benchmarks.timing import Question

BANDS, WORDS = 40, 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of units is a point."""

    units: tuple[int, ...] = (64, 128)


QUICK = Settings((8,))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"GRU({units}) and head",
            {"shape": dataclasses.asdict(Shape("gru", 1, units, 1, 1)), "backward": False},
        )
        for units in settings.units
    ]
    one = layer_peers.contender
    at_once = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    jitted = one("rnnjax", functools.partial(rnnjax_step, exported=False), ["rnnjax", "jax"])
    exported = functools.partial(rnnjax_step, exported=True)
    return Question(
        "keyword",
        f"One step of a GRU over {BANDS} bands and a head of {WORDS} words a call, batch 1, the "
        "state given and taken back; weights rounded to bfloat16, the same for all. A repetition "
        f"is as many calls as take {layer_peers.LEAST_SECONDS} s; the times are those of one call.",
        [
            jitted,
            dataclasses.replace(jitted, name="rnnjax, no async dispatch", environment=at_once),
            one("rnnjax, jax.export", exported, ["rnnjax", "jax", "flatbuffers"]),
            one("onnxruntime", onnxruntime_step, ["onnxruntime", "onnx"]),
            one("PyTorch", torch_step, ["torch"]),
        ],
        baseline="rnnjax",
        value_name=layer_peers.VALUE_NAME,
        tolerance=layer_peers.TOLERANCE,
        relative=True,
        points=points,
    )


def keyword_model(units: int) -> Any:
    """A model whose parameters are in bfloat16, with none of them zero."""
    import jax
    import jax.numpy as jnp

    import rnnjax
    from rnnjax.interop import Dense, Model, Recurrent, Sequential

    cell, rng = rnnjax.GRUCell(units), np.random.default_rng(0)
    shapes = {
        "gru": jax.eval_shape(lambda: cell.init(jax.random.key(0), BANDS)),
        "head": {"kernel": np.empty((units, WORDS)), "bias": np.empty(WORDS)},
    }
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), "bfloat16"), shapes)
    return Model(Sequential((Recurrent("gru", cell), Dense("head", WORDS))), params)


def frame() -> np.ndarray:
    """The bands of a step, ``(time, batch, bands)``."""
    return np.random.default_rng(1).normal(size=(1, 1, BANDS)).astype(np.float32)


def rnnjax_step(shape: Shape, backward: bool, exported: bool) -> Call:
    """``jax.jit`` of the model, or its exported program as a server gets it: bytes."""
    import jax

    from rnnjax.interop import export

    model = keyword_model(shape.hidden_size)
    run: Callable[..., Any] = jax.jit(lambda carry, xs: model(xs, carry))
    carry, xs = model.initial_carry((1,)), frame()
    if exported:
        run = jax.jit(jax.export.deserialize(export(model, steps=1).serialize()).call)
        carry = jax.tree.leaves(carry)

    def call() -> list[Any]:
        nonlocal carry
        carry, ys = run(carry, xs)
        return [jax.block_until_ready(ys)]

    return call


def onnxruntime_step(shape: Shape, backward: bool) -> Call:
    """Build it as ONNX: the first input and output are data, the others states."""
    import onnxruntime

    from rnnjax.interop import onnx

    proto = onnx.to_proto(keyword_model(shape.hidden_size)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a second one waits for more than it gets
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    data, state = (one.name for one in session.get_inputs())
    given = {data: frame(), state: np.zeros((1, 1, shape.hidden_size), np.float32)}

    def call() -> list[Any]:
        ys, given[state] = session.run(None, given)
        return [ys]

    return call


def torch_step(shape: Shape, backward: bool) -> Call:
    """PyTorch's ``nn.GRUCell`` and ``nn.Linear``."""
    import jax
    import torch

    params = jax.tree.map(np.float32, keyword_model(shape.hidden_size).params)
    cell = torch.nn.GRUCell(BANDS, shape.hidden_size)
    head = torch.nn.Linear(shape.hidden_size, WORDS)
    own, last = params["gru"], params["head"]
    arrays = own["kernel"].T, own["recurrent_kernel"].T, own["bias"], own["recurrent_bias"]
    cell.load_state_dict(dict(zip(cell.state_dict(), map(torch.from_numpy, arrays), strict=True)))
    head.load_state_dict(
        {"weight": torch.from_numpy(last["kernel"].T), "bias": torch.from_numpy(last["bias"])}
    )
    x, state = torch.from_numpy(frame()[0]), None

    def call() -> list[Any]:
        nonlocal state
        with torch.inference_mode():
            state = cell(x, state)
            return [head(state)]

    return call


def tables(report: Report) -> str:
    """A row a number of units."""
    return layers.peer_table(report, report.points, ["model"], lambda point: [point.name])


remarks = layers.remarks
