"""Parameters of PyTorch's recurrent modules, in and out, without PyTorch.

`from_state_dict` takes ``module.state_dict()``, and `load` reads one from a file of ``torch.save``
or safetensors. `to_state_dict` and `save` are the inverses. A state dict does not contain what is
only in a module's code: the functions between its modules, dropout, the ``max_norm`` of an
embedding, and which outputs are used. Give functions as layers between the names of ``modules``;
the inverses omit them. `load_state_dict` reads the arrays of any module, also from several files.

Sequences are time-major, as in PyTorch without ``batch_first``, unless ``time_first=False``. The
carry of a layer is `rnnjax.LSTMCarry` or the like, a tuple of them for several layers, and
`rnnjax.Directions` for both directions.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from rnnjax.checks import check_instance
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import layer_arrays
from rnnjax.interop.files import opened
from rnnjax.interop.layers import Layer, Recurrent
from rnnjax.interop.model import Model, with_axes, with_parameters
from rnnjax.interop.torch.files import read_arrays, read_index, write_arrays
from rnnjax.interop.torch.modules import find_state, read_model, to_theirs, write_recurrent
from rnnjax.interop.torch.saved import is_saved_by_torch, read_saved

_MOST_REPEATED = 4  # times that what a file holds may be in its state dict: averages, tied weights

__all__ = ["from_state_dict", "load", "load_state_dict", "save", "to_state_dict"]

Nonlinearity = Literal["tanh", "relu"]


def from_state_dict(
    mapping: Mapping[str, Any],
    *,
    at: str | None = None,
    modules: Sequence[str | Layer] | None = None,
    nonlinearity: Nonlinearity = "tanh",
    time_first: bool = True,
) -> Model:
    """Convert a state dict of PyTorch, or a checkpoint that contains one, to a model.

    It may hold ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` (any number of layers, both directions,
    ``proj_size``, ``bias=False``), ``nn.RNNCell``, ``nn.LSTMCell`` and ``nn.GRUCell``,
    ``nn.Embedding`` and ``nn.Linear``. The kind follows from the shapes. A module of several layers
    becomes a `rnnjax.Stack`, one of both directions a `rnnjax.Bidirectional`. Layers have the names
    of the modules, without the ``module.`` of ``nn.DataParallel``, and ``"rnn"`` is one at the top
    level. Both biases stay, as ``bias`` and ``recurrent_bias``. Where there are other modules, such
    as normalisation and convolutions, ``modules`` has to say what runs without them.

    Args:
        mapping: ``module.state_dict()``: names to tensors, or to arrays of NumPy or JAX; or a dict
            that holds it, as in ``{"model": state_dict, "epoch": 3}``.
        at: its path, if there are several: ``"model"``, or ``"models/first"``.
        modules: which modules run, in order, with layers without parameters between them:
            ``["embedding", "lstm", Activation("relu", "relu"), "head"]``. Only these are read. By
            default all modules, if their sizes fit in one order alone, whatever the order in which
            they were made: an embedding, recurrent modules whose names count them (``lstm1``,
            ``lstm2``), one linear module. A weight without bias is an embedding if it comes first
            and fits, else a linear module. Read an encoder and a decoder as two models.
        nonlinearity: ``"tanh"`` or ``"relu"`` for ``nn.RNN``, which a state dict does not store.
        time_first: whether inputs and outputs are time first; False for batch first, as with
            ``batch_first=True``.

    Raises:
        InteropError: there is no module, or one of ``modules`` is of another kind; an array is not
            in float16, bfloat16, float32 or (with JAX's ``jax_enable_x64``) float64, the shapes do
            not fit each other, the order is not certain, or there is more than one state dict.
        InvalidInputError: an argument is of another type, or names what is not there.

    >>> import numpy as np
    >>> state = {"weight_ih_l0": np.ones((20, 3)), "weight_hh_l0": np.ones((20, 5))}
    >>> state = {name: array.astype(np.float32) for name, array in state.items()}
    >>> model = from_state_dict({"model": state, "epoch": 3})
    >>> print(model)
    layer  what it is   parameters
    rnn    LSTMCell(5)  160  kernel (3, 20), recurrent_kernel (5, 20)
    axes   time first
    >>> sorted(to_state_dict(model)) == sorted(state)
    True
    """
    check_instance("mapping", mapping, Mapping, "a state dict, as module.state_dict() gives")
    return with_axes(read_model(find_state(mapping, at), modules, nonlinearity), time_first)


def load(
    path: str | os.PathLike[str],
    *,
    at: str | None = None,
    modules: Sequence[str | Layer] | None = None,
    nonlinearity: Nonlinearity = "tanh",
    time_first: bool = True,
) -> Model:
    """Read a file that ``torch.save`` or safetensors wrote; see `from_state_dict`.

    The content tells the format. PyTorch is not needed, and no code in a file is run. From a
    ``.pt`` it reads tensors, numbers, text and plain containers, and skips everything else. A file
    with a whole module, ``torch.save(module)``, is refused: load it in PyTorch, if you trust it,
    and save ``module.state_dict()``.

    Raises:
        InteropError: as there; the file is missing, damaged, or holds no parameters; or it is a
            ``.safetensors``, and the package safetensors is missing.
        InvalidInputError: as there.

    >>> import pathlib, tempfile, jax, rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "gru.safetensors")
    ...     save(Model.of(cell, cell.init(jax.random.key(0), 3)), path)
    ...     load(path).layers["rnn"].cell == cell
    True
    """
    with opened(path) as file:
        return with_axes(read_model(_state_in(file, at), modules, nonlinearity), time_first)


def load_state_dict(
    path: str | os.PathLike[str], *, at: str | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of any module, by name, from a file or from an index of several.

    It reads what ``torch.save(module.state_dict(), path)`` and safetensors write, as `load` does;
    and ``model.safetensors.index.json``, whose ``weight_map`` names the file of each array, which
    must lie beside it. Arrays of a ``.safetensors`` file are read-only views of the mapped file:
    bytes are read where they are used, so several files may be larger than the memory. Those of
    bfloat16 have the type ``jax.numpy.bfloat16``.

    Args:
        path: a file, or an index, whose name ends in ``.json``.
        at: the path of the state dict in a file of ``torch.save``, as in `from_state_dict`.

    Raises:
        InteropError: as `load`; or an index names a file outside of its folder, or an array that
            its file does not have.
        InvalidInputError: ``at`` names what is not there.

    >>> import pathlib, tempfile, jax, rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "gru.safetensors")
    ...     save(Model.of(cell, cell.init(jax.random.key(0), 3)), path)
    ...     {name: x.shape for name, x in load_state_dict(path).items() if "bias" not in name}
    {'weight_hh_l0': (15, 5), 'weight_ih_l0': (15, 3)}
    """
    with opened(path) as file:
        if not str(path).endswith(".json"):
            state = _state_in(file, at).items()
            if not (arrays := {str(key): x for key, x in state if isinstance(x, np.ndarray)}):
                raise InteropError("it holds no arrays by name; say in at where they are")
            return arrays
        index = read_index(path)
    held = {beside: load_state_dict(beside, at=at) for beside in dict.fromkeys(index.values())}
    if absent := [name for name, beside in index.items() if name not in held[beside]]:
        raise InteropError(
            f"{path} says that {absent[0][:80]!r} is in {index[absent[0]].name}, but it is not; "
            "get both again"
        )
    return {name: held[beside][name] for name, beside in index.items()}


def to_state_dict(model: Model) -> dict[str, np.ndarray]:
    """Convert the parameters to a state dict that PyTorch's modules load strictly.

    `SimpleRNNCell` (tanh or relu), `LSTMCell`, `GRUCell` and `ProjectionLSTMCell` become
    ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, a `Stack` of equal cells ``num_layers`` of them, a
    `Bidirectional` (``"concat"``) both directions; `Dense` becomes ``nn.Linear``, `Embedding`
    ``nn.Embedding``. Keys begin with the layer's name, as in ``lstm.weight_ih_l0``; they have no
    prefix if the model came without, or if its one layer with parameters is recurrent and named
    ``"rnn"``. What PyTorch's users write in code is left out: activations, dropout, one-hot
    vectors, masking, and whether the last output alone is passed.

    A model that came from PyTorch goes back to the bit. Where a cell has one bias, ``bias_hh`` is
    zeros.

    ``module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})`` loads it, and for
    bfloat16, which NumPy does not have, ``safetensors.torch.load_file`` of what `save` wrote.

    Raises:
        InteropError: PyTorch has no module for a layer: another cell or option of one, a stack
            of unlike cells, a layer that runs in reverse.
        InvalidInputError: the parameters are not those of the layers.

    >>> import jax, rnnjax
    >>> cell = rnnjax.Stack([rnnjax.LSTMCell(5)] * 2)
    >>> state = to_state_dict(Model.of(cell, cell.init(jax.random.key(0), 3), "lstm"))
    >>> [f"{name} {array.shape}" for name, array in state.items()][:2]
    ['lstm.weight_ih_l0 (20, 3)', 'lstm.weight_hh_l0 (20, 5)']
    """
    layers = with_parameters(model, "PyTorch")
    prefixes, single = (model.origin.get(key, {}) for key in ("prefixes", "single_cells"))
    alone = [name for name in model.layers if model.params.get(name)]
    state: dict[str, np.ndarray] = {}
    for name, layer, params in layers:
        top = alone == ["rnn"] and isinstance(layer, Recurrent)
        prefix = prefixes.get(name, "" if top else f"{name}.")
        if isinstance(layer, Recurrent):
            entries = write_recurrent(layer, params, name in single)
        else:
            entries = to_theirs(type(layer), layer_arrays(layer, params))
        for key, array in entries.items():
            if prefix + key in state:
                raise InteropError(f"two layers would write {prefix + key!r}; rename {name!r}")
            state[prefix + key] = array
    return state


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write `to_state_dict` as ``.safetensors``, which ``safetensors.torch.load_file`` reads too.

    Raises:
        InteropError: as there; the file cannot be written; or the package safetensors is missing.
        InvalidInputError: as there, or the name does not end in ``.safetensors``.

    >>> import jax, rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> save(Model.of(cell, cell.init(jax.random.key(0), 3)), "model.pt")
    Traceback (most recent call last):
    rnnjax.errors.InvalidInputError: the name of the file should end in .safetensors, but is \
'model.pt'; rename it
    """
    write_arrays(path, to_state_dict(model))


def _state_in(file: BinaryIO, at: str | None) -> Mapping[Any, Any]:
    """The state dict in a file; its arrays take little more memory than the file."""
    if not is_saved_by_torch(file.read(32)):
        return find_state(read_arrays(file)[0], at)
    size = file.seek(0, os.SEEK_END)
    tree, unread = read_saved(file)
    state = find_state(tree, at, unread)
    named = sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray))
    if named > _MOST_REPEATED * size + 2**20:
        raise InteropError(
            f"its tensors are views of few numbers: they would have {named:,} bytes, where "
            f"the file has {size:,}; save copies of them"
        )
    return state
