"""Metrics of a run as JSON lines that survive a kill and a resume."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rnnjax.errors import CheckpointError


class Records:
    """An append-only file with one JSON object a line, each with an increasing ``step``.

    A run that is killed may have recorded steps after its last checkpoint, or half a line.
    `drop_after` takes these back when it resumes, so that the file reads like that of a run that
    never stopped.

    >>> import tempfile
    >>> records = Records(Path(tempfile.mkdtemp()) / "steps.jsonl")
    >>> records.append([{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}])
    >>> records.drop_after(1)
    >>> records.read()
    [{'step': 1, 'loss': 2.5}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add entries at the end."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; none if there is no file yet.

        Raises:
            CheckpointError: a line is no JSON.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            return [json.loads(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise CheckpointError(
                f"{self.path} should have a JSON object on each line, but is damaged ({error}); "
                "delete the lines that are none, or begin a new run"
            ) from error

    def drop_after(self, step: int) -> None:
        """Keep the entries up to ``step`` alone; replaces the file in one move."""
        kept = [entry for entry in self.read() if entry["step"] <= step]
        new = Records(self.path.with_name(self.path.name + ".new"))
        new.path.unlink(missing_ok=True)
        new.append(kept)
        new.path.replace(self.path)
