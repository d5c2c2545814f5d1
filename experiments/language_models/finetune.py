"""The command `finetune`: train a language model further on a text of yours."""

import dataclasses
import fnmatch
import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.language_models import folders, states, texts
from experiments.language_models.folders import Model
from experiments.shared import runs
from experiments.shared.runs import Natural, NotNegative, Positive, Seed
from rnnjax import CheckpointError, InvalidInputError
from rnnjax.training import Checkpoints, RunFolder, fit, minibatches
from rnnjax.training.files import as_json, read_sealed

# What may differ in a run that resumes; the text of --corpus may not, whatever its name.
FREE = {"folder", "corpus", "run_dir", "resume", "epochs", "tokenizer"}


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Train a language model further on a text, and write it in the layout of its folder."""

    folder: tyro.conf.Positional[Path]
    """The folder of a model, or a .pth of RWKV-7."""
    corpus: Path
    """A text file (UTF-8), or a folder of .txt files, each of which holds documents."""
    run_dir: Path | None = None
    """Where checkpoints go, and the model with the lowest validation loss, under model; by default
    a new folder under runs/language_models."""
    resume: bool = False
    """Go on with the run in --run-dir, which must have the same options; --epochs may differ."""
    separator: str = "<|endoftext|>"
    """The text between two documents of a file; no document depends on another."""
    context: Positive = 256
    """The number of tokens of a row, of which documents are packed side by side."""
    batch_size: Positive = 8
    """The number of rows of a step."""
    epochs: Positive = 3
    """How often the text is read."""
    learning_rate: Annotated[float, (1e-12, math.inf)] = 1e-4
    """The learning rate of AdamW, after the warm-up."""
    warmup: Natural = 20
    """The number of steps in which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.01
    """The decay of matrices; not of vectors, nor of the rates of a state's decay."""
    clip_norm: Annotated[float, (1e-12, math.inf)] = 1.0
    """The largest norm of the gradient."""
    validation: Annotated[float, (1e-6, 1.0)] = 0.1
    """The share of the tokens, at the end of the text, by whose loss the best epoch is chosen."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type in which the model computes; what is learned is kept in float32."""
    train: Literal["model", "state"] = "model"
    """What is trained: the tensors, or the first state alone, for generate --state."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of tensors that stay as they are, such as "backbone.embeddings.*"."""
    seed: Seed = 0
    """The seed of the order of rows."""
    tokenizer: Path | None = None
    """A tokenizer.json; by default the one in the folder."""


def run_finetuning(command: Finetune) -> int:
    """Train, and write the best model."""
    run_dir = command.run_dir
    if command.resume and not (run_dir and is_run(run_dir)):
        raise InvalidInputError(
            f"--resume must come with the --run-dir of a run, but there is no run in {run_dir}; "
            "check it"
        )
    model = folders.look(command.folder)
    tokenizer = texts.read_tokenizer(model, command.tokenizer)
    training, validation = (
        texts.pack(part, command.context, alone=command.train == "state")
        for part in documents(command, model, tokenizer)
    )
    rows = training["inputs"].shape[1]
    if rows < command.batch_size:
        raise InvalidInputError(
            f"--batch-size must be at most {rows}, the rows of --context {command.context} tokens "
            f"that the text fills, but is {command.batch_size}; make one of them smaller"
        )
    frozen, own = frozen_of(model, command.freeze), dict[str, Any]()
    if command.train == "state":
        frozen = frozenset(model.params)
        own = {f"state.{i}": x for i, x in enumerate(state_of(model, {})) if x.dtype == "float32"}
    if run_dir is None or not command.resume:
        run_dir = runs.new_folder("language_models", run_dir)
    # Losses of another text to validate would not compare, so it is a part of the configuration.
    tokens = b"".join(x.tobytes() for part in (training, validation) for x in part.values())
    same = {name: value for name, value in vars(command).items() if name not in FREE}
    text = {"tokens": hashlib.sha256(tokens).hexdigest(), "corpus": str(command.corpus)}
    config = as_json("options", {"options": same} | text)
    if command.resume:
        require_same(run_dir, config)
    folders.check_new(run_dir / "model", model)
    print(
        f"{training['weights'].sum():,.0f} tokens to learn from in {rows} rows, "
        f"{validation['weights'].sum():,.0f} to validate; results in {run_dir}"
    )
    own |= {name: jnp.array(x, jnp.float32) for name, x in model.params.items()}
    valid_rows = min(command.batch_size, validation["inputs"].shape[1])
    result = fit(
        make_loss(model, command, frozen), own, make_optimizer(command, frozen),
        minibatches(training, command.batch_size, axis=1, seed=command.seed), command.epochs,
        key=jax.random.key(command.seed),
        evaluate=minibatches(validation, valid_rows, axis=1),
        run_dir=RunFolder(run_dir, config=config, free={"corpus"}),
    )  # fmt: skip
    if command.train == "state":
        written = run_dir / "state.safetensors"
        states.save(written, model, states.State(state_of(model, result.params)))
    else:
        learned = {name: result.params[name].astype(x.dtype) for name, x in model.params.items()}
        written = folders.write(run_dir / "model", model, learned)
    best = result.best or {}
    print(
        f"the {command.train} of epoch {best.get('epoch')}, with validation loss "
        f"{best.get('validation_loss', math.nan):.4f}, is in {written}"
    )
    return 0


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder, even if it was killed before it wrote anything."""
    return folder.is_dir() and ((folder / "lock").exists() or not any(folder.iterdir()))


def require_same(folder: Path, config: dict[str, Any]) -> None:
    """Raise unless options and text are those with which a run began, as its checkpoint says."""
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        known = read_sealed(checkpoints.path(checkpoints.steps()[-1]) / "about.json")["about"]
        options, tokens, corpus = (known["config"][name] for name in config)
    except (CheckpointError, LookupError):  # there is none, or fit says what is wrong with it
        return
    for name, value in config["options"].items():
        if options.get(name, value) != value:
            raise InvalidInputError(
                f"{runs.option(name)} must be that of the run in {folder}, {options[name]}, but is "
                f"{value}; give that, or begin a new run in another --run-dir"
            )
    if tokens != config["tokens"]:
        raise InvalidInputError(
            f"--corpus must have the tokens with which the run in {folder} began, then those of "
            f"{corpus}, but {config['corpus']} has others; name that text and --tokenizer, or "
            "begin a new run in another --run-dir"
        )


def documents(command: Finetune, model: Model, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return the documents to learn from, and those to validate, as ids."""
    parts = [
        text
        for file in texts.read_texts(command.corpus)
        for text in (file.split(command.separator) if command.separator else [file])
        if text.strip()
    ]
    found = [np.array([*tokenizer.encode(text), *model.ends[:1]], np.int32) for text in parts]
    starts = np.cumsum([0, *map(len, found)])
    total = int(starts[-1])
    left = total - max(2, round(command.validation * total))  # the document there is cut
    halves = [np.split(x, [max(0, left - at)]) for x, at in zip(found, starts[:-1], strict=True)]
    learned = [one for one, _ in halves if len(one) > 1]
    held = [one for _, one in halves if len(one) > 1]
    if not learned or not held:
        raise InvalidInputError(
            f"{command.corpus} must have more text than for a validation part, but has {total} "
            "tokens; take a longer one"
        )
    return learned, held


def frozen_of(model: Model, patterns: tuple[str, ...]) -> frozenset[str]:
    """Return the names of the tensors that stay as they are."""
    found = {pattern: fnmatch.filter(model.params, pattern) for pattern in patterns}
    for pattern, names in found.items():
        if not names:
            raise InvalidInputError(
                f"--freeze must match names of tensors, such as {next(iter(model.params))}, but "
                f"{pattern!r} matches none; check it"
            )
    frozen = frozenset[str]().union(*found.values())
    if len(frozen) == len(model.params):
        raise InvalidInputError(
            "--freeze must leave a tensor to train, but matches all; name fewer"
        )
    return frozen


def state_of(model: Model, params: Any) -> list[Any]:
    """Return the arrays of the first state of a row: those that are trained, or the model's own."""
    begin = model.family.begin(model.config, 1, 0)
    return [params.get(f"state.{i}", x) for i, x in enumerate(jax.tree.leaves(begin))]


def make_loss(model: Model, command: Finetune, frozen: frozenset[str]) -> Any:
    """Return the mean loss of the next token over a batch of packed rows."""
    family, config, dtype = model.family, model.config, jnp.dtype(command.dtype)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        first = state_of(model, params)
        params = {
            name: (jax.lax.stop_gradient(x) if name in frozen else x).astype(dtype)
            for name, x in params.items()
        }
        steps, rows = batch["inputs"].shape
        begin = states.placed(family.begin(config, rows, steps, dtype), first)
        _, logits = family.apply(config, params, batch["inputs"], begin, batch["resets"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        weight = batch["weights"].sum()
        return (losses * batch["weights"]).sum() / weight, {"weight": weight}

    return loss


def decays(params: Any) -> Any:
    """Return for each tensor whether it decays: a matrix whose name ends in ``weight``.

    Mamba's ``A_log (channels, state_size)`` is a logarithm of rates, whose decay would draw all of
    them to 1, and vectors of RWKV-7 have the shape ``(1, 1, width)``; their authors leave out both.
    """

    def is_matrix(path: Any, x: jax.Array) -> bool:
        return bool(path[-1].key.endswith("weight") and x.size > max(x.shape))

    return jax.tree.map_with_path(is_matrix, params)


def make_optimizer(command: Finetune, frozen: frozenset[str]) -> optax.GradientTransformation:
    """Return AdamW after a clipped gradient, for the tensors that are trained."""
    rate = optax.linear_schedule(0.0, command.learning_rate, command.warmup)
    if not command.warmup:
        rate = command.learning_rate
    optimizer = optax.chain(
        optax.clip_by_global_norm(command.clip_norm),
        optax.adamw(rate, b2=0.95, weight_decay=command.weight_decay, mask=decays),
    )

    def labels(params: Any) -> Any:
        return {name: "kept" if name in frozen else "trained" for name in params}

    return optax.multi_transform({"trained": optimizer, "kept": optax.set_to_zero()}, labels)
