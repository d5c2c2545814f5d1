"""The same model and training in rnnjax, a jitted scan, and in Keras: who takes how long?

``python -m benchmarks.scan_vs_keras [alphabet|train_step|generation] [--rounds N] [--quick]``
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from benchmarks import timing
from benchmarks.questions import alphabet, generation, train_step

QUESTIONS = {"alphabet": alphabet, "train_step": train_step, "generation": generation}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Answer one question, or all three."""
    parser = argparse.ArgumentParser("python -m benchmarks.scan_vs_keras")
    parser.add_argument("question", nargs="?", choices=QUESTIONS, help="by default all three")
    parser.add_argument("--rounds", type=int, help="repetitions after the first (5; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the script")
    parser.add_argument(
        "--keras-epochs",
        type=int,
        help="alphabet: epochs of Keras's runs after the first, scaled to all 300 (default: 300)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        module = QUESTIONS[options.question]
        timing.serve(module.question(module.Settings()).contenders, options.worker)
        return
    for name in [options.question] if options.question else QUESTIONS:
        run(name, options)


def run(name: str, options: argparse.Namespace) -> None:
    """Answer one question: print the report and keep it."""
    module = QUESTIONS[name]
    settings = module.QUICK if options.quick else module.Settings()
    if options.keras_epochs and name == "alphabet":
        settings = dataclasses.replace(settings, later_keras_epochs=options.keras_epochs)
    question = module.question(settings)
    rounds = options.rounds or (3 if options.quick else 5)
    command = [sys.executable, "-m", "benchmarks.scan_vs_keras", name]

    print(f"\n{question.title}")
    with tempfile.TemporaryDirectory() as folder:
        full = dataclasses.replace(settings, weights=str(Path(folder, "weights.npz")))
        module.write_weights(full)
        report = timing.ask(question, dataclasses.asdict(full), rounds, command)
    report.settings |= {**dataclasses.asdict(settings), "quick": options.quick}
    report.remarks += module.remarks(report)
    timing.write(report, options.results, f"{name}_quick" if options.quick else name)
    print(f"\n{timing.text(report)}\nkept in {options.results}")


if __name__ == "__main__":
    main()
