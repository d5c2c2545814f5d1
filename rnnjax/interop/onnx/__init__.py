"""Models of ONNX: read, run, train and write them.

It needs only the package that reads ONNX files (``pip install 'rnnjax[onnx]'``), and no runtime.
"""

from typing import Any

from rnnjax.interop.model import Model
from rnnjax.interop.onnx.export import ends_of, save, to_proto
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.onnx.read import read_graph, read_model

__all__ = ["Graph", "ends_of", "load", "save", "to_proto"]


def load(source: Any) -> Model:
    """Read an ONNX model: its graph, and its parameters in rnnjax's layout.

    The graph may have RNN, GRU and LSTM nodes, and the operators that exporters put around them:
    arithmetic, convolutions, pools, normalisations, branches, loops. ``model.layers`` has each
    recurrent node as a `Recurrent` with its cell. Other float arrays, and weights that nodes share
    or combine, are ``"constants"``, by their names in the file. All of these are parameters, and
    trainable. A gate keeps two biases if the second is not zero, as in PyTorch: an optimizer moves
    their sum twice as far. ``clip`` is refused if it could take effect.

    ``model.apply(params, xs, carry)`` takes and returns data with the graph's own axes, like any
    runtime. ``xs`` is the graph's first input, or a dict of inputs by name. Inputs that are only
    initial_h, initial_c or sequence_lens of recurrent nodes may be left out. ``ys`` is the output,
    or a dict by name if there are several. If there are other outputs, Y_h and Y_c of a node are in
    the carry instead, by the name of the layer. So any model streams::

        carry, ys = model.apply(params, xs)  # begins with zeros
        carry, ys = model.apply(params, xs, carry)  # continues from there

    A given carry replaces states in ``xs``, and those that the graph computes or has as constants.

    A row of length 0 keeps its initial state; ONNX does not specify it (onnxruntime returns zeros).
    ``lengths`` and ``mask`` of `Model.apply` go to the recurrent nodes, whose first axis says which
    of the graph's is time. They are refused where another node mixes its steps, as a mean over them
    does, and ``resets`` always. 64-bit integers are computed in 32 bits unless JAX has 64. An id
    out of range gives NaN.

    A branch (If) is chosen at tracing if its condition is known, and else at run time. Known are
    values that follow from constants, from shapes, and from single Python or NumPy integers and
    booleans: ``model({"input": xs, "state": state, "sr": 16000})``. A Loop whose number of steps is
    known, or counted by a state, becomes a scan; any other is refused. Recurrent nodes inside
    branches and loops have parameters, but a state in the carry only if their branch is known.

    Args:
        source: the path of a file, its bytes, or an ``onnx.ModelProto``. Data outside of the file
            are read only if they are in a plain file next to it.

    Returns:
        a model whose network is a `Graph`.

    Raises:
        InteropError: the file cannot be read, is damaged, or holds something that is not supported;
            or the package onnx is missing.
        InvalidInputError: ``source`` is of another kind.

    >>> import jax, rnnjax
    >>> cell = rnnjax.LSTMCell(5)
    >>> trained = Model.of(cell, cell.init(jax.random.key(0), 3), "lstm")
    >>> model = load(to_proto(trained, states=False))
    >>> print(model)
    layer  what it is   parameters
    lstm   LSTMCell(5)  180  bias (20,), kernel (3, 20), recurrent_kernel (5, 20)
    axes   the graph's own
    >>> carry, ys = model(jax.numpy.ones((10, 8, 3)))
    >>> ys.shape, carry["lstm"].hidden.shape
    ((10, 8, 5), (8, 5))
    """
    return read_graph(*read_model(source))
