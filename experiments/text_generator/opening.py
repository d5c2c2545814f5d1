"""Begin a run, or open one that goes on: its options, its text, its folder."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import runs
from experiments.text_generator.config import Train, option
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.scale import check_alike, sharding_of
from experiments.text_generator.stored import PROGRAM, options_of, vocabulary_to_json
from rnnjax.errors import InvalidInputError
from rnnjax.training import Sharding, from_first

_GROUPS = ("text", "model", "optimization")
_FREE = ("epochs", "steps", "patience", "mesh")
_OF_THIS_CALL = ("run_dir", "resume", "launch", "given")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run before its first step, or its next.

    Attributes:
        config: all of its options; one that goes on has its own.
        data: its text, of which this process has its rows.
        sharding: how it lies over devices, or None for one.
        folder: where its results go.
    """

    config: Train
    data: Data
    sharding: Sharding | None
    folder: Path

    @classmethod
    def open(cls, config: Train) -> "Run":
        """Make the folder of a new run, whose options were checked, or find one to go on with.

        Raises:
            InvalidInputError: there is no such run, options that cannot change differ from its own,
                its text is not what it was, or the processes do not agree.
        """
        folder: str | None = None
        if config.resume:
            folder, stored = from_first(lambda: existing_run(config.run_dir))
            config = resumed(config, options_of(stored.get("config")))
            config.check()
        elif "epochs" in config.chosen and "steps" not in config.chosen:
            config = dataclasses.replace(config, steps=None)  # that of the preset
        data = Data.load(config.text, config.seed)
        if folder is not None and data.digest != stored["text_sha256"]:
            raise InvalidInputError(
                f"the text of {config.text.corpus!r} is not the one that the run in {folder} "
                "began with, so it cannot go on exactly; restore the text, or begin a new run"
            )
        check_alike(config, data.digest)
        sharding = sharding_of(config)
        if sharding is not None:
            data = dataclasses.replace(data, rows=sharding.rows(config.text.batch_size))
        if config.steps is not None:
            epochs = math.ceil(config.steps / data.steps_per_epoch)
            config = dataclasses.replace(config, epochs=epochs)
        try_out(config, data)
        if folder is None:
            folder = from_first(lambda: str(runs.create(PROGRAM, config.run_dir)))
        run = cls(config, data, sharding, Path(folder))
        from_first(lambda: runs.write_json(run.folder / "run.json", run.as_json()))
        return run

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.data.steps_per_epoch

    def as_json(self) -> dict[str, Any]:
        """What run.json and every checkpoint say of it."""
        return {
            "config": self.config.as_json(),
            "vocabulary": vocabulary_to_json(self.data.vocabulary),
            "text_sha256": self.data.digest,
        }


def try_out(config: Train, data: Data) -> None:
    """Raise whatever the options would raise in the first step; nothing is computed.

    Raises:
        InvalidInputError: the options of the model do not go together, or there is no update.
    """
    steps, accumulate = config.epochs * data.steps_per_epoch, config.optimization.accumulate
    if accumulate > steps:
        raise InvalidInputError(
            f"--accumulate {accumulate} makes one update of so many steps, but the run has only "
            f"{steps}; take fewer, or more epochs"
        )
    model = CharacterModel.build(config.model, len(data.vocabulary))
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.ShapeDtypeStruct((config.text.batch_size, config.text.seq_length), jnp.int32)
    carry = jax.eval_shape(lambda: model.initial_carry(config.text.batch_size))
    params = jax.eval_shape(model.init, key)
    jax.eval_shape(model.losses, params, carry, batch, batch, key)


def resumed(given: Train, stored: Train) -> Train:
    """The options of a run that goes on: its own, but for what may change and was given.

    Raises:
        InvalidInputError: another option was given, and differs from that of the run.
    """
    for ours, theirs in (
        (given, stored),
        *((getattr(given, group), getattr(stored, group)) for group in _GROUPS),
    ):
        for field in dataclasses.fields(ours):
            if field.name not in given.chosen or field.name in (*_FREE, *_OF_THIS_CALL, *_GROUPS):
                continue
            value, has = getattr(ours, field.name), getattr(theirs, field.name)
            if value != has:
                raise InvalidInputError(
                    f"{option(field.name)} {value} cannot be changed: the run has {has}, and "
                    "--resume goes on with the options of the run; leave it out"
                )
    changed = {name: getattr(given, name) for name in _FREE if name in given.chosen}
    if "epochs" in changed:
        changed.setdefault("steps", None)
    return dataclasses.replace(
        stored, **changed, run_dir=given.run_dir, resume=True, launch=given.launch
    )


def existing_run(run_dir: Path | None) -> tuple[str, dict[str, Any]]:
    """The folder of a run and its run.json."""
    found = runs.existing(PROGRAM, run_dir)
    return str(found), runs.read_json(found / "run.json")
