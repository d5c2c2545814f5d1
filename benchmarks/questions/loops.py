"""What it saves that a loop without a backward pass reads each step's inputs a step ahead."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.questions import cells, layers
from benchmarks.questions.gradients import Call, compared
from benchmarks.reports import Point, Report
from benchmarks.timing import Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]

CELLS = (
    "LSTMCell",
    "SimpleRNNCell",
    "GRUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "RGLRUCell",
    "LRUCell",
    "S6Cell",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell at every (H, batch, steps) is a point."""

    cells: tuple[str, ...] = CELLS
    shapes: tuple[tuple[int, int, int], ...] = ((64, 16, 100), (32, 1, 200))


QUICK = Settings(("GRUCell",), ((8, 2, 5),))


def planned(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Call]:
    """A layer in a process of its own, in which all plans are changed."""

    def build(settings: dict[str, Any]) -> Call:
        from rnnjax.engine.fused import plan

        of = plan.LayerPlan.of
        changed = mock.patch.object(plan.LayerPlan, "of", lambda *args: change(of(*args)))
        changed.start()  # for the rest of this process
        return cells.layer("Fused")(settings)

    return build


def question(settings: Settings) -> Question:
    """What is asked, and of which loops."""
    points = [
        Point(
            f"{cell}, ({hidden_size}, {batch_size}, {time})",
            {
                "cell": cell,
                "hidden_size": hidden_size,
                "batch_size": batch_size,
                "time": time,
                "backward": False,
            },
        )
        for hidden_size, batch_size, time in settings.shapes
        for cell in settings.cells
    ]
    return compared(
        "loops",
        "The outputs of a layer at several (H, batch, steps); a repetition is as many calls as "
        "take 0.1 s.",
        {
            "as it runs": cells.layer("Fused"),
            "ahead": planned(lambda plan: dataclasses.replace(plan, prefetch=True)),
            "not ahead": planned(lambda plan: dataclasses.replace(plan, prefetch=False)),
        },
        points,
    )


def tables(report: Report) -> str:
    """A row a cell and shape."""
    header = ["cell, (H, batch, steps)"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
