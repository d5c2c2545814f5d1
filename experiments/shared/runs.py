"""The way in which every program begins and ends: its options, its errors, its status."""

import datetime
import errno
import functools
import inspect
import math
import operator
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from rnnjax import InvalidInputError, RnnjaxError

Options = TypeVar("Options")
# At least, and below: JAX's integers have 32 bits, and larger seeds would not all be different.
Positive = Annotated[int, (1, 2**31)]
PositiveOrNone = Annotated[int | None, (1, 2**31)]
Natural = Annotated[int, (0, 2**31)]
Seed = Annotated[int, (0, 2**32)]
NotNegative = Annotated[float, (0.0, math.inf)]
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def options(config: type[Options], program: str, example: str) -> Options:
    """What the command line says; ``--help`` begins with an example of it.

    Ranges, and what a method ``check`` of the options checks, are checked here, not where they are
    made: the command line's parser would wrap the error's sentence into one of its own.
    """
    prog = f"python -m experiments.{program}"
    found = tyro.cli(config, prog=prog, description=described(config, f"{prog} {example}"))
    check_ranges(found)
    if check := getattr(found, "check", None):
        check()
    return found


def command(
    run: Callable[[Options], int], config: type[Options], program: str, example: str
) -> Callable[[], int]:
    """The ``main`` of a program: it reads the options (see `options`), and runs."""
    return lambda: run(options(config, program, example))


def commands(
    program: str, example: str, about: str,
    *each: tuple[str, type, Callable[[Any], int], str], **defaults: Any,
) -> int:  # fmt: skip
    """Run the command that the command line names.

    Args:
        program: what starts it, ``python -m experiments.`` and its name.
        example: of a command, with which ``--help`` begins.
        about: the program in a sentence.
        each: the name of a command, the class of its options, what runs it, and an example.
        defaults: by the name of a command, options in the place of those of its class.
    """
    kinds: list[Any] = []
    for name, config, _, shown in each:
        text = described(config, f"{program} {name} {shown}")
        default = {"default": defaults[name]} if name in defaults else {}
        kinds.append(Annotated[config, tyro.conf.subcommand(name, description=text, **default)])
    found = tyro.cli(
        functools.reduce(operator.or_, kinds), prog=program,
        description=f"Example: {program} {example}\n\n{about}",
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    check_ranges(found)
    return next(run for _, config, run, _ in each if isinstance(found, config))(found)


def described(config: type, example: str) -> str:
    """The text of ``--help``: an example, and what the class of the options says of itself."""
    return f"Example: {example}\n\n{inspect.getdoc(config)}"


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def check_ranges(options: Any) -> None:
    """Raise InvalidInputError unless every number lies in the range that its type declares."""
    for name, kind in typing.get_type_hints(type(options), include_extras=True).items():
        value, noted = getattr(options, name), getattr(kind, "__metadata__", ())
        for least, below in (note for note in noted if isinstance(note, tuple)):  # tyro has others
            if value is not None and not least <= value < below:
                needed = f"be at least {least}" if least else "not be negative"
                if isinstance(below, int):
                    needed = f"be at least {least} and at most {below - 1}"
                elif not value < least:
                    needed = f"be a number from {least:g} up to, but not including, {below:g}"
                raise InvalidInputError(
                    f"{option(name)} must {needed}, but is {value}; --help has the usual one"
                )


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidInputError unless there is something of each name."""
    if unknown := sorted({*names}.difference(known)):
        raise InvalidInputError(
            f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}"
        )


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
            "(--run-dir), or resume the run in it where the program has --resume"
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

    That is 2, or 130 of Ctrl-C, as shells report it; and in silence 141, where nobody reads on.
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
            status = program()
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # Whoever reads, such as `head`, has enough. What is flushed at the end goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
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
                f"error: {what} ({error}); what was saved before is untouched: mend that, and "
                "resume by --resume where the program has it",
                file=sys.stderr,
            )
    return 2
