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
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

# OpenMP's and Eigen's threads spin for a while after their work is done; the next must not pay.
SETTLE_SECONDS = 0.3
BUSY = "**The machine was busy with something else before this began: do not trust the times.**"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one repetition gave.

    Attributes:
        seconds: as the contender timed it.
        value: a fingerprint of what was computed, such as a loss.
        details: anything else worth keeping, as JSON.
    """

    seconds: float
    value: float
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


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
    """

    name: str
    repetitions: Callable[[dict[str, Any]], Iterator[Outcome]]
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of every contender.

    Attributes:
        name: a short one.
        title: a sentence: what is timed, at which shapes.
        contenders: in the order of a round.
        baseline: the contender by whose seconds the others' are divided.
        value_name: what an outcome's value is.
        tolerance: how far the first values may lie from the baseline's; None does not compare.
    """

    name: str
    title: str
    contenders: Sequence[Contender]
    baseline: str
    value_name: str
    tolerance: float | None = None


@dataclasses.dataclass
class Result:
    """What became of one contender; ``problem`` says why it has no times."""

    name: str
    note: str = ""
    problem: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    first: Outcome | None = None
    later: list[Outcome] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of the repetitions after the first, one a round."""
        return [outcome.seconds for outcome in self.later]


@dataclasses.dataclass
class Report:
    """A question's results, and what there is to say about them."""

    question: str
    title: str
    baseline: str
    value_name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[Result]
    remarks: list[str] = dataclasses.field(default_factory=list)


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
            first = f"first call {short(result.first.seconds)} s" if result.first else ""
            say(f"{contender.name}: {first or result.problem}")
        if question.tolerance is not None:
            report.remarks.append(compare(report, question.tolerance))
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


def compare(report: Report, tolerance: float) -> str:
    """Take out of the rounds whoever computed something else; return a sentence on who agrees."""
    begun = {result.name: result for result in report.results if result.first}
    values = {name: result.first.value for name, result in begun.items() if result.first}
    if report.baseline not in values:
        return f"There is no {report.value_name} of {report.baseline} to compare with."
    distances = {name: abs(value - values[report.baseline]) for name, value in values.items()}
    within = [name for name in values if distances[name] <= tolerance]  # NaN is not.
    for name in values.keys() - within:
        begun[name].problem = (
            f"not timed: its {report.value_name} is {values[name]:.4f}, {report.baseline}'s "
            f"{values[report.baseline]:.4f}"
        )
    return (
        f"Checked before timing: {report.value_name} of {len(within)} of {len(values)} contenders "
        f"is {values[report.baseline]:.4f} to within {max(distances[name] for name in within):.1e} "
        f"(at most {tolerance:g} is allowed)."
    )


def missing(packages: Sequence[str]) -> str:
    """The reason why a contender is absent; empty if all its packages are installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"absent: {' and '.join(absent)} not installed" if absent else ""


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float | None:
    """The median over the rounds of ``seconds / baseline``; None where there are no rounds."""
    # A baseline that failed on the way has fewer rounds than the others.
    ratios = [ours / theirs for ours, theirs in zip(seconds, baseline, strict=False)]
    return statistics.median(ratios) if ratios else None


def table(report: Report) -> str:
    """The results in Markdown."""
    baseline = next(result for result in report.results if result.name == report.baseline)
    header = [
        "", "first call, s", "median, s", "min – max, s", f"x {report.baseline}",
        report.value_name, "",
    ]  # fmt: skip
    rows = [header, ["---"] * len(header)]
    for result in report.results:
        cells = ["–"] * 5
        if result.first and result.later and not result.problem:
            seconds, factor = result.seconds, ratio(result.seconds, baseline.seconds)
            cells = [
                short(result.first.seconds),
                short(statistics.median(seconds)),
                f"{short(min(seconds))} – {short(max(seconds))}",
                "–" if factor is None or baseline.problem else short(factor),
                f"{result.first.value:.4g}",
            ]
        rows.append([result.name, *cells, "; ".join(filter(None, [result.note, result.problem]))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def short(number: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:#.3g}".rstrip(".")


def text(report: Report) -> str:
    """The whole report in Markdown."""
    versions: dict[str, str] = {}
    for result in report.results:
        versions |= result.versions
    host = report.machine
    lines = [
        f"# {report.question}",
        report.title,
        f"{host['cpu']}, {host['cores']} cores; Python {host['python']}, "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + f"; {report.settings['rounds']} interleaved rounds after the first call.",
        BUSY if host["load_before"] > host["cores"] / 2 else "",
        table(report),
        "\n".join(f"- {remark}" for remark in report.remarks),
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def write(report: Report, folder: Path, name: str) -> None:
    """Keep the report as JSON, with all raw seconds, and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(dataclasses.asdict(report), indent=1)
    (folder / f"{name}.json").write_text(as_json + "\n")
    (folder / f"{name}.md").write_text(text(report))


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
