"""Time and batch as the rows of one matrix, or apart where XLA divides the batch over devices."""

import jax
from jax.sharding import AxisType


def as_rows(x: jax.Array, features: int = 1) -> jax.Array:
    """``x (time, *batch, features)`` as ``(rows, features)``, or ``x`` itself on several devices.

    Two axes are what one device multiplies without a copy. With time outside and the batch inside
    of one axis no device has a connected part of it, though, so that XLA would gather all rows on
    every device and have each compute everything: where the batch may be divided, the axes stay
    apart.

    Args:
        x: any array; time is never divided.
        features: how many axes at the end are no rows.
    """
    return x if divided() else x.reshape(-1, *x.shape[x.ndim - features :])


def divided() -> bool:
    """Whether XLA divides arrays over the devices of a mesh that was set by ``jax.set_mesh``.

    Inside of ``jax.shard_map`` each device has arrays of its own, and nothing is left to divide.

    >>> divided()
    False
    """
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        kind == AxisType.Auto and mesh.shape[axis] > 1
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    )
