"""The command `train`: a new run, or one that goes on."""

import dataclasses
import functools
import math
import warnings
from pathlib import Path
from typing import Any

import jax

from experiments import runs
from experiments.text_generator.config import Train, option
from experiments.text_generator.data import AnyVocabulary, Data
from experiments.text_generator.evaluation import bits, held_out
from experiments.text_generator.generation import write
from experiments.text_generator.model import CharacterModel, make_loss
from experiments.text_generator.optimization import make_optimizer, new_state
from experiments.text_generator.presets import PRESETS
from experiments.text_generator.report import Progress
from experiments.text_generator.scale import check_alike, say, sharding_of
from experiments.text_generator.stored import PROGRAM, options_of, vocabulary_to_json
from rnnjax import InvalidInputError
from rnnjax.training import (
    Checkpoints,
    Records,
    Reporter,
    Schedule,
    Sharding,
    SharedCheckpoints,
    TrainState,
    from_first,
    is_first,
    make_train_steps,
    train,
)

AnyCheckpoints = Checkpoints | SharedCheckpoints


def run_training(config: Train) -> int:
    """Train a new model, or go on with one."""
    config.check()
    config.launch.start()
    if config.resume:
        run_dir, run = from_first(lambda: existing_run(config.run_dir))
        config = resumed(config, options_of(run.get("config", {})))
        data = Data.load(config.text, config.seed)
        if data.digest != run["text_sha256"]:
            raise InvalidInputError(
                f"the text of {config.text.corpus!r} is not the one that the run in {run_dir} "
                "began with, so it cannot go on exactly; restore the text, or begin a new run"
            )
    else:
        data = Data.load(config.text, config.seed)
        run_dir = None
    check_alike(config, data.digest)
    sharding = sharding_of(config)
    if sharding is not None:
        data = dataclasses.replace(data, rows=sharding.rows(config.text.batch_size))
    if run_dir is None:
        run_dir = from_first(lambda: str(runs.create(PROGRAM, config.run_dir)))
    run_dir = Path(run_dir)
    if config.steps is not None:
        epochs = math.ceil(config.steps / data.steps_per_epoch)
        config = dataclasses.replace(config, epochs=epochs)
    stored = {
        "config": config.as_json(),
        "vocabulary": vocabulary_to_json(data.vocabulary),
        "text_sha256": data.digest,
    }
    from_first(lambda: runs.write_json(run_dir / "run.json", stored))

    model = CharacterModel.build(config.model, len(data.vocabulary))
    checkpoints = open_checkpoints(run_dir / "checkpoints", config, sharding)
    state = new_state(model, config, data.steps_per_epoch)
    carry = model.initial_carry(config.text.batch_size) if config.text.carry_state else ()
    if sharding is not None:
        state = sharding.put_state(state)
    if config.resume:
        state = restored(checkpoints, state)

    schedule = Schedule(
        epochs=config.epochs,
        steps_per_epoch=data.steps_per_epoch,
        steps_per_dispatch=config.steps_per_dispatch,
        epochs_per_checkpoint=config.checkpoint_every,
        patience=config.patience,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(
        f"{data.length:,} characters ({len(data.vocabulary)} distinct), {parameters:,} parameters, "
        f"{schedule.epochs} epochs of {schedule.steps_per_epoch} steps; results in {run_dir}"
    )
    done, steps = int(state.step), schedule.epochs * schedule.steps_per_epoch
    if config.resume:
        say(f"going on from step {done} of {steps}")
    optimizer = make_optimizer(config.optimization, config.epochs, data.steps_per_epoch)
    loss_fn = make_loss(
        model,
        carry_state=config.text.carry_state,
        forget=config.text.forget,
        last=config.text.predict == "last",
    )
    validate = held_out(model, data.validation, "validation") if len(data.validation) else None
    progress: Reporter = Reporter()
    if is_first():
        progress = Progress(
            run_dir,
            characters_per_step=data.characters_per_step,
            steps=steps,
            done=done,
            write=functools.partial(write_sample, model, data.vocabulary, config)
            if config.sample_length
            else None,
            tensorboard=config.tensorboard,
        )
    try:
        state, stopped_by = train(
            state,
            make_train_steps(loss_fn, optimizer, sharding),
            data.batches,
            schedule,
            checkpoints=checkpoints,
            config=stored,
            steps=Records(run_dir / "steps.jsonl"),
            epochs=Records(run_dir / "epochs.jsonl"),
            initial_carry=carry,
            evaluate=None if validate is None else lambda state: validate(state.params),
            reporter=progress,
            sharding=sharding,
        )
        if not stopped_by and len(data.test):
            report_test(model, data, checkpoints, state, sharding)
    finally:
        if isinstance(progress, Progress):
            progress.close()
        checkpoints.close()
    if stopped_by:
        say(
            f"stopped and saved at step {int(state.step)}; go on with: "
            f"python -m experiments.text_generator train --resume --run-dir {run_dir}"
        )
        return 128 + stopped_by
    say(f"done; the loss is plotted in {run_dir / 'loss.png'}")
    say(f"let it write: python -m experiments.text_generator generate --run-dir {run_dir}")
    return 0


def resumed(given: Train, stored: Train) -> Train:
    """The options of a run that goes on: its own, with the epochs or steps given, if any.

    Raises:
        InvalidInputError: another option was given, and differs from that of the run.
    """
    defaults = PRESETS[given.preset]
    free = {"run_dir", "resume", "epochs", "steps", "preset", "mesh", "launch"}
    for ours, theirs, default in (
        (given, stored, defaults),
        *((getattr(given, g), getattr(stored, g), getattr(defaults, g)) for g in _GROUPS),
    ):
        for field in dataclasses.fields(ours):
            value, has = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name in free | set(_GROUPS) or value in (getattr(default, field.name), has):
                continue
            raise InvalidInputError(
                f"{option(field.name)} {value} cannot be changed: the run has {has}, and --resume "
                "goes on with the options of the run; leave it out"
            )
    longer = {
        name: getattr(given, name)
        for name in ("epochs", "steps", "mesh")
        if getattr(given, name) != getattr(defaults, name)
    }
    if "epochs" in longer:
        longer.setdefault("steps", None)
    return dataclasses.replace(
        stored, **longer, run_dir=given.run_dir, resume=True, launch=given.launch
    )


_GROUPS = ("text", "model", "optimization")


def existing_run(run_dir: Path | None) -> tuple[str, dict[str, Any]]:
    """The folder of a run and its run.json."""
    found = runs.existing(PROGRAM, run_dir)
    return str(found), runs.read_json(found / "run.json")


def open_checkpoints(folder: Path, config: Train, sharding: Sharding | None) -> AnyCheckpoints:
    """The checkpoints of the run, of all its processes."""
    if sharding is None:
        return Checkpoints(folder, keep_last=config.keep_last)
    return SharedCheckpoints(folder, sharding, keep_last=config.keep_last)


def restored(checkpoints: AnyCheckpoints, state: TrainState) -> TrainState:
    """The state to go on from: that of the latest whole checkpoint, or the first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latest = checkpoints.restore_latest(state)
    for warning in caught:
        say(f"warning: {warning.message}")
    return state if latest is None else latest


def report_test(
    model: CharacterModel,
    data: Data,
    checkpoints: AnyCheckpoints,
    last: TrainState,
    sharding: Sharding | None,
) -> None:
    """Measure the best checkpoint once on the text that was held out for it."""
    best = checkpoints.best_step()
    state = last if best is None else checkpoints.restore(last, best)
    state = state if sharding is None else sharding.whole(state)
    loss = held_out(model, data.test, "test")(state.params)["test_loss"]
    say(f"test: {loss:.4f} nats, {bits(loss):.3f} bits per character, at step {int(state.step)}")


def write_sample(
    model: CharacterModel, vocabulary: AnyVocabulary, config: Train, state: TrainState, epoch: int
) -> str:
    """What the model writes after an epoch, from one random character."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    return write(
        model, vocabulary, state.params,
        prime="", length=config.sample_length, temperature=config.sample_temperature, key=key,
    )  # fmt: skip
