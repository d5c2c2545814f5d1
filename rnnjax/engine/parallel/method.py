"""The method that runs recurrences in parallel over time: affine ones, others by Newton."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import check_features, check_instance, check_size
from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.cells.devices import MeshAxis
from rnnjax.engine.core.masking import Steps, expand, without_row, zero_masked
from rnnjax.engine.core.method import Method, why_no_equation
from rnnjax.engine.core.readout import read_out
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.fused.method import Fused, resets_early
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.parallel.blocked_scan import block_length
from rnnjax.engine.parallel.blocks_as_batch import BlocksAsBatch
from rnnjax.engine.parallel.chunkwise import chunk_length, chunkwise
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence, affine_states
from rnnjax.engine.parallel.newton import AllSteps, Newton, why_not_iterated
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, repr=False)
class Parallel(Method):
    r"""Run an affine recurrence in blocks side by side instead of step by step.

    The state of such a cell obeys

    .. math::
        s_t = A_t \odot s_{t-1} + b_t

    which it declares (`rnnjax.Coupling.AFFINE`). :math:`A_t` and :math:`b_t` come from its
    ``update`` by `jax.jvp`. All blocks run side by side to find what each does to any state, and
    once more from their true first states. Of :math:`T` steps :math:`2C + T / C` wait for each
    other (Blelloch, 1990; Martin & Cundy, 2018). Gradients of every order are exact.

    A product of many :math:`A_t` above 1 overflows: zeros stay zeros then, and other states are
    infinite earlier than step by step.

    A matrix memory (`rnnjax.MLSTMCell`, `rnnjax.GatedDeltaNetCell`) runs in chunks, as products of
    matrices (Hua et al., 2022; Yang et al., 2024). Other cells need ``newton``, which corrects a
    guess of all states.

    Args:
        chunk: the steps :math:`C` of a block. Left out, about :math:`\sqrt{T / 2}`; for a matrix
            memory 64, or 16 where each key decays by itself.
        newton: a `rnnjax.Newton`, for cells that are not affine; None refuses these.
        axis_name: a mesh axis, inside of `jax.shard_map`, over which the steps are divided. ``xs``,
            ``mask`` and ``resets`` are this device's; ``carry`` and ``lengths`` are those of the
            whole sequence, as is the carry that is returned. Not with ``newton``, nor for matrix
            memories.

    Raises:
        InvalidInputError: ``chunk`` is not a positive integer, ``newton`` no `rnnjax.Newton`, or
            ``axis_name`` no string; both of these were given; or no mesh axis has that name.

    >>> import functools, rnnjax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> cell = rnnjax.MinGRUCell(4)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jnp.ones((100, 2, 3))
    >>> mesh = jax.make_mesh((1,), ("time",), (AxisType.Auto,))  # of so many devices
    >>> whole, steps = PartitionSpec(), PartitionSpec("time")
    >>> @functools.partial(
    ...     jax.shard_map, mesh=mesh, in_specs=(whole, steps), out_specs=(whole, steps))
    ... def run(params, xs):
    ...     return rnnjax.unroll(cell, params, xs, method=Parallel(axis_name="time"))
    >>> carry, ys = run(params, xs)
    >>> bool(jnp.allclose(ys, rnnjax.unroll(cell, params, xs)[1], atol=1e-5))
    True
    """

    chunk: int | None = None
    newton: Newton | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None:
            check_size("chunk", self.chunk)
        if self.newton is not None:
            check_instance("newton", self.newton, Newton, "Newton(), or None for affine cells only")
        if self.axis_name is not None:
            check_instance("axis_name", self.axis_name, str, "an axis of the mesh, or None")
            if self.newton is not None:
                raise InvalidInputError(
                    f"newton must be None where axis_name divides the steps over devices, but is "
                    f"{self.newton}; leave one of them out"
                )

    @property
    def along(self) -> MeshAxis:
        """Return the devices of ``axis_name``."""
        return MeshAxis(self.axis_name)

    def refusal(self, cell: Cell) -> str | None:
        """Refuse what is not affine or mixes its units, unless there is ``newton``."""
        if cell.has_memory and self.axis_name is not None:
            return "its matrix memory is not handed on between devices"
        reason = why_not_affine(cell)
        return why_not_iterated(cell) if reason and self.newton is not None else reason

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        num_steps = xs.shape[0]
        if not isinstance(num_steps, int):
            raise InvalidInputError(
                f"Parallel() cuts a number of steps that is known, but {num_steps} came; use "
                "method=Scan() or method=Fused()"
            )
        if num_steps == 0:
            last, ys = Scan().run(cell, params, xs, carry, reverse, steps)
            if self.axis_name is not None:  # it is the same on all devices, and has to say so
                last = jax.tree.map(lambda every: every[0], self.along.gathered(last))
            return last, ys
        check_features(cell, params, xs)
        batch = xs.shape[1:-1]
        if len(batch) == 1 and isinstance(batch[0], int) and batch[0] == 1:
            # XLA copies arrays (time, 1, width) before and after products and loops. Without the
            # axis a gradient of an LRU takes about half of the time.
            xs, steps, carry = without_row(xs, steps, carry)
            last, ys = self.run(cell, params, xs, carry, reverse, steps)
            return jax.tree.map(lambda leaf: leaf[None], last), ys[:, None]
        per_step = steps.per_step
        if reverse:
            xs, per_step = jax.tree.map(lambda leaf: leaf[::-1], (xs, per_step))
        if cell.has_memory:
            last, ys = chunkwise(
                cell, params, xs, carry, steps._replace(per_step=per_step), self.chunk
            )
            ys = read_out(cell, params, ys, xs, per_step)
            return last, ys[::-1] if reverse else ys
        if why_not_affine(cell):
            last, ys = self.all_steps(cell, num_steps)(
                dict(cell.loop_params(params)), steps.shared(), xs, per_step, carry
            )
            ys = read_out(cell, params, ys, xs, per_step)
            return last, ys[::-1] if reverse else ys
        length = block_length(num_steps, self.chunk)
        if self.axis_name is None and runs_again(cell, xs.shape):
            carry, steps = resets_early(carry, steps._replace(per_step=per_step), False)
            recurrence = Recurrence(cell, cell.dtype, False, blocks=True)
            beside = BlocksAsBatch(recurrence, length, not writes_more(cell))
            used = cell.loop_params(dict(params))
            last, ys = beside(used, steps.shared(), xs, steps.per_step, carry)
        else:
            solved = AffineRecurrence(length, self.along, reverse)
            last, ys = affine_states(cell, solved, params, steps, xs, per_step, carry)
        ys = read_out(cell, params, ys, xs, per_step)
        return last, ys[::-1] if reverse else ys

    def held(
        self, ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool
    ) -> jax.Array:
        """Hold the last valid output, another device's perhaps: a state that valid ones reset."""
        if self.axis_name is None or ys.shape[0] == 0:
            return super().held(ys, valid, resets, reverse)
        begins = valid if resets is None else expand(valid, resets) | expand(resets, valid)
        given = zero_masked(ys, valid), begins
        ys, begins = jax.tree.map(lambda leaf: leaf[::-1], given) if reverse else given
        solved = AffineRecurrence(block_length(ys.shape[0], self.chunk), self.along, reverse)
        (held,), _, _ = solved([ys], [[jnp.ones_like(ys)]], [jnp.zeros_like(ys[0])], begins)
        return held[::-1] if reverse else held

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say how many blocks there are, and how many steps wait for another."""
        if cell.has_memory:
            length = chunk_length(cell, params, shape, self.chunk)
            return [
                f"the products of {length} steps at a time as those of matrices, all chunks side "
                f"by side; {-(-shape[0] // length)} memories wait for the one before",
                "the gradient backwards through the same, computed again",
            ]
        length = block_length(shape[0], self.chunk)
        blocks = -(-shape[0] // length)
        lines = [
            f"{blocks} blocks of {length} steps side by side, twice: {2 * length + blocks} of "
            f"{shape[0]} steps wait for the one before",
            "the gradient by the same blocks, backwards",
        ]
        if self.axis_name is not None:
            lines.append(
                f"on each device of the axis {self.axis_name!r}, and then all know what the steps "
                "of each make of a state: one gather forward, and one backwards"
            )
        reason = why_not_affine(cell)
        if reason is None and self.axis_name is None and runs_again(cell, shape):
            rows = length, blocks, *shape[1:]
            if writes_more(cell):
                why = "the factors of all steps are more numbers than the inputs, or outputs are "
                lines += [f"by its steps and their derivative, as {why}no state"]
            else:
                lines += [
                    "where a gradient is taken, by its steps and their derivative, in less memory "
                    "than by the factors of all steps"
                ]
            more = Fused().explain(cell, params, rows, platform)
            return [*lines, "then the blocks as rows of a batch, by Fused()", *more]
        if reason is None or self.newton is None:
            return lines
        return [
            f"by Newton's method, because {reason}: at most {self.newton.max_iterations} times "
            "all steps at once, each a product over all of them and",
            *lines,
            "step by step where that does not converge; rnnjax.newton says how it does",
        ]

    def all_steps(self, cell: Cell, num_steps: int) -> AllSteps:
        """Return the iterations for a cell that is not affine, over so many steps."""
        return AllSteps(cell, self.newton or Newton(), block_length(num_steps, self.chunk))


def why_not_affine(cell: Cell) -> str | None:
    """Why a cell is not declared to be affine in its state, unit by unit; None where it is."""
    if cell.has_memory:  # its memory is affine, and its update follows from that
        return None
    if reason := why_no_equation(cell):
        return reason
    if cell.recurrent is not None:
        return "its units see each other's state in a product"
    if cell.coupling < Coupling.AFFINE:
        return f"its coupling is declared as {cell.coupling.name}, not as AFFINE or CONTRACTING"
    return None


# Why there are two ways. `AffineRecurrence` stores the factors A and constants b of all steps. It
# is simple, and differentiable to any order, but a state of n leaves has n + 1 such numbers for
# each of its own: for an S6 many times the inputs. `BlocksAsBatch` stores neither and runs the
# steps twice: less memory always, and less time unless A and b are fewer numbers than the inputs.
# There stored factors are faster until memory takes the time, from about this many projected inputs
# on. `python -m benchmarks.sequences parallel` measures both sides.
_MANY_INPUTS = 2**22


def writes_more(cell: Cell) -> bool:
    """Whether A and b are more numbers than the projected inputs, or outputs are not the state.

    Outputs that are not the state would have every step computed once more.
    """
    return cell.output is None or _written(cell) > _read(cell)


def runs_again(cell: Cell, shape: tuple[Any, ...]) -> bool:
    """Whether blocks run the steps again for a gradient, `BlocksAsBatch`, and store no factors.

    Args:
        cell: an affine one.
        shape: of the inputs, ``(time, *batch, features)``.
    """
    if writes_more(cell) or _written(cell) == _read(cell):
        return True
    known = all(isinstance(size, int) for size in shape[:-1])
    return known and math.prod(shape[:-1]) * _read(cell) >= _MANY_INPUTS


def _written(cell: Cell) -> int:
    """How many numbers A and b of a step are."""
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_carry))]
    return sum(sizes) * (len(sizes) + 1)


def _read(cell: Cell) -> int:
    """How many numbers the projected inputs of a step are."""
    return int(cell.parameters(1 + cell.raw_inputs)["kernel"].shape[-1]) + cell.raw_inputs
