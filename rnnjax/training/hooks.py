"""Hooks of `fit`: they show, write and decide during a run."""

import contextlib
import csv
import dataclasses
import io
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.checks import Advised, check_size, package
from rnnjax.errors import InvalidInputError
from rnnjax.training.files import write_whole, writing
from rnnjax.training.processes import is_first
from rnnjax.training.state import TrainState

# Seconds between updates of the line on a terminal, and between lines in a log.
_SECONDS_TERMINAL = 0.1
_SECONDS_LOG = 60.0
_RECENT = 20
_ERASE = "\r\x1b[K"  # the line on which the cursor stands

Entry = dict[str, Any]


class Hook(Advised):
    """The base class of hooks, which `fit` calls. A function ``(state, summary)`` is a hook too.

    A resumed run restores `history` from the checkpoint. So a hook that uses only `history`, as all
    hooks of the library do, resumes exactly. Other attributes of a hook are lost with the process.
    So one run has a hook at a time; the next may have it after that. Every process calls its hooks,
    except `Progress`, which only the first calls.

    Attributes:
        history: the entries of all epochs so far, as in `Fit`; the last is the ``summary``.
        epochs: the total number of epochs of the run.
    """

    history: Sequence[Entry] = ()
    epochs: int = 0

    def on_start(self, state: TrainState) -> bool | None:
        """Start the run, or resume it from ``state``; `history` is known.

        Returns:
            whether the run has ended; None restores what was saved: a run that this hook ended
            stays ended.
        """

    def on_phase(self, phase: str) -> None:
        """Begin a phase: ``reading``, ``compiling``, ``training``, ``validating``, ``writing``."""

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """End a dispatch: receive the step reached, the losses of its steps, and its duration.

        ``seconds`` is None for the first one, which includes compilation.
        """

    def on_epoch(self, state: TrainState, summary: Entry) -> bool | TrainState | None:
        """End an epoch, before it is saved.

        ``state.params`` are a copy, made once an epoch, which a hook may keep. The next step
        donates the other arrays of ``state``. What a hook writes into ``summary``, numbers or other
        JSON, is in the history and in all files of the run; of several processes the first decides.

        Returns:
            True to end the run; or a state to continue with, which is then saved. Of several
            processes all must return the same state, or the run ends with an error.
        """

    def close(self) -> None:
        """End the run, also after an error."""


@dataclasses.dataclass
class _Patience(Hook):
    """The base class of hooks that count epochs without an improvement."""

    patience: int
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"
    monitor: str = "validation_loss"

    def __post_init__(self) -> None:
        check_size("patience", self.patience)
        if self.mode not in ("min", "max") or not self.min_delta >= 0:
            raise InvalidInputError(
                f'mode must be "min" or "max" and min_delta at least 0, but are {self.mode!r} and '
                f'{self.min_delta!r}; pass mode="max" for an accuracy'
            )

    @property
    def waited(self) -> int:
        """The number of epochs since the last improvement."""
        best, waited = math.nan, 0
        for entry in self.history:
            if self.monitor not in entry:
                raise InvalidInputError(
                    f"monitor must be a measure of an epoch, but is {self.monitor!r}, and there "
                    f"are {sorted(entry)}; name one of them, or give fit an evaluate"
                )
            score = entry[self.monitor] * (1 if self.mode == "min" else -1)
            score = score if math.isfinite(score) else math.inf
            improved = math.isnan(best) or score < best - self.min_delta
            best, waited = (score, 0) if improved else (best, waited + 1)
        return waited


class EarlyStopping(_Patience):
    """Ends the run after ``patience`` epochs without an improvement, like Keras's callback.

    Pass it to `fit`: ``fit(..., evaluate=data, hooks=[EarlyStopping(5)])``.

    `fit` still returns the parameters with the lowest validation loss, whatever is monitored. A run
    that ended this way resumes if ``patience`` is increased.

    Args:
        patience: the number of epochs without an improvement, at least 1.
        min_delta: an improvement must be larger than this.
        mode: "min" if less is better, "max" if more is.
        monitor: the name of a measure: ``validation_loss``, ``loss``, one of ``evaluate`` ...

    Raises:
        InvalidInputError: an argument is out of range, or an epoch has no such measure.

    >>> hook = EarlyStopping(2, min_delta=0.1)
    >>> hook.history = [{"validation_loss": loss} for loss in (3.0, 2.0, 1.95, 1.91)]
    >>> hook.waited
    2
    """

    def on_start(self, state: TrainState) -> bool:
        """Return whether the run has already ended."""
        return self.waited >= self.patience

    def on_epoch(self, state: TrainState, summary: Entry) -> bool:
        """Return whether the run ends after this epoch."""
        return self.waited >= self.patience


@dataclasses.dataclass
class ReduceOnPlateau(_Patience):
    """Multiplies the learning rate by ``factor`` after each ``patience`` epochs of no improvement.

    The learning rate must be in the optimiser's state, which a checkpoint saves:
    ``optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)``, possibly in an `optax.chain`.
    (`optax.contrib.reduce_on_plateau` monitors the training loss within a step.)

    Args:
        patience, min_delta, mode, monitor: see `EarlyStopping`.
        factor: the factor, between 0 and 1.
        min_rate: the smallest learning rate.

    Raises:
        InvalidInputError: the state has no learning rate, or a schedule sets it.
    """

    factor: float = 0.1
    min_rate: float = 0.0

    def on_start(self, state: TrainState) -> None:
        """Check that the learning rate is in the optimiser's state."""
        if not 0 < self.factor < 1:
            raise InvalidInputError(
                f"factor must be between 0 and 1, but is {self.factor!r}; pass 0.5, say"
            )
        found = optax.tree.get_all_with_path(state.opt_state, "learning_rate")
        if len(found) != 1:
            what = "two, as of a schedule, which sets it anew" if found else "none"
            raise InvalidInputError(
                f"the optimizer's state must hold one learning_rate, but holds {what}; write "
                "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)"
            )

    def on_epoch(self, state: TrainState, summary: Entry) -> TrainState | None:
        """Return the state with a smaller learning rate after each ``patience`` epochs."""
        if not self.waited or self.waited % self.patience:
            return None
        rate = optax.tree.get(state.opt_state, "learning_rate")
        less = jnp.maximum(rate * self.factor, self.min_rate).astype(rate.dtype)
        opt_state = optax.tree.set(state.opt_state, learning_rate=less)
        return dataclasses.replace(state, opt_state=opt_state)


class CSVLog(Hook):
    """Writes the history as a CSV table, one row per epoch; a resumed run rewrites it.

    Args:
        path: the path of the file, whose folder is created if it does not exist.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def on_start(self, state: TrainState) -> None:
        """Create the folder of the file, if there is none."""
        if is_first():
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch(self, state: TrainState, summary: Entry) -> None:
        """Write the whole table of all epochs."""
        self.close()

    def close(self) -> None:
        """Write the table again, with what other hooks wrote into the last epoch."""
        table = io.StringIO()
        names = dict.fromkeys(name for entry in self.history for name in entry)
        rows = csv.DictWriter(table, list(names), lineterminator="\n")
        rows.writeheader()
        rows.writerows(self.history)
        if is_first() and self.history:
            with writing(self.path):
                write_whole(self.path, table.getvalue().encode())


class TensorBoard(Hook):
    """Writes the loss of each step and the measures of each epoch for TensorBoard.

    Args:
        folder: the folder of the events. A resumed run purges events after its checkpoint.

    Raises:
        InvalidInputError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = str(folder)
        self.writer: Any = None

    def on_start(self, state: TrainState) -> None:
        """Open the folder of the events."""
        events = package("tensorboardX", "TensorBoard logs", "tensorboard", InvalidInputError)
        if is_first():
            self.writer = events.SummaryWriter(self.folder, purge_step=int(state.step) + 1)

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """Write the losses of some steps."""
        for i, loss in enumerate(losses if self.writer else []):
            self.writer.add_scalar("loss", loss, step - len(losses) + i + 1)

    def on_epoch(self, state: TrainState, summary: Entry) -> None:
        """Write the numbers of an epoch."""
        for name, value in summary.items():
            if self.writer and not np.ndim(value):
                self.writer.add_scalar(f"epoch/{name}", value, summary["step"])

    def close(self) -> None:
        """Flush the events to the disk."""
        if self.writer:
            self.writer.close()


class Progress(Hook):
    """Shows the current phase and the training speed, and prints a line after each epoch.

    The speed is that of the last dispatches, without compilation, validation or writing. On a
    terminal the status line stays at the bottom of standard error; elsewhere it is written there
    once a minute. The lines of the epochs go to standard output.

    Every run has one; add `Silent` to its hooks to show nothing. Override `of_steps`, `of_epoch` or
    `on_epoch` in a subclass to show more, or in other units.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        capable = os.environ.get("TERM") != "dumb"  # which cannot erase a line
        self._terminal = self._file is not None and self._file.isatty() and capable
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._shown = time.monotonic() if not self._terminal else 0.0
        self._stands = False
        self._steps = ""
        self.step = 0

    def on_start(self, state: TrainState) -> None:
        """Note where the run begins or resumes."""
        self.step, self._steps = int(state.step), ""
        self._recent.clear()

    def on_phase(self, phase: str) -> None:
        """Show the phase that begins now."""
        self._show(phase, now=phase != "training")

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """Update the status line and the rate."""
        if seconds is not None:
            self._recent.append((step - self.step, seconds))
        self.step = step
        self._steps = self.of_steps(losses[-1], self.rate)
        self._show("training")

    def on_epoch(self, state: TrainState, summary: Entry) -> None:
        """Print the epoch's means and measures."""
        self.say(f"epoch {summary['epoch']}: {self.of_epoch(summary)}")

    @property
    def rate(self) -> float | None:
        """Steps per second over the last dispatches; None before the second one."""
        seconds = sum(took for _, took in self._recent)
        return sum(steps for steps, _ in self._recent) / seconds if seconds else None

    def of_steps(self, loss: float, rate: float | None) -> str:
        """Return the part of the status line about the last step."""
        return f"loss {loss:.4g}" + (f", {rate:,.1f} steps/s" if rate else "")

    def of_epoch(self, summary: Mapping[str, Any]) -> str:
        """Return the line about an epoch."""
        shown = {k: v for k, v in summary.items() if k not in ("step", "epoch") and not np.ndim(v)}
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())

    def say(self, line: str) -> None:
        """Print a line above the status line."""
        self.close()
        _print(line)

    def close(self) -> None:
        """Remove the status line at the bottom."""
        if self._stands:
            _print(_ERASE, end="", file=self._file)
            self._stands = False

    def _show(self, what: str, *, now: bool = False) -> None:
        wait = (0 if now else _SECONDS_TERMINAL) if self._terminal else _SECONDS_LOG
        if time.monotonic() - self._shown < wait:
            return
        self._shown = time.monotonic()
        epoch = min(len(self.history) + 1, self.epochs)
        line = f"{what}: step {self.step:,}, epoch {epoch:,} of {self.epochs:,}"
        line = f"{line}, {self._steps}" if self._steps else line
        if not self._terminal:
            _print(line, file=self._file)
            return
        columns = shutil.get_terminal_size().columns - 1  # one that wraps cannot be taken back
        _print(_ERASE + line[:columns], end="", file=self._file)
        self._stands = True


def _print(text: str, **more: Any) -> None:
    """Print on the first process; a closed terminal or pipe does not end the run."""
    if more.get("file", sys.stdout) is None or not is_first():
        return
    with contextlib.suppress(OSError, ValueError):
        print(text, **more, flush=True)


def alert(line: str) -> None:
    """Print a line to standard error, whatever the run's `Progress` shows."""
    _print(line, file=sys.stderr)


class Silent(Progress):
    """Hides the `Progress` of a run."""

    def _show(self, what: str, *, now: bool = False) -> None:
        pass

    def say(self, line: str) -> None:
        """Ignore the line, and print nothing."""
