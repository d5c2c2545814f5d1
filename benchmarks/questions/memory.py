"""The memory that the gradient of an LSTM takes over a long sequence, and what saving it costs."""

import contextlib
import dataclasses
import functools
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.questions import jax_layers, layer_peers
from benchmarks.questions.jax_layers import Outputs
from benchmarks.questions.jax_layers import Shape as Settings
from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "VARIANTS", "Settings", "question", "remarks"]

MEGABYTE = 1e6
MOST = 12e9
"""Bytes: a program that says it needs more is not run."""
KEEP_EVERY = (10, 32, 100)
"""Settings of rnnjax's dial: of so many steps, the carry of one is kept."""
LINEN_REMAT = functools.partial(jax_layers.linen_layers, remat=True)

QUICK = Settings(hidden_size=64, batch_size=16, time=200)
VARIANTS = {
    "steps_1000": (Settings(hidden_size=512, batch_size=32, time=1000), QUICK),
    "steps_10000": (
        Settings(hidden_size=256, batch_size=16, time=10_000),
        dataclasses.replace(QUICK, time=1000),
    ),
}
"""By the name on the command line: the settings, and those of the quick mode."""


def rnnjax_keeping(every: int) -> Callable[[Settings], tuple[Outputs, Any, Any]]:
    """Builds the layers that keep the carry of one in ``every`` steps."""

    def build(shape: Settings) -> tuple[Outputs, Any, Any]:
        import rnnjax

        return jax_layers.rnnjax_layers(shape, rnnjax.Fused(keep_every=every))

    return build


def compiled_calls(
    build: Callable[[Settings], tuple[Outputs, Any, Any]],
) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender that calls the compiled gradient, whose temporaries the compiler counts."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        import jax

        outputs, *arguments = build(Settings(**settings))
        gradient = jax_layers.gradient_of(outputs)
        compiled = jax.jit(gradient).lower(*arguments).compile()
        sizes = compiled.memory_analysis()
        assert sizes is not None
        parts = {
            "temporary": sizes.temp_size_in_bytes,
            "arguments": sizes.argument_size_in_bytes,
            "outputs": sizes.output_size_in_bytes,
        }
        needed = sum(parts.values())
        if needed > MOST:
            raise MemoryError(
                f"the compiled program needs {needed / 1e9:.1f} GB, {parts['temporary'] / 1e9:.1f} "
                f"of them temporary, and more than {MOST / 1e9:.0f} are not tried"
            )

        def call() -> Any:
            _, (_, xs_gradient) = jax.block_until_ready(compiled(*arguments))
            return xs_gradient

        return measured_calls(call, {name: size / MEGABYTE for name, size in parts.items()})

    return repetitions


def torch_calls(settings: dict[str, Any]) -> Iterator[Outcome]:
    """PyTorch's ``nn.LSTM``."""
    call = layer_peers.torch_call(Settings(**settings), backward=True)
    return measured_calls(lambda: call()[0], {})


def measured_calls(call: Callable[[], Any], sizes: dict[str, float]) -> Iterator[Outcome]:
    """The megabytes by which the calls so far raised the peak of the process, and the last's time.

    The first call says nearly all: what it frees the later ones often get again.
    """
    before = start_of_peak()
    value = None
    while True:
        began = perf_counter()
        xs_gradient = call()
        seconds = perf_counter() - began
        peak = peak_of_process()
        if value is None:
            value = jax_layers.root_mean_square(xs_gradient)
        del xs_gradient  # Else it would still be there in the next call.
        details = {**sizes, "process": peak / MEGABYTE, "seconds": seconds}
        # At least a page: a tiny call may raise nothing, and a ratio to it has to exist.
        yield Outcome(max(peak - before, resource.getpagesize()) / MEGABYTE, value, details)


def start_of_peak() -> int:
    """The bytes that are resident, from which the peak is counted anew where the system can."""
    # In Linux this forgets the peak so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_of_process()


def peak_of_process() -> int:
    """The most bytes that were resident in this process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    return Question(
        f"memory_{settings.time}",
        f"{settings}: the resident memory that the calls add to the process at its peak, "
        "arguments and compilation not counted.",
        [
            Contender("rnnjax", compiled_calls(jax_layers.rnnjax_layers), ["rnnjax", "jax"]),
            *(
                Contender(
                    f"rnnjax, Fused(keep_every={every})",
                    compiled_calls(rnnjax_keeping(every)),
                    ["rnnjax", "jax"],
                )
                for every in KEEP_EVERY
            ),
            Contender("rnnjax, Scan()", compiled_calls(layer_peers.rnnjax_scan), ["rnnjax", "jax"]),
            Contender("Flax linen", compiled_calls(jax_layers.linen_layers), ["flax", "jax"]),
            Contender("Flax linen, remat", compiled_calls(LINEN_REMAT), ["flax", "jax"]),
            Contender("PyTorch nn.LSTM", torch_calls, ["torch"]),
            Contender(
                "Keras, JAX",
                compiled_calls(jax_layers.keras_layers),
                ["keras", "jax"],
                {"KERAS_BACKEND": "jax"},
            ),
        ],
        baseline="rnnjax",
        value_name=jax_layers.FINGERPRINT,
        tolerance=1e-3,
        relative=True,
        unit="MB",
    )


def remarks(report: Report) -> list[str]:
    """What the compiled program says of itself, the peak of the process, the time of a call."""
    said = []
    seconds = {
        result.name: [outcome.details["seconds"] for outcome in result.later]
        for result in report.results
        if result.later and not result.problem
    }
    for result in report.results:
        if result.name not in seconds:
            continue
        details = result.later[-1].details
        sizes = [
            f"{name} {short(details[name])} MB"
            for name in ("temporary", "arguments", "outputs")
            if name in details
        ]
        compiled = f"compiled program: {', '.join(sizes)}; " if sizes else ""
        sentence = (
            f"{result.name}: {compiled}peak of the process {short(details['process'])} MB; a call "
            f"{short(statistics.median(seconds[result.name]))} s"
        )
        if report.baseline in seconds:
            pairs = zip(seconds[result.name], seconds[report.baseline], strict=True)
            factor = statistics.median(ours / theirs for ours, theirs in pairs)
            sentence += f", {short(factor)} of {report.baseline}'s"
        said.append(sentence + ".")
    return said
