"""The options of the commands; those of `train` have the tutorial's values as defaults.

They are checked by `check`, not where they are made: see `experiments.shared.runs.options`.
"""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.shared.runs import (
    Natural,
    NotNegative,
    Positive,
    PositiveOrNone,
    Seed,
    check_ranges,
)
from rnnjax.errors import InvalidInputError

CellName = Literal[
    "lstm", "gru", "gru_reset_before", "simple", "layernorm_lstm", "layernorm_gru", "peephole_lstm",
    "mgu", "mgu_reset_before", "mingru", "minlstm", "mamba2", "gated_delta",
]  # fmt: skip
ProductType = Literal["float32", "bfloat16"]
Share = Annotated[float, (0.0, 1.0)]
Temperature = Annotated[float, (0.0, float(2**128))]  # what float32 can hold


@dataclasses.dataclass(frozen=True)
class Text:
    """The text, its vocabulary, and how it is split."""

    corpus: str = "alice"
    """"alice", "python-docs", or the path of a text file."""
    encoding: str = "utf-8"
    """The encoding of that file."""
    strip_licence: bool = False
    """Leave out Project Gutenberg's header and licence."""
    vocabulary: Literal["tutorial", "learned", "lines", "bytes"] = "tutorial"
    """The characters: the tutorial's 68 (the text is cleaned to them); all that occur in the text;
    "lines": the same after lines are stripped, lower-cased, reduced to ASCII and joined by spaces;
    or the 256 bytes of its UTF-8 form (of a file that is not UTF-8, its own bytes)."""
    validation: Share = 0.0
    """The share of the text, after the part to train on, that measures the progress."""
    test: Share = 0.0
    """The share at the end, which is measured once, after the training."""
    seq_length: Positive = 100
    """The number of characters of a window; with --carry-state, backpropagation stops there."""
    stride: PositiveOrNone = None
    """The distance of windows in characters; by default windows do not overlap."""
    predict: Literal["every", "last"] = "every"
    """The characters of a window that count in the loss: every next one, or only the last."""
    carry_state: bool = False
    """Read the text as contiguous streams and carry the state from batch to batch."""
    forget: float = 0.0
    """With --carry-state, the probability that a stream begins a batch with an empty state, so that
    the model learns how a text begins."""
    batch_size: Positive = 12
    """The number of windows, or streams, per step."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        if not 0 <= self.forget <= 1 or (self.forget and not self.carry_state):
            raise InvalidInputError(
                f"--forget must be a chance from 0 to 1, and goes with --carry-state, but is "
                f"{self.forget}{'' if self.carry_state else ' without it'}; give such "
                "a chance, and --carry-state"
            )
        if self.validation + self.test >= 1:
            raise InvalidInputError(
                f"--validation {self.validation} and --test {self.test} leave nothing to train on; "
                "make one of them smaller"
            )
        if self.carry_state and (self.stride is not None or self.predict == "last"):
            raise InvalidInputError(
                "--stride and --predict last are for windows, and --carry-state reads streams; "
                "leave one of them out"
            )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The model, and its noise in training."""

    cell: CellName = "lstm"
    """The recurrent cell of every layer; "mamba2" and "gated_delta" are residual blocks with it."""
    layers: Positive = 3
    """The number of recurrent layers."""
    hidden_size: Positive = 700
    """The number of hidden units of each layer."""
    embedding_size: Natural = 0
    """Size of the characters' learned vectors; 0 takes one-hot vectors, as the tutorial does."""
    tied: bool = False
    """Use the characters' vectors as the weights of the softmax too (Press & Wolf, 2017)."""
    dropout: Share = 0.0
    """Dropout of the inputs of every layer except the first, and of the outputs of the last."""
    embedding_dropout: Share = 0.0
    """Dropout of the characters' vectors, the same features at all steps of a batch."""
    recurrent_dropout: Share = 0.0
    """Dropout of the hidden state in the recurrent product, the same units at all steps."""
    weight_drop: Share = 0.0
    """Dropout of the entries of the recurrent kernels (Merity et al., 2018)."""
    products: ProductType = "float32"
    """The type in which the recurrent layers multiply matrices; all else is float32."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        block = self.cell in ("mamba2", "gated_delta")
        if block and (self.embedding_size != self.hidden_size or self.hidden_size % 32):
            raise InvalidInputError(
                f"--cell {self.cell} adds its outputs to its inputs, so that --embedding-size and "
                "--hidden-size must be one number, a multiple of 32, but are "
                f"{self.embedding_size} and {self.hidden_size}; make them equal"
            )
        noise = self.recurrent_dropout or self.weight_drop
        if block and (noise or self.products != "float32"):
            raise InvalidInputError(
                f"--cell {self.cell} has no recurrent product that --recurrent-dropout, "
                "--weight-drop or --products could change; leave them out"
            )
        if not self.embedding_size and (self.tied or self.embedding_dropout):
            raise InvalidInputError(
                "--tied and --embedding-dropout need learned vectors of the characters, but "
                "--embedding-size is 0; set it"
            )
        if self.tied and self.embedding_size != self.hidden_size:
            raise InvalidInputError(
                f"--tied needs vectors as large as the hidden state, but --embedding-size is "
                f"{self.embedding_size} and --hidden-size {self.hidden_size}; make them equal"
            )


@dataclasses.dataclass(frozen=True)
class Optimization:
    """The optimiser and its schedule."""

    optimizer: Literal["adam", "adamw", "rmsprop"] = "adam"
    """Adam and RMSprop as Keras computes them, or AdamW (with beta2 0.99)."""
    learning_rate: NotNegative = 1e-3
    """The highest learning rate."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """The learning rate: constant; a cosine that falls to a hundredth; or multiplied by --decay
    after every epoch from --decay-after on, as in char-rnn."""
    warmup: Natural = 0
    """The number of updates in which the learning rate rises from 0."""
    decay: float = 0.97
    """The factor of --schedule steps."""
    decay_after: Natural = 10
    """For --schedule steps: the number of epochs, at least 1, before the first decay."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW, only for matrices."""
    clip_norm: NotNegative = 0.0
    """The largest norm of the gradient; 0 does not clip."""
    accumulate: Positive = 1
    """The number of steps whose gradients are averaged for one update, as for a larger batch.
    Incomplete updates at the end of the run are dropped."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        if not self.learning_rate > 0:
            raise InvalidInputError(
                f"--learning-rate must be above 0, but is {self.learning_rate}; 1e-3 is usual"
            )
        if not 0 < self.decay <= 1:
            raise InvalidInputError(
                f"--decay must be above 0 and at most 1, but is {self.decay}; 1 decays not at all"
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise InvalidInputError(
                f"--weight-decay is of AdamW, but --optimizer is {self.optimizer}; set "
                "--optimizer adamw"
            )


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, or resume training.

    The defaults are those of the tutorial: shuffled windows of 100 characters, no carried state, 3
    layers of LSTM(700), a softmax at every step, Adam.
    """

    preset: str = "tutorial"
    """The defaults of all other options: tutorial, fast, quality or next_character (see the README
    for their time and loss), or a file that sets fields as those in presets/ do."""
    text: Text = Text()
    model: Architecture = Architecture()
    optimization: Optimization = Optimization()
    epochs: PositiveOrNone = 20
    """The number of passes over the text. --schedule cosine ends with them: a run that resumes with
    another number has another learning rate, and says so."""
    steps: PositiveOrNone = None
    """The total number of steps, instead of --epochs; the last epoch is completed."""
    patience: Natural = 0
    """Stop after this many epochs without a better validation loss; 0 never stops."""
    seed: Seed = 1
    """The seed of the initial weights, the order of the windows, and the dropout."""
    checkpoint_every: Positive = 10
    """The number of epochs between checkpoints. One is also written at the best validation loss, at
    the end, and on SIGTERM, SIGHUP and Ctrl-C."""
    keep_last: Positive = 3
    """How many checkpoints to keep, besides the best."""
    steps_per_dispatch: PositiveOrNone = None
    """The number of steps per call to the device; by default as many as take a quarter of a
    second."""
    skip_nonfinite: Natural = 0
    """How many steps in a row may have a NaN or infinite loss or gradient. They change nothing, and
    are counted. 0 ends the run at the first."""
    sample_length: Natural = 200
    """The number of characters of the sample after each epoch; 0 writes none."""
    sample_temperature: Temperature = 0.0
    """The temperature of that sample; 0 takes the most probable character, as in the tutorial."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too; needs pip install tensorboardX."""
    run_dir: Path | None = None
    """Where the results go; by default a new folder under runs/text_generator."""
    resume: bool = False
    """Resume the run in --run-dir (by default the newest) from its latest checkpoint, with its own
    options. Only --epochs, --steps, --patience, --mesh, --learning-rate and --skip-nonfinite can
    replace them; without these it resumes exactly. --corpus, --encoding and --strip-licence may
    name another file with the same text."""
    mesh: str | None = None
    """The devices to train on, over which the batch is split: a number (8), or "auto" for all. By
    default all with several processes, the cores of a CPU if that is faster, and else one."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        self.text.check()
        self.model.check()
        self.optimization.check()
        check_ranges(self)
        if self.epochs is None and self.steps is None:
            raise InvalidInputError(
                "--epochs or --steps must say how long the run is, but neither does; give one"
            )
        if self.mesh is not None and not re.fullmatch(r"auto|[1-9]\d*", self.mesh):
            raise InvalidInputError(
                f'--mesh must be a number of devices (8) or "auto", but is {self.mesh!r}; choose '
                "one of these: the rows of a batch are divided, and hidden units are not"
            )
        if self.tensorboard and not importlib.util.find_spec("tensorboardX"):
            raise InvalidInputError(
                "--tensorboard needs the package tensorboardX, which is not installed; "
                "run pip install tensorboardX"
            )
        if self.patience and not self.text.validation:
            raise InvalidInputError(
                "--patience waits for a better validation loss, but no text is held out for it; "
                "set --validation 0.1, say"
            )

    def epochs_of(self, steps_per_epoch: int) -> int:
        """How many epochs the run has; InvalidInputError if its steps are too few for an update."""
        epochs = self.epochs or 1
        if self.steps is not None:
            epochs = math.ceil(self.steps / steps_per_epoch)
        if self.optimization.accumulate > epochs * steps_per_epoch:
            raise InvalidInputError(
                f"--accumulate {self.optimization.accumulate} makes one update of so many steps, "
                f"but the run has only {epochs * steps_per_epoch}; take fewer, or more epochs"
            )
        return epochs

    def as_json(self) -> dict[str, Any]:
        """The options, in groups, as JSON can hold them; not those of this call alone."""
        stored = dataclasses.asdict(self).items()
        return {name: value for name, value in stored if name not in OF_THIS_CALL}


OF_SOURCE = ("corpus", "encoding", "strip_licence")
"""The options that say where the text is and how it is read; the digest of the text is compared in
their place."""
FREE = ("epochs", "steps", "patience", "mesh", "learning_rate", "skip_nonfinite", *OF_SOURCE)
"""The options that may change when a run resumes."""
OF_THIS_CALL = ("run_dir", "resume")
"""The options that are no part of a run."""


def flat(options: dict[str, Any]) -> dict[str, Any]:
    """What `Train.as_json` returns, by the names of the options alone.

    >>> flat({"epochs": 20, "model": {"cell": "lstm", "layers": 3}})
    {'epochs': 20, 'cell': 'lstm', 'layers': 3}
    """
    groups = [v if isinstance(v, dict) else {name: v} for name, v in options.items()]
    return {name: value for group in groups for name, value in group.items()}
