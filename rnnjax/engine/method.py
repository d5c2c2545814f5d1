"""What every way of running a cell over time has in common."""

import abc
import dataclasses
from typing import Any

import jax

from rnnjax.cells.arguments import brief
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.steps import Steps
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A way of running one cell over a sequence. Its options are its fields.

    Every method takes the same parameters and gives the same numbers.
    """

    @abc.abstractmethod
    def refusal(self, cell: Cell) -> str | None:
        """Why this method cannot run ``cell``, in words that complete a sentence; else None."""

    @abc.abstractmethod
    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``; the arguments have been checked."""

    @abc.abstractmethod
    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """How ``cell`` would run over inputs of that shape, and why, in a few phrases."""


def check_method(cell: Cell, method: Method) -> None:
    """Raise unless a method can run a cell."""
    reason = method.refusal(cell)
    if reason:
        raise InvalidInputError(
            f"{method} cannot run {brief(cell)}, because {reason}; use method=Scan() or "
            "method=Auto()"
        )
