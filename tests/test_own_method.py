"""The method of docs/your-own-method.md obeys the law of every method: the numbers of the scan."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import ALL, CELLS, OwnStepCell

import rnnjax
from rnnjax.checks import brief

PAGE = Path(__file__).parents[1] / "docs" / "your-own-method.md"


@pytest.fixture(scope="module")
def newton():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    defined = {"__name__": "page"}
    exec(compile(blocks[0], str(PAGE), "exec"), defined)
    return defined["Newton"]


NOISY = rnnjax.Regularized(rnnjax.LSTMCell(3), zoneout_hidden=0.3, recurrent_dropout=0.2)


SOME = [*map(CELLS.get, ("lstm", "gru", "minlstm")), OwnStepCell(3), NOISY]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", SOME, ids=brief)
def test_it_gives_the_numbers_of_the_scan(cell, reverse, newton, equal_to_scan):
    """Also of a cell with a step of its own, and with the noise of training."""
    equal_to_scan(cell, [newton()], reverse=reverse, key=jax.random.key(0), **ALL)


def test_it_converges_over_many_steps_and_runs_one_by_one_where_it_does_not(newton, random_like):
    cell = rnnjax.GRUCell(4)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1)
    xs = random_like(jax.ShapeDtypeStruct((300, 2, 2), "f"), 2)

    def found(params, method):
        return rnnjax.unroll(cell, params, xs, method=method)[1]

    np.testing.assert_allclose(found(params, newton()), found(params, rnnjax.Scan()), atol=1e-5)
    loops = str(jax.make_jaxpr(lambda p: found(p, newton()))(params))
    assert "while" in loops
    few = found(params, newton(iterations=1))  # which is too few
    np.testing.assert_allclose(few, found(params, rnnjax.Scan()), atol=1e-5)


def test_a_cell_that_it_cannot_run_is_refused(newton):
    cell = rnnjax.MLSTMCell(4)
    assert newton().refusal(cell) == "its state is not made of vectors of float32"
    with pytest.raises(rnnjax.InvalidInputError, match=r"Newton\(\) cannot run MLSTMCell\(4\)"):
        rnnjax.unroll(cell, cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3)), method=newton())
