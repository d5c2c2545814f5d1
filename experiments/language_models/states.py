"""States of language models in files: a prompt that was read, or a first state that was trained."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language_models.folders import Model
from rnnjax import InvalidInputError
from rnnjax.training import load_params, save_params


class State(NamedTuple):
    """The carry after all tokens but the ``last (1,)``, ``(0,)`` where a text begins.

    ``count`` tokens were written before: the next one is sampled with this number.
    """

    carry: Any
    last: Any = np.zeros(0, np.int32)
    count: Any = np.int32(0)


def save(path: Path, model: Model, state: State) -> None:
    """Write a state of one row, with the name and the checksum of its model."""
    about = np.frombuffer(f"{_weights(model)} {model.path.resolve().name}".encode(), np.uint8)
    save_params(path, {"model": about, **state._asdict(), "carry": (*jax.tree.leaves(state[0]),)})


def read(path: Path | None, model: Model, capacity: int) -> State:
    """Read what `save` wrote, with room for more tokens; without a file, a text begins.

    Raises:
        InvalidInputError: it is of another model, or no state at all.
    """
    if path is None:
        return State(model.family.begin(model.config, 1, capacity, model.dtype))
    saved = load_params(path)
    about = bytes(saved.pop("model")) if isinstance(saved, dict) and "model" in saved else b""
    weights, _, name = about.decode(errors="replace").partition(" ")
    if weights != _weights(model):
        came = f"is one of {name} with other weights" if name else "holds other arrays"
        raise InvalidInputError(
            f"{path} must be a state of {model.path}, but {came}; give it to the model it is of"
        )
    # Full attention has a slot for each token: those that were read begin a larger cache.
    empty = jax.tree.leaves(jax.eval_shape(lambda: model.family.begin(model.config, 1, 0)))
    pairs = zip(saved["carry"], empty, strict=True)
    held = max((x.shape[2] for x, y in pairs if x.shape != y.shape), default=0)
    begin = model.family.begin(model.config, 1, held + capacity, model.dtype)
    return State(**{**saved, "carry": placed(begin, saved["carry"])})


def after(state: State, ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Return the ids from the last one of a state on; those that begin every text begin none."""
    begun = len(tokenizer.encode("")) if len(state.last) else 0
    return np.concatenate([state.last, ids[begun:]])


def placed(begin: Any, leaves: Any) -> Any:
    """Return a carry whose arrays begin with those of another, which may be of one row for all."""

    def place(new: jax.Array, old: jax.Array) -> jax.Array:
        old = jnp.broadcast_to(old, (*new.shape[:1], *old.shape[1:])).astype(new.dtype)
        return jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)

    found, structure = jax.tree.flatten(begin)
    return jax.tree.unflatten(structure, map(place, found, leaves))


def _weights(model: Model) -> str:
    """Return a checksum of all weights, because a state means nothing to others."""
    value = 0
    for x in model.params.values():
        value = zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data, value)
    return f"{value:08x}"
