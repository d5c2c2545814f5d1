"""Training: `fit`, its jitted step, and checkpoints from which a run resumes exactly."""

import functools
import typing

from rnnjax import checks
from rnnjax.training.checkpoints import Checkpoints as Checkpoints
from rnnjax.training.checkpoints import Saved as Saved
from rnnjax.training.fitting import Fit as Fit
from rnnjax.training.fitting import fit as fit
from rnnjax.training.hooks import CSVLog as CSVLog
from rnnjax.training.hooks import EarlyStopping as EarlyStopping
from rnnjax.training.hooks import Hook as Hook
from rnnjax.training.hooks import Progress as Progress
from rnnjax.training.hooks import ReduceOnPlateau as ReduceOnPlateau
from rnnjax.training.hooks import Silent as Silent
from rnnjax.training.hooks import TensorBoard as TensorBoard
from rnnjax.training.optimizers import activity_penalty as activity_penalty
from rnnjax.training.optimizers import constrain as constrain
from rnnjax.training.optimizers import keras_adam as keras_adam
from rnnjax.training.optimizers import slowness_penalty as slowness_penalty
from rnnjax.training.optimizers import weight_penalty as weight_penalty
from rnnjax.training.parameters import load_params as load_params
from rnnjax.training.parameters import save_params as save_params
from rnnjax.training.processes import StopRequest as StopRequest
from rnnjax.training.processes import start_processes as start_processes
from rnnjax.training.processes import use_cores as use_cores
from rnnjax.training.run_folder import RunFolder as RunFolder
from rnnjax.training.sharding import Sharding as Sharding
from rnnjax.training.sources import Minibatches as Minibatches
from rnnjax.training.sources import minibatches as minibatches
from rnnjax.training.sources import pad_rows as pad_rows
from rnnjax.training.state import TrainState as TrainState
from rnnjax.training.step import LossFunction as LossFunction
from rnnjax.training.step import Metrics as Metrics
from rnnjax.training.step import TrainSteps as TrainSteps
from rnnjax.training.step import make_train_steps as make_train_steps
from rnnjax.training.truncated import Window as Window
from rnnjax.training.truncated import truncated_loss as truncated_loss
from rnnjax.training.truncated import windows as windows

__all__ = checks.public(vars())

if not typing.TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = functools.partial(checks.refuse_name, __name__)
