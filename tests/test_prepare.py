"""A prepared cell against the cell: the same step, with the kernels laid out before the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell

import rnnjax
from rnnjax.engine.fused import matmul
from rnnjax.engine.fused.matmul import Forward

HIDDEN, FEATURES = 7, 5
# Of those whose update reads one sum of two products, kernels that are large for few rows are one.
JOINED = [
    rnnjax.SimpleRNNCell(HIDDEN),
    rnnjax.LSTMCell(HIDDEN, use_bias=False),
    rnnjax.ProjectionLSTMCell(HIDDEN, proj_size=3),
]
# Two halves, a product before the reset, none, sizes of the state, kernels that the update reads.
CELLS = [
    *JOINED,
    rnnjax.GRUCell(HIDDEN),
    rnnjax.MGUCell(HIDDEN),
    rnnjax.MinGRUCell(HIDDEN),
    rnnjax.GRUCell(HIDDEN, reset_after=False),
    rnnjax.SLSTMCell(HIDDEN),
]
MIXED = rnnjax.LSTMCell(HIDDEN)
FORMS = {
    Forward.ROWS: (10**9, 10**9),
    Forward.ROWS_TRANSPOSED: (0, 10**9),
    Forward.FEATURES_FIRST: (0, 0),
}


@pytest.fixture
def forms(monkeypatch):
    """One form of the products after another: sizes from which on it is chosen."""

    def each():
        for form, (cache, large) in FORMS.items():
            monkeypatch.setattr(matmul, "_CACHE_BYTES", cache)
            monkeypatch.setattr(matmul, "_LARGE_BYTES", large)
            yield form

    return each


@pytest.fixture(params=FORMS, ids=lambda form: form.name)
def form(request, forms):
    """One of them."""
    return next(form for form in forms() if form is request.param)


def make(cell, batch, random_like):
    """Parameters, a carry and the inputs of a step."""
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 1)
    carry = random_like(lambda: cell.initial_carry(batch), 2)
    return params, carry, random_like(np.zeros((*batch, FEATURES)), 3)


@pytest.mark.parametrize(
    ("cell", "batch"),
    [
        *((cell, (3,)) for cell in CELLS),
        *((CELLS[3], batch) for batch in ((), (2, 3))),
        (MIXED, (3,)),
        pytest.param(rnnjax.LayerNormLSTMCell(HIDDEN), (3,), marks=pytest.mark.slow),
        pytest.param(rnnjax.LRUCell(HIDDEN, state_size=3), (3,), marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else type(value).__name__,
)
def test_every_form_computes_the_same_step(cell, batch, forms, random_like, assert_close):
    """Guards the place of each kernel where both are one, and kernels of two types."""
    params, carry, x = make(cell, batch, random_like)
    if cell is MIXED:
        params["kernel"] = params["kernel"].astype(jnp.bfloat16)

    @jax.jit
    def steps(params, carry, x):
        results = []
        for form in forms():
            ready, laid_out = rnnjax.prepare(cell, params, x)
            assert isinstance(ready, rnnjax.layers.Prepared)
            if form is Forward.ROWS_TRANSPOSED and cell in (*JOINED, MIXED):
                assert ready.inputs is None
                assert ready.states.forward is Forward.FEATURES_FIRST
                with pytest.raises(rnnjax.InvalidInputError, match="as init returns them, but"):
                    ready.step(params, carry, x)
            else:
                assert ready.inputs.forward is form
            assert ready.output_size == cell.output_size
            assert jax.tree.structure(ready.initial_carry(batch)) == jax.tree.structure(carry)
            results.append(ready.step(laid_out, carry, x))
        return results, cell.step(params, carry, x)

    with jax.numpy_dtype_promotion("strict"):
        results, expected = steps(params, carry, x)
    for result in results:
        assert_close(result, expected, 1e-5)


@pytest.mark.parametrize("cell", [JOINED[0], pytest.param(CELLS[3], marks=pytest.mark.slow)])
def test_one_hot_inputs_are_looked_up_in_every_form(cell, forms, random_like, assert_close):
    params, carry, dense = make(cell, (4,), random_like)
    ids = np.array([0, 4, 2, -1], np.int32)
    like = rnnjax.OneHot(jax.ShapeDtypeStruct((4,), jnp.int32), FEATURES)

    @jax.jit
    def steps(params, carry, ids, dense):
        x, of_ids, of_dense = rnnjax.OneHot(ids, FEATURES), [], []
        for form in forms():
            for given in (like, dense, x):  # also what was prepared for vectors
                ready, laid_out = rnnjax.prepare(cell, params, given)
                of_ids.append(ready.step(laid_out, carry, x))
            assert ready.inputs.forward is Forward.ROWS
            assert ready.states.forward is form
            of_dense.append(ready.step(laid_out, carry, dense))
        return (of_ids, cell.step(params, carry, x)), (of_dense, cell.step(params, carry, dense))

    for results, expected in steps(params, carry, ids, dense):
        for result in results:
            assert_close(result, expected, 1e-5)


def test_all_layers_of_a_stack_are_prepared(form, random_like, assert_close):
    layers = [
        rnnjax.LSTMCell(6),
        rnnjax.Regularized(rnnjax.GRUCell(4), weight_drop=0.5, recurrent_dropout=0.5),
        rnnjax.LearnedCarry(rnnjax.Stack([rnnjax.SimpleRNNCell(3)])),
    ]
    stack = rnnjax.Stack(layers, dropout=rnnjax.Dropout(0.5))
    params, carry, x = make(stack, (3,), random_like)
    ready, laid_out = rnnjax.prepare(stack, params, jax.ShapeDtypeStruct(x.shape, x.dtype))
    kinds = [type(cell).__name__ for cell in ready.cells]
    assert kinds == ["Prepared", "Prepared", "LearnedCarry"]
    assert isinstance(ready.cells[2].cell.cells[0], rnnjax.layers.Prepared)
    assert ready.cells[1].states.forward is form
    assert (ready.cells[0].inputs is None) == (form is Forward.ROWS_TRANSPOSED)
    both = jax.jit(lambda own, p, *more: (ready.step(own, *more), stack.step(p, *more)))
    assert_close(*both(laid_out, params, carry, x), 1e-5)


def test_a_prepared_cell_begins_as_the_cell_does():
    class BeginningCell(rnnjax.GRUCell):
        def start(self, params, batch_shape=(), dtype=None):
            own = params["bias"][: self.hidden_size].astype(dtype)
            return rnnjax.GRUCarry(jnp.broadcast_to(own, (*batch_shape, self.hidden_size)))

    cell = BeginningCell(HIDDEN, bias_init="ones")
    params = cell.init(jax.random.key(0), FEATURES)
    ready, laid_out = rnnjax.prepare(cell, params, jnp.ones((2, FEATURES)))
    assert (ready.start(laid_out, (2,)).hidden == 1).all()


def test_a_prepared_cell_is_a_cell(form, random_like, assert_close):
    cell = rnnjax.LSTMCell(HIDDEN)
    params, carry, _ = make(cell, (3,), random_like)
    xs = random_like(np.zeros((4, 3, FEATURES)), 4)
    x = jax.ShapeDtypeStruct((3, FEATURES), jnp.float32)
    ready, laid_out = rnnjax.prepare(cell, params, x)
    assert_close(
        rnnjax.unroll(ready, laid_out, xs, carry), rnnjax.unroll(cell, params, xs, carry), 1e-5
    )

    @jax.jit
    def begun(key):
        params = cell.init(key, FEATURES)
        return ready.init(key, FEATURES), rnnjax.prepare(cell, params, x)[1]

    assert_close(*begun(jax.random.key(3)), 0)
    assert rnnjax.prepare(ready, laid_out, x) == (ready, laid_out)


# Products before the update, in it, and none.
@pytest.mark.parametrize("cell", [CELLS[i] for i in (2, 3, 5, 7)], ids=repr)
def test_bfloat16_is_for_the_products_alone(cell, random_like, assert_close):
    params, carry, x = make(cell, (3,), random_like)
    ready, laid_out = rnnjax.prepare(cell, params, x, product_dtype=jnp.bfloat16)
    result = ready.step(laid_out, carry, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(jnp.float32)}
    assert_close(result, cell.step(params, carry, x), 4e-2)
    # As the fast path has it, over two steps: one step is not its affair.
    method, xs = rnnjax.Fused(product_dtype=jnp.bfloat16), np.stack([x, x])
    between, _ = rnnjax.unroll(cell, params, xs, carry, method=method)
    assert_close(ready.step(laid_out, result[0], x)[0], between, 1e-6)
    exactly, _ = rnnjax.unroll(cell, params, xs, carry, method=rnnjax.Scan())
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(between), jax.tree.leaves(exactly), strict=True)
    )


def test_no_step_casts_or_turns_a_kernel(form, random_like):
    cell = rnnjax.LSTMCell(HIDDEN)
    params, carry, x = make(cell, (3,), random_like)
    for dtype in (None, jnp.bfloat16):
        ready, laid_out = rnnjax.prepare(cell, params, x, product_dtype=dtype)
        jaxpr = jax.make_jaxpr(ready.step)(laid_out, carry, x)
        kernels = {leaf.shape for leaf in jax.tree.leaves(laid_out) if leaf.ndim == 2}
        moved = [
            eqn
            for eqn in jaxpr.eqns
            if eqn.primitive.name in ("transpose", "convert_element_type", "copy")
            and eqn.invars[0].aval.shape in kernels
        ]
        assert not moved


AS_THEY_ARE = {
    "its zoneout comes between": rnnjax.Regularized(rnnjax.LSTMCell(HIDDEN), zoneout_cell=0.1),
    "it declares no carry and update": OwnStepCell(HIDDEN),
}


@pytest.mark.parametrize("reason", AS_THEY_ARE)
def test_what_cannot_be_prepared_comes_back_as_it_is(reason, random_like):
    cell = AS_THEY_ARE[reason]
    params, _, x = make(cell, (3,), random_like)
    ready, laid_out = rnnjax.prepare(cell, params, x)
    assert ready is cell
    assert laid_out is params
    for wrong, given in ((cell, params), (rnnjax.Stack([cell]), (params,))):
        with pytest.raises(rnnjax.InvalidInputError, match=f"because {reason}.*out product_dtype"):
            rnnjax.prepare(wrong, given, x, product_dtype=jnp.bfloat16)


def test_whatever_unroll_refuses_is_refused_in_its_words(random_like):
    cell, other = rnnjax.LSTMCell(HIDDEN), rnnjax.GRUCell(HIDDEN)
    params, carry, x = jax.device_get(make(cell, (3,), random_like))
    start = cell.initial_carry()
    learned, zoneout = rnnjax.LearnedCarry(cell), rnnjax.Regularized(cell, zoneout_cell=0.1)
    ready, laid_out = rnnjax.prepare(cell, params, x)
    without = {name: leaf for name, leaf in laid_out.items() if name != "bias"}
    others = jax.tree.map(np.zeros_like, make(other, (3,), random_like)[0])
    for ask, given, inputs in [
        *((cell, wrong, x) for wrong in ({}, None, without, others)),
        *((zoneout, wrong, x) for wrong in ({}, without)),
        (learned, params, x),
        (learned, {"cell": without, "initial_carry": start}, x),
        *((rnnjax.Stack([cell]), wrong, x) for wrong in (({},), [params])),
        (type(cell), params, x),
        (params, cell, x),
        *((cell, params, wrong) for wrong in (None, "x", x.astype(int), x[:, 1:], x[..., None])),
        (cell, params, x.astype(jnp.float8_e4m3fn)),
    ]:
        whole = inputs[None] if isinstance(inputs, np.ndarray) else inputs
        with pytest.raises(rnnjax.InvalidInputError) as expected:
            rnnjax.unroll(ask, given, whole)
        with pytest.raises(rnnjax.InvalidInputError) as error:
            rnnjax.prepare(ask, given, inputs)
        assert str(error.value).split(",")[0] == str(expected.value).split(",")[0]
    with pytest.raises(rnnjax.InvalidInputError, match=r"^platform must be one of cpu"):
        rnnjax.prepare(rnnjax.Stack([cell]), (params,), x, platform="cupu")
    with pytest.raises(rnnjax.InvalidInputError, match="product_dtype must be a floating"):
        rnnjax.prepare(cell, params, x, product_dtype=jnp.int8)
    with pytest.raises(rnnjax.InvalidInputError, match=r"^xs must be .* float8_e4m3fn"):
        rnnjax.prepare(cell, params, jax.ShapeDtypeStruct(x.shape, jnp.float8_e4m3fn))
    for wrong in ({}, None, without, others):
        with pytest.raises(rnnjax.InvalidInputError, match=r"^params .* LSTMCell"):
            ready.step(wrong, carry, x)
