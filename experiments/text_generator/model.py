"""The model: characters in, recurrent layers, a softmax at every step."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax.cells as cells
from experiments.text_generator import blocks
from experiments.text_generator.config import Architecture, CellName, ProductType
from rnnjax.engine import Auto, Fused, Method, unroll
from rnnjax.errors import InvalidInputError
from rnnjax.layers import Dropout, Regularized, Stack, prepare

# A row begins so many characters before its own part of the text, to have read what comes before.
_WARM_UP = 256
_PIECE = 128

CELLS: dict[CellName, Any] = {
    "lstm": cells.LSTMCell, "gru": cells.GRUCell, "simple": cells.SimpleRNNCell,
    "gru_reset_before": lambda hidden_size: cells.GRUCell(hidden_size, reset_after=False),
    "layernorm_lstm": cells.LayerNormLSTMCell, "layernorm_gru": cells.LayerNormGRUCell,
    "peephole_lstm": cells.PeepholeLSTMCell, "mgu": cells.MGUCell,
    "mgu_reset_before": lambda hidden_size: cells.MGUCell(hidden_size, reset_after=False),
    "mingru": cells.MinGRUCell, "minlstm": cells.MinLSTMCell,
    "mamba2": blocks.mamba2, "gated_delta": blocks.gated_delta,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CharacterModel:
    """Predicts the next character at every step.

    ``logits_t = h_t @ kernel + bias``, with ``h`` the outputs of ``stack`` on one-hot characters or
    on rows of ``embedding``, which with ``tied`` is also the transpose of ``kernel``.
    """

    stack: Stack
    vocabulary_size: int
    embedding_size: int = 0
    tied: bool = False
    dropout: Dropout = Dropout(0.0)
    embedding_dropout: Dropout = Dropout(0.0, per="sequence")
    method: Method = Auto()

    @classmethod
    def build(cls, options: Architecture, vocabulary_size: int) -> "CharacterModel":
        """The model of these options."""
        cell, dropout = CELLS[options.cell](options.hidden_size), Dropout(options.dropout)
        if options.recurrent_dropout or options.weight_drop:
            cell = Regularized(
                cell, recurrent_dropout=options.recurrent_dropout, weight_drop=options.weight_drop
            )
        return cls(
            Stack([cell] * options.layers, dropout=dropout),
            vocabulary_size,
            options.embedding_size,
            options.tied,
            dropout,
            Dropout(options.embedding_dropout, per="sequence"),
            Fused(product_dtype=jnp.bfloat16) if options.products == "bfloat16" else Auto(),
        )

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters: of the stack, and of the dense layer (Glorot uniform, zeros)."""
        stack_key, dense_key, embedding_key = jax.random.split(key, 3)
        size = self.vocabulary_size
        params = {
            "stack": self.stack.init(stack_key, self.embedding_size or size),
            "bias": jnp.zeros(size),
        }
        if self.embedding_size:
            vectors = jax.random.normal(embedding_key, (size, self.embedding_size))
            params["embedding"] = self.embedding_size**-0.5 * vectors
        if not self.tied:
            shape = (self.stack.output_size, size)
            params["kernel"] = jax.nn.initializers.glorot_uniform()(dense_key, shape)
        return params

    def initial_carry(self, batch_size: int) -> Any:
        """The state before the first character."""
        return self.stack.initial_carry((batch_size,))

    def unroll(
        self, params: Any, tokens: jax.Array, carry: Any, key: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        """Read ``tokens (time, batch)``; returns the carry and ``logits (time, batch, size)``.

        With a key there is dropout, as in training.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        xs = self.embed(params, tokens)
        if self.embedding_size:
            xs = self.embedding_dropout.apply(keys[0], xs)
        carry, ys = unroll(self.stack, params["stack"], xs, carry, key=keys[1], method=self.method)
        return carry, self.predict(params, self.dropout.apply(keys[2], ys))

    def step(self, params: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        """Read one character of each text: ``tokens (batch,)``, ``logits (batch, size)``."""
        carry, y = self.stack.step(params["stack"], carry, self.embed(params, tokens))
        return carry, self.predict(params, y)

    # So a model is itself a step to draw with, and equal models are compiled once.
    __call__ = step

    def prepared(
        self, params: Any, rows: int, products: ProductType = "float32"
    ) -> tuple["CharacterModel", Any]:
        """Prepare the model and its parameters to step ``rows`` texts at a time."""
        x = jax.eval_shape(self.embed, params, jax.ShapeDtypeStruct((rows,), jnp.int32))
        product_dtype = jnp.bfloat16 if products == "bfloat16" else None
        stack: Any
        stack, laid_out = prepare(self.stack, params["stack"], x, product_dtype=product_dtype)
        return dataclasses.replace(self, stack=stack), {**params, "stack": laid_out}

    def embed(self, params: Any, tokens: jax.Array) -> Any:
        """What the stack reads for ``tokens``: rows of the embedding, or one-hot vectors."""
        vectors = cells.OneHot(tokens, self.vocabulary_size)
        return vectors.rows(params["embedding"]) if self.embedding_size else vectors

    def predict(self, params: Any, ys: jax.Array) -> jax.Array:
        """The logits of outputs ``ys (..., hidden_size)``."""
        kernel = params["embedding"].T if self.tied else params["kernel"]
        return ys @ kernel + params["bias"]

    def losses(
        self, params: Any, carry: Any, inputs: jax.Array, targets: jax.Array, key: Any = None
    ) -> tuple[Any, jax.Array]:
        """The carry, and the cross-entropy in nats of each of ``targets (batch, time)``."""
        carry, logits = self.unroll(params, inputs.T, carry, key)
        labels = targets.T.astype(jnp.int32)  # of a whole text they are of a narrow type
        return carry, optax.softmax_cross_entropy_with_integer_labels(logits, labels).T


def make_loss(
    model: CharacterModel, *, carry_state: bool, forget: float = 0.0, last: bool = False
) -> Any:
    """The loss of a batch: the mean cross-entropy, with windows of weight 0 left out.

    With ``carry_state`` each row continues from the state of the batch before, except for those
    that ``forget`` it, with that chance; with ``last`` only the character after each window counts.
    """

    def loss_fn(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        inputs, targets, weights = batch["inputs"], batch["targets"], batch["weights"]
        before = model.initial_carry(len(inputs))
        if carry_state:
            key, forget_key = jax.random.split(key)
            kept = jax.random.bernoulli(forget_key, 1 - forget, (len(inputs),))
            before = jax.tree.map(
                lambda old, new: jnp.where(kept.reshape(-1, *[1] * (old.ndim - 1)), old, new),
                carry,
                before,
            )
        after, losses = model.losses(params, before, inputs, targets, key)
        each = losses[:, -1] if last else losses.mean(axis=1)
        loss = jnp.average(each, weights=weights)
        return loss, (after if carry_state else (), {"weight": weights.sum()})

    return loss_fn


def surprise(model: CharacterModel, params: Any, ids: np.ndarray, *, rows: int = 32) -> np.ndarray:
    """The cross-entropy in nats ``(len(ids) - 1,)`` of every character of a text but the first.

    Each is given those before it. The text is read side by side in at most so many rows, each of
    which begins some characters early, so that its state is that of a reader of the whole text but
    for what lies further back than these.
    """
    count = len(ids) - 1
    if count < 1:
        raise InvalidInputError(
            f"a text to be predicted needs at least 2 characters, but has {len(ids)}; take more"
        )
    rows = max(1, min(rows, count // (4 * _WARM_UP)))
    length = -(-count // rows)
    pieces = -(-length // _PIECE)
    begins = np.arange(rows) * length
    early = begins + np.arange(-_WARM_UP, 0)[:, None]
    steps = pieces * _PIECE
    # What follows the own part of a row fills its last piece, and is cut off again.
    filled = np.pad(ids, (0, steps), mode="edge")
    own = np.lib.stride_tricks.sliding_window_view(filled, steps + 1)[begins].T
    inputs, targets = (x.reshape(pieces, _PIECE, rows) for x in (own[:-1], own[1:]))
    losses = _losses(model, params, ids[np.clip(early, 0, count - 1)], inputs, targets)
    return np.asarray(losses).reshape(-1, rows)[:length].T.ravel()[:count]


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    model: CharacterModel, params: Any, early: jax.Array, inputs: jax.Array, targets: jax.Array
) -> jax.Array:
    def piece(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        inputs, targets = batch
        carry, losses = model.losses(params, carry, inputs.T, targets.T)
        return carry, losses.T

    start = model.initial_carry(early.shape[1])
    carry, _ = model.unroll(params, early, start)
    # The first row begins where the text does.
    carry = jax.tree.map(lambda new, old: new.at[0].set(old[0]), carry, start)
    return jax.lax.scan(piece, carry, (inputs, targets))[1]


def bits(nats: float) -> float:
    """Bits of so many nats.

    >>> bits(math.log(2))
    1.0
    """
    return nats / math.log(2)


def held_out(model: CharacterModel, ids: np.ndarray, name: str) -> Any:
    """``params -> metrics``: loss and bits per character or byte of a part of the text, by name."""

    def measure(params: Any) -> dict[str, float]:
        loss = float(surprise(model, params, ids).mean())
        return {f"{name}_loss": loss, f"{name}_bits": bits(loss)}

    return measure
