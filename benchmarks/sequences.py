"""What do masks, noise and other cells cost, and what do blocks, functions and packing save?

``python -m benchmarks.sequences [features|cells|loops|parallel|recurrences|packing] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import cells, features, loops, packing, parallel, recurrences

if __name__ == "__main__":
    questions = {
        "features": features,
        "cells": cells,
        "loops": loops,
        "parallel": parallel,
        "recurrences": recurrences,
        "packing": packing,
    }
    command.main("benchmarks.sequences", questions)
