"""Models of Keras 3 and of tf_keras: what their layers can do, and the kinds that people keep.

A function of the table takes what its parameters are called: the package ``of``, its ``layers`` or
``ops``, and inputs of the shapes of `INPUTS`. It gives the outputs, or a model.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

TIME, BATCH, FEATURES, WORDS = 6, 3, 2, 7
INPUTS: dict[str, tuple[Any, ...]] = {
    "x": (TIME, FEATURES), "ids": (TIME,),
    # Of any number of steps.
    "xs": (None, FEATURES), "ys": (None, FEATURES), "wide": (None, 4),
    "text": (None,), "other_text": (None,), "letters": (4, 3), "mask": (TIME,),
    # Of none, and of images.
    "vector": (3,), "film": (4, 6, 6, 2), "image": (TIME, 4, 1),
}  # fmt: skip


def model_of(build: Callable[..., Any], of: Any, seed: int = 0) -> Any:
    """A model with drawn weights."""
    known = {"of": of, "layers": of.layers, "ops": getattr(of, "ops", None)}
    names = inspect.signature(build).parameters
    given = {name: of.Input(INPUTS[name], dtype=dtype_of(name), name=name)
             for name in names if name not in known}  # fmt: skip
    made = build(**{name: known.get(name, given.get(name)) for name in names})
    return randomized(
        made if isinstance(made, of.Model) else of.Model([*given.values()], made), seed
    )


def dtype_of(name: str) -> str:
    if name == "mask":
        return "bool"
    return "int32" if name in ("ids", "text", "other_text", "letters") else "float32"


def randomized(model: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        new = 0.5 * rng.standard_normal(tuple(variable.shape)).astype(np.float32)
        name = getattr(variable, "path", variable.name)
        variable.assign(np.abs(new) if "variance" in name else new)
    for layer in model.layers:
        getattr(layer, "finalize_state", bool)()  # a Normalization keeps what it makes of them
    return model


def inputs_of(model: Any, seed: int = 1) -> list[Any]:
    """Arrays for a model, of which some rows are padded; each of open time has a step less."""
    rng, arrays = np.random.default_rng(seed), []
    for n, one in enumerate(model.inputs):
        shape = [BATCH, *(TIME - n if size is None else size for size in one.shape[1:])]
        if "int" in str(one.dtype):
            array = rng.integers(1, WORDS, shape).astype(np.int32)
            array[0, 3:] = array[1, 5:] = array[2, 1] = 0
        elif "bool" in str(one.dtype):  # with holes, padded before, and without any valid step
            array = np.array([[1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1], [0] * 6], bool)
        else:
            array = rng.standard_normal(shape).astype(np.float32)
            if len(shape) == 3:
                array[1, 4:] = 0.5
        arrays.append(array)
    return arrays


# --- What layers can do ---


def merges(layers: Any, x: Any) -> Any:
    """Each of the merging layers, of sequences and of last outputs."""
    a, b = layers.LSTM(3, return_sequences=True)(x), layers.GRU(3, return_sequences=True)(x)
    kinds = "Add", "Multiply", "Average", "Maximum", "Minimum"
    merged = [getattr(layers, kind)()([a, b]) for kind in kinds]
    wide = layers.Concatenate()([*merged, layers.Dense(3)(a)])
    # The config of a SpatialDropout1D does not say that it is never trained.
    b = layers.Add()([layers.SpatialDropout1D(0.5)(b), b])
    last = layers.Add()([layers.LSTM(3)(wide), layers.GRU(3)(b)])
    # A vector at each step of a sequence.
    beside = [getattr(layers, kind)()([last, a]) for kind in kinds]
    away = layers.Subtract()([last, a])
    return [layers.Concatenate(axis=1)([a, *beside, away]), last, layers.Dot(axes=2)([a, b])]


def windows(layers: Any, x: Any) -> Any:
    """Convolutions and pools of several kinds in one row, which stays a row."""
    x = layers.Concatenate(axis=1)([x, x])  # of twelve steps
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    x = layers.Conv1D(4, 2, padding="same", groups=2, use_bias=False)(x)
    x = layers.AveragePooling1D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling1D(2, strides=1, padding="same")(x)
    x = layers.Conv1D(4, 3, strides=2)(x)
    x = layers.Cropping1D((1, 0))(layers.UpSampling1D(2)(layers.ZeroPadding1D((2, 0))(x)))
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.Reshape((2, -1))(layers.Permute((2, 1))(x))
    return layers.RepeatVector(2)(layers.Dense(3)(layers.Flatten()(x)))


def scales(layers: Any, x: Any) -> Any:
    """What scales numbers by others of its own, or by a norm; a convolution of each channel."""
    x = layers.Rescaling([0.5, 2.0], 0.1)(layers.Masking(0.5)(x))
    x = layers.Normalization(mean=[0.1, 0.2], variance=[4.0, 0.25], invert=True)(x)
    x = layers.UnitNormalization()(layers.Normalization()(layers.PReLU(shared_axes=[1])(x)))
    last, ys = layers.GRU(3)(x), layers.RMSNormalization()(x)
    ys = layers.DepthwiseConv1D(3, depth_multiplier=2, padding="same", use_bias=False)(ys)
    ys = layers.SeparableConv1D(3, 2, depth_multiplier=2, activation="tanh")(ys)
    return [last, layers.PReLU()(ys), layers.Dot(axes=2, normalize=True)([ys, ys])]


def pools(layers: Any, x: Any, ids: Any) -> Any:
    """Over all steps, with a mask and without, and norms before."""
    words = layers.Embedding(WORDS, 4, mask_zero=True)(ids)
    words = layers.BatchNormalization()(layers.LayerNormalization(scale=False)(words))
    mean = layers.GlobalAveragePooling1D()(words)
    both = layers.LayerNormalization(axis=[1, 2])(x)
    plain = [pool()(x) for pool in (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)]
    return {"mean": mean, "both": both, "average": plain[0], "top": plain[1]}


def attention(layers: Any, x: Any, ids: Any) -> Any:
    """Attention with masks of queries and of values, and to the steps before alone."""
    words = layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids)
    # Keras's MultiHeadAttention takes the mask off its inputs, for all that read them later.
    once, again, late = (layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids) for _ in "abc")
    made = [
        layers.Attention(use_scale=True)([words, x]),
        layers.Attention()([words, words, x]),
        layers.AdditiveAttention(use_scale=False)([words, words]),
        layers.AdditiveAttention()([x, words]),
        layers.MultiHeadAttention(2, 3)(once, x),
        layers.MultiHeadAttention(1, 2, use_bias=False)(x, again),
        layers.MultiHeadAttention(1, 2)(x, x, use_causal_mask=True),
        layers.MultiHeadAttention(1, 2, dropout=0.5)(late, late, use_causal_mask=True),
        layers.Attention()([words, words], use_causal_mask=True),
        layers.AdditiveAttention()([x, x[:, 1:]], use_causal_mask=True),
    ]
    return [layers.LSTM(2)(layers.Concatenate()(made)), *made]


def translation(layers: Any, x: Any, ids: Any) -> Any:
    """Encoder and decoder (Sutskever et al., 2014), their words from one table."""
    words = layers.Embedding(WORDS, 4, mask_zero=True)
    encoder = layers.LSTM(3, return_state=True, return_sequences=True)
    seen, *states = encoder(words(ids))
    ys = layers.LSTM(3, return_sequences=True)(layers.Dense(4)(x), initial_state=states)
    again = layers.LSTM(3, return_sequences=True)(words(ids), initial_state=states)
    ys = layers.Concatenate()([ys, again, layers.Attention()([ys, seen])])
    return [layers.TimeDistributed(layers.Dense(WORDS, activation="softmax"))(ys), *states]


def directions(layers: Any, x: Any) -> Any:
    """Their states into others, and a layer that is used twice."""
    gru = layers.GRU(3, return_sequences=True, return_state=True)
    both, *states = layers.Bidirectional(gru, merge_mode="sum")(x)
    shared = layers.SimpleRNN(3, return_sequences=True, go_backwards=True)
    ys = layers.Bidirectional(layers.GRU(3))(both, initial_state=states)
    again = shared(shared(both))
    return [again, ys, states[1], again]


def by_hand(ops: Any, layers: Any, x: Any, ids: Any) -> Any:
    """A mask of one's own, arithmetic with tensors, and a mask through a branch."""
    some = ops.any(ops.not_equal(x, 0.5), axis=-1)
    mask = ops.logical_and(some, ops.not_equal(ids, 2))
    ys = layers.LSTM(2, return_sequences=True)(x, mask=mask)
    ys = 1.0 - ys * 2.0 + x / 3.0
    words = layers.Embedding(WORDS, 2, mask_zero=True)(ids)
    both = layers.Concatenate()([words, layers.Masking(0.5)(x)])
    zeros = layers.GRU(2, return_sequences=True, zero_output_for_mask=True)
    mean = layers.Bidirectional(layers.GRU(2, return_sequences=True), merge_mode="ave")
    return [layers.GRU(2)(ys), layers.GRU(2)(both), zeros(words), mean(words)]


def functions(ops: Any, layers: Any, x: Any) -> Any:
    """Attention as people write it, and what else one computes of tensors."""
    ys = layers.GRU(3, return_sequences=True)(x)
    scores = layers.Softmax(axis=1)(layers.Dense(1, activation="tanh")(ys))
    between = ops.matmul(ops.matmul(ys, layers.Permute((2, 1))(ys)), ys)
    mean = ops.mean(between, axis=1)
    return [ops.sum(scores * ys, axis=1), layers.LSTM(2)(between - ys), ops.divide(mean, 2.0)]


def frames(of: Any, layers: Any, x: Any) -> Any:
    """Models at each step, one of them called twice and with a model inside; pools of images."""
    each, frame = layers.TimeDistributed, (3, 2, 1)
    pixels = of.Sequential([of.Input(frame), layers.Conv2D(3, 2, padding="same")])
    row = [pixels, layers.BatchNormalization(), layers.AveragePooling2D((1, 2)), layers.Flatten()]
    shared = each(of.Sequential([of.Input(frame), *row, layers.Dropout(0.5)]))
    begin = of.Input(frame, name="begin")
    top = layers.GlobalMaxPooling2D()(layers.Conv2D(2, 2, activation="relu")(begin))
    graph = each(of.Model(begin, layers.Dense(2)(top)))
    mean = each(layers.GlobalAveragePooling2D())
    a, b = (layers.Reshape((2, *frame))(one) for one in (x, layers.ReLU()(x)))
    seen = layers.Concatenate()([shared(a), shared(b), graph(a), mean(b)])
    # Sequences in each step, of which each begins anew.
    rows = of.Sequential([of.Input((6, 1)), layers.GRU(2, return_sequences=True)])
    lines = each(rows)(layers.Reshape((3, 6, 1))(layers.Concatenate(axis=1)([x, x[:, ::2]])))
    deep = each(each(layers.Conv1D(2, 2)))(layers.Reshape((3, 2, 3, 2))(lines))
    both = each(layers.Bidirectional(layers.LSTM(2), merge_mode="sum"))(lines)
    masked = layers.GRU(2)(each(layers.LayerNormalization())(layers.Masking(0.5)(x)))
    return [layers.GRU(2)(seen), layers.LSTM(2)(both), each(each(layers.Flatten()))(deep), masked]


def grids(layers: Any, x: Any) -> Any:
    """Convolutional LSTMs, which keep their grids."""

    def over(axes: int, *sizes: Any, **options: Any) -> Any:
        return getattr(layers, f"ConvLSTM{axes}D")(*sizes, padding="same", **options)

    row = over(1, 2, 3, use_bias=False)(layers.Reshape((2, 6, 1))(x))
    x = layers.Reshape((2, 3, 2, 1))(x)
    x = over(2, 2, (2, 1), return_sequences=True, dropout=0.2)(x)
    back = over(2, 2, 2, return_sequences=True, go_backwards=True)(x)
    last = over(2, 3, (2, 1), recurrent_activation="hard_sigmoid")(x)
    return [x, layers.BatchNormalization()(back), *map(layers.Flatten(), (last, row))]


def models(of: Any, layers: Any, x: Any, ids: Any) -> Any:
    """Models that are layers: one called twice, one of two inputs behind masks, a row."""
    a, b = of.Input((TIME, 3), name="a"), of.Input((TIME, 2), name="b")
    one, row = (
        of.Sequential([of.Input((TIME, 2)), layers.GRU(size, return_sequences=True)])
        for size in (3, 2)
    )
    ys = layers.BatchNormalization()(layers.Add()([a, one(b)]))
    two = of.Model([b, a], [layers.LSTM(2)(ys), ys], name="two")
    words = layers.Embedding(WORDS, 3, mask_zero=True)(ids)
    last, ys = two([layers.Masking(0.5)(x), words])
    again, _ = two([x, ys])
    return [last, again, layers.GRU(2)(row(row(x)))]


def parts(layers: Any, x: Any, ids: Any) -> Any:
    """What stands in brackets behind a tensor, a softmax over the steps, and directions apart."""
    ys = layers.LSTM(3, return_sequences=True)(x)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(ys))
    each = layers.TimeDistributed(layers.Softmax(axis=(1, 2)))(layers.Reshape((3, 2, 3))(ys))
    picked = [ys[:, -1], ys[:, 1:5:2, None, ..., 0], ys[..., ::-1], ys[:, :, 1]]
    words = layers.Embedding(WORDS, 2, mask_zero=True)(ids[:, 1:])
    gru = layers.GRU(2, return_sequences=True, return_state=True)
    picked += layers.Bidirectional(gru, merge_mode=None)(x)
    picked += layers.Bidirectional(layers.LSTM(3), merge_mode=None)(words)
    return [layers.GRU(2)(ys[:, ::-1]), layers.GRU(2)(words), weights * ys, each, *picked]


def row(of: Any, layers: Any, x: Any) -> Any:
    """A Sequential, whose mask a file in the old layout does not spell out."""
    row = [
        layers.Masking(0.5),
        layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="mul"),
        layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)], return_sequences=True),
        layers.TimeDistributed(layers.Dense(2, activation="relu")),
        layers.SimpleRNN(2),
    ]
    return of.Sequential([of.Input((TIME, FEATURES)), *row])


def words(of: Any, layers: Any, ids: Any) -> Any:
    """A mask that ends with the last output, in front of a softmax."""
    row = [
        layers.Embedding(WORDS, 3, mask_zero=True),
        layers.Bidirectional(layers.GRU(2, return_sequences=True, reset_after=False)),
        layers.LSTM(5, use_bias=False, stateful=True),
        layers.Softmax(),
    ]
    return of.Sequential([of.Input((TIME,), BATCH, "int32"), *row])


def to_a_dict(of: Any, x: Any) -> Any:
    """A Sequential, whose last layer is a model of two outputs."""
    ys = of.Input((TIME, 2))
    last = of.Model(ys, {"b": of.layers.Dense(2)(ys), "a": of.layers.GRU(2)(ys)})
    begin = of.Input((TIME, FEATURES))
    return of.Sequential([begin, of.layers.GRU(2, return_sequences=True), last])


def options(layers: Any, x: Any) -> Any:
    """Options of layers and of cells away from their defaults."""
    given = {"dropout": 0.3, "recurrent_dropout": 0.4, "use_bias": False, "return_sequences": True}
    a = layers.LSTM(3, "gelu", "softsign", **given)(layers.Masking(0.5)(x))
    b = layers.GRU(3, "relu", "hard_sigmoid", reset_after=False, go_backwards=True, **given)(x)
    cells = [
        layers.GRUCell(2, "leaky_relu", reset_after=False, dropout=0.2),
        layers.SimpleRNNCell(3, "softmax", use_bias=False),
        layers.LSTMCell(2, recurrent_activation="tanh", unit_forget_bias=False),
    ]
    zeros = {"return_sequences": True, "zero_output_for_mask": True}
    c = layers.RNN(cells, go_backwards=True, **zeros)(layers.Masking(0.5)(x))
    own = layers.SimpleRNN(3, dropout=0.5, return_sequences=True)
    back = layers.LSTM(3, go_backwards=True, **given)
    both = layers.Bidirectional(back, merge_mode="mul", backward_layer=own)(x)
    d = layers.TimeDistributed(layers.Dense(2, activation="softplus", use_bias=False))(both)
    return [a, b, c, layers.LeakyReLU(0.15)(layers.ReLU(max_value=6)(d))]


def letters(layers: Any, letters: Any) -> Any:
    """Ids in each step, looked up there."""
    each = layers.TimeDistributed
    looked_up = each(layers.Embedding(WORDS, 2))(letters)
    return layers.LSTM(2)(each(layers.GlobalMaxPooling1D())(looked_up))


def cells(layers: Any, x: Any) -> Any:
    """Keras 3 begins each of several cells with a list of its own; in one list they do not fit."""
    first, then = (
        layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_state=True) for _ in "ab"
    )
    _, *states = first(x)
    return then(x, initial_state=states)[0]


def holes(layers: Any, x: Any, mask: Any) -> Any:
    """A mask that is an input: layers hold what is masked, or set it to zero."""
    given = {"return_sequences": True, "return_state": True}
    zeros = given | {"zero_output_for_mask": True}
    ends = [
        layers.LSTM(2, go_backwards=True, **given),
        layers.LSTM(2, **zeros),
        layers.GRU(2, **given),
        layers.GRU(2, reset_after=False, go_backwards=True, **zeros),
        layers.SimpleRNN(2, **given),
        layers.Bidirectional(layers.LSTM(2, **given), merge_mode="ave"),
    ]
    return [y for one in ends for y in one(x, mask=mask)]


# --- What people keep ---


def cnn_lstm(layers: Any, xs: Any) -> Any:
    x = layers.Conv1D(4, 3, padding="same", strides=2, activation="elu")(xs)
    x = layers.AveragePooling1D(2, padding="same")(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    return layers.TimeDistributed(layers.Dense(2, activation="softmax"))(x)


def lrcn(layers: Any, film: Any) -> Any:
    each = layers.TimeDistributed
    x = each(layers.Conv2D(3, 3, padding="same", activation="relu"))(film)
    x = each(layers.MaxPooling2D(2))(x)
    x = each(layers.Dropout(0.2))(each(layers.Flatten())(x))
    return layers.Dense(3, activation="softmax")(layers.LSTM(4)(x))


def crnn(layers: Any, image: Any) -> Any:
    x = layers.Conv2D(4, (3, 3), padding="same", activation="relu")(image)
    x = layers.MaxPooling2D((1, 2))(layers.BatchNormalization()(x))
    x = layers.Reshape((TIME, 8))(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    return layers.Dense(5, activation="softmax")(x)


def normalised(layers: Any, xs: Any) -> Any:
    x = layers.LSTM(4, return_sequences=True)(layers.GaussianNoise(0.1)(xs))
    x = layers.GRU(3, return_sequences=True)(layers.BatchNormalization()(x))
    return layers.Dense(1)(layers.SimpleRNN(3)(layers.LayerNormalization()(x)))


def padded(layers: Any, xs: Any) -> Any:
    x = layers.LSTM(4, return_sequences=True)(layers.Masking(0.5)(xs))
    return layers.Dense(2, activation="tanh")(layers.GRU(3)(x))


def transformer(layers: Any, wide: Any) -> Any:
    x = layers.MultiHeadAttention(2, 3)(wide, wide)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, wide]))
    y = layers.Dense(4)(layers.Dense(6, activation="gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    return layers.Dense(2)(layers.GRU(3)(x))


def translator_masked(layers: Any, text: Any, other_text: Any) -> Any:
    x, y = (layers.Embedding(WORDS, 4, mask_zero=True)(one) for one in (text, other_text))
    _, *states = layers.LSTM(4, return_state=True)(x)
    y = layers.LSTM(4, return_sequences=True)(y, initial_state=states)
    return layers.Dense(WORDS, activation="softmax")(y)


def several_inputs(layers: Any, xs: Any, text: Any, vector: Any) -> Any:
    y = layers.GRU(3)(layers.Embedding(WORDS, 4)(text))
    z = layers.Dense(3, activation="relu")(vector)
    x = layers.Concatenate()([layers.LSTM(4)(xs), y, z])
    return layers.Dense(1, activation="sigmoid")(x)


def several_outputs(layers: Any, xs: Any) -> Any:
    x = layers.GRU(4, return_sequences=True)(xs)
    made = layers.LSTM(4, return_sequences=True, return_state=True)(xs)
    return [layers.Dense(2, activation="softmax")(x), layers.Dense(1)(layers.LSTM(3)(x)), *made]


def twins(layers: Any, xs: Any, ys: Any) -> Any:
    shared = layers.LSTM(4)
    return layers.Dense(1)(layers.Concatenate()([shared(xs), shared(ys)]))


def hard(layers: Any, xs: Any) -> Any:
    given = {"recurrent_activation": "hard_sigmoid"}
    x = layers.LSTM(4, return_sequences=True, **given)(xs)
    x = layers.GRU(3, return_sequences=True, **given)(x)
    x = layers.BatchNormalization()(layers.GRU(3, reset_after=False, **given)(x))
    return layers.Dense(2, activation="hard_sigmoid")(x)


def stacked_cells(layers: Any, xs: Any) -> Any:
    cells = layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(3)])
    x = layers.RNN(cells, return_sequences=True)(xs)
    return layers.Flatten()(layers.Dense(2)(layers.LSTM(3)(x)))


def masked_branches(layers: Any, text: Any) -> Any:
    x = layers.Embedding(WORDS, 4, mask_zero=True)(text)
    a, b = layers.LSTM(4, return_sequences=True)(x), layers.GRU(4, return_sequences=True)(x)
    x = layers.Concatenate()([layers.Add()([a, b]), a])
    return layers.Dense(2)(layers.LSTM(3)(x))


LAYERS = [
    letters, cells, holes, merges, windows, scales, pools, attention, translation, directions,
    by_hand, functions, frames, options, grids, models, parts, row, words, to_a_dict,
]  # fmt: skip
MODELS = [
    cnn_lstm, lrcn, crnn, normalised, padded, transformer, translator_masked, several_inputs,
    several_outputs, twins, hard, stacked_cells, masked_branches,
]  # fmt: skip
