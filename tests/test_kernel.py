"""`Kernel`: the loop as one Pallas call, in the interpreter, and what is lowered for what."""

import dataclasses
import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import BATCH, CELLS, FEATURES, TIME, layers, weighted
from jax import export
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rnnjax
from rnnjax import Fused, Kernel, Role, Scan
from rnnjax.cells.activations import RESIDUAL
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.fused.recurrence import Recurrence
from rnnjax.engine.pallas import tiles, tpu
from rnnjax.engine.pallas.interpreter import by_entries, evaluated
from rnnjax.engine.pallas.method import KernelLoops
from rnnjax.engine.pallas.tpu import Traced

# As the kernel of a TPU, and as that of a GPU.
INTERPRETED, ON_GPU = Kernel(interpret=True), Kernel(interpret="cuda")
SERVED = [n for n, cell in CELLS.items() if not any(map(Kernel().refusal, layers(cell)))]
# Ways through the engine: two halves, a sum and parameters in the update, no product.
FEW = ["gru", "user-peephole", "mingru"]

TRITON = "__gpu$xla.gpu.triton"  # as XLA calls a kernel of a GPU
# Later versions ask for NVIDIA's compiler when a program is lowered, which few machines have.
LOWERS = tuple(map(int, version("jaxlib").split(".")[:3])) <= (0, 10, 2)
needs_lowering = pytest.mark.skipif(not LOWERS, reason="kernels of a GPU are compiled there alone")

LENGTHS = np.array([TIME, 3, 4])
MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
RESETS = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
MARKS = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS, "reverse": True}


def arguments(cell: rnnjax.Cell, random_like: Any, time: int = TIME, batch: Any = (BATCH,)) -> Any:
    """Drawn parameters, inputs and a carry, and weights for a loss that sees every output."""
    carry = jax.eval_shape(lambda: cell.initial_carry(batch))
    trees = (
        jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES)),
        jax.ShapeDtypeStruct((time, *batch, FEATURES), "float32"),
        carry,
        (carry, jax.ShapeDtypeStruct((time, *batch, cell.output_size), "float32")),
    )
    *given, weights = (random_like(tree, 10 + i) for i, tree in enumerate(trees))
    if isinstance(cell, rnnjax.SLSTMCell):  # the leaves of whose carry hang together
        given[2] = cell.initial_carry(batch)
    return tuple(given), weights


def run(cell: rnnjax.Cell, method: rnnjax.Method, *given: Any, **marks: Any) -> Any:
    return jax.jit(weighted(functools.partial(rnnjax.unroll, cell, method=method, **marks)))(*given)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, so that a few take two turns of a TPU's grid, one of them not full."""
    monkeypatch.setattr(tpu, "_FEWEST", 3)
    monkeypatch.setattr(tpu, "_MOST", 3)


@pytest.fixture(scope="module")
def by_scan(random_like: Callable[..., Any]) -> Callable[..., Any]:
    """Outputs and gradients of a cell of the table, once for all kernels."""

    @functools.cache
    def compute(name: str, marked: bool) -> Any:
        return run(
            CELLS[name], Scan(), *arguments(CELLS[name], random_like), **(MARKS if marked else {})
        )

    return compute


# On a GPU an update that reads parameters is that of the peephole LSTM below.
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("name", "marked", "method"),
    [
        pytest.param(
            name,
            marked,
            method,
            id=f"{name}-{'marked' if marked else 'plain'}-{kind}",
            marks=[]
            if name in FEW and marked and (name, kind) != ("user-peephole", "gpu")
            else pytest.mark.slow,
        )
        for name in SERVED
        for marked in (False, True)
        for kind, method in (("tpu", INTERPRETED), ("gpu", ON_GPU))
    ],
)
def test_a_kernel_gives_the_numbers_of_the_scan(
    name: str,
    marked: bool,
    method: Kernel,
    random_like: Callable[..., Any],
    by_scan: Any,
    assert_close: Any,
) -> None:
    cell, marks = CELLS[name], MARKS if marked else {}
    given = arguments(cell, random_like)
    assert_close(run(cell, method, *given, **marks), by_scan(name, marked), 1e-6)


@pytest.mark.parametrize(
    "cell",
    [
        rnnjax.PeepholeLSTMCell(16),
        pytest.param(rnnjax.GRUCell(70), marks=pytest.mark.slow),  # two tiles, one of them short
        pytest.param(rnnjax.LayerNormLSTMCell(70), marks=pytest.mark.slow),
        pytest.param(rnnjax.ProjectionLSTMCell(32, proj_size=16), marks=pytest.mark.slow),
    ],
    ids=lambda cell: f"{type(cell).__name__}({cell.hidden_size})",
)
def test_rows_of_two_programs_and_units_of_several_tiles(
    cell: rnnjax.Cell, random_like: Callable[..., Any], assert_close: Any
) -> None:
    """Two rows of the second program count, and NaN in one row stays there."""
    (params, xs, carry), weights = arguments(cell, random_like, batch=(18,))
    params = jax.tree.map(lambda leaf: np.float32(0.3) * np.asarray(leaf), params)
    marks = {
        "lengths": np.arange(18) % (TIME + 1),
        "resets": np.arange(18) % 5 == np.arange(TIME)[:, None],
    }
    spoilt = np.array(xs)
    spoilt[:, 3] = np.nan
    outs, of_spoilt = [], []
    for method in (ON_GPU, Scan()):
        both = jax.jit(weighted(functools.partial(rnnjax.unroll, cell, method=method, **marks)))
        outs.append(both((params, xs, carry), weights))
        of_spoilt.append(jax.tree.map(np.nan_to_num, both((params, spoilt, carry), weights)[0]))
    assert_close(*outs, 1e-6)
    assert_close(*of_spoilt, 1e-6)
    assert planned(cell, rows=18, platform="cuda").count("one kernel") == 2 * LOWERS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", *FEW[:2]])
def test_blocks_do_not_race_and_nothing_is_read_before_it_is_written(
    name: str, random_like: Callable[..., Any], assert_close: Any, capfd: Any
) -> None:
    """In an interpreter that copies blocks as a TPU does, into memory full of NaN; two turns."""
    cell = CELLS[name]
    (params, xs, carry), weights = arguments(cell, random_like, 24)

    def both(interpret: Any) -> Any:
        # Not through the primitive: that interpreter calls back in an order of its own.
        recurrence = Recurrence(cell, None, False, KernelLoops(interpret))
        given = params, Steps(), xs, StepMarks(), carry
        out, kept = recurrence.forward("tpu", *given)
        needs_grad = jax.tree.map(lambda _: True, given)
        return out, recurrence.backward("tpu", given, kept, weights, needs_grad)

    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    actual, expected = (jax.jit(functools.partial(both, i))() for i in (strict, True))
    assert_close(actual, expected, 1e-6)
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    "batch", [(), (2, 3), pytest.param((0,), marks=pytest.mark.slow), (2, 0)], ids=str
)
def test_rows_of_any_batch(batch: Any, random_like: Callable[..., Any], assert_close: Any) -> None:
    """Over steps of which no block is a part, and marks of the first axis.

    Without marks too: with them, what lies behind the last step is masked whatever the kernel does.
    """
    cell = rnnjax.SimpleRNNCell(5)
    given = arguments(cell, random_like, batch=batch)
    mask = np.arange(TIME) % 4 > 0 if len(batch) == 2 else None
    expected = run(cell, Scan(), *given, mask=mask)
    for method in (INTERPRETED, ON_GPU) if batch == (2, 3) else (INTERPRETED,):
        assert_close(run(cell, method, *given, mask=mask), expected, 1e-6)


def test_what_regularisers_draw_is_inside(
    random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell = rnnjax.Regularized(rnnjax.GRUCell(5), recurrent_dropout=0.3, zoneout_hidden=0.2)
    given, _ = arguments(cell, random_like, 3)

    @functools.partial(jax.jit, static_argnums=0)
    def both(method: Any, *given: Any) -> Any:
        keys = (None, jax.random.key(1))  # the rate of zoneout, and what it draws
        return [rnnjax.unroll(cell, *given, method=method, key=key) for key in keys]

    expected = both(Scan(), *given)
    for method in (INTERPRETED, ON_GPU):
        assert_close(both(method, *given), expected, 1e-6)


def test_vmap_segments_and_second_derivatives(
    random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell = rnnjax.SimpleRNNCell(3)
    (params, xs, carry), weights = arguments(cell, random_like, 3)

    def first(method: Any, params: Any, x: Any, start: Any, weights: Any) -> Any:
        unroll = functools.partial(rnnjax.unroll, cell, method=method)
        return weighted(unroll)((params, x, start), weights)[1]

    def second(method: Any, x: Any) -> Any:
        def slope(x: Any) -> Any:
            return (first(method, params, x, carry, weights)[1] ** 2).sum()

        return jax.grad(slope)(x)

    axes = None, 1, 0, (0, 1)
    expected, *others = (
        jax.jit(jax.vmap(functools.partial(first, m), axes))(params, xs, carry, weights)
        for m in (Scan(), Kernel(keep_every=2, interpret=True))
    )
    for rows in others:
        assert_close(rows, expected, 1e-6)
    assert_close(*(jax.jit(functools.partial(second, m))(xs) for m in (INTERPRETED, Scan())), 1e-5)


@pytest.mark.parametrize(
    ("shapes", "contracted", "batch"),
    [
        (((3, 4, 5), (3, 5)), ((2,), (1,)), ((0,), (0,))),
        (((3, 5), (3, 5, 4)), ((1,), (1,)), ((0,), (0,))),
        (((5, 3, 2), (4, 2, 3)), ((), ()), ((1, 2), (2, 1))),
        (((4, 5, 3), (5, 3)), ((1,), (0,)), ((2,), (1,))),
    ],
    ids=str,
)
def test_products_of_rows_are_those_of_their_entries(
    shapes: Any, contracted: Any, batch: Any
) -> None:
    """As a TPU's kernel has them; the numbers are those of the product itself."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype("float32") for shape in shapes)
    product = functools.partial(jax.lax.dot_general, dimension_numbers=(contracted, batch))
    traced = jax.make_jaxpr(product)(a, b)
    (found,) = evaluated(traced.jaxpr, [], [a, b], by_entries)
    np.testing.assert_allclose(found, product(a, b), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 24, 48, 70])
def test_tiles_hold_every_entry_once(size: int) -> None:
    """An axis of one entry, as of a mean, has no larger tile."""
    cut, rows = tiles.Tiles(24), 5
    array = np.random.default_rng(0).normal(size=(rows, size)).astype("float32")
    shape = tiles.ROWS, size
    stored = cut.put(array, shape)
    assert stored.shape == cut.stored(shape, stored.shape[0])
    np.testing.assert_array_equal(cut.get(stored, shape, rows), array)
    assert sum(piece.valid for piece in cut.pieces(size)) == size
    assert cut.pieces(1) == [tiles.Block(1, 1, 0)]


@dataclasses.dataclass(frozen=True)
class ScaledCell(rnnjax.Cell):
    """A user's cell with a number by itself: shared, kept at every step, and its gradient summed.

    Args:
        hidden_size: of its state.
        rounded: whether it rounds its state to three bits, as one that is to be quantised.
    """

    hidden_size: int
    rounded: bool = False
    carry = rnnjax.SimpleRNNCarry
    gates = ("z",)

    def parameters(self, input_size: int) -> Any:
        return super().parameters(input_size) | {"scale": rnnjax.Param((), "ones", Role.UNIT)}

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        scale = checkpoint_name(jnp.exp(params["scale"]), RESIDUAL)
        hidden = checkpoint_name(jnp.tanh(x * scale), RESIDUAL) * scale
        hidden = jax.lax.reduce_precision(hidden, 8, 3) if self.rounded else hidden
        return rnnjax.SimpleRNNCarry(hidden)


@pytest.mark.usefixtures("blocks")
def test_numbers_by_themselves_and_rounding_are_inside(
    random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell = ScaledCell(4, rounded=True)
    given = arguments(cell, random_like)
    expected = run(cell, Scan(), *given, **MARKS)
    for method in (INTERPRETED, ON_GPU):
        assert_close(run(cell, method, *given, **MARKS), expected, 1e-6)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_plan_says_whether_numbers_by_themselves_and_rounding_are_inside(rounded: bool) -> None:
    plan = planned(ScaledCell(4, rounded=rounded), 2)
    # A TPU's compiler rounds none before JAX 0.11. What `jax.checkpoint` states of what it keeps is
    # no rounding.
    refused = rounded and jax.__version_info__ < (0, 11)
    assert plan.count("one kernel") == (0 if refused else 2)
    assert plan.count("Unimplemented primitive") == (2 if refused else 0)


@dataclasses.dataclass(frozen=True)
class SortedCell(rnnjax.Cell):
    """A user's cell with an operation that no kernel has."""

    hidden_size: int
    carry = rnnjax.SimpleRNNCarry
    gates = ("z",)

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return rnnjax.SimpleRNNCarry(jnp.sort(x, axis=-1))


def planned(
    cell: rnnjax.Cell,
    time: int = 40,
    rows: int = 8,
    platform: str = "tpu",
    method: Any = None,
    **options: Any,
) -> str:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((time, rows, 3), jnp.float32)
    method = method or Kernel(**options)
    return str(rnnjax.explain(cell, params, xs, method=method, platform=platform))


def test_the_plan_says_beforehand_what_will_run(monkeypatch: Any) -> None:
    assert repr(Kernel(product_dtype="bfloat16")) == "Kernel(product_dtype=bfloat16)"
    plan = planned(rnnjax.SimpleRNNCell(128))
    assert "the forward loop: one kernel, 10 steps at a time, which holds 0.398 MiB" in plan
    assert "the backward loop: one kernel, 10 steps at a time" in plan
    for platform, known in (("rocm", "none for rocm"), ("gpu", "one for cuda alone")):
        assert f"XLA's, not a kernel, because there is {known}" in planned(
            rnnjax.LSTMCell(8), platform=platform
        )
    large = planned(rnnjax.LSTMCell(4096))
    assert "because it would hold 261 MiB, more than 75% of the chip's 128 MiB" in large
    assert "its compiler says: Unimplemented primitive" in planned(SortedCell(4))
    assert planned(SortedCell(4), rows=0).count("because there is nothing to compute") == 2
    assert "loop: " not in planned(SortedCell(4), time=0)
    with pytest.raises(rnnjax.InvalidInputError, match="its products are convolutions"):
        planned(rnnjax.ConvLSTMCell(2))
    for wrong in (1, "gpu"):
        with pytest.raises(
            rnnjax.InvalidInputError, match='interpret must be True or False, or "cu'
        ):
            Kernel(interpret=wrong)
    monkeypatch.setattr(Traced, "run", Mock(side_effect=NotImplementedError))
    assert "its compiler says: NotImplementedError()" in planned(rnnjax.LSTMCell(8))


@needs_lowering
def test_the_plan_says_what_will_run_on_a_gpu() -> None:
    plan = functools.partial(planned, platform="cuda")
    small = rnnjax.SimpleRNNCell(50)
    assert plan(small).count("loop: one kernel, 16 rows a program, all steps") == 2
    large = rnnjax.SimpleRNNCell(256)
    assert plan(large).count("because a row of its state takes 1024 bytes as an operand") == 2
    assert plan(large, product_dtype="bfloat16").count("one kernel") == 2
    assert plan(rnnjax.MLSTMCell(8, heads=2)).count("a state that is not a vector") == 2
    assert plan(SortedCell(4)).count("because there is no iota of tiles") == 2
    reset_before = plan(rnnjax.GRUCell(32, reset_after=False))
    assert reset_before.count("one kernel") == 1
    assert "because it sums 3072 gradients in the loop, more than the 1024" in reset_before
    assert "no tiles" in plan(rnnjax.LRUCell(3))


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_a_gpu_multiplies_as_precisely_as_asked(precision: Any) -> None:
    """Triton takes TF32 but for ``highest``."""
    cell = rnnjax.SimpleRNNCell(16)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((4, 16, 3), jnp.float32)
    method = Kernel(precision=precision, interpret="cuda")
    lowered = jax.jit(functools.partial(rnnjax.unroll, cell, method=method)).lower(params, xs)
    products = lowered.as_text().count("stablehlo.dot_general")
    exact = lowered.as_text().count("precision = [HIGHEST, HIGHEST]")
    assert products >= 2
    assert exact == (products if precision == "highest" else 0)


@pytest.mark.parametrize(
    ("platform", "name"),
    [("tpu", "@tpu_custom_call"), pytest.param("cuda", TRITON, marks=needs_lowering)],
)
def test_ids_have_no_gradient(platform: str, name: str) -> None:
    """In the loops of a GPU, which are traced again for other rows, neither."""
    cell, ids = CELLS["simple"], np.zeros((2, BATCH), int)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 4))

    def loss(params: Any) -> jax.Array:
        return rnnjax.unroll(cell, params, rnnjax.OneHot(ids, 4), method=Kernel())[1].sum()

    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count(name) == 2


def test_a_program_for_a_tpu_holds_kernels_and_runs_on_a_cpu(
    random_like: Callable[..., Any], assert_close: Any
) -> None:
    """One artefact for both; a cell that no kernel serves has XLA's loop, as its plan says."""

    cell = rnnjax.SimpleRNNCell(5)
    given = *arguments(cell, random_like, 3), RESETS[:3]

    def step(arguments: Any, weights: Any, marks: Any) -> Any:
        run = functools.partial(rnnjax.unroll, cell, method=Kernel(), resets=marks)
        return weighted(run)(arguments, weights)

    allowed = map(export.DisabledSafetyCheck.custom_call, ("tpu_custom_call", TRITON))
    program = export.export(
        jax.jit(step), platforms=["cpu", "cuda", "tpu"], disabled_checks=[*allowed]
    )(*given)
    assert program.mlir_module().count("@tpu_custom_call") == 2
    assert program.mlir_module().count(TRITON) == 2 * LOWERS
    expected = run(cell, Scan(), *given[:2], resets=RESETS[:3])
    assert_close(program.call(*given), expected, 1e-6)
    unserved = jax.jit(functools.partial(rnnjax.unroll, SortedCell(4), method=Kernel()))
    sorting, _ = arguments(SortedCell(4), random_like, 3)
    text = unserved.trace(*sorting).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert text.count("@tpu_custom_call") == text.count(TRITON) == 0


@pytest.mark.parametrize(("name", "platform"), [("lstm", "cpu"), ("mingru", "rocm")])
def test_elsewhere_it_is_the_program_of_the_fast_path(
    name: str, platform: str, random_like: Callable[..., Any]
) -> None:
    given = arguments(CELLS[name], random_like)
    programs = [
        jax.jit(weighted(functools.partial(rnnjax.unroll, CELLS[name], method=method, **MARKS)))
        .trace(*given)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for method in (Kernel(), Fused())
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_auto_takes_none(platform: str, random_like: Callable[..., Any]) -> None:
    given = arguments(CELLS["simple"], random_like, 2)
    run = jax.jit(weighted(functools.partial(rnnjax.unroll, CELLS["simple"])))
    text = run.trace(*given).lower(lowering_platforms=(platform,)).as_text()
    assert "@tpu_custom_call" not in text
    assert TRITON not in text
    assert "chose Fused()" in planned(CELLS["simple"], platform=platform, method=rnnjax.Auto())


def test_a_program_that_is_divided_over_devices_holds_none() -> None:
    """XLA cannot divide a kernel; inside of `jax.shard_map` there is nothing to divide."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    cell = CELLS["gru"]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES))

    def run(params: Any, xs: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, method=Kernel())[1]

    def placed(tree: Any, spec: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    xs = jax.ShapeDtypeStruct((TIME, 4, FEATURES), jnp.float32)
    given = placed(params, whole), placed(xs, rows)
    shared = jax.shard_map(run, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
    for function, kernels in ((run, 0), (shared, 1)):
        for platform, name in [("tpu", "@tpu_custom_call"), ("cuda", TRITON)][: 1 + LOWERS]:
            lowered = jax.jit(function).trace(*given).lower(lowering_platforms=(platform,))
            none = platform == "cuda" and jax.__version_info__ < (0, 10)
            assert lowered.as_text().count(name) == (0 if none else kernels)
