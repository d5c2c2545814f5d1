"""From the config of a Keras model to its layers, and what each of them takes."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rnnjax.errors import InteropError
from rnnjax.interop.registry import cell_named

_MODELS = ("Sequential", "Functional", "Model")
_TENSORS = ("query", "value", "key", "x1", "x2")  # by which calls name arrays that they take
_LASTS = ("SimpleRNN", "LSTM", "GRU", "RNN", "CuDNNLSTM", "CuDNNGRU", "Bidirectional")
_MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
_KEEPS = ("Dense", "Activation", "TimeDistributed", "Dropout", "SpatialDropout1D", "Softmax",
          "ReLU", "LeakyReLU", "ELU", "BatchNormalization", "LayerNormalization", "Attention",
          "AdditiveAttention", "MultiHeadAttention")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer as it stands in a config.

    Attributes:
        name: of the layer.
        kind: its class name; behind ``"ops."`` that of a function of ``keras.ops``.
        config: its options.
    """

    name: str
    kind: str
    config: Mapping[str, Any]


def entry_of(value: Any, where: str) -> Entry:
    """A layer from its dict of class name and options.

    Raises:
        InteropError: it is no such dict, or the class is not one of Keras.
    """
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InteropError(
            f"{where} should be a dict with class_name and config, but is {_short(value)}; the "
            "config is damaged, or of another program"
        )
    kind, config = value["class_name"], value.get("config")
    if not isinstance(config, dict):
        raise InteropError(
            f"the config of {kind[:80]!r} in {where} should be a dict; it is damaged"
        )
    name = config.get("name", value.get("name"))
    if name is None:
        name = kind.lower()
    if not isinstance(name, str):
        raise InteropError(f"the name of {kind[:80]!r} in {where} should be a text; it is damaged")
    module, registered = value.get("module"), value.get("registered_name")
    known = not isinstance(module, str) or module.split(".")[0] in ("keras", "tf_keras", "builtins")
    if kind == "Lambda":
        raise InteropError(
            f"layer {name[:80]!r} is a Lambda, which holds code of its own, and code from a file "
            "is never run; put what it computes around the model in Python"
        )
    if isinstance(registered, str) and ">" in registered and cell_named("keras", registered):
        return Entry(name, registered, config)
    # Keras's own classes are registered by their bare names, those of others behind a ">".
    if not known or (registered and (">" in str(registered) or not isinstance(module, str))):
        raise InteropError(
            f"layer {name[:80]!r} is {kind[:80]!r}, a class of somebody's own that is not known "
            "here; take the model apart, and load its layers one by one, or if it is a cell call "
            "rnnjax.interop.register"
        )
    return Entry(name, kind, config)


def is_model(kind: str) -> bool:
    """Whether a class name is that of a model rather than of a layer."""
    return kind in _MODELS


def layers_in(kind: str, config: Any) -> list[Entry]:
    """All layers of a model's config, in the order in which they stand there.

    Raises:
        InteropError: it has none, or one of them is damaged or not one of Keras.
    """
    listed = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(listed, list) or not listed:
        raise InteropError(f"a {kind} model should list its layers, but has {_short(listed)}")
    return [entry_of(value, f"layer {i} of the model") for i, value in enumerate(listed)]


class Ref(NamedTuple):
    """A tensor: which layer it comes from, which use of that, and which output."""

    layer: str
    use: int = 0
    output: int = 0


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a layer.

    Attributes:
        takes: the tensors that it is called with.
        arguments: these as None, among them the numbers that stand beside them.
        options: what else the call is told.
        states: with which a recurrent layer begins.
        mask: None where it comes by itself.
    """

    takes: tuple[Ref, ...]
    arguments: tuple[Any, ...] = (None,)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    states: tuple[Ref, ...] = ()
    mask: Ref | None = None


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A model as a graph.

    Attributes:
        entries: the layers by which others call them, inputs among them.
        inputs: the names of these.
        uses: of layers, each behind those that it takes from.
        outputs: of the model.
        names: of the outputs where they are a dict.
        masked: of some of the uses, the layer from which the mask comes that they are given.
    """

    entries: Mapping[str, Entry]
    inputs: tuple[str, ...]
    uses: Mapping[tuple[str, int], Use]
    outputs: tuple[Ref, ...]
    names: tuple[str, ...] | None = None
    masked: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)


def row_of(entries: list[Entry]) -> Wiring:
    """Layers one behind the other.

    Raises:
        InteropError: two have one name, or there is none but an input.
    """
    first = entries[0] if entries[0].kind == "InputLayer" else _begin(entries[0])
    rest = [entry for entry in entries if entry.kind != "InputLayer"]
    named: dict[str, Entry] = {"": first}
    for entry in rest:
        _add(named, entry.name, entry)
    names = [*named]
    uses = {(name, 0): Use((Ref(before),)) for before, name in itertools.pairwise(names)}
    return _with_masks(Wiring(named, ("",), uses, (Ref(names[-1]),)))


def _begin(entry: Entry) -> Entry:
    shape = entry.config.get("batch_input_shape")
    return Entry("xs", "InputLayer", {} if shape is None else {"batch_input_shape": shape})


def wiring_of(kind: str, config: Any) -> Wiring:
    """The graph of a model.

    Raises:
        InteropError: it is damaged.
    """
    listed = layers_in(kind, config)
    if kind == "Sequential":
        return row_of(listed)
    # A node has its name beside its config, and the first is what others call it by.
    entries: dict[str, Entry] = {}
    calls: dict[tuple[str, int], Use] = {}
    for entry, value in zip(listed, config["layers"], strict=True):
        name, nodes = value.get("name", entry.name), value.get("inbound_nodes")
        # A function of keras.ops is there by its name, as if it were a layer of Keras 3.
        if "trainable" not in entry.config and _is_keras_3(nodes):
            entry = dataclasses.replace(entry, kind=f"ops.{entry.kind}")
        _add(entries, name, entry)
        for i, use in enumerate(_uses(entry, name, nodes)):
            calls[name, i] = use
    inputs = tuple(ref.layer for ref, _ in _tensors(config.get("input_layers")))
    ends, names = config.get("output_layers"), None
    if isinstance(ends, dict):
        names, ends = tuple(ends), [*ends.values()]
    outputs = tuple(ref for ref, _ in _tensors(ends))
    if names is not None and len(names) != len(outputs):
        names = None
    for name in inputs:
        if name not in entries:
            raise InteropError(f"the input {_short(name)} is no layer; the graph is damaged")
    if not inputs or not outputs:
        raise InteropError("a model should have inputs and outputs, but has none; it is damaged")
    whole = Wiring(entries, inputs, calls, outputs, names)
    return _with_masks(dataclasses.replace(whole, uses=_ordered(whole)))


def _is_keras_3(nodes: Any) -> bool:
    return isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict)


def _add(entries: dict[str, Entry], name: Any, entry: Entry) -> None:
    if not isinstance(name, str) or name in entries:
        raise InteropError(f"two layers of the model have the name {_short(name)}; rename one")
    entries[name] = entry


def _ordered(whole: Wiring) -> dict[tuple[str, int], Use]:
    """Those uses that the outputs need, each behind what it takes."""
    begins = {(name, 0) for name in whole.inputs}
    done: dict[tuple[str, int], Use] = {}
    begun: set[tuple[str, int]] = set()
    stack: list[Ref] = list(reversed(whole.outputs))
    while stack:
        ref = stack[-1]
        here = ref[:2]
        if here in begins or here in done:
            stack.pop()
            continue
        if here not in whole.uses:
            raise InteropError(
                f"the graph mentions {_short(ref.layer)}, which is no layer, or a use of it that "
                "is not there; it is damaged"
            )
        use = whole.uses[here]
        taken = [*use.takes, *use.states, *([] if use.mask is None else [use.mask])]
        left = [one for one in taken if one[:2] not in begins and one[:2] not in done]
        if not left:
            done[here] = use
            stack.pop()
        elif here in begun:
            raise InteropError(f"layer {ref.layer[:80]!r} takes what it gives; it is damaged")
        else:
            begun.add(here)
            stack += reversed(left)
    return done


def _with_masks(whole: Wiring) -> Wiring:
    """Without the masks that are written into the graph and would come by themselves.

    A mask is known by how it is made: ``any(x != value)`` or ``ids != 0``.
    """
    made: dict[Ref, Any] = {}  # by functions of keras.ops
    masks: dict[Ref, tuple[str, Any]] = {}
    masked, uses = {}, dict(whole.uses)
    for (name, number), use in whole.uses.items():
        entry, first, here = whole.entries[name], use.takes[0], Ref(name, number)
        came = [masks[ref] for ref in use.takes if ref in masks]
        if use.mask is not None and first in masks and made.get(use.mask) == masks[first][1]:
            use = uses[name, number] = dataclasses.replace(use, mask=None)
        if use.mask is not None or came:
            masked[name, number] = entry.name if use.mask is not None else came[0][0]
        if entry.kind == "ops.NotEqual":
            made[here] = (first, use.arguments)
        elif entry.kind == "ops.Any" and entry.config.get("axis") in (-1, [-1]):
            made[here] = ("any", made.get(first))
        elif entry.kind == "Masking":
            marks = ("any", (first, (None, entry.config.get("mask_value", 0.0))))
            masks[here] = (entry.name, marks)
        elif entry.kind == "Embedding" and entry.config.get("mask_zero"):
            masks[here] = (entry.name, (first, (None, 0)))
        elif (name, number) in masked and _keeps(entry):
            plain = use.mask is None and first in masks and entry.kind not in _MERGES
            masks[here] = masks[first] if plain else (entry.name, object())
    whole = dataclasses.replace(whole, uses=uses, masked=masked)
    return dataclasses.replace(whole, uses=_ordered(whole))


def _keeps(entry: Entry) -> bool:
    inner = entry.config.get("layer") if entry.kind == "Bidirectional" else None
    config = inner.get("config") if isinstance(inner, dict) else entry.config
    sequences = isinstance(config, dict) and config.get("return_sequences")
    return entry.kind in (*_KEEPS, *_MERGES) or (entry.kind in _LASTS and bool(sequences))


def _uses(entry: Entry, name: str, nodes: Any) -> Iterator[Use]:
    """The uses of a layer, as Keras 3 writes them, or Keras 2."""
    if not isinstance(nodes, list | None):
        raise InteropError(f"the inbound_nodes of layer {name[:80]!r} should be a list; damaged")
    for node in nodes or []:
        found = _Found()
        options: Any = {}
        if isinstance(node, dict):
            found.look_at(node.get("args"))
            options = node.get("kwargs") or {}
        else:
            for ref, more in _tensors(node):
                found.arguments.append(ref)
                options = options | (more if isinstance(more, dict) else {"": more})
        if not isinstance(options, dict):
            options = {"": options}
        options = {k: v for k, v in options.items() if v is not None}
        if not options.get("training"):
            options.pop("training", None)
        named = {}
        for key in [k for k in (*_TENSORS, "initial_state", "mask", *options) if k in options]:
            inside = _Found()
            inside.look_at(options.get(key))
            if inside.tensors:
                named[key] = tuple(inside.tensors)
                del options[key]
        mask, states = named.pop("mask", (None,)), named.pop("initial_state", ())
        if len(mask) != 1 or not set(named) <= set(_TENSORS):
            raise InteropError(
                f"layer {name[:80]!r} is given {', '.join(sorted(named)) or 'several masks'} in "
                "its call, which is not known here; leave it out"
            )
        found.arguments += [ref for refs in named.values() for ref in refs]
        takes = tuple(found.tensors)
        if not takes:
            raise InteropError(f"layer {name[:80]!r} takes no tensor; the graph is damaged")
        if entry.kind in _LASTS:
            takes, states = takes[:1], (*takes[1:], *states)
        arguments = tuple(None if isinstance(a, Ref) else a for a in found.arguments)
        yield Use(takes, arguments, options, states, mask[0])


class _Found:
    """The tensors in the arguments of a call, and the numbers among them."""

    def __init__(self) -> None:
        self.arguments: list[Any] = []

    @property
    def tensors(self) -> list[Ref]:
        return [one for one in self.arguments if isinstance(one, Ref)]

    def look_at(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            history = config.get("keras_history") if isinstance(config, dict) else None
            self.arguments.append(_tensor(history))
        elif isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
            self.arguments.append(_tensor(value[:3]))  # of Keras 2
        elif isinstance(value, list):
            for entry in value:
                self.look_at(entry)
        elif value is not None:
            self.arguments.append(value)


def _tensors(value: Any) -> Iterator[tuple[Ref, Any]]:
    """All ``[name, use, output, ...]`` in lists of lists, of which Keras has had several depths."""
    if isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
        yield _tensor(value[:3]), value[3] if len(value) > 3 else {}
    elif isinstance(value, list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)
    elif value is not None:
        raise InteropError(
            f"the graph of the model should be made of lists, but has {_short(value)}"
        )


def _tensor(value: Any) -> Ref:
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
    return Ref(*value)


def _short(value: Any) -> str:
    return repr(value)[:80]
