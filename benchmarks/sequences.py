"""What do masks, noise and other cells cost, and what do blocks, functions and packing save?

``python -m benchmarks.sequences [features|cells|time|loops|parallel|recurrences|resets|packing]``
"""

from benchmarks import command
from benchmarks.questions import (
    cells,
    features,
    loops,
    packing,
    parallel,
    recurrences,
    resets,
    time_cells,
)

if __name__ == "__main__":
    questions = {
        "features": features,
        "cells": cells,
        "time": time_cells,
        "loops": loops,
        "parallel": parallel,
        "recurrences": recurrences,
        "resets": resets,
        "packing": packing,
    }
    command.main("benchmarks.sequences", questions)
