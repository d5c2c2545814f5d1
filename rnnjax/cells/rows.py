"""Time and batch as the rows of one matrix, or as separate axes if XLA shards the batch."""

import jax
from jax.sharding import AxisType


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
    return any(
        kind == AxisType.Auto and mesh.shape[axis] > 1
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    )
