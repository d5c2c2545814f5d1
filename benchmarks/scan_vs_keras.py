"""One model and training in rnnjax, a jitted scan, and in Keras: who takes how long?

``python -m benchmarks.scan_vs_keras [alphabet|train_step|generation] [--rounds N] [--quick]``
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import command
from benchmarks.questions import alphabet, generation, train_step

QUESTIONS = {"alphabet": alphabet, "train_step": train_step, "generation": generation}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long Keras may take for the alphabet."""
    parser.add_argument(
        "--keras-epochs",
        type=command.positive,
        help="alphabet: epochs of Keras's runs after the first, scaled to all 300 (default: 300)",
    )


def adjust(settings: Any, options: argparse.Namespace) -> Any:
    """The settings with these options in them."""
    if options.keras_epochs and isinstance(settings, alphabet.Settings):
        return dataclasses.replace(settings, later_keras_epochs=options.keras_epochs)
    return settings


if __name__ == "__main__":
    command.main("benchmarks.scan_vs_keras", QUESTIONS, add_options, adjust)
