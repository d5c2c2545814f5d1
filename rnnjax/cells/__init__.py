"""Cells: what one time step of a recurrent network computes."""

from rnnjax.cells.base import AdditiveCell, Carry, Cell, CompositeCell, DenseCell, GatedCell, Params
from rnnjax.cells.gru import GRUCarry, GRUCell
from rnnjax.cells.lstm import LSTMCarry, LSTMCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.simple import SimpleRNNCarry, SimpleRNNCell

__all__ = [
    "AdditiveCell",
    "Carry",
    "Cell",
    "CompositeCell",
    "DenseCell",
    "GRUCarry",
    "GRUCell",
    "GatedCell",
    "LSTMCarry",
    "LSTMCell",
    "OneHot",
    "Params",
    "SimpleRNNCarry",
    "SimpleRNNCell",
]
