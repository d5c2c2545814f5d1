"""The method that runs the whole loop over time as one kernel."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.products import at_least_float32
from rnnjax.cells.step import loop_params, split_raw
from rnnjax.checks import brief
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.method import Fused, unrolled
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.pallas.dispatch import KernelLoops
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, repr=False)
class Kernel(Fused):
    """Run all steps of a layer as one kernel on a TPU or a GPU, forward and backward.

    It computes the same step as `Fused`. Instead of many small programs of XLA, the step is the
    body of one Pallas call, made from the cell's equation, also for a user's own cell. Masks,
    resets and both directions run in the kernel.

    On a TPU the state and everything that the steps share (weights, biases, the start of a
    sequence) stay in VMEM. Inputs and outputs are streamed in blocks of steps. On a GPU (CUDA, by
    Triton) each program runs 16 rows for all steps, with the state in registers and weights read
    from the cache. A row of the state may then take 512 bytes as an operand: 128 units, or 256
    with ``product_dtype=jnp.bfloat16``.

    The loop of `Fused` runs instead on other platforms (CPU, ROCm), if the arrays do not fit, or if
    the update uses an operation that no kernel has. `rnnjax.explain` says which before anything
    runs. It refuses what `Fused` refuses, and convolutions. The kernel was compiled for TPUs and
    for an H100, but never run on either, and its speed was not measured.

    Args:
        keep_every: as in `Fused`: save only the state before every k-th step.
        product_dtype: as in `Fused`: the type of the operands of all products.
        interpret: run the kernel on any platform in Pallas's interpreter, slowly, for tests. True
            means the TPU's kernel, ``"cuda"`` the GPU's.

    Raises:
        InvalidInputError: ``keep_every`` is not a positive integer, ``product_dtype`` is not a
            floating-point type, or ``interpret`` is neither a boolean nor ``"cuda"``.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((10, 8, 3)), method=Kernel())
    >>> ys.shape
    (10, 8, 5)
    """

    interpret: bool | Literal["cuda"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.interpret, bool) and self.interpret != "cuda":
            raise InvalidInputError(
                f'interpret must be True or False, or "cuda", but is {brief(self.interpret)}'
            )

    def refusal(self, cell: Cell) -> str | None:
        """Refuse what `Fused` refuses, and convolutions."""
        reason = super().refusal(cell)
        if reason is None and len(cell.parameters(1 + cell.raw_size)["kernel"].shape) > 2:
            return "its products are convolutions, which no kernel computes"
        return reason

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``, with the batch as one axis of rows."""
        batch, loops = xs.shape[1:-1], KernelLoops(self.interpret)
        recurrence = Recurrence(cell, self.dtype_of(cell), reverse, loops)
        steps = steps._replace(per_step=_for_all(steps.per_step, xs.shape[:-1]))
        if len(batch) == 1:
            return unrolled(recurrence, self.keep_every, params, xs, carry, steps)
        rows, carry, steps = _as_rows(xs, carry, steps)
        carry, ys = unrolled(recurrence, self.keep_every, params, rows, carry, steps)
        back = jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), carry)
        return back, ys.reshape(xs.shape[0], *batch, ys.shape[-1])

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say whether each of the two loops is a kernel, what it holds, and how the rest runs."""
        if shape[0] == 0:  # of no step there is no loop
            return super().explain(cell, params, shape, platform)
        notes: list[str] = []
        loops = KernelLoops(self.interpret, notes=notes)
        recurrence = Recurrence(cell, self.dtype_of(cell), False, loops)
        length, rows = min(self.keep_every or shape[0], shape[0]), math.prod(shape[1:-1])
        dtype = at_least_float32(params["kernel"].dtype)
        xs = jax.ShapeDtypeStruct((length, rows, shape[-1] + cell.raw_size), dtype)

        def both(params: Params, xs: Any, carry: Carry) -> None:
            xs, raw = split_raw(cell, xs)
            args = dict(loop_params(cell, params)), Steps(), xs, StepMarks(raw=raw), carry
            out, saved = recurrence.forward(platform, *args)
            needs_grad = jax.tree.map(lambda _: True, args)
            recurrence.backward(platform, args, saved, out, needs_grad)

        jax.eval_shape(both, params, xs, cell.initial_carry((rows,)))
        lines = [
            f"{which} loop: {note}"
            for which, note in zip(("the forward", "the backward"), notes, strict=True)
        ]
        return [*lines, *super().explain(cell, params, shape, platform)]


def _for_all(per_step: StepMarks, rows: tuple[int, ...]) -> StepMarks:
    """Broadcast marks that leave out batch axes to all rows."""
    whole = [
        marks
        if marks is None
        else jnp.broadcast_to(marks.reshape(*marks.shape, *[1] * (len(rows) - marks.ndim)), rows)
        for marks in (per_step.valid, per_step.resets)
    ]
    return per_step._replace(valid=whole[0], resets=whole[1])


def _as_rows(xs: Any, carry: Carry, steps: Steps) -> tuple[Any, Carry, Steps]:
    """Reshape the axes of the batch into one axis of rows."""
    axes = len(xs.shape) - 2
    rows = math.prod(xs.shape[1:-1])

    def over_time(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(leaf.shape[0], rows, *leaf.shape[1 + axes :])

    def at_once(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(rows, *leaf.shape[axes:])

    per_step = jax.tree.map(over_time, steps.per_step)
    start, recurrent = jax.tree.map(at_once, (steps.start, steps.recurrent))
    steps = steps._replace(per_step=per_step, start=start, recurrent=recurrent)
    return jax.tree.map(over_time, xs), jax.tree.map(at_once, carry), steps
