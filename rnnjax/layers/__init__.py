"""Combinations of cells."""

from rnnjax.layers.bidirectional import Bidirectional, Directions
from rnnjax.layers.dropout import Dropout
from rnnjax.layers.learned import LearnedCarry
from rnnjax.layers.prepared import Prepared, prepare
from rnnjax.layers.regularized import Regularized
from rnnjax.layers.stack import Stack

__all__ = [
    "Bidirectional",
    "Directions",
    "Dropout",
    "LearnedCarry",
    "Prepared",
    "Regularized",
    "Stack",
    "prepare",
]
