"""Models out of files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import (
    KerasOrigin,
    Places,
    build,
    snake,
    split,
    unique,
    units_of,
)
from rnnjax.interop.keras.files import KerasFile
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.options import Version, entry_of, is_model, layers_in
from rnnjax.interop.keras.writing import groups_of, written_layers
from rnnjax.interop.model import Model, Network, Sequential


def load_file(file: KerasFile) -> Model:
    """The model of a file that says its layers."""
    kind, config = _model_in(file.config)
    if not is_model(kind):
        raise InteropError(
            f"the file should hold a Sequential or a functional model, but holds {kind[:80]!r}, a "
            "class of somebody's own; save its layers as a Sequential"
        )
    network = network_of(kind, config, Version.of(file.version))
    if file.groups is not None:
        return build(network, file, _in_groups(network, file.groups))
    return build(network, file, _at_paths(network, dict(_groups_in(kind, config)), file))


def _groups_in(kind: str, config: Any, own: str = "", above: str = "") -> Iterator[tuple[str, str]]:
    """The name of each layer, and where Keras 3 has its arrays; models have theirs inside."""
    used: dict[str, int] = {}
    for entry, _ in layers_in(kind, config):
        name, group = f"{own}{entry.name}", f"{above}{unique(snake(entry.kind), used)}"
        if is_model(entry.kind):
            yield from _groups_in(entry.kind, entry.config, f"{name}.", f"{group}/layers/")
        else:
            yield name, group


def _model_in(whole: Any) -> tuple[str, Any]:
    """Class name and config of a model; in Keras 1 that of a Sequential is its list of layers."""
    if isinstance(whole, dict) and isinstance(whole.get("config"), list):
        return str(whole.get("class_name")), whole["config"]
    entry = entry_of(whole, "the model")
    return entry.kind, entry.config


def load_like(file: KerasFile, like: Model) -> Model:
    """The model ``like``, with the weights of a file that holds nothing else."""
    layers = Sequential(tuple(one for one in like.network.layers.values() if units_of(one)))
    if file.groups is None:
        if isinstance(like.origin, KerasOrigin):
            groups = dict(_groups_in(*_model_in(like.origin.file.config)))
        else:
            groups = groups_of(written_layers(like.network))
        places = _at_paths(layers, groups, file)
    else:
        full = [list(paths.values()) for _, paths in file.groups if paths]
        if len(full) != len(layers.chain):
            raise InteropError(
                f"the file holds weights of {len(full)} layers, but the model given as like has "
                f"{len(layers.chain)} with weights; give one of the same layers"
            )
        places = {
            layer.name: split(units_of(layer), paths, f"layer {layer.name!r}")
            for layer, paths in zip(layers.chain, full, strict=True)
        }
    made = build(layers, file, places)
    try:
        return like.with_params({**like.params, **made.params})
    except InvalidInputError as error:
        raise InteropError(f"the file holds the weights of another model: {error}") from error


def _at_paths(network: Network, groups: Mapping[str, str], file: KerasFile) -> Places:
    """The arrays of Keras 3's layout, where each unit has a place of its own."""
    # Without the states of random numbers, which some versions of Keras write.
    rest = {path for path in file.arrays if "/seed_generator/" not in path}
    tops = {path.partition("/")[0] for path in rest}
    found: Places = {}
    for layer in network.layers.values():
        parts = []
        for unit in units_of(layer):
            places = [
                f"{top}/{groups[layer.name]}/{within}{unit.path}".rstrip("/")
                for top in tops
                for within in ("", "layer/")  # the latter of a TimeDistributed
            ]
            part: list[str] = []
            while keys := [key for p in places if (key := f"{p}/vars/{len(part)}") in rest]:
                part.append(keys[0])
                rest.remove(keys[0])
            if unit.count and not part:
                raise InteropError(
                    f"the file has no arrays of layer {layer.name[:80]!r}: it was not built, or is "
                    "shared by several models inside of the model, which is not known here; give "
                    "each model layers of its own"
                )
            parts.append(part)
        found[layer.name] = parts
    if rest:
        raise InteropError(
            f"the file has an array {min(rest)[:80]!r}, which no layer of the model takes; its "
            "weights are those of another model"
        )
    return found


def _taken(paths: dict[str, str], layer: str) -> list[str]:
    """Those of the arrays of a model that have the name of a layer in their own; they go out."""
    names = [name for name in paths if name.partition("/")[0] == layer]
    names = names or [name for name in paths if layer in name.split("/")]
    return [paths.pop(name) for name in names]


def _in_groups(network: Network, groups: Sequence[tuple[str, Mapping[str, str]]]) -> Places:
    """The arrays of the old layout, where each layer has a list."""
    by_name = {name: dict(paths) for name, paths in groups}
    found: Places = {}
    for layer in network.layers.values():
        above, _, own = layer.name.rpartition(".")
        if layer.name in by_name or not above:
            paths = list(by_name.pop(layer.name, {}).values())
        else:
            paths = _taken(by_name.get(above.partition(".")[0], {}), own)
        found[layer.name] = split(units_of(layer), paths, f"layer {layer.name[:80]!r}")
    left = [name for name, paths in by_name.items() if paths]
    if left:
        raise InteropError(
            f"the file has weights of layer {left[0][:80]!r}, which is not in the model; its "
            "weights are those of another model"
        )
    return found
