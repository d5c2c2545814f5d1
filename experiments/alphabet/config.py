"""The options, with the tutorial's values as defaults."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.shared.runs import Positive, Seed
from rnnjax import InvalidInputError

SUBSTRINGS = 1000


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn the alphabet one letter at a time, with the state carried from letter to letter.

    Each letter is one number, its position divided by 26; the target is the letter that follows.
    The state is reset after each epoch. Without a carried state, inputs are shuffled each epoch.
    """

    seq_length: int = 1
    """The number of letters of one input."""
    mode: Literal["steps", "features", "variable"] = "steps"
    """Several letters come as several time steps, or as several features of one step; "variable":
    random sub-strings of up to so many letters, with zeros before."""
    stateful: bool = True
    """Carry the state from one input to the next; otherwise reset it after every batch."""
    batch_size: Positive = 1
    """The number of inputs of an update. Each row of a batch has its own state."""
    cell: Literal["lstm", "gru", "simple"] = "lstm"
    """The type of recurrent cell."""
    hidden_size: Positive = 50
    """The number of hidden units."""
    epochs: Positive = 300
    """The number of passes over the alphabet."""
    learning_rate: float = 1e-3
    """The learning rate of Adam."""
    decay: bool = False
    """Decrease the learning rate linearly, to 0 after the last update."""
    seed: Seed = 0
    """The seed of the initial weights."""
    seeds: Positive = 1
    """The number of seeds, from --seed on, to train together in one vmapped run."""
    all: bool = False
    """Train the tutorial's six framings with 20 seeds each, from --seed on, and ignore all other
    options."""
    run_dir: Path | None = None
    """Where the result goes; by default a new folder under runs/alphabet."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        if not 1 <= self.seq_length <= 25:
            raise InvalidInputError(
                f"--seq-length must be from 1 to 25, so that a letter follows, but is "
                f"{self.seq_length}; take fewer"
            )
        count = SUBSTRINGS if self.mode == "variable" else 26 - self.seq_length
        if count % self.batch_size or (self.stateful and self.batch_size > 1):
            raise InvalidInputError(
                f"--batch-size must divide the {count} inputs, and be 1 where the state is carried "
                f"(--stateful), but is {self.batch_size}; 1 always fits"
            )
        if not self.learning_rate > 0:
            raise InvalidInputError(
                f"--learning-rate must be above 0, but is {self.learning_rate}; 1e-3 is usual"
            )
