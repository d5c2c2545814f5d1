"""Models of other frameworks: read, write and run them.

Each format has its own module: `rnnjax.interop.keras`, `rnnjax.interop.torch`,
`rnnjax.interop.flax` and `rnnjax.interop.onnx`. None imports the framework. Some need the reader of
a file format.
"""

from rnnjax.interop.convert import load
from rnnjax.interop.layers import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Flow,
    Layer,
    Masking,
    OneHotIds,
    Recurrent,
)
from rnnjax.interop.model import Functional, Model, Network, Sequential
from rnnjax.interop.program import export

__all__ = [
    "Activation", "Dense", "Dropout", "Embedding", "Flow", "Functional", "Layer", "Masking",
    "Model", "Network", "OneHotIds", "Recurrent", "Sequential", "export", "load",
]  # fmt: skip
