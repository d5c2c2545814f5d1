"""Arrays that are sharded over several devices: in loops, in products, and along a sequence."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec


def match_devices(tree: Any) -> Any:
    """Make all arrays vary over the mesh axes over which any of them varies.

    Inside ``jax.shard_map`` the state of a loop must vary over the same axes as what is added to
    it. The gradient of a replicated array is then the sum over devices, as it should be.
    """
    # JAX refuses a loop whose state varies over more axes after a step than before it.
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _varying(leaf, axes), tree) if axes else tree


def automatic(
    run: Callable[..., tuple[Any, jax.Array]], args: Any, like: Any, leading: int
) -> tuple[Any, jax.Array] | None:
    """Call ``run`` with automatic sharding, which XLA chooses.

    With mesh axes of type ``Explicit``, the default of ``jax.make_mesh`` since JAX 0.9, the type of
    every array states its sharding, and an ambiguous operation needs an ``out_sharding``. Inside
    this call no array states it, for all cells and methods.

    Args:
        run: from ``args`` to a state, whose leaves begin with the batch axes, and outputs, which
            begin with time and the batch axes.
        args: arrays.
        like: an array, or arrays, whose sharding the results get.
        leading: the number of axes of time and the batch.

    Returns:
        the result of ``run``; None, without a call, if no axis is explicit.
    """
    kinds: list[Any] = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves((like, args))]
    mesh = next((k.mesh for k in kinds if k.mesh.explicit_axes), None)
    if mesh is None:
        return None
    time, *rows = [*kinds[0].spec, *[None] * leading][:leading]
    results = PartitionSpec(*rows), PartitionSpec(time, *rows)
    with jax.sharding.use_abstract_mesh(mesh):  # where `jax.set_mesh` has not
        return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=results)(*args)


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """The devices over which ``jax.shard_map`` divides the steps of a sequence, in their order.

    Args:
        name: the mesh axis; None if each device has all steps.
    """

    name: str | None = None

    def known(self) -> bool:
        """Whether it is a mesh axis of this context that types track (``check_vma``).

        Without these types gradients would be partial sums.
        """
        if self.name is None:
            return True
        manual = self.name in jax.sharding.get_abstract_mesh().manual_axes
        return manual and self.name in _varying_axes(jax.lax.axis_index(self.name))

    def steps(self, here: int) -> tuple[Any, int]:
        """Return the index of this device's first step, and the number of steps of all devices."""
        if self.name is None:
            return 0, here
        return here * jax.lax.axis_index(self.name), here * jax.lax.axis_size(self.name)

    def next(self, leaf: jax.Array) -> jax.Array:
        """Return the next device's array; zeros on the last device."""
        if self.name is None:
            return jnp.zeros_like(leaf)
        pairs = [(k + 1, k) for k in range(jax.lax.axis_size(self.name) - 1)]
        return jax.lax.ppermute(leaf, self.name, pairs)

    def gathered(self, tree: Any) -> Any:
        """Gather each device's arrays along a new first axis, with one collective."""
        flat, tree_of = ravel_pytree(match_devices(tree))
        if jax.__version_info__ >= (0, 10):
            every = jax.lax.all_gather(flat, self.name, to="invarying")
        else:  # which knows no gather whose result is the same on all devices, but sums
            every = jnp.zeros((jax.lax.axis_size(self.name), *flat.shape), flat.dtype)
            every = every.at[jax.lax.axis_index(self.name)].set(flat)
            every = jax.lax.psum(every, self.name)
        return jax.vmap(tree_of)(every)

    def here(self, tree: Any) -> Any:
        """Return this device's part of gathered arrays."""
        return jax.tree.map(lambda leaf: leaf[jax.lax.axis_index(self.name)], tree)

    def only_first(self, tree: Any, reverse: bool) -> Any:
        """Return zeros on all devices except the one with the first step: in reverse, the last."""
        first = jax.lax.axis_size(self.name) - 1 if reverse else 0
        own = jax.lax.axis_index(self.name) == first
        return jax.tree.map(lambda leaf: jnp.where(own, leaf, 0), tree)


LOCAL = MeshAxis()


def match_vma(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """Make an array vary over the mesh axes over which ``like`` varies.

    The result of a collective is the same on all devices.
    """
    return _varying(leaf, _varying_axes(like))


def _varying(leaf: Any, axes: frozenset[str]) -> Any:
    missing = axes - _varying_axes(leaf)
    return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf


def _varying_axes(leaf: Any) -> frozenset[str]:
    """Return the mesh axes over which an array varies; JAX before 0.10 names them otherwise."""
    kind: Any = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())


def as_rows(x: jax.Array, features: int = 1) -> jax.Array:
    """Reshape ``x (time, *batch, features)`` to ``(rows, features)``, except on several devices.

    One device multiplies two axes without a copy. But a sharded batch is not contiguous in an axis
    that joins it with time: XLA would gather all rows on every device, and each would compute
    everything. So the axes stay separate if the batch may be sharded.

    Args:
        x: any array; time is never sharded.
        features: the number of axes at the end that are not rows.
    """
    return x if divided() else x.reshape(-1, *x.shape[x.ndim - features :])


def divided() -> bool:
    """Whether XLA shards arrays over the devices of a mesh that was set by ``jax.set_mesh``.

    Inside ``jax.shard_map`` each device has its own arrays, and XLA shards nothing.

    >>> divided()
    False
    """
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[axis] > 1 for axis in mesh.auto_axes)
