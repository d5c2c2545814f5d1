"""`rnnjax.linen` and `rnnjax.nnx` against Flax's own layers and cells, and under its transforms."""

import dataclasses
import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell, refusals
from flax import nnx
from flax.errors import ScopeParamShapeError

import rnnjax
import rnnjax.linen
import rnnjax.nnx
from rnnjax import Fused, GRUCarry, GRUCell, LSTMCell, Scan, Stack

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4
KEY = jax.random.key(0)
INPUTS = np.random.default_rng(1).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
LENGTHS = np.array([TIME, 2, 1])
MODULES = {"linen": (rnnjax.linen, nn), "nnx": (rnnjax.nnx, nnx)}
CELLS: dict[str, dict[str, Any]] = {
    form: {
        "simple": flax.SimpleCell,
        "lstm": flax.LSTMCell,
        "optimized-lstm": flax.OptimizedLSTMCell,
        "gru": flax.GRUCell,
        "residual": functools.partial(flax.SimpleCell, residual=True),
        "functions": functools.partial(
            flax.LSTMCell, gate_fn=jax.nn.hard_sigmoid, activation_fn=jnp.sin
        ),
    }
    for form, (_, flax) in MODULES.items()
}
CELLS["linen"]["mgu"] = nn.MGUCell
CELLS["linen"]["mgu-no-reset"] = functools.partial(nn.MGUCell, reset_gate=False)
CELLS["nnx"]["promoting"] = functools.partial(
    nnx.GRUCell, promote_dtype=lambda arrays, dtype: arrays
)


def drawn(tree: Any, seed: int = 2) -> Any:
    """Normal numbers in the shapes and types of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), leaf.dtype), tree
    )


def make(form: str, name: str, **options: Any) -> Any:
    """A cell of Flax; in NNX with drawn parameters."""
    if form == "linen":
        return CELLS[form][name](HIDDEN, **options)
    cell = CELLS[form][name](FEATURES, HIDDEN, rngs=nnx.Rngs(0), **options)
    nnx.update(cell, drawn(nnx.state(cell, nnx.Param)))
    return cell


def both(form: str, build: Any, inputs: Any, alone: Any = None, **given: Any) -> Any:
    """What our layer returns and what Flax's does, with the same drawn parameters.

    ``build`` makes the layer from the module that has them; ``alone`` are arguments for ours only.
    """
    layers = [build(module) for module in MODULES[form]]
    calls = (given | (alone or {}), given)
    if form == "nnx":

        @nnx.jit
        def run(layers: Any) -> Any:
            return [layer(inputs, **call) for layer, call in zip(layers, calls, strict=True)]

        return run(layers)
    shapes = jax.eval_shape(lambda: layers[1].init(KEY, inputs, **given))

    @jax.jit
    def apply(variables: Any) -> Any:
        pairs = zip(layers, calls, strict=True)
        return [layer.apply(variables, inputs, **call) for layer, call in pairs]

    return apply(drawn(shapes))


def with_zeros(run: Any, time_major: bool) -> Any:
    """The carry and outputs of Flax, with zeros where it leaves what it made of the padding."""
    valid = np.arange(TIME) < LENGTHS[:, None]
    return run[0], np.where((valid.T if time_major else valid)[..., None], run[1], 0)


FLAGS = ("return_carry", "time_major", "reverse", "keep_order")


@pytest.mark.parametrize(
    ("form", "name", "flags"),
    # All of the flags once; what the cells differ in are the numbers of a step.
    [
        *(("linen", "simple", flags) for flags in ("", *FLAGS, "reverse time_major")),
        ("linen", "simple", "reverse keep_order"),
        *((form, "simple", "reverse keep_order time_major return_carry") for form in CELLS),
        *((form, name, "reverse return_carry") for form in CELLS for name in CELLS[form]),
    ],
)
def test_equals_flax(form: str, name: str, flags: str, assert_close: Any) -> None:
    """Flax's numbers from its parameters and carries, with lengths and without.

    Guards outputs in the order of computation, a residual SimpleCell, and a cell's own functions.

    The flags are once attributes, and once arguments of the call, which count more.
    """
    cell, given = make(form, name), {flag: flag in flags for flag in FLAGS}
    shape, rngs = (BATCH, FEATURES), nnx.Rngs(0)
    start = (KEY, shape) if form == "linen" else (shape, rngs)
    carry = None if flags == "return_carry" else drawn(cell.initialize_carry(*start), 3)
    inputs = np.swapaxes(INPUTS, 0, 1) if given["time_major"] else INPUTS
    runs = both(
        form, lambda m: m.RNN(cell, **given), inputs, initial_carry=carry, seq_lengths=LENGTHS
    )
    ours, theirs = runs if given["return_carry"] else [(None, outputs) for outputs in runs]
    assert_close(ours, with_zeros(theirs, given["time_major"]), 1e-5)
    if name == "simple":
        other = {flag: not value for flag, value in given.items()}
        runs = both(form, lambda m: m.RNN(cell, **other), inputs, initial_carry=carry, **given)
        assert_close(*runs, 1e-5)


@pytest.mark.parametrize(("form", "time_major"), [("linen", True), ("nnx", False)])
def test_bidirectional_equals_flax(form: str, time_major: bool, assert_close: Any) -> None:
    cells = make(form, "lstm"), make(form, "gru")
    zeros = np.zeros((BATCH, HIDDEN), np.float32)
    given = {"seq_lengths": LENGTHS, "time_major": time_major, "return_carry": True}
    ours, theirs = both(
        form,
        lambda m: m.Bidirectional(*map(m.RNN, cells)),
        np.swapaxes(INPUTS, 0, 1) if time_major else INPUTS,
        initial_carry=drawn(((zeros, zeros), zeros), 1),
        **given,
    )
    assert_close(ours, with_zeros(theirs, time_major), 1e-5)


def test_initial_parameters_and_carries_of_linen_are_those_of_flax(assert_close: Any) -> None:
    cells = nn.GRUCell(HIDDEN, carry_init=nn.initializers.normal()), nn.SimpleCell(HIDDEN)
    layers = [m.Bidirectional(*map(m.RNN, cells)) for m in MODULES["linen"]]

    @jax.jit
    def runs() -> Any:
        begun = [layer.init(KEY, INPUTS) for layer in layers]
        keys = None, jax.random.key(7)
        return begun, [[m.apply(begun[1], INPUTS, init_key=key) for key in keys] for m in layers]

    begun, outputs = runs()
    assert_close(*begun, 0)
    assert_close(*outputs, 1e-5)


def test_state_and_carries_of_nnx_are_those_of_flax(assert_close: Any) -> None:
    """A state of the one goes into the other, and so do the random numbers."""

    def build(module: Any) -> Any:
        rngs = nnx.Rngs(0)
        cells = [kind(FEATURES, HIDDEN, rngs=rngs) for kind in (nnx.GRUCell, nnx.LSTMCell)]
        for cell in cells:
            cell.carry_init = nnx.initializers.normal()
        return module.Bidirectional(*map(module.RNN, cells))

    ours, theirs = map(build, MODULES["nnx"])
    states = [nnx.to_flat_state(nnx.state(module)).paths for module in (ours, theirs)]
    assert states[0] == states[1]
    for _ in range(2):
        assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)


@pytest.mark.parametrize("form", MODULES)
def test_they_are_flaxs_modules(form: str) -> None:
    """Whoever asks for Flax's classes, or reads their fields in their order, finds them."""
    ours, theirs = MODULES[form]
    assert ours.Module is theirs.Module
    for name in ("RNN", "Bidirectional"):
        both = getattr(ours, name), getattr(theirs, name)
        assert issubclass(*both)
        if form == "linen":
            fields = [[f.name for f in dataclasses.fields(one) if f.init] for one in both]
            assert [f for f in fields[0] if f != "method"] == fields[1]


def test_arguments_of_flax_alone_are_taken() -> None:
    lifted = {"variable_axes": {}, "variable_carry": False, "split_rngs": {"params": False}}
    rnnjax.linen.RNN(nn.LSTMCell(6), unroll=1, variable_broadcast="params", **lifted)
    rngs = nnx.Rngs(0)
    cell = nnx.LSTMCell(in_features=3, hidden_features=4, rngs=rngs)
    layer = rnnjax.nnx.RNN(cell, unroll=1, state_axes=None, broadcast_rngs=None)
    both = rnnjax.nnx.Bidirectional(forward_rnn=layer, backward_rnn=layer, rngs=rngs)
    assert both(jnp.ones((2, 3))).shape == (2, 8)


class Leaky(nn.RNNCellBase):
    """A user's cell of Linen, of which rnnjax knows nothing."""

    features: int

    @nn.compact
    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = 0.5 * carry + jnp.tanh(nn.Dense(self.features)(inputs))
        return new, 2 * new

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(rng, (*input_shape[:-1], self.features))

    num_feature_axes = property(lambda self: 1)


def test_a_users_cell_is_compiled_once(compilations: list[str]) -> None:
    """Each call traces its step; the same step is the same cell."""
    model = rnnjax.linen.RNN(Leaky(HIDDEN))
    counts = [len(compilations)]
    variables = model.init(jax.random.key(0), INPUTS)
    for _ in range(2):
        model.apply(variables, INPUTS)
        counts.append(len(compilations))
    assert counts[0] < counts[1] == counts[2]


class Wrapped(Leaky):
    """A cell around another, which returns two outputs."""

    features: int = HIDDEN
    inner: Any = None

    def __call__(self, carry: Any, inputs: jax.Array) -> Any:
        carry, y = self.inner(carry, inputs)
        return carry, (y, jnp.argmax(y, -1))

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        return self.inner.initialize_carry(rng, input_shape)


class Counting(Leaky):
    """A cell that keeps more than parameters."""

    @nn.compact
    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        self.variable("counts", "steps", jnp.zeros, ())
        return carry, nn.Dense(self.features)(inputs)


class LeakyNnx(nnx.RNNCellBase):
    """A user's cell of NNX."""

    def __init__(self, noise: float = 0.0) -> None:
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(noise, rngs=rngs) if noise else None

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = 0.5 * carry + jnp.tanh(self.dense(inputs))
        return new, 2 * new if self.dropout is None else self.dropout(new)

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        return jnp.ones((*input_shape[:-1], HIDDEN))

    num_feature_axes = property(lambda self: 1)


# Of these Stoix's agents choose one by its name.
AGENTS = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell"]


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        *(("linen", getattr(rnnjax.linen, name)(HIDDEN)) for name in AGENTS),
        *(("linen", Leaky(HIDDEN)), ("linen", nn.ConvLSTMCell(2, (3,))), ("nnx", LeakyNnx())),
    ],
    ids=[*AGENTS, "linen", "conv", "nnx"],
)
def test_any_cell_of_flax_runs(form: str, cell: Any, assert_close: Any) -> None:
    """With its parameters, bit for bit, as docs/from/purejaxrl.md says."""
    grid = (6,) * (cell.num_feature_axes - 1)
    inputs = np.random.default_rng(1).normal(size=(BATCH, TIME, *grid, FEATURES)).astype("f")
    run = functools.partial(both, form, lambda m: m.RNN(cell, return_carry=True))
    # And it has what Flax's has not: a reset begins anew with the module's own carry.
    marks = {"resets": np.tile(np.arange(TIME) == 2, (BATCH, 1))}
    shape = (BATCH, *grid, FEATURES)
    begun = cell.initialize_carry(*((KEY, shape) if form == "linen" else (shape,)))
    (_, outputs), whole = run(inputs, alone=marks, initial_carry=drawn(begun))
    part = run(inputs[:, 2:])
    assert_close(outputs[:, 2:], part[1][1], 1e-5)
    assert_close(outputs[:, :2], whole[1][:, :2], 1e-5)
    assert_close(*part, 1e-5)
    if form == "linen":
        assert_close(*(jax.jit(m.RNN(cell).init)(KEY, inputs) for m in MODULES[form]), 0)


class Activated(nn.Module):
    """An activation with parameters, which are the parent's."""

    rnn: Any
    closure: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        act = nn.PReLU()
        function = (lambda x: act(x)) if self.closure else act
        return nn.Dense(1)(self.rnn(nn.SimpleCell(HIDDEN, activation_fn=function))(inputs))


class Shared(nn.Module):
    """One cell in three RNNs, one of them around it."""

    rnn: Any

    def setup(self) -> None:
        self.cell = nn.SimpleCell(HIDDEN)
        self.first = self.rnn(self.cell)
        self.second = self.rnn(self.cell, reverse=True)
        self.third = self.rnn(Wrapped(inner=self.cell), reverse=True)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        ys, largest = self.third(inputs)
        return self.first(inputs) + self.second(inputs) + ys + largest[..., None]


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (functools.partial(Activated, closure=False), {"SimpleCell_0", "PReLU_0", "Dense_0"}),
        (functools.partial(Activated, closure=True), {"SimpleCell_0", "PReLU_0", "Dense_0"}),
        (Shared, {"cell"}),
    ],
    ids=["module", "closure", "shared"],
)
def test_parameters_of_the_parent(build: Any, names: set[str], assert_close: Any) -> None:
    modules = ours, theirs = [build(m.RNN) for m in MODULES["linen"]]
    shapes = jax.eval_shape(ours.init, KEY, INPUTS)
    assert set(shapes["params"]) == names
    if not getattr(ours, "closure", False):
        # There flax 0.12.12 with JAX 0.12 hands out a tracer of its own scan.
        assert_close(*jax.jit(lambda: [m.init(KEY, INPUTS) for m in modules])(), 0)

    @jax.jit
    def gradients(variables: Any) -> Any:
        return [
            jax.value_and_grad(lambda v, m=m: jnp.sum(m.apply(v, INPUTS) ** 2))(variables)
            for m in modules
        ]

    assert_close(*gradients(drawn(shapes)), 1e-5)
    # Outside of jit other parameters are other numbers, and no tracer stays behind.
    other = drawn(shapes, 3)
    assert_close(ours.apply(other, INPUTS), theirs.apply(other, INPUTS), 1e-5)
    if build is Shared:
        jax.tree.map(np.asarray, ours.apply(other, INPUTS, capture_intermediates=True)[1])


@pytest.mark.parametrize("closure", [False, True], ids=["module", "closure"])
def test_a_cell_of_nnx_runs_as_what_it_is_now(closure: bool, assert_close: Any) -> None:
    act = nnx.PReLU()
    function = (lambda x: act(x)) if closure else act
    cell = nnx.SimpleCell(FEATURES, HIDDEN, activation_fn=function, rngs=nnx.Rngs(0))
    ours, theirs = (m.RNN(cell, return_carry=True) for m in MODULES["nnx"])
    for slope in (0.01, 0.9):  # a program that was compiled for the first knows of the second
        act.negative_slope[...] = jnp.array(slope)
        assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)
    cell.dense_i = nnx.LoRALinear(FEATURES, HIDDEN, lora_rank=2, rngs=nnx.Rngs(1))
    cell.dense_i.lora.lora_b[...] = jnp.ones((2, HIDDEN))
    assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "dtype"),
    [
        (nnx.OptimizedLSTMCell, "dense_i", None),  # with a bias, which Flax's own has not
        (nnx.SimpleCell, "dense_h", None),
        (nnx.GRUCell, "dense_i", jnp.float16),
    ],
)
def test_a_layer_in_the_place_of_a_cells_own_counts(
    kind: Any, name: str, dtype: Any, assert_close: Any
) -> None:
    cell = kind(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    like = getattr(cell, name).kernel.shape
    setattr(cell, name, nnx.Linear(*like, dtype=dtype, rngs=nnx.Rngs(1)))
    nnx.update(cell, drawn(nnx.state(cell, nnx.Param)))
    ours, theirs = (m.RNN(cell) for m in MODULES["nnx"])
    assert_close(ours(INPUTS), theirs(INPUTS), 1e-5)


class Constants(LeakyNnx):
    """A cell that reads more than parameters, and writes none of it."""

    def __init__(self) -> None:
        super().__init__(noise=0.5)
        self.dropout.deterministic = True
        self.scale, self.shift = jnp.full(HIDDEN, 2.0), np.arange(HIDDEN, dtype=np.float32)
        self.mean, self.power = nnx.BatchStat(jnp.ones(HIDDEN)), nnx.Variable(jnp.array(3))

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry, y = super().__call__(carry, inputs)
        return carry, (y - self.mean[...]) * self.scale + self.shift**self.power


def test_a_cell_may_read_variables_of_any_kind(assert_close: Any) -> None:
    cell = Constants()
    kinds = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.BatchStat))

    def gradient(module: Any, **marks: Any) -> Any:
        def loss(cell: Any) -> jax.Array:
            return jnp.sum(module.RNN(cell)(INPUTS, **marks) ** 2)

        return jax.tree.leaves(nnx.jit(nnx.grad(loss, argnums=kinds))(cell))

    expected = gradient(nnx)
    assert len(expected) == 3
    assert_close(gradient(rnnjax.nnx, mask=np.ones((BATCH, TIME), bool)), expected, 1e-5)
    model = rnnjax.nnx.RNN(cell)
    model(INPUTS)
    cell.mean[...] = jnp.full(HIDDEN, 5.0)
    cell.shift = cell.shift + 1
    assert_close(model(INPUTS), nnx.RNN(cell)(INPUTS), 1e-5)
    assert_close(nnx.jit(lambda m, x: m(x))(model, INPUTS), nnx.RNN(cell)(INPUTS), 1e-5)


IN_16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
TYPES: dict[str, tuple[dict[str, Any], Any]] = {
    "dtype": ({"dtype": jnp.bfloat16}, np.float32),
    # With an initialiser that bfloat16 has.
    "all": (IN_16 | {"recurrent_kernel_init": nn.initializers.lecun_normal()}, np.float32),
    **{np.dtype(inputs).name: ({}, inputs) for inputs in (jnp.bfloat16, int, bool, np.uint8)},
}


# A type is promoted alike for all cells. The state of a simple cell would change its type in Flax's
# loop with a dtype alone.
@pytest.mark.parametrize(
    ("form", "name", "types"),
    [
        ("linen", "lstm", "dtype"),
        *(("linen", "lstm", name) for name, (options, _) in TYPES.items() if not options),
        ("linen", "gru", "all"),
        ("linen", "residual", "all"),
        ("nnx", "gru", "dtype"),
        ("nnx", "lstm", "all"),
        ("nnx", "lstm", "int64"),
    ],
)
def test_types_are_those_of_flax(form: str, name: str, types: str, assert_close: Any) -> None:
    options, dtype = TYPES[types]
    cell, inputs = make(form, name, **options), np.abs(3 * INPUTS).astype(dtype)
    runs = both(form, lambda m: m.RNN(cell, return_carry=True), inputs)
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in runs]
    assert kinds[0] == kinds[1]
    assert_close(*runs, 2e-2 if options else 1e-5)


# Cells of rnnjax.


CONV = rnnjax.ConvLSTMCell(2, kernel_shape=(3,))
SOME_STEPS = np.array([[0, 1, 2], [3, TIME, TIME + 1]])


@pytest.mark.parametrize(
    ("cell", "lengths", "flags"),
    [
        (GRUCell(HIDDEN), TIME - 1, {}),
        (GRUCell(HIDDEN), SOME_STEPS, {"time_major": True}),
        (GRUCell(HIDDEN), SOME_STEPS, {"reverse": True, "keep_order": True}),
        (CONV, LENGTHS, {}),
        (Stack([CONV]), LENGTHS, {}),
    ],
    ids=["alone", "time first", "reverse", "grid", "grids"],
)
def test_masks_resets_and_lengths(cell: Any, lengths: Any, flags: Any, assert_close: Any) -> None:
    """Guards that the grid of a convolution is not time."""
    rng, batch, grid = np.random.default_rng(0), np.shape(lengths), (6,) * (lengths is LENGTHS)
    params = drawn(jax.eval_shape(lambda: cell.init(KEY, FEATURES)))
    xs = rng.normal(size=(TIME, *batch, *grid, FEATURES)).astype(np.float32)
    marks = {"mask": rng.random((TIME, *batch)) < 0.7, "resets": rng.random((TIME, *batch)) < 0.3}
    start = jax.tree.map(np.ones_like, cell.initial_carry((*batch, *grid) if grid else ()))
    reverse = "reverse" in flags
    layer = rnnjax.linen.RNN(cell, return_carry=True, **flags)
    axis = 0 if "time_major" in flags else len(batch)

    @jax.jit
    def runs(lengths: Any) -> Any:
        given = {name: np.moveaxis(x, 0, axis) for name, x in {"inputs": xs, **marks}.items()}
        given |= {"seq_lengths": lengths, "reset_carry": start}
        carry, outputs = layer.apply({"params": {"cell": params}}, **given)
        expected = rnnjax.unroll(
            cell, params, xs, lengths=lengths, reset_carry=start, reverse=reverse, **marks
        )
        return (carry, jnp.moveaxis(outputs, axis, 0)), expected

    assert_close(*runs(lengths), 1e-6)


def test_lengths_may_leave_out_trailing_batch_axes_where_outputs_are_flipped() -> None:
    """With as many rows in both axes, a length of the wrong axis would have no other shape."""
    xs = np.random.default_rng(0).normal(size=(2, 2, TIME, FEATURES)).astype(np.float32)
    layer = rnnjax.linen.RNN(GRUCell(HIDDEN), reverse=True)
    variables, run = jax.jit(layer.init)(KEY, xs), jax.jit(layer.apply)
    some, all_ = (run(variables, xs, seq_lengths=np.array(n))
                  for n in ([2, TIME], [[2, 2], [TIME, TIME]]))  # fmt: skip
    np.testing.assert_array_equal(some, all_)


def test_marks_reach_both_directions(assert_close: Any) -> None:
    """The carries of a pair do too; a function merges the outputs."""
    directions = [rnnjax.linen.RNN(GRUCell(HIDDEN)) for _ in range(2)]
    layer = rnnjax.linen.Bidirectional(*directions, merge_fn=jnp.add, return_carry=True)
    variables = drawn(jax.eval_shape(layer.init, KEY, INPUTS))
    resets, mask = np.zeros((BATCH, TIME), bool), np.ones((BATCH, TIME), bool)
    resets[0, 2], mask[1, 3] = True, False
    ones, zeros = (GRUCarry(np.full(HIDDEN, n, np.float32)) for n in (1, 0))

    @jax.jit
    def runs(variables: Any) -> Any:
        marks = {"mask": mask, "resets": resets, "reset_carry": (ones, None), "reverse": True}
        params = [variables["params"][name]["cell"] for name in ("forward_rnn", "backward_rnn")]
        carries, outputs = rnnjax.unroll(
            rnnjax.Bidirectional(GRUCell(HIDDEN), merge="sum"), tuple(params),
            np.swapaxes(INPUTS, 0, 1), mask=mask.T, resets=resets.T,
            reset_carry=rnnjax.Directions(ones, zeros),
        )  # fmt: skip
        return layer.apply(variables, INPUTS, **marks), (tuple(carries), outputs.swapaxes(0, 1))

    assert_close(*runs(variables), 1e-6)


NOISY = rnnjax.Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.5)


def test_dropout_of_linen_draws_with_its_rng(assert_close: Any) -> None:
    model = rnnjax.linen.RNN(NOISY)
    variables = drawn(jax.eval_shape(model.init, KEY, INPUTS))
    quiet, *noisy = (
        np.asarray(model.apply(variables, INPUTS, rngs=rngs))
        for rngs in ({}, *({"dropout": jax.random.key(seed)} for seed in (0, 0, 1)))
    )
    assert_close(noisy[0], noisy[1], 0)
    assert not np.allclose(noisy[0], noisy[2])
    _, ys = rnnjax.unroll(NOISY, variables["params"]["cell"], np.swapaxes(INPUTS, 0, 1))
    assert_close(quiet, np.swapaxes(ys, 0, 1), 1e-6)

    # Each direction draws for itself, also where both share their parameters.
    both = rnnjax.linen.Bidirectional(model, rnnjax.linen.RNN(NOISY))
    params = {"params": dict.fromkeys(("forward_rnn", "backward_rnn"), variables["params"])}
    outputs = np.asarray(both.apply(params, np.ones_like(INPUTS), rngs={"dropout": KEY}))
    assert not np.allclose(outputs[:, :, :HIDDEN], outputs[:, ::-1, HIDDEN:])


def test_dropout_of_nnx_draws_with_its_stream(assert_close: Any) -> None:
    model = rnnjax.nnx.RNN(NOISY, FEATURES, rngs=nnx.Rngs(0))
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
    both = np.asarray(rnnjax.nnx.Bidirectional(model, model)(np.ones_like(INPUTS), rngs=rngs))
    assert not np.allclose(both[:, :, :HIDDEN], both[:, ::-1, HIDDEN:])


def test_a_cell_of_rnnjax_under_the_transforms_of_nnx(assert_close: Any) -> None:
    def build(seed: int) -> Any:
        cell = Stack([LSTMCell(8), rnnjax.SimpleRNNCell(4)])
        return rnnjax.nnx.RNN(cell, FEATURES, rngs=nnx.Rngs(seed))

    model, other = build(0), build(1)
    graph, state = nnx.split(model)
    params, is_variable = model.cell_params, lambda leaf: isinstance(leaf, nnx.Variable)
    assert all(type(p) is nnx.Param for p in jax.tree.leaves(state, is_leaf=is_variable))
    # A model that is built again has the same graph, so nnx.jit compiles nothing for it.
    assert nnx.split(other)[0] == graph
    assert not np.array_equal(other.cell_params[0]["kernel"], params[0]["kernel"])
    shapes = jax.eval_shape(lambda: params)
    assert nnx.eval_shape(lambda: build(0)).cell_params == shapes  # as a checkpoint is read into
    merged = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * np.asarray(leaf), state))
    assert_close(merged.cell_params, jax.tree.map(lambda leaf: 2 * np.asarray(leaf), params), 1e-6)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def expected(params: Any) -> Any:
        ys = rnnjax.unroll(model.cell, params, np.swapaxes(INPUTS, 0, 1), method=Scan())[1]
        return jnp.sum(ys**2), ys

    (_, ys), gradients = expected(params)
    assert_close(nnx.jit(lambda model, x: model(x))(model, INPUTS), np.swapaxes(ys, 0, 1), 1e-6)
    ours = nnx.jit(nnx.grad(lambda model: jnp.sum(model(INPUTS) ** 2)))(model)
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(gradients), 1e-5)


# Errors.


def linen(cell: Any, inputs: Any = INPUTS, **given: Any) -> Any:
    """Run a cell with parameters that are made for the usual inputs."""
    model = rnnjax.linen.RNN(cell)
    return jax.eval_shape(lambda: model.apply(model.init(KEY, INPUTS), inputs, **given))


def own(inputs: Any = INPUTS, size: Any = FEATURES, **given: Any) -> Any:
    return rnnjax.nnx.RNN(GRUCell(HIDDEN), size, rngs=nnx.Rngs(0))(inputs, **given)


GRU, LSTM, ZEROS = GRUCell(HIDDEN), nn.LSTMCell(HIDDEN), np.zeros((BATCH, HIDDEN), "f")
THREE = np.ones((BATCH, TIME, 3), "f")  # features
MARKS, INTEGERS, RNGS = np.ones((TIME, BATCH), bool), INPUTS.astype(int), nnx.Rngs(0)
BOTH = rnnjax.linen.Bidirectional(rnnjax.linen.RNN(GRU), rnnjax.linen.RNN(GRU))
WRONG: list[tuple[Any, str]] = [
    # inputs
    (lambda: linen(GRU, np.ones(5, "f")), r"\(\*batch, time, features\).*shape \(5,\)"),
    (lambda: linen(GRU, np.ones(5, "f"), time_major=True), r"\(time, \*batch, features\)"),
    (lambda: linen(GRU, INTEGERS), r"^inputs .*floating-point.*inputs\.astype"),
    (lambda: linen(Leaky(HIDDEN), INTEGERS), r"^inputs .*floating-point.*inputs\.astype"),
    (lambda: own(INTEGERS), r"^inputs .*floating-point.*inputs\.astype"),
    (lambda: own(THREE), "3 features, but params were initialised for 2"),
    *(
        (lambda run=run, t=t: run(THREE, time_major=t), rf"^inputs has 3 .* \({axes}, features\)")
        for run in (own, lambda *given, **flag: linen(nn.GRUCell(HIDDEN), *given, **flag))
        for t, axes in ((False, "batch, time"), (True, "time, batch"))
    ),
    # what comes with them
    (
        lambda: linen(GRU, initial_carry=GRUCarry(ZEROS[:2])),
        r"^initial_carry\.hidden.*\(3, 4\).*axes of inputs are \(\*batch, time, features\)",
    ),
    (lambda: rnnjax.unroll(GRU, {}, INTEGERS), r"^xs .*floating-point"),  # which keeps its words
    (lambda: linen(GRU, reset_carry=ZEROS[0]), "reset_carry must be shaped like"),
    (lambda: linen(LSTM, initial_carry=rnnjax.LSTMCarry(ZEROS, ZEROS)), r"be the pair \(c, h\)"),
    (lambda: linen(LSTM, initial_carry=(ZEROS,) * 3), r"must be the pair \(c, h\)"),
    (lambda: linen(nn.GRUCell(HIDDEN), initial_carry=ZEROS[:2]), r"_carry must begin with \(3,\)"),
    (lambda: linen(Leaky(HIDDEN), initial_carry=ZEROS[:2]), r"initial_carry must begin with \(3,"),
    (lambda: linen(GRU, seq_lengths=MARKS.T.astype(int)), r"seq_lengths must have shape \(3,\)"),
    (lambda: linen(GRU, seq_lengths=np.ones(BATCH, "f")), "seq_lengths must be integers, the n"),
    (lambda: linen(GRU, seq_lengths=np.full(BATCH, 6)), "0 and the 5 steps of inputs, .*time_m"),
    (lambda: linen(GRU, mask=MARKS), r"mask must have shape \(3, 5\), \(\*batch"),
    (lambda: linen(GRU, resets=np.ones((BATCH, TIME), "f")), "resets must be booleans"),
    (lambda: own(mask=MARKS[:3], time_major=True), r"mask must have shape \(3, 5\), \(time"),
    (lambda: own(rngs=KEY), r"rngs must be an nnx\.Rngs"),
    (lambda: BOTH.init(KEY, INPUTS, initial_carry=GRUCarry(ZEROS)), "carry must be a pair"),
    # cells
    (lambda: linen(nn.Dense(4)), "cell must be a cell of rnnjax.* is a Dense"),
    (lambda: linen(Counting(4)), r"Counting has .* \['counts'\].*flax.linen.RNN"),
    (lambda: rnnjax.linen.RNN(OwnStepCell(4), method=Fused()).init(KEY, INPUTS), "declares no c"),
    (lambda: rnnjax.nnx.RNN(nnx.Linear(3, 4, rngs=RNGS)), "cell must .* is a Linear"),
    (lambda: rnnjax.nnx.RNN(LeakyNnx(noise=0.5))(INPUTS), r"LeakyNnx writes .*flax.nnx.RNN"),
    (lambda: own(size=0), "input_size must be a positive integer"),
    (lambda: rnnjax.nnx.RNN(GRU, rngs=RNGS), "needs in_features.* rngs=Rngs; write RNN"),
    (lambda: rnnjax.nnx.RNN(GRU, 3), "rngs, an nnx.Rngs"),
    (lambda: rnnjax.nnx.RNN(make("nnx", "gru"), 5), "in_features must be 2"),
    # arguments of Flax's loop
    (lambda: rnnjax.linen.RNN(GRU, variable_axes={"cache": 0}), "_axes must be left.*to lift"),
    (lambda: rnnjax.linen.RNN(GRU, variable_broadcast="x"), "variable_broadcast must be left"),
    (lambda: rnnjax.linen.RNN(GRU, variable_carry="x"), "variable_carry must be left"),
    (lambda: rnnjax.linen.RNN(GRU, split_rngs={"params": True}), "split_rngs must be left"),
    (lambda: rnnjax.nnx.RNN(GRU, 3, rngs=RNGS, state_axes={...: 0}), "state_axes must be left"),
    (lambda: rnnjax.nnx.RNN(GRU, 3, rngs=RNGS, broadcast_rngs="x"), "broadcast_rngs must be"),
]


test_what_is_wrong_is_named = refusals(WRONG)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("form", MODULES)
def test_flaxs_own_layer_is_told_which_runs_the_cell(form: str, time_major: bool) -> None:
    """Where the import of Flax was kept, and only the cell changed."""
    for cell in (GRU, Stack([GRU, GRU])):
        message = r"no attribute 'num_feature_axes'; .*write rnnjax\.linen\.RNN or rnnjax\.nnx\.RNN"
        layer = MODULES[form][1].RNN(cell, time_major=time_major)
        with pytest.raises(AttributeError, match=message):
            layer(INPUTS) if form == "nnx" else layer.init(KEY, INPUTS)


def test_a_cell_has_no_feature_axes() -> None:
    """What looks for attributes finds none, as before, and does not stop."""
    assert not hasattr(GRU, "num_feature_axes")
    assert getattr(Stack([GRU]), "num_feature_axes", None) is None
    assert dict(inspect.getmembers(GRU))["hidden_size"] == HIDDEN


def test_errors_of_python_and_of_flax() -> None:
    with pytest.raises(ScopeParamShapeError, match="cell"):
        linen(GRU, THREE)
    for run in (own, functools.partial(linen, GRU)):
        with pytest.raises(TypeError, match="masks"):
            run(INPUTS, masks=None)
