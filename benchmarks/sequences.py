"""What do masks, noise and other cells cost, and what do blocks, functions and packing save?

``python -m benchmarks.sequences [QUESTION]``; ``--help`` lists the questions.
"""

from benchmarks import command
from benchmarks.questions import (
    cells,
    features,
    language_models,
    loops,
    online,
    packing,
    parallel,
    products,
    recurrences,
    resets,
    time_cells,
)
from benchmarks.questions.variants import variants

if __name__ == "__main__":
    questions = {
        "features": features,
        "cells": cells,
        "time": time_cells,
        "loops": loops,
        "products": products,
        "parallel": parallel,
        "recurrences": recurrences,
        "resets": resets,
        "packing": packing,
        "online": online,
        **variants(language_models),
    }
    command.main("benchmarks.sequences", questions)
