"""Modules of Flax, run live: the same outputs, carries and gradients, and the same way back.

And trees of parameters by themselves: what is found in them, models of several, refusals.
"""

import collections
import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import assert_same_bits, distance, drawn

import rnnjax
from rnnjax import (
    Bidirectional,
    Directions,
    GRUCell,
    LSTMCarry,
    LSTMCell,
    MGUCell,
    SimpleRNNCell,
    Stack,
)
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Activation, Dense, Embedding, Model, Recurrent, Sequential
from rnnjax.interop.flax import from_params, to_params

TOLERANCE = 1e-5  # of the largest entry of each tree
LINEN = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell")
NNX = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
FUNCTIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


class Case(NamedTuple):
    """What is drawn: a module, and how it is called."""

    kinds: tuple[str, ...]  # two for both directions
    around: str  # "rnn", "bidirectional", "sequential"
    gate_fn: str
    activation_fn: str
    sizes: tuple[int, int]  # inputs, hidden
    time: int
    batch: int
    lengths: tuple[int, ...] | None
    reverse: bool
    with_carry: bool
    seed: int


@st.composite
def cases(draw: Any, kinds: tuple[str, ...]) -> Case:
    around = draw(st.sampled_from(["rnn", "rnn", "bidirectional", "sequential"]))
    time, batch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    lengths = st.tuples(*[st.integers(1, time)] * batch)
    # A Sequential of Flax's hands neither lengths nor a carry to its second module.
    alone = around != "sequential"
    return Case(
        tuple(draw(st.sampled_from(kinds)) for _ in range(1 if around == "rnn" else 2)),
        around,
        draw(st.sampled_from(["sigmoid", "hard_sigmoid"])),
        draw(st.sampled_from(["tanh", "sigmoid"])),
        (draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        time,
        batch,
        draw(lengths) if alone and draw(st.booleans()) else None,
        draw(st.booleans()),
        alone and draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def make_linen(case: Case) -> Any:
    def cell(kind: str) -> Any:
        options: dict[str, Any] = {"activation_fn": FUNCTIONS[case.activation_fn]}
        if kind != "SimpleCell":
            options["gate_fn"] = FUNCTIONS[case.gate_fn]
        return getattr(nn, kind)(case.sizes[1], **options)

    flags = {"reverse": case.reverse, "keep_order": True}
    if case.around == "bidirectional":
        return nn.Bidirectional(*(nn.RNN(cell(kind)) for kind in case.kinds))
    if case.around == "sequential":
        return nn.Sequential([nn.RNN(cell(kind), **flags) for kind in case.kinds])
    return nn.RNN(cell(case.kinds[0]), **flags)


def make_nnx(case: Case) -> Any:
    rngs = nnx.Rngs(0)

    def cell(kind: str, inputs: int = case.sizes[0]) -> Any:
        options: dict[str, Any] = {"activation_fn": FUNCTIONS[case.activation_fn]}
        if kind != "SimpleCell":
            options["gate_fn"] = FUNCTIONS[case.gate_fn]
        return getattr(nnx, kind)(inputs, case.sizes[1], rngs=rngs, **options)

    flags = {"reverse": case.reverse, "keep_order": True}
    if case.around == "bidirectional":
        return nnx.Bidirectional(*(nnx.RNN(cell(kind)) for kind in case.kinds))
    if case.around == "sequential":
        first, second = case.kinds
        return nnx.Sequential(
            nnx.RNN(cell(first), **flags), nnx.RNN(cell(second, case.sizes[1]), **flags)
        )
    return nnx.RNN(cell(case.kinds[0]), **flags)


def randomized(tree: Any, seed: int = 0) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)),
        tree,
    )


def to_flax_carry(carry: Any) -> Any:
    """Of an LSTM the pair ``(c, h)``, of the others ``h``; a pair of these for directions."""
    if isinstance(carry, Directions):
        return to_flax_carry(carry.forward), to_flax_carry(carry.backward)
    return (carry.cell, carry.hidden) if isinstance(carry, LSTMCarry) else carry.hidden


def valid_steps(case: Case, ys: Any) -> Any:
    """The outputs with zeros after each row's length, where Flax leaves what it computed."""
    if case.lengths is None:
        return ys
    steps = np.arange(case.time)[:, None, None]
    return jnp.where(steps < np.array(case.lengths)[:, None], ys, 0)


def read(case: Case, tree: Any) -> Model:
    """The model of the parameters, told what a module says in code."""
    names = None
    if case.around == "sequential":
        names = ["layers_0", "layers_1"] if "params" in tree else ["layers.0", "layers.1"]
    model = from_params(
        tree, modules=names, gate_fn=case.gate_fn, activation_fn=FUNCTIONS[case.activation_fn]
    )
    if not case.reverse or case.around == "bidirectional":
        return model
    layers = [dataclasses.replace(layer, reverse=True) for layer in model.layers.values()]
    return dataclasses.replace(model, network=Sequential(tuple(layers)))


def check_parity(case: Case, form: str) -> float:
    """The largest error of outputs, carries and gradients; parameters go back to the bit."""
    rng = np.random.default_rng(case.seed + 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    xs = draw(case.time, case.batch, case.sizes[0])
    if form == "linen":
        module = make_linen(case)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), np.swapaxes(xs, 0, 1)))
        tree = randomized(shapes, case.seed)

        def call(tree: Any, *args: Any, **options: Any) -> Any:
            return module.apply(tree, *args, **options)

    else:
        module = nnx.jit(lambda: make_nnx(case))()  # one program, not one for each initializer
        graph, state, rest = nnx.split(module, nnx.Param, ...)
        tree = randomized(nnx.to_pure_dict(state), case.seed)
        nnx.update(module, tree)

        def call(tree: Any, *args: Any, **options: Any) -> Any:
            # A copy, because a call changes the counters of random numbers.
            traced = nnx.merge(graph, state, rest, copy=True)
            nnx.update(traced, tree)
            return traced(*args, **options)

    model = read(case, tree)
    assert_same_bits(to_params(model), tree)
    start = jax.tree.map(lambda leaf: draw(*leaf.shape), model.initial_carry((case.batch,)))
    width = case.sizes[1] * (2 if case.around == "bidirectional" else 1)
    w_ys = draw(case.time, case.batch, width)
    w_carry = jax.tree.map(lambda leaf: draw(*leaf.shape), start)
    options: dict[str, Any] = {}
    if case.lengths is not None:
        options["seq_lengths"] = jnp.array(case.lengths)
    (name,) = start if len(start) == 1 else (None,)

    def flax_loss(tree: Any, xs: Any, start: Any) -> Any:
        inputs = jnp.swapaxes(xs, 0, 1)
        if name is None:
            ys, carry = call(tree, inputs), None
        else:
            if case.with_carry:
                options["initial_carry"] = to_flax_carry(start[name])
            carry, ys = call(tree, inputs, return_carry=True, **options)
        ys = valid_steps(case, jnp.swapaxes(ys, 0, 1))
        total = jnp.vdot(w_ys, ys)
        if carry is not None:
            weights = to_flax_carry(w_carry[name])
            total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, carry)))
        return total, (ys, carry)

    def our_loss(params: Any, xs: Any, start: Any) -> Any:
        lengths = None if case.lengths is None else np.array(case.lengths)
        carry, ys = model.apply(params, xs, start if case.with_carry else None, lengths=lengths)
        total, states = jnp.vdot(w_ys, ys), None
        if name is not None:
            total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, w_carry, carry)))
            states = to_flax_carry(carry[name])
        return total, (ys, states)

    @jax.jit  # of both at once, because compiling is what takes the time
    def gradients_of(tree: Any, params: Any, xs: Any, start: Any) -> Any:
        flax_gradient, our_gradient = (
            jax.grad(loss, argnums=(0, 1, 2), has_aux=True) for loss in (flax_loss, our_loss)
        )
        return flax_gradient(tree, xs, start), our_gradient(params, xs, start)

    results = jax.device_get(gradients_of(tree, model.params, xs, start))
    ((d_tree, *d_rest), expected), ((d_params, *d_ours), actual) = results
    # Where Flax has one bias for our two, each of the two has its gradient.
    for layer, entry in d_params.items():
        for one in entry if isinstance(entry, tuple) else [entry]:
            if "recurrent_bias" in one:
                gates = one["bias"].shape[0] // case.sizes[1]
                kept = slice((gates - 1) * case.sizes[1], None) if form == "linen" else slice(0, 0)
                moved = np.zeros(one["bias"].shape, np.float32)
                moved[kept] = one["recurrent_bias"][kept]
                one["recurrent_bias"] = moved
        assert layer in model.layers
    gradients = to_params(Model(model.network, d_params, model.origin))
    error = distance(actual, expected)
    return max(error, distance([gradients, *d_ours], [d_tree, *d_rest]))


# Every kind of cell, flag and way to call is in one of these; nnx's OptimizedLSTMCell, which is an
# LSTMCell, is run in test_flax_models.py.
SHAPE: dict[str, Any] = {"sizes": (2, 3), "time": 4, "batch": 3, "seed": 7}
BOTH = Case(
    kinds=("GRUCell", "LSTMCell"),
    around="bidirectional",
    gate_fn="hard_sigmoid",
    activation_fn="tanh",
    lengths=(4, 1, 2),
    reverse=False,
    with_carry=True,
    **SHAPE,
)
ALONE = BOTH._replace(
    kinds=("OptimizedLSTMCell",), around="rnn", activation_fn="sigmoid", reverse=True
)
TWO = BOTH._replace(
    kinds=("SimpleCell", "MGUCell"),
    around="sequential",
    lengths=None,
    reverse=True,
    with_carry=False,
)


@pytest.mark.parametrize("case", [BOTH, ALONE, TWO], ids=lambda case: case.around)
def test_equals_linen(case: Case) -> None:
    assert check_parity(case, "linen") < TOLERANCE


SIMPLE = TWO._replace(
    kinds=("SimpleCell",), around="rnn", activation_fn="sigmoid", lengths=(4, 1, 2)
)


@pytest.mark.parametrize("case", [BOTH, SIMPLE], ids=lambda case: case.around)
def test_equals_nnx(case: Case) -> None:
    assert check_parity(case, "nnx") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("form", "kinds"), [("linen", LINEN), ("nnx", NNX)])
def test_equals_flax_in_many_configurations(form: str, kinds: tuple[str, ...]) -> None:
    """Five hundred drawn ones; shown with ``-s``: of which kinds, and the largest error of all."""
    counts: collections.Counter[str] = collections.Counter()
    errors = []

    @drawn(500)
    @given(case=cases(kinds))
    def check(case: Case) -> None:
        counts[f"{case.around} {case.kinds[0]}"] += 1
        errors.append(check_parity(case, form))
        assert errors[-1] < TOLERANCE

    check()
    print(f"{form}: {len(errors)} configurations, largest error {max(errors):.1e}: {dict(counts)}")
    assert len(errors) >= 500


# --- Trees ---


INPUTS = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
IDS = np.array([[1, 4, 2], [0, 8, 3]], np.int32)


def params_of(cell: rnnjax.Cell) -> Any:
    return randomized(jax.eval_shape(lambda: cell.init(jax.random.key(0), 3)))


def init(module: Any, inputs: Any = INPUTS) -> Any:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs))
    return randomized(shapes)


def outputs_of(model: Model, inputs: Any) -> np.ndarray:
    """As Flax has them, with the batch first; in one program, as else each operation is one."""
    _, ys = jax.jit(model.apply)(model.params, np.swapaxes(inputs, 0, 1))
    return np.swapaxes(np.asarray(ys), 0, 1)


def applied(module: Any, variables: Any, inputs: Any, **options: Any) -> Any:
    return jax.jit(lambda variables: module.apply(variables, inputs, **options))(variables)


def called(graph: Any, inputs: Any) -> Any:
    return nnx.jit(lambda graph: graph(inputs))(graph)


def assert_same_outputs(model: Model, inputs: Any, expected: Any) -> None:
    np.testing.assert_allclose(outputs_of(model, inputs), expected, rtol=0, atol=1e-5)


class Compact(nn.Module):
    """The cells of a compact module have no RNN for a parent."""

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        xs = nn.Embed(9, 3)(ids)
        xs = nn.RNN(nn.GRUCell(4))(xs)
        xs = nn.Bidirectional(nn.RNN(nn.MGUCell(4)), nn.RNN(nn.MGUCell(4)))(xs)
        return nn.Dense(2)(nn.relu(nn.Dense(5)(xs)))


def test_a_compact_module_is_read_with_an_order() -> None:
    variables = init(Compact(), IDS)
    tree = dict(variables["params"])
    tree["both"] = {
        "forward_rnn": {"cell": tree.pop("MGUCell_0")},
        "backward_rnn": {"cell": tree.pop("MGUCell_1")},
    }
    relu = Activation("relu", "relu")
    modules = ["Embed_0", "GRUCell_0", "both", "Dense_1", relu, "Dense_0"]
    model = from_params(tree, modules=modules)
    assert model.layers["Embed_0"] == Embedding("Embed_0", 9, 3)
    assert model.layers["both"] == Recurrent("both", Bidirectional(MGUCell(4)))
    assert_same_outputs(model, IDS, applied(Compact(), variables, IDS))
    assert_same_bits(to_params(model), tree)
    wrapped = freeze({"params": tree})
    assert_same_bits(to_params(from_params(wrapped, modules=modules)), {"params": tree})


class SetUp(nn.Module):
    def setup(self) -> None:
        self.encoder = nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.GRUCell(2)))
        self.head = nn.Dense(2)

    def __call__(self, inputs: Any) -> Any:
        return self.head(self.encoder(inputs))


def test_an_order_that_is_certain_is_found() -> None:
    """Directions of two kinds and sizes among it."""
    variables = init(SetUp())
    model = from_params(variables)
    assert [*model.layers.values()] == [
        Recurrent("encoder", Bidirectional(LSTMCell(3), GRUCell(2))),
        Dense("head", 2),
    ]
    assert_same_outputs(model, INPUTS, applied(SetUp(), variables, INPUTS))
    assert_same_bits(to_params(model), variables)


def test_states_dicts_and_modules_of_nnx_are_one() -> None:
    """The numbers of random streams among a whole state are no parameters."""
    graph = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))
    state = nnx.state(graph)
    assert "rngs" in state
    model = from_params(graph)
    assert model.layers["rnn"] == Recurrent("rnn", LSTMCell(4))
    for other in (state, nnx.to_pure_dict(state), nnx.state(graph, nnx.Param)):
        assert_same_bits(to_params(from_params(other)), to_params(model))
    trained = model.with_params(randomized(model.params))
    nnx.update(graph, to_params(trained))
    assert_same_outputs(trained, INPUTS, called(graph, INPUTS))


def test_functions_are_told_and_a_layer_is_reversed_here() -> None:
    module = nn.RNN(
        nn.GRUCell(4, gate_fn=nn.hard_sigmoid, activation_fn=jnp.sin), reverse=True, keep_order=True
    )
    variables = init(module)
    model = from_params(variables, gate_fn="hard_sigmoid", activation_fn=jnp.sin, name="gru")
    assert [*model.layers] == ["gru"]
    layer = dataclasses.replace(model.layers["gru"], reverse=True)
    model = dataclasses.replace(model, network=Sequential((layer,)))
    assert_same_outputs(model, INPUTS, applied(module, variables, INPUTS))


def test_a_residual_cell_is_the_identity_in_the_recurrent_kernel() -> None:
    module = nn.RNN(nn.SimpleCell(4, residual=True))
    variables = init(module)
    model = from_params(variables)
    kernel = model.params["rnn"]["recurrent_kernel"] + jnp.eye(4)
    model = model.with_params({"rnn": {**model.params["rnn"], "recurrent_kernel": kernel}})
    assert_same_outputs(model, INPUTS, applied(module, variables, INPUTS))


CELLS = {
    "simple": (SimpleRNNCell(4), nn.SimpleCell(4), nnx.SimpleCell),
    "lstm": (LSTMCell(4), nn.OptimizedLSTMCell(4), nnx.LSTMCell),
    "lstm-no-bias": (LSTMCell(4, use_bias=False), nn.LSTMCell(4), nnx.LSTMCell),
    "gru": (GRUCell(4), nn.GRUCell(4), None),
    "gru-no-bias": (GRUCell(4, use_bias=False), nn.GRUCell(4), nnx.GRUCell),
    "mgu": (MGUCell(4), nn.MGUCell(4), None),
}


@pytest.mark.parametrize("name", CELLS)
def test_our_cells_run_in_flax(name: str) -> None:
    """The biases of the gates are added where Flax has one of two."""
    cell, theirs, graph_cell = CELLS[name]
    params = params_of(cell)
    model = Model.of(cell, params)
    expected = outputs_of(model, INPUTS)
    written = {"params": to_params(model)}
    module = nn.RNN(theirs)
    assert jax.tree.structure(written) == jax.tree.structure(init(module))
    np.testing.assert_allclose(applied(module, written, INPUTS), expected, rtol=0, atol=1e-5)
    if graph_cell is not None:
        graph = nnx.RNN(graph_cell(3, 4, rngs=nnx.Rngs(0)))
        nnx.update(graph, to_params(model, form="nnx"))
        np.testing.assert_allclose(called(graph, INPUTS), expected, rtol=0, atol=1e-5)
    else:
        with pytest.raises(InteropError, match=r"candidate that is not zero|has cells for"):
            to_params(model, form="nnx")


def test_a_stack_of_ours_is_several_modules() -> None:
    cell = Stack([Bidirectional(LSTMCell(3)), LSTMCell(4)])
    params = params_of(cell)
    model = Model(
        Sequential((Recurrent("rnn", cell), Dense("head", 2))),
        {
            "rnn": params,
            "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)},
        },
    )
    tree = to_params(model)
    assert {key: sorted(value) for key, value in tree.items()} == {
        "rnn_0": ["backward_rnn", "forward_rnn"],
        "rnn_1": ["cell"],
        "head": ["bias", "kernel"],
    }
    expected = outputs_of(model, INPUTS)
    assert_same_outputs(from_params(tree), INPUTS, expected)


def test_parameters_are_written_into_the_tree_of_a_module_of_ones_own() -> None:
    """Read with its names, and given other parameters; the classes of its cells stay."""
    rnn, out = (
        params_of(LSTMCell(4)),
        {"kernel": np.full((4, 2), 0.3, "f"), "bias": np.ones(2, "f")},
    )
    network = Sequential((Recurrent("rnn", LSTMCell(4)), Dense("out", 2)))
    expected = outputs_of(Model(network, {"rnn": rnn, "out": out}), INPUTS)
    rngs = nnx.Rngs(0)
    graph = nnx.Sequential(
        nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs)), nnx.Linear(4, 2, rngs=rngs)
    )
    theirs = from_params(graph, modules=["layers.0", "layers.1"])
    ours = theirs.with_params({"layers.0": rnn, "layers.1": out})
    nnx.update(graph, to_params(ours))
    np.testing.assert_allclose(called(graph, INPUTS), expected, rtol=0, atol=1e-5)


def test_biases_that_move_to_the_first_change_nothing_else() -> None:
    """Not even the sign of a zero."""
    variables = init(nn.RNN(nn.GRUCell(2)))
    variables["params"]["cell"]["ir"]["bias"] = jnp.array([-0.0, 0.5])
    model = from_params(variables)
    assert_same_bits(to_params(model), variables)
    moved = model.params["rnn"]["recurrent_bias"].at[1].set(0.25)
    params = {"rnn": {**model.params["rnn"], "recurrent_bias": moved}}
    back = to_params(model.with_params(params))["params"]["cell"]
    np.testing.assert_array_equal(back["ir"]["bias"], [0.0, 0.75])
    assert np.signbit(back["ir"]["bias"][0])


def test_other_types_stay_what_they_are() -> None:
    # Not drawn in bfloat16: newer versions of JAX have no orthogonal matrices in it.
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init(nn.RNN(nn.GRUCell(2))))
    model = from_params(variables)
    layer: Any = model.layers["rnn"]
    assert layer.cell.param_dtype == jnp.bfloat16
    assert_same_bits(to_params(model), variables)


# As Flax has those of `nn.RNN(nn.LSTMCell(2))`; asking it takes a worker a second before any test.
LSTM = {
    "params": {
        "cell": {
            **{f"i{gate}": {"kernel": np.ones((3, 2), np.float32)} for gate in "ifgo"},
            **{
                f"h{gate}": {
                    "kernel": np.ones((2, 2), np.float32),
                    "bias": np.ones(2, np.float32),
                }
                for gate in "ifgo"
            },
        }
    }
}


def changed(tree: Any, path: tuple[str, ...], leaf: Any) -> Any:
    head, *rest = path
    if not rest and leaf is None:
        return {key: value for key, value in tree.items() if key != head}
    below = changed(tree.get(head, {}), tuple(rest), leaf) if rest else leaf
    return {**tree, head: below}


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        (changed(LSTM, ("params", "cell", "hi", "kernel"), None), "a kernel of two axes"),
        (changed(LSTM, ("params", "cell", "hi", "kernel"), np.ones(2)), "a kernel of two axes"),
        (changed(LSTM, ("params", "cell", "hi", "bias"), None), "should have .*'bias': \\(2,\\)"),
        (changed(LSTM, ("params", "cell", "ii", "bias"), np.ones(2, np.float32)), "should have"),
        (changed(LSTM, ("params", "cell", "if", "kernel"), np.ones((4, 2), "f")), "should have"),
        (changed(LSTM, ("params", "cell", "ii", "kernel"), np.ones((3, 2), int)), "int64"),
        (changed(LSTM, ("params", "cell", "ii", "kernel"), np.ones((3, 2))), "float64"),
        (changed(LSTM, ("params", "cell", "hi", "bias"), np.ones(2, np.float16)), "of one type"),
        (lambda: init(nn.RNN(nn.MGUCell(2, reset_gate=False))), "reset_gate=False"),
        (lambda: init(nn.LayerNorm()), "none of these"),
        (lambda: init(nn.Sequential([nn.RNN(nn.GRUCell(3)) for _ in "ab"])), "in one way alone"),
        (lambda: init(Compact(), IDS), "give it, as in"),
        ({"forward_rnn": LSTM["params"], "backward_rnn": {}}, "both directions of 'rnn'"),
        (
            lambda: {
                "forward_rnn": init(nn.RNN(nn.GRUCell(2)))["params"],
                "backward_rnn": init(nn.RNN(nn.GRUCell(2)), INPUTS[..., :2])["params"],
            },
            "inputs of one size",
        ),
        ({}, "no module"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree: Any, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_params(tree() if callable(tree) else tree)


@pytest.mark.parametrize(
    ("params", "options", "match"),
    [
        ([1, 2], {}, "a dict, a nnx.State or a module"),
        ({**LSTM, "batch_stats": {"a": 1}}, {}, "hold batch_stats too"),
        (LSTM, {"modules": ["lstm"]}, "names of \\['rnn'\\]"),
        (LSTM, {"modules": [("rnn", "lstm")]}, "names of \\['rnn'\\]"),
        (LSTM, {"modules": "rnn"}, "a list"),
        (LSTM, {"gate_fn": "step"}, "unknown activation 'step'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(params: Any, options: Any, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        from_params(params() if callable(params) else params, **options)


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (rnnjax.PeepholeLSTMCell(4), "PeepholeLSTMCell"),
        (GRUCell(4, reset_after=False), "reset_after=False"),
        (MGUCell(4, reset_after=False), "reset_after=False"),
        (rnnjax.LearnedCarry(GRUCell(4)), "LearnedCarry"),
        (Bidirectional(Stack([GRUCell(4)])), "Stack"),
        (Bidirectional(GRUCell(4), merge="sum"), "merge='sum'"),
        (rnnjax.Regularized(GRUCell(4), zoneout_hidden=0.1), "no zoneout"),
    ],
)
def test_what_flax_has_no_cell_for_is_refused(cell: Any, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        to_params(Model.of(cell, params_of(cell)))


def test_parameters_of_another_size_are_refused() -> None:
    network = Sequential((Recurrent("rnn", LSTMCell(4)), Dense("head", 2)))
    good = params_of(LSTMCell(4))
    head = {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)}
    for params in ({}, {"rnn": 1.0, "head": head}, {"rnn": good, "head": {"kernel": 1.0}}):
        with pytest.raises(InvalidInputError, match="params"):
            to_params(Model(network, params))
    form: Any = "haiku"
    with pytest.raises(InvalidInputError, match="'linen' or 'nnx'"):
        to_params(Model(network, {"rnn": good, "head": head}), form=form)


def test_the_wrappers_are_read_as_flax() -> None:
    import rnnjax.linen
    import rnnjax.nnx

    theirs, ours = (m.RNN(nn.LSTMCell(4)) for m in (nn, rnnjax.linen))
    expected, model = (from_params(init(module)) for module in (theirs, ours))
    assert model.network == expected.network
    assert_same_bits(model.params, expected.params)
    module = rnnjax.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    assert_same_outputs(from_params(module), INPUTS, called(module, INPUTS))
