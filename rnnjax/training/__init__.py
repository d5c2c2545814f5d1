"""Training: the state, the jitted step, the loop, and checkpoints."""

from rnnjax.training.checkpoints import Checkpoints
from rnnjax.training.loop import Reporter, Schedule, train
from rnnjax.training.optimizers import KerasAdamState, keras_adam
from rnnjax.training.penalties import activity_penalty, slowness_penalty, weight_penalty
from rnnjax.training.processes import Processes, agreed_signal, from_first, is_first
from rnnjax.training.records import Records
from rnnjax.training.sharding import Sharding, last_axis
from rnnjax.training.shared import SharedCheckpoints
from rnnjax.training.signals import StopRequest
from rnnjax.training.state import TrainState
from rnnjax.training.step import LossFunction, Metrics, TrainSteps, make_train_steps
from rnnjax.training.truncated import Window, truncated_loss, windows

__all__ = [
    "Checkpoints",
    "KerasAdamState",
    "LossFunction",
    "Metrics",
    "Processes",
    "Records",
    "Reporter",
    "Schedule",
    "Sharding",
    "SharedCheckpoints",
    "StopRequest",
    "TrainState",
    "TrainSteps",
    "Window",
    "activity_penalty",
    "agreed_signal",
    "from_first",
    "is_first",
    "keras_adam",
    "last_axis",
    "make_train_steps",
    "slowness_penalty",
    "train",
    "truncated_loss",
    "weight_penalty",
    "windows",
]
