"""`Kernel`: the loop as one Pallas call, in the interpreter, and what is lowered for what."""

import dataclasses
import functools
from importlib.metadata import version
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
from rnnjax.engine.pallas.tile_rules import computed
from rnnjax.engine.pallas.tpu import Traced

# As the kernel of a TPU, and as that of a GPU.
BOTH = INTERPRETED, ON_GPU = Kernel(interpret=True), Kernel(interpret="cuda")
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


def arguments(cell, random_like, time=TIME, batch=(BATCH,)):
    """Drawn parameters, inputs and a carry, and weights for a loss that sees every output."""
    carry = jax.eval_shape(lambda: cell.initial_carry(batch))
    trees = (
        shapes(cell),
        jax.ShapeDtypeStruct((time, *batch, FEATURES), "float32"),
        carry,
        (carry, jax.ShapeDtypeStruct((time, *batch, cell.output_size), "float32")),
    )
    *given, weights = (random_like(tree, 10 + i) for i, tree in enumerate(trees))
    return tuple(given), weights


def shapes(cell, features=FEATURES):
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), features))


def run(cell, method, *given, **marks):
    return jax.jit(weighted(functools.partial(rnnjax.unroll, cell, method=method, **marks)))(*given)


def lowered(function, platform, *given):
    """The text of a program for a platform."""
    return jax.jit(function).trace(*given).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def blocks(monkeypatch):
    """Three steps, so that a few take two turns of a TPU's grid, one of them not full."""
    monkeypatch.setattr(tpu, "_FEWEST", 3)
    monkeypatch.setattr(tpu, "_MOST", 3)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("name", "marks"),
    [
        *((name, MARKS) for name in FEW),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in SERVED),
        *(pytest.param(n, MARKS, marks=pytest.mark.slow) for n in SERVED if n not in FEW),
    ],
    ids=lambda value: value if isinstance(value, str) else "marked" if value else "plain",
)
def test_a_kernel_gives_the_numbers_of_the_scan(name, marks, equal_to_scan):
    equal_to_scan(CELLS[name], BOTH, **marks)


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
def test_rows_of_two_programs_and_units_of_several_tiles(cell, random_like, assert_close):
    """Two rows of the second program count, and NaN in one row stays there."""
    (params, xs, carry), weights = arguments(cell, random_like, batch=(18,))
    params = jax.tree.map(lambda leaf: np.float32(0.3) * np.asarray(leaf), params)
    marks = {
        "lengths": np.arange(18) % (TIME + 1),
        "resets": np.arange(18) % 5 == np.arange(TIME)[:, None],
    }
    spoilt = np.array(xs)
    spoilt[:, 3] = np.nan
    runs = [functools.partial(run, cell, method, **marks) for method in (ON_GPU, Scan())]
    assert_close(*(both((params, xs, carry), weights) for both in runs), 1e-6)
    spoilt = [both((params, spoilt, carry), weights)[0] for both in runs]
    assert_close(*(jax.tree.map(np.nan_to_num, out) for out in spoilt), 1e-6)
    assert planned(cell, rows=18, platform="cuda").count("one kernel") == 2 * LOWERS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", *FEW[:2]])
def test_blocks_do_not_race_and_nothing_is_read_before_it_is_written(
    name, random_like, assert_close, capfd
):
    """In an interpreter that copies blocks as a TPU does, into memory full of NaN; two turns."""
    cell = CELLS[name]
    (params, xs, carry), weights = arguments(cell, random_like, 24)

    def both(interpret):
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


@dataclasses.dataclass(frozen=True)
class ScaledCell(rnnjax.SimpleRNNCell):
    """A user's cell with a number by itself: shared, kept at every step, and its gradient summed.

    It may round its state to three bits, as one that is to be quantised.
    """

    rounded: bool = False

    def parameters(self, input_size):
        return super().parameters(input_size) | {"scale": rnnjax.Param((), "ones", Role.UNIT)}

    def update(self, params, x, carry):
        scale = checkpoint_name(jnp.exp(params["scale"]), RESIDUAL)
        hidden = checkpoint_name(jnp.tanh(x * scale), RESIDUAL) * scale
        hidden = jax.lax.reduce_precision(hidden, 8, 3) if self.rounded else hidden
        return rnnjax.SimpleRNNCarry(hidden)


NOISY = rnnjax.Regularized(rnnjax.GRUCell(5), recurrent_dropout=0.3, zoneout_hidden=0.2)
SOME = {"mask": np.arange(TIME) % 4 > 0}  # of the first axis
# Over steps of which no block is a part. Without marks too: with them, what lies behind the last
# step is masked whatever the kernel does.
OTHERS = {
    "no batch": (rnnjax.SimpleRNNCell(5), (), {}),
    "two axes of rows": (rnnjax.SimpleRNNCell(5), (2, 3), SOME),
    "no rows": (rnnjax.SimpleRNNCell(5), (2, 0), SOME),
    "what noise draws": (NOISY, (BATCH,), {"key": jax.random.key(1)}),
    "its rates": (rnnjax.Regularized(rnnjax.SimpleRNNCell(5), zoneout_hidden=0.2), (BATCH,), {}),
    "numbers by themselves, and rounding": (ScaledCell(4, rounded=True), (BATCH,), MARKS),
}


@pytest.mark.filterwarnings("ignore:the gradient of a Regularized is taken without its dropout")
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", OTHERS)
def test_other_cells_and_rows(name, equal_to_scan):
    cell, batch, options = OTHERS[name]
    equal_to_scan(cell, BOTH, batch, **options)


def test_vmap_and_segments(equal_to_scan):
    method = Kernel(keep_every=2, interpret=True)

    def rows(cell, params, xs, carry):
        run = functools.partial(rnnjax.unroll, cell, params, method=method)
        return jax.vmap(run, (1, 0), (0, 1))(xs, carry)

    equal_to_scan(rnnjax.SimpleRNNCell(3), [rows], steps=3)


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
def test_products_of_rows_are_those_of_their_entries(shapes, contracted, batch):
    """As a TPU's kernel has them; the numbers are those of the product itself."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype("float32") for shape in shapes)
    product = functools.partial(jax.lax.dot_general, dimension_numbers=(contracted, batch))
    traced = jax.make_jaxpr(product)(a, b)
    (found,) = evaluated(traced.jaxpr, [], [a, b], by_entries)
    np.testing.assert_allclose(found, product(a, b), rtol=1e-6, atol=1e-6)


def rules(x, gates, kernel, wide, short):
    """What a step may do with its arrays: joined, cut, padded, turned, multiplied and summed."""
    first, *others = jnp.split(gates, 3, axis=-1)
    joined = jnp.concatenate([others[0], x, first], axis=-1)
    stacked = jnp.stack([x, first], axis=1)
    return {
        "split and concatenate": joined,
        "slice": joined[:, 24:48] - x,
        "pad": jnp.pad(x, ((0, 0), (24, 48))),
        "stack and unstack": [stacked, stacked[:, 1] * x],
        "a product": gates @ kernel,
        "a transpose": (first.T * x.T).sum(0),
        "reductions": [x.mean(-1), x.max(-1, keepdims=True) + x, (gates > 0).all(-1)],
        "near zero": jnp.expm1(x / 8),
        "axes of other sizes": [wide * wide.mean(-1, keepdims=True), short + 1],
    }


def test_each_rule_of_tiles_is_that_of_the_array(random_like):
    cut, rows = tiles.Tiles(24), 5
    sizes = (rows, 24), (rows, 72), (72, 24), (rows, 70), (rows, 3)
    arrays = random_like([np.zeros(size, "f") for size in sizes], 1)
    whole = [(tiles.ROWS if n == rows else n, units) for n, units in sizes]
    traced, made = jax.make_jaxpr(rules, return_shape=True)(
        *(jax.ShapeDtypeStruct(shape, "float32") for shape in whole)
    )

    @jax.jit
    def both(*arrays):
        given = [cut.read(cut.put(a, n), n) for a, n in zip(arrays, whole, strict=True)]
        outs, found = evaluated(traced.jaxpr, [], given, functools.partial(computed, cut)), []
        for out in outs:
            stored = np.zeros(cut.stored(out.shape), object)
            tiled = {index: out.tiles[index] for index in cut.indices(out.shape)}
            ref = jnp.zeros(stored.shape, jax.tree.leaves(tiled)[0].dtype)
            for index, tile in tiled.items():
                ref = ref.at[cut._where(out.shape, index)].set(tile)
            found.append(cut.get(ref, out.shape, rows))
        return jax.tree.unflatten(jax.tree.structure(made), found), rules(*arrays)

    found, expected = both(*arrays)
    for name in expected:
        for one, other in zip(*map(jax.tree.leaves, (found[name], expected[name])), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("platform", ["tpu", pytest.param("cuda", marks=needs_lowering)])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_plan_says_whether_numbers_by_themselves_and_rounding_are_inside(rounded, platform):
    plan = planned(ScaledCell(4, rounded=rounded), 2, platform=platform)
    # Triton rounds none, nor a TPU's compiler before JAX 0.11. What `jax.checkpoint` states of what
    # it keeps is no rounding.
    refused = rounded and (platform == "cuda" or jax.__version_info__ < (0, 11))
    assert plan.count("one kernel") == (0 if refused else 2)
    assert plan.count("Unimplemented primitive") == (2 if refused else 0)


class SortedCell(rnnjax.SimpleRNNCell):
    """A user's cell with an operation that no kernel has."""

    def update(self, params, x, carry):
        return rnnjax.SimpleRNNCarry(jnp.sort(x, axis=-1))


def planned(cell, time=40, rows=8, platform="tpu", **options):
    xs = jax.ShapeDtypeStruct((time, rows, 3), jnp.float32)
    method = Kernel(**options)
    return str(rnnjax.explain(cell, shapes(cell, 3), xs, method=method, platform=platform))


def test_the_plan_says_beforehand_what_will_run(monkeypatch):
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
def test_the_plan_says_what_will_run_on_a_gpu():
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
def test_a_gpu_multiplies_as_precisely_as_asked(precision):
    """Triton takes TF32 but for ``highest``."""
    cell = rnnjax.SimpleRNNCell(16)
    xs = jax.ShapeDtypeStruct((4, 16, 3), jnp.float32)
    method = Kernel(precision=precision, interpret="cuda")
    text = lowered(
        functools.partial(rnnjax.unroll, cell, method=method), "cpu", shapes(cell, 3), xs
    )
    products = text.count("stablehlo.dot_general")
    exact = text.count("precision = [HIGHEST, HIGHEST]")
    assert products >= 2
    assert exact == (products if precision == "highest" else 0)


@pytest.mark.parametrize(
    ("platform", "name"),
    [("tpu", "@tpu_custom_call"), pytest.param("cuda", TRITON, marks=needs_lowering)],
)
def test_ids_have_no_gradient(platform, name):
    """In the loops of a GPU, which are traced again for other rows, neither; nor of two axes."""
    cell, ids = CELLS["simple"], np.zeros((2, 2, BATCH), int)

    def loss(params):
        return rnnjax.unroll(cell, params, rnnjax.OneHot(ids, 4), method=Kernel())[1].sum()

    assert lowered(jax.grad(loss), platform, shapes(cell, 4)).count(name) == 2


def test_a_program_for_a_tpu_holds_kernels_and_runs_on_a_cpu(random_like, assert_close):
    """One artefact for both; a cell that no kernel serves has XLA's loop, as its plan says."""
    cell = rnnjax.SimpleRNNCell(5)
    given = *arguments(cell, random_like, 3), RESETS[:3]

    def step(arguments, weights, marks):
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
def test_elsewhere_it_is_the_program_of_the_fast_path(name, platform, random_like):
    given = arguments(CELLS[name], random_like)
    kernel, fused = (
        weighted(functools.partial(rnnjax.unroll, CELLS[name], method=method, **MARKS))
        for method in (Kernel(), Fused())
    )
    assert lowered(kernel, platform, *given) == lowered(fused, platform, *given)


def test_a_program_that_is_divided_over_devices_holds_none():
    """XLA cannot divide a kernel; inside of `jax.shard_map` there is nothing to divide."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    cell = CELLS["gru"]

    def run(params, xs):
        return rnnjax.unroll(cell, params, xs, method=Kernel())[1]

    def placed(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    xs = jax.ShapeDtypeStruct((TIME, 4, FEATURES), jnp.float32)
    given = placed(shapes(cell), whole), placed(xs, rows)
    shared = jax.shard_map(run, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
    for platform, name in [("tpu", "@tpu_custom_call"), ("cuda", TRITON)][: 1 + LOWERS]:
        inside = platform == "tpu" or jax.__version_info__ >= (0, 10)
        assert lowered(run, platform, *given).count(name) == 0
        assert lowered(shared, platform, *given).count(name) == inside
