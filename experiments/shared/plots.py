"""The pictures that the programs draw; each is one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _figure(
    rows: int, columns: int, size: tuple[float, float], **each: Any
) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, subplot_kw=each
    )
    return plt, figure, axes


def _save(plt: Any, figure: Any, path: Path) -> None:
    # With the names in its legends, so that a test can hold a card to the picture beside it.
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    names = [text.get_text() for legend in legends for text in legend.get_texts()]
    figure.savefig(path, dpi=120, metadata={"Legend": "\n".join(names)})
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
    plt, figure, axes = _figure(1, 1, (7, 4))
    for name, values in lines.items():
        axes[0, 0].plot(range(len(values)) if xs is None else xs, values, label=name)
    axes[0, 0].set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
    axes[0, 0].grid(alpha=0.3)
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(lines) > 5 else {}
    axes[0, 0].legend(**beside)
    _save(plt, figure, path)


def forecasts(
    path: Path, panels: Mapping[str, tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]]
) -> None:
    """Series, each with its unit and lines by name, ``(times, values)``; the first is measured.

    Values ``(n, 3)`` are the lower border of a band, the line within, and the upper border. A line
    is broken at a value that is NaN.
    """
    plt, figure, axes = _figure(len(panels), 1, (8, 2.6 * len(panels)))
    for ax, (name, (unit, lines)) in zip(axes[:, 0], panels.items(), strict=True):
        for index, (label, (times, values)) in enumerate(lines.items()):
            color = f"C{index - 1}" if index else "black"
            line = values[:, 1] if values.ndim == 2 else values
            if values.ndim == 2:
                ax.fill_between(times, values[:, 0], values[:, 2], color=color, alpha=0.25,
                                linewidth=0)  # fmt: skip
                if len(line) < 2:
                    ax.vlines(times, values[:, 0], values[:, 2], color=color, alpha=0.5)
            ax.plot(times, line, color=color, linewidth=0.9, marker="." if len(line) < 2 else "",
                    label=label)  # fmt: skip
        ax.set(title=name, ylabel=unit)
        ax.legend(fontsize="small")
    _save(plt, figure, path)


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
    size = lines.shape[-1]
    plt, figure, axes = _figure(1, 1, (6.4, 5.6), **({"projection": "3d"} if size == 3 else {}))
    for k, line in enumerate(lines.swapaxes(0, 1)):
        colour = "grey" if shades is None else plt.get_cmap("coolwarm")((1 + shades[k]) / 2)
        axes[0, 0].plot(*line.T, color=colour, linewidth=0.8, zorder=1)
    for (name, each), colour in zip(points.items(), ("black", "white", *points), strict=False):
        colours = {} if shades is None else {"color": colour, "edgecolors": "black"}
        axes[0, 0].scatter(*each.T, s=40, label=f"{len(each)} {name}", **colours)
    labels = {f"{axis}label": f"component {k + 1}" for k, axis in enumerate("xyz"[:size])}
    axes[0, 0].set(title=title, **labels)
    axes[0, 0].legend(loc="upper left")
    _save(plt, figure, path)


def images(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """A grid of images, a row with a name each: ``name -> (n, height, width)``, from 0 to 1."""
    count = max(len(each) for each in rows.values())
    plt, figure, axes = _figure(len(rows), count, (1 + 0.6 * count, 0.75 * len(rows)))
    for line, (name, each) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, image in zip(line, each, strict=False):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_title(name, fontsize="small", loc="left")
    _save(plt, figure, path)


def matrix(
    path: Path,
    values: np.ndarray,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    x: str = "",
    y: str = "",
    log: bool = False,
) -> None:
    """A heat map: attention, the size of gradients, the keys of a piano."""
    plt, figure, axes = _figure(1, 1, (7, 5))
    ax = axes[0, 0]
    norm = None
    if log:
        from matplotlib.colors import LogNorm

        norm = LogNorm()
    shown = ax.imshow(values, aspect="auto", norm=norm, cmap="viridis" if log else "gray_r")
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    ax.set(xlabel=x, ylabel=y)
    if log:
        figure.colorbar(shown)
    _save(plt, figure, path)
