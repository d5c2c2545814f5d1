"""One optimiser step of the book model, in float32 and in bfloat16."""

import statistics

from benchmarks.questions import train_step
from benchmarks.questions.book_model import QUICK, Settings, write_weights
from benchmarks.reports import Report
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "write_weights"]

ROUGH = 0.02
"""Nats by which bfloat16 may be off."""


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    jax_packages = ["jax", "optax"]
    return Question(
        "text_generator_train_step",
        train_step.title(settings, "float32 unless it says otherwise"),
        [
            Contender("rnnjax", train_step.rnnjax_steps, ["rnnjax", *jax_packages]),
            Contender(
                "rnnjax, bfloat16 products",
                train_step.rnnjax_bfloat16,
                ["rnnjax", *jax_packages],
                tolerance=ROUGH,
            ),
            Contender("Flax linen", train_step.flax_steps, ["flax", *jax_packages]),
            Contender("PyTorch nn.LSTM", train_step.torch_steps, ["torch"]),
            Contender(
                "PyTorch nn.LSTM, bfloat16 autocast",
                train_step.torch_bfloat16,
                ["torch"],
                tolerance=ROUGH,
            ),
        ],
        baseline="rnnjax",
        value_name="loss of the first step",
        tolerance=1e-3,
        points=train_step.points(settings),
    )


def remarks(report: Report) -> list[str]:
    """Characters learnt per second."""
    settings = report.settings
    characters = settings["batch_size"] * settings["time"]
    return [
        f"{result.name}: {characters / statistics.median(result.amounts):,.0f} characters per "
        "second."
        for result in report.results
        if result.later and not result.problem
    ]
