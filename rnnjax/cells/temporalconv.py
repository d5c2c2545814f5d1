"""A short causal convolution over time, as used before a linear recurrence."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Cell, Param, Params, exportable
from rnnjax.checks import check_size


@exportable
class WindowCarry(NamedTuple):
    """The last inputs, oldest first: ``window (*batch, taps - 1, hidden_size)``."""

    window: jax.Array


def windowed(
    xs: jax.Array,
    taps: jax.Array,
    window: jax.Array,
    valid: jax.Array | None = None,
    resets: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Convolve ``xs (time, *batch, features)`` with the steps before, and return the last window.

    Args:
        xs: the inputs.
        taps: ``(taps, features)``, the factors of the oldest step first.
        window: ``(*batch, taps - 1, features)``, the steps before the first.
        valid: booleans ``(time, *batch)``; a step that is not valid is in no window.
        resets: booleans ``(time, *batch)``; a window reaches no further back than to one.
    """
    num_steps, lags = xs.shape[0], len(taps) - 1
    rows = jnp.zeros(xs.shape[:-1], jnp.int32)
    # The number of resets up to a step: steps of different segments are in no common window.
    segments = rows if resets is None else rows + jnp.cumsum(resets, axis=0, dtype=jnp.int32)
    last_segment = segments[-1:]
    if valid is not None:
        # The valid steps of each row are put together first, so that the window of each lies right
        # before it, whatever steps were left out between. A sort that keeps their order does that.
        order = jnp.argsort(~valid, axis=0, stable=True)
        segments = jnp.take_along_axis(segments, order, axis=0)
        xs = jnp.take_along_axis(xs, order[..., None], axis=0)
    xs = jnp.concatenate([jnp.moveaxis(window, -2, 0), xs])
    # The old window continues with the first segment, number 0, unless a reset comes first.
    extended = jnp.zeros_like(segments, shape=(lags, *rows.shape[1:]))
    extended = jnp.concatenate([extended, segments])

    def at(start: int, segment: jax.Array, num: Any) -> jax.Array:
        """Return steps from a place on; those of other segments are zeros."""
        part = jax.lax.slice_in_dim(xs, start, start + num)
        if resets is None:
            return part
        own = jax.lax.slice_in_dim(extended, start, start + num) == segment
        return jnp.where(own[..., None], part, 0)

    ys = functools.reduce(jnp.add, [tap * at(i, segments, num_steps) for i, tap in enumerate(taps)])
    if valid is None:
        return jnp.moveaxis(at(num_steps, last_segment, lags), 0, -2), ys
    # The output of a valid step stands at its rank, the number of valid steps before it. A step
    # that is not valid gets that of the last valid one, which the caller masks.
    rank = jnp.maximum(jnp.cumsum(valid, axis=0) - 1, 0)
    ys = jnp.take_along_axis(ys, rank[..., None], axis=0)
    # The old window stands in front of the n valid steps, so the last `lags` of both together begin
    # at n. Where n is 0 that is the old window.
    last = valid.sum(axis=0) + jnp.arange(lags).reshape(-1, *[1] * (rows.ndim - 1))
    kept = jnp.take_along_axis(xs, last[..., None], axis=0)
    own = jnp.take_along_axis(extended, last, axis=0) == last_segment
    return jnp.moveaxis(jnp.where(own[..., None], kept, 0), 0, -2), ys


@dataclasses.dataclass(frozen=True)
class TemporalConvCell(Cell[WindowCarry]):
    r"""Causal convolution over a few steps, of each channel by itself (Griffin: De et al., 2024).

    .. math::
        u_t &= x_t W + b \\
        y_t &= d + \sum_{i=0}^{n-1} k_{n-1-i} \odot u_{t-i}

    with :math:`W` = ``kernel (input_size, hidden_size)``, :math:`b` = ``bias (hidden_size,)``,
    :math:`k` = ``taps (n, hidden_size)`` and :math:`d` = ``taps_bias (hidden_size,)``. The carry
    ``WindowCarry(window)`` holds :math:`u` of the last n - 1 steps, oldest first. It begins with
    zeros, and masked steps do not enter it. (In Mamba and Griffin the product is a separate layer.)
    `rnnjax.causal_convolution` is the second equation alone, of all steps at once.

    Args:
        hidden_size: the number of channels.
        taps: n, the number of steps that an output sees, with its own.
        taps_init: initialiser of ``taps``.
        use_bias: whether there are biases.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``taps`` is not a positive integer; or as `LSTMCell`.

    >>> cell = TemporalConvCell(hidden_size=50)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> params["taps"].shape, carry.window.shape, y.shape
    ((4, 50), (8, 3, 50), (8, 50))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    taps: int = 4
    taps_init: str | Initializer = "lecun_normal"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = WindowCarry
    gates = ("u",)
    recurrent = None
    output = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("taps", self.taps)

    @property
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """Declare ``window (taps - 1, hidden_size)``."""
        return {"window": (self.taps - 1, self.hidden_size)}

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel`` and ``taps``; with ``use_bias`` also ``bias`` and ``taps_bias``."""
        params = super().parameters(input_size)
        params["taps"] = Param((self.taps, self.hidden_size), self.taps_init)
        if self.use_bias:
            params["taps_bias"] = Param((self.hidden_size,), self.bias_init)
        return params

    def update(
        self, params: Params, x: jax.Array, carry: WindowCarry
    ) -> tuple[WindowCarry, jax.Array]:
        """Compute the new state by the second equation of the class."""
        # Along the window's own axis: `windowed` moves it to the front and back, and XLA would copy
        # each saved window from one layout into the other.
        taps, window = params["taps"].astype(x.dtype), carry.window
        y = taps[-1] * x + (window * taps[:-1]).sum(-2)
        window = jnp.concatenate([window[..., 1:, :], x[..., None, :]], -2)
        if self.use_bias:
            y += params["taps_bias"].astype(x.dtype)
        return WindowCarry(window), y
