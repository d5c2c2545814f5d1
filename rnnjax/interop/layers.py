"""The layers of a model: recurrent ones, and the few that frameworks put around them."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.onehot import OneHot
from rnnjax.engine import Auto, Method, unroll
from rnnjax.engine.core.masking import expand
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.functions import Function, get_function
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate


class Flow(NamedTuple):
    """The data that go from layer to layer.

    Attributes:
        xs: ``(time, *batch, features)``, or ``(*batch, features)`` after a layer that returns only
            its last output; ids have no features axis.
        mask: booleans ``(time, *batch)``, or None if every step is valid.
        sequence: whether ``xs`` has a time axis.
    """

    xs: Any
    mask: jax.Array | None = None
    sequence: bool = True


Ran = tuple[Carry | None, Flow]
"""The result of a layer: its state after the last step, or None, and the data for the next."""
Carries = dict[str, Carry]
"""The carries of a model, by the names of the layers that have a state."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The options of a call, for every layer; see `rnnjax.unroll`.

    ``language`` is that in which the program of the call will be written: ``"C"``, where a sequence
    is fed step by step, padding as well, or ``"ONNX"``, whose runtimes raise errors of their own.
    It is ``"steps"`` where nothing runs, but each step's outputs are followed to where they come
    from: at a step that a mask leaves out they are what they were, and come from the mask alone.
    """

    resets: Any = None
    key: jax.Array | None = None
    method: Method = Auto()
    language: str = ""


Shape = tuple[int | None, ...]
Weights = Mapping[str, Shape | None]
"""Shapes of parameters by their names, in Keras's order; None for what the inputs say."""


def fits(shapes: Weights, came: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether they are those, with any size or shape where one is None.

    >>> fits({"kernel": (None, 5)}, {"kernel": (3, 5)}), fits({"kernel": (None, 5)}, {})
    (True, False)
    """
    return set(shapes) == set(came) and all(
        len(shape) == len(came[name])
        and all(a in (None, b) for a, b in zip(shape, came[name], strict=True))
        for name, shape in shapes.items()
        if shape is not None
    )


class Layer(abc.ABC):
    """One layer of a `Network`, a frozen dataclass without arrays."""

    name: str

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The shapes of its parameters by their place in the layer; none of a `Recurrent`."""
        return {}

    @property
    def has_state(self) -> bool:
        """Whether a step of the layer depends on the steps before."""
        return False

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...], dtype: Any) -> Carry:
        """The state at the start of a sequence, or None for a layer that has none."""
        return None

    @abc.abstractmethod
    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Run the layer; ``carry`` is its state, or None.

        Where a layer takes several arrays, a tuple of `Flow` stands for one.
        """

    def __str__(self) -> str:
        own: Any = self
        told = [getattr(self, one.name) for one in dataclasses.fields(own)[1:]]
        told = [x for x in told if not isinstance(x, bool) and x != "linear"] or ["linear"]
        shown = (f"{x:g}" if isinstance(x, float) else _spell(x) for x in told)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True)
class Recurrent(Layer):
    """A cell, or a `rnnjax.Stack` or `rnnjax.Bidirectional` of cells, over the sequence.

    Its parameters and carry are those of the cell.

    As in Keras, a row of which no step was valid yet says what the state that came is the output
    of, so that a sequence can be fed in parts, padding as well: with a last output, and before the
    first valid step with ``masked_outputs="last"``. Of a cell whose state does not hold its output
    (`rnnjax.Cell.output` is None), and of both directions before that step, it says zeros.

    Args:
        name: the name of the layer.
        cell: what one time step computes.
        reverse: whether to run from the last step to the first.
        keep_order: whether ``ys[t]`` then belongs to ``xs[t]``; otherwise outputs stay in running
            order, as with Keras's ``go_backwards``.
        return_sequences: whether to return the outputs of all steps, or only of the last valid step
            that ran, for each direction.
        masked_outputs: ``"zero"`` or ``"last"`` for masked steps, as in `rnnjax.unroll`.
    """

    name: str
    cell: Cell
    _: dataclasses.KW_ONLY
    reverse: bool = False
    keep_order: bool = True
    return_sequences: bool = True
    masked_outputs: Literal["zero", "last"] = "zero"

    @property
    def has_state(self) -> bool:
        """True: that of the cell."""
        return True

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...], dtype: Any) -> Carry:
        """The initial carry of the cell."""
        return self.cell.initial_carry(batch_shape, dtype)

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Unroll the cell over the sequence."""
        begin, last = carry, not self.return_sequences
        mask, resets = flow.mask, context.resets
        carry, ys = unroll(
            self.cell,
            params,
            _sequence(self, flow),
            carry,
            mask=mask,
            resets=resets,
            masked_outputs=self.masked_outputs,
            outputs="last" if last else "all",
            reverse=self.reverse,
            key=context.key,
            method=context.method,
        )
        known = begin is not None and self.masked_outputs == "last" and _runs_forward(self.cell)
        if mask is not None and (last or known):
            zeros = jnp.zeros(ys.shape[not last :], ys.dtype)
            held = self.cell.last_output(carry if last else begin, zeros, lambda zeros, _: zeros)
            if held is zeros and context.language == "C":
                raise InteropError(
                    f"layer {self.name!r}, {self}, says its last output where a mask leaves a step "
                    "out, but its state does not hold it; leave the mask out, or take a GRUCell"
                )
            marks = [expand(jnp.asarray(a, int), ys) for a in (mask, resets) if a is not None]
            along = functools.reduce(jnp.add, marks)
            begun = mask.any(axis=0) if last else jax.lax.cumsum(along, reverse=self.reverse)
            ys = jnp.where(expand(begun, ys) > 0, ys, held)
        if self.return_sequences and self.reverse and not self.keep_order:
            ys = jnp.flip(ys, axis=0)
        return carry, Flow(ys, None if last else mask, not last)

    def __str__(self) -> str:
        last = not self.return_sequences
        return describe_cell(self.cell) + ", reverse" * self.reverse + ", last output" * last


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """``activation(x @ kernel + bias)`` at every step, over the last axis.

    Its parameters are ``kernel (features, size)`` and, with ``use_bias``, ``bias (size,)``.
    """

    name: str
    size: int
    activation: str | Function = "linear"
    use_bias: bool = True

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The kernel, and the bias if there is one."""
        kernel: Weights = {"kernel": (None, self.size)}
        return {"": {**kernel, "bias": (self.size,)} if self.use_bias else kernel}

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Compute one matrix product over all steps."""
        kernel = params["kernel"]
        xs = single(self, flow)
        if xs.shape[-1] != kernel.shape[0]:
            raise InvalidInputError(
                f"the inputs of layer {self.name!r} have {xs.shape[-1]} features, but its kernel "
                f"takes {kernel.shape[0]}; check the last axis of xs"
            )
        ys = xs @ kernel + params["bias"] if self.use_bias else xs @ kernel
        return None, flow._replace(xs=get_function(self.activation)(ys))


@dataclasses.dataclass(frozen=True)
class Embedding(Layer):
    """Looks up rows of ``embedding (vocabulary_size, size)`` by integer ids ``(time, *batch)``.

    Ids ``(batch, time)`` that are not yet a sequence become one here.

    Args:
        name: the name of the layer.
        vocabulary_size: the number of ids.
        size: the size of the vectors.
        mask_zero: whether steps of id 0 are masked, as padding.
    """

    name: str
    vocabulary_size: int
    size: int
    mask_zero: bool = False

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The shape of the embedding table."""
        return {"": {"embedding": (self.vocabulary_size, self.size)}}

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Look up the rows; an id out of range gives NaN, and an error in a runtime of ONNX."""
        ids, mask, sequence = _ids(self, flow)
        if self.mask_zero:
            mask = ids != 0 if mask is None else mask & (ids != 0)
        if context.language == "ONNX":  # a Gather, which would count negative ids from the end
            ids = jnp.where(ids < 0, self.vocabulary_size, ids)
            kept = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
            return None, Flow(params["embedding"].at[ids].get(**kept), mask, sequence)
        outside = (ids < 0) | (ids >= self.vocabulary_size)
        rows = jnp.take(params["embedding"], jnp.where(outside, 0, ids), axis=0, mode="clip")
        return None, Flow(jnp.where(outside[..., None], jnp.nan, rows), mask, sequence)


@dataclasses.dataclass(frozen=True)
class OneHotIds(Layer):
    """Integer ids ``(time, *batch)`` as one-hot vectors of ``size``; it has no parameters."""

    name: str
    size: int

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Stand for the vectors without building them: see `rnnjax.OneHot`."""
        ids = _ids(self, flow)
        return None, ids._replace(xs=OneHot(ids.xs, self.size))


@dataclasses.dataclass(frozen=True)
class Masking(Layer):
    """Masks the steps all of whose features are ``value``; it has no parameters."""

    name: str
    value: float = 0.0

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Find the steps, and set their features to zero."""
        xs = _sequence(self, flow)
        valid = jnp.any(xs != self.value, axis=-1)
        mask = valid if flow.mask is None else flow.mask & valid
        return None, Flow(jnp.where(valid[..., None], xs, 0), mask)


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Dropout of features where a call has a key; see `rnnjax.Dropout`. It has no parameters."""

    name: str
    dropout: DropoutRate

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Apply dropout if there is a key."""
        return None, flow._replace(xs=self.dropout.apply(context.key, single(self, flow)))

    def __str__(self) -> str:
        return f"Dropout({self.dropout.rate:g})"


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """A function of the features, such as ``"softmax"``; it has no parameters."""

    name: str
    function: str | Function

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Apply the function to the features."""
        return None, flow._replace(xs=get_function(self.function)(single(self, flow)))


def describe_cell(cell: Cell) -> str:
    """A cell in a few words, as a person would name it.

    >>> import rnnjax
    >>> describe_cell(rnnjax.Stack([rnnjax.Bidirectional(rnnjax.GRUCell(5)), rnnjax.LSTMCell(4)]))
    'Stack(Bidirectional(GRUCell(5)), LSTMCell(4))'
    """
    kind = type(cell).__name__
    parts = [cell.cell] if isinstance(cell, Regularized) else getattr(cell, "cells", ())
    if isinstance(cell, Stack | Bidirectional | Regularized):
        parts = dict.fromkeys(parts) if isinstance(cell, Bidirectional) else parts
        return f"{kind}({', '.join(map(describe_cell, parts))})"
    told: Any = dataclasses.fields(cell) if dataclasses.is_dataclass(cell) else ()
    own = [one.name for one in told if "activation" in one.name]
    own = [name for name in own if getattr(cell, name) != getattr(type(cell), name, None)]
    shown = [f"{name}={_spell(getattr(cell, name))}" for name in own]
    return f"{kind}({', '.join([str(getattr(cell, 'hidden_size', cell.output_size)), *shown])})"


def _runs_forward(cell: Cell) -> bool:
    inner = jax.tree.leaves(vars(cell), is_leaf=lambda one: isinstance(one, Cell))
    parts = (one for one in inner if isinstance(one, Cell))
    return not isinstance(cell, Bidirectional) and all(map(_runs_forward, parts))


def _spell(function: str | Function) -> str:
    if isinstance(function, str):
        return function
    return getattr(function, "__name__", None) or repr(function)


def single(layer: Layer, flow: Any) -> Any:
    """The one array that a layer takes."""
    if not isinstance(flow, Flow):
        raise InvalidInputError(
            f"layer {layer.name!r} takes one array, but gets {len(flow)}; concatenate them"
        )
    if isinstance(flow.xs, OneHot):
        return jax.nn.one_hot(flow.xs.ids, flow.xs.size)
    return jnp.asarray(flow.xs)


def _sequence(layer: Layer, flow: Any) -> Any:
    if isinstance(flow, Flow) and not flow.sequence:
        raise InvalidInputError(
            f"layer {layer.name!r} needs a sequence, but the layer before it returns its last "
            "output alone; set return_sequences there"
        )
    one_hot = isinstance(flow, Flow) and isinstance(flow.xs, OneHot)
    return flow.xs if one_hot else single(layer, flow)


def _ids(layer: Layer, flow: Flow) -> Flow:
    ids = jnp.asarray(single(layer, flow))
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InvalidInputError(
            f"layer {layer.name!r} takes integer ids (time, *batch), but got {ids.dtype}"
            f"{list(ids.shape)}; give ids, without an axis of features"
        )
    if not flow.sequence and ids.ndim > 1:  # (batch, time)
        return Flow(jnp.swapaxes(ids, 0, 1), flow.mask)
    return flow._replace(xs=ids)
