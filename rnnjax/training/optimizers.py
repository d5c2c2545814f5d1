"""Adam as in Keras and TensorFlow, constraints on parameters, and penalties for a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rnnjax.cells.products import at_least_float32
from rnnjax.checks import as_array, usual_promotion
from rnnjax.engine.core.masking import expand
from rnnjax.engine.core.validation import checked_marks
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

    `optax.adam` adds :math:`\epsilon` after the bias correction of :math:`v_t`, and so damps small
    gradients less: at step 10 ten times less, for equal values. This changes the first epochs of
    deep recurrent networks, whose gradients are small.

    Args:
        learning_rate: :math:`\alpha`, a number or a schedule of the number of updates done.
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
        # The epsilon of optax, which adds it after the correction of the squares.
        corrected = eps / jnp.sqrt(1 - b2 ** (state.count + 1))
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates, after = optax.scale_by_adam(b1, b2, corrected).update(grads, state, params)
        return jax.tree.map(lambda u, g: (-rate * u).astype(g.dtype), updates, grads), after

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def constrain(constraint: Callable[[Any], Any]) -> optax.GradientTransformation:
    r"""Constrain parameters, like Keras's ``kernel_constraint``: the last of an `optax.chain`.

    .. math::
        \Delta\theta_t \leftarrow C(\theta_{t-1} + \Delta\theta_t) - \theta_{t-1}

    Args:
        constraint: :math:`C`, from the whole tree of parameters after an update to an allowed tree,
            such as the nearest.

    Raises:
        InvalidInputError: ``update`` gets no parameters, or the constraint returns another tree or
            other shapes.

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
    def constrained(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
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
        return jax.tree.map(lambda new, old: (new - old).astype(old.dtype), allowed, params)

    return optax.stateless(constrained)


def weight_penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array:
    r"""Compute ``l1 * sum(|w|) + l2 * sum(w ** 2)`` over all leaves, like Keras's ``l1_l2``.

    Pass only the parameters to penalise, such as ``params["recurrent_kernel"]``. (For decoupled
    weight decay use ``optax.adamw``.)

    >>> float(weight_penalty({"kernel": jnp.array([3.0, -4.0])}, l1=1.0, l2=0.1))
    9.5
    """
    leaves = [_wide(jnp.asarray(leaf)) for leaf in jax.tree.leaves(params)]
    # JAX's derivative of abs at 0 is 1, which would push weights that are 0 away from it.
    return sum(
        (l1 * (leaf * jnp.sign(leaf)).sum() + l2 * jnp.square(leaf).sum() for leaf in leaves),
        jnp.zeros(()),
    )


def activity_penalty(ys: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Compute the mean of ``ys ** 2``, activation regularisation AR (Merity et al., 2017).

    Args:
        ys: outputs ``(time, *batch, features)``.
        mask: booleans ``(time, *batch)``, False for entries that do not count.

    Raises:
        InvalidInputError: ``mask`` is not boolean, or has another shape.

    >>> ys = jnp.array([[[1.0, 3.0]], [[9.0, 9.0]]])
    >>> float(activity_penalty(ys, mask=jnp.array([[True], [False]])))
    5.0
    """
    ys = as_array("ys", ys)
    return _mean_square(ys, _marks("mask", mask, ys, True))


def slowness_penalty(
    ys: jax.Array, *, mask: jax.Array | None = None, resets: jax.Array | None = None
) -> jax.Array:
    """Compute the mean of ``(ys[t] - ys[t - 1]) ** 2``, temporal activation regularisation TAR.

    (Merity, McCann & Socher, 2017.)

    Args:
        ys: outputs ``(time, *batch, features)``.
        mask: booleans ``(time, *batch)``, False for entries whose pairs do not count.
        resets: booleans ``(time, *batch)``; pairs with a reset between them do not count.

    Raises:
        InvalidInputError: ``mask`` or ``resets`` are not boolean, or have another shape.

    >>> float(slowness_penalty(jnp.array([[[1.0]], [[3.0]], [[4.0]]])))
    2.5
    """
    ys = as_array("ys", ys)
    counted, resets = _marks("mask", mask, ys, True), _marks("resets", resets, ys, False)
    return _mean_square(ys[1:] - ys[:-1], counted[1:] & counted[:-1] & ~resets[1:])


def _marks(name: str, marks: Any, ys: jax.Array, default: bool) -> jax.Array:
    """Return booleans with the axes of ``ys``."""
    if marks is None:
        marks = jnp.full(ys.shape[:1], default)
    return expand(checked_marks(name, marks, ys, of="ys"), ys)


def _wide(array: jax.Array) -> jax.Array:
    """Cast to float32 or wider: narrow types cannot hold large sums, or counts above 65,504."""
    return array.astype(at_least_float32(array.dtype))


def _mean_square(values: jax.Array, mask: jax.Array) -> jax.Array:
    values, mask = _wide(values), jnp.broadcast_to(mask, values.shape)
    # Chosen before the square, so that a NaN that does not count has no gradient.
    squares = jnp.square(jnp.where(mask, values, 0))
    return squares.sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)
