"""The checkpoints of a run over several devices or processes."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rnnjax.training.checkpoints import Checkpoints, as_plain, from_plain
from rnnjax.training.processes import bytes_from_first, from_first, is_first
from rnnjax.training.sharding import Sharding
from rnnjax.training.state import TrainState


class SharedCheckpoints:
    """`Checkpoints` of a state that lies over the devices of one or several processes.

    The first process writes the arrays in one piece, and reads them for all, so that a checkpoint
    does not depend on the devices and fits any number of them; the others need not see its folder.
    Every process has to make each call. An error is raised on all of them.

    Args:
        directory: as in `Checkpoints`, and so are the other arguments.
        sharding: how states lie over the devices; restored ones too.
        keep_last: see there.
        keep_best: see there.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        sharding: Sharding,
        *,
        keep_last: int = 3,
        keep_best: int = 1,
    ):
        self.sharding = sharding
        self.directory = Path(directory).absolute()

        def begin() -> None:
            self._own = Checkpoints(directory, keep_last=keep_last, keep_best=keep_best)

        from_first(begin)

    def latest_step(self) -> int | None:
        """As `Checkpoints.latest_step`."""
        return from_first(lambda: self._own.latest_step())

    def best_step(self) -> int | None:
        """As `Checkpoints.best_step`."""
        return from_first(lambda: self._own.best_step())

    def steps(self) -> list[int]:
        """As `Checkpoints.steps`."""
        return from_first(lambda: self._own.steps())

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of that step."""
        return self.directory / str(step)

    def config(self, step: int | None = None) -> dict[str, Any]:
        """As `Checkpoints.config`."""
        return from_first(lambda: self._own.config(step))

    def save(
        self, state: TrainState, config: Mapping[str, Any], *, loss: float | None = None
    ) -> None:
        """As `Checkpoints.save`, once for all processes."""
        whole = self.sharding.whole(state)
        from_first(lambda: self._own.save(whole, config, loss=loss))

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """As `Checkpoints.restore`, over the devices."""
        restored = self._read(lambda: self._own.restore(like, step), like)
        assert restored is not None
        return restored

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """As `Checkpoints.restore_latest`, over the devices."""
        return self._read(lambda: self._own.restore_latest(like), like)

    def close(self) -> None:
        """Release the folder."""
        if is_first():
            self._own.close()

    def _read(
        self, restore: Callable[[], TrainState | None], like: TrainState
    ) -> TrainState | None:
        state: TrainState | None = None

        def found() -> bool:
            nonlocal state
            state = restore()
            return state is not None

        if not from_first(found):
            return None
        leaves = [] if state is None else [np.asarray(x) for x in jax.tree.leaves(as_plain(state))]
        data = bytes_from_first(b"".join(leaf.tobytes() for leaf in leaves))
        return self.sharding.put_state(from_plain(_cut(data, jax.eval_shape(as_plain, like))))


def _cut(data: bytes, like: Any) -> Any:
    """Bytes as the arrays of a tree, one after the other."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size * leaf.dtype.itemsize for leaf in leaves])
    parts = [
        np.frombuffer(data[end - leaf.size * leaf.dtype.itemsize : end], leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )
