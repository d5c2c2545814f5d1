"""The way in which every program begins and ends: its options, its errors, its status."""

import datetime
import errno
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from rnnjax import InvalidInputError, RnnjaxError

Options = TypeVar("Options")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def options(config: type[Options], program: str, example: str) -> Options:
    """What the command line says; ``--help`` begins with an example of it."""
    prog = f"python -m experiments.{program}"
    return tyro.cli(config, prog=prog, description=described(config, f"{prog} {example}"))


def described(config: type, example: str) -> str:
    """The text of ``--help``: an example, and what the class of the options says of itself."""
    return f"Example: {example}\n\n{inspect.getdoc(config)}"


def new_folder(program: str, folder: Path | None) -> Path:
    """Make the folder of a new run: the one given, or a new one under ``runs/<program>``.

    Raises:
        InvalidInputError: the folder holds something already; nothing is overwritten.
    """
    if folder is None:
        folder = Path("runs", program, datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f"))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InvalidInputError(
            f"{folder} holds something already, and nothing is overwritten; choose another folder "
            "(--run-dir), or go on with the run in it where the program has --resume"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be made ({error.strerror}); choose another folder (--run-dir)"
        ) from error
    return folder


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
