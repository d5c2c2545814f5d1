"""`RNN`, `Bidirectional` and their cells for Flax NNX, in the place of those of ``flax.nnx``.

Code written for Flax's needs the import changed: ``rnnjax.nnx.RNN(rnnjax.nnx.LSTMCell(3, 4,
rngs=rngs))``. The cells here are Flax's own modules, with their parameters, carries and initial
numbers; `RNN` runs rnnjax's cell in the place of each.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.nnx import GRUCell, LSTMCell, OptimizedLSTMCell, RNNCellBase, SimpleCell

from rnnjax import layout
from rnnjax.cells import Carry, Cell, Params
from rnnjax.cells.arguments import brief
from rnnjax.cells.base import Inputs
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
_LAYOUTS = {
    getattr(nnx, name): one for one in layout.LAYOUTS if one.form == "nnx" for name in one.names
}


def __getattr__(name: str) -> Any:
    """Whatever else Flax has, so that ``from rnnjax import nnx`` can take its place."""
    return getattr(nnx, name)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A step of a module of the user's, as a function."""

    graph: Any

    def __call__(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        new, y = nnx.merge(self.graph, params)(carry, x)
        return new, y


class RNN(nnx.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.nnx.RNN``.

    With one of Flax's cells (`LSTMCell` and the others here) parameters, initial numbers and
    carries are those of Flax's ``RNN``, and rnnjax's cell runs in its place; any other
    ``RNNCellBase`` runs step by step, on ``Scan()``, with masks, lengths and resets all the same.

    With a cell of rnnjax the parameters are the pytree of its ``init`` with an ``nnx.Param`` at
    each leaf, so ``nnx.split``, ``nnx.jit``, ``nnx.grad`` and ``nnx.Optimizer`` see them;
    `cell_params` is the same pytree of plain arrays, for `rnnjax.unroll`. State is explicit, as
    everywhere in rnnjax: the module holds no carry.

    Noise in training, of `rnnjax.Regularized` cells and of the dropout of a `rnnjax.Stack`, is
    drawn where the call is given ``rngs``. Without them nothing is drawn, as for prediction.

    Args:
        cell: what one time step computes: a cell of Flax or of rnnjax, or a `rnnjax.Stack`.
        in_features: the size of the last axis of the inputs; a cell of Flax knows it.
        rngs: the parameters of a cell of rnnjax are drawn with ``rngs.params()``, and the carry of
            a cell of Flax that draws one with ``rngs.carry``.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed, and
            with ``seq_lengths`` the padding stays at the end of each row.
        unroll: taken so that Flax's code runs, and without effect: it tells Flax's loop how many
            steps to write out in one iteration, and here ``method`` decides how the loop runs.
        state_axes: this and the next are there for Flax's sake: the cells keep no variables besides
            their parameters, so there is nothing to lift, and only None is taken.
        broadcast_rngs: see ``state_axes``.
        method: how to run, as in `rnnjax.unroll`.

    Raises:
        InvalidInputError: ``in_features`` is not positive, is missing, or is not that of ``cell``;
            ``cell`` is no cell, or keeps variables besides its parameters; there are no ``rngs`` to
            draw with; or an argument that is there for Flax's sake is not at its default.

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
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[Any, Any] | None = None,
        broadcast_rngs: Any = None,
        method: Method = Auto(),
    ) -> None:
        if not isinstance(cell, Cell | RNNCellBase):
            raise InvalidInputError(
                f"cell must be a cell of rnnjax or a flax.nnx.RNNCellBase, such as "
                f"nnx.LSTMCell(3, 50, rngs=rngs), but is a {type(cell).__name__}"
            )
        if isinstance(cell, RNNCellBase):
            known = getattr(cell, "in_features", in_features)
            if in_features not in (None, known):
                raise InvalidInputError(
                    f"in_features must be {known}, which the cell was made for, but is "
                    f"{in_features}; leave it out"
                )
        elif in_features is None or not isinstance(rngs, nnx.Rngs):
            raise InvalidInputError(
                f"a cell such as {brief(cell)} needs in_features, the size of the last axis of the "
                f"inputs, and rngs, an nnx.Rngs that draws its parameters, but got {in_features} "
                f"and {rngs}; write RNN(cell, in_features, rngs=nnx.Rngs(0))"
            )
        for name, value in (("state_axes", state_axes), ("broadcast_rngs", broadcast_rngs)):
            layout.check_default(name, value, value is None, layout.NOTHING_TO_LIFT)
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.method = method
        drawn: Any = rngs
        self.rngs = nnx.data(None)
        if isinstance(cell, Cell):
            self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(drawn.params(), in_features)))
        elif rngs is True:
            self.rngs = nnx.RngStream(0, tag="carry")
        elif isinstance(rngs, nnx.Rngs):
            self.rngs = rngs.carry.fork()
        elif rngs is not False:
            raise InvalidInputError(
                f"rngs must be an nnx.Rngs, True or False, but is {brief(rngs)}"
            )

    @property
    def cell_params(self) -> Params:
        """The parameters as rnnjax's cell takes them, without the ``nnx.Param`` around each."""
        if isinstance(self.cell, Cell):
            return jax.tree.map(
                lambda param: param[...],
                self.params,
                is_leaf=lambda node: isinstance(node, nnx.Variable),
            )
        return self._flax_cell(None, ()).params

    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_carry: Carry | None = None,
    ) -> Any:
        """Run over a sequence.

        Args:
            inputs: ``(*batch, time, in_features)``, or ``(time, *batch, in_features)`` if
                ``time_major``; any number of batch axes, or none.
            initial_carry: the state before the first step that runs, every leaf beginning with
                ``*batch``; left out, that with which a sequence begins.
            seq_lengths: integers ``(*batch,)``, the valid steps of each row; those after them are
                padding. The final carry is that of each row's last valid step. The outputs at
                padding are zeros (Flax leaves there what the cell made of it), and a row of length
                zero keeps its initial carry (Flax takes that of the last step).
            return_carry: overrides the attribute, unless it is None; so do the three below.
            time_major: see the class.
            reverse: see the class.
            keep_order: see the class.
            rngs: draws the noise of training with ``rngs.dropout()``, if there is a stream
                "dropout" or "default"; a single stream is used if it is "dropout". A cell of Flax's
                that draws its carry draws it with ``rngs.carry``, as in Flax.
            mask: booleans ``(*batch, time)``, or ``(time, *batch)`` if ``time_major``, False where
                a step is to be skipped, as in `rnnjax.unroll`.
            resets: booleans of the same shape, True where a new sequence begins, as there.
            reset_carry: the state with which a sequence begins at a reset, as there.

        Returns:
            outputs ``(*batch, time, output_size)``, or ``(time, *batch, output_size)`` if
            ``time_major``; with ``return_carry`` a tuple of the final carry and the outputs.

        Raises:
            InvalidInputError: ``inputs`` has fewer than two axes or another number of features, the
                carry, the lengths, the mask or the resets do not fit, or the named method cannot
                run this cell.
        """
        time_major = self.time_major if time_major is None else time_major
        inputs = layout.check_inputs(inputs, time_major)
        cell: Any = self.cell
        grid = getattr(cell, "num_feature_axes", 1) - 1
        if isinstance(cell, Cell):
            adapted = layout.Adapted(cell, self.cell_params)
        else:
            shape = layout.step_shape(inputs, time_major, grid)
            initial_carry, reset_carry = layout.starts(
                lambda: cell.initialize_carry(shape, self._carry_stream(rngs)),
                initial_carry,
                resets,
                reset_carry,
            )
            adapted = self._flax_cell(initial_carry, shape)
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
            key=_dropout_key(rngs, getattr(cell, "draws", False)),
            grid=grid,
        )

    def _carry_stream(self, rngs: Any) -> Any:
        """Where a cell of Flax's draws its carry from, if it draws one; as Flax has it."""
        rngs = self.rngs if rngs is None else rngs
        return rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs

    def _flax_cell(self, start: Carry | None, shape: tuple[int, ...]) -> layout.Adapted:
        """A cell of Flax's, whose carry begins with ``start`` for a step's inputs of a shape."""
        cell: Any = self.cell
        one = _LAYOUTS.get(type(cell))
        if one is not None and layout.exact(cell):
            blocks = [getattr(cell, name) for name in (*one.inputs, *one.hiddens)]
            tree = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
            # Anything else, such as low-rank parts of a kernel or an activation with parameters, is
            # not in the table.
            if (
                cell.promote_dtype is nnx.nn.dtypes.promote_dtype
                and set(tree) == {*one.inputs, *one.hiddens}
                and all(type(b) is nnx.Linear and b.dot_general is _DOT_GENERAL for b in blocks)
            ):
                return layout.adapted(one, cell, cell.hidden_features, tree)
        graph, params, others = nnx.split(cell, nnx.Param, ...)
        if jax.tree.leaves(others):
            raise InvalidInputError(
                f"{type(cell).__name__} keeps variables besides its parameters, which no step here "
                "hands on; use flax.nnx.RNN"
            )
        return layout.Adapted(layout.ForeignCell.of(_Call(graph), start, shape), params)


class Bidirectional(nnx.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run one `RNN` in each direction; takes the place of ``flax.nnx.Bidirectional``.

    The carry is a tuple ``(forward, backward)``. One module given for both directions shares its
    parameters. The time axis of the inner modules is that of this one, whatever they say. For
    layers that stack inside of one `RNN` see `rnnjax.Bidirectional`.

    Args:
        forward_rnn: what runs from the first step to the last: `RNN`, or a module that takes the
            same arguments in its call.
        backward_rnn: what runs from the last step to the first; ``outputs[t]`` of both belong to
            ``inputs[t]``.
        merge_fn: makes one array of the outputs of both; left out, they are concatenated along the
            last axis.
        time_major: as in `RNN`.
        return_carry: as in `RNN`.
        rngs: taken so that Flax's code runs, and without effect: each direction has its own.

    >>> import jax.numpy as jnp
    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(3, 4, rngs=rngs)))
    >>> layer(jnp.ones((2, 3, 3))).shape
    (2, 3, 8)
    """

    def __init__(
        self,
        forward_rnn: Any,
        backward_rnn: Any,
        *,
        merge_fn: Callable[[jax.Array, jax.Array], jax.Array] = layout.concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ) -> None:
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn
        self.time_major = time_major
        self.return_carry = return_carry

    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
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
            rngs: as in `RNN`; each direction draws its own noise.
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
        carry, outputs = layout.both_directions(
            self.forward_rnn,
            self.backward_rnn,
            self.merge_fn,
            inputs,
            carries={"initial_carry": initial_carry, "reset_carry": reset_carry},
            marks={"seq_lengths": seq_lengths, "mask": mask, "resets": resets, "rngs": rngs},
            time_major=self.time_major if time_major is None else time_major,
        )
        if self.return_carry if return_carry is None else return_carry:
            return carry, outputs
        return outputs


def _dropout_key(rngs: Any, draws: bool) -> jax.Array | None:
    """The key of the noise, if there is any and a stream for it; others are left as they are."""
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout() if draws and ("dropout" in rngs or "default" in rngs) else None
    if isinstance(rngs, nnx.RngStream):
        return rngs() if draws and rngs.tag == "dropout" else None
    if rngs is None:
        return None
    raise InvalidInputError(
        f"rngs must be an nnx.Rngs such as nnx.Rngs(dropout=0), or None to draw nothing, but is "
        f"{rngs!r}"
    )
