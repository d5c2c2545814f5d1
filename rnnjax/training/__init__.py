"""Training: `fit`, its jitted step, and checkpoints from which a run resumes exactly."""

import typing

from rnnjax.checks import HABITS
from rnnjax.training.checkpoints import Checkpoints, Saved
from rnnjax.training.fitting import Fit, fit
from rnnjax.training.hooks import (
    CSVLog,
    EarlyStopping,
    Hook,
    Progress,
    ReduceOnPlateau,
    Silent,
    TensorBoard,
)
from rnnjax.training.optimizers import (
    activity_penalty,
    constrain,
    keras_adam,
    slowness_penalty,
    weight_penalty,
)
from rnnjax.training.parameters import load_params, save_params
from rnnjax.training.processes import StopRequest, start_processes, use_cores
from rnnjax.training.run_folder import RunFolder
from rnnjax.training.sharding import Sharding
from rnnjax.training.sources import Minibatches, minibatches, pad_rows
from rnnjax.training.state import TrainState
from rnnjax.training.step import LossFunction, Metrics, TrainSteps, make_train_steps
from rnnjax.training.truncated import Window, truncated_loss, windows

__all__ = [
    "CSVLog",
    "Checkpoints",
    "EarlyStopping",
    "Fit",
    "Hook",
    "LossFunction",
    "Metrics",
    "Minibatches",
    "Progress",
    "ReduceOnPlateau",
    "RunFolder",
    "Saved",
    "Sharding",
    "Silent",
    "StopRequest",
    "TensorBoard",
    "TrainState",
    "TrainSteps",
    "Window",
    "activity_penalty",
    "constrain",
    "fit",
    "keras_adam",
    "load_params",
    "make_train_steps",
    "minibatches",
    "pad_rows",
    "save_params",
    "slowness_penalty",
    "start_processes",
    "truncated_loss",
    "use_cores",
    "weight_penalty",
    "windows",
]

if not typing.TYPE_CHECKING:  # type checkers know which names there are

    def __getattr__(name: str) -> typing.Any:
        """Say what a word of another library is here."""
        said = [f"module {__name__!r} has no attribute {name!r}", HABITS.get(name)]
        raise AttributeError("; ".join(filter(None, said)))
