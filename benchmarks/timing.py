"""How a question is timed: each contender in a process of its own, in interleaved rounds.

No library's threads, memory or settings weigh on another's, and whatever makes the machine drift
(A B C, A B C, ...) hits all alike: contenders are compared by the ratio within each round.

The parent (`ask`) writes a line of JSON to a worker (`serve`): the settings of a point, then
`AGAIN` for each further repetition there; then the settings of the next point, if the question has
several. The worker answers every line with what the repetition gave.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.reports import Outcome, Point, Report, Result, short

AGAIN = "again"

# OpenMP's and Eigen's threads spin for a while after their work is done; the next must not pay.
SETTLE_SECONDS = 0.3
# So long it is observed, before a question, whether the machine is busy with something else.
LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of answering a question.

    Attributes:
        name: of its row.
        repetitions: from the settings to an endless iterator, one item a repetition. The first item
            counts building the model and every compilation, but not the imports.
        packages: that have to be installed, by the names they are imported by.
        environment: what its process needs beyond what all have.
        note: what was measured, where it is not simply that.
        tolerance: its own, in place of the question's.
    """

    name: str
    repetitions: Callable[[dict[str, Any]], Iterator[Outcome]]
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of every contender.

    Attributes:
        name: a short one.
        title: a sentence: what is timed, at which shapes.
        contenders: in the order of a round.
        baseline: the contender by whose amounts the others' are divided.
        value_name: what an outcome's value is.
        tolerance: how far the first values may lie from the baseline's; None does not compare.
        relative: whether the tolerances are parts of the baseline's value.
        unit: of what is measured.
        rounds: how many repetitions of each contender follow its first.
        patience: seconds after which a worker that has not answered is ended.
        points: where it is asked, one after the other; the workers stay the same.
    """

    name: str
    title: str
    contenders: Sequence[Contender]
    baseline: str
    value_name: str
    tolerance: float | None = None
    relative: bool = False
    unit: str = "s"
    rounds: int = 5
    patience: float = math.inf
    points: Sequence[Point] = (Point(),)

    def allowed(self, contender: Contender) -> float:
        """How far the contender's first value may lie from the baseline's."""
        own = self.tolerance if contender.tolerance is None else contender.tolerance
        return math.inf if own is None else own


class WorkerError(Exception):
    """A worker failed; the message is its error."""


def matrix_products(settings: dict[str, Any]) -> Iterator[Outcome]:
    """The speed of a product of two large float32 matrices, in GF/s."""
    import jax

    size = 2048
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(lambda left, right: left @ right)
    while True:
        began = time.perf_counter()
        result = jax.block_until_ready(product(left, right))
        seconds = time.perf_counter() - began
        yield Outcome(2 * size**3 / seconds / 1e9, float(result[0, 0]))


CEILING = Contender("large matrix products", matrix_products, ["jax"])


# ---- the worker's side


def serve(contenders: Sequence[Contender], name: str) -> None:
    """Be the worker of one contender: answer each line of the standard input with an outcome."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What libraries print is no reply.
    contender = next(one for one in [*contenders, CEILING] if one.name == name)
    outcomes: Iterator[Outcome] = iter(())
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if request != AGAIN:
                outcomes = iter(())  # Lets go of the last point's arrays before the next are made.
                outcomes = contender.repetitions(request)
            outcome = dataclasses.asdict(next(outcomes))
            reply = {"outcome": outcome, "versions": versions(contender.packages)}
        except Exception as error:
            traceback.print_exc()
            first_line, _, _ = str(error).strip().partition("\n")
            reply = {"problem": f"{type(error).__name__}: {first_line}"}
        print(json.dumps(reply), file=replies, flush=True)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that are imported."""
    return {
        package: str(getattr(sys.modules.get(package), "__version__", "unknown"))
        for package in packages
    }


# ---- the parent's side


class Worker:
    """The process of one contender, as the parent sees it."""

    def __init__(self, contender: Contender, command: Sequence[str]):
        cores = str(usable_cores())
        common = {
            "OMP_NUM_THREADS": cores,
            "TF_NUM_INTRAOP_THREADS": cores,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # A first call compiles, whatever an earlier run left behind.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        # A file, since a pipe that is not read would fill up and stop the worker.
        with contextlib.ExitStack() as files:
            self._errors = files.enter_context(tempfile.TemporaryFile("w+"))
            self._process = subprocess.Popen(
                [*command, "--worker", contender.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **common, **contender.environment},
            )
            self._files = files.pop_all()  # which `close` closes

    @property
    def alive(self) -> bool:
        """Whether the process can still be asked."""
        return self._process.poll() is None

    def close(self, kill: bool = False) -> None:
        """End the process, and wait until it has ended."""
        if kill:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._files.close()

    def ask(self, request: Any, patience: float) -> tuple[Outcome, dict[str, str]]:
        """Send a line; return the outcome and the versions that come back.

        Raises:
            WorkerError: the contender failed, the process ended, or no answer came in time.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=stdin, flush=True)
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(min(patience, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        line = stdout.readline()
        timer.cancel()
        if line:
            reply = json.loads(line)
            if "problem" in reply:
                raise WorkerError(reply["problem"])
            return Outcome(**reply["outcome"]), reply["versions"]
        status = self._process.wait()
        if late.is_set():
            raise WorkerError(f"no answer within {patience:g} s")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        raise WorkerError(lines[-1] if status == 1 and lines else f"exit status {status}")


class Team:
    """The workers of all contenders: each starts when it is first asked, and again if it died."""

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> "Team":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers.values():
            worker.close(kill=error is not None)

    def ask(
        self, contender: Contender, request: Any, patience: float
    ) -> tuple[Outcome, dict[str, str]]:
        """As `Worker.ask`."""
        worker = self._workers.get(contender.name)
        if worker is not None and not worker.alive:
            worker.close()
            worker = None
        if worker is None:
            worker = self._workers[contender.name] = Worker(contender, self._command)
        return worker.ask(request, patience)


def ask(
    question: Question,
    settings: dict[str, Any],
    rounds: int,
    command: Sequence[str],
    say: Callable[[str], None] = print,
) -> Report:
    """Measure every contender at every point.

    Args:
        question: what is asked, and of whom.
        settings: given to every contender, with those of the point; has to be JSON.
        rounds: repetitions of each contender, after its first.
        command: starts a worker once ``--worker NAME`` is appended; it has to call `serve`.
        say: is told what is going on.

    Returns:
        the report. A contender that is absent, fails or computes something else is in it with the
        reason, and without numbers, at the points where that is so.
    """
    report = Report(
        question.name,
        question.title,
        question.baseline,
        question.value_name,
        {"rounds": rounds},
        machine(),
        results=[],
        unit=question.unit,
        points=list(question.points),
    )
    with Team(command) as team:
        for number, point in enumerate(question.points, 1):
            if point.name:
                say(f"{number} of {len(question.points)}: {point.name}")
            contenders = [*question.contenders, *([CEILING] if point.flops else [])]
            results = ask_at(point, contenders, question, settings, rounds, team, say)
            report.ceilings += results[len(question.contenders) :]
            report.results += results[: len(question.contenders)]
    if question.tolerance is not None:
        report.remarks.append(agreement(question, report.results))
        say(report.remarks[-1])
    return report


def ask_at(
    point: Point,
    contenders: Sequence[Contender],
    question: Question,
    settings: dict[str, Any],
    rounds: int,
    team: Team,
    say: Callable[[str], None],
) -> list[Result]:
    """Measure all contenders at one point, in interleaved rounds."""
    results = []
    for contender in contenders:
        result = Result(contender.name, contender.note, missing(contender.packages), point.name)
        results.append(result)
        if not result.problem:
            try:
                request = {**settings, **point.settings}
                result.first, result.versions = team.ask(contender, request, question.patience)
            except WorkerError as error:
                result.problem = f"failed: {error}"
        if result.problem:
            say(f"{contender.name}: {result.problem}")
        elif result.first and not point.name:
            unit = "GF/s" if contender is CEILING else question.unit
            say(f"{contender.name}: first call {short(result.first.amount)} {unit}")
    compare(question, results)
    for number in range(rounds):
        for contender, result in zip(contenders, results, strict=True):
            if result.problem:
                continue
            time.sleep(SETTLE_SECONDS)
            try:
                result.later.append(team.ask(contender, AGAIN, question.patience)[0])
            except WorkerError as error:
                result.problem = f"failed: {error}"
        if not point.name:
            say(f"round {number + 1} of {rounds} done")
    return results


def compare(question: Question, results: Sequence[Result]) -> None:
    """Take out of the rounds whoever computed something else at this point."""
    begun = {result.name: result for result in results if result.first}
    baseline = begun.get(question.baseline)
    if question.tolerance is None or baseline is None or baseline.first is None:
        return
    expected = baseline.first.value
    for contender in question.contenders:
        result = begun.get(contender.name)
        if result is None or result.first is None:
            continue
        result.distance = abs(result.first.value - expected)
        if question.relative:
            result.distance /= abs(expected)
        if not result.distance <= question.allowed(contender):  # NaN is not.
            result.problem = (
                f"not timed: its {question.value_name} is {result.first.value:.4f}, "
                f"{question.baseline}'s {expected:.4f}"
            )


def agreement(question: Question, results: Sequence[Result]) -> str:
    """A sentence on how many of those who were compared agree with the baseline, and how well."""
    allowed = {contender.name: question.allowed(contender) for contender in question.contenders}
    compared = 0
    agreeing: dict[float, list[float]] = {}
    for result in results:
        if result.distance is not None and allowed[result.name] < math.inf:
            compared += 1
            if result.distance <= allowed[result.name]:
                agreeing.setdefault(allowed[result.name], []).append(result.distance)
    if not compared:
        return f"There is no {question.value_name} of {question.baseline} to compare with."
    part = " as a part of it," if question.relative else ""
    extents = [
        f"to within {max(distances):.1e} where {tolerance:g} is allowed"
        for tolerance, distances in sorted(agreeing.items())
    ]
    return (
        f"Checked before timing: {question.value_name} of {sum(map(len, agreeing.values()))} of "
        f"{compared} results is {question.baseline}'s,{part} {', '.join(extents)}."
    )


def missing(packages: Sequence[str]) -> str:
    """The reason why a contender is absent; empty if all its packages are installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"absent: {' and '.join(absent)} not installed" if absent else ""


def machine() -> dict[str, Any]:
    """Where it ran, and how busy that was before."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": busy_cores(),
    }


def busy_cores() -> float:
    """How many cores are busy with anything at the moment."""
    # The load average would still hold the workers of the question before this one.
    with contextlib.suppress(OSError):
        before = busy_seconds()
        time.sleep(LOOK_SECONDS)
        return (busy_seconds() - before) / LOOK_SECONDS
    return os.getloadavg()[0]


def busy_seconds() -> float:
    """What all cores together have worked since the system started; only Linux tells it."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
