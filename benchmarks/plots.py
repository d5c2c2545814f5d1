"""How reports are drawn: the same colour for the same peer everywhere, and the machine below.

Matplotlib is imported inside the functions: a script runs without it, and only has no plot.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports import Report, circumstances, short

# The colours of Okabe and Ito, who chose them to be told apart by the colour-blind. The longest
# beginning of a contender's name that is listed counts.
COLOURS = {
    "rnnjax": "#0072B2",
    "rnnjax, Scan()": "#56B4E9",
    "rnnjax, bfloat16": "#000000",
    "Flax linen": "#D55E00",
    "Flax nnx": "#E69F00",
    "PyTorch": "#009E73",
    "Keras, JAX": "#CC79A7",
    "Keras, TF": "#B8A900",
    "Keras, torch": "#777777",
}
OTHERS = "#AAAAAA"
MARKERS = dict(zip(COLOURS, "osD^vPX*d", strict=True))

# An axis of ratios that spans more than this is logarithmic.
WIDE = 10.0


def bars(report: Report) -> Any:
    """The ratios to the baseline, a panel a point: medians as bars, the rounds' extent as lines."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.name for result in report.results))
    height = 1.4 + len(report.points) * (0.6 + 0.32 * len(names))
    figure = Figure(figsize=(8, height), layout="constrained")
    panels = figure.subplots(len(report.points), squeeze=False)[:, 0]
    for axes, point in zip(panels, report.points, strict=True):
        at = report.at(point)
        ratios = [report.ratios(at[name]) for name in names]
        seen = [ratio for one in ratios for ratio in one]
        if seen and max(seen) > WIDE * min(seen):
            logarithmic(axes.xaxis)
        for place, (name, one) in enumerate(zip(names, ratios, strict=True)):
            if not one:
                problem = at[name].problem.partition(":")[0] or "nothing to compare with"
                axes.annotate(
                    f" {problem}", (0, place), va="center", xycoords=("axes fraction", "data")
                )
                continue
            median = statistics.median(one)
            extent = [[median - min(one)], [max(one) - median]]
            axes.barh(place, median, xerr=extent, color=colour(name), ecolor="#333333", capsize=3)
            axes.annotate(
                f"{short(median)}",
                (max(one), place),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_title(point.name, fontsize="medium")
    panels[-1].set_xlabel(
        f"in multiples of {report.baseline}; line: smallest to largest of the rounds"
    )
    return finish(figure, report, f"{report.question.replace('_', ' ')}: the median ratios")


def panels(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure, and its panels by row and column; those of a row have the same scale."""
    from matplotlib.figure import Figure

    size = (1.5 + 4 * columns, 2 + 3 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def legend(figure: Any) -> None:
    """Name the curves once for all panels, to their right."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")


def curves(axes: Any, xs: Sequence[float], ys: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw each contender's medians over ``xs``, and the extent of its rounds as vertical lines.

    Args:
        axes: of matplotlib.
        xs: where each point stands.
        ys: by contender, the rounds' numbers at each point; none where it was not measured.
    """
    for name, rounds in ys.items():
        at = [(x, some) for x, some in zip(xs, rounds, strict=True) if some]
        if not at:
            continue
        medians = [statistics.median(some) for _, some in at]
        extents = [
            [median - min(some) for median, (_, some) in zip(medians, at, strict=True)],
            [max(some) - median for median, (_, some) in zip(medians, at, strict=True)],
        ]
        axes.errorbar(
            [x for x, _ in at],
            medians,
            extents,
            label=name,
            color=colour(name),
            marker=known(name, MARKERS, "."),
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
        )


def logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def finish(figure: Any, report: Report, title: str) -> Any:
    """Put the title above, and below it the machine and the versions."""
    figure.suptitle(title)
    figure.supxlabel(circumstances(report), fontsize=6, color="#555555", wrap=True)
    return figure


def colour(name: str) -> str:
    """The colour of a contender."""
    return known(name, COLOURS, OTHERS)


def known(name: str, by_beginning: Mapping[str, str], otherwise: str) -> str:
    """What is listed for the longest beginning of ``name``."""
    fitting = [beginning for beginning in by_beginning if name.startswith(beginning)]
    return by_beginning[max(fitting, key=len)] if fitting else otherwise


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
