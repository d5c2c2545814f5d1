"""The method of the fast path: each layer is a `rnnjax.engine.fused.recurrence.Recurrence`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.step import loop_params
from rnnjax.checks import check_size, floating_dtype
from rnnjax.engine.core.masking import StepMarks, Steps, read_out
from rnnjax.engine.core.method import Method, why_no_equation
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.fused.loops import split_time
from rnnjax.engine.fused.plan import LayerPlan
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.fused.residuals import Layer, saved_numbers
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, repr=False)
class Fused(Method):
    """Project all inputs in one product, and run a hand-written backward pass.

    It runs every cell that declares its equation (see `rnnjax.Cell`), under ``jit``, ``grad``,
    ``vmap``, ``jvp``, ``linearize``, ``checkpoint`` and ``shard_map``. Forward-mode and second
    derivatives (``jacfwd``, ``hessian``) are those of the plain scan, and as slow.

    It refuses an update with a collective over a named axis, such as ``jax.lax.pmean``, or with an
    ordered callback, and so does `rnnjax.Auto`. Use ``Scan()`` for such a cell.

    Args:
        keep_every: trades memory for time. None saves the gates of every step for the backward
            pass: for an LSTM ``(gates + 2) * hidden_size`` numbers per step and row. With k, only
            the state before every k-th step is saved, and the backward pass recomputes k steps at a
            time (Chen et al., 2016). That takes a third more products, and memory for k steps and
            ``time / k`` states, which is least near the square root of the number of steps. A
            divisor of that number saves copies of the inputs and outputs.
        product_dtype: the type of the operands of all matrix products, forward and backward, if not
            the cell's. With ``jnp.bfloat16`` sums, gates, carry, outputs and gradients are still
            float32. It is faster on processors with native bfloat16 products, which have 8 bits of
            precision.

    Raises:
        InvalidInputError: ``keep_every`` is not a positive integer, or ``product_dtype`` is not a
            floating-point type.
    """

    keep_every: int | None = None
    product_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_every is not None:
            check_size("keep_every", self.keep_every)
        if self.product_dtype is not None:
            # One spelling of a dtype, so that equal methods hash alike.
            dtype = floating_dtype("product_dtype", self.product_dtype)
            object.__setattr__(self, "product_dtype", dtype)

    def refusal(self, cell: Cell) -> str | None:
        """Refuse a cell with its own step, or with integers or random keys in its carry."""
        if reason := why_no_equation(cell):
            return reason
        leaves = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
        numbers = all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)
        return None if numbers else "its carry holds integers, booleans or random keys"

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        recurrence = Recurrence(cell, self.dtype_of(cell), reverse)
        return unrolled(recurrence, self.keep_every, params, xs, carry, steps)

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Describe the forms of the products, and what the backward pass saves."""
        length = min(self.keep_every or shape[0], shape[0])
        plan = LayerPlan.of(cell, params, (length, *shape[1:]), self.dtype_of(cell), platform)
        layer = Layer(cell, plan, False, params, Steps())
        saved = f"{saved_numbers(layer, shape[1:-1])} numbers a row"
        if length == shape[0]:
            memory = f"keeps {saved} of every step for the backward pass"
        else:
            memory = (
                f"keeps the state before every {length} steps, and {saved} of {length} steps at a "
                "time, which the backward pass computes again"
            )
        return [*plan.phrases(cell, length), memory]

    def dtype_of(self, cell: Cell) -> DTypeLike | None:
        """Return the type of the operands of the cell's products."""
        return cell.dtype if self.product_dtype is None else self.product_dtype


def unrolled(
    recurrence: Recurrence,
    keep_every: int | None,
    params: Params,
    xs: Any,
    carry: Carry,
    steps: Steps,
) -> tuple[Carry, jax.Array]:
    """Run a recurrence, in segments with ``keep_every``, and its readout after the loop."""
    cell, num_steps, reverse = recurrence.cell, xs.shape[0], recurrence.reverse
    if num_steps == 0:  # there is no first step to take out of the loop
        return Scan().run(cell, params, xs, carry, reverse, steps)
    params = dict(params)  # in the order that JAX gives a dict, whatever mapping came
    carry, steps = resets_early(carry, steps, reverse)
    own = loop_params(cell, params)
    # Random masks and rates have no gradient.
    recurrent, leaks = jax.lax.stop_gradient((steps.recurrent, steps.leaks))
    shared = Steps(start=steps.start, recurrent=recurrent, leaks=leaks)

    def run(inputs: tuple[Any, StepMarks], carry: Carry) -> tuple[Carry, jax.Array]:
        return recurrence(own, shared, *inputs, carry)

    if keep_every is not None and is_symbolic_dim(num_steps):
        raise InvalidInputError(
            f"keep_every must be None where the number of steps is not known, but is "
            f"{keep_every} over {num_steps} steps"
        )
    if keep_every is None or keep_every >= num_steps:
        carry, emitted = run((xs, steps.per_step), carry)
    else:
        carry, emitted = _in_segments(run, keep_every, (xs, steps.per_step), carry, reverse)
    return carry, read_out(cell, params, emitted, xs, steps.per_step, recurrence.dtype)


def resets_early(carry: Carry, steps: Steps, reverse: bool) -> tuple[Carry, Steps]:
    """Move each reset to the end of the step before, and a reset of the first step to the carry.

    At the end of a step XLA fuses it with the rest of the step. At the beginning it would be a
    separate pointwise function before the recurrent product.
    """
    resets = steps.per_step.resets
    if resets is None:
        return carry, steps
    # To replace the state before a step is to replace it after the step that ran before. So each
    # mark moves to that step, and the mark of the step that runs first acts on the carry that comes
    # in. The step that runs last gets none, as it prepares the state of no other.
    none = jnp.zeros_like(resets[:1])
    if reverse:
        first, then = resets[-1], jnp.concatenate([none, resets[:-1]])
    else:
        first, then = resets[0], jnp.concatenate([resets[1:], none])
    carry = steps.reset(carry, StepMarks(resets=first))
    return carry, steps._replace(per_step=steps.per_step._replace(resets=then))


Run = Callable[[Any, Carry], tuple[Carry, jax.Array]]


def _in_segments(
    run: Run, length: int, inputs: Any, carry: Carry, reverse: bool
) -> tuple[Carry, jax.Array]:
    """Run segment by segment; the backward pass recomputes each segment."""
    num_steps = len(jax.tree.leaves(inputs)[0])
    whole = num_steps // length * length

    def segments(carry: Carry) -> tuple[Carry, jax.Array]:
        pieces = split_time(jax.tree.map(lambda leaf: leaf[:whole], inputs), length)
        # Saved are T / k carries of s numbers each, and of one segment at a time the residuals of k
        # steps, r numbers each: s T / k + r k is least at k = sqrt(T s / r). In a scan XLA cannot
        # merge the second computation of a segment with the first.
        again = jax.checkpoint(run, prevent_cse=False)
        carry, ys = jax.lax.scan(
            lambda carry, inputs: again(inputs, carry), carry, pieces, reverse=reverse
        )
        return carry, ys.reshape(whole, *ys.shape[2:])

    if whole == num_steps:
        return segments(carry)
    # The rest runs separately: padding to a segment would run extra steps.
    rest = jax.checkpoint(run)
    last = jax.tree.map(lambda leaf: leaf[whole:], inputs)
    if reverse:
        carry, after = rest(last, carry)
        carry, before = segments(carry)
    else:
        carry, before = segments(carry)
        carry, after = rest(last, carry)
    return carry, jnp.concatenate([before, after])
