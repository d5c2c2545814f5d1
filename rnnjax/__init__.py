"""Recurrent networks for JAX and Flax: pure cells, explicit state, and a fast exact gradient."""

import importlib
import types
import typing

from rnnjax import checks
from rnnjax.cells import (
    Cell,
    ConvLSTMCell,
    Coupling,
    DiagonalLSTMCell,
    GatedDeltaNetCell,
    GRUCarry,
    GRUCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LeakyRNNCell,
    LRUCell,
    LSTMCarry,
    LSTMCell,
    Mamba2Cell,
    MatrixCarry,
    Memory,
    MGUCell,
    MinGRUCell,
    MinLSTMCell,
    MLSTMCell,
    OneHot,
    Param,
    PeepholeLSTMCell,
    ProjectionLSTMCell,
    RGLRUCell,
    Role,
    S5Cell,
    S6Cell,
    SimpleRNNCarry,
    SimpleRNNCell,
    SLSTMCell,
    TemporalConvCell,
)
from rnnjax.engine import (
    Auto,
    Fused,
    Method,
    Parallel,
    Scan,
    causal_convolution,
    explain,
    linear_recurrence,
    matrix_memory,
    unroll,
)
from rnnjax.errors import (
    CheckpointError,
    InteropError,
    InvalidInputError,
    NonFiniteError,
    RnnjaxError,
)
from rnnjax.layers import (
    AttentionCell,
    Bidirectional,
    Directions,
    Dropout,
    LearnedCarry,
    Regularized,
    Stack,
    attend,
    pool,
    prepare,
    restart,
    split_key,
    state_gradients,
    valid_steps,
)
from rnnjax.packing import pack, pad, unpack

__version__ = "0.1.0"

__all__ = [
    "AttentionCell",
    "Auto",
    "Bidirectional",
    "Cell",
    "CheckpointError",
    "ConvLSTMCell",
    "Coupling",
    "DiagonalLSTMCell",
    "Directions",
    "Dropout",
    "Fused",
    "GRUCarry",
    "GRUCell",
    "GatedDeltaNetCell",
    "InteropError",
    "InvalidInputError",
    "LRUCell",
    "LSTMCarry",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LeakyRNNCell",
    "LearnedCarry",
    "MGUCell",
    "MLSTMCell",
    "Mamba2Cell",
    "MatrixCarry",
    "Memory",
    "Method",
    "MinGRUCell",
    "MinLSTMCell",
    "NonFiniteError",
    "OneHot",
    "Parallel",
    "Param",
    "PeepholeLSTMCell",
    "ProjectionLSTMCell",
    "RGLRUCell",
    "Regularized",
    "RnnjaxError",
    "Role",
    "S5Cell",
    "S6Cell",
    "SLSTMCell",
    "Scan",
    "SimpleRNNCarry",
    "SimpleRNNCell",
    "Stack",
    "TemporalConvCell",
    "attend",
    "causal_convolution",
    "explain",
    "linear_recurrence",
    "matrix_memory",
    "pack",
    "pad",
    "pool",
    "prepare",
    "restart",
    "split_key",
    "state_gradients",
    "unpack",
    "unroll",
    "valid_steps",
]

if typing.TYPE_CHECKING:  # what type checkers see, in two lines for the linter's seven
    from rnnjax import interop as interop, linen as linen, nnx as nnx, online as online  # noqa: I001
    from rnnjax import testing as testing, text as text, training as training
else:
    _ROOMS = "training", "testing", "online", "text", "interop", "linen", "nnx"

    def __getattr__(name: str) -> typing.Any:
        """Import a room when it is named; suggest a public name for a missing one."""
        if name in _ROOMS:
            return importlib.import_module(f"rnnjax.{name}")
        meant = [f"write rnnjax.{name}Cell"] if f"{name}Cell" in __all__ else []
        meant += [checks.HABITS[name]] if name in checks.HABITS else []
        if not meant and not name.startswith("_"):
            rooms = "cells", "engine", "errors", "layers", "packing", *_ROOMS[:4]
            for room in map(importlib.import_module, [f"rnnjax.{room}" for room in rooms]):
                public = name in getattr(room, "__all__", vars(room))  # not what it imports
                if public and not isinstance(getattr(room, name), types.ModuleType):
                    meant += [f"write {room.__name__}.{name}"]
        raise AttributeError("; ".join([f"module 'rnnjax' has no attribute {name!r}", *meant[:1]]))

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ROOMS})
