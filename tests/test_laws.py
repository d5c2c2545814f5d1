"""The laws: every cell, run by every method, gives the numbers of its own equation.

Weights, biases, inputs and initial carries are random everywhere: with zeros or constants a swapped
gate or a forgotten bias would go unseen.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import (
    BATCH,
    BROAD,
    CELLS,
    FEATURES,
    FEW,
    PARALLEL,
    SINGLE,
    TIME,
    TOLERANCES,
    both_ways,
    check_backwards,
    grid,
    in_reverse,
    layers,
    loop,
    make_cells,
    table,
    weighted,
)

import rnnjax
from rnnjax import Auto, Fused, Newton, Parallel, Scan, Stack


class Case(NamedTuple):
    """A cell with random arguments, and weights for a loss that sees every output."""

    cell: rnnjax.Cell
    params: Any
    xs: jax.Array
    carry: Any
    weights: Any

    @property
    def arguments(self) -> tuple[Any, jax.Array, Any]:
        return self.params, self.xs, self.carry


@pytest.fixture(scope="module")
def case(random_like: Callable[..., Any]) -> Callable[..., Case]:
    @functools.cache
    def draw(name: str, dtype: str = "float64") -> Case:
        cell = CELLS[name]
        shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))
        batch = (BATCH, *grid(name))
        carry = jax.eval_shape(lambda: cell.initial_carry(batch))
        xs = jax.ShapeDtypeStruct((TIME, *batch, FEATURES), dtype)
        ys = jax.ShapeDtypeStruct((TIME, *batch, cell.output_size), dtype)
        trees = (shapes, xs, carry, (carry, ys))
        return Case(cell, *(random_like(tree, 10 + i, dtype) for i, tree in enumerate(trees)))

    return draw


@functools.cache
def compiled(name: str, method: rnnjax.Method, reverse: bool) -> Callable[..., Any]:
    """``((params, xs, carry), weights) -> (outputs, gradients)``, for all laws."""
    run = functools.partial(rnnjax.unroll, CELLS[name], reverse=reverse, method=method)
    return jax.jit(weighted(run))


@pytest.fixture(scope="module")
def results(case: Callable[..., Case]) -> Callable[..., Any]:
    """Outputs and gradients of a run, computed once a module and kept as NumPy arrays."""

    @functools.cache
    def compute(
        name: str, how: rnnjax.Method | str, dtype: str = "float64", reverse: bool | None = None
    ) -> Any:
        """In the direction in which an ordinary run takes the cell, if none is given."""
        reverse = in_reverse(name) if reverse is None else reverse
        with jax.enable_x64(dtype == "float64"):
            _, *arguments, weights = case(name, dtype)
            if how == "loop":
                # No reset lets the last one in.
                out, gradients = loop(name, (*arguments, arguments[2]), weights, {}, reverse)
                out = out, gradients[:3]
            else:
                out = compiled(name, how, reverse)(tuple(arguments), weights)
            return jax.tree.map(np.asarray, out)

    return compute


# The other cells that run in parallel do so in tests/test_reference.py.
LOOPED = [*BROAD, "slstm", "deltanet"]


@pytest.mark.parametrize(("name", "method", "reverse"), both_ways(table(Auto, ordinary=LOOPED)))
def test_law_1_unroll_equals_a_loop_of_step(
    name: str, method: Any, reverse: bool, results: Any, assert_close: Any
) -> None:
    actual = results(name, method, reverse=reverse)
    expected = results(name, "loop", reverse=reverse)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(actual))
    assert_close(actual, expected, TOLERANCES["float64"])


# Rounding does not depend on the method, but on what it makes of a cell.
NARROW = table(Auto, names=["simple", *FEW], ordinary=FEW, by_all=[])


@pytest.mark.parametrize(("name", "method"), NARROW)
def test_law_1_in_float32(name: str, method: Any, results: Any, assert_close: Any) -> None:
    actual = results(name, method, "float32")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(actual))
    assert_close(actual, results(name, "loop"), TOLERANCES["float32"])


@pytest.mark.parametrize(
    ("name", "method", "reverse"),
    both_ways(table(names=BROAD, ordinary=["stack"], by_all=["mingru"])),
)
@pytest.mark.usefixtures("x64")
def test_law_2_a_cut_changes_nothing(
    name: str, method: Any, reverse: bool, case: Any, results: Any, assert_close: Any
) -> None:
    cell, params, xs, carry, _ = case(name)
    unroll = functools.partial(rnnjax.unroll, cell, params, reverse=reverse, method=method)
    # The first four steps that run, as two pieces of one shape, which is compiled once.
    pieces = [slice(0, 2), slice(2, 4)] if not reverse else [slice(3, 5), slice(1, 3)]
    xs = np.asarray(xs)
    carry, first = unroll(xs[pieces[0]], carry)
    _, second = unroll(xs[pieces[1]], carry)
    (_, expected), _ = results(name, "loop", reverse=reverse)
    assert_close((first, second), tuple(expected[piece] for piece in pieces), TOLERANCES["float64"])


# In every way, for each has its own for a batch without axes.
@pytest.mark.parametrize(("name", "method"), table(Auto, ordinary=LOOPED, by_all=[]))
@pytest.mark.usefixtures("x64")
def test_law_4_a_row_is_alone(
    name: str, method: Any, case: Any, results: Any, assert_close: Any
) -> None:
    cell, params, xs, carry, _ = case(name)
    (expected_carry, expected_ys), _ = results(name, "loop")
    row, reverse = BATCH - 1, in_reverse(name)
    expected = jax.tree.map(lambda leaf: leaf[row], expected_carry), expected_ys[:, row]
    xs, unbatched = np.asarray(xs)[:, row], jax.tree.map(lambda leaf: np.asarray(leaf)[row], carry)
    actual = rnnjax.unroll(cell, params, xs, unbatched, reverse=reverse, method=method)
    assert_close(actual, expected, TOLERANCES["float64"])


@pytest.mark.parametrize(
    ("name", "method"),
    table(Auto, names=["lstm", "gru", "user-peephole"], ordinary=["user-peephole"], by_all=[]),
)
@pytest.mark.usefixtures("x64")
def test_law_4_vmap_over_parameters_equals_running_each(
    name: str, method: Any, case: Any, random_like: Any, assert_close: Any
) -> None:
    _, params, xs, carry, weights = case(name)
    run, others = compiled(name, method, in_reverse(name)), random_like(params, 99, jnp.float64)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), params, others)
    actual = jax.jit(jax.vmap(run, ((0, None, None), None)))((both, xs, carry), weights)
    expected = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *(run((each, xs, carry), weights) for each in (params, others)),
    )
    assert_close(actual, expected, TOLERANCES["float64"])


def along(tree: Any, direction: Any, step: float) -> Any:
    return jax.tree.map(lambda leaf, towards: leaf + step * towards, tree, direction)


def inner(tree: Any, other: Any) -> float:
    """The sum of the products of all entries."""
    return sum(map(np.vdot, jax.tree.leaves(tree), jax.tree.leaves(other)))


@pytest.mark.parametrize(("name", "method"), table(Auto, names=SINGLE, ordinary=LOOPED))
@pytest.mark.usefixtures("x64")
def test_law_5_first_order_gradients(
    name: str, method: Any, case: Any, results: Any, random_like: Any
) -> None:
    """Along a drawn direction, from differences of the loss: no automatic derivative."""
    _, *arguments, weights = case(name)
    direction = random_like(tuple(arguments), 40, "float64")
    _, gradients = results(name, method)
    run = compiled(name, method, in_reverse(name))
    eps, drawn = 1e-5, jax.device_get((tuple(arguments), direction))
    ahead, behind = (inner(weights, run(along(*drawn, step), weights)[0]) for step in (eps, -eps))
    expected = inner(gradients, direction)
    assert abs((ahead - behind) / (2 * eps) - expected) < 1e-7 * max(1, abs(expected))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in {*FEW[:5], "lru"} else pytest.mark.slow) for n in SINGLE],
)
@pytest.mark.usefixtures("x64")
def test_law_5_forward_mode(
    name: str, case: Any, results: Any, random_like: Any, assert_close: Any
) -> None:
    cell, *arguments, weights = case(name)
    arguments = tuple(arguments)
    run = functools.partial(rnnjax.unroll, cell, reverse=in_reverse(name))
    direction = random_like(arguments, 40, "float64")
    out, tangents = jax.jit(lambda a, d: jax.jvp(run, a, d))(arguments, direction)
    expected, gradients = results(name, "loop")
    assert_close(out, expected, TOLERANCES["float64"])
    np.testing.assert_allclose(
        inner(weights, tangents), inner(gradients, direction), rtol=TOLERANCES["float64"]
    )


@pytest.mark.parametrize(
    ("name", "method"),
    table(Auto, names=FEW[:5], ordinary=["lstm-callable", "user-peephole"], by_all=[]),
)
@pytest.mark.usefixtures("x64")
def test_law_5_second_order_gradients(name: str, method: Any, case: Any) -> None:
    _, *arguments, weights = case(name)
    run = compiled(name, method, in_reverse(name))
    check_backwards(lambda *arguments: run(arguments, weights)[1], *arguments)


# The second of these is JAX's own loop around the first.
@pytest.mark.parametrize(
    "method", [Fused(), pytest.param(Fused(keep_every=2), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.usefixtures("x64")
def test_law_5_every_derivative_that_jax_has(method: Any, case: Any, assert_close: Any) -> None:
    cell, params, xs, carry, _ = case("simple")

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(method: Any, params: Any, xs: jax.Array) -> Any:
        def ys(params: Any, xs: jax.Array) -> jax.Array:
            return rnnjax.unroll(cell, params, xs, carry, method=method)[1]

        def loss(bias: jax.Array) -> jax.Array:
            return (ys({**params, "bias": bias}, xs) ** 2).sum()

        bias = params["bias"]
        linear = jax.linearize(lambda xs: ys(params, xs), xs)[1]
        return {
            "jacfwd": jax.jacfwd(loss)(bias),
            "hessian": jax.hessian(loss)(bias),
            "reverse over reverse": jax.jacrev(jax.jacrev(loss))(bias),
            "linearize": linear(xs),
            "its transpose": jax.linear_transpose(linear, xs)(ys(params, xs)),
        }

    expected = derivatives(Scan(), params, xs)
    assert_close(derivatives(method, params, xs), expected, 1e-10)


def test_the_table_leaves_out_no_cell_that_runs_in_parallel() -> None:
    for name in CELLS.keys() - PARALLEL:
        assert any(map(Parallel().refusal, layers(CELLS[name])))


@pytest.mark.parametrize("name", CELLS)
def test_auto_is_one_of_the_others(name: str) -> None:
    for layer in layers(CELLS[name]):
        usual = Parallel() if layer.has_memory else Fused()
        assert Auto().choose(layer) == (Scan() if name == "user-step" else usual)


# Elsewhere both equal the loop, or only one of them is run.
@pytest.mark.parametrize(
    ("name", "method", "reverse"), both_ways(table(Scan, ordinary=[], by_all=["lstm"]))
)
def test_law_6_every_method_equals_scan(
    name: str, method: Any, reverse: bool, results: Any, assert_close: Any
) -> None:
    actual = results(name, method, reverse=reverse)
    assert_close(actual, results(name, Scan(), reverse=reverse), TOLERANCES["float64"])


@pytest.mark.parametrize("method", [Scan(), Parallel(newton=Newton()), Auto()], ids=str)
def test_law_6_an_activation_may_close_over_a_traced_value(
    method: Any, random_like: Any, assert_close: Any
) -> None:
    """Such as a slope that is learned: against a loop that is written out."""
    params = random_like(lambda: rnnjax.SimpleRNNCell(3).init(jax.random.key(0), 2), 1)
    xs, mask = np.random.default_rng(0).normal(size=(4, 2, 2)), np.ones((4, 2), bool)
    mask[2, 0] = False

    def loss(slope: Any) -> Any:
        cell = rnnjax.SimpleRNNCell(3, activation=lambda x: jnp.where(x > 0, x, slope * x))
        return (rnnjax.unroll(cell, params, xs, mask=mask, method=method)[1] ** 2).sum()

    def by_hand(slope: Any) -> Any:
        hidden, total = jnp.zeros((2, 3)), 0.0
        for x, valid in zip(xs, mask[..., None], strict=True):
            new = x @ params["kernel"] + hidden @ params["recurrent_kernel"] + params["bias"]
            new = jnp.where(new > 0, new, slope * new)
            hidden, total = jnp.where(valid, new, hidden), total + (valid * new**2).sum()
        return total

    found, expected = (jax.jit(jax.vmap(jax.value_and_grad(f))) for f in (loss, by_hand))
    slopes = jnp.array([0.1, 0.3])
    assert_close(found(slopes), expected(slopes), 1e-5)


@pytest.fixture(scope="module")
def compilations() -> Iterator[list[str]]:
    """Grows by an entry whenever XLA compiles."""
    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_law_7_a_cell_built_again_is_the_same_cell() -> None:
    """So JAX takes what it has compiled for the first."""
    for name, again in make_cells().items():
        assert again == CELLS[name]
        assert hash(again) == hash(CELLS[name])


@pytest.mark.parametrize(
    ("name", "method"),
    table(names=BROAD, ordinary=["lstm-callable", "gru", "stack"], by_all=[]),
)
def test_law_7_a_second_call_compiles_nothing(
    name: str, method: Any, case: Any, compilations: list[str]
) -> None:
    _, params, xs, carry, _ = case(name, "float32")
    xs = np.concatenate([xs, xs])  # a shape that no other test has

    def call() -> None:
        cell = make_cells()[name]
        rnnjax.unroll(cell, params, xs, method=method)
        rnnjax.unroll(cell, params, xs, carry, method=method)

    before = len(compilations)
    call()
    first = len(compilations)
    assert first > before
    call()
    assert len(compilations) == first


@pytest.mark.parametrize(
    ("name", "method"),
    table(Auto, names=[*FEW, "stack"], ordinary=["lstm-callable"], by_all=[]),
)
def test_law_7_nor_does_a_second_gradient(
    name: str, method: Any, case: Any, compilations: list[str]
) -> None:
    _, params, xs, carry, _ = case(name, "float32")
    xs = np.concatenate([xs, xs])

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(cell: Any, params: Any, xs: Any, carry: Any) -> Any:
        return jax.grad(lambda p: rnnjax.unroll(cell, p, xs, carry, method=method)[1].sum())(params)

    gradient(make_cells()[name], params, xs, carry)
    first = len(compilations)
    gradient(make_cells()[name], params, xs, carry)
    assert len(compilations) == first


@pytest.mark.parametrize(("name", "method"), NARROW)
def test_law_8_bfloat16_inputs_keep_a_float32_carry(
    name: str, method: Any, case: Any, assert_close: Any
) -> None:
    cell, params, xs, carry, weights = case(name, "float32")
    rounded, reverse = np.asarray(xs, jnp.bfloat16), in_reverse(name)
    out = rnnjax.unroll(cell, params, rounded, carry, reverse=reverse, method=method)
    # Against the float32 parameters the products run in float32, on the rounded inputs.
    given = params, rounded.astype(np.float32), carry
    expected, _ = compiled(name, method, reverse)(given, weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}
    assert_close(out, expected, 1e-6)


def in_bfloat16(cell: Any) -> Any:
    if isinstance(cell, Stack):
        return Stack([in_bfloat16(layer) for layer in cell.cells])
    return dataclasses.replace(cell, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "method"),
    table(
        Auto,
        names=["simple", *FEW],
        ordinary=["lstm", "gru-reset-before", "user-peephole"],
        by_all=[],
    ),
)
def test_law_8_bfloat16_products_stay_near_float32(
    name: str, method: Any, case: Any, results: Any, assert_close: Any
) -> None:
    cell, *arguments, weights = case(name, "float32")
    narrow = functools.partial(
        rnnjax.unroll, in_bfloat16(cell), reverse=in_reverse(name), method=method
    )
    (carry, ys), gradients = jax.jit(weighted(narrow))(tuple(arguments), weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    # bfloat16 keeps 8 bits: 2**-9 a rounding. Five times that for outputs, more for gradients.
    (expected_carry, expected_ys), expected = results(name, "loop")
    assert_close((carry, ys), (expected_carry, expected_ys), 0.01)
    assert_close(gradients, expected, 0.04)


@pytest.mark.parametrize(("name", "method"), table(Auto, names=[*FEW, "stack"], by_all=[]))
def test_law_8_a_bfloat16_carry_if_asked(
    name: str, method: Any, case: Any, results: Any, assert_close: Any
) -> None:
    cell, params, xs, carry, _ = case(name, "float32")
    carry = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), carry)
    reverse = in_reverse(name)
    carry, _ = rnnjax.unroll(cell, params, xs, carry, reverse=reverse, method=method)
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.bfloat16)}
    (expected, _), _ = results(name, "loop")
    assert_close(carry, expected, 0.05)
