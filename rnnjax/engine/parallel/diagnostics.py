"""`newton` reports how Newton's method over all steps converges; `unroll` cannot."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import brief, check_flag, check_instance, usual_promotion
from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.composite import Noise, over_layers
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import check_method
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.core.validation import checked
from rnnjax.engine.fused.plan import known_platform
from rnnjax.engine.parallel.method import Parallel, why_not_affine
from rnnjax.engine.parallel.newton import AllSteps, Newton, tolerance_of


class LayerConvergence(NamedTuple):
    """How the iterations of one layer went.

    Attributes:
        cell: the cell of the layer.
        iterations: the number of iterations; an affine cell needs one, which is exact.
        residuals: the largest difference between the cell's step and the states after each
            iteration, relative to the largest state.
        converged: whether the last residual is within the tolerance; if not, `rnnjax.unroll` runs
            the steps one by one.
        lyapunov: the largest Lyapunov exponent per step. If it is positive, small changes of the
            state grow, and no iteration converges.
    """

    cell: Cell
    iterations: int
    residuals: tuple[float, ...]
    converged: bool
    lyapunov: float


@dataclasses.dataclass(frozen=True)
class Convergence:
    """How Newton's method converged in each layer; print it.

    Attributes:
        layers: a `LayerConvergence` for each layer, in running order.
    """

    layers: tuple[LayerConvergence, ...]

    def __str__(self) -> str:
        lines = []
        for cell, iterations, residuals, converged, lyapunov in self.layers:
            end = "converged" if converged else "did not converge, so that the steps run one by one"
            lines += [
                f"{brief(cell)}: {end}, after {iterations} iterations",
                f"- residuals {' '.join(f'{residual:.0e}' for residual in residuals)}",
                f"- largest Lyapunov exponent {lyapunov:.3g} a step",
            ]
        return "\n".join(lines)


_METHOD = Parallel(newton=Newton())


@usual_promotion()
def newton(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry | None = None,
    *,
    reverse: bool = False,
    method: Parallel = _METHOD,
) -> Convergence:
    r"""Run a cell or a stack by Newton's method over all steps, and report the convergence.

    `rnnjax.unroll` with ``Parallel(newton=Newton())`` cannot report from a compiled program whether
    the iterations converged or the steps ran one by one. This function runs the layers and does.

    The Lyapunov exponent is :math:`\frac{1}{T} \sum_t \log \| J_t v_{t-1} \|`, with :math:`J_t` the
    derivative of a step by its state and :math:`v_t` a random unit vector, propagated and
    normalised at each step. The largest value over all rows counts.

    Args:
        cell: as in `rnnjax.unroll`.
        params: its parameters.
        xs: ``(time, *batch, input_size)``.
        carry: the state before the first step; by default the start of a sequence.
        reverse: run from the last step to the first.
        method: a `rnnjax.Parallel` with ``newton``.

    Raises:
        InvalidInputError: as in `rnnjax.unroll`.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 1, 3))
    >>> (layer,) = newton(cell, params, xs).layers
    >>> layer.converged, layer.iterations < 13, layer.lyapunov < 0
    (True, True, True)
    """
    check_instance("method", method, Parallel, "Parallel(newton=Newton())")
    check_flag("reverse", reverse)
    xs, carry = checked(cell, params, xs, carry, None, method)
    layers = []

    def single(
        cell: Cell, params: Params, xs: Any, carry: Carry, noise: Noise, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        check_method(cell, method)
        if reverse:
            xs = jax.tree.map(lambda leaf: leaf[::-1], xs)
        (last, ys), (count, residuals, converged), lyapunov = _run(cell, method, params, xs, carry)
        found = tuple(float(value) for value in residuals[: int(count)])
        layers.append(LayerConvergence(cell, int(count), found, bool(converged), float(lyapunov)))
        return last, ys[::-1] if reverse else ys

    over_layers(single)(cell, params, xs, carry, reverse=bool(reverse))
    return Convergence(tuple(layers))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(cell: Cell, method: Parallel, params: Params, xs: Any, carry: Carry) -> Any:
    """Return a layer's result, its convergence, and its exponent."""
    lyapunov = _lyapunov(cell, params, xs, carry)
    out = Scan().run(cell, params, xs, carry, False, Steps())
    if why_not_affine(cell) is None:
        return out, (1, jnp.zeros(1), True), lyapunov
    all_steps = AllSteps(cell, method.newton or Newton())
    found = all_steps.states(
        known_platform(None), cell.loop_params(params), Steps(), xs, StepMarks(), carry
    )
    converged = found.residual <= tolerance_of(all_steps.newton.tolerance, carry)
    return out, (found.iterations, found.residuals, converged), lyapunov


def _lyapunov(cell: Cell, params: Params, xs: Any, carry: Carry) -> jax.Array:
    """Compute the mean log growth of a propagated vector, the largest over all rows."""
    rows = _row_axes(cell, jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], xs)))
    leaves, tree = jax.tree.flatten(carry)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)]

    def unit(along: Carry) -> tuple[Carry, jax.Array]:
        squares = [(leaf**2).sum(tuple(range(rows, leaf.ndim))) for leaf in jax.tree.leaves(along)]
        norm = jnp.sqrt(sum(squares))

        def divided(leaf: jax.Array) -> jax.Array:
            length = norm.reshape(*norm.shape, *[1] * (leaf.ndim - rows))
            return jnp.where(length > 0, leaf / length, 0)

        return jax.tree.map(divided, along), jnp.log(norm)

    def step(at: tuple[Carry, Carry], x: Any) -> Any:
        carry, along = at
        new, along = jax.jvp(lambda carry: cell.step(params, carry, x)[0], (carry,), (along,))
        along, growth = unit(along)
        return (new, along), growth

    begin = carry, unit(jax.tree.unflatten(tree, drawn))[0]
    return jax.lax.scan(step, begin, xs)[1].mean(axis=0).max()


def _row_axes(cell: Cell, x: Any) -> int:
    """Return how many axes of a step's inputs are independent rows.

    The grid axes of a convolution are not, and rows may interact in a user's own ``step``.
    """
    if cell.carry is None:
        return 0
    return x.ndim + 1 - len(cell.parameters(1 + cell.raw_inputs)["kernel"].shape)
