"""One optimiser step of the book model: forward, backward, Adam."""

import functools
import statistics
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions import book_model
from benchmarks.questions.book_model import QUICK, Settings, write_weights
from benchmarks.questions.jax_layers import linen_params
from benchmarks.reports import Outcome, Point, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "write_weights"]

LEARNING_RATE, EPSILON = 1e-3, 1e-7


def batch(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, ids ``(batch, time)``."""
    ids = book_model.random_ids((settings.batch_size, settings.time + 1), settings)
    return ids[:, :-1], ids[:, 1:]


def rnnjax_steps(settings: dict[str, Any]) -> Iterator[Outcome]:
    """All steps of a repetition in one dispatch."""
    return _rnnjax_steps(Settings(**settings))


def rnnjax_reference(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Train with the plain scan and JAX's own gradient."""
    import rnnjax

    return _rnnjax_steps(Settings(**settings), rnnjax.Scan())


def rnnjax_bfloat16(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Train with the operands of the recurrent products in bfloat16."""
    import jax.numpy as jnp

    import rnnjax

    return _rnnjax_steps(Settings(**settings), rnnjax.Fused(product_dtype=jnp.bfloat16))


def _rnnjax_steps(shape: Settings, method: Any = None) -> Iterator[Outcome]:
    import jax
    import jax.numpy as jnp

    from experiments.text_generator.model import make_loss
    from rnnjax.training import TrainState, keras_adam, make_train_steps

    inputs, targets = batch(shape)
    one = {"inputs": inputs, "targets": targets, "weights": np.ones(len(inputs), np.float32)}
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * shape.steps), one)

    began = perf_counter()
    model = book_model.rnnjax_model(shape, method)
    optimizer = keras_adam(LEARNING_RATE, eps=EPSILON)
    train_steps = make_train_steps(make_loss(model, carry_state=False), optimizer)
    params = book_model.rnnjax_params(shape)
    state = TrainState.create(params, optimizer, key=jax.random.key(0))
    parts = 1  # The first call counts whole, the others by the step.
    while True:
        state, metrics = jax.block_until_ready(train_steps(state, batches, 0, shape.steps))
        seconds = (perf_counter() - began) / parts
        yield Outcome(seconds, float(metrics["loss"][0]), {"last": float(metrics["loss"][-1])})
        parts, began = shape.steps, perf_counter()


def flax_steps(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Flax's own ``RNN`` and optax; one dispatch a step."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    shape = Settings(**settings)
    weights = book_model.weights_of(shape)
    inputs, targets = map(jnp.asarray, batch(shape))

    began = perf_counter()
    layers = [nn.RNN(nn.OptimizedLSTMCell(shape.hidden_size)) for _ in range(shape.layers)]
    model = nn.Sequential([*layers, nn.Dense(shape.vocabulary_size)])
    params: dict[str, Any] = {}
    for layer in range(shape.layers):
        arrays = {name: weights[f"{name}_{layer}"] for name in book_model.LSTM_WEIGHTS}
        params[f"layers_{layer}"] = {"cell": linen_params("lstm", arrays)}
    params[f"layers_{shape.layers}"] = {
        "kernel": jnp.asarray(weights["dense_kernel"]),
        "bias": jnp.asarray(weights["dense_bias"]),
    }
    optimizer = optax.adam(LEARNING_RATE, eps=EPSILON)
    opt_state = optimizer.init(params)

    def loss_fn(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        xs = jax.nn.one_hot(inputs, shape.vocabulary_size)
        logits = model.apply({"params": params}, xs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, *batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    parts = 1
    while True:
        losses = []
        for _ in range(shape.steps):
            params, opt_state, loss = step(params, opt_state, inputs, targets)
            losses.append(loss)
        jax.block_until_ready((params, losses))
        seconds = (perf_counter() - began) / parts
        yield Outcome(seconds, float(losses[0]), {"last": float(losses[-1])})
        parts, began = shape.steps, perf_counter()


def keras_steps(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Keras's two loops, ``train_on_batch`` and ``fit``: the faster of the two counts."""
    import keras

    shape = Settings(**settings)
    ids, targets = batch(shape)
    inputs = book_model.one_hot(ids, shape)
    many = np.concatenate([inputs] * shape.steps), np.concatenate([targets] * shape.steps)

    def on_batch() -> list[float]:
        return [float(model.train_on_batch(inputs, targets)) for _ in range(shape.steps)]

    def fit() -> None:
        model.fit(*many, batch_size=shape.batch_size, shuffle=False, verbose=0)

    began = perf_counter()
    model = book_model.keras_model(shape)
    optimizer = keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON)
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer)
    losses = on_batch()
    yield Outcome(perf_counter() - began, losses[0])
    fit()
    while True:
        began = perf_counter()
        losses = on_batch()
        middle = perf_counter()
        fit()
        seconds = {"train_on_batch": middle - began, "fit": perf_counter() - middle}
        seconds = {name: elapsed / shape.steps for name, elapsed in seconds.items()}
        yield Outcome(min(seconds.values()), losses[0], seconds)


def torch_steps(settings: dict[str, Any]) -> Iterator[Outcome]:
    """PyTorch's ``nn.LSTM``, written plainly.

    Its second bias learns as well, so from the second step on its losses are not quite the others'.
    """
    return _torch_steps(Settings(**settings), autocast=False)


def torch_bfloat16(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Train with the forward pass under PyTorch's autocast to bfloat16.

    Raises:
        RuntimeError: this CPU lacks the instructions that oneDNN's LSTM in bfloat16 is made of.
    """
    import torch

    found = torch.backends.cpu.get_cpu_capability()
    if found in ("DEFAULT", "AVX2"):
        raise RuntimeError(
            "PyTorch's LSTM runs in bfloat16 on a CPU with AVX-512; here PyTorch found "
            f"{found}, so leave this contender out"
        )
    return _torch_steps(Settings(**settings), autocast=True)


def _torch_steps(shape: Settings, autocast: bool) -> Iterator[Outcome]:
    import torch

    inputs, targets = (torch.from_numpy(ids).long() for ids in batch(shape))

    began = perf_counter()
    lstm, dense = book_model.torch_modules(shape)
    optimizer = torch.optim.Adam(
        [*lstm.parameters(), *dense.parameters()], lr=LEARNING_RATE, eps=EPSILON
    )
    parts = 1
    while True:
        losses = []
        for _ in range(shape.steps):
            optimizer.zero_grad()
            xs = torch.nn.functional.one_hot(inputs, shape.vocabulary_size).float()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs, _ = lstm(xs)
                loss = torch.nn.functional.cross_entropy(dense(outputs).mT, targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = (perf_counter() - began) / parts
        yield Outcome(seconds, losses[0], {"last": losses[-1]})
        parts, began = shape.steps, perf_counter()


def title(settings: Settings, precision: str) -> str:
    """What is timed, in so many words."""
    return (
        f"One optimiser step of {settings.layers} x LSTM({settings.hidden_size}), batch "
        f"{settings.batch_size}, {settings.time} steps, {settings.vocabulary_size} characters, a "
        f"softmax at every step, Adam; {precision}, the same weights and batch for all. A "
        f"repetition is {settings.steps} steps, and its seconds are divided by {settings.steps}; "
        f"the first call counts whole: building, compiling and {settings.steps} steps."
    )


def points(settings: Settings) -> list[Point]:
    """The one point, with the operations of a step.

    They are the products' of the recurrent layers and of the dense one, which a backward pass does
    twice more; those
    with one-hot characters, a tenth of a layer's, are left out.
    """
    size, rows = settings.hidden_size, settings.batch_size * settings.time
    recurrent = (2 * settings.layers - 1) * 4 * size**2
    return [Point(flops=3 * 2.0 * rows * (recurrent + size * settings.vocabulary_size))]


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    return Question(
        "train_step",
        title(settings, "float32"),
        [
            Contender("rnnjax", rnnjax_steps, ["rnnjax", "jax", "optax"]),
            Contender("rnnjax, Scan()", rnnjax_reference, ["rnnjax", "jax", "optax"]),
            Contender("Flax linen", flax_steps, ["flax", "jax", "optax"]),
            Contender("PyTorch nn.LSTM", torch_steps, ["torch"]),
            *(
                Contender(f"Keras, {name}", keras_steps, ["keras", name], {"KERAS_BACKEND": name})
                for name in ("jax", "tensorflow", "torch")
            ),
        ],
        baseline="rnnjax",
        value_name="loss of the first step",
        tolerance=1e-3,
        points=points(settings),
    )


def remarks(report: Report) -> list[str]:
    """How Keras's two loops compare."""
    said = []
    for result in report.results:
        if result.name.startswith("Keras") and result.later:
            loops = ", ".join(
                f"{loop} {short(statistics.median(o.details[loop] for o in result.later))} s"
                for loop in ("train_on_batch", "fit")
            )
            said.append(f"{result.name}: {loops}; in each round the faster of the two counts.")
    return said
