"""A run and its folder: checkpoints, records, and the message when a signal stops it."""

import dataclasses
import os
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from rnnjax.checks import brief, check_choice, check_size
from rnnjax.errors import CheckpointError, InvalidInputError
from rnnjax.training.checkpoints import Checkpoints, Saved
from rnnjax.training.files import as_json, locked, read_lines, to_disk, write_json, write_lines
from rnnjax.training.hooks import Entry, Hook, Progress, alert
from rnnjax.training.identity import PARTS
from rnnjax.training.processes import StopRequest, from_first, require_alike, telling_peers
from rnnjax.training.sharding import Sharding
from rnnjax.training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class RunFolder:
    """Where and how often `fit` saves a run, and what may differ when the run resumes.

    The folder holds ``checkpoints/`` (see `Checkpoints`), the metrics of every step
    (``steps.jsonl``), the history (``epochs.jsonl``), and at the end the best and the last epoch
    (``result.json``). `load_params` reads the parameters.

    The same call of `fit` resumes the run, bit for bit as if it had never stopped. A call with
    another loss, optimiser, key, carry, ``config``, initial parameters or data is refused; it reads
    the data of the first epoch again to compare. ``epochs``, hooks, evaluation, saving and sharding
    may differ.

    SIGTERM, SIGHUP and Ctrl-C finish the step in progress and save it, and a line on standard error
    says where. The signal then ends the program as usual. Without a folder it does so at once.

    Args:
        path: the folder, created if it does not exist; None writes nothing.
        config: options to save with the run, as JSON. A resumed run must have the same.
        free: what may differ in a resumed run: names in ``config``, and any of "key", "params",
            "carry", "batches", "loss" and "optimizer"; "optimizer", for example, to continue with a
            smaller learning rate.
        checkpoint_every: the number of epochs between checkpoints. One is also written at each
            better validation loss, at the end, and when a signal stops the run.
        keep_last: how many checkpoints to keep, besides the best.
        on_signal: "return" makes `fit` return at a signal, with ``stopped_by``, instead of raising
            the signal again.

    Raises:
        InvalidInputError: an argument is out of range.

    >>> folder = RunFolder("runs/first", config={"layers": 2}, free={"optimizer"})
    >>> folder.keep_last
    3
    """

    path: str | os.PathLike[str] | None
    _: dataclasses.KW_ONLY
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    free: Collection[str] = ()
    checkpoint_every: int = 1
    keep_last: int = 3
    on_signal: Literal["raise", "return"] = "raise"

    def __post_init__(self) -> None:
        check_size("checkpoint_every", self.checkpoint_every)
        check_size("keep_last", self.keep_last)
        object.__setattr__(self, "config", as_json("config", self.config, finite=True))
        if isinstance(self.free, str) or not set(self.free) <= PARTS.keys() | self.config.keys():
            raise InvalidInputError(
                f"free must be a set of names in config or of {', '.join(PARTS)}, but is "
                f'{self.free!r}; pass {{"optimizer"}}, say'
            )
        check_choice("on_signal", self.on_signal, ("raise", "return"))


# What keeps the state of a run, such as a hook its history, and the run in progress that has it.
_IN_USE: dict[int, "Run"] = {}


class Run:
    """A run of `fit` from its beginning to its end, and what it writes into its folder."""

    def __init__(self, run_dir: Any, sharding: Sharding | None, shown: Progress):
        self.folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir)
        self.path = None if self.folder.path is None else Path(self.folder.path)
        self.shown = shown
        self.devices = 1 if sharding is None else sharding.mesh.size
        self.stop, self.step, self.saved, self.finished = StopRequest(), 0, -1, False

    @contextmanager
    def opened(self, *given: Any) -> Iterator[ExitStack]:
        """Lock the folder, hooks and iterators until the run ends; then raise a signal again."""
        failed = True
        try:
            with telling_peers(), ExitStack() as stack:
                for each in (x for x in given if isinstance(x, Hook | Iterator)):
                    if _IN_USE.setdefault(id(each), self) is not self:
                        raise InvalidInputError(
                            "hooks and iterators must be those of one run, whose state they keep, "
                            f"but another one in progress has {brief(each)}; give each run its own"
                        )
                    stack.callback(_IN_USE.pop, id(each), None)
                if self.path is not None:
                    path, keep_last = self.path, self.folder.keep_last
                    self.is_new = from_first(lambda: stack.enter_context(locked(path)))
                    self.checkpoints = Checkpoints(path / "checkpoints", keep_last=keep_last)
                yield stack
            failed = False
        except KeyboardInterrupt:
            alert(f"interrupted after step {self.step}: {self._goes_on()}")
            self.stop.signal = None
            raise
        finally:
            number = self.stop.signal
            if number is not None and self.folder.on_signal == "raise":
                alert(f"{signal.Signals(number).name}: {self._stopped(failed)}")
                self.stop.raise_again()

    def _stopped(self, failed: bool) -> str:
        if self.finished:
            return f"the run was done, and is saved in {self.path}"
        if failed:
            return f"stopped by it and by an error; {self._goes_on()}"
        where = f"stopped after step {self.step}, "
        if self.saved == self.step:
            saved = self.checkpoints.path(self.step)
            return f"{where}saved in {saved}; the same call resumes from there"
        amid = "amid an epoch of batches that cannot say where they stand"
        return f"{where}{amid}; {self._goes_on()}"

    def _goes_on(self) -> str:
        if self.path is None:
            return "without a run_dir nothing is saved, and what was learned is lost"
        # Not by `Checkpoints.steps`: the other processes, which it asks, may not have stopped.
        if not any((self.path / "checkpoints").glob("[0-9]*")):
            return f"there is no checkpoint in {self.path} yet, and the same call begins again"
        return f"the same call resumes from the last checkpoint in {self.path}"

    def latest(self, identity: dict[str, str]) -> Saved | None:
        """Return the checkpoint to resume from, or None.

        Raises:
            CheckpointError: it belongs to another run, or all are damaged.
        """
        self.identity = identity
        require_alike({"config": self.folder.config, **identity})
        saved = self.checkpoints.latest()
        if saved is not None:
            if not {"config", "history", "means", "identity", "ended_by"} <= saved.about.keys():
                raise CheckpointError(
                    f"the checkpoints in {self.path} are not of a run of fit; give another folder"
                )
            self._require_same(saved.about)
            self.step = self.saved = saved.step
        from_first(lambda: self._take_back(saved))
        return saved

    def _require_same(self, about: Mapping[str, Any]) -> None:
        """Raise unless the saved run is the one to resume."""
        theirs, told = about["identity"], set(PARTS)
        if theirs["made_by"] != self.identity["made_by"]:
            told -= {"loss", "optimizer"}  # whose programs are those of a version
            self.shown.say(
                f"the run was begun with {theirs['made_by']}, and this is "
                f"{self.identity['made_by']}: its numbers may differ by rounding, and whether its "
                "loss and optimizer are the same cannot be told"
            )
        known, ours = about["config"], self.folder.config
        differing = {
            name: _difference(name, known.get(name), ours.get(name))
            for name in sorted(known.keys() | ours.keys())
            if known.get(name) != ours.get(name)
        }
        differing |= {
            name: f"another {part}"
            for name, part in PARTS.items()
            if name in told and theirs[name] != self.identity[name]
        }
        if named := [what for name, what in differing.items() if name not in self.folder.free]:
            raise CheckpointError(
                f"the run in {self.path} has {', '.join(named)}, and cannot resume exactly with "
                "what came; give it what it had, or begin a new run in another folder (what may "
                f"differ is named by free={set(differing)} of a RunFolder)"
            )
        if differing:
            self.shown.say(f"the run had {', '.join(differing.values())}, and resumes so")
        if about["devices"] != self.devices:
            self.shown.say(
                f"the devices of the run were {about['devices']} and are {self.devices} now: "
                "its numbers will differ by rounding"
            )

    def _take_back(self, saved: Saved | None) -> None:
        """Drop the records after the checkpoint."""
        assert self.path is not None
        steps, epochs = (self.path / f"{name}.jsonl" for name in ("steps", "epochs"))
        there = [path for path in (steps, epochs, self.path / "result.json") if path.exists()]
        if saved is None and there and (self.is_new or read_lines(epochs)):
            self.shown.say(
                f"there is no checkpoint in {self.path}: the run begins anew; its records so far "
                "are moved to *.before"
            )
            for records in there:
                records.replace(records.with_name(f"{records.name}.before"))
        write_lines(steps, [entry for entry in read_lines(steps) if entry["step"] <= self.step])
        write_lines(epochs, [] if saved is None else saved.about["history"])

    def record(self, name: Literal["steps", "epochs"], entries: Sequence[Entry]) -> None:
        """Record the metrics of some steps, or the measures of an epoch, on the first process."""
        if self.path is not None:
            write_lines(self.path / f"{name}.jsonl", entries, more=True)

    def save(self, state: TrainState, about: Mapping[str, Any], loss: float | None) -> None:
        """Write a checkpoint with the state and ``about``."""
        if (path := self.path) is not None:  # records of these steps are on the disk before it
            from_first(lambda: to_disk(*path.glob("*.jsonl")))
        own = {"config": self.folder.config, "devices": self.devices, "identity": self.identity}
        self.checkpoints.save(state, {**about, **own}, loss=loss)
        self.saved = self.step

    def last_good(self) -> str:
        """Describe the last checkpoint, for the message about a non-finite step."""
        if self.path is not None and self.saved >= 0:
            return f"the last good checkpoint is {self.checkpoints.path(self.saved)}"
        return "there is no checkpoint yet"

    def finish(self, history: Sequence[Entry], best: Entry) -> Saved | None:
        """Write the result; return the checkpoint of the best epoch, unless that is the last."""
        self.finished = True
        if self.path is None:
            return None
        step, saved = history[-1]["step"], None
        if "validation_loss" in best and best["step"] != step:
            saved = self.checkpoints.best()
            step = saved.step
        entry = next((entry for entry in history if entry["step"] == step), None)
        path, result = self.path / "result.json", {"best": entry, "last": history[-1]}
        from_first(lambda: write_json(path, result))
        return saved


def _difference(name: str, known: Any, ours: Any) -> str:
    """Say how two values of a configuration differ, of dicts entry by entry."""
    if not isinstance(known, dict) or not isinstance(ours, dict):
        return f"{name}={known!r} (not {ours!r})"
    names = sorted(each for each in known.keys() | ours.keys() if known.get(each) != ours.get(each))
    return ", ".join(_difference(f"{name}.{n}", known.get(n), ours.get(n)) for n in names)
