"""Options, defaults and errors of cells, stacks and unroll."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell

import rnnjax
from rnnjax import Fused, GRUCell, InvalidInputError, LSTMCell, Scan, SimpleRNNCell, Stack
from rnnjax.cells.activations import ACTIVATIONS, INITIALIZERS, activate_gates, gate_slopes

KEY = jax.random.key(0)
KINDS = [SimpleRNNCell, LSTMCell, GRUCell]
GATES = {SimpleRNNCell: 1, LSTMCell: 4, GRUCell: 3}
BATCH, TIME, FEATURES, HIDDEN = 3, 6, 2, 5


def shapes(cell: rnnjax.Cell, size: int) -> Any:
    """Return shapes of its parameters, which are not drawn: that would compile."""
    return jax.eval_shape(lambda: cell.init(KEY, size))


def blank(cell: rnnjax.Cell, size: int) -> Any:
    """Parameters, all zero."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(cell, size))


def test_a_sequence_of_no_steps_returns_the_carry(random_like: Any, assert_close: Any) -> None:
    cell = LSTMCell(HIDDEN)
    given_carry = random_like(lambda: cell.initial_carry((BATCH,)), 0)
    for method in (Scan(), Fused()):
        carry, ys = rnnjax.unroll(
            cell, blank(cell, 2), np.zeros((0, BATCH, 2), "f"), given_carry, method=method
        )
        assert ys.shape == (0, BATCH, HIDDEN)
        assert_close(carry, given_carry, 0)


# Parameters as they begin.


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_names(kind: Any) -> None:
    width = GATES[kind] * 50
    params = shapes(kind(50), 3)
    expected = {"kernel": (3, width), "recurrent_kernel": (50, width), "bias": (width,)}
    if kind is GRUCell:
        expected["recurrent_bias"] = (width,)
    assert {name: array.shape for name, array in params.items()} == expected
    assert set(shapes(kind(50, use_bias=False), 3)) == {"kernel", "recurrent_kernel"}
    assert kind(50).output_size == 50
    assert {array.dtype for array in params.values()} == {jnp.dtype(jnp.float32)}


def test_reset_before_has_one_bias() -> None:
    assert set(shapes(GRUCell(4, reset_after=False), 3)) == {
        "kernel",
        "recurrent_kernel",
        "bias",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_initial_parameters_have_the_defaults_of_keras(kind: Any) -> None:
    init = jax.jit(lambda key: kind(50).init(key, 30))
    params, other = jax.device_get((init(KEY), init(jax.random.key(1))))
    width = GATES[kind] * 50
    limit = np.sqrt(6 / (30 + width))  # Glorot's, of all gates in one array, as in Keras
    assert 0.98 * limit < np.abs(params["kernel"]).max() <= limit
    assert abs(float(params["kernel"].std()) - limit / np.sqrt(3)) < 0.05 * limit
    recurrent = params["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(50), atol=1e-5)
    bias = np.zeros((GATES[kind], 50))
    if kind is LSTMCell:
        bias[1] = 1  # the forget gate's
    np.testing.assert_array_equal(params["bias"], bias.ravel())
    np.testing.assert_array_equal(params.get("recurrent_bias", 0), 0)
    assert not np.array_equal(other["kernel"], params["kernel"])


def test_unit_forget_bias_can_be_left_out() -> None:
    bias = LSTMCell(4, unit_forget_bias=False).init(KEY, 3)["bias"]
    np.testing.assert_array_equal(bias, np.zeros(16))
    drawn = LSTMCell(4, bias_init=jax.nn.initializers.normal()).init(KEY, 3)["bias"]
    np.testing.assert_array_equal(drawn[4:8], np.ones(4))
    assert len(np.unique(drawn)) == 13


def test_both_biases_of_the_gru_are_drawn_apart() -> None:
    params = GRUCell(4, bias_init=jax.nn.initializers.normal()).init(KEY, 3)
    assert not np.intersect1d(params["bias"], params["recurrent_bias"]).size


@pytest.mark.parametrize("kind", KINDS)
def test_initialisers_by_name_and_as_functions(kind: Any) -> None:
    params = kind(4, kernel_init="ones", recurrent_kernel_init="zeros").init(KEY, 3)
    assert np.all(np.asarray(params["kernel"]) == 1)
    assert np.all(np.asarray(params["recurrent_kernel"]) == 0)
    twos = kind(4, kernel_init=lambda key, shape, dtype: jnp.full(shape, 2, dtype)).init(KEY, 3)
    assert np.all(np.asarray(twos["kernel"]) == 2)


def test_a_stack_draws_each_layer_from_its_own_key() -> None:
    stack = Stack([LSTMCell(4), LSTMCell(4), GRUCell(3)])
    first, second, third = jax.jit(lambda: stack.init(KEY, 4))()
    assert not np.array_equal(first["kernel"], second["kernel"])
    assert third["kernel"].shape == (4, 9)
    assert stack.output_size == 3
    carry = jax.eval_shape(lambda: stack.initial_carry((2, 1)))
    assert [leaf.shape for leaf in jax.tree.leaves(carry)] == [(2, 1, 4)] * 4 + [(2, 1, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_initial_carry(kind: Any) -> None:
    carry = kind(4).initial_carry((2, 3))
    assert type(carry).__name__ == f"{kind.__name__.removesuffix('Cell')}Carry"
    assert len(carry) == (2 if kind is LSTMCell else 1)
    for leaf in carry:
        assert leaf.shape == (2, 3, 4)
        assert leaf.dtype == jnp.float32
        assert not np.asarray(leaf).any()

    def dtype(cell: Any, dtype: Any = None) -> Any:
        return jax.eval_shape(lambda: cell.initial_carry(dtype=dtype)).hidden.dtype

    assert jax.eval_shape(kind(4).initial_carry).hidden.shape == (4,)
    assert dtype(kind(4), jnp.bfloat16) == jnp.bfloat16
    assert dtype(kind(4, param_dtype=jnp.bfloat16)) == jnp.float32
    with jax.enable_x64(True):
        double = kind(4, param_dtype=jnp.float64)
        assert (shapes(double, 3)["bias"].dtype, dtype(double)) == (jnp.float64, jnp.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_in_bfloat16(kind: Any) -> None:
    params = shapes(kind(4, param_dtype=jnp.bfloat16), 3)
    assert {array.dtype for array in params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_dtype_is_that_of_outputs_and_not_of_the_carry() -> None:
    cell = LSTMCell(4, dtype=jnp.bfloat16)
    params, xs = shapes(cell, 3), np.ones((5, 2, 3), np.float32)
    carry, ys = jax.eval_shape(lambda params: rnnjax.unroll(cell, params, xs), params)
    assert (carry.hidden.dtype, carry.cell.dtype, ys.dtype) == ("float32", "float32", "bfloat16")
    carry, y = jax.eval_shape(cell.step, params, carry, xs[0])
    assert (carry.hidden.dtype, y.dtype) == ("float32", "bfloat16")


# A rebuilt cell is the same cell.


@pytest.mark.parametrize("kind", KINDS)
def test_equal_cells_hash_alike(kind: Any) -> None:
    assert kind(4) == kind(4)
    assert hash(kind(4)) == hash(kind(4))
    for option in ({"activation": "relu"}, {"use_bias": False}, {"dtype": jnp.bfloat16}):
        assert kind(4, **option) == kind(4, **option)
        assert kind(4, **option) != kind(4)
    assert kind(4) != kind(5)
    spellings = {kind(4, dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16, np.dtype("bfloat16"))}
    assert len(spellings) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind(4).hidden_size = 5
    assert len({Stack([kind(4)]), Stack((kind(4),)), Stack(iter([kind(4)]))}) == 1


class Traced(LSTMCell):
    """That says when it is traced."""

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        TRACES.append(self)
        return super().update(params, x, carry)


TRACES: list[Any] = []


def with_initializers(scale: float) -> list[rnnjax.Cell]:
    """A cell, and combinations of it, with initialisers that are built anew at each call."""
    cell = Traced(
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
def test_a_cell_built_again_with_initialisers_built_again_compiles_nothing(which: int) -> None:
    def run(scale: float) -> None:
        cell = with_initializers(scale)[which]
        params = blank(cell, 3)
        carry = rnnjax.unroll(cell, params, np.zeros((5, 2, 3), np.float32))[0]
        rnnjax.unroll(cell, params, np.zeros((5, 2, 3), np.float32), carry)

    run(0.1)
    TRACES.clear()
    for scale in (0.1, 0.2):
        run(scale)
    assert not TRACES


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
    by_name = LSTMCell(4, activation="tanh", recurrent_activation="sigmoid")
    by_function = LSTMCell(4, activation=jnp.tanh, recurrent_activation=jax.nn.sigmoid)
    assert by_function == by_name
    assert by_function.activation == "tanh"
    assert LSTMCell(4, activation=lambda x: x) != by_name


def test_cells_of_different_kinds_differ() -> None:
    assert len({kind(4) for kind in KINDS}) == 3


# Activations.


def test_activations_by_name() -> None:
    @jax.jit
    def each() -> Any:
        x = jnp.array([0.3])
        cells = {
            name: SimpleRNNCell(3, activation=name, kernel_init="ones", use_bias=False)
            for name in ACTIVATIONS
        }
        params = cells["tanh"].init(KEY, 1)
        return {
            name: (cell.step(params, cell.initial_carry(), x)[1], ACTIVATIONS[name](x))
            for name, cell in cells.items()
        }

    for name, (y, expected) in each().items():
        np.testing.assert_allclose(y, np.full(3, expected), rtol=1e-6, err_msg=name)


def test_the_two_hard_sigmoids() -> None:
    x, names = np.array([-2.9, -2.0, 0.0, 2.0, 2.9], "f"), ("hard_sigmoid", "legacy_hard_sigmoid")
    hard, legacy = jax.jit(lambda x: [ACTIVATIONS[name](x) for name in names])(x)
    np.testing.assert_allclose(hard, x / 6 + 0.5, atol=1e-6)
    np.testing.assert_allclose(legacy, [0, 0.1, 0.5, 0.9, 1], atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_gate_slopes_are_the_derivatives() -> None:
    activations = ("sigmoid", "tanh", "sigmoid")
    x = jnp.linspace(-3.0, 3.0, 12)
    values, slopes = jax.jvp(lambda x: activate_gates(x, activations), (x,), (jnp.ones(12),))
    gates = 1 / (1 + np.exp(-x))
    candidate = np.tanh(x)
    expected = np.where(np.arange(12) // 4 == 1, candidate, gates)
    np.testing.assert_allclose(values, expected, atol=1e-14)
    # Not JAX's derivative, whose rule this is.
    expected = np.where(np.arange(12) // 4 == 1, 1 - candidate**2, gates * (1 - gates))
    np.testing.assert_allclose(slopes, expected, atol=1e-14)
    np.testing.assert_allclose(gate_slopes(values, activations), slopes, atol=1e-14)


# Errors say what was expected, what came, and what to do.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, -1, 2.0, "4", None])
def test_a_bad_hidden_size(kind: Any, size: Any) -> None:
    with pytest.raises(InvalidInputError, match="hidden_size must be a positive integer, but is"):
        kind(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanhh"}, "unknown activation 'tanhh'; give one of tanh, sigmoid"),
        ({"recurrent_activation": "sig"}, "unknown activation 'sig'"),
        ({"activation": None}, "unknown activation None"),
        ({"kernel_init": "glorot"}, "unknown initializer 'glorot'; give one of glorot_uniform"),
        ({"recurrent_kernel_init": 3}, "unknown initializer 3"),
        ({"bias_init": "one"}, "unknown initializer 'one'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    for kind in (LSTMCell, GRUCell):
        with pytest.raises(InvalidInputError, match=message):
            kind(4, **options)


def constant(shape: tuple[int, ...]) -> Any:
    return lambda key, _, dtype: jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"bias_init": name}, r"^bias_init of .*\(4\) must be .* draws bias \(\d+,\), but")
            for name in ("glorot_uniform", "he_normal", "orthogonal")
        ),
        ({"bias_init": jax.nn.initializers.orthogonal()}, "^bias_init .* 'unit_uniform' draw any"),
        ({"kernel_init": constant((2,))}, r"^kernel_init .*, but it returned float32 \(2,\)"),
        ({"kernel_init": lambda key, shape, dtype: 3.0}, "^kernel_init .*, but it returned 3.0"),
        ({"kernel_init": lambda key: key}, "^kernel_init .* takes 1 positional argument but 3"),
        (
            {"recurrent_kernel_init": jax.nn.initializers.orthogonal},
            "^recurrent_kernel_init .*, but it returned a function",
        ),
    ],
)
def test_initialisers_that_cannot_draw_are_named(options: dict[str, Any], message: str) -> None:
    for kind in KINDS:
        with pytest.raises(InvalidInputError, match=message) as error:
            kind(4, **options).init(KEY, 3)
        assert len(str(error.value)) < 320


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initialisers_are_known(name: str) -> None:
    assert shapes(LSTMCell(2, kernel_init=name), 3)["kernel"].shape == (3, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_sizes(kind: Any) -> None:
    with pytest.raises(InvalidInputError, match="input_size must be a positive integer, but is 0"):
        kind(4).init(KEY, 0)
    with pytest.raises(InvalidInputError, match=r"batch_shape must be a tuple.*write \(8,\)"):
        kind(4).initial_carry(8)


def changed(params: Any, **changes: Any) -> Any:
    return {k: v for k, v in (params | changes).items() if v is not None}


@pytest.mark.parametrize("method", [Scan(), Fused()], ids=["Scan", "Fused"])
def test_bad_params(method: Any) -> None:
    cell = LSTMCell(4)
    params, xs = blank(cell, 3), np.ones((5, 2, 3), np.float32)
    carry = rnnjax.LSTMCarry(*np.zeros((2, 2, 4), np.float32))
    for bad, message in [
        (changed(params, bias=None), r"bias: expected \(16,\), got none"),
        (changed(params, extra=np.ones(2, "f")), r"extra: expected none, got \(2,\)"),
        (
            changed(params, recurrent_kernel=np.ones((4, 12), "f")),
            r"recurrent_kernel: expected \(4, 16\), got \(4, 12\)",
        ),
        (blank(LSTMCell(5), 3), r"bias: expected \(16,\), got \(20,\); kernel"),
        (blank(GRUCell(4), 3), "params do not belong to LSTMCell.*recurrent_bias"),
        (
            changed(params, kernel=None),
            "that LSTMCell.init returns, but are a dict with bias, recurrent",
        ),
        ((params,), "that LSTMCell.init returns, but are a tuple of 1"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            rnnjax.unroll(cell, bad, xs, method=method)
        with pytest.raises(InvalidInputError, match=message):
            cell.step(bad, carry, xs[0])


@pytest.mark.parametrize("method", [Scan(), Fused()], ids=["Scan", "Fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_xs(kind: Any, method: Any) -> None:
    cell = kind(4)
    params = blank(cell, 5)
    with pytest.raises(InvalidInputError, match="3 features, but params were initialised for 5"):
        rnnjax.unroll(cell, params, np.ones((7, 2, 3), "f"), method=method)
    with pytest.raises(InvalidInputError, match=r"\(time, features\) without a batch.*\(5,\)"):
        rnnjax.unroll(cell, params, np.ones(5, "f"), method=method)
    with pytest.raises(InvalidInputError, match="xs has no axes"):
        cell.step(params, cell.initial_carry(), np.float32(1))


def test_bad_carries() -> None:
    cell = LSTMCell(4)
    params, xs = blank(cell, 3), np.ones((5, 2, 3), np.float32)
    zeros = np.zeros((2, 4), np.float32)
    for carry, message in [
        (GRUCell(4).initial_carry((2,)), "carry must be shaped like .*LSTMCarry.*GRUCarry"),
        ((zeros, zeros), "carry must be shaped like"),
        (cell.initial_carry((3,)), r"carry.hidden must have shape \(2, 4\).*\(3, 4\); start from"),
        (
            rnnjax.LSTMCarry(zeros, zeros[0]),
            r"carry.cell must have shape \(2, 4\), for the batch \(2,\) of xs, but has \(4,\)",
        ),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            rnnjax.unroll(cell, params, xs, carry)


def test_bad_cells_and_methods() -> None:
    cell = OwnStepCell(4)
    params, xs = blank(cell, 3), np.ones((5, 2, 3), np.float32)
    with pytest.raises(InvalidInputError, match="cell"):
        rnnjax.unroll(GRUCell, params, xs)
    with pytest.raises(InvalidInputError, match="method"):
        rnnjax.unroll(cell, params, xs, method="scan")
    message = r"Fused\(.*\) cannot run OwnStep.* declares no carry.*use method=Scan\(\) or"
    with pytest.raises(InvalidInputError, match=message):
        rnnjax.unroll(cell, params, xs, method=Fused())
    stack = Stack([LSTMCell(4), cell])
    with pytest.raises(InvalidInputError, match=message):
        rnnjax.unroll(stack, blank(stack, 3), xs, method=Fused())


def test_bad_stacks() -> None:
    with pytest.raises(InvalidInputError, match="needs at least one cell"):
        Stack([])
    with pytest.raises(InvalidInputError, match=r"cells such as rnnjax.LSTMCell\(50\), but got 5"):
        Stack([LSTMCell(4), 5])
    stack = Stack([LSTMCell(4), GRUCell(3)])
    params, xs = blank(stack, 2), np.ones((5, 2, 2), np.float32)
    for bad, came in ((params[:1], "1 entries"), (list(params), "list"), (params[0], "dict")):
        with pytest.raises(InvalidInputError, match=f"params of a Stack.* 2 layers.*{came}"):
            rnnjax.unroll(stack, bad, xs)
    with pytest.raises(InvalidInputError, match="carry of a Stack"):
        stack.step(params, stack.initial_carry((2,))[:1], xs[0])
    with pytest.raises(InvalidInputError, match="carry must be shaped like"):
        rnnjax.unroll(stack, params, xs, stack.initial_carry((2,))[:1])
    with pytest.raises(InvalidInputError, match=r"carry\[1\].hidden must have shape"):
        rnnjax.unroll(
            stack, params, xs, (stack.initial_carry((2,))[0], GRUCell(3).initial_carry((4,)))
        )


def test_a_step_of_a_stack_is_the_steps_of_its_layers(random_like: Any, assert_close: Any) -> None:
    stack = Stack([LSTMCell(4), Stack([GRUCell(3)])])
    params, carry, x = random_like(
        lambda: (stack.init(KEY, 2), stack.initial_carry((5,)), jnp.zeros((5, 2))), 0
    )

    @jax.jit
    def both(params: Any, carry: Any, x: Any) -> Any:
        first, y = LSTMCell(4).step(params[0], carry[0], x)
        second, y = GRUCell(3).step(params[1][0], carry[1][0], y)
        return stack.step(params, carry, x), ((first, (second,)), y)

    assert_close(*both(params, carry, x), 1e-6)


def test_invalid_input_is_a_value_error() -> None:
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(InvalidInputError, rnnjax.RnnjaxError)


@pytest.mark.parametrize("name", ["step", "project", "recur", "combine", "apply_update"])
def test_a_piece_that_follows_from_the_equation_cannot_be_written(name: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^OwnCell writes {name}, which follow"):
        type("OwnCell", (LSTMCell,), {name: lambda self, *given: given})
