"""``python -m benchmarks.keras_programs``."""

from benchmarks import command
from benchmarks.keras_programs import epochs

if __name__ == "__main__":
    command.main("benchmarks.keras_programs", {"epochs": epochs})
