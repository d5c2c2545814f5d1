"""One step at a time: a call a step, with the state handed from one to the next, as in serving."""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.questions import jax_layers, layer_peers, layers
from benchmarks.questions.jax_layers import Shape
from benchmarks.questions.layer_peers import Call
from benchmarks.reports import Report
from benchmarks.timing import Contender, Question


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every entry is a point."""

    steps: tuple[tuple[str, int, int], ...] = (
        ("lstm", 128, 1),
        ("lstm", 256, 1),
        ("lstm", 700, 1),
        ("gru", 128, 1),
    )
    """Cell, hidden size (of the inputs too) and batch size."""


QUICK = Settings((("lstm", 8, 1),))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        layer_peers.point(
            f"{layers.CELLS[cell]}({hidden}), batch {batch}",
            Shape(cell, 1, hidden, batch, 1),
            backward=False,
        )
        for cell, hidden, batch in settings.steps
    ]
    at_once = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    one = layer_peers.contender
    contenders: list[Contender] = [
        one("rnnjax", rnnjax_step(prepared=False), ["rnnjax", "jax"]),
        one("rnnjax, prepared", rnnjax_step(prepared=True), ["rnnjax", "jax"]),
        dataclasses.replace(
            one("rnnjax, prepared, no async dispatch", rnnjax_step(prepared=True), ["jax"]),
            environment=at_once,
        ),
        one("PyTorch", torch_step, ["torch"]),
        one("onnxruntime", onnxruntime_step, ["onnxruntime", "onnx"]),
    ]
    return Question(
        "steps",
        "One step of a layer a call, as many input features as hidden units, the state given and "
        "taken back; float32, the same weights and inputs for all. A repetition is as many calls "
        f"as take {layer_peers.LEAST_SECONDS} s; the times are those of one call.",
        contenders,
        baseline="rnnjax",
        value_name=layer_peers.VALUE_NAME,
        tolerance=layer_peers.TOLERANCE,
        relative=True,
        points=points,
    )


def rnnjax_step(prepared: bool) -> Callable[[Shape, bool], Call]:
    """``jax.jit`` of the cell's step, or of that of `rnnjax.prepare`."""

    def build(shape: Shape, backward: bool) -> Call:
        import jax

        import rnnjax

        stack, (params,), xs = jax_layers.rnnjax_stack(shape)
        cell, x = stack.cells[0], xs[0]
        if prepared:
            cell, params = rnnjax.prepare(cell, params, x)
        step, carry = jax.jit(cell.step), cell.initial_carry((shape.batch_size,))

        def call() -> list[Any]:
            nonlocal carry
            carry, y = step(params, carry, x)
            return [jax.block_until_ready(y)]

        return call

    return build


def onnxruntime_step(shape: Shape, backward: bool) -> Call:
    """Our layer, exported, in onnxruntime, whose states are inputs and outputs."""
    session, given = layer_peers.onnx_session(shape)
    states = [name for name in given if name != session.get_inputs()[0].name]
    names = [output.name for output in session.get_outputs()]

    def call() -> list[Any]:
        y, *after = session.run(names, given)
        given.update(zip(states, after, strict=True))
        return [y]

    return call


def torch_step(shape: Shape, backward: bool) -> Call:
    """PyTorch's ``nn.LSTM`` or ``nn.GRU``, over one step."""
    import torch

    module, xs = layer_peers.torch_module(shape)
    state = None

    def call() -> list[Any]:
        nonlocal state
        with torch.inference_mode():
            y, state = module(xs, state)
        return [y]

    return call


def tables(report: Report) -> str:
    """A row a shape."""
    return layers.peer_table(report, report.points, ["layer"], lambda point: [point.name])


remarks = layers.remarks
