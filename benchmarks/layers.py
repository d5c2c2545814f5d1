"""A single layer against the other libraries': who takes how long, at which shapes and lengths?

``python -m benchmarks.layers [shapes|lengths] [--cells rnn lstm gru] [--passes forward backward]``
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import command
from benchmarks.questions import layers, lengths

QUESTIONS = {"shapes": layers, "lengths": lengths}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which part of the points."""
    parser.add_argument("--cells", nargs="+", choices=layers.CELLS, help="by default all")
    parser.add_argument(
        "--passes", nargs="+", choices=layers.PASSES, help="backward: with forward; default: both"
    )


def adjust(settings: Any, options: argparse.Namespace) -> Any:
    """The settings with these options in them."""
    if options.cells:
        settings = dataclasses.replace(settings, cells=tuple(options.cells))
    if options.passes:
        settings = dataclasses.replace(settings, passes=tuple(options.passes))
    return settings


if __name__ == "__main__":
    command.main("benchmarks.layers", QUESTIONS, add_options, adjust)
