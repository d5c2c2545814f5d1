"""Every cell on the fast path, against the same cell through autodiff of the plain scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import Call, compared
from benchmarks.reports import Point, Report
from benchmarks.timing import Question

CELLS = (
    "LSTMCell",
    "GRUCell",
    "SimpleRNNCell",
    "LayerNormLSTMCell",
    "LayerNormGRUCell",
    "PeepholeLSTMCell",
    "ProjectionLSTMCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell at every shape is a point."""

    cells: tuple[str, ...] = CELLS
    shapes: tuple[tuple[int, int], ...] = ((128, 16), (512, 16))
    time: int = 100


QUICK = Settings(cells=("LSTMCell", "ProjectionLSTMCell"), shapes=((8, 2),), time=5)


def layer(method: str) -> Callable[[dict[str, Any]], Call]:
    """A layer of the point's cell by that method: its gradient, or without it its outputs."""

    def build(settings: dict[str, Any]) -> Call:
        import jax
        import jax.numpy as jnp

        import rnnjax

        size = settings["hidden_size"]
        more = {"proj_size": size // 4} if settings["cell"] == "ProjectionLSTMCell" else {}
        cell = getattr(rnnjax, settings["cell"])(size, **more)
        params = cell.init(jax.random.key(0), size)
        shape = (settings["time"], settings["batch_size"], size)
        xs = jax.random.normal(jax.random.key(1), shape)
        chosen = getattr(rnnjax, method)()

        def outputs(params: Any, xs: Any) -> tuple[Any]:
            return (rnnjax.unroll(cell, params, xs, method=chosen)[1],)

        def loss(params: Any, xs: Any) -> Any:
            return jnp.sum(outputs(params, xs)[0] ** 2)

        if not settings.get("backward", True):
            return jax.jit(outputs), (params, xs)
        return jax.jit(jax.grad(loss, argnums=(0, 1))), (params, xs)

    return build


def question(settings: Settings) -> Question:
    """What is asked, and of which methods."""
    points = [
        Point(
            f"{cell}, ({hidden_size}, {batch_size})",
            {
                "cell": cell,
                "hidden_size": hidden_size,
                "batch_size": batch_size,
                "time": settings.time,
            },
        )
        for hidden_size, batch_size in settings.shapes
        for cell in settings.cells
    ]
    return compared(
        "cells",
        f"The gradients of all parameters and of the inputs of a layer over {settings.time} steps "
        "at several (H, batch), on the fast path and through JAX's gradient of the plain scan; a "
        "repetition is as many calls as take 0.1 s.",
        {"Fused()": layer("Fused"), "Scan()": layer("Scan")},
        points,
    )


def tables(report: Report) -> str:
    """A row a cell and shape."""
    return layers.peer_table(
        report, report.points, ["cell, (H, batch)"], lambda point: [point.name]
    )


remarks = layers.remarks
