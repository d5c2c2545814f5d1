"""Models into files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import arrays_of, forms_of
from rnnjax.interop.keras.configs import config_of, groups_of, written_layers
from rnnjax.interop.keras.files import write_archive, write_hdf5
from rnnjax.interop.layers import Embedding, Layer, OneHotIds
from rnnjax.interop.model import Functional, Model, check_model

_WRITTEN_BY = "3.0.0"  # the first version of Keras that reads what is written here


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a file that Keras 3 reads.

    ``.keras`` holds the whole model for ``keras.saving.load_model``; ``.weights.h5`` the weights
    alone, for ``load_weights`` of the model that is read from the first. A file of that name is
    replaced, and only by a whole one.

    `OneHotIds` at the start of the model is left out, because Keras has no such layer that fits
    here: the model in Keras takes one-hot vectors. What concerns training alone is not written, and
    models that were layers of the model are written as the layers that they are made of.

    Args:
        model: one that was loaded, or any other whose layers Keras has: `rnnjax.SimpleRNNCell`,
            `rnnjax.LSTMCell`, `rnnjax.GRUCell`, `rnnjax.Regularized` without zoneout, a
            `rnnjax.Stack` or `rnnjax.Bidirectional` of them, and the other layers of
            `rnnjax.interop`.
        path: its name ends in ``.keras`` or ``.weights.h5``.

    Raises:
        InteropError: a layer does what no layer of Keras does, the file cannot be written, or h5py
            is missing.
        InvalidInputError: the name ends in something else, or ``model`` is no model.
    """
    check_model(model)
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path should be the name of a file, but is {type(path)}")
    path = Path(path)
    layers, forms = written_layers(model.network), forms_of(model)
    if not path.name.endswith((".keras", ".weights.h5")):
        raise InvalidInputError(
            f"the name of the file should end in .keras or .weights.h5, but is {path.name!r}"
        )
    if not layers:
        raise InteropError("the model has no layer that Keras knows; there is nothing to write")
    places = groups_of(layers, forms)
    groups: dict[str, tuple[str, list[np.ndarray]]] = {"": ("sequential", [])}
    for layer in layers:
        for unit, arrays in arrays_of(layer, model, forms):
            place = f"{places[layer.name]}/{unit.path}".rstrip("/")
            groups[place] = (layer.name, arrays)
    if path.name.endswith(".weights.h5"):
        write_hdf5(path, groups)
        return
    config = config_of(model.network, layers, forms, _features(model, layers))
    write_archive(path, config, {"keras_version": _WRITTEN_BY}, groups)


def _features(model: Model, layers: Sequence[Layer]) -> int | None:
    """How many features the inputs have; None for ids, or where it does not matter."""
    if isinstance(model.network, Functional):  # which says it of each input
        return None
    first = model.network.layers[next(iter(model.network.layers))]
    if isinstance(first, OneHotIds):
        return first.size
    for layer in layers:
        for _, arrays in arrays_of(layer, model):
            return None if isinstance(layer, Embedding) else int(arrays[0].shape[0])
    return None
