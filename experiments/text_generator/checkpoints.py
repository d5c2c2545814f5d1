"""The folder of a run: begun, opened to resume, read; and how a run lies over devices."""

import contextlib
import datetime
import warnings
from pathlib import Path
from typing import Any

import jax

from experiments.shared.runs import new_folder, option
from experiments.text_generator.config import FREE, OF_SOURCE, Train, flat
from experiments.text_generator.data import Data
from rnnjax.errors import CheckpointError, InvalidInputError
from rnnjax.text.vocabulary import Vocabulary
from rnnjax.training.checkpoints import Checkpoints
from rnnjax.training.files import locked, read_sealed, write_sealed
from rnnjax.training.processes import from_first, require_alike
from rnnjax.training.sharding import Sharding, cores_for

PROGRAM = "text_generator"


def open_folder(
    config: Train, data: Data, stack: contextlib.ExitStack
) -> tuple[Path, int, dict[str, Any]]:
    """Make the folder of a new run, or take that of one that resumes; ``stack`` locks it.

    Returns:
        the folder, the step of the last checkpoint, and the options before it by their names: 0
        and none of a new run.
    """

    def begin() -> tuple[Path, int, dict[str, Any]]:
        resumed = config.run_dir if config.resume else None
        folder = resumed or new_folder(PROGRAM, config.run_dir)
        stack.enter_context(locked(folder))
        step, before = require_same_run(config, data, folder) if config.resume else (0, {})
        write_about(folder, described(config, data))
        return folder, step, before

    return from_first(begin)


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write ``run.json``: what a run is, and when it last began or resumed."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    write_sealed(folder / "run.json", {**about, "began": now})


def described(config: Train, data: Data) -> dict[str, Any]:
    """What run.json and every checkpoint say of a run; a vocabulary of bytes is null."""
    known = data.vocabulary
    return {
        "options": config.as_json(),
        "vocabulary": known.characters if isinstance(known, Vocabulary) else None,
        "text_sha256": data.digest,
    }


def stored_in(folder: Path) -> dict[str, Any]:
    """What a run says of itself: run.json, or else its last checkpoint."""
    try:
        return read_sealed(folder / "run.json")
    except CheckpointError as damaged:
        saved = None
        with contextlib.suppress(CheckpointError):
            saved = Checkpoints(folder / "checkpoints").latest()
        if saved is None:
            raise CheckpointError(f"{damaged}; no checkpoint has its options either") from None
        warnings.warn(f"{damaged}; the options are those of step {saved.step}", stacklevel=1)
        return saved.about["config"]


def require_same_run(config: Train, data: Data, folder: Path) -> tuple[int, dict[str, Any]]:
    """Raise unless text and options are those of its last checkpoint or, before one, run.json.

    Returns:
        the step of that checkpoint, or 0, and the options by their names.
    """
    saved = Checkpoints(folder / "checkpoints").latest()  # None before the first
    stored = stored_in(folder) if saved is None else saved.about["config"]
    require_same_text(data, stored, folder)
    options = require_unchanged(config.as_json(), stored.get("options", {}))
    return 0 if saved is None else saved.step, options


def require_unchanged(ours: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Raise InvalidInputError where a run would resume with another option that is not free.

    Returns:
        the options that are stored, by their names.
    """
    # An option that did not exist when the run began was as it is by default.
    ours, stored = flat(ours), {**flat(Train().as_json()), **flat(stored)}
    for name, value in ours.items():
        if name not in FREE and value != stored.get(name):
            raise InvalidInputError(
                f"{option(name)} {value} cannot be changed: the run has {stored.get(name)}, and "
                "--resume keeps the options of the run; leave it out"
            )
    return stored


def require_same_text(data: Data, stored: dict[str, Any], folder: Path | None) -> None:
    """Raise InvalidInputError unless the text is the one with which a run began."""
    digest = str(stored.get("text_sha256"))
    if data.digest != digest:
        theirs = flat(stored.get("options", {})).get("corpus")
        raise InvalidInputError(
            f"the text of {data.options.corpus!r} (SHA-256 {data.digest[:8]}...) is not the one "
            f"that the run in {folder} began with, that of {theirs!r} (SHA-256 {digest[:8]}...); "
            "name a file with that text by --corpus, or begin a new run"
        )


def sharding_of(config: Train, params: Any) -> Sharding | None:
    """Over as many devices as asked for; else over a CPU's cores where that is faster, or None."""
    if config.mesh is None and jax.process_count() == 1:
        cores = cores_for(params, config.text.batch_size)
        return Sharding.over(cores) if cores > 1 else None
    return Sharding.over(None if config.mesh in (None, "auto") else int(config.mesh))


def check_alike(config: Train, digest: str) -> None:
    """Raise InvalidInputError unless all processes have the first one's options and text."""
    options = {k: v for k, v in flat(config.as_json()).items() if k not in OF_SOURCE}
    require_alike({**options, "the text of the corpus": digest})
