"""`rnnjax.linen` against Flax's own ``RNN``, ``Bidirectional`` and cells, and in training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cell_table import OwnStepCell, SCRNCell, SubLSTMCell
from flax.errors import ScopeParamShapeError

import rnnjax
import rnnjax.linen
from rnnjax import Fused, GRUCell, InvalidInputError, LSTMCell, Scan, Stack

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4


CELLS = {
    "lstm": nn.LSTMCell,
    "optimized-lstm": nn.OptimizedLSTMCell,
    "gru": nn.GRUCell,
    "simple": nn.SimpleCell,
    "residual": functools.partial(nn.SimpleCell, residual=True),
    "mgu": nn.MGUCell,
    "mgu-no-reset": functools.partial(nn.MGUCell, reset_gate=False),
}
FLAGS: list[dict[str, bool]] = [
    {},
    {"return_carry": True},
    {"time_major": True, "return_carry": True},
    {"reverse": True, "return_carry": True},
    {"reverse": True, "keep_order": True},
    {"reverse": True, "keep_order": True, "time_major": True},
    {"reverse": True, "time_major": True},
    {"keep_order": True},
]
LENGTHS = np.array([TIME, 2, 1])


# What has the parameters of another is slow.
@pytest.mark.parametrize(
    ("name", "time_major"),
    [
        *((name, False) for name in ("lstm", "optimized-lstm", "gru", "simple", "mgu")),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (("lstm", True), ("residual", False), ("mgu-no-reset", False))
        ),
    ],
)
def test_parameters_from_a_seed_are_those_of_flax(
    name: str, time_major: bool, assert_close: Any
) -> None:
    inputs, cell = np.ones((BATCH, TIME, FEATURES), np.float32), CELLS[name](HIDDEN)

    @jax.jit
    def both() -> Any:
        models = (m.RNN(cell, time_major=time_major) for m in (nn, rnnjax.linen))
        return [model.init(jax.random.key(0), inputs) for model in models]

    assert_close(*both(), 0)


@pytest.mark.parametrize(
    ("name", "flags"),
    # All of the flags once; what the cells differ in are the numbers of a step.
    [("lstm", flags) for flags in FLAGS] + [(name, FLAGS[3]) for name in [*CELLS][1:]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_equals_flax(
    name: str, flags: dict[str, bool], random_like: Callable[..., Any], assert_close: Any
) -> None:
    """Flax's numbers from its parameters and carries, with lengths and without.

    The flags are once attributes, and once arguments of the call, which mean the same.
    """
    cell, key = CELLS[name](HIDDEN), jax.random.key(0)
    theirs, ours = nn.RNN(cell, **flags), rnnjax.linen.RNN(cell, **flags)
    shape = (TIME, BATCH) if flags.get("time_major") else (BATCH, TIME)
    inputs = np.asarray(random_like(lambda: jnp.zeros((*shape, FEATURES)), 1))
    variables = random_like(lambda: theirs.init(key, inputs), 2)
    carry = random_like(lambda: cell.initialize_carry(key, (BATCH, FEATURES)), 3)
    initial = None if flags == {"return_carry": True} else carry

    @jax.jit
    def both(variables: Any, initial: Any) -> Any:
        def run(module: Any, lengths: Any, **flags: bool) -> Any:
            return module.apply(
                variables, inputs, initial_carry=initial, seq_lengths=lengths, **flags
            )

        pairs = [(run(ours, LENGTHS), run(theirs, LENGTHS))]
        if name == "lstm":
            pairs.append((run(rnnjax.linen.RNN(cell), None, **flags), run(theirs, None)))
        return pairs

    pairs = both(variables, initial)
    for (actual, expected), padded in zip(pairs, (True, False), strict=False):
        if flags.get("return_carry"):
            assert_close(actual[0], expected[0], 1e-5)
            actual, expected = actual[1], expected[1]
        if padded:
            expected = zero_padding(expected, flags.get("time_major", False))
        assert_close(actual, expected, 1e-5)


def zero_padding(outputs: jax.Array, time_major: bool) -> jax.Array:
    """Flax's outputs with zeros where it leaves what the cell made of the padding."""
    valid = np.arange(TIME) < LENGTHS[:, None]
    return np.where((valid.T if time_major else valid)[..., None], outputs, 0)


@pytest.mark.parametrize(
    ("time_major", "lengths"),
    [
        (False, None),
        (True, LENGTHS),
        pytest.param(False, LENGTHS, marks=pytest.mark.slow),
    ],
)
def test_bidirectional_equals_flax(
    time_major: bool, lengths: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    models = [
        module.Bidirectional(module.RNN(nn.LSTMCell(HIDDEN)), module.RNN(nn.GRUCell(HIDDEN)))
        for module in (nn, rnnjax.linen)
    ]
    zeros = jax.ShapeDtypeStruct((BATCH, HIDDEN), float)
    shape = (TIME, BATCH) if time_major else (BATCH, TIME)
    inputs = jax.ShapeDtypeStruct((*shape, FEATURES), float)
    inputs, carry = random_like((inputs, ((zeros, zeros), zeros)), 1)
    inputs = np.asarray(inputs)
    key = jax.random.key(0)
    variables = random_like(lambda: models[0].init(key, inputs), 2)

    @jax.jit
    def both(variables: Any, carry: Any) -> Any:
        given = {"seq_lengths": lengths, "time_major": time_major, "return_carry": True}
        return [
            (m.init(key, inputs), m.apply(variables, inputs, initial_carry=carry, **given))
            for m in models
        ]

    (begun, (expected_carries, expected)), (ours, (carries, outputs)) = both(variables, carry)
    assert_close(ours, begun, 0)
    assert_close(carries, expected_carries, 1e-5)
    if lengths is not None:
        expected = zero_padding(expected, time_major)
    assert_close(outputs, expected, 1e-5)


class Leaky(nn.RNNCellBase):
    """A user's cell, of which rnnjax knows nothing."""

    features: int

    @nn.compact
    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = 0.5 * carry + jnp.tanh(nn.Dense(self.features)(inputs))
        return new, 2 * new

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(rng, (*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


@pytest.mark.parametrize("cell", [Leaky(HIDDEN), nn.ConvLSTMCell(2, (3,))], ids=["own", "conv"])
def test_any_cell_of_flax_runs(
    cell: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    grid = () if isinstance(cell, Leaky) else (6,)
    inputs, key = (
        random_like(lambda: jnp.zeros((BATCH, TIME, *grid, FEATURES)), 1),
        jax.random.key(0),
    )
    theirs, ours = (m.RNN(cell, return_carry=True) for m in (nn, rnnjax.linen))
    variables = theirs.init(key, inputs)
    assert_close(ours.init(key, inputs), variables, 0)
    expected = theirs.apply(variables, inputs, init_key=jax.random.key(5))
    assert_close(ours.apply(variables, inputs, init_key=jax.random.key(5)), expected, 1e-5)
    # And it has what Flax's has not: a reset begins anew with the module's own carry.
    resets = jnp.zeros((BATCH, TIME), bool).at[:, 2].set(True)
    _, outputs = ours.apply(variables, inputs, resets=resets)
    _, anew = theirs.apply(variables, inputs[:, 2:])
    assert_close(outputs[:, 2:], anew, 1e-5)


def test_a_cell_that_keeps_more_than_parameters_is_refused() -> None:
    class Counting(Leaky):
        @nn.compact
        def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            self.variable("counts", "steps", jnp.zeros, ())
            return carry, nn.Dense(self.features)(inputs)

    with pytest.raises(InvalidInputError, match=r"Counting keeps .* \['counts'\].*flax.linen.RNN"):
        rnnjax.linen.RNN(Counting(4)).init(jax.random.key(0), jnp.ones((BATCH, TIME, FEATURES)))


def test_the_scanned_rnn_of_purejaxrl(assert_close: Any) -> None:
    """A cell called under ``nn.scan``, with resets by hand; only the import differs."""

    def make(module: Any) -> Any:
        class ScannedRNN(nn.Module):
            @functools.partial(
                nn.scan,
                variable_broadcast="params",
                in_axes=0,
                out_axes=0,
                split_rngs={"params": False},
            )
            @nn.compact
            def __call__(self, carry: Any, x: Any) -> Any:
                ins, resets = x
                carry = jnp.where(resets[:, None], self.initialize(*carry.shape), carry)
                return module.GRUCell(features=HIDDEN)(carry, ins)

            @staticmethod
            def initialize(batch: int, size: int) -> Any:
                cell = module.GRUCell(features=size)
                return cell.initialize_carry(jax.random.key(0), (batch, size))

        return ScannedRNN()

    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (TIME, BATCH, FEATURES))
    resets = jax.random.bernoulli(keys[1], 0.3, (TIME, BATCH))
    ours, theirs = make(rnnjax.linen), make(nn)
    carry = ours.initialize(BATCH, HIDDEN)
    variables = ours.init(jax.random.key(1), carry, (x, resets))
    expected = theirs.apply(variables, carry, (x, resets))
    assert_close(ours.apply(variables, carry, (x, resets)), expected, 0)
    # What stands in 20 lines there is two arguments of an RNN, which reads the same parameters.
    (inner,) = variables["params"].values()
    layer = rnnjax.linen.RNN(nn.GRUCell(HIDDEN), time_major=True, return_carry=True)
    assert_close(layer.apply({"params": {"cell": inner}}, x, resets=resets), expected, 1e-5)


@pytest.mark.parametrize(
    ("gate", "activation"),
    [
        (jax.nn.hard_sigmoid, jnp.sin),
        pytest.param("sigmoid", "tanh", marks=pytest.mark.slow),
    ],
)
def test_options_of_a_cell_are_heeded(gate: Any, activation: Any, assert_close: Any) -> None:
    options = {} if gate == "sigmoid" else {"gate_fn": gate, "activation_fn": activation}
    options |= {"recurrent_kernel_init": nn.initializers.lecun_normal()}  # which bfloat16 has
    cell = nn.LSTMCell(HIDDEN, dtype=jnp.float32, param_dtype=jnp.bfloat16, **options)
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    variables = rnnjax.linen.RNN(cell).init(jax.random.key(0), inputs)
    assert variables["params"]["cell"]["ii"]["kernel"].dtype == jnp.bfloat16
    start = tuple(jnp.zeros((BATCH, HIDDEN)) for _ in range(2))
    actual, expected = (
        module.RNN(cell).apply(variables, inputs, initial_carry=start)
        for module in (rnnjax.linen, nn)
    )
    assert_close(actual, expected, 1e-2)


def test_bidirectional_options(assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    directions = [rnnjax.linen.RNN(GRUCell(HIDDEN)) for _ in range(2)]
    summed = rnnjax.linen.Bidirectional(*directions, merge_fn=jnp.add, return_carry=True)
    variables = summed.init(jax.random.key(0), inputs)
    carries, outputs = summed.apply(variables, inputs)
    assert isinstance(carries, tuple)
    apart = rnnjax.linen.Bidirectional(*directions).apply(variables, inputs, init_key=None)
    assert_close(outputs, apart[..., :HIDDEN] + apart[..., HIDDEN:], 1e-6)

    # Resets and masks reach both directions, and so do the carries of a pair.
    cell = directions[0].cell
    resets = jnp.zeros((BATCH, TIME), bool).at[0, 2].set(True)
    mask = jnp.ones((BATCH, TIME), bool).at[1, 3].set(False)
    ones = jax.tree.map(jnp.ones_like, cell.initial_carry())
    _, outputs = summed.apply(
        variables, inputs, mask=mask, resets=resets, reset_carry=(ones, None), reverse=True
    )
    forward, backward = (
        rnnjax.unroll(
            cell,
            variables["params"][name]["cell"],
            jnp.swapaxes(inputs, 0, 1),
            mask=mask.T,
            resets=resets.T,
            reset_carry=reset_carry,
            reverse=reset_carry is None,
        )[1]
        for name, reset_carry in (("forward_rnn", ones), ("backward_rnn", None))
    )
    assert_close(outputs, jnp.swapaxes(forward + backward, 0, 1), 1e-6)
    with pytest.raises(InvalidInputError, match=r"initial_carry must be a pair"):
        summed.apply(variables, inputs, initial_carry=ones)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_masks_and_resets(batch: tuple[int, ...], time_major: bool, assert_close: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    cell = GRUCell(HIDDEN)
    params = cell.init(keys[0], FEATURES)
    xs = jax.random.normal(keys[1], (TIME, *batch, FEATURES))
    marks = {
        "mask": jax.random.bernoulli(keys[2], 0.7, (TIME, *batch)),
        "resets": jax.random.bernoulli(keys[3], 0.3, (TIME, *batch)),
    }
    lengths = jnp.full(batch, TIME - 1)
    start = jax.tree.map(jnp.ones_like, cell.initial_carry())
    expected = rnnjax.unroll(cell, params, xs, lengths=lengths, reset_carry=start, **marks)
    if not time_major:
        xs = jnp.moveaxis(xs, 0, -2)
        marks = {name: jnp.moveaxis(value, 0, -1) for name, value in marks.items()}
    carry, outputs = rnnjax.linen.RNN(cell, time_major=time_major).apply(
        {"params": {"cell": params}},
        xs,
        seq_lengths=lengths,
        reset_carry=start,
        return_carry=True,
        **marks,
    )
    outputs = outputs if time_major else jnp.moveaxis(outputs, -2, 0)
    assert_close((carry, outputs), expected, 1e-6)


def test_lengths_of_none_and_of_more_than_all(assert_close: Any) -> None:
    cell = GRUCell(HIDDEN)
    model = rnnjax.linen.RNN(cell, return_carry=True, reverse=True)
    inputs = jax.random.normal(jax.random.key(1), (2, TIME, FEATURES))
    variables = model.init(jax.random.key(0), inputs)
    ones = jax.tree.map(jnp.ones_like, cell.initial_carry((2,)))
    carry, outputs = jax.jit(model.apply)(
        variables, inputs, initial_carry=ones, seq_lengths=jnp.array([0, TIME + 1])
    )
    whole = model.apply(variables, inputs, initial_carry=ones)[1]
    assert_close(outputs, whole.at[0].set(0), 1e-6)
    np.testing.assert_array_equal(carry.hidden[0], 1)


def test_dropout_draws_with_its_rng(assert_close: Any) -> None:
    cell = rnnjax.Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.5)
    model = rnnjax.linen.RNN(cell)
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    variables = model.init(jax.random.key(0), inputs)
    quiet = model.apply(variables, inputs)
    noisy = [
        model.apply(variables, inputs, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    ]
    assert_close(noisy[0], noisy[1], 0)
    assert not jnp.allclose(noisy[0], noisy[2])
    assert not jnp.allclose(noisy[0], quiet)
    _, ys = rnnjax.unroll(cell, variables["params"]["cell"], jnp.swapaxes(inputs, 0, 1))
    assert_close(quiet, jnp.swapaxes(ys, 0, 1), 1e-6)

    # Each direction draws for itself, also where both share their parameters.
    both = rnnjax.linen.Bidirectional(rnnjax.linen.RNN(cell), rnnjax.linen.RNN(cell))
    params = {"params": dict.fromkeys(("forward_rnn", "backward_rnn"), variables["params"])}
    outputs = both.apply(params, jnp.ones_like(inputs), rngs={"dropout": jax.random.key(0)})
    assert not jnp.allclose(outputs[:, :, :HIDDEN], outputs[:, ::-1, HIDDEN:])


def test_flax_code_runs_with_the_import_changed() -> None:
    """The examples of Flax's documentation, with ``flax.linen`` in the place of rnnjax's."""
    from rnnjax import linen as nn

    assert nn.Dense is flax.linen.Dense
    x = jnp.ones((10, 7, 3))
    lstm = nn.RNN(
        nn.LSTMCell(6),
        return_carry=True,
        unroll=1,
        variable_axes={},
        variable_broadcast="params",
        variable_carry=False,
        split_rngs={"params": False},
    )
    variables = lstm.init(jax.random.key(0), x)
    carry, y = lstm.apply(variables, x, init_key=jax.random.key(1))
    assert jax.tree_util.tree_map(jnp.shape, carry) == ((10, 6), (10, 6))
    assert y.shape == (10, 7, 6)
    layer = nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)))
    x = jnp.ones((2, 3))
    assert layer.apply(layer.init(jax.random.key(0), x), x).shape == (2, 8)


def test_a_flag_of_the_call_overrides_the_attribute(assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    model = rnnjax.linen.RNN(
        LSTMCell(HIDDEN), time_major=True, return_carry=True, reverse=True, keep_order=True
    )
    variables = model.init(jax.random.key(0), inputs)
    off = {"time_major": False, "return_carry": False, "reverse": False, "keep_order": False}
    expected = rnnjax.linen.RNN(LSTMCell(HIDDEN)).apply(variables, inputs)
    assert_close(model.apply(variables, inputs, **off), expected, 1e-6)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("time_major", [False, True])
def test_any_number_of_batch_axes(batch: tuple[int, ...], time_major: bool) -> None:
    stack = Stack([LSTMCell(4), GRUCell(3)])
    model = rnnjax.linen.RNN(stack, time_major=time_major, return_carry=True)
    shape = (TIME, *batch, FEATURES) if time_major else (*batch, TIME, FEATURES)
    inputs = jax.random.normal(jax.random.key(1), shape)
    (carry, outputs), variables = model.init_with_output(jax.random.key(0), inputs)
    assert outputs.shape == (*shape[:-1], 3)
    assert carry[0].cell.shape == (*batch, 4)

    # The parameters are those of cell.init, and unroll takes them as they are.
    params = variables["params"]["cell"]
    assert jax.tree.structure(params) == jax.tree.structure(stack.init(jax.random.key(0), FEATURES))
    xs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
    _, ys = rnnjax.unroll(stack, params, xs)
    np.testing.assert_allclose(outputs, ys if time_major else jnp.moveaxis(ys, 0, -2), atol=1e-6)


def test_a_model_trains() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs: jax.Array) -> jax.Array:
            hidden = rnnjax.linen.RNN(LSTMCell(8))(inputs)
            hidden = rnnjax.linen.RNN(GRUCell(8), method=Scan(), name="second")(hidden)
            return nn.Dense(1)(hidden[:, -1])

    inputs = jax.random.normal(jax.random.key(1), (8, TIME, FEATURES))
    targets = inputs.sum((1, 2))[:, None]
    params = Model().init(jax.random.key(0), inputs)
    assert set(params["params"]) == {"RNN_0", "second", "Dense_0"}
    optimizer = optax.adam(0.03)

    @jax.jit
    def train_step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean((Model().apply(params, inputs) - targets) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value, gradients

    state = optimizer.init(params)
    params, state, first, gradients = train_step(params, state)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    for _ in range(30):
        params, state, last, _ = train_step(params, state)
    assert last < 0.3 * first


def test_errors() -> None:
    model = rnnjax.linen.RNN(LSTMCell(HIDDEN))
    key = jax.random.key(0)
    with pytest.raises(InvalidInputError, match=r"\(\*batch, time, features\).*shape \(5,\)"):
        model.init(key, jnp.ones(5))
    with pytest.raises(InvalidInputError, match=r"\(time, \*batch, features\)"):
        model.init(key, jnp.ones(5), time_major=True)
    inputs = jnp.ones((BATCH, TIME, FEATURES))
    variables = model.init(key, inputs)
    with pytest.raises(ScopeParamShapeError, match="cell"):
        model.apply(variables, jnp.ones((BATCH, TIME, FEATURES + 1)))
    with pytest.raises(InvalidInputError, match=r"hidden.*\(3, 4\)"):
        model.apply(variables, inputs, initial_carry=LSTMCell(HIDDEN).initial_carry((BATCH + 1,)))
    with pytest.raises(InvalidInputError, match="declares no carry"):
        rnnjax.linen.RNN(OwnStepCell(4), method=Fused()).init(key, inputs)


def test_arguments_that_do_not_fit() -> None:
    model = rnnjax.linen.RNN(GRUCell(HIDDEN))
    inputs = jnp.ones((BATCH, TIME, FEATURES))
    variables = model.init(jax.random.key(0), inputs)
    for arguments, match in (
        ({"seq_lengths": jnp.ones((BATCH, TIME), int)}, r"seq_lengths must be integers of shape"),
        ({"seq_lengths": jnp.ones(BATCH)}, r"seq_lengths must be integers of shape \(3,\)"),
        ({"seq_lengths": jnp.full(BATCH, TIME + 1)}, "seq_lengths must lie between 0 and the 5"),
        ({"mask": jnp.ones((TIME, BATCH), bool)}, r"mask must have shape \(3, 5\), \(\*batch"),
        ({"resets": jnp.ones((BATCH, TIME))}, "resets must be booleans"),
        ({"reset_carry": jnp.ones(HIDDEN)}, "reset_carry must be shaped like"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            model.apply(variables, inputs, **arguments)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: rnnjax.linen.RNN(nn.Dense(4)), "cell must be a cell of rnnjax.* is a Dense"),
        (
            lambda: rnnjax.linen.RNN(GRUCell(4), variable_axes={"cache": 0}),
            "variable_axes must be left at its default.*nothing to lift",
        ),
        (lambda: rnnjax.linen.RNN(GRUCell(4), variable_broadcast="x"), "variable_broadcast"),
        (lambda: rnnjax.linen.RNN(GRUCell(4), variable_carry="x"), "variable_carry"),
        (lambda: rnnjax.linen.RNN(GRUCell(4), split_rngs={"params": True}), "split_rngs"),
    ],
)
def test_what_cannot_be_honoured_is_refused(build: Callable[[], Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        build()


class Wrapped(nn.RNNCellBase):
    """A cell around another, which returns two outputs."""

    inner: nn.RNNCellBase

    def __call__(self, carry: Any, inputs: jax.Array) -> Any:
        carry, y = self.inner(carry, inputs)
        return carry, (y, jnp.argmax(y, -1))

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        return self.inner.initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return 1


@pytest.mark.parametrize("time_major", [False, True])
def test_a_cell_around_another_and_outputs_of_any_shape(
    time_major: bool, assert_close: Any
) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    theirs, ours = (
        m.RNN(Wrapped(nn.LSTMCell(HIDDEN)), time_major=time_major, reverse=True)
        for m in (nn, rnnjax.linen)
    )
    variables = theirs.init(jax.random.key(0), inputs)
    assert_close(ours.apply(variables, inputs), theirs.apply(variables, inputs), 1e-5)


def test_what_a_carry_is_drawn_with(assert_close: Any) -> None:
    cell = nn.GRUCell(HIDDEN, carry_init=nn.initializers.normal())
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    theirs, ours = (
        m.Bidirectional(m.RNN(cell), m.RNN(nn.SimpleCell(HIDDEN))) for m in (nn, rnnjax.linen)
    )
    variables = theirs.init(jax.random.key(0), inputs)
    for key in (None, jax.random.key(7)):
        expected = theirs.apply(variables, inputs, init_key=key)
        assert_close(ours.apply(variables, inputs, init_key=key), expected, 1e-5)


@pytest.mark.parametrize("carry", ["ours", "triple"])
def test_a_carry_that_is_not_of_flax_is_refused(carry: str) -> None:
    zeros = jnp.zeros((BATCH, HIDDEN))
    given = rnnjax.LSTMCarry(zeros, zeros) if carry == "ours" else (zeros,) * 3
    inputs, model = jnp.ones((BATCH, TIME, FEATURES)), rnnjax.linen.RNN(nn.LSTMCell(HIDDEN))
    variables = model.init(jax.random.key(0), inputs)
    with pytest.raises(InvalidInputError, match=r"must be the pair \(c, h\)"):
        model.apply(variables, inputs, initial_carry=given)


LECUN = {"recurrent_kernel_init": nn.initializers.lecun_normal()}  # which bfloat16 has
TYPES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": jnp.bfloat16},
    "all": {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, **LECUN},
    "inputs": {},
}


# The state of a simple cell would change its type in Flax's loop with a dtype alone. A type is
# promoted alike for all cells.
ORDINARY = {("lstm", "dtype"), ("lstm", "inputs"), ("gru", "all"), ("simple", "all")}


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        pytest.param(kind, types, marks=[] if (kind, types) in ORDINARY else pytest.mark.slow)
        for kind in ("lstm", "gru", "mgu", "simple", "residual")
        for types in TYPES
        if types != "dtype" or kind not in ("simple", "residual")
    ],
)
def test_types_are_those_of_flax(kind: str, types: str, assert_close: Any) -> None:
    inputs = np.random.default_rng(1).normal(size=(BATCH, TIME, FEATURES))
    inputs = inputs.astype(jnp.bfloat16 if types == "inputs" else np.float32)
    cell = CELLS[kind](HIDDEN, **TYPES[types])

    @jax.jit
    def both() -> Any:
        theirs, ours = (m.RNN(cell, return_carry=True) for m in (nn, rnnjax.linen))
        variables = theirs.init(jax.random.key(0), inputs)
        return [m.apply(variables, inputs) for m in (theirs, ours)]

    expected, actual = both()
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (actual, expected)]
    assert kinds[0] == kinds[1]
    assert_close(actual, expected, 1e-5 if types == "inputs" else 2e-2)


@pytest.mark.parametrize("dtype", [int, bool, jnp.uint8])
def test_integers_become_what_flax_makes_of_them(dtype: Any, assert_close: Any) -> None:
    inputs = (jnp.arange(BATCH * TIME * FEATURES).reshape(BATCH, TIME, -1) % 3).astype(dtype)
    for kind in ("lstm", "simple"):
        theirs, ours = (m.RNN(CELLS[kind](HIDDEN)) for m in (nn, rnnjax.linen))
        variables = ours.init(jax.random.key(0), inputs)
        assert_close(ours.apply(variables, inputs), theirs.apply(variables, inputs), 1e-5)
    for cell in (GRUCell(HIDDEN), Leaky(HIDDEN)):
        with pytest.raises(InvalidInputError, match=r"^inputs .*floating-point.*inputs\.astype"):
            rnnjax.linen.RNN(cell).init(jax.random.key(0), inputs)


class Activated(nn.Module):
    """An activation with parameters, which are the parent's."""

    rnn: Any
    closure: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, **marks: Any) -> jax.Array:
        act = nn.PReLU()
        function = (lambda x: act(x)) if self.closure else act
        outputs = self.rnn(nn.GRUCell(HIDDEN, activation_fn=function))(inputs, **marks)
        return nn.Dense(1)(outputs)


@pytest.mark.parametrize("closure", [False, True], ids=["module", "closure"])
def test_an_activation_with_parameters(closure: bool, assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    theirs, ours = (Activated(m.RNN, closure) for m in (nn, rnnjax.linen))
    variables, flax = (m.init(jax.random.key(0), inputs) for m in (ours, theirs))
    assert set(variables["params"]) == {"GRUCell_0", "PReLU_0", "Dense_0"}
    if closure:  # flax 0.12.12 with JAX 0.12 hands out a tracer of its own scan here.
        flax["params"]["PReLU_0"] = {"negative_slope": np.float32(0.01)}
    assert_close(variables, flax, 0)
    mask = np.ones((BATCH, TIME), bool)

    @jax.jit
    def gradients(variables: Any) -> Any:
        def of(module: Any, **marks: Any) -> Any:
            return jax.grad(lambda v: jnp.sum(module.apply(v, inputs, **marks) ** 2))(variables)

        return of(theirs), of(ours), of(ours, mask=mask)

    expected, *both = gradients(variables)
    for actual in both:
        assert_close(actual, expected, 1e-5)
    # And outside of jit, other parameters are other numbers.
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    assert_close(ours.apply(doubled, inputs), theirs.apply(doubled, inputs), 1e-5)


class Shared(nn.Module):
    """One cell in three RNNs, one of them around it."""

    rnn: Any

    def setup(self) -> None:
        self.cell = nn.LSTMCell(HIDDEN)
        self.first = self.rnn(self.cell)
        self.second = self.rnn(self.cell, reverse=True)
        self.third = self.rnn(Wrapped(self.cell))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.first(inputs) + self.second(inputs) + self.third(inputs)[0]


def test_a_cell_of_the_parent_in_several(assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    theirs, ours = (Shared(m.RNN) for m in (nn, rnnjax.linen))
    variables = theirs.init(jax.random.key(0), inputs)
    assert set(variables["params"]) == {"cell"}
    assert_close(ours.init(jax.random.key(0), inputs), variables, 0)

    @jax.jit
    def both(variables: Any) -> Any:
        return [
            jax.value_and_grad(lambda v, m=m: jnp.sum(m.apply(v, inputs) ** 2))(variables)
            for m in (ours, theirs)
        ]

    assert_close(*both(variables), 1e-5)
    # What a step leaves besides is dropped, and no tracer stays behind.
    _, state = ours.apply(variables, inputs, capture_intermediates=True)
    jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("cell", [SubLSTMCell(HIDDEN), SCRNCell(HIDDEN, context_size=3)])
def test_a_users_sublstm_and_scrn(cell: rnnjax.Cell, assert_close: Any) -> None:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, FEATURES))
    model = rnnjax.linen.RNN(cell, return_carry=True)
    variables = model.init(jax.random.key(0), inputs)
    params, xs = variables["params"]["cell"], jnp.swapaxes(inputs, 0, 1)
    carry, ys = rnnjax.unroll(cell, params, xs, lengths=LENGTHS)
    actual = model.apply(variables, inputs, seq_lengths=LENGTHS)
    assert_close(actual, (carry, jnp.swapaxes(ys, 0, 1)), 1e-6)


def test_the_grid_of_a_convolution_is_not_time(assert_close: Any) -> None:
    cell = rnnjax.ConvLSTMCell(2, kernel_shape=(3,))
    inputs = jax.random.normal(jax.random.key(1), (BATCH, TIME, 6, FEATURES))
    for one in (cell, Stack([cell, cell])):
        model = rnnjax.linen.RNN(one)
        variables = model.init(jax.random.key(0), inputs)
        _, ys = rnnjax.unroll(one, variables["params"]["cell"], jnp.swapaxes(inputs, 0, 1))
        assert_close(model.apply(variables, inputs), jnp.swapaxes(ys, 0, 1), 1e-6)


@pytest.mark.parametrize("time_major", [False, True])
def test_errors_speak_of_the_axes_of_the_caller(time_major: bool) -> None:
    model = rnnjax.linen.RNN(nn.GRUCell(HIDDEN), time_major=time_major)
    variables = model.init(jax.random.key(0), jnp.ones((BATCH, TIME, FEATURES)))
    axes = "time, batch" if time_major else "batch, time"
    with pytest.raises(InvalidInputError, match=rf"^inputs has 3 .* of inputs \({axes}, features"):
        model.apply(variables, jnp.ones((BATCH, TIME, 3)))
    for cell in (nn.GRUCell(HIDDEN), Leaky(HIDDEN)):
        carry, match = jnp.ones((5, HIDDEN)), r"initial_carry must begin with \(4,\)"
        with pytest.raises(InvalidInputError, match=match):
            rnnjax.linen.RNN(cell).init(
                jax.random.key(0), jnp.ones((4, 4, FEATURES)), initial_carry=carry
            )
    with pytest.raises(TypeError, match="masks"):
        model.apply(variables, jnp.ones((4, 4, FEATURES)), masks=None)


def test_they_are_flaxs_modules() -> None:
    """Whoever asks for Flax's classes, or reads their fields in their order, finds them."""
    for name in ("RNN", "Bidirectional"):
        ours, theirs = getattr(rnnjax.linen, name), getattr(nn, name)
        assert issubclass(ours, theirs)
        fields = [[f.name for f in dataclasses.fields(one) if f.init] for one in (ours, theirs)]
        assert [f for f in fields[0] if f != "method"] == fields[1]
