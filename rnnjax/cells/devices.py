"""What a loop needs to know of the devices over which arrays are divided."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec


def match_devices(tree: Any) -> Any:
    """The same arrays, all of them varying over the mesh axes over which any does.

    Inside of ``jax.shard_map`` a loop's state has to vary over the same axes as what is added to
    it. The gradient of an array that is the same on all devices is then their sum, as it should be.
    """
    # JAX refuses a loop whose state varies over more axes after a step than before it.
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _varying(leaf, axes), tree) if axes else tree


def automatic(
    run: Callable[..., tuple[Any, jax.Array]], args: Any, like: Any, leading: int
) -> tuple[Any, jax.Array] | None:
    """The state and the outputs of a run, of which XLA finds out how to divide it over devices.

    With mesh axes of the kind ``Explicit``, the default of ``jax.make_mesh`` since JAX 0.9, every
    array says in its type how it is divided, and an operation whose result could be divided in two
    ways has to be told. Inside of this, no array says it, for all cells and methods alike.

    Args:
        run: from ``args`` to a state, whose leaves begin with the batch, and outputs, which begin
            with time and the batch.
        args: arrays.
        like: an array, or arrays, as whose the results are divided.
        leading: the axes of time and the batch.

    Returns:
        what it returns; None, and nothing has run, where no axis is of that kind.
    """
    kinds: list[Any] = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves((like, args))]
    mesh = next((k.mesh for k in kinds if AxisType.Explicit in k.mesh.axis_types), None)
    if mesh is None:
        return None
    axes = [
        n for n, k in zip(mesh.axis_names, mesh.axis_types, strict=True) if k == AxisType.Explicit
    ]
    time, *rows = [*kinds[0].spec, *[None] * leading][:leading]
    results = PartitionSpec(*rows), PartitionSpec(time, *rows)
    with jax.sharding.use_abstract_mesh(mesh):  # where `jax.set_mesh` has not
        return jax.sharding.auto_axes(run, axes=tuple(axes), out_sharding=results)(*args)


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """The devices over which ``jax.shard_map`` divides the steps of a sequence, in their order.

    Args:
        name: of the mesh axis; None where each device has all steps.
    """

    name: str | None = None

    def known(self) -> bool:
        """Whether it is an axis that is divided here, by types: without, gradients are parts."""
        if self.name is None:
            return True
        mesh = jax.sharding.get_abstract_mesh()
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        manual = kinds.get(self.name) == AxisType.Manual
        return manual and self.name in _varying_axes(jax.lax.axis_index(self.name))

    def steps(self, here: int) -> tuple[Any, int]:
        """Which is the first of the steps here, and how many all devices have."""
        if self.name is None:
            return 0, here
        return here * jax.lax.axis_index(self.name), here * jax.lax.axis_size(self.name)

    def next(self, leaf: jax.Array) -> jax.Array:
        """What the next device has; zeros on the last."""
        if self.name is None:
            return jnp.zeros_like(leaf)
        pairs = [(k + 1, k) for k in range(jax.lax.axis_size(self.name) - 1)]
        return jax.lax.ppermute(leaf, self.name, pairs)

    def gathered(self, tree: Any) -> Any:
        """What each device has, as a first axis; the same on all devices, by one message."""
        flat, tree_of = ravel_pytree(match_devices(tree))
        if jax.__version_info__ >= (0, 10):
            every = jax.lax.all_gather(flat, self.name, to="invarying")
        else:  # which knows no gather whose result is the same on all devices, but sums
            every = jnp.zeros((jax.lax.axis_size(self.name), *flat.shape), flat.dtype)
            every = every.at[jax.lax.axis_index(self.name)].set(flat)
            every = jax.lax.psum(every, self.name)
        return jax.vmap(tree_of)(every)

    def here(self, tree: Any) -> Any:
        """This device's part of what was gathered."""
        return jax.tree.map(lambda leaf: leaf[jax.lax.axis_index(self.name)], tree)

    def only_first(self, tree: Any, reverse: bool) -> Any:
        """Zeros but on the device that has the first step: the last one in reverse."""
        first = jax.lax.axis_size(self.name) - 1 if reverse else 0
        own = jax.lax.axis_index(self.name) == first
        return jax.tree.map(lambda leaf: jnp.where(own, leaf, 0), tree)


LOCAL = MeshAxis()


def match_vma(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """The same array, varying over the mesh axes over which ``like`` does.

    Behind a collective, an array is the same on all devices.
    """
    return _varying(leaf, _varying_axes(like))


def varies(tree: Any) -> bool:
    """Whether an array may differ between the devices over which ``jax.shard_map`` divides."""
    return any(map(_varying_axes, jax.tree.leaves(tree)))


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
