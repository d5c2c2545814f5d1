"""A forecast one step ahead, with the state carried on, validation and early stopping."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs

import numpy as np

EPOCHS, SIZE, SMALL = 20, 2000, 100


def make(steps: int):
    """Series of two waves and noise, of 32 rows with phases of their own: ``(time, rows)``."""
    rng = np.random.default_rng(0)
    time, (first, second) = np.arange(steps * 5 // 4)[:, None], rng.uniform(0, 6.28, (2, 32))
    series = np.sin(0.25 * time + first) + 0.5 * np.sin(0.1 * time + second)
    series = (series + rng.normal(0, 0.05, series.shape)).astype(np.float32)
    return series[:steps], series[steps:]


def score(found, train, valid) -> float:
    """The validation error in parts of that of repeating the last value."""
    return found / np.square(valid[1:] - valid[:-1]).mean()


LEARNED = 0.7


def in_keras(train, valid, epochs):
    """As a user of Keras writes it; its JAX backend carries no state, whatever is written."""
    import keras

    def cut(series):  # row r of a batch goes on in row r of the next
        rows = series.T[:, : len(series) // 20 * 20]
        return rows.reshape(len(rows), -1, 20, 1).swapaxes(0, 1).reshape(-1, 20, 1)

    model = keras.Sequential(
        [
            keras.Input(batch_shape=(32, 20, 1)),
            keras.layers.LSTM(64, stateful=True, return_sequences=True),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    reset = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model.layers[0].reset_state(),
        on_test_begin=lambda logs: model.layers[0].reset_state(),
    )
    stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    model.fit(
        cut(train[:-1]),
        cut(train[1:]),
        batch_size=32,
        epochs=epochs,
        shuffle=False,
        validation_data=(cut(valid[:-1]), cut(valid[1:])),
        callbacks=[reset, stop],
        verbose=0,
    )
    return model.evaluate(cut(valid[:-1]), cut(valid[1:]), batch_size=32, verbose=0)


def in_rnnjax(train, valid, epochs):
    """Forecast in rnnjax; the state is the carry that one window hands to the next."""
    import jax
    import jax.numpy as jnp

    import rnnjax
    from rnnjax.training import EarlyStopping, Silent, fit, keras_adam, truncated_loss, windows

    def cut(series):
        return windows(series[:-1, :, None], series[1:, :, None], steps=20)

    cell, key = rnnjax.LSTMCell(64), jax.random.key(0)
    params = {"cell": cell.init(key, 1), "kernel": jnp.zeros((64, 1)), "bias": jnp.zeros(1)}

    def run(params, carry, xs, key):
        carry, ys = rnnjax.unroll(cell, params["cell"], xs, carry)
        return carry, ys @ params["kernel"] + params["bias"]

    result = fit(
        truncated_loss(run, lambda ys, targets: jnp.square(ys - targets).mean(-1)),
        params,
        keras_adam(3e-3),
        cut(train),
        epochs,
        key=key,
        carry=cell.initial_carry((32,)),
        evaluate=cut(valid),
        hooks=[EarlyStopping(5), Silent()],
    )
    return result.best["validation_loss"]
