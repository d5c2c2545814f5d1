"""Draws the pictures of the pages: ``python docs/draw.py [FOLDER]``, by default docs/pictures.

``python docs/draw.py RUN/points.png docs/programs/spirals.png`` copies what a program has
drawn, with a palette of 64 colours: a third of the bytes.
"""

import ast
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, PngImagePlugin

import rnnjax

BLUE, RED = "#1f5fbf", "#c03030"
STEPS = 100
PIXELS = 840  # of the width of a page


def canvas(width: float, height: float) -> Any:
    """An empty picture, in which a unit is a third of an inch."""
    figure, ax = plt.subplots(figsize=(width / 1.8, height / 1.8))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return ax


def line(ax: Any, *points: tuple[float, float], head: bool = True, color: str = "black") -> None:
    """A line through points, with an arrow's head at the last."""
    xs, ys = zip(*points, strict=True)
    ax.plot(xs[:-1] if head else xs, ys[:-1] if head else ys, color=color, lw=1.3)
    if head:
        style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", points[-1], points[-2], arrowprops=style)


def box(ax: Any, x: float, y: float, text: str, color: str = BLUE, size: float = 0.42) -> None:
    """A function of a sum: a gate."""
    ax.add_patch(mpl.patches.Rectangle((x - size, y - size), 2 * size, 2 * size, fc="white",
                                       ec=color, lw=1.5, zorder=3))  # fmt: skip
    ax.text(x, y, text, ha="center", va="center", zorder=4, fontsize=12)


def dot(ax: Any, x: float, y: float, text: str) -> None:
    """A sum or a product, unit by unit."""
    ax.add_patch(mpl.patches.Circle((x, y), 0.27, fc="white", ec="black", lw=1.3, zorder=3))
    ax.text(x, y, text, ha="center", va="center", zorder=4, fontsize=12)


def label(ax: Any, x: float, y: float, text: str, color: str = "black", **more: Any) -> None:
    """Words."""
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 12, "color": color, **more})


def bus(ax: Any, gates: Sequence[float], height: float, start: float = 0.7) -> None:
    """The input and the last output, side by side, to every gate."""
    label(ax, 0.35, 0.8, "h, x")
    line(ax, (start, 0.8), (gates[-1], 0.8), head=False)
    for x in gates:
        line(ax, (x, 0.8), (x, height - 0.42))


def simple_unit() -> Any:
    """H' = tanh(x W + h U + b)."""
    ax = canvas(6, 2.6)
    bus(ax, [2.5], 1.8)
    box(ax, 2.5, 1.8, "tanh", RED)
    line(ax, (2.92, 1.8), (5.3, 1.8))
    label(ax, 5.55, 1.8, "h'")
    return ax


def lstm_unit() -> Any:
    """The line of the cell above, the gates below it."""
    ax = canvas(10, 5.8)
    bus(ax, [2, 3.6, 5.2, 6.8], 2)
    line(ax, (0.7, 5), (9.4, 5))
    label(ax, 0.35, 5, "c")
    label(ax, 9.65, 5, "c'")
    for x, gate in ((2, "f"), (3.6, "i"), (5.2, "g"), (6.8, "o")):
        box(ax, x, 2, gate, RED if gate == "g" else BLUE)
    line(ax, (2, 2.42), (2, 4.73))
    line(ax, (3.6, 2.42), (3.6, 3.5), (4.13, 3.5))
    line(ax, (5.2, 2.42), (5.2, 3.5), (4.67, 3.5))
    line(ax, (4.4, 3.77), (4.4, 4.73))
    line(ax, (8.2, 5), (8.2, 3.07))
    box(ax, 8.2, 4.0, "tanh", RED)
    line(ax, (6.8, 2.42), (6.8, 2.8), (7.93, 2.8))
    line(ax, (8.2, 2.53), (8.2, 0.8), (9.4, 0.8))
    label(ax, 9.65, 0.8, "h'")
    for x, y, sign in ((2, 5, "×"), (4.4, 5, "+"), (4.4, 3.5, "×"), (8.2, 2.8, "×")):
        dot(ax, x, y, sign)
    for x, y, step in ((1.55, 4, "1"), (3.2, 3.1, "2"), (4.85, 4.35, "3"), (8.75, 1.6, "4")):
        label(ax, x, y, step, RED, weight="bold")
    return ax


def gru_unit() -> Any:
    """The line of the state above, its gates below it."""
    ax = canvas(9, 5.8)
    bus(ax, [2, 4.5, 7], 2)
    line(ax, (0.7, 5), (8.4, 5))
    label(ax, 0.35, 5, "h")
    label(ax, 8.65, 5, "h'")
    for x, gate in ((2, "r"), (4.5, "z"), (7, "n")):
        box(ax, x, 2, gate, RED if gate == "n" else BLUE)
    line(ax, (2, 2.42), (2, 3), (5.9, 3), (5.9, 2), (6.58, 2))
    line(ax, (4.5, 2.42), (4.5, 4.73))
    line(ax, (4.5, 3.8), (6.73, 3.8))
    label(ax, 5.7, 4.05, "1 - z", fontsize=10)
    line(ax, (7, 2.42), (7, 3.53))
    line(ax, (7, 4.07), (7, 4.73))
    for x, y, sign in ((4.5, 5, "×"), (7, 3.8, "×"), (7, 5, "+")):
        dot(ax, x, y, sign)
    return ax


def bptt() -> Any:
    """Two rows of eight steps with losses: the gradient of all, and that of windows of four."""
    ax = canvas(13, 7)
    for row, (bottom, window, title) in enumerate(
        ((4.2, 8, "backpropagation through time"), (0.6, 4, "truncated: windows of four steps"))
    ):
        label(ax, 0.3, bottom + 2.3, title, ha="left", weight="bold")
        for t in range(8):
            x = 1.1 + 1.5 * t
            box(ax, x, bottom + 1, f"$h_{t + 1}$", size=0.38)
            line(ax, (x, bottom), (x, bottom + 0.62))
            if t < 7:
                line(ax, (x + 0.38, bottom + 1.12), (x + 1.12, bottom + 1.12))
            if t < 7 and (t + 1) % window:
                line(ax, (x + 1.12, bottom + 0.86), (x + 0.38, bottom + 0.86), color=RED)
            line(ax, (x, bottom + 1.95), (x, bottom + 1.38), color=RED)
            label(ax, x + 0.3, bottom + 1.85, f"$L_{t + 1}$", RED)
        if row:
            ax.plot([6.35, 6.35], [bottom, bottom + 2], color="gray", ls="--", lw=1.3)
    return ax


def state() -> Any:
    """Draw two calls with the carry between them, and one call with a reset."""
    ax = canvas(13, 5.6)
    titles = (3, "two calls: the carry continues"), (0.1, "one call: a sequence begins with step 5")
    for bottom, title in titles:
        label(ax, 0.3, bottom + 2.1, title, ha="left", weight="bold")
        for t in range(8):
            x = 1.1 + 1.5 * t
            box(ax, x, bottom + 1, f"$h_{t + 1}$", size=0.38)
            line(ax, (x, bottom), (x, bottom + 0.62))
            if t < 7 and not (t == 3 and bottom < 1):
                color = RED if t == 3 else "black"
                line(ax, (x + 0.38, bottom + 1), (x + 1.12, bottom + 1), color=color)
    ax.plot([6.35, 6.35], [3, 4.7], color="gray", ls="--", lw=1.3)
    label(ax, 6.35, 1.1, "0", RED)
    line(ax, (6.45, 1.1), (6.72, 1.1), color=RED)
    return ax


def chain(ax: Any, left: float, height: float, words: Sequence[str], below: bool) -> list[float]:
    """Steps of a network side by side, each with its word; where each box stands."""
    places = [left + 1.7 * t for t in range(len(words))]
    for x, word in zip(places, words, strict=True):
        box(ax, x, height, "$h$", size=0.38)
        side = -1 if below else 1
        ends = (x, height + 1.1 * side), (x, height + 0.4 * side)
        line(ax, *(ends if below else ends[::-1]))
        label(ax, x, height + 1.4 * side, word)
    for x in places[:-1]:
        line(ax, (x + 0.38, height + 0.12), (x + 1.32, height + 0.12))
    return places


def translation() -> Any:
    """Words are read in both directions, and written with a look back at all of them."""
    ax = canvas(11.9, 6.9)
    read = chain(ax, 2.6, 2.2, ["ein", "brauner", "hund", "rennt", "."], below=True)
    written = chain(ax, 4.3, 5.2, ["a", "brown", "dog", "runs", "."], below=False)
    label(ax, 0.1, 2.2, "reads", ha="left", weight="bold")
    label(ax, 0.1, 5.2, "writes", ha="left", weight="bold")
    for x in read[:-1]:
        line(ax, (x + 1.32, 2.08), (x + 0.38, 2.08))
    for to in written:
        for x in read:  # attention
            ax.plot([x, to], [2.6, 4.8], color=RED, lw=0.8, alpha=0.5)
    # The last states of both directions begin what is written.
    line(ax, (read[-1] + 0.38, 2.2), (10, 2.2), (10, 0.3), (1.6, 0.3), (1.6, 2.2), head=False)
    line(ax, (read[0] - 0.38, 2.2), (1.6, 2.2), (1.6, 5.2), (3.92, 5.2))
    return ax


def rows_of_digits() -> Any:
    """An image as 28 steps, and in a quarter of the size as 196: the last state names the digit."""
    ax = canvas(11.9, 6.2)
    for height, title, words in (
        (4.9, "by rows", ["row 1", "row 2", "row 3", "...", "row 28"]),
        (1.7, "by pixels", ["pixel 1", "pixel 2", "pixel 3", "...", "pixel 196"]),
    ):
        label(ax, 0.1, height, title, ha="left", weight="bold")
        last = chain(ax, 2.6, height, words, below=True)[-1]
        line(ax, (last + 0.38, height), (last + 1.2, height))
        label(ax, last + 1.5, height, "7")
    return ax


def reach() -> Any:
    """The gradient of the last state by the state of each step before, of networks as drawn."""
    cells = {
        "SimpleRNN": rnnjax.SimpleRNNCell(32),
        "SimpleRNN, recurrent weights x 3": rnnjax.SimpleRNNCell(32),
        "GRU": rnnjax.GRUCell(32),
        "LSTM": rnnjax.LSTMCell(32),
        "LSTM, forget bias 5": rnnjax.LSTMCell(32),
    }
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for name, cell in cells.items():
        back = norms(cell, name)
        ax.plot(np.arange(STEPS)[::-1], back / back[-1], label=name)
    ax.set(yscale="log", xlabel="steps back from the loss", ylabel="size of the gradient")
    ax.legend(fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    del figure
    return ax


def norms(cell: rnnjax.Cell, name: str) -> np.ndarray:
    """The norm of the gradient by the states, of each step ``(time,)``."""
    params = dict(cell.init(jax.random.key(0), 8))
    if "x 3" in name:
        params["recurrent_kernel"] = 3 * params["recurrent_kernel"]
    if "bias 5" in name:
        params["bias"] = params["bias"].at[32:64].set(5.0)
    xs = jax.random.normal(jax.random.key(1), (STEPS, 16, 8))
    weights = jax.random.normal(jax.random.key(2), (16, 32))

    def loss(_: Any, ys: jax.Array) -> jax.Array:
        return jnp.sum(ys[-1] * weights)

    _, gradients = rnnjax.state_gradients(loss, cell, params, xs)
    # In float64: squares of what is left of a GRU's after 90 steps are none in float32.
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
    return np.sqrt(np.sum([np.sum(leaf**2, axis=(1, 2)) for leaf in leaves], axis=0))


def held() -> Any:
    """What language models hold of the tokens before them, in MiB, by the sizes of public ones."""
    numbers = {  # layers x (states and window of each channel), in float32
        "Mamba 2.8B": 64 * 5120 * (16 + 3),
        "Falcon-Mamba 7B": 64 * 8192 * (16 + 3),
        "Mamba-2 2.7B": 64 * (80 * 64 * 128 + 3 * (5120 + 2 * 128)),
    }
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    tokens = np.geomspace(100, 1e5, 50)
    for name, size in numbers.items():
        ax.plot(tokens, np.full_like(tokens, 4 * size / 2**20), label=name)
    keys_and_values = 32 * 2 * 2560 * 2 / 2**20  # of a token, in bfloat16
    ax.plot(tokens, tokens * keys_and_values, color="black", label="Pythia 2.8B, a transformer")
    ax.set(xscale="log", yscale="log", xlabel="tokens read", ylabel="MiB")
    ax.legend(fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    del figure
    return ax


ENGINE = ["engine", *(f"engine.{room}" for room in ("core", "fused", "parallel"))]
ROOMS = ["errors", "checks", "meshes", "cells", "packing", "text", *ENGINE, "layers", "flax_cells"]
ROOMS += ["linen", "nnx", "online", "training", "testing", "interop"]


def room_of(name: str) -> str | None:
    """Return the room of a module, or of a name in one."""
    found = [room for room in ROOMS if f"{name}.".startswith(f"rnnjax.{room}.")]
    return max(found, key=len, default=None)


def rooms_imported() -> dict[str, set[str]]:
    """Return for each room of the library the rooms that its modules import."""
    package = Path(rnnjax.__file__).parent
    imports: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in package.rglob("*.py"):
        room = room_of(".".join(path.relative_to(package.parent).with_suffix("").parts))
        for node in ast.parse(path.read_text(encoding="utf-8")).body if room else ():
            if isinstance(node, ast.ImportFrom):
                others = {room_of(f"{node.module}.{alias.name}") for alias in node.names}
                imports[room].update(others - {room, None})
    return imports


def house() -> Any:
    """Draw the rooms, each above those that it imports; of a chain of imports, its links alone."""
    imports = rooms_imported()

    @functools.cache
    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in imports[room]))

    @functools.cache
    def floor(room: str) -> int:
        return max((1 + floor(other) for other in imports[room]), default=0)

    floors = 1 + max(map(floor, ROOMS))
    ax, places = canvas(15, 1.7 * floors - 0.1), {}
    for height in range(floors):
        level = [room for room in ROOMS if floor(room) == height]
        for i, room in enumerate(level):
            places[room] = 15 * (i + 0.5) / len(level), 0.75 + 1.7 * height
    for room, (x, y) in places.items():
        for other in sorted(imports[room] - set().union(*map(below, imports[room]))):
            line(ax, (x, y - 0.4), (places[other][0], places[other][1] + 0.4), color="gray")
        style = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": BLUE, "lw": 1.5}
        label(ax, x, y, room, zorder=4, bbox=style)
    return ax


LETTERS, EXTENT = "abcdefghijklmnopqrstuvwxyz", (28, 13.6)
# By the `quality` model of docs/learn/text-generator.md, with the command that stands there.
WRITTEN = (
    "Now, sir, resolve you to the world, that storms",
    "As thou wert very thus shall live to hear",
)


def front() -> Any:
    """Draw what the library is for: state, mask and reset; the time of a gradient; a text."""
    figure, ax = plt.subplots(figsize=(14, 6.8), facecolor="white")
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, EXTENT[0]), ylim=(0, EXTENT[1]))
    ax.axis("off")
    label(ax, 0.5, 12.8, "a state goes from step to step", ha="left", weight="bold", fontsize=29)
    carried_states(ax)
    label(ax, 18.1, 12.8, "time of a gradient", ha="left", weight="bold", fontsize=29)
    label(ax, 18.1, 11.65, "LSTM, on a CPU", "gray", ha="left", fontsize=27)
    gradient_times(ax)
    for row, text in enumerate(WRITTEN):
        style = {"family": "serif", "style": "italic", "fontsize": 31}
        marked = f"  {text}”" if row else f"“{text}"
        label(ax, 0.5, 2 - 1.25 * row, marked, ha="left", **style)
    label(ax, 27.6, 0.75, "written by an LSTM", "gray", ha="right", fontsize=27)
    return ax


def carried_states(ax: Any) -> None:
    """Two rows of a batch: one with a reset after four steps, one that ends after five."""
    cell, texts = rnnjax.GRUCell(4), ("rainfall", "birds")
    ids = np.array([[LETTERS.index(c) for c in text.ljust(8, "a")] for text in texts]).T
    resets = np.zeros(ids.shape, bool)
    resets[4, 0] = True
    params = cell.init(jax.random.key(3), len(LETTERS))
    xs = rnnjax.OneHot(jnp.asarray(ids), len(LETTERS))
    known = {"resets": resets, "lengths": np.array([8, 5]), "masked_outputs": "last"}
    states = np.asarray(rnnjax.unroll(cell, params, xs, **known)[1])
    colours = mpl.colors.LinearSegmentedColormap.from_list("state", [BLUE, "white", RED])
    for row, text in enumerate(texts):
        bottom = 9.1 - 4.9 * row
        for t in range(8):
            x, held = 0.5 + 2.1 * t, t >= len(text)
            for unit, value in enumerate(states[t, row]):
                corner, colour = (x, bottom + 0.5 * unit), colours(0.5 + 0.8 * value)
                ax.add_patch(mpl.patches.Rectangle(corner, 1.2, 0.5, fc=colour, ec="black", lw=1.5,
                             alpha=0.35 if held else 1))  # fmt: skip
            label(ax, x + 0.6, bottom - 0.75, "·" if held else text[t], fontsize=30)
            if t < 7 and not resets[t + 1, row]:
                style = {"arrowstyle": "-|>", "lw": 2.5, "mutation_scale": 24, "color": "black"}
                ax.annotate("", (x + 2.1, bottom + 1), (x + 1.2, bottom + 1), arrowprops=style | {
                    "alpha": 0.35 if held or t + 1 == len(text) else 1, "shrinkA": 0,
                    "shrinkB": 0})  # fmt: skip
    ax.plot([8.45, 8.45], [8, 11.4], color=RED, lw=4, ls="--")
    label(ax, 8.75, 11.7, "reset", RED, ha="left", fontsize=28)
    label(ax, 16.8, 6.8, "mask: the state is held", "gray", ha="right", fontsize=28)


def gradient_times(ax: Any) -> None:
    """The mean of an LSTM's gradient in docs/benchmarks.md, in multiples of rnnjax's time."""
    table = (Path(__file__).parent / "benchmarks.md").read_text(encoding="utf-8")
    (heads,) = (line for line in table.splitlines() if line.startswith("| H, batch | ms | of the"))
    (means,) = (line for line in table.splitlines() if line.startswith("| LSTM, mean |"))
    times = {"rnnjax": 1.0}
    for name, mean in list(zip(heads.split("|"), means.split("|"), strict=True))[6:-1]:
        times[name.strip()] = float(mean.split("/")[1])
    for place, (name, time) in enumerate(sorted(times.items(), key=lambda each: each[1])):
        y = 10.4 - 1.15 * place
        colour = BLUE if name == "rnnjax" else "#b0b0b0"
        ax.add_patch(mpl.patches.Rectangle((23, y - 0.4), 0.5 * time, 0.8, fc=colour))
        label(ax, 22.7, y, name, ha="right", fontsize=27)
        label(ax, 23.2 + 0.5 * time, y, f"{time:.2f}", ha="left", fontsize=27)


PICTURES = {
    "front": front,
    "house": house,
    "unit-simple": simple_unit,
    "unit-lstm": lstm_unit,
    "unit-gru": gru_unit,
    "state": state,
    "bptt": bptt,
    "reach": reach,
    "held": held,
    "rows": rows_of_digits,
    "translation": translation,
}


def main(folder: Path) -> None:
    """Draw them all, the same bytes each time."""
    folder.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw().figure
        # The first pictures are shown where fonts and backgrounds are others: they bring their own.
        own = "path" if name == "front" else "none"
        with mpl.rc_context({"svg.fonttype": own, "svg.hashsalt": "rnnjax"}):
            figure.savefig(
                folder / f"{name}.svg", transparent=name != "front", metadata={"Date": None}
            )
        plt.close(figure)


def copy(drawn: str, target: str) -> None:
    """Save a program's picture in the most unlike of its colours, at most as wide as a page."""
    with Image.open(drawn) as file:
        picture, legend = file.convert("RGB"), PngImagePlugin.PngInfo()
        legend.add_text("Legend", file.info.get("Legend", ""))
    picture.thumbnail((PIXELS, 2 * PIXELS))
    colours, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    picture.quantize(64, colours, dither=plain).save(target, optimize=True, pnginfo=legend)


if __name__ == "__main__":
    mpl.use("svg")
    if len(sys.argv) == 3:
        copy(*sys.argv[1:])
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
