"""What a run shows while it runs."""

import contextlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from rnnjax.training.processes import is_first
from rnnjax.training.state import TrainState

# On a terminal the line is written anew at most so often; in a log a line comes so often.
_SECONDS_TERMINAL = 0.1
_SECONDS_LOG = 60.0
_RECENT = 20


class Progress:
    """One line that says what the run is doing, and how fast it trains; a line after each epoch.

    The rate is that of training: of the last dispatches alone, without the time in which the run
    compiles, validates or writes. On a terminal the line stands at the bottom of the standard
    error; elsewhere it is written there once a minute. The lines of the epochs go to the standard
    output.

    A program shows more, or in other units, by a class of its own with another `of_steps`,
    `of_epoch` or `on_epoch`.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._terminal = self._file is not None and self._file.isatty()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._shown = time.monotonic() if not self._terminal else 0.0
        self._width = 0
        self._steps = ""
        self.step = self.total = 0

    def start(self, step: int, total: int) -> None:
        """The run begins, or goes on, after ``step`` of ``total`` steps."""
        self.step, self.total = step, total

    def doing(self, what: str) -> None:
        """Say what comes now: ``reading``, ``compiling``, ``training`` ..."""
        self._show(what, now=what != "training")

    def on_dispatch(self, step: int, losses: Sequence[float], seconds: float | None) -> None:
        """After each dispatch: the step reached, the losses of its steps, and how long it took.

        ``seconds`` is None for the first one, which was compiled.
        """
        if seconds is not None:
            self._recent.append((step - self.step, seconds))
        self.step = step
        self._steps = self.of_steps(losses[-1], self.rate)
        self._show("training")

    def on_epoch(self, epoch: int, state: TrainState, summary: Mapping[str, Any]) -> None:
        """After each epoch (the first is 1), with its means and measures, before it is saved."""
        self.say(f"epoch {epoch}: {self.of_epoch(summary)}")

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
        if self._width:
            _print(f"\r{' ' * min(self._width, _columns())}\r", end="", file=self._file)
            self._width = 0

    def _show(self, what: str, *, now: bool = False) -> None:
        wait = (0 if now else _SECONDS_TERMINAL) if self._terminal else _SECONDS_LOG
        if time.monotonic() - self._shown < wait:
            return
        self._shown = time.monotonic()
        line = f"{what}: step {self.step:,} of {self.total:,}"
        line = f"{line}, {self._steps}" if self._steps else line
        if not self._terminal:
            _print(line, file=self._file)
            return
        line = line[: _columns()]  # one that wraps cannot be taken back
        width = min(self._width, _columns())
        _print(f"\r{line:<{width}}", end="", file=self._file)
        self._width = max(width, len(line))


def _columns() -> int:
    return shutil.get_terminal_size().columns - 1


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
