"""The tutorial's model: one-hot characters, recurrent layers, a softmax at every step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rnnjax
from experiments.text_generator.config import CellName, Train

CELLS: dict[CellName, Any] = {
    "lstm": rnnjax.LSTMCell,
    "gru": rnnjax.GRUCell,
    "gru_reset_before": lambda hidden_size: rnnjax.GRUCell(hidden_size, reset_after=False),
    "simple": rnnjax.SimpleRNNCell,
}


@dataclasses.dataclass(frozen=True)
class CharacterModel:
    """Predicts the next character at every step.

    ``logits_t = h_t @ kernel + bias``, with ``h`` the outputs of ``stack`` on one-hot characters.
    """

    stack: rnnjax.Stack
    vocabulary_size: int

    @classmethod
    def build(cls, config: Train, vocabulary_size: int) -> "CharacterModel":
        """The model of a configuration."""
        cell = CELLS[config.cell](config.hidden_size)
        return cls(rnnjax.Stack([cell] * config.layers), vocabulary_size)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters: of the stack, and of the dense layer (Glorot uniform, zeros)."""
        stack_key, dense_key = jax.random.split(key)
        shape = (self.stack.output_size, self.vocabulary_size)
        return {
            "stack": self.stack.init(stack_key, self.vocabulary_size),
            "kernel": jax.nn.initializers.glorot_uniform()(dense_key, shape),
            "bias": jnp.zeros(self.vocabulary_size),
        }

    def initial_carry(self, batch_size: int) -> Any:
        """The state before the first character."""
        return self.stack.initial_carry((batch_size,))

    def unroll(self, params: Any, tokens: jax.Array, carry: Any) -> tuple[Any, jax.Array]:
        """Read ``tokens (time, batch)``; returns the carry and ``logits (time, batch, size)``."""
        xs = rnnjax.OneHot(tokens, self.vocabulary_size)
        carry, ys = rnnjax.unroll(self.stack, params["stack"], xs, carry)
        return carry, ys @ params["kernel"] + params["bias"]

    def step(self, params: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        """Read one character of each text: ``tokens (batch,)``, ``logits (batch, size)``."""
        x = rnnjax.OneHot(tokens, self.vocabulary_size)
        carry, y = self.stack.step(params["stack"], carry, x)
        return carry, y @ params["kernel"] + params["bias"]

    def losses(
        self, params: Any, carry: Any, inputs: jax.Array, targets: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The carry, and the cross-entropy in nats of each of ``targets (batch, time)``."""
        carry, logits = self.unroll(params, inputs.T, carry)
        return carry, optax.softmax_cross_entropy_with_integer_labels(logits, targets.T).T


def make_loss(model: CharacterModel, carry_state: bool) -> Any:
    """The loss of a batch: the mean cross-entropy, with windows of weight 0 left out."""

    def loss_fn(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        inputs, targets, weights = batch["inputs"], batch["targets"], batch["weights"]
        before = carry if carry_state else model.initial_carry(len(inputs))
        after, losses = model.losses(params, before, inputs, targets)
        loss = jnp.average(losses.mean(axis=1), weights=weights)
        return loss, (after if carry_state else (), {"weight": weights.sum()})

    return loss_fn
