import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import minibatches, use_cores
from rnnjax.training.sharding import cores_for
from rnnjax.training.sources import divided

PROGRAM = """
import contextlib, io
import jax, numpy as np, optax, rnnjax
from rnnjax.training import Progress, Sharding, Silent, fit, minibatches, use_cores
from rnnjax.training.sharding import cores_for
jax.config.update("jax_num_cpu_devices", 2)
assert use_cores() == 2
rng = np.random.default_rng(0)
def drawn(like):
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
                        jax.eval_shape(like))
cell = rnnjax.SimpleRNNCell(8)
params = drawn(lambda: cell.init(jax.random.key(0), 3))
carry = drawn(lambda: cell.initial_carry((6,)))
xs = rng.normal(size=(12, 6, 3)).astype(np.float32)
mask, resets = rng.random((12, 6)) < 0.7, rng.random((12, 6)) < 0.2
def loss(params, carry, xs, mask, resets):
    carry, ys = rnnjax.unroll(cell, params, xs, carry, mask=mask, resets=resets)
    # A mean over what is valid: no half of the rows knows by what to divide.
    return (ys**2).sum() / mask.sum(), carry
grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
one = grad(params, carry, xs, mask, resets)
over = Sharding.over(2)
whole = jax.device_put(params, jax.sharding.NamedSharding(over.mesh, jax.sharding.PartitionSpec()))
with jax.set_mesh(over.mesh):
    rows = jax.sharding.NamedSharding(over.mesh, jax.sharding.PartitionSpec("data"))
    two = grad(whole, jax.device_put(carry, rows), *over.put_batches((xs, mask, resets)))
    again = grad(whole, two[0][1], *over.put_batches((xs, mask, resets)))
assert len(two[0][1].hidden.sharding.device_set) == 2
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
# The rule: small ones stay, large kernels with few rows too.
shape = lambda units: {"kernel": jax.ShapeDtypeStruct((units, 4 * units), np.float32)}
sizes = (8, 32), (64, 16), (512, 16), (700, 12), (512, 15)
assert [cores_for(shape(h), b) for h, b in sizes] == [
    1, 2, 2, 1, 1]
data = {"xs": rng.normal(size=(7, 64, 3)).astype(np.float32)}
big = rnnjax.SimpleRNNCell(128)
begin = drawn(lambda: big.init(jax.random.key(1), 3))
def fitted(sharding, progress=Silent(), rows=16):
    return fit(lambda params, batch, key: (rnnjax.unroll(big, params, batch["xs"])[1] ** 2).mean(),
               begin, optax.sgd(0.1), minibatches(data, rows, axis=1), 2,
               key=jax.random.key(0), hooks=[progress], sharding=sharding)
auto, single = fitted("cores"), fitted(None)
assert len(auto.state.params["kernel"].sharding.device_set) == 2
assert len(single.state.params["kernel"].sharding.device_set) == 1
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
             auto.params, single.params)
with contextlib.redirect_stdout(io.StringIO()) as said:
    fitted("cores", Progress(), rows=1)
assert "on one device, because" in said.getvalue()
print("fine")
"""


def test_on_two_cores_the_numbers_are_those_of_one():
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr


def test_jax_may_be_told_to_do_without_a_cpu(monkeypatch):
    def devices(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", devices)
    assert use_cores() == 1


@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (4, 2)])
def test_that_one_device_is_used_is_said(devices, processes, monkeypatch):
    there, said = jax.local_devices()[:devices], []
    monkeypatch.setattr(jax, "local_devices", lambda: there)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    batches = minibatches(np.ones((64, 3)), 16, axis=0)
    assert divided(batches, "cores", {"w": np.ones((512, 512))}, said.append) == (batches, None)
    assert ["has no second core of a CPU" in line for line in said] == [True]


def test_cores_need_batches_that_know_their_rows():
    with pytest.raises(InvalidInputError, match='batches of sharding="cores" must be those of min'):
        divided(np.ones((2, 64, 3)), "cores", {}, print)
    assert cores_for({}, 4) == 1
