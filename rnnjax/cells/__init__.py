"""Cells: what one time step of a recurrent network computes."""

from rnnjax.cells.base import Carry, Cell, Param, Params, Role
from rnnjax.cells.composite import CompositeCell, Noise
from rnnjax.cells.convlstm import ConvLSTMCell
from rnnjax.cells.coupled import CoupledLSTMCell
from rnnjax.cells.gru import GRUCarry, GRUCell
from rnnjax.cells.indrnn import IndRNNCell
from rnnjax.cells.layernorm import LayerNormGRUCell, LayerNormLSTMCell
from rnnjax.cells.lstm import LSTMCarry, LSTMCell
from rnnjax.cells.mgu import MGUCell
from rnnjax.cells.minimal import MinGRUCell, MinLSTMCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.peephole import PeepholeLSTMCell
from rnnjax.cells.projection import ProjectionLSTMCell
from rnnjax.cells.simple import SimpleRNNCarry, SimpleRNNCell

__all__ = [
    "Carry",
    "Cell",
    "CompositeCell",
    "ConvLSTMCell",
    "CoupledLSTMCell",
    "GRUCarry",
    "GRUCell",
    "IndRNNCell",
    "LSTMCarry",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "Noise",
    "OneHot",
    "Param",
    "Params",
    "PeepholeLSTMCell",
    "ProjectionLSTMCell",
    "Role",
    "SimpleRNNCarry",
    "SimpleRNNCell",
]
