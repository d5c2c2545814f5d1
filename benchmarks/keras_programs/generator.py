"""The adding problem (Hochreiter & Schmidhuber, 1997): a generator, a schedule, clipping."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs

import numpy as np

EPOCHS, SIZE, SMALL = 10, 50, 2


def make(steps: int):
    """A function that draws a batch, and one to test with: the sum of the two marked numbers."""
    rng = np.random.default_rng(0)

    def draw(rows=64):
        xs = np.stack([rng.uniform(size=(rows, 30)), np.zeros((rows, 30))], axis=-1)
        for half in (xs[:, :15], xs[:, 15:]):
            half[np.arange(rows), rng.integers(0, 15, rows), 1] = 1
        return xs.astype(np.float32), xs.prod(-1).sum(1, keepdims=True).astype(np.float32)

    return draw, steps, draw(1000)


def score(found, draw, steps, test) -> float:
    """The mean squared error in parts of the variance, which the mean alone would leave."""
    return float(np.square(found - test[1]).mean() / test[1].var())


LEARNED = 0.2


def in_keras(draw, steps, test, epochs):
    """As a user of Keras writes it."""
    import keras

    def batches():
        while True:
            yield draw()

    model = keras.Sequential(
        [
            keras.Input((30, 2)),
            keras.layers.GRU(64),
            keras.layers.Dense(1),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, steps * epochs)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(batches(), steps_per_epoch=steps, epochs=epochs, validation_data=test, verbose=0)
    return model.predict(test[0], verbose=0)


def in_rnnjax(draw, steps, test, epochs):
    """Train on generated batches in rnnjax."""
    import jax
    import jax.numpy as jnp
    import optax

    import rnnjax
    from rnnjax.training import Silent, fit, keras_adam, minibatches

    def batches(epoch):
        return (draw() for _ in range(steps))

    cell, key = rnnjax.GRUCell(64), jax.random.key(0)
    params = {"cell": cell.init(key, 2), "kernel": jnp.zeros((64, 1)), "bias": jnp.zeros(1)}

    def apply(params, xs):
        _, y = rnnjax.unroll(cell, params["cell"], xs.swapaxes(0, 1), outputs="last")
        return y @ params["kernel"] + params["bias"]

    def loss(params, batch, key):
        return jnp.square(apply(params, batch[0]) - batch[1]).mean()

    schedule = optax.cosine_decay_schedule(1e-2, steps * epochs)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), keras_adam(schedule))
    valid = minibatches(test, 100, axis=0)
    run = fit(loss, params, optimizer, batches, epochs, key=key, evaluate=valid, hooks=[Silent()])
    return apply(run.params, test[0])
