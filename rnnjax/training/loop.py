"""The training loop: epochs of dispatches, with checkpoints, records and an exact resume."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.training.checkpoints import Checkpoints
from rnnjax.training.processes import agreed_signal, from_first, is_first
from rnnjax.training.records import Records
from rnnjax.training.sharding import Sharding
from rnnjax.training.shared import SharedCheckpoints
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
    checkpoints: Checkpoints | SharedCheckpoints,
    config: Mapping[str, Any],
    steps: Records,
    epochs: Records,
    initial_carry: Any = (),
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    reporter: Reporter | None = None,
    sharding: Sharding | None = None,
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
        sharding: how state and batches lie over several devices, that of ``train_steps``. The
            state is given, and returned, as its ``put_state`` lays it; batches, ``initial_carry``
            and what ``evaluate`` and ``reporter`` get are arrays of this process, batches with its
            rows alone. With several processes ``checkpoints`` have to be shared. The first one
            writes the records, its measures decide, and a signal to any of them stops all at the
            same step.

    Returns:
        the last state, and the number of the signal that stopped the run early, or None.

    Raises:
        NonFiniteError: the loss or the gradient became NaN or infinite; names the step and the last
            good checkpoint.
    """
    reporter = reporter or Reporter()
    done = int(state.step)
    if is_first():
        steps.drop_after(done)
        epochs.drop_after(done)
    stale = from_first(lambda: _stale(epochs, schedule))
    with StopRequest() as stop:
        while done < schedule.epochs * schedule.steps_per_epoch and not stale:
            epoch, first = divmod(done, schedule.steps_per_epoch)
            if first == 0:
                # A copy, because the state is donated and the next epoch begins from it again.
                carry = jax.tree.map(lambda leaf: leaf.copy(), initial_carry)
                carry = carry if sharding is None else sharding.put_carry(carry)
                state = dataclasses.replace(state, carry=carry)
            batches = batches_of_epoch(epoch)
            batches = (jax.device_put if sharding is None else sharding.put_batches)(batches)
            began = time.perf_counter()
            for start in range(first, schedule.steps_per_epoch, schedule.steps_per_dispatch):
                end = min(start + schedule.steps_per_dispatch, schedule.steps_per_epoch)
                state, metrics = train_steps(state, batches, start, end)
                values = {name: np.asarray(m)[start:end] for name, m in metrics.items()}
                _require_finite(values, done, checkpoints)
                if is_first():
                    steps.append(
                        {"step": done + i + 1, "epoch": epoch + 1}
                        | {name: float(m[i]) for name, m in values.items()}
                        for i in range(end - start)
                    )
                done += end - start
                reporter.on_dispatch(done, values["loss"])
                if end < schedule.steps_per_epoch and (signal := agreed_signal(stop.signal)):
                    checkpoints.save(state, config)
                    return state, signal
            speed = (schedule.steps_per_epoch - first) / (time.perf_counter() - began)
            whole = state if sharding is None else sharding.whole(state)
            measures = {"steps_per_second": speed, **(evaluate(whole) if evaluate else {})}
            entry = {"step": done, "epoch": epoch + 1}
            summary, improved, stale = from_first(
                functools.partial(_end_of_epoch, steps, epochs, schedule, entry, measures)
            )
            improved = improved and evaluate is not None
            reporter.on_epoch(epoch + 1, whole, summary)
            finished = epoch + 1 == schedule.epochs or stale
            due = (epoch + 1) % schedule.epochs_per_checkpoint == 0
            signal = agreed_signal(stop.signal)
            if finished or improved or due or signal:
                checkpoints.save(state, config, loss=_score(summary))
            if signal and not finished:
                return state, signal
    return state, None


def _end_of_epoch(
    steps: Records,
    epochs: Records,
    schedule: Schedule,
    entry: Mapping[str, int],
    measures: Mapping[str, float],
) -> tuple[dict[str, float], bool, bool]:
    """Record an epoch; returns its means and measures, if it is the best, and if it is the last."""
    summary = {**_summary(steps, entry["epoch"]), **measures}
    best = min((_score(before) for before in epochs.read()), default=math.inf)
    epochs.append([{**entry, **summary}])
    return summary, _score(summary) < best, _stale(epochs, schedule)


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


def _require_finite(
    metrics: Mapping[str, np.ndarray], done: int, checkpoints: Checkpoints | SharedCheckpoints
) -> None:
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
