"""How long an import takes, in an interpreter of its own each time."""

import dataclasses
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.reports import Outcome, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks"]

MODULES = ("jax", "rnnjax", "rnnjax.linen", "flax.linen", "torch")
APART = ("import jax", "import torch", "import keras, on tensorflow", "import keras, on torch")
"""What is not an import on top of JAX's."""
PROGRAM = """
import sys
from time import perf_counter
began = perf_counter()
import {module}
print(perf_counter() - began, len(sys.modules))
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How often each repetition imports; the fastest counts, as others' work only ever adds."""

    imports: int = 3


QUICK = Settings(imports=1)


def importing(module: str) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender of a module."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        shape = Settings(**settings)
        # So that its version is known, and its files are in memory and compiled by Python.
        importlib.import_module(module)
        while True:
            runs = [fresh_import(module) for _ in range(shape.imports)]
            yield Outcome(min(seconds for seconds, _ in runs), runs[0][1])

    return repetitions


def fresh_import(module: str) -> tuple[float, int]:
    """The seconds of the import in a new interpreter, and how many modules are there after it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, modules = map(json.loads, done.stdout.split()[-2:])
    return seconds, modules


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    return Question(
        "import_time",
        f"One import in a new interpreter, whose own start is not counted; the fastest of "
        f"{settings.imports} in each round. The files are in memory already.",
        [
            *(
                Contender(f"import {module}", importing(module), packages_of(module))
                for module in MODULES
            ),
            *(
                Contender(
                    f"import keras, on {name}",
                    importing("keras"),
                    ["keras", name],
                    {"KERAS_BACKEND": name},
                )
                for name in ("jax", "tensorflow", "torch")
            ),
        ],
        baseline="import rnnjax",
        value_name="modules loaded",
    )


def packages_of(module: str) -> list[str]:
    """What has to be installed for it."""
    package = module.partition(".")[0]
    return [package] if package in ("jax", "torch") else [package, "jax"]


def remarks(report: Report) -> list[str]:
    """How much of the imports of what stands on JAX is the import of JAX."""
    rounds = {
        result.name: result.amounts
        for result in report.results
        if result.later and not result.problem
    }
    jax = rounds.get("import jax")
    said = []
    for name, seconds in rounds.items():
        if jax and name not in APART:
            share = statistics.median(a / b for a, b in zip(jax, seconds, strict=True))
            rest = statistics.median(b - a for a, b in zip(jax, seconds, strict=True))
            said.append(f"{name}: {share:.0%} of it is jax; the rest takes {short(rest)} s.")
    return said
