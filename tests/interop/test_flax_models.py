"""Trees of Flax's parameters by themselves: what is found in them, models of several, refusals."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, MGUCell, SimpleRNNCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Activation, Dense, Embedding, Model, Recurrent, Sequential
from rnnjax.interop.flax import from_params, to_params

INPUTS = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
IDS = np.array([[1, 4, 2], [0, 8, 3]], np.int32)


def randomized(tree: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)),
        tree,
    )


def drawn(cell: rnnjax.Cell) -> Any:
    return randomized(jax.eval_shape(lambda: cell.init(jax.random.key(0), 3)))


def init(module: Any, inputs: Any = INPUTS) -> Any:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs))
    return randomized(shapes)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


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


COMPACT = [
    "Embed_0",
    "GRUCell_0",
    ("MGUCell_0", "MGUCell_1"),
    "Dense_1",
    Activation("relu", "relu"),
    "Dense_0",
]


def test_a_compact_module_is_read_with_an_order() -> None:
    variables = init(Compact(), IDS)
    model = from_params(variables, modules=COMPACT)
    layers = model.layers
    assert layers["Embed_0"] == Embedding("Embed_0", 9, 3)
    both = Recurrent("MGUCell_0+MGUCell_1", Bidirectional(MGUCell(4)))
    assert layers["MGUCell_0+MGUCell_1"] == both
    assert_same_outputs(model, IDS, applied(Compact(), variables, IDS))
    assert_same_bits(to_params(model), variables)
    assert_same_bits(to_params(from_params(freeze(variables), modules=COMPACT)), variables)
    unwrapped = from_params(variables["params"], modules=COMPACT)
    assert_same_bits(to_params(unwrapped), variables["params"])


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
    params = drawn(cell)
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
    params = drawn(cell)
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
    rnn, out = drawn(LSTMCell(4)), {"kernel": np.full((4, 2), 0.3, "f"), "bias": np.ones(2, "f")}
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
        (lambda: init(nn.LayerNorm()), "none of these|no such order"),
        (lambda: init(nn.Sequential([nn.RNN(nn.GRUCell(3)) for _ in "ab"])), "more than one"),
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
        (LSTM, {"modules": [("rnn", "lstm")]}, "a pair in modules"),
        (LSTM, {"modules": "rnn"}, "a list"),
        (LSTM, {"gate_fn": "step"}, "unknown activation 'step'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(params: Any, options: Any, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        from_params(params() if callable(params) else params, **options)


def test_a_pair_is_of_names() -> None:
    wrong: Any = [([], [])]
    with pytest.raises(InvalidInputError, match="a pair in modules"):
        from_params(LSTM, modules=wrong)


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
        to_params(Model.of(cell, drawn(cell)))


def test_parameters_of_another_size_are_refused() -> None:
    network = Sequential((Recurrent("rnn", LSTMCell(4)), Dense("head", 2)))
    good = drawn(LSTMCell(4))
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
