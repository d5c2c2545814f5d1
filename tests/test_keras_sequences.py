"""Masks, states and directions of Keras 3, run live on its JAX backend, against `rnnjax.unroll`.

Keras is batch-major, and so are its masks; every comparison is made with time first. Models of many
layers and options are drawn in tests/interop/test_keras_graphs.py.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, SimpleRNNCell

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the group `test`")
assert keras.backend.backend() == "jax", "keras was imported with another backend before"

BATCH, TIME, FEATURES, HIDDEN = 4, 5, 2, 3
TOLERANCE = 1e-5  # of the largest entry of each array
# A row that is padded behind, one padded before, one with holes, and one without any valid step.
MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool).T

# Our options are called as Keras's are.
CASES = {
    "SimpleRNN": SimpleRNNCell(HIDDEN),
    "LSTM": LSTMCell(HIDDEN),
    "GRU": GRUCell(HIDDEN),
    "GRU, reset before": GRUCell(HIDDEN, reset_after=False),
}


def layer_of(name: str, **options: Any) -> Any:
    """Keras's layer of a case, built."""
    options |= {"reset_after": False} if "before" in name else {}
    layer = getattr(keras.layers, name.partition(",")[0])(HIDDEN, return_sequences=True, **options)
    layer.build((BATCH, TIME, FEATURES))
    return layer


def to_keras(cell: rnnjax.Cell, params: Any) -> list[jax.Array]:
    """Keras's list of weights; its GRU has the gates z, r, n and both biases in one array."""
    weights = [params["kernel"], params["recurrent_kernel"]]
    if "recurrent_bias" in params:
        weights.append(np.stack([params["bias"], params["recurrent_bias"]]))
    elif "bias" in params:
        weights.append(params["bias"])
    if isinstance(cell, GRUCell):
        for i, weight in enumerate(weights):
            r, z, n = np.split(weight, 3, axis=-1)
            weights[i] = np.concatenate([z, r, n], axis=-1)
    return weights


def swap(array: Any) -> Any:
    """From time first to batch first, and back."""
    return jnp.swapaxes(jnp.asarray(array), 0, 1)


def call(layer: Any, weights: list[jax.Array], xs: jax.Array, **more: Any) -> Any:
    """A Keras layer as a function of its weights: outputs with time first, and its states."""
    assert [weight.shape for weight in weights] == [v.shape for v in layer.trainable_variables]
    fixed = [variable.value for variable in layer.non_trainable_variables]
    out, _ = layer.stateless_call(weights, fixed, swap(xs), **more)
    return (swap(out[0]), out[1:]) if isinstance(out, list | tuple) else out


@pytest.fixture(scope="module")
def draw(random_like: Callable[..., Any]) -> Callable[..., Any]:
    def arguments(cell: rnnjax.Cell, seed: int = 0) -> tuple[Any, jax.Array, Any]:
        shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
        carry = jax.eval_shape(lambda: cell.initial_carry((BATCH,)))
        trees = shapes, jax.ShapeDtypeStruct((TIME, BATCH, FEATURES), float), carry
        return tuple(random_like(tree, seed + i) for i, tree in enumerate(trees))

    return arguments


# Each layer once, and both directions: what is held where does not depend on the cell.
@pytest.mark.parametrize(
    ("name", "masked_outputs", "go_backwards"),
    [
        ("SimpleRNN", "zero", False),
        ("LSTM", "zero", True),
        ("LSTM", "last", False),
        ("GRU", "zero", False),
        ("GRU, reset before", "last", True),
    ],
)
def test_layers_and_masks(
    name: str,
    masked_outputs: Any,
    go_backwards: bool,
    draw: Any,
    random_like: Any,
    assert_close: Any,
) -> None:
    """Outputs, final states and gradients, with initial states and holes in the masks."""
    cell, zero = CASES[name], masked_outputs == "zero"
    layer = layer_of(name, return_state=True, go_backwards=go_backwards, zero_output_for_mask=zero)
    params, xs, carry = draw(cell)
    order = slice(None, None, -1) if go_backwards else slice(None)
    # Before a row's first valid step there is no output to hold. Keras on JAX gives the initial
    # hidden state there (it takes the state for the output of the step before), and we give zeros,
    # as Keras on TensorFlow does.
    begun = np.logical_or.accumulate(MASK[order], axis=0)[order]
    held = np.asarray(carry.hidden) * ~begun[..., None]
    w_carry = random_like(carry, 7)
    w_ys = random_like(lambda: jnp.zeros((TIME, BATCH, HIDDEN)), 8)
    w_ys = np.where(begun[..., None], w_ys, np.float32(0))

    def keras_loss(weights: Any, xs: jax.Array, carry: Any) -> Any:
        ys, states = call(layer, weights, xs, initial_state=list(carry), mask=swap(MASK))
        ys = ys[order]  # Keras leaves the outputs in the order in which they were computed
        loss = jnp.vdot(w_ys, ys) + sum(map(jnp.vdot, w_carry, states))
        return loss, (type(carry)(*states), ys)

    def our_loss(params: Any, xs: jax.Array, carry: Any) -> Any:
        out = rnnjax.unroll(
            cell, params, xs, carry, mask=MASK, masked_outputs=masked_outputs, reverse=go_backwards
        )
        return jnp.vdot(w_ys, out[1]) + sum(map(jnp.vdot, w_carry, out[0])), out

    @jax.jit
    def both(weights: Any, params: Any, *rest: Any) -> Any:
        theirs, ours = (
            jax.grad(loss, argnums=(0, 1, 2), has_aux=True) for loss in (keras_loss, our_loss)
        )
        return theirs(weights, *rest), ours(params, *rest)

    weights = to_keras(cell, params)
    (gradients, (states, ys)), ((d_params, *rest), actual) = both(weights, params, xs, carry)
    expected = ys if zero else np.asarray(ys) - held
    assert_close(actual, (states, expected), TOLERANCE)
    assert_close((to_keras(cell, d_params), *rest), gradients, TOLERANCE)

    # From zeros, as Keras begins where it is given no state, there is no such difference.
    zeros = jax.tree.map(np.zeros_like, carry)
    (_, expected), (_, actual) = both(weights, params, xs, zeros)
    assert_close(actual, expected, TOLERANCE)


def test_stateful(draw: Any, assert_close: Any) -> None:
    """A stateful layer that is called by itself; `fit` and `predict` on JAX lose its states."""
    cell, layer = CASES["GRU"], layer_of("GRU", stateful=True, zero_output_for_mask=True)
    params, xs, _ = draw(cell)
    for variable, weight in zip(layer.trainable_variables, to_keras(cell, params), strict=True):
        variable.assign(weight)
    carry = None
    for batch in (xs, np.float32(-2) * np.asarray(xs)):
        expected = swap(layer(swap(batch), mask=swap(MASK)))
        carry, ys = rnnjax.unroll(cell, params, batch, carry, mask=MASK)
        states = type(carry)(*(variable.value for variable in layer.states))
        assert_close((carry, ys), (states, expected), TOLERANCE)
    layer.reset_states()
    expected = swap(layer(swap(xs), mask=swap(MASK)))
    assert_close(rnnjax.unroll(cell, params, xs, mask=MASK)[1], expected, TOLERANCE)


def test_bidirectional(draw: Any, assert_close: Any) -> None:
    """With any mask: on JAX Keras runs its backward layer over the mask in reverse, as we do.

    Whatever its layers say, Keras's `Bidirectional` sets the outputs of masked steps to zero.
    """
    cell, ours = CASES["LSTM"], Bidirectional(CASES["LSTM"], merge="average")
    layer = keras.layers.Bidirectional(layer_of("LSTM", return_state=True), merge_mode="ave")
    layer.build((BATCH, TIME, FEATURES))
    params, xs, carry = draw(ours)

    @jax.jit
    def theirs(weights: Any, xs: Any, carry: Any) -> Any:
        states = [*carry.forward, *carry.backward]
        ys, states = call(layer, weights, xs, initial_state=states, mask=swap(MASK))
        half = len(states) // 2
        kind = type(carry.forward)
        return rnnjax.Directions(kind(*states[:half]), kind(*states[half:])), ys

    weights = [weight for part in params for weight in to_keras(cell, part)]
    expected = theirs(weights, xs, carry)
    assert_close(rnnjax.unroll(ours, params, xs, carry, mask=MASK), expected, TOLERANCE)
