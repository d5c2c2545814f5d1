"""Hooks: what a run of `fit` shows, writes and decides after its epochs."""

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.cells.arguments import check_size
from rnnjax.errors import InvalidInputError
from rnnjax.training.files import write_whole
from rnnjax.training.processes import is_first
from rnnjax.training.state import TrainState

# On a terminal the line is written anew at most so often; in a log a line comes so often.
_SECONDS_TERMINAL = 0.1
_SECONDS_LOG = 60.0
_RECENT = 20
_ERASE = "\r\x1b[K"  # the line on which the cursor stands

Entry = dict[str, Any]


class Hook:
    """What `fit` calls besides its steps. A function ``(state, summary)`` is a hook too.

    A run that goes on gives `history` as the checkpoint has it. So a hook that works from
    `history` alone, as all of the library do, goes on exactly. What a hook keeps itself is lost
    with the process. Of several processes each calls its hooks, but `Progress` the first alone.

    Attributes:
        history: the entries of all epochs so far, as `Fit` has them; the last is the ``summary``.
        epochs: how many the run is to have.
    """

    history: Sequence[Entry] = ()
    epochs: int = 0
    name: str = "Hook"  # by which a checkpoint says which hook ended the run

    def __init_subclass__(cls) -> None:
        cls.name = cls.__qualname__

    def on_start(self, state: TrainState) -> bool | None:
        """The run begins, or goes on from ``state``; called once `history` is known.

        Returns:
            whether the run has come to its end; None leaves it as it was saved: a run that this
            hook had ended stays so.
        """

    def on_phase(self, phase: str) -> None:
        """What comes now: ``reading``, ``compiling``, ``training``, ``validating``, ``writing``."""

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """After each dispatch: the step reached, the losses of its steps, and how long it took.

        ``seconds`` is None for the first one, which was compiled.
        """

    def on_epoch(self, state: TrainState, summary: Entry) -> bool | TrainState | None:
        """After each epoch, before it is saved. The next step uses the arrays of ``state`` up.

        Returns:
            True to end the run; or a state to go on with, which is the one that is saved.
        """

    def close(self) -> None:
        """The run ends, by an error too."""


class FunctionHook(Hook):
    """A function ``(state, summary)`` as a hook."""

    def __init__(self, function: Callable[[TrainState, Entry], bool | TrainState | None]):
        self.function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)

    def on_epoch(self, state: TrainState, summary: Entry) -> bool | TrainState | None:
        """Call it."""
        return self.function(state, summary)


@dataclasses.dataclass
class _Patience(Hook):
    """Counts epochs without an improvement."""

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
        """Epochs since the last improvement."""
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
    """Ends the run after ``patience`` epochs without an improvement, as Keras's callback.

    The parameters that `fit` returns are those with the lowest validation loss, whatever is
    monitored. A run that ended so goes on where ``patience`` has grown.

    Args:
        patience: epochs without an improvement, at least 1.
        min_delta: an improvement is more than that.
        mode: "min" where less is better, "max" where more is.
        monitor: the name of a measure: ``validation_loss``, ``loss``, one of ``evaluate`` ...

    Raises:
        InvalidInputError: an argument is out of range, or an epoch has no such measure.

    >>> hook = EarlyStopping(2, min_delta=0.1)
    >>> hook.history = [{"validation_loss": loss} for loss in (3.0, 2.0, 1.95, 1.91)]
    >>> hook.waited
    2
    """

    def on_start(self, state: TrainState) -> bool:
        """Whether the run has ended already."""
        return self.waited >= self.patience

    def on_epoch(self, state: TrainState, summary: Entry) -> bool:
        """Whether the run ends."""
        return self.waited >= self.patience


@dataclasses.dataclass
class ReduceOnPlateau(_Patience):
    """Multiplies the learning rate by ``factor`` after each ``patience`` epochs of no improvement.

    The learning rate has to be in the optimiser's state, where a checkpoint has it too:
    ``optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)``, perhaps in an `optax.chain`.
    (`optax.contrib.reduce_on_plateau` looks at the training loss, within a step.)

    Args:
        patience, min_delta, mode, monitor: see `EarlyStopping`.
        factor: between 0 and 1.
        min_rate: no smaller learning rate is set.

    Raises:
        InvalidInputError: the state holds no learning rate, or one that a schedule sets.
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
        """The state with a smaller learning rate, after each ``patience`` epochs."""
        if not self.waited or self.waited % self.patience:
            return None
        rate = optax.tree.get(state.opt_state, "learning_rate")
        less = jnp.maximum(rate * self.factor, self.min_rate).astype(rate.dtype)
        opt_state = optax.tree.set(state.opt_state, learning_rate=less)
        return dataclasses.replace(state, opt_state=opt_state)


class CSVLog(Hook):
    """Writes the history as a table, a row for each epoch; a run that goes on writes it anew.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def on_epoch(self, state: TrainState, summary: Entry) -> None:
        """Write the table."""
        table = io.StringIO()
        names = dict.fromkeys(name for entry in self.history for name in entry)
        rows = csv.DictWriter(table, list(names), lineterminator="\n")
        rows.writeheader()
        rows.writerows(self.history)
        if is_first():
            write_whole(self.path, table.getvalue().encode())


class TensorBoard(Hook):
    """Writes the loss of each step, and what each epoch measured, for TensorBoard.

    Args:
        folder: of the events. A run that goes on takes back those after its checkpoint.

    Raises:
        InvalidInputError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = str(folder)
        self.writer: Any = None

    def on_start(self, state: TrainState) -> None:
        """Open the folder."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InvalidInputError(
                "TensorBoard needs the package tensorboardX, which is not installed; install "
                'rnnjax with it: pip install "rnnjax[tensorboard]"'
            ) from error
        if is_first():
            self.writer = SummaryWriter(self.folder, purge_step=int(state.step) + 1)

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
        """Leave the events on the disk."""
        if self.writer:
            self.writer.close()


class Progress(Hook):
    """One line that says what the run is doing, and how fast it trains; a line after each epoch.

    The rate is that of training: of the last dispatches alone, without the time in which the run
    compiles, validates or writes. On a terminal the line stands at the bottom of the standard
    error; elsewhere it is written there once a minute. The lines of the epochs go to the standard
    output.

    A run has one; `Silent` among its hooks shows nothing. A program shows more, or in other units,
    by a class of its own with another `of_steps`, `of_epoch` or `on_epoch`.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._terminal = self._file is not None and self._file.isatty()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._shown = time.monotonic() if not self._terminal else 0.0
        self._stands = False
        self._steps = ""
        self.step = 0

    def on_start(self, state: TrainState) -> None:
        """Where the run begins, or goes on."""
        self.step = int(state.step)

    def on_phase(self, phase: str) -> None:
        """Say what comes now."""
        self._show(phase, now=phase != "training")

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """Move on."""
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
        """Steps a second, of the last dispatches; None before the second one."""
        seconds = sum(took for _, took in self._recent)
        return sum(steps for steps, _ in self._recent) / seconds if seconds else None

    def of_steps(self, loss: float, rate: float | None) -> str:
        """What the line says of the last step."""
        return f"loss {loss:.4g}" + (f", {rate:,.1f} steps/s" if rate else "")

    def of_epoch(self, summary: Mapping[str, Any]) -> str:
        """What the line of an epoch says."""
        shown = {k: v for k, v in summary.items() if k not in ("step", "epoch") and not np.ndim(v)}
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())

    def say(self, line: str) -> None:
        """Print a line above the one at the bottom."""
        self.close()
        _print(line)

    def close(self) -> None:
        """Take the line at the bottom away."""
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
    """Print, on the first process; a terminal that was closed, or ``| head``, ends no run."""
    if more.get("file", sys.stdout) is None or not is_first():
        return
    with contextlib.suppress(OSError, ValueError):
        print(text, **more, flush=True)


def alert(line: str) -> None:
    """Print a line on the standard error, whatever the run's `Progress` shows."""
    _print(line, file=sys.stderr)


class Silent(Progress):
    """Shows nothing."""

    def _show(self, what: str, *, now: bool = False) -> None:
        pass

    def say(self, line: str) -> None:
        """Print nothing."""
