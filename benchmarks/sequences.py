"""What do masks, noise and other cells cost, and what do blocks, functions and packing save?

``python -m benchmarks.sequences [features|cells|parallel|recurrences|packing] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import cells, features, packing, parallel, recurrences

if __name__ == "__main__":
    questions = {
        "features": features,
        "cells": cells,
        "parallel": parallel,
        "recurrences": recurrences,
        "packing": packing,
    }
    command.main("benchmarks.sequences", questions)
