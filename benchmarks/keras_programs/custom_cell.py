"""A cell of one's own that sees a constant of each row at every step: how fast its units leak."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs
# mypy: disable-error-code=annotation-unchecked

import numpy as np

EPOCHS, SIZE, SMALL = 10, 2000, 100


def make(rows: int):
    """Noise ``(rows, 50, 1)``, a rate for each row, and the noise integrated with that leak."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(rows * 5 // 4, 50, 1)).astype(np.float32)
    rates = rng.uniform(0.05, 0.5, (len(xs), 1)).astype(np.float32)
    ys = np.zeros_like(xs)
    for t in range(50):
        ys[:, t] = ys[:, t - 1] + rates * (np.tanh(xs[:, t]) - ys[:, t - 1])
    return (xs[:rows], rates[:rows], ys[:rows]), (xs[rows:], rates[rows:], ys[rows:])


def score(found, train, test) -> float:
    """The mean squared error in parts of the variance."""
    return float(np.square(found - test[2]).mean() / test[2].var())


LEARNED = 0.05


def in_keras(train, test, epochs):
    """As a user of Keras 3 writes it, whose RNN has no ``constants``: they come as inputs."""
    import keras

    class LeakyCell(keras.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = self.state_size = units

        def build(self, shape):
            self.kernel = self.add_weight((shape[-1] - 1, self.units))
            self.recurrent_kernel = self.add_weight((self.units,) * 2, "orthogonal")
            self.bias = self.add_weight((self.units,), "zeros")

        def call(self, inputs, states):
            x, rate = inputs[:, :-1], inputs[:, -1:]
            x = x @ self.kernel + states[0] @ self.recurrent_kernel + self.bias
            hidden = states[0] + rate * (keras.ops.tanh(x) - states[0])
            return hidden, [hidden]

    xs, rates = keras.Input((50, 1)), keras.Input((1,))
    inputs = keras.layers.Concatenate()([xs, keras.layers.RepeatVector(50)(rates)])
    ys = keras.layers.RNN(LeakyCell(32), return_sequences=True)(inputs)
    model = keras.Model([xs, rates], keras.layers.Dense(1)(ys))
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    model.fit(train[:2], train[2], batch_size=32, epochs=epochs, verbose=0)
    return model.predict(test[:2], verbose=0)


def in_rnnjax(train, test, epochs):
    """Train the cell in rnnjax; its equation reads the last input as it comes."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    import rnnjax
    from rnnjax.training import Silent, fit, keras_adam, minibatches

    @dataclasses.dataclass(frozen=True)
    class LeakyCell(rnnjax.Cell):
        hidden_size: int
        carry = rnnjax.SimpleRNNCarry
        gates = ("h",)
        raw = {"rate": 1}

        def update(self, params, x, carry, rate):
            return rnnjax.SimpleRNNCarry(carry.hidden + rate * (jnp.tanh(x) - carry.hidden))

    cell, key = LeakyCell(32), jax.random.key(0)
    params = {"cell": cell.init(key, 2), "kernel": jnp.zeros((32, 1)), "bias": jnp.zeros(1)}

    def apply(params, xs, rates):
        xs = jnp.concatenate([xs, jnp.broadcast_to(rates[:, None], xs.shape)], axis=-1)
        _, ys = rnnjax.unroll(cell, params["cell"], xs.swapaxes(0, 1))
        return ys.swapaxes(0, 1) @ params["kernel"] + params["bias"]

    def loss(params, batch, key):
        return jnp.square(apply(params, *batch[:2]) - batch[2]).mean()

    batches = minibatches(train, 32, axis=0)
    result = fit(loss, params, keras_adam(3e-3), batches, epochs, key=key, hooks=[Silent()])
    return apply(result.params, *test[:2])
