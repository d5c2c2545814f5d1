"""Newton's method over a whole sequence, for cells whose new state is not affine in the old one.

All steps are linearised at once around a guess of all states. That gives an affine recurrence for
the correction of the guess. Of the derivative of a step by the state only the diagonal is used: the
effect of each unit on itself. The correction is driven by the residual of the cell's own step, so a
guess that no longer changes obeys that step exactly.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.arguments import brief, check_size, is_floating
from rnnjax.cells.base import Carry, Cell, Params, Role, roles_of
from rnnjax.cells.devices import match_devices
from rnnjax.cells.products import Kernel, product
from rnnjax.engine.core.custom_primitive import Function
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import why_no_equation
from rnnjax.engine.parallel.linear_recurrence import (
    Factors,
    affine,
    cotangents_of,
    plus,
    states_of,
)
from rnnjax.errors import InvalidInputError

# ---- the options of the iterations, and when they stop

# The number of roundings by which the sums of a step may differ between two programs.
_ROUNDINGS = 16


@dataclasses.dataclass(frozen=True)
class Newton:
    r"""The tolerance and the iterations by which `rnnjax.Parallel` corrects a guess of all states.

    Let :math:`f_t` be a step of the cell, with its inputs and marks, and :math:`D_t` the derivative
    of each unit's new state by its own old one, k x k for a carry of k leaves. An iteration is

    .. math::
        r_t &= f_t(s_{t-1}) - s_t \\
        \delta_t &= D_t \, \delta_{t-1} + r_t \\
        s_t &\leftarrow s_t + \delta_t

    starting from one step on zeros, and each is followed by :math:`s_t \leftarrow f_t(s_{t-1})`
    (Lim et al., 2024; quasi-DEER: Gonzalez et al., 2024; in blocks: Danieli et al., 2025).
    :math:`D` sets only the speed; convergence is judged by :math:`r`. If it is not small after the
    last iteration, as with chaotic weights, the steps run one by one. So the numbers are always
    the cell's own; `rnnjax.newton` reports the iterations. :math:`D` is a forward-mode derivative:
    an ``update`` with a `jax.custom_vjp` needs a `jax.custom_jvp` instead.

    It is for machines with idle capacity. On a few cores `rnnjax.Fused` is several times faster.

    Args:
        tolerance: the largest :math:`r` accepted, relative to the largest state, for states and
            gradients; by default 16 roundings of the carry's type, 2e-6 in float32.
        max_iterations: the number of iterations before the steps run one by one.

    Raises:
        InvalidInputError: ``tolerance`` is not a positive number, or ``max_iterations`` not a
            positive integer.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(hidden_size=5)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jnp.ones((100, 8, 3))
    >>> method = rnnjax.Parallel(newton=rnnjax.Newton())
    >>> carry, ys = rnnjax.unroll(cell, params, xs, method=method)
    >>> bool(jnp.allclose(ys, rnnjax.unroll(cell, params, xs)[1], atol=1e-5))
    True
    """

    tolerance: float | None = None
    max_iterations: int = 32

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        check_size("max_iterations", self.max_iterations)


def why_not_iterated(cell: Cell) -> str | None:
    """Return why Newton's method cannot run a cell; None if it can.

    Units may mix in any way, as in a convolution or a norm. The less of it the factors contain, the
    more iterations it takes, but the limit is the same.
    """
    if reason := why_no_equation(cell):
        return reason
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_carry))
    if not all(is_floating(leaf.dtype) for leaf in leaves):
        return "its carry does not hold floating-point numbers alone"
    return None


class Solution(NamedTuple):
    """The result of the iterations.

    Attributes:
        value: trees over time: the states and the outputs, or the cotangents.
        iterations: the number of iterations.
        residuals: the residual after each of them; zeros after the last.
        residual: the residual of ``value``.
    """

    value: Any
    iterations: jax.Array
    residuals: jax.Array
    residual: jax.Array


def iterated(newton: Newton, linearised: Any, solve: Any, step: Any, guess: Carry) -> Solution:
    """Correct a guess of states or cotangents until it is within the tolerance, and once more.

    A plain step from all states follows each correction, which reduces the effect of what the
    factors leave out: an LSTM(128) reaches 1e-6 in 13 iterations instead of 16. The last correction
    starts within the tolerance: with a memory of a thousand steps, the error of a state is a
    hundred times the residual of a step.
    """
    tolerance, most = tolerance_of(newton.tolerance, guess), newton.max_iterations
    tree = jax.tree.structure(guess)

    def goes_on(at: Solution) -> jax.Array:
        known = jnp.isfinite(at.residual) & (at.residual > tolerance)
        return (at.iterations < most) & (known | (at.iterations == 0))

    def correct(at: Solution) -> Solution:
        new, factors = linearised(at.value)
        old, departs = jax.tree.leaves(at.value), jax.tree.map(jnp.subtract, new, at.value)
        found = plus(old, _by_shape(solve, factors, jax.tree.leaves(departs)))
        better = jax.tree.unflatten(tree, found)
        value = step(better)
        residuals = at.residuals.at[at.iterations].set(residual_of(value, better))
        return Solution(value, at.iterations + 1, residuals, residual_of(new, at.value))

    nothing = jnp.zeros(most, jnp.float32), jnp.float32(0)
    guess, nothing = match_devices((guess, nothing))
    return jax.lax.while_loop(goes_on, correct, Solution(guess, jnp.int32(0), *nothing))


def check_tolerance(value: Any) -> None:
    """Raise unless a tolerance is a positive number, or None."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if value is not None and not (number and math.isfinite(value) and value > 0):
        raise InvalidInputError(
            f"tolerance must be a positive number, relative to the largest entry of the state, or "
            f"None for {_ROUNDINGS} roundings of its type, but is {brief(value)}"
        )


def tolerance_of(given: float | None, tree: Any) -> float:
    """Return the given tolerance, or the effect of rounding in the types of ``tree``.

    >>> tolerance_of(1e-3, jnp.ones(2)), tolerance_of(None, jnp.ones(2)) < 2e-6
    (0.001, True)
    """
    if given is not None:
        return given
    return _ROUNDINGS * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def residual_of(new: Carry, old: Carry) -> jax.Array:
    """Return the largest difference of two trees, relative to each leaf's largest in ``new``.

    It is infinite for a NaN.

    >>> print(residual_of([jnp.array([1.0, -2.0])], [jnp.array([0.5, -2.0])]))
    0.25
    """

    def part(value: jax.Array, old: jax.Array) -> jax.Array:
        difference = value - old
        largest, size = (jnp.abs(leaf).max(initial=0) for leaf in (difference, value))
        share = jnp.where(largest == 0, 0, largest / size).astype(jnp.float32)
        # A separate check: a maximum, as XLA:CPU compiles it, can lose a NaN.
        return jnp.where(jnp.isfinite(difference).all(), share, jnp.inf)

    return jnp.stack(jax.tree.leaves(jax.tree.map(part, new, old))).max()


def _by_shape(solve: Any, factors: Factors, given: list[jax.Array]) -> list[jax.Array]:
    """Solve for the leaves of each shape separately: their units differ from those of others."""
    found: dict[int, jax.Array] = {}
    for shape in dict.fromkeys(leaf.shape for leaf in given):
        own = [i for i, leaf in enumerate(given) if leaf.shape == shape]
        square = [[factors[i][j] for j in own] for i in own]
        found |= zip(own, solve(square, [given[i] for i in own]), strict=True)
    return [found[i] for i in range(len(given))]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _by_units(x: jax.Array, kernel: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """Compute `product`; its derivative by ``x`` is only the effect of each unit on itself."""
    return product(x, kernel, dtype)


@_by_units.defjvp
def _by_units_jvp(dtype: DTypeLike | None, primals: Any, tangents: Any) -> Any:
    """Differentiate by the diagonal of each gate's kernel, at the centre of a window."""
    (x, kernel), (d_x, _) = primals, tangents
    out = product(x, kernel, dtype)
    centre = kernel[tuple((size - 1) // 2 for size in kernel.shape[:-2])]
    size, width = centre.shape
    if width % size:  # from units of one kind to others
        return out, jnp.zeros_like(out)
    own = [jnp.diagonal(centre, k * size) for k in range(width // size)]
    d_out = jnp.concatenate([d_x * diagonal for diagonal in own], axis=-1)
    return out, d_out.astype(out.dtype)


class OwnKernel(Kernel):
    """A kernel whose product is differentiated unit by unit."""

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return _by_units(x, self.array, self.dtype)


class _Call(NamedTuple):
    """What all steps of a call share, with the projected inputs and the marks of each."""

    params: Params
    steps: Steps
    projected: jax.Array
    per_step: StepMarks


@dataclasses.dataclass(frozen=True)
class AllSteps(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)``, forward in time.

    Args:
        cell: a cell that declares its equation.
        newton: the tolerance and the number of iterations.
    """

    cell: Cell
    newton: Newton

    def refused(self, what: str) -> str:
        """Say why the update of the cell cannot run so."""
        return f"all steps cannot run at once where the update has {what}; use method=Scan()"

    def plain(
        self, params: Params, steps: Steps, xs: Any, per_step: StepMarks, carry: Carry
    ) -> Any:
        """Scan over the step of the cell."""
        states, ys = self._one_by_one(params, steps, xs, per_step, carry)
        return _last(states), ys

    def run(self, platform: str, *args: Any) -> Any:
        """Iterate, and scan if the iterations do not converge."""
        return self.forward(platform, *args)[0]

    def forward(
        self, platform: str, params: Params, steps: Steps, xs: Any, per_step: Any, carry: Carry
    ) -> Any:
        """Compute the states, which are the only residuals."""
        found = self.states(platform, params, steps, xs, per_step, carry)

        def instead() -> Any:
            return self._one_by_one(params, steps, xs, per_step, carry)

        states, ys = _unless(found.residual <= self._tolerance(carry), found.value, instead)
        return (_last(states), ys), states

    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Find the cotangent of each state by the same iterations; one derivative gives the rest.

        The cotangents obey the transpose of the step's full derivative, and the factors again only
        set the speed. Used in its place, they would make a gradient wrong by a fifth.
        """
        (params, steps, xs, per_step, carry), (d_last, d_ys) = args, d
        before = _before(carry, saved)
        call = _Call(params, steps, self.cell.project(params, xs), per_step)
        found = self._cotangents(platform, call, before, d)

        def step(back: Carry, at: Any) -> tuple[Carry, Carry]:
            """Run one step backwards, from its vjp."""
            projected, per_step, before, d_y = at
            _, vjp_fn = jax.vjp(
                lambda carry: self._step(params, steps, projected, per_step, carry), before
            )
            return vjp_fn((back, d_y))[0], back

        def instead() -> Carry:
            inputs = call.projected, per_step, before, d_ys
            return jax.lax.scan(step, d_last, inputs, reverse=True)[1]

        back = _unless(found.residual <= self._tolerance(carry), found.value, instead)

        def all_steps(params: Params, start: Any, xs: Any, before: Carry) -> Any:
            again = params, steps._replace(start=start), self.cell.project(params, xs), per_step
            return self._steps(_Call(*again), before)

        _, vjp_fn = jax.vjp(all_steps, params, steps.start, xs, before)
        d_params, d_start, d_xs, d_before = vjp_fn((back, d_ys))
        nothing = jax.tree.map(lambda _: None, (steps, per_step))
        d_carry = jax.tree.map(lambda leaf: leaf[0], d_before)
        return d_params, nothing[0]._replace(start=d_start), d_xs, nothing[1], d_carry

    def states(
        self, platform: str, params: Params, steps: Steps, xs: Any, per_step: Any, carry: Carry
    ) -> Solution:
        """Return the states and outputs of all steps as a `Solution`."""
        call = _Call(params, steps, self.cell.project(params, xs), per_step)

        def linearised(states: Carry) -> tuple[Carry, Factors]:
            return self._linearised(call, _before(carry, states))

        def step(states: Carry) -> tuple[Carry, jax.Array]:
            return self._steps(call, _before(carry, states))

        def solve(factors: Factors, given: list[jax.Array]) -> list[jax.Array]:
            zeros = [jnp.zeros_like(g[0]) for g in given]
            return states_of(platform, (factors, given, None), zeros)

        num_steps = call.projected.shape[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape), leaf.dtype), carry)
        # Zeros themselves are a bad place to linearise at: a layer norm is a step there.
        guess = step(zeros)[0]
        found = iterated(self.newton, linearised, solve, lambda states: step(states)[0], guess)
        new, ys = step(found.value)
        return found._replace(value=(new, ys), residual=residual_of(new, found.value))

    def _cotangents(self, platform: str, call: _Call, before: Carry, d: Any) -> Solution:
        """Find the cotangent of the state after each step."""
        d_last, d_ys = d
        _, vjp_fn = jax.vjp(functools.partial(self._steps, call), before)
        _, factors = self._linearised(call, before)

        def from_after(back: Carry) -> Carry:
            d_before = vjp_fn((back, d_ys))[0]
            return jax.tree.map(lambda d, e: jnp.concatenate([d[1:], e[None]]), d_before, d_last)

        def solve(factors: Factors, given: list[jax.Array]) -> list[jax.Array]:
            zeros = [jnp.zeros_like(g[0]) for g in given]
            return cotangents_of(platform, factors, given, None, zeros)[0]

        guess = jax.tree.map(jnp.zeros_like, before)
        found = iterated(
            self.newton, lambda back: (from_after(back), factors), solve, from_after, guess
        )
        new = from_after(found.value)
        return found._replace(value=new, residual=residual_of(new, found.value))

    def _tolerance(self, carry: Carry) -> float:
        return tolerance_of(self.newton.tolerance, carry)

    def _step(
        self, params: Params, steps: Steps, projected: jax.Array, per_step: StepMarks, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """Run one step with its marks."""
        begun = steps.reset(carry, per_step)
        recurrent = self.cell.recur(params, _entering(self.cell, steps, begun))
        new, y = self.cell.apply_update(params, self.cell.combine(projected, recurrent), begun)
        return steps.mask(begun, new, y, per_step, self.cell.output)

    def _steps(self, call: _Call, before: Carry) -> tuple[Carry, jax.Array]:
        """Run all steps at once, each from its own old state, by `jax.vmap`."""
        step = functools.partial(self._step, call.params, call.steps)
        return jax.vmap(step)(call.projected, call.per_step, before)

    def _linearised(self, call: _Call, before: Carry) -> tuple[Carry, Factors]:
        """Return all new states, and the derivative of each unit by its own old state."""
        params, steps, projected, per_step = call
        cell, roles, tree = self.cell, roles_of(self.cell), jax.tree.structure(before)
        read = {
            name: OwnKernel(leaf, cell.dtype) if roles.get(name) is Role.LOOP else leaf
            for name, leaf in cell.update_params(params).items()
        }

        def step(projected: jax.Array, per_step: StepMarks, carry: Carry) -> Carry:
            begun = steps.reset(carry, per_step)
            recurrent = None
            if cell.recurrent is not None:
                entering = getattr(_entering(cell, steps, begun), cell.recurrent)
                recurrent = entering @ OwnKernel(params["recurrent_kernel"], cell.dtype)
                recurrent = cell.biased(recurrent, params, "recurrent_bias")
            new = cell.update(read, cell.combine(projected, recurrent), begun)
            new = new[0] if cell.output is None else new
            new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, begun)
            return steps.mask(begun, new, jax.tree.leaves(new)[0], per_step, None)[0]

        new, factors = affine(lambda carry: jax.vmap(step)(projected, per_step, carry), before)
        return jax.tree.unflatten(tree, new), factors

    def _one_by_one(
        self, params: Params, steps: Steps, xs: Any, per_step: StepMarks, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """Return the states and outputs of all steps, each from the one before.

        It is exactly `rnnjax.Scan`: with chaotic weights, rounding errors grow fast.
        """

        def step(carry: Carry, at: Any) -> Any:
            x, per_step = at
            new, y = self._step(params, steps, self.cell.project(params, x), per_step, carry)
            return new, (new, y)

        return jax.lax.scan(step, carry, (xs, per_step))[1]


def _entering(cell: Cell, steps: Steps, carry: Carry) -> Carry:
    """Apply recurrent dropout to the state that enters the recurrent product."""
    if cell.recurrent is None:
        return carry
    return carry._replace(**{cell.recurrent: steps.drop_state(getattr(carry, cell.recurrent))})


def _before(carry: Carry, states: Carry) -> Carry:
    """Return the state before each step, from the first state and those after the steps."""
    return jax.tree.map(lambda c, s: jnp.concatenate([c[None], s[:-1]]), carry, states)


def _last(states: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[-1], states)


def _unless(good: jax.Array, found: Any, instead: Any) -> Any:
    """Return the result if it is good, and compute another if not.

    It is a loop of at most one iteration. Under `jax.vmap` a condition would become a select and
    always run both branches; a loop runs only if some row needs it.
    """

    def body(_: Any) -> Any:
        return jnp.ones_like(good), instead()

    return jax.lax.while_loop(lambda at: ~at[0], body, (good, found))[1]
