"""Run folders, and the way in which every program ends."""

import datetime
import errno
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from rnnjax import CheckpointError, InvalidInputError, RnnjaxError
from rnnjax.training.files import read_sealed, write_sealed

Options = TypeVar("Options")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def options(config: type[Options], program: str, example: str) -> Options:
    """What the command line says; ``--help`` begins with an example of it."""
    prog = f"python -m experiments.{program}"
    return tyro.cli(config, prog=prog, description=described(config, f"{prog} {example}"))


def described(config: type, example: str) -> str:
    """The text of ``--help``: an example, and what the class of the options says of itself."""
    return f"Example: {example}\n\n{inspect.getdoc(config)}"


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


def exit_with(program: Callable[[], int]) -> None:
    """Run a program; what ends it on purpose, or from outside, is one sentence and a status.

    That is 2, or 130 of Ctrl-C, as shells report it.
    """
    # A character that the terminal cannot show is written as its number, such as \\xef.
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="backslashreplace")
    sys.exit(_status(program))


def _status(program: Callable[[], int]) -> int:
    with warnings.catch_warnings():
        # Those of the library are for its users: each as a sentence, every time.
        warnings.filterwarnings("always", module=r"(rnnjax|experiments)\.", category=UserWarning)
        shown = warnings.showwarning

        def show(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if category is UserWarning:
                print(f"warning: {message}", file=sys.stderr)
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        try:
            return program()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except RnnjaxError as error:
            print(f"error: {error}", file=sys.stderr)
        except (MemoryError, RuntimeError) as error:
            # XLA has no class of its own for what NumPy calls a MemoryError.
            if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            first = str(error).partition("\n")[0]
            print(
                f"error: there is not enough memory ({first}); take a smaller model or batch",
                file=sys.stderr,
            )
        except OSError as error:
            what = "there is no room for what was to be written"
            if error.errno not in _NO_ROOM:
                what = "a file or folder could not be read or written"
            print(
                f"error: {what} ({error}); what was saved before is untouched: see to it, and go "
                "on with --resume where the program has that",
                file=sys.stderr,
            )
    return 2
