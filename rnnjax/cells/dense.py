"""Cells with one matrix product in the loop, of the hidden state and the recurrent kernel."""

import dataclasses
from typing import Any, ClassVar

import jax

from rnnjax.cells.activations import Initializer, slopes_follow_from_values
from rnnjax.cells.arguments import as_inputs, check_step
from rnnjax.cells.base import Carry, Inputs, Params
from rnnjax.cells.projected import ProjectedCell, add_bias, product


@dataclasses.dataclass(frozen=True)
class DenseCell(ProjectedCell):
    """A cell whose only product in the loop is ``hidden @ recurrent_kernel``.

    Its step is given in three pieces::

        projected = project(params, x)                        # parallel over time
        recurrent = recurrent_product(params, hidden)         # linear in the hidden state
        carry     = update(params, projected + recurrent, carry)    # pointwise

    A subclass states `num_gates`, `initial_carry` and `update` (the equation). `step`, the
    reference scan, the fused path and its gradient follow from these. Two more things are declared:

    - ``sums``: whether `update` is given the two halves as their sum, as in an LSTM, or as a pair
      ``(projected, recurrent)``, as in a GRU, whose reset gate scales one of them.
    - ``one_piece``: whether it reads that sum as a whole, in a single `activate_gates`. Where it
      takes it apart before, the loop reads its inputs a step ahead: XLA slices them out of the
      array of all steps again in each of the small loops that read them.

    Args:
        recurrent_kernel_init: initialiser of ``recurrent_kernel``, as ``kernel_init`` is given.

    For the other arguments see `ProjectedCell`.
    """

    _: dataclasses.KW_ONLY
    recurrent_kernel_init: str | Initializer = "orthogonal"

    sums: ClassVar[bool] = True
    one_piece: ClassVar[bool] = False

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
        return own.step is DenseCell.step and keeps_pieces(own)

    def recurrent_product(self, params: Params, hidden: jax.Array) -> jax.Array:
        """``hidden @ recurrent_kernel``, plus ``recurrent_bias`` in the cells that have one."""
        recurrent = product(hidden, params["recurrent_kernel"], self.dtype)
        return add_bias(recurrent, params, "recurrent_bias")

    @property
    def reads_whole(self) -> bool:
        """Whether what `update` reads is one array that is read once, as a whole.

        As ``one_piece`` says, but where `activate_gates` takes its sum apart, since an activation
        is neither tanh nor sigmoid: reading ahead then takes 0.8 of the time (LSTM forward).
        """
        given = [f.name for f in dataclasses.fields(self) if f.name.endswith("activation")]
        return self.one_piece and slopes_follow_from_values([getattr(self, n) for n in given])

    def meet(self, projected: jax.Array, recurrent: jax.Array) -> Any:
        """The two halves as `update` is given them."""
        return projected + recurrent if self.sums else (projected, recurrent)

    def advance(self, params: Params, x: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        """`update`, without the kernels: one that reads them would run by some methods alone."""
        return super().advance(in_update(params), x, carry)

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step.

        Args:
            params: as `init` returns them.
            carry: the state, as `initial_carry` or the step before returned it.
            x: ``(*batch, input_size)``.

        Returns:
            the new carry, and ``y (*batch, hidden_size)``.
        """
        x = as_inputs(x)
        check_step(self, carry, x)
        projected = self.project(params, x)
        recurrent = self.recurrent_product(params, carry.hidden)
        return self.advance(params, self.meet(projected, recurrent), carry)


def in_update(params: Params) -> Params:
    """The parameters that `update` may read: all but the kernels of the products."""
    return {k: leaf for k, leaf in params.items() if k not in ("kernel", "recurrent_kernel")}


def keeps_pieces(own: type[DenseCell]) -> bool:
    """Whether a class has the recurrent product of `DenseCell`, and how its two halves meet."""
    return (
        own.recurrent_product is DenseCell.recurrent_product
        and own.meet is DenseCell.meet
        and own.advance is DenseCell.advance
    )
