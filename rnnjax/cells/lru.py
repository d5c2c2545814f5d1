"""The linear recurrent unit, and the base class of cells with a complex diagonal state."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Cell, Coupling, Param, Params, Role, declared, exportable
from rnnjax.cells.initializers import Ring

# The initialiser of both parts of a complex kernel: E|B|^2 is the sum of their variances, so each
# has half of the usual 1 / input_size.
HALF_NORMAL = jax.nn.initializers.variance_scaling(0.5, "fan_in", "normal")
WHOLE_RING = Ring()


@exportable
class ComplexCarry(NamedTuple):
    """A complex state as two real arrays, ``real`` and ``imag``, both ``(*batch, size)``."""

    real: jax.Array
    imag: jax.Array


def multiply_add(carry: ComplexCarry, real: Any, imag: Any, x: tuple[Any, Any]) -> ComplexCarry:
    """Compute ``(real + i imag) carry + x`` with real arrays: complex ones compile slowly."""
    return ComplexCarry(
        real * carry.real - imag * carry.imag + x[0], imag * carry.real + real * carry.imag + x[1]
    )


@dataclasses.dataclass(frozen=True)
class ComplexCell(Cell[ComplexCarry]):
    """A cell with a complex diagonal state. Subclasses add parameters and write `update`.

    Args:
        hidden_size: the number of outputs.
        state_size: the number of complex states; by default ``hidden_size``.
        output_kernel_init: initialiser of the kernel from the state to the outputs.
        skip_kernel_init: initialiser of the kernel from the inputs to the outputs.
        intervals: whether the last feature is the time since the previous step.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    state_size: int | None = None
    output_kernel_init: str | Initializer = "lecun_normal"
    skip_kernel_init: str | Initializer = "lecun_normal"
    kernel_init: str | Initializer = HALF_NORMAL
    intervals: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry = ComplexCarry
    gates = "real", "imag"
    recurrent = None
    output = None

    @declared
    def raw(self) -> Mapping[str, int]:
        """With ``intervals`` the last feature is ``interval``."""
        return {"interval": 1} if self.intervals else {}

    @property
    def states(self) -> int:
        """The number of complex states: ``state_size``, or ``hidden_size``."""
        return self.hidden_size if self.state_size is None else self.state_size

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """Declare ``real`` and ``imag``, both ``(state_size,)``."""
        return dict.fromkeys(ComplexCarry._fields, (self.states,))

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters ``kernel``, ``output_kernel`` and ``skip_kernel``."""
        states, outputs = 2 * self.states, self.hidden_size
        input_size -= self.raw_size
        return {
            "kernel": Param((input_size, states), self.kernel_init, Role.INPUT),
            "output_kernel": Param((states, outputs), self.output_kernel_init, Role.OUT),
            "skip_kernel": Param((input_size, outputs), self.skip_kernel_init, Role.OUT),
        }

    def readout(self, params: Params, emitted: Any, xs: Any) -> jax.Array:
        """Add the products of the state and of the inputs, each with its kernel."""
        # Re(s C) = Re s Re C - Im s Im C: one real product of (Re s, Im s) with Re C above -Im C.
        return emitted @ params["output_kernel"] + xs @ params["skip_kernel"]


@dataclasses.dataclass(frozen=True)
class LRUCell(ComplexCell):
    r"""Linear recurrent unit (Orvieto et al., 2023): a complex state that rotates and decays.

    .. math::
        \lambda &= \exp(-e^\nu + i e^\theta) \\
        s' &= \lambda \odot s + \gamma \odot (x B) \\
        y &= \text{Re}(s' C) + x D

    with :math:`\text{Re } B, \text{Im } B` = ``kernel (input_size, 2 * state_size)``,
    :math:`\text{Re } C, -\text{Im } C` one below the other = ``output_kernel (2 * state_size,
    hidden_size)``, :math:`D` = ``skip_kernel (input_size, hidden_size)`` and :math:`\nu, \theta,
    \log \gamma` = ``ring (3, state_size)``. The carry is ``ComplexCarry(real, imag)``, both
    ``(*batch, state_size)``. The products with :math:`C` and :math:`D` run after the loop.

    Args:
        hidden_size: the number of outputs.
        state_size: the number of complex states; by default ``hidden_size``.
        ring_init: initialiser of ``ring``, usually a `Ring`, with :math:`\gamma = \sqrt{1 -
            |\lambda|^2}`.
        output_kernel_init: initialiser of ``output_kernel``.
        skip_kernel_init: initialiser of ``skip_kernel``; ``"zeros"`` begins without it.
        intervals: whether the last feature is the time :math:`\Delta` since the previous step, in
            steps. The state is then multiplied by :math:`\lambda^\Delta`.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = LRUCell(hidden_size=50, state_size=20, ring_init=Ring(0.9, 0.999))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, params["ring"].shape, params["output_kernel"].shape
    ((3, 40), (3, 20), (40, 50))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.imag.shape, y.shape
    ((8, 20), (8, 50))
    """

    _: dataclasses.KW_ONLY
    ring_init: str | Initializer = WHOLE_RING
    # Its variance is 2 / (2 n) for n complex states, so that of Re(s C) is the mean of |s|^2.
    output_kernel_init: str | Initializer = "he_normal"

    coupling = Coupling.CONTRACTING

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare ``kernel``, ``output_kernel``, ``skip_kernel`` and ``ring``."""
        ring = Param((3, self.states), self.ring_init)
        return super().parameters(input_size) | {"ring": ring}

    def update(
        self, params: Params, x: jax.Array, carry: ComplexCarry, interval: Any = 1
    ) -> tuple[ComplexCarry, jax.Array]:
        """Compute the new state by the second equation of the class."""
        nu, theta, log_gamma = params["ring"].astype(x.dtype)
        # |lambda| = exp(-e^nu) < 1 for every nu, so no training makes the state grow. A power of
        # lambda multiplies both parts of its logarithm.
        gamma = jnp.exp(log_gamma)
        decay, angle = -interval * jnp.exp(nu), interval * jnp.exp(theta)
        size = jnp.exp(decay)
        real, imag = jnp.split(x, 2, axis=-1)
        lets_in = gamma * real, gamma * imag
        new = multiply_add(carry, size * jnp.cos(angle), size * jnp.sin(angle), lets_in)
        return new, jnp.concatenate(new, axis=-1)
