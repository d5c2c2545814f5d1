"""What the cells of the linear family and their initialisers do beyond the laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import begun

import rnnjax
from rnnjax import Fused, InvalidInputError, MatrixCarry, Memory, Parallel, Param, Regularized, Role
from rnnjax.cells import Chrono, LegS, Ring

KEY = jax.random.key(0)


CHRONO = {"bias_init": Chrono(101), "recurrent_kernel_init": "zeros"}


@pytest.mark.parametrize(
    ("cell", "signs"),
    [
        (rnnjax.LSTMCell(4000, **CHRONO), (-1, 1, 0, 0)),
        (rnnjax.LayerNormLSTMCell(4000, **CHRONO), (-1, 1, 0, 0)),
        (rnnjax.DiagonalLSTMCell(4000, **CHRONO), (-1, 1, 0, 0)),
        (rnnjax.GRUCell(4000, **CHRONO), (0, 1, 0)),
        (rnnjax.MinGRUCell(4000, bias_init=Chrono(np.float32(101), signs=(0, 1))), (0, 1)),
    ],
    ids=range(5),
)
def test_chrono_draws_memories_of_all_lengths(cell, signs):
    names = ("bias", "recurrent_bias")
    drawn, *other = jax.jit(lambda: [p for n, p in cell.init(KEY, 3).items() if n in names])()
    drawn = np.reshape(drawn, (len(signs), -1))
    lengths = np.exp(drawn[signs.index(1)])
    assert 1 <= lengths.min() < 1.2
    assert 99.5 < lengths.max() <= 100.001
    assert abs(lengths.mean() - 50.5) < 2
    np.testing.assert_array_equal(drawn, np.outer(signs, drawn[signs.index(1)]))
    assert not np.any(other)  # of two biases it draws one


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
    """A user's cell whose readout, after the loop, is a product with a bias."""

    role: Role = Role.OUT  # of the bias
    coupling = rnnjax.Coupling.CONTRACTING
    output = None
    output_size = 1

    def parameters(self, input_size):
        out = {"out": Param((self.hidden_size, 1), "ones", Role.OUT)}
        return super().parameters(input_size) | out | {"shift": Param((1,), "ones", self.role)}

    def update(self, params, x, carry):
        assert "out" not in params
        new = super().update(params, x, carry)
        return new, new.hidden

    def readout(self, params, emitted, xs):
        return emitted @ params["out"] + params["shift"]


def test_a_readout_is_made_of_what_the_loop_shows(random_like, equal_to_scan, assert_close):
    cell, mask = OwnReadoutCell(3), np.ones((6, 2), bool)
    mask[2, 0] = False
    methods = [Fused(), Fused(keep_every=4), Parallel()]
    equal_to_scan(cell, methods, (2,), steps=6, mask=mask)
    for noisy in (cell, rnnjax.SLSTMCell(4, heads=2)):
        equal_to_scan(Regularized(noisy, zoneout_hidden=0.5), methods[:1], (2,), key=KEY)
    params, xs = random_like(lambda: (cell.init(KEY, 2), jnp.zeros((6, 2, 2))), 1)
    own = {name: leaf for name, leaf in params.items() if name not in ("out", "shift")}
    hidden = rnnjax.unroll(rnnjax.MinGRUCell(3), own, xs, mask=mask)[1]
    expected = np.where(mask[..., None], hidden @ params["out"] + params["shift"], 0)
    assert_close(rnnjax.unroll(cell, params, xs, mask=mask)[1], expected, 1e-6)
    rounded = rnnjax.unroll(cell, params, xs, method=Fused(product_dtype=jnp.bfloat16))[1]
    assert rounded.dtype == jnp.float32
    with pytest.raises(InvalidInputError, match=r"is named 'shift'; .*\.OUT alone, \['out'\]"):
        rnnjax.unroll(OwnReadoutCell(3, role=Role.UNIT), params, xs)


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
def test_what_stands_outside_of_the_loop_is_given_the_axes_of_a_step(cell, marks, equal_to_scan):
    methods = [rnnjax.Auto(), Fused(keep_every=4), Parallel(3 if cell.has_memory else None)]
    equal_to_scan(cell, methods, (2,), steps=6, features=3, **marks)


def test_each_head_of_an_slstm_is_drawn_by_itself():
    """As an orthogonal one of its own; that they are apart is in the reference of the cell."""
    cell = rnnjax.SLSTMCell(4, heads=2)
    blocks = np.split(begun(cell, 2)["recurrent_kernel"], 2, axis=1)
    assert not np.allclose(*blocks)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-5)


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


@pytest.mark.parametrize("exponent", [-300.0, 0.0, 300.0])
@pytest.mark.parametrize("name", ["slstm", "slstm, sigmoid", "mlstm", "mlstm in chunks"])
def test_exponential_gates_neither_vanish_nor_overflow(name, exponent, random_like):
    """The first output of an sLSTM is o z, however little or much its gate lets in.

    That of an mLSTM is its value along the key, or nothing of it.
    """
    if "slstm" in name:  # beside a forget gate of 1/2 too, before which nothing came
        forget = exponent if name == "slstm" else 0.0
        cell, method = rnnjax.SLSTMCell(2, exponential_forget=name == "slstm"), rnnjax.Auto()
        bias = np.repeat(np.array([exponent, forget, 0.5, 0.5], "float32"), 2)
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


@pytest.mark.parametrize("length", [64, 40, 5])
def test_a_delta_rule_over_chunks_is_as_exact_as_its_steps(length):
    """At beta 2, where powers of the triangular matrix of a chunk would cancel."""
    rng, shape = np.random.default_rng(0), (64, 1, 2, 32)
    query, key = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, *shape))
    )
    value, weights = rng.normal(size=(2, *shape))
    log_decay, beta = -0.01 * rng.random(shape[:-1]), 2 - 0.1 * rng.random(shape[:-1])
    memory = Memory(query, key, value, log_decay, beta=beta, erase=beta)
    given = memory, MatrixCarry(rng.normal(size=(1, 2, 32, 32))), weights

    @functools.partial(jax.jit, static_argnums=0)
    def reads_and_gradients(method, memory, carry, weights):
        def loss(memory, carry):
            reads = rnnjax.matrix_memory(memory, carry, method=method)[1]
            return (reads * weights).sum(), reads

        return jax.grad(loss, (0, 1), has_aux=True)(memory, carry)

    actual = reads_and_gradients(Parallel(length), *jax.tree.map(np.float32, given))
    with jax.enable_x64(True):
        expected = jax.device_get(reads_and_gradients(rnnjax.Scan(), *given))
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
