"""What the cells of the linear family and their initialisers do beyond the laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Fused, InvalidInputError, Parallel
from rnnjax.cells import Chrono, LegS, Ring
from rnnjax.cells.matrix import MatrixCarry, Memory, remembered
from rnnjax.engine.parallel.chunkwise import Matrices

KEY = jax.random.key(0)


def bias(cell):
    """As it begins, without what is drawn besides."""
    drawn = jax.jit(lambda: cell.init(KEY, 3)["bias"])()
    return np.reshape(drawn, (len(cell.gates), -1))


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        (rnnjax.LSTMCell, (-1, 1, 0, 0)),
        (rnnjax.LayerNormLSTMCell, (-1, 1, 0, 0)),
        (rnnjax.DiagonalLSTMCell, (-1, 1, 0, 0)),
        (rnnjax.GRUCell, (0, 1, 0)),
    ],
)
def test_chrono_draws_memories_of_all_lengths(kind, signs):
    drawn = bias(kind(4000, bias_init=Chrono(101), recurrent_kernel_init="zeros"))
    lengths = np.exp(drawn[signs.index(1)])
    assert 1 <= lengths.min() < 1.2
    assert 99.5 < lengths.max() <= 100.001
    assert abs(lengths.mean() - 50.5) < 2
    np.testing.assert_array_equal(drawn, np.outer(signs, drawn[signs.index(1)]))


def test_chrono_draws_one_bias_of_two_and_takes_signs():
    cell = rnnjax.GRUCell(4, bias_init=Chrono(10), recurrent_kernel_init="zeros")
    params = jax.device_get(jax.jit(cell.init, static_argnums=1)(KEY, 3))
    assert params["bias"].any()
    assert not params["recurrent_bias"].any()
    given = bias(rnnjax.MinGRUCell(4, bias_init=Chrono(np.float32(10), signs=(-1, 0))))
    assert (given[0] <= 0).all()
    assert not given[1].any()


def test_a_ring_is_drawn_evenly_and_normalised():
    draw = jax.jit(lambda ring: ring(KEY, (3, 10000), jnp.float32), static_argnums=0)
    nu, theta, log_gamma = np.asarray(draw(Ring(0.5, 0.9, max_phase=1.0)))
    size = np.exp(-np.exp(nu))
    assert 0.499 < size.min() < 0.51
    assert 0.89 < size.max() < 0.901
    assert abs(np.mean(size**2) - (0.25 + 0.81) / 2) < 0.01  # even in the area
    assert 0.97 < np.exp(theta).max() <= 1.0
    np.testing.assert_allclose(np.exp(log_gamma) ** 2, 1 - size**2, rtol=1e-4)
    assert np.isfinite(draw(Ring())).all()


def test_legs_has_the_eigenvalues_of_hippos_normal_part():
    n = np.arange(8)
    lower = np.sqrt(np.outer(2 * n + 1, 2 * n + 1))
    hippo = -np.tril(lower, -1) - np.diag(n + 1.0)
    low_rank = np.sqrt(n + 0.5)
    values = np.linalg.eigvals(hippo + np.outer(low_rank, low_rank))
    log_decay, turn = LegS()(KEY, (2, 4), jnp.float32)
    np.testing.assert_allclose(-np.exp(log_decay), -0.5, rtol=1e-6)
    np.testing.assert_allclose(turn, np.sort(values.imag)[4:], rtol=1e-5)
    np.testing.assert_array_equal(LegS(2)(KEY, (2, 8), jnp.float32)[1], np.tile(turn, 2))


def test_gates_that_are_shut_have_finite_gradients(random_like):
    """Where RG-LRU lets nothing in, the slope of its square root would be infinite."""
    cell = rnnjax.RGLRUCell(2)
    params = random_like(lambda: cell.init(KEY, 1), 1)
    params["bias"] = np.array([-200.0, -200, 0, 0, 0, 0], "float32")
    xs = np.ones((4, 1, 1), "float32")
    gradient = jax.jit(jax.grad(lambda p: rnnjax.unroll(cell, p, xs)[1].sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def changed_by(cell, leaf, random_like):
    """Which outputs (entries, outputs) change with each entry of a leaf of the carry."""
    params = random_like(lambda: cell.init(KEY, 2), 1)
    size = getattr(jax.eval_shape(cell.initial_carry), leaf).size
    carry = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.3, "float32"),
        jax.eval_shape(lambda: cell.initial_carry((size + 1,))),
    )
    getattr(carry, leaf).reshape(size + 1, size)[1:] += 0.1 * np.eye(size, dtype="float32")
    y = np.asarray(jax.jit(cell.step)(params, carry, np.ones((size + 1, 2), "float32"))[1])
    return np.abs(y[1:] - y[0]) > 1e-6


def test_s5_holds_its_inputs_over_steps_of_any_length():
    """In float32 as in float64, though the factor of a short step is nearly 1."""
    cell = rnnjax.S5Cell(2, state_size=8, skip_kernel_init="zeros")
    params = jax.device_get(jax.jit(cell.init, static_argnums=1)(KEY, 3))
    params["log_step"] = np.linspace(np.log(1e-6), 0, 8, dtype="float32")
    xs = np.ones((5, 2, 3), "float32")
    with jax.enable_x64(True):
        expected, _ = rnnjax.unroll(cell, *jax.tree.map(np.float64, (params, xs)))
        expected = jax.tree.map(np.asarray, expected)
    carry, _ = rnnjax.unroll(cell, params, xs)
    for one, other in zip(carry, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class OwnReadoutCell(rnnjax.MinGRUCell):
    """A user's: what its loop shows is turned, in a product with what came in."""

    coupling = rnnjax.Coupling.CONTRACTING
    output = None

    def parameters(self, input_size):
        out = rnnjax.Param((self.hidden_size, 1), "ones", rnnjax.Role.OUT)
        return super().parameters(input_size) | {"out": out}

    @property
    def output_size(self):
        return 1

    def update(self, params, x, carry):
        assert "out" not in params
        new = super().update(params, x, carry)
        return new, new.hidden

    def readout(self, params, emitted, xs):
        return emitted @ params["out"] + 1


def test_a_readout_is_made_of_what_the_loop_shows(random_like, assert_close):
    cell, plain = OwnReadoutCell(3), rnnjax.MinGRUCell(3)
    params, xs = random_like(lambda: (cell.init(KEY, 2), jnp.zeros((6, 2, 2))), 1)
    mask, noisy = np.ones((6, 2), bool), rnnjax.Regularized(cell, zoneout_hidden=0.5)
    mask[2, 0] = False

    def run(cell, params, method, **given):
        return rnnjax.unroll(cell, params, xs, method=method, **given)

    @jax.jit
    def every(params):
        own = {name: leaf for name, leaf in params.items() if name != "out"}
        hidden = run(plain, own, rnnjax.Scan(), mask=mask)[1]
        emitted = (hidden[..., None, :] @ params["out"])[..., 0, :] + 1
        methods = rnnjax.Scan(), Fused(), Fused(keep_every=4), rnnjax.Parallel()
        return (
            jnp.where(mask[..., None], emitted, 0),
            [run(cell, params, method, mask=mask)[1] for method in methods],
            [run(noisy, params, method, key=KEY) for method in methods[:2]],
            run(cell, params, Fused(product_dtype=jnp.bfloat16))[1],
        )

    expected, found, both, rounded = every(params)
    for ys in found:
        assert_close(ys, expected, 1e-6)
    assert_close(*both, 1e-6)
    assert rounded.dtype == jnp.float32


class FrontReadoutCell(OwnReadoutCell):
    """Its readout counts axes from the first of ``(batch, features)``."""

    coupling = rnnjax.Coupling.CONTRACTING

    def readout(self, params, emitted, xs):
        heads = emitted[:, ::-1].reshape(len(emitted), 3, -1) * xs.sum(1)[:, None, None]
        return jax.nn.softmax(heads, axis=1).reshape(len(emitted), -1) @ params["out"]


class FrontMemoryCell(rnnjax.Mamba2Cell):
    """Its memory and what it reads count axes from the first."""

    def memory(self, params, x):
        found = super().memory(params, x[:, ::-1])
        return found._replace(value=jax.nn.softmax(found.value, axis=1))

    def recall(self, params, x, read, stabilizer):
        return super().recall(params, x, jax.nn.softmax(read, axis=1), stabilizer)


@pytest.mark.parametrize(
    ("cell", "marks"),
    [(FrontReadoutCell(3), {"lengths": np.array([6, 4])}), (FrontMemoryCell(4, heads=2), {})],
)
def test_what_stands_outside_of_the_loop_is_given_the_axes_of_a_step(
    cell, marks, random_like, assert_close
):
    params, xs = random_like(lambda: (cell.init(KEY, 3), jnp.zeros((6, 2, 3))), 1)

    @functools.partial(jax.jit, static_argnums=2)
    def both(params, xs, method):
        def loss(params, xs):
            return jnp.sin(rnnjax.unroll(cell, params, xs, method=method, **marks)[1]).sum()

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    expected = both(params, xs, rnnjax.Scan())
    for method in (rnnjax.Auto(), Fused(keep_every=4), Parallel(3 if cell.has_memory else None)):
        assert_close(both(params, xs, method), expected, 1e-5)


def test_the_memory_of_an_slstm_is_made_by_itself_alone():
    """Its hidden state is all that others make or leave; tests/test_arguments.py has the errors."""
    cell = rnnjax.SLSTMCell(4, heads=2)
    assert rnnjax.Regularized(cell, zoneout_hidden=0.5).zoneout == {"hidden": 0.5}


def test_each_head_is_drawn_by_itself():
    draw = jax.jit(lambda key: rnnjax.SLSTMCell(12, heads=3).init(key, 2)["recurrent_kernel"])
    for block in np.split(np.asarray(draw(KEY)), 3, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-5)


def test_an_slstm_begins_with_what_its_first_input_lets_in():
    cell = rnnjax.SLSTMCell(3)
    params = jax.eval_shape(lambda: cell.init(KEY, 2))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "float32"), params)
    # So closed an input gate is nothing beside a forget gate of 1/2, unless nothing came before.
    params["bias"] = np.repeat(np.array([-200.0, 0.0, 0.7, 0.0], "float32"), 3)
    for method in (rnnjax.Scan(), Fused()):
        carry, ys = rnnjax.unroll(cell, params, np.ones((4, 2, 2), "float32"), method=method)
        np.testing.assert_allclose(ys, np.full((4, 2, 3), np.tanh(0.7) / 2), rtol=1e-6)
        assert (np.asarray(carry.normalizer) > 0).all()


class KeysDecayCell(rnnjax.Mamba2Cell):
    """Each key decays by itself."""

    def memory(self, params, x):
        found = super().memory(params, x)
        return found._replace(log_decay=found.log_decay[..., None] * jax.nn.sigmoid(found.key))


MEMORIES = {
    "by-key": KeysDecayCell(4, heads=2, state_size=2),
    "mlstm": rnnjax.MLSTMCell(4, heads=2),
    "mamba2": rnnjax.Mamba2Cell(4, heads=2, state_size=3),
    "deltanet": rnnjax.GatedDeltaNetCell(4, heads=2),
}


@pytest.mark.parametrize("name", [*MEMORIES, "slstm"])
def test_heads_do_not_see_each_other(name, random_like):
    cell = MEMORIES.get(name, rnnjax.SLSTMCell(4, heads=2))
    changed = changed_by(cell, "hidden" if name == "slstm" else "memory", random_like)
    seen = changed.reshape(2, -1, 2, 2).any((1, 3))
    np.testing.assert_array_equal(seen, np.eye(2, dtype=bool))


@pytest.mark.parametrize("exponent", [-300.0, 0.0, 300.0])
@pytest.mark.parametrize("name", ["slstm", "mlstm", "mlstm in chunks"])
def test_exponential_gates_neither_vanish_nor_overflow(name, exponent, random_like):
    """The first output of an sLSTM is o z, however little or much its gate lets in.

    That of an mLSTM is its value along the key, or nothing of it.
    """
    if name == "slstm":
        cell, method = rnnjax.SLSTMCell(2, exponential_forget=True), rnnjax.Auto()
        bias = np.repeat(np.array([exponent, exponent, 0.5, 0.5], "float32"), 2)
        expected = np.tanh(0.5) / (1 + np.exp(-0.5))
    else:
        cell = rnnjax.MLSTMCell(2, exponential_forget=True)
        method = Parallel(4) if "chunks" in name else rnnjax.Scan()
        bias = np.array([1.0] * 6 + [0.0] * 2 + [exponent] * 2, "float32")
        expected = 0.0 if exponent < 0 else 0.5  # of which k q is more than 1
    mask = np.arange(9)[:, None] >= 2  # nothing is written while gates are as large
    params = random_like(lambda: cell.init(KEY, 1), 1) | {"bias": bias}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        ys = rnnjax.unroll(cell, params, jnp.zeros((9, 1, 1)), mask=mask, method=method)[1]
        return ys.sum(), ys

    slopes, ys = jax.device_get(gradient(params))
    np.testing.assert_allclose(ys[2], np.full((1, 2), expected), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((slopes, ys)))


def test_a_memory_has_the_size_that_its_cell_says():
    class WrongCell(rnnjax.Mamba2Cell):
        carry_shapes = property(lambda self: {"memory": (2, 3, 1)})

    wrong = WrongCell(4, heads=2, state_size=2)

    def run(method):
        return rnnjax.unroll(wrong, wrong.init(KEY, 2), jnp.ones((3, 1, 2)), method=method)

    for method in (rnnjax.Scan(), rnnjax.Parallel()):
        with pytest.raises(InvalidInputError, match=r"WrongCell\(4"):
            jax.eval_shape(functools.partial(run, method))


def test_a_chunk_says_how_it_runs():
    def text(cell):
        params, xs = jax.eval_shape(lambda: (cell.init(KEY, 2), jnp.ones((130, 2, 2))))
        return str(rnnjax.explain(cell, params, xs, method=rnnjax.Parallel()))

    assert "64 steps at a time as those of matrices" in text(MEMORIES["deltanet"])
    assert "3 memories wait for the one before" in text(MEMORIES["deltanet"])
    assert "16 steps at a time" in text(MEMORIES["by-key"])


@pytest.mark.parametrize("length", [64, 40, 5])
def test_a_delta_rule_over_chunks_is_as_exact_as_its_steps(length):
    """At beta 2, where powers of the triangular matrix of a chunk would cancel."""
    rng, shape = np.random.default_rng(0), (64, 1, 2, 32)
    query, key = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, *shape))
    )
    value, weights = rng.normal(size=(2, *shape))
    log_decay, beta = -0.01 * rng.random(shape[:-1]), 2 - 0.1 * rng.random(shape[:-1])
    state = rng.normal(size=(1, 2, 32, 32))

    def reads_and_gradients(run, *given):
        *given, weights = given

        def loss(query, key, value, log_decay, beta, state):
            memory = Memory(query, key, value, log_decay, beta=beta, erase=beta)
            reads = run(memory, MatrixCarry(state))
            return (reads * weights).sum(), reads

        return jax.grad(loss, range(6), has_aux=True)(*given)

    def by_steps(memory, carry):
        return jax.lax.scan(lambda carry, at: remembered(at, carry)[:2], carry, memory)[1]

    def by_chunks(memory, carry):
        return Matrices(length, 2).run(memory, carry, None, None, None)[0]

    given = jax.tree.map(np.float32, (query, key, value, log_decay, beta, state, weights))
    run = jax.jit(reads_and_gradients, static_argnums=0)
    actual = run(by_chunks, *given)
    with jax.enable_x64(True):
        expected = jax.device_get(run(by_steps, *jax.tree.map(np.float64, given)))
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert np.abs(one - other).max() <= 2e-6 * np.abs(other).max()


def test_a_delta_rule_over_chunks_calls_no_solver():
    """LAPACK's, of a batch, can wait for its own threads for good."""
    cell = MEMORIES["deltanet"]
    params, xs = jax.eval_shape(lambda: (cell.init(KEY, 2), jnp.ones((70, 2, 2))))
    loss = jax.jit(jax.grad(lambda p, xs: rnnjax.unroll(cell, p, xs)[1].sum()))
    text = loss.lower(params, xs).as_text()
    assert "custom_call" not in text
    assert "triangular_solve" not in text


@pytest.mark.parametrize("name", ["mlstm", "by-key", "deltanet"])
def test_a_nan_reaches_no_earlier_step_of_its_chunk(name, random_like):
    """Nor any row but its own."""
    cell = MEMORIES[name]
    params, xs = random_like(lambda: (cell.init(KEY, 3), jnp.zeros((8, 2, 3))), 1)
    run = jax.jit(lambda xs: rnnjax.unroll(cell, params, xs, method=Parallel(chunk=8))[1])
    ys, spoilt = run(xs), run(np.where(np.arange(8)[:, None, None] == 5, np.nan, xs)[:, :1])
    np.testing.assert_allclose(spoilt[:5, 0], ys[:5, 0], rtol=1e-5, atol=1e-6)
    assert np.isnan(spoilt[5:]).any(axis=-1).all()
