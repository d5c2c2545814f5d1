"""`Model`, which every reader returns and every writer takes: layers and their parameters."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Cell, Params
from rnnjax.checks import check_flag, check_instance
from rnnjax.engine import Auto, Method
from rnnjax.engine.core.masking import expand
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Carries, Context, Dense, Embedding, Flow, Layer, Recurrent
from rnnjax.interop.options import KNOWN, check_options
from rnnjax.layers import Bidirectional, Stack

Result = tuple[Carries, Any]
"""The carries after the last step, and the outputs."""


class Network(abc.ABC):
    """The layers of a model and the order in which they run, without parameters.

    A network is a frozen dataclass like a cell: hashable, so it is static under ``jit``.
    """

    layer_list: tuple[Layer, ...]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, in the order in which they run."""
        return {layer.name: layer for layer in self.layer_list}

    @abc.abstractmethod
    def run(self, params: Params, xs: Any, carry: Carries, mask: Any, context: Context) -> Result:
        """Run the layers over ``xs``; ``carry`` has entries for some recurrent layers or none."""

    time_first: bool = True

    @property
    def axes(self) -> str:
        """The order of axes of inputs and outputs, in words."""
        return "time first" if self.time_first else "batch first"

    def num_steps(self, params: Params, xs: Any) -> Any:
        """The number of time steps in ``xs``: its first axis, unless a network says otherwise."""
        return np.shape(xs)[0 if self.time_first else 1]

    def wiring(self, name: str) -> str:
        """Say what a layer takes, if it is not the output of the layer before."""
        return ""

    @property
    def recurrent(self) -> Mapping[str, Recurrent]:
        """The recurrent layers by the names of their states."""
        return {n: layer for n, layer in self.uses.items() if isinstance(layer, Recurrent)}

    @property
    def uses(self) -> Mapping[str, Layer]:
        """The layers by the names of their states, one for each use."""
        return self.layers

    @property
    def stateful(self) -> Mapping[str, Layer]:
        """The layers with a state, by its name: recurrent ones, and convolutions of the past."""
        return {name: layer for name, layer in self.uses.items() if layer.has_state}

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carries:
        """Return the state at the start of a sequence, for each layer with a state by name."""
        return {
            name: layer.initial_carry(params.get(layer.name, {}), batch_shape, dtype)
            for name, layer in self.stateful.items()
        }


def _turned(xs: Any, as_it_is: bool) -> Any:
    """Exchange the first two axes, batch and time."""
    if as_it_is:
        return xs
    for x in jax.tree.leaves(xs):
        if jnp.ndim(x) < 2:
            raise InvalidInputError(
                f"xs should have a batch and a time, but is {np.shape(x)}; give a batch of one row"
            )
    return jax.tree.map(lambda x: jnp.swapaxes(jnp.asarray(x), 0, 1), xs)


def _marked(flow: Flow) -> Flow:
    """Arrays that follow from their mask, in the place of that."""
    mask = flow.mask
    if mask is None:
        return flow
    xs = jax.tree.map(lambda x: jnp.where(expand(mask, x), x, jnp.zeros_like(x)), flow.xs)
    return Flow(xs, None, flow.sequence)


class Input(NamedTuple):
    """An input of a `Functional`, or of a graph of ONNX.

    Attributes:
        name: the name of the input.
        shape: the shape without the batch; time is its first axis, and None is any size. For ONNX
            the whole shape. None if even the number of axes is unknown, as in a `Sequential`.
        dtype: the name of the type.
        sequence: whether it has a time axis. Ids or a mask, ``(batch, time)`` in the graph, are
            then passed and returned like the others.
    """

    name: str
    shape: Any
    dtype: str = "float32"
    sequence: bool = True


class Value(NamedTuple):
    """A value that goes from one call to another.

    Attributes:
        source: the name of an input, or of a call.
        output: the index of its output; the states of a recurrent layer come after its outputs.
    """

    source: str
    output: int = 0

    def __str__(self) -> str:
        return f"{self.source}[{self.output}]" if self.output else self.source


class Call(NamedTuple):
    """A use of a layer.

    Attributes:
        layer: the name of the layer.
        name: the name of the call and its state, distinct from all inputs: that of the layer,
            unless the layer is used again.
        takes: its inputs.
        states: the leaves of its initial state, or none.
        mask: True for the mask of its first input, False for none, or the value that is the mask.
    """

    layer: str
    name: str
    takes: tuple[Value, ...]
    states: tuple[Value, ...] = ()
    mask: Value | bool = True

    @property
    def reads(self) -> list[Value]:
        """All values that the call reads: inputs, states and mask."""
        return [*self.takes, *self.states, *([self.mask] if isinstance(self.mask, Value) else [])]


@dataclasses.dataclass(frozen=True)
class Functional(Network):
    """A graph of layers, like Keras's functional models; `Sequential` makes the simple one.

    Pass inputs as a tuple in order or as a dict by name; a single input is one array. Outputs have
    the same form.

    Args:
        inputs: the inputs of the graph.
        layer_list: the layers, with distinct names; a layer may be used more than once.
        calls: the calls, in an order in which they can run.
        outputs: the values that are outputs.
        names: the names of the outputs if they are a dict; None for a tuple.
        time_first: whether time is before the batch in all arrays with a time axis.
    """

    inputs: tuple[Input, ...]
    layer_list: tuple[Layer, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Value, ...]
    names: tuple[str, ...] | None = None
    time_first: bool = True

    @property
    def is_row(self) -> bool:
        """Whether it is a `Sequential`, whose input has no name and any shape."""
        return self.inputs[0].shape is None

    @property
    def uses(self) -> Mapping[str, Layer]:
        """The layers by the names of their states, one for each use."""
        layers = self.layers  # built anew each time
        return {call.name: layers[call.layer] for call in self.calls}

    def num_steps(self, params: Params, xs: Any) -> Any:
        """The number of time steps in the one input; raise InvalidInputError for several."""
        if len(self.inputs) > 1:
            raise InvalidInputError(
                f"mask, lengths and resets are for a model of one input, but this has "
                f"{len(self.inputs)}; mark steps by the layers' masks"
            )
        return super().num_steps(params, self._given(xs)[0])

    def wiring(self, name: str) -> str:
        """The layers that a layer takes from, for each of its uses."""
        if self.is_row:
            return ""
        uses = (f"({', '.join(map(str, c.reads))})" for c in self.calls if c.layer == name)
        return " of " + ", ".join(uses)

    def run(self, params: Params, xs: Any, carry: Carries, mask: Any, context: Context) -> Result:
        """Run the calls in their order."""
        if mask is not None or context.resets is not None:
            self.num_steps(params, xs)  # raises where marks of time mean nothing
        given = None if mask is None else jnp.asarray(mask)
        arrays = zip(self._given(xs), self.inputs, strict=True)
        made = {one.name: [self._flow(x, one, given)] for x, one in arrays}
        layers, carries = self.layers, {}
        for i, call in enumerate(self.calls):
            flows = [made[value.source][value.output] for value in call.takes]
            came = flows[0].mask
            if isinstance(call.mask, Value):
                marks = made[call.mask.source][call.mask.output]
                valid = _turned(marks.xs, marks.sequence)  # most often (batch, time)
                flows[0] = flows[0]._replace(mask=valid if given is None else valid & given)
            elif not call.mask:
                flows[0] = flows[0]._replace(mask=given)
            layer, state = layers[call.layer], carry.get(call.name)
            if state is None and call.states and isinstance(layer, Recurrent):
                leaves = [made[value.source][value.output].xs for value in call.states]
                state = jax.tree.unflatten(jax.tree.structure(layer.cell.initial_carry()), leaves)
            if context.language == "steps":
                flows = [_marked(flow) for flow in flows]
            flow: Any = flows[0] if len(flows) == 1 else tuple(flows)
            key = None if context.key is None else jax.random.fold_in(context.key, i)
            with jax.named_scope(layer.name):
                here = dataclasses.replace(context, key=key)
                state, flow = layer.run(params.get(layer.name, {}), flow, state, here)
            if not call.mask and flow.sequence:
                flow = flow._replace(mask=came)
            made[call.name] = [flow]
            if layer.has_state:
                carries[call.name] = state
            if isinstance(layer, Recurrent):
                made[call.name] += [Flow(leaf, sequence=False) for leaf in jax.tree.leaves(state)]
        flows = [made[value.source][value.output] for value in self.outputs]
        ys = [_turned(flow.xs, self.time_first or not flow.sequence) for flow in flows]
        if self.names is not None:
            return carries, dict(zip(self.names, ys, strict=True))
        return carries, ys[0] if len(ys) == 1 else tuple(ys)

    def _flow(self, x: Any, one: Input, mask: Any) -> Flow:
        """Convert an input for the layers: time first, except two axes, which may be features."""
        if one.sequence and one.shape and len(one.shape) == 1 and jnp.ndim(x) == 2:
            return Flow(_turned(x, not self.time_first), mask, False)
        return Flow(_turned(x, self.time_first or not one.sequence), mask, one.sequence)

    def _given(self, xs: Any) -> Sequence[Any]:
        names = [one.name for one in self.inputs]
        if isinstance(xs, Mapping) and set(xs) == set(names):
            return [xs[name] for name in names]
        if self.is_row:
            return [xs]
        given = xs if isinstance(xs, tuple | list) else (xs,)
        if isinstance(xs, Mapping) or len(given) != len(names):
            came = sorted(map(str, xs)) if isinstance(xs, Mapping) else len(given)
            raise InvalidInputError(
                f"xs should be arrays for the inputs {', '.join(names)}, as a tuple or a dict by "
                f"name, but has {came}; see print(model)"
            )
        return given


def Sequential(layer_list: Sequence[Layer], time_first: bool = True) -> Functional:
    """Layers that run one after the other: a `Functional` whose one input has any shape.

    Args:
        layer_list: the layers, first to last, with distinct names.
        time_first: whether inputs and outputs have time before the batch.

    Raises:
        InvalidInputError: there is no layer, an entry is not a `Layer`, or two have one name.
    """
    strange = [layer for layer in layer_list if not isinstance(layer, Layer)]
    if strange or not layer_list:
        raise InvalidInputError(
            f"a Sequential is made of at least one layer, such as Recurrent('lstm', "
            f"LSTMCell(50)), but got {strange[0] if strange else 'none'}"
        )
    names = [layer.name for layer in layer_list]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInputError(f"layers need own names, but {twice[0]} occurs twice; rename")
    calls = (Call(name, name, (Value(at),)) for at, name in itertools.pairwise(["", *names]))
    one = (Input("", None),)
    return Functional(one, (*layer_list,), (*calls,), (Value(names[-1]),), None, time_first)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that came from another framework, or goes to one.

    Attributes:
        network: the layers and the order in which they run; hashable.
        params: the parameters by name of the layer. Those of a recurrent layer are its cell's:
            ``rnnjax.unroll(model.layers["lstm"].cell, model.params["lstm"], xs)`` runs it alone.
        origin: details of the source that layers and parameters do not hold, such as the prefixes
            of a state dict. Only the writer of the same format reads it, so that an unchanged model
            goes back unchanged. No two formats share a name.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> carry, ys = model(jnp.ones((10, 8, 3)))
    >>> carry, ys = model.apply(model.params, jnp.ones((10, 8, 3)), carry)  # continues from there
    >>> ys.shape, carry["rnn"].hidden.shape
    ((10, 8, 5), (8, 5))
    >>> print(model)
    layer  what it is   parameters
    rnn    LSTMCell(5)  180  bias (20,), kernel (3, 20), recurrent_kernel (5, 20)
    axes   time first
    """

    network: Network
    params: Params
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cell: Cell, params: Params, name: str = "rnn") -> "Model":
        """A model of one recurrent layer: a cell, a `rnnjax.Stack`, a `rnnjax.Bidirectional`.

        Raises:
            InvalidInputError: ``cell`` is none of these.
        """
        check_instance("cell", cell, Cell, "a Cell such as rnnjax.LSTMCell(50), before params")
        return cls(Sequential((Recurrent(name, cell),)), {name: params})

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, in the order in which they run."""
        return self.network.layers

    def with_params(self, params: Params) -> "Model":
        """Return the model with other parameters, for example after training.

        Raises:
            InvalidInputError: they have another structure, or another shape somewhere.
        """
        ours, theirs = map(_shapes, (self.params, params))
        differing = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))[:6]
        if differing:
            listed = "; ".join(f"{k} {ours.get(k)}, got {theirs.get(k)}" for k in differing)
            raise InvalidInputError(
                f"params do not belong to this model: expected {listed}; train from model.params"
            )
        return dataclasses.replace(self, params=params)

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carries:
        """The state with which a sequence begins: by name, that of each layer that has one.

        These are the recurrent layers, and causal convolutions, which keep the steps before.
        """
        return self.network.initial_carry(self.params, batch_shape, dtype)

    def __call__(self, xs: Any, carry: Any = None, **semantics: Any) -> tuple[Any, Any]:
        """`apply` with the model's own parameters."""
        return self.apply(self.params, xs, carry, **semantics)

    def apply(
        self,
        params: Params,
        xs: Any,
        carry: Carries | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
        method: Method = Auto(),
    ) -> Result:
        """Run the model; a pure function, to be jitted and differentiated.

        Args:
            params: like ``self.params``.
            xs: ``(time, *batch, features)``, time first unless ``print(model)`` says otherwise;
                integer ids ``(time, *batch)`` if the first layer takes ids; a tuple or a dict by
                name if there are several inputs.
            carry: the state before the first step, by name of the layer. Layers that are left out
                begin with their initial carry.
            lengths: the number of valid steps of each row, as in `rnnjax.unroll`.
            mask: which steps are valid, as in `rnnjax.unroll`.
            resets: where new sequences begin, as in `rnnjax.unroll`.
            key: a random key for dropout; without it there is none, as for prediction.
            method: how to run the recurrent layers, as in `rnnjax.unroll`.

        Returns:
            the carry after the last step, and the outputs: ``(time, *batch, size)``, or
            ``(*batch, size)`` after a layer that returns only its last output.

        Raises:
            InvalidInputError: ``params`` is not a dict, ``carry`` names an unknown layer, or an
                argument does not fit; see `rnnjax.unroll`.
        """
        carry = {} if carry is None else carry
        known = set(self.network.stateful)
        if not isinstance(carry, Mapping) or not set(carry) <= known:
            came = sorted(map(str, carry)) if isinstance(carry, Mapping) else type(carry).__name__
            raise InvalidInputError(
                f"carry must be a dict with entries for some of {sorted(known)}, but is {came}; "
                "start from model.initial_carry(batch_shape), or leave it out"
            )
        check_instance("params", params, Mapping, "a dict like model.params")
        if lengths is not None:
            lengths = jnp.asarray(lengths)
            if not jnp.issubdtype(lengths.dtype, jnp.integer):
                raise InvalidInputError(
                    f"lengths must be integers, but are {lengths.dtype}; give booleans as mask"
                )
            steps = jnp.arange(self.network.num_steps(params, xs))
            valid = steps.reshape(-1, *[1] * lengths.ndim) < lengths
            mask = valid if mask is None else valid & jnp.asarray(mask)
        context = Context(resets=resets, key=key, method=method)
        return self.network.run(params, xs, carry, mask, context)

    def __str__(self) -> str:
        """A table of the layers with the names and shapes of their parameters."""
        rows = [("layer", "what it is", "parameters")]
        for name in dict.fromkeys([*self.layers, *self.params]):
            layer = self.layers.get(name, "arrays of the graph")
            shapes = _shapes(self.params.get(name, {}))
            listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
            count = sum(map(math.prod, shapes.values()))
            shown = repr(name)[1:-1]  # names of files may hold what moves a terminal
            kind = f"{layer}{self.network.wiring(name)}"
            rows.append((shown, kind, f"{count:,}  {listed}" if shapes else "none"))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{name:{widths[0]}}  {kind:{widths[1]}}  {shapes}" for name, kind, shapes in rows]
        return "\n".join([*lines, f"{'axes':{widths[0]}}  {self.network.axes}"])


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return dict(zip(paths, (np.shape(leaf) for _, leaf in leaves), strict=True))


def check_model(model: Any) -> None:
    """Raise InvalidInputError unless it is a model."""
    wanted = "a rnnjax.interop.Model, such as Model.of(cell, params) or what a load returns"
    check_instance("model", model, Model, wanted)


def with_layers(model: Model, what: str) -> Model:
    """The model, for ``what`` holds layers; raise InvalidInputError if it is a graph of ONNX."""
    check_model(model)
    if not isinstance(model.network, Functional):
        raise InvalidInputError(
            f"{what} holds layers, but this model is a graph of ONNX; keep it as *.onnx"
        )
    return model


def with_axes(model: Model, time_first: bool) -> Model:
    """The model whose data has time first, or batch first."""
    check_flag("time_first", time_first)
    network: Any = model.network
    return dataclasses.replace(model, network=dataclasses.replace(network, time_first=time_first))


WithParameters = Recurrent | Dense | Embedding
"""The layers that are read of parameters; the others a caller says."""


def with_parameters(model: Model, where: str) -> list[tuple[str, WithParameters, Any]]:
    """The layers that have parameters, with these, by their names."""
    check_model(model)
    found: list[tuple[str, WithParameters, Any]] = []
    for name in dict.fromkeys([*model.layers, *model.params]):
        layer = model.layers.get(name)
        if isinstance(layer, WithParameters) and type(layer) in KNOWN and name in model.params:
            check_options(layer, (), repr(name), where)
            found.append((name, layer, model.params[name]))
        elif isinstance(layer, WithParameters) and name not in model.params:
            raise InvalidInputError(f"params have no entry for {name!r}; make them with its init")
        elif model.params.get(name):
            raise InteropError(f"{where} has no module for {name!r}, {layer!r:.80}; leave it out")
    return found


def rows_of(
    name: str, cell: Cell, params: Any, where: str
) -> Iterator[Sequence[tuple[Cell, Params]]]:
    """Yield the directions of each layer of a `Stack`, or of one cell, with their parameters."""
    several = type(cell) is Stack  # a class derived from it may compute something else
    rows = cells_of(name, cell, params, where) if several else [(cell, params)]
    for i, (row, own) in enumerate(rows):
        own_name = f"{name}[{i}]" if several else name
        if type(row) is not Bidirectional:
            yield [(row, own)]
            continue
        if row.merge != "concat":
            raise InteropError(
                f"{where} concatenates both directions, but {own_name!r} has merge={row.merge!r}; "
                "write it with merge='concat', and merge in code there"
            )
        yield cells_of(own_name, row, own, where)


def cells_of(name: str, cell: Any, params: Any, where: str) -> list[tuple[Cell, Params]]:
    """The cells of a `Stack`, or of both directions, with their parameters."""
    check_options(cell, (), repr(name), where)
    count = len(cell.cells)
    if not isinstance(params, tuple) or len(params) != count:
        raise InvalidInputError(
            f"params of {name!r} should be a tuple with {count} entries, or Directions of two, but "
            f"are {type(params).__name__}; take those of model.params"
        )
    return [*zip(cell.cells, params, strict=True)]
