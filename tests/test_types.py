"""What type checkers know of a cell: `make lint` has mypy read this file, and pytest runs it.

The last test has pyright read it too, as editors do, and the cells of the pages.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Coupling, GRUCarry, InvalidInputError, LSTMCarry, SimpleRNNCarry, unroll

ROOT = Path(__file__).parents[1]
XS = jnp.ones((3, 2, 4))


def drawn(cell: rnnjax.Cell) -> Any:
    return cell.init(jax.random.key(0), 4)


def test_a_carry_has_the_type_that_its_cell_declares() -> None:
    cell = rnnjax.LSTMCell(5)
    carry, ys = unroll(cell, drawn(cell), XS)
    assert_type(carry, LSTMCarry)
    assert_type(carry.cell, jax.Array)
    assert_type(cell.initial_carry((2,)), LSTMCarry)
    assert_type(cell.step(drawn(cell), carry, XS[0])[0], LSTMCarry)
    assert isinstance(carry, LSTMCarry)
    assert ys.shape == (3, 2, 5)
    carry, _ = unroll(cell, drawn(cell), np.ones((3, 2, 4), "f"), lengths=np.array([3, 2]))


def test_the_types_of_combinations_follow() -> None:
    gru = rnnjax.GRUCell(4)
    for wrapped in (rnnjax.LearnedCarry(gru), rnnjax.Regularized(gru, zoneout_hidden=0.1)):
        carry, _ = unroll(wrapped, drawn(wrapped), XS)
        assert_type(carry, GRUCarry)
        assert isinstance(carry, GRUCarry)
    ready, laid_out = rnnjax.prepare(gru, drawn(gru), XS[0])
    assert_type(ready.step(laid_out, ready.initial_carry((2,)), XS[0])[0], GRUCarry)
    both = rnnjax.Bidirectional(gru)
    assert_type(unroll(both, drawn(both), XS)[0], rnnjax.Directions)
    stack = rnnjax.Stack([gru])
    assert_type(unroll(stack, drawn(stack), XS)[0], tuple[Any, ...])
    assert_type(rnnjax.Mamba2Cell(4).initial_carry(), rnnjax.MatrixCarry)


@dataclasses.dataclass(frozen=True)
class ByValue(rnnjax.Cell[SimpleRNNCarry]):
    """A cell that names its carry, and declares values, and what depends on a field in a line."""

    hidden_size: int
    carry = SimpleRNNCarry
    gates = "h", "g"
    recurrent = None
    raw, loop = {"gap": 1}, {"own": 1, "out": (4, 2)}
    coupling = Coupling.AFFINE
    carry_shapes = property(lambda self: {"hidden": (self.hidden_size,)})
    output_size = property(lambda self: self.hidden_size)

    def update(self, params: Any, x: Any, carry: SimpleRNNCarry, gap: Any) -> SimpleRNNCarry:
        return carry


@dataclasses.dataclass(frozen=True)
class ByProperty(rnnjax.Cell):
    """A cell that declares properties, and what is an expression in its base class as a value."""

    hidden_size: int
    count: int = 2
    carry = SimpleRNNCarry
    output_size = 4

    @property
    def gates(self) -> tuple[str, ...]:
        return ("h",) * self.count

    @property
    def recurrent(self) -> str | None:
        return None

    @property
    def raw(self) -> Mapping[str, int]:
        return {"gap": self.count}

    @property
    def loop(self) -> dict[str, int]:
        return {"own": 1}

    @property
    def coupling(self) -> Coupling:
        return Coupling.ANY

    def update(self, params: Any, x: Any, carry: Any, gap: Any) -> Any:
        return carry


def test_a_cell_of_ones_own_may_name_its_carry() -> None:
    named, unnamed = ByValue(5), ByProperty(4)
    assert_type(unroll(named, drawn(named), XS)[0], SimpleRNNCarry)
    carry, _ = unroll(unnamed, drawn(unnamed), XS)
    assert_type(carry, Any)
    assert isinstance(carry, SimpleRNNCarry)


def test_arguments_in_another_order_are_a_type_error() -> None:
    """mypy is strict: a comment below that ignored no error would be one itself."""
    cell = rnnjax.LSTMCell(5)
    with pytest.raises(InvalidInputError):
        unroll(cell, XS, drawn(cell))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(drawn(cell), cell, XS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(rnnjax.LSTMCell, drawn(cell), XS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        unroll(cell, drawn(cell), XS, GRUCarry(XS[0]))  # type: ignore[misc]


class OfTheLibrary(rnnjax.GRUCell):
    """A cell that declares again what its base class computes."""

    recurrent = None
    coupling = Coupling.ANY
    raw = {"gap": 1}

    def update(self, params: Any, x: Any, carry: GRUCarry, **raw: Any) -> GRUCarry:
        return carry


def test_a_declaration_is_a_value_or_a_property() -> None:
    def declared(cell: rnnjax.Cell) -> tuple[Any, ...]:
        assert_type(cell.gates, tuple[str, ...])
        assert_type(cell.recurrent, str | None)
        assert_type(cell.output_size, int)
        assert_type(cell.coupling, Coupling)
        return cell.gates, cell.recurrent, cell.raw, cell.output_size, cell.coupling

    assert declared(ByValue(4)) == (("h", "g"), None, {"gap": 1}, 4, Coupling.AFFINE)
    assert declared(ByProperty(4)) == (("h", "h"), None, {"gap": 2}, 4, Coupling.ANY)
    assert declared(OfTheLibrary(4))[1:3] == (None, {"gap": 1})


# Each line after the third is an error.
WRONG = """\
import rnnjax
cell = rnnjax.LSTMCell(5)
params, xs = {"kernel": rnnjax.Param((1,))}, rnnjax.Scan()
rnnjax.LSTMCell("x")
rnnjax.unroll(params, cell, xs)
class Numbered(rnnjax.Cell): gates = 5
class Misspelt(rnnjax.Cell): coupling = "affine"
class Listed(rnnjax.GRUCell): recurrent = ["hidden"]
"""


def test_an_editor_marks_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    """One process of pyright reads it all: most of its time goes to JAX."""
    pytest.importorskip("basedpyright")
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    (tmp_path / "test_types.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    pages = ROOT / "docs" / "your-own-cell.md", *(ROOT / "docs" / "gallery").glob("*.md")
    # Prose as empty lines, so that an error has the line of its page.
    prose = re.compile(r"(\A|^```\n).*?(^```python\n|\Z)", re.MULTILINE | re.DOTALL)
    for page in pages:
        code = prose.sub(lambda found: "\n" * found[0].count("\n"), page.read_text("utf-8"))
        (tmp_path / f"page_{page.stem.replace('-', '_')}.py").write_text(code, "utf-8")
    config = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), "utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(tmp_path)]
    run = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True, check=False
    )
    told = json.loads(run.stdout)
    assert told["summary"]["filesAnalyzed"] == len(pages) + 2
    errors = [
        (Path(one["file"]).stem, one["range"]["start"]["line"] + 1, one["message"])
        for one in told["generalDiagnostics"]
    ]
    assert not [error for error in errors if error[0] != "wrong"]
    assert {line for _, line, _ in errors} == set(range(4, 1 + len(WRONG.splitlines())))
