"""A run that is there: its folder, its options, and its model, for the commands that use it."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax

from experiments.text_generator.checkpoints import PROGRAM
from experiments.text_generator.config import OF_SOURCE, Train
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.presets import from_mapping
from experiments.text_generator.reading import AnyVocabulary
from experiments.text_generator.train import make_optimizer, new_state
from rnnjax.errors import CheckpointError, InvalidInputError
from rnnjax.text import ByteVocabulary, Vocabulary
from rnnjax.training import Checkpoints
from rnnjax.training.files import read_sealed


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRun:
    """The options of the commands that use a trained model."""

    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """The step of the checkpoint; by default the best by validation loss, else the latest."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with all that is needed to use it.

    Attributes:
        model: the model.
        params: its parameters.
        vocabulary: what its ids mean.
        config: the options it was trained with.
        run_dir: where it lies.
        step: of the checkpoint that was read.
        text_sha256: of its text.
    """

    model: CharacterModel
    params: Any
    vocabulary: AnyVocabulary
    config: Train
    run_dir: Path
    step: int
    text_sha256: str

    @classmethod
    def load(cls, run_dir: Path | None, step: int | None = None) -> "Trained":
        """Read a run (the newest, if none is named) at a step (the best, or the latest)."""
        run_dir = existing(run_dir)
        checkpoints = Checkpoints(run_dir / "checkpoints")
        saved = checkpoints.best() if step is None else checkpoints.at(step)
        stored = saved.about["config"]
        config, characters = options_of(stored, run_dir), stored["vocabulary"]
        with contextlib.suppress(CheckpointError):  # run.json alone may know of a text that moved
            now = options_of(read_sealed(run_dir / "run.json"), run_dir).text
            source = {name: getattr(now, name) for name in OF_SOURCE}
            config = dataclasses.replace(config, text=dataclasses.replace(config.text, **source))
        vocabulary = ByteVocabulary() if characters is None else Vocabulary(characters)
        model = CharacterModel.build(config.model, len(vocabulary))
        optimizer = make_optimizer(config.optimization, 1, 1)
        like = jax.eval_shape(lambda: new_state(model, config, optimizer))
        params = saved.restore(like).params
        return cls(model, params, vocabulary, config, run_dir, saved.step, stored["text_sha256"])


def options_of(stored: dict[str, Any], folder: Path | str) -> Train:
    """The options of a run, from what `stored_in` or a checkpoint says.

    Raises:
        CheckpointError: they are those of another version of the program.
    """
    try:
        return from_mapping(Train, stored.get("options"), f"the run in {folder}")
    except InvalidInputError as error:
        raise CheckpointError(
            f"the options of the run are not those of this version ({error}); begin a new run"
        ) from error


def existing(run_dir: Path | None) -> Path:
    """The folder of a run: the one given, or the last of this program to begin or resume.

    Raises:
        CheckpointError: there is no such run.
    """
    if run_dir is None:
        runs = list(Path("runs", PROGRAM).glob("*/run.json"))
        if not runs:
            raise CheckpointError(
                f"there is no run under {Path('runs', PROGRAM)}; train a model first, or name its "
                "folder by --run-dir"
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
