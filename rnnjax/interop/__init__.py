"""Models of other frameworks: weights in and out, and what runs them here.

Each format has a module of its own, which is imported by name: `rnnjax.interop.keras`,
`rnnjax.interop.torch`, `rnnjax.interop.flax` and `rnnjax.interop.onnx`. None of them imports the
framework, but for the reader of a file format where it needs one.
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
from rnnjax.interop.serving import export

__all__ = [
    "Activation",
    "Dense",
    "Dropout",
    "Embedding",
    "Flow",
    "Functional",
    "Layer",
    "Masking",
    "Model",
    "Network",
    "OneHotIds",
    "Recurrent",
    "Sequential",
    "export",
    "load",
]
