"""Writing a text with the book model: the state carried, or the whole text read again each time."""

import statistics
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions import book_model
from benchmarks.questions.book_model import QUICK, Settings, write_weights
from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "write_weights"]


def rnnjax_sample(settings: dict[str, Any]) -> Iterator[Outcome]:
    """One dispatch, one step a character; then the same text in three dispatches."""
    import jax
    import jax.numpy as jnp

    from rnnjax.text import sample

    shape = Settings(**settings)
    text = book_model.random_ids((shape.lengths[-1] + 1,), shape)
    length, key = shape.lengths[-1], jax.random.key(0)

    began = perf_counter()
    model, params = book_model.rnnjax_model(shape), book_model.rnnjax_params(shape)
    step, start = model.step, (model.initial_carry(1), jnp.asarray(text[:1]))

    def write(carry: Any, tokens: jax.Array, length: int) -> tuple[Any, jax.Array]:
        carry, drawn = sample(step, params, carry, tokens, key=key, length=length, temperature=0)
        return jax.block_until_ready((carry, drawn[-1]))

    write(*start, length)
    seconds = perf_counter() - began
    first = min(shape.lengths)
    _, logits = model.unroll(params, jnp.asarray(text[:first, None]), None)
    value = -float(jax.nn.log_softmax(logits[-1, 0])[text[first]])
    yield Outcome(seconds, value)
    write(*start, length // 3)
    while True:
        began = perf_counter()
        write(*start, length)
        seconds = perf_counter() - began
        state, thirds = start, {}
        for third in ("first", "middle", "last"):
            began = perf_counter()
            state = write(*state, length // 3)
            thirds[f"in the {third} third"] = (perf_counter() - began) / (length // 3)
        yield Outcome(seconds, value, thirds)


def keras_whole_text(settings: dict[str, Any]) -> Iterator[Outcome]:
    """The tutorial's loop: ``predict`` on the whole text so far, and its last prediction is taken.

    It compiles for every new length. So single characters are timed at a few lengths, after a call
    at that length, and the time of the whole text is estimated from them.
    """
    shape = Settings(**settings)
    text = book_model.random_ids((shape.lengths[-1] + 1,), shape)
    inputs = book_model.one_hot(text, shape)[None]

    def at(length: int) -> tuple[float, float]:
        """The seconds of one new character, and the nats of the one that is there."""
        began = perf_counter()
        last = model.predict(inputs[:, :length], verbose=0)[0, -1]
        last.argmax()
        return perf_counter() - began, -float(np.log(last[text[length]]))

    began = perf_counter()
    model = book_model.keras_model(shape)
    first = {length: at(length) for length in shape.lengths}
    seconds = perf_counter() - began
    value = first[min(shape.lengths)][1]
    calls = {f"at length {length}": call for length, (call, _) in first.items()}
    yield Outcome(seconds, value, calls)
    # TensorFlow compiles once more when it has seen that the length varies.
    for length in shape.lengths:
        at(length)
    while True:
        one = [at(length)[0] for length in shape.lengths]
        # Below the first length as there: a character costs no less than a call.
        total = np.trapezoid(one, shape.lengths) + one[0] * shape.lengths[0]
        places = [f"at length {length}" for length in shape.lengths]
        yield Outcome(float(total), value, dict(zip(places, one, strict=True)))


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    lengths = ", ".join(map(str, settings.lengths))
    note = (
        f"estimated, without compilation, from single characters measured at lengths {lengths}; "
        "first call: of these lengths alone"
    )
    return Question(
        "generation",
        f"Writing {settings.lengths[-1]} characters with {settings.layers} x "
        f"LSTM({settings.hidden_size}), batch 1, the most probable one each time, "
        f"{settings.vocabulary_size} characters; float32, the same weights for all.",
        [
            Contender("rnnjax", rnnjax_sample, ["rnnjax", "jax"], note="measured"),
            *(
                Contender(
                    f"Keras, {name}",
                    keras_whole_text,
                    ["keras", name],
                    {"KERAS_BACKEND": name},
                    note,
                )
                for name in ("jax", "tensorflow")
            ),
        ],
        baseline="rnnjax",
        value_name=f"nats of character {settings.lengths[0] + 1}",
        tolerance=1e-3,
    )


def remarks(report: Report) -> list[str]:
    """How the cost of a character depends on its position."""
    said = []
    for result in report.results:
        if result.later:
            rounds = [outcome.details for outcome in result.later]
            each = {at: statistics.median(details[at] for details in rounds) for at in rounds[0]}
            said.append(f"{result.name}, a character: {listed(each)}.")
        if result.first and result.first.details:
            said.append(f"{result.name}, the first call: {listed(result.first.details)}.")
    return said


def listed(seconds: dict[str, float]) -> str:
    """The seconds at each place in the text, as milliseconds."""
    return ", ".join(f"{short(1000 * value)} ms {at}" for at, value in seconds.items())
