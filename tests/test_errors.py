"""The sentences of the errors, as they stand in the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnjax import errors

ROOT = Path(__file__).parents[1]
FOLDERS = ("experiments/text_generator", "rnnjax/text", "rnnjax/training")


def sentences(path: Path) -> Iterator[str]:
    """What the errors of a file say that are made of one text, with {} for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and hasattr(errors, ast.unparse(node.func)):
            match node.args:
                case [ast.JoinedStr(values=parts)]:
                    yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
                case [ast.Constant(value=sentence)]:
                    yield sentence


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_error_says_what_to_do(folder):
    """Behind a semicolon; one that begins with another error says more of what that does."""
    found = [s for path in (ROOT / folder).glob("*.py") for s in sentences(path)]
    assert found
    assert [s for s in found if "; " not in s and not s.startswith("{}: ")] == []
