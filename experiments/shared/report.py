"""How a program tells what came out: a table with its baselines, and what had to be reached."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared import data
from experiments.shared.runs import new_folder
from rnnjax.errors import InvalidInputError
from rnnjax.training.files import write_json


@dataclasses.dataclass(frozen=True)
class Options:
    """What each program with a report asks for."""

    data: str | None = None
    """All data are made here; with "made" there are no bounds."""
    run_dir: Path | None = None
    """Where pictures and result.json go; by default a new folder under runs/cookbook."""
    seed: int = 0
    """The seed of weights and data, and of all that is drawn; of several networks, of the first."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: who, with which score, and where that is from.

    Attributes:
        name: of the model.
        score: a number, or several of different seeds, shown as mean ± standard deviation.
        source: ``here``, or the paper that states it.
    """

    name: str
    score: float | Sequence[float]
    source: str = "here"

    def shown(self, digits: int) -> str:
        """The score in so many digits after the point."""
        scores = np.atleast_1d(np.asarray(self.score, float))
        spread = f" ± {scores.std(ddof=1):.{digits}f}" if len(scores) > 1 else ""
        return f"{scores.mean():.{digits}f}{spread}"


@dataclasses.dataclass(frozen=True)
class Accept:
    """What a score has to reach on the real data: at most, or at least, a bound."""

    what: str
    score: float
    bound: float
    at: str = "most"

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        below = self.score <= self.bound
        return bool(below if self.at == "most" else self.score >= self.bound)


@dataclasses.dataclass
class Report:
    """The result of one program.

    Attributes:
        program: its name.
        measure: what the scores are, with their unit.
        run_dir: where pictures and ``result.json`` go.
        digits: shown after the point.
        rows: the table.
        accepts: what had to be reached.
        is_asked: whether something has to be; not of made data.
    """

    program: str
    measure: str
    run_dir: Path
    digits: int = 2
    rows: list[Row] = dataclasses.field(default_factory=list)
    accepts: list[Accept] = dataclasses.field(default_factory=list)
    is_asked: bool = True
    began: float = dataclasses.field(default_factory=time.perf_counter)

    @classmethod
    def begin(cls, program: str, measure: str, config: Options, digits: int = 2) -> "Report":
        """Make the folder of a run.

        Raises:
            InvalidInputError: a number among the options is below 1, or the seed below 0.
        """
        for field in dataclasses.fields(config):
            value, least = getattr(config, field.name), int(field.name != "seed")
            whole = [one for one in np.atleast_1d(value).tolist() if type(one) is int]
            if any(one < least for one in whole):
                raise InvalidInputError(
                    f"--{field.name.replace('_', '-')} must be at least {least}, but is {value}"
                )
        folder = new_folder(f"cookbook/{program}", config.run_dir)
        return cls(program, measure, folder, digits, is_asked=config.data != data.MADE)

    def add(self, name: str, score: float | Sequence[float], source: str = "here") -> None:
        """A line of the table."""
        self.rows.append(Row(name, score, source))

    def accept(self, what: str, score: float, bound: float, at: str = "most") -> None:
        """What has to be reached, unless the data are made."""
        if self.is_asked:
            self.accepts.append(Accept(what, float(score), bound, at))

    def end(self, **more: Any) -> int:
        """Print the table, write ``result.json``, and return the program's status: 1 if short."""
        seconds = time.perf_counter() - self.began
        width = max(len(row.name) for row in self.rows)
        print(f"\n{self.program}: {self.measure}")
        for row in self.rows:
            print(f"  {row.name:<{width}}  {row.shown(self.digits):>16}  {row.source}")
        for one in self.accepts:
            verdict = "reached" if one.holds else "MISSED"
            print(f"  {verdict}: {one.what} {one.score:.4g}, at {one.at} {one.bound:g}")
        print(f"  {seconds:.0f} s; pictures and result.json in {self.run_dir}")
        result = {
            "program": self.program,
            "measure": self.measure,
            "seconds": seconds,
            "rows": [{**dataclasses.asdict(r), "shown": r.shown(self.digits)} for r in self.rows],
            "accepts": [{**dataclasses.asdict(a), "holds": a.holds} for a in self.accepts],
            **more,
        }
        write_json(self.run_dir / "result.json", result)
        return 0 if all(one.holds for one in self.accepts) else 1
