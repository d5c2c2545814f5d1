"""The folders of runs: made, written to, found again."""

import datetime
from pathlib import Path
from typing import Any

from rnnjax.errors import CheckpointError, InvalidInputError
from rnnjax.training.files import read_sealed, write_sealed


def create(program: str, run_dir: Path | None) -> Path:
    """Make the folder of a new run: the one given, or a new one under ``runs/<program>``.

    Raises:
        InvalidInputError: the folder holds something already; nothing is overwritten.
    """
    if run_dir is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        run_dir = Path("runs") / program / stamp
    if run_dir.is_file() or (run_dir.is_dir() and any(run_dir.iterdir())):
        raise InvalidInputError(
            f"{run_dir} holds something already, and nothing is overwritten; choose another "
            "--run-dir, or go on with the run in it by --resume where the program has that"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{run_dir} cannot be made ({error.strerror}); choose another --run-dir"
        ) from error
    return run_dir


def write(run_dir: Path, value: dict[str, Any]) -> None:
    """Write ``run.json``: what a run is, and when it began, or went on, last."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    write_sealed(run_dir / "run.json", {**value, "began": now})


def existing(program: str, run_dir: Path | None) -> Path:
    """The folder of a run: the one given, or under ``runs/<program>`` that which began, or went on,
    last.

    Raises:
        CheckpointError: there is no such run.
    """
    if run_dir is None:
        runs = list((Path("runs") / program).glob("*/run.json"))
        if not runs:
            raise CheckpointError(
                f"there is no run under {Path('runs') / program}; train a model first, or name "
                "its folder by --run-dir"
            )
        return max(runs, key=lambda path: (_began(path), path)).parent
    if not (run_dir / "run.json").is_file() and not (run_dir / "checkpoints").is_dir():
        raise CheckpointError(
            f"{run_dir} is not a run folder (it has no run.json); check --run-dir"
        )
    return run_dir


def _began(path: Path) -> str:
    """When a run was begun; one that cannot be read counts as the oldest."""
    try:
        return str(read_sealed(path).get("began", ""))
    except CheckpointError:
        return ""
