"""How a question is timed: each contender in a process of its own, in interleaved rounds.

No library's threads, memory or settings weigh on another's, and whatever makes the machine drift
(A B C, A B C, ...) hits all alike: contenders are compared by the ratio within each round.

The parent (`ask`) writes a line of JSON to a worker (`serve`): first the settings, then a request
for each repetition. The worker answers every line with what the repetition gave.
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.reports import Outcome, Report, Result, short

# OpenMP's and Eigen's threads spin for a while after their work is done; the next must not pay.
SETTLE_SECONDS = 0.3


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
    """

    name: str
    title: str
    contenders: Sequence[Contender]
    baseline: str
    value_name: str
    tolerance: float | None = None
    relative: bool = False
    unit: str = "s"


class WorkerError(Exception):
    """A worker failed; the message is the last line of its error."""


# ---- the worker's side


def serve(contenders: Sequence[Contender], name: str) -> None:
    """Be the worker of one contender: answer each line of the standard input with an outcome."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What libraries print is no reply.
    contender = next(contender for contender in contenders if contender.name == name)
    settings = json.loads(sys.stdin.readline())
    for outcome in contender.repetitions(settings):
        versions = {
            package: str(getattr(sys.modules.get(package), "__version__", "unknown"))
            for package in contender.packages
        }
        print(json.dumps([dataclasses.asdict(outcome), versions]), file=replies, flush=True)
        if not sys.stdin.readline():
            break


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
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # A pipe unread would fill up.
        self._process = subprocess.Popen(
            [*command, "--worker", contender.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **common, **contender.environment},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()

    def ask(self, request: Any) -> tuple[Outcome, dict[str, str]]:
        """Send a line; return the outcome and the versions that come back.

        Raises:
            WorkerError: the process ended instead.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=stdin, flush=True)
        reply = stdout.readline()
        if reply:
            outcome, versions = json.loads(reply)
            return Outcome(**outcome), versions
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        raise WorkerError(lines[-1] if status == 1 and lines else f"exit status {status}")


def ask(
    question: Question,
    settings: dict[str, Any],
    rounds: int,
    command: Sequence[str],
    say: Callable[[str], None] = print,
) -> Report:
    """Time every contender.

    Args:
        question: what is asked, and of whom.
        settings: given to every contender; has to be JSON.
        rounds: repetitions of each contender, after its first.
        command: starts a worker once ``--worker NAME`` is appended; it has to call `serve`.
        say: is told what is going on.

    Returns:
        the report. A contender that is absent, fails or computes something else is in it with the
        reason, and without times.
    """
    report = Report(
        question.name,
        question.title,
        question.baseline,
        question.value_name,
        {"rounds": rounds},
        machine(),
        [Result(contender.name, contender.note) for contender in question.contenders],
        unit=question.unit,
    )
    workers = {}
    with contextlib.ExitStack() as stack:
        for contender, result in zip(question.contenders, report.results, strict=True):
            result.problem = missing(contender.packages)
            if result.problem:
                say(f"{contender.name}: {result.problem}")
                continue
            worker = workers[contender.name] = stack.enter_context(Worker(contender, command))
            try:
                result.first, result.versions = worker.ask(settings)
            except WorkerError as error:
                result.problem = f"failed: {error}"
            first = ""
            if result.first:
                first = f"first call {short(result.first.amount)} {question.unit}"
            say(f"{contender.name}: {first or result.problem}")
        if question.tolerance is not None:
            report.remarks.append(compare(question, report.results))
            say(report.remarks[-1])
        for number in range(rounds):
            for result in report.results:
                if result.problem:
                    continue
                time.sleep(SETTLE_SECONDS)
                try:
                    result.later.append(workers[result.name].ask("again")[0])
                except WorkerError as error:
                    result.problem = f"failed: {error}"
            say(f"round {number + 1} of {rounds} done")
    return report


def compare(question: Question, results: Sequence[Result]) -> str:
    """Take out of the rounds whoever computed something else; return a sentence on who agrees."""
    assert question.tolerance is not None
    values = {result.name: result.first.value for result in results if result.first}
    if question.baseline not in values:
        return f"There is no {question.value_name} of {question.baseline} to compare with."
    expected = values[question.baseline]
    scale = abs(expected) if question.relative else 1.0
    own = {one.name: one.tolerance for one in question.contenders if one.tolerance is not None}
    distances: dict[str, float] = {}
    for result in results:
        if result.first is None:
            continue
        distance = abs(result.first.value - expected) / scale
        if distance <= own.get(result.name, question.tolerance):  # NaN is not.
            distances[result.name] = distance
        else:
            result.problem = (
                f"not timed: its {question.value_name} is {result.first.value:.4f}, "
                f"{question.baseline}'s {expected:.4f}"
            )
    common = [distance for name, distance in distances.items() if name not in own]
    sentence = (
        f"Checked before timing: {question.value_name} of {len(distances)} of {len(values)} "
        f"contenders is {expected:.4f} to within {max(common, default=math.nan):.1e} "
        f"(at most {question.tolerance:g} is allowed"
    )
    for name in own.keys() & distances.keys():
        sentence += f"; {name}: {distances[name]:.1e}, {own[name]:g} is allowed"
    return sentence + ")."


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
        "load_before": os.getloadavg()[0],
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
