"""Does Keras's ``stateful=True`` carry the state? ``python -m benchmarks.keras_stateful``.

Asks every backend that is installed, each in a process of its own: three times the same input, and
is each output different from the one before, as a carried state makes it? And is the state of the
layer other than zero after ``fit``, and after ``train_on_batch``? The last column is what that
costs: the loss of a program that sums the last eight inputs of a stream, of which a batch has four.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

BACKENDS = ("jax", "tensorflow", "torch")
BATCH, TIME, FEATURES, HIDDEN = 2, 3, 4, 5
HEADER = ("", "predict carries the state", "fit", "train_on_batch", "loss of a program")
INPUTS = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
EPOCHS, UNITS, CUT, PAST = 8, 16, 4, 8


def main() -> None:
    """Print a row for every backend, and one for rnnjax."""
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        print(json.dumps(ask_keras()))
        return
    rows = [HEADER, ("---",) * len(HEADER), *map(ask_backend, BACKENDS), ask_rnnjax()]
    for row in rows:
        print(f"| {' | '.join(row)} |")


def program() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights as Keras lists them, and batches (steps, rows, time, 1) with their targets."""
    rng = np.random.default_rng(1)
    sizes = (1, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,), (UNITS, 1), (1,)
    weights = [rng.normal(0, 0.2, size).astype(np.float32) for size in sizes]
    stream = rng.normal(size=(BATCH, 50 * CUT)).astype(np.float32)
    sums = np.array([stream[:, max(0, t - PAST + 1) : t + 1].sum(1) for t in range(50 * CUT)]).T
    xs, ys = (np.stack(np.split(a / PAST**0.5, 50, axis=1))[..., None] for a in (stream, sums))
    return weights, xs, ys


def ask_backend(backend: str) -> tuple[str, ...]:
    """The row of a backend, from a process of its own."""
    absent = [name for name in ("keras", backend) if importlib.util.find_spec(name) is None]
    if absent:
        return (f"Keras, {backend}", f"{absent[0]} is not installed", "–", "–", "–")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.keras_stateful", "--worker", backend],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        return (
            f"Keras, {backend}",
            f"failed: {done.stderr.strip().splitlines()[-1]}",
            "–",
            "–",
            "–",
        )
    version, *answers = json.loads(done.stdout.splitlines()[-1])
    return (f"Keras {version}, {backend}", *answers)


def ask_keras() -> list[str]:
    """The version of Keras, and the three answers of the backend that is in the environment."""
    import keras

    targets = np.zeros((BATCH, 1), np.float32)

    def model() -> Any:
        lstm = keras.layers.LSTM(HIDDEN, stateful=True)
        inputs = keras.Input(batch_shape=INPUTS.shape)
        model = keras.Sequential([inputs, lstm, keras.layers.Dense(1)])
        model.compile(loss="mse", optimizer="adam")
        return model

    def state_after(train: Callable[[Any], Any]) -> str:
        trained = model()
        try:
            train(trained)
        except Exception as error:
            # PyTorch's message goes on after the reason.
            return f"raises {type(error).__name__}: {str(error).partition(':')[0]}"
        states = map(keras.ops.convert_to_numpy, trained.layers[0].states)
        return yes_or_no(any(np.any(state) for state in states))

    def loss_of_program() -> str:
        weights, xs, ys = program()
        lstm = keras.layers.LSTM(UNITS, stateful=True, return_sequences=True)
        layers = [keras.Input(batch_shape=xs.shape[1:]), lstm, keras.layers.Dense(1)]
        trained = keras.Sequential(layers)
        trained.compile(loss="mse", optimizer=keras.optimizers.Adam(1e-2))
        trained.set_weights(weights)
        for _ in range(EPOCHS):
            lstm.reset_state()
            flat = (a.reshape(-1, *a.shape[2:]) for a in (xs, ys))
            history = trained.fit(*flat, **options)
        return f"{history.history['loss'][-1]:.3f}"

    predicting = model()
    outputs = [predicting.predict(INPUTS, batch_size=BATCH, verbose=0) for _ in range(3)]
    options: dict[str, Any] = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return [
        keras.__version__,
        yes_or_no(all_differ(outputs)),
        state_after(lambda trained: trained.fit(INPUTS, targets, epochs=3, **options)),
        state_after(lambda trained: [trained.train_on_batch(INPUTS, targets) for _ in range(3)]),
        "–" if keras.backend.backend() == "torch" else loss_of_program(),
    ]


def ask_rnnjax() -> tuple[str, ...]:
    """Run it in rnnjax, where the next call gets the carry that a call returns.

    For ``fit`` three steps of training are one dispatch, for ``train_on_batch`` three.
    """
    import jax
    import jax.numpy as jnp
    import optax

    import rnnjax
    from rnnjax.training import Silent, TrainState, fit, keras_adam, make_train_steps

    cell, steps = rnnjax.LSTMCell(HIDDEN), 3
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jnp.swapaxes(jnp.asarray(INPUTS), 0, 1)

    carry, outputs = cell.initial_carry((BATCH,)), []
    for _ in range(steps):
        carry, ys = rnnjax.unroll(cell, params, xs, carry)
        outputs.append(np.asarray(ys[-1]))

    def loss_fn(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        carry, ys = rnnjax.unroll(cell, params, batch, carry)
        return jnp.mean(ys[-1] ** 2), (carry, {})

    optimizer = optax.adam(1e-3)
    train_steps = make_train_steps(loss_fn, optimizer)
    batches = jnp.stack([xs] * steps)

    def carried_after(ranges: list[tuple[int, int]]) -> str:
        copy = jax.tree.map(jnp.copy, params)  # A state is given away to train_steps.
        start = cell.initial_carry((BATCH,))
        state = TrainState.create(copy, optimizer, key=jax.random.key(0), carry=start)
        for start_step, stop_step in ranges:
            state, _ = train_steps(state, batches, start_step, stop_step)
        return yes_or_no(any(jnp.any(leaf) for leaf in state.carry))

    def loss_of_program(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        inputs, targets = (jnp.swapaxes(a, 0, 1) for a in batch)
        carry, ys = rnnjax.unroll(rnnjax.LSTMCell(UNITS), params["cell"], inputs, carry)
        return jnp.mean((ys @ params["head"] + params["bias"] - targets) ** 2), (carry, {})

    (*lstm, head, bias), *data = program()
    names = "kernel", "recurrent_kernel", "bias"
    begin = {"cell": dict(zip(names, lstm, strict=True)), "head": head, "bias": bias}
    carry = rnnjax.LSTMCell(UNITS).initial_carry((BATCH,))
    options: dict[str, Any] = {"key": jax.random.key(0), "carry": carry, "hooks": [Silent()]}
    done = fit(loss_of_program, begin, keras_adam(1e-2), tuple(data), EPOCHS, **options)

    return (
        f"rnnjax {rnnjax.__version__}, the carry given back",
        yes_or_no(all_differ(outputs)),
        carried_after([(0, steps)]),
        carried_after([(step, step + 1) for step in range(steps)]),
        f"{done.history[-1]['loss']:.3f}",
    )


def all_differ(outputs: list[np.ndarray]) -> bool:
    """Whether no output equals the one before it."""
    pairs = itertools.pairwise(outputs)
    return not any(np.allclose(one, two, rtol=0, atol=1e-7) for one, two in pairs)


def yes_or_no(answer: bool) -> str:
    """As a word."""
    return "yes" if answer else "no"


if __name__ == "__main__":
    main()
