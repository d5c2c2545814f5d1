"""How does the book model learn in Keras? ``python -m benchmarks.book_curve --corpus alice``.

The tutorial's model with its defaults, written in Keras as there: one-hot characters, 3 LSTMs of
700 units, a dense softmax at every step, Adam, shuffled windows. After each epoch its mean
training loss is printed, in nats per character, to lay beside that of ``python -m
experiments.text_generator train`` on the same text. An epoch of *Alice* takes two and a half
minutes on two vCPUs.
"""

import argparse
import dataclasses
import os
from typing import Any


def main() -> None:
    """Train, and print a line after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="alice")
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--hidden-size", type=int, default=700)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    keras.utils.set_random_seed(options.seed)
    inputs, targets, size, batch_size = load(options.corpus)
    sizes = [options.hidden_size] * 3
    model = keras.Sequential(
        [keras.Input((inputs.shape[1], size))]
        + [keras.layers.LSTM(hidden, return_sequences=True) for hidden in sizes]
        + [keras.layers.TimeDistributed(keras.layers.Dense(size, activation="softmax"))]
    )
    model.compile(
        loss="sparse_categorical_crossentropy",
        optimizer=keras.optimizers.Adam(1e-3, epsilon=1e-7),
    )

    def show(epoch: int, logs: dict[str, float]) -> None:
        print(f"epoch {epoch + 1}  loss {logs['loss']:.4f}", flush=True)

    shown = keras.callbacks.LambdaCallback(on_epoch_end=show)
    model.fit(
        keras.utils.to_categorical(inputs, size), targets, batch_size, options.epochs, 0, [shown]
    )


def load(corpus: str) -> tuple[Any, Any, int, int]:
    """All windows of the text as the text generator's defaults cut it, and what follows each."""
    import numpy as np

    from experiments.text_generator.config import Text
    from experiments.text_generator.data import Data

    text = dataclasses.replace(Text(), corpus=corpus)
    data = Data.load(text, 0)
    ends = range(text.seq_length, len(data.train), text.seq_length)
    windows = np.stack([data.train[end - text.seq_length : end + 1] for end in ends])
    return windows[:, :-1], windows[:, 1:], len(data.vocabulary), text.batch_size


if __name__ == "__main__":
    main()
