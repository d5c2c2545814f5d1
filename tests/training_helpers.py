"""What the tests of training share: a hook that acts amid a run, and the bits of a state."""

import jax
import numpy as np

from rnnjax.training import Silent


class At(Silent):
    """Does something once, when a step is reached."""

    def __init__(self, step, action):
        super().__init__()
        self.reached, self.action = step, action

    def on_dispatch(self, step, losses, seconds):
        if step >= self.reached:
            self.reached = float("inf")
            self.action()


def bits(state):
    arrays = jax.tree.map(np.asarray, (state.params, state.opt_state, state.carry))
    return b"".join(leaf.tobytes() for leaf in jax.tree.leaves(arrays))
