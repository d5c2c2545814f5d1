"""The choice of a method for each layer."""

import dataclasses
import math
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.engine.core.masking import Steps
from rnnjax.engine.core.method import Method
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.fused.method import Fused
from rnnjax.engine.parallel.method import Parallel

# The most projected inputs of all steps; `python -m benchmarks.sequences parallel` times both. That
# ran on a CPU alone. A GPU runs the steps of a prefix sum at once, for which the bound may be too
# low: the same command there would decide.
_FEW_NUMBERS = 2**21


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Method):
    """Choose a method for each layer, by the first rule that applies.

    - `Scan` if the cell declares no equation, or if there is a single step.
    - `Parallel` if the cell declares a matrix memory.
    - `Parallel` if the cell is `rnnjax.Coupling.CONTRACTING`, its output is its state, its factors
      and constants are no more numbers than its projected inputs, and those are at most two million
      over all steps.
    - `Fused` otherwise.

    `Fused` also replaces `Parallel` if the number of steps is unknown, as in a program exported for
    any number.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Return None: every cell has a method."""
        return None

    def choose(self, cell: Cell, num_steps: Any = 2, rows: Any = None) -> Method:
        """Return the method that runs ``cell``.

        Args:
            cell: any cell.
            num_steps: the number of steps, an integer if known.
            rows: the number of rows, an integer if known.

        >>> from rnnjax import GRUCell, MinGRUCell, MLSTMCell
        >>> Auto().choose(GRUCell(4), num_steps=1)
        Scan()
        >>> Auto().choose(MLSTMCell(4))
        Parallel()
        >>> [Auto().choose(MinGRUCell(64), 1024, rows) for rows in (16, 17)]
        [Parallel(), Fused()]
        """
        return self._chosen(cell, num_steps, rows)[0]

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen."""
        method = self.choose(cell, xs.shape[0], math.prod(xs.shape[1:-1]))
        return method.run(cell, params, xs, carry, reverse, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say which method is chosen, why, and how it would run."""
        method, why = self._chosen(cell, shape[0], math.prod(shape[1:-1]))
        told = method.explain(cell, params, shape, platform)
        return [f"chose {method}, because {why}", *told]

    def _chosen(self, cell: Cell, num_steps: Any, rows: Any) -> tuple[Method, str]:
        """Return the method, and the rule that chose it."""
        if reason := Fused().refusal(cell):
            return Scan(), reason
        if num_steps == 1:
            return Scan(), "a single step has nothing to take out of a loop"
        known = isinstance(num_steps, int)
        # A loop over a memory reads and writes value_size x key_size numbers at each step. A chunk
        # of L steps does so once, and makes L x L weights: fewer numbers for an L well below that.
        if known and cell.has_memory:
            return Parallel(), "the cell declares a memory, for which it makes products"
        if known and _stores_little(cell, num_steps, rows):
            return Parallel(), "its steps are affine, and what they multiply and add is little"
        return Fused(), "the cell declares its equation"


def _stores_little(cell: Cell, num_steps: int, rows: Any) -> bool:
    """Whether factors and constants of all steps are few, and no more than the projected inputs.

    `Parallel` stores them, and more than fit a cache are slow; a loop needs each only once.
    """
    if cell.recurrent is not None or cell.coupling is not Coupling.CONTRACTING:
        return False
    if cell.output is None:  # each step would run once more for its output
        return False
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_carry))]
    columns = cell.parameters(1 + cell.raw_size)["kernel"].shape[-1] + cell.raw_size
    little = isinstance(rows, int) and num_steps * rows * columns <= _FEW_NUMBERS
    # Each unit has n x n factors and n constants a step, for n leaves: n + 1 times as many numbers
    # as the carry.
    return little and sum(sizes) * (len(sizes) + 1) <= columns
