"""Sequences of many lengths in a batch: padded to the longest, and packed end to end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.questions.gradients import VALUE_NAME, Call, repeated
from benchmarks.reports import Report, percent
from benchmarks.timing import Contender, Question

PADDED, PACKED = "padded, with lengths", "packed, with resets"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The layer, and the log-normal lengths."""

    hidden_size: int = 256
    sequences: int = 1024
    median: int = 40
    sigma: float = 0.8
    longest: int = 400


QUICK = Settings(hidden_size=8, sequences=16, median=5, longest=12)


def drawn(settings: Settings) -> list[np.ndarray]:
    """The sequences."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(settings.median), settings.sigma, settings.sequences))
    lengths = np.clip(np.round(lengths), 1, settings.longest).astype(int)
    lengths[0] = settings.longest
    shape = (settings.hidden_size,)
    return [rng.standard_normal((length, *shape), np.float32) for length in lengths]


def layer(packed: bool) -> Callable[[dict[str, Any]], Call]:
    """The gradient of the sum of squares over all valid outputs."""

    def build(settings: dict[str, Any]) -> Call:
        import jax
        import jax.numpy as jnp

        import rnnjax

        given = Settings(**settings)
        sequences = drawn(given)
        cell = rnnjax.LSTMCell(given.hidden_size)
        params = cell.init(jax.random.key(0), given.hidden_size)
        marks: dict[str, Any]
        if packed:
            laid = rnnjax.pack(sequences, row_length=given.longest)
            xs, weights, marks = laid.xs, laid.mask, {"resets": jnp.asarray(laid.resets)}
        else:
            lengths = np.array([len(sequence) for sequence in sequences])
            xs = np.zeros((given.longest, len(sequences), given.hidden_size), np.float32)
            for row, sequence in enumerate(sequences):
                xs[: len(sequence), row] = sequence
            weights = np.arange(given.longest)[:, None] < lengths
            marks = {"lengths": jnp.asarray(lengths)}

        def loss(params: Any, xs: Any, weights: Any, marks: Any) -> Any:
            _, ys = rnnjax.unroll(cell, params, xs, **marks)
            return jnp.sum(ys**2 * weights[..., None])

        arguments = (params, jnp.asarray(xs), jnp.asarray(weights), marks)
        return jax.jit(jax.grad(loss, argnums=(0, 1))), arguments

    return build


def question(settings: Settings) -> Question:
    """What is asked of both."""
    valid, steps = _steps(settings)
    return Question(
        "packing",
        f"The gradients of an LSTM({settings.hidden_size}) over {settings.sequences} sequences of "
        f"log-normal lengths (median {settings.median}, at most {settings.longest}): {valid:,} "
        f"valid of {steps:,} padded steps, which is {percent(valid / steps)}.",
        [
            Contender(PADDED, repeated(layer(packed=False)), ["rnnjax", "jax"]),
            Contender(PACKED, repeated(layer(packed=True)), ["rnnjax", "jax"]),
        ],
        baseline=PADDED,
        value_name=VALUE_NAME,
        tolerance=1e-3,
        relative=True,
    )


def _steps(settings: Settings) -> tuple[int, int]:
    lengths = [len(sequence) for sequence in drawn(settings)]
    return sum(lengths), len(lengths) * settings.longest


def remarks(report: Report) -> list[str]:
    """The time against the part of the steps that is valid."""
    result = next(result for result in report.results if result.name == PACKED)
    ratios = sorted(report.ratios(result))
    if not ratios:
        return []
    fields = {field.name for field in dataclasses.fields(Settings)}
    valid, steps = _steps(Settings(**{k: v for k, v in report.settings.items() if k in fields}))
    ratio = ratios[len(ratios) // 2] / (valid / steps)
    return [f"Packed takes {ratio:.2f} times the part of the padded time that is valid steps."]
