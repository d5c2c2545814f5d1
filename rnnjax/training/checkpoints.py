"""Checkpoints by Orbax: atomic, verified, and limited to the best one and the last few."""

import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rnnjax.checks import brief, check_instance, check_size, is_integer
from rnnjax.errors import CheckpointError, DamagedCheckpointError, InvalidInputError
from rnnjax.training.files import as_json, read_sealed, read_whole, to_disk, write_sealed
from rnnjax.training.processes import from_first
from rnnjax.training.state import TrainState, as_bits, as_keys, dtype_of

# A run resumes from this format alone. The parameters are read from every one with these keys.
_FORMAT = 1
_OF_PARAMS = {"leaves", "params", "files"}
_LOG = threading.Lock()  # of which all threads have the same
_KEYS = _OF_PARAMS | {"about", "loss", "step", "format"}


class Saved:
    """A verified checkpoint in memory.

    Attributes:
        step: the number of optimiser steps done.
        about: what the caller saved with the state.
    """

    def __init__(self, where: Path, sealed: Any, arrays: Any):
        self._where, self._sealed, self._arrays = where, sealed, arrays
        self.step = int(sealed["step"])

    @property
    def about(self) -> dict[str, Any]:
        """What the caller saved; a CheckpointError if it has another format."""
        known = {"format": 1, **self._sealed}  # 0.1.0 did not name it
        if known["format"] != _FORMAT or known.keys() != _KEYS:
            raise CheckpointError(
                f"{self._where} has format {known['format']} of another version of rnnjax, and "
                f"this one resumes format {_FORMAT}; resume it with that version, read its "
                "parameters by load_params, or begin a new run in another folder"
            )
        return dict(known["about"])

    def restore(self, like: TrainState) -> TrainState:
        """Return the state, on one device.

        Args:
            like: a state of the same model; its arrays may be abstract (``jax.eval_shape``).

        Raises:
            CheckpointError: it belongs to another model; the message names the arrays that differ.
                Or it has the format of another version of rnnjax.
            InvalidInputError: ``like`` is not a `TrainState`.
        """
        check_instance(
            "like", like, TrainState, "a TrainState (params reads the parameters without one)"
        )
        _ = self.about  # which knows the format
        state = TrainState(**self._fitted(jax.eval_shape(_plain, like)))
        return jax.tree.map(as_keys, state, like)

    def params(self, like: Any = None) -> Any:
        """Return only the parameters, on one device.

        Args:
            like: parameters of the same structure, possibly abstract. By default the parameters
                come back in dicts and tuples; lists become tuples.

        Raises:
            CheckpointError: they belong to another model than ``like``, or are in other containers
                than dicts, tuples and lists.
        """
        if like is None:
            like = nested(str(self._where), self._arrays, self._sealed["params"])
        return self._fitted({"params": like})["params"]

    def _fitted(self, target: dict[str, Any]) -> Any:
        parts = tuple(f"['{name}']" for name in target)
        arrays = {path: x for path, x in self._arrays.items() if path.startswith(parts)}
        return fitted(str(self._where), arrays, target)


class Checkpoints:
    """The checkpoints of one run, in one folder.

    A checkpoint holds the whole `TrainState` as Orbax arrays, and JSON of the caller in
    ``about.json``. It is written to a temporary folder, synced to the disk, and renamed. So a
    killed run or a power failure leaves only complete checkpoints. Checksums of all files are
    verified before they are read.

    With several processes, the first one writes the arrays in one piece and reads them for all, so
    a checkpoint fits any number of devices. Every process must make each call. The others need no
    access to the folder. An error is raised on all of them.

    Args:
        directory: the folder, which the first `save` creates.
        keep_last: how many of the latest to keep, besides the one with the lowest loss.

    Raises:
        InvalidInputError: ``keep_last`` is not an integer of at least 1.

    >>> import tempfile, optax
    >>> checkpoints = Checkpoints(tempfile.mkdtemp())
    >>> state = TrainState.create({"w": jax.numpy.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
    >>> checkpoints.save(state, {"layers": 3})
    >>> saved = checkpoints.latest()
    >>> saved.about, saved.restore(state).params
    ({'layers': 3}, {'w': Array([1., 1., 1.], dtype=float32)})
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep_last: int = 3):
        check_size("keep_last", keep_last)
        self.directory, self.keep_last = Path(directory).absolute(), keep_last
        self._replaceable: set[int] = set()  # steps of checkpoints that were found damaged

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints in order, including damaged ones."""
        names = (path.name for path in self.directory.glob("[0-9]*/"))
        # There are other folders, such as 3-old.
        return from_first(lambda: sorted(int(n) for n in names if re.fullmatch("0|[1-9][0-9]*", n)))

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of that step."""
        return self.directory / str(step)

    def save(
        self, state: TrainState, about: Mapping[str, Any], *, loss: float | None = None
    ) -> None:
        """Write the checkpoint of ``state.step``, and delete superseded ones.

        Args:
            state: the state, whole on every process (`Sharding.whole`).
            about: JSON that is needed to use it again, such as the model's options.
            loss: the loss that the best is chosen by; without it the checkpoint is never the best.

        Raises:
            InvalidInputError: ``state`` is not a `TrainState`, ``loss`` is not a number, or
                ``about`` is not JSON.
            CheckpointError: it could not be written (the disk is full, for example) and earlier
                ones remain; or there is already one of that step.
        """
        check_instance("state", state, TrainState, "a TrainState, as TrainState.create returns it")
        if loss is not None and (np.ndim(loss) or np.asarray(loss).dtype.kind not in "fiu"):
            raise InvalidInputError(
                f"loss must be a number, or None, but is {brief(loss)}; pass float(loss)"
            )
        from_first(lambda: self._save(state, about, loss))

    def latest(self) -> Saved | None:
        """Return the latest undamaged checkpoint, or None if there is none.

        It skips a damaged one with a warning. A run then resumes from the one before, comes to the
        same end, and sets it aside as ``damaged-<step>-<time>`` when it saves that step again. It
        also skips one that another process deletes meanwhile.

        Raises:
            CheckpointError: all are damaged.
        """
        return self._first(lambda: self.steps()[::-1])

    def best(self) -> Saved:
        """Return the undamaged checkpoint with the lowest loss, or without losses the latest.

        It skips damaged ones, as `latest` does.

        Raises:
            CheckpointError: there is none, or all are damaged.
        """
        found = self._first(lambda: _by_loss(self._losses()))
        if found is None:
            raise CheckpointError(
                f"there is no checkpoint in {self.directory}; train first, or check the path"
            )
        return found

    def at(self, step: int) -> Saved:
        """Return the checkpoint of that step.

        Raises:
            CheckpointError: there is none, or it is damaged.
            InvalidInputError: ``step`` is not an integer.
        """
        if not is_integer(step):
            raise InvalidInputError(
                f"step must be a whole number, but is {brief(step)}; take one of {self.steps()}"
            )

        def load() -> Saved:
            if step not in (steps := self.steps()):
                raise CheckpointError(
                    f"there is no checkpoint of step {step} in {self.directory}; there are "
                    f"{steps or 'none'}; take one of these, or train first"
                )
            return self._load(step)

        return from_first(load)

    # The methods below run only on the first process.

    def _save(self, state: TrainState, about: Mapping[str, Any], loss: float | None) -> None:
        step, tree = int(state.step), jax.tree.map(_as_numpy, _plain(state))
        paths = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), tree)
        arrays = _leaves(tree)
        described: dict[str, Any] = {
            "format": _FORMAT,
            "about": as_json("what is saved with a run", about),
            "loss": None if loss is None or not math.isfinite(loss) else float(loss),
            "leaves": {path: _describe(array) for path, array in arrays.items()},
            "params": paths["params"] if is_plain(paths["params"]) else None,
            "step": step,
        }
        if step in self.steps() and step not in self._replaceable:
            raise CheckpointError(
                f"{self.path(step)} is there already; save each step once, and another run in "
                "another folder"
            )
        new = self.directory / f".writing-{step}"
        try:
            for path in self.directory.glob(".*-[0-9]*"):  # what a killed process left
                shutil.rmtree(path, ignore_errors=True)
            new.mkdir(parents=True)
            flat = [_storable(x) for x in arrays.values()]
            # Threads of Orbax each print a traceback where there is no room for what they write:
            # arrays, less than 1 KiB about each, and some 16 files.
            if sys.platform == "linux":
                with (new / "room").open("wb") as room:
                    os.posix_fallocate(room.fileno(), 0, sum(x.nbytes + 1024 for x in flat) + 2**16)
                (new / "room").unlink()
            with _checkpointer() as orbax:
                orbax.save(new / "arrays", args=ocp.args.StandardSave(flat))
            files = [path for path in sorted(new.rglob("*")) if path.is_file()]
            checksums = {str(path.relative_to(new)): _checksum(path) for path in files}
            write_sealed(new / "about.json", described | {"files": checksums})
            to_disk(*new.rglob("*"), new)
            if self.path(step).exists():  # damaged, and perhaps somebody can still use some of it
                self.path(step).rename(self.directory / f"damaged-{step}-{time.time_ns()}")
                self._replaceable.discard(step)
            new.rename(self.path(step))
            to_disk(self.directory)
        except (OSError, ValueError) as error:
            shutil.rmtree(new, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} "
                f"({_reason(error)}); the checkpoints before it are untouched; mend that, and "
                "resume from them"
            ) from error
        self._delete()

    def _delete(self) -> None:
        """Delete superseded checkpoints; warn about one that cannot be deleted."""
        losses = self._losses()
        # A damaged one stays, and takes the place of none.
        for step in [s for s in losses if losses[s] == -math.inf or s in self._replaceable]:
            del losses[step]
        best = [step for step in _by_loss(losses) if math.isfinite(losses[step])]
        for step in losses.keys() - {*list(losses)[-self.keep_last :], *best[:1]}:
            try:
                shutil.rmtree(self.path(step).rename(self.directory / f".deleting-{step}"))
            except OSError as error:
                warnings.warn(f"{self.path(step)} cannot be deleted ({error})", stacklevel=2)

    def _first(self, order: Callable[[], list[int]]) -> Saved | None:
        """Return the first undamaged checkpoint in an order of steps; retry if one disappears."""

        def find() -> Saved | None:
            steps = order()
            for step in steps:
                try:
                    return self._load(step)
                except DamagedCheckpointError as error:
                    if not self.path(step).exists():
                        return find()
                    warnings.warn(f"{error.reason}; another one is taken", stacklevel=5)
            if steps:
                raise CheckpointError(
                    f"all {len(steps)} checkpoints in {self.directory} are damaged; begin a new run"
                )
            return None

        return from_first(find)

    def _sealed(self, step: int) -> dict[str, Any]:
        """Return the contents of about.json, with its checksum verified."""
        sealed = read_sealed(self.path(step) / "about.json")
        if not sealed.keys() >= _OF_PARAMS:
            raise CheckpointError(
                f"{self.path(step)} is of another version of rnnjax; read it with that, or begin a "
                "new run in another folder"
            )
        if sealed.get("step", step) != step:
            raise DamagedCheckpointError(f"it is that of step {sealed['step']}, renamed", "")
        return {"loss": None} | sealed | {"step": step}

    def _losses(self) -> dict[int, float]:
        """Return the loss of each checkpoint, infinite if it has none.

        A loss that cannot be read is minus infinity: that checkpoint is tried first and reported.
        """
        losses: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = self._sealed(step)["loss"]
            except DamagedCheckpointError:
                loss = -math.inf
            losses[step] = math.inf if loss is None else loss
        return losses

    def _load(self, step: int) -> Saved:
        """Return a checkpoint, with all checksums verified."""
        path = self.path(step)
        try:
            sealed = self._sealed(step)
            # Before anything else opens them: the effect of damage on other libraries is unknown.
            for name, checksum in sealed["files"].items():
                if _checksum(path / name) != checksum:
                    raise DamagedCheckpointError(f"the checksum of {name} is wrong", "")
        except DamagedCheckpointError as error:
            raise self._damaged(step, error.reason) from error
        try:
            with _checkpointer() as orbax:
                found = orbax.restore(path / "arrays")  # of NumPy, as they were saved
        except Exception as error:  # files are whole: no memory, or another run deletes it
            if not path.exists():
                raise self._damaged(step, "") from error
            raise CheckpointError(
                f"{path} could not be read ({_reason(error)}), though its files were whole; free "
                "memory, or try again"
            ) from error
        arrays = {}
        for (name, text), stored in zip(sealed["leaves"].items(), found, strict=True):
            shape = json.loads(text[text.index("[") :])
            arrays[name] = stored if math.prod(shape) else stored[:0].reshape(shape)
        return Saved(path, sealed, arrays)

    def _damaged(self, step: int, reason: str) -> DamagedCheckpointError:
        if not self.path(step).exists():
            gone = f"{self.path(step)} was deleted while it was read, by a run that still trains"
            return DamagedCheckpointError(gone, "try again, or take another step")
        self._replaceable.add(step)
        advice = "delete that folder, and the run resumes from the one before"
        return DamagedCheckpointError(f"{self.path(step)} is damaged ({reason})", advice)


def is_plain(tree: Any) -> bool:
    """Whether JSON can hold the tree: dicts with string keys, lists, tuples, None and strings."""
    if isinstance(tree, Mapping):
        return type(tree) is dict and all(
            isinstance(key, str) and is_plain(each) for key, each in tree.items()
        )
    if type(tree) in (tuple, list):
        return all(map(is_plain, tree))
    return tree is None or isinstance(tree, str)


def nested(where: str, arrays: Mapping[str, Any], names: Any) -> Any:
    """Return the arrays of a file in dicts and tuples, by the tree of their names.

    Raises:
        CheckpointError: there is no such tree, as of containers that JSON does not have.
    """

    def build(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: build(each) for name, each in tree.items()}
        if tree is not None and not isinstance(tree, list) and tree not in arrays:
            raise CheckpointError(
                f"{where} is damaged: it has no array {tree!r}, which it names; save it again"
            )
        return tuple(map(build, tree)) if isinstance(tree, list) else arrays.get(tree)

    if names is None:
        raise CheckpointError(
            f"{where} does not say how its arrays are nested, in containers of their own and not "
            "in dicts by texts, tuples and lists alone; give like, a tree of that structure, such "
            "as cell.initial_carry((1,)) for a carry"
        )
    return build(names)


def fitted(
    where: str,
    arrays: Mapping[str, np.ndarray],
    target: Any,
    name: Callable[[Any], str] = jax.tree_util.keystr,
) -> Any:
    """Return the arrays of a file, by their paths, in the structure of a target, as JAX arrays.

    Raises:
        CheckpointError: their shapes and types are others, or JAX would narrow one without a word.
    """
    for path, x in arrays.items():
        if x.dtype != jax.dtypes.canonicalize_dtype(x.dtype):
            raise CheckpointError(
                f"{where} holds {path} in {x.dtype}, which JAX narrows; set jax_enable_x64 to read "
                "it, or save it in a type of 32 bits"
            )
    model, saved = (
        {path: _describe(x) for path, x in each.items()} for each in (_leaves(target, name), arrays)
    )
    if differing := [p for p in model | saved if model.get(p) != saved.get(p)]:
        differing.sort(key=lambda path: (not path.startswith("['params']"), path))
        shown = "; ".join(
            f"{p}: model {model.get(p, 'no such array')}, saved {saved.get(p, 'no such array')}"
            for p in differing[:6]
        )
        more = f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
        of_optimizer = all(path.startswith("['opt_state']") for path in differing)
        what = "optimizer" if of_optimizer else "model"
        raise CheckpointError(
            f"{where} belongs to another {what}: {shown}{more}; give one of the saved shapes (of a "
            "carry the batch too) and types"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.device_put(arrays[name(path)]), target
    )


def _plain(state: TrainState) -> dict[str, Any]:
    return jax.tree.map(as_bits, vars(state))


def _as_numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "OSTU":
        raise InvalidInputError(
            f"state must hold arrays of numbers, but has one of type {array.dtype}; leave it out"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _by_loss(losses: dict[int, float]) -> list[int]:
    """Sort steps by loss, the lowest first; without a loss, the latest first."""
    return sorted(losses, key=lambda s: (losses[s], s if losses[s] < math.inf else -s))


def _leaves(tree: Any, name: Callable[[Any], str] = jax.tree_util.keystr) -> dict[str, Any]:
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _describe(x: Any) -> str:
    return f"{dtype_of(x)}{list(np.shape(x))}"


def _storable(array: np.ndarray) -> np.ndarray:
    """Return an array that Orbax can store: an empty array becomes a single number."""
    return array if array.size else np.zeros(1, array.dtype)


@contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Open an Orbax checkpointer that does not wait for other processes."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"of_{index}"
    )
    # It also logs what its threads raise, at length; here it is raised as one sentence.
    log = logging.getLogger("absl")
    with _LOG:
        before, log.disabled = log.disabled, True
        try:
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as orbax:
                yield orbax
        finally:
            log.disabled = before


def _reason(error: Exception) -> str:
    """Return an error in one line; of a long one only the end, with the system's message."""
    line = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return line if len(line) <= 200 else f"... {line[-200:]}"


def _checksum(path: Path) -> list[int]:
    """Return the size and the checksum of a file."""
    data = read_whole(path)
    return [len(data), zlib.crc32(data)]
