"""Live models and layers of Keras, in and out."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnjax.cells import GRUCell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.arrays import float_array
from rnnjax.interop.keras.arrays import Unit, arrays_of, build, split, units_of
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.layers import layer_of
from rnnjax.interop.keras.options import Entry, Version, is_model
from rnnjax.interop.keras.writing import written_layers
from rnnjax.interop.model import Model, Network, Sequential, check_model


def load_live(source: Any) -> Model:
    """The model of a live one, or of a live layer."""
    network, forms, live = _live(source)
    found = {}
    for layer in network.layers.values():
        arrays = [_numbers(variable) for variable in getattr(live.get(layer.name), "weights", ())]
        found[layer.name] = split(units_of(layer), arrays, f"layer {layer.name!r}")
    return build(network, forms, found)


def _live(source: Any) -> tuple[Network, dict[str, str], dict[str, Any]]:
    """The layers of a live model or layer, and the live ones by their names."""
    if not callable(getattr(source, "get_config", None)) or not hasattr(source, "weights"):
        raise InvalidInputError(
            f"expected a Keras model or layer, or the path of a file, but got {type(source)}"
        )
    kind = type(source).__name__
    package = type(source).__module__.partition(".")[0]
    if package not in ("keras", "tf_keras", "tensorflow"):
        raise InteropError(
            f"{kind} is a class of your own, and what it computes is not known here; load its "
            "layers one by one"
        )
    version = Version(2, tensorflow=True)
    if package == "keras":  # of any number: up to 2.15 it was that of TensorFlow
        version = Version.of(str(getattr(sys.modules.get(package), "__version__", "3")))
    config = _as_in_a_file(source.get_config())
    if "layers" not in config:
        entry = Entry(source.name, kind, config)
        layer = layer_of(entry, version)
        forms = {entry.name: kind} if kind in ("RNN", "TimeDistributed") else {}
        return Sequential((layer,)), forms, {entry.name: source}
    kind = "Functional" if "input_layers" in config else "Sequential"
    network, forms = network_of(kind, config, version)
    live, first = dict(_layers_of(source)), dict[int, str]()
    for name in network.layers:
        other = first.setdefault(id(live.get(name)), name)
        if other != name and live.get(name) is not None and live[name].weights:
            raise InteropError(
                f"layer {name!r} is {other!r} too, one layer of several models inside of the "
                "model, which is not known here; give each model layers of its own"
            )
    return network, forms, live


def _layers_of(model: Any, own: str = "") -> Iterator[tuple[str, Any]]:
    """The live layers by their names here, those of models inside of it among them."""
    for layer in model.layers:
        yield f"{own}{layer.name}", layer
        if is_model(type(layer).__name__):
            yield from _layers_of(layer, f"{own}{layer.name}.")


def _as_in_a_file(value: Any) -> Any:
    """Lists for tuples, as JSON would have them."""
    if isinstance(value, dict):
        return {key: _as_in_a_file(entry) for key, entry in value.items()}
    return [_as_in_a_file(v) for v in value] if isinstance(value, list | tuple) else value


def _numbers(variable: Any) -> np.ndarray:
    # Not Keras's `numpy()`, which NumPy 2 warns of. A variable of Keras 2 has a method `value`.
    value = variable.value() if callable(variable.value) else variable.value
    return float_array(variable.name, value)


def set_weights(target: Any, model: Model) -> None:
    """Set the weights of a live Keras model or layer to the parameters of a model.

    `OneHotIds` at the start of the model has no counterpart: Keras takes one-hot vectors there.

    Args:
        target: a built Keras model or layer with the same layers, as far as they have weights; what
            they compute with them, such as their activations, is not compared.
        model: one that was loaded, or any other whose cells Keras has.

    Raises:
        InteropError: a layer of the model is not known to Keras, or the layers of the target are of
            other kinds, sizes or types. Nothing is set then.
        InvalidInputError: ``target`` is no Keras model or layer, or ``model`` no model.
    """
    check_model(model)
    network, _, live = _live(target)
    theirs = [layer for layer in written_layers(network) if units_of(layer)]
    ours = [layer for layer in written_layers(model.network) if units_of(layer)]
    if len(theirs) != len(ours):
        raise InteropError(
            f"the target has {len(theirs)} layers with weights, but the model has {len(ours)}; "
            "they should be the same"
        )
    changes: list[tuple[Any, np.ndarray]] = []
    for their, our in zip(theirs, ours, strict=True):
        arrays = [array for _, part in arrays_of(our, model) for array in part]
        variables = list(live[their.name].weights)
        came = [(str(getattr(v.dtype, "name", v.dtype)), list(v.shape)) for v in variables]
        expected = [(array.dtype.name, list(array.shape)) for array in arrays]
        kinds = [[_kind(unit) for unit in units_of(layer)] for layer in (their, our)]
        if kinds[0] != kinds[1] or came != expected:
            raise InteropError(
                f"layer {their.name!r} of the target is {their} with weights {came}, but the model "
                f"has {our} with {expected} there; they should be of one kind, size and type"
            )
        changes += zip(variables, arrays, strict=True)
    for variable, array in changes:
        variable.assign(array)


def _kind(unit: Unit) -> tuple[Any, ...]:
    owner = unit.owner
    kind = getattr(owner, "kind", None)
    return type(owner), kind, unit.count, isinstance(owner, GRUCell) and owner.reset_after
