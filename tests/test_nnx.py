"""`rnnjax.nnx.RNN` against Flax's own ``RNN``, and under NNX's transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rnnjax
import rnnjax.nnx
from rnnjax import GRUCell, InvalidInputError, LSTMCell, Scan, SimpleRNNCell, Stack

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4


def from_flax(cell: rnnjax.Cell, theirs: Any) -> Any:
    """Our parameters from those of Flax's cell, which has one Dense for x and one for h."""
    params = {
        "kernel": theirs.dense_i.kernel[...],
        "recurrent_kernel": theirs.dense_h.kernel[...],
        "bias": (theirs.dense_h if isinstance(cell, LSTMCell) else theirs.dense_i).bias[...],
    }
    if isinstance(cell, GRUCell):
        params["recurrent_bias"] = jnp.zeros_like(params["bias"])
    return params


def to_flax_carry(carry: Any) -> Any:
    """Flax's LSTM keeps ``(cell, hidden)``, its other cells the hidden state alone."""
    if isinstance(carry, rnnjax.LSTMCarry):
        return carry.cell, carry.hidden
    return carry.hidden


PAIRS = {
    "lstm": (LSTMCell(HIDDEN), nnx.OptimizedLSTMCell),
    "gru": (GRUCell(HIDDEN), nnx.GRUCell),
    "simple": (SimpleRNNCell(HIDDEN), nnx.SimpleCell),
}
FLAGS: list[dict[str, bool]] = [
    {},
    {"time_major": True, "return_carry": True},
    {"reverse": True, "return_carry": True},
    {"reverse": True, "keep_order": True},
    {"reverse": True, "time_major": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(flags) or "default")
@pytest.mark.parametrize("name", PAIRS)
def test_equals_flax(
    name: str, flags: dict[str, bool], random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell, flax_cell = PAIRS[name]
    inputs, carry = random_like(
        (jnp.zeros((BATCH, TIME, FEATURES)), cell.initial_carry((BATCH,))), 1
    )
    if flags.get("time_major"):
        inputs = jnp.swapaxes(inputs, 0, 1)
    theirs = nnx.RNN(flax_cell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)), **flags)
    nnx.update(theirs, random_like(nnx.state(theirs, nnx.Param), 2))
    params = from_flax(cell, theirs.cell)

    for initial in (None, carry):
        for attributes, arguments in ((flags, {}), ({}, flags)):
            ours = rnnjax.nnx.RNN(cell, FEATURES, rngs=nnx.Rngs(0), **attributes)
            for key, value in params.items():
                ours.params[key][...] = value
            actual = ours(inputs, initial_carry=initial, **arguments)
            expected = theirs(
                inputs, initial_carry=None if initial is None else to_flax_carry(initial)
            )
            if flags.get("return_carry"):
                actual = to_flax_carry(actual[0]), actual[1]
            assert_close(actual, expected, 1e-5)


def make_model() -> rnnjax.nnx.RNN:
    return rnnjax.nnx.RNN(Stack([LSTMCell(8), GRUCell(4)]), FEATURES, rngs=nnx.Rngs(0))


def test_parameters_are_those_of_the_cell() -> None:
    model = make_model()
    params = model.cell_params
    expected = jax.eval_shape(lambda: model.cell.init(jax.random.key(0), FEATURES))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    _, ys = rnnjax.unroll(model.cell, params, jnp.swapaxes(inputs, 0, 1))
    np.testing.assert_allclose(model(inputs), jnp.swapaxes(ys, 0, 1), atol=1e-6)
    other = rnnjax.nnx.RNN(model.cell, FEATURES, rngs=nnx.Rngs(1))
    assert not jnp.array_equal(other.cell_params[0]["kernel"], params[0]["kernel"])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch: tuple[int, ...]) -> None:
    carry, outputs = make_model()(jnp.ones((*batch, TIME, FEATURES)), return_carry=True)
    assert outputs.shape == (*batch, TIME, 4)
    assert carry[0].cell.shape == (*batch, 8)


def test_split_merge_jit_and_grad(assert_close: Any) -> None:
    model = make_model()
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    graph, state = nnx.split(model)
    assert len(jax.tree.leaves(state)) == 7
    assert all(
        isinstance(leaf, nnx.Param)
        for leaf in jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    )
    merged = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, state))
    assert_close(merged.cell_params, jax.tree.map(lambda leaf: 2 * leaf, model.cell_params), 1e-6)
    assert_close(nnx.jit(lambda model, x: model(x))(model, inputs), model(inputs), 1e-6)
    # A model that is built again has the same graph, so nnx.jit compiles nothing for it.
    assert nnx.split(make_model())[0] == graph

    gradients = nnx.grad(lambda model: jnp.sum(model(inputs) ** 2))(model)
    expected = jax.grad(
        lambda params: jnp.sum(
            rnnjax.unroll(model.cell, params, jnp.swapaxes(inputs, 0, 1), method=Scan())[1] ** 2
        )
    )(model.cell_params)
    assert_close(jax.tree.leaves(gradients), jax.tree.leaves(expected), 1e-5)


def test_a_model_trains() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.rnn = rnnjax.nnx.RNN(Stack([LSTMCell(8), GRUCell(8)]), FEATURES, rngs=rngs)
            self.head = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, inputs: jax.Array) -> jax.Array:
            return self.head(self.rnn(inputs)[:, -1])

    inputs = jax.random.normal(jax.random.key(1), (8, TIME, FEATURES))
    targets = inputs.sum((1, 2))[:, None]
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
    before = model.rnn.cell_params

    @nnx.jit
    def train_step(model: Model, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(model: Model) -> jax.Array:
            return jnp.mean((model(inputs) - targets) ** 2)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [train_step(model, optimizer) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, model.rnn.cell_params)
    assert all(jax.tree.leaves(changed))


def test_errors() -> None:
    model = make_model()
    with pytest.raises(InvalidInputError, match=r"\(\*batch, time, features\).*shape \(5,\)"):
        model(jnp.ones(5))
    with pytest.raises(InvalidInputError, match=r"\(time, \*batch, features\)"):
        model(jnp.ones(5), time_major=True)
    with pytest.raises(InvalidInputError, match="3 features, but params were initialised for 2"):
        model(jnp.ones((BATCH, TIME, 3)))
    with pytest.raises(InvalidInputError, match="carry must be shaped like"):
        model(jnp.ones((BATCH, TIME, 2)), initial_carry=jnp.ones((BATCH, 8)))
    with pytest.raises(InvalidInputError, match="input_size must be a positive integer"):
        rnnjax.nnx.RNN(LSTMCell(4), 0, rngs=nnx.Rngs(0))
