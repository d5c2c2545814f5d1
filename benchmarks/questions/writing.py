"""Writing texts with the book model in one loop, the state carried from character to character."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions import book_model
from benchmarks.questions.book_model import write_weights
from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "VARIANTS", "Settings", "question", "remarks", "write_weights"]

READ_FIRST = 20
"""Characters that are read before the writing begins; their nats tell whether all compute alike."""
ROUGH = 0.02
"""Nats by which bfloat16 may be off."""
LIMIT = "reading the weights"
ALONE = ", one text"


@dataclasses.dataclass(frozen=True)
class Settings(book_model.Settings):
    """The book model's, with as many texts as its ``batch_size``."""

    batch_size: int = 1
    length: int = 1000
    """Characters that are written of each text."""


QUICK = Settings(hidden_size=32, vocabulary_size=12, length=30)
VARIANTS = {
    "generate_1": (Settings(), QUICK),
    "generate_64": (
        Settings(batch_size=64, length=300),
        dataclasses.replace(QUICK, batch_size=64),
    ),
}
"""By the name on the command line: the settings, and those of the quick mode."""


def timed(
    shape: Settings, nats: Callable[[], float], write: Callable[[], Any], began: float
) -> Iterator[Outcome]:
    """Write again and again; an outcome is the seconds of one character of every text.

    Args:
        shape: the settings.
        nats: reads what is read first.
        write: writes the texts.
        began: when the building of the model began: the first call counts whole.
    """
    write()
    seconds = perf_counter() - began
    value = nats()
    yield Outcome(seconds, value)
    while True:
        began = perf_counter()
        write()
        yield Outcome((perf_counter() - began) / shape.length, value)


def given_ids(shape: Settings) -> np.ndarray:
    """The ids ``(READ_FIRST + 1, texts)`` that are read first; the last begins the writing."""
    return book_model.random_ids((READ_FIRST + 1, shape.batch_size), shape)


def mean_nats(logits: Any, ids: np.ndarray) -> float:
    """Score each character after the first by the ``logits (time, texts, vocabulary)`` before."""
    logits = np.asarray(logits, np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, ids[1:, :, None].astype(np.int64), axis=-1)[..., 0]
    return float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen))


def rnnjax_loop(settings: dict[str, Any]) -> Iterator[Outcome]:
    """`rnnjax.text.sample`: one dispatch for all characters, of a model that was prepared."""
    return _rnnjax(Settings(**settings), "float32")


def rnnjax_bfloat16(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Write with kernels and operands in bfloat16, and all else in float32."""
    return _rnnjax(Settings(**settings), "bfloat16")


def one_text(settings: dict[str, Any]) -> Iterator[Outcome]:
    """`rnnjax_loop`, of one text however many there are."""
    return _rnnjax(Settings(**{**settings, "batch_size": 1}), "float32")


def one_text_bfloat16(settings: dict[str, Any]) -> Iterator[Outcome]:
    """`rnnjax_bfloat16`, of one text however many there are."""
    return _rnnjax(Settings(**{**settings, "batch_size": 1}), "bfloat16")


def _rnnjax(shape: Settings, products: Any) -> Iterator[Outcome]:
    import jax
    import jax.numpy as jnp

    from rnnjax.text import sample

    ids = given_ids(shape)
    began = perf_counter()
    model, params = book_model.rnnjax_model(shape).prepared(
        book_model.rnnjax_params(shape), shape.batch_size, products
    )
    step, carry, last = model.step, model.initial_carry(shape.batch_size), jnp.asarray(ids[-1])

    def nats() -> float:
        _, logits = jax.lax.scan(
            lambda carry, tokens: step(params, carry, tokens), carry, jnp.asarray(ids[:-1])
        )
        return mean_nats(logits, ids)

    def write() -> None:
        key = jax.random.key(0)
        jax.block_until_ready(
            sample(step, params, carry, last, key=key, length=shape.length, temperature=0)
        )

    return timed(shape, nats, write, began)


def torch_loop(settings: dict[str, Any]) -> Iterator[Outcome]:
    """``nn.LSTM`` in a Python loop, a call a character."""
    return _torch(Settings(**settings), "float32")


def torch_bfloat16(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Write with the modules, and so the state as well, in bfloat16."""
    return _torch(Settings(**settings), "bfloat16")


def _torch(shape: Settings, type_name: str) -> Iterator[Outcome]:
    import torch

    dtype = getattr(torch, type_name)
    ids = given_ids(shape)

    began = perf_counter()
    lstm, dense = (module.to(dtype) for module in book_model.torch_modules(shape))

    def step(tokens: Any, state: Any) -> tuple[Any, Any]:
        x = torch.nn.functional.one_hot(tokens, shape.vocabulary_size).to(dtype)
        y, state = lstm(x[:, None], state)
        return dense(y[:, 0]), state

    def nats() -> float:
        state, all_logits = None, []
        with torch.inference_mode():
            for tokens in torch.from_numpy(ids[:-1]).long():
                logits, state = step(tokens, state)
                all_logits.append(logits.float())
        return mean_nats(torch.stack(all_logits).numpy(), ids)

    def write() -> None:
        state, tokens = None, torch.from_numpy(ids[-1]).long()
        with torch.inference_mode():
            for _ in range(shape.length):
                logits, state = step(tokens, state)
                tokens = logits.argmax(dim=-1)

    return timed(shape, nats, write, began)


def keras_loop(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Keras's layers with their states as inputs and outputs, a jitted call a character."""
    import jax
    import jax.numpy as jnp
    import keras

    shape = Settings(**settings)
    ids = given_ids(shape)

    began = perf_counter()
    size = (shape.hidden_size,)
    given = y = keras.Input((1, shape.vocabulary_size), batch_size=shape.batch_size)
    before = [
        [keras.Input(size, batch_size=shape.batch_size) for _ in range(2)]
        for _ in range(shape.layers)
    ]
    after = []
    for state in before:
        y, *state = keras.layers.LSTM(shape.hidden_size, return_sequences=True, return_state=True)(
            y, initial_state=state
        )
        after.append(state)
    logits = keras.layers.Dense(shape.vocabulary_size)(y[:, 0])
    model = keras.Model([given, before], [logits, after])
    model.set_weights(book_model.keras_weights(shape))
    variables = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]
    zeros = jnp.zeros((shape.batch_size, shape.hidden_size))
    start = [[zeros, zeros] for _ in range(shape.layers)]

    @jax.jit
    def step(variables: Any, tokens: jax.Array, state: Any) -> Any:
        x = jax.nn.one_hot(tokens, shape.vocabulary_size)[:, None]
        (logits, state), _ = model.stateless_call(variables, rest, [x, state])
        return logits, jnp.argmax(logits, axis=-1), state

    def nats() -> float:
        state, all_logits = start, []
        for tokens in jnp.asarray(ids[:-1]):
            logits, _, state = step(variables, tokens, state)
            all_logits.append(logits)
        return mean_nats(jnp.stack(all_logits), ids)

    def write() -> None:
        state, tokens = start, jnp.asarray(ids[-1])
        for _ in range(shape.length):
            _, tokens, state = step(variables, tokens, state)
        jax.block_until_ready(tokens)

    return timed(shape, nats, write, began)


def weights_read(settings: dict[str, Any]) -> Iterator[Outcome]:
    """As many float32 numbers as the model has weights, each read and used once a step.

    In two forms, of which the faster counts: a tall matrix times a vector, and a vector times a
    wide one, as the model's own products are.
    """
    import jax
    import jax.numpy as jnp

    shape = Settings(**settings)
    size = shape.hidden_size
    numbers = sum(array.size for array in book_model.weights_of(shape).values())
    times = numbers // size**2
    scale = numbers / (times * size**2)  # Whole squares are read, and the rest is added in time.

    def loop(form: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def step(matrix: jax.Array, x: jax.Array) -> jax.Array:
            # It needs all of the step before it, so that nothing can be taken out of the loop.
            return form(matrix, x).reshape(times, size).mean(axis=0)

        return jax.jit(
            lambda matrix, x: jax.lax.fori_loop(0, shape.length, lambda _, x: step(matrix, x), x)
        )

    began = perf_counter()
    start = jnp.ones(size)
    forms = {
        "tall": (loop(lambda matrix, x: matrix @ x), jnp.full((times * size, size), 1 / size)),
        "wide": (loop(lambda matrix, x: x @ matrix), jnp.full((size, times * size), 1 / size)),
    }
    ends = [jax.block_until_ready(run(matrix, start)) for run, matrix in forms.values()]
    value = float(ends[0].mean())
    yield Outcome(perf_counter() - began, value)
    while True:
        seconds = {}
        for name, (run, matrix) in forms.items():
            began = perf_counter()
            jax.block_until_ready(run(matrix, start))
            seconds[name] = (perf_counter() - began) * scale / shape.length
        least = min(seconds.values())
        yield Outcome(least, value, {**seconds, "GB/s": 4 * numbers / least / 1e9})


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    texts = f"{settings.batch_size} texts" if settings.batch_size > 1 else "a text"
    contenders = [
        Contender("rnnjax", rnnjax_loop, ["rnnjax", "jax"]),
        Contender("rnnjax, bfloat16", rnnjax_bfloat16, ["rnnjax", "jax"], tolerance=ROUGH),
        Contender("PyTorch nn.LSTM", torch_loop, ["torch"]),
        Contender("PyTorch nn.LSTM, bfloat16", torch_bfloat16, ["torch"], tolerance=ROUGH),
        Contender("Keras, JAX", keras_loop, ["keras", "jax"], {"KERAS_BACKEND": "jax"}),
    ]
    if settings.batch_size == 1:  # With more texts it is the products that take the time.
        note = "the bandwidth limit: it computes nothing that could be compared"
        contenders.append(Contender(LIMIT, weights_read, ["jax"], note=note, tolerance=math.inf))
    else:
        note = "a text of its own, so its nats are others"
        contenders += [
            Contender(name, loop, ["rnnjax", "jax"], note=note, tolerance=math.inf)
            for name, loop in (
                (f"rnnjax{ALONE}", one_text),
                (f"rnnjax, bfloat16{ALONE}", one_text_bfloat16),
            )
        ]
    return Question(
        f"text_generator_generate_{settings.batch_size}",
        f"Writing {settings.length} characters of {texts} with {settings.layers} x "
        f"LSTM({settings.hidden_size}), {settings.vocabulary_size} characters, the most probable "
        "one each time, the state carried; the same weights for all, in float32 unless it says "
        "otherwise. The seconds of a repetition are divided by the length; the first call counts "
        "whole, with building and compiling.",
        contenders,
        baseline="rnnjax",
        value_name=f"nats a character of {READ_FIRST} that were given",
        tolerance=1e-3,
    )


def remarks(report: Report) -> list[str]:
    """Characters per second, and how near that is to the limit of the bandwidth."""
    texts, said = report.settings["batch_size"], []
    rounds = {
        result.name: result.amounts
        for result in report.results
        if result.later and not result.problem
    }
    limit = rounds.pop(LIMIT, None)
    for name, seconds in rounds.items():
        speed = (1 if name.endswith(ALONE) else texts) / statistics.median(seconds)
        sentence = f"{name}: {speed:,.0f} characters per second"
        if limit is not None:
            # In bfloat16 the weights are half as many bytes.
            part = 0.5 if "bfloat16" in name else 1.0
            pairs = zip(limit, seconds, strict=True)
            share = part * statistics.median(least / each for least, each in pairs)
            sentence += f", {share:.0%} of the bandwidth limit"
        said.append(sentence + ".")
    for name in rounds:
        if name + ALONE in rounds:
            pairs = zip(rounds[name + ALONE], rounds[name], strict=True)
            times = texts * statistics.median(one / all_texts for one, all_texts in pairs)
            said.append(f"{name}: {short(times)} times the characters per second of one text.")
    if limit is not None:
        (reader,) = (result for result in report.results if result.name == LIMIT)
        speed = statistics.median(outcome.details["GB/s"] for outcome in reader.later)
        said.append(
            f"The bandwidth limit: all weights are read once in "
            f"{short(1000 * statistics.median(limit))} ms, at {short(speed)} GB/s."
        )
    return said
