"""The recurrent block of Griffin: a gate beside a convolution and a linear recurrence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.arguments import brief, check_fields, check_size
from rnnjax.cells.base import Cell, Coupling, Inputs, Param, Params, Role
from rnnjax.cells.composite import CompositeCell, LayerRun
from rnnjax.cells.initializers import PerHead
from rnnjax.cells.rglru import RGLRUCell, griffin_decays
from rnnjax.cells.simple import SimpleRNNCarry
from rnnjax.cells.temporalconv import TemporalConvCell, WindowCarry
from rnnjax.errors import InvalidInputError
from rnnjax.layers.stack import Stack


@dataclasses.dataclass(frozen=True)
class _Branches(TemporalConvCell):
    """The convolution of one product of the inputs, and beside it GeLU of another."""

    def parameters(self, input_size: int) -> dict[str, Param]:
        """And those of the other product."""
        return super().parameters(input_size) | {
            "gate_kernel": Param((input_size, self.hidden_size), self.kernel_init, Role.OUT),
            "gate_bias": Param((self.hidden_size,), self.bias_init, Role.OUT),
        }

    @property
    def output_size(self) -> int:
        """Of both branches."""
        return 2 * self.hidden_size

    def readout(self, params: Params, emitted: Any, xs: Any) -> jax.Array:
        """Both branches side by side."""
        gate = xs @ params["gate_kernel"] + params["gate_bias"].array
        return jnp.concatenate([emitted, jax.nn.gelu(gate).astype(emitted.dtype)], axis=-1)


@dataclasses.dataclass(frozen=True)
class _Gated(RGLRUCell):
    """The recurrence of the first half of its inputs, times the second, and a product of that."""

    outputs: int = 1

    coupling = Coupling.CONTRACTING
    output = None

    def parameters(self, input_size: int) -> dict[str, Param]:
        """The role of the product after the loop."""
        out = Param((self.hidden_size, self.outputs), self.kernel_init, Role.OUT)
        bias = Param((self.outputs,), self.bias_init, Role.OUT)
        return super().parameters(input_size) | {"out_kernel": out, "out_bias": bias}

    @property
    def output_size(self) -> int:
        """The kernel of the product after the loop."""
        return self.outputs

    def update(self, params: Params, x: jax.Array, carry: SimpleRNNCarry) -> Any:
        """The recurrence alone."""
        new = super().update(params, x, carry)
        return new, new.hidden

    def readout(self, params: Params, emitted: Any, xs: Any) -> jax.Array:
        """The gate, and the product."""
        gated = emitted * jnp.split(xs, 2, axis=-1)[1].astype(emitted.dtype)
        return gated @ params["out_kernel"] + params["out_bias"].array


@dataclasses.dataclass(frozen=True)
class GriffinCell(CompositeCell[tuple[WindowCarry, SimpleRNNCarry]]):
    r"""The recurrent block of Griffin and Hawk (De et al., 2024).

    .. math::
        g_t &= \text{GeLU}(x_t W_g + b_g) \\
        u_t &= \text{conv}(x_t W_u + b_u), \text{ of four steps, each channel by itself} \\
        r_t, i_t &= \sigma(u_t W_r + b_r), \sigma(u_t W_i + b_i) \\
        a_t &= \exp(-8 \, \text{softplus}(\Lambda) \, r_t) \\
        h_t &= a_t h_{t-1} + \sqrt{1 - a_t^2} \, (i_t u_t) \\
        y_t &= (g_t h_t) W_o + b_o

    where :math:`W_r` and :math:`W_i` are of ``heads`` blocks on the diagonal. It is a cell made of
    two: a `TemporalConvCell` and an `RGLRUCell`, each of which `rnnjax.Parallel` runs. Its
    parameters and its carry, ``(WindowCarry, SimpleRNNCarry)``, are tuples with an entry for
    each:

    - ``kernel``, ``bias``, ``taps`` and ``taps_bias`` as of a `TemporalConvCell`, and ``gate_kernel
      (input_size, state_size)`` and ``gate_bias (state_size,)``;
    - ``kernel (state_size / heads, 2 * state_size)``, the blocks of :math:`W_r` and then of
      :math:`W_i` side by side, ``bias (2 * state_size,)``, ``decay (state_size,)``, ``out_kernel
      (state_size, hidden_size)`` and ``out_bias (hidden_size,)``.

    GeLU is its approximation by tanh. The blocks are multiplied as one matrix with zeros between
    them. (The authors' code leaves the root out where a sequence begins.)

    Args:
        hidden_size: the number of outputs, in a residual block that of the inputs.
        state_size: of convolution and recurrence; left out, ``hidden_size``.
        heads: the number of blocks of :math:`W_r` and :math:`W_i`, which divides ``state_size``.
        taps_init: initialiser of ``taps``.
        decay_init: initialiser of ``decay``; as it stands :math:`a` is 0.9 to 0.999 where r is 1.
        kernel_init: initialiser of the kernels, by name or as ``(key, shape, dtype) -> array``; of
            :math:`W_r` and :math:`W_i` each block is drawn by itself.

    Arguments that are not listed are those of `LSTMCell`.

    Raises:
        InvalidInputError: ``heads`` do not divide ``state_size``; or as `LSTMCell`.

    >>> import rnnjax
    >>> cell = GriffinCell(hidden_size=8, state_size=12, heads=3)
    >>> params = cell.init(jax.random.key(0), input_size=8)
    >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((10, 2, 8)), method=rnnjax.Parallel())
    >>> ys.shape, carry[0].last.shape, carry[1].hidden.shape, params[1]["kernel"].shape
    ((10, 2, 8), (2, 12), (2, 12), (4, 24))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    state_size: int | None = None
    heads: int = 1
    taps_init: str | Initializer = "lecun_normal"
    decay_init: str | Initializer = griffin_decays
    kernel_init: str | Initializer = "lecun_normal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self)
        check_size("heads", self.heads)
        if self.states % self.heads:
            raise InvalidInputError(
                f"heads must divide the state_size of {self.states}, but are {self.heads}"
            )

    @property
    def states(self) -> int:
        """The number of channels and of states."""
        return self.hidden_size if self.state_size is None else self.state_size

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The two that it is made of, the second with blocks that are one matrix."""
        shared = {
            name: getattr(self, name)
            for name in ("kernel_init", "bias_init", "dtype", "param_dtype")
        }
        first = _Branches(self.states, taps_init=self.taps_init, **shared)
        outputs, decay = self.hidden_size, self.decay_init
        return first, _Gated(self.states, outputs=outputs, decay_init=decay, **shared)

    @property
    def output_size(self) -> int:
        """``hidden_size``."""
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw the parameters: a tuple, one entry a cell."""
        first, second = self._stack.init(key, input_size)
        shape = (self.states // self.heads, 2 * self.states)
        blocks = PerHead(self.kernel_init, 2 * self.heads)
        wide = jnp.promote_types(self.param_dtype, jnp.float32)
        kernel = blocks(jax.random.fold_in(key, 1), shape, wide).astype(self.param_dtype)
        return first, {**second, "kernel": kernel, "bias": second["bias"][: shape[1]]}

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> tuple[Any, ...]:
        """Zeros: a tuple, one entry a cell."""
        return self._stack.initial_carry(batch_shape, dtype)

    def step(self, params: Params, carry: Any, x: Inputs) -> tuple[tuple[Any, ...], jax.Array]:
        """Run one time step: ``x (*batch, input_size)``."""
        return self._stack.step(self._whole(params), carry, x)

    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Any, carry: Any, key: jax.Array | None
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Run the convolution over the whole sequence, and then the recurrence."""
        return self._stack.unroll_layers(run, self._whole(params), xs, carry, key)

    @property
    def _stack(self) -> Stack:
        return Stack(self.cells)

    def _whole(self, params: Params) -> tuple[Any, Any]:
        """The parameters as the two cells have them: gates of the convolution, and itself."""
        self._stack.check_entries("params", params)
        first, second = params
        size, states = self.states // self.heads, self.states
        blocks = second["kernel"]
        if np.shape(blocks) != (size, 2 * states):
            raise InvalidInputError(
                f"kernel of the recurrence of {brief(self)} must have shape "
                f"({size}, {2 * states}), but is {brief(blocks)}; make params with its init"
            )
        if np.shape(second["bias"]) != (2 * states,):
            raise InvalidInputError(
                f"bias of the recurrence of {brief(self)} must have shape ({2 * states},), but is "
                f"{brief(second['bias'])}; make params with its init"
            )
        # (head, row, gate, head, column), zero where the two heads differ.
        blocks = blocks.reshape(1, size, 2, self.heads, size)
        own = jnp.eye(self.heads, dtype=blocks.dtype)[:, None, None, :, None]
        kernel = (own * blocks).reshape(states, 2 * states)
        kernel = jnp.concatenate([kernel, jnp.eye(states, dtype=kernel.dtype)], axis=-1)
        kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel)])  # what the gate's branch adds
        bias = jnp.concatenate([second["bias"], jnp.zeros(states, second["bias"].dtype)])
        return first, {**second, "kernel": kernel, "bias": bias}
