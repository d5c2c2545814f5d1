"""Models of Keras, live on its JAX backend and out of its files: graphs, rows, drawn ones."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import made_models
import numpy as np
import pytest
from interop_helpers import arrays_of, at_once, distance, same_arrays, write_old
from made_models import (
    BATCH,
    FEATURES,
    LAYERS,
    MODELS,
    TIME,
    WORDS,
    inputs_of,
    model_of,
    randomized,
)

from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Model, Sequential, convert
from rnnjax.interop import keras as interop
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.operators import Operation
from rnnjax.interop.layers import Context, Flow

keras = pytest.importorskip("keras", reason="keras is in the group `test`")
layers = keras.layers
pytestmark = [
    # Keras's variables give their arrays to NumPy 2 in the way of NumPy 1, where it saves a model.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*therefore destroy the mask information"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),  # of one feature
    pytest.mark.filterwarnings("ignore:the gradient of .* is taken without its dropout"),
]


def random_graph(seed: int, more: bool = False) -> Callable[..., Any]:
    """A random graph: each layer reads what came before, some with masks, some with states.

    With ``more`` of them there are some with which not all of what this file does can be done.
    """

    def build(layers: Any, x: Any, ids: Any) -> Any:
        rng = np.random.default_rng(seed)
        table = layers.Embedding(WORDS, 3, mask_zero=bool(rng.integers(2)))
        there = [layers.Dense(3)(layers.Masking(0.5)(x)), table(ids)]
        states: list[Any] = []
        shared = layers.GRU(3, return_sequences=True, go_backwards=bool(rng.integers(2)))

        def recurrent(a: Any, b: Any) -> Any:
            lstm = layers.LSTM(3, return_sequences=True, return_state=True)
            begin = states[-1] if states and rng.integers(2) else None
            y, *state = lstm(a) if begin is None else lstm(a, initial_state=begin)
            states.append(state)
            return y

        def any_cells(a: Any, b: Any) -> Any:
            cells = [layers.GRUCell(2), layers.SimpleRNNCell(3), layers.LSTMCell(3)]
            cells = cells[int(rng.integers(2)) : 2 + int(rng.integers(2))]
            cells = cells if cells[1:] else cells[0]
            backwards = bool(rng.integers(2))
            return layers.Dense(3)(
                layers.RNN(cells, return_sequences=True, go_backwards=backwards)(a)
            )

        def directions(a: Any, b: Any) -> Any:
            kind = getattr(layers, rng.choice(["SimpleRNN", "GRU", "LSTM"]))
            mode = str(rng.choice(["concat", "sum", "mul", "ave"]))
            ys = layers.Bidirectional(kind(3, return_sequences=True), merge_mode=mode)(a)
            return layers.Dense(3)(ys) if mode == "concat" else ys

        def merged(a: Any, b: Any) -> Any:
            kind = rng.choice(["Add", "Multiply", "Average", "Maximum"])
            c = there[rng.integers(len(there))]
            return getattr(layers, kind)()([a, b, c] if more and rng.integers(2) else [a, b])

        def heads(a: Any, b: Any) -> Any:
            # Keras 3's takes the mask off its inputs, for all that read them later.
            a, b = (layers.Dense(3)(one) for one in (a, b))
            rate = 0.5 * int(rng.integers(2))
            return layers.MultiHeadAttention(2, 2, dropout=rate)(a, b)

        makers: list[Callable[[Any, Any], Any]] = [
            recurrent,
            recurrent,
            lambda a, b: shared(a),
            directions,
            merged,
            lambda a, b: layers.Dense(3, activation="tanh")(layers.Concatenate()([a, b])),
            lambda a, b: layers.Conv1D(3, 2, padding="same", activation="relu")(a),
            lambda a, b: layers.LayerNormalization()(a),
            lambda a, b: layers.TimeDistributed(layers.Dense(3))(a),
            lambda a, b: layers.Attention(use_scale=True)([a, b]),
            lambda a, b: layers.RepeatVector(TIME)(layers.GlobalAveragePooling1D()(a)),
        ]
        makers += [
            merged,
            merged,
            any_cells,
            heads,
            lambda a, b: layers.MaxPooling1D(2, strides=1, padding="same")(a),
            lambda a, b: layers.AveragePooling1D(3, strides=1, padding="same")(a),
            lambda a, b: layers.RepeatVector(TIME)(layers.GlobalMaxPooling1D()(a)),
            lambda a, b: layers.Reshape((TIME, 3))(layers.Dense(3 * TIME)(layers.Flatten()(a))),
            lambda a, b: layers.BatchNormalization()(layers.SpatialDropout1D(0.5)(a)),
            lambda a, b: layers.Activation("softplus")(layers.ReLU(max_value=6)(a)),
            lambda a, b: layers.Softmax()(layers.Conv1D(3, 1)(a)),  # which ends a mask
            lambda a, b: layers.Masking(0.5)(a),  # refused where there is a mask before
            lambda a, b: layers.AveragePooling1D(2)(
                layers.Concatenate(axis=1)([a, layers.Dense(3)(a)])
            ),
            lambda a, b: layers.Dense(3)(layers.Dot(axes=2)([a, b])),
        ] * more
        for _ in range(rng.integers(3, 9)):
            a, b = (there[rng.integers(len(there))] for _ in range(2))
            there.append(makers[rng.integers(len(makers))](a, b))
        return [
            layers.GRU(2)(there[-1]),
            layers.Concatenate()(there),
            *(layers.Flatten()(one) for one in there[2:] if more),
            *(one for state in states for one in state),
        ]

    return build


GRAPHS = [
    *(pytest.param(build, marks=[] if i < 14 else pytest.mark.slow, id=build.__name__)
      for i, build in enumerate([*LAYERS, *MODELS])),
    *(pytest.param(random_graph(i), marks=pytest.mark.slow, id=f"{i}") for i in range(40)),
]  # fmt: skip


def with_slopes(run: Callable[..., Any], values: Any, arrays: list[Any]) -> Any:
    """What ``run(values, arrays)`` returns, and slopes of a sum that sees every entry of it.

    They are those by the inputs, and by one factor of all parameters, which does not depend on
    where a format has them.
    """

    def total(factor: Any, arrays: Any) -> Any:
        values_ = jax.tree.map(lambda a: factor * a if a.dtype == np.float32 else a, values)
        ys = run(values_, arrays)
        sums = (jnp.vdot(jnp.sin(1.0 + jnp.arange(y.size)), y) for y in jax.tree.leaves(ys))
        return sum(sums), ys

    slopes = jax.value_and_grad(total, (0, 1), has_aux=True, allow_int=True)
    (_, ys), (by_factor, by_inputs) = jax.jit(slopes)(np.float32(1), arrays)
    return ys, [by_factor, *(d for d in by_inputs if d.dtype == np.float32)]


def by_keras(model: Any, arrays: list[Any], **marks: Any) -> Any:
    """What a model makes of these inputs: in one program, which is new as the weights are."""
    fixed = [variable.value for variable in model.non_trainable_variables]

    def run(values: Any, arrays: list[Any]) -> Any:
        given = arrays if len(arrays) > 1 else arrays[0]
        return model.stateless_call(values, fixed, given, **marks)[0]

    return with_slopes(run, [variable.value for variable in model.trainable_variables], arrays)


def spelled(tree: Any) -> str:
    """The structure and the number of axes of each; lists are tuples here."""
    spelled = str(jax.tree.map(lambda leaf: len(leaf.shape), tree))
    return spelled.replace("[", "(").replace("]", ")").replace(",)", ")")


def check(model: Any, ours: Model, arrays: Any = None, most: float = 1e-5, **marks: Any) -> None:
    """Both make the same of these inputs, batch first; ours may take and return time first."""

    def turned(x: Any, sequence: bool) -> Any:
        return jnp.swapaxes(x, 0, 1) if sequence and ours.network.time_first else x

    def run(params: Any, arrays: list[Any]) -> Any:
        given = tuple(map(turned, arrays, series))
        masks = {name: mark.T for name, mark in marks.items()}
        carry, ys = ours.apply(params, given if given[1:] else given[0], **masks)
        assert jax.tree.structure(carry) == jax.tree.structure(ours.initial_carry((BATCH,)))
        return jax.tree.map(lambda y: turned(y, np.ndim(y) > 2), ys)

    arrays = inputs_of(model) if arrays is None else arrays
    series = [one.sequence for one in getattr(ours.network, "inputs", ())] or [True]
    expected, expected_slopes = by_keras(model, arrays, **marks)
    ys, slopes = with_slopes(run, ours.params, arrays)
    assert spelled(ys) == spelled(expected)
    assert distance(*map(jax.tree.leaves, (ys, expected))) < most, ours.network
    assert distance(slopes, expected_slopes) < most, ours.network


def check_files(model: Any, ours: Model, folder: Path, anew: bool = False) -> None:
    """Out of both kinds of files, and back into the new one, to the bit as it changed.

    Or written ``anew``, as if it had been read from no file.
    """
    before = arrays_of(model)
    for name in ("theirs.keras", "theirs.h5"):
        model.save(folder / name)
        read = interop.load(folder / name)
        assert read.network == ours.network
        same_arrays(read, arrays_of(ours))
    halves = ours.with_params(jax.tree.map(lambda a: 0.5 * np.asarray(a), ours.params))
    interop.save(Model(ours.network, halves.params) if anew else halves, folder / "ours.keras")
    again = interop.load(folder / "ours.keras")
    assert again.network == ours.network
    same_arrays(again, arrays_of(halves))
    opened = keras.saving.load_model(folder / "ours.keras")
    theirs = [each(each.inputs if each.inputs[1:] else each.inputs[0]) for each in (opened, model)]
    assert spelled(theirs[0]) == spelled(theirs[1])
    same_arrays(opened, [(0.5 * a).astype(a.dtype) for a in before])  # one is a count
    model.save_weights(folder / "theirs.weights.h5")
    read = interop.load(folder / "theirs.weights.h5", like=halves)
    same_arrays(read, arrays_of(ours))
    interop.save(read, folder / "ours.weights.h5")
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape, np.float32))
    model.load_weights(folder / "ours.weights.h5")
    same_arrays(model, before)


ANEW = "cells", "directions", "options", "row"


@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_a_graph_computes_what_keras_does(build: Callable[..., Any], tmp_path: Path) -> None:
    """Of all of them `frames` alone guards the mask behind a layer that is applied at each step."""
    model = model_of(build, keras)
    ours = interop.load(model)
    check(model, ours)
    check_files(model, ours, tmp_path, anew=build.__name__ in ANEW)


WRITERS = ["keras a.keras", "tf_keras a.keras", "tf_keras a.h5"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("writer", WRITERS)
def test_drawn_models_of_both_writers(writer: str, tmp_path: Path) -> None:
    """What their writer predicts, at padding too, or refused for one of few reasons."""
    module, name = writer.split()
    of = pytest.importorskip(module, reason=f"{module} is in the extra `parity`")
    reasons = {"would use or replace that": 0}
    equal, first = 0, 1000 * WRITERS.index(writer)
    for seed in range(first, first + 100):
        model = model_of(random_graph(seed, more=True), of, seed)
        arrays = inputs_of(model, seed)
        model.save(tmp_path / name)
        expected = [np.asarray(y) for y in model(arrays, training=False)]
        try:
            ours = interop.load(tmp_path / name, time_first=False)
        except InteropError as error:
            reason = next((one for one in reasons if one in str(error)), f"seed {seed}: {error}")
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            ys = jax.jit(ours.apply)(ours.params, tuple(arrays))[1]
            equal += 1
            for i, (y, e) in enumerate(zip(ys, expected, strict=True)):
                scale, say = max(1e-3, np.nanmax(np.abs(e), initial=0)), f"seed {seed}, output {i}"
                np.testing.assert_allclose(y, e, rtol=0, atol=1e-5 * scale, err_msg=say)
        if seed % 20 == 19:
            jax.clear_caches()
            of.backend.clear_session()
    print(f"{writer}, seeds {first} to {seed}: {equal} are equal, refused are {reasons}")
    assert len(reasons) == 1, reasons
    assert equal >= 75


# --- States, axes, inputs and outputs ---


def test_states_go_on_where_they_stood() -> None:
    """Each use of a layer has a state of its own, and one that is given takes the place of all."""
    x = keras.Input((TIME, FEATURES))
    lstm = layers.LSTM(FEATURES, return_sequences=True)
    ours = interop.load(keras.Model(x, lstm(lstm(x))))
    xs = np.random.default_rng(0).standard_normal((8, BATCH, FEATURES)).astype(np.float32)
    run = jax.jit(ours.apply)
    carry, first = run(ours.params, xs[:4])
    assert sorted(carry) == sorted(ours.initial_carry((BATCH,))) == [lstm.name, f"{lstm.name}:1"]
    _, second = run(ours.params, xs[4:], carry)
    expected = run(ours.params, xs)[1]
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=1e-6)
    with pytest.raises(InvalidInputError, match="carry must be a dict with entries for some of"):
        ours(xs, {"other": carry})


def test_axes_of_the_source(tmp_path: Path) -> None:
    """``time_first=False`` takes and gives what Keras does, of a graph and of a row."""

    def graph(x: Any, ids: Any) -> Any:
        ys, *states = layers.LSTM(2, return_sequences=True, return_state=True)(x)
        return [layers.Add()([ys, layers.Embedding(WORDS, 2)(ids)]), *states]

    row = keras.Sequential([keras.Input((TIME, FEATURES)), layers.GRU(2, return_sequences=True)])
    for model in (model_of(graph, keras), row):
        ours = interop.load(model, time_first=False)
        assert str(ours).endswith("batch first")
        convert.write(ours, tmp_path / f"{len(model.inputs)}.keras")  # which reads time first
        check(model, ours)
    (xs,) = inputs_of(row)
    with pytest.raises(InvalidInputError, match="xs should have a batch and a time"):
        ours(xs[0, 0])
    ys = np.asarray(jax.jit(ours.__call__)(xs, lengths=np.array([6, 2, 3]))[1])
    np.testing.assert_array_equal(ys[1, 2:], np.broadcast_to(ys[1, 1], (TIME - 2, 2)))
    assert not np.allclose(ys[0, 2], ys[0, 1])


def some(x: Any) -> Any:
    return keras.ops.any(x != 0, axis=-1)


def twice(x: Any) -> Any:
    return 2 * x


EACH, HEADS = layers.TimeDistributed, layers.MultiHeadAttention(1, 2)
BOTH = functools.partial(layers.Bidirectional, layers.GRU(2, return_sequences=True))


def row_of(*row: Any) -> Any:
    return keras.Sequential([keras.Input((TIME, FEATURES)), *row])


@pytest.mark.filterwarnings("ignore:The `lora_alpha`")
@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda x, i: layers.Lambda(lambda x: x)(x), "Lambda, which holds code"),
        (lambda x, i: layers.Conv1DTranspose(2, 2)(x), "'conv1d_transpose.*Conv1D"),
        (lambda x, i: row_of(layers.Masking(1.0), layers.Masking())(x), "comes after layer .*mask"),
        (lambda x, i: row_of(layers.Masking(), EACH(layers.Softmax()))(x), "after .*masking"),
        (lambda x, i: layers.LSTM(2, dropout=1.0)(x), "dropout of layer 'lstm.*below 1"),
        (lambda x, i: layers.Dense(2, lora_rank=1)(x), "adapters of low rank"),
        (lambda x, i: layers.LSTM(2, activation=twice)(x), "the activation of layer 'lstm"),
        (lambda x, i: EACH(layers.GroupNormalization(1))(x), "'GroupNormalization', which is no"),
        (lambda x, i: layers.Conv1D(2, 2, data_format="channels_first")(x), "data_format of layer"),
        (lambda x, i: layers.Add()([x, keras.ops.sin(x)]), "of class 'ops.Sin'"),
        (lambda x, i: x + np.ones(FEATURES, np.float32), "arguments of .*be a number, a te"),
        (lambda x, i: HEADS(x, x, attention_mask=x[:, :, :1] > 0), "'ops.Greater'|attention_mask"),
        (lambda x, i: layers.Attention()([x, x], mask=[None, some(x)]), "given several masks"),
        (lambda x, i: layers.Dropout(0.5)(x, training=True), "called with training=True"),
        (lambda x, i: layers.GlobalMaxPooling1D(keepdims=True)(x), "keepdims of layer 'global_max"),
        (lambda x, i: layers.Attention(score_mode="concat")([x, x]), "score_mode .* 'dot' or left"),
        (lambda x, i: BOTH(merge_mode=None)(layers.Masking()(x)), "apart, .* mask of 'masking"),
        (lambda x, i: layers.Attention()([x, x], return_attention_scores=True)[0], "not read here"),
        (lambda x, i: x + 10**400, "arguments of .*be a number, a te"),
        (lambda x, i: x[0], "key of layer 'get_item.*begins with :, which is the batch"),
        (lambda x, i: x[:, : 2**40], "key of layer 'get_item.*be a number, a text"),
        (lambda x, i: {"a": [x], "b": x}, "outputs of a model should be tensors, one, in a list"),
        (lambda x, i: row_of(layers.GRU(2))(x, mask=some(x)), "states or a mask; call it"),
        (lambda x, i: row_of(layers.GRU(2))(x, training=True), "call it with arrays alone"),
        (lambda x, i: EACH(layers.Embedding(9, 2, mask_zero=True))(x), "'Embedding' at each st"),
    ],
)
def test_what_a_graph_may_not_hold(build: Callable[[Any, Any], Any], says: str) -> None:
    x, ids = keras.Input((TIME, FEATURES)), keras.Input((TIME,), dtype="int32")
    with pytest.raises(InteropError, match=says):
        interop.load(keras.Model(x, build(x, ids)))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_row_without_a_time(dtype: str) -> None:
    """Its axes are not turned; they are square here, so that they would fit."""
    begin = keras.Input((BATCH,), dtype=dtype)
    flat = keras.Sequential([begin, layers.Dense(BATCH), layers.Dense(2)])
    xs = np.arange(9).reshape(BATCH, BATCH).astype(dtype)
    for time_first in (True, False):
        ours = interop.load(flat, time_first=time_first)
        np.testing.assert_allclose(at_once(ours, xs)[1], at_once(flat, xs), atol=1e-5)


def test_ids_that_are_features_too() -> None:
    """What a Dense takes is not turned, and what is looked up behind a Reshape has its time."""
    ids, words = keras.Input((TIME,), dtype="int32", name="ids"), layers.Embedding(WORDS, 2)
    shaped = words(layers.Reshape((2 * TIME // 2,))(layers.Reshape((2, -1))(ids)))
    deep = words(layers.Reshape((2, -1))(ids))
    ends = [layers.GRU(2)(words(ids)), layers.Dense(2)(ids), layers.GRU(2)(shaped), deep]
    model = keras.Model(ids, ends)
    xs = np.random.default_rng(0).integers(0, WORDS, (TIME, TIME)).astype(np.int32)
    expected, _ = by_keras(model, [xs])
    for time_first in (True, False):
        ours = interop.load(model, time_first=time_first)
        ys = jax.jit(ours.apply)(ours.params, xs.T if time_first else xs)[1]
        ys = (*ys[:3], np.swapaxes(ys[3], 0, 1) if time_first else ys[3])
        for y, e in zip(ys, expected, strict=True):
            np.testing.assert_allclose(y, e, atol=1e-5)


def test_inputs_in_dicts(tmp_path: Path) -> None:
    """Keras counts them in the order of their keys; and no layer here has weights."""
    x, y, o, p = (keras.Input((TIME, 2), name=name) for name in "xyop")
    inner = keras.Model({"p": p, "o": o}, keras.ops.subtract(o, p))
    queries = inner({"p": y, "o": layers.Masking(0.5)(x)})
    model = keras.Model({"y": y, "x": x}, layers.Attention()([queries, x]))
    given = np.random.default_rng(0).standard_normal((2, BATCH, TIME, 2)).astype(np.float32)
    named = dict(zip("xy", given, strict=True))
    expected, ours = np.asarray(at_once(model, named)), interop.load(model, time_first=False)
    interop.save(ours, tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    both = (at_once(ours, one)[1] for one in (tuple(given), named))
    for ys in (*both, at_once(again, named)):
        np.testing.assert_allclose(np.asarray(ys), expected, atol=1e-5)


def test_what_a_graph_says_when_it_is_written_anew(tmp_path: Path) -> None:
    """Sizes that the arrays tell too, what a call says, and names without a point."""
    x, a = keras.Input((TIME, 4)), keras.Input((TIME, 4))
    heads = layers.MultiHeadAttention(2, 3, output_shape=5, name="heads")
    inner = keras.Model(a, heads(a, a, use_causal_mask=True))
    model = randomized(keras.Model(x, inner(x)))
    ours, (xs,) = interop.load(model, time_first=False), inputs_of(model)
    interop.save(Model(ours.network, ours.params), tmp_path / "ours.keras")
    opened = keras.saving.load_model(tmp_path / "ours.keras")
    assert [layer.name for layer in opened.layers[1:]] == [f"{inner.name}_heads"]
    np.testing.assert_allclose(at_once(opened, xs), at_once(ours, xs)[1], atol=1e-5)


def test_a_call_that_leaves_its_mask_out_is_not_written(tmp_path: Path) -> None:
    """Keras 3 would hand it on."""
    x = keras.Input((TIME, 2))
    ours = interop.load(keras.Model(x, [layers.GRU(2)(layers.Masking()(x)), layers.Flatten()(x)]))
    calls = tuple(call._replace(mask=False) for call in ours.network.calls)
    odd = Model(dataclasses.replace(ours.network, calls=calls), ours.params)
    with pytest.raises(InteropError, match=r"'gru.* masks that Keras 3 .* otherwise; .*onnx"):
        interop.save(odd, tmp_path / "odd.keras")
    row = Sequential([*ours.layers.values()])
    row = dataclasses.replace(row, calls=tuple(call._replace(mask=False) for call in row.calls))
    with pytest.raises(InteropError, match=r"calls .* of the Sequential were changed.* Functional"):
        interop.save(Model(row, ours.params), tmp_path / "row.keras")


def test_a_layer_of_several_models_is_refused(tmp_path: Path) -> None:
    """It has one set of weights; an input, and what has none, may be shared."""
    a = keras.Input((TIME, 2))
    dense, drop = layers.Dense(2, name="dense"), layers.Dropout(0.5)
    inner = keras.Model(a, drop(dense(a)), name="inner")
    other = keras.Model(a, drop(layers.Dense(2)(a)), name="other")
    fine = keras.Model(a, other(inner(a)))
    check(fine, interop.load(fine))
    model = keras.Model(a, dense(inner(a)))
    model.save(tmp_path / "model.keras")
    for source in (model, tmp_path / "model.keras"):
        with pytest.raises(InteropError, match="or is shared; give each model layers"):
            interop.load(source)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_layer_that_is_frozen_in_part(tmp_path: Path) -> None:
    """In the old layout, weights that are not trained come last; of cells nothing tells whose."""
    x = keras.Input((TIME, 3))
    both, cells = layers.Bidirectional(layers.GRU(3)), layers.RNN([layers.GRUCell(3) for _ in "ab"])
    model, path = keras.Model(x, layers.Concatenate()([both(x), cells(x)])), tmp_path / "model.h5"
    read = arrays_of(interop.load(model))
    for part in (both, both.forward_layer, cells):
        part.trainable = False
        model.save(path)
        same_arrays(interop.load(path), read)
        part.trainable = True
    cells.cell.cells[0].trainable = False
    model.save(path)
    with pytest.raises(InteropError, match=r"trainable .* the same for all cells"):
        interop.load(path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_direction_that_is_frozen_in_keras_2(tmp_path: Path) -> None:
    """Whose config does not say so, but the names of the weights do."""
    of = pytest.importorskip("tf_keras", reason="tf_keras is in the extra `parity`")
    x, both = of.Input((TIME, 3)), of.layers.Bidirectional(of.layers.GRU(3, return_sequences=True))
    inner = of.Model(x, of.layers.Bidirectional(of.layers.GRU(2))(both(x)))
    model = of.Model(x, of.layers.Dense(2)(inner(x)))
    read = []
    for both.forward_layer.trainable in (True, False):
        model.save(tmp_path / "model.h5")
        read.append(interop.load(tmp_path / "model.h5"))
    same_arrays(read[1], arrays_of(read[0]))
    flat = of.Model(x, both(x))
    flat.save(tmp_path / "model.keras")
    flat.save_weights(tmp_path / "weights.h5", save_format="h5")
    like = interop.load(tmp_path / "model.keras")
    same_arrays(interop.load(tmp_path / "weights.h5", like=like), arrays_of(like))


def test_calls_of_many_models_in_each_other_are_bounded() -> None:
    x = keras.Input((TIME, 2), name="x")
    for begin in (keras.Model(x, layers.Dense(2)(x)), keras.Model(x, x)):
        many: Any = begin
        for _ in range(15):
            many = keras.Model(x, many(many(x)))
        with pytest.raises(InteropError, match="stand for more than 16,384 calls of layers"):
            network_of("Functional", json.loads(many.to_json())["config"], 3)


def reconnect(pool: Any) -> None:
    pool["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = ["x", 1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pool: pool["config"].update(padding={"a": 1}), "padding of layer .*a number, a te"),
        (lambda pool: pool["config"].update(pool_size=2**40), "pool_size of layer .*a number, a t"),
        (reconnect, r"the layers of .* are damaged \(KeyError\)"),
    ],
)
def test_a_damaged_graph(change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    x = keras.Input((TIME, FEATURES), name="x")
    config = json.loads(keras.Model(x, layers.MaxPooling1D(name="pool")(x)).to_json())
    change(config["config"]["layers"][1])
    path = write_old(tmp_path / "damaged.h5", {"x": [], "pool": []}, config, "3.0.0")
    with pytest.raises(InteropError, match=says):
        interop.load(path)


@pytest.mark.parametrize("kind", ["BatchNormalization", "LayerNormalization", "RMSNormalization"])
def test_an_axis_out_of_range(kind: str) -> None:
    flow = Flow(np.ones((TIME, BATCH, FEATURES), np.float32))
    names = ["gamma", "beta", "moving_mean", "moving_variance", "scale"]
    for axis in (3, (1, -4)):
        layer = Operation("it", kind, (("axis", axis), ("epsilon", 1e-3), ("version", 3)))
        with pytest.raises(InvalidInputError, match="does not take arrays of shapes"):
            layer.run(dict.fromkeys(names, np.ones(TIME, np.float32)), flow, None, Context())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_queries_without_a_key(dtype: str) -> None:
    """Weights of Keras's heads are 0 there, where it makes weights."""
    x, ends = keras.Input((TIME, FEATURES), dtype=dtype), []
    # On CPUs no program of XLA has the kernel of heads without dropout in float16.
    for dropout in (0.5, 0.0)[: 1 if dtype == "float16" else 2]:
        seen = layers.LayerNormalization(axis=[1, 2], dtype=dtype)(layers.Masking(dtype=dtype)(x))
        heads = layers.MultiHeadAttention(2, 3, dropout=dropout, dtype=dtype)
        ends += [layers.Attention(dtype=dtype)([x, seen]), heads(seen, seen)]
    model = randomized(keras.Model(x, ends))
    xs = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(dtype)
    xs[0] = 0
    check(model, interop.load(model), [xs], 1e-5 if dtype == "float32" else 1e-2)


def means_of_words(ids: Any) -> Any:
    words = layers.Embedding(WORDS, 2, mask_zero=True)(ids)
    return layers.TimeDistributed(layers.GlobalAveragePooling1D())(words)


@pytest.mark.parametrize(
    ("build", "shape", "dtype", "says"),
    [
        (layers.Softmax(axis=1), (None, 2), "float32", "would take what is masked for a part of"),
        (lambda x: x[:, 8], (None, 2), "float32", "index 8 is out of bounds for axis 1 with size"),
        # Keras rounds what comes out back to integers.
        (layers.LayerNormalization(), (TIME, 2), "int32", "numbers, but int32 came; cast"),
        (means_of_words, (4, 4), "int32", "mask that it would use inside of each step"),
        (layers.Conv1D(2, 2), (TIME, 2), "float32", "layer 'conv1d.* sequences with a batch"),
    ],
)
def test_what_is_refused_as_it_runs(build: Any, shape: Any, dtype: str, says: str) -> None:
    x = keras.Input(shape, dtype=dtype)
    ours = interop.load(keras.Model(x, build(x)))
    marks = {"lengths": np.array([TIME, 2, 3])} if "masked" in says else {}
    batch = (shape[0] or TIME,) if "batch" in says else (shape[0] or TIME, BATCH)
    with pytest.raises(InvalidInputError, match=says):
        ours(np.ones((*batch, *shape[1:]), dtype), **marks)


def test_what_a_graph_is_given() -> None:
    model = model_of(made_models.translation, keras)
    ours = interop.load(model)
    xs, ids = (np.swapaxes(x, 0, 1) for x in inputs_of(model))
    ys = jax.eval_shape(lambda: ours({"x": xs, "ids": ids})[1])
    assert ys[0].shape == (TIME, BATCH, WORDS)
    with pytest.raises(InvalidInputError, match="inputs x, ids, as a tuple or a dict"):
        ours(xs)
    with pytest.raises(InvalidInputError, match="are for a model of one input"):
        ours((xs, ids), lengths=np.array([1, 2, 3]))
