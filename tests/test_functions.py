"""Recurrences without a cell: the numbers of plain loops in float64, and their gradients."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import begun, plain_loop, refusals
from jax.sharding import AxisType, PartitionSpec
from reference import sigmoid

import rnnjax
from rnnjax import InvalidInputError, linear_recurrence, matrix_memory
from rnnjax.cells import MatrixCarry, Memory

TIME, ROWS, HEADS, KEYS, VALUES = 23, 3, 2, 4, 5
LENGTHS = np.array([23, 1, 16])
MASK = np.random.default_rng(7).random((TIME, ROWS)) < 0.8


pytestmark = pytest.mark.usefixtures("x64")


def drawn(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def resets() -> np.ndarray:
    return np.random.default_rng(9).random((TIME, ROWS)) < 0.15


def loop(step, state, arrays, reverse, valid=None, again=None):
    """The last state and the outputs of steps, by default with all the marks."""
    valid = (np.arange(TIME)[:, None] < LENGTHS) & MASK if valid is None else valid
    # A reset stands between two steps, before the later one.
    borders = np.array(resets() if again is None else again)
    borders = np.roll(borders, -1, axis=0) if reverse else borders
    borders[-1:] &= not reverse

    run = plain_loop(SimpleNamespace(step=lambda _, state, arrays: step(state, arrays)))
    turned = functools.partial(jax.tree.map, lambda leaf: leaf[::-1] if reverse else leaf)
    start = jax.tree.map(jnp.zeros_like, state)
    state, ys = run(None, turned(arrays), state, start, turned(valid), turned(borders))
    return state, turned(ys)


def compared(ways, plain, arrays, assert_close):
    """Results and the gradients of all arrays, complex ones as pairs of real ones.

    The plain loop is compiled with all ways of ours that go in its direction.
    """

    def loss(run, arrays):
        leaves = jax.tree.leaves(run(arrays))
        return sum(jnp.sum(jnp.sin(leaf.real) + jnp.cos(leaf.imag)) for leaf in leaves)

    def numbers(run, arrays):
        found = run(arrays), jax.grad(functools.partial(loss, run))(arrays)
        return jax.tree.map(lambda leaf: jnp.stack([leaf.real, leaf.imag]), found)

    run = jax.jit(lambda arrays: [numbers(f, arrays) for f in (*ways, plain)])
    *found, expected = run(arrays)
    for each in found:
        assert_close(each, expected, 1e-12)


# ---- h = a h + b

FORMS = {
    "real": (drawn(1, TIME, ROWS, KEYS), drawn(2, TIME, ROWS, KEYS), drawn(3, ROWS, KEYS)),
    "one decay for all": (np.full((TIME, 1, 1), 0.9), drawn(2, TIME, ROWS, KEYS), None),
    "complex": (
        drawn(1, TIME, ROWS, KEYS) + 1j * drawn(4, TIME, ROWS, KEYS),
        drawn(2, TIME, ROWS, KEYS) + 1j * drawn(5, TIME, ROWS, KEYS),
        drawn(3, ROWS, KEYS) + 1j * drawn(6, ROWS, KEYS),
    ),
    "matrices": (
        drawn(1, TIME, ROWS, KEYS, 3, 3) / 2,
        drawn(2, TIME, ROWS, KEYS, 3),
        drawn(3, ROWS, KEYS, 3),
    ),
}


@pytest.mark.parametrize(
    ("methods", "reverse"),
    [([rnnjax.Scan(), rnnjax.Parallel()], False), ([rnnjax.Auto()], True)],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_a_linear_recurrence(form, methods, reverse, assert_close):
    given = tuple(x for x in FORMS[form] if x is not None)

    def ours(method, given):
        marks = {"resets": resets(), "lengths": LENGTHS, "mask": MASK, "reverse": reverse}
        return linear_recurrence(*given, **marks, method=method)

    def step(h, at):
        a, b = at
        h = (jnp.einsum("...ij,...j->...i", a, h) if form == "matrices" else a * h) + b
        return h, h

    def plain(given):
        first = given[2] if given[2:] else jnp.zeros(given[1].shape[1:], given[1].dtype)
        return loop(step, first, tuple(given[:2]), reverse)

    compared([functools.partial(ours, m) for m in methods], plain, given, assert_close)


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_divided_over_devices(reverse, assert_close):
    decay, drive, start = (jnp.asarray(x)[..., :2] for x in FORMS["complex"])
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    steps, whole = PartitionSpec("time"), PartitionSpec()
    marks = {"lengths": np.minimum(LENGTHS, 20), "reverse": reverse}

    def run(method, arrays, again):
        return linear_recurrence(*arrays, resets=again, method=method, **marks)

    divided = jax.shard_map(
        functools.partial(run, rnnjax.Parallel(axis_name="time")),
        mesh=mesh, in_specs=((steps, steps, whole), steps), out_specs=(whole, steps),
    )  # fmt: skip
    again = jnp.asarray(resets()[:20])
    compared(
        [lambda arrays: divided(arrays, again)], lambda arrays: run(rnnjax.Scan(), arrays, again),
        (decay[:20], drive[:20], start), assert_close,
    )  # fmt: skip


def test_it_is_as_exact_as_its_arrays():
    decay, drive, start = FORMS["real"]
    assert linear_recurrence(decay, drive)[1].dtype == jnp.float64
    narrow = linear_recurrence(jnp.float32(decay), jnp.float32(drive))
    assert narrow[0].dtype == narrow[1].dtype == jnp.float32
    whole = linear_recurrence(decay + 0j, drive + 0j, start + 1j)
    for one, other in zip(linear_recurrence(decay, drive, start + 1j), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    short, start = (jnp.bfloat16(x) for x in (decay, drive)), jnp.full(start.shape, 0.1, "float32")
    assert linear_recurrence(*short, start)[0].dtype == jnp.float32


@pytest.mark.parametrize("empty", [np.s_[:0], np.s_[:, :0]], ids=["no steps", "no rows"])
def test_without_steps_or_rows(empty):
    forms = [FORMS["complex"][:2], FORMS["matrices"][:2]]
    given = jax.tree.map(lambda leaf: leaf[empty], (forms, [*MEMORIES.values()]))

    @jax.jit
    def all_of(forms, memories):
        made = [linear_recurrence(*each)[1] for each in forms]
        return made + [matrix_memory(memory)[1] for memory in memories]

    wanted = [drive.shape for _, drive in given[0]] + [memory.value.shape for memory in given[1]]
    assert [ys.shape for ys in all_of(*given)] == wanted


# ---- memories that are matrices


QUERY, KEY = drawn(1, TIME, ROWS, HEADS, KEYS), drawn(2, TIME, ROWS, HEADS, KEYS)
UNIT = KEY / np.linalg.norm(KEY, axis=-1, keepdims=True)
OTHER = drawn(6, TIME, ROWS, HEADS, KEYS)
OTHER = OTHER / np.linalg.norm(OTHER, axis=-1, keepdims=True)
VALUE = drawn(3, TIME, ROWS, HEADS, VALUES)
BY_HEAD, BY_KEY = drawn(4, TIME, ROWS, HEADS), drawn(5, TIME, ROWS, HEADS, KEYS)
MOST = np.arange(TIME)[:, None, None, None] % 3 > 0
NONE, BETA = np.zeros_like(BY_HEAD), 2 * sigmoid(BY_HEAD)
MEMORIES = {
    "linear attention (Katharopoulos et al., 2020)": Memory(QUERY, KEY, VALUE, NONE),
    "simple GLA (Yang et al., 2024)": Memory(QUERY, KEY, VALUE, -np.exp(BY_HEAD)),
    "GLA (Yang et al., 2024)": Memory(QUERY, KEY, VALUE, -np.exp(BY_KEY)),
    "DeltaNet (Schlag et al., 2021)": Memory(QUERY, UNIT, VALUE, NONE, BETA, BETA),
    "gated DeltaNet (Yang et al., 2025)": Memory(
        QUERY, UNIT, VALUE, -np.exp(drawn(7, TIME, ROWS, HEADS)), BETA, BETA
    ),
    "Kimi delta attention (2025)": Memory(QUERY, UNIT, VALUE, -np.exp(BY_KEY), BETA, BETA),
    "an erasure of its own": Memory(QUERY, UNIT, VALUE, -np.exp(BY_HEAD), None, BETA / 2),
    "an erasure by key": Memory(
        QUERY, UNIT, sigmoid(VALUE) * VALUE, -np.exp(BY_KEY), None, sigmoid(BY_KEY + 1)
    ),
    "RWKV-7 (Peng et al., 2025)": Memory(
        QUERY, KEY, VALUE, -np.exp(BY_KEY), removal_query=OTHER, removal_key=sigmoid(KEY) * OTHER
    ),
    "a removal by head": Memory(
        QUERY, KEY, VALUE, -np.exp(BY_HEAD), BETA, removal_query=UNIT, removal_key=OTHER / 2
    ),
    "Mamba-2 (Dao & Gu, 2024), keys for all": Memory(
        QUERY[:, :, :1], KEY[:, :, :1], VALUE, -np.exp(BY_HEAD), BETA
    ),
    "keys for all of two groups": Memory(
        QUERY, KEY, drawn(3, TIME, ROWS, 4, VALUES), -np.exp(drawn(4, TIME, ROWS, 4))
    ),
    "keys for all, queries for each": Memory(QUERY, UNIT[:, :, :1], VALUE, -np.exp(BY_KEY), BETA),
    "erasures at keys for all": Memory(
        QUERY[:, :, :1], UNIT[:, :, :1], VALUE, -np.exp(BY_HEAD), BETA, BETA / 2
    ),
    "removals at keys for all": Memory(
        QUERY, KEY[:, :, :1], VALUE, -np.exp(BY_KEY), BETA,
        removal_query=UNIT[:, :, :1], removal_key=OTHER / 2,
    ),
    "decays of zero, for all keys": Memory(
        QUERY, KEY, VALUE, np.where(MOST[..., 0], -np.exp(BY_HEAD), -np.inf)
    ),
    "decays of zero by key": Memory(QUERY, KEY, VALUE, np.where(MOST, -np.exp(BY_KEY), -np.inf)),
    # Where its two steps in the place of one divided by the rates.
    "a removal by key at rates of zero": Memory(
        QUERY, KEY, VALUE, np.where(MOST, -np.exp(BY_KEY), -np.inf),
        removal_query=OTHER, removal_key=sigmoid(KEY) * OTHER,
    ),
}  # fmt: skip


def memory_step(state, memory: Memory):
    """``S' = S A (I - (e k) k^T) + beta v k^T``, or ``S (A - r w^T)``, read by the query."""
    heads = state.shape[-3]
    key, beta, erase = memory.key, memory.beta, memory.erase
    decay = memory.log_decay if memory.log_decay.ndim == key.ndim else memory.log_decay[..., None]

    def each(vectors):  # of what heads share, one for each of them
        return jnp.repeat(vectors, heads // vectors.shape[-2], axis=-2)

    query, key, old = each(memory.query), each(key), state
    state = state * jnp.exp(decay)[..., None, :]
    if memory.removal_key is not None:
        gone = jnp.einsum("...vk,...k->...v", old, each(memory.removal_query))
        state = state - gone[..., None] * each(memory.removal_key)[..., None, :]
    if erase is not None:
        erase = erase if erase.ndim == key.ndim else erase[..., None]
        gone = jnp.einsum("...vk,...k->...v", state, erase * key)
        state = state - gone[..., None] * key[..., None, :]
    value = memory.value if beta is None else beta[..., None] * memory.value
    state = state + value[..., None] * key[..., None, :]
    return state, jnp.einsum("...vk,...k->...v", state, query)


# One published memory and the hardest one in both directions, and the others in one.
BOTH = "gated DeltaNet (Yang et al., 2025)", "a removal by key at rates of zero"
WAYS = [(name, bool(i % 2)) for i, name in enumerate(MEMORIES)]
WAYS += [(name, not reverse) for name, reverse in WAYS if name in BOTH]


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        *WAYS,
        *(
            pytest.param(name, not reverse, marks=pytest.mark.slow)
            for name, reverse in WAYS[: len(MEMORIES)]
            if name not in BOTH
        ),
    ],
)
def test_a_matrix_memory(name, reverse, assert_close):
    """Guards what is erased by key, which no cell of the laws has."""
    given = MEMORIES[name], drawn(8, ROWS, MEMORIES[name].value.shape[-2], VALUES, KEYS)
    methods = [rnnjax.Auto() if reverse else rnnjax.Parallel(5)]
    if "by key" in name or "remov" in name or "for all" in name:  # which no cell of the laws takes
        methods.append(rnnjax.Scan())

    def ours(method, given):
        marks = {"resets": resets(), "lengths": LENGTHS, "mask": MASK, "reverse": reverse}
        carry, ys = matrix_memory(given[0], MatrixCarry(given[1]), **marks, method=method)
        return carry.memory, ys

    def plain(given):
        return loop(memory_step, given[1], given[0], reverse)

    compared([functools.partial(ours, m) for m in methods], plain, given, assert_close)


@jax.jit
def both_ways(memory, *carry):
    """What the whole sequence gives by each method, and single steps by the default one."""
    ways = [matrix_memory(memory, *carry, method=m) for m in (rnnjax.Auto(), rnnjax.Scan())]

    def step(carry, at):
        carry, y = matrix_memory(jax.tree.map(lambda leaf: leaf[None], at), carry)
        return carry, y[0]

    return [*ways, jax.lax.scan(step, jax.tree.map(jnp.zeros_like, ways[0][0]), memory)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rate", [5e-4, 1e-3, 1.5e-3])
def test_a_memory_of_short_numbers_forgets_alike_at_once_and_step_by_step(rate, dtype):
    steps = 512
    query = np.ones((steps, 1, 4), jnp.dtype(dtype))
    key = np.zeros_like(query)
    key[0] = 0.5  # written once, then forgotten
    decay = np.full((steps, 1), -rate, jnp.dtype(dtype))
    expected = 2 * np.exp(np.float64(decay[0, 0]) * np.arange(steps))
    for carry, reads in both_ways(Memory(query, key, query, decay)):
        np.testing.assert_allclose(reads[:, 0, 0], expected, rtol=1e-4)
        assert carry.memory.dtype == reads.dtype == jnp.float32


@pytest.mark.parametrize("method", [rnnjax.Auto(), rnnjax.Scan()], ids=str)
@pytest.mark.parametrize(
    ("state", "decay"), [(int, -0.5), (bool, -0.5), ("bfloat16", -0.5), ("float32", 0.5j)]
)
def test_no_carry_cuts_a_state_off(state, decay, method):
    """An integer, a flag, fewer digits, or no imaginary part: the arrays decide too."""
    x = jnp.full((5, 1, 2), 0.3)
    memory = Memory(x, x, x, jnp.full((5, 1), decay))
    last = matrix_memory(memory, MatrixCarry(jnp.ones((1, 2, 2), state)), method=method)[0].memory
    whole = jnp.ones((1, 2, 2), jnp.result_type(decay))
    expected = matrix_memory(memory, MatrixCarry(whole), method=method)[0].memory
    assert last.dtype == expected.dtype
    np.testing.assert_allclose(last, expected, rtol=1e-12)


@pytest.mark.parametrize("by_key", [False, True], ids=["by head", "by key"])
def test_a_query_that_is_no_number_spoils_its_own_read(by_key):
    x = np.full((70, 1, 2), 0.3)
    memory = Memory(x, x, x, np.zeros((70, 1, 2) if by_key else (70, 1)))
    broken = x.copy()
    broken[10] = np.nan
    for _, reads in both_ways(memory._replace(query=broken)):
        assert np.flatnonzero(np.isnan(reads).any((1, 2))).tolist() == [10]


def test_programs_for_any_number_of_steps():
    time, rows = jax.export.symbolic_shape("time, rows")
    platforms = ("cpu", "cuda", "tpu")

    def exported(run, *args):
        return jax.export.export(jax.jit(run), platforms=platforms)(*args)

    def shaped(tree):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((time, rows, *leaf.shape[2:]), leaf.dtype), tree
        )

    memory, drives = MEMORIES["gated DeltaNet (Yang et al., 2025)"], FORMS["complex"][:2]
    for run, given in ((matrix_memory, (memory,)), (linear_recurrence, drives)):
        program = jax.export.deserialize(exported(run, *shaped(given)).serialize())
        for one, other in zip(program.call(*given), run(*given), strict=True):
            for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        with pytest.raises(
            InvalidInputError, match=r"Parallel\(\) needs a number of steps that is"
        ):
            exported(functools.partial(run, method=rnnjax.Parallel()), *shaped(given))


def test_a_memory_is_computed_in_the_precision_of_the_method():
    memory = MEMORIES["simple GLA (Yang et al., 2024)"]

    def text(**options):
        method = rnnjax.Parallel(**options)
        return str(jax.make_jaxpr(functools.partial(matrix_memory, method=method))(memory))

    # Sums of decays always have it: rounded to bfloat16, a rate would be another.
    assert text(precision="highest").count("HIGHEST") > text().count("HIGHEST") > 0


@pytest.mark.parametrize("form", ["numbers", "matrices", "memory"])
def test_rows_of_several_axes_are_alone_and_no_type_rounds(form, assert_close):
    """Marks of fewer axes; whole and short numbers beside a state of float64; under `jax.vmap`."""
    rows, more, resets = (TIME, 2, ROWS), (KEYS,) * (form == "matrices"), drawn(7, TIME) > 1
    marks = {"mask": drawn(6, TIME, 2) > -1, "lengths": np.array([TIME, 9])}
    if form == "memory":
        vectors = (drawn(i, *rows, HEADS, KEYS).astype("float32") / 4 for i in (1, 2))
        value = (3 * drawn(3, *rows, HEADS, VALUES)).astype("int8")
        arrays = Memory(*vectors, value, -np.abs(drawn(4, *rows, HEADS)).astype("float16"))
        start = drawn(5, 2, ROWS, HEADS, VALUES, KEYS)
    else:
        decay = (drawn(1, *rows, KEYS, *more, *more) / 4).astype("float16")
        arrays = decay, (3 * drawn(2, *rows, KEYS, *more)).astype("int8")
        start = drawn(5, 2, ROWS, KEYS, *more)

    def run(reverse, method, arrays, start, marks):
        given = {**marks, "resets": resets, "reverse": reverse, "method": method}
        if form != "memory":
            return linear_recurrence(*arrays, start, **given)
        carry, ys = matrix_memory(arrays, MatrixCarry(start), **given)
        return carry.memory, ys

    def pairs(arrays, start):
        exact = jax.tree.map(lambda leaf: leaf.astype("float64"), arrays)
        for way in ((False, rnnjax.Scan()), (True, rnnjax.Parallel())):
            one = functools.partial(run, *way)
            row = jax.vmap(one, (1, 0, None), (0, 1))
            each = jax.vmap(row, (1, 0, {"mask": 1, "lengths": 0}), (0, 1))
            yield one(arrays, start, marks), each(exact, start, marks)

    for found, expected in jax.jit(lambda *given: [*pairs(*given)])(arrays, start):
        assert_close(found, expected, 1e-12)


# ---- convolutions over the steps before


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("marked", ["lengths", "mask", "none"])
@pytest.mark.parametrize("taps", [1, 4])
def test_a_causal_convolution(taps, marked, reverse, assert_close):
    shapes = (TIME, ROWS, KEYS), (taps, KEYS), (KEYS,), (ROWS, taps - 1, KEYS)
    given = tuple(drawn(i, *shape) for i, shape in enumerate(shapes))
    marks = {"reverse": reverse}
    valid, again = np.ones((TIME, ROWS), bool), np.zeros((TIME, ROWS), bool)
    if marked != "none":
        marks["resets"] = again = resets()
    if marked == "lengths":
        marks["lengths"], valid = LENGTHS, np.arange(TIME)[:, None] < LENGTHS
    if marked == "mask":
        marks["mask"] = valid = np.random.default_rng(7).random((TIME, ROWS)) < 0.6

    def plain(given):
        xs, taps, bias, window = given

        def step(window, x):
            seen = jnp.concatenate([window, x[:, None]], axis=1)
            return seen[:, 1:], (taps * seen).sum(1) + bias

        return loop(step, window, xs, reverse, valid, again)

    def ours(given):
        return rnnjax.causal_convolution(*given, **marks)

    compared([ours], plain, given, assert_close)


def test_a_convolution_is_cut_anywhere_and_equals_the_cell(assert_close):
    xs = drawn(1, TIME, ROWS, KEYS)
    cell = rnnjax.TemporalConvCell(KEYS, taps=3)
    params = jax.device_get(begun(cell, KEYS)) | {"kernel": np.eye(KEYS)}
    taps, bias = params["taps"], params["taps_bias"] + 1
    params |= {"taps_bias": bias}
    whole = rnnjax.causal_convolution(xs, taps, bias)
    carry, first = rnnjax.causal_convolution(xs[:1], taps, bias)
    carry, rest = rnnjax.causal_convolution(xs[1:], taps, bias, carry)
    assert_close((carry, jnp.concatenate([first, rest])), whole, 1e-12)
    last, ys = rnnjax.unroll(cell, params, xs)
    assert_close((last.window, ys), whole, 1e-6)
    short = (jnp.bfloat16(x) for x in (xs, taps))
    assert rnnjax.causal_convolution(*short)[1].dtype == jnp.float32
    assert rnnjax.causal_convolution(xs[:0], taps, carry=carry)[0] is not None
    time, rows = jax.export.symbolic_shape("time, rows")
    shaped = [jax.ShapeDtypeStruct(s, "float64") for s in ((time, rows, KEYS), taps.shape)]
    program = jax.export.export(jax.jit(rnnjax.causal_convolution), platforms=("cpu", "tpu"))(
        *shaped
    )
    wide = jnp.asarray(taps, "float64")
    assert_close(program.call(xs, wide), rnnjax.causal_convolution(xs, wide), 1e-12)


def convolve(*shapes):
    return rnnjax.causal_convolution(*map(jnp.zeros, shapes))


REAL, MATRICES = FORMS["real"], FORMS["matrices"]
MEMORY = MEMORIES["DeltaNet (Schlag et al., 2021)"]
NO_MEMORY = r"must be a rnnjax\.Memory with query"
run = linear_recurrence


def remember(**changes):
    return matrix_memory(MEMORY._replace(**changes))


test_what_is_refused = refusals(
    [
        (lambda: convolve((4, 2, 3), (2, 4)), r"taps must be \(n, features\).* has \(2, 4\)"),
        (lambda: convolve((4, 2, 3), (0, 3)), "taps must be"),
        (lambda: convolve((4, 2, 3), (2, 3), (4,)), r"bias must have shape \(3,\)"),
        (lambda: convolve((4, 2, 3), (2, 3), (3,), (2, 2, 3)), r"carry must have .* \(2, 1, 3\)"),
        (lambda: run(REAL[0][:-1], REAL[1]), "decay must have the shape of drive.*check the"),
        (lambda: run(REAL[0][..., :0], REAL[1][..., :0]), "that there are features"),
        (lambda: run(MATRICES[0][..., :0, :0], MATRICES[1][..., :0]), "that there are features"),
        (lambda: run(*REAL[:2], REAL[2][:-1]), r"carry must have shape.*none is time"),
        (lambda: run(MATRICES[0] * 1j, MATRICES[1]), "must be real where decay is matrices"),
        (lambda: run(*REAL, method=rnnjax.Fused()), r"must be Auto\(\), Parallel\(\) or Scan\(\)"),
        (lambda: run(*REAL, method=type("Own", (rnnjax.Scan,), {})()), "method must be .* is Own"),
        (lambda: run(*REAL, method=rnnjax.Parallel(4)), "chunk must be None"),
        (lambda: remember(value=VALUE[:-1]), "value must have shape .* check its axes"),
        (lambda: remember(beta=BY_KEY), "beta must have shape"),
        (lambda: remember(log_beta=BY_HEAD), "no log_beta"),
        (lambda: remember(removal_key=KEY), "removal_query and removal_key both or neither"),
        (lambda: remember(removal_key=KEY, removal_query=KEY), "and not erase with them"),
        (lambda: remember(value=VALUE[:, :, :1]), "heads that divide those of the value"),
        (lambda: remember(key=None), NO_MEMORY),
        (lambda: matrix_memory(MEMORY._asdict()), NO_MEMORY),
        (lambda: matrix_memory(QUERY), NO_MEMORY),
    ]
)
