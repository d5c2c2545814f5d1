"""What a run left behind: its model, its vocabulary, its parameters, its options."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from experiments import runs
from experiments.text_generator.config import Train
from experiments.text_generator.data import AnyVocabulary
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.optimization import new_state
from rnnjax import CheckpointError
from rnnjax.text import ByteVocabulary, Vocabulary
from rnnjax.training import Checkpoints

PROGRAM = "text_generator"


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
    """

    model: CharacterModel
    params: Any
    vocabulary: AnyVocabulary
    config: Train
    run_dir: Path
    step: int

    @classmethod
    def load(cls, run_dir: Path | None, step: int | None = None) -> "Trained":
        """Read a run (the newest, if none is named) at a step (the best, or the latest)."""
        run_dir = runs.existing(PROGRAM, run_dir)
        checkpoints = Checkpoints(run_dir / "checkpoints", read_only=True)
        try:
            config = options_of(checkpoints.config(step)["config"])
            if step is None and config.text.validation:
                step = checkpoints.best_step()
            step = checkpoints.latest_step() if step is None else step
            assert step is not None  # `config` has found a checkpoint
            stored = checkpoints.config(step)
            vocabulary = vocabulary_of(stored["vocabulary"])
            model = CharacterModel.build(config.model, len(vocabulary))
            like = jax.eval_shape(lambda: new_state(model, config, 1))
            params = checkpoints.restore(like, step).params
        finally:
            checkpoints.close()
        return cls(model, params, vocabulary, config, run_dir, step)


def options_of(stored: Any) -> Train:
    """The options of a run, from its run.json or a checkpoint.

    Raises:
        CheckpointError: they are those of another version of the program.
    """
    try:
        return Train.from_json(stored)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the options of the run are not those of this version ({error}); begin a new run"
        ) from error


def vocabulary_to_json(vocabulary: AnyVocabulary) -> str | None:
    """The characters in the order of their ids, or None for bytes."""
    return vocabulary.characters if isinstance(vocabulary, Vocabulary) else None


def vocabulary_of(characters: str | None) -> AnyVocabulary:
    """The vocabulary that `vocabulary_to_json` wrote down."""
    return ByteVocabulary() if characters is None else Vocabulary(characters)
