"""The optimiser, its schedule, and the state before the first step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.text_generator.config import Optimization, Train
from experiments.text_generator.model import CharacterModel
from rnnjax.training import TrainState, keras_adam


def learning_rate(options: Optimization, epochs: int, steps_per_epoch: int) -> Any:
    """The learning rate, as a function of the number of updates done."""
    highest, steps = options.learning_rate, epochs * steps_per_epoch
    warmup = options.warmup * options.accumulate
    if options.schedule == "cosine":
        falling = optax.cosine_decay_schedule(highest, max(1, steps - warmup), alpha=0.01)
        by_step = optax.join_schedules([optax.constant_schedule(highest), falling], [warmup])
    elif options.schedule == "steps":
        by_step = optax.exponential_decay(
            highest,
            steps_per_epoch,
            options.decay,
            transition_begin=max(0, options.decay_after - 1) * steps_per_epoch,
            staircase=True,
        )
    else:
        by_step = optax.constant_schedule(highest)

    def by_update(updates: Any) -> Any:
        # An epoch need not be a multiple of the steps of an update.
        step = updates * options.accumulate
        rising = highest * updates / max(1, options.warmup)
        return jnp.where(step < warmup, rising, by_step(step))

    return by_update


def make_optimizer(
    options: Optimization, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser asked for, behind the clipping, once for every ``accumulate`` steps."""
    rate = learning_rate(options, epochs, steps_per_epoch)
    if options.optimizer == "adamw":
        optimizer = optax.adamw(rate, b2=0.99, weight_decay=options.weight_decay, mask=matrices)
    elif options.optimizer == "rmsprop":
        optimizer = optax.rmsprop(rate, decay=0.9, eps=1e-7)
    else:
        optimizer = keras_adam(rate)
    if options.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    if options.accumulate > 1:
        return optax.MultiSteps(optimizer, options.accumulate).gradient_transformation()
    return optimizer


def new_state(
    model: CharacterModel, config: Train, epochs: int, steps_per_epoch: int
) -> TrainState:
    """The state before the first step."""
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    carry = model.initial_carry(config.text.batch_size) if config.text.carry_state else ()
    optimizer = make_optimizer(config.optimization, epochs, steps_per_epoch)
    return TrainState.create(jax.jit(model.init)(init_key), optimizer, key=run_key, carry=carry)


def matrices(params: Any) -> Any:
    """Where the weights decay: matrices, not biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
