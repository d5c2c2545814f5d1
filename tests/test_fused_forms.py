"""The fast path: its forms for other shapes and types, its memory, and cells that are odd."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import GainCell
from jax.ad_checkpoint import checkpoint_name

import rnnjax
from rnnjax.cells.activations import RESIDUAL
from rnnjax.cells.step import apply_update, loop_params, update_params
from rnnjax.engine.core.custom_primitive import equations
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused import matmul, residuals
from rnnjax.engine.fused.matmul import Backward, Forward, Products
from rnnjax.engine.fused.plan import LayerPlan
from rnnjax.engine.fused.recurrence import Recurrence

FEATURES, TIME = 6, 5
KINDS = [rnnjax.SimpleRNNCell, rnnjax.GRUCell]  # one sum or two halves; an LSTM's is a sum too


@pytest.fixture
def check(equal_to_scan):
    return functools.partial(equal_to_scan, features=FEATURES, tolerance=2e-5)


def shapes(cell, steps=TIME, rows=2, features=FEATURES):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    return params, jax.ShapeDtypeStruct((steps, rows, features), jnp.float32)


# Each constant is that of a form; sizes that no other test uses, since a program depends on both.
FORMS = {
    "of kernels that leave the cache": {"_CACHE_BYTES": 0},
    "of large products": {"_CACHE_BYTES": 0, "_LARGE_BYTES": 0},
    "of accelerators": {},
}


@pytest.mark.parametrize(
    ("form", "kind", "batch"),
    [
        *((form, kind, (7,)) for form in FORMS for kind in KINDS),
        *(("of kernels that leave the cache", KINDS[0], batch) for batch in ((), (2, 3))),
    ],
)
def test_other_forms_of_the_products(form, kind, batch, monkeypatch, check):
    choose = Products.choose
    for constant, value in FORMS[form].items():
        monkeypatch.setattr(matmul, constant, value)
    if not FORMS[form]:
        monkeypatch.setattr(Products, "choose", lambda *given: choose(*given[:3], "cuda"))
    check(kind(11 + [*FORMS].index(form)), [rnnjax.Fused()], batch)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products_keep_everything_else_in_float32(kind, check):
    methods = [rnnjax.Fused(product_dtype="bfloat16", keep_every=every) for every in (None, 2)]
    check(kind(14), methods, (7,), tolerance=4e-2)


@pytest.mark.parametrize("form", Backward)
def test_sums_of_bfloat16_products_are_not_rounded_to_it(form):
    """A sum of 257 ones, which bfloat16 cannot hold."""
    ones = jnp.ones((257, 1), jnp.bfloat16)
    forms = Products(backward=form, inputs_backward=form, dtype=jnp.bfloat16)
    for result in (
        forms.kernel_gradient(ones, ones, ones[:1]),
        forms.times(ones)(ones.T),
        forms.times_transposed(ones.T)(ones.T),
        forms.inputs_gradient(ones.T, ones.T),
    ):
        assert result.dtype == jnp.float32
        assert result.tolist() == [[257.0]]


def test_the_forms_by_shape():
    def chosen(hidden_size, rows, dtype=None, platform="cpu"):
        kernel = jax.ShapeDtypeStruct((hidden_size, 4 * hidden_size), jnp.float32)
        forms = Products.choose(kernel, rows, dtype, platform)
        return forms.forward, forms.backward, forms.inputs_backward

    plain = Forward.ROWS, Backward.DIRECT, Backward.DIRECT
    assert chosen(128, 128) == (Forward.ROWS, Backward.COPY, Backward.DIRECT)
    assert chosen(700, 12) == (Forward.ROWS_TRANSPOSED, Backward.COPY, Backward.KERNEL_FIRST)
    assert chosen(700, 1) == (Forward.ROWS_TRANSPOSED, Backward.DIRECT, Backward.KERNEL_FIRST)
    first = Forward.FEATURES_FIRST, Backward.KERNEL_FIRST, Backward.KERNEL_FIRST
    assert chosen(1024, 32) == first
    assert chosen(1024, 32, jnp.bfloat16) == plain
    assert chosen(1024, 32, platform="gpu") == plain


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("features", "steps"), [(17, 11), (16, 1)])  # few are in the loop
def test_inputs_projected_a_few_steps_at_a_time(
    features, steps, reverse, random_like, assert_close
):
    cell = rnnjax.GRUCell(128)
    params = random_like(lambda: cell.init(jax.random.key(0), features), 1, scale=0.1)
    xs = random_like(np.zeros((22, 32, features)), 3)
    text = str(rnnjax.explain(cell, params, xs, method=rnnjax.Fused(), platform="cpu"))
    assert f"or of {steps} where no gradient is taken" in text
    run = functools.partial(rnnjax.unroll, cell, params, xs, reverse=reverse)
    assert_close(run(method=rnnjax.Fused()), run(method=rnnjax.Scan()), 1e-5)


def test_memory_is_a_dial():
    cell = rnnjax.LSTMCell(32)
    params, xs = shapes(cell, 400, 8, 32)

    def temporaries(method):
        """In units of the inputs."""

        def loss(params, xs):
            return (rnnjax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * xs.size)

    whole = temporaries(rnnjax.Fused())
    # 4 gates, 2 states and the outputs, against 2 and a segment.
    assert whole < 8.5
    assert temporaries(rnnjax.Fused(keep_every=20)) < 3
    assert whole < 0.6 * temporaries(rnnjax.Scan())


def test_without_jit(check):
    """Where a loop is one of Python, over arrays that nobody traces."""
    with jax.disable_jit():
        check(GainCell(3), [rnnjax.Fused()], (2,), steps=2)


def test_cells_that_override_the_update_keep_their_numbers(check):
    class OwnUpdate(rnnjax.GRUCell):
        def update(self, params, x, carry):
            return super().update(params, (2 * x[0], x[1]), carry)

    cell = OwnUpdate(4)  # and what is called from there is as fast as ever
    check(cell, [rnnjax.Auto()], (2,))
    own, library = (str(rnnjax.explain(c, *shapes(c))) for c in (cell, rnnjax.GRUCell(4)))
    assert own.partition("\n")[2] == library.partition("\n")[2]


PROGRAM = """
import jax, jax.numpy as jnp, rnnjax

cell = rnnjax.GRUCell(4)
run = lambda params: rnnjax.unroll(cell, params, jnp.ones((4, 3, 2)))[1].sum()
print(jax.jit(jax.grad(run)).lower(cell.init(jax.random.key(0), 2)).as_text())
"""


@pytest.mark.slow
def test_every_process_has_the_same_programs(environment):
    """Or JAX's cache of what is compiled would not find them; sets have another order in each."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
            env=environment(PYTHONHASHSEED=seed),
        ).stdout
        for seed in "12"
    )  # fmt: skip
    assert len(first) > 1000
    assert first == second


class Stacked(rnnjax.LSTMCell):
    """Keeps an array whose rows are its second axis."""

    def update(self, params, x, carry):
        i, f, g, o = jnp.split(x, 4, axis=-1)
        parts = checkpoint_name(jax.nn.softmax(jnp.stack([i, f, g]), axis=0), RESIDUAL)
        cell = parts[0] * carry.cell + parts[1] * jnp.tanh(g)
        return rnnjax.LSTMCarry(jax.nn.sigmoid(o) * parts[2] * jnp.tanh(cell), cell)


def test_masked_gradients_of_an_odd_cell(check):
    """As many rows as there are parts of the array."""
    mask = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1]], bool)
    check(Stacked(4), [rnnjax.Fused()], (3,), steps=3, mask=mask)


def test_gradients_of_bfloat16_parameters_are_summed_in_float32(random_like):
    cell = rnnjax.PeepholeLSTMCell(4, param_dtype=jnp.bfloat16)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 1, jnp.bfloat16, 0.3)
    xs = np.random.default_rng(1).normal(size=(1000, 1, 2)).astype("float32")

    def peephole(method, params):
        run = jax.grad(lambda p: rnnjax.unroll(cell, p, xs, method=method)[1].sum())
        return run(params)["peephole"]

    exact = jax.tree.map(lambda p: np.asarray(p, np.float32), params)
    wide = np.asarray(jax.jit(lambda p: peephole(rnnjax.Fused(), p))(exact))
    both = jax.jit(lambda p: [peephole(m, p) for m in (rnnjax.Scan(), rnnjax.Fused())])
    for narrow in both(params):
        assert np.abs(np.asarray(narrow, np.float32) - wide).max() < 0.02 * np.abs(wide).max()


@pytest.mark.parametrize("kind", [rnnjax.MinGRUCell, rnnjax.LSTMCell, *KINDS])
def test_a_loop_carries_the_inputs_of_a_step_where_it_prefetches(kind):
    cell = kind(4)
    params, xs = shapes(cell, 40, 3, 20)
    used, carry = loop_params(cell, params), jax.eval_shape(lambda: cell.initial_carry((3,)))
    args = used, Steps(), xs, StepMarks(), carry
    width = used["kernel"].shape[-1]
    run = functools.partial(Recurrence(cell, None, False).run, "cpu")
    program = jax.make_jaxpr(run)(*args).jaxpr
    loops = [one for one in equations(program) if one.primitive.name == "scan"]
    longest = max(loops, key=lambda one: one.params["length"])
    given_back = [out.aval.shape for out in longest.outvars]
    carried = [shape for shape in given_back if shape[:1] != (longest.params["length"],)]
    assert carried.count((3, width)) == 1  # of a single gate it is the state


def test_what_is_taken_from_the_function_that_jax_vjp_returns(random_like, assert_close):
    """Guards the two habits of `jax.vjp` that ``engine/fused/residuals.py`` stands on.

    JAX promises neither: a residual that is an argument is that object, and so is not saved; and
    the tree of the function is the program of any other step. Look here first where a new JAX
    breaks `Fused`, or lets it store parameters at each step.
    """
    cell = rnnjax.PeepholeLSTMCell(4)  # which multiplies its state by parameters in the update
    params = random_like(lambda: cell.init(jax.random.key(0), 3), 0)
    plan = LayerPlan.of(cell, params, (TIME, 2, 3), None, "cpu")
    layer = residuals.Layer(cell, plan, False, params, Steps())
    here, there = (random_like(lambda: cell.initial_carry((2,)), seed) for seed in (1, 2))

    def derivatives(projected):
        used = update_params(cell, params)
        one = residuals.residual_map_of(layer, here, projected, {})
        saved = residuals.saving_step_of(layer)(there, projected, StepMarks())[2]
        of_another = one.vjp_fn(saved, residuals.given_of(used, there, {}))
        x = residuals.update_input_of(layer)(there, projected)
        plain = jax.vjp(functools.partial(apply_update, cell, raw={}), used, x, there)[1]
        d = there, there.hidden  # any numbers
        found.append((one, saved))
        return of_another(d)[:3], plain(d)

    found = []
    of_another, plain = jax.jit(derivatives)(random_like(jax.ShapeDtypeStruct((2, 16), "f"), 3))
    assert_close(of_another, plain, 1e-5)
    [(one, (entry, rest))] = found
    assert {"params", "carry"} <= {kind for kind, _ in one.places}
    assert (entry.shape, rest) == ((2, 16), [])  # the gates, in the place of the projected inputs
