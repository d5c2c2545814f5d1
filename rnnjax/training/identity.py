"""What a run is: a digest of each of its parts, by which another one in its folder is noticed."""

import hashlib
from typing import Any

import jax
import numpy as np
import optax

import rnnjax
from rnnjax.training.step import LossFunction, TrainState, checked_loss, updated

# In the order in which they are named. A part that came from another one (the optimiser's state
# from the parameters' shapes) stands after it.
PARTS = {
    "key": "key",
    "params": "initial parameters",
    "carry": "initial carry",
    "batches": "first batch",
    "loss": "loss",
    "optimizer": "optimizer, learning rate or schedule (one that depends on epochs changes with "
    "them)",
}


def identity(
    loss_fn: LossFunction, optimizer: optax.GradientTransformation, state: TrainState, batch: Any
) -> dict[str, str]:
    """A digest of each part of a run, by its name in `PARTS`, and ``made_by``.

    Arrays are told by their bytes. The loss and the optimiser are functions: they are told by the
    programs of a step's gradient and of its update, and by the optimiser's first state. Those
    programs are comparable only where ``made_by`` (versions and platform) is the same.

    Args:
        loss_fn: the loss of one batch.
        optimizer: the optimiser.
        state: the first state, in one piece.
        batch: the first batch, in one piece.
    """

    def gradient(state: TrainState, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return checked_loss(loss_fn, params, state.carry, batch, state.key)

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def update(state: TrainState, batch: Any, loss: jax.Array, grads: Any) -> Any:
        return updated(optimizer, loss_fn, state, batch, state.key, loss, grads)

    (loss, _), grads = jax.eval_shape(gradient, state, batch)
    return {
        "key": _of_arrays(state.key),
        "params": _of_arrays(state.params),
        "carry": _of_arrays(state.carry),
        "batches": _of_arrays(batch),
        "loss": _of_program(gradient, state, batch),
        "optimizer": _of_arrays(state.opt_state) + _of_program(update, state, batch, loss, grads),
        "made_by": f"jax {jax.__version__}, rnnjax {rnnjax.__version__}, {jax.default_backend()}",
    }


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The parts in which two runs differ, as far as can be told.

    >>> differing({"key": "1", "loss": "2", "made_by": "a"}, {"key": "1", "loss": "3"})
    []
    """
    told = set(PARTS)
    if ours["made_by"] != theirs.get("made_by"):
        told -= {"loss", "optimizer"}
    return [name for name in PARTS if name in told and ours.get(name) != theirs.get(name)]


def _of_arrays(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def _of_program(function: Any, *args: Any) -> str:
    """Of the program that XLA would compile, with the numbers that the function closes over."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    text = jax.jit(function).lower(*shapes).as_text()
    return hashlib.sha256(text.encode()).hexdigest()[:32]
