"""The choice of a method for each layer."""

import dataclasses
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.fused import Fused
from rnnjax.engine.kernel import Kernel, over_rows
from rnnjax.engine.kernel_loops import KernelLoops
from rnnjax.engine.method import Method
from rnnjax.engine.parallel import Parallel
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps

# Of the bundles of instructions that a step of `Fused` takes, compiled for a v5e, one of a kernel
# takes 0.11 to 0.87 at 128 units, 0.48 to 0.83 at 256 and 512, but of 1,024 in the gradient 1.04.
# Where the state is a matrix it is 0.88 to 1.52 (`benchmarks/accelerators.csv`).
_MOST_UNITS = 512


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Method):
    """Choose for each layer: `Fused` where it can serve the cell, else `Scan`; see what follows.

    A cell that declares a matrix memory (`rnnjax.MLSTMCell`, `rnnjax.Mamba2Cell`) runs as
    `Parallel`, whose products over chunks take the place of outer products at each step: on two
    cores of an AMD EPYC, 64 units, 64 to 1,024 steps and 1 to 8 rows, mLSTM and Mamba-2 (and gated
    DeltaNet over 64) take 0.08 to 0.25 of the time of `Fused` forward, 0.04 to 0.09 with gradients;
    GLA, whose keys decay each by itself, 0.09 to 0.94 with the gradient, and forward alone 0.2 to
    0.53 with some rows, but 1.3 to 1.4 with one. Affine cells whose state is a vector stay on
    `Fused`, as what is faster depends on the shapes and on whether there is a gradient: minGRU(128)
    over one row of 1,024 steps or more takes 1.0 to 1.2 of its time by `Parallel` forward, 0.6 to
    0.8 with the gradient, and over 16 rows 1.6 and 1.3; see there.

    A sequence of one step has nothing to take out of the loop, so it runs on `Scan`, which then
    needs no loop: at LSTM(50), batch 1, forward and backward, this compiles and runs in 0.93 of the
    time.

    In a program that is compiled for a TPU, a layer whose state are vectors of at most 512 units,
    over one axis of rows, runs as `Kernel` if it fits the chip: its steps are fewer instructions
    then. That was counted in compiled programs; **none has run on a TPU**, so no time was measured
    there, and ``method=Fused()`` is the way around it. A program that `jax.export` writes has no
    kernel unless it is named, as JAX does not promise that later versions read one.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def choose(self, cell: Cell, num_steps: int = 2, platform: str | None = None) -> Method:
        """Return the method that runs ``cell`` over so many steps, on a platform if it is named.

        >>> from rnnjax import GRUCell
        >>> Auto().choose(GRUCell(4)) == Fused()
        True
        >>> Auto().choose(GRUCell(4), num_steps=1)
        Scan()
        >>> Auto().choose(GRUCell(4), platform="tpu")
        Kernel()
        >>> from rnnjax import MLSTMCell
        >>> Auto().choose(MLSTMCell(4))
        Parallel()
        """
        if num_steps == 1 or Fused().refusal(cell):
            return Scan()
        # It cuts a number of steps that is known.
        if isinstance(num_steps, int) and cell.remembers and not Parallel().refusal(cell):
            return Parallel()
        return Kernel() if platform == "tpu" and _shortens(cell) else Fused()

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen; for which platform is known when it is lowered."""
        if len(xs.shape) == 3 and isinstance(self.choose(cell, xs.shape[0], "tpu"), Kernel):
            loops = KernelLoops(False, unasked=True)
            return over_rows(Fused(), loops, cell, params, xs, carry, reverse, steps)
        return self.choose(cell, xs.shape[0]).run(cell, params, xs, carry, reverse, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Which method is chosen, why, and how that would run."""
        chosen = self.choose(cell, shape[0], platform if len(shape) == 3 else None)
        reason = Fused().refusal(cell)
        if reason:
            why = f"Scan(), because {reason}"
        elif shape[0] == 1:
            why = "Scan(), because a single step has nothing to take out of a loop"
        elif isinstance(chosen, Parallel):
            why = "Parallel(), because the cell declares a memory, for which it makes products"
        elif isinstance(chosen, Kernel):
            why = "Kernel(), because its steps are fewer instructions of a TPU, where it never ran"
        else:
            why = "Fused(), because the cell declares its equation"
        return [f"chose {why}", *chosen.explain(cell, params, shape, platform)]


def _shortens(cell: Cell) -> bool:
    """Whether a kernel of a TPU takes fewer instructions a step than XLA's loop does."""
    shapes = cell.carry_shapes.values()
    vectors = all(len(shape) == 1 and shape[0] <= _MOST_UNITS for shape in shapes)
    return vectors and Kernel().refusal(cell) is None
