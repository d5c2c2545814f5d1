"""From the config of a Keras model to a network: its layers are called in order, as Keras does."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.layers import layer_of
from rnnjax.interop.keras.operators import OPERATORS, SEVERAL, Operation
from rnnjax.interop.keras.options import LARGEST, Entry, Version, is_model, layers_in
from rnnjax.interop.layers import Activation, Dropout, Embedding, Layer, Masking, Recurrent
from rnnjax.interop.model import Call, Functional, Input, Sequential, Value

_TENSORS = ("query", "value", "key", "x1", "x2")  # by which calls name arrays that they take
_LASTS = ("SimpleRNN", "LSTM", "GRU", "RNN", "CuDNNLSTM", "CuDNNGRU", "Bidirectional")
_MERGES = {kind for kind, row in OPERATORS.items() if row.mask and row.arrays == SEVERAL}
_KEEPS = {kind for kind, row in OPERATORS.items() if row.mask} | {
    "Dense", "Activation", "TimeDistributed", "Dropout", "SpatialDropout1D", "Softmax", "ReLU",
    "LeakyReLU", "ELU",
}  # fmt: skip
_SAME_AXES = {
    kind for kind, row in OPERATORS.items() if row.arrays != (1, 1) or "dtype" in row.options
} - {"Dot"}  # of (batch, time), where no layer has seen a time
_MOST_CALLS = 2**14


def network_of(kind: str, config: Any, version: Version) -> Sequential | Functional:
    """The network of a model; models that are layers of it are the layers that they are made of."""
    graph = _Graph(version)
    outputs, names = graph.model(kind, config, None)
    try:
        return graph.network(outputs, names)
    except InvalidInputError as error:
        raise InteropError(str(error)) from error


class _Tensor(NamedTuple):
    """A tensor of the model."""

    value: Value  # where it comes from in the network
    mask: Any = None  # what its mask is made of, where it has one by itself
    masked_by: str = ""  # the layer that this mask comes from
    made: Any = None  # what it is made of, if it might be a mask that is written in the graph


class _Ref(NamedTuple):
    """A tensor in a config: which layer it comes from, which use of that, and which output."""

    layer: str
    use: int = 0
    output: int = 0


class _Use(NamedTuple):
    """A call of a layer in a config."""

    takes: tuple[_Ref, ...]  # the tensors that it is called with
    arguments: tuple[Any, ...]  # these as None, among them the numbers that stand beside them
    options: Mapping[str, Any]  # what else the call is told
    states: tuple[_Ref, ...]  # with which a recurrent layer begins
    masks: tuple[_Ref | None, ...]  # one, or of a model one for each that it takes


class _Graph:
    """The calls of a model so far."""

    def __init__(self, version: Version):
        self.version, self.left = version, _MOST_CALLS
        self.inputs: list[Entry] = []
        self.calls: list[Call] = []
        self.layers: dict[str, Layer] = {}
        self.configs: dict[str, Any] = {}  # of the layers, in the order that they have there

    def model(
        self, kind: str, config: Any, given: Sequence[_Tensor] | None, own: str = ""
    ) -> tuple[list[_Tensor], tuple[str, ...] | None]:
        """The outputs of a model, and their names if they are a dict.

        The outermost makes its inputs itself; the layers of another are named ``own`` and a name.
        """
        listed = layers_in(kind, config)
        self.count(len(listed))
        if kind == "Sequential":
            return self._row(listed, given, own)
        if not isinstance(config, dict):
            raise InteropError(f"the config of a {kind} model should be a dict; it is damaged")
        # Inputs in dicts, and outputs of a model inside, are counted in the order of their keys.
        starts = [ref for _, ref, _ in _tensors(config.get("input_layers"), True)]
        ends = {p: ref for p, ref, _ in _tensors(config.get("output_layers"), given is not None)}
        keys = [path[0] if len(path) == 1 else path for path in ends]
        names = tuple(key for key in keys if isinstance(key, str)) or None
        if len(names or ()) != len(keys) and keys not in ([()], [*range(len(keys))]):
            raise InteropError(
                f"the outputs of a model should be tensors, one, in a list, or in a dict by name, "
                f"but are at {_short(keys)}; give them so"
            )
        if not starts or not ends:
            raise InteropError(
                "a model should have inputs and outputs, but has none; it is damaged"
            )
        level = _Level(self, listed, own)
        for ref in starts:
            if ref.layer not in level.nodes:
                raise InteropError(
                    f"the input {_short(ref.layer)} is no layer; the graph is damaged"
                )
        if given is None:
            given = self._begin([level.nodes[ref.layer][0] for ref in starts])
        self._check_given(own, len(starts), given)
        level.done = {(ref.layer, 0): [one] for ref, one in zip(starts, given, strict=True)}
        level.run_all()
        return [level.tensor(ref, at_end=True) for ref in ends.values()], names

    def _row(
        self, listed: list[tuple[Entry, Any]], given: Sequence[_Tensor] | None, own: str
    ) -> tuple[list[_Tensor], tuple[str, ...] | None]:
        first = listed[0][0]
        if first.kind != "InputLayer":
            known = {k: v for k, v in first.config.items() if k == "batch_input_shape" and v}
            first = Entry("xs", "InputLayer", known)
        given = self._begin([first]) if given is None else given
        self._check_given(own, 1, given)
        outputs, names = [*given], None
        for entry, value in listed:
            if entry.kind == "InputLayer":
                continue
            names = None
            name = f"{own}{entry.name}"
            if is_model(entry.kind):
                outputs, names = self.model(entry.kind, entry.config, outputs[:1], f"{name}.")
                continue
            entry = dataclasses.replace(entry, name=name)
            outputs = self.call(entry, value, outputs[:1])
            layer = self.layers[name]
            outputs = outputs[: 1 + (isinstance(layer, Recurrent) and not layer.merged)]
        return outputs, names

    def count(self, more: int) -> None:
        """Layers and calls of them: of models in models, each called twice, they are millions."""
        self.left -= more
        if self.left < 0:
            raise InteropError(
                f"models inside of the model stand for more than {_MOST_CALLS:,} calls of layers; "
                "load these models one by one"
            )

    def _begin(self, entries: list[Entry]) -> list[_Tensor]:
        self.inputs = entries
        return [_Tensor(Value(i)) for i in range(len(entries))]

    def _check_given(self, own: str, count: int, given: Sequence[_Tensor]) -> None:
        if len(given) != count:
            raise InteropError(
                f"model {own[:-1][:80]!r}, a layer of the model, should be called with {count} "
                f"arrays, but is called with {len(given)}; call it with its inputs"
            )

    def call(
        self,
        entry: Entry,
        value: Any,
        takes: Sequence[_Tensor],
        states: Sequence[_Tensor] = (),
        mask: _Tensor | None = None,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[_Tensor]:
        """All that a layer gives: its outputs, and behind these its states."""
        name, first = entry.name, takes[0]
        if self.configs.setdefault(name, value) is not value:
            raise InteropError(f"two layers of the model have the name {_short(name)}; rename one")
        layer = layer_of(_told(entry, arguments, options or {}), self.version)
        if self.layers.setdefault(name, layer) != layer:
            raise InteropError(
                f"layer {name[:80]!r} is called in two ways, {self.layers[name]} and {layer}; "
                "give each place a layer of its own"
            )
        if mask is not None and first.mask is not None and mask.made == first.mask:
            mask = None  # it comes by itself
        came = [one.masked_by for one in takes if one.mask is not None]
        masked_by = name if mask is not None else (came or [""])[0]
        _check_call(layer, entry, len(takes), masked_by)
        begin = _states(layer)
        if states and len(states) != begin:
            raise InteropError(
                f"layer {name[:80]!r} should begin with {begin} states, but is given "
                f"{len(states)}; the graph is damaged"
            )
        # Keras 3 hands no mask to a layer that is called with states, but lets it pass.
        natural = not states or self.version.number < 3
        self.calls.append(
            Call(name, name, tuple(one.value for one in takes), tuple(one.value for one in states),
                 natural if mask is None else mask.value)
        )  # fmt: skip
        source = len(self.inputs) + len(self.calls) - 1
        count = 1 + begin + (isinstance(layer, Recurrent) and not layer.merged)
        outputs = [_Tensor(Value(source, i)) for i in range(count)]
        if entry.kind == "ops.NotEqual":
            outputs[0] = outputs[0]._replace(made=(first.value, tuple(arguments)))
        elif entry.kind == "ops.Any" and entry.config.get("axis") in (-1, [-1]):
            outputs[0] = outputs[0]._replace(made=("any", first.made))
        elif isinstance(layer, Masking):
            marks: Any = ("any", (first.value, (None, layer.value)))
            outputs[0] = outputs[0]._replace(mask=marks, masked_by=name)
        elif isinstance(layer, Embedding) and layer.mask_zero:
            outputs[0] = outputs[0]._replace(mask=(first.value, (None, 0)), masked_by=name)
        elif masked_by and _keeps(entry, layer):
            same = mask is None and first.mask is not None and entry.kind not in _MERGES
            marks, by = (first.mask, first.masked_by) if same else (object(), name)
            outputs[0] = outputs[0]._replace(mask=marks, masked_by=by)
        return outputs

    def network(
        self, outputs: Sequence[_Tensor], names: tuple[str, ...] | None
    ) -> Sequential | Functional:
        """What the outputs need of the calls, as a row if that is all that the graph says."""
        first, needed = len(self.inputs), set[int]()
        stack = [one.value for one in outputs]
        while stack:
            source = stack.pop().source
            if source >= first and source not in needed:
                needed.add(source)
                stack += _values(self.calls[source - first])
        order = sorted(needed)
        places = {**{i: i for i in range(first)}, **{s: first + i for i, s in enumerate(order)}}

        def to(value: Value) -> Value:
            return value._replace(source=places[value.source])

        calls, count = [], collections.Counter[str]()
        for source in order:
            call = self.calls[source - first]
            number = count[call.layer]
            calls.append(
                Call(call.layer, f"{call.layer}:{number}" if number else call.layer,
                     tuple(map(to, call.takes)), tuple(map(to, call.states)),
                     to(call.mask) if isinstance(call.mask, Value) else call.mask)
            )  # fmt: skip
            count[call.layer] += 1
        layers = tuple(self.layers[name] for name in self.configs if name in count)
        ends = tuple(to(one.value) for one in outputs)
        inputs = tuple(
            _input(entry, *_reaches(calls, self.layers, Value(i), first))
            for i, entry in enumerate(self.inputs)
        )
        return _simplest(Functional(inputs, layers, tuple(calls), ends, names))


class _Level:
    """The layers of one functional model, each called when all are or when it is asked for."""

    def __init__(self, graph: _Graph, listed: list[tuple[Entry, Any]], own: str):
        self.graph, self.own = graph, own
        self.nodes: dict[str, tuple[Entry, Any]] = {}
        self.uses: dict[tuple[str, int], _Use] = {}
        self.done: dict[tuple[str, int], list[_Tensor]] = {}
        self.begun: set[tuple[str, int]] = set()
        self.new = any(_is_keras_3(value.get("inbound_nodes")) for _, value in listed)
        for entry, value in listed:
            # A node has its name beside its config, and that is what others call it by.
            name, nodes = value.get("name", entry.name), value.get("inbound_nodes")
            # A function of keras.ops is there by its name, as if it were a layer of Keras 3. Of
            # those SpatialDropout1D alone does not say either whether it is trained.
            layer = "trainable" in entry.config or entry.kind == "SpatialDropout1D"
            if not layer and _is_keras_3(nodes) and not is_model(entry.kind):
                entry = dataclasses.replace(entry, kind=f"ops.{entry.kind}")
            if not isinstance(name, str) or name in self.nodes:
                raise InteropError(
                    f"two layers of the model have the name {_short(name)}; rename one"
                )
            self.nodes[name] = entry, value
            if not is_model(entry.kind):
                graph.configs.setdefault(f"{own}{entry.name}", value)
            for i, use in enumerate(_uses(entry, name, nodes)):
                graph.count(1)
                self.uses[name, i] = use

    def run_all(self) -> None:
        """Call the layers in the order of the config, functions of keras.ops where they are due."""
        for here in self.uses:
            if here not in self.done and not self.nodes[here[0]][0].kind.startswith("ops."):
                self._run(here)

    def tensor(self, ref: _Ref, at_end: bool = False) -> _Tensor:
        """A tensor of this level."""
        kind = self.nodes[ref.layer][0].kind if ref.layer in self.nodes else ""
        # Calls of models have numbers from 1 on: in Keras 2, and in Keras 3 among the outputs
        # alone. There those of a Sequential begin with 0.
        later = is_model(kind) and (not self.new or (at_end and kind != "Sequential"))
        here = (ref.layer, ref.use - later)
        outputs = self.done[here] if here in self.done else self._run(here)
        if ref.output >= len(outputs):
            raise InteropError(
                f"the graph goes on with output {ref.output} of a layer that gives "
                f"{len(outputs)}; it is damaged"
            )
        return outputs[ref.output]

    def _run(self, here: tuple[str, int]) -> list[_Tensor]:
        name, _ = here
        if here not in self.uses:
            raise InteropError(
                f"the graph mentions {_short(name)}, which is no layer, or a use of it that "
                "is not there; it is damaged"
            )
        if here in self.begun:
            raise InteropError(f"layer {name[:80]!r} takes what it gives; it is damaged")
        self.begun.add(here)
        (entry, value), use = self.nodes[name], self.uses[here]
        entry = dataclasses.replace(entry, name=f"{self.own}{entry.name}")
        takes, states = [[*map(self.tensor, refs)] for refs in (use.takes, use.states)]
        masks = [None if ref is None else self.tensor(ref) for ref in use.masks]
        if is_model(entry.kind):
            outputs = self._model(entry, use, takes, masks)
        else:
            more = use.arguments, use.options
            outputs = self.graph.call(entry, value, takes, states, masks[0], *more)
        self.done[here] = outputs
        return outputs

    def _model(
        self, entry: Entry, use: _Use, takes: list[_Tensor], masks: list[_Tensor | None]
    ) -> list[_Tensor]:
        numbers = [a for a in use.arguments if a is not None]
        more = [*map(str, numbers), *use.options, *map(str, use.states)]
        masks = masks * len(takes) if len(masks) == 1 else masks
        if more or len(masks) != len(takes):
            raise InteropError(
                f"model {entry.name[:80]!r}, a layer of the model, should be called with arrays "
                f"alone, but is called with {', '.join(more) or 'other masks'}; leave that out"
            )
        for one, mask in zip(takes, masks, strict=True):
            if mask is not None and (one.mask is None or mask.made != one.mask):
                raise InteropError(
                    f"model {entry.name[:80]!r}, a layer of the model, is given a mask in its "
                    "call, which is not known here; leave it out"
                )
        return self.graph.model(entry.kind, entry.config, takes, f"{entry.name}.")[0]


@functools.lru_cache(256)
def _states(layer: Layer) -> int:
    """How many arrays its state is."""
    if not isinstance(layer, Recurrent):
        return 0
    return len(jax.tree.leaves(jax.eval_shape(layer.cell.initial_carry)))


def _values(call: Call) -> list[Value]:
    """All that a call takes."""
    masks = [call.mask] if isinstance(call.mask, Value) else []
    return [*call.takes, *call.states, *masks]


def _told(entry: Entry, arguments: Sequence[Any], options: Mapping[str, Any]) -> Entry:
    """An operation with what its call is told; the others are told nothing."""
    if entry.kind.startswith("ops.") and entry.kind not in OPERATORS:
        return entry  # of which it is said that it is not known
    known = OPERATORS[entry.kind].options if entry.kind in OPERATORS else {}
    config, numbers = dict(entry.config), [a for a in arguments if a is not None]
    if "arguments" in known:
        return dataclasses.replace(entry, config={**config, **options, "arguments": arguments})
    if numbers or not set(options) <= set(known):
        said = [*numbers, *(f"{key}={value!r}" for key, value in options.items())]
        raise InteropError(
            f"layer {entry.name[:80]!r} is called with {', '.join(map(str, said))[:80]}, which is "
            "not known here; leave it out"
        )
    return dataclasses.replace(entry, config={**config, **options})


def _check_call(layer: Layer, entry: Entry, count: int, masked_by: str) -> None:
    least, most = OPERATORS[layer.kind].arrays if isinstance(layer, Operation) else (1, 1)
    if not least <= count <= most:
        raise InteropError(
            f"layer {entry.name[:80]!r} should take {'one array' if most == 1 else 'arrays'}, but "
            f"takes {count}; the graph is damaged"
        )
    makes = isinstance(layer, Masking) or (isinstance(layer, Embedding) and layer.mask_zero)
    inner = entry.config.get("layer") if entry.kind == "TimeDistributed" else None
    softmax = "Softmax" in (entry.kind, inner.get("class_name") if isinstance(inner, dict) else "")
    if masked_by and (makes or softmax):  # the layer of that name leaves out what is masked
        raise InteropError(
            f"layer {entry.name[:80]!r} comes behind layer {masked_by[:80]!r}, which makes a "
            "mask, and would use or replace that; leave one of them out"
        )


def _keeps(entry: Entry, layer: Layer) -> bool:
    """Whether what it gives is masked as what it takes."""
    return entry.kind in _KEEPS or (isinstance(layer, Recurrent) and layer.return_sequences)


def _simplest(network: Functional) -> Sequential | Functional:
    """The layers in a row over time, if that is all that the graph says."""
    layers, last = network.layer_list, len(network.calls)
    end = layers[-1] if layers else None
    both = isinstance(end, Recurrent) and not end.merged
    outputs = [(Value(last, 0), Value(last, 1))] if both else [(Value(last, 0),)]
    plain = not any(isinstance(layer, Operation) for layer in layers)
    row = [Call(layer.name, layer.name, (Value(i),)) for i, layer in enumerate(layers)]
    alone = len(network.inputs) == 1 and network.inputs[0].sequence and network.names is None
    fits = alone and plain and [*network.calls] == row and network.outputs in outputs
    return Sequential(layers) if fits else network


def _input(entry: Entry, looked_up: bool, masks: bool) -> Input:
    shape = entry.config.get("batch_shape", entry.config.get("batch_input_shape"))
    if shape is None:
        shape = [None] * 3
    if not isinstance(shape, list) or not all(
        size is None or (isinstance(size, int) and 0 <= size <= LARGEST) for size in shape
    ):
        raise InteropError(f"the shape of input {entry.name[:80]!r} is damaged: {shape!r:.80}")
    dtype = str(entry.config.get("dtype", "float32"))
    if looked_up or dtype.startswith(("int", "uint")):
        dtype = "int32"
    elif dtype != "bool":
        dtype = "float32"
    sequence = len(shape) > 2 or (len(shape) == 2 and (looked_up or masks))
    return Input(entry.name, tuple(shape[1:]), dtype, sequence)


def _reaches(
    calls: Sequence[Call], layers: Mapping[str, Layer], start: Value, first: int
) -> tuple[bool, bool]:
    """Whether an input, with the axes that it has, is looked up, and whether it is a mask."""
    same, looked_up, masks = {start}, False, False
    for i, call in enumerate(calls):
        masks |= call.mask in same
        if same.isdisjoint(call.takes):
            continue
        layer = layers[call.layer]
        looked_up |= isinstance(layer, Embedding)
        key = dict(layer.config).get("key", ()) if isinstance(layer, Operation) else ()
        sliced = bool(key) and all(part is ... or isinstance(part, tuple) for part in key)
        kind = layer.kind if isinstance(layer, Operation) else ""
        if isinstance(layer, Activation | Dropout) or kind in _SAME_AXES or sliced:
            same.add(Value(first + i))
    return looked_up, masks


def _is_keras_3(nodes: Any) -> bool:
    return isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict)


Path = tuple[str | int, ...]
"""Keys and places that lead to a tensor where dicts and lists are inside of each other."""


def _uses(entry: Entry, name: str, nodes: Any) -> Iterator[_Use]:
    """The uses of a layer, as Keras 3 writes them, or Keras 2."""
    if not isinstance(nodes, list | None):
        raise InteropError(f"the inbound_nodes of layer {name[:80]!r} should be a list; damaged")
    for node in nodes or []:
        options: Any = {}
        if isinstance(node, dict):
            args, options = node.get("args"), node.get("kwargs") or {}
            if entry.kind == "ops.GetItem" and isinstance(args, list) and len(args) == 2:
                args, options = args[0], {"key": args[1]}
            found = _found(args)
        else:
            found = []
            for _, ref, more in _tensors(node):
                found.append(ref)
                options = options | (more if isinstance(more, dict) else {"": more})
        if not isinstance(options, dict):
            options = {"": options}
        options = {k: v for k, v in options.items() if v is not None}
        if not options.get("training"):
            options.pop("training", None)
        masks: tuple[_Ref | None, ...] | None = None
        listed = _listed(options.get("mask"))
        if is_model(entry.kind) and listed:
            masks, listed = tuple(next(iter(_refs(_found(m))), None) for m in listed), []
            del options["mask"]
        named = {}
        for key in [k for k in (*_TENSORS, "initial_state", "mask", *options) if k in options]:
            inside = _refs(_found(options.get(key)))
            if inside:
                named[key] = inside
                del options[key]
        mask, states = named.pop("mask", (None,)), named.pop("initial_state", ())
        if len(listed) > 1 or len(mask) != 1 or not set(named) <= set(_TENSORS):
            raise InteropError(
                f"layer {name[:80]!r} is given {', '.join(sorted(named)) or 'several masks'} in "
                "its call, which is not known here; leave it out"
            )
        found += [ref for refs in named.values() for ref in refs]
        takes = _refs(found)
        if not takes:
            raise InteropError(f"layer {name[:80]!r} takes no tensor; the graph is damaged")
        if entry.kind in _LASTS:
            takes, states = takes[:1], (*takes[1:], *states)
        arguments = tuple(None if isinstance(a, _Ref) else a for a in found)
        yield _Use(takes, arguments, options, states, mask if masks is None else masks)


def _found(value: Any) -> list[Any]:
    """The tensors in the arguments of a call, and the numbers among them."""
    return [leaf for _, leaf, _ in _leaves(value, True, ())]


def _refs(found: list[Any]) -> tuple[_Ref, ...]:
    return tuple(one for one in found if isinstance(one, _Ref))


def _tensors(value: Any, by_key: bool = False) -> Iterator[tuple[Path, _Ref, Any]]:
    """All tensors where there is nothing else, and what Keras 2 writes behind each."""
    for path, leaf, more in _leaves(value, by_key, ()):
        if not isinstance(leaf, _Ref):
            raise InteropError(
                f"the graph of the model should be made of lists, but has {_short(leaf)}"
            )
        yield path, leaf, more


def _leaves(value: Any, by_key: bool, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """What lists and dicts hold, of which Keras has had several depths: tensors, and the rest."""
    kind = value.get("class_name") if isinstance(value, dict) else None
    if kind == "__tuple__":
        value, kind = value.get("items"), None
    if kind == "__keras_tensor__":
        config = value.get("config")
        yield path, _tensor(config.get("keras_history") if isinstance(config, dict) else None), {}
    elif isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
        yield path, _tensor(value[:3]), value[3] if len(value) > 3 else {}  # of Keras 2
    elif isinstance(value, list) or (isinstance(value, dict) and kind is None):
        pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in sorted(pairs, key=lambda pair: pair[0]) if by_key else pairs:
            yield from _leaves(entry, by_key, (*path, key))
    elif value is not None:
        yield path, value, {}


def _listed(masks: Any) -> list[Any]:
    """Those of a list, a tuple, or a dict in the order of its keys; none of one by itself."""
    if isinstance(masks, dict) and masks.get("class_name") == "__tuple__":
        masks = masks.get("items")
    if isinstance(masks, dict) and "class_name" not in masks:
        masks = [mask for _, mask in sorted(masks.items())]
    several = isinstance(masks, list) and not any(isinstance(one, str) for one in masks)
    return masks if several else []


def _tensor(value: Any) -> _Ref:
    ok = (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(number, int) and 0 <= number < 2**31 for number in value[1:])
    )
    if not ok:
        raise InteropError(
            f"the graph of the model should have [layer, use, output], but has {_short(value)}"
        )
    return _Ref(*value)


def _short(value: Any) -> str:
    return repr(value)[:80]
