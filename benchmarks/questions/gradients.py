"""Gradients of JAX functions, timed: what several questions share."""

import math
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from benchmarks.questions.jax_layers import root_mean_square
from benchmarks.questions.layer_peers import LEAST_SECONDS
from benchmarks.reports import Outcome, Point
from benchmarks.timing import Contender, Question

VALUE_NAME = "rms of the parameters' gradient"

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A compiled function that returns the gradient of the parameters first, and its arguments."""


def repeated(
    build: Callable[[dict[str, Any]], Call],
) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender that calls it again and again; a repetition is as many calls as take 0.1 s."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        import jax
        import numpy as np

        began = perf_counter()
        function, arguments = build(settings)
        gradient = jax.block_until_ready(function(*arguments))[0]
        lasted = perf_counter() - began
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]
        value = root_mean_square(np.concatenate(leaves))
        yield Outcome(lasted, value)
        began = perf_counter()
        jax.block_until_ready(function(*arguments))
        calls = math.ceil(LEAST_SECONDS / (perf_counter() - began))
        while True:
            began = perf_counter()
            for _ in range(calls):
                jax.block_until_ready(function(*arguments))
            yield Outcome((perf_counter() - began) / calls, value, {"calls": calls})

    return repetitions


def compared(
    name: str, text: str, builds: dict[str, Callable[[dict[str, Any]], Call]], points: list[Point]
) -> Question:
    """The question of these calls at these points, the first of them the baseline."""
    contenders = [
        Contender(who, repeated(build), ["rnnjax", "jax"]) for who, build in builds.items()
    ]
    return Question(
        name,
        text,
        contenders,
        baseline=contenders[0].name,
        value_name=VALUE_NAME,
        tolerance=1e-3,
        relative=True,
        patience=60,  # the solver of another's delta rule may never come back (jaxlib 0.10.2)
        points=points,
    )
