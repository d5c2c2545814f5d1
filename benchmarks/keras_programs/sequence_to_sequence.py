"""Digits read by one network and written backwards by another, which begins with its state."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs

import numpy as np

EPOCHS, SIZE, SMALL = 8, 10_000, 100


def make(rows: int):
    """Digits ``(rows, 8)``, their reverse, and 200 more to be reversed."""
    digits = np.random.default_rng(0).integers(0, 10, (rows + 200, 8))
    return digits[:rows], digits[:rows, ::-1], digits[rows:]


def score(found, source, target, test) -> float:
    """The share of wrong digits."""
    return float(np.mean(np.asarray(found) != test[:, ::-1]))


LEARNED = 0.1


def in_keras(source, target, test, epochs):
    """As a user of Keras writes it: a model to be trained, and two of its layers to write with."""
    import keras

    digits = keras.Input((None,), dtype="int32")
    before = keras.Input((None,), dtype="int32")
    embed = keras.layers.Embedding(11, 32)
    decoder = keras.layers.LSTM(128, return_sequences=True, return_state=True)
    dense = keras.layers.Dense(10)

    _, *states = keras.layers.LSTM(128, return_state=True)(embed(digits))
    outputs, *_ = decoder(embed(before), initial_state=states)
    model = keras.Model([digits, before], dense(outputs))
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    shifted = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=10)
    model.fit([source, shifted], target, batch_size=64, epochs=epochs, verbose=0)

    encoder = keras.Model(digits, states)
    given = [keras.Input((128,)), keras.Input((128,))]
    outputs, *new = decoder(embed(before), initial_state=given)
    step = keras.Model([before, *given], [dense(outputs), *new])
    states = encoder.predict(test, verbose=0)
    digit = np.full((len(test), 1), 10)
    written = []
    for _ in range(8):
        logits, *states = step.predict([digit, *states], verbose=0)
        digit = logits.argmax(-1)
        written.append(digit)
    return np.concatenate(written, axis=1)


def in_rnnjax(source, target, test, epochs):
    """Translate in rnnjax; decoding continues from the carry of the encoder."""
    import jax
    import jax.numpy as jnp
    import optax

    import rnnjax
    from rnnjax.text import sample
    from rnnjax.training import Silent, fit, keras_adam, minibatches

    cell, keys = rnnjax.LSTMCell(128), jax.random.split(jax.random.key(0), 4)
    params = {
        "embedding": jax.random.uniform(keys[0], (11, 32), minval=-0.05, maxval=0.05),
        "encoder": cell.init(keys[1], 32),
        "decoder": cell.init(keys[2], 32),
        "kernel": jnp.zeros((128, 10)),
        "bias": jnp.zeros(10),
    }

    def read(params, digits):
        return rnnjax.unroll(cell, params["encoder"], params["embedding"][digits.T])[0]

    def write(params, carry, before):
        carry, ys = rnnjax.unroll(cell, params["decoder"], params["embedding"][before], carry)
        return carry, ys @ params["kernel"] + params["bias"]

    def loss(params, batch, key):
        source, target = batch
        before = jnp.pad(target.T[:-1], ((1, 0), (0, 0)), constant_values=10)
        _, logits = write(params, read(params, source), before)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target.T).mean()

    batches = minibatches((source, target), 64, axis=0)
    result = fit(loss, params, keras_adam(3e-3), batches, epochs, key=keys[3], hooks=[Silent()])

    def step(params, carry, digit):
        carry, logits = write(params, carry, digit[None])
        return carry, logits[0]

    carry, first = read(result.params, test), jnp.full(len(test), 10)
    _, written = sample(step, result.params, carry, first, key=keys[3], length=8, temperature=0)
    return written.T
