"""The command `train`: a new run, or one that goes on."""

import functools
import warnings

import jax

from experiments import runs
from experiments.text_generator.config import Train
from experiments.text_generator.data import AnyVocabulary
from experiments.text_generator.evaluation import held_out
from experiments.text_generator.generation import write
from experiments.text_generator.model import CharacterModel, make_loss
from experiments.text_generator.opening import Run
from experiments.text_generator.optimization import make_optimizer, new_state
from experiments.text_generator.report import Progress
from experiments.text_generator.scale import say
from experiments.text_generator.symbols import unit_of
from rnnjax.training import (
    Checkpoints,
    Records,
    Reporter,
    Schedule,
    SharedCheckpoints,
    TrainState,
    TrainSteps,
    is_first,
    make_train_steps,
    train,
)

AnyCheckpoints = Checkpoints | SharedCheckpoints


def run_training(config: Train) -> int:
    """Train a new model, or go on with one."""
    if not config.resume:  # else its options are yet to be read, and are checked there
        config.check()
    config.launch.start()
    run = Run.open(config)
    config, data = run.config, run.data
    model = CharacterModel.build(config.model, len(data.vocabulary))
    checkpoints = open_checkpoints(run)
    state = first_state(run, model, checkpoints)
    announce(run, state)
    progress = make_reporter(run, model, int(state.step))
    carry = model.initial_carry(config.text.batch_size) if config.text.carry_state else ()
    validate = held_out(model, data.validation, "validation") if len(data.validation) else None
    try:
        state, stopped_by = train(
            state,
            make_steps(run, model),
            data.batches,
            make_schedule(run),
            checkpoints=checkpoints,
            config=run.as_json(),
            steps=Records(run.folder / "steps.jsonl"),
            epochs=Records(run.folder / "epochs.jsonl"),
            initial_carry=carry,
            evaluate=None if validate is None else lambda state: validate(state.params),
            reporter=progress,
            sharding=run.sharding,
        )
        if isinstance(progress, Progress):
            progress.plot()
        if not stopped_by and len(data.test):
            report_test(run, model, checkpoints, state)
    finally:
        if isinstance(progress, Progress):
            progress.close()
        checkpoints.close()
    if stopped_by:
        say(
            f"stopped and saved at step {int(state.step)}; go on with: "
            f"python -m experiments.text_generator train --resume --run-dir {run.folder}"
        )
        return 128 + stopped_by
    if int(state.step) < run.steps:
        say(
            f"ended after {int(state.step)} of {run.steps} steps: no better validation loss in the "
            f"last epochs (--patience {config.patience})"
        )
    say(f"done; the loss is plotted in {run.folder / 'loss.png'}")
    say(f"let it write: python -m experiments.text_generator generate --run-dir {run.folder}")
    return 0


def open_checkpoints(run: Run) -> AnyCheckpoints:
    """The checkpoints of the run, of all its processes."""
    folder, keep_last = run.folder / "checkpoints", run.config.keep_last
    if run.sharding is None:
        return Checkpoints(folder, keep_last=keep_last)
    return SharedCheckpoints(folder, run.sharding, keep_last=keep_last)


def first_state(run: Run, model: CharacterModel, checkpoints: AnyCheckpoints) -> TrainState:
    """The state to begin with: a new one, or of a run that goes on, that of its last checkpoint."""
    state = new_state(model, run.config, run.data.steps_per_epoch)
    if run.sharding is not None:
        state = run.sharding.put_state(state)
    return restored(checkpoints, state) if run.config.resume else state


def restored(checkpoints: AnyCheckpoints, state: TrainState) -> TrainState:
    """The state to go on from: that of the latest whole checkpoint, or the first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latest = checkpoints.restore_latest(state)
    for warning in caught:
        say(f"warning: {warning.message}")
    return state if latest is None else latest


def announce(run: Run, state: TrainState) -> None:
    """Say what is trained, and from where."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(
        f"{run.data.length:,} {unit_of(run.data.vocabulary)}s ({len(run.data.vocabulary)} in the "
        f"vocabulary), {parameters:,} parameters, {run.config.epochs} epochs of "
        f"{run.data.steps_per_epoch} steps; results in {run.folder}"
    )
    if run.config.resume:
        say(f"going on from step {int(state.step)} of {run.steps}")


def make_reporter(run: Run, model: CharacterModel, done: int) -> Reporter:
    """What shows the progress: of several processes, that of the first."""
    if not is_first():
        return Reporter()
    sample = functools.partial(write_sample, model, run.data.vocabulary, run.config)
    return Progress(
        run.folder,
        characters_per_step=run.data.characters_per_step,
        steps=run.steps,
        done=done,
        write=sample if run.config.sample_length else None,
        unit=unit_of(run.data.vocabulary),
        tensorboard=run.config.tensorboard,
    )


def make_steps(run: Run, model: CharacterModel) -> TrainSteps:
    """The training steps: the loss and the optimiser of these options."""
    text = run.config.text
    loss_fn = make_loss(
        model,
        carry_state=text.carry_state,
        forget=text.forget,
        last=text.predict == "last",
    )
    optimizer = make_optimizer(run.config.optimization, run.config.epochs, run.data.steps_per_epoch)
    return make_train_steps(loss_fn, optimizer, run.sharding)


def make_schedule(run: Run) -> Schedule:
    """How long the run is, and where it dispatches and saves."""
    return Schedule(
        epochs=run.config.epochs,
        steps_per_epoch=run.data.steps_per_epoch,
        steps_per_dispatch=run.config.steps_per_dispatch,
        epochs_per_checkpoint=run.config.checkpoint_every,
        patience=run.config.patience,
    )


def report_test(
    run: Run, model: CharacterModel, checkpoints: AnyCheckpoints, last: TrainState
) -> None:
    """Measure what the run has come to, once, on the text that was held out for it.

    That is the model that `generate` and the others take: the best by validation loss, if there is
    one, else the last.
    """
    best = checkpoints.best_step() if run.config.text.validation else None
    state = last if best is None else checkpoints.restore(last, best)
    state = state if run.sharding is None else run.sharding.whole(state)
    measured = held_out(model, run.data.test, "test")(state.params)
    say(
        f"test: {measured['test_loss']:.4f} nats, {measured['test_bits']:.3f} bits per "
        f"{unit_of(run.data.vocabulary)}, at step {int(state.step)}"
    )
    if is_first():
        runs.write_json(run.folder / "test.json", {"step": int(state.step), **measured})


def write_sample(
    model: CharacterModel, vocabulary: AnyVocabulary, config: Train, state: TrainState, epoch: int
) -> str:
    """What the model writes after an epoch, from one random character."""
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    return write(
        model, vocabulary, state.params,
        prime="", length=config.sample_length, temperature=config.sample_temperature, key=key,
    )  # fmt: skip
