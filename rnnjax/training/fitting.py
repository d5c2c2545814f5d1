"""`fit`: a whole training run, from the loss of one batch to the best parameters."""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.checks import advised, brief, check_instance, check_key, check_known, check_size
from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.training.files import as_json
from rnnjax.training.hooks import Entry, Hook, Progress, Silent
from rnnjax.training.identity import identity, of_changes
from rnnjax.training.processes import agreed_signal, from_first, is_first, require_alike, together
from rnnjax.training.run_folder import Run, RunFolder
from rnnjax.training.sharding import Sharding
from rnnjax.training.sources import Group, Minibatches, Source, carries_rows, divided, shapes_of
from rnnjax.training.state import TrainState, check_params
from rnnjax.training.step import OF_FIT, TrainSteps, make_eval_steps, make_train_steps

# The target duration of a dispatch: long against Python's overhead of half a millisecond, and short
# enough to answer a signal.
_SECONDS_PER_DISPATCH = 0.25
_FIRST_DISPATCH = 10
_KEPT = "history", "skipped", "position", "ended_by"  # of a loop, in a checkpoint as they are


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """The result of `fit`.

    Attributes:
        params: the parameters with the lowest validation loss; the last ones without validation,
            or if a signal stopped the run.
        state: the last state, from which the run would resume.
        history: one entry per epoch: ``step``, ``epoch``, the mean loss and metrics over its steps,
            the measures of ``evaluate``, and ``steps_per_second``.
        best: the entry with the lowest validation loss, else the last; None before the first.
        stopped_by: the number of the signal that stopped the run, or None.
        finished: whether the run ended by ``epochs`` or by a hook.
    """

    params: Any
    state: TrainState
    history: list[Entry]
    best: Entry | None
    stopped_by: int | None
    finished: bool

    def __repr__(self) -> str:
        """Name the number of epochs, the best entry and how the run ended, but print no arrays."""
        return (
            f"Fit({len(self.history)} epochs, best={self.best}, stopped_by={self.stopped_by}, "
            f"finished={self.finished})"
        )


@advised
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
    evaluate: Any = None,
    run_dir: str | os.PathLike[str] | RunFolder | None = None,
    hooks: Sequence[Hook | Callable[[TrainState, Entry], Any]] = (),
    skip_nonfinite: int = 0,
    steps_per_dispatch: int | None = None,
    sharding: Sharding | Literal["cores"] | None = None,
) -> Fit:
    """Train for some epochs, and return the best parameters.

    Args:
        loss_fn: ``(params, batch, key) -> loss``, or ``(loss, metrics)``; with ``carry`` a
            `LossFunction`.
        params: the initial parameters, any pytree. They are copied.
        optimizer: an optax optimiser, with its schedule and clipping; see `make_train_steps`.
        batches: arrays with a first axis of steps; or an iterable of batches, such as a
            ``DataLoader``, a ``tf.data.Dataset`` or a grain loader; or a function from the number
            of an epoch, from 0, to either (`minibatches` makes one).
        epochs: the total number of epochs; a resumed run does the rest.
        key: the random key of the run; step ``n`` uses ``jax.random.fold_in(key, n)``.
        carry: the state at the start of every epoch; without it batches are independent. One with a
            state for each row does not go with `minibatches`, whose batches have other rows.
        keep_carry: whether an epoch begins with the last carry of the previous epoch instead.
        evaluate: data like ``batches``, whose mean loss is ``validation_loss``, and likewise for
            metrics (the key is None); or ``params -> measures``, which include that one. Of
            `minibatches` every row counts once: the last ones are a smaller batch, which weighs
            less, or as its metric ``weight`` says (a carry with a state for each row omits them).
        run_dir: a folder or a `RunFolder`, in which the run is saved, and from which it resumes.
        hooks: `Hook` objects, such as `EarlyStopping`, or functions ``(state, summary)``, called
            after each epoch; True ends the run. `Silent` hides the `Progress`. They and
            ``evaluate`` get a copy of the parameters, and may keep it.
        skip_nonfinite: how many steps in a row may be non-finite. They change nothing, and the
            metric ``skipped`` counts them.
        steps_per_dispatch: the number of steps per call from Python. It does not affect results.
        sharding: how to shard state and batches over devices; "cores" for the cores of the CPU.

    Raises:
        NonFiniteError: the loss or the gradient became NaN or infinite.
        CheckpointError: the run in ``run_dir`` is another one, or another process writes there.
        RnnjaxError: another process of the run ended or failed.
        InvalidInputError: an argument is out of range.

    >>> xs = jnp.linspace(0, 1, 40).reshape(10, 4)  # ten steps of four
    >>> result = fit(
    ...     lambda params, batch, key: jnp.mean((params * batch - 3 * batch) ** 2),
    ...     jnp.zeros(()), optax.adam(0.1), xs, 20, key=jax.random.key(0), hooks=[Silent()])
    >>> round(float(result.params), 2), len(result.history)
    (3.0, 20)
    """
    check_size("epochs", epochs)
    check_size("steps_per_dispatch", 1 if steps_per_dispatch is None else steps_per_dispatch)
    _check(loss_fn, params, carry, key, skip_nonfinite)
    called = _hooks(hooks)
    shown = next(hook for hook in called if isinstance(hook, Progress))
    if carry is None:
        loss_fn, carry = functools.partial(_without_carry, loss_fn), ()
    if rows_go_on := carries_rows((batches, evaluate), carry, params):
        shown.say(
            "the carry has a state for each row, but minibatches shuffles rows, so one begins from "
            "the state of another; leave carry out, or give batches whose rows go on, as of windows"
        )
    batches, sharding = divided(batches, sharding, params, shown.say)
    run = Run(run_dir, sharding, shown)
    train_steps = make_train_steps(loss_fn, optimizer, sharding, skip_nonfinite=skip_nonfinite > 0)
    measure = _measure(evaluate, loss_fn, carry, epochs, sharding, not rows_go_on)
    source = Source("batches", batches, epochs, sharding)
    loop = _Loop(
        train_steps=train_steps, measure=measure, source=source, sharding=sharding, hooks=called,
        run=run, epochs=epochs, carry=carry, keep_carry=keep_carry, most_skipped=skip_nonfinite,
        steps_per_dispatch=steps_per_dispatch,
    )  # fmt: skip
    state = TrainState.create(params, optimizer, key=key, carry=carry)
    with run.opened(*called, batches, evaluate) as stack:
        stack.callback(loop.call, "close")
        require_alike({"epochs": epochs, "whether there is a run_dir": run.path is not None})
        if run.path is not None:
            parts = identity(loss_fn, optimizer, state, source.first_epoch(), keep_carry)
            state = loop.restore(state, parts)
        if run.path is not None or run.folder.on_signal == "return":
            stack.enter_context(run.stop)
        return loop.train(state)


@dataclasses.dataclass
class _Means:
    """The weighted means of an epoch's metrics so far, and its speed."""

    weight: float = 0.0
    sums: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of a step; a skipped step adds only to ``skipped``."""
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

    def means(self) -> Entry:
        # If nothing counted, the mean is NaN.
        weight = self.weight or math.nan
        return {name: (np.asarray(self.sums[name]) / weight).tolist() for name in sorted(self.sums)}

    def summary(self) -> Entry:
        shown = {"skipped": self.skipped} if self.skipped else {}
        speed = {"steps_per_second": self.steps / self.seconds} if self.seconds else {}
        return {"loss": math.inf, **self.means(), **shown, **speed}


@dataclasses.dataclass(eq=False)
class _Loop:
    """The training loop of a run, and its progress besides the state."""

    train_steps: TrainSteps
    measure: Callable[[TrainState], Entry] | None
    source: Source
    sharding: Sharding | None
    hooks: list[Hook]
    run: Run
    epochs: int
    carry: Any
    keep_carry: bool
    most_skipped: int
    steps_per_dispatch: int | None
    history: list[Entry] = dataclasses.field(default_factory=list)
    means: _Means = dataclasses.field(default_factory=_Means)  # of the epoch in progress
    skipped: int = 0  # in a row
    position: Any = None  # of the source in that epoch
    ended_by: list[str] = dataclasses.field(default_factory=list)  # names of hooks
    paced: int = _FIRST_DISPATCH  # steps of a dispatch
    compiled: set[str] = dataclasses.field(default_factory=set)  # for which shapes

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.epochs or bool(self.ended_by)

    def restore(self, state: TrainState, parts: dict[str, str]) -> TrainState:
        """Return the state to resume from: the latest checkpoint's, or the given one."""
        saved = self.run.latest(parts)
        if saved is None:
            return state
        about = saved.about
        self.means = _Means(**about["means"])
        for name in _KEPT:
            setattr(self, name, about[name])
        return saved.restore(state)

    def start(self, state: TrainState) -> None:
        """Call the hooks at the start of the run, which may already have ended."""
        for hook in self.hooks:
            hook.history, hook.epochs = self.history, self.epochs
        said = together(lambda: self.call("on_start", state))
        named = zip((type(hook).__qualname__ for hook in self.hooks), said, strict=True)
        before, done, past = self.ended_by, self.run.step, len(self.history)
        self.ended_by = [name for name, end in named if (name in before if end is None else end)]
        if done:
            self.run.shown.say(f"resumes from step {done:,}, after {past} of {self.epochs} epochs")
        if past > self.epochs or (past == self.epochs and done > self.history[-1]["step"]):
            warnings.warn(
                f"the run in {self.run.path} has done {done} steps, more than those of "
                f"{self.epochs} epochs; the result is that of all of them; for a shorter run give "
                "another folder",
                stacklevel=4,
            )

    def train(self, state: TrainState) -> Fit:
        state = state if self.sharding is None else self.sharding.put_state(state)
        self.start(state)
        best = None
        while not self.finished:
            state, whole = self.train_epoch(state)
            if not whole:
                if self.source.exact:
                    self.save(state)
                return self.result(state)
            state, better = self.end_epoch(state)
            if better and self.run.path is None:
                best = _copied(state.params, self.sharding)
            stopped = self.asked_to_stop()
            every = len(self.history) % self.run.folder.checkpoint_every == 0
            if self.finished or better or stopped or every:
                self.save(state, self.history[-1].get("validation_loss"))
            if stopped and not self.finished:
                return self.result(state)
        saved = self.run.finish(self.history, _best(self.history) or {})
        if saved is not None:
            best = saved.params(state.params)
        return self.result(state, best, saved.step if saved else None)

    def train_epoch(self, state: TrainState) -> tuple[TrainState, bool]:
        """Train to the end of an epoch, or until a signal; also return whether it is complete."""
        first = self.run.step - (self.history[-1]["step"] if self.history else 0)
        if first == 0 and not (self.keep_carry and self.run.step):
            state = _with_carry(state, self.carry, self.sharding)
        self.call("on_phase", "reading")
        with contextlib.closing(
            self.source.epoch(len(self.history), first, self.position)
        ) as groups:
            for group in groups:
                at, shapes = group.start, str(jax.tree.map(np.shape, group.batches))
                while at < group.stop:
                    if self.asked_to_stop():
                        return state, False
                    state, at = self.dispatch(state, group, at, shapes)
        return state, True

    def dispatch(
        self, state: TrainState, group: Group, at: int, shapes: str
    ) -> tuple[TrainState, int]:
        """Run some steps of a group from slot ``at`` on; also return the slot after them."""
        is_new, done = shapes not in self.compiled, self.run.step
        self.call("on_phase", "compiling" if is_new else "training")
        began = time.perf_counter()
        last = min(at + (self.steps_per_dispatch or self.paced), group.stop)
        state, metrics = self.train_steps(state, group.batches, at, last)
        count = int(state.step) - done
        values = {name: np.asarray(metric)[at:][:count] for name, metric in metrics.items()}
        # A dispatch that was compiled says nothing about the speed.
        seconds = None if is_new else time.perf_counter() - began
        self.compiled.add(shapes)
        self.record(values, done)
        self.run.step = done + count
        if group.positions is not None:
            self.position = group.positions[at + count - 1]
        self.call("on_dispatch", done + count, values["loss"].tolist(), seconds)
        if seconds is not None:
            self.means.steps += count
            self.means.seconds += seconds
            if jax.process_count() == 1:  # else all would have to agree
                self.paced = max(1, round(count * _SECONDS_PER_DISPATCH / seconds))
        return state, at + count

    def record(self, values: Mapping[str, np.ndarray], done: int) -> None:
        """Record the steps of a dispatch; raise NonFiniteError if one may not be skipped."""
        good = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        after = f", after {self.most_skipped} that were skipped" if self.most_skipped else ""
        entries = []
        try:
            for i, finite in enumerate(good.tolist()):
                step = {name: value[i].tolist() for name, value in values.items()}
                self.skipped = 0 if finite else self.skipped + 1
                if self.skipped > self.most_skipped:
                    raise NonFiniteError(
                        f"at step {done + i + 1} the loss is {step['loss']:g} and the norm of the "
                        f"gradient {step['grad_norm']:g}{after}; {self.run.last_good()}; mask "
                        "a NaN of the data, try a smaller learning rate or clip the gradient (free="
                        '{"optimizer"} lets the run resume with it), or pass over such steps by '
                        "skip_nonfinite=3"
                    )
                self.means.add(step)
                shown = step if finite else {"skipped": True}
                entries.append({"step": done + i + 1, "epoch": len(self.history) + 1, **shown})
        finally:
            from_first(lambda: self.run.record("steps", entries))

    def end_epoch(self, state: TrainState) -> tuple[TrainState, bool]:
        """Measure, record and show an epoch; also return whether it is the best so far."""
        measured = self.validate(state)
        entry = {"step": self.run.step, "epoch": len(self.history) + 1}
        # The same on all processes, so that their hooks decide alike.
        entry = from_first(lambda: entry | self.means.summary() | measured)
        self.means, self.position = _Means(), None
        before = min(map(_score, self.history), default=math.inf)
        self.history.append(entry)
        try:
            state = self.call_hooks(state, entry)
        finally:  # with what hooks wrote; not by from_first, for one process alone may have failed
            entry |= {name: x.tolist() for name, x in entry.items() if hasattr(x, "tolist")}
            if is_first():
                self.run.record("epochs", [entry])
        self.history[-1] = from_first(lambda: as_json("what hooks write into summary", entry))
        return state, _score(entry) < before

    def validate(self, state: TrainState) -> Entry:
        """Evaluate on every process, and return the measures of the first."""
        measure = self.measure
        if measure is None:
            return {}
        self.call("on_phase", "validating")
        measured = together(lambda: measure(state))
        if taken := sorted(
            (OF_FIT - {"validation_loss"} | self.means.sums.keys()) & measured.keys()
        ):
            raise InvalidInputError(
                f"evaluate returned {taken}, which fit measures in training; rename them"
            )
        return from_first(lambda: measured)

    def call_hooks(self, state: TrainState, entry: Entry) -> TrainState:
        """Call the hooks after an epoch, and return the state to continue with."""
        # The parameters alone are a copy that a hook may keep: the next step donates the rest.
        params = _copied(state.params, self.sharding)
        shown, ended = (given := dataclasses.replace(state, params=params)), []

        def call() -> None:
            nonlocal shown
            for hook in self.hooks:
                name = type(hook).__qualname__
                (said,) = self.call("on_epoch", shown, entry, hooks=[hook])
                expected = "True to end the run, a TrainState to continue with, or None"
                kind = TrainState | bool | np.bool_ | None
                check_instance(f"what the hook {name} returns", said, kind, expected)
                if isinstance(said, TrainState):
                    had, came = (jax.tree.flatten(shapes_of(each, 0)) for each in (shown, said))
                    if had != came:
                        raise InvalidInputError(
                            f"the hook {name} must return a state like the one that it got, but "
                            "its tree, shapes or types differ; change values alone"
                        )
                    shown = said
                elif said:
                    ended.append(name)

        together(call)
        if agreed_signal(len(ended)):
            self.ended_by = ended or ["a hook of another process"]
        if agreed_signal(shown is not given) and jax.process_count() > 1:
            require_alike({"the state that hooks return": of_changes(shown, given)})
        ours = shown.params is params  # and else of a hook, which may keep them
        params = state.params if ours else jax.tree.map(jnp.array, shown.params)
        shown = dataclasses.replace(shown, params=params)
        return shown if self.sharding is None else self.sharding.put_state(shown)

    def save(self, state: TrainState, loss: float | None = None) -> None:
        """Write a checkpoint, unless it exists."""
        if self.run.path is None or self.run.saved == self.run.step:
            return
        self.call("on_phase", "writing")
        about = {name: getattr(self, name) for name in _KEPT}
        about["means"] = dataclasses.asdict(self.means)
        whole = state if self.sharding is None else self.sharding.whole(state)
        self.run.save(whole, about, loss)

    def result(self, state: TrainState, best: Any = None, step: int | None = None) -> Fit:
        """Return the result of `fit`, with copies of parameters that survive donation."""
        params = _copied(state.params, self.sharding) if best is None else best
        entry = next((e for e in self.history if e["step"] == step), _best(self.history))
        return Fit(params, state, self.history, entry, self.asked_to_stop(), self.run.finished)

    def asked_to_stop(self) -> int | None:
        """Return the signal that any of the processes received."""
        number = agreed_signal(self.run.stop.signal)
        if number:
            self.run.stop.signal = number
        return number

    def call(self, method: str, *args: Any, hooks: Sequence[Hook] | None = None) -> list[Any]:
        """Call all hooks, or these, and return what they return; an error names its hook."""
        said = []
        for hook in self.hooks if hooks is None else hooks:
            try:
                said.append(getattr(hook, method)(*args))
            except Exception as error:
                error.add_note(f"It was raised by {method} of the hook {type(hook).__qualname__}.")
                raise
        return said


def _copied(params: Any, sharding: Sharding | None) -> Any:
    """Return whole parameters that the next step does not donate."""
    return jax.tree.map(jnp.array, params) if sharding is None else sharding.whole(params)


def _with_carry(state: TrainState, carry: Any, sharding: Sharding | None) -> TrainState:
    """Return the state with a copy of a carry, which a step donates and a later epoch needs."""
    state = dataclasses.replace(state, carry=jax.tree.map(jnp.array, carry))
    return state if sharding is None else sharding.put_state(state)


def _check(loss_fn: Any, params: Any, carry: Any, key: Any, skip_nonfinite: Any) -> None:
    """Raise unless the loss takes the arguments of `fit`, and the other arguments are valid."""
    check_size("skip_nonfinite", skip_nonfinite, 0)
    check_key(key)
    check_known("params and key", (params, key), "call fit outside, and make_train_steps inside")
    check_params(params)
    names = ("params", "batch", "key") if carry is None else ("params", "carry", "batch", "key")
    try:
        inspect.signature(loss_fn).bind(*names)
    except TypeError as error:
        with_or_without = "without a carry" if carry is None else "with a carry"
        raise InvalidInputError(
            f"loss_fn of a fit {with_or_without} must take ({', '.join(names)}), but: {error}; "
            "give fit the carry with which an epoch begins if loss_fn takes one, and else none"
        ) from error
    except ValueError:  # of a callable that does not say
        pass


def _hooks(given: Any) -> list[Hook]:
    """Return the hooks of a run on this process, including a `Progress`."""
    if not isinstance(given, Sequence) or not all(
        isinstance(h, Hook) or (callable(h) and not isinstance(h, type)) for h in given
    ):
        raise InvalidInputError(
            f"hooks must be a list of hooks and of functions (state, summary), but is "
            f"{brief(given)}; pass [EarlyStopping(5)], say"
        )
    hooks = [hook if isinstance(hook, Hook) else _of_function(hook) for hook in given]
    if not is_first():  # which one process shows and prints
        hooks = [hook for hook in hooks if not isinstance(hook, Progress)]
    if not any(isinstance(hook, Progress) for hook in hooks):
        hooks.insert(0, Progress() if is_first() else Silent())
    return hooks


def _of_function(function: Callable[[TrainState, Entry], Any]) -> Hook:
    """Return a function as a hook, under whose name a checkpoint says that it ended the run."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return type(name, (Hook,), {"on_epoch": staticmethod(function)})()


def _measure(
    evaluate: Any, loss_fn: Any, carry: Any, epochs: int, sharding: Sharding | None, rest: bool
) -> Callable[[TrainState], Entry] | None:
    """Return a function that measures a state: the given one, or the loss on given data."""
    if evaluate is None:
        return None
    if callable(evaluate) and not isinstance(evaluate, Minibatches):

        def measure_params(state: TrainState) -> Entry:
            found = evaluate(_copied(state.params, sharding))
            if not isinstance(found, Mapping) or "validation_loss" not in found:
                raise InvalidInputError(
                    "evaluate must return a dict of measures, with 'validation_loss' among them, "
                    f"but returned {found!r}; give it that name"
                )
            try:
                return {name: float(value) for name, value in found.items()}
            except (TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"evaluate must return numbers, but: {error}; give one number for each name"
                ) from error

        return measure_params
    evaluate, sharding = divided(evaluate, sharding, None, lambda said: None)
    sources = [(1.0, Source("evaluate", evaluate, epochs, sharding))]
    if rest and isinstance(evaluate, Minibatches) and (left := evaluate.rest()).size:
        # They may be fewer than the devices, so each device has all of them.
        whole = sharding and dataclasses.replace(sharding, rows_axis=None)
        source = Source("evaluate", evaluate.cut(left), epochs, whole)
        sources.append((left.size / evaluate.batch_size, source))
    eval_steps = make_eval_steps(loss_fn, sharding)

    def measure(state: TrainState) -> Entry:
        means, goes_on = _Means(), _with_carry(state, carry, sharding).carry
        for rows, group in ((rows, group) for rows, each in sources for group in each.epoch(0)):
            given = group.batches, group.start, group.stop, state.params
            goes_on, metrics = eval_steps(goes_on, *given)
            values = {name: np.asarray(metric) for name, metric in metrics.items()}
            for i in range(group.start, group.stop):
                own = {name: value[i].tolist() for name, value in values.items()}
                means.add({"weight": rows} | own)
        return {f"validation_{name}": mean for name, mean in means.means().items()}

    return measure


def _without_carry(loss_fn: Any, params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
    found = loss_fn(params, batch, key)
    if not isinstance(found, tuple):
        return found, (carry, {})
    if len(found) != 2 or not isinstance(found[1], Mapping):
        raise InvalidInputError(
            "loss_fn without a carry must return the loss, or (loss, metrics), but returned a "
            f"tuple of {len(found)}; make metrics a dict, or give fit the carry of the first epoch"
        )
    return found[0], (carry, dict(found[1]))


def _score(entry: Entry) -> float:
    """Return the validation loss; infinity if it is not finite, or if there is none."""
    score = float(entry.get("validation_loss", math.inf))
    return score if math.isfinite(score) else math.inf


def _best(history: list[Entry]) -> Entry | None:
    """Return the entry with the lowest validation loss; without one, the last."""
    scored = (entry for entry in history if _score(entry) < math.inf)
    return min(scored, key=_score, default=history[-1] if history else None)
