"""One row, one step after the other: the step as C, beside what would run it elsewhere."""

import ctypes
import dataclasses
import functools
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.questions import jax_layers, layer_peers, layers
from benchmarks.questions.jax_layers import Shape
from benchmarks.questions.layer_peers import Call
from benchmarks.reports import Point, Report, markdown, short
from benchmarks.timing import Question

STEPS = 100
FLAGS = "-O3", "-march=native", "-shared", "-fPIC"
LOOP = """
#include "layer.h"
void run(const float *x, int steps, float *y) {
  static struct layer_state s;
  layer_reset(&s);
  for (int t = 0; t < steps; t++)
    layer_step(&s, x + t * LAYER_SIZE_OF_X, y + t * LAYER_SIZE_OF_Y);
}
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell and number of units is a point."""

    cells: tuple[str, ...] = ("lstm", "gru")
    units: tuple[int, ...] = (16, 32, 64, 128)


QUICK = Settings(("gru",), (8,))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"{layers.CELLS[cell]}({units})",
            {"shape": dataclasses.asdict(Shape(cell, 1, units, 1, STEPS)), "backward": False},
        )
        for cell in settings.cells
        for units in settings.units
    ]
    one = layer_peers.contender
    return Question(
        "firmware",
        f"A layer over {STEPS} steps of one row, as many input features as hidden units, from a "
        "state of zeros; float32, the same weights and inputs for all. C is compiled by cc "
        f"{' '.join(FLAGS[:2])}, and its step is called from a loop of C.",
        [
            one("rnnjax, C", c_steps, ["rnnjax", "jax"]),
            one("rnnjax, cell.step", jax_steps, ["rnnjax", "jax"]),
            one("PyTorch nn", torch_steps, ["torch"]),
            one("onnxruntime", onnxruntime_steps, ["onnxruntime", "onnx"]),
            one("onnxruntime, one call", layer_peers.onnxruntime_call, ["onnxruntime", "onnx"]),
        ],
        baseline="rnnjax, C",
        value_name=layer_peers.VALUE_NAME,
        tolerance=layer_peers.TOLERANCE,
        relative=True,
        points=points,
    )


@functools.cache
def _library(shape: Shape) -> Any:
    """The layer as C, compiled; the folder goes once it is loaded."""
    from rnnjax.interop import c

    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no compiler of C: cc is not there")
    stack, (params,), _ = jax_layers.rnnjax_stack(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        c.save(stack.cells[0], params, folder / "layer.c")
        (folder / "loop.c").write_text(LOOP)
        sources = folder / "layer.c", folder / "loop.c"
        subprocess.run([compiler, *FLAGS, *sources, "-lm", "-o", folder / "layer.so"], check=True)
        return ctypes.CDLL(str(folder / "layer.so"))


def c_steps(shape: Shape, backward: bool) -> Call:
    """Our step as C."""
    run, xs = _library(shape).run, jax_layers.inputs(shape)
    ys = np.empty((shape.time, shape.hidden_size), np.float32)
    x, y = (array.ctypes.data_as(ctypes.c_void_p) for array in (xs, ys))

    def call() -> list[Any]:
        run(x, shape.time, y)
        return [ys]

    return call


def jax_steps(shape: Shape, backward: bool) -> Call:
    """``jax.jit`` of the cell's step, a call a step."""
    import jax

    stack, (params,), xs = jax_layers.rnnjax_stack(shape)
    cell, steps = stack.cells[0], list(xs)
    step, begin = jax.jit(cell.step), cell.initial_carry((1,))

    def call() -> list[Any]:
        carry, ys = begin, []
        for x in steps:
            carry, y = step(params, carry, x)
            ys.append(jax.block_until_ready(y))
        return [np.stack(ys)]

    return call


def torch_steps(shape: Shape, backward: bool) -> Call:
    """PyTorch's ``nn.LSTM`` or ``nn.GRU``, a call a step."""
    import torch

    module, xs = layer_peers.torch_module(shape)
    steps = [x[None] for x in xs]

    def call() -> list[Any]:
        state, ys = None, []
        with torch.inference_mode():
            for x in steps:
                y, state = module(x, state)
                ys.append(y)
        return [np.stack(ys)]

    return call


def onnxruntime_steps(shape: Shape, backward: bool) -> Call:
    """Our layer, exported, a call a step, with the states as inputs and outputs."""
    session, begin = layer_peers.onnx_session(shape)
    data = session.get_inputs()[0].name
    states = [name for name in begin if name != data]
    names, steps = [one.name for one in session.get_outputs()], [x[None] for x in begin[data]]

    def call() -> list[Any]:
        given, ys = dict(begin), []
        for x in steps:
            given[data] = x
            y, *after = session.run(names, given)
            given.update(zip(states, after, strict=True))
            ys.append(y)
        return [np.stack(ys)]

    return call


def tables(report: Report) -> str:
    """A row a layer: microseconds a step of each, and of C the multiple that others take."""
    ours = report.baseline
    rows = [["µs a step", ours, *layers.peers(report), *(f"x: {n}" for n in layers.peers(report))]]
    rows.append(["---"] * len(rows[0]))
    for point in report.points:
        at = report.at(point)
        rows.append([
            point.name,
            *(_microseconds(at[name]) for name in (ours, *layers.peers(report))),
            *(layers.mean_cell(report, name, [point]) for name in layers.peers(report)),
        ])  # fmt: skip
    return markdown(rows)


def _microseconds(result: Any) -> str:
    measured = not result.problem and result.amounts
    return short(1e6 * statistics.median(result.amounts) / STEPS) if measured else "–"


remarks = layers.remarks
