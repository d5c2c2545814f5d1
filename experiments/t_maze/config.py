"""The options; the defaults solve the maze in seconds."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.shared.runs import NotNegative, Positive, Seed, check_ranges, option
from rnnjax import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn to find the goal of a T-maze, with memory and, for comparison, without.

    The first observation shows on which side the goal is. In the corridor that follows it is not
    visible, and at the junction at the end the agent must turn to that side.
    """

    corridor_length: Positive = 8
    """The number of steps from the start to the junction."""
    step_limit: int = 40
    """The maximum number of steps of an episode."""
    cell: Literal["gru", "lstm"] = "gru"
    """The type of recurrent cell."""
    hidden_size: Positive = 32
    """The number of hidden units."""
    environments: Positive = 64
    """The number of mazes in a batch."""
    rollout: Positive = 32
    """The number of steps between updates, through which the gradient flows back."""
    updates: Positive = 1500
    """The number of rollouts, each followed by one step of the optimiser."""
    learning_rate: float = 5e-3
    """The learning rate of Adam."""
    clip_norm: float = 0.5
    """The largest norm of the gradient."""
    discount: float = 0.98
    """The discount of a reward per step."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the value function, 1 only rewards."""
    value_weight: NotNegative = 0.5
    """The weight of the value function's loss."""
    entropy_weight: NotNegative = 0.02
    """The weight of the entropy bonus, which keeps the policy exploring."""
    episodes: Positive = 2000
    """The number of new episodes, with greedy actions, for the success rate at the end."""
    seed: Seed = 0
    """The seed of the initial weights, the mazes and the actions."""
    seeds: Positive = 1
    """The number of seeds, from --seed on, to train together in one vmapped run."""
    run_dir: Path | None = None
    """Where the picture and result.json go; by default a new folder under runs/t_maze."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        if self.step_limit <= self.corridor_length:
            raise InvalidInputError(
                f"--step-limit must be above --corridor-length {self.corridor_length}, so that the "
                f"junction can be reached and turned at, but is {self.step_limit}; take more steps"
            )
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"{option(name)} must be above 0, but is {getattr(self, name)}; --help has the "
                    "usual one"
                )
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(
                    f"{option(name)} must be from 0 to 1, but is {getattr(self, name)}; --help has "
                    "the usual one"
                )
