"""The options of the four commands, with the tutorial's values as defaults."""

import dataclasses
from pathlib import Path
from typing import Literal

from rnnjax.errors import InvalidInputError

CellName = Literal["lstm", "gru", "gru_reset_before", "simple"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, or go on with one.

    The defaults are those of the tutorial: shuffled windows of 100 characters, no state carried
    from one to the next, 3 layers of LSTM(700), a softmax at every step, Adam.
    """

    corpus: str = "alice"
    """"alice", "python-docs", or the path of a UTF-8 text file."""
    strip_licence: bool = False
    """Leave out Project Gutenberg's header and licence."""
    vocabulary: Literal["tutorial", "learned"] = "tutorial"
    """The tutorial's 68 characters (the text is cleaned to them), or all that occur in the text."""
    cell: CellName = "lstm"
    """The recurrent cell of every layer."""
    layers: int = 3
    """Recurrent layers."""
    hidden_size: int = 700
    """Hidden units of each layer."""
    batch_size: int = 12
    """Windows, or streams, of one optimiser step."""
    seq_length: int = 100
    """Characters of a window; with --carry-state, where backpropagation through time is cut."""
    carry_state: bool = False
    """Read the text as contiguous streams and carry the state from batch to batch."""
    epochs: int = 20
    """Passes over the text."""
    learning_rate: float = 1e-3
    """Of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate; cosine falls to a tenth at the end."""
    clip_norm: float = 0.0
    """The largest norm of the gradient; 0 does not clip."""
    seed: int = 1
    """Of the initial weights and of the order of the windows."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; one is also written at the end, on SIGTERM and on Ctrl-C."""
    keep_last: int = 3
    """How many checkpoints are kept, besides the best."""
    steps_per_dispatch: int = 10
    """Optimiser steps done on the device before Python is asked again."""
    sample_length: int = 200
    """Characters of the sample after each epoch; 0 writes none."""
    sample_temperature: float = 0.0
    """Of that sample; 0 takes the most probable character each time, as the tutorial does."""
    run_dir: Path | None = None
    """Where the results go; by default a new folder under runs/text_generator."""
    resume: bool = False
    """Go on with the run in --run-dir (by default the newest) from its latest checkpoint. Its own
    options are used again; only --epochs, if given, replaces what the run had."""

    def __post_init__(self) -> None:
        for name in (
            "layers", "hidden_size", "batch_size", "seq_length", "epochs",
            "checkpoint_every", "keep_last", "steps_per_dispatch",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{option(name)} must be at least 1, but is {getattr(self, name)}"
                )
        for name in ("clip_norm", "seed", "sample_length", "sample_temperature"):
            if not getattr(self, name) >= 0:
                raise InvalidInputError(
                    f"{option(name)} must not be negative, but is {getattr(self, name)}"
                )
        if not self.learning_rate > 0:
            raise InvalidInputError(f"--learning-rate must be above 0, but is {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class Generate:
    """Let a trained model write."""

    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the latest."""
    length: int = 500
    """Characters to write after the prime text."""
    prime: str = ""
    """The beginning of the text; by default one random character."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable character each time, 1 draws as predicted."""
    seed: int = 0
    """Of the draws, and of the random first character."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how well a trained model predicts a text, in bits per character."""

    corpus: str | None = None
    """As in train; by default the corpus that the model was trained on."""
    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the latest."""
    batch_size: int = 32
    """The text is read as so many streams side by side, each beginning from an empty state."""
    seq_length: int = 100
    """Characters read in one piece; the state is carried on, so this does not change the result."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained model as a file of Keras, PyTorch or ONNX."""

    to: Path
    """A file that is not there yet: *.keras, *.weights.h5, *.safetensors or *.onnx."""
    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the latest."""


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")
