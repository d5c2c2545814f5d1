"""The whole loop over time as one kernel, on the platforms that have one."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.cells.arguments import check_flag
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import at_least_float32
from rnnjax.engine.fused import Fused, unrolled
from rnnjax.engine.kernel_loop import Traced
from rnnjax.engine.method import Method
from rnnjax.engine.over_time import Loop, Step, over_time
from rnnjax.engine.recurrence import Recurrence
from rnnjax.engine.steps import AtStep, Steps

# Of the chip's memory: what the arrays of a kernel may take, and what with the compiler's own.
_FOR_ARRAYS, _FOR_ALL = 0.75, 0.95
# That of a v5e and a v6e, where a program is made for a TPU of which no more is known.
_USUAL_MEMORY = 128 * 2**20


@dataclasses.dataclass(frozen=True, repr=False)
class Kernel(Method):
    """Run all steps of a layer as one kernel of a TPU, forward and backward.

    It computes what `Fused` does, by the same step. But the step is no longer many small programs
    of XLA's: it is the body of one Pallas call, in which the state and all that the steps share
    (weights, biases, the start of a sequence) stay in the chip's memory, while inputs and outputs
    come and go in blocks of some steps. That this is possible follows from the cell's equation, for
    a user's own cell too; masks, resets and both directions are inside.

    Elsewhere (CPU, GPU), where the arrays do not fit the chip, and where the update does what no
    kernel can, the loop is that of `Fused`: `rnnjax.explain` says which, before anything runs. What
    `Fused` refuses is refused, and cells whose products are convolutions. Of the speed on a TPU
    nothing was measured.

    Args:
        keep_every: as in `Fused`: keep only the state before every so many steps.
        product_dtype: as in `Fused`: the type of the operands of all products.
        interpret: run the kernel on any platform, in Pallas's interpreter: for tests, slowly.

    Raises:
        InvalidInputError: ``keep_every`` is not a positive integer, ``product_dtype`` is not a
            floating-point type, or ``interpret`` is not a boolean.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((10, 8, 3)), method=Kernel())
    >>> ys.shape
    (10, 8, 5)
    """

    keep_every: int | None = None
    product_dtype: DTypeLike | None = None
    interpret: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("interpret", self.interpret)
        object.__setattr__(self, "product_dtype", self._fused.product_dtype)

    @property
    def _fused(self) -> Fused:
        return Fused(self.keep_every, self.product_dtype)

    def refusal(self, cell: Cell) -> str | None:
        """What `Fused` refuses, and convolutions."""
        reason = self._fused.refusal(cell)
        if reason is None and len(cell.parameters(1)["kernel"].shape) > 2:
            return "its products are convolutions, which no kernel computes"
        return reason

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``, whose batch a kernel sees as rows."""
        batch = xs.shape[1:-1]
        if len(batch) == 1:
            given = xs, carry, steps._replace(each=_for_all(steps.each, xs.shape[:2]))
        else:
            given = _as_rows(xs, carry, steps)
        loops = KernelLoops(self.interpret)
        recurrence = Recurrence(cell, self._fused.dtype_of(cell), reverse, loops)
        carry, ys = unrolled(recurrence, self.keep_every, params, *given)
        if len(batch) == 1:
            return carry, ys
        back = jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), carry)
        return back, ys.reshape(xs.shape[0], *batch, ys.shape[-1])

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Whether each of the two loops is a kernel, what it holds, and how the rest runs."""
        if shape[0] == 0:  # of no step there is no loop
            return self._fused.explain(cell, params, shape, platform)
        notes: list[str] = []
        loops = KernelLoops(self.interpret, notes)
        recurrence = Recurrence(cell, self._fused.dtype_of(cell), False, loops)
        length, rows = min(self.keep_every or shape[0], shape[0]), math.prod(shape[1:-1])
        dtype = at_least_float32(params["kernel"].dtype)
        xs = jax.ShapeDtypeStruct((length, rows, shape[-1]), dtype)

        def both(params: Params, xs: Any, carry: Carry) -> None:
            args = dict(cell.in_loop(params)), Steps(), xs, AtStep(), carry
            out, kept = recurrence.forward(platform, *args)
            wanted = jax.tree.map(lambda _: True, args)
            recurrence.backward(platform, args, kept, out, wanted)

        jax.eval_shape(both, params, xs, cell.initial_carry((rows,)))
        lines = [
            f"{which} loop: {note}"
            for which, note in zip(("the forward", "the backward"), notes, strict=True)
        ]
        return [*lines, *self._fused.explain(cell, params, shape, platform)]


@dataclasses.dataclass(frozen=True)
class KernelLoops:
    """Loops in a kernel where a program for a TPU has room for it, and XLA's elsewhere.

    Args:
        interpret: as in `Kernel`, or how Pallas's interpreter for TPUs is to run.
        notes: where each loop leaves what became of it; None where nobody asks.
    """

    interpret: Any
    notes: list[str] | None = dataclasses.field(default=None, compare=False)

    def on(self, platform: str) -> tuple[str, Loop]:
        """The loop for a platform, and that for which the rest of a layer is planned."""
        if platform == "tpu" or self.interpret:
            return "tpu", self._run
        self._note(f"XLA's, not a kernel, because there is none for {platform}")
        return platform, over_time

    def _run(
        self,
        step: Step,
        state: Any,
        first: jax.Array,
        others: Any,
        reverse: bool,
        ahead: bool,
    ) -> tuple[Any, jax.Array, Any]:
        reason, note = self._why_not((state, first, others)), ""
        if reason is None:
            traced, whole = Traced.of(step, state, first, others), memory()
            room = int(_FOR_ARRAYS * whole)
            block = traced.block(room)
            size, limit = traced.size(block), int(_FOR_ALL * whole)
            if size > room:
                reason = f"it would hold {_mebibytes(size)}, more than {_FOR_ARRAYS:.0%} of the "
                reason += f"chip's {_mebibytes(whole)}"
            elif not self.interpret:
                reason = _why_not_lowered(traced, reverse, block, limit)
            note = f"one kernel, {block} steps at a time, which holds {_mebibytes(size)} of the "
            note += f"chip's {_mebibytes(whole)}"
        self._note(f"XLA's, not a kernel, because {reason}" if reason else note)
        if reason is not None:
            return over_time(step, state, first, others, reverse, ahead)
        return traced.run(reverse, block, limit, self.interpret)

    def _note(self, note: str) -> None:
        if self.notes is not None:
            self.notes.append(note)

    def _why_not(self, arrays: Any) -> str | None:
        """Why there is no kernel, whatever its size."""
        leaves = jax.tree.leaves(arrays)
        if any(map(is_symbolic_dim, itertools.chain(*(leaf.shape for leaf in leaves)))):
            return "a size is not known"
        if not all(leaf.size for leaf in leaves):
            return "there is nothing to compute"
        wide = {leaf.dtype.name for leaf in leaves if leaf.dtype.itemsize > 4}
        if wide and not self.interpret:
            return f"a TPU's kernels compute no {', '.join(sorted(wide))}"
        return None


def _why_not_lowered(traced: Traced, reverse: bool, block: int, vmem: int) -> str | None:
    """What Mosaic, which compiles kernels for a TPU, says against one: an operation, mostly."""

    def run(arrays: Any) -> Any:
        return dataclasses.replace(traced, arrays=arrays).run(reverse, block, vmem, False)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), traced.arrays)
    try:
        # Of one device, whatever stands around it.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            jax.jit(run).trace(shapes).lower(lowering_platforms=("tpu",))
    except Exception as error:  # of no class of its own
        return f"its compiler says: {(str(error) or repr(error)).splitlines()[0]}"
    return None


def memory() -> int:
    """The bytes of the memory (VMEM) of the chip that the program is made for."""
    from jax.experimental.pallas import tpu as pltpu  # takes its time, and few need it

    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return _USUAL_MEMORY


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"


def _for_all(each: AtStep, rows: tuple[int, ...]) -> AtStep:
    """Marks that leave out axes of the batch, for each row."""
    whole = [
        marks
        if marks is None
        else jnp.broadcast_to(marks.reshape(*marks.shape, *[1] * (len(rows) - marks.ndim)), rows)
        for marks in (each.valid, each.resets)
    ]
    return each._replace(valid=whole[0], resets=whole[1])


def _as_rows(xs: Any, carry: Carry, steps: Steps) -> tuple[Any, Carry, Steps]:
    """All with one axis of rows, in the place of those of the batch."""
    axes = len(xs.shape) - 2
    rows = math.prod(xs.shape[1:-1])

    def over_time(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(leaf.shape[0], rows, *leaf.shape[1 + axes :])

    def at_once(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(rows, *leaf.shape[axes:])

    each = jax.tree.map(over_time, _for_all(steps.each, xs.shape[:-1]))
    start, recurrent = jax.tree.map(at_once, (steps.start, steps.recurrent))
    steps = steps._replace(each=each, start=start, recurrent=recurrent)
    return jax.tree.map(over_time, xs), jax.tree.map(at_once, carry), steps
