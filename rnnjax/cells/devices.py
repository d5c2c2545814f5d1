"""What a loop needs to know of the devices over which ``jax.shard_map`` divides arrays."""

from typing import Any

import jax


def alike_over_devices(tree: Any) -> Any:
    """The same arrays, all of them varying over the mesh axes over which any does.

    Inside of ``jax.shard_map`` a loop's state has to vary over the same axes as what is added to
    it. The gradient of an array that is the same on all devices is then their sum, as it should be.
    """
    # JAX refuses a loop whose state varies over more axes behind a step than before it.
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _varying(leaf, axes), tree) if axes else tree


def varying_like(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """The same array, varying over the mesh axes over which ``like`` does.

    Behind a collective, an array is the same on all devices.
    """
    return _varying(leaf, _varying_axes(like))


def shaped_like(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape of a result that varies over the mesh axes over which ``like`` does."""
    kind: Any = jax.typeof(like)
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(kind, name)})


def _varying(leaf: Any, axes: frozenset[str]) -> Any:
    missing = axes - _varying_axes(leaf)
    return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf


def _varying_axes(leaf: Any) -> frozenset[str]:
    """The mesh axes over which an array varies; JAX before 0.10 had another name for them."""
    kind: Any = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())
