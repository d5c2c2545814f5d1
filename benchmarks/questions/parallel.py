"""What the factors of all steps at once take: `Parallel` against `Fused`, both passes."""

import dataclasses

from benchmarks.questions import cells, layers
from benchmarks.questions.gradients import compared
from benchmarks.reports import Point, Report
from benchmarks.timing import Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]

CELLS = (
    "MinGRUCell",
    "MinLSTMCell",
    "RGLRUCell",
    "LRUCell",
    "S5Cell",
)
MEMORIES = "MLSTMCell", "Mamba2Cell", "GatedDeltaNetCell"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell, shape and pass is a point."""

    cells: tuple[str, ...] = CELLS
    shapes: tuple[tuple[int, int, int], ...] = ((32, 1, 1024), (64, 4, 1024), (128, 1, 4096))
    memories: tuple[str, ...] = MEMORIES
    memory_shapes: tuple[tuple[int, int, int], ...] = ((64, 1, 256), (64, 8, 256))


QUICK = Settings(("MinGRUCell",), ((8, 2, 20),), ("Mamba2Cell",), ((8, 2, 20),))


def question(settings: Settings) -> Question:
    """What is asked, and of which methods."""
    points = [
        Point(
            f"{cell}, ({hidden_size}, {batch_size}, {time}), {name}",
            {
                "cell": cell,
                "hidden_size": hidden_size,
                "batch_size": batch_size,
                "time": time,
                "backward": backward,
            },
        )
        for group, shapes in (
            (settings.cells, settings.shapes),
            (settings.memories, settings.memory_shapes),
        )
        for hidden_size, batch_size, time in shapes
        for cell in group
        for name, backward in (("forward", False), ("gradient", True))
    ]
    return compared(
        "parallel",
        "The outputs of a layer at several (H, batch, steps), or the gradients of all parameters "
        "and of the inputs; a repetition is as many calls as take 0.1 s.",
        {f"{name}()": cells.layer(name) for name in ("Fused", "Parallel", "Auto")},
        points,
    )


def tables(report: Report) -> str:
    """A row a cell, shape and pass."""
    header = ["cell, (H, batch, steps)"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
