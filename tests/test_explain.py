"""`explain`: what would run, and why, without running it."""

import math
import re
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from cell_table import CELLS, SINGLE, WAYS, OwnStepCell, grid

import rnnjax
from rnnjax.cells.step import loop_params
from rnnjax.engine.core.custom_primitive import equations
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import known_platform
from rnnjax.engine.fused.recurrence import Recurrence


def shapes(cell, steps, batch, features):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    return params, jax.ShapeDtypeStruct((steps, batch, features), jnp.float32)


def told(cell, steps=5, rows=2, features=3, **options):
    return str(rnnjax.explain(cell, *shapes(cell, steps, rows, features), **options))


def test_each_layer_with_its_shape_and_method():
    stack = rnnjax.Stack([rnnjax.LSTMCell(16), rnnjax.Stack([OwnStepCell(8)])])
    explanation = rnnjax.explain(stack, *shapes(stack, 10, 4, 5))
    (lstm, lstm_shape, why), (own, own_shape, why_not) = explanation.layers
    assert (lstm.hidden_size, lstm_shape) == (16, (10, 4, 5))
    assert (own.hidden_size, own_shape) == (8, (10, 4, 16))
    assert why[0] == "chose Fused(), because the cell declares its equation"
    assert why_not[0].startswith("chose Scan(), because it declares no carry and update, but")
    assert "LSTMCell(16) over inputs (10, 4, 5)" in str(explanation)
    assert "keeps 96 numbers a row of every step" in str(explanation)  # 4 gates, 2 states


def test_few_steps_of_many_rows_are_perhaps_a_batch_that_comes_first():
    said = "time is the first axis: 2 steps of 50 rows; else write xs.swapaxes(0, 1)"
    assert said in told(rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(4)]), 2, 50)
    assert "first axis" not in told(rnnjax.LSTMCell(4), 50, 2) + told(rnnjax.LSTMCell(4), 1, 50)


def test_a_single_step_and_the_dial():
    for cell in (rnnjax.LSTMCell(4), rnnjax.MLSTMCell(4)):  # which has a memory
        assert "chose Scan(), because a single step" in told(cell, 1)
    method = rnnjax.Fused(keep_every=10, product_dtype=jnp.bfloat16)
    text = told(rnnjax.LSTMCell(4), 100, method=method)
    assert "keeps the state before every 10 steps" in text
    assert "operands bfloat16" in text
    assert "recurrent product" not in told(rnnjax.MinGRUCell(4), 100, 2, 30)
    parts = "or of 100 where no gradient is taken"
    assert parts in told(rnnjax.LSTMCell(64), 10_000, 16, 64)
    assert parts not in told(rnnjax.LSTMCell(64), 10_000, 16, 64, platform="cuda")
    assert "no gradient" not in told(rnnjax.LSTMCell(64), 500, 16, 64)


def products(jaxpr):
    """Count the products with parameters; a product within each row, as in an S6, is none."""
    kinds = [(eqn.primitive.name, eqn.params.get("dimension_numbers")) for eqn in equations(jaxpr)]
    found = [axes for name, axes in kinds if name == "dot_general" and not axes[1][0]]
    return len(found) + sum(name == "conv_general_dilated" for name, _ in kinds)


def loops_and_products(jaxpr):
    """Return how many products are in the loop and outside of it, and what the loop returns."""
    (loop,) = (eqn.params["jaxpr"] for eqn in equations(jaxpr) if eqn.primitive.name == "scan")
    inside, states = products(loop.jaxpr), [aval.shape for aval in loop.out_avals]
    return inside, products(jaxpr) - inside, states


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in {*WAYS, "user-scrn"} else pytest.mark.slow)
        for n in SINGLE
        if n != "user-step"
    ],
)
def test_each_line_is_what_the_program_does(name):
    """The products in the loops and outside of them, what is kept, and where gradients are made."""
    cell, steps, rows = CELLS[name], 4, (7, *grid(name))
    sizes = {"xs": 2, **cell.raw}  # raw features come last
    each = {n: jax.ShapeDtypeStruct((steps, *rows, size), "f") for n, size in sizes.items()}
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), sum(sizes.values())))
    xs = jax.ShapeDtypeStruct((steps, *rows, sum(sizes.values())), jnp.float32)
    own = loop_params(cell, params)
    carry = jax.eval_shape(lambda: cell.initial_carry(rows))
    text = str(rnnjax.explain(cell, params, xs, method=rnnjax.Fused(), platform="cpu"))
    run = Recurrence(cell, cell.dtype, reverse=False)
    given = own, Steps(), each.pop("xs"), StepMarks(raw=each), carry
    trace = jax.make_jaxpr(lambda *given: run.forward("cpu", *given), return_shape=True)
    forward, (out, kept) = trace(*given)
    needs_grad = jax.tree.map(lambda _: True, given)
    backward = jax.make_jaxpr(lambda *rest: run.backward("cpu", *rest, needs_grad))(
        given, kept, out
    )

    def named(pattern):
        found = re.search(pattern, text)
        return found[1].split(", ") if found else []

    several = {"gru-reset-before": 2, "mgu-reset-before": 2, "slstm": 2}
    update_params = several.get(name, 1) * bool(named(r"multiplies with (.*) in the update"))
    recurrent = "recurrent product at each step" in text
    assert recurrent == (cell.recurrent is not None)
    assert loops_and_products(forward.jaxpr)[:2] == (recurrent + update_params, 1)
    outside = named(r"the gradient of (.*): one product over 4 steps")
    inside, after, state = loops_and_products(backward.jaxpr)
    # Of each product in the update both gradients; of the inputs' kernel the inputs' too.
    assert (inside, after) == (recurrent + 2 * update_params, len(outside) + 1)
    summed = named(r"the gradient of (.*): summed in the backward loop")
    assert {*outside, *summed, "bias", "recurrent_bias"} >= set(own)
    after_loop = named(r"multiplies with (.*) after the loop, all steps at once")
    assert set(after_loop) == set(params) - set(own)
    assert all(params[parameter].shape in state for parameter in summed)
    assert all(params[parameter].shape not in state for parameter in outside)
    numbers = int(re.search(r"keeps (\d+) numbers a row of every step", text)[1])
    assert numbers * steps * math.prod(rows) == sum(leaf.size for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize(
    "method",
    [
        rnnjax.Scan(precision="highest"),
        rnnjax.Fused(precision="highest", keep_every=2),
        rnnjax.Auto(precision="highest"),
    ],
    ids=str,
)
def test_all_products_have_the_precision_of_the_method(method):
    """Forward, in the gradient, and in the derivative of that: in what is lowered."""
    cell = rnnjax.SimpleRNNCell(4)

    def loss(params, xs):
        return (rnnjax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

    def slope(params, xs):
        return sum(map(jnp.sum, jax.tree.leaves(jax.grad(loss)(params, xs))))

    def all_three(params, xs):
        return loss(params, xs), jax.grad(loss, (0, 1))(params, xs), jax.grad(slope)(params, xs)

    lowered = jax.jit(all_three).trace(*shapes(cell, 5, 2, 3)).lower(lowering_platforms=("rocm",))
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert len(products) > 5
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_the_arithmetic_of_products():
    def arithmetic(platform, **options):
        text = told(rnnjax.GRUCell(4), method=rnnjax.Fused(**options), platform=platform)
        return text.partition("products of float32 operands ")[2]

    assert arithmetic("tpu") == "in one pass of bfloat16, precision 'default'"
    assert arithmetic("tpu", precision="high") == "in three passes of bfloat16, precision 'high'"
    assert arithmetic("gpu", precision="high") == "in TF32 where the card has it, precision 'high'"
    assert arithmetic("cuda", precision="highest") == "in float32, precision 'highest'"
    assert arithmetic("cpu", precision="high") == ""  # there is no other
    with jax.default_matmul_precision("highest"):
        assert arithmetic("tpu").startswith("in six passes")
        assert arithmetic("tpu", precision="default").startswith("in one pass")


@pytest.mark.parametrize(("version", "platform"), [("cuda 13000", "cuda"), ("ROCM 70", "rocm")])
def test_a_gpu_of_this_machine_is_of_one_kind(version, platform, monkeypatch):
    """As programs are lowered for it: JAX calls the devices of both ``gpu``."""
    device = Mock(platform="gpu", client=Mock(platform_version=version))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert known_platform(None) == platform


def test_a_traced_value_in_a_cell_is_told():
    def closes_over(slope):
        cell = rnnjax.SimpleRNNCell(4, activation=lambda x: jnp.maximum(x, slope * x))
        found.append("because the cell closes over a traced value" in told(cell, platform="cpu"))
        return slope

    found = []
    jax.grad(closes_over)(0.1)
    closes_over(0.1)
    assert found == [True, False]
