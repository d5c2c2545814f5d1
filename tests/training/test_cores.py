import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import over_cores, use_cores
from rnnjax.training.sharding import cores_for

PROGRAM = """
import jax, numpy as np, optax, rnnjax
from rnnjax.training import Silent, fit, minibatches, over_cores, use_cores
from rnnjax.training.sharding import cores_for
assert use_cores(2) == 2 == use_cores() == use_cores(2)
try:
    use_cores(3)
except rnnjax.InvalidInputError as error:
    assert "JAX has begun with 2 already" in str(error)
else:
    raise AssertionError
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
grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
one = over_cores(grad, (None, 0, 1, 1, 1), devices=1)(params, carry, xs, mask, resets)
step = over_cores(grad, (None, 0, 1, 1, 1), devices=2)
two = step(params, carry, xs, mask, resets)
assert len(two[0][1].hidden.sharding.device_set) == 2
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
again = step(params, two[0][1], xs, mask, resets)  # what came out goes in
for wrong in ((params, carry, xs[:, :5], mask, resets), (params, carry, xs)):
    try:
        step(*wrong)
    except rnnjax.InvalidInputError:
        continue
    raise AssertionError
# The rule: small ones stay, large kernels with few rows too.
shape = lambda units: {"kernel": jax.ShapeDtypeStruct((units, 4 * units), np.float32)}
sizes = (8, 32), (64, 16), (512, 16), (700, 12), (512, 15)
assert [cores_for(shape(h), b) for h, b in sizes] == [
    1, 2, 2, 1, 1]
data = {"xs": rng.normal(size=(7, 64, 3)).astype(np.float32)}
big = rnnjax.SimpleRNNCell(128)
begin = drawn(lambda: big.init(jax.random.key(1), 3))
def fitted(sharding):
    return fit(lambda params, batch, key: (rnnjax.unroll(big, params, batch["xs"])[1] ** 2).mean(),
               begin, optax.sgd(0.1), minibatches(data, 16, axis=1), 2,
               key=jax.random.key(0), progress=Silent(), sharding=sharding)
auto, single = fitted("cores"), fitted(None)
assert len(auto.state.params["kernel"].sharding.device_set) == 2
assert len(single.state.params["kernel"].sharding.device_set) == 1
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
             auto.params, single.params)
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((None, None), "not all None"),
        (None, "not all None"),
        ((None, -1), "the axis of its rows"),
        ((True,), "is \\(True,\\)"),
    ],
)
def test_wrong_axes(rows, message):
    with pytest.raises(InvalidInputError, match=message):
        over_cores(lambda *args: args, rows)


def test_wrong_calls():
    double = over_cores(lambda a, b: (2 * a, b), (0, None))
    assert double(jnp.ones(3), 1)[0].tolist() == [2, 2, 2]
    with pytest.raises(InvalidInputError, match="names 2 arguments"):
        double(jnp.ones(3))
    with pytest.raises(InvalidInputError, match="the same number of rows"):
        double((jnp.ones(3), jnp.ones(4)), 1)
    with pytest.raises(InvalidInputError, match="take as many, or call use_cores"):
        over_cores(lambda a: a, (0,), devices=99)(np.ones(198))
    with pytest.raises(InvalidInputError, match="5 rows cannot be divided over 2 devices"):
        over_cores(lambda a: a, (0,), devices=2)(np.ones(5))
    for wrong in (0, True, "2"):
        with pytest.raises(InvalidInputError, match="devices must be a whole number"):
            over_cores(lambda a: a, (0,), devices=wrong)
    two = over_cores(lambda a: a.sum(), (0,), devices=2)
    for transformed in (jax.jit(two), jax.grad(two)):
        with pytest.raises(InvalidInputError, match="put it around the whole"):
            transformed(jnp.ones(4))
    with pytest.raises(InvalidInputError, match="number must be a whole number"):
        use_cores(0)
    assert cores_for({}, 4) == 1


def test_jax_may_be_told_to_do_without_a_cpu(monkeypatch):
    def devices(platform=None):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", devices)
    assert use_cores() == 1


def test_one_device_compiles_once(random_like):
    cell = rnnjax.GRUCell(3)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 0)
    traced = []

    def last(params, xs):
        traced.append(1)
        return rnnjax.unroll(cell, params, xs)[1][-1]

    step = over_cores(last, (None, 1))
    for _ in range(2):
        assert step(params, np.ones((4, 5, 2), np.float32)).shape == (5, 3)
    assert len(traced) == 1
