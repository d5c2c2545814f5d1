"""Recurrent networks for JAX and Flax: pure cells, explicit state, and a fast exact gradient."""

from rnnjax.cells import (
    AdditiveCell,
    Carry,
    Cell,
    CompositeCell,
    DenseCell,
    GRUCarry,
    GRUCell,
    LSTMCarry,
    LSTMCell,
    Params,
    SimpleRNNCarry,
    SimpleRNNCell,
)
from rnnjax.engine import Auto, Fused, Method, Scan, unroll
from rnnjax.errors import (
    CheckpointError,
    CorpusError,
    InvalidInputError,
    NonFiniteError,
    RnnjaxError,
)
from rnnjax.layers import Stack

__version__ = "0.1.0"

__all__ = [
    "AdditiveCell",
    "Auto",
    "Carry",
    "Cell",
    "CheckpointError",
    "CompositeCell",
    "CorpusError",
    "DenseCell",
    "Fused",
    "GRUCarry",
    "GRUCell",
    "InvalidInputError",
    "LSTMCarry",
    "LSTMCell",
    "Method",
    "NonFiniteError",
    "Params",
    "RnnjaxError",
    "Scan",
    "SimpleRNNCarry",
    "SimpleRNNCell",
    "Stack",
    "unroll",
]
