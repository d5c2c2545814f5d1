"""Cells: what one time step of a recurrent network computes."""

from rnnjax.cells.base import Carry, Cell, Coupling, Param, Params, Role
from rnnjax.cells.composite import CompositeCell, Noise
from rnnjax.cells.convlstm import ConvLSTMCell
from rnnjax.cells.deltanet import GatedDeltaNetCell
from rnnjax.cells.diagonal import DiagonalLSTMCell
from rnnjax.cells.gru import GRUCarry, GRUCell
from rnnjax.cells.initializers import Chrono, LegS, Ring
from rnnjax.cells.layernorm import LayerNormGRUCell, LayerNormLSTMCell
from rnnjax.cells.lru import ComplexCarry, LRUCell
from rnnjax.cells.lstm import LSTMCarry, LSTMCell
from rnnjax.cells.mamba2 import Mamba2Cell
from rnnjax.cells.matrix import MatrixCarry, Memory, StabilizedCarry
from rnnjax.cells.mgu import MGUCell
from rnnjax.cells.minimal import MinGRUCell, MinLSTMCell
from rnnjax.cells.mlstm import MLSTMCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.peephole import PeepholeLSTMCell
from rnnjax.cells.projection import ProjectionLSTMCell
from rnnjax.cells.rglru import RGLRUCell
from rnnjax.cells.s5 import S5Cell
from rnnjax.cells.s6 import S6Cell
from rnnjax.cells.simple import LeakyRNNCell, SimpleRNNCarry, SimpleRNNCell
from rnnjax.cells.slstm import SLSTMCarry, SLSTMCell
from rnnjax.cells.temporalconv import TemporalConvCell, WindowCarry

__all__ = [
    "Carry",
    "Cell",
    "Chrono",
    "ComplexCarry",
    "CompositeCell",
    "ConvLSTMCell",
    "Coupling",
    "DiagonalLSTMCell",
    "GRUCarry",
    "GRUCell",
    "GatedDeltaNetCell",
    "LRUCell",
    "LSTMCarry",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LeakyRNNCell",
    "LegS",
    "MGUCell",
    "MLSTMCell",
    "Mamba2Cell",
    "MatrixCarry",
    "Memory",
    "MinGRUCell",
    "MinLSTMCell",
    "Noise",
    "OneHot",
    "Param",
    "Params",
    "PeepholeLSTMCell",
    "ProjectionLSTMCell",
    "RGLRUCell",
    "Ring",
    "Role",
    "S5Cell",
    "S6Cell",
    "SLSTMCarry",
    "SLSTMCell",
    "SimpleRNNCarry",
    "SimpleRNNCell",
    "StabilizedCarry",
    "TemporalConvCell",
    "WindowCarry",
]
