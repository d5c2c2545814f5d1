"""How fast does the book model learn and write, in float32 and in bfloat16?

``python -m benchmarks.text_generator [train_step|generate_1|generate_64] [--rounds N] [--quick]``
"""

from benchmarks import command
from benchmarks.questions import train_step_types, writing
from benchmarks.questions.variants import variants

if __name__ == "__main__":
    command.main("benchmarks.text_generator", {"train_step": train_step_types, **variants(writing)})
