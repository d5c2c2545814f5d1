"""What do masks, resets, noise and other cells cost, and what do blocks and packing save?

``python -m benchmarks.sequences [features|cells|parallel|packing] [--rounds N] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import cells, features, packing, parallel

if __name__ == "__main__":
    questions = {"features": features, "cells": cells, "parallel": parallel, "packing": packing}
    command.main("benchmarks.sequences", questions)
