"""The fast path's forms for kernels that leave the cache, held to the reference at small sizes."""

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax.engine import products

# Sizes that no other test uses: what is compiled depends on the constant that is changed here.
HIDDEN, FEATURES, TIME = 11, 6, 5


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(products, "_CACHE_BYTES", 0)


@pytest.mark.parametrize("batch", [(), (7,), (2, 3), (41,)])
@pytest.mark.parametrize("kind", [rnnjax.SimpleRNNCell, rnnjax.LSTMCell, rnnjax.GRUCell])
def test_outputs_and_gradients_equal_the_reference(kind, batch, random_like, assert_close):
    cell = kind(HIDDEN)
    params = random_like(cell.init(jax.random.key(0), FEATURES), 1)
    carry = random_like(cell.initial_carry(batch), 2)
    xs = random_like(jnp.zeros((TIME, *batch, FEATURES)), 3)
    weights = random_like(jnp.zeros((TIME, *batch, HIDDEN)), 4)

    def loss(method, params, xs, carry):
        carry, ys = rnnjax.unroll(cell, params, xs, carry, method=method)
        return (weights * ys).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(carry))

    results = [
        jax.value_and_grad(loss, argnums=(1, 2, 3))(method, params, xs, carry)
        for method in (rnnjax.Fused(), rnnjax.Scan())
    ]
    assert_close(*results, 2e-5)


def test_bfloat16_products_stay_near_float32(random_like, assert_close):
    cells = [rnnjax.LSTMCell(HIDDEN, dtype=dtype) for dtype in (jnp.bfloat16, None)]
    params = random_like(cells[1].init(jax.random.key(0), FEATURES), 1)
    xs = random_like(jnp.zeros((TIME, 7, FEATURES)), 3)

    def loss(cell, params):
        carry, ys = rnnjax.unroll(cell, params, xs, method=rnnjax.Fused())
        assert carry.hidden.dtype == jnp.float32
        return (ys.astype(jnp.float32) ** 2).sum()

    gradients = [jax.grad(loss, argnums=1)(cell, params) for cell in cells]
    assert_close(*gradients, 3e-2)
