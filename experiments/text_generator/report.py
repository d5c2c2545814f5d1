"""What the terminal and the run folder show of a training run."""

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.text_generator.config import summary_writer
from rnnjax.training import Records, Reporter, TrainState

Write = Callable[[TrainState, int], str]
"""``(state, epoch) -> text``: a sample of what the model writes after an epoch."""

# Drawing takes a third of a second, as long as a whole epoch of a small run.
_SECONDS_PER_PLOT = 10


class Progress(Reporter):
    """A bar over the run's steps, and the plot of the loss; after each epoch a line and a sample.

    Args:
        run_dir: where plot and samples go.
        characters_per_step: for the speed.
        steps: of the whole run.
        done: of these, before it goes on.
        write: writes the sample, or None.
        unit: what the text is counted in, ``character`` or ``byte``.
        tensorboard: whether to write the metrics for TensorBoard too.

    Raises:
        InvalidInputError: TensorBoard is asked for and the package that writes for it is missing.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        characters_per_step: float,
        steps: int,
        done: int,
        write: Write | None,
        unit: str = "character",
        tensorboard: bool = False,
    ):
        self.run_dir = run_dir
        self.characters_per_step = characters_per_step
        self.write = write
        self.unit = unit
        self.board = None
        if tensorboard:
            # What a run that was killed recorded behind its last checkpoint is taken back.
            self.board = summary_writer()(str(run_dir / "tensorboard"), purge_step=done + 1)
        self._drop_samples_after(done)
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)
        self.plotted = time.monotonic()

    def on_dispatch(self, step: int, losses: np.ndarray) -> None:
        """Move the bar."""
        self.bar.update(step - self.bar.n)
        shown = {"loss": f"{losses[-1]:.3f}", "bits": f"{losses[-1] / math.log(2):.3f}"}
        if rate := self.bar.format_dict["rate"]:
            shown[f"{self.unit}s/s"] = f"{rate * self.characters_per_step:,.0f}"
        self.bar.set_postfix(shown)
        if self.board is not None:
            for i, loss in enumerate(losses):
                self.board.add_scalar("loss", loss, step - len(losses) + i + 1)
        self._plot_now_and_then()

    def on_epoch(self, epoch: int, state: TrainState, summary: Mapping[str, float]) -> None:
        """Print the epoch's means and a sample."""
        validation = ""
        if "validation_loss" in summary:
            validation = (
                f"; validation {summary['validation_loss']:.4f} nats, "
                f"{summary['validation_bits']:.3f} bits"
            )
        self.bar.write(
            f"epoch {epoch}: loss {summary['loss']:.4f} nats, "
            f"{summary['loss'] / math.log(2):.3f} bits per {self.unit}{validation}; "
            f"{summary['steps_per_second'] * self.characters_per_step:,.0f} {self.unit}s per second"
        )
        if self.board is not None:
            for name, value in summary.items():
                self.board.add_scalar(f"epoch/{name}", value, int(state.step))
        if self.write is not None:
            text = self.write(state, epoch)
            self.bar.write(f"  {text!r}")
            with (self.run_dir / "samples.txt").open("a", encoding="utf-8") as file:
                file.write(f"epoch {epoch}, step {int(state.step)}: {text!r}\n")
        self._plot_now_and_then()

    def _plot_now_and_then(self) -> None:
        if time.monotonic() - self.plotted > _SECONDS_PER_PLOT:
            self.plot()

    def plot(self) -> None:
        """Draw the loss so far."""
        plot_loss(self.run_dir, self.unit)
        self.plotted = time.monotonic()

    def _drop_samples_after(self, step: int) -> None:
        """Take back the samples behind the checkpoint, and half a line; all else stays.

        The file is replaced in one move.
        """
        path = self.run_dir / "samples.txt"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        steps = [re.match(r"epoch \d+, step (\d+): ", line) for line in lines]
        kept = [line for line, at in zip(lines, steps, strict=True) if not at or int(at[1]) <= step]
        new = path.with_name("samples.new.txt")
        new.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        new.replace(path)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
        if self.board is not None:
            self.board.close()


def plot_loss(run_dir: Path, unit: str = "character") -> Path:
    """Draw the loss of every step, its mean of every epoch, and that on held-out text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = Records(run_dir / "steps.jsonl").read()
    epochs = Records(run_dir / "epochs.jsonl").read()
    validated = [entry for entry in epochs if "validation_loss" in entry]
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
    if validated:
        axes.plot(
            [entry["step"] for entry in validated],
            [entry["validation_loss"] for entry in validated],
            color="tab:orange", marker="o", markersize=3, label="validation",
        )  # fmt: skip
    axes.set(xlabel="steps", ylabel=f"loss (nats per {unit})")
    bit = math.log(2)
    scale = (lambda nats: np.asarray(nats) / bit, lambda bits: np.asarray(bits) * bit)
    axes.secondary_yaxis("right", functions=scale).set_ylabel(f"bits per {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    # In one move, so that whoever watches never finds half a picture.
    path = run_dir / "loss.png"
    new = run_dir / "loss.new.png"
    figure.savefig(new, dpi=120)
    new.replace(path)
    plt.close(figure)
    return path
