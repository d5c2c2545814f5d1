"""How long it takes until the gradient of recurrent layers is compiled, and how much code it is."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from benchmarks.questions import jax_layers, layer_peers
from benchmarks.questions.jax_layers import Outputs
from benchmarks.questions.jax_layers import Shape as Settings
from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "VARIANTS", "Settings", "question", "remarks"]

PEER = "Flax linen"
PHASES = ("trace", "lower", "compile")

QUICK = Settings(hidden_size=8, batch_size=2, time=5)
VARIANTS = {
    "lstm": (Settings(), QUICK),
    "gru": (Settings("gru"), Settings("gru", 1, 8, 2, 5)),
    "stack_3": (Settings(layers=3), Settings("lstm", 3, 8, 2, 5)),
    "stack_6": (Settings(layers=6), Settings("lstm", 6, 8, 2, 5)),
}
"""By the name on the command line: the settings, and those of the quick mode."""


def compilations(
    build: Callable[[Settings], tuple[Outputs, Any, Any]],
) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender that compiles the gradient again and again, each time as if for the first."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        import jax

        outputs, *arguments = build(Settings(**settings))
        gradient = jax_layers.gradient_of(outputs)
        value = None
        while True:
            jax.clear_caches()
            times = [perf_counter()]
            traced = jax.jit(gradient).trace(*arguments)
            times.append(perf_counter())
            lowered = traced.lower()
            times.append(perf_counter())
            compiled = lowered.compile()
            times.append(perf_counter())
            if value is None:
                _, (_, xs_gradient) = compiled(*arguments)
                value = jax_layers.root_mean_square(xs_gradient)
            lasted = (end - start for start, end in itertools.pairwise(times))
            details: dict[str, Any] = dict(zip(PHASES, lasted, strict=True))
            details["instructions"] = compiled.as_text().count(" = ")
            yield Outcome(times[-1] - times[0], value, details)

    return repetitions


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    layers = f"_{settings.layers}" if settings.layers > 1 else ""
    return Question(
        f"compile_time_{settings.cell}{layers}",
        f"Tracing, lowering and compiling {settings}. The first call is in a fresh process; "
        "before each of the others JAX's caches are emptied.",
        [
            Contender("rnnjax", compilations(jax_layers.rnnjax_layers), ["rnnjax", "jax"]),
            Contender("rnnjax, Scan()", compilations(layer_peers.rnnjax_scan), ["rnnjax", "jax"]),
            Contender(PEER, compilations(jax_layers.linen_layers), ["flax", "jax"]),
            Contender("Flax nnx", compilations(jax_layers.nnx_layers), ["flax", "jax"]),
            Contender(
                "Keras, JAX",
                compilations(jax_layers.keras_layers),
                ["keras", "jax"],
                {"KERAS_BACKEND": "jax"},
            ),
        ],
        baseline=PEER,
        value_name=jax_layers.FINGERPRINT,
        tolerance=1e-3,
        relative=True,
    )


def remarks(report: Report) -> list[str]:
    """Where the time goes, how much code comes of it, and how it is in a fresh process."""
    said = []
    begun = {
        result.name: result.first
        for result in report.results
        if result.first and result.later and not result.problem
    }
    for result in report.results:
        if result.name not in begun:
            continue
        first = begun[result.name]
        phases = {
            phase: statistics.median(outcome.details[phase] for outcome in result.later)
            for phase in PHASES
        }
        listed = ", ".join(f"{phase} {short(seconds)} s" for phase, seconds in phases.items())
        sentence = (
            f"{result.name}: {listed}; {first.details['instructions']:,} instructions of optimised "
            "HLO"
        )
        if PEER in begun:
            cold = first.amount / begun[PEER].amount
            sentence += f"; in a fresh process {short(cold)} of {PEER}'s time"
        said.append(sentence + ".")
    return said
