"""What a recurrent network does over time: its fixed points, its exponents, how far back it reads.

All functions take a cell and its parameters: any cell of the library, a cell of your own, or a
stack. They see its carry as one vector, and compute in double precision, because a difference of
two states in float32 ends at 1e-7. What they return are arrays of NumPy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import rnnjax
from rnnjax.errors import InvalidInputError

RESIDUAL = 1e-10  # of a fixed point
Step = Callable[[jax.Array, jax.Array], jax.Array]


def named_cell(name: str, units: int, **options: Any) -> Any:
    """A cell of rnnjax by the name of its class without "Cell", as ``--cell GRU`` gives it.

    Raises:
        InvalidInputError: there is no such cell, or it needs other arguments than its units.

    >>> named_cell("GRU", 4) == rnnjax.GRUCell(4)
    True
    """
    try:
        return getattr(rnnjax, f"{name}Cell")(units, **options)
    except (AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"--cell must name a cell of rnnjax that is made of its units, but is {name} "
            f"({error}); say GRU, LSTM or MGU"
        ) from error


def _wide(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float64)) if leaf.dtype != bool else leaf


def _flat_step(cell: Any, params: Any) -> tuple[Step, jax.Array]:
    """The step from one state ``(size,)`` to the next, and the state at the start of a sequence."""
    params = jax.tree.map(_wide, params)
    carry = cell.start(params, (), jnp.float64)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(carry)}
    if kinds != {"float64"}:
        raise InvalidInputError(
            f"the carry must hold real numbers to have a Jacobian, but holds {', '.join(kinds)}; "
            "make two real leaves of a complex one, and count steps outside of the cell"
        )
    start, unravel = ravel_pytree(carry)
    return lambda state, x: ravel_pytree(cell.step(params, unravel(state), x)[0])[0], start


def visited(cell: Any, params: Any, xs: Any) -> np.ndarray:
    """The state after each step, as ``(time, rows, size)``, along ``xs (time, rows, features)``.

    >>> cell = rnnjax.LSTMCell(4)
    >>> visited(cell, cell.init(jax.random.key(0), 3), np.ones((10, 2, 3))).shape
    (10, 2, 8)
    """
    with jax.enable_x64(True):
        step, start = _flat_step(cell, params)
        rows = jnp.broadcast_to(start, (np.shape(xs)[1], start.size))
        return _run(step, rows, _wide(xs))


def _run(step: Step, states: jax.Array, xs: jax.Array) -> np.ndarray:
    def all_rows(states: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = jax.vmap(step)(states, x)
        return states, states

    return np.asarray(jax.lax.scan(all_rows, states, xs)[1])


# ---- fixed points


@dataclasses.dataclass(frozen=True)
class FixedPoints:
    """States that a step maps to themselves, and the linear maps that a step is near them.

    Attributes:
        states: ``(points, size)``.
        jacobians: of the new state by the old one at each, ``(points, size, size)``.
        residuals: the largest change of a number of the state by a step, ``(points,)``.
    """

    states: np.ndarray
    jacobians: np.ndarray
    residuals: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """The eigenvalues of the Jacobians ``(points, size)``, the largest modulus first."""
        return self._modes[0]

    @property
    def directions(self) -> np.ndarray:
        """The eigenvectors ``(points, size, size)``: ``[:, k]`` belongs to eigenvalue ``k``."""
        return self._modes[1]

    @functools.cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eig(self.jacobians)
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        vectors = np.take_along_axis(vectors, order[:, None], axis=-1).swapaxes(-1, -2)
        return np.take_along_axis(values, order, axis=-1), vectors

    @property
    def ways_out(self) -> np.ndarray:
        """How many eigenvalues of each are above 1 in modulus: 0 of a stable point."""
        return (np.abs(self.eigenvalues) > 1).sum(axis=-1)

    @property
    def time_constants(self) -> np.ndarray:
        r"""Steps in which a deviation shrinks to 1/e, :math:`-1 / \ln |\lambda|`, as eigenvalues.

        Negative ones are of directions in which it grows.
        """
        with np.errstate(divide="ignore"):  # of an eigenvalue of 0 it is 0 steps, of 1 infinity
            return np.asarray(1 / (0 - np.log(np.abs(self.eigenvalues))))  # 0 - 0 is not -0


def mixtures(states: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Means of eight drawn states with drawn weights, ``(count, size)``: starts of a search.

    Saddles lie between the states that a network comes to, so no trajectory shows them.
    """
    rng = np.random.default_rng(seed)
    states = np.asarray(states).reshape(-1, np.shape(states)[-1])
    chosen = states[rng.integers(0, len(states), (count, 8))]
    return np.einsum("ik,iks->is", rng.dirichlet(np.full(8, 0.3), count), chosen)


def fixed_points(cell: Any, params: Any, starts: Any, x: Any) -> FixedPoints:
    r"""Find states with ``step(state, x) == state`` by Newton's method from many starts.

    .. math::
        s \leftarrow s + (J(s) - I)^{-1} (s - F(s)), \qquad J = \partial F / \partial s

    A step that is too long is cut to length 1. Points nearer than 1e-4 to another are one. That no
    start leads to a point does not prove that there is none.

    Args:
        cell: any cell.
        params: its parameters.
        starts: states from which to begin, ``(starts, size)``, such as `mixtures` of `visited`.
        x: the constant input of a step, ``(features,)``.

    Raises:
        InvalidInputError: a leaf of the carry is not of real numbers, or ``starts`` has another
            size.

    A unit with ``h' = tanh(2 h)`` has a fixed point at 0, with one way out, and two stable ones:

    >>> cell = rnnjax.SimpleRNNCell(1, use_bias=False)
    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": 2 * jnp.ones((1, 1))}
    >>> points = fixed_points(cell, params, np.linspace(-1, 1, 9)[:, None], np.zeros(1))
    >>> for state, ways in sorted(zip(points.states[:, 0].round(4) + 0.0, points.ways_out)):
    ...     print(state, ways)
    -0.9575 0
    0.0 1
    0.9575 0
    """
    with jax.enable_x64(True):
        step, start = _flat_step(cell, params)
        x, starts = _wide(x), _wide(starts)
        if starts.ndim != 2 or starts.shape[1] != start.size:
            raise InvalidInputError(
                f"starts must be (starts, {start.size}), the size of the carry as a vector, but is "
                f"{starts.shape}; take mixtures(visited(cell, params, xs), 1000)"
            )

        def newton(state: jax.Array) -> tuple[jax.Array, ...]:
            def closer(at: tuple[Any, ...]) -> tuple[Any, ...]:
                count, state, left = at
                slope = jax.jacfwd(step)(state, x) - jnp.eye(len(state))
                change = jnp.linalg.solve(slope, -left)
                # Far from a root the straight line is wrong: no change is longer than 1.
                state += change / jnp.maximum(1, jnp.linalg.norm(change))
                return count + 1, state, step(state, x) - state

            begin = 0, state, step(state, x) - state
            _, state, left = jax.lax.while_loop(
                lambda at: (at[0] < 100) & (jnp.abs(at[2]).max() > RESIDUAL / 1000), closer, begin
            )
            return state, jax.jacfwd(step)(state, x), jnp.abs(left).max()

        states, slopes, residuals = map(np.asarray, jax.lax.map(newton, starts))
    found: list[int] = []
    for k in np.flatnonzero(residuals < RESIDUAL):
        if all(np.abs(states[k] - states[other]).max() > 1e-4 for other in found):
            found.append(int(k))
    return FixedPoints(states[found], slopes[found], residuals[found])


def escapes(cell: Any, params: Any, points: FixedPoints, x: Any, steps: int = 300) -> np.ndarray:
    """Where the network goes from each saddle with one way out, pushed by 0.01 both ways along it.

    Returns:
        the paths ``(steps + 1, 2 * saddles, size)``.
    """
    saddles = np.flatnonzero(points.ways_out == 1)
    out = points.directions[saddles, 0].real
    begin = np.concatenate(
        [points.states[saddles] + 0.01 * out, points.states[saddles] - 0.01 * out]
    )
    with jax.enable_x64(True):
        xs = jnp.broadcast_to(_wide(x), (steps, len(begin), *np.shape(x)))
        return np.concatenate([begin[None], _run(_flat_step(cell, params)[0], _wide(begin), xs)])


# ---- exponents and memory


def lyapunov_spectrum(
    cell: Any, params: Any, xs: Any, *, skip: int = 0, count: int | None = None
) -> np.ndarray:
    r"""Compute how fast states that are close part or meet, in each direction: nats per step.

    .. math::
        Q_t R_t = J_t Q_{t-1}, \qquad \lambda_i = \frac{1}{T} \sum_t \ln |(R_t)_{ii}|

    (Benettin et al., 1980). ``J_t Q`` is a Jacobian-vector product for each column, so no Jacobian
    is stored. The largest exponent is above 0 in chaos, 0 along an orbit in continuous time, and
    below 0 where the network forgets how it began. Divide by the length of a step for a rate.

    Args:
        cell: any cell.
        params: its parameters.
        xs: the inputs of one sequence, ``(time, features)``; zeros for a system without input.
        skip: the number of steps at first that do not count, in which the state comes to the
            attractor and the columns to their directions.
        count: how many of the largest exponents; by default all of them.

    Raises:
        InvalidInputError: a leaf of the carry is not of real numbers; no step is left; or
            ``count`` is not from 1 to the size of the carry.

    >>> cell = rnnjax.SimpleRNNCell(2, activation="linear", use_bias=False)
    >>> turn = jnp.array([[2.0, 1.0], [0.0, 0.5]])  # eigenvalues 2 and 0.5
    >>> params = {"kernel": jnp.zeros((1, 2)), "recurrent_kernel": turn}
    >>> print(lyapunov_spectrum(cell, params, np.zeros((100, 1)), skip=50).round(6))
    [ 0.693147 -0.693147]
    """
    with jax.enable_x64(True):
        step, start = _flat_step(cell, params)
        size, time = start.size, len(xs)
        count = size if count is None else count
        if not (0 <= skip < time and 1 <= count <= size):
            raise InvalidInputError(
                f"skip must be from 0 to {time - 1}, as xs has {time} steps, and count from 1 to "
                f"{size}, the size of the carry, but they are {skip} and {count}"
            )

        def one(at: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
            state, columns = at

            def push(column: jax.Array) -> Any:
                return jax.jvp(lambda state: step(state, x), (state,), (column,))

            state, pushed = jax.vmap(push, in_axes=1, out_axes=(None, 1))(columns)
            columns, triangle = jnp.linalg.qr(pushed)
            return (state, columns), jnp.log(jnp.abs(jnp.diagonal(triangle)))

        # Drawn: a unit vector may be an eigenvector, and then never turns to a larger exponent.
        drawn = np.random.default_rng(0).normal(size=(size, count))
        logs = jax.lax.scan(one, (start, jnp.linalg.qr(drawn)[0]), _wide(xs))[1]
        return np.sort(np.asarray(logs[skip:].mean(axis=0)))[::-1]


def memory_by_lag(cell: Any, params: Any, xs: Any) -> np.ndarray:
    r"""Compute how much the last state depends on the input of each step before.

    .. math::
        m_k = \sqrt{\operatorname{mean}_{rows} \| \partial s_T / \partial x_{T-k} \|_F^2}

    Args:
        cell: any cell.
        params: its parameters.
        xs: real inputs ``(time, rows, features)``, with the carry at its start before the first.

    Returns:
        ``(time,)``: by the last input first, then by the one before.

    Raises:
        InvalidInputError: a leaf of the carry is not of real numbers.

    A leaky integrator forgets a fixed share of its state in each step:

    >>> cell = rnnjax.LeakyRNNCell(1, activation="linear", use_bias=False, leak=0.5)
    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.zeros((1, 1))}
    >>> print(memory_by_lag(cell, params, np.zeros((4, 1, 1))))
    [0.5    0.25   0.125  0.0625]
    """
    with jax.enable_x64(True):
        step, start = _flat_step(cell, params)

        def last(xs: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda state, x: (step(state, x), None), start, xs)[0]

        slopes = jax.vmap(jax.jacrev(last), in_axes=1)(_wide(xs))  # (rows, size, time, features)
        return np.asarray(jnp.sqrt((slopes**2).sum(axis=(1, 3)).mean(axis=0)))[::-1]
