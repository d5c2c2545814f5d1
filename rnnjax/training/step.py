"""The jitted train step: many optimiser steps in one dispatch, with truncated backpropagation."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.cells.products import at_least_float32
from rnnjax.checks import brief, check_alike, check_instance
from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.training.sharding import Sharding
from rnnjax.training.state import TrainState, check_params, dtype_of, is_key, optimizer_errors

Metrics = dict[str, jax.Array]

# The metrics that `fit` records besides those of the loss.
OF_FIT = {"step", "epoch", "loss", "grad_norm", "skipped", "steps_per_second", "validation_loss"}


LossFunction = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]
"""``(params, carry, batch, key) -> (loss, (carry, metrics))``: ``loss`` is a scalar, ``carry`` the
recurrent state for the next batch (``()`` if batches are independent) and ``metrics`` a dict of
numbers to record with the loss."""
TrainSteps = Callable[[TrainState, Any, int, int], tuple[TrainState, Metrics]]


def make_train_steps(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    sharding: Sharding | None = None,
    *,
    skip_nonfinite: bool = False,
) -> TrainSteps:
    """Compile a function that runs many optimiser steps in one dispatch.

    The carry that ``loss_fn`` returns goes into the next step without its gradient. That truncates
    backpropagation through time at the batch (Williams & Peng, 1990).

    The function stops after a step whose loss or gradient is NaN or infinite. With
    ``skip_nonfinite`` such a step counts, but does not change parameters, optimiser or carry.

    Args:
        loss_fn: the loss of one batch.
        optimizer: an optax optimiser, with its schedule and clipping. If it takes extra arguments,
            it gets ``value``, ``grad``, ``value_fn`` (or ``obj_fn``) and ``grad_fn``: the loss of
            the step, its gradient, and both as functions of the parameters. `optax.lookahead` takes
            ``optax.LookaheadParams.init_synced(params)``, of which the loss uses ``fast``.
        sharding: how state and batches are sharded; pass them as its ``put_state`` and
            ``put_batches`` return them. The returned state has the same sharding.
        skip_nonfinite: whether to skip a non-finite step instead of stopping; the metric
            ``skipped`` is then 1.

    Returns:
        ``train_steps(state, batches, start, stop) -> (state, metrics)``. The leaves of ``batches``
        have a leading axis of steps; steps ``start`` to ``stop - 1`` run. ``metrics`` holds
        ``loss``, ``grad_norm`` (before clipping) and those of ``loss_fn``, each ``(steps,)``; only
        the entries of steps that ran are meaningful. ``state`` is donated: use the returned one.

        ``start`` and ``stop`` are not static: one program runs every range. So a run that stops and
        resumes computes the same, bit for bit, as an uninterrupted run.

    Raises:
        InvalidInputError: ``optimizer`` is not an optimiser; ``loss_fn`` returns something else;
            the leaves of ``batches`` differ in their steps, or do not have ``start`` to ``stop``.

    >>> def loss_fn(params, carry, batch, key):
    ...     return jnp.sum((params - batch) ** 2), (carry, {})
    >>> optimizer = optax.sgd(0.25)
    >>> train_steps = make_train_steps(loss_fn, optimizer)
    >>> state = TrainState.create(jnp.zeros(()), optimizer, key=jax.random.key(0))
    >>> state, metrics = train_steps(state, jnp.ones(8), 0, 3)
    >>> int(state.step), float(state.params)
    (3, 0.875)
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InvalidInputError(
            f"optimizer must be one of optax, as optax.adam(1e-3), but is {brief(optimizer)}; "
            "call it with its learning rate"
        )
    gradient, update = parts_of_step(loss_fn, optimizer)

    def one_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        check_instance("state", state, TrainState, "a TrainState, as of TrainState.create")
        key = jax.random.fold_in(state.key, state.step)
        (loss, (carry, metrics)), grads = gradient(state, batch, key)
        params, opt_state = update(state, batch, key, loss, grads)
        # The squares of float16 would be infinite from 256 up, and zero below 0.0002.
        wide = jax.tree.map(lambda g: g.astype(at_least_float32(g.dtype)), grads)
        metrics = metrics | {"loss": loss, "grad_norm": optax.tree.norm(wide)}
        if skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
            params, opt_state, carry = jax.tree.map(
                lambda after, before: jnp.where(finite, after, before),
                (params, opt_state, carry),
                (state.params, state.opt_state, state.carry),
            )
            metrics["skipped"] = ~finite
        new = TrainState(state.step + 1, params, opt_state, carry, state.key)
        return (new if sharding is None else sharding.keep(new)), metrics

    return _over_steps(one_step, sharding, to_the_end=skip_nonfinite, donate=(0,))


def make_eval_steps(loss_fn: LossFunction, sharding: Sharding | None = None) -> Callable[..., Any]:
    """Compile a function that computes the loss of many batches without training.

    Returns:
        ``eval_steps(carry, batches, start, stop, params) -> (carry, metrics)``, as in
        `make_train_steps`. The key of ``loss_fn`` is None.
    """

    def one_step(carry: Any, batch: Any, params: Any) -> tuple[Any, Metrics]:
        try:
            loss, (carry, metrics) = checked_loss(loss_fn, params, carry, batch, None)
        except RnnjaxError:
            raise
        except Exception as error:
            raise InvalidInputError(
                "loss_fn is called with the key None where evaluate is data, so that nothing is "
                f"random, but failed ({type(error).__name__}: {error}); draw only where there is a "
                "key, or give evaluate a function of the parameters"
            ) from error
        return carry, metrics | {"loss": loss}

    return _over_steps(one_step, sharding, to_the_end=True)


def _over_steps(
    one_step: Callable[..., tuple[Any, Metrics]],
    sharding: Sharding | None,
    *,
    to_the_end: bool,
    donate: tuple[int, ...] = (),
) -> Callable[..., tuple[Any, Metrics]]:
    """Compile a loop over steps; unless ``to_the_end``, it stops after a non-finite one."""

    def steps(state: Any, batches: Any, start: Any, stop: Any, *read: Any) -> tuple[Any, Metrics]:
        num_steps = len(jax.tree.leaves(batches)[0])
        first = jax.tree.map(lambda leaf: leaf[0], batches)
        shapes = jax.eval_shape(one_step, state, first, *read)[1]
        metrics = jax.tree.map(lambda s: jnp.zeros((num_steps, *s.shape), s.dtype), shapes)

        def unfinished(loop: Any) -> jax.Array:
            _, _, i, finite = loop
            return (i < stop) & finite

        def body(loop: Any) -> Any:
            state, metrics, i, finite = loop
            batch = jax.tree.map(lambda leaf: leaf[i], batches)
            state, new = one_step(state, batch, *read)
            metrics = jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)
            if not to_the_end:
                finite = jnp.isfinite(new["loss"]) & jnp.isfinite(new["grad_norm"])
            return state, metrics, i + 1, finite

        loop = state, metrics, start, jnp.bool_(True)
        state, metrics, _, _ = jax.lax.while_loop(unfinished, body, loop)
        return state, metrics if sharding is None else sharding.keep_everywhere(metrics)

    compiled = jax.jit(steps, donate_argnums=donate)

    def run(state: Any, batches: Any, start: int, stop: int, *read: Any) -> tuple[Any, Metrics]:
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
        steps = (*min(lengths, default=()), -1)[0]
        whole = all(np.asarray(at).dtype.kind in "iuf" and at == int(at) for at in (start, stop))
        # Of a step that is not there, JAX would take the last one.
        if len(lengths) != 1 or not (whole and 0 <= start <= stop <= steps):
            raise InvalidInputError(
                "batches must have a first axis of steps, as long in all leaves, and start to stop "
                f"be some of them, but the axes are {sorted(lengths)}, and {start} to {stop} came; "
                "cut the leaves alike, and stop at their end"
            )
        arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
        if any(not isinstance(x, jax.core.Tracer) and x.is_deleted() for x in arrays):
            raise InvalidInputError(
                "state must be what the last call returned, but was given to a call before, which "
                "took its arrays (they are donated); go on with what that call returned"
            )
        # With a mesh set, `unroll` leaves out its forms for one device.
        with nullcontext() if sharding is None else jax.set_mesh(sharding.mesh):
            return compiled(state, batches, np.int32(start), np.int32(stop), *read)

    return run


def checked_loss(
    loss_fn: LossFunction, params: Any, carry: Any, batch: Any, key: Any
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Call a loss function and check its result; raise InvalidInputError if it is invalid."""
    returned: Any = loss_fn(params, carry, batch, key)
    pair = returned[1] if isinstance(returned, tuple) and len(returned) == 2 else None
    # A carry of two leaves could be taken for a carry and metrics.
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], dict)):
        came = brief(returned) if pair is None else f"(loss, {brief(pair)})"
        raise InvalidInputError(
            "loss_fn with a carry must return (loss, (carry, metrics)), metrics a dict, but "
            f"returned {came}; write return loss, (carry, {{}})"
        )
    loss, (after, metrics) = returned
    shape = np.shape(loss)
    if shape or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise InvalidInputError(
            f"loss_fn must return a scalar loss, but it is {jnp.result_type(loss)} of shape "
            f"{shape}; take the mean over the batch"
        )
    check_alike("loss_fn", carry, after, "cast it by astype, or begin with another")
    if not all(isinstance(name, str) for name in metrics) or OF_FIT.intersection(metrics):
        raise InvalidInputError(
            f"metrics of loss_fn must be a dict by texts, without the names {sorted(OF_FIT)}, but "
            f"are {brief(metrics)}; rename them"
        )
    for name, metric in metrics.items():
        if dtype_of(metric).kind not in "biufV" or is_key(metric):
            raise InvalidInputError(
                f"metrics of loss_fn must be real numbers or arrays of them, but {name} is "
                f"{brief(metric)}; take out of it what is to be recorded"
            )
    return returned


def parts_of_step(
    loss_fn: LossFunction, optimizer: optax.GradientTransformation
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the two functions that a step is made of, and by whose programs a run is identified.

    They are ``gradient(state, batch, key)`` and ``update(state, batch, key, loss, grads)``.
    """
    grad_fn = jax.value_and_grad(functools.partial(checked_loss, loss_fn), has_aux=True)

    def gradient(state: TrainState, batch: Any, key: jax.Array) -> Any:
        check_params(state.params)
        return grad_fn(state.params, state.carry, batch, key)

    def update(state: TrainState, batch: Any, key: jax.Array, loss: jax.Array, grads: Any) -> Any:
        # A line search hands on to it what its own `update` got and does not know.
        def value_fn(params: Any, obj_fn: Any = None, grad_fn: Any = None) -> jax.Array:
            return loss_fn(params, state.carry, batch, key)[0]

        if isinstance(state.params, optax.LookaheadParams):
            grads = grads.fast
        more = {"value": loss, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn}
        more["grad_fn"] = lambda params, step=None: jax.grad(value_fn)(params)
        extended = optax.with_extra_args_support(optimizer)  # a plain one then ignores them
        takes = inspect.signature(extended.update).parameters
        any_name = any(each.kind == each.VAR_KEYWORD for each in takes.values())
        # The first three are gradient, state and parameters, whatever their names are.
        wanted = [*takes][3:] + [name for name in more if any_name and name not in takes]
        more = {name: value for name, value in more.items() if name in wanted}
        with optimizer_errors("make an update"):
            updates, opt_state = extended.update(grads, state.opt_state, state.params, **more)
        return optax.apply_updates(state.params, updates), opt_state

    return gradient, update
