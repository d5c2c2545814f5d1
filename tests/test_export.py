"""`jax.export`: one program for any batch and any number of steps, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import CELLS as TABLE
from cell_table import grid
from jax import export

import rnnjax
from rnnjax import Auto, Fused, Scan, interop
from rnnjax.engine.fused import matmul, plan
from rnnjax.interop import Dense, Embedding, Functional, Model, Recurrent, Sequential
from rnnjax.interop.model import Call, Input, Value

CELLS = {
    "lstm": rnnjax.LSTMCell(5),
    "mingru": rnnjax.MinGRUCell(5),
    "convlstm": rnnjax.ConvLSTMCell(2, kernel_shape=(3,)),
    "stack": rnnjax.Stack([rnnjax.Bidirectional(rnnjax.LSTMCell(3), rnnjax.GRUCell(3))]),
}
ROWS = [
    *((name, Auto()) for name in ("mingru", "convlstm", "stack")),
    ("lstm", Scan()),
    pytest.param("stack", Fused(keep_every=2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "method"), ROWS, ids=str)
def test_symbolic_steps_and_rows(name, method, random_like, assert_close):
    """The carry, outputs and gradients, with masks, lengths and resets, written and read back.

    Of the stack also those of one step and one row.
    """
    cell, known = CELLS[name], method == Fused(keep_every=2)  # the number of steps
    grid = (6,) if name == "convlstm" else ()
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))

    def run(params, xs, carry, mask, resets, lengths):
        def loss(params, carry):
            out = rnnjax.unroll(
                cell, params, xs, carry, mask=mask, resets=resets, lengths=lengths, method=method
            )
            return (out[1] ** 2).sum(), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, carry)
        return out, gradients

    def arguments(time, batch):
        marks = jax.ShapeDtypeStruct((time, batch), bool)
        carry = jax.eval_shape(lambda: cell.initial_carry((batch, *grid)))
        xs = jax.ShapeDtypeStruct((time, batch, *grid, 3), jnp.float32)
        return shapes, xs, carry, marks, marks, jax.ShapeDtypeStruct((batch,), jnp.int32)

    symbolic = arguments(*export.symbolic_shape("5, b" if known else "t, b"))
    exported = export.export(jax.jit(run), platforms=["cpu", "tpu"])(*symbolic)
    program = export.deserialize(exported.serialize())
    compiled, rng = jax.jit(run), np.random.default_rng(1)
    for time, batch in [(5, 3), (5, 1) if known else (1, 1)][: 1 + (name == "stack")]:
        like = arguments(time, batch)
        params, xs, carry = random_like(like[:3], time)
        marks = [rng.random((time, batch)) > rate for rate in (0.3, 0.6)]
        given = params, xs, carry, *marks, rng.integers(0, time + 1, batch, np.int32)
        assert_close(program.call(*given), compiled(*given), 1e-5)


def test_a_dial_that_needs_to_know_the_steps_says_so():
    cell = CELLS["lstm"]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((*export.symbolic_shape("t, b"), 3), jnp.float32)
    run = jax.jit(lambda p, x: rnnjax.unroll(cell, p, x, method=Fused(keep_every=2)))
    with pytest.raises(rnnjax.InvalidInputError, match="keep_every must be None where the number"):
        export.export(run)(params, xs)


def lowered(name):
    """A layer forward, and its gradient, on a host with a CPU: for it, and for all others."""
    cell, rows = TABLE[name], (33, *grid(name))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((2, *rows, 3), jnp.float32)

    def run(params, xs):
        return rnnjax.unroll(cell, params, xs)[1]

    def both(*given):
        return run(*given), jax.grad(lambda *given: run(*given).sum(), (0, 1))(*given)

    traced = jax.jit(both).trace(params, xs)
    platforms = ("cpu",), ("tpu", "cuda", "rocm")
    return [traced.lower(lowering_platforms=each).as_text() for each in platforms]


# A sum of products, halves, and a step that has no form.
KINDS = "simple", "gru", "user-step"
# On the scan, in parallel, or with all products that depend on the state in the update.
PARALLEL = "mingru", "minlstm", "rglru", "mlstm", "mamba2", "deltanet"
NO_FORM = "user-step", *PARALLEL, "convlstm-1d", "convlstm-2d"


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(n, marks=pytest.mark.slow) for n in TABLE if n not in KINDS)]
)
def test_another_platform_gets_no_form_of_the_cpu(name, monkeypatch):
    """Where all that is chosen by size is chosen the other way, its program is the same."""
    here, others = lowered(name)
    for module, size in (
        (matmul, "_CACHE_BYTES"),
        (matmul, "_LARGE_BYTES"),
        (plan, "_MANY_BYTES"),
        (plan, "_SOME_ROWS"),
        (plan, "_SOME_UNITS"),
    ):
        monkeypatch.setattr(module, size, 0)
    # The device is a part of what JAX's caches know a trace by. To empty them takes 10 s where much
    # is in them.
    with jax.default_device(jax.devices()[0]):
        changed_here, changed_others = lowered(name)
    assert others == changed_others
    assert (here == changed_here) == (name in NO_FORM)


def test_a_model_is_one_program_with_its_state(random_like, assert_close):
    """Step after step of any number of rows, without the model's classes."""
    stack = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(3)])
    params = random_like(jax.eval_shape(lambda: stack.init(jax.random.key(0), 2)), 1)
    table, head = random_like((np.zeros((7, 2)), np.zeros((3, 5))), 2)
    head_of = Dense("head", 5, "softmax", use_bias=False)
    network = Sequential((Embedding("words", 7, 2), Recurrent("stack", stack), head_of))
    given = {"words": {"embedding": table}, "stack": params, "head": {"kernel": head}}
    model = Model(network, given)
    step = export.deserialize(interop.export(model, steps=1).serialize())
    # Nor do the trees name a class, which a server without rnnjax could not read.
    assert str(step.in_tree) == "PyTreeDef((([*, *, *], *), {}))"
    assert str(step.out_tree) == "PyTreeDef(([*, *, *], *))"
    for batch in (3, 1):
        ids = np.random.default_rng(batch).integers(0, 7, (6, batch), np.int32)
        state, expected = jax.tree.leaves(model.initial_carry((batch,))), jax.jit(model)(ids)[1]
        for t in range(6):
            state, ys = step.call(state, ids[t : t + 1])
            assert_close(ys[0], expected[t], 1e-5)
    whole = interop.export(model, platforms=["cpu", "tpu"])
    assert_close(whole.call(jax.tree.leaves(model.initial_carry((1,))), ids)[1], expected, 1e-5)
    with pytest.raises(rnnjax.InvalidInputError, match="steps should be a positive integer or"):
        interop.export(model, steps=0)
    with pytest.raises(rnnjax.InvalidInputError, match=r"model must be a rnnjax\.interop\.Model"):
        interop.export(stack)


def test_a_graph_is_one_program(random_like, assert_close):
    """Fixed sizes of its inputs give way to the steps asked for; given states are no inputs."""
    cell = rnnjax.GRUCell(2)
    layers = tuple(Recurrent(name, cell) for name in ("encoder", "decoder"))
    calls = (
        Call("encoder", "encoder", (Value("source"),)),
        Call("decoder", "decoder", (Value("target"),), states=(Value("encoder", 1),)),
    )
    inputs = Input("source", (6, 4)), Input("target", (None, 4))
    network = Functional(inputs, layers, calls, (Value("decoder"), Value("encoder")))
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 4))
    params = {name: random_like(shapes, i) for i, name in enumerate(network.layers)}
    model = Model(network, params)
    program = interop.export(model, steps=2)
    assert [a.shape[0] for a in program.in_avals] == [program.in_avals[0].shape[0], 2, 2]
    xs = (np.ones((2, 5, 4), np.float32),) * 2
    state, ys = program.call(jax.tree.leaves(cell.initial_carry((5,))), xs)
    assert_close(ys, jax.jit(model)(xs)[1], 1e-5)
    assert [leaf.shape for leaf in state] == [(5, 2)]
