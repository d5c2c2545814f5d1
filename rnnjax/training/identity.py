"""The identity of a run: digests of its parts, to detect another run in its folder."""

import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from rnnjax.training.state import TrainState, as_bits
from rnnjax.training.step import LossFunction, parts_of_step

# The parts of a run, in the order of messages. A part comes after those that it follows from: the
# optimiser's first state follows from the parameters.
PARTS = {
    "key": "key",
    "params": "set of initial parameters",
    "carry": "initial carry",
    "keep_carry": "keep_carry",
    "batches": "data set in the first epoch",
    "loss": "loss",
    "optimizer": "optimizer, learning rate or schedule (one that depends on epochs changes with "
    "them)",
}


def identity(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    first_epoch: tuple[Any, str],
    keep_carry: bool,
) -> dict[str, str]:
    """Return a digest of each part of a run, by its name in `PARTS`, and ``made_by``.

    Arrays are identified by their bytes. The loss and the optimiser are functions. They are
    identified by the programs of a step's gradient and update, and by the optimiser's first state.
    Programs are compared only if ``made_by`` (versions, sources and platform) is the same.
    ``first_epoch`` is the shapes of a batch on the devices, and a digest of the data.
    """
    batch, data = first_epoch
    gradient, update = parts_of_step(loss_fn, optimizer)
    given = state, batch, state.key
    (loss, _), grads = jax.eval_shape(gradient, *given)
    # Any change to the library may change a step's program, also between two versions.
    files = sorted(Path(rnnjax.__file__).parent.rglob("*.py"))
    sources = zlib.crc32(b"".join(file.read_bytes() for file in files))
    return {
        "key": _of_arrays(state.key),
        "params": _of_arrays(state.params),
        "carry": _of_arrays(state.carry),
        "keep_carry": str(keep_carry),
        "batches": data,
        "loss": _of_program(gradient, *given),
        "optimizer": _of_arrays(state.opt_state) + _of_program(update, *given, loss, grads),
        "made_by": f"jax {jax.__version__}, optax {optax.__version__}, rnnjax {rnnjax.__version__} "
        f"({sources:08x}), {jax.default_backend()}",
    }


def of_changes(new: Any, old: Any) -> str:
    """Return a digest of what is not in an older tree, but for arrays divided over processes."""

    def changed(leaf: Any, before: Any) -> Any:
        same = leaf is before or not getattr(leaf, "is_fully_replicated", True)
        return () if same else np.asarray(as_bits(leaf))

    return _of_arrays(jax.tree.map(changed, new, old))


def _of_arrays(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = as_bits(leaf)
        name = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} "
        digest.update(name.encode() + np.asarray(_sums(leaf)).tobytes())
    return digest.hexdigest()


def sums_of_steps(batches: Any) -> np.ndarray:
    """Compute two checksums of each step of each leaf: ``(steps, 2 * leaves)``."""
    sums = [np.asarray(_sums_of_each(as_bits(leaf))) for leaf in jax.tree.leaves(batches)]
    return np.concatenate(sums, axis=1)


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
    """Compute two checksums of an array, which do not depend on its sharding.

    They are sums of its words, each mixed with its position by the last steps of MurmurHash3
    (Appleby, 2011). A sum of words alone would not change with the signs of two of them.
    """
    narrow = jnp.issubdtype(leaf.dtype, jnp.integer) and jnp.iinfo(leaf.dtype).bits < 8
    if narrow or leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.int8)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)  # two of 8 bytes
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32).ravel()
    at = jnp.arange(words.size, dtype=jnp.uint32) * np.uint32(2654435769)
    mixed = words + at + np.array([[0], [1]], np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return (mixed ^ (mixed >> np.uint32(16))).sum(1, dtype=jnp.uint32)


_sums_of_each = jax.jit(jax.vmap(_sums))


def _of_program(function: Any, *args: Any) -> str:
    """Return a digest of the program that XLA would compile, with its captured constants."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    text = jax.jit(function).lower(*shapes).as_text()
    # Functions in it have the names that they have in Python.
    names: dict[str, str] = {}
    text = re.sub(r"@[\w.$-]+", lambda found: names.setdefault(found[0], f"@{len(names)}"), text)
    return hashlib.sha256(text.encode()).hexdigest()
