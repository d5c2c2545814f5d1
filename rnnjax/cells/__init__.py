"""Cells: what one time step of a recurrent network computes."""

from rnnjax.cells.base import AdditiveCell, Carry, Cell, CompositeCell, DenseCell, Params
from rnnjax.cells.gru import GRUCarry, GRUCell
from rnnjax.cells.lstm import LSTMCarry, LSTMCell
from rnnjax.cells.simple import SimpleRNNCarry, SimpleRNNCell

__all__ = [
    "AdditiveCell",
    "Carry",
    "Cell",
    "CompositeCell",
    "DenseCell",
    "GRUCarry",
    "GRUCell",
    "LSTMCarry",
    "LSTMCell",
    "Params",
    "SimpleRNNCarry",
    "SimpleRNNCell",
]
