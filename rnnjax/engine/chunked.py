"""Chunks of a sequence side by side, as rows of the batch, for any cell."""

import dataclasses
import math
from typing import Any

import jax

from rnnjax.cells.arguments import check_features, check_size, is_floating, is_integer, made_carry
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.chunks import Chunks, OwnSteps
from rnnjax.engine.fused import Fused, resets_early
from rnnjax.engine.method import Method
from rnnjax.engine.nearness import check_tolerance
from rnnjax.engine.pieces import near_divisor
from rnnjax.engine.primitive import Function
from rnnjax.engine.readout import read_out
from rnnjax.engine.recurrence import Recurrence
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, repr=False)
class Chunked(Method):
    r"""Cut a sequence into chunks that run side by side, and hand their ends on until they fit.

    What a network remembers of long ago is often less than a rounding. So each chunk begins with
    the state that a few steps before it make of zeros, and all run at once, as rows of the batch.
    With :math:`F_k` a chunk, :math:`s_k` the state that it began with,

    .. math::
        s_{k+1} \leftarrow F_k(s_k)

    is repeated until nothing changes by more than the tolerance: at once where the memory is
    shorter than the warm-up, and after as many times as there are chunks, which is the sequence
    one by one, at the latest (parareal without its coarse half: Lions, Maday & Turinici, 2001). The
    gaps at the seams tell, so the numbers are the cell's own; how long its memory is shows in the
    time alone. With `rnnjax.Newton` it is the other way round: units that keep what they have are
    what its factors know best.

    The gradient is found alike: what comes back into a chunk from behind it is first what its
    neighbour's first steps send back alone, and then handed on until it stands still.

    Derivatives of second order, and forwards, are those of the plain scan, at its price.

    Args:
        chunks: how many; left out, about the square root of the steps.
        warmup: the steps before a chunk from which it takes its first state, at most a chunk; left
            out, half a chunk. Twice as many wait for each other, as chunk and warm-up together.
        tolerance: of what changes, as a part of the largest state; left out, 16 roundings of the
            carry's type, 2e-6 in float32. Of the gradients the same.

    Raises:
        InvalidInputError: ``chunks`` is not a positive integer, ``warmup`` is negative or none, or
            ``tolerance`` is not a positive number.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(hidden_size=5)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jax.numpy.ones((100, 8, 3))
    >>> carry, ys = rnnjax.unroll(cell, params, xs, method=Chunked(chunks=4))
    >>> bool(jax.numpy.allclose(ys, rnnjax.unroll(cell, params, xs)[1], atol=1e-5))
    True
    """

    chunks: int | None = None
    warmup: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks is not None:
            check_size("chunks", self.chunks)
        if self.warmup is not None and not (is_integer(self.warmup) and self.warmup >= 0):
            raise InvalidInputError(
                f"warmup must be a number of steps, 0 or more, but is {self.warmup!r}"
            )
        check_tolerance(self.tolerance)

    def refusal(self, cell: Cell) -> str | None:
        """What cannot come to stand still is refused."""
        leaves = jax.tree.leaves(jax.eval_shape(lambda: made_carry(cell, ())))
        if not leaves:
            return "its carry is empty, so its steps need not wait for each other"
        floating = all(is_floating(leaf.dtype) for leaf in leaves)
        return None if floating else "its carry does not hold floating-point numbers alone"

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        num_steps = xs.shape[0]
        if not isinstance(num_steps, int):
            raise InvalidInputError(
                f"Chunked() cuts a number of steps that is known, but {num_steps} came; use "
                "method=Scan() or method=Fused()"
            )
        length = self._length(num_steps)
        if length >= num_steps:
            return _alone(cell).run(cell, params, xs, carry, reverse, steps)
        each = steps.each
        if reverse:
            xs, each = jax.tree.map(lambda leaf: leaf[::-1], (xs, each))
        inner: Function
        if cell.carry is None:
            inner, used, dtype = OwnSteps(cell), params, None
        else:
            check_features(cell, params, xs)
            carry, steps = resets_early(carry, steps._replace(each=each), False)
            each = steps.each
            inner, used = Recurrence(cell, cell.dtype, False), cell.in_loop(dict(params))
            dtype = cell.dtype
        chunks = Chunks(inner, length, self._warmup(length), self.tolerance)
        last, ys = chunks(used, steps.shared(), xs, each, carry)
        if cell.carry is not None:
            ys = read_out(cell, params, ys, xs, each, dtype)
        return last, ys[::-1] if reverse else ys

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """The chunks, how many steps wait for another, and how each chunk runs."""
        length = self._length(shape[0])
        inner = _alone(cell)
        if length >= shape[0]:
            return ["one chunk of all steps", *inner.explain(cell, params, shape, platform)]
        number, warmup = -(-shape[0] // length), self._warmup(length)
        return [
            f"{number} chunks of {length} steps as rows of the batch, each from the state of "
            f"{warmup} steps before it: {length + warmup} of {shape[0]} steps wait for the one "
            "before",
            f"and {length} more each time that ends are handed on, at most {number - 1} times, "
            "until the states at the seams stand still",
            "the gradient by the same chunks, backwards",
            *inner.explain(cell, params, (length, number, *shape[1:]), platform),
        ]

    def _length(self, num_steps: int) -> int:
        if self.chunks is None:
            return near_divisor(num_steps, math.isqrt(num_steps)) if num_steps else 0
        return -(-num_steps // self.chunks)

    def _warmup(self, length: int) -> int:
        return min(length, length // 2 if self.warmup is None else self.warmup)


def _alone(cell: Cell) -> Method:
    """The method that runs a chunk."""
    return Scan() if Fused().refusal(cell) else Fused()
