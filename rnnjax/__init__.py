"""Recurrent networks for JAX and Flax: pure cells, explicit state, and a fast exact gradient."""

import importlib
import types
import typing

from rnnjax import checks
from rnnjax.cells import Cell as Cell
from rnnjax.cells import ConvLSTMCell as ConvLSTMCell
from rnnjax.cells import Coupling as Coupling
from rnnjax.cells import DiagonalLSTMCell as DiagonalLSTMCell
from rnnjax.cells import GatedDeltaNetCell as GatedDeltaNetCell
from rnnjax.cells import GRUCarry as GRUCarry
from rnnjax.cells import GRUCell as GRUCell
from rnnjax.cells import LayerNormGRUCell as LayerNormGRUCell
from rnnjax.cells import LayerNormLSTMCell as LayerNormLSTMCell
from rnnjax.cells import LeakyRNNCell as LeakyRNNCell
from rnnjax.cells import LRUCell as LRUCell
from rnnjax.cells import LSTMCarry as LSTMCarry
from rnnjax.cells import LSTMCell as LSTMCell
from rnnjax.cells import Mamba2Cell as Mamba2Cell
from rnnjax.cells import MatrixCarry as MatrixCarry
from rnnjax.cells import Memory as Memory
from rnnjax.cells import MGUCell as MGUCell
from rnnjax.cells import MinGRUCell as MinGRUCell
from rnnjax.cells import MinLSTMCell as MinLSTMCell
from rnnjax.cells import MLSTMCell as MLSTMCell
from rnnjax.cells import OneHot as OneHot
from rnnjax.cells import Param as Param
from rnnjax.cells import PeepholeLSTMCell as PeepholeLSTMCell
from rnnjax.cells import ProjectionLSTMCell as ProjectionLSTMCell
from rnnjax.cells import RGLRUCell as RGLRUCell
from rnnjax.cells import Role as Role
from rnnjax.cells import S5Cell as S5Cell
from rnnjax.cells import S6Cell as S6Cell
from rnnjax.cells import SimpleRNNCarry as SimpleRNNCarry
from rnnjax.cells import SimpleRNNCell as SimpleRNNCell
from rnnjax.cells import SLSTMCell as SLSTMCell
from rnnjax.cells import TemporalConvCell as TemporalConvCell
from rnnjax.engine import Auto as Auto
from rnnjax.engine import Fused as Fused
from rnnjax.engine import Method as Method
from rnnjax.engine import Parallel as Parallel
from rnnjax.engine import Scan as Scan
from rnnjax.engine import causal_convolution as causal_convolution
from rnnjax.engine import explain as explain
from rnnjax.engine import linear_recurrence as linear_recurrence
from rnnjax.engine import matrix_memory as matrix_memory
from rnnjax.engine import unroll as unroll
from rnnjax.errors import CheckpointError as CheckpointError
from rnnjax.errors import InteropError as InteropError
from rnnjax.errors import InvalidInputError as InvalidInputError
from rnnjax.errors import NonFiniteError as NonFiniteError
from rnnjax.errors import RnnjaxError as RnnjaxError
from rnnjax.layers import AttentionCell as AttentionCell
from rnnjax.layers import Bidirectional as Bidirectional
from rnnjax.layers import Directions as Directions
from rnnjax.layers import Dropout as Dropout
from rnnjax.layers import LearnedCarry as LearnedCarry
from rnnjax.layers import Regularized as Regularized
from rnnjax.layers import Stack as Stack
from rnnjax.layers import attend as attend
from rnnjax.layers import pool as pool
from rnnjax.layers import prepare as prepare
from rnnjax.layers import restart as restart
from rnnjax.layers import split_key as split_key
from rnnjax.layers import state_gradients as state_gradients
from rnnjax.layers import valid_steps as valid_steps
from rnnjax.packing import pack as pack
from rnnjax.packing import pad as pad
from rnnjax.packing import unpack as unpack

__version__ = "0.1.0"

__all__ = checks.public(vars())

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
        if not meant and not name.startswith("_"):
            rooms = "cells", "engine", "errors", "layers", "packing", *_ROOMS[:4]
            for room in map(importlib.import_module, [f"rnnjax.{room}" for room in rooms]):
                public = name in getattr(room, "__all__", vars(room))  # not what it imports
                if public and not isinstance(getattr(room, name), types.ModuleType):
                    meant += [f"write {room.__name__}.{name}"]
            meant += [checks.answer(name)]
        raise AttributeError("; ".join([f"module 'rnnjax' has no attribute {name!r}", *meant[:1]]))

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ROOMS})
