"""`rnnjax.linen.RNN` against Flax's own ``RNN``, and in training."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.errors import ScopeParamShapeError

import rnnjax
import rnnjax.linen
from rnnjax import Fused, GRUCell, InvalidInputError, LSTMCell, Scan, SimpleRNNCell, Stack

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4


def from_flax(cell: rnnjax.Cell, theirs: Any) -> Any:
    """Our parameters from those of Flax's cell: one Dense a gate, biases on one side of the sum."""

    def joined(side: str, gates: str, leaf: str) -> jax.Array:
        return jnp.concatenate([theirs[side + gate][leaf] for gate in gates], -1)

    if isinstance(cell, LSTMCell):
        return {
            "kernel": joined("i", "ifgo", "kernel"),
            "recurrent_kernel": joined("h", "ifgo", "kernel"),
            "bias": joined("h", "ifgo", "bias"),
        }
    if isinstance(cell, GRUCell):
        zeros = jnp.zeros(2 * cell.hidden_size)
        return {
            "kernel": joined("i", "rzn", "kernel"),
            "recurrent_kernel": joined("h", "rzn", "kernel"),
            "bias": joined("i", "rzn", "bias"),
            "recurrent_bias": jnp.concatenate([zeros, theirs["hn"]["bias"]]),
        }
    return {
        "kernel": theirs["i"]["kernel"],
        "recurrent_kernel": theirs["h"]["kernel"],
        "bias": theirs["i"]["bias"],
    }


def to_flax_carry(carry: Any) -> Any:
    """Flax's LSTM keeps ``(cell, hidden)``, its other cells the hidden state alone."""
    if isinstance(carry, rnnjax.LSTMCarry):
        return carry.cell, carry.hidden
    return carry.hidden


PAIRS = {
    "lstm": (LSTMCell(HIDDEN), nn.LSTMCell),
    "optimized-lstm": (LSTMCell(HIDDEN), nn.OptimizedLSTMCell),
    "gru": (GRUCell(HIDDEN), nn.GRUCell),
    "simple": (SimpleRNNCell(HIDDEN), nn.SimpleCell),
}
FLAGS: list[dict[str, bool]] = [
    {},
    {"return_carry": True},
    {"time_major": True, "return_carry": True},
    {"reverse": True, "return_carry": True},
    {"reverse": True, "keep_order": True},
    {"reverse": True, "keep_order": True, "time_major": True},
    {"reverse": True, "time_major": True},
    {"keep_order": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(flags) or "default")
@pytest.mark.parametrize("name", PAIRS)
def test_equals_flax(
    name: str, flags: dict[str, bool], random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell, flax_cell = PAIRS[name]
    theirs = nn.RNN(flax_cell(HIDDEN), **flags)
    inputs, carry = random_like(
        (jnp.zeros((BATCH, TIME, FEATURES)), cell.initial_carry((BATCH,))), 1
    )
    if flags.get("time_major"):
        inputs = jnp.swapaxes(inputs, 0, 1)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), inputs)
    variables = random_like(shapes, 2)
    ours = {"params": {"cell": from_flax(cell, variables["params"]["cell"])}}

    for initial in (None, carry):
        # The flags as attributes and as arguments of the call mean the same.
        for module, arguments in (
            (rnnjax.linen.RNN(cell, **flags), {}),
            (rnnjax.linen.RNN(cell), flags),
        ):
            actual = module.apply(ours, inputs, initial_carry=initial, **arguments)
            expected = theirs.apply(
                variables,
                inputs,
                initial_carry=None if initial is None else to_flax_carry(initial),
            )
            if flags.get("return_carry"):
                actual = to_flax_carry(actual[0]), actual[1]
            assert_close(actual, expected, 1e-5)


def test_a_flag_of_the_call_overrides_the_attribute(assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    model = rnnjax.linen.RNN(
        LSTMCell(HIDDEN), time_major=True, return_carry=True, reverse=True, keep_order=True
    )
    variables = model.init(jax.random.key(0), inputs)
    off = {"time_major": False, "return_carry": False, "reverse": False, "keep_order": False}
    expected = rnnjax.linen.RNN(LSTMCell(HIDDEN)).apply(variables, inputs)
    assert_close(model.apply(variables, inputs, **off), expected, 1e-6)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("time_major", [False, True])
def test_any_number_of_batch_axes(batch: tuple[int, ...], time_major: bool) -> None:
    stack = Stack([LSTMCell(4), GRUCell(3)])
    model = rnnjax.linen.RNN(stack, time_major=time_major, return_carry=True)
    shape = (TIME, *batch, FEATURES) if time_major else (*batch, TIME, FEATURES)
    inputs = jax.random.normal(jax.random.key(1), shape)
    (carry, outputs), variables = model.init_with_output(jax.random.key(0), inputs)
    assert outputs.shape == (*shape[:-1], 3)
    assert carry[0].cell.shape == (*batch, 4)

    # The parameters are those of cell.init, and unroll takes them as they are.
    params = variables["params"]["cell"]
    assert jax.tree.structure(params) == jax.tree.structure(stack.init(jax.random.key(0), FEATURES))
    xs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
    _, ys = rnnjax.unroll(stack, params, xs)
    np.testing.assert_allclose(outputs, ys if time_major else jnp.moveaxis(ys, 0, -2), atol=1e-6)


def test_a_model_trains() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs: jax.Array) -> jax.Array:
            hidden = rnnjax.linen.RNN(LSTMCell(8))(inputs)
            hidden = rnnjax.linen.RNN(GRUCell(8), method=Scan(), name="second")(hidden)
            return nn.Dense(1)(hidden[:, -1])

    inputs = jax.random.normal(jax.random.key(1), (8, TIME, FEATURES))
    targets = inputs.sum((1, 2))[:, None]
    params = Model().init(jax.random.key(0), inputs)
    assert set(params["params"]) == {"RNN_0", "second", "Dense_0"}
    optimizer = optax.adam(0.03)

    @jax.jit
    def train_step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean((Model().apply(params, inputs) - targets) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value, gradients

    state = optimizer.init(params)
    params, state, first, gradients = train_step(params, state)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    for _ in range(30):
        params, state, last, _ = train_step(params, state)
    assert last < 0.3 * first


def test_errors() -> None:
    model = rnnjax.linen.RNN(LSTMCell(HIDDEN))
    key = jax.random.key(0)
    with pytest.raises(InvalidInputError, match=r"\(\*batch, time, features\).*shape \(5,\)"):
        model.init(key, jnp.ones(5))
    with pytest.raises(InvalidInputError, match=r"\(time, \*batch, features\)"):
        model.init(key, jnp.ones(5), time_major=True)
    inputs = jnp.ones((BATCH, TIME, FEATURES))
    variables = model.init(key, inputs)
    with pytest.raises(ScopeParamShapeError, match="cell"):
        model.apply(variables, jnp.ones((BATCH, TIME, FEATURES + 1)))
    with pytest.raises(InvalidInputError, match=r"hidden.*\(3, 4\)"):
        model.apply(variables, inputs, initial_carry=LSTMCell(HIDDEN).initial_carry((BATCH + 1,)))
    with pytest.raises(InvalidInputError, match="does not split"):
        rnnjax.linen.RNN(GRUCell(4, reset_after=False), method=Fused()).init(key, inputs)
