"""The code in the documents: it runs as it stands, and the tutorial's cell passes the laws."""

import contextlib
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Fused, Scan

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parent.parent
TIME, BATCH, FEATURES, HIDDEN = 5, 3, 2, 4
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
RESETS = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
MARKS = {"mask": MASK, "lengths": np.array([5, 4, 1]), "resets": RESETS}


def python_blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def the_block() -> str:
    return python_blocks("docs/your-own-cell.md")[0]


@pytest.fixture(scope="module")
def tutorial() -> tuple[dict[str, Any], str]:
    """What the tutorial's code defines, and what it prints."""
    names: dict[str, Any] = {"__name__": "tutorial"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in python_blocks("docs/your-own-cell.md"):
            exec(compile(block, "docs/your-own-cell.md", "exec"), names)
    return names, printed.getvalue()


def test_the_tutorial_is_as_short_as_it_says(tutorial: Any) -> None:
    assert len(the_block().splitlines()) <= 50
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


def test_the_forget_gate_begins_open(tutorial: Any) -> None:
    bias = tutorial[0]["params"]["bias"]
    assert np.all(bias[:16] == 1)
    assert np.all(bias[16:] == 0)


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("x64")
def test_its_cell_passes_the_laws(
    reverse: bool, tutorial: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    """Both methods equal a plain loop that knows its equations, in outputs and gradients."""
    cell = tutorial[0]["JANETCell"](HIDDEN)
    trees = (
        jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES)),
        np.zeros((TIME, BATCH, FEATURES)),
        jax.eval_shape(lambda: cell.initial_carry((BATCH,))),
    )
    arguments = [random_like(tree, seed, "float64") for seed, tree in enumerate(trees)]
    weights = random_like((trees[2], np.zeros((TIME, BATCH, HIDDEN))), 5, "float64")

    def by_equations(params: Any, xs: Any, carry: Any) -> Any:
        gates = xs @ params["kernel"] + carry.hidden @ params["recurrent_kernel"] + params["bias"]
        f, g = jax.nn.sigmoid(gates[:, :HIDDEN]), jnp.tanh(gates[:, HIDDEN:])
        hidden = f * carry.hidden + (1 - f) * g
        return type(carry)(hidden), hidden

    def loop(params: Any, xs: Any, carry: Any) -> Any:
        valid = MASK & (np.arange(TIME)[:, None] < MARKS["lengths"])
        resets = RESETS
        if reverse:  # the border before a step is crossed after it
            resets = np.concatenate([resets[1:], np.zeros((1, BATCH), bool)])
        ys = [jnp.zeros((BATCH, HIDDEN))] * TIME
        for t in range(TIME)[::-1] if reverse else range(TIME):
            carry = type(carry)(jnp.where(resets[t][:, None], 0, carry.hidden))
            new, y = by_equations(params, xs[t], carry)
            ys[t] = jnp.where(valid[t][:, None], y, 0)
            carry = type(carry)(jnp.where(valid[t][:, None], new.hidden, carry.hidden))
        return carry, jnp.stack(ys)

    def with_gradients(run: Any) -> Any:
        def loss(*arguments: Any) -> Any:
            out = run(*arguments)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, out))), out

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)

    def unroll(method: Any) -> Any:
        return functools.partial(rnnjax.unroll, cell, reverse=reverse, method=method, **MARKS)

    runs = loop, unroll(Scan()), unroll(Fused())
    expected, *results = jax.jit(lambda: [with_gradients(run) for run in runs])()
    for result in results:
        assert_close(result, expected, 1e-10)
