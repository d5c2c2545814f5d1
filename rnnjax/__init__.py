"""Recurrent networks for JAX and Flax: pure cells, explicit state, and a fast exact gradient."""

from rnnjax.cells import (
    AdditiveCell,
    Carry,
    Cell,
    CompositeCell,
    DenseCell,
    GatedCell,
    GRUCarry,
    GRUCell,
    LSTMCarry,
    LSTMCell,
    OneHot,
    Params,
    SimpleRNNCarry,
    SimpleRNNCell,
)
from rnnjax.engine import Auto, Explanation, Fused, Method, Scan, explain, unroll
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
    "Explanation",
    "Fused",
    "GRUCarry",
    "GRUCell",
    "GatedCell",
    "InvalidInputError",
    "LSTMCarry",
    "LSTMCell",
    "Method",
    "NonFiniteError",
    "OneHot",
    "Params",
    "RnnjaxError",
    "Scan",
    "SimpleRNNCarry",
    "SimpleRNNCell",
    "Stack",
    "explain",
    "unroll",
]
