"""Six programs as a user of Keras writes them, each in Keras and in rnnjax: lines, result, time.

``python -m benchmarks.keras_programs [--rounds N] [--quick]`` learns and times them.

A module is a program: ``make`` makes its data, ``in_keras`` and ``in_rnnjax`` learn it, with the
same sizes, and ``score`` says how well, where less is better and ``LEARNED`` is enough.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

from benchmarks.keras_programs import (
    characters,
    classification,
    custom_cell,
    forecast,
    generator,
    sequence_to_sequence,
)

PROGRAMS: dict[str, ModuleType] = {
    "forecast, state carried": forecast,
    "classes, masked and weighed": classification,
    "sequence to sequence": sequence_to_sequence,
    "characters, callbacks": characters,
    "data of a generator": generator,
    "cell of one's own": custom_cell,
}


def lines(program: Callable[..., Any]) -> int:
    """Lines of a program with anything but comments: its head and its docstring are not counted."""
    source = textwrap.dedent(inspect.getsource(program))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = source.splitlines()[function.body[1].lineno - 1 :]  # after the docstring
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in body)
