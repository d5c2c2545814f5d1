"""Checkpoints: atomic, verified, the best one and the last few kept (orbax)."""

import dataclasses
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from rnnjax.errors import CheckpointError, DamagedCheckpointError
from rnnjax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in one folder.

    A checkpoint holds the whole `TrainState` (step, parameters, optimiser state, carry, key), and a
    JSON with the run's configuration and a checksum of every array. It is written beside its place
    and renamed into it, so that a run killed at any moment leaves whole checkpoints only.

    Args:
        directory: made if it does not exist.
        keep_last: how many of the latest are kept.
        keep_best: how many of those with the lowest loss are kept besides.
        read_only: nothing is made, written or deleted; for readers beside a run that writes.

    Raises:
        CheckpointError: read_only, and there is no such folder.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_best: int = 1,
        read_only: bool = False,
    ):
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise CheckpointError(
                f"there is no checkpoint in {self.directory}; train first, or check the path"
            )
        policies = [
            preservation_policy.LatestN(keep_last),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: -metrics["loss"],
                n=keep_best,
            ),
        ]
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=_alone(),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest loss, or None if none was given a loss."""
        return min(
            (step for step in self.steps() if math.isfinite(self._loss(step))),
            key=self._loss,
            default=None,
        )

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of that step."""
        return self.directory / str(step)

    def save(
        self, state: TrainState, config: Mapping[str, Any], *, loss: float | None = None
    ) -> None:
        """Write the checkpoint of ``state.step``, and delete those no longer kept.

        Args:
            state: the whole state.
            config: what is needed to build the model again; anything that JSON can hold.
            loss: by which the best is chosen; left out, the checkpoint is never the best.

        Raises:
            CheckpointError: it could not be written (a full disk, say); those before it stay.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        tree = as_plain(state)
        if jax.process_count() > 1:
            # Orbax takes an array that is not of all processes for a mistake.
            tree = jax.tree.map(np.asarray, tree)
        about = {"config": dict(config), "arrays": _describe(tree)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)
                ),
                metrics={"loss": math.inf if loss is None else float(loss)},
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} "
                f"({_first_line(error)}); the checkpoints before it are untouched"
            ) from error

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The configuration saved with a checkpoint (the latest if ``step`` is left out)."""
        return self._about(self._existing(step))["config"]

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Read a checkpoint.

        Args:
            like: a state of the same model; its arrays may be abstract (``jax.eval_shape``).
            step: which checkpoint; left out, the latest.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another model; the
                message names the arrays that differ.
        """
        step = self._existing(step)
        arrays = self._about(step)["arrays"]
        target = jax.eval_shape(as_plain, like)
        expected = {
            path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in _leaves(target).items()
        }
        saved = {path: (entry["shape"], entry["dtype"]) for path, entry in arrays.items()}
        differing = [p for p in expected | saved if expected.get(p) != saved.get(p)]
        differing.sort(key=lambda path: (not path.startswith("['params']"), path))
        if differing:
            shown = "; ".join(
                f"{p}: model {_spell(expected.get(p))}, checkpoint {_spell(saved.get(p))}"
                for p in differing[:6]
            )
            more = f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
            raise CheckpointError(
                f"{self.path(step)} belongs to another model: {shown}{more}; build the model from "
                "the configuration saved with the checkpoint"
            )
        # On one device here, over however many of whatever kind they were when they were saved.
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), target
        )
        try:
            tree = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )["state"]
        except Exception as error:  # a damaged file shows as any error of the layers below
            raise self._damaged(step, _first_line(error)) from error
        for path, entry in _describe(tree).items():
            if entry["crc32"] != arrays[path]["crc32"]:
                raise self._damaged(step, f"the checksum of {path} is wrong")
        return from_plain(tree)

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Read the latest checkpoint that is whole, or None if there is none at all.

        A damaged one is set aside, in a folder ``damaged-<step>``, with a warning, and the one
        before is taken: a run goes on from there, and comes to the same end.

        Args:
            like: as in `restore`.

        Raises:
            CheckpointError: it belongs to another model, or all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(like, step)
            except DamagedCheckpointError as error:
                aside = self._aside(step)
                warnings.warn(f"{error.reason}; it is set aside as {aside.name}", stacklevel=2)
                self.path(step).rename(aside)
                self._manager.reload()
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.directory} are damaged; begin a new run"
            )
        return None

    def _aside(self, step: int) -> Path:
        """A name that is free: the same step may be damaged again."""
        names = [f"damaged-{step}", *(f"damaged-{step}-{n}" for n in range(2, 1000))]
        return next(path for name in names if not (path := self.directory / name).exists())

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"there is no checkpoint in {self.directory}; train first, or check the path"
            )
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.directory}; there are {steps}"
            )
        return step

    def _about(self, step: int) -> dict[str, Any]:
        try:
            about = self._manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )["about"]
            if not {"config", "arrays"} <= set(about):
                raise ValueError("its JSON lacks the configuration or the list of arrays")
        except Exception as error:  # a damaged file shows as any error of the layers below
            raise self._damaged(step, _first_line(error)) from error
        return about

    def _loss(self, step: int) -> float:
        metrics = self._manager.metrics(step)
        return math.inf if metrics is None else float(metrics["loss"])

    def _damaged(self, step: int, reason: str) -> DamagedCheckpointError:
        others = [s for s in self.steps() if s != step]
        return DamagedCheckpointError(
            f"{self.path(step)} is damaged ({reason})",
            f"delete that folder, and the run goes on "
            f"from {f'step {others[-1]}' if others else 'its beginning'}",
        )


def _alone() -> ocp.options.MultiprocessingOptions:
    """Keeps orbax from waiting for the other processes of a run, where there are any."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"of_{index}"
    )


def as_plain(state: TrainState) -> dict[str, Any]:
    """The state as a dict; orbax stores the bits of a random key, not the key type."""
    tree = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return tree | {"key": jax.random.key_data(state.key)}


def from_plain(tree: dict[str, Any]) -> TrainState:
    """The state of which `as_plain` made a dict."""
    return TrainState(**{**tree, "key": jax.random.wrap_key_data(tree["key"])})


def _leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape, type and checksum of every array."""
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "crc32": zlib.crc32(np.asarray(leaf).tobytes()),
        }
        for path, leaf in _leaves(tree).items()
    }


def _spell(entry: tuple[list[int], str] | None) -> str:
    return "no such array" if entry is None else f"{entry[1]}{entry[0]}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
