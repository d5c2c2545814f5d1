"""The options; the defaults solve the maze in seconds."""

import dataclasses
from pathlib import Path
from typing import Literal

from rnnjax import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn to find the goal of a T-maze, with memory and, to compare, without.

    The first observation shows on which side the goal lies. Then comes a corridor where nothing is
    seen of it, and at its end a junction where the agent has to turn to that side.
    """

    corridor_length: int = 8
    """Steps forward from the start to the junction."""
    step_limit: int = 40
    """An episode that has not ended after so many steps ends there."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 32
    """Hidden units."""
    environments: int = 64
    """Mazes side by side: the batch."""
    rollout: int = 32
    """Steps of each maze between two updates, through which the gradient flows back."""
    updates: int = 1500
    """Rollouts, each followed by one step of the optimiser."""
    learning_rate: float = 5e-3
    """Of Adam."""
    clip_norm: float = 0.5
    """The gradient's norm is cut to this."""
    discount: float = 0.98
    """How much a reward counts one step earlier."""
    gae_lambda: float = 0.95
    """Of the generalised advantage estimate: 0 trusts the value function, 1 the rewards alone."""
    value_weight: float = 0.5
    """Of the value function's loss."""
    entropy_weight: float = 0.02
    """Of the bonus for a policy that still tries every action."""
    episodes: int = 2000
    """Fresh episodes, with the most probable actions, over which success is counted at the end."""
    seed: int = 0
    """Of the initial weights, the mazes and the actions."""
    seeds: int = 1
    """How many seeds, from --seed on, are trained side by side in one vmapped run."""
    run_dir: Path | None = None
    """Where the result goes; by default a new folder under runs/t_maze."""

    def __post_init__(self) -> None:
        for name in (
            "corridor_length", "hidden_size", "environments", "rollout", "updates", "episodes",
            "seeds",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{_option(name)} must be at least 1, but is {getattr(self, name)}"
                )
        if self.step_limit <= self.corridor_length:
            raise InvalidInputError(
                f"--step-limit must be above --corridor-length {self.corridor_length}, so that the "
                f"junction can be reached and turned at, but is {self.step_limit}"
            )
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"{_option(name)} must be above 0, but is {getattr(self, name)}"
                )
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(
                    f"{_option(name)} must be from 0 to 1, but is {getattr(self, name)}"
                )
        for name in ("value_weight", "entropy_weight", "seed"):
            if not getattr(self, name) >= 0:
                raise InvalidInputError(
                    f"{_option(name)} must not be negative, but is {getattr(self, name)}"
                )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
