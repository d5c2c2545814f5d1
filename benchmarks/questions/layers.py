"""A single layer at many shapes: SimpleRNN, LSTM and GRU, forward and with gradients."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import plots
from benchmarks.questions import layer_peers
from benchmarks.questions.jax_layers import Shape
from benchmarks.reports import Point, Report, markdown, percent, short
from benchmarks.timing import Question

CELLS = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
PASSES = {"forward": "forward", "backward": "forward + backward"}
SIZES = {"hidden_size": "units", "batch_size": "rows", "time": "steps", "features": "inputs"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell, pass and shape is a point."""

    cells: tuple[str, ...] = tuple(CELLS)
    passes: tuple[str, ...] = tuple(PASSES)
    shapes: tuple[tuple[int, ...], ...] = (
        (32, 1),
        (50, 1),
        (64, 16),
        (128, 16),
        (128, 128),
        (256, 1),
        (256, 32),
        (512, 16),
        (512, 128),
        (700, 12),
        (1024, 32),
    )
    """Units and rows. Steps and inputs may follow: else `time`, and as many inputs as units."""
    time: int = 100


QUICK = Settings(cells=("lstm",), shapes=((8, 3), (16, 2)), time=10)


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        layer_peers.point(
            f"{CELLS[cell]}, {PASSES[name]}, {', '.join(map(str, sizes))}",
            Shape(cell, 1, *sizes),
            name == "backward",
        )
        for cell in settings.cells
        for name in settings.passes
        for sizes in full(settings)
    ]
    return asked(
        "layers",
        "A single layer at shapes of units, rows, steps and inputs; float32, the same weights and "
        "inputs for all.",
        points,
    )


def full(settings: Settings) -> list[tuple[int, ...]]:
    """Units, rows, steps and inputs of each shape."""
    return [(*given, *(settings.time, given[0])[len(given) - 2 :]) for given in settings.shapes]


def asked(name: str, title: str, points: Sequence[Point]) -> Question:
    """A question to all libraries' layers; few rounds, for there are many points.

    Hardly a call takes more than some seconds. But the time of Keras's gradients on PyTorch grows
    faster than the number of steps: 1,000 took 2 s where 2,000 took 45 s.
    """
    return Question(
        name,
        f"{title} Forward + backward gives the gradients of all parameters and of the inputs. A "
        f"repetition is as many calls as take {layer_peers.LEAST_SECONDS} s; the times are those "
        "of one call.",
        layer_peers.contenders(),
        baseline="rnnjax",
        value_name=layer_peers.VALUE_NAME,
        tolerance=layer_peers.TOLERANCE,
        relative=True,
        rounds=3,
        patience=60,
        points=points,
    )


def groups(report: Report) -> dict[tuple[str, str], list[Point]]:
    """The points of each cell and pass, in their order."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in report.points:
        one_pass = "backward" if point.settings["backward"] else "forward"
        found.setdefault((point.settings["shape"]["cell"], one_pass), []).append(point)
    return found


def tables(report: Report) -> str:
    """A table for each cell and pass, a row a shape; and one of the means over the shapes."""

    def label(point: Point) -> list[str]:
        shape = point.settings["shape"]
        return [", ".join(str(shape[size]) for size in SIZES)]

    by_group = groups(report)
    header = [", ".join(SIZES.values())]
    parts = [
        f"## {CELLS[cell]}, {PASSES[name]}\n\n{peer_table(report, points, header, label)}"
        for (cell, name), points in by_group.items()
    ]
    columns = {
        f"{CELLS[cell]}, {PASSES[name]}": points for (cell, name), points in by_group.items()
    }
    columns["all"] = report.points
    rows = [["", *columns], ["---"] * (1 + len(columns))]
    for peer in peers(report):
        rows.append([peer, *(mean_cell(report, peer, points) for points in columns.values())])
    parts.append(f"## Geometric means, in multiples of {report.baseline}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def peer_table(
    report: Report,
    points: Iterable[Point],
    header: Sequence[str],
    label: Callable[[Point], list[str]],
) -> str:
    """A row a point: the baseline's time, its share of the ceiling, and the peers' multiples."""
    ours = report.baseline
    rows = [[*header, f"{ours}, ms", "of the ceiling", *(f"x: {name}" for name in peers(report))]]
    rows.append(["---"] * len(rows[0]))
    for point in points:
        at = report.at(point)
        baseline, share = at[ours], report.share_of_ceiling(at[ours])
        measured = not baseline.problem and baseline.amounts
        rows.append(
            [
                *label(point),
                short(1000 * statistics.median(baseline.amounts)) if measured else "–",
                "–" if share is None else percent(share),
                *(mean_cell(report, name, [point]) for name in peers(report)),
            ]
        )
    return markdown(rows)


def peers(report: Report) -> list[str]:
    """All contenders but the baseline."""
    names = dict.fromkeys(result.name for result in report.results)
    return [name for name in names if name != report.baseline]


def mean_cell(report: Report, peer: str, points: Iterable[Point]) -> str:
    """The geometric mean over the points of the median ratios, and at how many there is none."""
    ratios = [report.ratios(report.at(point)[peer]) for point in points]
    medians = [statistics.median(some) for some in ratios if some]
    if not medians:
        return "–"
    without = len(ratios) - len(medians)
    return short(statistics.geometric_mean(medians)) + (f" (without {without})" if without else "")


def remarks(report: Report) -> list[str]:
    """Who was not measured where, each reason once."""
    places: dict[tuple[str, str], list[str]] = {}
    for result in report.results:
        if result.problem:
            places.setdefault((result.name, result.problem), []).append(result.point)
    return [
        f"{name}: {problem} ({where(points, report)})."
        for (name, problem), points in places.items()
    ]


def where(points: Sequence[str], report: Report) -> str:
    """The points by name, or that it is all of them."""
    return "everywhere" if len(points) == len(report.points) else "; ".join(points)


def plot(report: Report) -> Any:
    """A panel for each cell and pass: the peers' multiples over the shapes."""
    by_group = groups(report)
    cells = list(dict.fromkeys(cell for cell, _ in by_group))
    passes = list(dict.fromkeys(name for _, name in by_group))
    figure, panels = plots.panels(len(passes), len(cells))
    for row, name in enumerate(passes):
        for column, cell in enumerate(cells):
            axes, points = panels[row][column], by_group[cell, name]
            shapes = [point.settings["shape"] for point in points]
            labels = [", ".join(str(shape[size]) for size in SIZES) for shape in shapes]
            ratios = {
                peer: [report.ratios(report.at(point)[peer]) for point in points]
                for peer in peers(report)
            }
            plots.curves(axes, range(len(points)), ratios)
            axes.axhline(1, color="black", linewidth=1)
            plots.logarithmic(axes.yaxis)
            axes.set_xticks(range(len(points)), labels, rotation=60, fontsize="small")
            axes.set_title(f"{CELLS[cell]}, {PASSES[name]}")
            if row == len(passes) - 1:
                axes.set_xlabel(", ".join(SIZES.values()))
            if column == 0:
                axes.set_ylabel(f"time / {report.baseline}'s")
    plots.legend(figure)
    return plots.finish(figure, report, f"A layer's time in multiples of {report.baseline}'s")
