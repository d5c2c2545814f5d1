"""Unbiased online recurrent optimization."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import check_key
from rnnjax.cells.base import Carry, Params
from rnnjax.online.influence import Influence, over_rows
from rnnjax.online.learner import Learner, OnlineState

# Keeps divisors above zero, and is too small to matter elsewhere.
TINY = 1e-7


@dataclasses.dataclass(frozen=True)
class UORO(Learner):
    r"""Unbiased online recurrent optimization (Tallec & Ollivier, 2018): an influence of rank one.

    .. math::
        \tilde s_t &= \rho_0 \frac{\partial s_t}{\partial s_{t-1}} \tilde s_{t-1} + \rho_1 \nu_t \\
        \tilde w_t &= \frac{\tilde w_{t-1}}{\rho_0}
            + \frac{1}{\rho_1} \nu_t^\top \frac{\partial s_t}{\partial w} \\
        \frac{\partial L_t}{\partial w} &\approx \frac{\partial L_t}{\partial w}\Big|_{s_{t-1}}
            + \Big(\frac{\partial L_t}{\partial s_{t-1}} \cdot \tilde s_{t-1}\Big) \tilde w_{t-1}

    with random signs :math:`\nu_t` at each step, and :math:`\rho_0, \rho_1` that balance both
    parts: :math:`\rho_0^2 = |\tilde w| / |\partial s \, \tilde s|`, :math:`\rho_1^2 =
    |\nu^\top \partial s / \partial w| / |\nu|`.

    Not exact, but **unbiased**: :math:`E[\tilde s \tilde w^\top]` is the influence that `RTRL`
    carries, for constant parameters. The error of a single draw is several times the gradient, and
    grows with the number of units, so updates have to be small. Any cell with a step will do, a
    `Stack` or one of your own: each step takes one `jax.jvp` and one `jax.vjp` of the cell's. Each
    row of the batch has its own estimate, of the size of the state and of the parameters.

    Args:
        cell: any cell whose step can run row by row.

    Raises:
        InvalidInputError: the cell looks back on a memory, draws random numbers or is a
            convolution; or `init` is given no key.

    >>> import rnnjax
    >>> learner = UORO(rnnjax.LSTMCell(5))
    >>> params = learner.cell.init(jax.random.key(0), 3)
    >>> state = learner.init(params, (8,), jax.random.key(1))
    >>> for x in jnp.ones((10, 8, 3)):
    ...     state, y, pull = learner.step(params, state, x)
    >>> gradients = pull(y - 1)  # of half the squared distance of the last output from 1
    >>> gradients["recurrent_kernel"].shape
    (5, 20)
    """

    @property
    def influence(self) -> Influence:
        """Two vectors, whose outer product is the influence in expectation."""
        return RankOne(self.cell)

    def init(
        self, params: Params, batch_shape: tuple[int, ...] = (), key: jax.Array | None = None
    ) -> OnlineState:
        """The state before the first step; the key is for the signs of all steps."""
        check_key(key)
        return super().init(params, batch_shape, key)


@dataclasses.dataclass(frozen=True)
class RankOne(Influence):
    """A tree like the carry and one like the parameters, both with the axes of the batch first."""

    def initial(self, params: Params, batch_shape: tuple[int, ...], key: jax.Array | None) -> Any:
        """That on the initial state: zeros, unless the initial state is learned."""

        def of_row(key: jax.Array) -> Any:
            start, pull = jax.vjp(lambda params: self.start(params, ()), params)
            moved, before = jax.tree.map(jnp.zeros_like, (start, params))
            return _drawn(key, moved, before, pull)

        return over_rows(of_row, len(batch_shape))(_keys(key, batch_shape))

    def after(
        self,
        params: Params,
        influence: Any,
        carry: Carry,
        x: Any,
        reset: jax.Array | None,
        key: jax.Array | None,
    ) -> Any:
        """One half forward through the step, the other backward from random signs."""

        def of_row(key: jax.Array, both: Any, carry: Carry, x: Any, reset: Any) -> Any:
            _, moved = jax.jvp(
                lambda carry: self.run(params, carry, x, reset)[0], (carry,), (both[0],)
            )
            _, pull = jax.vjp(lambda params: self.run(params, carry, x, reset)[0], params)
            return _drawn(key, moved, both[1], pull)

        batch = x.shape[:-1]
        return over_rows(of_row, len(batch))(_keys(key, batch), influence, carry, x, reset)

    def credit(self, params: Params, influence: Any, d_carry: Carry) -> Params:
        """The inner product of the cotangent with one half, times the other."""
        along, of_params = influence

        def of_leaf(param: jax.Array, w: jax.Array) -> jax.Array:
            axes = w.ndim - param.ndim
            rows = sum(
                (d * s).sum(axis=tuple(range(axes, s.ndim)))
                for d, s in zip(jax.tree.leaves(d_carry), jax.tree.leaves(along), strict=True)
            )
            return jnp.tensordot(rows, w, axes)

        return jax.tree.map(of_leaf, params, of_params)


def _drawn(key: jax.Array, moved: Carry, before: Params, pull: Any) -> tuple[Carry, Params]:
    """Both halves after a step."""
    leaves, tree = jax.tree.flatten(moved)
    keys = jax.random.split(key, len(leaves))
    signs = jax.tree.unflatten(
        tree,
        [jax.random.rademacher(k, m.shape, m.dtype) for k, m in zip(keys, leaves, strict=True)],
    )
    (made,) = pull(signs)
    old = jnp.sqrt(_norm(before) / (_norm(moved) + TINY)) + TINY
    new = jnp.sqrt(_norm(made) / (_norm(signs) + TINY)) + TINY
    return (
        jax.tree.map(lambda m, sign: (old * m + new * sign).astype(m.dtype), moved, signs),
        jax.tree.map(lambda b, m: (b / old + m / new).astype(b.dtype), before, made),
    )


def _norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all numbers of a tree."""
    return jnp.sqrt(sum((leaf * leaf).sum() for leaf in jax.tree.leaves(tree)))


def _keys(key: jax.Array | None, batch: tuple[int, ...]) -> jax.Array:
    """A key for each row."""
    assert key is not None
    return jax.random.split(key, batch)
