"""Models of Keras 1, 2 and 3, in and out, without Keras.

`load` takes a live model, a ``.keras`` archive, a ``.weights.h5`` file, or an ``.h5`` file in the
old layout; `save` writes these files. To set the weights of a live model, use its own
``load_weights("a.weights.h5")``. Files need the package h5py: ``pip install
'rnnjax[keras-files]'``.

Supported layers: SimpleRNN, LSTM and GRU with all options, the CuDNN layers of Keras 2,
Bidirectional, RNN around their cells and StackedRNNCells, Dense, TimeDistributed, Embedding,
Masking, Dropout and activations; Add, Multiply, Average, Concatenate and Dot, convolutions and
pools, Flatten, Reshape, Permute and RepeatVector, norms (a BatchNormalization computes as in
prediction, with fixed moments), attention, and Keras 3's arithmetic and ``[:, -1]``. The table is
`rnnjax.interop.keras.operators`.

A model is Sequential or functional, with any number of inputs and outputs. Layers may be used more
than once, and states may go from one layer to another. Models that are layers are flattened, and
their layers are named ``model.layer``. They may not share a layer, except in an ``.h5``, which
stores its weights twice. Outputs come in Keras's dict; a list becomes a tuple.

Differences:

- Sequences are time-major, ``(time, batch, features)``, in all inputs and outputs with a time axis,
  unless ``time_first=False``. Layers with Keras 2's ``time_major=True`` already are.
- Masks propagate as in Keras. One exception: a MultiHeadAttention of Keras 3 removes the mask from
  the tensors that it reads, so later readers see none.
- State is explicit: every call returns the carry; pass it back for ``stateful=True``.
- Layers compute in the types of their parameters and inputs, whatever Keras's dtype policy.
- A mask or ``lengths`` of the call is combined with that of a Masking or Embedding layer. In
  Keras the mask of the layer replaces it.
- Training settings are dropped: optimizer, loss, regularisers, constraints. Dropout remains (that
  of recurrent layers as `rnnjax.Regularized`) and is active if a call has a key.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import Places, build, snake, split, unique, units_of
from rnnjax.interop.keras.files import KerasFile, read_file
from rnnjax.interop.keras.graph import network_of
from rnnjax.interop.keras.options import entry_of, is_model, layers_in, version_of
from rnnjax.interop.keras.writing import configs_of, groups_of, save
from rnnjax.interop.model import Model, Network, Sequential, with_axes

__all__ = ["load", "save"]


def load(source: Any, *, like: Model | None = None, time_first: bool = True) -> Model:
    """Convert a live Keras model, or read a file that Keras wrote.

    It runs no code of a file, unpickles nothing and follows no links. A layer that holds code, or
    is a custom class, is refused.

    Args:
        source: the path of a file: ``.keras``, ``.weights.h5``, or ``.h5`` as Keras 1 and 2 wrote
            it, a whole model or only its weights; or a built Keras model, which is saved and read.
        like: a model with the same layers, for a file with only weights. Its own parameters are
            replaced.
        time_first: whether inputs and outputs are time first; False for Keras's own axes, batch
            first. Carries have no time axis, and ``mask`` and ``resets`` are time first in both.

    Returns:
        the model; its carry has Keras's states: `rnnjax.LSTMCarry` has ``h`` and ``c``.

    Raises:
        InteropError: the file cannot be read or is damaged; a layer is not supported, or its
            weights do not belong to it; it has only weights and ``like`` is missing; or h5py is
            missing.
        InvalidInputError: ``source`` is something else, or ``like`` is not needed.

    >>> import jax, rnnjax, tempfile
    >>> cell = rnnjax.LSTMCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3), "lstm")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.keras")
    ...     again = load(f"{folder}/model.keras")
    >>> print(again)
    layer  what it is   parameters
    lstm   LSTMCell(5)  180  bias (20,), kernel (3, 20), recurrent_kernel (5, 20)
    axes   time first
    """
    if like is not None and not isinstance(like, Model):
        raise InvalidInputError(f"like should be a rnnjax.interop.Model, but is {type(like)}")
    try:
        return with_axes(_load(source, like), time_first)
    except RecursionError as error:
        raise InteropError(
            f"the config of {str(source)[:200]} is nested too deep; it is damaged"
        ) from error


def _load(source: Any, like: Model | None) -> Model:
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "layers") or not callable(getattr(source, "save", None)):
            raise InvalidInputError(
                f"expected a Keras model, or the path of a file, but got {type(source)}; put a "
                "layer into a keras.Sequential"
            )
        with tempfile.TemporaryDirectory() as folder:
            source.save(f"{folder}/model.keras")
            return _load(f"{folder}/model.keras", like)
    file = read_file(source)
    if file.config is None and like is None:
        raise InteropError(
            f"{source} holds weights alone, and not the layers that they are of; give a model of "
            "these layers, as in load(path, like=model), or save the whole model with "
            "model.save('model.keras')"
        )
    if file.config is not None and like is not None:
        raise InvalidInputError(
            f"like is for a file that holds weights alone, but {source} holds its layers too; "
            "leave it out"
        )
    return _whole(file) if like is None else _like(file, like)


def _whole(file: KerasFile) -> Model:
    """The model of a file that says its layers."""
    kind, config = _model_in(file)
    if not is_model(kind):
        raise InteropError(
            f"the file should hold a Sequential or a functional model, but holds {kind[:80]!r}, a "
            "class of somebody's own; save its layers as a Sequential"
        )
    network = network_of(kind, config, version_of(file.version))
    if file.groups is not None:
        return build(network, file, _in_groups(network, file.groups))
    return build(network, file, _at_paths(network, dict(_groups_in(kind, config)), file))


def _groups_in(kind: str, config: Any, own: str = "", above: str = "") -> Iterator[tuple[str, str]]:
    """The name of each layer, and where Keras 3 has its arrays; models have theirs inside."""
    used: dict[str, int] = {}
    for entry, _ in layers_in(kind, config, 3):
        name, group = f"{own}{entry.name}", f"{above}{unique(snake(entry.kind), used)}"
        if is_model(entry.kind):
            yield from _groups_in(entry.kind, entry.config, f"{name}.", f"{group}/layers/")
        else:
            yield name, group


def _model_in(file: KerasFile) -> tuple[str, Any]:
    """Class name and config of a model; in Keras 1 that of a Sequential is its list of layers."""
    if isinstance(file.config, dict) and isinstance(file.config.get("config"), list):
        return str(file.config.get("class_name")), file.config["config"]
    entry = entry_of(file.config, "the model", 3)
    return entry.kind, entry.config


def _like(file: KerasFile, like: Model) -> Model:
    """The model ``like``, with the weights of a file that holds nothing else."""
    layers = Sequential(tuple(one for one in like.network.layers.values() if units_of(one)))
    if file.groups is None:
        if "file" in like.origin:
            groups = dict(_groups_in(*_model_in(like.origin["file"])))
        else:
            groups = groups_of(configs_of(like.network))
        places = _at_paths(layers, groups, file)
    else:
        full = [list(paths.values()) for _, paths in file.groups if paths]
        if len(full) != len(layers.layer_list):
            raise InteropError(
                f"the file holds weights of {len(full)} layers, but the model given as like has "
                f"{len(layers.layer_list)} with weights; give one of the same layers"
            )
        places = {
            layer.name: split(layer, paths)
            for layer, paths in zip(layers.layer_list, full, strict=True)
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


def _in_groups(network: Network, groups: Sequence[tuple[str, Mapping[str, str]]]) -> Places:
    """The arrays of the old layout, where each layer has a list, but those of a model have one."""
    by_name = {name: dict(paths) for name, paths in groups}
    found: Places = {}
    for layer in network.layers.values():
        above, _, own = layer.name.rpartition(".")
        if layer.name in by_name or not above:
            paths = list(by_name.pop(layer.name, {}).values())
        else:
            those = by_name.get(above.partition(".")[0], {})
            names = [name for name in those if name.partition("/")[0] == own]
            names = names or [name for name in those if own in name.split("/")]
            paths = [those.pop(name) for name in names]
        found[layer.name] = split(layer, paths)
    left = [name for name, paths in by_name.items() if paths]
    if left:
        raise InteropError(
            f"the file has weights of layer {left[0][:80]!r}, which is not in the model; its "
            "weights are those of another model"
        )
    return found
