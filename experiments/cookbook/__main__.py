"""``python -m experiments.cookbook``: run the programs, and print one table.

Without names all of them run, each in a process of its own. The status is 1 if one ends with an
error, or misses what it has to reach.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.shared import runs
from rnnjax.training import StopRequest

# Those that outgrew one file are a folder beside this one.
FOLDERS = ("forecast",)
PROGRAMS = sorted(
    [path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("__")]
    + [*FOLDERS]
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Run the programs of the cookbook, and print one table of their scores."""

    programs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The names of the programs; by default all."""
    data: str | None = None
    """A folder with the data, or "made" for synthetic data; by default downloaded once."""
    run_dir: Path | None = None
    """The folder for the results, one subfolder per program; by default runs/cookbook."""


def main() -> int:
    """Run them one after the other."""
    config = runs.options(Config, "cookbook", "forecast gradients")
    runs.check_names("program", config.programs, PROGRAMS)
    folder = runs.new_folder("cookbook", config.run_dir)
    failed = []
    results = []
    names = list(dict.fromkeys(config.programs)) or PROGRAMS
    if "spoken_digits" in names and not (config.data or os.environ.get("RNNJAX_DATA")):
        print("spoken_digits is left out: its recordings are no single file; see its --help")
        names = [name for name in names if name != "spoken_digits"]
    for name in names:
        module = f"experiments.{name}" if name in FOLDERS else f"experiments.cookbook.{name}"
        command = [sys.executable, "-m", module]
        command += ["--run-dir", str(folder / name)]
        command += ["--data", config.data] if config.data else []
        print(f"== {name}", flush=True)
        if run(command):
            failed.append(name)
        path = folder / name / "result.json"
        if path.exists():
            results.append(json.loads(path.read_text(encoding="utf-8")))
    print(f"\n{table(results)}")
    (folder / "table.md").write_text(f"{table(results)}\n", encoding="utf-8")
    if failed:
        print(f"missed, or ended with an error: {', '.join(failed)}")
    return 1 if failed else 0


def run(command: list[str]) -> int:
    """Run a program and return its status; a signal that ends this one ends that one before.

    One that is ignored, as nohup has it, stays ignored.
    """
    process = subprocess.Popen(command)
    with StopRequest() as stop:
        while process.poll() is None:
            if stop.signal is not None:
                process.terminate()  # no second Ctrl-C, if the terminal sent it one too
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
    if stop.signal is not None:
        signal.raise_signal(stop.signal)
    return process.returncode


def table(results: list[dict[str, Any]]) -> str:
    """All rows of all programs, as Markdown; what was accepted stands after the program's time."""
    lines = ["| program | who | score | source |", "|---|---|---|---|"]
    for result in results:
        reached = [one["holds"] for one in result["accepts"]]
        verdict = f", {sum(reached)} of {len(reached)} bounds reached" if reached else ""
        lines.append(
            f"| **{result['program']}** | {result['measure']} | {result['seconds']:.0f} s{verdict} "
            "| |"
        )
        lines += [
            f"| | {row['name']} | {row['shown']} | {row['source']} |" for row in result["rows"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    runs.exit_with(main)
