"""Between arrays as Keras orders them and the parameters of layers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import (
    Unit,
    assemble,
    take_apart,
    to_arrays,
    to_params,
    units_of,
)
from rnnjax.interop.layers import Layer
from rnnjax.interop.model import Model, Network


@dataclasses.dataclass(frozen=True)
class KerasOrigin:
    """What a model of Keras says and its layers here do not.

    Attributes:
        forms: for some layers by name the class they had, ``"RNN"`` or ``"TimeDistributed"``,
            which is where Keras looks for their weights in a file.
    """

    forms: Mapping[str, str]


Found = dict[str, list[list[np.ndarray]]]
"""By the name of a layer, the arrays of each of its units."""


def build(network: Network, forms: Mapping[str, str], found: Found) -> Model:
    """The model of these layers, with the parameters that their arrays become."""
    params = {}
    for layer in network.layers.values():
        units = units_in(layer, forms)
        if not units:
            continue
        parts = []
        for unit, arrays in zip(units, found[layer.name], strict=True):
            place = f" at {unit.path!r}" if len(units) > 1 else ""
            parts.append(to_params(unit, arrays, f"layer {layer.name[:80]!r}{place}"))
        params[layer.name] = assemble(layer, parts)
    return Model(network, params, KerasOrigin(dict(forms)))


def split(
    units: Sequence[Unit], arrays: Sequence[np.ndarray], where: str
) -> list[list[np.ndarray]]:
    """Which of the arrays belongs to which unit: Keras 1 has three for each gate."""
    for counts in ([unit.count for unit in units], [_count_of_keras_1(unit) for unit in units]):
        if sum(counts) == len(arrays):
            rest = iter(arrays)
            return [[next(rest) for _ in range(count)] for count in counts]
    raise InteropError(
        f"{where} should have {sum(unit.count for unit in units)} arrays, but has {len(arrays)}; "
        "build the model before it is saved, or take the weights that belong to it"
    )


def _count_of_keras_1(unit: Unit) -> int:
    gates = len(getattr(unit.owner, "gates", ("y",)))
    return 3 * gates if gates > 1 else unit.count


def units_in(layer: Layer, forms: Mapping[str, str]) -> list[Unit]:
    """The units of a layer, at the places where Keras 3 writes them."""
    return units_of(layer, wrapped=forms.get(layer.name) == "TimeDistributed")


def check_model(model: Any) -> None:
    """Raise InvalidInputError unless it is a model."""
    if not isinstance(model, Model):
        raise InvalidInputError(
            f"expected a rnnjax.interop.Model, but got {type(model)}; make one of a cell with "
            "Model.of(cell, params)"
        )


def forms_of(model: Model) -> Mapping[str, str]:
    """The classes that layers had in Keras, as far as that is known."""
    return model.origin.forms if isinstance(model.origin, KerasOrigin) else {}


def arrays_of(
    layer: Layer, model: Model, forms: Mapping[str, str] | None = None
) -> Iterator[tuple[Unit, list[np.ndarray]]]:
    """The arrays of each unit of a layer, in the order and form of Keras."""
    units = units_in(layer, forms or {})
    if not units:
        return
    parts = take_apart(layer, units, model.params.get(layer.name))
    if len(parts) != len(units):
        raise InteropError(
            f"layer {layer.name!r} should have the parameters of {len(units)} cells, but has those "
            f"of {len(parts)}; take those of this model"
        )
    for unit, params in zip(units, parts, strict=True):
        yield unit, to_arrays(unit, params, f"layer {layer.name!r}")
