"""``python -m experiments.text_generator COMMAND``: see the README beside this."""

import argparse
import dataclasses
from pathlib import Path

import jax

from experiments.shared import runs
from experiments.text_generator.checkpoints import stored_in
from experiments.text_generator.config import Train
from experiments.text_generator.evaluate import Evaluate, run_evaluation
from experiments.text_generator.export import Export, run_export
from experiments.text_generator.generate import Generate, run_generation
from experiments.text_generator.inspect import Inspect, run_inspection
from experiments.text_generator.presets import load_preset
from experiments.text_generator.train import PROGRAM, run_training
from experiments.text_generator.trained import existing, options_of
from rnnjax.training import start_processes, use_cores
from rnnjax.training.processes import from_first


def main() -> int:
    """Do what the command line says."""
    default = defaults_of_train()

    def train(command: Train) -> int:
        return run_training(settled(command, default))

    return runs.commands(
        PROGRAM, "train --corpus alice", "A character-level language model in JAX.",
        ("train", Train, train, "--preset fast --corpus my-text.txt"),
        ("generate", Generate, run_generation, '--prime "Alice " --temperature 0.5'),
        ("evaluate", Evaluate, run_evaluation, "--page surprise.html"),
        ("inspect", Inspect, run_inspection, "--to inside.html"),
        ("export", Export, run_export, "--to alice.onnx"),
        train=default,
    )  # fmt: skip


def settled(command: Train, default: Train) -> Train:
    """The options of a command, without the default's --steps where --epochs replaces them."""
    if command.epochs != default.epochs and command.steps == default.steps:
        return dataclasses.replace(command, steps=None)
    return command


def defaults_of_train() -> Train:
    """What the options of `train` are where they are not given: a preset's, or the run's own.

    So what is given is what differs, and nobody has to ask which options the command line had.
    Several processes meet here, because the first one alone need see the folder of the run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("--preset", default="tutorial")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    known, _ = parser.parse_known_args()
    if known.command != "train":
        return Train()
    start_processes()
    if not jax.distributed.is_initialized():  # of several processes each has one device
        use_cores()
    if not known.resume:
        return load_preset(known.preset)
    folder = from_first(lambda: existing(known.run_dir))
    options = options_of(from_first(lambda: stored_in(folder)), folder)
    return dataclasses.replace(options, run_dir=folder, resume=True)


if __name__ == "__main__":
    runs.exit_with(main)
