"""From the config of a Keras model to its layers in a row; what is no row is refused."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnnjax.errors import InteropError

_MODELS = ("Sequential", "Functional", "Model")
_MASK_OPERATIONS = ("NotEqual", "Any")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer as it stands in a config.

    Attributes:
        name: of the layer.
        kind: its class name.
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
    # Keras's own classes are registered by their bare names, those of others behind a ">".
    if not known or (registered and (">" in str(registered) or not isinstance(module, str))):
        raise InteropError(
            f"layer {name[:80]!r} is {kind[:80]!r}, a class of somebody's own that is not known "
            "here; take the model apart, and load its layers one by one"
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


def chain_of(kind: str, config: Any) -> list[Entry]:
    """The layers of a model from the input up, without the input itself.

    Raises:
        InteropError: the graph is not a single row of layers, or is damaged.
    """
    entries = layers_in(kind, config)
    if kind == "Sequential":
        return [entry for entry in entries if entry.kind != "InputLayer"]
    return _Graph(config, entries).chain()


@dataclasses.dataclass(frozen=True)
class _Call:
    """One use of a layer: the tensors it takes, other arguments, and its mask if it is given one.

    A tensor is the name of the layer that it comes from, which use of that, and which output.
    """

    tensors: list[tuple[Any, ...]]
    values: list[Any]
    mask: tuple[Any, ...] | None = None


class _Graph:
    def __init__(self, config: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        # A node has its name beside its config, and the first is what others call it by.
        self.entries: dict[str, Entry] = {}
        self.calls: dict[str, list[_Call]] = {}
        for entry, value in zip(entries, config["layers"], strict=True):
            name = value.get("name", entry.name)
            if not isinstance(name, str) or name in self.entries:
                raise InteropError(
                    f"two layers of the model have the name {_short(name)}; rename one"
                )
            self.entries[name] = entry
            self.calls[name] = list(_calls(name, value.get("inbound_nodes")))
        self.inputs = [tensor[0] for tensor in _tensors(config.get("input_layers"))]
        self.outputs = self._as_one(list(_tensors(config.get("output_layers"))))

    def _as_one(self, outputs: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Both outputs of a Bidirectional that does not merge them count as one."""
        if len(outputs) == 2 and outputs[0][0] in self.entries:
            name, use, first = outputs[0][:3]
            entry = self.entries[name]
            both = first == 0 and outputs[1][:3] == (name, use, 1)
            apart = "merge_mode" in entry.config and entry.config["merge_mode"] is None
            if both and apart and entry.kind == "Bidirectional":
                return outputs[:1]
        return outputs

    def chain(self) -> list[Entry]:
        """Walk from the output to the input."""
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise InteropError(
                f"a model should have one input and one output, but has {len(self.inputs)} and "
                f"{len(self.outputs)}; cut it into models that have"
            )
        row: list[str] = []
        tensor = self.outputs[0]
        while tensor[0] != self.inputs[0]:
            name = self._single(tensor, row)
            row.append(name)
            tensor = self._only_input(name)
        row.reverse()
        aside = set(self.entries) - set(row) - {self.inputs[0]}
        for name in sorted(aside):
            if self.entries[name].kind not in _MASK_OPERATIONS:
                raise InteropError(
                    f"layer {name[:80]!r} is beside the row of layers from the input to the "
                    "output, and a model with branches cannot be read; cut it into rows"
                )
        for i, name in enumerate(row):
            self._check_mask(name, row[:i])
        return [self.entries[name] for name in row]

    def _single(self, tensor: tuple[Any, ...], row: Sequence[str]) -> str:
        name, use, output = tensor[:3]
        if name not in self.entries:
            raise InteropError(
                f"the graph mentions {_short(name)}, which is no layer; it is damaged"
            )
        if name in row or len(self.calls[name]) != 1 or use != 0:
            raise InteropError(
                f"layer {name[:80]!r} is used more than once, and a model with branches cannot be "
                "read; give each place a layer of its own"
            )
        if output != 0:
            raise InteropError(
                f"the model goes on with another output of layer {name[:80]!r} than its first, "
                "such as a state; a model with branches cannot be read"
            )
        return str(name)

    def _only_input(self, name: str) -> tuple[Any, ...]:
        call = self.calls[name][0]
        if len(call.tensors) != 1 or call.values:
            came = f"{len(call.tensors)} arrays" + f" and {_short(call.values)}" * bool(call.values)
            raise InteropError(
                f"layer {name[:80]!r} should take one array, but takes {came}; a model with "
                "branches, or with states that are given, cannot be read"
            )
        return call.tensors[0]

    def _check_mask(self, name: str, before: Sequence[str]) -> None:
        """A mask that is written into the graph has to be the one that would come by itself."""
        mask = self.calls[name][0].mask
        if mask is None:
            return
        operations = []
        while mask[0] in self.entries and self.entries[mask[0]].kind in _MASK_OPERATIONS:
            operation = mask[0]
            call = self.calls[operation][0] if self.calls[operation] else _Call([], [])
            operations.append((self.entries[operation], call.values))
            if len(call.tensors) != 1 or len(operations) > 2:
                break
            mask = call.tensors[0]
        kinds = [operation.kind for operation, _ in operations]
        for maker in before:
            entry, source = self.entries[maker], self.calls[maker][0].tensors[0]
            if source[0] != mask[0]:
                continue
            if entry.kind == "Masking" and kinds == ["Any", "NotEqual"]:
                any_, (_, values) = operations[0][0].config, operations[1]
                if any_.get("axis") in (-1, [-1]) and values == [entry.config.get("mask_value")]:
                    return
            if entry.kind == "Embedding" and kinds == ["NotEqual"] and operations[0][1] == [0]:
                return
        raise InteropError(
            f"layer {name[:80]!r} is given a mask that is not that of a Masking or an Embedding "
            "layer before it; give the mask when the model is run"
        )


def _calls(name: str, nodes: Any) -> Iterator[_Call]:
    """The uses of a layer, as Keras 3 writes them, or Keras 2."""
    if not isinstance(nodes, list | None):
        raise InteropError(f"the inbound_nodes of layer {name[:80]!r} should be a list; damaged")
    for node in nodes or []:
        if isinstance(node, dict):
            options = node.get("kwargs")
            found = _Found()
            found.look_at(node.get("args"))
        else:
            found, options = _Found(), {}
            for connection in _tensors(node):
                found.tensors.append(tuple(connection[:3]))
                more = connection[3] if len(connection) > 3 else {}
                options = options | (more if isinstance(more, dict) else {"": more})
        options = dict(options) if isinstance(options, dict) else {"": options}
        mask = None
        given = options.pop("mask", None)
        if given is not None:
            masks = _Found()
            masks.look_at(given)
            mask = masks.tensors[0] if len(masks.tensors) == 1 else ("", 0, 0)
        if options.get("training") in (False, None):
            options.pop("training", None)
        options = {key: value for key, value in options.items() if value is not None}
        yield _Call(
            found.tensors, found.values + [f"{k}={_short(v)}" for k, v in options.items()], mask
        )


class _Found:
    """The tensors in the arguments of a call of Keras 3, and what else is among them."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Any, ...]] = []
        self.values: list[Any] = []

    def look_at(self, value: Any) -> None:
        if isinstance(value, list):
            for entry in value:
                self.look_at(entry)
        elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            history = config.get("keras_history") if isinstance(config, dict) else None
            self.tensors.append(_tensor(history))
        elif value is not None:
            self.values.append(value)


def _tensors(value: Any) -> Iterator[tuple[Any, ...]]:
    """All ``[name, use, output, ...]`` in lists of lists, of which Keras has had several depths."""
    if isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
        yield (*_tensor(value[:3]), *value[3:])
    elif isinstance(value, list):
        for entry in value:
            yield from _tensors(entry)
    elif value is not None:
        raise InteropError(
            f"the graph of the model should be made of lists, but has {_short(value)}"
        )


def _tensor(value: Any) -> tuple[Any, ...]:
    ok = (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(number, int) for number in value[1:])
    )
    if not ok:
        raise InteropError(
            f"the graph of the model should have [layer, use, output], but has {_short(value)}"
        )
    return tuple(value)


def _short(value: Any) -> str:
    return repr(value)[:80]
