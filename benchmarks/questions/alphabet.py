"""The whole training of ``experiments.alphabet``: rnnjax's one call, and Keras's own loop."""

import dataclasses
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions.book_model import weights_of
from benchmarks.reports import Outcome, Report
from benchmarks.timing import Contender, Question

SEED = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The shapes, and the file of the initial weights."""

    hidden_size: int = 50
    epochs: int = 300
    later_keras_epochs: int = 300
    """Keras's repetitions after the first do so many epochs; their seconds are scaled up."""
    weights: str = ""


QUICK = Settings(hidden_size=16, epochs=10, later_keras_epochs=5)


def write_weights(settings: Settings) -> None:
    """Write the weights that rnnjax starts from, for the others to start from as well."""
    import jax

    from experiments.alphabet.config import Config
    from experiments.alphabet.model import Model

    params = Model(Config(hidden_size=settings.hidden_size)).init(jax.random.key(SEED))
    dense = {"dense_kernel": params["kernel"], "dense_bias": params["bias"]}
    np.savez(settings.weights, **params["cell"], **dense)


def rnnjax_call(settings: dict[str, Any]) -> Iterator[Outcome]:
    """One compiled call: two nested scans, over epochs and letters."""
    import jax

    from experiments.alphabet.config import Config
    from experiments.alphabet.model import COMPILER_OPTIONS, Model

    shape = Settings(**settings)
    model = Model(Config(hidden_size=shape.hidden_size, epochs=shape.epochs))
    key = jax.random.key(SEED)
    began = perf_counter()
    train = jax.jit(model.train, compiler_options=COMPILER_OPTIONS)
    while True:
        params, losses = jax.block_until_ready(train(key))
        seconds = perf_counter() - began
        yield Outcome(seconds, float(model.accuracy(params)), {"loss": float(losses[-1])})
        began = perf_counter()


def keras_loop(settings: dict[str, Any]) -> Iterator[Outcome]:
    """``fit`` for one epoch, reset the states, and again."""
    import keras

    shape = Settings(**settings)
    weights = weights_of(shape)
    letters = np.arange(25)
    inputs, targets = np.float32(letters / 26).reshape(25, 1, 1), letters + 1

    began = perf_counter()
    lstm = keras.layers.LSTM(shape.hidden_size, stateful=True)
    dense = keras.layers.Dense(26, activation="softmax")
    model = keras.Sequential([keras.Input(batch_shape=(1, 1, 1)), lstm, dense])
    lstm.cell.set_weights([weights[name] for name in ("kernel", "recurrent_kernel", "bias")])
    dense.set_weights([weights["dense_kernel"], weights["dense_bias"]])
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    variables = [*model.trainable_variables, *optimizer.variables]
    initial = [keras.ops.convert_to_numpy(variable) for variable in variables]
    epochs = shape.epochs
    while True:
        for _ in range(epochs):
            history = model.fit(inputs, targets, epochs=1, batch_size=1, shuffle=False, verbose=0)
            lstm.reset_state()
        seconds = (perf_counter() - began) * shape.epochs / epochs
        predicted = model.predict(inputs, batch_size=1, verbose=0).argmax(axis=-1)
        accuracy = float(np.mean(predicted == targets))
        yield Outcome(seconds, accuracy, {"loss": history.history["loss"][-1], "epochs": epochs})

        # Fresh weights in the same, compiled, model.
        lstm.reset_state()
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)
        epochs = shape.later_keras_epochs
        began = perf_counter()


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    note = ""
    if settings.later_keras_epochs != settings.epochs:
        note = f"after the first: {settings.later_keras_epochs} epochs, scaled to {settings.epochs}"
    return Question(
        "alphabet",
        f"A whole training on the alphabet: LSTM({settings.hidden_size}), batch 1, state carried "
        f"from letter to letter, {settings.epochs} epochs x 25 updates, Adam. The first call "
        "counts every compilation; then the same again, from the same weights.",
        [
            Contender("rnnjax", rnnjax_call, ["rnnjax", "jax", "optax"]),
            *(
                Contender(
                    f"Keras, {name}", keras_loop, ["keras", name], {"KERAS_BACKEND": name}, note
                )
                for name in ("jax", "tensorflow")
            ),
        ],
        baseline="rnnjax",
        value_name="accuracy",
    )


def remarks(report: Report) -> list[str]:
    """Where each of them ended, and who did not learn it."""
    firsts = {result.name: result.first for result in report.results if result.first}
    said = [
        f"{name} ended at {first.value:.0%}, loss {first.details['loss']:.4f}."
        for name, first in firsts.items()
    ]
    keras, ours = firsts.get("Keras, JAX"), firsts.get("rnnjax")
    if keras and ours and keras.value < ours.value:
        said.append(
            "Keras on JAX does not keep the state that stateful=True promises, so it cannot learn "
            "what rnnjax does from the same weights: see `python -m benchmarks.keras_stateful`."
        )
    return said
