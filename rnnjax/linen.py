"""`RNN`, `Bidirectional` and their cells for Flax Linen: a replacement for those of ``flax.linen``.

Code written for Flax needs only another import, ``from rnnjax import linen as nn``. The cells here
are Flax's own modules, with their parameters, carries and initial values. So parameters and
checkpoints work in both directions. `RNN` runs rnnjax's cell instead of Flax's.

>>> import jax
>>> import jax.numpy as jnp
>>> from rnnjax import linen as nn
>>> layer = nn.Bidirectional(nn.RNN(nn.LSTMCell(32)), nn.RNN(nn.GRUCell(32)))
>>> inputs, seq_lengths = jnp.ones((8, 10, 3)), jnp.array([10, 10, 7, 5, 5, 3, 2, 1])
>>> variables = layer.init(jax.random.key(0), inputs)
>>> layer.apply(variables, inputs, seq_lengths=seq_lengths).shape
(8, 10, 64)
"""

from collections.abc import Mapping
from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import GRUCell, LSTMCell, MGUCell, OptimizedLSTMCell, RNNCellBase, SimpleCell

from rnnjax import flax_cells
from rnnjax.cells import Carry
from rnnjax.cells.base import Inputs
from rnnjax.engine import Auto, Method
from rnnjax.errors import InvalidInputError

__all__ = [
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "MGUCell",
    "OptimizedLSTMCell",
    "RNNCellBase",
    "SimpleCell",
]

_FLAX_CELLS = flax_cells.by_class("linen", nn)


def __getattr__(name: str) -> Any:
    """Return any other name of Flax, so that ``from rnnjax import linen`` can replace it."""
    return getattr(nn, name)


class RNN(nn.RNN):
    """Run a cell or a stack over a sequence: a replacement for ``flax.linen.RNN``.

    With a cell of Flax (`LSTMCell` and the others here), parameters, initial values and carries are
    those of Flax's ``RNN``, and rnnjax's cell runs instead. Any other ``RNNCellBase`` runs step by
    step on ``Scan()``, also with masks, lengths and resets. So does a cell whose activation is a
    module or closes over arrays.

    With a cell of rnnjax the parameters are those of its ``init``, under the name ``cell``:
    `rnnjax.unroll` takes ``variables["params"]["cell"]``. The carry is then the cell's own, e.g.
    ``LSTMCarry(hidden, cell)``.

    The rng "dropout" samples the noise of `rnnjax.Regularized` cells and the dropout of a
    `rnnjax.Stack`: ``model.apply(variables, inputs, rngs={"dropout": key})``. Without it there is
    no noise, as for prediction.

    Attributes:
        cell: what one time step computes: a cell of Flax or of rnnjax, or a `rnnjax.Stack`.
        method: how to run, as in `rnnjax.unroll`.

    The other attributes are those of ``flax.linen.RNN``. The flags can be set here or in the call:
    ``time_major``, ``return_carry``, ``reverse``, and ``keep_order``, with which ``outputs[t]``
    belongs to ``inputs[t]`` in reverse too. ``unroll`` has no effect: ``method`` decides how the
    loop runs. ``variable_axes``, ``variable_broadcast``, ``variable_carry`` and ``split_rngs`` must
    have their defaults.

    Raises:
        InvalidInputError: ``cell`` is not a cell, or has variables besides its parameters; or an
            argument that exists only for compatibility with Flax is not at its default.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rnnjax
    >>> model = RNN(rnnjax.LSTMCell(50))
    >>> inputs = jnp.ones((8, 10, 3))
    >>> variables = model.init(jax.random.key(0), inputs)
    >>> model.apply(variables, inputs).shape
    (8, 10, 50)
    >>> carry, outputs = model.apply(variables, inputs, return_carry=True)
    >>> carry.hidden.shape
    (8, 50)
    >>> _, ys = rnnjax.unroll(model.cell, variables["params"]["cell"], jnp.swapaxes(inputs, 0, 1))
    >>> bool(jnp.allclose(outputs, jnp.swapaxes(ys, 0, 1)))
    True

    With dropout between the layers:

    >>> cells = [rnnjax.LSTMCell(50), rnnjax.LSTMCell(50)]
    >>> model = RNN(rnnjax.Stack(cells, dropout=rnnjax.Dropout(0.2)))
    >>> variables = model.init(jax.random.key(0), inputs)
    >>> noisy = model.apply(variables, inputs, rngs={"dropout": jax.random.key(1)})
    >>> bool(jnp.allclose(noisy, model.apply(variables, inputs)))
    False
    """

    method: Method = Auto()

    def __post_init__(self) -> None:
        """Refuse unsupported arguments at construction, not at the call."""
        super().__post_init__()
        flax_cells.check_is_cell(self.cell, RNNCellBase, "nn.LSTMCell(50)")
        for name in ("variable_axes", "variable_broadcast", "variable_carry", "split_rngs"):
            value, default = getattr(self, name), getattr(nn.RNN, name)
            value = dict(value) if isinstance(value, Mapping) else value
            flax_cells.check_default(name, value, default)

    @nn.compact
    def __call__(
        self, inputs: Inputs, *, init_key: jax.Array | None = None, **call: Unpack[flax_cells.Call]
    ) -> Any:
        """Run over a sequence, with the arguments of ``flax.linen.RNN`` and three more.

        Args:
            inputs: ``(*batch, time, input_size)``, or ``(time, *batch, input_size)`` if
                ``time_major``; any number of batch axes, or none.
            init_key: a random key for the initial carry of a Flax cell, if it is random.
            call: Flax's ``initial_carry`` and ``seq_lengths``; the flags ``return_carry``,
                ``time_major``, ``reverse`` and ``keep_order``, which override the attributes unless
                None; and ``mask``, ``resets`` and ``reset_carry`` as in `rnnjax.unroll`, with the
                axes of ``inputs``. Outputs at padding are zeros (in Flax, the cell's outputs), and
                a row of length zero keeps its initial carry (in Flax, that of the last step).

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes, the carry, the lengths, the mask
                or the resets do not fit, or the named method cannot run this cell.
            flax.errors.ScopeParamShapeError: ``inputs`` has another number of features than the
                parameters were made for.
        """
        init_key = jax.random.key(0) if init_key is None else init_key
        return flax_cells.run(
            self,
            inputs,
            lambda input_size: self.param("cell", self.cell.init, input_size),
            lambda shape: self.cell.initialize_carry(init_key, shape),
            self._flax_cell,
            self.make_rng("dropout") if self.has_rng("dropout") else None,
            **call,
        )

    def _flax_cell(self, start: Carry, x: jax.ShapeDtypeStruct) -> flax_cells.Adapted:
        """Adapt Flax's cell to inputs of a step's shape and type, with a carry like ``start``."""
        cell = self.cell
        if self.is_initializing():
            cell(start, jnp.zeros(x.shape, x.dtype))  # draws the parameters as Flax does
        # Values of `sow` are dropped.
        others = sorted(set(cell.variables) - {"params", "intermediates"})
        if others:
            raise InvalidInputError(
                f"{type(cell).__name__} has variables besides its parameters, {others}, which no "
                "step here passes on; use flax.linen.RNN"
            )
        adapted = flax_cells.known(
            _FLAX_CELLS, cell, nn.meta.unbox(cell.variables.get("params", {}))
        )
        if adapted is not None:
            return adapted
        # Lifted, so that it sees the parameters of all modules that it was given, wherever they
        # are, and what it leaves elsewhere, traced, is dropped.
        step = nn.map_variables(
            lambda cell, *args: cell(*args), "params", rngs=False, variables=False
        )
        module = cell.clone(parent=None, _deep_clone=True, _reset_names=True, name=None)
        return flax_cells.foreign(module, lambda *args: step(cell, *args), start, x)


class Bidirectional(nn.Bidirectional):
    """Run one `RNN` in each direction: a replacement for ``flax.linen.Bidirectional``.

    The attributes are Flax's. ``forward_rnn`` and ``backward_rnn`` are each an `RNN` or a module
    with the same call. ``merge_fn`` merges their outputs, by default concatenated. ``outputs[t]``
    of both belong to ``inputs[t]``. The carry is a tuple ``(forward, backward)``. One module for
    both directions shares its parameters. The inner modules use the time axis of this one. For
    bidirectional layers inside one `RNN` see `rnnjax.Bidirectional`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> layer = Bidirectional(RNN(GRUCell(4)), RNN(GRUCell(4)))
    >>> x = jnp.ones((2, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x).shape
    (2, 8)
    """

    def __call__(
        self, inputs: Inputs, *, init_key: jax.Array | None = None, **call: Unpack[flax_cells.Call]
    ) -> Any:
        """Run over a sequence in both directions, with the arguments of `RNN`.

        ``initial_carry`` and ``reset_carry`` are pairs ``(forward, backward)``. The backward
        direction begins at each row's last valid step, and a reset cuts both directions at the same
        place. ``reverse`` and ``keep_order`` have no effect, as in Flax.

        Returns:
            the merged outputs; with ``return_carry`` a tuple of both final carries and those.

        Raises:
            InvalidInputError: as in `RNN`, or if a pair of carries is not a pair.
        """
        keys = None if init_key is None else tuple(jax.random.split(init_key))
        return flax_cells.both_directions(self, inputs, init_key=keys, **call)
