"""What does a step of a stream cost, and who serves it fastest? One row, one core, float32.

``taskset -c 0 python -m benchmarks.streaming [--rows 1 16] [--units 64 256] [--steps 1 100]``;
OpenVINO takes part after ``pip install openvino``.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import command
from benchmarks.questions import streaming


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which part of the points."""
    for name in ("rows", "units", "steps"):
        parser.add_argument(f"--{name}", nargs="+", type=command.positive, help="of a call")


def adjust(settings: Any, options: argparse.Namespace) -> Any:
    """The settings with those of these options in them."""
    given = {name: getattr(options, name) for name in ("rows", "units", "steps")}
    return dataclasses.replace(settings, **{n: tuple(v) for n, v in given.items() if v})


if __name__ == "__main__":
    command.main("benchmarks.streaming", {"streaming": streaming}, add_options, adjust)
