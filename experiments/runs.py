"""Run folders, and the way in which every program ends."""

import datetime
import errno
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rnnjax import CheckpointError, InvalidInputError, RnnjaxError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        # Written when a run begins, and again when it goes on.
        return max(runs, key=lambda path: (path.stat().st_mtime_ns, path)).parent
    if not (run_dir / "run.json").is_file():
        raise CheckpointError(
            f"{run_dir} is not a run folder (it has no run.json); check --run-dir"
        )
    return run_dir


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file in one move, so that it is never there by half."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    new.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); choose another run") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object; choose another run")
    return value


def exit_with(program: Callable[[], int]) -> None:
    """Run a program; an error raised on purpose, or a full disk, is one sentence and status 2."""
    try:
        status = program()
    except RnnjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(
            f"error: there is no room for what was to be written ({error}); what was saved before "
            "is untouched: make room, and go on with --resume where the program has that",
            file=sys.stderr,
        )
        status = 2
    sys.exit(status)
