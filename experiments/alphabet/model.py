"""The model, and its whole training as one function that compiles to one call."""

import dataclasses
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.alphabet.config import SUBSTRINGS, Config
from rnnjax.training import keras_adam

LETTERS = string.ascii_uppercase
# Compiling takes ten times as long as the training itself. At LLVM's first level of optimisation it
# takes a tenth less, and the small loops of this model run no slower.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 1}
CELLS = {"lstm": rnnjax.LSTMCell, "gru": rnnjax.GRUCell, "simple": rnnjax.SimpleRNNCell}


def pairs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The training pairs: letters ``(pairs, seq_length)`` and the one that follows ``(pairs,)``."""
    if config.mode == "variable":
        return substrings(config.seq_length)
    starts = np.arange(len(LETTERS) - config.seq_length)
    return starts[:, None] + np.arange(config.seq_length), starts + config.seq_length


def substrings(longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Random sub-strings of up to so many letters, after zeros, and the letter that follows each.

    A zero is an A to the model, in the tutorial too: it has to learn that A, A, A, B is B alone.
    """
    rng = np.random.default_rng(0)
    first = rng.integers(len(LETTERS) - 2, size=SUBSTRINGS)
    last = rng.integers(first, np.minimum(first + longest, len(LETTERS) - 1))
    letters = last[:, None] - np.arange(longest)[::-1]
    return np.where(letters < first[:, None], 0, letters), last + 1


@dataclasses.dataclass(frozen=True)
class Model:
    """``logits = h_T @ kernel + bias``, with ``h_T`` the cell's output at the input's last step."""

    config: Config

    @property
    def cell(self) -> rnnjax.Cell:
        """The recurrent cell."""
        return CELLS[self.config.cell](self.config.hidden_size)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters."""
        cell_key, dense_key = jax.random.split(key)
        features = self.config.seq_length if self.config.mode == "features" else 1
        shape = (self.config.hidden_size, len(LETTERS))
        return {
            "cell": self.cell.init(cell_key, features),
            "kernel": jax.nn.initializers.glorot_uniform()(dense_key, shape),
            "bias": jnp.zeros(len(LETTERS)),
        }

    def __call__(self, params: Any, carry: Any, letters: jax.Array) -> tuple[Any, jax.Array]:
        """Read inputs: ``letters (*batch, seq_length)`` as numbers 0 to 25; ``logits (*, 26)``."""
        numbers = letters / len(LETTERS)
        steps = jnp.moveaxis(numbers, -1, 0)[..., None]
        xs = numbers[None] if self.config.mode == "features" else steps
        carry = carry if self.config.stateful else None
        carry, ys = rnnjax.unroll(self.cell, params["cell"], xs, carry)
        return carry, ys[-1] @ params["kernel"] + params["bias"]

    def batches(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pairs of an epoch: in a new order, as in Keras, unless the state is carried."""
        inputs, targets = map(jnp.asarray, pairs(self.config))
        if not self.config.stateful:
            order = jax.random.permutation(key, len(targets))
            inputs, targets = inputs[order], targets[order]
        if self.config.batch_size == 1:
            return inputs, targets
        rows = self.config.batch_size
        return inputs.reshape(-1, rows, inputs.shape[1]), targets.reshape(-1, rows)

    def train(self, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        """Train from a seed; returns the parameters and the mean loss of each epoch.

        Epochs and letters are two nested scans: nothing returns to Python in between. The carry
        passes from letter to letter as a value, so backpropagation ends at each letter, as it does
        in Keras with ``stateful=True``.
        """
        config = self.config
        steps = config.epochs * len(pairs(config)[0]) // config.batch_size
        decayed = optax.linear_schedule(config.learning_rate, 0, steps)
        optimizer = keras_adam(decayed if config.decay else config.learning_rate)

        def loss_fn(params: Any, carry: Any, letters: jax.Array, target: jax.Array) -> Any:
            carry, logits = self(params, carry, letters)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
            return losses.mean(), carry

        def update(state: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            params, opt_state, carry = state
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, carry), grads = grad_fn(params, carry, *pair)
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            carry = carry if self.config.stateful else self.cell.initial_carry()
            return (params, opt_state, carry), loss

        def epoch(state: Any, _: None) -> tuple[Any, jax.Array]:
            inputs, targets = self.batches(jax.random.fold_in(key, state[1].count))
            # A new epoch begins with a new carry: this is Keras's reset_states().
            (params, opt_state, _), losses = jax.lax.scan(
                update, (*state, self.cell.initial_carry()), (inputs, targets)
            )
            return (params, opt_state), losses.mean()

        params = self.init(key)
        (params, _), losses = jax.lax.scan(
            epoch, (params, optimizer.init(params)), length=self.config.epochs
        )
        return params, losses

    def accuracy(self, params: Any) -> jax.Array:
        """The share of the pairs predicted, read in order as in training."""

        def read(carry: Any, letters: jax.Array) -> tuple[Any, jax.Array]:
            after, logits = self(params, carry, letters)
            return (after if self.config.stateful else carry), jnp.argmax(logits)

        inputs, targets = map(jnp.asarray, pairs(self.config))
        _, predicted = jax.lax.scan(read, self.cell.initial_carry(), inputs)
        return jnp.mean(predicted == targets)

    def chain(self, params: Any, start: jax.Array, length: int) -> jax.Array:
        """Feed the model its own predictions, from ``start (seq_length,)`` and an empty state."""

        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            before, letters = state
            after, logits = self(params, before, letters)
            letter = jnp.argmax(logits)
            letters = jnp.append(letters[1:], letter)
            return (after if self.config.stateful else before, letters), letter

        return jax.lax.scan(step, (self.cell.initial_carry(), start), length=length)[1]
