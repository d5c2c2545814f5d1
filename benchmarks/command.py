"""The command line that all scripts share: ``python -m benchmarks.SCRIPT [QUESTION] [--quick]``."""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, reports, timing

RESULTS = Path(__file__).parent / "results"


def main(
    script: str,
    questions: Mapping[str, Any],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    adjust: Callable[[Any, argparse.Namespace], Any] = lambda settings, options: settings,
) -> None:
    """Answer one of the questions, or all; or be a worker for one of them.

    The module of a question holds ``Settings``, a frozen dataclass that is JSON and by default of
    full size; ``QUICK``, settings of tiny shapes; ``question(settings)``; and ``remarks(report)``,
    the sentences to add to the report. It may hold ``write_weights(settings)``: then ``Settings``
    has a field ``weights``, the path of a file that is written before the workers start. And it may
    hold ``tables(report)`` and ``plot(report)``, in place of `reports.tables` and `plots.bars`.

    Args:
        script: the module that calls this, such as ``benchmarks.scan_vs_keras``.
        questions: such modules, by the name on the command line.
        add_options: adds options of the script's own.
        adjust: from a question's settings and the parsed options to the settings to use.
    """
    parser = argparse.ArgumentParser(f"python -m {script}")
    parser.add_argument("question", nargs="?", choices=questions, help="by default all")
    parser.add_argument(
        "--rounds", type=positive, help="repetitions after the first (default: the question's own)"
    )
    parser.add_argument("--contenders", nargs="+", help="these alone, and the baseline")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the script")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    if options.worker:
        module = questions[options.question]
        timing.serve(module.question(module.Settings()).contenders, options.worker)
        return
    for name in [options.question] if options.question else questions:
        module = questions[name]
        settings = adjust(module.QUICK if options.quick else module.Settings(), options)
        answer(module, settings, [sys.executable, "-m", script, name], options)


def answer(module: Any, settings: Any, command: list[str], options: argparse.Namespace) -> None:
    """Answer one question: print the report and keep it."""
    question = module.question(settings)
    if options.contenders:
        question = only(question, options.contenders)
    rounds = options.rounds or (2 if options.quick else question.rounds)
    print(f"\n{question.title}")
    with tempfile.TemporaryDirectory() as folder:
        full = settings
        if hasattr(module, "write_weights"):
            full = dataclasses.replace(settings, weights=str(Path(folder, "weights.npz")))
            module.write_weights(full)
        report = timing.ask(question, dataclasses.asdict(full), rounds, command)
    report.settings |= {**dataclasses.asdict(settings), "quick": options.quick}
    report.remarks += module.remarks(report)
    results = getattr(module, "tables", reports.tables)(report)
    name = question.name + "_quick" * options.quick
    reports.write(report, results, options.results, name)
    print(f"\n{reports.text(report, results)}")
    if timing.missing(["matplotlib"]):
        print("no plot: matplotlib is not installed")
    else:
        plots.save(getattr(module, "plot", plots.bars)(report), options.results / f"{name}.png")
    print(f"kept in {options.results}")


def only(question: timing.Question, names: Sequence[str]) -> timing.Question:
    """The question, to the baseline and the contenders of these names; our own also as `Scan()`."""
    ours = f"{question.baseline}, "
    there = [contender.name for contender in question.contenders]
    unknown = [name for name in names if not {name, ours + name} & {*there}]
    if unknown:
        sys.exit(f"--contenders takes some of {there}, but got {unknown}")
    asked = {question.baseline, *names, *(ours + name for name in names)}
    chosen = [one for one in question.contenders if one.name in asked]
    return dataclasses.replace(question, contenders=chosen)


def positive(given: str) -> int:
    """A whole number above zero.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not given.isdecimal() or int(given) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, but got {given!r}")
    return int(given)
