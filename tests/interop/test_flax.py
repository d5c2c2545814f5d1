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
from rnnjax.interop import Dense, Embedding, Model, Recurrent, Sequential
from rnnjax.interop.flax import from_params, to_params

TOLERANCE = 1e-5  # of the largest entry of each tree
LINEN = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell")
NNX = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
FUNCTIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


class Case(NamedTuple):
    """What is drawn: a module, and how it is called."""

    kinds: tuple[str, ...]  # two for both directions
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
    time, batch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    lengths = st.tuples(*[st.integers(1, time)] * batch)
    return Case(
        tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=2))),
        draw(st.sampled_from(["sigmoid", "hard_sigmoid"])),
        draw(st.sampled_from(["tanh", "sigmoid"])),
        (draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        time,
        batch,
        draw(lengths) if draw(st.booleans()) else None,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def make(case: Case, form: str) -> Any:
    rngs = nnx.Rngs(0)

    def rnn(kind: str, **flags: bool) -> Any:
        options: dict[str, Any] = {"activation_fn": FUNCTIONS[case.activation_fn]}
        if kind != "SimpleCell":
            options["gate_fn"] = FUNCTIONS[case.gate_fn]
        if form == "linen":
            return nn.RNN(getattr(nn, kind)(case.sizes[1], **options), **flags)
        return nnx.RNN(getattr(nnx, kind)(*case.sizes, rngs=rngs, **options), **flags)

    if len(case.kinds) == 2:
        return (nn if form == "linen" else nnx).Bidirectional(*map(rnn, case.kinds))
    return rnn(case.kinds[0], reverse=case.reverse, keep_order=True)


def randomized(tree: Any, seed: int = 0) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)),
        tree,
    )


def to_flax_carry(carry: Any) -> Any:
    """Return Flax's carry: ``(c, h)`` of an LSTM, else ``h``; a pair of these for directions."""
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
    model = from_params(tree, gate_fn=case.gate_fn, activation_fn=FUNCTIONS[case.activation_fn])
    if not case.reverse or len(case.kinds) == 2:
        return model
    layer = dataclasses.replace(model.layers["rnn"], reverse=True)
    return dataclasses.replace(model, network=Sequential((layer,)))


def check_parity(case: Case, form: str) -> float:
    """The largest error of outputs, carries and gradients; parameters go back to the bit."""
    rng = np.random.default_rng(case.seed + 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    xs = draw(case.time, case.batch, case.sizes[0])
    if form == "linen":
        module = make(case, form)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), np.swapaxes(xs, 0, 1)))
        tree = randomized(shapes, case.seed)

        def call(tree: Any, *args: Any, **options: Any) -> Any:
            return module.apply(tree, *args, **options)

    else:
        module = nnx.jit(lambda: make(case, form))()  # one program, not one for each initializer
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
    width = case.sizes[1] * len(case.kinds)
    w_ys = draw(case.time, case.batch, width)
    w_carry = jax.tree.map(lambda leaf: draw(*leaf.shape), start)
    options: dict[str, Any] = {}
    if case.lengths is not None:
        options["seq_lengths"] = jnp.array(case.lengths)

    def flax_loss(tree: Any, xs: Any, start: Any) -> Any:
        if case.with_carry:
            options["initial_carry"] = to_flax_carry(start["rnn"])
        carry, ys = call(tree, jnp.swapaxes(xs, 0, 1), return_carry=True, **options)
        ys = valid_steps(case, jnp.swapaxes(ys, 0, 1))
        weights = to_flax_carry(w_carry["rnn"])
        total = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, carry)))
        return jnp.vdot(w_ys, ys) + total, (ys, carry)

    def our_loss(params: Any, xs: Any, start: Any) -> Any:
        lengths = None if case.lengths is None else np.array(case.lengths)
        carry, ys = model.apply(params, xs, start if case.with_carry else None, lengths=lengths)
        total = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, w_carry, carry)))
        return jnp.vdot(w_ys, ys) + total, (ys, to_flax_carry(carry["rnn"]))

    @jax.jit  # of both at once, because compiling is what takes the time
    def gradients_of(tree: Any, params: Any, xs: Any, start: Any) -> Any:
        flax_gradient, our_gradient = (
            jax.grad(loss, argnums=(0, 1, 2), has_aux=True) for loss in (flax_loss, our_loss)
        )
        return flax_gradient(tree, xs, start), our_gradient(params, xs, start)

    results = jax.device_get(gradients_of(tree, model.params, xs, start))
    ((d_tree, *d_rest), expected), ((d_params, *d_ours), actual) = results
    # Where Flax has one bias for our two, each of the two has its gradient.
    for one in d_params["rnn"] if len(case.kinds) == 2 else [d_params["rnn"]]:
        if "recurrent_bias" in one:
            gates = one["bias"].shape[0] // case.sizes[1]
            kept = slice((gates - 1) * case.sizes[1], None) if form == "linen" else slice(0, 0)
            moved = np.zeros(one["bias"].shape, np.float32)
            moved[kept] = one["recurrent_bias"][kept]
            one["recurrent_bias"] = moved
    gradients = to_params(Model(model.network, d_params, model.origin))
    error = distance(actual, expected)
    return max(error, distance([gradients, *d_ours], [d_tree, *d_rest]))


# Every kind of cell, flag and way to call is in one of these; nnx's OptimizedLSTMCell, which is an
# LSTMCell, is run below.
SHAPE: dict[str, Any] = {"sizes": (2, 3), "time": 4, "batch": 3, "seed": 7}
BOTH = Case(
    kinds=("GRUCell", "LSTMCell"),
    gate_fn="hard_sigmoid",
    activation_fn="tanh",
    lengths=(4, 1, 2),
    reverse=False,
    with_carry=True,
    **SHAPE,
)
ALONE = BOTH._replace(kinds=("OptimizedLSTMCell",), activation_fn="sigmoid", reverse=True)
MINIMAL = BOTH._replace(kinds=("MGUCell",), lengths=None, with_carry=False)
SIMPLE = ALONE._replace(kinds=("SimpleCell",), with_carry=False)
CASES = [("linen", BOTH), ("linen", ALONE), ("linen", MINIMAL), ("nnx", BOTH), ("nnx", SIMPLE)]


@pytest.mark.parametrize(("form", "case"), CASES, ids=lambda value: str(value)[:32])
def test_equals_flax(form: str, case: Case) -> None:
    assert check_parity(case, form) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("form", "kinds"), [("linen", LINEN), ("nnx", NNX)])
def test_equals_flax_in_many_configurations(form: str, kinds: tuple[str, ...]) -> None:
    """Five hundred drawn ones; shown with ``-s``: of which kinds, and the largest error of all."""
    counts: collections.Counter[str] = collections.Counter()
    errors = []

    @drawn(500)
    @given(case=cases(kinds))
    def check(case: Case) -> None:
        counts[", ".join(case.kinds)] += 1
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
        xs = nn.RNN(nn.GRUCell(4))(nn.Embed(9, 3)(ids))
        xs = nn.Bidirectional(nn.RNN(nn.MGUCell(4)), nn.RNN(nn.LSTMCell(3)))(xs)
        return nn.Dense(2)(xs)


def test_a_model_of_flax_is_read_part_by_part() -> None:
    """Its layers that are not recurrent have our arrays."""
    variables = init(Compact(), IDS)
    tree = variables["params"]
    with pytest.raises(InteropError, match=r"params has .*'Embed_0'.*; give the part of one"):
        from_params(variables)
    halves = {"forward_rnn": tree["MGUCell_0"], "backward_rnn": tree["LSTMCell_0"]}
    parts = [from_params(tree["GRUCell_0"], name="gru"), from_params(halves, name="both")]
    assert parts[1].layers["both"] == Recurrent("both", Bidirectional(MGUCell(4), LSTMCell(3)))
    assert_same_bits(to_params(parts[1]), halves)
    layers = [next(iter(part.layers.values())) for part in parts]
    params = {
        layer.name: part.params[layer.name] for part, layer in zip(parts, layers, strict=True)
    }
    params |= {"Embed_0": tree["Embed_0"], "Dense_0": tree["Dense_0"]}
    network = Sequential((Embedding("Embed_0", 9, 3), *layers, Dense("Dense_0", 2)))
    assert_same_outputs(Model(network, params), IDS, applied(Compact(), variables, IDS))
    assert sorted(to_params(Model(network, params))) == ["Dense_0", "Embed_0", "both", "gru"]
    assert_same_bits(to_params(from_params(freeze(halves))), halves)


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
    rows = [from_params(tree[name]).params["rnn"] for name in ("rnn_0", "rnn_1")]
    assert_same_bits(tuple(rows), params)


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
                f"h{gate}": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
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
        (lambda: init(nn.LayerNorm()), "one recurrent module, .* but params has '"),
        (
            lambda: init(nn.Sequential([nn.RNN(nn.GRUCell(3)) for _ in "ab"])),
            "'layers_0', 'layers_1",
        ),
        ({"forward_rnn": LSTM["params"], "backward_rnn": {}}, "but backward_rnn has"),
        (
            lambda: {
                "forward_rnn": init(nn.RNN(nn.GRUCell(2)))["params"],
                "backward_rnn": init(nn.RNN(nn.GRUCell(2)), INPUTS[..., :2])["params"],
            },
            "inputs of one size",
        ),
        ({}, "one recurrent module"),
        ({"cell": 1.0}, "but the tree has 'cell'"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree: Any, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_params(tree() if callable(tree) else tree)


@pytest.mark.parametrize(
    ("params", "options", "match"),
    [
        ([1, 2], {}, "a dict, a nnx.State or a module"),
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
        (rnnjax.LeakyRNNCell(4, leak=0.5), "LeakyRNNCell"),
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
