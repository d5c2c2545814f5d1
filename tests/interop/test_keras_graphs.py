"""Keras models that are no rows of layers, live on its JAX backend, and out of its files."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from interop_helpers import arrays_of, distance, same_arrays, write_old

from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Model, convert
from rnnjax.interop import keras as interop
from rnnjax.interop.keras.graph import network_of

keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
layers = keras.layers
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*therefore destroy the mask information"),
]

TIME, BATCH, FEATURES, WORDS = 6, 3, 2, 7


def merges(x: Any) -> Any:
    """Each of the merging layers, of sequences and of last outputs."""
    a, b = layers.LSTM(3, return_sequences=True)(x), layers.GRU(3, return_sequences=True)(x)
    kinds = "Add", "Multiply", "Average"
    merged = [getattr(layers, kind)()([a, b]) for kind in kinds]
    wide = layers.Concatenate()([*merged, layers.Dense(3)(a)])
    # The config of a SpatialDropout1D does not say that it is never trained.
    b = layers.Add()([layers.SpatialDropout1D(0.5)(b), b])
    last = layers.Add()([layers.LSTM(3)(wide), layers.GRU(3)(b)])
    # A vector at each step of a sequence.
    beside = [getattr(layers, kind)()([last, a]) for kind in kinds]
    return [layers.Concatenate(axis=1)([a, *beside]), last, layers.Dot(axes=2)([a, b])]


def windows(x: Any) -> Any:
    """Convolutions and pools of several kinds in one row, which stays a row."""
    x = layers.Concatenate(axis=1)([x, x])  # of twelve steps
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    x = layers.Conv1D(4, 2, padding="same", groups=2, use_bias=False)(x)
    x = layers.AveragePooling1D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling1D(2, strides=1, padding="same")(x)
    x = layers.Conv1D(4, 3, strides=2)(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.Reshape((2, -1))(layers.Permute((2, 1))(x))
    return layers.RepeatVector(2)(layers.Dense(3)(layers.Flatten()(x)))


def pools(x: Any, ids: Any) -> Any:
    """Over all steps, with a mask and without, and norms before."""
    words = layers.Embedding(WORDS, 4, mask_zero=True)(ids)
    words = layers.BatchNormalization()(layers.LayerNormalization(scale=False)(words))
    mean = layers.GlobalAveragePooling1D()(words)
    top = layers.GlobalMaxPooling1D()(layers.LayerNormalization(axis=[1, 2])(x))
    return {"mean": mean, "top": top, "plain": layers.GlobalAveragePooling1D()(x)}


def attention(x: Any, ids: Any) -> Any:
    """Attention with masks of queries and of values."""
    words = layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids)
    # Keras's MultiHeadAttention takes the mask off its inputs, for all that read them later.
    once, again = (layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids) for _ in range(2))
    made = [
        layers.Attention(use_scale=True)([words, x]),
        layers.Attention()([words, words, x]),
        layers.MultiHeadAttention(2, 3)(once, x),
        layers.MultiHeadAttention(1, 2, use_bias=False)(x, again),
    ]
    return [layers.LSTM(2)(layers.Concatenate()(made)), *made]


def translation(x: Any, ids: Any) -> Any:
    """Encoder and decoder (Sutskever et al., 2014), their words from one table."""
    words = layers.Embedding(WORDS, 4, mask_zero=True)
    encoder = layers.LSTM(3, return_state=True, return_sequences=True)
    seen, *states = encoder(words(ids))
    ys = layers.LSTM(3, return_sequences=True)(layers.Dense(4)(x), initial_state=states)
    again = layers.LSTM(3, return_sequences=True)(words(ids), initial_state=states)
    ys = layers.Concatenate()([ys, again, layers.Attention()([ys, seen])])
    return [layers.TimeDistributed(layers.Dense(WORDS, activation="softmax"))(ys), *states]


def directions(x: Any) -> Any:
    """Their states into others, and a layer that is used twice."""
    gru = layers.GRU(3, return_sequences=True, return_state=True)
    both, *states = layers.Bidirectional(gru, merge_mode="sum")(x)
    shared = layers.SimpleRNN(3, return_sequences=True, go_backwards=True)
    ys = layers.Bidirectional(layers.GRU(3))(both, initial_state=states)
    return [shared(shared(both)), ys, states[1]]


def by_hand(x: Any, ids: Any) -> Any:
    """A mask of one's own, arithmetic with tensors, and a mask through a branch."""
    some = keras.ops.any(keras.ops.not_equal(x, 0.5), axis=-1)
    mask = keras.ops.logical_and(some, keras.ops.not_equal(ids, 2))
    ys = layers.LSTM(2, return_sequences=True)(x, mask=mask)
    ys = 1.0 - ys * 2.0 + x / 3.0
    words = layers.Embedding(WORDS, 2, mask_zero=True)(ids)
    both = layers.Concatenate()([words, layers.Masking(0.5)(x)])
    return [layers.GRU(2)(ys), layers.GRU(2)(both)]


def functions(x: Any) -> Any:
    """Attention as people write it, and what else one computes of tensors."""
    ops, ys = keras.ops, layers.GRU(3, return_sequences=True)(x)
    scores = layers.Softmax(axis=1)(layers.Dense(1, activation="tanh")(ys))
    between = ops.matmul(ops.matmul(ys, layers.Permute((2, 1))(ys)), ys)
    mean = ops.mean(between, axis=1)
    return [ops.sum(scores * ys, axis=1), layers.LSTM(2)(between - ys), ops.divide(mean, 2.0)]


def steps(x: Any) -> Any:
    """Layers at each step of a sequence of sequences."""
    x = layers.Reshape((3, 2, FEATURES))(x)
    x = layers.TimeDistributed(layers.Conv1D(3, 2, padding="same", activation="tanh"))(x)
    x = layers.TimeDistributed(layers.LayerNormalization())(x)
    return layers.LSTM(2)(layers.TimeDistributed(layers.Flatten())(x))


def models(x: Any, ids: Any) -> Any:
    """Models that are layers: one called twice, one of two inputs behind masks, a row."""
    a, b = keras.Input((TIME, 3), name="a"), keras.Input((TIME, 2), name="b")
    one, row = (
        keras.Sequential([keras.Input((TIME, 2)), layers.GRU(size, return_sequences=True)])
        for size in (3, 2)
    )
    ys = layers.BatchNormalization()(layers.Add()([a, one(b)]))
    two = keras.Model([b, a], [layers.LSTM(2)(ys), ys], name="two")
    words = layers.Embedding(WORDS, 3, mask_zero=True)(ids)
    last, ys = two([layers.Masking(0.5)(x), words])
    again, _ = two([x, ys])
    return [last, again, layers.GRU(2)(row(row(x)))]


def parts(x: Any, ids: Any) -> Any:
    """What stands in brackets behind a tensor, and a softmax over the steps."""
    ys = layers.LSTM(3, return_sequences=True)(x)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(ys))
    each = layers.TimeDistributed(layers.Softmax(axis=(1, 2)))(layers.Reshape((3, 2, 3))(ys))
    picked = [ys[:, -1], ys[:, 1:5:2, None, ..., 0], ys[..., ::-1], ys[:, :, 1]]
    words = layers.Embedding(WORDS, 2, mask_zero=True)(ids[:, 1:])
    return [layers.GRU(2)(ys[:, ::-1]), layers.GRU(2)(words), weights * ys, each, *picked]


def drawn(seed: int) -> Callable[..., Any]:
    """A random graph: each layer reads what came before, some with masks, some with states."""

    def build(x: Any, ids: Any) -> Any:
        rng = np.random.default_rng(seed)
        words = layers.Embedding(WORDS, 3, mask_zero=bool(rng.integers(2)))
        there = [layers.Dense(3)(layers.Masking(0.5)(x)), words(ids)]
        states: list[Any] = []
        shared = layers.GRU(3, return_sequences=True, go_backwards=bool(rng.integers(2)))

        def recurrent(a: Any, b: Any) -> Any:
            lstm = layers.LSTM(3, return_sequences=True, return_state=True)
            begin = states[-1] if states and rng.integers(2) else None
            y, *state = lstm(a) if begin is None else lstm(a, initial_state=begin)
            states.append(state)
            return y

        makers: list[Callable[[Any, Any], Any]] = [
            recurrent,
            recurrent,
            lambda a, b: shared(a),
            lambda a, b: layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True), "sum")(a),
            lambda a, b: getattr(layers, rng.choice(["Add", "Multiply", "Average"]))()([a, b]),
            lambda a, b: layers.Dense(3, activation="tanh")(layers.Concatenate()([a, b])),
            lambda a, b: layers.Conv1D(3, 2, padding="same", activation="relu")(a),
            lambda a, b: layers.LayerNormalization()(a),
            lambda a, b: layers.TimeDistributed(layers.Dense(3))(a),
            lambda a, b: layers.Attention(use_scale=True)([a, b]),
            lambda a, b: layers.RepeatVector(TIME)(layers.GlobalAveragePooling1D()(a)),
        ]
        for _ in range(rng.integers(3, 9)):
            a, b = (there[rng.integers(len(there))] for _ in range(2))
            there.append(makers[rng.integers(len(makers))](a, b))
        return [
            layers.GRU(2)(there[-1]),
            layers.Concatenate()(there),
            *(one for state in states for one in state),
        ]

    return build


GRAPHS = [
    merges, windows, pools, attention, translation, directions, by_hand, functions, steps, models,
    parts, *(pytest.param(drawn(seed), marks=pytest.mark.slow, id=f"{seed}") for seed in range(40)),
]  # fmt: skip


def model_of(build: Callable[..., Any]) -> Any:
    x = keras.Input((TIME, FEATURES), name="x")
    used = [x, keras.Input((TIME,), dtype="int32", name="ids")]
    used = used[: len(inspect.signature(build).parameters)]
    model = keras.Model(used if len(used) > 1 else x, build(*used))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        drawn = 0.5 * rng.standard_normal(variable.shape).astype(np.float32)
        variable.assign(np.abs(drawn) if "variance" in variable.path else drawn)
    return model


def inputs_of(model: Any, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((BATCH, TIME, FEATURES)).astype(np.float32)
    xs[1, 4:] = 0.5
    ids = rng.integers(1, WORDS, (BATCH, TIME)).astype(np.int32)
    ids[0, 3:] = ids[2, 1] = 0
    return [xs, ids][: len(model.inputs)]


def by_keras(model: Any, arrays: list[Any]) -> Any:
    """What a model makes of these inputs: in one program, which is new as the weights are."""
    run = jax.jit(lambda given: model(given))
    return jax.tree.map(np.asarray, run(arrays if len(arrays) > 1 else arrays[0]))


def check(model: Any, ours: Model) -> None:
    """Both make the same of batch-first inputs; ours takes and returns time first."""
    arrays = inputs_of(model)
    given = [np.swapaxes(x, 0, 1) for x in arrays]
    ys = jax.jit(ours.apply)(ours.params, tuple(given) if len(given) > 1 else given[0])[1]
    expected = by_keras(model, arrays)
    assert isinstance(ys, dict) == isinstance(expected, dict)
    turned = [np.swapaxes(y, 0, 1) if np.ndim(y) > 2 else y for y in jax.tree.leaves(ys)]
    assert distance(turned, jax.tree.leaves(expected)) < 1e-5


@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_a_graph_computes_what_keras_does(build: Callable[..., Any], tmp_path: Path) -> None:
    """Out of both kinds of files, and back into the new one, to the bit as it changed."""
    model = model_of(build)
    ours, before = interop.load(model), arrays_of(model)
    check(model, ours)
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        read = interop.load(tmp_path / name)
        assert read.network == ours.network
        jax.tree.map(np.testing.assert_array_equal, read.params, ours.params)
    halves = ours.with_params(jax.tree.map(lambda a: 0.5 * np.asarray(a), ours.params))
    interop.save(halves, tmp_path / "ours.keras")
    again = interop.load(tmp_path / "ours.keras")
    assert again.network == ours.network
    jax.tree.map(np.testing.assert_array_equal, again.params, halves.params)
    same_arrays(keras.saving.load_model(tmp_path / "ours.keras"), [0.5 * a for a in before])
    interop.save(ours, tmp_path / "ours.weights.h5")
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape, np.float32))
    model.load_weights(tmp_path / "ours.weights.h5")
    same_arrays(model, before)


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
    for model in (model_of(graph), row):
        ours = interop.load(model, time_first=False)
        assert str(ours).endswith("batch first")
        arrays = inputs_of(model)
        convert.write(ours, tmp_path / f"{len(arrays)}.keras")  # which reads time first
        run = jax.jit(ours.apply)
        _, ys = run(ours.params, tuple(arrays) if len(arrays) > 1 else arrays[0])
        expected = by_keras(model, arrays)
        for y, e in zip(jax.tree.leaves(ys), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(y, e, atol=1e-5)
    with pytest.raises(InvalidInputError, match="xs should have a batch and a time"):
        ours(arrays[0][0, 0])
    ys = np.asarray(run(ours.params, arrays[0], lengths=np.array([6, 2, 3]))[1])
    np.testing.assert_array_equal(ys[1, 2:], np.broadcast_to(ys[1, 1], (TIME - 2, 2)))
    assert not np.allclose(ys[0, 2], ys[0, 1])


def some(x: Any) -> Any:
    return keras.ops.any(x != 0, axis=-1)


def gru() -> Any:
    return keras.Sequential([keras.Input((TIME, FEATURES)), layers.GRU(2)])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda x, i: layers.Conv1D(2, 2, data_format="channels_first")(x), "data_format of layer"),
        (lambda x, i: layers.Add()([x, keras.ops.sin(x)]), "of class 'ops.Sin'"),
        (lambda x, i: x + np.ones(FEATURES, np.float32), "arguments of .*be a number, a te"),
        (
            lambda x, i: layers.MultiHeadAttention(1, 2)(x, x, attention_mask=x[:, :, :1] > 0),
            "of class 'ops.Greater'|attention_mask",
        ),
        (lambda x, i: layers.Attention()([x, x], mask=[None, some(x)]), "given several masks"),
        (lambda x, i: layers.Dropout(0.5)(x, training=True), "called with training=True"),
        (lambda x, i: layers.GlobalMaxPooling1D(keepdims=True)(x), "keepdims of layer 'global_max"),
        (lambda x, i: layers.Attention(score_mode="concat")([x, x]), "score_mode .* 'dot' or left"),
        (lambda x, i: layers.Dot(2, normalize=True)([x, x]), "normalize of layer 'dot"),
        (
            lambda x, i: layers.Bidirectional(layers.GRU(2), merge_mode=None)(x),
            "merge_mode of layer .*or ave, and what follows split them, but is None",
        ),
        (lambda x, i: layers.Subtract()([x, x]), "of class 'Subtract', which is not known here"),
        (
            lambda x, i: layers.Attention()([x, x], use_causal_mask=True),
            "called with use_causal_mask=True",
        ),
        (lambda x, i: x + 10**400, "arguments of .*be a number, a te"),
        (lambda x, i: x[0], "key of layer 'get_item.*begins with :, which is the batch"),
        (lambda x, i: x[:, : 2**40], "key of layer 'get_item.*be a number, a text"),
        (
            lambda x, i: layers.TimeDistributed(layers.LSTM(2))(layers.Reshape((3, 2, 2))(x)),
            "applies a layer of class 'LSTM' at each step, .*; load it in a model",
        ),
        (lambda x, i: {"a": [x], "b": x}, "outputs of a model should be tensors, one, in a list"),
        (
            lambda x, i: gru()(x, mask=keras.ops.any(x > 0, axis=-1)),
            "ops.Greater|is given a mask in its call",
        ),
        (lambda x, i: gru()(x, training=True), "call it with arrays alone"),
        (
            lambda x, i: layers.TimeDistributed(keras.Sequential([layers.Dense(2)]))(x),
            "a layer of class 'Sequential' at each step, .*; apply each of its layers in a",
        ),
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
        np.testing.assert_allclose(ours(xs)[1], np.asarray(flat(xs)), atol=1e-5)


def test_ids_that_are_features_too() -> None:
    """What a Dense takes is not turned, and what is looked up behind a Reshape has its time."""
    ids = keras.Input((TIME,), dtype="int32", name="ids")
    words = layers.Embedding(WORDS, 2)
    read = layers.GRU(2)(words(ids))
    flat = layers.Dense(2)(ids)
    shaped = layers.GRU(2)(words(layers.Reshape((2 * TIME // 2,))(layers.Reshape((2, -1))(ids))))
    deep = words(layers.Reshape((2, -1))(ids))
    model = keras.Model(ids, [read, flat, shaped, deep])
    xs = np.random.default_rng(0).integers(0, WORDS, (TIME, TIME)).astype(np.int32)
    expected = by_keras(model, [xs])
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
    expected = np.asarray(jax.jit(lambda named: model(named))(named))
    ours = interop.load(model, time_first=False)
    interop.save(ours, tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    for ys in (ours(tuple(given))[1], ours(named)[1], jax.jit(lambda n: again(n))(named)):
        np.testing.assert_allclose(np.asarray(ys), expected, atol=1e-5)


def test_a_mask_is_an_input() -> None:
    """It has a time, as what it masks has."""
    x, mask = keras.Input((TIME, 2)), keras.Input((TIME,), dtype="bool")
    model = keras.Model([x, mask], layers.LSTM(2)(x, mask=mask))
    xs = np.random.default_rng(0).standard_normal((TIME, TIME, 2)).astype(np.float32)
    valid = np.tri(TIME, dtype=bool)
    _, ys = interop.load(model)((np.swapaxes(xs, 0, 1), valid.T))
    np.testing.assert_allclose(ys, by_keras(model, [xs, valid]), atol=1e-5)


@pytest.mark.parametrize(
    "arrange", [lambda y, z: {"b": z, "a": y}, lambda y, z: [z, y, z], lambda y, z: [y]]
)
def test_outputs_have_the_structure_of_keras(
    arrange: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    """Lists are tuples here."""
    model = two_outputs(arrange)
    model.save(tmp_path / "model.keras")
    xs = np.random.default_rng(0).standard_normal((BATCH, TIME, 2)).astype(np.float32)
    expected = by_keras(model, [xs])
    live, read = (interop.load(m, time_first=False) for m in (model, tmp_path / "model.keras"))
    convert.write(live, tmp_path / "ours.keras")
    ours = keras.saving.load_model(tmp_path / "ours.keras")
    for made in (live(xs)[1], read(xs)[1], ours(xs)):
        assert spelled(made) == spelled(expected)
        for y, e in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(y), e, atol=1e-5)


def two_outputs(arrange: Callable[[Any, Any], Any]) -> Any:
    ys = keras.Input((TIME, 2))
    return keras.Model(ys, arrange(layers.Dense(2)(ys), layers.GRU(2)(ys)))


@pytest.mark.parametrize(
    "last",
    [
        lambda: two_outputs(lambda y, z: [y, z]),
        lambda: two_outputs(lambda y, z: {"b": y, "a": z}),
    ],
    ids=["list", "dict"],
)
def test_a_sequential_gives_all_that_its_last_layer_gives(last: Callable[[], Any]) -> None:
    first = layers.GRU(2, return_sequences=True)
    model = keras.Sequential([keras.Input((TIME, FEATURES)), first, last()])
    check(model, interop.load(model))


def spelled(tree: Any) -> str:
    shapes = jax.tree.map(np.shape, tree)
    return str(shapes).replace("[", "(").replace("]", ")").replace(",)", ")")


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
        with pytest.raises(InteropError, match="which is not known here; give each model layers"):
            interop.load(source)


def test_calls_of_many_models_in_each_other_are_bounded() -> None:
    x = keras.Input((TIME, 2), name="x")
    for begin in (keras.Model(x, layers.Dense(2)(x)), keras.Model(x, x)):
        many: Any = begin
        for _ in range(15):
            many = keras.Model(x, many(many(x)))
        with pytest.raises(InteropError, match="stand for more than 16,384 calls of layers"):
            network_of("Functional", json.loads(many.to_json())["config"], 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pool: pool["config"].update(padding={"a": 1}), "padding of layer .*a number, a te"),
        (lambda pool: pool["config"].update(pool_size=2**40), "pool_size of layer .*a number, a t"),
        (
            lambda pool: pool["inbound_nodes"][0]["args"][0]["config"].update(
                keras_history=["x", 1, 0]
            ),
            r"the layers of .* are damaged \(KeyError\)",
        ),
    ],
)
def test_a_damaged_graph(change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    x = keras.Input((TIME, FEATURES), name="x")
    config = json.loads(keras.Model(x, layers.MaxPooling1D(name="pool")(x)).to_json())
    change(config["config"]["layers"][1])
    path = write_old(tmp_path / "damaged.h5", {"x": [], "pool": []}, config, "3.0.0")
    with pytest.raises(InteropError, match=says):
        interop.load(path)


@pytest.mark.parametrize("kind", ["BatchNormalization", "LayerNormalization"])
def test_an_axis_out_of_range(kind: str) -> None:
    x = keras.Input((TIME, FEATURES))
    config = json.loads(keras.Model(x, getattr(layers, kind)(axis=1)(x)).to_json())["config"]
    for axis in (3, [1, -4]):
        config["layers"][1]["config"]["axis"] = axis
        network = network_of("Functional", config, 3)
        (layer,) = network.layers.values()
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
        params = {layer.name: dict.fromkeys(names, np.ones(TIME, np.float32))}
        with pytest.raises(InvalidInputError, match="does not take arrays of shapes"):
            Model(network, params)(np.ones((TIME, BATCH, FEATURES), np.float32))


def test_queries_without_a_key() -> None:
    """Weights of Keras's heads are 0 there, where it makes weights."""
    x = keras.Input((TIME, FEATURES))
    heads = layers.MultiHeadAttention(2, 3, dropout=0.5)
    seen = layers.Masking()(x)
    model = keras.Model(x, heads(seen, seen))
    xs = np.random.default_rng(0).standard_normal((2, TIME, FEATURES)).astype(np.float32)
    xs[0] = 0
    ours = interop.load(model, time_first=False)
    ys = jax.jit(ours.apply)(ours.params, xs)[1]
    np.testing.assert_allclose(ys, by_keras(model, [xs]), atol=1e-5)


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
def test_what_is_refused_as_it_runs(
    build: Callable[[Any], Any], shape: Any, dtype: str, says: str
) -> None:
    x = keras.Input(shape, dtype=dtype)
    ours = interop.load(keras.Model(x, build(x)))
    marks = {"lengths": np.array([TIME, 2, 3])} if "masked" in says else {}
    batch = (shape[0] or TIME,) if "batch" in says else (shape[0] or TIME, BATCH)
    with pytest.raises(InvalidInputError, match=says):
        ours(np.ones((*batch, *shape[1:]), dtype), **marks)


def test_what_a_graph_is_given() -> None:
    ours = interop.load(model_of(translation))
    xs, ids = (np.swapaxes(x, 0, 1) for x in inputs_of(model_of(translation)))
    ys = jax.eval_shape(lambda: ours({"x": xs, "ids": ids})[1])
    assert ys[0].shape == (TIME, BATCH, WORDS)
    with pytest.raises(InvalidInputError, match="inputs x, ids, as a tuple or a dict"):
        ours(xs)
    with pytest.raises(
        InteropError, match=r"of layers in a row, .* is a graph of layers, with \d+ calls"
    ):
        convert.onnx.to_proto(ours)
    with pytest.raises(InvalidInputError, match="are for a model of one input"):
        ours((xs, ids), lengths=np.array([1, 2, 3]))
