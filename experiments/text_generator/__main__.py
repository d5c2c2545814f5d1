"""``python -m experiments.text_generator COMMAND``: see the README beside this."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments import runs
from experiments.text_generator.config import Evaluate, Export, Generate, Inspect, Train
from experiments.text_generator.evaluation import run_evaluation
from experiments.text_generator.export import run_export
from experiments.text_generator.generation import run_generation
from experiments.text_generator.inspection import run_inspection
from experiments.text_generator.presets import PRESETS
from experiments.text_generator.training import run_training


def main() -> int:
    """Do what the command line says."""
    train: Any = Annotated[Train, tyro.conf.subcommand("train", default=PRESETS[_preset()])]
    command = tyro.cli(
        train
        | Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Export, tyro.conf.subcommand("export")],
        prog="python -m experiments.text_generator",
        description="A character-level language model in JAX.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if isinstance(command, Train):
        return run_training(dataclasses.replace(command, given=given_options(sys.argv)))
    if isinstance(command, Generate):
        return run_generation(command)
    if isinstance(command, Inspect):
        return run_inspection(command)
    if isinstance(command, Export):
        return run_export(command)
    return run_evaluation(command)


def given_options(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the options among the arguments, as fields are called.

    >>> sorted(given_options(["train", "--seq-length=5", "--no_tied", "--no-resume"]))
    ['resume', 'seq_length', 'tied']
    """
    options = [a[2:].partition("=")[0].replace("-", "_") for a in arguments if a.startswith("--")]
    return frozenset(name.removeprefix("no_") for name in options)


def _preset() -> Any:
    """The preset named on the command line, which says what the other defaults are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="tutorial")
    name = parser.parse_known_args()[0].preset
    return name if name in PRESETS else "tutorial"  # tyro refuses any other


if __name__ == "__main__":
    runs.exit_with(main)
