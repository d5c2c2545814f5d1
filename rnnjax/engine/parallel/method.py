"""All steps at once: for cells whose new state is affine in the one before, or by iterations."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import check_features, check_instance, check_size
from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.cells.devices import Along
from rnnjax.engine.core.masking import Steps, expand, without_row, zero_masked
from rnnjax.engine.core.method import Method, why_no_equation
from rnnjax.engine.core.readout import read_out
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.fused.method import Fused, resets_early
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.parallel.blocked_scan import piece_length
from rnnjax.engine.parallel.blocks_as_batch import Beside
from rnnjax.engine.parallel.chunkwise import chunk_length, chunkwise
from rnnjax.engine.parallel.linear_recurrence import Solved, solved_states
from rnnjax.engine.parallel.newton import AllSteps, Newton, why_not_iterated
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, repr=False)
class Parallel(Method):
    r"""Run an affine recurrence in pieces side by side instead of step by step.

    A cell whose units do not see each other and whose new state is affine in the old one,

    .. math::
        s_t = A_t \odot s_{t-1} + b_t

    (`rnnjax.MinGRUCell`, `rnnjax.MinLSTMCell` and others of their family), needs no step to wait
    for the one before (Blelloch, 1990; Martin & Cundy, 2018). :math:`A_t` and :math:`b_t` come from
    the cell's own ``update`` by `jax.jvp`, with masks, lengths, resets and zoneout inside, so that
    nothing is written twice; that a cell is affine is what its `rnnjax.Coupling` declares. The
    sequence is cut into pieces that run side by side: first for what each makes of any state, then,
    from their true beginnings, once more. Of :math:`T` steps :math:`2C + T / C` depend on each
    other.

    What a piece makes of a state is the product of its :math:`A_t`, which where these are above 1
    may be infinite: in float32 from 5.9 on over 50 steps, and from 1.14 on over 700. Zeros stay
    zeros behind such a piece; any other state is infinite there, before it is so step by step.

    Where :math:`A_t` and :math:`b_t` are more numbers than the inputs that they come from, as those
    of complex states (`rnnjax.LRUCell`) and of many states a unit (`rnnjax.S6Cell`), or outputs are
    made of states and inputs (`rnnjax.SRUCell`, `rnnjax.QRNNCell`), they are not written down: the
    pieces are rows of a batch, which `rnnjax.Fused` runs, and a step and its derivative give what a
    piece makes of a state. Elsewhere the outputs alone are found from :math:`A_t` and :math:`b_t`,
    which are written down, and so are gradients of cells where these are fewer numbers than the
    inputs (`rnnjax.MinLSTMCell`, `rnnjax.RGLRUCell`), below four million projected inputs. Other
    gradients (`rnnjax.MinGRUCell`, `rnnjax.GILRCell`) are found by rows of a batch too: in 0.8 to
    1.0 of the memory of `rnnjax.Fused`, where written down they would take 1.3 to 2.2.

    A cell that declares a matrix memory (`rnnjax.MLSTMCell`, `rnnjax.GLACell`, `rnnjax.Mamba2Cell`,
    `rnnjax.GatedDeltaNetCell`) runs chunk by chunk: inside of a chunk what each step writes and
    reads are products of matrices, and one memory is handed on (Hua et al., 2022; with the delta
    rule Yang et al., 2024).

    The gradient is found alike, backwards. The other derivatives are those of a linear solve with
    :math:`A_t` and :math:`b_t` of all steps: exact, of every order, forwards and in reverse.

    With ``newton`` other cells, such as `rnnjax.GRUCell` and `rnnjax.LSTMCell`, run so too: such a
    recurrence is solved again and again, for corrections of a guess of all states, until these obey
    the cell's own step. Their first derivatives in reverse are found the same way, and are those of
    that step; of second order and forwards they are those of the plain scan, at its price.

    Args:
        chunk: the steps :math:`C` of a piece; left out, about the root of half of the steps, with
            which least wait for each other, and 64 or, where keys decay by themselves, 16 of a
            matrix memory.
        newton: a `rnnjax.Newton`, for cells that are not affine; None refuses these.
        axis_name: an axis of the mesh, inside of `jax.shard_map`, over which the steps are divided:
            ``xs``, ``mask`` and ``resets`` are those of this device, ``carry`` and ``lengths`` are
            those of all. Each device runs its steps once from zeros for what they do to any state
            and, when the devices have told each other that, from their true beginning: one gather
            forward and one in the backward pass, of arrays of the size of a carry, and as much
            again for ``masked_outputs="last"``. The carry that is returned is the last of all, on
            every device. Not with ``newton``, nor for matrix memories.

    Raises:
        InvalidInputError: ``chunk`` is not a positive integer, ``newton`` no `rnnjax.Newton`, or
            ``axis_name`` no string; both of these were given; or no axis of that name is divided.

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
    def along(self) -> Along:
        """The devices of ``axis_name``."""
        return Along(self.axis_name)

    def refusal(self, cell: Cell) -> str | None:
        """What is not affine, or mixes its units, is refused, unless there is ``newton``."""
        if cell.remembers and self.axis_name is not None:
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
            # XLA copies arrays (time, 1, width) before and behind products and loops; without the
            # axis a gradient of LRU(64) over 4,096 steps takes 0.6 of the time, and of RG-LRU(128)
            # 0.92 (minGRU(128) as long; jaxlib 0.10.2, two cores).
            xs, steps, carry = without_row(xs, steps, carry)
            last, ys = self.run(cell, params, xs, carry, reverse, steps)
            return jax.tree.map(lambda leaf: leaf[None], last), ys[:, None]
        each = steps.each
        if reverse:
            xs, each = jax.tree.map(lambda leaf: leaf[::-1], (xs, each))
        if cell.remembers:
            last, ys = chunkwise(cell, params, xs, carry, steps._replace(each=each), self.chunk)
            ys = read_out(cell, params, ys, xs, each)
            return last, ys[::-1] if reverse else ys
        if why_not_affine(cell):
            last, ys = self.all_steps(cell, num_steps)(
                dict(cell.in_loop(params)), steps.shared(), xs, each, carry
            )
            ys = read_out(cell, params, ys, xs, each)
            return last, ys[::-1] if reverse else ys
        length = piece_length(num_steps, self.chunk)
        if self.axis_name is None and runs_again(cell, xs.shape):
            carry, steps = resets_early(carry, steps._replace(each=each), False)
            recurrence = Recurrence(cell, cell.dtype, False, blocks=True)
            beside = Beside(recurrence, length, not writes_more(cell))
            used = cell.in_loop(dict(params))
            last, ys = beside(used, steps.shared(), xs, steps.each, carry)
        else:
            solved = Solved(length, self.along, reverse)
            last, ys = solved_states(cell, solved, params, steps, xs, each, carry)
        ys = read_out(cell, params, ys, xs, each)
        return last, ys[::-1] if reverse else ys

    def held(
        self, ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool
    ) -> jax.Array:
        """That of another device perhaps: a state that begins anew with each valid output."""
        if self.axis_name is None or ys.shape[0] == 0:
            return super().held(ys, valid, resets, reverse)
        begins = valid if resets is None else expand(valid, resets) | expand(resets, valid)
        given = zero_masked(ys, valid), begins
        ys, begins = jax.tree.map(lambda leaf: leaf[::-1], given) if reverse else given
        solved = Solved(piece_length(ys.shape[0], self.chunk), self.along, reverse)
        (held,), _, _ = solved([ys], [[jnp.ones_like(ys)]], [jnp.zeros_like(ys[0])], begins)
        return held[::-1] if reverse else held

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """The pieces, and how many steps wait for another."""
        if cell.remembers:
            length = chunk_length(cell, shape[0], self.chunk)
            return [
                f"the products of {length} steps at a time as those of matrices, all chunks side "
                f"by side; {-(-shape[0] // length)} memories wait for the one before",
                "the gradient backwards through the same, computed again",
            ]
        length = piece_length(shape[0], self.chunk)
        pieces = -(-shape[0] // length)
        lines = [
            f"{pieces} pieces of {length} steps side by side, twice: {2 * length + pieces} of "
            f"{shape[0]} steps wait for the one before",
            "the gradient by the same pieces, backwards",
        ]
        if self.axis_name is not None:
            lines.append(
                f"on each device of the axis {self.axis_name!r}, and then all know what the steps "
                "of each make of a state: one gather forward, and one backwards"
            )
        reason = why_not_affine(cell)
        if reason is None and self.axis_name is None and runs_again(cell, shape):
            rows = length, pieces, *shape[1:]
            if writes_more(cell):
                why = "the factors of all steps are more numbers than the inputs, or outputs are "
                lines += [f"by its steps and their derivative, as {why}no state"]
            else:
                lines += [
                    "where a gradient is taken, by its steps and their derivative, in less memory "
                    "than by the factors of all steps"
                ]
            more = Fused().explain(cell, params, rows, platform)
            return [*lines, "then the pieces as rows of a batch, by Fused()", *more]
        if reason is None or self.newton is None:
            return lines
        return [
            f"by Newton's method, because {reason}: at most {self.newton.max_iterations} times "
            "all steps at once, each a product over all of them and",
            *lines,
            "step by step where that does not converge; rnnjax.newton says how it does",
        ]

    def all_steps(self, cell: Cell, num_steps: int) -> AllSteps:
        """The iterations for a cell that is not affine, over so many steps."""
        return AllSteps(cell, self.newton or Newton(), piece_length(num_steps, self.chunk))


def why_not_affine(cell: Cell) -> str | None:
    """Why a cell is not declared to be affine in its state, unit by unit; None where it is."""
    if cell.remembers:  # its memory is affine, and its update follows from that
        return None
    if reason := why_no_equation(cell):
        return reason
    if cell.recurrent is not None:
        return "its units see each other's state in a product"
    if cell.coupling < Coupling.AFFINE:
        return f"its coupling is declared as {cell.coupling.name}, not as AFFINE or CONTRACTING"
    return None


# Where factors and constants are fewer than the inputs, as two numbers of three, all at once they
# are found faster than in loops, until they are so many that memory is what takes the time: with
# the gradient minLSTM and RG-LRU, 32 to 256 units, by loops take 1.0 to 1.9 times as long up to
# half of this number, and from it on 0.86 to 1.04. Where they are as many (minGRU, GILR), loops
# take 0.53 to 1.08 whatever the size, and always about half of the memory.
_MANY_INPUTS = 2**22


def writes_more(cell: Cell) -> bool:
    """Whether the factors and constants of a step are more numbers than its projected inputs.

    Or whether its outputs are no state, so that every step would be computed once more for them:
    with pieces as rows QRNN and SRU take 0.45 to 1.1 of that time forward, and 0.6 to 0.9 with the
    gradient, but of 32 units and one row 1.0 to 1.8.
    """
    return cell.output is None or _written(cell) > _read(cell)


def runs_again(cell: Cell, shape: tuple[Any, ...]) -> bool:
    """Whether a gradient is found by loops that run each step again, and not from its factors.

    Args:
        cell: an affine one.
        shape: of the inputs, ``(time, *batch, features)``.
    """
    if writes_more(cell) or _written(cell) == _read(cell):
        return True
    known = all(isinstance(size, int) for size in shape[:-1])
    return known and math.prod(shape[:-1]) * _read(cell) >= _MANY_INPUTS


def _written(cell: Cell) -> int:
    """Of a step, the factors and constants, as numbers."""
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_carry))]
    return sum(sizes) * (len(sizes) + 1)


def _read(cell: Cell) -> int:
    """And its projected inputs."""
    return int(cell.parameters(1)["kernel"].shape[-1])
