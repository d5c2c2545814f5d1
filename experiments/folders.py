"""The folders of new runs."""

import datetime
from pathlib import Path
from typing import Any

from rnnjax.errors import InvalidInputError
from rnnjax.training.files import write_sealed


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
