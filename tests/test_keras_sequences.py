"""Layers, masks, states, direction and stacking against Keras 3, run live on its JAX backend.

Keras is batch-major, and so are its masks; every comparison here is made with time first.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, Regularized, SimpleRNNCell, Stack

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
assert keras.backend.backend() == "jax", "keras was imported with another backend before"

BATCH, TIME, FEATURES, HIDDEN = 4, 5, 2, 3
TOLERANCE = 1e-5  # of the largest entry of each array
# A row that is padded behind, one padded before, one with holes, and one without any valid step.
MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool).T

HARD = {"recurrent_activation": "hard_sigmoid", "activation": "softsign"}
# Our options are called as Keras's are.
CASES = {
    name: (cell(HIDDEN, **options), layer, options)
    for name, cell, layer, options in [
        ("simple", SimpleRNNCell, "SimpleRNN", {}),
        ("simple-no-bias", SimpleRNNCell, "SimpleRNN", {"use_bias": False}),
        ("simple-relu", SimpleRNNCell, "SimpleRNN", {"activation": "relu"}),
        ("lstm", LSTMCell, "LSTM", {}),
        ("lstm-no-bias", LSTMCell, "LSTM", {"use_bias": False}),
        ("lstm-hard", LSTMCell, "LSTM", HARD),
        ("gru", GRUCell, "GRU", {}),
        ("gru-no-bias", GRUCell, "GRU", {"use_bias": False}),
        ("gru-hard", GRUCell, "GRU", HARD),
        ("gru-reset-before", GRUCell, "GRU", {"reset_after": False}),
    ]
}


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


# Each layer once, and both directions. What is held where does not depend on the cell, and what
# other options make of one is compared in tests/test_reference.py.
USUAL = [
    ("simple", "zero", False),
    ("lstm", "zero", True),
    ("lstm", "last", False),
    ("gru", "zero", False),
    ("gru-reset-before", "last", True),
]


@pytest.mark.parametrize(
    ("name", "masked_outputs", "go_backwards"),
    [
        pytest.param(*row, marks=[] if row in USUAL else pytest.mark.slow)
        for row in itertools.product(CASES, ("zero", "last"), (False, True))
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
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(
        HIDDEN,
        return_sequences=True,
        return_state=True,
        go_backwards=go_backwards,
        zero_output_for_mask=masked_outputs == "zero",
        **options,
    )
    layer.build((BATCH, TIME, FEATURES))
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
    expected = np.asarray(ys) - held if masked_outputs == "last" else ys
    assert_close(actual, (states, expected), TOLERANCE)
    assert_close((to_keras(cell, d_params), *rest), gradients, TOLERANCE)

    # From zeros, as Keras begins where it is given no state, there is no such difference.
    zeros = jax.tree.map(np.zeros_like, carry)
    (_, expected), (_, actual) = both(weights, params, xs, zeros)
    assert_close(actual, expected, TOLERANCE)


@pytest.mark.parametrize("name", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_the_last_output_alone(name: str, draw: Any, assert_close: Any) -> None:
    """``return_sequences=False`` under a mask is the end of the held outputs."""
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(HIDDEN, **options)
    layer.build((BATCH, TIME, FEATURES))
    params, xs, _ = draw(cell)
    run = jax.jit(lambda weights, xs: call(layer, weights, xs, mask=swap(MASK)))
    _, ys = rnnjax.unroll(cell, params, xs, mask=MASK, masked_outputs="last")
    assert_close(np.asarray(ys)[-1], run(to_keras(cell, params), xs), TOLERANCE)


@pytest.mark.parametrize("name", [pytest.param("lstm", marks=pytest.mark.slow), "gru"])
def test_stateful(name: str, draw: Any, assert_close: Any) -> None:
    """A stateful layer that is called by itself; `fit` and `predict` on JAX lose its states."""
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(
        HIDDEN, return_sequences=True, stateful=True, zero_output_for_mask=True, **options
    )
    layer.build((BATCH, TIME, FEATURES))
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


@pytest.mark.parametrize(
    ("name", "merge", "merge_mode"),
    [
        ("lstm", "concat", "concat"),
        ("gru", "average", "ave"),
        # The other merges are those of tests/test_reference.py.
        pytest.param("lstm", "sum", "sum", marks=pytest.mark.slow),
        pytest.param("gru", "mul", "mul", marks=pytest.mark.slow),
    ],
)
def test_bidirectional(
    name: str, merge: Any, merge_mode: str, draw: Any, assert_close: Any
) -> None:
    """With any mask: on JAX Keras runs its backward layer over the mask in reverse, as we do.

    Whatever its layers say, Keras's `Bidirectional` sets the outputs of masked steps to zero.
    """
    cell, layer_name, options = CASES[name]
    layer = keras.layers.Bidirectional(
        getattr(keras.layers, layer_name)(
            HIDDEN, return_sequences=True, return_state=True, **options
        ),
        merge_mode=merge_mode,
    )
    layer.build((BATCH, TIME, FEATURES))
    ours = Bidirectional(cell, merge=merge)
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


@pytest.mark.parametrize("masked_outputs", ["zero", pytest.param("last", marks=pytest.mark.slow)])
def test_a_stack(masked_outputs: Any, draw: Any, assert_close: Any) -> None:
    """Keras hands the mask on from layer to layer; the dropout between them is off."""
    options = {"return_sequences": True, "zero_output_for_mask": masked_outputs == "zero"}
    model = keras.Sequential(
        [
            keras.Input((TIME, FEATURES)),
            keras.layers.Masking(0.0),
            keras.layers.LSTM(HIDDEN, **options),
            keras.layers.Dropout(0.5),
            keras.layers.GRU(HIDDEN, **options),
            keras.layers.LSTM(2, **options),
        ]
    )
    stack = Stack([LSTMCell(HIDDEN), GRUCell(HIDDEN), LSTMCell(2)], dropout=rnnjax.Dropout(0.5))
    params, xs, _ = draw(stack)
    weights = [w for c, part in zip(stack.cells, params, strict=True) for w in to_keras(c, part)]
    # The layer `Masking` takes steps whose features are all zero for masked ones.
    xs = np.where(MASK[..., None], xs, np.float32(0))
    expected = jax.jit(lambda weights: swap(call(model, weights, xs, training=False)))(weights)
    _, ys = rnnjax.unroll(stack, params, xs, mask=MASK, masked_outputs=masked_outputs)
    assert_close(ys, expected, TOLERANCE)


@pytest.mark.parametrize(
    "name", ["lstm", pytest.param("gru", marks=pytest.mark.slow), "gru-reset-before"]
)
def test_dropout_is_off(name: str, draw: Any, assert_close: Any) -> None:
    """Without a key a regularised cell is Keras's layer with ``training=False``."""
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(
        HIDDEN, return_sequences=True, dropout=0.3, recurrent_dropout=0.4, **options
    )
    layer.build((BATCH, TIME, FEATURES))
    params, xs, _ = draw(cell)
    run = jax.jit(lambda weights, xs: swap(call(layer, weights, xs, training=False)))
    # Where the reset comes before the product, none stands before our update: only inputs drop.
    rates = {"input_dropout": 0.3} | ({"recurrent_dropout": 0.4} if cell.recurrent else {})
    _, ys = rnnjax.unroll(Regularized(cell, **rates), params, xs)
    assert_close(ys, run(to_keras(cell, params), xs), TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_defaults_of_the_initial_parameters_are_those_of_keras(name: str) -> None:
    cell, layer_name, options = CASES[name]
    layer = getattr(keras.layers, layer_name)(HIDDEN, **options)
    layer.build((BATCH, TIME, FEATURES))
    ours = to_keras(cell, cell.init(jax.random.key(0), FEATURES))
    assert [weight.shape for weight in ours] == [v.shape for v in layer.trainable_variables]
    for bias, theirs in zip(ours[2:], layer.trainable_variables[2:], strict=True):
        np.testing.assert_array_equal(bias, np.asarray(theirs.value))
