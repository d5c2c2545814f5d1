"""What the terminal and the run folder show of a training run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.text_generator.data import Data
from rnnjax.training import Records, Reporter, TrainState

Write = Callable[[TrainState, int], str]
"""``(state, epoch) -> text``: a sample of what the model writes after an epoch."""


class Progress(Reporter):
    """A bar over the run's steps; after each epoch a line, a sample and the plot of the loss."""

    def __init__(self, data: Data, run_dir: Path, steps: int, done: int, write: Write | None):
        self.data = data
        self.run_dir = run_dir
        self.write = write
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def on_dispatch(self, step: int, losses: np.ndarray) -> None:
        """Move the bar."""
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}")

    def on_epoch(self, epoch: int, state: TrainState, summary: Mapping[str, float]) -> None:
        """Print the epoch's means and a sample, and draw the plot again."""
        share = self.data.characters_per_epoch / self.data.steps_per_epoch
        self.bar.write(
            f"epoch {epoch}: loss {summary['loss']:.4f} nats, "
            f"{summary['loss'] / math.log(2):.3f} bits per character, "
            f"{summary['steps_per_second'] * share:,.0f} characters per second"
        )
        if self.write is not None:
            text = self.write(state, epoch)
            self.bar.write(f"  {text!r}")
            with (self.run_dir / "samples.txt").open("a", encoding="utf-8") as file:
                file.write(f"epoch {epoch}: {text!r}\n")
        plot_loss(self.run_dir)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def plot_loss(run_dir: Path) -> Path:
    """Draw the loss of every step and the mean of every epoch from a run's records."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = Records(run_dir / "steps.jsonl").read()
    epochs = Records(run_dir / "epochs.jsonl").read()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        [entry["step"] for entry in steps],
        [entry["loss"] for entry in steps],
        color="tab:blue", alpha=0.35, linewidth=0.8, label="each step",
    )  # fmt: skip
    axes.plot(
        [entry["step"] for entry in epochs],
        [entry["loss"] for entry in epochs],
        color="tab:blue", marker="o", markersize=3, label="mean of the epoch",
    )  # fmt: skip
    axes.set(xlabel="optimiser steps", ylabel="training loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = run_dir / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
