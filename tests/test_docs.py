"""The tutorial's cell: its code is as short as it says, and passes the laws."""

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax import Fused
from rnnjax.testing import check_cell

pytestmark = pytest.mark.docs
PAGE = Path(__file__).parents[1] / "docs" / "your-own-cell.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tutorial():
    """What the tutorial's code defines, and what it prints."""
    names, printed = {"__name__": "tutorial"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in BLOCKS:
            exec(compile(block, PAGE.name, "exec"), names)
    return names, printed.getvalue()


def test_the_tutorial_is_as_short_as_it_says(tutorial):
    assert len(BLOCKS[0].splitlines()) <= 50
    names, printed = tutorial
    assert names["ys"].shape == (20, 5, 16)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(names["gradient"]))
    assert "JANETCell(16) over inputs (20, 5, 3)" in printed
    assert printed.count("JANETCell(8)") == 2
    assert printed.count("chose Fused()") == 4
    assert printed.count("numbers a row of every step for the backward pass") == 4
    # The first row skips step 4, and the second forgets at step 10 all that was before.
    cell, params, xs, ys = (names[key] for key in ("cell", "params", "xs", "ys"))
    assert np.all(ys[4, 0] == 0)
    _, anew = rnnjax.unroll(cell, params, xs[10:])
    np.testing.assert_allclose(ys[10:, 1], anew[:, 1], atol=1e-6)
    assert np.all(params["bias"] == np.repeat([1, 0], 16))  # the forget gate begins open


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("x64")
def test_its_cell_passes_the_laws(reverse, tutorial, equal_to_scan):
    rng = np.random.default_rng(0)
    marks = {"mask": rng.random((5, 3)) < 0.7, "resets": rng.random((5, 3)) < 0.3}
    given = {"dtype": "float64", "tolerance": 1e-10, "lengths": np.array([5, 4, 1]), **marks}
    equal_to_scan(tutorial[0]["JANETCell"](4), [Fused()], reverse=reverse, **given)


def test_its_step_is_its_equation(tutorial, random_like):
    cell = tutorial[0]["JANETCell"](4)
    params, carry = random_like(lambda: (cell.init(jax.random.key(0), 2), cell.initial_carry()), 1)
    x = np.array([0.3, -0.7], np.float32)
    gates = x @ params["kernel"] + carry.hidden @ params["recurrent_kernel"] + params["bias"]
    f, g = 1 / (1 + np.exp(-gates[:4])), np.tanh(gates[4:])
    new, y = cell.step(params, carry, x)
    np.testing.assert_allclose(y, f * carry.hidden + (1 - f) * g, rtol=1e-5)
    np.testing.assert_array_equal(y, new.hidden)
    check_cell(cell)
