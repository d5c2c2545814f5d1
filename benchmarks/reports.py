"""What was measured, and how it is told: as JSON, and as Markdown."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUSY = "**The machine was busy with something else before this began: do not trust the times.**"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one repetition gave.

    Attributes:
        amount: what was measured, in the question's unit; seconds, unless it names another.
        value: a fingerprint of what was computed, such as a loss.
        details: anything else worth keeping, as JSON.
    """

    amount: float
    value: float
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """What became of one contender; ``problem`` says why nothing was measured."""

    name: str
    note: str = ""
    problem: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    first: Outcome | None = None
    later: list[Outcome] = dataclasses.field(default_factory=list)

    @property
    def amounts(self) -> list[float]:
        """Of the repetitions after the first, one a round."""
        return [outcome.amount for outcome in self.later]


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
    unit: str = "s"


def ratio(amounts: Sequence[float], baseline: Sequence[float]) -> float | None:
    """The median over the rounds of ``amounts / baseline``; None where there are no rounds."""
    # A baseline that failed on the way has fewer rounds than the others.
    ratios = [ours / theirs for ours, theirs in zip(amounts, baseline, strict=False)]
    return statistics.median(ratios) if ratios else None


def table(report: Report) -> str:
    """The results in Markdown."""
    baseline = next(result for result in report.results if result.name == report.baseline)
    unit = report.unit
    header = [
        "", f"first call, {unit}", f"median, {unit}", f"min – max, {unit}", f"x {report.baseline}",
        report.value_name, "",
    ]  # fmt: skip
    rows = [header, ["---"] * len(header)]
    for result in report.results:
        cells = ["–"] * 5
        if result.first and result.later and not result.problem:
            amounts, factor = result.amounts, ratio(result.amounts, baseline.amounts)
            cells = [
                short(result.first.amount),
                short(statistics.median(amounts)),
                f"{short(min(amounts))} – {short(max(amounts))}",
                "–" if factor is None or baseline.problem else short(factor),
                f"{result.first.value:.4g}",
            ]
        rows.append([result.name, *cells, "; ".join(filter(None, [result.note, result.problem]))])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table in Markdown."""
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
    """Keep the report as JSON, with all raw numbers, and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(dataclasses.asdict(report), indent=1)
    (folder / f"{name}.json").write_text(as_json + "\n")
    (folder / f"{name}.md").write_text(text(report))
