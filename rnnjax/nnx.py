"""`RNN`, `Bidirectional` and their cells for Flax NNX, in the place of those of ``flax.nnx``.

Code written for Flax's needs the import changed: ``rnnjax.nnx.RNN(rnnjax.nnx.LSTMCell(3, 4,
rngs=rngs))``; the cells made here are rnnjax's own, with Flax's arguments and initial
distributions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rnnjax import cells, layout
from rnnjax.cells import Carry, Cell, Params
from rnnjax.cells.activations import Activation, Initializer
from rnnjax.cells.base import Inputs
from rnnjax.engine import Auto, Method
from rnnjax.errors import InvalidInputError

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class SizedCell:
    """A cell with what Flax's cells know besides: the size of its inputs, and where keys come from.

    It is what `LSTMCell` and the others here return, and what `RNN` takes in the place of a cell.
    It holds no parameters: every `RNN` that is made of it draws its own, whereas in Flax two that
    are made of one cell share them.

    Attributes:
        cell: what one time step computes.
        in_features: the size of the last axis of the inputs.
        rngs: the parameters are drawn with ``rngs.params()``. Not part of what makes two of these
            equal, as it remembers how many keys it gave.

    >>> sized = GRUCell(3, 4, rngs=nnx.Rngs(0))
    >>> sized.cell.hidden_size, sized.in_features
    (4, 3)
    """

    cell: Cell
    in_features: int
    rngs: nnx.Rngs = dataclasses.field(compare=False, repr=False)


class RNN(nnx.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.nnx.RNN``.

    The parameters are the pytree of ``cell.init`` with an ``nnx.Param`` at each leaf, so
    ``nnx.split``, ``nnx.jit``, ``nnx.grad`` and ``nnx.Optimizer`` see them; `cell_params` is the
    same pytree of plain arrays, for `rnnjax.unroll`. State is explicit, as everywhere in rnnjax:
    the module holds no carry.

    Noise in training, of `rnnjax.Regularized` cells and of the dropout of a `rnnjax.Stack`, is
    drawn where the call is given ``rngs``. Without them nothing is drawn, as for prediction.

    Args:
        cell: what one time step computes: a cell or a `rnnjax.Stack`, or one with the size of its
            inputs, as `LSTMCell` and the others here make it.
        in_features: the size of the last axis of the inputs; known where ``cell`` knows it.
        rngs: the parameters are drawn with ``rngs.params()``. Where ``cell`` has its own, these are
            taken so that Flax's code runs, and without effect: it draws carries with them.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed, and
            with ``seq_lengths`` the padding stays at the end of each row.
        unroll: taken so that Flax's code runs, and without effect: it tells Flax's loop how many
            steps to write out in one iteration, and here ``method`` decides how the loop runs.
        state_axes: this and the next are there for Flax's sake: rnnjax's cells keep no variables
            besides params, so there is nothing to lift, and only None is taken.
        broadcast_rngs: see ``state_axes``.
        method: how to run, as in `rnnjax.unroll`.

    Raises:
        InvalidInputError: ``in_features`` is not positive, is missing, or is not that of ``cell``;
            ``cell`` is not a rnnjax cell; there are no ``rngs`` to draw with; or an argument that
            is there for Flax's sake is not at its default.

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
        cell: Cell | SizedCell,
        in_features: int | None = None,
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
        if isinstance(cell, SizedCell):
            sized = cell
            if in_features not in (None, sized.in_features):
                raise InvalidInputError(
                    f"in_features must be {sized.in_features}, which the cell was made for, but is "
                    f"{in_features}; leave it out"
                )
            cell, in_features, rngs = sized.cell, sized.in_features, sized.rngs
        layout.check_cell(cell, "rnnjax.nnx")
        if in_features is None or not isinstance(rngs, nnx.Rngs):
            raise InvalidInputError(
                f"a cell such as {cell} needs in_features, the size of the last axis of the "
                f"inputs, and rngs, an nnx.Rngs that draws its parameters, but got {in_features} "
                f"and {rngs}; write RNN(cell, in_features, rngs=nnx.Rngs(0))"
            )
        for name, value in (("state_axes", state_axes), ("broadcast_rngs", broadcast_rngs)):
            layout.check_default(name, value, value is None, layout.NOTHING_TO_LIFT)
        self.cell = cell
        self.in_features = in_features
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.method = method
        self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(rngs.params(), in_features)))

    @property
    def cell_params(self) -> Params:
        """The parameters as ``cell.init`` shapes them, without the ``nnx.Param`` around each."""
        return jax.tree.map(
            lambda param: param[...],
            self.params,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )

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
                "dropout" or "default"; a single stream is used if it is "dropout". Flax draws
                carries with them, which rnnjax's cells do not need.
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
        return layout.unroll_like_flax(
            self.cell,
            self.cell_params,
            inputs,
            initial_carry,
            return_carry=self.return_carry if return_carry is None else return_carry,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            method=self.method,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_carry=reset_carry,
            key=_dropout_key(rngs),
        )


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
        rngs: taken so that Flax's code runs, and without effect: it draws carries with them.

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


def _dropout_key(rngs: Any) -> jax.Array | None:
    """The key of the noise, if there is a stream for it."""
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout() if "dropout" in rngs or "default" in rngs else None
    if isinstance(rngs, nnx.RngStream):
        return rngs() if rngs.tag == "dropout" else None
    if rngs is None:
        return None
    raise InvalidInputError(
        f"rngs must be an nnx.Rngs such as nnx.Rngs(dropout=0), or None to draw nothing, but is "
        f"{rngs!r}"
    )


def _check_flax_only(promote_dtype: Any, **metadata: Mapping[str, Any]) -> None:
    """Raise for what Flax's ``Linear`` would do with the parameters, and rnnjax has no place for.

    Raises:
        InvalidInputError: an argument is not at its default.
    """
    layout.check_default(
        "promote_dtype",
        promote_dtype,
        promote_dtype is None or promote_dtype is nnx.nn.dtypes.promote_dtype,
        "rnnjax's products promote by dtype alone; set dtype",
    )
    for name, value in metadata.items():
        layout.check_default(
            name,
            dict(value),
            not value,
            "parameters here hold all gates and carry no metadata; set it on the nnx.Param in "
            "model.params",
        )


def LSTMCell(
    in_features: int,
    hidden_features: int,
    *,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    promote_dtype: Callable[..., Any] | None = None,
    keep_rngs: bool = False,
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    bias_metadata: Mapping[str, Any] = _NO_METADATA,
) -> SizedCell:
    """`rnnjax.LSTMCell` with the arguments and the initial distributions of Flax's ``LSTMCell``.

    Each gate is drawn by itself, as from a ``Linear`` of its own, and the forget gate's bias begins
    as the others do. Parameters come in rnnjax's shapes, gates in the order i, f, g, o.

    Args:
        in_features: the size of the last axis of the inputs.
        hidden_features: the number of hidden units.
        gate_fn: the activation of the gates, by name or as a function. Those that have a name in
            rnnjax, as Flax's ``sigmoid`` and ``tanh``, are known to the fast path as functions too.
        activation_fn: that of the candidate and the output.
        kernel_init: initialiser of one gate's kernel of the inputs, by name or as a function.
        recurrent_kernel_init: the same for the hidden state.
        bias_init: the same for one gate's bias.
        dtype: of the products and outputs. Products in a type narrower than float32 accumulate in
            float32, and the carry stays float32, which Flax's does not.
        param_dtype: of the parameters.
        carry_init: zeros, or left out.
        promote_dtype: left out: products promote by ``dtype`` alone.
        keep_rngs: taken so that Flax's code runs, and without effect: no carry is drawn.
        rngs: the parameters are drawn with ``rngs.params()``, when `RNN` is made.
        kernel_metadata: left out, as are the next two: there is no place for them.
        recurrent_kernel_metadata: see ``kernel_metadata``.
        bias_metadata: see ``kernel_metadata``.

    Raises:
        InvalidInputError: an argument that has to be left out is given, ``hidden_features`` is not
            positive, or a name is unknown.

    >>> LSTMCell(3, 4, rngs=nnx.Rngs(0)).cell.hidden_size
    4
    """
    layout.check_carry_init(carry_init)
    _check_flax_only(
        promote_dtype,
        kernel_metadata=kernel_metadata,
        recurrent_kernel_metadata=recurrent_kernel_metadata,
        bias_metadata=bias_metadata,
    )
    cell = cells.LSTMCell(
        hidden_features,
        recurrent_activation=layout.named_activation(gate_fn),
        unit_forget_bias=False,
        activation=layout.named_activation(activation_fn),
        kernel_init=layout.per_gate(kernel_init, 4),
        recurrent_kernel_init=layout.per_gate(recurrent_kernel_init, 4),
        bias_init=layout.per_gate(bias_init, 4),
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return SizedCell(cell, in_features, rngs)


def OptimizedLSTMCell(
    in_features: int,
    hidden_features: int,
    *,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    promote_dtype: Callable[..., Any] | None = None,
    keep_rngs: bool = False,
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    bias_metadata: Mapping[str, Any] = _NO_METADATA,
) -> SizedCell:
    """`rnnjax.LSTMCell` with the arguments and distributions of Flax's ``OptimizedLSTMCell``.

    The kernels are drawn for all gates together, which is the difference from `LSTMCell`, as in
    Flax; for the speed there is none.

    Args:
        in_features: as in `LSTMCell`, and so are the others.
        hidden_features: see there.
        gate_fn: see there.
        activation_fn: see there.
        kernel_init: see there, but of all gates together.
        recurrent_kernel_init: see there, but of all gates together.
        bias_init: see there, but of all gates together.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.
        promote_dtype: see there.
        keep_rngs: see there.
        rngs: see there.
        kernel_metadata: see there.
        recurrent_kernel_metadata: see there.
        bias_metadata: see there.

    Raises:
        InvalidInputError: as in `LSTMCell`.

    >>> OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)).cell.hidden_size
    4
    """
    layout.check_carry_init(carry_init)
    _check_flax_only(
        promote_dtype,
        kernel_metadata=kernel_metadata,
        recurrent_kernel_metadata=recurrent_kernel_metadata,
        bias_metadata=bias_metadata,
    )
    cell = cells.LSTMCell(
        hidden_features,
        recurrent_activation=layout.named_activation(gate_fn),
        unit_forget_bias=False,
        activation=layout.named_activation(activation_fn),
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return SizedCell(cell, in_features, rngs)


def GRUCell(
    in_features: int,
    hidden_features: int,
    *,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    promote_dtype: Callable[..., Any] | None = None,
    keep_rngs: bool = False,
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    bias_metadata: Mapping[str, Any] = _NO_METADATA,
) -> SizedCell:
    """`rnnjax.GRUCell` with the arguments and the initial distributions of Flax's ``GRUCell``.

    The kernels are drawn for all gates together, as in Flax. One difference remains: rnnjax's cell
    has a ``recurrent_bias``, which Flax's NNX cell lacks and which begins at zero. That of n, in
    the product with r, is one more thing to learn; those of r and z stand in a sum with ``bias``.

    Args:
        in_features: as in `LSTMCell`, and so are the others.
        hidden_features: see there.
        gate_fn: see there.
        activation_fn: see there.
        kernel_init: see there, but of all gates together.
        recurrent_kernel_init: see there, but of all gates together.
        bias_init: zeros: anything else would be drawn for both biases.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.
        promote_dtype: see there.
        keep_rngs: see there.
        rngs: see there.
        kernel_metadata: see there.
        recurrent_kernel_metadata: see there.
        bias_metadata: see there.

    Raises:
        InvalidInputError: as in `LSTMCell`, or ``bias_init`` is not zeros.

    >>> GRUCell(3, 4, rngs=nnx.Rngs(0)).cell.hidden_size
    4
    """
    layout.check_carry_init(carry_init)
    layout.check_gru_bias_init(bias_init)
    _check_flax_only(
        promote_dtype,
        kernel_metadata=kernel_metadata,
        recurrent_kernel_metadata=recurrent_kernel_metadata,
        bias_metadata=bias_metadata,
    )
    cell = cells.GRUCell(
        hidden_features,
        recurrent_activation=layout.named_activation(gate_fn),
        activation=layout.named_activation(activation_fn),
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return SizedCell(cell, in_features, rngs)


def SimpleCell(
    in_features: int,
    hidden_features: int,
    *,
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    residual: bool = False,
    promote_dtype: Callable[..., Any] | None = None,
    keep_rngs: bool = False,
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
    bias_metadata: Mapping[str, Any] = _NO_METADATA,
) -> SizedCell:
    """`rnnjax.SimpleRNNCell` with the arguments and defaults of Flax's ``SimpleCell``.

    Args:
        in_features: as in `LSTMCell`, and so are the others.
        hidden_features: see there.
        activation_fn: see there.
        kernel_init: see there.
        recurrent_kernel_init: see there.
        bias_init: see there.
        dtype: see there; as in Flax float32, unless None is given.
        param_dtype: see there.
        carry_init: see there.
        residual: False; with True add the identity to ``recurrent_kernel``.
        promote_dtype: see there.
        keep_rngs: see there.
        rngs: see there.
        kernel_metadata: see there.
        recurrent_kernel_metadata: see there.
        bias_metadata: see there.

    Raises:
        InvalidInputError: as in `LSTMCell`, or ``residual`` is true.

    >>> SimpleCell(3, 4, rngs=nnx.Rngs(0)).cell.hidden_size
    4
    """
    layout.check_carry_init(carry_init)
    layout.check_residual(residual)
    _check_flax_only(
        promote_dtype,
        kernel_metadata=kernel_metadata,
        recurrent_kernel_metadata=recurrent_kernel_metadata,
        bias_metadata=bias_metadata,
    )
    cell = cells.SimpleRNNCell(
        hidden_features,
        activation=layout.named_activation(activation_fn),
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return SizedCell(cell, in_features, rngs)
