"""The value that every format becomes: layers, parameters, and how they run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Bidirectional, Directions, GRUCell, InvalidInputError, LSTMCell
from rnnjax.interop import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Masking,
    Model,
    OneHotIds,
    Recurrent,
    Sequential,
)

TIME, BATCH, FEATURES, HIDDEN = 5, 3, 2, 4
MASK = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]], bool)


@pytest.fixture
def draw(random_like: Any) -> Any:
    def params_of(cell: rnnjax.Cell, seed: int = 0, features: int = FEATURES) -> Any:
        return random_like(lambda: cell.init(jax.random.key(0), features), seed)

    return params_of


@pytest.fixture
def xs(random_like: Any) -> jax.Array:
    return random_like(lambda: jnp.zeros((TIME, BATCH, FEATURES)), 9)


def test_a_chain_is_its_layers_by_hand(draw: Any, random_like: Any, assert_close: Any) -> None:
    """Ids with padding, two recurrent layers, a softmax: the mask goes from layer to layer."""
    lstm, gru = LSTMCell(HIDDEN), GRUCell(HIDDEN)
    table, dense = random_like((jnp.zeros((7, FEATURES)), jnp.zeros((HIDDEN, 7))), 1)
    params = {
        "embedding": {"embedding": table},
        "lstm": draw(lstm, 2),
        "gru": draw(gru, 3, HIDDEN),
        "dense": {"kernel": dense},
    }
    model = Model(
        Sequential(
            (
                Embedding("embedding", 7, FEATURES, mask_zero=True),
                Recurrent("lstm", lstm, masked_outputs="last"),
                Dropout("dropout", rnnjax.Dropout(0.5)),
                Recurrent("gru", gru, return_sequences=False),
                Dense("dense", 7, use_bias=False),
                Activation("softmax", "softmax"),
            )
        ),
        params,
    )
    ids = jnp.array([[1, 2, 0], [3, 0, 0], [4, 6, 0], [5, 1, 0], [2, 0, 0]])
    carry, probabilities = jax.jit(model.apply)(params, ids)

    mask = ids != 0
    first, ys = rnnjax.unroll(lstm, params["lstm"], table[ids], mask=mask, masked_outputs="last")
    second, ys = rnnjax.unroll(gru, params["gru"], ys, mask=mask, masked_outputs="last")
    expected = jax.nn.softmax(ys[-1] @ dense)
    assert_close((carry, probabilities), ({"lstm": first, "gru": second}, expected), 1e-6)

    noisy = model.apply(params, ids, key=jax.random.key(0))[1]
    assert not np.allclose(noisy, probabilities)


def test_each_layer_draws_its_own() -> None:
    layers = [Dropout(name, rnnjax.Dropout(0.5)) for name in ("first", "second")]
    _, ys = Model(Sequential(tuple(layers)), {})(jnp.ones((1, 1, 400)), key=jax.random.key(0))
    assert 0.15 < (ys != 0).mean() < 0.35


def test_the_carry_goes_on_and_can_be_given_in_part(
    draw: Any, xs: jax.Array, assert_close: Any
) -> None:
    lstm, gru = LSTMCell(HIDDEN), GRUCell(HIDDEN)
    network = Sequential((Recurrent("lstm", lstm), Recurrent("gru", gru)))
    model = Model(network, {"lstm": draw(lstm, 1), "gru": draw(gru, 2, HIDDEN)})
    whole = model(xs)
    carry, begin = model(xs[:2])
    carry, end = model(xs[2:], carry)
    assert_close((carry, jnp.concatenate([begin, end])), whole, 1e-6)

    # The GRU goes on, the LSTM begins anew.
    _, anew = model(xs[2:], {"gru": model(xs[:2])[0]["gru"]})
    _, ys = rnnjax.unroll(lstm, model.params["lstm"], xs[2:])
    _, ys = rnnjax.unroll(gru, model.params["gru"], ys, model(xs[:2])[0]["gru"])
    assert_close(anew, ys, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_outputs_of_two_directions(
    reverse: bool, draw: Any, xs: jax.Array, assert_close: Any
) -> None:
    """Each is that of the step which its own direction reads last; so for pairs, not merged."""
    layer = Bidirectional(LSTMCell(HIDDEN), merge="sum")
    params = draw(layer)
    recurrent = Recurrent("both", layer, reverse=reverse, return_sequences=False)
    model = Model(Sequential((recurrent,)), {"both": params})
    carry, last = model(xs, mask=MASK)
    # Of an LSTM the output is the hidden state, and the carry is that of the last valid step.
    assert_close(last, carry["both"].forward.hidden + carry["both"].backward.hidden, 1e-6)

    pairs = Recurrent("both", layer, reverse=reverse, keep_order=False, merged=False)
    _, ys = Model(Sequential((pairs,)), {"both": params})(xs)
    assert isinstance(ys, Directions)
    for cell, one, part, back in zip(layer.cells, ys, params, (reverse, not reverse), strict=True):
        expected = rnnjax.unroll(cell, part, xs, reverse=back)[1]
        assert_close(one, expected[::-1] if reverse else expected, 1e-6)


def test_masks_and_lengths_and_masking_meet(draw: Any, xs: jax.Array, assert_close: Any) -> None:
    cell = GRUCell(HIDDEN)
    model = Model(
        Sequential((Masking("masking", 3.0), Recurrent("gru", cell))), {"gru": draw(cell)}
    )
    marked = xs.at[2, 0].set(3.0)
    lengths = np.array([5, 4, 2])
    _, ys = model(marked, lengths=lengths, mask=MASK)
    valid = MASK & (np.arange(TIME)[:, None] < lengths)
    valid[2, 0] = False
    assert_close(ys, rnnjax.unroll(cell, model.params["gru"], xs, mask=valid)[1], 1e-6)


def test_one_hot_ids_are_one_hot_vectors(draw: Any, assert_close: Any) -> None:
    cell = LSTMCell(HIDDEN)
    model = Model(
        Sequential((OneHotIds("one_hot", 6), Recurrent("lstm", cell))), {"lstm": draw(cell, 0, 6)}
    )
    ids = jnp.array([[1, 5, 0], [2, 2, 2]])
    expected = rnnjax.unroll(cell, model.params["lstm"], jax.nn.one_hot(ids, 6))
    assert_close(model(ids), ({"lstm": expected[0]}, expected[1]), 1e-6)


def test_a_network_built_twice_compiles_once(draw: Any, xs: jax.Array) -> None:
    traced = []

    def run(network: Sequential, params: Any, xs: jax.Array) -> Any:
        traced.append(network)
        return Model(network, params).apply(params, xs)

    jitted = jax.jit(run, static_argnums=0)
    params = {"rnn": draw(LSTMCell(HIDDEN))}
    for _ in range(2):
        jitted(Sequential((Recurrent("rnn", LSTMCell(HIDDEN)),)), params, xs)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequential(()), "at least one layer"),
        (lambda: Sequential((LSTMCell(3),)), "is made of layers such as"),
        (lambda: Sequential((Activation("a", "tanh"),) * 2), "a occurs twice"),
        (lambda: simple()(jnp.ones((2, 1, 3)), {"other": 1}), "entries for some of ['rnn']"),
        (lambda: simple()(jnp.ones((2, 1, 3)), {"other": 1, 2: 3}), "but is ['2', 'other']"),
        (lambda: simple().apply(None, jnp.ones((2, 1, 3))), "dict like model.params"),
        (lambda: simple().with_params({"rnn": {"kernel": jnp.ones(3)}}), "do not belong"),
        (lambda: simple(last=True)(jnp.ones((2, 1, 3))), "set return_sequences there"),
        (lambda: simple(dense=4)(jnp.ones((2, 1, 3))), "its kernel takes 4"),
        (lambda: embedded()(jnp.ones((2, 1))), "takes integer ids"),
        (lambda: simple()(jnp.ones((2, 1, 3)), lengths=jnp.ones(1)), "lengths must be integers"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert message in str(caught.value)


def simple(last: bool = False, dense: int = 0) -> Model:
    cell = GRUCell(2)
    layers: list[Any] = [Recurrent("rnn", cell, return_sequences=not last)]
    params = {"rnn": cell.init(jax.random.key(0), 3)}
    if last:
        layers.append(Recurrent("again", cell))
        params["again"] = cell.init(jax.random.key(0), 2)
    if dense:
        layers.append(Dense("dense", 1))
        params["dense"] = {"kernel": jnp.ones((dense, 1)), "bias": jnp.zeros(1)}
    return Model(Sequential(tuple(layers)), params)


def embedded() -> Model:
    return Model(
        Sequential((Embedding("embedding", 3, 2),)), {"embedding": {"embedding": jnp.ones((3, 2))}}
    )


def test_an_id_out_of_range_is_seen() -> None:
    _, rows = embedded()(jnp.array([[0, 3, -1]]))
    assert np.isnan(np.asarray(rows)).all(axis=-1).tolist() == [[False, True, True]]
