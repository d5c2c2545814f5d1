"""A trained model, read from the folder of its run, for the commands that use it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import folders
from experiments.text_generator.checkpoints import PROGRAM, options_of
from experiments.text_generator.config import Train
from experiments.text_generator.data import AnyVocabulary
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.train import make_optimizer, new_state
from rnnjax.errors import InvalidInputError
from rnnjax.text import ByteVocabulary, Vocabulary
from rnnjax.training import Checkpoints


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
        run_dir = folders.existing(PROGRAM, run_dir)
        checkpoints = Checkpoints(run_dir / "checkpoints", read_only=True)
        saved = checkpoints.best() if step is None else checkpoints.at(step)
        stored = saved.about["config"]
        config, characters = options_of(stored, run_dir), stored["vocabulary"]
        vocabulary = ByteVocabulary() if characters is None else Vocabulary(characters)
        model = CharacterModel.build(config.model, len(vocabulary))
        optimizer = make_optimizer(config.optimization, 1, 1)
        like = jax.eval_shape(lambda: new_state(model, config, optimizer))
        params = saved.restore(like).params
        return cls(model, params, vocabulary, config, run_dir, saved.step, stored["text_sha256"])


def encode(vocabulary: AnyVocabulary, text: str, name: str) -> np.ndarray:
    """The ids of a text, which the user knows by a name.

    Raises:
        InvalidInputError: the model does not know all of its characters.
    """
    known = None if isinstance(vocabulary, ByteVocabulary) else set(vocabulary.characters)
    unknown = [] if known is None else [c for c in dict.fromkeys(text) if c not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InvalidInputError(
            f"{name} must be of characters that the model was trained on, but has "
            f"{', '.join(map(repr, unknown[:5]))}{more}; leave them out"
        )
    return vocabulary.encode(text)
