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
import pytest
from cell_table import OwnStepCell
from flax.errors import ScopeParamShapeError

import rnnjax
import rnnjax.linen
from rnnjax import Fused, GRUCell, InvalidInputError, LSTMCell, Stack

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
KEY = jax.random.key(0)
INPUTS = np.random.default_rng(1).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)


# Flax's own cell draws them; where its numbers come from, and under which names they stand, is the
# same for all.
@pytest.mark.parametrize(
    ("name", "time_major"),
    [
        *((name, False) for name in ("gru", "simple")),
        *(
            pytest.param(name, name == "lstm", marks=pytest.mark.slow)
            for name in ("lstm", "optimized-lstm", "mgu", "residual", "mgu-no-reset")
        ),
    ],
)
def test_parameters_from_a_seed_are_those_of_flax(
    name: str, time_major: bool, assert_close: Any
) -> None:
    cell = CELLS[name](HIDDEN)

    @jax.jit
    def both() -> Any:
        models = (m.RNN(cell, time_major=time_major) for m in (nn, rnnjax.linen))
        return [model.init(KEY, INPUTS) for model in models]

    assert_close(*both(), 0)


@pytest.mark.parametrize(
    ("name", "flags"),
    # All of the flags once; what the cells differ in are the numbers of a step.
    [("simple", flags) for flags in FLAGS]
    + [(name, FLAGS[3]) for name in CELLS if name != "simple"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_equals_flax(
    name: str, flags: dict[str, bool], random_like: Callable[..., Any], assert_close: Any
) -> None:
    """Flax's numbers from its parameters and carries, with lengths and without.

    The flags are once attributes, and once arguments of the call, which mean the same.
    """
    cell = CELLS[name](HIDDEN)
    theirs, ours = nn.RNN(cell, **flags), rnnjax.linen.RNN(cell, **flags)
    inputs = np.swapaxes(INPUTS, 0, 1) if flags.get("time_major") else INPUTS
    variables = random_like(lambda: theirs.init(KEY, inputs), 2)
    carry = random_like(lambda: cell.initialize_carry(KEY, (BATCH, FEATURES)), 3)
    initial = None if flags == {"return_carry": True} else carry

    @jax.jit
    def both(variables: Any, initial: Any) -> Any:
        def run(module: Any, lengths: Any, **flags: bool) -> Any:
            return module.apply(
                variables, inputs, initial_carry=initial, seq_lengths=lengths, **flags
            )

        pairs = [(run(ours, LENGTHS), run(theirs, LENGTHS))]
        if name == "simple":
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
        (True, LENGTHS),
        pytest.param(False, LENGTHS, marks=pytest.mark.slow),
        pytest.param(False, None, marks=pytest.mark.slow),
    ],
)
def test_bidirectional_equals_flax(
    time_major: bool, lengths: Any, random_like: Callable[..., Any], assert_close: Any
) -> None:
    models, small = (
        [m.Bidirectional(m.RNN(first), m.RNN(second)) for m in (nn, rnnjax.linen)]
        for first, second in (
            (nn.LSTMCell(HIDDEN), nn.GRUCell(HIDDEN)),
            (nn.SimpleCell(HIDDEN), nn.SimpleCell(HIDDEN)),
        )
    )
    zeros = jax.ShapeDtypeStruct((BATCH, HIDDEN), float)
    carry = random_like(((zeros, zeros), zeros), 1)
    inputs = np.swapaxes(INPUTS, 0, 1) if time_major else INPUTS
    variables = random_like(lambda: models[0].init(KEY, inputs), 2)

    @jax.jit
    def both(variables: Any, carry: Any) -> Any:
        given = {"seq_lengths": lengths, "time_major": time_major, "return_carry": True}
        runs = [m.apply(variables, inputs, initial_carry=carry, **given) for m in models]
        return runs, [m.init(KEY, inputs) for m in small]

    ((expected_carries, expected), (carries, outputs)), begun = both(variables, carry)
    assert_close(*begun, 0)
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
    inputs = np.random.default_rng(1).normal(size=(BATCH, TIME, *grid, FEATURES)).astype("f")
    theirs, ours = (m.RNN(cell, return_carry=True) for m in (nn, rnnjax.linen))
    resets = np.zeros((BATCH, TIME), bool)
    resets[:, 2] = True

    @jax.jit
    def pairs() -> Any:
        variables = theirs.init(KEY, inputs)
        drawn = {"init_key": jax.random.key(5)}
        _, outputs = ours.apply(variables, inputs, resets=resets)
        return [
            (ours.init(KEY, inputs), variables),
            (ours.apply(variables, inputs, **drawn), theirs.apply(variables, inputs, **drawn)),
            # And it has what Flax's has not: a reset begins anew with the module's own carry.
            (outputs[:, 2:], theirs.apply(variables, inputs[:, 2:])[1]),
        ]

    for pair, tolerance in zip(pairs(), (0, 1e-5, 1e-5), strict=True):
        assert_close(*pair, tolerance)


def test_a_cell_that_keeps_more_than_parameters_is_refused() -> None:
    class Counting(Leaky):
        @nn.compact
        def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            self.variable("counts", "steps", jnp.zeros, ())
            return carry, nn.Dense(self.features)(inputs)

    with pytest.raises(InvalidInputError, match=r"Counting has .* \['counts'\].*flax.linen.RNN"):
        jax.eval_shape(rnnjax.linen.RNN(Counting(4)).init, KEY, INPUTS)


def test_the_scanned_rnn_of_purejaxrl(random_like: Any, assert_close: Any) -> None:
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
                return cell.initialize_carry(KEY, (batch, size))

        return ScannedRNN()

    rng = np.random.default_rng(0)
    x = np.swapaxes(INPUTS, 0, 1), rng.random((TIME, BATCH)) < 0.3
    ours, theirs = make(rnnjax.linen), make(nn)
    carry = np.zeros((BATCH, HIDDEN), np.float32)
    variables = random_like(lambda: ours.init(KEY, carry, x), 1)

    (name,) = variables["params"]
    assert name == "GRUCell_1"  # the first one is made for its zeros

    class Short(nn.Module):  # the module of docs/from/purejaxrl.md
        @nn.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            ins, resets = x
            cell = nn.GRUCell(HIDDEN, name=name)
            layer = rnnjax.linen.RNN(cell, time_major=True, return_carry=True)
            return layer(ins, initial_carry=carry, resets=resets)

    @jax.jit
    def runs(variables: Any) -> Any:
        initial = [module.init(KEY, carry, x) for module in (theirs, Short())]
        return initial, [module.apply(variables, carry, x) for module in (ours, theirs, Short())]

    (first, again), (same, expected, short) = runs(variables)
    assert_close(again, first, 0)
    assert_close(same, expected, 0)
    assert_close(short, expected, 1e-5)


@pytest.mark.parametrize(
    ("gate", "activation"),
    [
        (jax.nn.hard_sigmoid, jnp.sin),
        pytest.param("sigmoid", "tanh", marks=pytest.mark.slow),
    ],
)
def test_options_of_a_cell_are_heeded(
    gate: Any, activation: Any, random_like: Any, assert_close: Any
) -> None:
    options = {} if gate == "sigmoid" else {"gate_fn": gate, "activation_fn": activation}
    options |= {"recurrent_kernel_init": nn.initializers.lecun_normal()}  # which bfloat16 has
    cell = nn.LSTMCell(HIDDEN, dtype=jnp.float32, param_dtype=jnp.bfloat16, **options)
    shapes = jax.eval_shape(rnnjax.linen.RNN(cell).init, KEY, INPUTS)
    assert shapes["params"]["cell"]["ii"]["kernel"].dtype == jnp.bfloat16
    variables = random_like(shapes, 2, jnp.bfloat16)
    start = tuple(np.zeros((2, BATCH, HIDDEN), np.float32))

    @jax.jit
    def both(variables: Any) -> Any:
        return [
            module.RNN(cell).apply(variables, INPUTS, initial_carry=start)
            for module in (rnnjax.linen, nn)
        ]

    assert_close(*both(variables), 1e-2)


def test_bidirectional_options(random_like: Any, assert_close: Any) -> None:
    directions = [rnnjax.linen.RNN(GRUCell(HIDDEN)) for _ in range(2)]
    summed = rnnjax.linen.Bidirectional(*directions, merge_fn=jnp.add, return_carry=True)
    variables = random_like(lambda: summed.init(KEY, INPUTS), 2)
    # Resets and masks reach both directions, and so do the carries of a pair.
    cell = directions[0].cell
    resets, mask = np.zeros((BATCH, TIME), bool), np.ones((BATCH, TIME), bool)
    resets[0, 2], mask[1, 3] = True, False
    ones = rnnjax.GRUCarry(np.ones(HIDDEN, np.float32))

    @jax.jit
    def runs(variables: Any) -> Any:
        plain = summed.apply(variables, INPUTS)
        apart = rnnjax.linen.Bidirectional(*directions).apply(variables, INPUTS, init_key=None)
        marked = summed.apply(
            variables, INPUTS, mask=mask, resets=resets, reset_carry=(ones, None), reverse=True
        )
        by_hand = [
            rnnjax.unroll(
                cell,
                variables["params"][name]["cell"],
                np.swapaxes(INPUTS, 0, 1),
                mask=mask.T,
                resets=resets.T,
                reset_carry=reset_carry,
                reverse=reset_carry is None,
            )[1]
            for name, reset_carry in (("forward_rnn", ones), ("backward_rnn", None))
        ]
        return plain, apart, marked[1], by_hand

    (carries, outputs), apart, marked, by_hand = jax.device_get(runs(variables))
    assert isinstance(carries, tuple)
    assert_close(outputs, apart[..., :HIDDEN] + apart[..., HIDDEN:], 1e-6)
    assert_close(marked, np.swapaxes(sum(by_hand), 0, 1), 1e-6)
    with pytest.raises(InvalidInputError, match=r"initial_carry must be a pair"):
        summed.apply(variables, INPUTS, initial_carry=ones)


@pytest.mark.parametrize(
    ("batch", "time_major"),
    [
        ((), True),
        ((2, 3), False),
        pytest.param((), False, marks=pytest.mark.slow),
        pytest.param((2, 3), True, marks=pytest.mark.slow),
    ],
)
def test_masks_and_resets(
    batch: tuple[int, ...], time_major: bool, random_like: Any, assert_close: Any
) -> None:
    cell, rng = GRUCell(HIDDEN), np.random.default_rng(0)
    params = random_like(lambda: cell.init(KEY, FEATURES), 1)
    xs = rng.normal(size=(TIME, *batch, FEATURES)).astype(np.float32)
    marks = {"mask": rng.random(xs.shape[:-1]) < 0.7, "resets": rng.random(xs.shape[:-1]) < 0.3}
    lengths = np.full(batch, TIME - 1)
    start = rnnjax.GRUCarry(np.ones(HIDDEN, np.float32))
    expected = rnnjax.unroll(cell, params, xs, lengths=lengths, reset_carry=start, **marks)
    if not time_major:
        xs = np.moveaxis(xs, 0, -2)
        marks = {name: np.moveaxis(value, 0, -1) for name, value in marks.items()}
    carry, outputs = rnnjax.linen.RNN(cell, time_major=time_major).apply(
        {"params": {"cell": params}},
        xs,
        seq_lengths=lengths,
        reset_carry=start,
        return_carry=True,
        **marks,
    )
    outputs = np.asarray(outputs)
    assert_close((carry, outputs if time_major else np.moveaxis(outputs, -2, 0)), expected, 1e-6)


def test_lengths_of_none_and_of_more_than_all(random_like: Any, assert_close: Any) -> None:
    cell, inputs = GRUCell(HIDDEN), INPUTS[:2]
    model = rnnjax.linen.RNN(cell, return_carry=True, reverse=True)
    variables = random_like(lambda: model.init(KEY, inputs), 2)
    ones = rnnjax.GRUCarry(np.ones((2, HIDDEN), np.float32))
    carry, outputs = jax.jit(model.apply)(
        variables, inputs, initial_carry=ones, seq_lengths=np.array([0, TIME + 1])
    )
    whole = np.array(model.apply(variables, inputs, initial_carry=ones)[1])
    whole[0] = 0
    assert_close(outputs, whole, 1e-6)
    np.testing.assert_array_equal(carry.hidden[0], 1)


def test_dropout_draws_with_its_rng(random_like: Any, assert_close: Any) -> None:
    cell = rnnjax.Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.5)
    model = rnnjax.linen.RNN(cell)
    variables = random_like(lambda: model.init(KEY, INPUTS), 2)
    quiet = np.asarray(model.apply(variables, INPUTS))
    noisy = [
        np.asarray(model.apply(variables, INPUTS, rngs={"dropout": jax.random.key(seed)}))
        for seed in (0, 0, 1)
    ]
    assert_close(noisy[0], noisy[1], 0)
    assert not np.allclose(noisy[0], noisy[2])
    assert not np.allclose(noisy[0], quiet)
    _, ys = rnnjax.unroll(cell, variables["params"]["cell"], np.swapaxes(INPUTS, 0, 1))
    assert_close(quiet, np.swapaxes(ys, 0, 1), 1e-6)

    # Each direction draws for itself, also where both share their parameters.
    both = rnnjax.linen.Bidirectional(rnnjax.linen.RNN(cell), rnnjax.linen.RNN(cell))
    params = {"params": dict.fromkeys(("forward_rnn", "backward_rnn"), variables["params"])}
    outputs = np.asarray(both.apply(params, np.ones_like(INPUTS), rngs={"dropout": KEY}))
    assert not np.allclose(outputs[:, :, :HIDDEN], outputs[:, ::-1, HIDDEN:])


def test_flax_code_runs_with_the_import_changed() -> None:
    """The examples of Flax's documentation, with ``flax.linen`` in the place of rnnjax's."""
    from rnnjax import linen as nn

    assert nn.Dense is flax.linen.Dense
    lstm = nn.RNN(
        nn.LSTMCell(6),
        return_carry=True,
        unroll=1,
        variable_axes={},
        variable_broadcast="params",
        variable_carry=False,
        split_rngs={"params": False},
    )
    layer = nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)))

    def run(x: jax.Array, unbatched: jax.Array) -> Any:
        variables = lstm.init(KEY, x)
        of_lstm = lstm.apply(variables, x, init_key=jax.random.key(1))
        return of_lstm, layer.apply(layer.init(KEY, unbatched), unbatched)

    ((carry, y), both) = jax.eval_shape(run, np.ones((10, 7, 3), "f"), np.ones((2, 3), "f"))
    assert jax.tree.map(lambda leaf: leaf.shape, carry) == ((10, 6), (10, 6))
    assert (y.shape, both.shape) == ((10, 7, 6), (2, 8))


def test_a_flag_of_the_call_overrides_the_attribute(random_like: Any, assert_close: Any) -> None:
    model = rnnjax.linen.RNN(
        LSTMCell(HIDDEN), time_major=True, return_carry=True, reverse=True, keep_order=True
    )
    variables = random_like(lambda: model.init(KEY, INPUTS), 2)
    off = {"time_major": False, "return_carry": False, "reverse": False, "keep_order": False}
    expected = rnnjax.linen.RNN(LSTMCell(HIDDEN)).apply(variables, INPUTS)
    assert_close(model.apply(variables, INPUTS, **off), expected, 1e-6)


def test_errors() -> None:
    model = rnnjax.linen.RNN(LSTMCell(HIDDEN))
    with pytest.raises(InvalidInputError, match=r"\(\*batch, time, features\).*shape \(5,\)"):
        model.init(KEY, np.ones(5, "f"))
    with pytest.raises(InvalidInputError, match=r"\(time, \*batch, features\)"):
        model.init(KEY, np.ones(5, "f"), time_major=True)

    def run(inputs: Any, **given: Any) -> Any:
        return jax.eval_shape(lambda: model.apply(model.init(KEY, INPUTS), inputs, **given))

    with pytest.raises(ScopeParamShapeError, match="cell"):
        run(np.ones((BATCH, TIME, FEATURES + 1), "f"))
    with pytest.raises(InvalidInputError, match=r"hidden.*\(3, 4\)"):
        run(INPUTS, initial_carry=rnnjax.LSTMCarry(*np.zeros((2, BATCH + 1, HIDDEN), "f")))
    with pytest.raises(InvalidInputError, match="declares no carry"):
        rnnjax.linen.RNN(OwnStepCell(4), method=Fused()).init(KEY, INPUTS)


def test_arguments_that_do_not_fit(random_like: Any) -> None:
    model = rnnjax.linen.RNN(GRUCell(HIDDEN))
    variables = random_like(lambda: model.init(KEY, INPUTS), 2)
    for arguments, match in (
        ({"seq_lengths": np.ones((BATCH, TIME), int)}, r"seq_lengths must have shape \(3,\)"),
        ({"seq_lengths": np.ones(BATCH, "f")}, "seq_lengths must be integers, the number"),
        ({"seq_lengths": np.full(BATCH, TIME + 1)}, "0 and the 5 steps of inputs, .*time_m"),
        ({"mask": np.ones((TIME, BATCH), bool)}, r"mask must have shape \(3, 5\), \(\*batch"),
        ({"resets": np.ones((BATCH, TIME), "f")}, "resets must be booleans"),
        ({"reset_carry": np.ones(HIDDEN, "f")}, "reset_carry must be shaped like"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            model.apply(variables, INPUTS, **arguments)


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


@pytest.mark.parametrize("time_major", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_cell_around_another_and_outputs_of_any_shape(
    time_major: bool, random_like: Any, assert_close: Any
) -> None:
    theirs, ours = (
        m.RNN(Wrapped(nn.LSTMCell(HIDDEN)), time_major=time_major, reverse=True)
        for m in (nn, rnnjax.linen)
    )
    variables = random_like(lambda: theirs.init(KEY, INPUTS), 2)
    assert_close(*jax.jit(lambda v: [m.apply(v, INPUTS) for m in (ours, theirs)])(variables), 1e-5)


def test_what_a_carry_is_drawn_with(random_like: Any, assert_close: Any) -> None:
    cell = nn.GRUCell(HIDDEN, carry_init=nn.initializers.normal())
    models = [
        m.Bidirectional(m.RNN(cell), m.RNN(nn.SimpleCell(HIDDEN))) for m in (nn, rnnjax.linen)
    ]
    variables = random_like(lambda: models[0].init(KEY, INPUTS), 2)

    @jax.jit
    def both(variables: Any) -> Any:
        keys = None, jax.random.key(7)
        return [[m.apply(variables, INPUTS, init_key=key) for key in keys] for m in models]

    assert_close(*both(variables), 1e-5)


@pytest.mark.parametrize("carry", ["ours", "triple"])
def test_a_carry_that_is_not_of_flax_is_refused(carry: str) -> None:
    zeros = np.zeros((BATCH, HIDDEN), np.float32)
    given = rnnjax.LSTMCarry(zeros, zeros) if carry == "ours" else (zeros,) * 3
    model = rnnjax.linen.RNN(nn.LSTMCell(HIDDEN))
    with pytest.raises(InvalidInputError, match=r"must be the pair \(c, h\)"):
        jax.eval_shape(lambda: model.apply(model.init(KEY, INPUTS), INPUTS, initial_carry=given))


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
    rng = np.random.default_rng(1)
    inputs = INPUTS.astype(jnp.bfloat16) if types == "inputs" else INPUTS
    theirs, ours = (
        m.RNN(CELLS[kind](HIDDEN, **TYPES[types]), return_carry=True) for m in (nn, rnnjax.linen)
    )
    shapes, begun = (jax.eval_shape(m.init, KEY, inputs) for m in (theirs, ours))
    assert begun == shapes
    variables = jax.tree.map(lambda a: (0.6 * rng.normal(size=a.shape)).astype(a.dtype), shapes)
    run = jax.jit(lambda variables: [m.apply(variables, inputs) for m in (theirs, ours)])
    expected, actual = run(variables)
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (actual, expected)]
    assert kinds[0] == kinds[1]
    assert_close(actual, expected, 1e-5 if types == "inputs" else 2e-2)


@pytest.mark.parametrize("dtype", [int, bool, jnp.uint8])
def test_integers_become_what_flax_makes_of_them(
    dtype: Any, random_like: Any, assert_close: Any
) -> None:
    inputs = (np.arange(BATCH * TIME * FEATURES).reshape(BATCH, TIME, -1) % 3).astype(dtype)
    theirs, ours = (m.RNN(nn.SimpleCell(HIDDEN)) for m in (nn, rnnjax.linen))
    variables = random_like(lambda: ours.init(KEY, inputs), 2)
    assert_close(*jax.jit(lambda v: [m.apply(v, inputs) for m in (ours, theirs)])(variables), 1e-5)
    for cell in (GRUCell(HIDDEN), Leaky(HIDDEN)):
        with pytest.raises(InvalidInputError, match=r"^inputs .*floating-point.*inputs\.astype"):
            jax.eval_shape(rnnjax.linen.RNN(cell).init, KEY, inputs)


class Activated(nn.Module):
    """An activation with parameters, which are the parent's."""

    rnn: Any
    closure: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, **marks: Any) -> jax.Array:
        act = nn.PReLU()
        function = (lambda x: act(x)) if self.closure else act
        outputs = self.rnn(nn.SimpleCell(HIDDEN, activation_fn=function))(inputs, **marks)
        return nn.Dense(1)(outputs)


@pytest.mark.parametrize("closure", [False, True], ids=["module", "closure"])
def test_an_activation_with_parameters(closure: bool, random_like: Any, assert_close: Any) -> None:
    theirs, ours = (Activated(m.RNN, closure) for m in (nn, rnnjax.linen))
    shapes = jax.eval_shape(ours.init, KEY, INPUTS)
    assert set(shapes["params"]) == {"SimpleCell_0", "PReLU_0", "Dense_0"}
    if not closure:  # there flax 0.12.12 with JAX 0.12 hands out a tracer of its own scan
        assert_close(*jax.jit(lambda: [m.init(KEY, INPUTS) for m in (ours, theirs)])(), 0)
    variables, mask = random_like(shapes, 2), np.ones((BATCH, TIME), bool)

    @jax.jit
    def gradients(variables: Any) -> Any:
        def of(module: Any, **marks: Any) -> Any:
            return jax.grad(lambda v: jnp.sum(module.apply(v, INPUTS, **marks) ** 2))(variables)

        return of(theirs), of(ours), of(ours, mask=mask)

    expected, *both = gradients(variables)
    for actual in both:
        assert_close(actual, expected, 1e-5)
    # And outside of jit, other parameters are other numbers.
    other = random_like(variables, 3)
    assert_close(ours.apply(other, INPUTS), theirs.apply(other, INPUTS), 1e-5)


class Shared(nn.Module):
    """One cell in three RNNs, one of them around it."""

    rnn: Any

    def setup(self) -> None:
        self.cell = nn.SimpleCell(HIDDEN)
        self.first = self.rnn(self.cell)
        self.second = self.rnn(self.cell, reverse=True)
        self.third = self.rnn(Wrapped(self.cell))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.first(inputs) + self.second(inputs) + self.third(inputs)[0]


def test_a_cell_of_the_parent_in_several(assert_close: Any) -> None:
    theirs, ours = (Shared(m.RNN) for m in (nn, rnnjax.linen))
    variables, begun = jax.jit(lambda: [m.init(KEY, INPUTS) for m in (theirs, ours)])()
    assert set(variables["params"]) == {"cell"}
    assert_close(begun, variables, 0)

    @jax.jit
    def both(variables: Any) -> Any:
        return [
            jax.value_and_grad(lambda v, m=m: jnp.sum(m.apply(v, INPUTS) ** 2))(variables)
            for m in (ours, theirs)
        ]

    assert_close(*both(variables), 1e-5)
    # What a step leaves besides is dropped, and no tracer stays behind.
    _, state = ours.apply(variables, INPUTS, capture_intermediates=True)
    jax.tree.map(np.asarray, state)


def test_the_grid_of_a_convolution_is_not_time(random_like: Any, assert_close: Any) -> None:
    cell = rnnjax.ConvLSTMCell(2, kernel_shape=(3,))
    inputs = np.random.default_rng(1).normal(size=(BATCH, TIME, 6, FEATURES)).astype(np.float32)
    for one in (cell, Stack([cell])):
        model = rnnjax.linen.RNN(one)
        variables = random_like(lambda model=model: model.init(KEY, inputs), 2)
        _, ys = rnnjax.unroll(one, variables["params"]["cell"], np.swapaxes(inputs, 0, 1))
        assert_close(model.apply(variables, inputs), np.swapaxes(ys, 0, 1), 1e-6)


@pytest.mark.parametrize("time_major", [False, True])
def test_errors_speak_of_the_axes_of_the_caller(time_major: bool, random_like: Any) -> None:
    model = rnnjax.linen.RNN(nn.GRUCell(HIDDEN), time_major=time_major)
    variables = random_like(lambda: model.init(KEY, INPUTS), 2)
    axes = "time, batch" if time_major else "batch, time"
    with pytest.raises(InvalidInputError, match=rf"^inputs has 3 .* of inputs \({axes}, features"):
        model.apply(variables, np.ones((BATCH, TIME, 3), "f"))
    four = np.ones((4, 4, FEATURES), "f")
    for cell in (nn.GRUCell(HIDDEN), Leaky(HIDDEN)):
        with pytest.raises(InvalidInputError, match=r"initial_carry must begin with \(4,\)"):
            rnnjax.linen.RNN(cell).init(KEY, four, initial_carry=np.ones((5, HIDDEN), "f"))
    with pytest.raises(TypeError, match="masks"):
        model.apply(variables, four, masks=None)


def test_they_are_flaxs_modules() -> None:
    """Whoever asks for Flax's classes, or reads their fields in their order, finds them."""
    for name in ("RNN", "Bidirectional"):
        ours, theirs = getattr(rnnjax.linen, name), getattr(nn, name)
        assert issubclass(ours, theirs)
        fields = [[f.name for f in dataclasses.fields(one) if f.init] for one in (ours, theirs)]
        assert [f for f in fields[0] if f != "method"] == fields[1]
