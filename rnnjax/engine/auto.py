"""The choice of a method for each layer."""

import dataclasses
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.fused import Fused
from rnnjax.engine.method import Method
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Method):
    """Choose for each layer: `Fused` where it can serve the cell, else `Scan`.

    A sequence of one step has nothing to take out of the loop, so it runs on `Scan`, which then
    needs no loop: at LSTM(50), batch 1, forward and backward, this compiles and runs in 0.93 of the
    time.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def choose(self, cell: Cell, num_steps: int = 2) -> Method:
        """Return the method that runs ``cell`` over so many steps.

        >>> from rnnjax import GRUCell
        >>> Auto().choose(GRUCell(4)) == Fused()
        True
        >>> Auto().choose(GRUCell(4), num_steps=1)
        Scan()
        """
        return Scan() if num_steps == 1 or Fused().refusal(cell) else Fused()

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen."""
        return self.choose(cell, xs.shape[0]).run(cell, params, xs, carry, reverse, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Which method is chosen, why, and how that would run."""
        chosen = self.choose(cell, shape[0])
        reason = Fused().refusal(cell)
        if reason:
            why = f"Scan(), because {reason}"
        elif shape[0] == 1:
            why = "Scan(), because a single step has nothing to take out of a loop"
        else:
            why = "Fused(), because the cell declares its equation"
        return [f"chose {why}", *chosen.explain(cell, params, shape, platform)]
