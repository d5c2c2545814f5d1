"""The files of a run besides its checkpoints: atomic files, and lines that survive a kill."""

import hashlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rnnjax.errors import CheckpointError, DamagedCheckpointError, InvalidInputError

if sys.platform != "win32":
    import fcntl

# The locks of this process, and the thread that holds each.
_HELD: dict[Path, int] = {}
_ADVICE = "take it from a backup, or begin a new run"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a CheckpointError that names the path if the system cannot write there."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written to ({error.strerror}), and what was saved before is "
            "untouched; make room, check its rights, or choose another folder"
        ) from error


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """Lock a folder for writing, create it if necessary, and return whether it was never locked.

    The lock excludes other processes and threads; a thread may nest it. The operating system
    releases it when the process ends, however it ends. Without locks (not POSIX, some network file
    systems) there is a warning.

    Raises:
        CheckpointError: another process or thread writes there, or this one may not write.
    """
    path = Path(folder).absolute() / "lock"
    if _HELD.get(path) == threading.get_ident():
        yield False
        return
    with writing(path.parent):
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            if sys.platform == "win32":
                raise OSError("there are no locks here")
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = "thread" if path in _HELD else "process"
            raise CheckpointError(
                f"another {who} writes to {path.parent}, and two would spoil each other's files; "
                "wait for it or end it, or choose another folder"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{path.parent} cannot be locked ({error}); see to it that one process writes "
                "there",
                stacklevel=4,
            )
        _HELD[path] = threading.get_ident()
        try:
            yield is_new
        finally:
            del _HELD[path]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically and sync it: it is never partial or empty."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, for people and programs; NaN and infinity become null."""
    text = json.dumps(finite_or_none(value), indent=2)
    with writing(path):
        write_whole(path, (text + "\n").encode())


def finite_or_none(value: Any) -> Any:
    """Replace NaN and infinity by None, since JSON has neither (RFC 8259).

    >>> finite_or_none({"loss": float("nan"), "each": [1.0, float("inf")]})
    {'loss': None, 'each': [1.0, None]}
    """
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, with a checksum that `read_sealed` verifies.

    NaN and infinity are written in Python's spelling, so that `read_sealed` can return them.
    """
    plain = as_json("what is saved with a run", value)
    sealed = {"sha256": _digest(plain), "value": plain}
    write_whole(path, (json.dumps(sealed, indent=2) + "\n").encode())


def as_json(name: str, value: Mapping[str, Any], *, finite: bool = False) -> dict[str, Any]:
    """Convert a mapping to JSON values; raise InvalidInputError if it is not JSON."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=not finite))
        if not isinstance(plain, dict):
            raise TypeError(f"it is {value!r}, and no dict")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name} must be JSON (numbers, texts, lists, dicts), but: {error}; convert it"
        ) from error
    return plain


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        DamagedCheckpointError: the file is missing, damaged or changed.
        CheckpointError: the file cannot be read now.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> write_sealed(path, {"layers": 3})
    >>> read_sealed(path)
    {'layers': 3}
    """
    data = read_whole(path)
    try:
        stored = json.loads(data)
        value, digest = stored["value"], stored["sha256"]
    except Exception as error:  # damaged bytes show as any error of the decoders
        reason = f"{path} cannot be understood ({type(error).__name__}: {str(error)[:200]})"
        raise DamagedCheckpointError(reason, _ADVICE) from error
    if not isinstance(value, dict) or _digest(value) != digest:
        reason = f"{path} is damaged, or was changed: its checksum is wrong"
        raise DamagedCheckpointError(reason, _ADVICE)
    return value


def read_whole(path: Path) -> bytes:
    """Return the bytes of a file; permissions or too many open files do not count as damage."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"{path}: {error.strerror}", _ADVICE) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read now ({error.strerror}); see to it, and try again"
        ) from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, indent=1).encode()).hexdigest()


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]], *, more: bool = False) -> None:
    """Write JSON objects, one per line, atomically; with ``more`` append them instead."""
    lines = [json.dumps(finite_or_none(entry)) + "\n" for entry in entries]
    with writing(path):
        if more:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        else:
            write_whole(path, "".join(lines).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects with a step that `write_lines` wrote, and skip other lines.

    A killed run may leave a partial line. Only people and plots read the file; a run needs only its
    checkpoints.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "steps.jsonl"
    >>> write_lines(path, [{"step": 1, "loss": float("nan")}])
    >>> read_lines(path)
    [{'step': 1, 'loss': None}]
    """
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                entries.append(entry)
    return entries


def to_disk(*paths: Path) -> None:
    """Sync these files and folders to the disk, if the system supports it."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # Windows opens no folders
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
