"""`rnnjax.nnx` against Flax's own modules and cells, and under NNX's transformations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rnnjax
import rnnjax.nnx
from rnnjax import (
    GRUCell,
    InvalidInputError,
    LSTMCell,
    Regularized,
    Scan,
    SimpleRNNCell,
    Stack,
)

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4
LENGTHS = np.array([TIME, 2, 1])
INPUTS = np.random.default_rng(1).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)

CELLS = {
    "lstm": nnx.LSTMCell,
    "optimized-lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
    "simple": nnx.SimpleCell,
    "residual": functools.partial(nnx.SimpleCell, residual=True),
    "promoting": functools.partial(nnx.GRUCell, promote_dtype=lambda arrays, dtype: arrays),
}
FLAGS: list[dict[str, bool]] = [
    {},
    {"time_major": True, "return_carry": True},
    {"reverse": True, "return_carry": True},
    {"reverse": True, "keep_order": True},
    {"reverse": True, "time_major": True},
    {"reverse": True, "keep_order": True, "time_major": True, "return_carry": True},
]


def zero_padding(outputs: jax.Array, time_major: bool) -> jax.Array:
    """Flax's outputs with zeros where it leaves what the cell made of the padding."""
    valid = np.arange(TIME) < LENGTHS[:, None]
    return np.where((valid.T if time_major else valid)[..., None], outputs, 0)


@pytest.mark.parametrize(
    ("name", "flags"),
    # All of the flags once; what the cells differ in are the numbers of a step.
    [("simple", flags) for flags in FLAGS]
    + [(name, FLAGS[2]) for name in CELLS if name != "simple"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_equals_flax(
    name: str, flags: dict[str, bool], random_like: Callable[..., Any], assert_close: Any
) -> None:
    """One module, run by Flax and by us: its parameters, its carries, its numbers.

    With lengths and without; the flags are once attributes, and once arguments of the call.
    """
    cell = CELLS[name](FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    nnx.update(cell, random_like(nnx.state(cell, nnx.Param), 2))
    start = cell.initialize_carry((BATCH, FEATURES), nnx.Rngs(0))
    inputs = np.swapaxes(INPUTS, 0, 1) if flags.get("time_major") else INPUTS
    initial = None if flags == FLAGS[1] else random_like(start, 1)

    @nnx.jit
    def both(cell: Any, initial: Any) -> Any:
        def run(model: Any, lengths: Any, **call: bool) -> Any:
            return model(inputs, initial_carry=initial, seq_lengths=lengths, **call)

        theirs, ours = nnx.RNN(cell, **flags), rnnjax.nnx.RNN(cell, **flags)
        pairs = [(run(ours, LENGTHS), run(theirs, LENGTHS))]
        if name == "simple":
            pairs.append((run(rnnjax.nnx.RNN(cell), None, **flags), run(theirs, None)))
        return pairs

    for (actual, expected), padded in zip(both(cell, initial), (True, False), strict=False):
        if flags.get("return_carry"):
            assert_close(actual[0], expected[0], 1e-5)
            actual, expected = actual[1], expected[1]
        if padded:
            expected = zero_padding(expected, flags.get("time_major", False))
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(("time_major", "lengths"), [(False, None), (True, LENGTHS)])
def test_bidirectional_equals_flax(
    time_major: bool, lengths: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    cells = [kind(FEATURES, HIDDEN, rngs=nnx.Rngs(0)) for kind in (nnx.LSTMCell, nnx.GRUCell)]
    for cell in cells:
        nnx.update(cell, random_like(nnx.state(cell, nnx.Param), 2))
    theirs, ours = (m.Bidirectional(*map(m.RNN, cells)) for m in (nnx, rnnjax.nnx))
    zeros = np.zeros((BATCH, HIDDEN), np.float32)
    carry = random_like(((zeros, zeros), zeros), 1)
    inputs = np.swapaxes(INPUTS, 0, 1) if time_major else INPUTS
    arguments = {"seq_lengths": lengths, "time_major": time_major, "return_carry": True}
    carries, outputs = ours(inputs, initial_carry=carry, **arguments)
    expected_carries, expected = theirs(inputs, initial_carry=carry, **arguments)
    assert_close(carries, expected_carries, 1e-5)
    if lengths is not None:
        expected = zero_padding(expected, time_major)
    assert_close(outputs, expected, 1e-5)


class Leaky(nnx.RNNCellBase):
    """A user's cell, of which rnnjax knows nothing."""

    def __init__(self, features: int, *, noise: float = 0.0, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(FEATURES, features, rngs=rngs)
        self.features = features
        self.dropout = nnx.Dropout(noise, rngs=rngs) if noise else None

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = 0.5 * carry + jnp.tanh(self.dense(inputs))
        return new, 2 * new if self.dropout is None else self.dropout(new)

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        return jnp.ones((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


def test_any_cell_of_flax_runs(assert_close: Any) -> None:
    cell = Leaky(HIDDEN, rngs=nnx.Rngs(0))
    theirs, ours = (m.RNN(cell, return_carry=True) for m in (nnx, rnnjax.nnx))
    assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)
    resets = np.zeros((BATCH, TIME), bool)
    resets[:, 2] = True
    outputs = np.asarray(ours(INPUTS, resets=resets)[1])
    assert_close(outputs[:, 2:], theirs(INPUTS[:, 2:])[1], 1e-5)
    gradients = [
        nnx.jit(nnx.grad(lambda cell, m=m: jnp.sum(m.RNN(cell)(INPUTS) ** 2)))(cell)
        for m in (nnx, rnnjax.nnx)
    ]
    assert_close(*map(jax.tree.leaves, gradients), 1e-5)
    with pytest.raises(InvalidInputError, match=r"Leaky writes variables .*flax.nnx.RNN"):
        rnnjax.nnx.RNN(Leaky(HIDDEN, noise=0.5, rngs=nnx.Rngs(0)))(INPUTS)


def make_model() -> rnnjax.nnx.RNN:
    return rnnjax.nnx.RNN(Stack([LSTMCell(8), SimpleRNNCell(4)]), FEATURES, rngs=nnx.Rngs(0))


def test_parameters_are_those_of_the_cell() -> None:
    model = make_model()
    params = model.cell_params
    expected = jax.eval_shape(lambda: model.cell.init(jax.random.key(0), FEATURES))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    _, ys = rnnjax.unroll(model.cell, params, np.swapaxes(INPUTS, 0, 1))
    np.testing.assert_allclose(model(INPUTS), np.swapaxes(ys, 0, 1), atol=1e-6)
    other = rnnjax.nnx.RNN(model.cell, FEATURES, rngs=nnx.Rngs(1))
    assert not np.array_equal(other.cell_params[0]["kernel"], params[0]["kernel"])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch: tuple[int, ...]) -> None:
    carry, outputs = make_model()(jnp.ones((*batch, TIME, FEATURES)), return_carry=True)
    assert outputs.shape == (*batch, TIME, 4)
    assert carry[0].cell.shape == (*batch, 8)


def test_split_merge_jit_and_grad(assert_close: Any) -> None:
    model = make_model()
    graph, state = nnx.split(model)
    assert len(jax.tree.leaves(state)) == 6
    assert all(
        isinstance(leaf, nnx.Param)
        for leaf in jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    )
    merged = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * np.asarray(leaf), state))
    doubled = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), model.cell_params)
    assert_close(merged.cell_params, doubled, 1e-6)
    assert_close(nnx.jit(lambda model, x: model(x))(model, INPUTS), model(INPUTS), 1e-6)
    # A model that is built again has the same graph, so nnx.jit compiles nothing for it.
    assert nnx.split(make_model())[0] == graph

    gradients = nnx.jit(nnx.grad(lambda model: jnp.sum(model(INPUTS) ** 2)))(model)

    @jax.jit
    @jax.grad
    def expected(params: Any) -> jax.Array:
        _, ys = rnnjax.unroll(model.cell, params, np.swapaxes(INPUTS, 0, 1), method=Scan())
        return jnp.sum(ys**2)

    assert_close(jax.tree.leaves(gradients), jax.tree.leaves(expected(model.cell_params)), 1e-5)


def test_a_model_trains() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.rnn = rnnjax.nnx.RNN(LSTMCell(8), FEATURES, rngs=rngs)
            self.head = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, inputs: jax.Array) -> jax.Array:
            return self.head(self.rnn(inputs)[:, -1])

    inputs = np.random.default_rng(1).normal(size=(8, TIME, FEATURES)).astype(np.float32)
    targets = inputs.sum((1, 2))[:, None]
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
    before = jax.device_get(model.rnn.cell_params)

    @nnx.jit
    def train_step(model: Model, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(model: Model) -> jax.Array:
            return jnp.mean((model(inputs) - targets) ** 2)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [train_step(model, optimizer) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    after = jax.device_get(model.rnn.cell_params)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed))


def test_errors() -> None:
    model = make_model()
    with pytest.raises(InvalidInputError, match=r"\(\*batch, time, features\).*shape \(5,\)"):
        model(jnp.ones(5))
    with pytest.raises(InvalidInputError, match=r"\(time, \*batch, features\)"):
        model(jnp.ones(5), time_major=True)
    with pytest.raises(InvalidInputError, match="3 features, but params were initialised for 2"):
        model(jnp.ones((BATCH, TIME, 3)))
    with pytest.raises(InvalidInputError, match="carry must be shaped like"):
        model(jnp.ones((BATCH, TIME, 2)), initial_carry=jnp.ones((BATCH, 8)))
    with pytest.raises(InvalidInputError, match="input_size must be a positive integer"):
        rnnjax.nnx.RNN(LSTMCell(4), 0, rngs=nnx.Rngs(0))


def test_masks_and_resets(assert_close: Any) -> None:
    model, rng = make_model(), np.random.default_rng(0)
    mask, resets = (rng.random((BATCH, TIME)) < 0.6 for _ in range(2))
    start = jax.tree.map(np.ones_like, model.cell.initial_carry())
    marks = {"seq_lengths": LENGTHS, "reset_carry": start}
    carry, outputs = model(INPUTS, mask=mask, resets=resets, return_carry=True, **marks)
    expected_carry, ys = rnnjax.unroll(
        model.cell,
        model.cell_params,
        np.swapaxes(INPUTS, 0, 1),
        lengths=LENGTHS,
        mask=mask.T,
        resets=resets.T,
        reset_carry=start,
    )
    assert_close((carry, outputs), (expected_carry, np.swapaxes(ys, 0, 1)), 1e-6)


def test_dropout_draws_with_its_stream(assert_close: Any) -> None:
    cell = Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.5)
    model = rnnjax.nnx.RNN(cell, FEATURES, rngs=nnx.Rngs(0))
    quiet = model(INPUTS)
    assert_close(model(INPUTS, rngs=nnx.Rngs(params=0, carry=1)), quiet, 0)
    assert_close(model(INPUTS, rngs=nnx.Rngs(0).carry), quiet, 0)
    noisy = model(INPUTS, rngs=nnx.Rngs(dropout=1))
    assert_close(model(INPUTS, rngs=nnx.Rngs(1)), noisy, 0)
    assert_close(model(INPUTS, rngs=nnx.Rngs(dropout=1).dropout), noisy, 0)
    assert not np.allclose(noisy, quiet)

    # Inside of nnx.jit the stream moves on, so two calls draw different noise.
    rngs = nnx.Rngs(dropout=1)
    call = nnx.jit(lambda model, x, rngs: model(x, rngs=rngs))
    first, second = call(model, INPUTS, rngs), call(model, INPUTS, rngs)
    assert_close(first, noisy, 1e-6)
    assert not np.allclose(first, second)
    both = rnnjax.nnx.Bidirectional(model, model)(np.ones_like(INPUTS), rngs=rngs)
    both = np.asarray(both)
    assert not np.allclose(both[:, :, :HIDDEN], both[:, ::-1, HIDDEN:])


def test_flax_code_runs_with_the_import_changed() -> None:
    """Flax's own calls, in a module that keeps the cells too, as its examples do."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            from rnnjax import nnx as rnn

            self.cell = rnn.LSTMCell(3, 4, rngs=rngs)
            self.lstm = rnn.RNN(
                self.cell, return_carry=True, unroll=1, state_axes=None, broadcast_rngs=None
            )
            self.both = rnn.Bidirectional(
                forward_rnn=rnn.RNN(rnn.GRUCell(in_features=4, hidden_features=4, rngs=rngs)),
                backward_rnn=rnn.RNN(rnn.SimpleCell(in_features=4, hidden_features=4, rngs=rngs)),
                rngs=rngs,
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            carry, y = self.lstm(x, rngs=nnx.Rngs(0))
            assert jax.tree.map(jnp.shape, carry) == ((2, 4), (2, 4))
            return self.both(y, rngs=nnx.Rngs(0))

    model = Model(nnx.Rngs(0))
    outputs = nnx.eval_shape(lambda model, x: model(x), model, jnp.ones((2, 3, 3)))
    assert outputs.shape == (2, 3, 8)
    assert nnx.split(Model(nnx.Rngs(0)))[0] == nnx.split(model)[0]
    # Keys are drawn one after the other, so no two layers begin alike.
    assert not np.array_equal(
        model.lstm.cell_params["recurrent_kernel"][:, :4],
        model.both.backward_rnn.cell_params["recurrent_kernel"],
    )


def test_arguments_that_do_not_fit() -> None:
    model = make_model()
    inputs = jnp.ones((BATCH, TIME, FEATURES))
    with pytest.raises(InvalidInputError, match="seq_lengths must lie between 0 and the 5 steps"):
        model(inputs, seq_lengths=jnp.full(BATCH, TIME + 1))
    with pytest.raises(InvalidInputError, match=r"mask must have shape \(5, 3\), \(time"):
        model(jnp.swapaxes(inputs, 0, 1), mask=jnp.ones((BATCH, TIME), bool), time_major=True)
    with pytest.raises(InvalidInputError, match=r"rngs must be an nnx\.Rngs"):
        model(inputs, rngs=jax.random.key(0))
    with pytest.raises(InvalidInputError, match="initial_carry must be a pair"):
        rnnjax.nnx.Bidirectional(model, model)(inputs, initial_carry=jnp.ones(3))


def test_a_cell_whose_parts_were_exchanged_runs_as_it_is(assert_close: Any) -> None:
    cell = nnx.GRUCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    before = rnnjax.nnx.RNN(cell)(INPUTS)
    cell.dense_i = nnx.LoRALinear(FEATURES, 3 * HIDDEN, lora_rank=2, rngs=nnx.Rngs(1))
    cell.dense_i.lora.lora_b[...] = jnp.ones((2, 3 * HIDDEN))
    after = rnnjax.nnx.RNN(cell)(INPUTS)
    assert not np.allclose(before, after)
    assert_close(after, nnx.RNN(cell)(INPUTS), 1e-5)


RNGS = nnx.Rngs(0)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (
            lambda: rnnjax.nnx.RNN(nnx.Linear(3, 4, rngs=RNGS)),
            "cell must be a cell of rnnjax .* is a Linear",
        ),
        (lambda: rnnjax.nnx.RNN(GRUCell(4), rngs=RNGS), "needs in_features"),
        (lambda: rnnjax.nnx.RNN(GRUCell(4), 3), "rngs, an nnx.Rngs"),
        (
            lambda: rnnjax.nnx.RNN(rnnjax.nnx.GRUCell(3, 4, rngs=RNGS), 5),
            "in_features must be 3",
        ),
        (
            lambda: rnnjax.nnx.RNN(GRUCell(4), 3, rngs=RNGS, state_axes={...: 0}),
            "state_axes must be left at its default.*nothing to lift",
        ),
        (
            lambda: rnnjax.nnx.RNN(GRUCell(4), 3, rngs=RNGS, broadcast_rngs="dropout"),
            "broadcast_rngs",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(build: Callable[[], Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        build()


TYPES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": jnp.bfloat16},
    "all": {
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.bfloat16,
        "recurrent_kernel_init": nnx.initializers.lecun_normal(),
    },
    "inputs": {},
}


# A type is promoted alike for all cells.
ORDINARY = {("lstm", "inputs"), ("lstm", "all"), ("gru", "dtype")}


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        pytest.param(
            kind,
            types,
            marks=[] if (kind, types) in ORDINARY else pytest.mark.slow,
        )
        for kind in ("lstm", "optimized-lstm", "gru")
        for types in TYPES
    ],
)
def test_types_are_those_of_flax(kind: str, types: str, assert_close: Any) -> None:
    inputs = INPUTS.astype(jnp.bfloat16) if types == "inputs" else INPUTS
    cell = CELLS[kind](FEATURES, HIDDEN, rngs=nnx.Rngs(0), **TYPES[types])
    expected, actual = (m.RNN(cell, return_carry=True)(inputs) for m in (nnx, rnnjax.nnx))
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (actual, expected)]
    assert kinds[0] == kinds[1]
    assert_close(actual, expected, 1e-5 if types == "inputs" else 2e-2)


def test_integers_become_what_flax_makes_of_them(assert_close: Any) -> None:
    inputs = np.arange(BATCH * TIME * FEATURES).reshape(BATCH, TIME, -1) % 3
    cell = CELLS["simple"](FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    assert_close(rnnjax.nnx.RNN(cell)(inputs), nnx.RNN(cell)(inputs), 1e-5)
    for cell, size in ((GRUCell(HIDDEN), FEATURES), (Leaky(HIDDEN, rngs=nnx.Rngs(0)), None)):
        with pytest.raises(InvalidInputError, match=r"^inputs .*floating-point.*inputs\.astype"):
            rnnjax.nnx.RNN(cell, size, rngs=nnx.Rngs(0))(inputs)


class Constants(Leaky):
    """A cell that reads more than parameters, and writes none of it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(HIDDEN, noise=0.5, rngs=rngs)
        self.dropout.deterministic = True
        self.scale, self.shift = jnp.full(HIDDEN, 2.0), np.arange(HIDDEN, dtype=np.float32)
        self.mean, self.power = nnx.BatchStat(jnp.ones(HIDDEN)), nnx.Variable(jnp.array(3))

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry, y = super().__call__(carry, inputs)
        return carry, (y - self.mean[...]) * self.scale + self.shift**self.power


def test_a_cell_may_read_variables_of_any_kind(assert_close: Any) -> None:
    cell = Constants(nnx.Rngs(0))
    kinds = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.BatchStat))

    def gradient(module: Any, **marks: Any) -> Any:
        def loss(cell: Any) -> jax.Array:
            return jnp.sum(module.RNN(cell)(INPUTS, **marks) ** 2)

        return jax.tree.leaves(nnx.jit(nnx.grad(loss, argnums=kinds))(cell))

    expected = gradient(nnx)
    assert len(expected) == 3
    assert_close(gradient(rnnjax.nnx), expected, 1e-5)
    masked = gradient(rnnjax.nnx, mask=np.ones((BATCH, TIME), bool))
    assert_close(masked, expected, 1e-5)
    model = rnnjax.nnx.RNN(cell)
    model(INPUTS)
    cell.mean[...] = jnp.full(HIDDEN, 5.0)
    cell.shift = cell.shift + 1
    assert_close(model(INPUTS), nnx.RNN(cell)(INPUTS), 1e-5)
    assert_close(nnx.jit(lambda m, x: m(x))(model, INPUTS), nnx.RNN(cell)(INPUTS), 1e-5)


@pytest.mark.parametrize("closure", [False, True], ids=["module", "closure"])
def test_an_activation_with_parameters(closure: bool, assert_close: Any) -> None:
    act = nnx.PReLU()
    cell = nnx.SimpleCell(
        FEATURES,
        HIDDEN,
        activation_fn=(lambda x: act(x)) if closure else act,
        rngs=nnx.Rngs(0),
    )
    theirs, ours = (m.RNN(cell, return_carry=True) for m in (nnx, rnnjax.nnx))
    for slope in (0.01, 0.9):  # a program that was compiled for the first knows of the second
        act.negative_slope[...] = jnp.array(slope)
        assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)


def test_errors_speak_of_the_axes_of_the_caller() -> None:
    wrong = jnp.ones((BATCH, TIME, 3))
    for model in (make_model(), rnnjax.nnx.RNN(nnx.GRUCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)))):
        for time_major, axes in ((False, "batch, time"), (True, "time, batch")):
            match = rf"^inputs has 3 .* of inputs \({axes}, features\)"
            with pytest.raises(InvalidInputError, match=match):
                model(wrong, time_major=time_major)
    with pytest.raises(TypeError, match="masks"):
        make_model()(wrong, masks=None)


def test_state_and_drawn_carries_are_those_of_flax(assert_close: Any) -> None:
    """A state of the one goes into the other, and so do the random numbers."""

    def build(module: Any) -> Any:
        rngs = nnx.Rngs(0)
        cells = [kind(FEATURES, HIDDEN, rngs=rngs) for kind in (nnx.GRUCell, nnx.LSTMCell)]
        for cell in cells:
            cell.carry_init = nnx.initializers.normal()
        return module.Bidirectional(*(module.RNN(cell) for cell in cells))

    theirs, ours = build(nnx), build(rnnjax.nnx)
    assert isinstance(ours, nnx.Bidirectional)
    assert isinstance(ours.forward_rnn, nnx.RNN)
    states = [nnx.to_flat_state(nnx.state(module)).paths for module in (ours, theirs)]
    assert states[0] == states[1]
    for _ in range(2):
        assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)
