"""What was measured, and how it is told: as JSON, and as Markdown."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Point:
    """One of the places where a question is asked.

    Attributes:
        name: tells it from the others; empty where there are no others.
        settings: what is different here from the question's settings.
        flops: floating-point operations of a repetition. Where they are stated, the speed of large
            matrix products is measured in the same rounds, and the times are compared with it.
    """

    name: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flops: float | None = None


@dataclasses.dataclass
class Result:
    """What became of one contender at one point.

    Attributes:
        name: of the contender.
        note: the contender's.
        problem: why nothing was measured.
        point: the name of the point.
        versions: of the contender's packages.
        distance: from the first value to the baseline's, if they were compared.
        first: the first outcome.
        later: one outcome a round.
    """

    name: str
    note: str = ""
    problem: str = ""
    point: str = ""
    distance: float | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    first: Outcome | None = None
    later: list[Outcome] = dataclasses.field(default_factory=list)

    @property
    def amounts(self) -> list[float]:
        """The times of the repetitions after the first, one a round."""
        return [outcome.amount for outcome in self.later]


@dataclasses.dataclass
class Report:
    """A question's results, and what there is to say about them.

    ``ceilings`` holds the speed of large matrix products, in GF/s, at each point that states its
    operations.
    """

    question: str
    title: str
    baseline: str
    value_name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[Result]
    remarks: list[str] = dataclasses.field(default_factory=list)
    unit: str = "s"
    points: list[Point] = dataclasses.field(default_factory=lambda: [Point()])
    ceilings: list[Result] = dataclasses.field(default_factory=list)

    def at(self, point: Point) -> dict[str, Result]:
        """The results of one point, by contender."""
        return {result.name: result for result in self.results if result.point == point.name}

    def ratios(self, result: Result) -> list[float]:
        """To the baseline at the same point, one a round; empty if either has a problem."""
        baseline = self.at(Point(result.point))[self.baseline]
        if result.problem or baseline.problem:
            return []
        return ratios(result.amounts, baseline.amounts)

    def share_of_ceiling(self, result: Result) -> float | None:
        """The speed of a result as a part of that of large matrix products."""
        flops = next(point.flops for point in self.points if point.name == result.point)
        speeds = [
            speed for one in self.ceilings for speed in one.amounts if one.point == result.point
        ]
        if flops is None or not speeds or result.problem or not result.later:
            return None
        return flops / statistics.median(result.amounts) / 1e9 / statistics.median(speeds)


def ratios(amounts: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """``amounts / baseline`` of each round that both have."""
    return [ours / theirs for ours, theirs in zip(amounts, baseline, strict=False)]


def ratio(amounts: Sequence[float], baseline: Sequence[float]) -> float | None:
    """The median over the rounds of ``amounts / baseline``; None where there are no rounds."""
    both = ratios(amounts, baseline)
    return statistics.median(both) if both else None


def tables(report: Report) -> str:
    """A table in Markdown for every point."""
    return "\n\n".join(
        f"## {point.name}\n\n{table(report, point)}" if point.name else table(report, point)
        for point in report.points
    )


def table(report: Report, point: Point) -> str:
    """The results of one point in Markdown."""
    unit = report.unit
    header = [
        "", f"first call, {unit}", f"median, {unit}", f"min – max, {unit}", f"x {report.baseline}",
        *(["of the ceiling"] if point.flops else []), report.value_name, "",
    ]  # fmt: skip
    rows = [header, ["---"] * len(header)]
    at = report.at(point)
    baseline = at[report.baseline]
    for result in at.values():
        cells = ["–"] * (len(header) - 2)
        if result.first and result.later and not result.problem:
            amounts, share = result.amounts, report.share_of_ceiling(result)
            factor = None if baseline.problem else ratio(amounts, baseline.amounts)
            cells = [
                short(result.first.amount),
                short(statistics.median(amounts)),
                f"{short(min(amounts))} – {short(max(amounts))}",
                "–" if factor is None else short(factor),
                *(["–" if share is None else percent(share)] if point.flops else []),
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


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is small."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def circumstances(report: Report) -> str:
    """The machine and the versions, in a sentence."""
    versions: dict[str, str] = {}
    for result in report.results:
        versions |= result.versions
    host = report.machine
    listed = [
        f"Python {host['python']}",
        *(f"{name} {of}" for name, of in sorted(versions.items())),
    ]
    return f"{host['cpu']}, {host['cores']} cores; {', '.join(listed)}"


def text(report: Report, results: str) -> str:
    """The whole report in Markdown, with the results as `tables` or a question's own give them."""
    speeds = [speed for ceiling in report.ceilings for speed in ceiling.amounts]
    ceiling = ""
    if speeds:
        extent = f"{short(min(speeds))} – {short(max(speeds))}"
        ceiling = (
            f"The ceiling, large matrix products in float32 in the same rounds: "
            f"{short(statistics.median(speeds))} GF/s ({extent})."
        )
    busy = report.machine["load_before"] > report.machine["cores"] / 2
    lines = [
        f"# {report.question}",
        report.title,
        f"{circumstances(report)}; {report.settings['rounds']} interleaved rounds after the first "
        "call.",
        BUSY if busy else "",
        ceiling,
        results,
        "\n".join(f"- {remark}" for remark in report.remarks),
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def write(report: Report, results: str, folder: Path, name: str) -> None:
    """Keep the report as JSON, with all raw numbers, and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(dataclasses.asdict(report), indent=1)
    (folder / f"{name}.json").write_text(as_json + "\n")
    (folder / f"{name}.md").write_text(text(report, results))
