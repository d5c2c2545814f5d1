"""`RNN`, `Bidirectional` and their cells for Flax Linen, in the place of those of ``flax.linen``.

Code written for Flax's needs the import changed, ``from rnnjax import linen as nn``; the cells
made here are rnnjax's own, with Flax's arguments and initial distributions.

>>> import jax
>>> import jax.numpy as jnp
>>> from rnnjax import linen as nn
>>> layer = nn.Bidirectional(nn.RNN(nn.LSTMCell(32)), nn.RNN(nn.GRUCell(32)))
>>> inputs, seq_lengths = jnp.ones((8, 10, 3)), jnp.array([10, 10, 7, 5, 5, 3, 2, 1])
>>> variables = layer.init(jax.random.key(0), inputs)
>>> layer.apply(variables, inputs, seq_lengths=seq_lengths).shape
(8, 10, 64)
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike

from rnnjax import cells, layout
from rnnjax.cells import Carry, Cell
from rnnjax.cells.activations import Activation, Initializer
from rnnjax.cells.base import Inputs
from rnnjax.engine import Auto, Method


class RNN(nn.Module):  # type: ignore[misc]  # mypy follows no imports of flax
    """Run a cell, or a stack of them, over a sequence; takes the place of ``flax.linen.RNN``.

    The flags are Flax's, and each of them can be set here or in the call. The parameters are those
    of ``cell.init``, under the name ``cell``: ``variables["params"]["cell"]`` can be given to
    `rnnjax.unroll` as it is. The carry is the cell's own, e.g. ``LSTMCarry(hidden, cell)``.

    Noise in training, of `rnnjax.Regularized` cells and of the dropout of a `rnnjax.Stack`, is
    drawn with the rng "dropout": ``model.apply(variables, inputs, rngs={"dropout": key})``. Without
    it nothing is drawn, as for prediction.

    Attributes:
        cell: what one time step computes: a cell, or a `rnnjax.Stack`.
        time_major: whether inputs and outputs are ``(time, *batch, features)`` rather than
            ``(*batch, time, features)``.
        return_carry: whether a call returns ``(carry, outputs)`` rather than the outputs.
        reverse: whether to run from the last step to the first.
        keep_order: whether, with ``reverse``, ``outputs[t]`` belongs to ``inputs[t]``, as in
            `rnnjax.unroll`. Without it outputs come in the order in which they were computed, and
            with ``seq_lengths`` the padding stays at the end of each row.
        unroll: taken so that Flax's code runs, and without effect: it tells Flax's loop how many
            steps to write out in one iteration, and here ``method`` decides how the loop runs.
        variable_axes: this and the next three are there for Flax's sake: rnnjax's cells keep no
            variables besides params, so there is nothing to lift, and only the default is taken.
        variable_broadcast: see ``variable_axes``.
        variable_carry: see ``variable_axes``.
        split_rngs: see ``variable_axes``.
        method: how to run, as in `rnnjax.unroll`.

    Raises:
        InvalidInputError: ``cell`` is not a rnnjax cell, or an argument that is there for Flax's
            sake is not at its default.

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

    cell: Cell
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
        layout.check_cell(self.cell, "rnnjax.linen")
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
            init_key: taken so that Flax's code runs, and without effect: rnnjax's cells draw no
                carry.
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
        return layout.unroll_like_flax(
            self.cell,
            self.param("cell", self.cell.init, inputs.shape[-1]),
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
        )


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
            init_key: as in `RNN`.
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
            marks={"seq_lengths": seq_lengths, "mask": mask, "resets": resets},
            time_major=self.time_major if time_major is None else time_major,
        )
        if self.return_carry if return_carry is None else return_carry:
            return carry, outputs
        return outputs


def LSTMCell(
    features: int,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
) -> cells.LSTMCell:
    """`rnnjax.LSTMCell` with the arguments and the initial distributions of Flax's ``LSTMCell``.

    Each gate is drawn by itself, as from a ``Dense`` of its own, and the forget gate's bias begins
    as the others do. Parameters come in rnnjax's shapes, gates in the order i, f, g, o.

    Args:
        features: the number of hidden units.
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

    Raises:
        InvalidInputError: ``carry_init`` is not zeros, ``features`` is not positive, or a name is
            unknown.

    >>> LSTMCell(32).hidden_size
    32
    """
    layout.check_carry_init(carry_init)
    return cells.LSTMCell(
        features,
        recurrent_activation=layout.named_activation(gate_fn),
        unit_forget_bias=False,
        activation=layout.named_activation(activation_fn),
        kernel_init=layout.per_gate(kernel_init, 4),
        recurrent_kernel_init=layout.per_gate(recurrent_kernel_init, 4),
        bias_init=layout.per_gate(bias_init, 4),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def OptimizedLSTMCell(
    features: int,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
) -> cells.LSTMCell:
    """The same as `LSTMCell`, as in Flax; there it joins the gates' products, here all cells do.

    Args:
        features: as in `LSTMCell`, and so are all of them.
        gate_fn: see there.
        activation_fn: see there.
        kernel_init: see there.
        recurrent_kernel_init: see there.
        bias_init: see there.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.

    Raises:
        InvalidInputError: as in `LSTMCell`.

    >>> OptimizedLSTMCell(32) == LSTMCell(32)
    True
    """
    return LSTMCell(
        features,
        gate_fn,
        activation_fn,
        kernel_init,
        recurrent_kernel_init,
        bias_init,
        dtype,
        param_dtype,
        carry_init,
    )


def GRUCell(
    features: int,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
) -> cells.GRUCell:
    """`rnnjax.GRUCell` with the arguments and the initial distributions of Flax's ``GRUCell``.

    One difference remains: ``recurrent_bias`` is there for all gates, in Flax for n alone. Those of
    r and z stand in a sum with ``bias``, so both cells are the same functions, but in training this
    sum moves by the steps of two parameters rather than one.

    Args:
        features: as in `LSTMCell`, and so are the others, but for ``bias_init``.
        gate_fn: see there.
        activation_fn: see there.
        kernel_init: see there.
        recurrent_kernel_init: see there.
        bias_init: zeros: anything else would be drawn for both biases.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.

    Raises:
        InvalidInputError: as in `LSTMCell`, or ``bias_init`` is not zeros.

    >>> GRUCell(32).hidden_size
    32
    """
    layout.check_carry_init(carry_init)
    layout.check_gru_bias_init(bias_init)
    return cells.GRUCell(
        features,
        recurrent_activation=layout.named_activation(gate_fn),
        activation=layout.named_activation(activation_fn),
        kernel_init=layout.per_gate(kernel_init, 3),
        recurrent_kernel_init=layout.per_gate(recurrent_kernel_init, 3),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def SimpleCell(
    features: int,
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    residual: bool = False,
) -> cells.SimpleRNNCell:
    """`rnnjax.SimpleRNNCell` with the arguments and defaults of Flax's ``SimpleCell``.

    Args:
        features: as in `LSTMCell`, and so are the others.
        activation_fn: see there.
        kernel_init: see there.
        recurrent_kernel_init: see there.
        bias_init: see there.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.
        residual: False; with True add the identity to ``recurrent_kernel``.

    Raises:
        InvalidInputError: as in `LSTMCell`, or ``residual`` is true.

    >>> SimpleCell(32).hidden_size
    32
    """
    layout.check_carry_init(carry_init)
    layout.check_residual(residual)
    return cells.SimpleRNNCell(
        features,
        activation=layout.named_activation(activation_fn),
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def MGUCell(
    features: int,
    gate_fn: str | Activation = "sigmoid",
    activation_fn: str | Activation = "tanh",
    kernel_init: str | Initializer = "lecun_normal",
    recurrent_kernel_init: str | Initializer = "orthogonal",
    forget_bias_init: str | Initializer = "ones",
    activation_bias_init: str | Initializer = "zeros",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    carry_init: str | Initializer | None = None,
    reset_gate: bool = True,
) -> cells.MGUCell:
    """`rnnjax.MGUCell` with the arguments and the initial distributions of Flax's ``MGUCell``.

    One difference remains, that of `GRUCell`: a second bias of f, which begins at zero.

    Args:
        features: as in `LSTMCell`, and so are the others, but for those below.
        gate_fn: see there.
        activation_fn: see there.
        kernel_init: see there.
        recurrent_kernel_init: see there.
        forget_bias_init: ones or zeros, the beginning of the gate's bias.
        activation_bias_init: initialiser of both biases of the candidate.
        dtype: see there.
        param_dtype: see there.
        carry_init: see there.
        reset_gate: True: rnnjax has no form in which the gate leaves the candidate alone.

    Raises:
        InvalidInputError: as in `LSTMCell`, or ``forget_bias_init`` or ``reset_gate`` is something
            else.

    >>> MGUCell(32).unit_forget_bias
    True
    """
    layout.check_carry_init(carry_init)
    layout.check_default(
        "reset_gate",
        reset_gate,
        bool(reset_gate),
        "rnnjax.MGUCell has no form in which the gate leaves the candidate alone; use "
        "rnnjax.MGUCell(features, reset_after=False), where it scales the hidden state, or Flax's",
    )
    return cells.MGUCell(
        features,
        recurrent_activation=layout.named_activation(gate_fn),
        activation=layout.named_activation(activation_fn),
        kernel_init=layout.per_gate(kernel_init, 2),
        recurrent_kernel_init=layout.per_gate(recurrent_kernel_init, 2),
        **layout.mgu_biases(forget_bias_init, activation_bias_init),
        dtype=dtype,
        param_dtype=param_dtype,
    )
