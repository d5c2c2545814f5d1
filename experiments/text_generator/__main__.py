"""``python -m experiments.text_generator COMMAND``: see the README beside this."""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import runs
from experiments.text_generator.config import Evaluate, Export, Generate, Train, option
from experiments.text_generator.data import Data, clean
from experiments.text_generator.export import export, how_to_run, vocabulary_path
from experiments.text_generator.model import CharacterModel, make_loss
from experiments.text_generator.report import Progress
from rnnjax import CheckpointError, InvalidInputError
from rnnjax.text import Vocabulary, load_corpus, sample, streams
from rnnjax.training import (
    Checkpoints,
    Records,
    Schedule,
    TrainState,
    keras_adam,
    make_train_steps,
    train,
)

PROGRAM = "text_generator"


def main() -> int:
    """Do what the command line says."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"train": Train, "generate": Generate, "evaluate": Evaluate, "export": Export},
        prog="python -m experiments.text_generator",
        description="A character-level language model in JAX.",
    )
    if isinstance(command, Train):
        return run_training(command)
    if isinstance(command, Generate):
        return run_generation(command)
    if isinstance(command, Export):
        return run_export(command)
    return run_evaluation(command)


# ---------------------------------------------------------------------------------------- train


def run_training(config: Train) -> int:
    """Train a new model, or go on with one."""
    if config.resume:
        run_dir = runs.existing(PROGRAM, config.run_dir)
        run = runs.read_json(run_dir / "run.json")
        config = resumed(config, run["config"])
        data = Data.load(config)
        if data.digest != run["text_sha256"]:
            raise InvalidInputError(
                f"the text of {config.corpus!r} is not the one that the run in {run_dir} began "
                "with, so it cannot go on exactly; restore the text, or begin a new run"
            )
    else:
        data = Data.load(config)
        run_dir = runs.create(PROGRAM, config.run_dir)
    stored = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()},
        "vocabulary": data.vocabulary.characters,
        "text_sha256": data.digest,
    }
    runs.write_json(run_dir / "run.json", stored)

    model = CharacterModel.build(config, len(data.vocabulary))
    optimizer = make_optimizer(config, data.steps_per_epoch)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep_last=config.keep_last)
    carry = model.initial_carry(config.batch_size) if config.carry_state else ()
    state = new_state(model, optimizer, config)
    if config.resume and checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)

    schedule = Schedule(
        epochs=config.epochs,
        steps_per_epoch=data.steps_per_epoch,
        steps_per_dispatch=config.steps_per_dispatch,
        epochs_per_checkpoint=config.checkpoint_every,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{data.length:,} characters ({len(data.vocabulary)} distinct), {parameters:,} parameters, "
        f"{schedule.steps_per_epoch} steps an epoch; results in {run_dir}"
    )
    done, steps = int(state.step), schedule.epochs * schedule.steps_per_epoch
    if config.resume:
        print(f"going on from step {done} of {steps}")
    write = functools.partial(write_sample, model, data.vocabulary, config)
    progress = Progress(data, run_dir, steps, done, write if config.sample_length else None)
    try:
        state, stopped_by = train(
            state,
            make_train_steps(make_loss(model, config.carry_state), optimizer),
            data.batches,
            schedule,
            checkpoints=checkpoints,
            config=stored,
            steps=Records(run_dir / "steps.jsonl"),
            epochs=Records(run_dir / "epochs.jsonl"),
            initial_carry=carry,
            reporter=progress,
        )
    finally:
        progress.close()
        checkpoints.close()
    if stopped_by:
        print(
            f"stopped and saved at step {int(state.step)}; go on with: "
            f"python -m experiments.text_generator train --resume --run-dir {run_dir}"
        )
        return 128 + stopped_by
    print(f"done; the loss is plotted in {run_dir / 'loss.png'}")
    print(f"let it write: python -m experiments.text_generator generate --run-dir {run_dir}")
    return 0


def resumed(given: Train, stored: dict[str, Any]) -> Train:
    """The configuration of a run that goes on: its own, with the epochs given, if any."""
    defaults = Train()
    known = {field.name for field in dataclasses.fields(Train)} - {"run_dir", "resume"}
    try:
        config = Train(**{name: stored[name] for name in known})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"run.json lacks the option {error}; begin a new run") from error
    for name in known - {"epochs"}:
        value = getattr(given, name)
        if value not in (getattr(defaults, name), getattr(config, name)):
            raise InvalidInputError(
                f"{option(name)} {value} cannot be changed: the run has {getattr(config, name)}, "
                "and --resume goes on with the options of the run; leave it out"
            )
    epochs = config.epochs if given.epochs == defaults.epochs else given.epochs
    return dataclasses.replace(config, epochs=epochs, run_dir=given.run_dir, resume=True)


def make_optimizer(config: Train, steps_per_epoch: int) -> optax.GradientTransformation:
    """Keras's Adam, behind the clipping and the schedule asked for."""
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.epochs * steps_per_epoch, alpha=0.1)
    adam = keras_adam(rate)
    return (
        optax.chain(optax.clip_by_global_norm(config.clip_norm), adam) if config.clip_norm else adam
    )


def new_state(
    model: CharacterModel, optimizer: optax.GradientTransformation, config: Train
) -> TrainState:
    """The state before the first step."""
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    carry = model.initial_carry(config.batch_size) if config.carry_state else ()
    return TrainState.create(jax.jit(model.init)(init_key), optimizer, key=run_key, carry=carry)


def write_sample(
    model: CharacterModel, vocabulary: Vocabulary, config: Train, state: TrainState, epoch: int
) -> str:
    """What the model writes after an epoch, from one random character."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    return write(
        model, vocabulary, state.params,
        prime="", length=config.sample_length, temperature=config.sample_temperature, key=key,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- generate


def run_generation(config: Generate) -> int:
    """Print what a trained model writes."""
    model, vocabulary, params, _ = restore(config.run_dir, config.step)
    began = time.perf_counter()
    text = write(
        model, vocabulary, params,
        prime=config.prime, length=config.length, temperature=config.temperature,
        key=jax.random.key(config.seed),
    )  # fmt: skip
    print(text)
    seconds = time.perf_counter() - began
    print(f"[{config.length} characters in {seconds:.2f} s, compilation included]")
    return 0


def write(
    model: CharacterModel,
    vocabulary: Vocabulary,
    params: Any,
    *,
    prime: str,
    length: int,
    temperature: float,
    key: jax.Array,
) -> str:
    """Continue ``prime``, or one random character if it is empty, by ``length`` characters."""
    first_key, key = jax.random.split(key)
    if not prime:
        prime = vocabulary.decode([int(jax.random.randint(first_key, (), 0, len(vocabulary)))])
    ids = jnp.asarray(vocabulary.encode(prime))[:, None]
    carry = model.initial_carry(1)
    if len(ids) > 1:
        carry, _ = model.unroll(params, ids[:-1], carry)
    _, drawn = sample(
        model.step, params, carry, ids[-1], key=key, length=length, temperature=temperature
    )
    return prime + vocabulary.decode(np.asarray(drawn[:, 0]))


# ------------------------------------------------------------------------------------- evaluate


def run_evaluation(config: Evaluate) -> int:
    """Print the loss of a trained model on a text."""
    model, vocabulary, params, trained = restore(config.run_dir, config.step)
    corpus = config.corpus or trained.corpus
    text = load_corpus(corpus, strip_licence=trained.strip_licence)
    if trained.vocabulary == "tutorial":
        text = clean(text, vocabulary)
    inputs, targets = streams(vocabulary.encode(text), config.batch_size, config.seq_length)

    @jax.jit
    def total_loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        def piece(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
            carry, losses = model.losses(params, carry, *batch)
            return carry, losses.mean()

        return jax.lax.scan(piece, model.initial_carry(config.batch_size), (inputs, targets))[
            1
        ].mean()

    loss = float(total_loss(params, inputs, targets))
    print(
        f"{corpus}: {loss:.4f} nats, {loss / math.log(2):.3f} bits per character, perplexity "
        f"{math.exp(loss):.2f}, over {targets.size:,} of {len(text):,} characters"
    )
    return 0


# --------------------------------------------------------------------------------------- export


def run_export(config: Export) -> int:
    """Write a trained model for another framework, and say how it is used there."""
    model, vocabulary, params, _ = restore(config.run_dir, config.step)
    written = export(model, vocabulary, params, config.to)
    print(
        f"{written.model}\n\nwrote {config.to} ({written.size:,} bytes); read back, its logits "
        f"differ by {written.check.difference:.1e} at most, where they are up to "
        f"{written.check.scale:.1e}\n"
        f"wrote {vocabulary_path(config.to)}; the place of a character in it is its id\n\n"
        f"{how_to_run(model, config.to)}"
    )
    return 0


# -------------------------------------------------------------------------------------- restore


def restore(
    run_dir: Path | None, step: int | None
) -> tuple[CharacterModel, Vocabulary, Any, Train]:
    """The model of a run, its vocabulary, its trained parameters and its options."""
    run_dir = runs.existing(PROGRAM, run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", read_only=True)
    stored = checkpoints.config(step)
    config = resumed(Train(), stored["config"])
    vocabulary = Vocabulary(stored["vocabulary"])
    model = CharacterModel.build(config, len(vocabulary))
    like = jax.eval_shape(lambda: new_state(model, make_optimizer(config, 1), config))
    params = checkpoints.restore(like, step).params
    checkpoints.close()
    return model, vocabulary, params, config


if __name__ == "__main__":
    runs.exit_with(main)
