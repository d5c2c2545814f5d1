"""Combinations of cells: stacks, directions, noise, attention, and tools around sequences."""

from rnnjax.layers.attention import AttentionCell, attend
from rnnjax.layers.bidirectional import Bidirectional, Directions
from rnnjax.layers.dropout import Dropout
from rnnjax.layers.gradients import state_gradients
from rnnjax.layers.learned import LearnedCarry
from rnnjax.layers.prepared import Prepared, prepare
from rnnjax.layers.regularized import Regularized
from rnnjax.layers.sequences import Pooling, pool, restart, split_key, valid_steps
from rnnjax.layers.stack import Stack

__all__ = [
    "AttentionCell",
    "Bidirectional",
    "Directions",
    "Dropout",
    "LearnedCarry",
    "Pooling",
    "Prepared",
    "Regularized",
    "Stack",
    "attend",
    "pool",
    "prepare",
    "restart",
    "split_key",
    "state_gradients",
    "valid_steps",
]
