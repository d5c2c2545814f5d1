"""A model of the characters of a text: checkpoints, a smaller learning rate, a log, a text."""
# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs

import numpy as np

EPOCHS, SIZE, SMALL = 10, 120_000, 20_000


def make(length: int):
    """A text: Python's own documentation."""
    from experiments.shared.corpora import load_corpus

    return (load_corpus("python-docs")[:length],)


def score(found, text) -> float:
    """The validation loss, in nats a character; the characters alone, without order, take 3."""
    loss, written = found
    assert len(written) == 200
    return loss


LEARNED = 2.0


def in_keras(text, epochs):
    """As a user of Keras writes it; a text is written by reading all of it before each character.

    Of the text the last 100 characters are read, so that nothing is compiled again.
    """
    import keras

    characters = sorted(set(text))
    ids = np.array([characters.index(character) for character in text])
    rows = (len(ids) - 1) // 50
    inputs, targets = ids[: rows * 50].reshape(-1, 50), ids[1 : rows * 50 + 1].reshape(-1, 50)
    model = keras.Sequential(
        [
            keras.layers.Embedding(len(characters), 64),
            keras.layers.LSTM(128, return_sequences=True),
            keras.layers.Dense(len(characters)),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(
        inputs,
        targets,
        batch_size=32,
        epochs=epochs,
        validation_split=0.1,
        callbacks=[
            keras.callbacks.ModelCheckpoint("best.keras", save_best_only=True),
            keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2),
            keras.callbacks.CSVLogger("epochs.csv"),
        ],
        verbose=0,
    )
    best = keras.saving.load_model("best.keras")
    written = list(ids[:100])
    for _ in range(200):
        logits = best.predict(np.array([written[-100:]]), verbose=0)[0, -1].astype(float)
        odds = np.exp(2 * (logits - logits.max()))  # a temperature of 0.5
        written.append(np.random.choice(len(odds), p=odds / odds.sum()))
    text = "".join(characters[i] for i in written[100:])
    return min(history.history["val_loss"]), text


def in_rnnjax(text, epochs):
    """Train and write in rnnjax; a text is written by one step for each character."""
    import jax
    import jax.numpy as jnp
    import optax

    import rnnjax
    from rnnjax import training
    from rnnjax.text import Vocabulary, sample, windows
    from rnnjax.training import CSVLog, ReduceOnPlateau, Silent

    vocabulary = Vocabulary.learned(text)
    ids, size = vocabulary.encode(text), len(vocabulary)
    cell, key = rnnjax.LSTMCell(128), jax.random.key(0)
    params = {
        "embedding": jax.random.uniform(key, (size, 64), minval=-0.05, maxval=0.05),
        "cell": cell.init(key, 64),
        "kernel": jnp.zeros((128, size)),
        "bias": jnp.zeros(size),
    }

    def run(params, carry, ids):
        carry, ys = rnnjax.unroll(cell, params["cell"], params["embedding"][ids], carry)
        return carry, ys @ params["kernel"] + params["bias"]

    def loss_fn(params, batch, key):
        inputs, targets = batch
        _, logits = run(params, None, inputs.T)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets.T).mean()

    train, valid = training.minibatches(windows(ids, 50), 32, axis=0).split(0.1)
    result = training.fit(
        loss_fn,
        params,
        optax.inject_hyperparams(training.keras_adam)(1e-2),
        train,
        epochs,
        key=key,
        evaluate=valid,
        run_dir="run",
        hooks=[ReduceOnPlateau(2, factor=0.5), CSVLog("epochs.csv"), Silent()],
    )

    def step(params, carry, token):
        carry, logits = run(params, carry, token[None])
        return carry, logits[0]

    params, start = training.load_params("run"), ids[:100, None]
    carry, _ = run(params, None, start[:-1])
    _, written = sample(step, params, carry, start[-1], key=key, length=200, temperature=0.5)
    return result.best["validation_loss"], vocabulary.decode(written[:, 0])
