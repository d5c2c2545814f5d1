"""Convert the config of a Keras model to a network, whose layers run in Keras's order."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from rnnjax.errors import InteropError
from rnnjax.interop.keras.layers import LARGEST, MODELS, RECURRENT, Entry, layer_of, layers_in
from rnnjax.interop.keras.operators import MERGES, OPERATORS, Operation, TimeDistributed, keeps_mask
from rnnjax.interop.layers import Activation, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.interop.model import Call, Functional, Input, Sequential, Value

_TENSORS = ("query", "value", "key", "x1", "x2")  # by which calls name arrays that they take
_SAME_AXES = {
    kind for kind, row in OPERATORS.items() if row.arrays != (1, 1) or "dtype" in row.options
} - {"Dot"}  # of (batch, time), where no layer has seen a time
_MOST_CALLS = 2**14


def network_of(kind: str, config: Any, version: float) -> Functional:
    """The network of a model; models that are layers of it are the layers that they are made of."""
    graph = _Graph(version)
    return graph.network(*graph.model(kind, config, None))


class _Tensor(NamedTuple):
    """A tensor of the model, with its origin."""

    value: Value  # where it comes from in the network
    inputs: frozenset[str] = frozenset()  # those of the model whose axes it has
    mask: Any = None  # what its mask is made of, where it has one by itself
    masked_by: str = ""  # the layer that this mask comes from
    made: Any = None  # what it is made of, if it might be a mask that is written in the graph


_Ref = tuple[str, int, int]
"""A tensor in a config: which layer it comes from, which use of that, and which output."""


class _Use(NamedTuple):
    """A call of a layer in a config: of tensors there, and of those that they are."""

    takes: tuple[Any, ...]  # the tensors that it is called with
    arguments: tuple[Any, ...]  # these as None, among them the numbers next to them
    options: Mapping[str, Any]  # the other arguments of the call
    states: tuple[Any, ...]  # with which a recurrent layer begins
    masks: tuple[Any, ...]  # one, or of a model one for each that it takes


Made = tuple[list[_Tensor], tuple[str, ...] | None]
"""The outputs of a model, and their names if they are a dict."""


class _Graph:
    """The calls of a model so far."""

    def __init__(self, version: float):
        self.version, self.left = version, _MOST_CALLS
        self.each_step = False  # whether it is in a model that is applied at each step
        self.inputs: dict[str, Entry] = {}
        self.calls: dict[str, Call] = {}
        self.layers: dict[str, Layer] = {}
        self.configs: dict[str, Any] = {}  # of the layers, in the order that they have there
        self.uses = collections.Counter[str]()
        self.looked_up: set[str] = set()  # inputs that are ids
        self.marks: set[str] = set()  # inputs that are masks

    def model(self, kind: str, config: Any, given: list[_Tensor] | None, own: str = "") -> Made:
        """Call a model: the outermost makes its inputs, the layers of another have a prefix."""
        listed = layers_in(kind, config, self.version)
        self.count(len(listed))
        if kind != "Sequential":
            return self._functional(config, listed, given, own)
        first = listed[0][0]
        if first.kind != "InputLayer":
            known = {k: v for k, v in first.config.items() if k == "batch_input_shape" and v}
            first = Entry("xs", "InputLayer", known, self.version)
        outputs, names = self._begin([first], given, own), None
        for entry, value in listed:
            if entry.kind != "InputLayer":
                use = _Use((outputs[0],), (), {}, (), (None,))
                outputs, names = self.use(entry, value, use, own)
                states = _states(self.layers.get(f"{own}{entry.name}"))
                outputs = outputs[: len(outputs) - states]
        return outputs, names

    def _functional(self, config: Any, listed: Any, given: list[_Tensor] | None, own: str) -> Made:
        # Inputs and outputs in dicts are counted in the order of their keys.
        starts, told = _tensors(config.get("input_layers")), config.get("output_layers")
        names = tuple(sorted(told)) if isinstance(told, dict) and not is_tensor(told) else None
        each = [told[name] for name in names] if names else [told] if is_tensor(told) else told
        if not starts or not each:
            raise _damaged("a model should have inputs and outputs, but has none")
        if not all(map(is_tensor, each)):
            raise InteropError(
                f"the outputs of a model should be tensors, one, in a list, or in a dict by name, "
                f"but are {told!r:.80}; give them so"
            )
        level = _Level(self, listed, own)
        begin = self._begin([level.nodes[name][0] for name, _, _ in starts], given, own)
        level.done = {(ref[0], 0): [one] for ref, one in zip(starts, begin, strict=True)}
        # In the order of the config, and functions of keras.ops where they are due.
        for here in level.uses:
            if here not in level.done and not level.nodes[here[0]][0].kind.startswith("ops."):
                level.run(here)
        return [level.tensor(_tensor(one), at_end=True) for one in each], names

    def count(self, more: int) -> None:
        """Layers and calls of them: of models in models, each called twice, they are millions."""
        self.left -= more
        if self.left < 0:
            raise InteropError(
                f"its models stand for more than {_MOST_CALLS:,} calls of layers; load them apart"
            )

    def _begin(self, entries: list[Entry], given: list[_Tensor] | None, own: str) -> list[_Tensor]:
        if given is None:
            self.inputs = {entry.name: entry for entry in entries}
            given = [_Tensor(Value(name), frozenset({name})) for name in self.inputs]
        if len(given) != len(entries):
            raise _damaged(f"model {own[:80]!r} takes {len(entries)} arrays, but gets {len(given)}")
        return [*given]

    def use(self, entry: Entry, value: Any, use: _Use, own: str) -> Made:
        """Return all outputs of a layer and then its states, or all outputs of a model."""
        entry = dataclasses.replace(entry, name=f"{own}{entry.name}")
        if (model := entry.model) is None:
            if self.each_step:
                entry = dataclasses.replace(entry, kind="TimeDistributed", config={"layer": value})
            return self._call(entry, value, use), None
        more: Any = any(a is not None for a in use.arguments) or use.options or use.states
        masks = use.masks * len(use.takes) if len(use.masks) == 1 else use.masks
        for one, mask in zip(use.takes, masks, strict=True):
            more = more or (mask is not None and (one.mask is None or mask.made != one.mask))
        if more:
            raise InteropError(
                f"model {entry.name[:80]!r}, a layer of the model, is called with a number, an "
                "option, states or a mask; call it with arrays alone"
            )
        outside, self.each_step = self.each_step, self.each_step or model is not entry
        made = self.model(model.kind, model.config, [*use.takes], f"{entry.name}.")
        self.each_step = outside
        return made

    def _call(self, entry: Entry, value: Any, use: _Use) -> list[_Tensor]:
        name, first, mask = entry.name, use.takes[0], use.masks[0]
        # Keras 3 gives no mask to a layer that is called with states, but returns it after it.
        natural = not use.states or self.version < 3
        if natural and mask is not None and first.mask is not None and mask.made == first.mask:
            mask = None  # it comes by itself
        came = [one.masked_by for one in use.takes if one.mask is not None]
        masked_by = name if mask is not None else (came or [""])[0]
        apart = entry.kind == "Bidirectional" and entry.config.get("merge_mode", "") is None
        if apart:  # both are cut out of one array, without its mask
            entry = dataclasses.replace(entry, config={**entry.config, "merge_mode": "concat"})
        layer, number = layer_of(_told(entry, use)), self.uses[name]
        if entry.kind == "Bidirectional" and isinstance(layer, Recurrent) and not masked_by:
            layer = dataclasses.replace(layer, masked_outputs="zero")  # which Keras 3 has as well
        self.uses[name] += 1
        called = f"{name}:{number}" if number else name
        taken = called in self.calls or called in self.inputs
        if taken or self.configs.setdefault(name, value) is not value:
            raise _twice(name)
        if self.layers.setdefault(name, layer) != layer:
            raise InteropError(
                f"layer {name[:80]!r} is called in two ways, {self.layers[name]} and {layer}; "
                "give each place a layer of its own"
            )
        _check_call(layer, entry, len(use.takes), masked_by)
        begin = _states(layer)
        if use.states and len(use.states) != begin:
            raise _damaged(f"layer {name[:80]!r} has {begin} states, but gets {len(use.states)}")
        inputs = first.inputs.union(*(one.inputs for one in use.takes))
        if isinstance(layer, Embedding):
            self.looked_up |= inputs
        if mask is not None:
            self.marks |= mask.inputs
        takes, states = (tuple(one.value for one in some) for some in (use.takes, use.states))
        marks = natural if mask is None else mask.value
        self.calls[called] = Call(name, called, takes, states, marks)
        made = _Tensor(Value(called), inputs if _keeps_axes(layer) else frozenset())
        if entry.kind == "ops.NotEqual":
            made = made._replace(made=(first.value, tuple(use.arguments)))
        elif entry.kind == "ops.Any" and entry.config.get("axis") in (-1, [-1]):
            made = made._replace(made=("any", first.made))
        elif isinstance(layer, Masking):
            own: Any = ("any", (first.value, (None, layer.value)))
            made = made._replace(mask=own, masked_by=name)
        elif isinstance(layer, Embedding) and layer.mask_zero:
            made = made._replace(mask=(first.value, (None, 0)), masked_by=name)
        elif masked_by and keeps_mask(layer):
            same_mask = mask is None and first.mask is not None and entry.kind not in MERGES
            own, by = (first.mask, first.masked_by) if same_mask else (object(), name)
            made = made._replace(mask=own, masked_by=by)
        ends = [made]
        if apart:
            if masked_by and keeps_mask(layer):
                raise InteropError(
                    f"layer {name[:80]!r} gives both directions apart, which is not read behind "
                    f"the mask of {masked_by[:80]!r}; set merge_mode='concat', or take no mask"
                )
            ends = [*self._halves(called, layer, made)]
        return [*ends, *(_Tensor(Value(called, i)) for i in range(1, 1 + begin))]

    def _halves(self, called: str, both: Any, made: _Tensor) -> Iterator[_Tensor]:
        """Each direction of an array of both."""
        size = both.cell.forward.output_size
        for way, part in (("forward", [None, size, None]), ("backward", [size, None, None])):
            key = [[None] * 3, {"class_name": "__ellipsis__"}, part]
            half = Entry(f"{called}_{way}", "ops.GetItem", {"key": key}, self.version)
            yield from self._call(half, key, _Use((made,), (None,), {}, (), (None,)))

    def network(self, outputs: list[_Tensor], names: Any) -> Functional:
        needed = {one.value.source for one in outputs}
        for call in reversed(self.calls.values()):
            if call.name in needed:
                needed |= {value.source for value in call.reads}
        calls = tuple(call for call in self.calls.values() if call.name in needed)
        used = {call.layer for call in calls}
        layers = tuple(self.layers[name] for name in self.configs if name in used)
        inputs = tuple(
            _input(entry, name in self.looked_up, name in self.marks)
            for name, entry in self.inputs.items()
        )
        return _simplest(
            Functional(inputs, layers, calls, tuple(one.value for one in outputs), names)
        )


class _Level:
    """The layers of one functional model, each called when all are or when it is asked for."""

    def __init__(self, graph: _Graph, listed: list[tuple[Entry, Any]], own: str):
        self.graph, self.own = graph, own
        self.nodes: dict[str, tuple[Entry, Any]] = {}
        self.uses: dict[tuple[str, int], _Use] = {}
        self.done: dict[tuple[str, int], list[_Tensor]] = {}
        self.new = any(_is_keras_3(value.get("inbound_nodes")) for _, value in listed)
        for entry, value in listed:
            # A node has its name next to its config, and others call it by that.
            name, nodes = value.get("name", entry.name), value.get("inbound_nodes")
            # A function of keras.ops is there by its name, as if it were a layer of Keras 3; in .h5
            # no module says so. Of layers a SpatialDropout1D alone tells not if it is trained.
            layer = "trainable" in entry.config or entry.kind == "SpatialDropout1D"
            layer = layer or value.get("module") == "keras.layers"
            if not layer and _is_keras_3(nodes) and entry.kind not in MODELS:
                entry = dataclasses.replace(entry, kind=f"ops.{entry.kind}")
            if not isinstance(name, str) or name in self.nodes:
                raise _twice(name)
            self.nodes[name] = entry, value
            if entry.kind not in MODELS:
                graph.configs.setdefault(f"{own}{entry.name}", value)
            for i, use in enumerate(_uses(entry, name, nodes)):
                graph.count(1)
                self.uses[name, i] = use

    def tensor(self, ref: _Ref, at_end: bool = False) -> _Tensor:
        layer, use, output = ref
        kind = self.nodes[layer][0].kind
        # Calls of models have numbers from 1 on: in Keras 2, and in Keras 3 among the outputs
        # alone. There those of a Sequential begin with 0.
        later = kind in MODELS and (not self.new or (at_end and kind != "Sequential"))
        here = (layer, use - later)
        outputs = self.done[here] if here in self.done else self.run(here)
        return outputs[output]

    def run(self, here: tuple[str, int]) -> list[_Tensor]:
        use = self.uses[here]
        self.done[here] = []  # of a layer that takes what it gives
        takes, states = (tuple(map(self.tensor, refs)) for refs in (use.takes, use.states))
        masks = tuple(None if ref is None else self.tensor(ref) for ref in use.masks)
        use = use._replace(takes=takes, states=states, masks=masks)
        self.done[here], _ = self.graph.use(*self.nodes[here[0]], use, self.own)
        return self.done[here]


@functools.lru_cache(256)
def _states(layer: Layer | None) -> int:
    if not isinstance(layer, Recurrent):
        return 0
    return len(jax.tree.leaves(jax.eval_shape(layer.cell.initial_carry)))


def _told(entry: Entry, use: _Use) -> Entry:
    """An operation with the arguments of its call; the other layers have none."""
    if entry.kind.startswith("ops.") and entry.kind not in OPERATORS:
        return entry  # of which it is said that it is not known
    known = OPERATORS[entry.kind].options if entry.kind in OPERATORS else {}
    more, numbers = dict(use.options), [a for a in use.arguments if a is not None]
    if "arguments" in known:
        more["arguments"] = use.arguments
    elif numbers or not set(more) <= set(known):
        said = ", ".join(map(str, [*numbers, *(f"{k}={v!r}" for k, v in more.items())]))[:80]
        where = f"layer {entry.name[:80]!r} is called with {said}, which is not read here"
        raise InteropError(f"{where}; leave it out, unless it changes what the layer computes")
    return dataclasses.replace(entry, config={**entry.config, **more})


def _check_call(layer: Layer, entry: Entry, count: int, masked_by: str) -> None:
    least, most = OPERATORS[layer.kind].arrays if isinstance(layer, Operation) else (1, 1)
    if not least <= count <= most:
        raise _damaged(f"layer {entry.name[:80]!r} takes {least} arrays or more, but gets {count}")
    makes = isinstance(layer, Masking) or (isinstance(layer, Embedding) and layer.mask_zero)
    inner = entry.config.get("layer") if entry.kind == "TimeDistributed" else None
    softmax = "Softmax" in (entry.kind, inner.get("class_name") if isinstance(inner, dict) else "")
    if masked_by and (makes or softmax):  # the layer of that name leaves out what is masked
        raise InteropError(
            f"layer {entry.name[:80]!r} comes after layer {masked_by[:80]!r}, which makes a "
            "mask, and would use or replace that; leave one of them out"
        )


def _keeps_axes(layer: Layer) -> bool:
    """Whether what it gives of ids or a mask, (batch, time), has their axes."""
    if not isinstance(layer, Operation):
        return isinstance(layer, Activation | Dropout)
    key = dict(layer.config).get("key", ())
    sliced = bool(key) and all(part is ... or isinstance(part, tuple) for part in key)
    return layer.kind in _SAME_AXES or sliced


def _simplest(network: Functional) -> Functional:
    """The layers in a row over time, if that is all that the graph says."""
    first, layers = network.inputs[0], network.layer_list
    odd = any(isinstance(layer, Operation | TimeDistributed) for layer in layers)
    # Keras has to know the sizes of a grid, which only the input of a graph says.
    if odd or not layers or not first.sequence or len(first.shape) > 2:
        return network
    row = Sequential(layers)
    begin = row.calls[0]._replace(takes=(Value(first.name),))
    same = dataclasses.replace(row, inputs=(first,), calls=(begin, *row.calls[1:]))
    return row if network == same else network


def _input(entry: Entry, looked_up: bool, masks: bool) -> Input:
    shape = entry.get("batch_shape", "batch_input_shape") or [None] * 3
    if not all(n is None or (isinstance(n, int) and 0 <= n <= LARGEST) for n in shape):
        raise _damaged(f"the shape of input {entry.name[:80]!r} is {shape!r:.80}")
    dtype = str(entry.config.get("dtype", "float32"))
    if looked_up or dtype.startswith(("int", "uint")):
        dtype = "int32"
    elif dtype != "bool":
        dtype = "float32"
    sequence = len(shape) > 2 or (len(shape) == 2 and (looked_up or masks))
    return Input(entry.name, tuple(shape[1:]), dtype, sequence)


def _is_keras_3(nodes: Any) -> bool:
    first = nodes[0] if isinstance(nodes, list) and nodes else None
    return isinstance(first, dict) and "args" in first  # a dict of Keras 2 has names of inputs


def _uses(entry: Entry, name: str, nodes: Any) -> Iterator[_Use]:
    """The uses of a layer, as Keras 3 writes them, or Keras 2."""
    for node in nodes or []:
        if _is_keras_3([node]):
            args, options = node["args"], node.get("kwargs") or {}
            if entry.kind == "ops.GetItem" and isinstance(args, list) and len(args) == 2:
                args, options = args[0], {"key": args[1]}
            found = [one for one in _found(args) if one is not None]
        else:
            found, options = [*_tensors(node)], {}
            for *_, more in (one for one in _leaves(node) if one and len(one) > 3):
                options |= more if isinstance(more, dict) else {"": more}
        options = options if isinstance(options, dict) else {"": options}
        options = {k: v for k, v in options.items() if v is not None}
        if not options.get("training"):
            options.pop("training", None)
        marks = tuple(_found(options.pop("mask", None)))
        known = (*_TENSORS, *options)  # in the order in which a layer takes them
        named = {key: refs for key in known if (refs := _refs(_found(options.get(key))))}
        options = {key: value for key, value in options.items() if key not in named}
        states = named.pop("initial_state", ())
        several = len(marks) > 1 and entry.kind not in MODELS
        several |= not all(isinstance(mark, tuple | None) for mark in marks)
        if several or not set(named) <= set(_TENSORS):
            what = "several masks" if several else sorted(named)
            raise InteropError(f"layer {name[:80]!r} is given {what} in its call; leave that out")
        found += [ref for refs in named.values() for ref in refs]
        takes = _refs(found)
        if entry.kind in RECURRENT:
            takes, states = takes[:1], (*takes[1:], *states)
        arguments = tuple(None if isinstance(a, tuple) else a for a in found)
        yield _Use(takes, arguments, options, states, marks)


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor, as Keras 3 writes it, or Keras 2."""
    if isinstance(value, dict):
        return value.get("class_name") == "__keras_tensor__"
    return isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str)


def _leaves(value: Any) -> list[Any]:
    """What lists and dicts hold, at any depth, in the order of their keys."""

    def whole(one: Any) -> bool:
        return one is None or is_tensor(one) or (isinstance(one, dict) and "class_name" in one)

    return jax.tree.leaves(value, is_leaf=whole)


def _found(value: Any) -> list[Any]:
    """The leaves, tensors among them as references."""
    return [_tensor(one) if is_tensor(one) else one for one in _leaves(value)]


def _refs(found: list[Any]) -> tuple[_Ref, ...]:
    return tuple(one for one in found if isinstance(one, tuple))


def _tensors(value: Any) -> list[_Ref]:
    """All tensors where there is nothing else."""
    found = [one for one in _found(value) if one is not None]
    for one in found:
        if not isinstance(one, tuple):
            raise _damaged(f"the graph should be made of lists, but has {one!r:.80}")
    return found


def _tensor(value: Any) -> _Ref:
    layer, use, output = value["config"]["keras_history"] if isinstance(value, dict) else value[:3]
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in (use, output)):
        raise _damaged(f"the graph should have [layer, use, output], but has {value!r:.80}")
    return str(layer), use, output


def _twice(name: Any) -> InteropError:
    return InteropError(f"two layers of the model have the name {name!r:.80}; rename one")


def _damaged(what: str) -> InteropError:
    return InteropError(f"{what}; its graph is damaged, get the file again")
