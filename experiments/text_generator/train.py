"""The command `train`: the text, the model, its loss, the optimiser, the loop; top to bottom."""

import contextlib
import dataclasses
import functools
import itertools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared import plots
from experiments.text_generator.checkpoints import check_alike, described, open_folder, sharding_of
from experiments.text_generator.config import Optimization, Train
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel, bits, held_out, make_loss
from experiments.text_generator.reading import AnyVocabulary, require_there
from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.text import sample
from rnnjax.training.files import read_lines, write_json, write_whole
from rnnjax.training.fitting import Fit, fit
from rnnjax.training.hooks import EarlyStopping, Hook, Progress, TensorBoard
from rnnjax.training.optimizers import keras_adam
from rnnjax.training.processes import is_first, together
from rnnjax.training.run_folder import RunFolder
from rnnjax.training.state import TrainState

# Drawing takes a third of a second, as long as a whole epoch of a small run.
_SECONDS_PER_PLOT = 10
PROGRAM = "python -m experiments.text_generator"


def run_training(config: Train) -> int:
    """Train a new model, or resume a run; its folder is locked meanwhile."""
    config.check()
    text = config.text

    def load() -> Data:
        if config.resume:
            require_there(text.corpus)
        return Data.load(text, config.seed)

    data = together(load)
    check_alike(config, data.digest)
    epochs = config.epochs_of(data.steps_per_epoch)

    model = CharacterModel.build(config.model, len(data.vocabulary))
    loss_fn = make_loss(
        model, carry_state=text.carry_state, forget=text.forget, last=text.predict == "last"
    )
    optimizer = make_optimizer(config.optimization, epochs, data.steps_per_epoch)
    begin = new_state(model, config, optimizer)
    validate = held_out(model, data.validation, "validation") if len(data.validation) else None

    # What the first step would raise is raised before there is a folder.
    ids = jax.ShapeDtypeStruct((text.batch_size, text.seq_length), data.train.dtype)
    batch = {"inputs": ids, "targets": ids, "weights": np.ones(text.batch_size, np.float32)}
    jax.eval_shape(loss_fn, begin.params, begin.carry, batch, begin.key)
    sharding = sharding_of(config, begin.params)
    if sharding is not None:
        try:
            data = dataclasses.replace(data, rows=sharding.rows(text.batch_size))
        except InvalidInputError as error:
            mesh = config.mesh or "auto"
            raise InvalidInputError(f"{error}: --mesh {mesh} divides --batch-size") from error

    with contextlib.ExitStack() as stack:
        folder, step, before = open_folder(config, data, stack)
        progress = TextProgress(config, data, model, folder)
        devices = 1 if sharding is None else sharding.mesh.size
        lost = f"; {data.dropped:,} others were dropped, which --vocabulary learned keeps"
        progress.say(
            f"{data.length:,} {data.vocabulary.unit}s ({len(data.vocabulary)} in the vocabulary"
            f"{lost if data.dropped else ''}), "
            f"{sum(leaf.size for leaf in jax.tree.leaves(begin.params)):,} parameters, {epochs} "
            f"epochs of {data.steps_per_epoch} steps on {devices} device{'s' * (devices > 1)}; "
            f"results in {folder}"
        )
        if changed := changed_schedule(config, before, step, data.steps_per_epoch):
            progress.say(changed)
        try:
            result = fit(
                loss_fn, begin.params, optimizer, data.batches, epochs,
                key=begin.key, carry=begin.carry, evaluate=validate,
                run_dir=RunFolder(
                    folder, config=described(config, data), free={"options", "optimizer"},
                    checkpoint_every=config.checkpoint_every, keep_last=config.keep_last,
                    on_signal="return",
                ),
                hooks=hooks_of(config, progress),
                skip_nonfinite=config.skip_nonfinite, steps_per_dispatch=config.steps_per_dispatch,
                sharding=sharding,
            )  # fmt: skip
            progress.plot()
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{error}: train --resume --run-dir {folder} --learning-rate "
                f"{config.optimization.learning_rate / 10:g}, or --skip-nonfinite 10"
            ) from error
        return report(progress, result, epochs * data.steps_per_epoch)


def hooks_of(config: Train, progress: "TextProgress") -> list[Hook]:
    """What shows the run, and ends it early or writes events where that is asked for."""
    hooks: list[Hook] = [progress]
    if config.patience:
        hooks.append(EarlyStopping(config.patience))
    if config.tensorboard:
        hooks.append(TensorBoard(progress.folder / "tensorboard"))
    return hooks


def learning_rate(options: Optimization, epochs: int, steps_per_epoch: int) -> Any:
    """The learning rate, as a function of the number of updates done."""
    highest, steps = options.learning_rate, epochs * steps_per_epoch
    warmup = options.warmup * options.accumulate
    if options.schedule == "cosine":
        falling = optax.cosine_decay_schedule(highest, max(1, steps - warmup), alpha=0.01)
        by_step = optax.join_schedules([optax.constant_schedule(highest), falling], [warmup])
    elif options.schedule == "steps":
        begin = max(0, options.decay_after - 1) * steps_per_epoch
        by_step = optax.exponential_decay(
            highest, steps_per_epoch, options.decay, transition_begin=begin, staircase=True
        )
    else:
        by_step = optax.constant_schedule(highest)

    def by_update(updates: Any) -> Any:
        # An epoch need not be a multiple of the steps of an update.
        step = updates * options.accumulate
        rising = highest * updates / max(1, options.warmup)
        return jnp.where(step < warmup, rising, by_step(step))

    return by_update


def changed_schedule(
    config: Train, before: Mapping[str, Any], step: int, steps_per_epoch: int
) -> str | None:
    """Say how a new length of the run changes its schedule; None where it does not.

    Args:
        config: the options with which the run resumes.
        before: the options up to now, by their names; none of a new run.
        step: the last one that was done with those.
        steps_per_epoch: steps of one epoch.
    """
    if not before or config.optimization.schedule != "cosine":  # the others do not know the end
        return None
    rate = dataclasses.replace(config.optimization, learning_rate=before["learning_rate"])
    length = {name: before[name] for name in ("epochs", "steps")}
    old = dataclasses.replace(config, optimization=rate, **length)

    def end_and_rate(options: Train) -> tuple[int, float]:
        epochs, optimization = options.epochs_of(steps_per_epoch), options.optimization
        rate = learning_rate(optimization, epochs, steps_per_epoch)
        return epochs * steps_per_epoch, float(rate(step // optimization.accumulate))

    (old_end, was), (end, now) = end_and_rate(old), end_and_rate(config)
    if end == old_end:
        return None
    moved = f"the run, which was step {old_end:,} and is {end:,} now"
    rates = f": after step {step:,} the learning rate is {now:.3g} in place of {was:.3g}"
    alike = f"{now:.3g}" == f"{was:.3g}"  # near the beginning of the run
    return f"--schedule cosine falls to the end of {moved}{'' if alike else rates}"


def make_optimizer(
    options: Optimization, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser asked for, after the clipping, once for every ``accumulate`` steps."""
    rate = learning_rate(options, epochs, steps_per_epoch)
    if options.optimizer == "adamw":
        optimizer = optax.adamw(rate, b2=0.99, weight_decay=options.weight_decay, mask=matrices)
    elif options.optimizer == "rmsprop":
        optimizer = optax.rmsprop(rate, decay=0.9, eps=1e-7)
    else:
        optimizer = keras_adam(rate)
    if options.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    if options.accumulate > 1:
        return optax.MultiSteps(optimizer, options.accumulate).gradient_transformation()
    return optimizer


def matrices(params: Any) -> Any:
    """Where the weights decay: matrices, not biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def new_state(model: CharacterModel, config: Train, optimizer: Any) -> TrainState:
    """The state before the first step."""
    carry = model.initial_carry(config.text.batch_size) if config.text.carry_state else ()
    params, run_key = _drawn(model, jax.random.key(config.seed))
    return TrainState.create(params, optimizer, key=run_key, carry=carry)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(model: CharacterModel, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """The parameters that a run begins with, and its key."""
    init_key, run_key = jax.random.split(key)
    return model.init(init_key), run_key


def report(progress: "TextProgress", result: Fit, steps: int) -> int:
    """Say how the run ended, measure what was held out for its end, and what to do next."""
    folder, data, step = progress.folder, progress.data, int(result.state.step)
    if not result.finished:
        assert result.stopped_by is not None
        goes_on = f"{PROGRAM} train --resume --run-dir {folder}"
        progress.say(f"stopped and saved at step {step}; resume with: {goes_on}")
        return 128 + result.stopped_by
    if step < steps:
        progress.say(
            f"ended after {step} of {steps} steps: no better validation loss in the last epochs "
            f"(--patience {progress.config.patience})"
        )
    if len(data.test):
        # Once, with the parameters that `generate` and the others take.
        assert result.best is not None
        measured = held_out(progress.model, data.test, "test")(result.params)
        progress.say(
            f"test: {measured['test_loss']:.4f} nats, {measured['test_bits']:.3f} bits per "
            f"{progress.unit}, at step {result.best['step']}"
        )
        if is_first():
            write_json(folder / "test.json", {"step": result.best["step"], **measured})
    progress.say(f"done; the loss is plotted in {folder / 'loss.png'}")
    progress.say(f"let it write: {PROGRAM} generate --run-dir {folder}")
    return 128 + result.stopped_by if result.stopped_by else 0


class TextProgress(Progress):
    """In bits and characters; after each epoch a sample, and now and then the plot of the loss."""

    def __init__(self, config: Train, data: Data, model: CharacterModel, folder: Path):
        super().__init__()
        self.config, self.data, self.model, self.folder = config, data, model, folder
        self.unit = data.vocabulary.unit
        self.plotted = time.monotonic()

    def on_start(self, state: TrainState) -> None:
        """Take back the samples after the checkpoint, and half a line."""
        super().on_start(state)
        path, step = self.folder / "samples.txt", int(state.step)
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            at = [re.match(r"epoch \d+, step (\d+): ", line) for line in lines]
            kept = [x for x, m in zip(lines, at, strict=True) if not m or int(m[1]) <= step]
            write_whole(path, "".join(line + "\n" for line in kept).encode())

    def on_dispatch(self, step: int, losses: Any, seconds: float | None) -> None:
        """Move on, and draw the plot now and then."""
        super().on_dispatch(step, losses, seconds)
        if time.monotonic() - self.plotted > _SECONDS_PER_PLOT:
            self.plot()

    def of_steps(self, loss: float, rate: float | None) -> str:
        """Loss and bits of the last step, and the speed."""
        speed = f", {rate * self.data.characters_per_step:,.0f} {self.unit}s/s" if rate else ""
        return f"loss {loss:.3f}, bits {bits(loss):.3f}{speed}"

    def of_epoch(self, summary: Mapping[str, Any]) -> str:
        """Means and measures of an epoch."""
        line = f"loss {summary['loss']:.4f} nats, {bits(summary['loss']):.3f} bits per {self.unit}"
        if (loss := summary.get("validation_loss")) is not None:
            line += f"; validation {loss:.4f} nats, {bits(loss):.3f} bits"
        if rate := summary.get("steps_per_second"):
            line += f"; {rate * self.data.characters_per_step:,.0f} {self.unit}s per second"
        return line + (f"; {summary['skipped']} steps skipped" if "skipped" in summary else "")

    def on_epoch(self, state: TrainState, summary: dict[str, Any]) -> None:
        """Print the epoch's means and a sample."""
        super().on_epoch(state, summary)
        if self.config.sample_length:
            self.on_phase("sampling")
            epoch = summary["epoch"]
            text = write_sample(self.model, self.data.vocabulary, self.config, state.params, epoch)
            self.say(f"  {text!r}")
            with (self.folder / "samples.txt").open("a", encoding="utf-8") as file:
                file.write(f"epoch {epoch}, step {int(state.step)}: {text!r}\n")

    def plot(self) -> None:
        """Draw the loss so far."""
        if is_first():
            plot_loss(self.folder, self.unit)
            self.plotted = time.monotonic()


def write_sample(
    model: CharacterModel, vocabulary: AnyVocabulary, config: Train, params: Any, epoch: int
) -> str:
    """What the model writes after an epoch, from one random character.

    Raises:
        NonFiniteError: it predicts nothing, so that these parameters are not worth a checkpoint.
    """
    first, keys = _first_draw(jax.random.key(config.seed), epoch, len(vocabulary))
    ready, laid_out = model.prepared(params, 1)
    try:
        _, ids = sample(
            ready, laid_out, ready.initial_carry(1), first, key=keys,
            length=config.sample_length, temperature=config.sample_temperature,
        )  # fmt: skip
    except NonFiniteError as error:
        raise NonFiniteError(
            f"the logits of epoch {epoch} must have a finite maximum, but have NaN or infinity; "
            "resume from the last checkpoint, with a smaller learning rate"
        ) from error
    return vocabulary.decode(np.concatenate([first, ids[:, 0]]))


@functools.partial(jax.jit, static_argnums=2)
def _first_draw(key: jax.Array, epoch: int, size: int) -> tuple[jax.Array, jax.Array]:
    """The first of a sample's characters, of so many, and the key of the others: each ``(1,)``."""
    first_key, key = jax.random.split(jax.random.fold_in(key, epoch))
    # The key of a row that draws as the first one of `rnnjax.text.sample` does.
    return jax.random.randint(first_key, (1,), 0, size), jax.random.fold_in(key, 0)[None]


def plot_loss(run_dir: Path, unit: str = "character") -> None:
    """Draw the loss of every step, its mean over every epoch, and that on held-out text.

    A mean stands in the middle of its epoch, whose steps it is of; the validation at the end, where
    it was measured.
    """
    steps, epochs = (
        [e for e in read_lines(run_dir / name) if isinstance(e.get("loss"), float)]
        for name in ("steps.jsonl", "epochs.jsonl")
    )
    ends = [0, *(entry["step"] for entry in epochs)]
    middles = [(before + end) / 2 for before, end in itertools.pairwise(ends)]
    each = thinned(np.array([(e["step"], e["loss"]) for e in steps]).reshape(-1, 2))
    scale = (lambda nats: np.asarray(nats) / np.log(2), lambda bits: np.asarray(bits) * np.log(2))
    with plots.drawn(run_dir / "loss.png", 1, 1, (7, 4)) as ((axes,),):
        axes.plot(*each.T, color="tab:blue", alpha=0.35, linewidth=0.8, label="each step")
        marked = functools.partial(axes.plot, marker="o", markersize=3)
        marked(middles, [e["loss"] for e in epochs], color="tab:blue", label="mean of the epoch")
        if validated := [e for e in epochs if "validation_loss" in e]:
            at, measured = zip(*[(e["step"], e["validation_loss"]) for e in validated], strict=True)
            marked(at, measured, color="tab:orange", label="validation")
        axes.set(xlabel="steps", ylabel=f"loss (nats per {unit})")
        axes.secondary_yaxis("right", functions=scale).set_ylabel(f"bits per {unit}")
        axes.grid(alpha=0.3)
        axes.legend()


def thinned(curve: np.ndarray, groups: int = 1000) -> np.ndarray:
    """Reduce a long curve ``(points, 2)`` to the lowest and highest point of each group.

    The plot looks the same. Drawing 150,000 points would take two seconds.
    """
    if len(curve) <= 2 * groups:
        return curve
    parts = np.array_split(np.arange(len(curve)), groups)
    extremes = [part[find(curve[part, 1])] for part in parts for find in (np.argmin, np.argmax)]
    return curve[np.unique(extremes)]
