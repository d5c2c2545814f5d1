"""A stream of one row on one core: what serves it, and what a step costs that way."""

import dataclasses
import io
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.questions import jax_layers, layer_peers, layers
from benchmarks.questions.jax_layers import Shape
from benchmarks.questions.layer_peers import Call
from benchmarks.reports import Point, Report, markdown, short
from benchmarks.timing import Contender, Question, usable_cores

Step = Callable[[np.ndarray], np.ndarray]
"""From inputs ``(time, 1, features)`` to outputs; the state goes on from call to call."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell, number of units, of rows, and of steps a call is a point."""

    cells: tuple[str, ...] = ("lstm", "gru")
    units: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    rows: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = (1, 100)
    features: int = 16


QUICK = Settings(("gru",), (8,), steps=(1, 3))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"{layers.CELLS[cell]}({units}), {rows} x {steps}",
            {
                "shape": dataclasses.asdict(Shape(cell, 1, units, rows, steps, settings.features)),
                "backward": False,
            },
        )
        for steps in settings.steps
        for rows in settings.rows
        for cell in settings.cells
        for units in settings.units
    ]
    return Question(
        "streaming",
        f"A layer of {settings.features} input features, a call of so many steps after the other, "
        "the state handed on; float32, one core, the same weights and inputs for all. Inputs come "
        "with the call as arrays of NumPy, and outputs go back as such. The stream is compiled by "
        "cc -O3 -march=native, with vectors of 512 bits where the CPU has them. A repetition is as "
        f"many calls as take {layer_peers.LEAST_SECONDS} s.",
        [
            one("stream", rnnjax_stream, ["rnnjax", "jax"]),
            one("jit", rnnjax_jit, ["rnnjax", "jax"]),
            one("onnxruntime", onnxruntime_step, ["onnxruntime", "onnx"]),
            one("OpenVINO", openvino_step, ["openvino", "onnx"]),
            one("PyTorch", torch_step, ["torch"]),
        ],
        baseline="stream",
        value_name=layer_peers.VALUE_NAME,
        tolerance=layer_peers.TOLERANCE,
        relative=True,
        points=points,
    )


def one(name: str, step: Callable[[Shape], Step], packages: list[str]) -> Contender:
    """A contender; the outputs that are compared are those of its first call, from zeros."""

    def build(shape: Shape, backward: bool) -> Call:
        run, xs = step(shape), jax_layers.inputs(shape)
        return lambda: [run(xs)]

    at_once = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    return dataclasses.replace(layer_peers.contender(name, build, packages), environment=at_once)


def rnnjax_stream(shape: Shape) -> Step:
    """Our step as C, compiled here; of one row there is no axis."""
    from rnnjax.interop import c

    stack, (params,), _ = jax_layers.rnnjax_stack(shape)
    rows = None if shape.batch_size == 1 else shape.batch_size
    stream = c.stream(stack.cells[0], params, rows=rows)
    each = 0 if rows is None else slice(None)
    return lambda xs: stream(xs[0, each] if shape.time == 1 else xs[:, each])


def rnnjax_jit(shape: Shape) -> Step:
    """``jax.jit`` of the cell's step, or of `rnnjax.unroll`; without asynchronous dispatch."""
    import jax

    import rnnjax

    stack, (params,), _ = jax_layers.rnnjax_stack(shape)
    cell, carry = stack.cells[0], None
    if shape.time == 1:
        step = jax.jit(cell.step)
    else:
        step = jax.jit(lambda params, carry, xs: rnnjax.unroll(cell, params, xs, carry))
    carry = cell.initial_carry((shape.batch_size,))

    def run(xs: np.ndarray) -> np.ndarray:
        nonlocal carry
        carry, ys = step(params, carry, xs[0] if shape.time == 1 else xs)
        return np.asarray(ys)

    return run


def onnxruntime_step(shape: Shape) -> Step:
    """Our layer, exported, with the states as inputs and outputs."""
    session, given = layer_peers.onnx_session(shape)
    data, *states = [one.name for one in session.get_inputs()]
    names = [one.name for one in session.get_outputs()]

    def run(xs: np.ndarray) -> np.ndarray:
        given[data] = xs
        ys, *after = session.run(names, given)
        given.update(zip(states, after, strict=True))
        return ys

    return run


def openvino_step(shape: Shape) -> Step:
    """The same file in OpenVINO, compiled for these shapes."""
    import openvino

    proto, given = layer_peers.onnx_file(shape)
    read = openvino.Core().read_model(io.BytesIO(proto))
    read.reshape({name: array.shape for name, array in given.items()})
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(read, "CPU", hints).create_infer_request()
    data, *states = given

    def run(xs: np.ndarray) -> np.ndarray:
        given[data] = xs
        results = request.infer(given)
        ys, *after = (results[i].copy() for i in range(len(results)))
        given.update(zip(states, after, strict=True))
        return ys

    return run


def torch_step(shape: Shape) -> Step:
    """PyTorch's ``nn.LSTM`` or ``nn.GRU`` under ``inference_mode``."""
    import torch

    module, _ = layer_peers.torch_module(shape)
    state = None

    def run(xs: np.ndarray) -> np.ndarray:
        nonlocal state
        with torch.inference_mode():
            ys, state = module(torch.from_numpy(xs), state)
        return ys.numpy()

    return run


def tables(report: Report) -> str:
    """A row a layer and number of steps: microseconds a step, and the multiples others take."""
    names = layers.peers(report)
    rows = [["layer, rows x steps a call", "stream, µs a step", *(f"{name}, x" for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for point in report.points:
        result, steps = report.at(point)[report.baseline], point.settings["shape"]["time"]
        measured = not result.problem and result.amounts
        ours = short(1e6 * statistics.median(result.amounts) / steps) if measured else "–"
        rows.append([point.name, ours, *(layers.mean_cell(report, n, [point]) for n in names)])
    return markdown(rows)


def remarks(report: Report) -> list[str]:
    """What there is to say."""
    cores = usable_cores()
    alone = [f"Of {cores} cores; `taskset -c 0 python -m ...` gives each one."] if cores > 1 else []
    return alone + layers.remarks(report)
