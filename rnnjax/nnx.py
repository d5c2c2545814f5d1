"""`RNN`, `Bidirectional` and their cells for Flax NNX: a replacement for those of ``flax.nnx``.

Code written for Flax needs only another import: ``rnnjax.nnx.RNN(rnnjax.nnx.LSTMCell(3, 4,
rngs=rngs))``. The cells here are Flax's own modules, with their parameters, carries and initial
values. `RNN` runs rnnjax's cell instead of Flax's.
"""

from typing import Any, Unpack

import jax
from flax import nnx
from flax.nnx import GRUCell, LSTMCell, OptimizedLSTMCell, RNNCellBase, SimpleCell

from rnnjax import flax_cells
from rnnjax.cells import Carry, Cell, Params
from rnnjax.cells.base import Inputs
from rnnjax.checks import brief, check_instance
from rnnjax.engine import Auto, Method
from rnnjax.errors import InvalidInputError

__all__ = [
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "OptimizedLSTMCell",
    "RNNCellBase",
    "SimpleCell",
]

_DOT_GENERAL = nnx.Linear(1, 1, rngs=nnx.Rngs(0)).dot_general
_FLAX_CELLS = flax_cells.by_class("nnx", nnx)


def __getattr__(name: str) -> Any:
    """Return any other name of Flax, so that ``from rnnjax import nnx`` can replace it."""
    return getattr(nnx, name)


class RNN(nnx.RNN):
    """Run a cell or a stack over a sequence: a replacement for ``flax.nnx.RNN``.

    With a cell of Flax (`LSTMCell` and the others here), parameters, initial values and carries are
    those of Flax's ``RNN``, and rnnjax's cell runs instead. Any other ``RNNCellBase`` runs step by
    step on ``Scan()``, also with masks, lengths and resets. So does a cell with replaced parts, or
    whose activation is a module or closes over arrays. It may read variables of any kind, but a
    step may write none.

    With a cell of rnnjax the parameters are the pytree of its ``init``, each leaf an ``nnx.Param``.
    So ``nnx.split``, ``nnx.jit``, ``nnx.grad`` and ``nnx.Optimizer`` see them. `cell_params` is the
    pytree of plain arrays, for `rnnjax.unroll`. State is explicit: the module holds no carry.

    ``rngs`` in the call sample the noise of `rnnjax.Regularized` cells and the dropout of a
    `rnnjax.Stack`. Without them there is no noise, as for prediction.

    Args:
        cell: what one time step computes: a cell of Flax or of rnnjax, or a `rnnjax.Stack`.
        in_features: the size of the last axis of the inputs; a cell of Flax knows it.
        rngs: initialises the parameters of a cell of rnnjax with ``rngs.params()``, and the random
            carry of a cell of Flax with ``rngs.carry``.
        method: how to run, as in `rnnjax.unroll`.
        flax: the other arguments of ``flax.nnx.RNN``. The flags can be set here or in the call:
            ``time_major``, ``return_carry``, ``reverse``, and ``keep_order``, with which
            ``outputs[t]`` belongs to ``inputs[t]`` in reverse too. ``unroll`` has no effect:
            ``method`` decides how the loop runs. ``state_axes`` and ``broadcast_rngs`` must be
            None.

    Raises:
        InvalidInputError: ``in_features`` is not positive, is missing, or is not that of ``cell``;
            ``cell`` is not a cell; ``rngs`` are missing; or an argument that exists only for
            compatibility with Flax is not at its default.

    >>> import jax.numpy as jnp
    >>> import rnnjax
    >>> model = RNN(rnnjax.LSTMCell(50), in_features=3, rngs=nnx.Rngs(0))
    >>> inputs = jnp.ones((8, 10, 3))
    >>> model(inputs).shape
    (8, 10, 50)
    >>> carry, outputs = model(inputs, return_carry=True)
    >>> carry.hidden.shape
    (8, 50)
    >>> _, ys = rnnjax.unroll(model.cell, model.cell_params, jnp.swapaxes(inputs, 0, 1))
    >>> bool(jnp.allclose(outputs, jnp.swapaxes(ys, 0, 1)))
    True

    As in Flax, and with noise:

    >>> model = RNN(LSTMCell(3, 50, rngs=nnx.Rngs(0)), return_carry=True)
    >>> carry, outputs = model(inputs, seq_lengths=jnp.full(8, 7))
    >>> cell = rnnjax.Regularized(rnnjax.LSTMCell(50), recurrent_dropout=0.2)
    >>> model = RNN(cell, in_features=3, rngs=nnx.Rngs(0))
    >>> noisy = model(inputs, rngs=nnx.Rngs(dropout=1))
    >>> bool(jnp.allclose(noisy, model(inputs)))
    False
    """

    def __init__(
        self,
        cell: Any,
        in_features: Any = None,
        *,
        rngs: nnx.Rngs | bool = True,
        method: Method = Auto(),
        **flax: Any,
    ) -> None:
        flax_cells.check_is_cell(cell, RNNCellBase, "nnx.LSTMCell(3, 50, rngs=rngs)")
        own = isinstance(cell, Cell)
        made_for = getattr(cell, "in_features", in_features)
        if own and (in_features is None or not isinstance(rngs, nnx.Rngs)):
            raise InvalidInputError(
                f"a cell such as {brief(cell)} needs in_features, the size of the last axis of the "
                "inputs, and rngs, an nnx.Rngs that draws its parameters, but got "
                f"in_features={brief(in_features)} and rngs={type(rngs).__name__}; write RNN(cell, "
                "in_features, rngs=nnx.Rngs(0))"
            )
        if in_features not in (None, made_for):
            raise InvalidInputError(
                f"in_features must be {made_for}, which the cell was made for, but is "
                f"{in_features}; leave it out"
            )
        for name in ("state_axes", "broadcast_rngs"):
            flax_cells.check_default(name, flax.get(name), None)
        # A cell of rnnjax has no random carry.
        super().__init__(cell, rngs=False if own else rngs, **flax)
        self.method = method
        if own:
            drawn: Any = rngs
            self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(drawn.params(), in_features)))

    @property
    def cell_params(self) -> Params:
        """The parameters as plain arrays, without ``nnx.Param``, as rnnjax's cell takes them.

        For a cell that runs step by step they are the parameters of its module. Of an abstract
        module, as ``nnx.eval_shape`` makes it, they are shapes and types.
        """
        if isinstance(self.cell, Cell):
            return jax.tree.map(
                lambda param: param.get_value(),
                self.params,
                is_leaf=lambda node: isinstance(node, nnx.Variable),
            )
        state = nnx.state(self.cell, nnx.Param)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            return nnx.eval_shape(lambda rnn: rnn.cell_params, self)
        known = self._known()
        return known.params if known else nnx.to_pure_dict(state)

    def __call__(
        self,
        inputs: Inputs,
        *,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        **call: Unpack[flax_cells.Call],
    ) -> Any:
        """Run over a sequence, with the arguments of ``flax.nnx.RNN`` and three more.

        Args:
            inputs: ``(*batch, time, in_features)``, or ``(time, *batch, in_features)`` if
                ``time_major``; any number of batch axes, or none.
            rngs: samples the noise of training with ``rngs.dropout()``, if there is a stream
                "dropout" or "default"; a single stream must be "dropout". ``rngs.carry`` samples a
                random initial carry of a Flax cell, as in Flax.
            call: the other arguments, which are those of `rnnjax.linen.RNN`.

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes or another number of features; the
                carry, the lengths, the mask or the resets do not fit; a step of the cell writes
                variables; or the named method cannot run this cell.
        """
        cell: Any = self.cell
        stream: Any = self.rngs if rngs is None else rngs
        return flax_cells.run(
            self,
            inputs,
            lambda _: self.cell_params,
            lambda shape: cell.initialize_carry(
                shape, stream.carry.fork() if isinstance(stream, nnx.Rngs) else stream
            ),
            self._flax_cell,
            _dropout_key(rngs, getattr(cell, "is_stochastic", False)),
            **call,
        )

    def _known(self) -> flax_cells.Adapted | None:
        """Return the adapted cell if rnnjax's can run instead of Flax's; else None."""
        cell: Any = self.cell
        one = _FLAX_CELLS.get(type(cell))
        if one is None or cell.promote_dtype is not nnx.nn.dtypes.promote_dtype:
            return None
        # The blocks may have been replaced, or compute in another type.
        blocks = [getattr(cell, name) for name, _ in one.leaves]
        like = nnx.Linear, _DOT_GENERAL, cell.dtype
        if not all((type(b), b.dot_general, b.dtype) == like for b in blocks):
            return None
        tree = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
        return flax_cells.known(_FLAX_CELLS, cell, tree)

    def _flax_cell(self, start: Carry, x: jax.ShapeDtypeStruct) -> flax_cells.Adapted:
        """Adapt Flax's cell to inputs of a step's shape and type, with a carry like ``start``."""
        known = self._known()
        if known is not None:
            return known
        graph, state = nnx.split(self.cell)

        def step(carry: Carry, x: jax.Array) -> Any:
            module = nnx.merge(graph, state, copy=True)
            before = jax.tree.leaves(nnx.state(module))
            result = module(carry, x)
            if [*map(id, before)] != [*map(id, jax.tree.leaves(nnx.state(module)))]:
                raise InvalidInputError(
                    f"{type(module).__name__} writes variables in a step, such as statistics or "
                    "the count of random numbers, which no step here hands on; use flax.nnx.RNN"
                )
            return result

        return flax_cells.foreign(graph, step, start, x)


class Bidirectional(nnx.Bidirectional):
    """Run one `RNN` in each direction: a replacement for ``flax.nnx.Bidirectional``.

    The arguments are Flax's, and it does what `rnnjax.linen.Bidirectional` does.

    >>> import jax.numpy as jnp
    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(3, 4, rngs=rngs)))
    >>> layer(jnp.ones((2, 3, 3))).shape
    (2, 3, 8)
    """

    def __call__(
        self,
        inputs: Inputs,
        *,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        **call: Unpack[flax_cells.Call],
    ) -> Any:
        """Run over a sequence in both directions, with the arguments of `RNN`.

        They mean what they mean in `rnnjax.linen.Bidirectional`; each direction samples its own
        noise.
        """
        rngs = self.rngs if rngs is None else rngs
        return flax_cells.both_directions(self, inputs, rngs=rngs, **call)


def _dropout_key(rngs: Any, draws: bool) -> jax.Array | None:
    """Return the key of the noise, if there is noise and a stream for it; leave other streams."""
    expected = "an nnx.Rngs such as nnx.Rngs(dropout=0), or None to draw nothing"
    check_instance("rngs", rngs, nnx.Rngs | nnx.RngStream | None, expected)
    if rngs is None or not draws:
        return None
    if isinstance(rngs, nnx.RngStream):
        return rngs() if rngs.tag == "dropout" else None
    return rngs.dropout() if "dropout" in rngs or "default" in rngs else None
