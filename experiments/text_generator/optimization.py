"""The optimiser, its schedule, and the state before the first step."""

from typing import Any

import jax
import optax

from experiments.text_generator.config import Optimization, Train
from experiments.text_generator.model import CharacterModel
from rnnjax.training import TrainState, keras_adam


def learning_rate(options: Optimization, epochs: int, updates_per_epoch: int) -> Any:
    """The learning rate, as a function of the number of updates done."""
    highest, updates = options.learning_rate, epochs * updates_per_epoch
    if options.schedule == "cosine":
        falling = max(1, updates - options.warmup)
        rate: Any = optax.cosine_decay_schedule(highest, falling, alpha=0.01)
    elif options.schedule == "steps":
        begin = options.decay_after * updates_per_epoch
        rate = optax.exponential_decay(
            highest, updates_per_epoch, options.decay, transition_begin=begin, staircase=True
        )
    else:
        rate = optax.constant_schedule(highest)
    if not options.warmup:
        return rate
    rising = optax.linear_schedule(0.0, highest, options.warmup)
    return optax.join_schedules([rising, rate], [options.warmup])


def make_optimizer(
    options: Optimization, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser asked for, behind the clipping, once for every ``accumulate`` steps."""
    rate = learning_rate(options, epochs, max(1, steps_per_epoch // options.accumulate))
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


def new_state(model: CharacterModel, config: Train, steps_per_epoch: int) -> TrainState:
    """The state before the first step."""
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    carry = model.initial_carry(config.text.batch_size) if config.text.carry_state else ()
    optimizer = make_optimizer(config.optimization, config.epochs, steps_per_epoch)
    return TrainState.create(jax.jit(model.init)(init_key), optimizer, key=run_key, carry=carry)


def matrices(params: Any) -> Any:
    """Where the weights decay: matrices, not biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
