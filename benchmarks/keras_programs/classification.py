"""Sequences of different lengths in three classes, one of them rare: masks and class weights."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs

import numpy as np

EPOCHS, SIZE, SMALL = 30, 2000, 200


def make(rows: int):
    """Ids ``(rows, 20)``, from 1 to 9 and 0 after the end, and labels; the first id says which."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 10, (rows * 5 // 4, 20))
    labels = np.select([ids[:, 0] < 6, ids[:, 0] < 9], [0, 1], 2)
    ids[np.arange(20) >= rng.integers(10, 21, (len(ids), 1))] = 0
    return ids[:rows], labels[:rows], ids[rows:], labels[rows:]


def score(found, ids, labels, test_ids, test_labels) -> float:
    """The mean over the classes of the share that is taken for another."""
    return float(np.mean([np.mean(found[test_labels == c] != c) for c in range(3)]))


LEARNED = 0.05


def in_keras(ids, labels, test_ids, test_labels, epochs):
    """As a user of Keras writes it."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Embedding(10, 32, mask_zero=True),
            keras.layers.GRU(64),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    class_weight = dict(enumerate(len(labels) / (3 * np.bincount(labels))))
    model.fit(
        ids,
        labels,
        batch_size=32,
        epochs=epochs,
        validation_split=0.2,
        class_weight=class_weight,
        verbose=0,
    )
    return model.predict(test_ids, verbose=0).argmax(-1)


def in_rnnjax(ids, labels, test_ids, test_labels, epochs):
    """Classify in rnnjax; one function has the mask, another the weights of the classes."""
    import jax
    import jax.numpy as jnp
    import optax

    import rnnjax
    from rnnjax.training import Silent, fit, keras_adam, minibatches

    cell, keys = rnnjax.GRUCell(64), jax.random.split(jax.random.key(0), 3)
    params = {
        "embedding": jax.random.uniform(keys[0], (10, 32), minval=-0.05, maxval=0.05),
        "cell": cell.init(keys[1], 32),
        "kernel": jnp.zeros((64, 3)),
        "bias": jnp.zeros(3),
    }
    class_weight = len(labels) / (3 * jnp.bincount(labels))

    def apply(params, ids):
        xs = params["embedding"][ids.T]  # time first
        _, y = rnnjax.unroll(cell, params["cell"], xs, mask=ids.T > 0, outputs="last")
        return y @ params["kernel"] + params["bias"]

    def loss(params, carry, batch, key):
        logits, labels = apply(params, batch[0]), batch[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        accuracy = (logits.argmax(-1) == labels).mean()
        return (class_weight[labels] * losses).mean(), (carry, {"accuracy": accuracy})

    train, valid = minibatches((ids, labels), 32, axis=0).split(0.2)
    optimizer, hooks = keras_adam(3e-3), [Silent()]
    result = fit(
        loss, params, optimizer, train, epochs, key=keys[2], carry=(), evaluate=valid, hooks=hooks
    )
    return apply(result.params, test_ids).argmax(-1)
