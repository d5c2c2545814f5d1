"""Which form of the recurrent products is fastest for which size of kernel and number of rows."""

import dataclasses
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import compared
from benchmarks.questions.loops import planned
from benchmarks.reports import Point, Report
from benchmarks.timing import Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every (H, batch, steps) is a point."""

    shapes: tuple[tuple[int, int, int], ...] = (
        (256, 16, 100),
        (512, 16, 100),
        (512, 128, 20),
        (700, 1, 100),
        (700, 12, 100),
        (700, 64, 20),
        (1024, 16, 20),
        (1024, 64, 20),
    )


QUICK = Settings(((8, 2, 5),))


def _form(part: str, name: str) -> Any:
    """A change of a plan: another form of one of its products."""

    def change(plan: Any) -> Any:
        from rnnjax.engine.fused import matmul

        form = getattr(matmul, part.capitalize())[name]
        return dataclasses.replace(
            plan, products=dataclasses.replace(plan.products, **{part: form})
        )

    return change


def question(settings: Settings) -> Question:
    """What is asked, and of which forms."""
    points = [
        Point(
            f"({hidden_size}, {batch_size}, {time})",
            {
                "cell": "LSTMCell",
                "hidden_size": hidden_size,
                "batch_size": batch_size,
                "time": time,
            },
        )
        for hidden_size, batch_size, time in settings.shapes
    ]
    forms = {
        f"{part}, {name.lower().replace('_', ' ')}": planned(_form(part, name))
        for part, names in (
            ("forward", ("ROWS", "ROWS_TRANSPOSED", "FEATURES_FIRST")),
            ("backward", ("COPY", "DIRECT", "KERNEL_FIRST")),
        )
        for name in names
    }
    text = "The gradient of an LSTM at several (H, batch, steps), one product in another form."
    return compared("products", text, {"as it runs": planned(lambda plan: plan), **forms}, points)


def tables(report: Report) -> str:
    """A row a shape."""
    header = ["(H, batch, steps)"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
