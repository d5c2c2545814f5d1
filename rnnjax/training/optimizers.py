"""Adam as Keras and TensorFlow compute it, and constraints on parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rnnjax.cells.arguments import usual_promotion
from rnnjax.errors import InvalidInputError


def keras_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    r"""Adam with :math:`\hat\epsilon` (Kingma & Ba, 2015, the last lines of section 2).

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \alpha_t &= \alpha \sqrt{1 - \beta_2^t} / (1 - \beta_1^t) \\
        \Delta\theta_t &= -\alpha_t m_t / (\sqrt{v_t} + \hat\epsilon)

    `optax.adam` adds :math:`\epsilon` after the correction of :math:`v_t` and so damps small
    gradients less: at step 10 with the same value, ten times less. For the small gradients of deep
    recurrent networks this changes the first epochs visibly.

    Args:
        learning_rate: :math:`\alpha`, a number or a schedule of the count of updates done before.
        b1: :math:`\beta_1`.
        b2: :math:`\beta_2`.
        eps: :math:`\hat\epsilon`.

    >>> optimizer = keras_adam(0.1)
    >>> updates, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 4)
    -0.1
    """

    @usual_promotion()
    def update(
        grads: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        t = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        alpha = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(
            lambda m, v: (-alpha * m / (jnp.sqrt(v) + eps)).astype(m.dtype), mu, nu
        )
        return updates, optax.ScaleByAdamState(t, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def constrain(constraint: Callable[[Any], Any]) -> optax.GradientTransformation:
    r"""Constraints on parameters, as Keras's ``kernel_constraint``: the last of an `optax.chain`.

    .. math::
        \Delta\theta_t \leftarrow C(\theta_{t-1} + \Delta\theta_t) - \theta_{t-1}

    Args:
        constraint: :math:`C`, from the whole tree of parameters after an update to the tree that
            takes its place, such as the nearest one that is allowed.

    Raises:
        InvalidInputError: ``update`` is given no parameters, or the constraint returns another
            tree, or other shapes.

    No column of ``kernel`` is longer than 2 (Keras's ``MaxNorm(2)``):

    >>> def shorten(params):
    ...     lengths = jnp.linalg.norm(params["kernel"], axis=0)
    ...     return {**params, "kernel": params["kernel"] / jnp.maximum(lengths / 2, 1)}
    >>> optimizer = optax.chain(optax.sgd(1.0), constrain(shorten))
    >>> params, grads = {"kernel": jnp.ones((4, 1))}, {"kernel": -2 * jnp.ones((4, 1))}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"][:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    @usual_promotion()
    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise InvalidInputError(
                "constrain must know the parameters, but update got none; call update(updates, "
                "state, params)"
            )
        allowed = constraint(optax.apply_updates(params, updates))
        wanted, came = (jax.tree.map(jnp.shape, tree) for tree in (params, allowed))
        if wanted != came:
            raise InvalidInputError(
                f"a constraint must return a tree like the parameters, {wanted}, but returned "
                f"{came}; put what it changes into a copy, as {{**params, 'kernel': kernel}}"
            )
        difference = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), allowed, params)
        return difference, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
