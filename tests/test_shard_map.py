"""`jax.shard_map` over the batch: outputs and gradients are those of one device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

import rnnjax
from rnnjax import Fused, Scan


@pytest.mark.parametrize("method", [Scan(), Fused(), Fused(keep_every=2)], ids=str)
def test_every_method_runs_under_shard_map(method: Any, assert_close: Callable[..., None]) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    cell = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.MinGRUCell(3)])
    params = cell.init(jax.random.key(0), 2)
    keys = jax.random.split(jax.random.key(1), 3)
    xs = jax.random.normal(keys[0], (5, 6, 2))
    mask = jax.random.bernoulli(keys[1], 0.8, (5, 6))
    resets = jax.random.bernoulli(keys[2], 0.3, (5, 6))

    def loss(params: Any, xs: Any, mask: Any, resets: Any) -> jax.Array:
        ys = rnnjax.unroll(cell, params, xs, mask=mask, resets=resets, method=method)[1]
        return (ys**2).sum()

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    whole, rows = PartitionSpec(), PartitionSpec(None, "data")

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(whole, rows, rows, rows),
        out_specs=(whole, (whole, rows)),
    )
    def shared(*arguments: Any) -> Any:
        # The gradient of what is the same on all devices is summed by JAX.
        value, gradients = gradient(*arguments)
        return jax.lax.psum(value, "data"), gradients

    arguments = params, xs, mask, resets
    actual = jax.jit(shared)(*arguments)
    assert len(actual[1][1].sharding.device_set) == 2
    assert_close(actual, jax.jit(gradient)(*arguments), 1e-5)
