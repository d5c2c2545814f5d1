"""Training: `fit`, the jitted step below it, and checkpoints from which a run goes on exactly."""

from rnnjax.training.batches import Minibatches, minibatches
from rnnjax.training.checkpoints import Checkpoints, Saved
from rnnjax.training.cores import over_cores, use_cores
from rnnjax.training.distributed import Processes
from rnnjax.training.files import Records
from rnnjax.training.fitting import Fit, fit
from rnnjax.training.optimizers import KerasAdamState, keras_adam
from rnnjax.training.parameters import load_params, save_params
from rnnjax.training.penalties import activity_penalty, slowness_penalty, weight_penalty
from rnnjax.training.processes import (
    StopRequest,
    agreed_signal,
    from_first,
    is_first,
)
from rnnjax.training.progress import Progress, Silent
from rnnjax.training.sharding import Sharding, cores_for, last_axis
from rnnjax.training.state import TrainState
from rnnjax.training.step import (
    LossFunction,
    Metrics,
    TrainSteps,
    make_train_steps,
)
from rnnjax.training.truncated import Window, truncated_loss, windows

__all__ = [
    "Checkpoints",
    "Fit",
    "KerasAdamState",
    "LossFunction",
    "Metrics",
    "Minibatches",
    "Processes",
    "Progress",
    "Records",
    "Saved",
    "Sharding",
    "Silent",
    "StopRequest",
    "TrainState",
    "TrainSteps",
    "Window",
    "activity_penalty",
    "agreed_signal",
    "cores_for",
    "fit",
    "from_first",
    "is_first",
    "keras_adam",
    "last_axis",
    "load_params",
    "make_train_steps",
    "minibatches",
    "over_cores",
    "save_params",
    "slowness_penalty",
    "truncated_loss",
    "use_cores",
    "weight_penalty",
    "windows",
]
