"""Models out of files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import (
    Found,
    build,
    forms_of,
    snake,
    split,
    unique,
    units_in,
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
    version = Version.of(file.version)
    network, forms = network_of(kind, config, version)
    if file.groups is not None:
        return build(network, forms, _from_groups(network, file.groups))
    groups = dict(_groups_in(kind, config))
    return build(network, forms, _from_paths(network, forms, groups, file.arrays))


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
    layers = [layer for layer in written_layers(like.network) if units_of(layer)]
    forms = forms_of(like)
    if file.groups is None:
        groups = {
            name: group.partition("/")[2]
            for name, group in groups_of(written_layers(like.network), forms).items()
        }
        found = _from_paths(Sequential(tuple(layers)), forms, groups, file.arrays)
    else:
        full = [(name, list(arrays.values())) for name, arrays in file.groups if arrays]
        if len(full) != len(layers):
            raise InteropError(
                f"the file holds weights of {len(full)} layers, but the model given as like has "
                f"{len(layers)} with weights; give one of the same layers"
            )
        found = {}
        for layer, (_, arrays) in zip(layers, full, strict=True):
            found[layer.name] = split(units_of(layer), arrays, f"layer {layer.name!r}")
    made = build(Sequential(tuple(layers)), forms, found)
    try:
        return like.with_params({**like.params, **made.params})
    except InvalidInputError as error:
        raise InteropError(f"the file holds the weights of another model: {error}") from error


def _from_paths(
    network: Network,
    forms: Mapping[str, str],
    groups: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> Found:
    """The arrays of Keras 3's layout, where each unit has a place of its own."""
    # Without the states of random numbers, which some versions of Keras write.
    rest = {path: array for path, array in arrays.items() if "/seed_generator/" not in path}
    tops = {path.partition("/")[0] for path in rest}
    found: Found = {}
    for layer in network.layers.values():
        parts = []
        for unit in units_in(layer, forms):
            places = [f"{top}/{groups[layer.name]}/{unit.path}".rstrip("/") for top in tops]
            part: list[np.ndarray] = []
            while True:
                keys = [key for p in places if (key := f"{p}/vars/{len(part)}") in rest]
                if not keys:
                    break
                part.append(rest.pop(keys[0]))
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


def _taken(arrays: dict[str, np.ndarray], layer: str) -> list[np.ndarray]:
    """Those of the arrays of a model that have the name of a layer in their own; they go out."""
    names = [name for name in arrays if name.partition("/")[0] == layer]
    names = names or [name for name in arrays if layer in name.split("/")]
    return [arrays.pop(name) for name in names]


def _from_groups(network: Network, groups: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Found:
    """The arrays of the old layout, where each layer has a list."""
    by_name = {name: dict(arrays) for name, arrays in groups}
    found: Found = {}
    for layer in network.layers.values():
        above, _, own = layer.name.rpartition(".")
        if layer.name in by_name or not above:
            arrays = list(by_name.pop(layer.name, {}).values())
        else:
            arrays = _taken(by_name.get(above.partition(".")[0], {}), own)
        found[layer.name] = split(units_of(layer), arrays, f"layer {layer.name[:80]!r}")
    left = [name for name, arrays in by_name.items() if arrays]
    if left:
        raise InteropError(
            f"the file has weights of layer {left[0][:80]!r}, which is not in the model; its "
            "weights are those of another model"
        )
    return found
