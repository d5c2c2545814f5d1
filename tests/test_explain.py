"""`explain`: what would run, and why, without running it."""

import jax
import jax.numpy as jnp
import pytest
from cell_table import OwnStepCell

import rnnjax


def shapes(cell, steps, batch, features):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    return params, jax.ShapeDtypeStruct((steps, batch, features), jnp.float32)


def test_each_layer_with_its_shape_and_method():
    stack = rnnjax.Stack([rnnjax.LSTMCell(16), rnnjax.Stack([OwnStepCell(8)])])
    explanation = rnnjax.explain(stack, *shapes(stack, 10, 4, 5))
    (lstm, lstm_shape, why), (own, own_shape, why_not) = explanation.layers
    assert (lstm.hidden_size, lstm_shape, own.hidden_size, own_shape) == (
        16, (10, 4, 5), 8, (10, 4, 16),
    )  # fmt: skip
    assert why[0] == "chose Fused(), because the cell declares its equation"
    assert why_not[0].startswith(
        "chose Scan(), because it declares no carry and update, but a step"
    )
    text = str(explanation)
    assert "LSTMCell(16) over inputs (10, 4, 5)" in text
    assert "keeps 96 numbers a row of every step" in text  # 4 gates, 2 states


def test_a_single_step_and_the_dial():
    cell = rnnjax.LSTMCell(4)
    assert "a single step" in str(rnnjax.explain(cell, *shapes(cell, 1, 2, 3)))
    method = rnnjax.Fused(keep_every=10, product_dtype=jnp.bfloat16)
    text = str(rnnjax.explain(cell, *shapes(cell, 100, 2, 3), method=method))
    assert "keeps the state before every 10 steps" in text
    assert "operands bfloat16" in text


def test_a_cell_without_a_product_in_the_loop():
    cell = rnnjax.MinGRUCell(4)
    text = str(rnnjax.explain(cell, *shapes(cell, 100, 2, 3), method=rnnjax.Fused(keep_every=10)))
    assert "projects the inputs of 10 steps in one product" in text
    assert "pointwise steps" in text
    assert "keeps the state before every 10 steps" in text


def test_long_sequences_are_projected_in_parts_where_no_gradient_is_taken():
    cell = rnnjax.LSTMCell(64)
    assert "or of 100 where no gradient is taken" in str(
        rnnjax.explain(cell, *shapes(cell, 10_000, 16, 64))
    )
    assert "no gradient" not in str(rnnjax.explain(cell, *shapes(cell, 500, 16, 64)))


def test_bad_arguments_are_unrolls_own():
    cell = OwnStepCell(4)
    params, xs = shapes(cell, 5, 2, 3)
    with pytest.raises(rnnjax.InvalidInputError, match=r"Fused\(\) cannot run"):
        rnnjax.explain(cell, params, xs, method=rnnjax.Fused())
    with pytest.raises(rnnjax.InvalidInputError, match="cell must be a Cell"):
        rnnjax.explain(rnnjax.GRUCell, params, xs)
    with pytest.raises(rnnjax.InvalidInputError, match="params"):
        rnnjax.explain(rnnjax.LSTMCell(4), {}, xs)
    cell = rnnjax.GRUCell(4)
    with pytest.raises(rnnjax.InvalidInputError, match="features"):
        rnnjax.explain(cell, shapes(cell, 5, 2, 3)[0], jax.ShapeDtypeStruct((5, 2, 9), jnp.float32))
