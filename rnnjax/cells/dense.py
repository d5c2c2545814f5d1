"""Cells with one matrix product in the loop, of the hidden state and the recurrent kernel."""

import abc
import dataclasses
from typing import Any

import jax

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    activate_gates,
    gate_slopes,
    slopes_follow_from_values,
)
from rnnjax.cells.base import Carry, Inputs, Params, as_inputs
from rnnjax.cells.projected import ProjectedCell, add_bias, product


@dataclasses.dataclass(frozen=True)
class DenseCell(ProjectedCell):
    """A cell whose only product in the loop is ``hidden @ recurrent_kernel``.

    Its step is given in three pieces::

        projected = project(params, x)                  # needs only the input: parallel over time
        recurrent = recurrent_product(params, hidden)   # linear in the hidden state
        carry, y  = activate(params, projected, recurrent, carry)      # pointwise

    A subclass states `num_gates`, `initial_carry` and `activate` (the equation). `step`, the
    reference scan, the fused path and its gradient follow from these.

    Args:
        recurrent_kernel_init: initialiser of ``recurrent_kernel``, as ``kernel_init`` is given.

    For the other arguments see `ProjectedCell`.
    """

    _: dataclasses.KW_ONLY
    recurrent_kernel_init: str | Initializer = "orthogonal"

    @abc.abstractmethod
    def activate(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """The pointwise half of the step: ``(*batch, gates * hidden_size)`` to ``(carry, y)``."""

    @property
    def recurrent_size(self) -> int:
        """The size of the hidden state where it enters the recurrent product: ``hidden_size``."""
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters for inputs with ``input_size`` features.

        Returns:
            a dict of ``kernel (input_size, gates * hidden_size)``, ``recurrent_kernel
            (recurrent_size, gates * hidden_size)`` and, with ``use_bias``, ``bias
            (gates * hidden_size,)``, in ``param_dtype``; some cells add to it.
        """
        kernel = super().init(key, input_size)
        _, recurrent_key, _ = jax.random.split(key, 3)
        shape = (self.recurrent_size, self.num_gates * self.hidden_size)
        recurrent = self.draw(self.recurrent_kernel_init, recurrent_key, shape)
        return {"kernel": kernel.pop("kernel"), "recurrent_kernel": recurrent, **kernel}

    @property
    def splits(self) -> bool:
        """A dense cell's step comes in pieces, unless a subclass wrote its own."""
        own = type(self)
        return own.step is DenseCell.step and own.recurrent_product is DenseCell.recurrent_product

    def recurrent_product(self, params: Params, hidden: jax.Array) -> jax.Array:
        """``hidden @ recurrent_kernel``, plus ``recurrent_bias`` in the cells that have one."""
        recurrent = product(hidden, params["recurrent_kernel"], self.dtype)
        return add_bias(recurrent, params, "recurrent_bias")

    def update(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """`activate`, with the new carry in the type of the old and ``y`` in the cell's ``dtype``.

        A loop's state has to keep its type, whatever the types of inputs and parameters.
        """
        return self.cast(self.activate(params, projected, recurrent, carry), carry)

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step.

        Args:
            params: as `init` returns them.
            carry: the state, as `initial_carry` or the step before returned it.
            x: ``(*batch, input_size)``.

        Returns:
            the new carry, and ``y (*batch, hidden_size)``.
        """
        projected = self.project(params, as_inputs(x))
        return self.update(params, projected, self.recurrent_product(params, carry.hidden), carry)


@dataclasses.dataclass(frozen=True)
class GatedCell(DenseCell):
    """A dense cell whose gates come first, and whose state follows from them.

    A subclass states `gates` and `combine` in place of `activate`, and `pull_gates`, the derivative
    of `gates` from its values. Knowing the gates apart lets the fast path keep their values for
    the backward pass and nothing else, and compute no transcendental function a second time. Most
    cells are an `AdditiveCell`, which has `pull_gates` written for it.
    """

    @property
    @abc.abstractmethod
    def keeps_gates(self) -> bool:
        """Whether `pull_gates` knows the derivatives of this cell's activations."""

    @abc.abstractmethod
    def gates(self, projected: jax.Array, recurrent: jax.Array) -> Any:
        """What the state follows from: a pytree whose first leaf has the shape of ``projected``.

        A subclass that overrides it has to bring its own `pull_gates`; otherwise the fast path
        keeps the inputs of its gates and has JAX differentiate them.
        """

    @abc.abstractmethod
    def combine(self, params: Params, gates: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        """The step from the gates on; pointwise."""

    @abc.abstractmethod
    def pull_gates(self, gates: Any, d_gates: Any) -> tuple[jax.Array, jax.Array]:
        """The cotangents of ``projected`` and ``recurrent``, from the values of `gates` and theirs.

        Where the two are the same, one and the same array saves the second.
        """

    def activate(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """`combine` of the gates."""
        return self.combine(params, self.gates(projected, recurrent), carry)


@dataclasses.dataclass(frozen=True)
class AdditiveCell(GatedCell):
    """A gated cell whose gates see input and state only as their sum, as in an LSTM.

    A subclass states `gate_activations` and `combine`, whose ``gates`` is one array
    ``(*batch, gates * hidden_size)``.
    """

    @property
    @abc.abstractmethod
    def gate_activations(self) -> tuple[str | Activation, ...]:
        """The activation of each gate, in the order of the kernel's columns."""

    @property
    def keeps_gates(self) -> bool:
        """Where all gates are tanh or sigmoid."""
        return slopes_follow_from_values(self.gate_activations)

    def gates(self, projected: jax.Array, recurrent: jax.Array) -> jax.Array:
        """The activated sum."""
        return activate_gates(projected + recurrent, self.gate_activations)

    def pull_gates(self, gates: jax.Array, d_gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both cotangents are that of the sum."""
        d_sum = d_gates * gate_slopes(gates, self.gate_activations)
        return d_sum, d_sum
