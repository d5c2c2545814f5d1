"""Long short-term memory over images and other grids, with convolutions."""

import dataclasses

import jax

from rnnjax.cells.base import Coupling, Param, Params
from rnnjax.cells.lstm import LSTMCarry, LSTMRelative, lstm_update
from rnnjax.checks import brief, is_integer
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class ConvLSTMCell(LSTMRelative):
    r"""Convolutional LSTM (Shi et al., 2015), without peepholes, in one or two dimensions.

    .. math::
        i, f, g, o &= \text{split}(x * W + h * U + b) \\
        i, f, o &= \sigma(i), \sigma(f), \sigma(o), \qquad g = \tanh(g) \\
        c' &= f c + i g \\
        h' &= o \tanh(c'), \qquad y = h'

    where :math:`*` is a convolution (a cross-correlation, as usual) with stride 1 and zero padding,
    so the grid keeps its shape. :math:`W` = ``kernel (*kernel_shape, input_size, 4 *
    hidden_size)``, :math:`U` = ``recurrent_kernel (*kernel_shape, hidden_size, 4 * hidden_size)``
    and :math:`b` = ``bias (4 * hidden_size,)``.

    Inputs are ``(*batch, *grid, input_size)``, channels last. The grid axes count as the last batch
    axes: ``xs (time, batch, height, width, channels)``, ``initial_carry((batch, height, width))``.
    Masks and resets can leave them out.

    Args:
        hidden_size: the number of hidden channels.
        kernel_shape: the window of the convolutions, one or two sizes.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``kernel_shape`` does not have one or two sizes, or the inputs have too
            few axes or another number of channels; or as `LSTMCell`.

    >>> cell = ConvLSTMCell(hidden_size=4, kernel_shape=(3, 3))
    >>> params = cell.init(jax.random.key(0), input_size=1)
    >>> carry, y = cell.step(params, cell.initial_carry((2, 8, 8)), jax.numpy.ones((2, 8, 8, 1)))
    >>> params["kernel"].shape, y.shape
    ((3, 3, 1, 16), (2, 8, 8, 4))
    """

    _: dataclasses.KW_ONLY
    kernel_shape: tuple[int, ...] = (3, 3)

    # The engine convolves the state before the update, which then sees each point by itself.
    coupling = Coupling.ELEMENTWISE

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.kernel_shape
        listed = isinstance(shape, tuple | list) and len(shape) in (1, 2)
        if not listed or not all(is_integer(size) and size > 0 for size in shape):
            raise InvalidInputError(
                "kernel_shape must be a tuple of one or two sizes, positive integers such as "
                f"(3, 3), but is {shape if listed else brief(shape)}"
            )
        # A list has no hash, and a cell is a static argument of jit.
        object.__setattr__(self, "kernel_shape", tuple(shape))

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters of `LSTMCell`; kernels begin with the axes of ``kernel_shape``."""
        params = super().parameters(input_size)
        for name in ("kernel", "recurrent_kernel"):
            shape = (*self.kernel_shape, *params[name].shape)
            params[name] = params[name]._replace(shape=shape)
        return params

    def update(self, params: Params, x: jax.Array, carry: LSTMCarry) -> LSTMCarry:
        """Compute the new state by the equations of the class, from the second on."""
        return lstm_update(x, carry, self.recurrent_activation, self.activation)
