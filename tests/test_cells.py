"""Parameters as they begin, types, and cells as values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import blank

import rnnjax
from rnnjax import GRUCell, LSTMCell, SimpleRNNCell, Stack
from rnnjax.cells.activations import INITIALIZERS
from rnnjax.cells.initializers import log_steps, softplus_steps

KEY = jax.random.key(0)
KINDS = [SimpleRNNCell, LSTMCell, GRUCell]


@pytest.mark.parametrize("kind", KINDS)
def test_initial_parameters_have_the_defaults_of_keras(kind: Any) -> None:
    init = jax.jit(lambda key: kind(50).init(key, 30))
    params, other = jax.device_get((init(KEY), init(jax.random.key(1))))
    width = len(kind(50).gates) * 50
    expected = {"kernel": (30, width), "recurrent_kernel": (50, width), "bias": (width,)}
    expected |= {"recurrent_bias": (width,)} if kind is GRUCell else {}
    assert {name: leaf.shape for name, leaf in params.items()} == expected
    assert set(blank(kind(50, use_bias=False), 3)) == {"kernel", "recurrent_kernel"}
    limit = np.sqrt(6 / (30 + width))  # Glorot's, of all gates in one array, as in Keras
    assert 0.98 * limit < np.abs(params["kernel"]).max() <= limit
    assert abs(float(params["kernel"].std()) - limit / np.sqrt(3)) < 0.05 * limit
    recurrent = params["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(50), atol=1e-5)
    bias = np.zeros((len(kind(50).gates), 50))
    if kind is LSTMCell:
        bias[1] = 1  # the forget gate's
    np.testing.assert_array_equal(params["bias"], bias.ravel())
    np.testing.assert_array_equal(params.get("recurrent_bias", 0), 0)
    assert not np.array_equal(other["kernel"], params["kernel"])


def test_options_of_biases() -> None:
    normal = jax.nn.initializers.normal()
    assert set(blank(GRUCell(4, reset_after=False), 3)) == {"kernel", "recurrent_kernel", "bias"}
    assert not LSTMCell(4, unit_forget_bias=False).init(KEY, 3)["bias"].any()
    drawn = LSTMCell(4, bias_init=normal).init(KEY, 3)["bias"]
    np.testing.assert_array_equal(drawn[4:8], np.ones(4))
    assert len(np.unique(drawn)) == 13
    both = GRUCell(4, bias_init=normal).init(KEY, 3)
    assert not np.intersect1d(both["bias"], both["recurrent_bias"]).size


@pytest.mark.parametrize("kind", KINDS)
def test_initialisers_by_name_and_as_functions(kind: Any) -> None:
    def twos(key: Any, shape: Any, dtype: Any) -> Any:
        return jnp.full(shape, 2, dtype)

    params = kind(4, kernel_init=twos, recurrent_kernel_init="ones").init(KEY, 3)
    assert (params["kernel"] == 2).all()
    assert (params["recurrent_kernel"] == 1).all()
    for name in INITIALIZERS:
        assert blank(kind(2, kernel_init=name), 3)["kernel"].shape == (3, 2 * len(kind(2).gates))


def test_biases_are_there_by_default() -> None:
    cells = (kind for kind in vars(rnnjax.cells).values() if isinstance(kind, type))
    given = {kind: kind.use_bias for kind in cells if hasattr(kind, "use_bias")}
    assert len(given) > 15
    assert all(given.values()), given


def test_windows_are_of_3_by_3_by_default() -> None:
    assert blank(rnnjax.ConvLSTMCell(2), 3)["kernel"].shape == (3, 3, 3, 8)


def test_step_sizes_begin_between_0_001_and_0_1() -> None:
    steps = np.exp(log_steps(KEY, (1000,), np.float32))
    assert 0.001 <= steps.min() < 0.00102 < 0.098 < steps.max() <= 0.1
    behind_softplus = softplus_steps(KEY, (1000,), np.float32)
    np.testing.assert_allclose(jax.nn.softplus(behind_softplus), steps, rtol=1e-5)


def test_a_stack_draws_each_layer_from_its_own_key() -> None:
    stack = Stack([LSTMCell(4), LSTMCell(4)])
    first, second = jax.jit(lambda: stack.init(KEY, 4))()
    assert not np.array_equal(first["kernel"], second["kernel"])


@pytest.mark.parametrize("kind", KINDS)
def test_initial_carry(kind: Any, assert_close: Any) -> None:
    zeros = np.zeros((2, 3, 4), np.float32)
    leaves = [zeros] * (2 if kind is LSTMCell else 1)
    assert_close(kind(4).initial_carry((2, 3)), kind.carry(*leaves), 0)

    def dtypes(cell: Any, dtype: Any = None) -> Any:
        params, carry = blank(cell, 3), jax.eval_shape(lambda: cell.initial_carry(dtype=dtype))
        return {str(leaf.dtype) for leaf in params.values()}, str(carry.hidden.dtype)

    assert dtypes(kind(4), jnp.bfloat16) == ({"float32"}, "bfloat16")
    assert dtypes(kind(4, param_dtype=jnp.bfloat16)) == ({"bfloat16"}, "float32")
    with jax.enable_x64(True):
        assert dtypes(kind(4, param_dtype=jnp.float64)) == ({"float64"}, "float64")


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_values(kind: Any) -> None:
    options = ({}, {"activation": "relu"}, {"use_bias": False}, {"dtype": jnp.bfloat16})
    several = [kind(4, **option) for option in options] + [kind(5)]
    assert len({*several, *(other(4) for other in KINDS)}) == 7
    spellings = {kind(4, dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16, np.dtype("bfloat16"))}
    assert len(spellings) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind(4).hidden_size = 5
    assert len({Stack([kind(4)]), Stack((kind(4),)), Stack(iter([kind(4)]))}) == 1


def with_initializers(scale: float) -> list[rnnjax.Cell]:
    """A cell, and combinations of it, with initialisers that are built anew at each call."""
    cell = LSTMCell(
        4,
        kernel_init=jax.nn.initializers.normal(scale),
        bias_init=lambda key, shape, dtype: jnp.full(shape, scale, dtype),
    )
    return [
        cell,
        Stack([cell, rnnjax.LearnedCarry(cell)]),
        Stack([rnnjax.Bidirectional(cell, rnnjax.Regularized(cell, zoneout_cell=0.1))]),
    ]


@pytest.mark.parametrize("which", range(3))
def test_a_cell_built_again_with_initialisers_built_again_compiles_nothing(
    which: int, compilations: list[str]
) -> None:
    counts = [len(compilations)]
    for scale in (0.1, 0.1, 0.2):
        cell, xs = with_initializers(scale)[which], np.zeros((6, 2, 3), np.float32)
        carry, _ = rnnjax.unroll(cell, blank(cell, 3), xs)
        rnnjax.unroll(cell, blank(cell, 3), xs, carry)
        counts.append(len(compilations))
    assert counts[0] < counts[1] == counts[-1]


def test_init_under_jit_draws_by_the_initialisers_of_its_cell() -> None:
    """They are no part of a program that runs the cell, but they are of the one that draws it."""
    init = jax.jit(lambda cell, key: cell.init(key, 3), static_argnums=0)
    for scale in (0.5, 2.0):
        cell = with_initializers(scale)[0]
        rnnjax.unroll(cell, blank(cell, 3), np.zeros((2, 1, 3), "f"))
        params = init(cell, KEY)
        assert float(params["bias"][0]) == scale
        assert 0.5 * scale < np.asarray(params["kernel"]).std() < 1.5 * scale


def test_a_known_activation_is_its_name_however_it_is_given() -> None:
    by_function = LSTMCell(4, activation=jnp.tanh, recurrent_activation=jax.nn.sigmoid)
    assert by_function == LSTMCell(4, activation="tanh", recurrent_activation="sigmoid")
    assert by_function.activation == "tanh"
    assert LSTMCell(4, activation=lambda x: x) != by_function
