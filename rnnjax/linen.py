"""`RNN`, `Bidirectional` and their cells for Flax Linen, in the place of those of ``flax.linen``.

Code written for Flax's needs the import changed, ``from rnnjax import linen as nn``. The cells here
are Flax's own modules, with their parameters, carries and initial numbers: what is read or trained
with Flax goes on here, and the other way round. `RNN` runs rnnjax's cell in the place of each.

>>> import jax
>>> import jax.numpy as jnp
>>> from rnnjax import linen as nn
>>> layer = nn.Bidirectional(nn.RNN(nn.LSTMCell(32)), nn.RNN(nn.GRUCell(32)))
>>> inputs, seq_lengths = jnp.ones((8, 10, 3)), jnp.array([10, 10, 7, 5, 5, 3, 2, 1])
>>> variables = layer.init(jax.random.key(0), inputs)
>>> layer.apply(variables, inputs, seq_lengths=seq_lengths).shape
(8, 10, 64)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from flax.linen import GRUCell, LSTMCell, MGUCell, OptimizedLSTMCell, RNNCellBase, SimpleCell

from rnnjax import layout
from rnnjax.cells import Carry, Cell, Params
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

_LAYOUTS = {
    getattr(nn, name): one for one in layout.LAYOUTS if one.form == "linen" for name in one.names
}


def __getattr__(name: str) -> Any:
    """Whatever else Flax has, so that ``from rnnjax import linen`` can take its place."""
    return getattr(nn, name)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A step of a module of the user's, as a function."""

    module: Any

    def __call__(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        new, y = self.module.apply({"params": params}, carry, x)
        return new, y


class RNN(nn.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.linen.RNN``.

    The flags are Flax's, and each of them can be set here or in the call. With one of Flax's cells
    (`LSTMCell` and the others here) parameters, initial numbers and carries are those of Flax's
    ``RNN``, and rnnjax's cell runs in its place; any other ``RNNCellBase`` runs step by step, on
    ``Scan()``, with masks, lengths and resets all the same.

    With a cell of rnnjax the parameters are those of its ``init``, under the name ``cell``:
    ``variables["params"]["cell"]`` can be given to `rnnjax.unroll` as it is. The carry is then the
    cell's own, e.g. ``LSTMCarry(hidden, cell)``.

    Noise in training, of `rnnjax.Regularized` cells and of the dropout of a `rnnjax.Stack`, is
    drawn with the rng "dropout": ``model.apply(variables, inputs, rngs={"dropout": key})``. Without
    it nothing is drawn, as for prediction.

    Attributes:
        cell: what one time step computes: a cell of Flax or of rnnjax, or a `rnnjax.Stack`.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed, and
            with ``seq_lengths`` the padding stays at the end of each row.
        unroll: taken so that Flax's code runs, and without effect: it tells Flax's loop how many
            steps to write out in one iteration, and here ``method`` decides how the loop runs.
        variable_axes: this and the next three are there for Flax's sake: the cells keep no
            variables besides params, so there is nothing to lift, and only the default is taken.
        variable_broadcast: see ``variable_axes``.
        variable_carry: see ``variable_axes``.
        split_rngs: see ``variable_axes``.
        method: how to run, as in `rnnjax.unroll`.

    Raises:
        InvalidInputError: ``cell`` is no cell, or keeps variables besides its parameters, or an
            argument that is there for Flax's sake is not at its default.

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

    cell: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = FrozenDict()
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = FrozenDict({"params": False})
    method: Method = Auto()

    def __post_init__(self) -> None:
        """Refuse what cannot be honoured, where it is written rather than where it is called."""
        super().__post_init__()
        if not isinstance(self.cell, Cell | RNNCellBase):
            raise InvalidInputError(
                f"cell must be a cell of rnnjax or a flax.linen.RNNCellBase, such as "
                f"nn.LSTMCell(50), but is a {type(self.cell).__name__}"
            )
        for name, default in (
            ("variable_axes", {}),
            ("variable_broadcast", "params"),
            ("variable_carry", False),
            ("split_rngs", {"params": False}),
        ):
            value = getattr(self, name)
            value = dict(value) if isinstance(value, Mapping) else value
            layout.check_default(name, value, value == default, layout.NOTHING_TO_LIFT)

    @nn.compact  # type: ignore[untyped-decorator]  # mypy follows no imports of flax
    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_carry: Carry | None = None,
    ) -> Any:
        """Run over a sequence.

        Args:
            inputs: ``(*batch, time, input_size)``, or ``(time, *batch, input_size)`` if
                ``time_major``; any number of batch axes, or none.
            initial_carry: the state before the first step that runs, every leaf beginning with
                ``*batch``; left out, that with which a sequence begins.
            init_key: of the carry with which a cell of Flax's begins, if it draws one; left out,
                ``jax.random.key(0)``.
            seq_lengths: integers ``(*batch,)``, the valid steps of each row; those after them are
                padding. The final carry is that of each row's last valid step. The outputs at
                padding are zeros (Flax leaves there what the cell made of it), and a row of length
                zero keeps its initial carry (Flax takes that of the last step).
            return_carry: overrides the attribute, unless it is None; so do the three below.
            time_major: see the attribute.
            reverse: see the attribute.
            keep_order: see the attribute.
            mask: booleans ``(*batch, time)``, or ``(time, *batch)`` if ``time_major``, False where
                a step is to be skipped, as in `rnnjax.unroll`.
            resets: booleans of the same shape, True where a new sequence begins, as there.
            reset_carry: the state with which a sequence begins at a reset, as there.

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes, the carry, the lengths, the mask
                or the resets do not fit, or the named method cannot run this cell.
            flax.errors.ScopeParamShapeError: ``inputs`` has another number of features than the
                parameters were made for.
        """
        time_major = self.time_major if time_major is None else time_major
        inputs = layout.check_inputs(inputs, time_major)
        grid = getattr(self.cell, "num_feature_axes", 1) - 1
        if isinstance(self.cell, Cell):
            params = self.param("cell", self.cell.init, inputs.shape[-1])
            adapted = layout.Adapted(self.cell, params)
        else:
            shape, key = layout.step_shape(inputs, time_major, grid), init_key
            initial_carry, reset_carry = layout.starts(
                lambda: self.cell.initialize_carry(
                    jax.random.key(0) if key is None else key, shape
                ),
                initial_carry,
                resets,
                reset_carry,
            )
            dtype = getattr(inputs, "dtype", jnp.float32)
            adapted = self._flax_cell(jax.ShapeDtypeStruct(shape, dtype), initial_carry)
        return layout.unroll_like_flax(
            adapted,
            inputs,
            initial_carry,
            return_carry=self.return_carry if return_carry is None else return_carry,
            time_major=time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            method=self.method,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_carry=reset_carry,
            key=self.make_rng("dropout") if self.has_rng("dropout") else None,
            grid=grid,
        )

    def _flax_cell(self, x: Any, start: Carry) -> layout.Adapted:
        """A cell of Flax's for inputs of a step's shape and type, from a carry like ``start``."""
        cell = self.cell
        if self.is_initializing():
            cell(start, jnp.zeros(x.shape, x.dtype))  # draws the parameters as Flax does
        others = sorted(set(cell.variables) - {"params"})
        if others:
            raise InvalidInputError(
                f"{type(cell).__name__} keeps variables besides its parameters, {others}, which no "
                "step here hands on; use flax.linen.RNN"
            )
        params = nn.meta.unbox(cell.variables.get("params", {}))
        one = _LAYOUTS.get(type(cell))
        # Anything more, such as the parameters of an activation, is not in the table.
        known = one is not None and set(params) == {*one.inputs, *one.hiddens}
        if one is not None and known and layout.exact(cell):
            return layout.adapted(one, cell, cell.features, params)
        call = _Call(cell.clone(parent=None, _deep_clone=True, _reset_names=True, name=None))
        return layout.Adapted(layout.ForeignCell.of(call, start, x.shape), params)


class Bidirectional(nn.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run one `RNN` in each direction; takes the place of ``flax.linen.Bidirectional``.

    The carry is a tuple ``(forward, backward)``. One module given for both directions shares its
    parameters. The time axis of the inner modules is that of this one, whatever they say. For
    layers that stack inside of one `RNN` see `rnnjax.Bidirectional`.

    Attributes:
        forward_rnn: what runs from the first step to the last: `RNN`, or a module that takes the
            same arguments in its call.
        backward_rnn: what runs from the last step to the first; ``outputs[t]`` of both belong to
            ``inputs[t]``.
        merge_fn: makes one array of the outputs of both; left out, they are concatenated along the
            last axis.
        time_major: as in `RNN`.
        return_carry: as in `RNN`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> layer = Bidirectional(RNN(GRUCell(4)), RNN(GRUCell(4)))
    >>> x = jnp.ones((2, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x).shape
    (2, 8)
    """

    forward_rnn: Any
    backward_rnn: Any
    merge_fn: Callable[[jax.Array, jax.Array], jax.Array] = layout.concatenate
    time_major: bool = False
    return_carry: bool = False

    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_carry: tuple[Carry, Carry] | None = None,
    ) -> Any:
        """Run over a sequence in both directions.

        Args:
            inputs: as in `RNN`.
            initial_carry: the states of both directions, ``(forward, backward)``; left out, those
                with which a sequence begins.
            init_key: as in `RNN`; each direction has one of its own.
            seq_lengths: as in `RNN`; the backward direction begins at each row's last valid step.
            return_carry: overrides the attribute, unless it is None.
            time_major: overrides the attribute, unless it is None.
            reverse: without effect, as in Flax: both directions run anyway.
            keep_order: without effect, as in Flax: the order is always that of the inputs.
            mask: as in `RNN`.
            resets: as in `RNN`; both directions are cut at the same place.
            reset_carry: the states with which a sequence begins at a reset, ``(forward,
                backward)``.

        Returns:
            the merged outputs; with ``return_carry`` a tuple of both final carries and those.

        Raises:
            InvalidInputError: as in `RNN`, and where a pair of carries is not a pair.
        """
        keys = None if init_key is None else tuple(jax.random.split(init_key))
        carry, outputs = layout.both_directions(
            self.forward_rnn,
            self.backward_rnn,
            self.merge_fn,
            inputs,
            carries={
                "initial_carry": initial_carry,
                "reset_carry": reset_carry,
                "init_key": keys,
            },
            marks={"seq_lengths": seq_lengths, "mask": mask, "resets": resets},
            time_major=self.time_major if time_major is None else time_major,
        )
        if self.return_carry if return_carry is None else return_carry:
            return carry, outputs
        return outputs
