"""What the tests of training share: compiled steps, a hook that acts amid a run, and bits."""

import functools

import jax
import numpy as np

from rnnjax.training import Silent, fitting


def share_steps(setattr=setattr):
    """Runs of one loss and optimiser share their compiled steps, which take most of their time."""
    made = {}

    def once(make, loss_fn, *given, **options):
        # A loss without a carry is wrapped anew for each run.
        key = make, getattr(loss_fn, "args", loss_fn), given, *options.items()
        if key not in made:
            made[key] = make(loss_fn, *given, **options)
        return made[key]

    for make in (fitting.make_train_steps, fitting.make_eval_steps):
        setattr(fitting, make.__name__, functools.partial(once, make))


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
