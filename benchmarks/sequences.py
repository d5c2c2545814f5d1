"""What do masks, resets, noise and other cells cost, and what does packing save?

``python -m benchmarks.sequences [features|cells|packing] [--rounds N] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import cells, features, packing

if __name__ == "__main__":
    command.main("benchmarks.sequences", {"features": features, "cells": cells, "packing": packing})
