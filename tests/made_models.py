"""Models of the kinds that people keep in files, made by Keras 3 or by tf_keras.

Each function takes the package and gives the inputs and the outputs of a model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

TIME, FEATURES, WORDS = 8, 3, 9


def sequence(of: Any, time: int | None = None, features: int = FEATURES) -> Any:
    return of.layers.Input((time, features))


def words(of: Any) -> Any:
    return of.layers.Input((None,), dtype="int32")


def cnn_lstm(of: Any) -> Any:
    i = sequence(of, TIME)
    x = of.layers.Conv1D(4, 3, activation="relu")(i)
    x = of.layers.MaxPooling1D(2)(x)
    x = of.layers.Dropout(0.3)(of.layers.LSTM(4)(x))
    return i, of.layers.Dense(1)(x)


def cnn_lstm_open(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.Conv1D(4, 3, padding="same", strides=2, activation="elu")(i)
    x = of.layers.AveragePooling1D(2, padding="same")(x)
    x = of.layers.Bidirectional(of.layers.GRU(3, return_sequences=True))(x)
    return i, of.layers.TimeDistributed(of.layers.Dense(2, activation="softmax"))(x)


def text_cnn(of: Any) -> Any:
    i = words(of)
    x = of.layers.Embedding(WORDS, 4)(i)
    x = of.layers.SpatialDropout1D(0.2)(x)
    sizes = [of.layers.Conv1D(3, n, activation="relu", padding="same")(x) for n in (2, 3)]
    x = of.layers.Concatenate()([of.layers.GlobalMaxPooling1D()(one) for one in sizes])
    return i, of.layers.Dense(2, activation="sigmoid")(x)


def lrcn(of: Any) -> Any:
    i = of.layers.Input((4, 6, 6, 2))
    each = of.layers.TimeDistributed
    x = each(of.layers.Conv2D(3, 3, padding="same", activation="relu"))(i)
    x = each(of.layers.MaxPooling2D(2))(x)
    x = each(of.layers.Dropout(0.2))(each(of.layers.Flatten())(x))
    return i, of.layers.Dense(3, activation="softmax")(of.layers.LSTM(4)(x))


def crnn(of: Any) -> Any:
    i = of.layers.Input((TIME, 4, 1))
    x = of.layers.Conv2D(4, (3, 3), padding="same", activation="relu")(i)
    x = of.layers.BatchNormalization()(x)
    x = of.layers.MaxPooling2D((1, 2))(x)
    x = of.layers.Reshape((TIME, 8))(x)
    x = of.layers.Bidirectional(of.layers.LSTM(3, return_sequences=True))(x)
    return i, of.layers.Dense(5, activation="softmax")(x)


def autoencoder(of: Any) -> Any:
    i = sequence(of, TIME)
    x = of.layers.LSTM(4, activation="relu")(i)
    x = of.layers.RepeatVector(TIME)(x)
    x = of.layers.LSTM(4, activation="relu", return_sequences=True)(x)
    return i, of.layers.TimeDistributed(of.layers.Dense(FEATURES))(x)


def normalised(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.LSTM(4, return_sequences=True)(of.layers.GaussianNoise(0.1)(i))
    x = of.layers.BatchNormalization()(x)
    x = of.layers.GRU(3, return_sequences=True)(x)
    x = of.layers.LayerNormalization()(x)
    return i, of.layers.Dense(1)(of.layers.SimpleRNN(3)(x))


def tagger(of: Any) -> Any:
    i = words(of)
    x = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    x = of.layers.Bidirectional(of.layers.LSTM(3, return_sequences=True))(x)
    return i, of.layers.TimeDistributed(of.layers.Dense(4, activation="softmax"))(x)


def padded(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.Masking(0.0)(i)
    x = of.layers.LSTM(4, return_sequences=True)(x)
    x = of.layers.GRU(3)(x)
    return i, of.layers.Dense(2, activation="tanh")(x)


def padded_mean(of: Any) -> Any:
    i = words(of)
    x = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    x = of.layers.GRU(4, return_sequences=True)(x)
    return i, of.layers.Dense(2)(of.layers.GlobalAveragePooling1D()(x))


def by_hand(of: Any) -> Any:
    i = sequence(of, TIME)
    h = of.layers.LSTM(4, return_sequences=True)(i)
    a = of.layers.Dense(1, activation="tanh")(h)
    a = of.layers.Activation("softmax")(of.layers.Flatten()(a))
    a = of.layers.Permute((2, 1))(of.layers.RepeatVector(4)(a))
    x = of.layers.Multiply()([h, a])
    return i, of.layers.Dense(2)(of.layers.GlobalMaxPooling1D()(x))


def attention(of: Any) -> Any:
    i = sequence(of)
    h = of.layers.Bidirectional(of.layers.GRU(2, return_sequences=True))(i)
    x = of.layers.Attention(use_scale=True)([h, h])
    x = of.layers.Concatenate()([h, x])
    return i, of.layers.Dense(2)(of.layers.GlobalAveragePooling1D()(x))


def attention_masked(of: Any) -> Any:
    i = words(of)
    h = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    h = of.layers.LSTM(4, return_sequences=True)(h)
    x = of.layers.Attention()([h, h])
    return i, of.layers.Dense(2)(of.layers.GRU(3)(x))


def transformer(of: Any) -> Any:
    i = sequence(of, features=4)
    x = of.layers.MultiHeadAttention(2, 3)(i, i)
    x = of.layers.LayerNormalization(epsilon=1e-6)(of.layers.Add()([x, i]))
    y = of.layers.Dense(4)(of.layers.Dense(6, activation="gelu")(x))
    x = of.layers.LayerNormalization()(of.layers.Add()([x, y]))
    return i, of.layers.Dense(2)(of.layers.GRU(3)(x))


def translator(of: Any) -> Any:
    i, j = sequence(of), sequence(of, features=2)
    _, *states = of.layers.LSTM(4, return_state=True)(i)
    ys, _, _ = of.layers.LSTM(4, return_sequences=True, return_state=True)(j, initial_state=states)
    return [i, j], of.layers.Dense(3, activation="softmax")(ys)


def translator_of_words(of: Any) -> Any:
    i, j = words(of), words(of)
    x = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    _, state = of.layers.GRU(4, return_state=True)(x)
    y = of.layers.Embedding(WORDS, 4)(j)
    y = of.layers.GRU(4, return_sequences=True)(y, initial_state=state)
    return [i, j], of.layers.Dense(WORDS, activation="softmax")(y)


def translator_masked(of: Any) -> Any:
    i, j = words(of), words(of)
    x = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    _, *states = of.layers.LSTM(4, return_state=True)(x)
    y = of.layers.Embedding(WORDS, 4, mask_zero=True)(j)
    y = of.layers.LSTM(4, return_sequences=True)(y, initial_state=states)
    return [i, j], of.layers.Dense(WORDS, activation="softmax")(y)


def translator_attending(of: Any) -> Any:
    i, j = sequence(of), sequence(of)
    seen, *states = of.layers.LSTM(4, return_sequences=True, return_state=True)(i)
    ys = of.layers.LSTM(4, return_sequences=True)(j, initial_state=states)
    scores = of.layers.Activation("softmax")(of.layers.Dot(axes=[2, 2])([ys, seen]))
    context = of.layers.Dot(axes=[2, 1])([scores, seen])
    x = of.layers.Concatenate()([context, ys])
    return [i, j], of.layers.TimeDistributed(of.layers.Dense(2))(x)


def several_inputs(of: Any) -> Any:
    i, j, k = sequence(of), words(of), of.layers.Input((5,))
    x = of.layers.LSTM(4)(i)
    y = of.layers.GRU(3)(of.layers.Embedding(WORDS, 4)(j))
    z = of.layers.Dense(3, activation="relu")(k)
    x = of.layers.Concatenate()([x, y, z])
    return [i, j, k], of.layers.Dense(1, activation="sigmoid")(x)


def several_outputs(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.GRU(4, return_sequences=True)(i)
    each = of.layers.Dense(2, activation="softmax")(x)
    last = of.layers.Dense(1)(of.layers.LSTM(3)(x))
    return i, [each, last]


def states_out(of: Any) -> Any:
    i = sequence(of)
    x, h, c = of.layers.LSTM(4, return_sequences=True, return_state=True)(i)
    return i, [x, h, c]


def residual(of: Any) -> Any:
    i = sequence(of, features=4)
    x = of.layers.Add()([i, of.layers.LSTM(4, return_sequences=True)(i)])
    y = of.layers.Average()([x, of.layers.GRU(4, return_sequences=True)(x)])
    return i, of.layers.Dense(2)(of.layers.GlobalAveragePooling1D()(y))


def twins(of: Any) -> Any:
    i, j = sequence(of), sequence(of)
    shared = of.layers.LSTM(4)
    return [i, j], of.layers.Dense(1)(of.layers.Concatenate()([shared(i), shared(j)]))


def nested(of: Any) -> Any:
    i = sequence(of, TIME)
    encoder = of.Sequential([of.layers.Input((TIME, FEATURES)), of.layers.GRU(4)])
    x = of.layers.RepeatVector(3)(encoder(i))
    return i, of.layers.Dense(2)(of.layers.LSTM(3, return_sequences=True)(x))


def hard(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True)(i)
    x = of.layers.GRU(3, recurrent_activation="hard_sigmoid", return_sequences=True)(x)
    x = of.layers.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False)(x)
    return i, of.layers.Dense(2, activation="hard_sigmoid")(of.layers.BatchNormalization()(x))


def merges(of: Any) -> Any:
    i = sequence(of)
    modes = ("sum", "mul", "ave", "concat")
    x = [of.layers.Bidirectional(of.layers.GRU(3), merge_mode=mode)(i) for mode in modes]
    return i, of.layers.Dense(2)(of.layers.Concatenate()(x))


def backwards(of: Any) -> Any:
    i = sequence(of)
    x = of.layers.SimpleRNN(4, go_backwards=True, return_sequences=True)(i)
    x = of.layers.GRU(4, go_backwards=True)(of.layers.LeakyReLU()(x))
    return i, of.layers.Dense(2)(of.layers.ELU()(x))


def stacked_cells(of: Any) -> Any:
    i = sequence(of)
    cells = [of.layers.LSTMCell(4), of.layers.GRUCell(3)]
    x = of.layers.RNN(of.layers.StackedRNNCells(cells), return_sequences=True)(i)
    return i, of.layers.Flatten()(of.layers.Dense(2)(of.layers.LSTM(3)(x)))


def ends(of: Any) -> Any:
    i = sequence(of, TIME)
    x = of.layers.LSTM(4, return_sequences=True)(i)
    x = of.layers.Conv1D(3, 2, padding="causal", dilation_rate=2)(x)
    return i, of.layers.Reshape((2, -1))(of.layers.Dense(2)(x))


def masked_branches(of: Any) -> Any:
    i = words(of)
    x = of.layers.Embedding(WORDS, 4, mask_zero=True)(i)
    a, b = of.layers.LSTM(4, return_sequences=True)(x), of.layers.GRU(4, return_sequences=True)(x)
    x = of.layers.Add()([a, b])
    x = of.layers.Concatenate()([x, a])
    return i, of.layers.Dense(2)(of.layers.LSTM(3)(x))


MODELS: list[Callable[[Any], Any]] = [
    cnn_lstm, cnn_lstm_open, text_cnn, lrcn, crnn, autoencoder, normalised, tagger, padded,
    padded_mean, by_hand, attention, attention_masked, transformer, translator,
    translator_of_words, translator_masked, translator_attending, several_inputs, several_outputs,
    states_out, residual, twins, nested, hard, merges, backwards, stacked_cells, ends,
    masked_branches,
]  # fmt: skip


def made(build: Callable[[Any], Any], of: Any, seed: int = 0) -> tuple[Any, list[np.ndarray]]:
    """A model with drawn weights, and inputs for it of which some rows are padded."""
    inputs, outputs = build(of)
    model = of.Model(inputs, outputs)
    rng = np.random.default_rng(seed)
    model.set_weights(
        [(a + 0.4 * rng.standard_normal(a.shape)).astype(a.dtype) ** (1 + (a.ndim == 1))
         for a in model.get_weights()]
    )  # fmt: skip
    arrays: list[np.ndarray] = []
    for n, one in enumerate(model.inputs):
        shape = [3, *(size or TIME - n for size in one.shape[1:])]
        whole = np.issubdtype(np.dtype(getattr(one.dtype, "name", one.dtype)), np.integer)
        array = rng.integers(1, WORDS, shape) if whole else rng.standard_normal(shape)
        if whole or len(shape) == 3:
            array[0, 5:] = 0
            array[1, 3:] = 0
        arrays.append(array.astype("int32" if whole else "float32"))
    return model, arrays
