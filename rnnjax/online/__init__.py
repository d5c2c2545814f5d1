"""Learning while a network runs: gradients at every step, and no sequence is ever stored.

A learner carries forward the *influence* of its parameters on the state, instead of going back
through stored steps. `RTRL` is exact, `SnAp1` and `EProp` leave parts of the influence out, and
`UORO` draws an unbiased estimate of it.
"""

from rnnjax.online.eprop import EProp
from rnnjax.online.learner import Learner, OnlineState, Pull
from rnnjax.online.rtrl import RTRL
from rnnjax.online.snap import SnAp1
from rnnjax.online.uoro import UORO

__all__ = ["RTRL", "UORO", "EProp", "Learner", "OnlineState", "Pull", "SnAp1"]
