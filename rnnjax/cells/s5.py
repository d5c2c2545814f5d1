"""The simplified state space layer S5, with a complex diagonal state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.activations import Initializer
from rnnjax.cells.base import Coupling, Param, Params
from rnnjax.cells.initializers import LegS, log_steps
from rnnjax.cells.lru import ComplexCarry, ComplexCell, multiply_add

LEGS = LegS()


@dataclasses.dataclass(frozen=True)
class S5Cell(ComplexCell):
    r"""S5 (Smith, Warrington & Linderman, 2023): a state space with a step, held between inputs.

    .. math::
        \bar\lambda &= \exp(\Delta \lambda), \qquad \lambda = -e^a + i w \\
        s' &= \bar\lambda \odot s + \frac{\bar\lambda - 1}{\lambda} \odot (x B) \\
        y &= 2 \, \text{Re}(s' C) + x D

    with :math:`\text{Re } B, \text{Im } B` = ``kernel (input_size, 2 * state_size)``,
    :math:`\text{Re } C, -\text{Im } C` one below the other = ``output_kernel (2 * state_size,
    hidden_size)``, :math:`D` = ``skip_kernel (input_size, hidden_size)``, :math:`a, w` =
    ``eigenvalue (2, state_size)`` and :math:`\log \Delta` = ``log_step (state_size,)``. Each state
    stands for a conjugate pair, hence the 2. The carry is ``ComplexCarry(real, imag)``, both
    ``(*batch, state_size)``. The products with :math:`C` and :math:`D` run after the loop.

    Args:
        hidden_size: the number of outputs.
        state_size: the number of complex states, half of the paper's; by default ``hidden_size``.
        eigenvalue_init: initialiser of ``eigenvalue``; `LegS` remembers the whole past evenly.
        log_step_init: initialiser of ``log_step``; by default steps of 0.001 to 0.1.
        output_kernel_init: initialiser of ``output_kernel``.
        skip_kernel_init: initialiser of ``skip_kernel``; ``"zeros"`` begins without it.
        intervals: whether the last feature is the time since the previous step, in steps, which
            multiplies :math:`\Delta`; after an interval of 0 the state ignores the input.

    Arguments that are not listed, and errors, are those of `LSTMCell`.

    >>> cell = S5Cell(hidden_size=50, state_size=20, eigenvalue_init=LegS(blocks=4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params["kernel"].shape, params["eigenvalue"].shape, params["output_kernel"].shape
    ((3, 40), (2, 20), (40, 50))
    >>> carry, y = cell.step(params, cell.initial_carry((8,)), jnp.ones((8, 3)))
    >>> carry.imag.shape, y.shape
    ((8, 20), (8, 50))
    """

    _: dataclasses.KW_ONLY
    eigenvalue_init: str | Initializer = LEGS
    log_step_init: str | Initializer = log_steps

    coupling = Coupling.CONTRACTING

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the kernels of `LRUCell`, ``eigenvalue`` and ``log_step``."""
        return super().parameters(input_size) | {
            "eigenvalue": Param((2, self.states), self.eigenvalue_init),
            "log_step": Param((self.states,), self.log_step_init),
        }

    def update(
        self, params: Params, x: jax.Array, carry: ComplexCarry, interval: Any = 1
    ) -> tuple[ComplexCarry, jax.Array]:
        """Compute the new state by the second equation of the class."""
        log_decay, frequency = params["eigenvalue"].astype(x.dtype)
        step, decay = interval * jnp.exp(params["log_step"].astype(x.dtype)), jnp.exp(log_decay)
        size, angle = jnp.exp(-decay * step), frequency * step
        real, imag = size * jnp.cos(angle), size * jnp.sin(angle)
        # An input that is constant over the step has the gain (e^(step lambda) - 1) / lambda. Over
        # short steps the exponential is nearly 1, and 1 - real would lose its digits, so
        #     less = 1 - size cos(angle) = (1 - cos(angle)) - (size - 1) cos(angle)
        # with 1 - cos(angle) = 2 sin(angle / 2)^2. The quotient (-less + i imag) / (-decay +
        # i frequency) is then expanded by the conjugate of its denominator.
        less = 2 * jnp.sin(angle / 2) ** 2 - jnp.expm1(-decay * step) * jnp.cos(angle)
        square = decay * decay + frequency * frequency
        gain = (less * decay + imag * frequency) / square
        gain_imag = (less * frequency - imag * decay) / square
        x_real, x_imag = jnp.split(x, 2, axis=-1)
        lets_in = gain * x_real - gain_imag * x_imag, gain * x_imag + gain_imag * x_real
        new = multiply_add(carry, real, imag, lets_in)
        return new, jnp.concatenate(new, axis=-1)

    def readout(self, params: Params, emitted: Any, xs: Any) -> jax.Array:
        """Compute the outputs by the third equation of the class."""
        # s C plus its conjugate is 2 Re(s C): only one state of each conjugate pair is stored.
        return super().readout(params, 2 * emitted, xs)
