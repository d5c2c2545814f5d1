"""The memory that the gradient of an LSTM takes over a long sequence, and what saving it costs."""

import contextlib
import dataclasses
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.questions import jax_layers
from benchmarks.questions.jax_layers import Shape as Settings
from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "VARIANTS", "Settings", "question", "remarks"]

MEGABYTE = 1e6
MOST = 12e9
"""Bytes: a program that says it needs more is not run."""
KEEP_EVERY = (10, 32, 100)
"""Settings of rnnjax's dial: of so many steps, the carry of one is kept."""

QUICK = Settings(hidden_size=64, batch_size=16, time=200)
VARIANTS = {
    "steps_1000": (Settings(hidden_size=512, batch_size=32, time=1000), QUICK),
    "steps_10000": (
        Settings(hidden_size=256, batch_size=16, time=10_000),
        dataclasses.replace(QUICK, time=1000),
    ),
}
"""By the name on the command line: the settings, and those of the quick mode."""


def rnnjax_default(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Rnnjax's default."""
    return compiled_calls(jax_layers.rnnjax_layers, settings)


def rnnjax_reference(settings: dict[str, Any]) -> Iterator[Outcome]:
    """The plain scan, with JAX's own gradient."""
    import rnnjax

    return compiled_calls(lambda shape: jax_layers.rnnjax_layers(shape, rnnjax.Scan()), settings)


def rnnjax_keeping(every: int) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender that keeps the carry of one in ``every`` steps."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        import rnnjax

        method = rnnjax.Fused(keep_every=every)
        return compiled_calls(lambda shape: jax_layers.rnnjax_layers(shape, method), settings)

    return repetitions


def linen_default(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Flax linen's ``RNN``."""
    return compiled_calls(jax_layers.linen_layers, settings)


def linen_remat(settings: dict[str, Any]) -> Iterator[Outcome]:
    """The same, with ``flax.linen.remat`` around the cell."""
    return compiled_calls(lambda shape: jax_layers.linen_layers(shape, remat=True), settings)


def keras_default(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Keras's layer, stateless."""
    return compiled_calls(jax_layers.keras_layers, settings)


def compiled_calls(
    build: Callable[[Settings], tuple[jax_layers.Outputs, Any, Any]], settings: dict[str, Any]
) -> Iterator[Outcome]:
    """Call the compiled gradient, whose temporaries the compiler has counted."""
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
            f"the compiled program needs {needed / 1e9:.1f} GB, {parts['temporary'] / 1e9:.1f} of "
            f"them temporary, and more than {MOST / 1e9:.0f} are not tried"
        )

    def call() -> Any:
        _, (_, xs_gradient) = jax.block_until_ready(compiled(*arguments))
        return xs_gradient

    return measured_calls(call, {name: size / MEGABYTE for name, size in parts.items()})


def torch_calls(settings: dict[str, Any]) -> Iterator[Outcome]:
    """PyTorch's ``nn.LSTM``."""
    import torch

    shape = Settings(**settings)
    size = shape.hidden_size
    lstm = torch.nn.LSTM(size, size, shape.layers)
    arrays = {}
    for number, layer in enumerate(jax_layers.weights(shape)):
        given = {name: torch.from_numpy(array) for name, array in layer.items()}
        arrays[f"weight_ih_l{number}"] = given["kernel"].T
        arrays[f"weight_hh_l{number}"] = given["recurrent_kernel"].T
        arrays[f"bias_ih_l{number}"] = given["bias"]
        arrays[f"bias_hh_l{number}"] = torch.zeros_like(given["bias"])
    lstm.load_state_dict(arrays)
    xs = torch.from_numpy(jax_layers.inputs(shape)).requires_grad_()

    def call() -> Any:
        lstm.zero_grad()
        xs.grad = None
        outputs, _ = lstm(xs)
        (0.5 * outputs.square().sum()).backward()
        return xs.grad

    return measured_calls(call, {})


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
            value = jax_layers.fingerprint(xs_gradient)
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
            Contender("rnnjax", rnnjax_default, ["rnnjax", "jax"]),
            *(
                Contender(
                    f"rnnjax, Fused(keep_every={every})", rnnjax_keeping(every), ["rnnjax", "jax"]
                )
                for every in KEEP_EVERY
            ),
            Contender("rnnjax, Scan()", rnnjax_reference, ["rnnjax", "jax"]),
            Contender("Flax linen.RNN", linen_default, ["flax", "jax"]),
            Contender("Flax linen.RNN, remat", linen_remat, ["flax", "jax"]),
            Contender("PyTorch nn.LSTM", torch_calls, ["torch"]),
            Contender("Keras, jax", keras_default, ["keras", "jax"], {"KERAS_BACKEND": "jax"}),
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
