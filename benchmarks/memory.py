"""How much memory does the gradient of a long sequence take, and what does saving some cost?

``python -m benchmarks.memory [QUESTION] [--rounds N] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import memory
from benchmarks.questions.variants import variants

if __name__ == "__main__":
    command.main("benchmarks.memory", variants(memory))
