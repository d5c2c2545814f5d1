"""Attention over an encoded sequence: after the loop, or inside each step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.base import CarryT, Cell, Inputs, Params
from rnnjax.cells.composite import WrappedCell, beside
from rnnjax.cells.step import split_raw
from rnnjax.cells.validation import check_array
from rnnjax.checks import brief
from rnnjax.engine.core.masking import expand, zero_masked
from rnnjax.engine.core.validation import checked_marks
from rnnjax.errors import InvalidInputError


def attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Dot-product attention (Luong et al., 2015), for all steps of a decoder at once.

    .. math::
        a_{tj} &= \text{softmax}_j(q_t \cdot k_j) \\
        c_t &= \sum_j a_{tj} v_j

    It runs after the decoder, so the decoder runs on the fast path. Pass ``queries @ kernel`` for
    Luong's "general" attention.

    Args:
        queries: ``(time, *batch, n)``, the decoder's outputs; for a single step, time is 1.
        keys: ``(source time, *batch, n)``, often the encoder's outputs.
        values: ``(source time, *batch, m)``, often the same outputs.
        valid: booleans ``(source time, *batch)``, as from `valid_steps`; by default all True. What
            stands at other steps has no influence, even if it is NaN.

    Returns:
        the contexts ``(time, *batch, m)``, and the weights ``(time, source time, *batch)``. A row
        without a valid step gets contexts of zeros, and equal weights.

    Raises:
        InvalidInputError: ``valid`` has another shape, or is not boolean.

    >>> ys = jnp.eye(3)[:, None]  # three steps of one row
    >>> contexts, weights = attend(20 * ys[:1], ys, ys, jnp.array([[True], [True], [False]]))
    >>> contexts.shape, weights[0, :, 0].round(3).tolist()
    ((1, 1, 3), [1.0, 0.0, 0.0])
    """
    if valid is not None:
        valid = _marks(valid, keys)
        # A weight of 0 would not do: 0 * NaN is NaN.
        keys, values = zero_masked((keys, values), valid)
    # Not divided by sqrt(n) as in a transformer: Luong's product is not, and queries can be. All
    # time x source weights are held, for they are returned. Contexts alone could be summed over
    # blocks of the source: not tried; a source whose weights do not fit the memory would decide.
    weights = _softmax(jnp.einsum("t...n,s...n->ts...", queries, keys), valid, axis=1)
    return jnp.einsum("ts...,s...m->t...m", weights, values), weights


def _marks(valid: jax.Array, memory: jax.Array) -> jax.Array:
    """Return which steps of a memory are valid with an axis for each of its batch axes."""
    return expand(checked_marks("valid", valid, memory, of="the memory"), memory[..., 0])


def _softmax(scores: jax.Array, valid: jax.Array | None, axis: int) -> jax.Array:
    """Compute a softmax over the valid steps; a row without any gets equal weights."""
    if valid is not None:
        # Not -inf, of which a row without a valid step would be NaN: here all its scores are equal.
        scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=axis)


@dataclasses.dataclass(frozen=True)
class AttentionCell(WrappedCell[CarryT]):
    r"""A cell that attends to an encoded sequence before each step (Bahdanau et al., 2015).

    .. math::
        a_{tj} &= \text{softmax}_j(v \cdot \tanh(s_{t-1} W_q + m_j W_m)) \\
        c_t &= \sum_j a_{tj} m_j \\
        s_t &= \text{cell}([x_t, c_t], s_{t-1})

    with :math:`m_j` the memory, the outputs of an encoder, and :math:`s_{t-1}` all leaves of the
    carry. The output is :math:`[y_t, c_t]`. Each step's input depends on the old state, so the cell
    runs on `rnnjax.Scan`. If attention may come after the step, use `attend` on the fast path.

    `over` adds the memory to the parameters. Gradients flow through it into the encoder.

    Args:
        cell: the cell that runs on inputs and contexts.
        memory_size: the number of features of the memory.
        attention_size: the number of hidden units of the attention.

    Raises:
        InvalidInputError: a leaf of the cell's carry is not a vector, or the cell draws noise.

    >>> import rnnjax
    >>> cell = AttentionCell(rnnjax.GRUCell(5), memory_size=4, attention_size=6)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> memory = jnp.ones((7, 8, 4))  # (source time, batch, features)
    >>> ready = cell.over(params, memory, rnnjax.valid_steps(jnp.full(8, 5), 7))
    >>> carry, ys = rnnjax.unroll(cell, ready, jnp.ones((10, 8, 3)))
    >>> ys.shape, cell.weights(ready, carry).shape
    ((10, 8, 9), (7, 8))
    """

    cell: Cell[CarryT]
    memory_size: int
    attention_size: int

    def __post_init__(self) -> None:
        self._state_size()
        if self.cell.is_stochastic:  # in unroll_layers, which a step does not call
            raise InvalidInputError(
                f"an AttentionCell runs the steps of its cell, which draw no noise, but "
                f"{brief(self.cell)} has some; take the cell without, and drop inputs before"
            )

    def _state_size(self) -> int:
        """Return the size of a carry, whose leaves must be one vector per row."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(self.cell.initial_carry))]
        if any(len(shape) != 1 for shape in shapes):
            raise InvalidInputError(
                f"an AttentionCell compares by a carry whose leaves are vectors, but that of "
                f"{brief(self.cell)} has leaves of shapes {shapes}; take another cell"
            )
        return sum(size for (size,) in shapes)

    @property
    def output_size(self) -> int:
        """The output size of the cell plus ``memory_size``."""
        return self.cell.output_size + self.memory_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, Any]:
        """Initialise the parameters of the cell and of the attention (Glorot uniform)."""
        cell_key, *keys = jax.random.split(key, 4)
        draw, size = jax.nn.initializers.glorot_uniform(), self.attention_size
        return {
            "cell": self.cell.init(cell_key, input_size + self.memory_size),
            "query_kernel": draw(keys[0], (self._state_size(), size)),
            "memory_kernel": draw(keys[1], (self.memory_size, size)),
            # A kernel of one column, for a vector has no fan by which Glorot would scale it.
            "score_kernel": draw(keys[2], (size, 1))[:, 0],
        }

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the wrapped cell's state at the start of a sequence, perhaps a learned one."""
        return self.cell.start(params["cell"], batch_shape, dtype)

    def over(self, params: Params, memory: jax.Array, valid: jax.Array | None = None) -> Params:
        """Return the parameters with a memory to attend to, for `rnnjax.unroll` or `step`.

        Args:
            params: as `init` returns them.
            memory: ``(source time, *batch, memory_size)``.
            valid: booleans ``(source time, *batch)``; by default all True. What the memory holds at
                other steps has no influence; a row without a valid step gets contexts of zeros.

        Raises:
            InvalidInputError: the memory has another size, or ``valid`` another shape.
        """
        if memory.shape[-1] != self.memory_size:
            raise InvalidInputError(
                f"memory must be (source time, *batch, {self.memory_size}), but has shape "
                f"{memory.shape}; check memory_size"
            )
        marks = _marks(jnp.ones(memory.shape[:-1], bool) if valid is None else valid, memory)
        memory = zero_masked(memory, marks)
        # Its product with the memory is the same at every step.
        projected = memory @ params["memory_kernel"]
        return {**params, "memory": memory, "projected": projected, "valid": marks}

    def weights(self, params: Params, carry: CarryT) -> jax.Array:
        """Return the attention weights of a step after ``carry``: ``(source time, *batch)``."""
        if "memory" not in params:
            raise InvalidInputError(
                "an AttentionCell looks back on a memory, but its params have none; give "
                "cell.over(params, memory) in their place"
            )
        state = jnp.concatenate(jax.tree.leaves(carry), axis=-1)
        compared = jnp.tanh(state @ params["query_kernel"] + params["projected"])
        return _softmax(compared @ params["score_kernel"], params["valid"], axis=0)

    def step(self, params: Params, carry: CarryT, x: Inputs) -> tuple[CarryT, jax.Array]:
        """Attend to the memory, and run the cell on ``x`` and the context."""
        mixed, raw = split_raw(self, x)
        check_array("an AttentionCell", mixed, "give rows of an embedding")
        weights = self.weights(params, carry)
        context = jnp.einsum("s...,s...m->...m", weights, params["memory"])
        # The context's rows of the kernel come after those of the inputs, as in the equation.
        given = beside(self.cell, jnp.concatenate([mixed, context], axis=-1), raw)
        carry, y = self.cell.step(params["cell"], carry, given)
        return carry, jnp.concatenate([y, context], axis=-1)
