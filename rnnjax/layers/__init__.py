"""Combinations of cells: stacks, directions, noise, attention, and tools around sequences."""

import functools
import typing

from rnnjax import checks
from rnnjax.layers.attention import AttentionCell as AttentionCell
from rnnjax.layers.attention import attend as attend
from rnnjax.layers.bidirectional import Bidirectional as Bidirectional
from rnnjax.layers.bidirectional import Directions as Directions
from rnnjax.layers.dropout import Dropout as Dropout
from rnnjax.layers.gradients import state_gradients as state_gradients
from rnnjax.layers.learned import LearnedCarry as LearnedCarry
from rnnjax.layers.prepared import Prepared as Prepared
from rnnjax.layers.prepared import prepare as prepare
from rnnjax.layers.regularized import Regularized as Regularized
from rnnjax.layers.sequences import Pooling as Pooling
from rnnjax.layers.sequences import pool as pool
from rnnjax.layers.sequences import restart as restart
from rnnjax.layers.sequences import split_key as split_key
from rnnjax.layers.sequences import valid_steps as valid_steps
from rnnjax.layers.stack import Stack as Stack

if not typing.TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = functools.partial(checks.refuse_name, __name__)
