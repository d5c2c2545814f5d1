"""How long does it take until the gradient of recurrent layers is compiled?

``python -m benchmarks.compile_time [QUESTION] [--rounds N] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import compile_time
from benchmarks.questions.variants import variants

if __name__ == "__main__":
    command.main("benchmarks.compile_time", variants(compile_time))
