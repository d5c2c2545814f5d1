"""A single layer against the other libraries': who takes how long, at which shapes and lengths?

``python -m benchmarks.layers [shapes|lengths|steps|keyword] [--cells rnn lstm gru]
[--passes forward backward] [--shapes 128,16] [--contenders onnxruntime]``. A shape may go on with
steps and inputs: 48,24,500,3.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import command
from benchmarks.questions import keyword, layers, lengths, steps

QUESTIONS = {"shapes": layers, "lengths": lengths, "steps": steps, "keyword": keyword}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which part of the points."""
    parser.add_argument(
        "--cells", nargs="+", choices=layers.CELLS, help="of shapes and lengths; by default all"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="UNITS,ROWS[,STEPS,INPUTS]",
        help="of shapes, as in 48,24,500,3; default: eleven, of 100 steps",
    )
    parser.add_argument(
        "--passes", nargs="+", choices=layers.PASSES, help="backward: with forward; default: both"
    )


def shape(given: str) -> tuple[int, ...]:
    """Units and rows, and perhaps steps and inputs."""
    sizes = tuple(map(command.positive, given.split(",")))
    if len(sizes) not in (2, 3, 4):
        raise argparse.ArgumentTypeError(
            f"expected units,rows,steps,inputs, of which the last two may be left out, not {given}"
        )
    return sizes


def adjust(settings: Any, options: argparse.Namespace) -> Any:
    """The settings with those of these options in them that the question has."""
    given = {name: getattr(options, name) for name in ("cells", "passes", "shapes")}
    chosen = {
        name: tuple(values) for name, values in given.items() if values and hasattr(settings, name)
    }
    return dataclasses.replace(settings, **chosen)


if __name__ == "__main__":
    command.main("benchmarks.layers", QUESTIONS, add_options, adjust)
