"""The pictures that the programs draw; each is one file."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def drawn(
    path: Path, rows: int, columns: int, size: tuple[float, float], **each: Any
) -> Iterator[Any]:
    """The axes ``(rows, columns)`` of a figure, which is a file afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, subplot_kw=each
    )
    yield axes
    # With the names in its legends, so that a test can hold a card to the picture beside it.
    legends = [legend for ax in figure.axes if (legend := ax.get_legend())]
    names = [text.get_text() for legend in legends for text in legend.get_texts()]
    new = path.with_suffix(".new.png")  # in one move: whoever watches never finds half a picture
    figure.savefig(new, dpi=120, metadata={"Legend": "\n".join(names)})
    new.replace(path)
    plt.close(figure)


def curves(
    path: Path,
    lines: Mapping[str, Sequence[float]],
    *,
    x: str,
    y: str,
    xs: Sequence[float] | None = None,
    log: bool = False,
) -> None:
    """Lines with a legend, beside them where there are many."""
    with drawn(path, 1, 1, (7, 4)) as axes:
        for name, values in lines.items():
            axes[0, 0].plot(range(len(values)) if xs is None else xs, values, label=name)
        axes[0, 0].set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        axes[0, 0].grid(alpha=0.3)
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(lines) > 5 else {}
        axes[0, 0].legend(**beside)


def forecasts(
    path: Path, panels: Mapping[str, tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]]
) -> None:
    """Series, each with its unit and lines by name, ``(times, values)``; the first is measured.

    Values ``(n, 3)`` are the lower border of a band, the line within, and the upper border. A line
    is broken at a value that is NaN.
    """
    with drawn(path, len(panels), 1, (8, 2.6 * len(panels))) as axes:
        for ax, (name, (unit, lines)) in zip(axes[:, 0], panels.items(), strict=True):
            for index, (label, (times, values)) in enumerate(lines.items()):
                color = f"C{index - 1}" if index else "black"
                line = values[:, 1] if values.ndim == 2 else values
                if values.ndim == 2:
                    ax.fill_between(times, values[:, 0], values[:, 2], color=color, alpha=0.25,
                                    linewidth=0)  # fmt: skip
                    if len(line) < 2:
                        ax.vlines(times, values[:, 0], values[:, 2], color=color, alpha=0.5)
                marker = "." if len(line) < 2 else ""
                ax.plot(times, line, color=color, linewidth=0.9, marker=marker, label=label)
            ax.set(title=name, ylabel=unit)
            ax.legend(fontsize="small")


def space(
    path: Path,
    points: Mapping[str, np.ndarray],
    lines: np.ndarray,
    shades: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Points ``(n, 2 or 3)`` by name, and lines between them, ``(time, lines, 2 or 3)``.

    ``shades (lines,)`` are from -1, blue, to 1, red, beside which the points are black and white;
    without them lines are grey.
    """
    from matplotlib import colormaps

    size = lines.shape[-1]
    with drawn(path, 1, 1, (6.4, 5.6), **({"projection": "3d"} if size == 3 else {})) as axes:
        for k, line in enumerate(lines.swapaxes(0, 1)):
            colour = "grey" if shades is None else colormaps["coolwarm"]((1 + shades[k]) / 2)
            axes[0, 0].plot(*line.T, color=colour, linewidth=0.8, zorder=1)
        for (name, each), colour in zip(points.items(), ("black", "white", *points), strict=False):
            colours = {} if shades is None else {"color": colour, "edgecolors": "black"}
            axes[0, 0].scatter(*each.T, s=40, label=f"{len(each)} {name}", **colours)
        labels = {f"{axis}label": f"component {k + 1}" for k, axis in enumerate("xyz"[:size])}
        axes[0, 0].set(title=title, **labels)
        axes[0, 0].legend(loc="upper left")


def images(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """A grid of images, a row with a name each: ``name -> (n, height, width)``, from 0 to 1."""
    count = max(len(each) for each in rows.values())
    with drawn(path, len(rows), count, (1 + 0.6 * count, 0.75 * len(rows))) as axes:
        for line, (name, each) in zip(axes, rows.items(), strict=True):
            for ax in line:
                ax.set_axis_off()
            for ax, image in zip(line, each, strict=False):
                ax.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            line[0].set_title(name, fontsize="small", loc="left")


def matrix(
    path: Path,
    values: np.ndarray,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    x: str = "",
    y: str = "",
    bar: str = "",
    log: bool = False,
) -> None:
    """A heat map: attention, the size of gradients, the keys of a piano; ``bar`` says of what."""
    with drawn(path, 1, 1, (7, 5)) as axes:
        ax = axes[0, 0]
        scale, colours = ("log", "viridis") if log else (None, "gray_r")
        shown = ax.imshow(values, aspect="auto", norm=scale, cmap=colours)
        if rows is not None:
            ax.set_yticks(range(len(rows)), rows)
        if columns is not None:
            ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        ax.set(xlabel=x, ylabel=y)
        if bar:
            ax.figure.colorbar(shown, label=bar)
