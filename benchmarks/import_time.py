"""How long does an import take? ``python -m benchmarks.import_time [--rounds N] [--quick]``."""

from benchmarks import command
from benchmarks.questions import import_time

if __name__ == "__main__":
    command.main("benchmarks.import_time", {"import_time": import_time})
