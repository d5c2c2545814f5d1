"""Models of Keras 1, 2 and 3 in, and of Keras 3 out, without Keras.

To set the weights of a live model, `save` them, and use its own ``load_weights("a.weights.h5")``.
Files need the package h5py: ``pip install 'rnnjax[keras-files]'``.

Supported layers: SimpleRNN, LSTM and GRU with all options, the CuDNN layers of Keras 2,
Bidirectional, RNN around their cells and StackedRNNCells, ConvLSTM1D and 2D (with
``padding="same"``, without strides), Dense, TimeDistributed, Embedding, Masking, Dropout,
GaussianNoise (of which there is none here) and activations; Add, Subtract, Multiply, Average,
Maximum, Minimum, Concatenate and Dot, convolutions (separable and depthwise ones too), pools,
ZeroPadding1D, Cropping1D and UpSampling1D, Flatten, Reshape, Permute and RepeatVector, norms (a
BatchNormalization computes as in prediction, and a Normalization with the moments that it has),
Rescaling, PReLU, attention (causal too), and Keras 3's arithmetic and ``[:, -1]``. The table is
`rnnjax.interop.keras.operators`. A TimeDistributed applies any of them that takes one array and
makes no mask, or a model of them; a recurrent one begins anew at each step.

A model is Sequential or functional, with any number of inputs and outputs. Layers may be used more
than once, and states may go from one layer to another. Models that are layers, or that a
TimeDistributed applies, are flattened, and their layers are named ``model.layer``. They may not
share a layer, except in an ``.h5``, which stores its weights twice. Outputs come in Keras's dict; a
list becomes a tuple.

Differences:

- Sequences are time-major, ``(time, batch, features)``, in all inputs and outputs with a time axis,
  unless ``time_first=False``. Layers with Keras 2's ``time_major=True`` already are.
- Masks propagate as in the Keras that wrote the model. One exception: a MultiHeadAttention of
  Keras 3 removes the mask from the tensors that it reads, so later readers see none.
- State is explicit: every call returns the carry; pass it back for ``stateful=True``. A causal
  convolution keeps the steps before, and takes no ``resets``.
- Both directions may stay apart (``merge_mode=None``), but not behind a mask.
- Layers compute in the types of their parameters and inputs, whatever Keras's dtype policy.
- A mask or ``lengths`` of the call is combined with that of a Masking or Embedding layer. In
  Keras the mask of the layer replaces it.
- Training settings are dropped: optimizer, loss, regularisers, constraints. Dropout remains (that
  of recurrent layers as `rnnjax.Regularized`) and is active if a call has a key.
"""

import json
import os
import tempfile
from typing import Any

from rnnjax.checks import check_instance
from rnnjax.errors import InteropError, InvalidInputError, RnnjaxError
from rnnjax.interop.keras.arrays import as_like, save, whole
from rnnjax.interop.keras.files import read_file
from rnnjax.interop.model import Model, with_axes

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
        InvalidInputError: ``source`` is something else, ``like`` is not needed, or ``time_first``
            is False for a layer with ``time_major=True``.

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
    check_instance("like", like, Model | None, "a rnnjax.interop.Model, as load(keras_model) gives")
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "layers") or not callable(getattr(source, "save", None)):
            raise InvalidInputError(
                f"expected a Keras model, or the path of a file, but got {type(source)}; put a "
                "layer into a keras.Sequential"
            )
        with tempfile.TemporaryDirectory() as folder:
            source.save(f"{folder}/model.keras")
            return load(f"{folder}/model.keras", like=like, time_first=time_first)
    file = read_file(source)
    if file.config is None and like is None:
        shapes = (f"{name} {array.shape}" for name, array in file.arrays.items())
        raise InteropError(
            f"{source} holds weights alone; give a model of the same layers, as in load(path, "
            "like=model), or save the whole model with model.save('model.keras'); it has "
            f"{', '.join(shapes)!r:.800}"
        )
    if file.config is not None and like is not None:
        raise InvalidInputError(
            f"like is for a file of weights alone, but {source} holds its layers; leave it out"
        )
    try:
        if not time_first and '"time_major": true' in json.dumps(file.config):
            raise InvalidInputError(
                f"time_first=False is for data that are batch first, but a layer of {source} says "
                "time_major=True, so that its data are time first; leave it out"
            )
        return with_axes(whole(file) if like is None else as_like(file, like), time_first)
    except RnnjaxError:
        raise
    except (RecursionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InteropError(
            f"the layers of {str(source)[:200]!r} are damaged ({type(error).__name__}); get the "
            "file again"
        ) from error
