"""`jax.shard_map` over the batch: outputs and gradients are those of one device."""

import subprocess
import sys

SCRIPT = """
import jax

jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
import rnnjax
from jax.sharding import AxisType, PartitionSpec as P

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
cell = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.MinGRUCell(3)])
params = cell.init(jax.random.key(0), 2)
keys = jax.random.split(jax.random.key(1), 3)
xs = jax.random.normal(keys[0], (5, 6, 2))
mask = jax.random.bernoulli(keys[1], 0.8, (5, 6))
resets = jax.random.bernoulli(keys[2], 0.3, (5, 6))
rows = P(None, "data")
for method in (rnnjax.Scan(), rnnjax.Fused(), rnnjax.Fused(keep_every=2)):

    def loss(params, xs, mask, resets):
        ys = rnnjax.unroll(cell, params, xs, mask=mask, resets=resets, method=method)[1]
        return (ys**2).sum()

    def local(*arguments):
        # The gradient of what is the same on all devices is summed by JAX.
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*arguments)
        return jax.lax.psum(value, "data"), gradients

    shared = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), rows, rows, rows), out_specs=(P(), (P(), rows))
    )
    actual = jax.jit(shared)(params, xs, mask, resets)
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, xs, mask, resets)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_every_method_runs_under_shard_map() -> None:
    # In a process of its own, for the number of devices is settled when JAX begins.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
