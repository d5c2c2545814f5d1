"""Six programs as a user of Keras writes them: who learns, and how long does an epoch take?"""

import contextlib
import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any
from unittest import mock

from benchmarks.keras_programs import PROGRAMS, lines
from benchmarks.reports import Outcome, Point, Report, markdown, short
from benchmarks.timing import Contender, Question


@dataclasses.dataclass(frozen=True)
class Settings:
    """The first repetition learns to the end, and the others make so many epochs.

    The first of those, in which the program is compiled, is not counted.
    """

    epochs: int = 5
    quick: bool = False
    program: str = ""


QUICK = Settings(epochs=2, quick=True)


@contextlib.contextmanager
def keras_clock(ends: list[float]) -> Iterator[None]:
    """Note when the epochs of Keras's ``fit`` end."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # keras is skipped by mypy
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            ends.append(perf_counter())

    fit = keras.Model.fit

    def timed(model: Any, *args: Any, callbacks: Any = (), **options: Any) -> Any:
        return fit(model, *args, callbacks=[*callbacks, Clock()], **options)

    with mock.patch.object(keras.Model, "fit", timed):
        yield


@contextlib.contextmanager
def rnnjax_clock(ends: list[float]) -> Iterator[None]:
    """Note when the epochs of `rnnjax.training.fit` end."""
    from rnnjax import training

    fit = training.fit

    def timed(*args: Any, hooks: Any = (), **options: Any) -> Any:
        return fit(*args, hooks=[*hooks, lambda *_: ends.append(perf_counter())], **options)

    with mock.patch.object(training, "fit", timed):
        yield


def repetitions(
    side: str, clock: Callable[[list[float]], Any], settings: dict[str, Any]
) -> Iterator[Outcome]:
    """The whole program, to the end; then the seconds of an epoch, in a run of a few.

    Raises:
        RuntimeError: it does not learn what it should.
    """
    shape = Settings(**settings)
    module = PROGRAMS[shape.program]
    data = module.make(module.SMALL if shape.quick else module.SIZE)

    def run(epochs: int) -> tuple[float, list[float], float]:
        ends: list[float] = []
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), clock(ends):
            began = perf_counter()
            found = getattr(module, side)(*data, epochs)
            seconds = perf_counter() - began
        return seconds, ends, float(module.score(found, *data))

    seconds, _, error = run(shape.epochs if shape.quick else module.EPOCHS)
    if not shape.quick and not error <= module.LEARNED:
        raise RuntimeError(f"it has not learned: the error is {error:.3g}, not {module.LEARNED}")
    yield Outcome(seconds, error)
    while True:
        _, ends, error = run(shape.epochs)
        each = [after - before for before, after in itertools.pairwise(ends)]
        yield Outcome(statistics.median(each), error)


def in_keras(settings: dict[str, Any]) -> Iterator[Outcome]:
    """As a user of Keras writes it, in Keras."""
    return repetitions("in_keras", keras_clock, settings)


def in_rnnjax(settings: dict[str, Any]) -> Iterator[Outcome]:
    """Run the program in rnnjax."""
    return repetitions("in_rnnjax", rnnjax_clock, settings)


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    del settings
    return Question(
        "keras_programs",
        "Six programs as a user of Keras writes them, each in Keras and in rnnjax, of the same "
        "sizes. The first call is the whole program; an epoch is that of `fit`, the first of a "
        "run, which compiles, not counted; what a program writes after `fit` is no part of it. "
        "The error is the program's own, after the whole of it.",
        [
            Contender("rnnjax", in_rnnjax, ["rnnjax", "jax", "optax"]),
            Contender("Keras, JAX", in_keras, ["keras", "jax"], {"KERAS_BACKEND": "jax"}),
        ],
        baseline="rnnjax",
        value_name="error",
        points=[Point(name, {"program": name}) for name in PROGRAMS],
    )


def tables(report: Report) -> str:
    """A row a program, Keras's number before rnnjax's."""
    columns = ["lines", "whole program, s", "an epoch, s", "error"]
    rows = [["", *(f"{column}: Keras, rnnjax" for column in columns), "Keras's epoch, x rnnjax's"]]
    rows.append(["---"] * len(rows[0]))
    for point in report.points:
        at, module = report.at(point), PROGRAMS[point.name]
        both = [at["Keras, JAX"], at["rnnjax"]]
        cells = [f"{lines(module.in_keras)}, {lines(module.in_rnnjax)}"]
        if problem := "; ".join(f"{one.name}: {one.problem}" for one in both if one.problem):
            rows.append([point.name, *cells, problem, "–", "–", "–"])
            continue
        first = [one.first for one in both if one.first]
        cells += [
            ", ".join(short(outcome.amount) for outcome in first),
            ", ".join(short(statistics.median(one.amounts)) for one in both),
            ", ".join(f"{outcome.value:.2g}" for outcome in first),
            short(statistics.median(report.ratios(both[0]))),
        ]
        rows.append([point.name, *cells])
    return markdown(rows)


def remarks(report: Report) -> list[str]:
    """How the lines compare."""
    del report
    ratio = {
        name: lines(module.in_rnnjax) / lines(module.in_keras) for name, module in PROGRAMS.items()
    }
    most = max(ratio, key=lambda name: ratio[name])
    mean = statistics.fmean(ratio.values())
    return [
        f"Lines of rnnjax, imports counted, in multiples of Keras's: {mean:.2f} in the mean, at "
        f"most {ratio[most]:.2f} ({most})."
    ]
