"""`jax.export`: one program for any batch and any number of steps, on every platform."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rnnjax
from rnnjax import Auto, Fused, Scan

CELLS = {
    "lstm": rnnjax.LSTMCell(5),
    "layernorm-gru": rnnjax.LayerNormGRUCell(5),
    "mingru": rnnjax.MinGRUCell(5),
    "convlstm": rnnjax.ConvLSTMCell(2, kernel_shape=(3,)),
    "stack": rnnjax.Stack([rnnjax.GRUCell(4), rnnjax.Bidirectional(rnnjax.LSTMCell(3))]),
}
ROWS = [
    *((name, Auto()) for name in CELLS),
    ("lstm", Scan()),
    ("stack", Scan()),
    ("stack", Fused(keep_every=2)),
]


@pytest.mark.parametrize(("name", "method"), ROWS, ids=str)
def test_symbolic_steps_and_rows(
    name: str, method: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    """The carry, outputs and gradients, with masks, lengths and resets, written and read back."""
    cell, known = CELLS[name], method == Fused(keep_every=2)  # the number of steps
    grid = (6,) if name == "convlstm" else ()
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))

    def run(params: Any, xs: Any, carry: Any, mask: Any, resets: Any, lengths: Any) -> Any:
        def loss(params: Any, carry: Any) -> Any:
            out = rnnjax.unroll(
                cell, params, xs, carry, mask=mask, resets=resets, lengths=lengths, method=method
            )
            return (out[1] ** 2).sum(), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, carry)
        return out, gradients

    def arguments(time: Any, batch: Any) -> tuple[Any, ...]:
        marks = jax.ShapeDtypeStruct((time, batch), bool)
        carry = jax.eval_shape(lambda: cell.initial_carry((batch, *grid)))
        xs = jax.ShapeDtypeStruct((time, batch, *grid, 3), jnp.float32)
        return shapes, xs, carry, marks, marks, jax.ShapeDtypeStruct((batch,), jnp.int32)

    symbolic = arguments(*export.symbolic_shape("5, b" if known else "t, b"))
    exported = export.export(jax.jit(run), platforms=["cpu", "tpu", "cuda"])(*symbolic)
    program: Any = exported
    if importlib.util.find_spec("flatbuffers"):  # which JAX writes it with
        program = export.deserialize(exported.serialize())
    rng = np.random.default_rng(1)
    for time, batch in [(5, 3), (5, 1) if known else (1, 1)]:
        like = arguments(time, batch)
        params, xs, carry = random_like(like[:3], time)
        marks = [jnp.asarray(rng.random((time, batch)) > rate) for rate in (0.3, 0.6)]
        given = params, xs, carry, *marks, jnp.asarray(rng.integers(0, time + 1, batch), jnp.int32)
        assert_close(program.call(*given), run(*given), 1e-5)


def test_a_dial_that_needs_to_know_the_steps_says_so() -> None:
    cell = CELLS["lstm"]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((*export.symbolic_shape("t, b"), 3), jnp.float32)
    with pytest.raises(rnnjax.InvalidInputError, match="keep_every must be None where the number"):
        export.export(
            jax.jit(lambda p, x: rnnjax.unroll(cell, p, x, method=Fused(keep_every=2)))
        )(params, xs)  # fmt: skip
