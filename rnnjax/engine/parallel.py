"""All steps at once: for cells whose new state is affine in the one before, or by iterations."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import check_features, check_instance, check_size
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine.affine import Solved, affine, later, piece_length, plus, times
from rnnjax.engine.all_steps import AllSteps
from rnnjax.engine.apart import computed_apart
from rnnjax.engine.chunkwise import chunk_length, chunkwise
from rnnjax.engine.iterations import Newton, why_not_iterated
from rnnjax.engine.method import Method
from rnnjax.engine.readout import Cut, read_out
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import Steps, expand
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
    nothing is written twice; that a cell is affine is proved from its update, not declared. The
    sequence is cut into pieces that run side by side: first for their ends, then, from their true
    beginnings, once more. Of :math:`T` steps :math:`2C + T / C` depend on each other.

    A cell that declares a matrix memory (`rnnjax.MLSTMCell`, `rnnjax.GLACell`, `rnnjax.Mamba2Cell`,
    `rnnjax.GatedDeltaNetCell`) runs chunk by chunk: inside of a chunk what each step writes and
    reads are products of matrices, and one memory is handed on (Hua et al., 2022; with the delta
    rule Yang et al., 2024).

    The derivatives are those of a linear solve, whose transpose runs backwards: exact, of every
    order, forwards and in reverse.

    With ``newton`` other cells, such as `rnnjax.GRUCell` and `rnnjax.LSTMCell`, run so too: such a
    recurrence is solved again and again, for corrections of a guess of all states, until these obey
    the cell's own step. Their first derivatives in reverse are found the same way, and are those of
    that step; of second order and forwards they are those of the plain scan, at its price.

    Args:
        chunk: the steps :math:`C` of a piece; left out, about the square root of the steps, with
            which least wait for each other, and 64 or, where keys decay by themselves, 16 of a
            matrix memory.
        newton: a `rnnjax.Newton`, for cells that are not affine; None refuses these.

    Raises:
        InvalidInputError: ``chunk`` is not a positive integer, or ``newton`` no `rnnjax.Newton`.
    """

    chunk: int | None = None
    newton: Newton | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None:
            check_size("chunk", self.chunk)
        if self.newton is not None:
            check_instance("newton", self.newton, Newton, "Newton(), or None for affine cells only")

    def refusal(self, cell: Cell) -> str | None:
        """What is not affine, or mixes its units, is refused, unless there is ``newton``."""
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
            return Scan().run(cell, params, xs, carry, reverse, steps)
        check_features(cell, params, xs)
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
        of_cell = _OfCell(cell, xs.ndim - 1)
        cuts = each.valid is not None or each.resets is not None
        constants, factors = (of_cell if cuts else of_cell.plain)(params, xs, carry)
        start, tree = jax.tree.flatten(carry)

        def step(before: Carry) -> Carry:
            """A step with its marks, all of which are affine too."""
            begun = steps.begin(before, each)
            new = [
                total.astype(b.dtype)
                for total, b in zip(
                    plus(constants, times(factors, jax.tree.leaves(begun))), start, strict=True
                )
            ]
            return steps.end(begun, jax.tree.unflatten(tree, new), new[0], each, None)[0]

        nothing = jax.tree.map(lambda s: jnp.zeros((num_steps, *s.shape), s.dtype), carry)
        marked = affine(step, nothing)
        solved = Solved(piece_length(num_steps, self.chunk))
        states = solved(*marked, start, each.resets)
        last = jax.tree.unflatten(tree, [h[-1] for h in states])
        if cell.output is not None:
            ys = getattr(jax.tree.unflatten(tree, states), cell.output)
            ys = ys if cell.dtype is None else ys.astype(cell.dtype)
        else:
            before = [later(h).at[0].set(s) for h, s in zip(states, start, strict=True)]
            begun = steps.begin(jax.tree.unflatten(tree, before), each)
            ys = (of_cell.outputs if cuts else of_cell.outputs.plain)(params, xs, begun)
        if each.valid is not None:
            ys = jnp.where(expand(each.valid, ys), ys, 0)
        ys = read_out(cell, params, ys, xs, each)
        return last, ys[::-1] if reverse else ys

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
        reason = why_not_affine(cell)
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


class _OfCell(Cut):
    """The constants and factors of a cell's update at every step; ``carry`` is but a shape."""

    axis = None

    def plain(self, params: Params, xs: Any, carry: Carry) -> Any:
        """By `jax.jvp` at a state of zeros."""
        projected, num_steps = self.cell.project(params, xs), xs.shape[0]
        nothing = jax.tree.map(lambda s: jnp.zeros((num_steps, *s.shape), s.dtype), carry)
        return affine(lambda c: self.cell.advance(params, projected, c)[0], nothing)

    @property
    def outputs(self) -> "_Outputs":
        """The outputs that are no leaf of the state."""
        return _Outputs(self.cell, self.rows)


class _Outputs(Cut):
    """The outputs of a cell's update at every step, from the states before, which are known."""

    def plain(self, params: Params, xs: Any, carry: Carry) -> jax.Array:
        """The step itself, of all steps at once."""
        return self.cell.advance(params, self.cell.project(params, xs), carry)[1]


@functools.lru_cache(maxsize=256)
def why_not_affine(cell: Cell) -> str | None:
    """Why the new state of a cell is not affine in the old one, unit by unit; None where it is.

    Proved, not declared: the derivative by the state does not read the state, so it is the same at
    all states; and of a state that was drawn it is what each unit's own factor makes of it.
    """
    if cell.carry is None:
        return "it declares no carry and update, but a step"
    if cell.remembers:  # declared, and its update follows from that
        return None
    if cell.recurrent is not None:
        return "its units see each other's state in a product"
    shapes = jax.eval_shape(lambda: cell.initial_carry((2,)))
    if any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(shapes)):
        return "its carry does not hold floating-point numbers alone"
    drawn = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(leaf.dtype), shapes
    )

    def update(params: Params, carry: Carry) -> Carry:
        projected = cell.project(params, jnp.array([[0.3], [-0.7]]))
        return cell.advance(params, projected, carry)[0]

    def tangent(carry: Carry, direction: Carry, params: Params) -> Carry:
        return jax.jvp(functools.partial(update, params), (carry,), (direction,))[1]

    def init(seed: Any) -> Params:
        return cell.init(jax.random.key(seed), 1)

    seed = np.uint32(0)
    if _reads_first(tangent, shapes, drawn, jax.eval_shape(init, seed)):
        return "its new state is not affine in the old one"

    def both(drawn: Carry, seed: Any) -> tuple[Any, Any]:
        params, carry = init(seed), cell.initial_carry((2,))
        factors = affine(functools.partial(update, params), carry)[1]
        return factors, tangent(carry, drawn, params)

    factors, came = computed_apart(both, drawn, seed)
    given = jax.tree.leaves(drawn)
    for i, leaf in enumerate(jax.tree.leaves(came)):
        own = sum(factors[i][j] * given[j] for j in range(len(given)))
        if not np.allclose(leaf, own, rtol=1e-4, atol=1e-5):
            return "its units see each other's state"
    return None


def _reads_first(function: Any, first: Any, *rest: Any) -> bool:
    """Whether what a function returns depends on its first argument at all."""
    jaxpr = jax.make_jaxpr(function)(first, *rest).jaxpr
    needed = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            needed |= {id(v) for v in equation.invars}
    return any(id(v) in needed for v in jaxpr.invars[: len(jax.tree.leaves(first))])
