"""The value that every format becomes: layers, parameters, and how they run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_helpers import random_model

import rnnjax
from rnnjax import Bidirectional, GRUCell, InvalidInputError, LSTMCell, Stack
from rnnjax.interop import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Masking,
    Model,
    Recurrent,
    Sequential,
)
from rnnjax.interop.functions import Nonlinearity

TIME, BATCH, FEATURES, HIDDEN = 5, 3, 2, 4
XS = np.ones((2, 1, 3), np.float32)
MASK = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]], bool)


@pytest.fixture
def xs(random_like: Any) -> jax.Array:
    return random_like(np.zeros((TIME, BATCH, FEATURES)), 9)


def test_a_chain_is_its_layers_by_hand(assert_close: Any) -> None:
    """Ids with padding, two recurrent layers, a softmax: the mask goes from layer to layer."""
    lstm, gru = LSTMCell(HIDDEN), GRUCell(HIDDEN)
    layers = (
        Embedding("embedding", 7, FEATURES, mask_zero=True),
        Recurrent("lstm", lstm, masked_outputs="last"),
        Dropout("dropout", rnnjax.Dropout(0.5)),
        Recurrent("gru", gru, return_sequences=False),
        Dense("dense", 7, use_bias=False),
        Activation("softmax", "softmax"),
    )
    model = random_model(*layers)
    table, dense = model.params["embedding"]["embedding"], model.params["dense"]["kernel"]
    ids = np.array([[1, 2, 0], [3, 0, 0], [4, 6, 0], [5, 1, 0], [2, 0, 0]])
    mask = ids != 0

    @jax.jit
    def run(params: Any) -> Any:
        ys = table[ids]
        first, ys = rnnjax.unroll(lstm, params["lstm"], ys, mask=mask, masked_outputs="last")
        second, ys = rnnjax.unroll(gru, params["gru"], ys, mask=mask, masked_outputs="last")
        expected = {"lstm": first, "gru": second}, jax.nn.softmax(ys[-1] @ dense)
        noisy = model.apply(params, ids, key=jax.random.key(0))[1]
        return model.apply(params, ids), expected, noisy

    actual, expected, noisy = run(model.params)
    assert_close(actual, expected, 1e-6)
    assert not np.allclose(noisy, actual[1])


HELD = {
    "lstm": LSTMCell(HIDDEN),
    "projected": rnnjax.ProjectionLSTMCell(6, proj_size=HIDDEN),
    "stack": rnnjax.Stack([GRUCell(3), LSTMCell(HIDDEN)]),
    "zoneout": rnnjax.Regularized(GRUCell(HIDDEN), zoneout_hidden=0.3),
}


@pytest.mark.parametrize("name", HELD)
def test_padded_steps_say_what_the_kept_state_says(name: str, assert_close: Any) -> None:
    """In one call and step by step, of all outputs and of the last, from a state that came."""
    cell, rng = HELD[name], np.random.default_rng(0)
    layers = [Recurrent("a", cell, masked_outputs="last"), Dense("b", 2)]
    model = random_model(*layers, inputs=FEATURES)
    backward, last = (
        Model(Sequential((dataclasses.replace(layers[0], **option), layers[1])), {})
        for option in ({"reverse": True}, {"return_sequences": False})
    )
    xs = rng.normal(size=(8, 3, FEATURES)).astype("f4")
    mask, resets = rng.random((2, 8, 3)) < [[[0.5]], [[0.1]]]
    mask[:, 0], mask[:3, 1], mask[5:, 2] = False, False, False
    assert (resets & ~mask).any()
    start = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), cell.initial_carry((3,))
    )

    @jax.jit
    def run(params: Any, xs: Any, mask: Any, resets: Any) -> Any:
        head = params["b"]["kernel"], params["b"]["bias"]

        def step(at: Any, now: Any) -> Any:
            (carry, y), (x, valid, reset) = at, now
            zeros = jax.tree.map(jnp.zeros_like, (carry, y))
            old, y = jax.tree.map(lambda a, b: jnp.where(reset[:, None], a, b), zeros, (carry, y))
            new = cell.step(params["a"], old, x)
            at = jax.tree.map(lambda a, b: jnp.where(valid[:, None], a, b), new, (old, y))
            return at, at[1] @ head[0] + head[1]

        def one_by_one(model: Any) -> Any:
            def step(carry: Any, now: Any) -> Any:
                x, valid, reset = (one[None] for one in now)
                carry, y = model.apply(params, x, carry, mask=valid, resets=reset)
                return carry, y.reshape(-1, 2)

            return jax.lax.scan(step, {"a": start}, (xs, mask, resets))[1]

        top = start[-1] if name == "stack" else start
        _, wanted = jax.lax.scan(step, (start, top.hidden), (xs, mask, resets))
        whole = model.apply(params, xs, {"a": start}, mask=mask, resets=resets)[1]
        end = last.apply(params, xs, {"a": start}, mask=mask)[1]
        turned = xs[::-1], mask[::-1]
        back = backward.apply(params, turned[0], {"a": start}, mask=turned[1])[1][::-1]
        forth = model.apply(params, xs, {"a": start}, mask=mask)[1]
        return wanted, (whole, one_by_one(model), one_by_one(last)), (end, back, forth)

    wanted, along, (end, back, forth) = run(model.params, xs, mask, resets)
    for ys in along:
        assert_close(ys, wanted, 1e-6)
    assert_close(end, forth[-1], 1e-6)
    assert_close(back, forth, 1e-6)


def test_each_layer_draws_its_own() -> None:
    """Guards the keys of a read model's layers."""
    layers = [Dropout(name, rnnjax.Dropout(0.5)) for name in ("first", "second")]
    model, xs = Model(Sequential(tuple(layers)), {}), np.ones((1, 1, 400), np.float32)
    ys = jax.jit(lambda key: model(xs, key=key)[1])(jax.random.key(0))
    assert 0.15 < (np.asarray(ys) != 0).mean() < 0.35


def test_the_carry_goes_on_and_can_be_given_in_part(xs: jax.Array, assert_close: Any) -> None:
    lstm, gru = LSTMCell(HIDDEN), GRUCell(HIDDEN)
    model = random_model(Recurrent("lstm", lstm), Recurrent("gru", gru), inputs=FEATURES)

    @jax.jit
    def run(xs: jax.Array) -> Any:
        before, begin = model(xs[:2])
        carry, end = model(xs[2:], before)
        # The GRU goes on, the LSTM begins anew.
        _, anew = model(xs[2:], {"gru": before["gru"]})
        _, ys = rnnjax.unroll(lstm, model.params["lstm"], xs[2:])
        _, ys = rnnjax.unroll(gru, model.params["gru"], ys, before["gru"])
        return ((carry, jnp.concatenate([begin, end])), anew), (model(xs), ys)

    assert_close(*run(xs), 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [LSTMCell(HIDDEN), Stack([GRUCell(3), LSTMCell(HIDDEN)])], ids=str)
def test_the_last_outputs_of_two_directions(
    cell: Any, reverse: bool, xs: Any, assert_close: Any
) -> None:
    """Each is that of the step which its own direction reads last."""
    layer = Bidirectional(cell, merge="sum")
    recurrent = Recurrent("both", layer, reverse=reverse, return_sequences=False)
    model = random_model(recurrent, inputs=FEATURES)
    carry, last = jax.jit(lambda xs: model(xs, mask=MASK))(xs)
    # Of an LSTM the output is the hidden state, and the carry is that of the last valid step.
    ends = [one[-1] if isinstance(cell, Stack) else one for one in carry["both"]]
    assert_close(last, ends[0].hidden + ends[1].hidden, 1e-6)


def test_masks_and_lengths_and_masking_meet(xs: jax.Array, assert_close: Any) -> None:
    cell = GRUCell(HIDDEN)
    model = random_model(Masking("masking", 3.0), Recurrent("gru", cell), inputs=FEATURES)
    marked = np.array(xs)
    marked[2, 0] = 3.0
    lengths = np.array([5, 4, 2])
    valid = MASK & (np.arange(TIME)[:, None] < lengths)
    valid[2, 0] = False

    @jax.jit
    def run(params: Any) -> Any:
        ys = model.apply(params, marked, lengths=lengths, mask=MASK)[1]
        return ys, rnnjax.unroll(cell, params["gru"], xs, mask=valid)[1]

    assert_close(*run(model.params), 1e-6)


def test_a_network_built_twice_compiles_once(xs: jax.Array) -> None:
    traced = []

    def run(network: Any, params: Any, xs: jax.Array) -> Any:
        traced.append(network)
        return Model(network, params).apply(params, xs)

    jitted = jax.jit(run, static_argnums=0)
    for _ in range(2):
        model = random_model(Recurrent("rnn", LSTMCell(HIDDEN)), inputs=FEATURES)
        jitted(model.network, model.params, xs)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model.of({}, GRUCell(2)), "cell must be a Cell such as rnnjax.LSTMCell(50)"),
        (lambda: Nonlinearity("leaky_relu", 0.1), "but is 'leaky_relu'"),
        (lambda: Sequential(()), "at least one layer"),
        (lambda: Sequential((LSTMCell(3),)), "but got LSTMCell("),
        (lambda: Sequential((Activation("a", "tanh"),) * 2), "a occurs twice"),
        (lambda: simple()(XS, {"other": 1}), "entries for some of ['rnn']"),
        (lambda: simple()(XS, {"other": 1, 2: 3}), "but is ['2', 'other']"),
        (lambda: simple().apply(None, XS), "dict like model.params"),
        (lambda: simple().with_params({"rnn": {"kernel": np.ones(3, "f")}}), "do not belong"),
        (lambda: simple(last=True)(XS), "set return_sequences there"),
        (lambda: random_model(Dense("dense", 1), inputs=4)(XS), "its kernel takes 4"),
        (lambda: embedded()(XS[..., 0]), "takes integer ids"),
        (lambda: simple()(XS, lengths=np.ones(1, "f")), "lengths must be integers"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert message in str(caught.value)


def simple(last: bool = False) -> Model:
    layers = [Recurrent("rnn", GRUCell(2), return_sequences=not last)]
    layers += [Recurrent("again", GRUCell(2))] * last
    return random_model(*layers, inputs=3)


def embedded() -> Model:
    return random_model(Embedding("embedding", 3, 2))


def test_an_id_out_of_range_is_seen() -> None:
    _, rows = jax.jit(lambda ids: embedded()(ids))(np.array([[0, 3, -1]]))
    assert np.isnan(np.asarray(rows)).all(axis=-1).tolist() == [[False, True, True]]
