"""The training loop: epochs of dispatches, with checkpoints, records and an exact resume."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.training.checkpoints import Checkpoints
from rnnjax.training.records import Records
from rnnjax.training.signals import StopRequest
from rnnjax.training.state import TrainState
from rnnjax.training.step import TrainSteps


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is, and where it dispatches and saves.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: optimiser steps of one epoch.
        steps_per_dispatch: optimiser steps done on the device before Python is asked again.
        epochs_per_checkpoint: a checkpoint is written after so many epochs, and at the end.
        patience: the run ends after so many epochs without a better validation loss; 0: never.
    """

    epochs: int
    steps_per_epoch: int
    steps_per_dispatch: int = 10
    epochs_per_checkpoint: int = 10
    patience: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "patience" else 1
            if getattr(self, field.name) < least:
                raise InvalidInputError(
                    f"{field.name} must be at least {least}, but is {getattr(self, field.name)}"
                )


class Reporter:
    """What a program wants to hear of its run. Every method may be left as it is."""

    def on_dispatch(self, step: int, losses: np.ndarray) -> None:
        """After each dispatch: the step reached, and the losses of the steps just done."""

    def on_epoch(self, epoch: int, state: TrainState, summary: Mapping[str, float]) -> None:
        """After each epoch (the first is 1), with its means; before its checkpoint, if any."""


def train(
    state: TrainState,
    train_steps: TrainSteps,
    batches_of_epoch: Callable[[int], Any],
    schedule: Schedule,
    *,
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    steps: Records,
    epochs: Records,
    initial_carry: Any = (),
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    reporter: Reporter | None = None,
) -> tuple[TrainState, int | None]:
    """Train from ``state.step`` to the end of the schedule.

    A state restored from a checkpoint goes on exactly where it was: the order of the data depends
    on the epoch alone, the keys on the step alone, and every dispatch runs the same program.

    Args:
        state: a new state, or a restored one; donated.
        train_steps: from `make_train_steps`. It returns a metric ``weight`` for each step if
            batches differ in size; the mean of an epoch is then weighted by it.
        batches_of_epoch: epoch (from 0) to a pytree whose leaves have a leading axis of steps.
        schedule: how long, and how often to save.
        checkpoints: where to save. Also saved on SIGTERM and Ctrl-C.
        config: saved with every checkpoint.
        steps: records ``step``, ``epoch`` and each metric of every step.
        epochs: records the mean of every epoch.
        initial_carry: the carry with which every epoch begins.
        evaluate: measures the state after every epoch; its ``validation_loss`` decides which
            checkpoint is the best, and each epoch that is better than all before it is saved.
        reporter: hears of the progress.

    Returns:
        the last state, and the number of the signal that stopped the run early, or None.

    Raises:
        NonFiniteError: the loss or the gradient became NaN or infinite; names the step and the last
            good checkpoint.
    """
    reporter = reporter or Reporter()
    done = int(state.step)
    steps.drop_after(done)
    epochs.drop_after(done)
    with StopRequest() as stop:
        while done < schedule.epochs * schedule.steps_per_epoch and not _stale(epochs, schedule):
            epoch, first = divmod(done, schedule.steps_per_epoch)
            if first == 0:
                # A copy, because the state is donated and the next epoch begins from it again.
                carry = jax.tree.map(lambda leaf: leaf.copy(), initial_carry)
                state = dataclasses.replace(state, carry=carry)
            batches = jax.device_put(batches_of_epoch(epoch))
            began = time.perf_counter()
            for start in range(first, schedule.steps_per_epoch, schedule.steps_per_dispatch):
                end = min(start + schedule.steps_per_dispatch, schedule.steps_per_epoch)
                state, metrics = train_steps(state, batches, start, end)
                values = {name: np.asarray(m)[start:end] for name, m in metrics.items()}
                _require_finite(values, done, checkpoints)
                steps.append(
                    {"step": done + i + 1, "epoch": epoch + 1}
                    | {name: float(m[i]) for name, m in values.items()}
                    for i in range(end - start)
                )
                done += end - start
                reporter.on_dispatch(done, values["loss"])
                if stop.signal and end < schedule.steps_per_epoch:
                    checkpoints.save(state, config)
                    return state, stop.signal
            seconds = time.perf_counter() - began
            summary = _summary(steps, epoch + 1)
            summary["steps_per_second"] = (schedule.steps_per_epoch - first) / seconds
            if evaluate is not None:
                summary |= evaluate(state)
            best = min((_score(entry) for entry in epochs.read()), default=math.inf)
            improved = evaluate is not None and _score(summary) < best
            epochs.append([{"step": done, "epoch": epoch + 1} | summary])
            reporter.on_epoch(epoch + 1, state, summary)
            finished = epoch + 1 == schedule.epochs or _stale(epochs, schedule)
            due = (epoch + 1) % schedule.epochs_per_checkpoint == 0
            if finished or improved or due or stop.signal:
                checkpoints.save(state, config, loss=_score(summary))
            if stop.signal and not finished:
                return state, stop.signal
    return state, None


def _score(summary: Mapping[str, Any]) -> float:
    """What is to become small: the validation loss, or that of training where there is none."""
    return float(summary.get("validation_loss", summary["loss"]))


def _stale(epochs: Records, schedule: Schedule) -> bool:
    """Whether the last ``patience`` epochs brought nothing better than those before them."""
    if not schedule.patience:
        return False
    scores = [_score(entry) for entry in epochs.read()]
    recent, before = scores[-schedule.patience :], scores[: -schedule.patience]
    return bool(before) and min(recent) >= min(before)


def _require_finite(metrics: Mapping[str, np.ndarray], done: int, checkpoints: Checkpoints) -> None:
    for i, (loss, norm) in enumerate(zip(metrics["loss"], metrics["grad_norm"], strict=True)):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            last = checkpoints.latest_step()
            good = (
                "there is no checkpoint yet"
                if last is None
                else (f"the last good checkpoint is {checkpoints.path(last)}")
            )
            raise NonFiniteError(
                f"at step {done + i + 1} the loss is {loss:g} and the norm of the gradient "
                f"{norm:g}; {good}; try a smaller learning rate, or clip the gradient"
            )


def _summary(steps: Records, epoch: int) -> dict[str, float]:
    """The means over an epoch, of steps recorded before a resume too."""
    entries = [entry for entry in steps.read() if entry["epoch"] == epoch]
    weights = np.array([entry.get("weight", 1.0) for entry in entries])
    names = [name for name in entries[0] if name not in ("step", "epoch", "weight")]
    return {
        name: float(np.average([entry[name] for entry in entries], weights=weights))
        for name in names
    }
