"""`fit`: a whole training run, from the loss of one batch to the best parameters."""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.cells.arguments import brief, check_instance, is_integer
from rnnjax.errors import CheckpointError, InvalidInputError, NonFiniteError
from rnnjax.training.batches import Minibatches, divided
from rnnjax.training.checkpoints import Checkpoints
from rnnjax.training.files import Records, as_json, finite_or_none, locked, write_json
from rnnjax.training.identity import PARTS, differing, identity
from rnnjax.training.processes import (
    StopRequest,
    agreed_signal,
    ending_with_peers,
    from_first,
    is_first,
    require_alike,
    together,
)
from rnnjax.training.progress import Progress, Silent, alert
from rnnjax.training.sharding import Sharding
from rnnjax.training.state import TrainState
from rnnjax.training.step import (
    OF_FIT,
    TrainSteps,
    check_optimizer,
    check_params,
    make_train_steps,
)

# A dispatch is to take so long: Python's own part of one, half a millisecond, is then nothing, and
# a signal is answered before anyone wonders.
_SECONDS_PER_DISPATCH = 0.25
_FIRST_DISPATCH = 10

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What came out of `fit`.

    Attributes:
        params: those with the lowest validation loss; the last where there is none, or where a
            signal stopped the run early.
        state: the last state, from which the run would go on.
        history: an entry for each epoch: ``step``, ``epoch``, the means of the loss and the other
            metrics over its steps, what ``evaluate`` measured, ``steps_per_second``.
        best: the entry with the lowest validation loss, or else the last; None before there is one.
        stopped_by: the number of the signal that came, or None.
        finished: whether the run came to its end, by ``epochs`` or by ``patience``.
    """

    params: Any
    state: TrainState
    history: list[Entry]
    best: Entry | None
    stopped_by: int | None = None
    finished: bool = True


def fit(
    loss_fn: Callable[..., Any],
    params: Any,
    optimizer: optax.GradientTransformation,
    batches: Any,
    epochs: int,
    *,
    key: jax.Array,
    carry: Any = None,
    keep_carry: bool = False,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
    checkpoint_every: int = 1,
    keep_last: int = 3,
    patience: int = 0,
    skip_nonfinite: int = 0,
    steps_per_dispatch: int | None = None,
    sharding: Sharding | Literal["cores"] | None = None,
    progress: Progress | None = None,
    on_signal: Literal["raise", "return"] = "raise",
) -> Fit:
    """Train for some epochs, and return the best parameters.

    With ``run_dir`` the run is saved there, and the same call goes on where it was, after whatever
    ended it: bit for bit as if it had never stopped, because the order of the data depends on the
    epoch alone, the keys on the step alone, and every dispatch runs the same program. Another call
    is refused: another loss, optimiser, key, carry or ``config``, other first parameters, other
    data of the first epoch, which is read again for that. Arguments that change no step may differ:
    ``epochs``, ``evaluate``, ``patience``, ``skip_nonfinite`` and those of how it is saved, shown
    and laid over devices.

    The folder holds ``checkpoints/`` (see `Checkpoints`), the metrics of every step
    (``steps.jsonl``), the history (``epochs.jsonl``), and at the end the best and the last epoch
    (``result.json``). `load_params` reads the parameters.

    SIGTERM, SIGHUP and Ctrl-C finish the step in progress and save it; a line on the standard error
    says where. The signal then does what it would have done: it ends the program. Without
    ``run_dir`` it does so at once.

    Args:
        loss_fn: ``(params, batch, key) -> loss``; with ``carry`` a `LossFunction`, which also takes
            and returns the recurrent state that the next batch continues, and metrics. A metric
            ``weight`` weighs the steps in an epoch's means.
        params: the initial parameters, any pytree. They are copied.
        optimizer: an optax optimiser, with its schedule and clipping; see `make_train_steps`.
        batches: a dict, or another pytree but a list, whose leaves have a first axis of steps, the
            batches of every epoch; or a function from the number of an epoch, from 0, to such a
            tree (see `minibatches`).
        epochs: how often the batches are gone through, in all: a run that goes on does the rest.
        key: of the run; step ``n`` draws from ``jax.random.fold_in(key, n)``. A run that goes on
            must have the same.
        carry: the state with which every epoch begins; left out, batches are independent.
        keep_carry: whether an epoch goes on from the state in which the one before ended, as in
            reinforcement learning, where it is no pass over data but a part of the run.
        evaluate: ``params -> measures`` after every epoch, among them ``validation_loss``, which
            says what the best is, and none that has the name of a metric. The arrays are used up by
            the next step: copy what is to be kept.
        run_dir: the folder of the run, made if it is not there; left out, nothing is written.
        config: options to be saved with the run, as JSON. A run that goes on must have the same.
        free: the names in ``config`` that may then differ, and of "key", "params", "carry",
            "batches", "loss" and "optimizer" the parts that may: "optimizer", say, to go on with a
            smaller learning rate.
        checkpoint_every: epochs between checkpoints; one is also written at each better validation
            loss, at the end, and where a signal stops the run.
        keep_last: how many checkpoints are kept, besides the best.
        patience: the run ends after so many epochs without a better validation loss; 0: never.
        skip_nonfinite: how many steps in a row may have a loss or a gradient that is NaN or
            infinite: they change nothing, and are counted in the metric ``skipped``.
        steps_per_dispatch: steps done on the device before Python is asked again; left out, as many
            as take a quarter of a second. It changes no number.
        sharding: how state and batches lie over several devices, as ``Sharding.over()`` over all.
            Each process then reads its rows of `Minibatches`; a function of your own returns those
            alone. ``params`` and ``carry`` are whole on each, and ``evaluate`` gets whole
            parameters. Of several processes, all make this call; the first one writes and its
            measures decide. "cores": `Minibatches` are divided over the cores of the CPU, if
            `use_cores` has made them devices and that is faster; a line says so where it is not.
            Left out, one device is used.
        progress: what the run shows; left out, a `Progress`.
        on_signal: "return" returns the state at a signal, with ``stopped_by``, instead of raising
            the signal again.

    Raises:
        NonFiniteError: the loss or the gradient became NaN or infinite; names the step and the last
            good checkpoint.
        CheckpointError: the run in ``run_dir`` is another one, or another process writes there.
        KeyboardInterrupt: Ctrl-C, once its step is saved.
        RnnjaxError: another process of the run ended, or failed.
        InvalidInputError: an argument is out of its range, or epochs differ in their steps.

    A line, learned:

    >>> xs = jnp.linspace(0, 1, 40).reshape(10, 4)  # ten steps of four
    >>> result = fit(
    ...     lambda params, batch, key: jnp.mean((params * batch - 3 * batch) ** 2),
    ...     jnp.zeros(()), optax.adam(0.1), xs, 20, key=jax.random.key(0), progress=Silent())
    >>> round(float(result.params), 2), len(result.history)
    (3.0, 20)
    """
    for name, value, least in (
        ("epochs", epochs, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("keep_last", keep_last, 1),
        ("patience", patience, 0),
        ("skip_nonfinite", skip_nonfinite, 0),
        ("steps_per_dispatch", 1 if steps_per_dispatch is None else steps_per_dispatch, 1),
    ):
        if not is_integer(value) or value < least:
            raise InvalidInputError(
                f"{name} must be a whole number of at least {least}, but is {value!r}; pass "
                f"{least} or more"
            )
    if not jnp.issubdtype(getattr(key, "dtype", jnp.int32), jax.dtypes.prng_key) or key.ndim:
        raise InvalidInputError(
            f"key must be one key, as jax.random.key makes it, but is {brief(key)}; pass "
            "jax.random.key(0), say"
        )
    if patience and evaluate is None:
        raise InvalidInputError(
            f"patience {patience} waits for a better validation loss, but there is no evaluate to "
            "measure it; give one, or leave patience out"
        )
    if evaluate is not None and not callable(evaluate):
        raise InvalidInputError(
            f"evaluate must be a function of the parameters, but is {brief(evaluate)}; pass one "
            "that returns {'validation_loss': ...}"
        )
    if on_signal not in ("raise", "return"):
        raise InvalidInputError(
            f'on_signal must be "raise" or "return", but is {on_signal!r}; leave it out to end the '
            "program"
        )
    if progress is not None:
        check_instance("progress", progress, Progress, "a Progress, such as Silent(), or None")
    _check_takes(loss_fn, ("params", "batch", "key") if carry is None else _WITH_CARRY)
    shown = (progress or Progress()) if is_first() else Silent()
    batches, sharding = divided(batches, sharding, params, shown.say)
    if carry is None:
        loss_fn, carry = functools.partial(_without_carry, loss_fn), ()
    check_optimizer(optimizer)
    check_params(params)
    state = TrainState.create(params, optimizer, key=key, carry=carry)
    train_steps = make_train_steps(loss_fn, optimizer, sharding, skip_nonfinite=skip_nonfinite > 0)
    run = _Run(train_steps, batches, epochs, sharding, shown, skip_nonfinite, steps_per_dispatch)
    result = None
    try:
        with ending_with_peers(), contextlib.ExitStack() as stack:
            stack.callback(shown.close)
            require_alike({"epochs": epochs, "whether there is a run_dir": run_dir is not None})
            if run_dir is not None:
                run.open(Path(run_dir), {} if config is None else config, keep_last, stack)
                run.identity = identity(loss_fn, optimizer, state, run.on_devices(0), keep_carry)
            state = state if sharding is None else sharding.put_state(state)
            if run_dir is not None:
                state = run.restore(state, free)
            if run_dir is not None or on_signal == "return":
                stack.enter_context(run.stop)
            result = _train(run, state, carry, keep_carry, evaluate, checkpoint_every, patience)
    except KeyboardInterrupt:
        run.say_interrupted()
        run.stop.signal = None
        raise
    finally:
        # After an error too, and where it came when nobody asked any more.
        number = run.stop.signal if result is None else result.stopped_by or run.stop.signal
        if number is not None and on_signal == "raise":
            run.say_stopped(number, result is not None)
            signal.raise_signal(number)
    return result


def _train(
    run: "_Run",
    state: TrainState,
    carry: Any,
    keep_carry: bool,
    evaluate: Callable[[Any], Mapping[str, Any]] | None,
    checkpoint_every: int,
    patience: int,
) -> Fit:
    """The epochs of a run that are still to do."""
    sharding, history = run.sharding, run.history
    whole = sharding.whole if sharding else lambda tree: tree
    done = run.done = int(state.step)
    best = None
    if not run.steps:
        run.read(0)
    steps, total = run.steps, run.epochs * run.steps
    run.shown.start(done, total)
    if done:
        run.shown.say(f"going on from step {done} of {total}")
    if done > total:
        warnings.warn(
            f"the run in {run.folder} has done {done} steps, more than the {total} of {run.epochs} "
            "epochs; the result is that of all of them; for a shorter run give another folder",
            stacklevel=3,
        )
    while done < total and not _stale(history, patience):
        epoch, first = divmod(done, steps)
        if first == 0 and not (keep_carry and done):
            # A copy, because the state is donated, and the next epoch begins from it again.
            fresh = jax.tree.map(jnp.array, carry)
            fresh = fresh if sharding is None else sharding.put_carry(fresh)
            state = dataclasses.replace(state, carry=fresh)
        state, stopped_by = run.train(state, run.on_devices(epoch), epoch)
        done = int(state.step)
        # The parameters alone: the optimiser's state may not fit one device.
        params = whole(state.params)
        if done < (epoch + 1) * steps:
            run.save(state)
            return run.fit(params, state, _best(history), stopped_by)
        measured = {} if evaluate is None else run.validate(evaluate, params)
        better = run.end_epoch(dataclasses.replace(state, params=params), epoch, measured)
        if better and not run.in_folder:
            best = jax.tree.map(jnp.array, params)
        finished = epoch + 1 == run.epochs or _stale(history, patience)
        stopped_by = agreed_signal(run.stop.signal)
        if finished or better or stopped_by or (epoch + 1) % checkpoint_every == 0:
            run.save(state, measured.get("validation_loss"))
        if stopped_by and not finished:
            return run.fit(params, state, _best(history), stopped_by)
    chosen, entry_of_best = run.finish(state, evaluate is not None)
    params = whole(chosen.params) if best is None else best
    return run.fit(params, state, entry_of_best, agreed_signal(run.stop.signal))


@dataclasses.dataclass
class _Means:
    """The weighted means of an epoch's metrics so far, and how fast it went."""

    weight: float = 0.0
    sums: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count a step; one that was skipped counts as that alone."""
        if metrics.get("skipped"):
            self.skipped += 1
            return
        weight = metrics.get("weight", 1.0)
        if np.ndim(weight):
            raise InvalidInputError(
                f"the metric weight must be one number for a step, but has {np.shape(weight)}; sum "
                "it over the rows"
            )
        self.weight += weight
        for name in metrics.keys() - {"weight", "skipped"}:
            new = weight * np.asarray(metrics[name])
            self.sums[name] = np.add(self.sums.get(name, 0.0), new).tolist()

    def summary(self) -> Entry:
        # Where nothing counted there is no mean, and NaN says so.
        weight = self.weight or math.nan
        means = {
            name: (np.asarray(self.sums[name]) / weight).tolist() for name in sorted(self.sums)
        }
        shown = {"skipped": self.skipped} if self.skipped else {}
        speed = {"steps_per_second": self.steps / self.seconds} if self.seconds else {}
        return {"loss": math.inf, **means, **shown, **speed}


@dataclasses.dataclass(eq=False)
class _Run:
    """Where a run stands besides its state, how it trains, and its folder, if it has one."""

    train_steps: TrainSteps
    batches: Any
    epochs: int
    sharding: Sharding | None
    shown: Progress
    most_skipped: int
    steps_per_dispatch: int | None
    history: list[Entry] = dataclasses.field(default_factory=list)
    means: _Means = dataclasses.field(default_factory=_Means)  # of the epoch in progress
    skipped: int = 0  # in a row
    steps: int = 0  # of an epoch, once it is known
    paced: int = _FIRST_DISPATCH  # steps of a dispatch
    compiled: bool = False
    in_folder: bool = False
    finished: bool = False
    done: int = 0  # steps
    data: Any = None  # the batches of the epoch that was read last
    data_epoch: int = 0
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)

    def open(
        self, folder: Path, config: Mapping[str, Any], keep_last: int, stack: contextlib.ExitStack
    ) -> None:
        """Take a folder, and lock it until the stack is left."""
        self.config = as_json("config", config, finite=True)
        from_first(lambda: stack.enter_context(locked(folder)))
        self.folder, self.in_folder = folder, True
        self.devices = 1 if self.sharding is None else self.sharding.mesh.size
        where = folder / "checkpoints"
        self.checkpoints = Checkpoints(where, keep_last=keep_last, sharding=self.sharding)
        self.of_steps = Records(folder / "steps.jsonl")
        self.of_epochs = Records(folder / "epochs.jsonl")

    def read(self, epoch: int) -> Any:
        """The batches of an epoch, as many as of every other one."""
        if self.data is None or (self.data_epoch != epoch and callable(self.batches)):
            self.shown.doing("reading")
            self.data = None  # of two epochs at once there may be too much
            self.data, self.steps = together(lambda: self._read(epoch))
            self.data_epoch = epoch
        return self.data

    def _read(self, epoch: int) -> tuple[Any, int]:
        data = self.batches(epoch) if callable(self.batches) else self.batches
        steps = _length(data, isinstance(self.batches, Minibatches))
        if self.steps and steps != self.steps:
            raise InvalidInputError(
                f"every epoch must have as many steps as the first, {self.steps}, but epoch "
                f"{epoch + 1} has {steps}; drop, or fill up, what is left over"
            )
        return data, steps

    def on_devices(self, epoch: int) -> Any:
        """The batches of an epoch, laid over the devices."""
        self.data = self._put(self.read(epoch))  # which puts nothing where it lies there
        return self.data

    def _put(self, data: Any) -> Any:
        return jax.device_put(data) if self.sharding is None else self.sharding.put_batches(data)

    def restore(self, state: TrainState, free: Collection[str]) -> TrainState:
        """The state to go on from: that of the latest whole checkpoint, or the one given."""
        if isinstance(free, str) or not set(free) <= PARTS.keys() | self.config.keys():
            raise InvalidInputError(
                f"free must be a set of names in config or of {', '.join(PARTS)}, but is {free!r}; "
                'pass {"optimizer"}, say'
            )
        require_alike({"config": self.config, **self.identity})
        saved = self.checkpoints.latest()
        if saved is not None:
            about = saved.about
            if not {"config", "history", "means", "skipped", "identity"} <= about.keys():
                raise CheckpointError(
                    f"the checkpoints in {self.folder} are not of a run of fit; give another folder"
                )
            self._require_same(about, set(free))
            state = saved.restore(state)
            if about.get("devices", self.devices) != self.devices:
                self.shown.say(
                    f"the devices of the run were {about['devices']} and are {self.devices} now: "
                    "its numbers will differ by rounding"
                )
            self.history, self.means = about["history"], _Means(**about["means"])
            self.skipped = about["skipped"]
        from_first(lambda: self._take_back(int(state.step), saved is None))
        return state

    def _require_same(self, about: Mapping[str, Any], free: set[str]) -> None:
        """Raise unless the run that was saved is the one that is to go on."""
        theirs = about["config"]
        for name in sorted((theirs.keys() | self.config.keys()) - free):
            if theirs.get(name) != self.config.get(name):
                raise CheckpointError(
                    f"the run in {self.folder} has {name} {theirs.get(name)!r}, but "
                    f"{self.config.get(name)!r} came, with which it cannot go on exactly; give "
                    "it what it has, or begin a new run in another folder"
                )
        if (made_by := about["identity"]["made_by"]) != self.identity["made_by"]:
            self.shown.say(
                f"the run was begun with {made_by}, and this is {self.identity['made_by']}: its "
                "numbers may differ by rounding, and whether its loss and optimizer are the same "
                "cannot be told"
            )
        parts = differing(self.identity, about["identity"])
        if named := [PARTS[part] for part in parts if part not in free]:
            allowed = ", ".join(f'"{part}"' for part in parts)
            raise CheckpointError(
                f"the run in {self.folder} has another {', another '.join(named)} than came, with "
                "which it cannot go on exactly; give it what it had, begin a new run in another "
                f"folder, or let that differ by free={{{allowed}}}"
            )
        if parts:
            changed = ", another ".join(PARTS[part] for part in parts)
            self.shown.say(f"the run goes on with another {changed}, as free allows")
        if about["steps_per_epoch"] != self.steps:
            raise CheckpointError(
                f"the run in {self.folder} has epochs of {about['steps_per_epoch']} steps, but "
                f"batches of {self.steps} came, with which it cannot go on exactly; give it what "
                "it had, or begin a new run in another folder"
            )

    def _take_back(self, done: int, anew: bool) -> None:
        """Drop what was recorded after the checkpoint, and say what is missing before it."""
        if anew and list(self.checkpoints.directory.glob("damaged-*")):
            raise CheckpointError(
                f"all checkpoints in {self.checkpoints.directory} were damaged, and are set aside; "
                "begin a new run in another folder, or put one of them back"
            )
        if anew and self.of_epochs.read():
            self.shown.say(
                f"there is no checkpoint in {self.folder}: the run begins anew; what it had "
                "recorded is kept in *.before"
            )
            for records in (self.of_steps, self.of_epochs):
                if records.path.exists():
                    records.path.replace(records.path.with_name(f"{records.path.name}.before"))
        self.of_steps.drop_after(done)
        missing = done - len({entry["step"] for entry in self.of_steps.read()})
        if missing:
            warnings.warn(
                f"{self.of_steps.path} lacks {missing} of the {done} steps up to the checkpoint; "
                "the run goes on exactly, but its curve has a gap",
                stacklevel=1,
            )
        recorded = [entry for entry in self.of_epochs.read() if entry["step"] <= done]
        if recorded != finite_or_none(self.history):
            warnings.warn(
                f"{self.of_epochs.path} was not as the checkpoint has it, and is written anew",
                stacklevel=1,
            )
        self.of_epochs.write(self.history)

    def train(self, state: TrainState, data: Any, epoch: int) -> tuple[TrainState, int | None]:
        """Train to the end of an epoch, or to where a signal stops the run."""
        steps, done = self.steps, int(state.step)
        while True:
            first = done - epoch * steps
            self.shown.doing("training" if self.compiled else "compiling")
            began = time.perf_counter()
            last = min(first + (self.steps_per_dispatch or self.paced), steps)
            state, metrics = self.train_steps(state, data, first, last)
            count = int(state.step) - done
            values = {name: np.asarray(m)[first:][:count] for name, m in metrics.items()}
            # The first dispatch was compiled, and teaches nothing of the speed.
            seconds = time.perf_counter() - began if self.compiled else None
            self._record(values, done, epoch)
            done = self.done = done + count
            self.shown.on_dispatch(done, values["loss"].tolist(), seconds)
            if seconds is not None:
                self.means.steps += count
                self.means.seconds += seconds
                if jax.process_count() == 1:  # else all would have to agree
                    self.paced = max(1, round(count * _SECONDS_PER_DISPATCH / seconds))
            self.compiled = True
            signal = agreed_signal(self.stop.signal)
            if signal or done == (epoch + 1) * steps:
                return state, signal

    def _record(self, values: Mapping[str, np.ndarray], done: int, epoch: int) -> None:
        """Record the steps of a dispatch; NonFiniteError if one may not be skipped."""
        good = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        entries = []
        try:
            for i, finite in enumerate(good.tolist()):
                step = {name: value[i].tolist() for name, value in values.items()}
                self.skipped = 0 if finite else self.skipped + 1
                if self.skipped > self.most_skipped:
                    raise self._diverged(done + i + 1, step)
                self.means.add(step)
                shown = step if finite else {"skipped": True}
                entries.append({"step": done + i + 1, "epoch": epoch + 1, **shown})
        finally:
            if self.in_folder:
                from_first(lambda: self.of_steps.append(entries))

    def _diverged(self, step: int, metrics: Mapping[str, float]) -> NonFiniteError:
        good = "there is no checkpoint yet"
        if self.in_folder and (last := self.checkpoints.steps()):
            good = f"the last good checkpoint is {self.checkpoints.path(last[-1])}"
        before = f", after {self.most_skipped} that were skipped" if self.most_skipped else ""
        return NonFiniteError(
            f"at step {step} the loss is {metrics['loss']:g} and the norm of the gradient "
            f"{metrics['grad_norm']:g}{before}; {good}; try a smaller learning rate or clip the "
            'gradient (free={"optimizer"} lets the run go on with it), or let such steps be skipped'
        )

    def say_stopped(self, number: int, saved: bool) -> None:
        """Say that a signal came, and from where the run goes on."""
        name, total = signal.Signals(number).name, self.epochs * self.steps
        if self.finished:
            alert(f"{name}: the run was done, and is saved in {self.folder}")
        elif saved:
            alert(
                f"{name}: stopped after step {self.done} of {total}, saved in "
                f"{self.checkpoints.path(self.done)}; the same call goes on from there"
            )
        else:
            alert(f"{name}: stopped by it and by an error; {self._goes_on()}")

    def say_interrupted(self) -> None:
        """Say what is lost when nothing could be saved."""
        alert(f"interrupted after step {self.done}: {self._goes_on()}")

    def _goes_on(self) -> str:
        if not self.in_folder:
            return "without a run_dir nothing is saved, and what was learned is lost"
        # Not by `Checkpoints.steps`: the other processes, which it asks, may not have stopped.
        if not any(self.checkpoints.directory.glob("[0-9]*")):
            return f"there is no checkpoint in {self.folder} yet, and the same call begins again"
        return f"the same call goes on from the last checkpoint in {self.folder}"

    def validate(self, evaluate: Callable[[Any], Mapping[str, Any]], params: Any) -> dict[str, Any]:
        """What is measured on every process, as the first one has it."""
        self.shown.doing("validating")

        def measure() -> dict[str, float]:
            found = evaluate(params)
            if not isinstance(found, Mapping) or "validation_loss" not in found:
                raise InvalidInputError(
                    "evaluate must return a dict of measures, with 'validation_loss' among them, "
                    f"but returned {found!r}; give it that name"
                )
            if taken := sorted(
                (OF_FIT - {"validation_loss"} | self.means.sums.keys()) & found.keys()
            ):
                raise InvalidInputError(
                    f"evaluate returned {taken}, which fit measures in training; rename them"
                )
            try:
                return {name: float(value) for name, value in found.items()}
            except (TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"evaluate must return numbers, but: {error}; give one number for each name"
                ) from error

        measured = together(measure)
        return from_first(lambda: measured)

    def end_epoch(self, state: TrainState, epoch: int, measured: dict[str, float]) -> bool:
        """Record and show an epoch; returns whether none before was measured to be as good."""
        entry = {"step": int(state.step), "epoch": epoch + 1, **self.means.summary(), **measured}
        self.means = _Means()
        before = min(map(_score, self.history), default=math.inf)
        self.history.append(entry)
        if self.in_folder:
            from_first(lambda: self.of_epochs.append([entry]))
        from_first(lambda: self.shown.on_epoch(epoch + 1, state, entry))
        return bool(measured) and _score(entry) < before

    def save(self, state: TrainState, loss: float | None = None) -> None:
        """Write a checkpoint, after what was recorded before it."""
        if not self.in_folder:
            return
        self.shown.doing("writing")
        from_first(self.of_steps.to_disk)
        from_first(self.of_epochs.to_disk)
        about = {
            "config": self.config,
            "history": self.history,
            "means": dataclasses.asdict(self.means),
            "skipped": self.skipped,
            "steps_per_epoch": self.steps,
            "devices": self.devices,
            "identity": self.identity,
        }
        self.checkpoints.save(state, about, loss=loss)

    def fit(
        self, params: Any, state: TrainState, best: Entry | None, signal: int | None = None
    ) -> Fit:
        """What `fit` returns: parameters of their own, which stay where the state is donated."""
        params = jax.tree.map(jnp.array, params)
        return Fit(params, state, self.history, best, signal, self.finished)

    def finish(self, state: TrainState, measured: bool) -> tuple[TrainState, Entry | None]:
        """Write what came out, at the end; returns the best state that is saved, and its entry."""
        self.finished = True
        if not self.in_folder:
            return state, _best(self.history)
        best = self.checkpoints.best() if measured else None
        step = int(state.step) if best is None else best.step
        entry = next((entry for entry in self.history if entry["step"] == step), None)
        result = {"best": entry, "last": self.history[-1] if self.history else None}
        from_first(lambda: write_json(self.folder / "result.json", result))
        return state if best is None or step == int(state.step) else best.restore(state), entry


def _without_carry(loss_fn: Any, params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
    loss = loss_fn(params, batch, key)
    if isinstance(loss, tuple):
        raise InvalidInputError(
            "loss_fn without a carry must return the loss alone, but returned a tuple; to return "
            "metrics give fit a carry, perhaps ()"
        )
    return loss, (carry, {})


_WITH_CARRY = "params", "carry", "batch", "key"


def _check_takes(loss_fn: Any, names: tuple[str, ...]) -> None:
    """Raise unless a loss function can be called with as many arguments."""
    try:
        inspect.signature(loss_fn).bind(*names)
    except TypeError as error:
        with_or_without = "with a carry" if names == _WITH_CARRY else "without a carry"
        raise InvalidInputError(
            f"loss_fn of a fit {with_or_without} must take ({', '.join(names)}), but: {error}; "
            "give fit the carry with which an epoch begins if loss_fn takes one, and else none"
        ) from error
    except ValueError:  # of a callable that does not say
        return


def _length(data: Any, may_be_list: bool) -> int:
    """The steps of an epoch's batches."""
    if isinstance(data, Iterator):
        raise InvalidInputError(
            f"batches must be arrays, or a function from the number of an epoch to arrays, but "
            f"{brief(data)} came, which can be gone through only once; stack what it gives, as by "
            "jax.tree.map(lambda *leaves: numpy.stack(leaves), *batches)"
        )
    if isinstance(data, list) and not may_be_list:
        raise InvalidInputError(
            "batches must be one tree with steps first, but a list came; stack its batches, as by "
            "jax.tree.map(lambda *leaves: numpy.stack(leaves), *batches)"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype.kind in "OSTU":
            raise InvalidInputError(
                f"batches must be arrays of numbers, but batches{jax.tree_util.keystr(path)} is of "
                f"type {dtype}; encode texts first, as rnnjax.text.Vocabulary does"
            )
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise InvalidInputError(
            "batches must be arrays with a first axis of steps, as long in all of them, and not "
            f"empty, but their first axes are {sorted(lengths)}; give all the same number of steps"
        )
    return lengths.pop()[0]


def _score(entry: Mapping[str, Any]) -> float:
    """What is to become small: the validation loss, or that of training where there is none."""
    score = float(entry.get("validation_loss", entry["loss"]))
    return score if math.isfinite(score) else math.inf


def _best(history: list[Entry]) -> Entry | None:
    """The entry with the lowest validation loss; without one, the last."""
    scored = [e for e in history if "validation_loss" in e and _score(e) < math.inf]
    return min(scored, key=_score) if scored else (history[-1] if history else None)


def _stale(history: list[Entry], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought nothing better than those before them."""
    scores = [_score(entry) for entry in history]
    count = max(0, len(scores) - patience)  # before there are so many, none is stale
    recent, before = scores[count:], scores[:count]
    return bool(patience and before) and min(recent) >= min(before)
