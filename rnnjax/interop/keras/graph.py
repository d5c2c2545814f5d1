"""From the config of a Keras model to its layers, and what each of them takes."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rnnjax.errors import InteropError
from rnnjax.interop.keras.operators import OPERATORS, SEVERAL
from rnnjax.interop.keras.options import Entry, entry_of

_MODELS = ("Sequential", "Functional", "Model")
_TENSORS = ("query", "value", "key", "x1", "x2")  # by which calls name arrays that they take
_LASTS = ("SimpleRNN", "LSTM", "GRU", "RNN", "CuDNNLSTM", "CuDNNGRU", "Bidirectional")
_MERGES = {kind for kind, row in OPERATORS.items() if row.mask and row.arrays == SEVERAL}
_KEEPS = {kind for kind, row in OPERATORS.items() if row.mask} | {
    "Dense", "Activation", "TimeDistributed", "Dropout", "SpatialDropout1D", "Softmax", "ReLU",
    "LeakyReLU", "ELU", "InputLayer",
}  # fmt: skip

_MOST_USES = 2**14


def is_model(kind: str) -> bool:
    """Whether a class name is that of a model rather than of a layer."""
    return kind in _MODELS


def layers_in(kind: str, config: Any) -> list[Entry]:
    """All layers of a model's config in their order there, a model among them as one."""
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
    """One use of a layer."""

    takes: tuple[Ref, ...]  # the tensors that it is called with
    # these as None, among them the numbers that stand beside them
    arguments: tuple[Any, ...] = (None,)
    # what else the call is told
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    states: tuple[Ref, ...] = ()  # with which a recurrent layer begins
    mask: Ref | None = None  # None where it comes by itself
    masks: tuple[Ref | None, ...] = ()  # of a model, for each that it takes

    def moved(self, to: Callable[[Ref], Ref]) -> "Use":
        """The same, of other tensors."""
        mask = None if self.mask is None else to(self.mask)
        takes, states = tuple(map(to, self.takes)), tuple(map(to, self.states))
        return dataclasses.replace(self, takes=takes, states=states, mask=mask)


Path = tuple[str | int, ...]
"""Keys and places that lead to an output where dicts and lists are inside of each other."""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A model as a graph."""

    entries: Mapping[str, Entry]  # the layers by which others call them, inputs among them
    inputs: tuple[str, ...]  # the names of these
    uses: Mapping[tuple[str, int], Use]  # of layers, each behind those that it takes from
    outputs: tuple[Ref, ...]  # of the model
    # of the outputs, as a `rnnjax.interop.Functional` has them
    names: tuple[str, ...] | None = None
    # of some of the uses, the layer from which the mask comes that they are given
    masked: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)


def _row(entries: list[Entry]) -> Wiring:
    first = entries[0]
    if first.kind != "InputLayer":
        known = {k: v for k, v in first.config.items() if k == "batch_input_shape" and v}
        first = Entry("xs", "InputLayer", known)
    rest = [entry for entry in entries if entry.kind != "InputLayer"]
    named: dict[str, Entry] = {"": first}
    for entry in rest:
        _add(named, entry.name, entry)
    names = [*named]
    uses = {(name, 0): Use((Ref(before),)) for before, name in itertools.pairwise(names)}
    last = entries[-1]
    both = last.kind == "Bidirectional" and last.config.get("merge_mode", "concat") is None
    outputs = tuple(Ref(names[-1], output=i) for i in range(1 + both))
    return _inlined(Wiring(named, ("",), uses, outputs), row=True)


def wiring_of(kind: str, config: Any) -> Wiring:
    """The graph of a model; models that are layers of it are the layers that they are made of."""
    return _finished(_whole(kind, config))


def _whole(kind: str, config: Any, inside: bool = False) -> Wiring:
    listed = layers_in(kind, config)
    if kind == "Sequential":
        return _row(listed)
    if not isinstance(config, dict):
        raise InteropError(f"the config of a {kind} model should be a dict; it is damaged")
    # A node has its name beside its config, and the first is what others call it by.
    entries: dict[str, Entry] = {}
    calls: dict[tuple[str, int], Use] = {}
    for entry, value in zip(listed, config["layers"], strict=True):
        name, nodes = value.get("name", entry.name), value.get("inbound_nodes")
        # A function of keras.ops is there by its name, as if it were a layer of Keras 3. Of those
        # SpatialDropout1D alone does not say either whether it is trained.
        layer = "trainable" in entry.config or entry.kind == "SpatialDropout1D"
        if not layer and _is_keras_3(nodes) and not is_model(entry.kind):
            entry = dataclasses.replace(entry, kind=f"ops.{entry.kind}")
        _add(entries, name, entry)
        for i, use in enumerate(_uses(entry, name, nodes)):
            calls[name, i] = use
    starts, ends = (
        # Inputs in dicts, and outputs of a model inside, are counted in the order of their keys.
        {path: ref for path, ref, _ in _tensors(config.get(key), by_key)}
        for key, by_key in (("input_layers", True), ("output_layers", inside))
    )
    inputs, outputs = tuple(ref.layer for ref in starts.values()), tuple(ends.values())
    keys = [path[0] if len(path) == 1 else path for path in ends]
    names = tuple(key for key in keys if isinstance(key, str)) or None
    if len(names or ()) != len(keys) and keys not in ([()], [*range(len(keys))]):
        raise InteropError(
            f"the outputs of a model should be tensors, one, in a list, or in a dict by name, but "
            f"are at {_short(keys)}; give them so"
        )
    for name in inputs:
        if name not in entries:
            raise InteropError(f"the input {_short(name)} is no layer; the graph is damaged")
    if not inputs or not outputs:
        raise InteropError("a model should have inputs and outputs, but has none; it is damaged")
    whole = Wiring(entries, inputs, calls, outputs, names)
    new = any(_is_keras_3(value.get("inbound_nodes")) for value in config["layers"])
    return _inlined(_counted_from_0(whole, new))


def _counted_from_0(whole: Wiring, new: bool) -> Wiring:
    """Calls of models have numbers from 1 on: in Keras 2, and in Keras 3 among the outputs alone.

    There those of a Sequential begin with 0.
    """

    def counted(ref: Ref) -> Ref:
        kind = whole.entries[ref.layer].kind if ref.layer in whole.entries else ""
        return ref._replace(use=ref.use - (is_model(kind) and not (new and kind == "Sequential")))

    uses = whole.uses if new else {here: use.moved(counted) for here, use in whole.uses.items()}
    return dataclasses.replace(whole, uses=uses, outputs=tuple(map(counted, whole.outputs)))


def _finished(whole: Wiring) -> Wiring:
    """With the uses that the outputs need, in order, and without what comes by itself."""
    whole = _with_masks(dataclasses.replace(whole, uses=_ordered(whole)))
    same: dict[Ref, Ref] = {}  # of inputs of models inside, what they are given
    for (name, number), use in whole.uses.items():
        if whole.entries[name].kind == "InputLayer":
            if use.mask is not None:
                raise InteropError(
                    f"input {whole.entries[name].name[:80]!r} of a model inside of the model is "
                    "given a mask in its call, which is not known here; leave it out"
                )
            same[Ref(name, number)] = same.get(use.takes[0], use.takes[0])
    return _replaced(whole, same)


def _replaced(whole: Wiring, same: Mapping[Ref, Ref]) -> Wiring:
    """Tensors in the place of others, which nothing makes any more."""

    def to(ref: Ref) -> Ref:
        return same.get(ref, ref)

    gone = {ref[:2] for ref in same}
    uses = {here: use.moved(to) for here, use in whole.uses.items() if here not in gone}
    return dataclasses.replace(whole, uses=uses, outputs=tuple(map(to, whole.outputs)))


def _inlined(whole: Wiring, row: bool = False) -> Wiring:
    """The layers of models in the places of these; a layer of one is named ``model.layer``.

    A ``row`` gives all that a model at its end gives.
    """
    models = {
        name: _whole(entry.kind, entry.config, inside=True)
        for name, entry in whole.entries.items()
        if is_model(entry.kind)
    }
    last = whole.outputs[0].layer
    if row and last in models:
        ends = tuple(Ref(last, output=i) for i in range(len(models[last].outputs)))
        whole = dataclasses.replace(whole, outputs=ends, names=models[last].names)
    entries: dict[str, Entry] = {}
    for name, entry in whole.entries.items():
        if name not in models:
            _add(entries, name, entry)
            continue
        for part, one in models[name].entries.items():
            own = dataclasses.replace(one, name=f"{entry.name}.{one.name}")
            _add(entries, f"{name}.{part}", own)
    uses: dict[tuple[str, int], Use] = {}
    same: dict[Ref, Ref] = {}
    for (name, number), use in whole.uses.items():
        if name not in models:
            uses[name, number] = use
            continue
        inner, more = models[name], [*use.options, *use.states]
        masks = use.masks or (use.mask,) * len(use.takes)
        fits = len(use.takes) == len(inner.inputs) == len(masks) == len(use.arguments)
        if more or not fits:
            raise InteropError(
                f"model {name[:80]!r}, a layer of the model, should be called with "
                f"{len(inner.inputs)} arrays alone, but is called with {len(use.takes)}, and with "
                f"{', '.join(map(str, more)) or 'nothing'}; call it with its inputs"
            )
        times = collections.Counter(part for part, _ in inner.uses)

        def placed(ref: Ref, name: str = name, number: int = number, times: Any = times) -> Ref:
            use = number * max(times[ref.layer], 1) + ref.use
            return Ref(f"{name}.{ref.layer}", use, ref.output)

        for start, ref, mask in zip(inner.inputs, use.takes, masks, strict=True):
            uses[placed(Ref(start))[:2]] = Use((ref,), mask=mask)
        uses |= {placed(Ref(*at))[:2]: one.moved(placed) for at, one in inner.uses.items()}
        same |= {Ref(name, number, i): placed(ref) for i, ref in enumerate(inner.outputs)}
        if len(uses) > _MOST_USES:  # models in models, each called twice, soon are a million
            raise InteropError(
                f"models inside of the model stand for more than {_MOST_USES:,} calls of layers; "
                "load these models one by one"
            )
    return _replaced(dataclasses.replace(whole, entries=entries, uses=uses), same)


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
    return entry.kind in _KEEPS or (entry.kind in _LASTS and bool(sequences))


def _uses(entry: Entry, name: str, nodes: Any) -> Iterator[Use]:
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
        masks: tuple[Ref | None, ...] = ()
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
        arguments = tuple(None if isinstance(a, Ref) else a for a in found)
        yield Use(takes, arguments, options, states, mask[0], masks)


def _found(value: Any) -> list[Any]:
    """The tensors in the arguments of a call, and the numbers among them."""
    return [leaf for _, leaf, _ in _leaves(value, True, ())]


def _refs(found: list[Any]) -> tuple[Ref, ...]:
    return tuple(one for one in found if isinstance(one, Ref))


def _tensors(value: Any, by_key: bool = False) -> Iterator[tuple[Path, Ref, Any]]:
    """All tensors where there is nothing else, and what Keras 2 writes behind each."""
    for path, leaf, more in _leaves(value, by_key, ()):
        if not isinstance(leaf, Ref):
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
