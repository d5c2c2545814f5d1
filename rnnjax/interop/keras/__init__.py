"""Models of Keras 1, 2 and 3, in and out, without Keras.

`load` takes a live model, a ``.keras`` archive, a ``.weights.h5`` file, or an ``.h5`` file in the
old layout; `save` writes these files. The weights of a live model are set by its own
``load_weights("a.weights.h5")``. Files need the package h5py: ``pip install
'rnnjax[keras-files]'``.

What is known: SimpleRNN, LSTM and GRU with all their options, the CuDNN layers of Keras 2,
Bidirectional, RNN around their cells and StackedRNNCells, Dense, TimeDistributed, Embedding,
Masking, Dropout, and activations, in a Sequential or in a functional model, of any number of inputs
and outputs: layers that are used more than once, and states that go from one layer into another.
Models that are layers are taken apart, and their layers are named ``model.layer``; none may share a
layer with another, but in an ``.h5``, which does not say it and has its weights twice. Outputs come
in the dict that Keras has them in, a list as a tuple.
Beside them stand Add, Multiply, Average, Concatenate and Dot, convolutions and pools, Flatten,
Reshape, Permute and RepeatVector, norms (a BatchNormalization computes as in prediction, and learns
no more moments), attention, and of Keras 3 arithmetic and ``[:, -1]``: the table is
`rnnjax.interop.keras.operators`.
What differs:

- Sequences are time-major, ``(time, batch, features)``, unless ``time_first=False`` is asked for,
  in all inputs and outputs with a time. A layer with Keras 2's ``time_major=True`` had them so.
- A mask goes the way that it goes in Keras, but that a MultiHeadAttention of Keras 3 takes it off
  the tensors that it reads, so that layers that read them later see none.
- State is explicit: ``stateful=True`` is feeding the carry back, which every call returns.
- Layers compute in the types of their parameters and inputs, whatever policy of dtypes Keras had.
- A mask or ``lengths`` given to the model adds to that of a Masking or Embedding layer, which in
  Keras takes its place.
- What concerns training alone is left behind: optimizer, loss, regularisers, constraints. Dropout
  is kept, recurrent layers' own in `rnnjax.Regularized`, and acts where a call has a key.
"""

import os
import tempfile
from typing import Any

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.keras.arrays import KerasOrigin
from rnnjax.interop.keras.files import read_file
from rnnjax.interop.keras.reading import load_file, load_like
from rnnjax.interop.keras.writing import save
from rnnjax.interop.model import Model, with_axes

__all__ = ["KerasOrigin", "load", "save"]


def load(source: Any, *, like: Model | None = None, time_first: bool = True) -> Model:
    """The model of a live Keras model, or of a file that Keras wrote.

    Nothing in a file is run, nothing is unpickled, and no link in it is followed: a layer that
    holds code, or is somebody's own class, is refused.

    Args:
        source: the path of a file: ``.keras``, ``.weights.h5``, or ``.h5`` as Keras 1 and 2 wrote
            it, a whole model or its weights alone; or a built Keras model, which is saved and read.
        like: a model with the layers of a file that holds weights alone, which does not say them.
            Its own parameters are replaced.
        time_first: whether data is given and returned time first; False for Keras's own axes, batch
            first. Carries have no time, and ``mask`` and ``resets`` are time first in both.

    Returns:
        the model; its carry is that of Keras's states: `rnnjax.LSTMCarry` has ``h`` and ``c``.

    Raises:
        InteropError: the file cannot be read or is damaged, a layer is not known here, or its
            weights do not belong to it; it holds weights alone, and ``like`` is missing; or h5py is
            missing.
        InvalidInputError: ``source`` is something else, or ``like`` is given without need.

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
    return load_file(file) if like is None else load_like(file, like)
