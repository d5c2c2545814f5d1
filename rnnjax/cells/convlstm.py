"""Long short-term memory over images and other grids, with convolutions for products."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    activate_gates,
    get_activation,
    get_initializer,
)
from rnnjax.cells.arguments import (
    as_inputs,
    brief,
    check_batch_shape,
    check_features,
    check_fields,
    check_init,
    check_step,
    floating_dtype,
    is_integer,
)
from rnnjax.cells.base import Cell, Inputs, Params, at_least_float32
from rnnjax.cells.lstm import LSTMCarry, set_forget_bias
from rnnjax.cells.onehot import OneHot
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class ConvLSTMCell(Cell):
    r"""Convolutional LSTM (Shi et al., 2015), without peepholes, in one or two dimensions.

    .. math::
        i, f, g, o &= \text{split}(x * W + h * U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    where :math:`*` is a convolution (as everywhere in this field a correlation) with stride 1 and
    zero padding, so that the grid keeps its shape. :math:`W` = ``kernel (*kernel_shape,
    input_size, 4 * hidden_size)``, :math:`U` = ``recurrent_kernel (*kernel_shape, hidden_size,
    4 * hidden_size)``, :math:`b` = ``bias (4 * hidden_size,)``.

    Inputs are ``(*batch, *grid, input_size)``, channels last, and the axes of the grid take the
    place of the last axes of the batch everywhere: ``xs (time, batch, height, width, channels)``,
    ``initial_carry((batch, height, width))``; masks and resets can leave them out. It runs on the
    plain scan.

    Args:
        hidden_size: the number of hidden channels.
        kernel_shape: of the convolutions, one or two sizes.
        activation: of the candidate and the output.
        recurrent_activation: :math:`\sigma`, the activation of the gates i, f and o.
        use_bias: whether the gates have a bias.
        unit_forget_bias: whether the forget gate's bias starts at 1 rather than 0.
        kernel_init: initialiser of ``kernel``.
        recurrent_kernel_init: of ``recurrent_kernel``.
        dtype: of the operands of the convolutions and of the outputs, as in `ProjectedCell`.
        param_dtype: of the parameters that `init` draws.

    Raises:
        InvalidInputError: a size is not a positive integer, ``kernel_shape`` has not one or two of
            them, or inputs have too few axes or another number of channels.

    >>> cell = ConvLSTMCell(hidden_size=4, kernel_shape=(3, 3))
    >>> params = cell.init(jax.random.key(0), input_size=1)
    >>> carry, y = cell.step(params, cell.initial_carry((2, 8, 8)), jnp.ones((2, 8, 8, 1)))
    >>> params["kernel"].shape, y.shape
    ((3, 3, 1, 16), (2, 8, 8, 4))
    """

    hidden_size: int
    kernel_shape: tuple[int, ...] = (3, 3)
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    use_bias: bool = True
    unit_forget_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    num_gates: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_shape, tuple | list):
            raise InvalidInputError(
                "kernel_shape must be a tuple of one or two sizes, such as (3, 3), but is "
                f"{brief(self.kernel_shape)}"
            )
        object.__setattr__(self, "kernel_shape", tuple(self.kernel_shape))
        sizes = (self.hidden_size, *self.kernel_shape)
        if len(sizes) not in (2, 3) or any(not is_integer(n) or n < 1 for n in sizes):
            raise InvalidInputError(
                f"hidden_size and the one or two sizes of kernel_shape must be positive integers, "
                f"but are {self.hidden_size!r} and {self.kernel_shape!r}"
            )
        check_fields(self)

    @property
    def output_size(self) -> int:
        """The number of hidden channels."""
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw ``kernel``, ``recurrent_kernel`` and ``bias`` for ``input_size`` channels."""
        check_init(key, input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        width = self.num_gates * self.hidden_size
        params = {
            name: get_initializer(initializer)(
                one_key, (*self.kernel_shape, channels, width), at_least_float32(self.param_dtype)
            ).astype(self.param_dtype)
            for name, initializer, one_key, channels in (
                ("kernel", self.kernel_init, kernel_key, input_size),
                ("recurrent_kernel", self.recurrent_kernel_init, recurrent_key, self.hidden_size),
            )
        }
        if self.use_bias:
            params["bias"] = jnp.zeros(width, self.param_dtype)
            if self.unit_forget_bias:
                params["bias"] = set_forget_bias(params["bias"], self.hidden_size)
        return params

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> LSTMCarry:
        """Zeros: ``hidden`` and ``cell``, both ``(*batch_shape, hidden_size)``, grid included."""
        check_batch_shape(batch_shape)
        if dtype is None:
            dtype = at_least_float32(self.param_dtype)
        dtype = floating_dtype("dtype", dtype)
        zeros = jnp.zeros((*batch_shape, self.hidden_size), dtype)
        return LSTMCarry(zeros, zeros)

    def step(self, params: Params, carry: LSTMCarry, x: Inputs) -> tuple[LSTMCarry, jax.Array]:
        """Run one time step: ``x (*batch, *grid, input_size)``."""
        if isinstance(x, OneHot):
            raise InvalidInputError(
                "ConvLSTMCell needs vectors at each point, but the inputs are OneHot; give "
                "jax.nn.one_hot(ids, size)"
            )
        x = as_inputs(x)
        if x.ndim < 1 + len(self.kernel_shape):
            raise InvalidInputError(
                f"inputs of {brief(self)} must be (*batch, *grid, channels) with a grid of "
                f"{len(self.kernel_shape)} axes, but have shape {x.shape}; channels come last"
            )
        check_features(self, params, x)
        check_step(self, carry, x)
        gate = self.recurrent_activation
        sums = self._convolved(x, params["kernel"]) + self._convolved(
            carry.hidden, params["recurrent_kernel"]
        )
        if "bias" in params:
            sums = sums + params["bias"].astype(sums.dtype)
        i, f, g, o = jnp.split(
            activate_gates(sums, (gate, gate, self.activation, gate)), 4, axis=-1
        )
        cell = f * carry.cell + i * g
        hidden = o * get_activation(self.activation)(cell)
        new = LSTMCarry(hidden.astype(carry.hidden.dtype), cell.astype(carry.cell.dtype))
        return new, new.hidden if self.dtype is None else new.hidden.astype(self.dtype)

    def _convolved(self, x: Any, kernel: jax.Array) -> jax.Array:
        grid = len(self.kernel_shape)
        dtype = jnp.promote_types(x.dtype, kernel.dtype) if self.dtype is None else self.dtype
        spatial = "HW"[:grid]
        out = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-grid - 1 :]).astype(dtype),
            kernel.astype(dtype),
            window_strides=(1,) * grid,
            padding="SAME",
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        ).astype(at_least_float32(dtype))
        return out.reshape(*x.shape[:-1], kernel.shape[-1])
