"""The choice of a method for each layer."""

import dataclasses
import functools
import math
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.engine.fused import Fused
from rnnjax.engine.method import Method
from rnnjax.engine.parallel import Parallel, writes_more
from rnnjax.engine.primitive import Function
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps

# From so many steps on pieces of an affine recurrence are faster than its steps, if a step is so
# few numbers, projected inputs or state of all rows, that most of its time goes into beginning it:
# with twice as many rows or units most take as long or longer. By whether pieces compute the steps
# again (`writes_more`): forward, and with a gradient.
_MANY_STEPS = 512
_MOST_NUMBERS = {True: (128, 256), False: (384, 1024)}
_FEW = "its steps are affine and of few numbers, so that pieces side by side are faster"
# Elsewhere each step is launches. `Function.run` is told "any" of several devices, and of ROCm.
_STEPPING = None, "cpu", "tpu"


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Method):
    """Choose for each layer: `Fused` where it can serve the cell, else `Scan`; see what follows.

    A cell that declares a matrix memory (`rnnjax.MLSTMCell`, `rnnjax.Mamba2Cell`) runs as
    `Parallel`, whose products over chunks take the place of outer products at each step: on two
    cores of an AMD EPYC, 64 units, 64 to 1,024 steps and 1 to 8 rows, mLSTM and Mamba-2 (and gated
    DeltaNet over 64) take 0.08 to 0.25 of the time of `Fused` forward, 0.04 to 0.09 with gradients;
    GLA, whose keys decay each by itself, 0.09 to 0.94 with the gradient, and forward alone 0.2 to
    0.53 with some rows, but 1.3 to 1.4 with one.

    Cells that declare their coupling as `rnnjax.Coupling.CONTRACTING` (`rnnjax.MinGRUCell`,
    `rnnjax.LRUCell` and others of their family, but the temporal convolution) run as `Parallel`
    over 512 steps or more of few numbers: the columns of the kernel, or the state, times the rows.
    With a gradient up to 1,024 numbers of those whose factors can be written down (minGRU, minLSTM,
    RG-LRU, GILR), which takes 0.2 to 1.1 of the time of `Fused`, 0.65 in the median, and 0.8 to 2.8
    times its memory; up to 256 of the others (LRU, S5, S6, HGRN, QRNN, SRU), which takes 0.4 to
    1.0. Forward alone up to 384, in 0.4 to 1.25, and 128, in 0.5 to 1.2. Then a gradient is
    compiled 1.5 to 2.2 times as long. Where only the gradient does, the outputs alone are found
    step by step; but on a GPU, where each step is launches, and over several TPUs, where there is
    no kernel, in pieces. Second derivatives and those forwards are then those of `Fused`. Rows of a
    `jax.vmap` are not counted.

    A sequence of one step has nothing to take out of the loop, so it runs on `Scan`, which then
    needs no loop: at LSTM(50), batch 1, forward and backward, this compiles and runs in 0.93 of the
    time.

    `Kernel` has to be named.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def choose(
        self,
        cell: Cell,
        num_steps: Any = 2,
        platform: str | None = None,
        rows: Any = None,
        gradient: bool = False,
    ) -> Method:
        """Return the method that runs ``cell``.

        Args:
            cell: any.
            num_steps: over how many steps, an integer if that is known.
            platform: for which platform, if that is known.
            rows: over how many rows, an integer if that is known.
            gradient: whether a gradient is taken.

        >>> from rnnjax import GRUCell
        >>> Auto().choose(GRUCell(4)) == Fused()
        True
        >>> Auto().choose(GRUCell(4), num_steps=1)
        Scan()
        >>> from rnnjax import MinGRUCell, MLSTMCell
        >>> Auto().choose(MLSTMCell(4))
        Parallel()
        >>> [Auto().choose(MinGRUCell(64), 1024, rows=4, gradient=g) for g in (False, True)]
        [Fused(), Parallel()]
        """
        if num_steps == 1 or Fused().refusal(cell):
            return Scan()
        few = False
        if isinstance(num_steps, int):  # which pieces cut
            if cell.remembers:
                few = not Parallel().refusal(cell)
            elif isinstance(rows, int) and num_steps >= _MANY_STEPS:
                few = _few_numbers(cell, rows, gradient or platform not in _STEPPING)
        if few:
            return Parallel()
        return Fused()

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen."""
        choose = functools.partial(_choose, cell, xs)
        if choose(gradient=True) == choose():
            return _run(cell, params, xs, carry, reverse, steps)
        return BackInPieces(cell, reverse)(params, xs, carry, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Which method is chosen, why, and how that would run."""
        choose = functools.partial(self.choose, cell, shape[0], rows=math.prod(shape[1:-1]))
        chosen, reason = choose(platform), Fused().refusal(cell)
        if reason:
            why = f"Scan(), because {reason}"
        elif shape[0] == 1:
            why = "Scan(), because a single step has nothing to take out of a loop"
        elif isinstance(chosen, Parallel) and cell.remembers:
            why = "Parallel(), because the cell declares a memory, for which it makes products"
        elif isinstance(chosen, Parallel):
            why = f"Parallel(), because {_FEW}"
        else:
            why = "Fused(), because the cell declares its equation"
        lines = [f"chose {why}", *chosen.explain(cell, params, shape, platform)]
        back = choose(platform, gradient=True)
        if back != chosen:
            told = back.explain(cell, params, shape, platform)
            lines += [f"where a gradient is taken, chose Parallel(), because {_FEW}", *told]
        return lines


def _few_numbers(cell: Cell, rows: int, gradient: bool) -> bool:
    """Whether a step of an affine cell is so few numbers that pieces of the sequence are faster.

    Of a contracting one alone: pieces multiply factors, which where a state grows may be infinite
    before it is.
    """
    carry = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
    columns = cell.parameters(1)["kernel"].shape[-1]
    most = _MOST_NUMBERS[writes_more(cell)][gradient]
    few = rows * max(columns, sum(leaf.size for leaf in carry)) <= most
    return few and cell.recurrent is None and cell.coupling is Coupling.CONTRACTING


def _choose(cell: Cell, xs: Any, platform: str | None = None, gradient: bool = False) -> Method:
    rows = math.prod(xs.shape[1:-1])
    return Auto().choose(cell, xs.shape[0], platform, rows, gradient)


def _run(
    cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
) -> tuple[Carry, jax.Array]:
    """By the method chosen where no gradient is taken."""
    return _choose(cell, xs).run(cell, params, xs, carry, reverse, steps)


@dataclasses.dataclass(frozen=True)
class BackInPieces(Function):
    """``(params, xs, carry, steps) -> (carry, ys)``, by `Parallel` where a gradient is taken.

    All else is step by step: derivatives forwards and of second order, and on CPUs and one TPU the
    outputs alone.

    Args:
        cell: one that `Parallel` can run.
        reverse: whether it runs from the last step to the first.
    """

    cell: Cell
    reverse: bool

    def plain(self, params: Params, xs: Any, carry: Carry, steps: Steps) -> Any:
        """Step by step."""
        return _run(self.cell, params, xs, carry, self.reverse, steps)

    def run(self, platform: str, *args: Any) -> Any:
        """Step by step, or in pieces where each step is launches."""
        pieces = isinstance(_choose(self.cell, args[1], platform), Parallel)
        return self.in_pieces(*args) if pieces else self.plain(*args)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """What is kept is the derivative of the pieces."""
        with jax.disable_jit(False):  # run one by one, it would keep other arrays than are expected
            return _with_derivative(self, *args)

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """That derivative."""
        return kept(d)

    def in_pieces(self, params: Params, xs: Any, carry: Carry, steps: Steps) -> Any:
        """All at once."""
        return Parallel().run(self.cell, params, xs, carry, self.reverse, steps)


@functools.partial(jax.jit, static_argnums=0)
def _with_derivative(function: BackInPieces, *args: Any) -> tuple[Any, Any]:
    return jax.vjp(function.in_pieces, *args)
