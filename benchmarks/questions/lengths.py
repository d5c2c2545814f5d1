"""A single layer over sequences of many lengths: what a step costs."""

import dataclasses
import functools
import statistics
from typing import Any

from benchmarks import plots
from benchmarks.questions import layer_peers, layers
from benchmarks.questions.jax_layers import Shape
from benchmarks.questions.layers import PASSES, remarks
from benchmarks.reports import Point, Report, short
from benchmarks.timing import Question

__all__ = ["QUICK", "Settings", "plot", "question", "remarks", "tables"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell, pass and length is a point."""

    cells: tuple[str, ...] = ("lstm",)
    passes: tuple[str, ...] = tuple(PASSES)
    hidden_size: int = 128
    batch_size: int = 16
    lengths: tuple[int, ...] = (10, 100, 1000, 10_000)


QUICK = Settings(passes=("backward",), hidden_size=8, batch_size=3, lengths=(5, 10))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        layer_peers.point(
            f"{layers.CELLS[cell]}, {length} steps, {PASSES[name]}",
            Shape(cell, 1, settings.hidden_size, settings.batch_size, length),
            name == "backward",
        )
        for cell in settings.cells
        for name in settings.passes
        for length in settings.lengths
    ]
    return layers.asked(
        "lengths",
        f"A single layer over sequences of several lengths, hidden and input size "
        f"{settings.hidden_size}, batch {settings.batch_size}; float32, the same weights and "
        "inputs for all.",
        points,
    )


def tables(report: Report) -> str:
    """A table for each cell and pass, a row a length."""
    return "\n\n".join(
        f"## {layers.CELLS[cell]}, {PASSES[name]}\n\n"
        + layers.peer_table(
            report, points, ["steps", "µs a step"], functools.partial(label, report)
        )
        for (cell, name), points in layers.groups(report).items()
    )


def label(report: Report, point: Point) -> list[str]:
    """The length, and what a step of the baseline costs."""
    steps = per_step(report, report.baseline, point)
    length = f"{point.settings['shape']['time']:,}"
    return [length, short(statistics.median(steps)) if steps else "–"]


def per_step(report: Report, name: str, point: Point) -> list[float]:
    """The microseconds of a step, one a round; none where there is a problem."""
    result = report.at(point)[name]
    if result.problem:
        return []
    return [1e6 * seconds / point.settings["shape"]["time"] for seconds in result.amounts]


def plot(report: Report) -> Any:
    """A panel for each cell and pass: the time of a step over the length of the sequence."""
    by_group = layers.groups(report)
    figure, panels = plots.panels(1, len(by_group))
    for axes, ((cell, name), points) in zip(panels[0], by_group.items(), strict=True):
        lengths = [point.settings["shape"]["time"] for point in points]
        names = [report.baseline, *layers.peers(report)]
        steps = {one: [per_step(report, one, point) for point in points] for one in names}
        plots.curves(axes, lengths, steps)
        plots.logarithmic(axes.xaxis)
        plots.logarithmic(axes.yaxis)
        axes.set_title(f"{layers.CELLS[cell]}, {PASSES[name]}")
        axes.set_xlabel("steps of the sequence")
    panels[0][0].set_ylabel("time of a step, µs")
    plots.legend(figure)
    return plots.finish(figure, report, "The time of a step by the length of the sequence")
