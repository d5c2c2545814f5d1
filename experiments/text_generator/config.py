"""The options of the commands; those of `train` have the tutorial's values as defaults.

They are checked by `check`, not where they are made: the command line's parser would wrap the
error's sentence into one of its own.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import tyro

from rnnjax.errors import InvalidInputError
from rnnjax.text import Sampling
from rnnjax.training import Processes

CellName = Literal[
    "lstm", "gru", "gru_reset_before", "simple", "layernorm_lstm", "layernorm_gru", "peephole_lstm",
    "coupled_lstm", "mgu", "mgu_reset_before", "indrnn", "mingru", "minlstm",
]  # fmt: skip
ProductType = Literal["float32", "bfloat16"]
PresetName = Literal["tutorial", "fast", "quality", "next_character"]


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def at_least(options: Any, least: int, *names: str) -> None:
    """Raise unless each of these fields is a number of at least ``least``."""
    for name in names:
        value = getattr(options, name)
        if not value >= least:
            needed = "must not be negative" if least == 0 else f"must be at least {least}"
            raise InvalidInputError(f"{option(name)} {needed}, but is {value}")


def a_seed(seed: int) -> None:
    """Raise unless it is one of the seeds that are all different."""
    if not 0 <= seed < 2**32:
        raise InvalidInputError(
            f"--seed must be at least 0 and at most {2**32 - 1}, but is {seed}; take another"
        )


def writable(name: str, path: Path) -> None:
    """Raise unless a file can be made at ``path``, which the option of this name gave."""
    if path.is_dir():
        raise InvalidInputError(f"{name} should name a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise InvalidInputError(
            f"{name} should name a file in a folder that exists, but {path.parent} does not; make "
            "it first"
        )


def summary_writer() -> Any:
    """The class that writes for TensorBoard.

    Raises:
        InvalidInputError: the package that has it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InvalidInputError(
            "--tensorboard needs the package tensorboardX, which is not installed; "
            "run pip install tensorboardX"
        ) from None
    return SummaryWriter


def not_read(name: str, path: Path, corpus: str | None) -> None:
    """Raise if ``path``, which the option of this name gave, is the text that is read."""
    if corpus is not None and _same(path, Path(corpus)):
        raise InvalidInputError(
            f"{name} is {path}, the text itself, which it would replace; name another file"
        )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


@dataclasses.dataclass(frozen=True)
class Text:
    """Which text, in which characters, and how it is cut."""

    corpus: str = "alice"
    """"alice", "python-docs", or the path of a text file."""
    encoding: str = "utf-8"
    """Of that file."""
    strip_licence: bool = False
    """Leave out Project Gutenberg's header and licence."""
    vocabulary: Literal["tutorial", "learned", "lines", "bytes"] = "tutorial"
    """The tutorial's 68 characters (the text is cleaned to them); all that occur in the text; the
    same after each line is stripped, lower-cased, freed of what is not ASCII, and joined to the
    next by a space; or the 256 bytes of its UTF-8 form."""
    validation: float = 0.0
    """The share of the text, behind the part to train on, that measures the progress."""
    test: float = 0.0
    """The share at the end, which is measured once, after the training."""
    seq_length: int = 100
    """Characters of a window; with --carry-state, where backpropagation through time is cut."""
    stride: int | None = None
    """Characters from one window to the next; by default windows do not overlap."""
    predict: Literal["every", "last"] = "every"
    """The characters of a window that count in the loss: every next one, or that behind it."""
    carry_state: bool = False
    """Read the text as contiguous streams and carry the state from batch to batch."""
    forget: float = 0.0
    """With --carry-state, the chance that a stream begins a batch with an empty state, so that the
    model knows how a text begins."""
    batch_size: int = 12
    """Windows, or streams, of one step."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        at_least(self, 1, "seq_length", "batch_size", *(["stride"] if self.stride else []))
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{option(name)} must be a share of the text from 0 up to, but not including, "
                    f"1, but is {getattr(self, name)}"
                )
        if not 0 <= self.forget <= 1 or (self.forget and not self.carry_state):
            raise InvalidInputError(
                f"--forget must be a chance from 0 to 1, and goes with --carry-state, but is "
                f"{self.forget}{'' if self.carry_state else ' without it'}"
            )
        if self.validation + self.test >= 1:
            raise InvalidInputError(
                f"--validation {self.validation} and --test {self.test} leave nothing to train on"
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
    """The recurrent cell of every layer."""
    layers: int = 3
    """Recurrent layers."""
    hidden_size: int = 700
    """Hidden units of each layer."""
    embedding_size: int = 0
    """Size of the characters' learned vectors; 0 takes one-hot vectors, as the tutorial does."""
    tied: bool = False
    """Use the characters' vectors as the weights of the softmax too (Press & Wolf, 2017)."""
    dropout: float = 0.0
    """Of the inputs of every layer but the first, and of the outputs of the last."""
    embedding_dropout: float = 0.0
    """Of the characters' vectors, the same features at all steps of a batch."""
    recurrent_dropout: float = 0.0
    """Of the hidden state in the recurrent product, the same units at all steps of a batch."""
    weight_drop: float = 0.0
    """Of the entries of the recurrent kernels (Merity et al., 2018)."""
    products: ProductType = "float32"
    """The type in which the recurrent layers multiply matrices; all else is float32."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        at_least(self, 1, "layers", "hidden_size")
        at_least(self, 0, "embedding_size")
        for name in ("dropout", "embedding_dropout", "recurrent_dropout", "weight_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{option(name)} must be at least 0 and below 1, but is {getattr(self, name)}"
                )
        if not self.embedding_size and (self.tied or self.embedding_dropout):
            raise InvalidInputError(
                "--tied and --embedding-dropout need learned vectors of the characters; set "
                "--embedding-size"
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
    learning_rate: float = 1e-3
    """At its highest."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """Constant; falling as a cosine to a hundredth; or multiplied by --decay after every epoch
    from --decay-after on, as in char-rnn."""
    warmup: int = 0
    """Updates in which the learning rate rises from 0."""
    decay: float = 0.97
    """Of --schedule steps."""
    decay_after: int = 10
    """Of --schedule steps: so many epochs, but at least the first, keep the learning rate."""
    weight_decay: float = 0.0
    """Of AdamW, for matrices alone."""
    clip_norm: float = 0.0
    """The largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one update: a batch so many times as large. What is
    left of them at the end of the run changes nothing."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        at_least(self, 1, "accumulate")
        at_least(self, 0, "warmup", "decay_after", "weight_decay", "clip_norm")
        if not self.learning_rate > 0:
            raise InvalidInputError(f"--learning-rate must be above 0, but is {self.learning_rate}")
        if not 0 < self.decay <= 1:
            raise InvalidInputError(f"--decay must be above 0 and at most 1, but is {self.decay}")
        if self.weight_decay and self.optimizer != "adamw":
            raise InvalidInputError(
                f"--weight-decay is of AdamW, but --optimizer is {self.optimizer}; set "
                "--optimizer adamw"
            )


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, or go on with one.

    The defaults are those of the tutorial: shuffled windows of 100 characters, no state carried
    from one to the next, 3 layers of LSTM(700), a softmax at every step, Adam.
    """

    preset: PresetName = "tutorial"
    """The defaults of all other options; see the README for what each takes and reaches."""
    text: Text = Text()
    model: Architecture = Architecture()
    optimization: Optimization = Optimization()
    epochs: int = 20
    """Passes over the text."""
    steps: int | None = None
    """Steps in all, in place of --epochs; the last epoch is finished."""
    patience: int = 0
    """Stop after so many epochs without a better validation loss; 0 never does."""
    seed: int = 1
    """Of the initial weights, the order of the windows, and the dropout."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; one is also written at the best validation loss, at the end, on
    SIGTERM and on Ctrl-C."""
    keep_last: int = 3
    """How many checkpoints are kept, besides the best."""
    steps_per_dispatch: int = 10
    """Steps done on the device before Python is asked again."""
    sample_length: int = 200
    """Characters of the sample after each epoch; 0 writes none."""
    sample_temperature: float = 0.0
    """Of that sample; 0 takes the most probable character each time, as the tutorial does."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too; needs pip install tensorboardX."""
    run_dir: Path | None = None
    """Where the results go; by default a new folder under runs/text_generator."""
    resume: bool = False
    """Go on with the run in --run-dir (by default the newest) from its latest checkpoint. Its own
    options are used again; only --epochs, --steps, --patience and --mesh, if given, replace what it
    had."""
    mesh: str | None = None
    """The devices to train on: so many for parts of the batch (8), or times so many for parts of
    the hidden units (4x2), or "auto": all, for parts of the batch. By default one device, or all
    where there are several processes."""
    launch: Processes = Processes()
    given: tyro.conf.Suppress[frozenset[str] | None] = None
    """The names of the options that the command line gave."""

    @property
    def chosen(self) -> frozenset[str]:
        """The options that were given; without a command line, those that are not the preset's."""
        if self.given is not None:
            return self.given
        from experiments.text_generator.presets import PRESETS  # which are made of this class

        preset = PRESETS[self.preset]
        pairs: list[tuple[Any, Any]] = [
            (self, preset),
            (self.text, preset.text),
            (self.model, preset.model),
            (self.optimization, preset.optimization),
        ]
        return frozenset(
            field.name
            for ours, default in pairs
            for field in dataclasses.fields(ours)
            if getattr(ours, field.name) != getattr(default, field.name)
        )

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        self.text.check()
        self.model.check()
        self.optimization.check()
        at_least(self, 1, "epochs", "checkpoint_every", "keep_last", "steps_per_dispatch")
        at_least(self, 0, "patience", "sample_length")
        _ = Sampling(self.sample_temperature)  # checks it
        if self.tensorboard:
            summary_writer()
        a_seed(self.seed)
        if self.steps is not None:
            at_least(self, 1, "steps")
        if self.mesh is not None and not re.fullmatch(r"auto|[1-9]\d*(x[1-9]\d*)?", self.mesh):
            raise InvalidInputError(
                f'--mesh must be a number of devices (8), two of them (4x2), or "auto", but is '
                f"{self.mesh!r}"
            )
        if self.patience and not self.text.validation:
            raise InvalidInputError(
                "--patience waits for a better validation loss, but no text is held out for it; "
                "set --validation 0.1, say"
            )

    def as_json(self) -> dict[str, Any]:
        """The options, in groups, as JSON can hold them."""
        stored = dataclasses.asdict(self)
        del stored["launch"], stored["given"]  # of this process alone
        return {name: str(v) if isinstance(v, Path) else v for name, v in stored.items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Train":
        """The options that `as_json` gave; KeyError and TypeError if one is missing or unknown."""
        groups = {"text": Text, "model": Architecture, "optimization": Optimization}
        flat = {name: value for name, value in stored.items() if name not in groups}
        made = {name: kind(**stored[name]) for name, kind in groups.items()}
        return cls(**{**flat, **made, "run_dir": None, "resume": False})


@dataclasses.dataclass(frozen=True)
class Generate:
    """Let a trained model write: on from a text, or in turns with you."""

    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the best by validation loss, else the latest."""
    length: int = 500
    """Characters (bytes, if the model knows bytes) to write after the prime text, or in each
    answer."""
    prime: str = ""
    """The beginning of the text; by default one random character."""
    prime_file: Path | None = None
    """A text file (UTF-8) with the beginning, cleaned as the text to train on was."""
    samples: int = 1
    """Texts to write, all in one batch. The first is the one that is written alone."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable character each time, 1 draws as predicted."""
    top_k: int = 0
    """Draw from the so many most probable characters (Fan et al., 2018); 0 is all."""
    top_p: float = 1.0
    """Draw from the most probable characters that have this share of the probability (Holtzman et
    al., 2020); 1 is all."""
    repetition_penalty: float = 1.0
    """Above 1 against characters that were written last (Keskar et al., 2019); 1 is none."""
    penalty_window: int = 64
    """How many of the last characters that is."""
    seed: int = 0
    """Of the draws, and of the random first character."""
    products: ProductType = "float32"
    """The type in which the recurrent layers multiply matrices as they write; bfloat16 is faster
    for many samples, and may choose another character where two are as probable."""
    stop: str | None = None
    """End before this string, once the model writes it. With --interactive an answer ends with the
    line, if the model knows the newline; --stop "" has answers of --length characters."""
    interactive: bool = False
    """Read lines from the standard input, and answer each."""

    @property
    def sampling(self) -> Sampling:
        """How the characters are drawn."""
        return Sampling(
            self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.penalty_window
        )

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        at_least(self, 1, "length", "samples", "penalty_window")
        at_least(self, 0, "top_k")
        a_seed(self.seed)
        _ = self.sampling  # checks the others
        if self.prime and self.prime_file is not None:
            raise InvalidInputError(
                "--prime and --prime-file are both the beginning of the text; leave one of them out"
            )
        if self.interactive and self.samples > 1:
            raise InvalidInputError(
                f"--interactive is one conversation, but --samples is {self.samples}; leave one of "
                "them out"
            )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how well a trained model predicts a text, in bits per character."""

    file: tyro.conf.Positional[str | None] = None
    """The text, as --corpus of train; by default the corpus that the model was trained on."""
    encoding: str = "utf-8"
    """Of FILE."""
    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the best by validation loss, else the latest."""
    page: Path | None = None
    """Also write a page (HTML, one file) with the text coloured by how much it surprised."""
    json: Path | None = None
    """Also write every character with its surprise in bits, as JSON."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        for name in ("page", "json"):
            path = getattr(self, name)
            if path is not None:
                writable(option(name), path)
                not_read(option(name), path, self.file)
        if self.page is not None and self.json is not None and _same(self.page, self.json):
            raise InvalidInputError(
                f"--page and --json are both {self.page}, and one would replace the other; name two"
            )


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Look inside a trained model while it reads: a page (HTML, one file) of states and gates."""

    to: Path
    """The page."""
    file: tyro.conf.Positional[str | None] = None
    """The text, as --corpus of train; by default what the run held out, else its own beginning."""
    encoding: str = "utf-8"
    """Of FILE."""
    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the best by validation loss, else the latest."""
    characters: int = 20_000
    """The most characters to read."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        at_least(self, 2, "characters")
        writable("--to", self.to)
        not_read("--to", self.to, self.file)


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained model as a file of Keras, PyTorch or ONNX."""

    to: Path
    """A file that is not there yet: *.keras, *.weights.h5, *.safetensors or *.onnx."""
    run_dir: Path | None = None
    """The run; by default the newest under runs/text_generator."""
    step: int | None = None
    """Of the checkpoint; by default the best by validation loss, else the latest."""
