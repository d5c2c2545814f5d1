"""Trees of Flax's parameters by themselves: what is found in them, models of several, refusals."""

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
from rnnjax.interop import Activation, Dense, Dropout, Embedding, Model, Recurrent, Sequential
from rnnjax.interop.flax import FlipValid, from_module, from_params, to_params

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


def test_sequentials_are_read_whole() -> None:
    module = nn.Sequential(
        [
            nn.Embed(9, 3),
            nn.RNN(nn.SimpleCell(4), reverse=True, keep_order=True),
            nn.Dropout(0.3, deterministic=True),
            nn.Sequential([nn.RNN(nn.OptimizedLSTMCell(4)), nn.Dense(2)]),
            nn.softmax,
        ]
    )
    variables = init(module, IDS)
    model = from_module(module, variables)
    assert [type(layer).__name__ for layer in model.layers.values()] == [
        "Embedding",
        "Recurrent",
        "Dropout",
        "Recurrent",
        "Dense",
        "Activation",
    ]
    assert_same_outputs(model, IDS, applied(module, variables, IDS))
    assert_same_bits(to_params(model), variables)

    rngs = nnx.Rngs(0)
    graph = nnx.Sequential(
        nnx.Embed(9, 3, rngs=rngs),
        nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs), reverse=True),
        nnx.Dropout(0.3, deterministic=True, rngs=rngs),
        nnx.Linear(4, 2, use_bias=False, rngs=rngs),
        nnx.relu,
    )
    nnx.update(graph, randomized(nnx.to_pure_dict(nnx.state(graph, nnx.Param))))
    model = from_module(graph)
    assert [type(layer) for layer in model.layers.values()] == [
        Embedding,
        Recurrent,
        FlipValid,
        Dropout,
        Dense,
        Activation,
    ]
    assert_same_outputs(model, IDS, called(graph, IDS))
    assert_same_bits(to_params(model), nnx.to_pure_dict(nnx.state(graph, nnx.Param)))


@pytest.mark.parametrize(
    ("steps", "time_major"),
    [
        ([nn.RNN(nn.GRUCell(4)), lambda ys: ys[:, -1], nn.Dense(2)], False),
        ([nn.RNN(nn.GRUCell(4), time_major=True), lambda ys: ys[-1], nn.Dense(2)], True),
        ([nn.RNN(nn.GRUCell(1)), lambda ys: ys[..., 0]], False),
        ([lambda xs: xs[:, 1:] - xs[:, :-1], nn.RNN(nn.SimpleCell(4)), jnp.sin], False),
    ],
    ids=["last", "time-major", "squeezed", "differences"],
)
def test_a_function_sees_the_axes_as_flax_has_them(steps: list[Any], time_major: bool) -> None:
    module = nn.Sequential(steps)
    variables = init(module)
    model = from_module(module, variables)
    xs = INPUTS if time_major else np.swapaxes(INPUTS, 0, 1)
    _, ys = jax.jit(model.apply)(model.params, xs)
    expected = applied(module, variables, INPUTS)
    last = expected.shape == (2, 2) or time_major
    np.testing.assert_allclose(ys if last else np.swapaxes(ys, 0, 1), expected, atol=1e-6)


def test_a_function_of_ids() -> None:
    module = nn.Sequential([lambda ids: nn.one_hot(ids, 9), nn.RNN(nn.GRUCell(4))])
    variables = init(module, IDS)
    assert_same_outputs(from_module(module, variables), IDS, applied(module, variables, IDS))


@pytest.mark.parametrize(
    ("function", "options", "match"),
    [
        (lambda ys: ys[:, -1], {"lengths": np.array([5, 3])}, "leave the mask and the lengths out"),
        (lambda ys: ys + np.ones((5, 1)), {}, "takes none of 11 steps"),
    ],
    ids=["lengths", "one-length"],
)
def test_what_a_function_cannot_be_told(function: Any, options: dict[str, Any], match: str) -> None:
    module = nn.Sequential([nn.RNN(nn.GRUCell(4)), function])
    model = from_module(module, init(module))
    with pytest.raises(InvalidInputError, match=match):
        jax.eval_shape(lambda: model(np.swapaxes(INPUTS, 0, 1), **options))


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


def test_reverse_and_functions_are_told_with_the_parameters_alone() -> None:
    module = nn.RNN(nn.GRUCell(4, gate_fn=nn.hard_sigmoid, activation_fn=jnp.sin), reverse=True)
    variables = init(module)
    model = from_params(
        variables, gate_fn="hard_sigmoid", activation_fn=jnp.sin, reverse=True, name="gru"
    )
    assert [*model.layers] == ["gru", "gru.order"]
    assert_same_outputs(model, INPUTS, applied(module, variables, INPUTS))
    kept = from_params(
        variables, gate_fn="hard_sigmoid", activation_fn=jnp.sin, reverse=True, keep_order=True
    )
    assert_same_outputs(kept, INPUTS, applied(module, variables, INPUTS, keep_order=True))


def test_flip_valid_flips_the_mask_too() -> None:
    layers = (FlipValid("flip"), Recurrent("rnn", SimpleRNNCell(2)))
    cell = SimpleRNNCell(2)
    model = Model(Sequential(layers), {"rnn": drawn(cell)})
    xs = np.swapaxes(INPUTS, 0, 1)
    mask = np.array([[True, False, True, True, False], [False] * 5]).T
    flipped = xs[[3, 2, 1, 0, 4], 0]
    order = np.array([True, True, False, True, False])
    _, expected = rnnjax.unroll(cell, model.params["rnn"], flipped, mask=order)
    _, ys = jax.device_get(jax.jit(model.apply)(model.params, xs, mask=mask))
    np.testing.assert_allclose(ys[:, 0], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ys[:, 1], 0)


def test_a_residual_cell_is_the_identity_in_the_recurrent_kernel() -> None:
    module = nn.RNN(nn.SimpleCell(4, residual=True))
    variables = init(module)
    model = from_params(variables, residual=True)
    assert_same_outputs(model, INPUTS, applied(module, variables, INPUTS))
    kernel = np.array(model.params["rnn"]["recurrent_kernel"])
    kernel[1] += 0.5
    trained = {**model.params["rnn"], "recurrent_kernel": kernel}
    back = to_params(model.with_params({"rnn": trained}))
    ours, theirs = back["params"]["cell"]["h"]["kernel"], variables["params"]["cell"]["h"]["kernel"]
    np.testing.assert_array_equal(np.delete(ours, 1, 0), np.delete(theirs, 1, 0))
    np.testing.assert_allclose(ours[1], theirs[1] + 0.5, rtol=1e-5)


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


def test_parameters_are_written_into_a_tree_like_another() -> None:
    """The rest of that tree stays, and so do the classes of its cells."""
    ours = Model(
        Sequential((Recurrent("rnn", LSTMCell(4)), Dense("out", 2))),
        {
            "rnn": drawn(LSTMCell(4)),
            "out": {"kernel": np.full((4, 2), 0.3, np.float32), "bias": np.ones(2, np.float32)},
        },
    )
    expected = outputs_of(ours, INPUTS)
    rngs = nnx.Rngs(0)
    graph = nnx.Sequential(
        nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs)), nnx.Linear(4, 2, rngs=rngs)
    )
    nnx.update(graph, to_params(ours, like=graph))
    np.testing.assert_allclose(called(graph, INPUTS), expected, rtol=0, atol=1e-5)

    class Own(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            unused = nn.Dense(7, name="unused")(inputs)
            return nn.Dense(2)(nn.RNN(nn.LSTMCell(4))(inputs)) + 0 * unused.sum()

    like = init(Own())
    written = to_params(ours, like=like, modules=["LSTMCell_0", "Dense_0"])
    np.testing.assert_allclose(applied(Own(), written, INPUTS), expected, rtol=0, atol=1e-5)
    assert_same_bits(written["params"]["unused"], like["params"]["unused"])
    for other, modules in ((like, ["LSTMCell_0"]), (init(nn.RNN(nn.GRUCell(4))), None)):
        with pytest.raises(InvalidInputError, match="a module for each"):
            to_params(ours, like=other, modules=modules)
    smaller = init(nn.Sequential([nn.RNN(nn.LSTMCell(3)), nn.Dense(2)]))
    with pytest.raises(InvalidInputError, match="the sizes of 'rnn'"):
        to_params(ours, like=smaller)


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
        (lambda: init(SetUp()), {"reverse": True}, "for one RNN alone"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(params: Any, options: Any, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        from_params(params() if callable(params) else params, **options)


def add(a: Any, b: Any) -> Any:
    return a + b


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (SetUp(), "but it is a SetUp; .*from_params"),
        (nn.Sequential([nn.RNN(nn.LSTMCell(3)), nn.LayerNorm()]), "layers_1 is a LayerNorm"),
        (nn.RNN(nn.GRUCell(3, carry_init=nn.initializers.ones_init())), "begin with zeros"),
        (nn.RNN(nn.MGUCell(3, reset_gate=False)), "reset_gate=False"),
        (
            nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.GRUCell(3)), merge_fn=add),
            "merge_fn",
        ),
    ],
)
def test_modules_that_are_not_read_are_refused(module: Any, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_module(module, init(module))


def test_other_cells_and_shared_directions_are_refused() -> None:
    one = nn.RNN(nn.GRUCell(3))
    with pytest.raises(InteropError, match="share one RNN"):
        from_module(nn.Bidirectional(one, one), LSTM)
    with pytest.raises(InteropError, match="but is a ConvLSTMCell"):
        from_module(nn.RNN(nn.ConvLSTMCell(3, (2,))), LSTM)


class Scale(nnx.Module):
    """A module of somebody's own: it is called like a function, but has parameters."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.full(4, 3.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...]


class OwnRNN(nnx.RNN):
    """A subclass, which may compute anything."""


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Scale, "layers.1 is a Scale"),
        (lambda: OwnRNN(nnx.LSTMCell(4, 4, rngs=nnx.Rngs(0))), "layers.1 is a OwnRNN"),
        (lambda: nnx.Dropout(0.5, broadcast_dims=(1,)), "broadcast_dims=.1,."),
        (lambda: nnx.Dropout(1.0), "cannot be built here: rate"),
    ],
)
def test_modules_of_nnx_that_are_not_read_are_refused(make: Any, match: str) -> None:
    rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(InteropError, match=match):
        from_module(nnx.Sequential(rnn, make()))


def test_a_pair_is_of_names() -> None:
    wrong: Any = [([], [])]
    with pytest.raises(InvalidInputError, match="a pair in modules"):
        from_params(LSTM, modules=wrong)


def test_variables_come_with_linen_alone() -> None:
    with pytest.raises(InvalidInputError, match="came without"):
        from_module(nn.RNN(nn.GRUCell(3)))
    with pytest.raises(InvalidInputError, match="came with"):
        from_module(nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))), LSTM)


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (rnnjax.PeepholeLSTMCell(4), "PeepholeLSTMCell"),
        (GRUCell(4, reset_after=False), "reset_after=False"),
        (MGUCell(4, reset_after=False), "reset_after=False"),
        (rnnjax.LearnedCarry(GRUCell(4)), "LearnedCarry"),
        (Bidirectional(Stack([GRUCell(4)])), "Stack"),
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
    variables = init(theirs)
    expected, model = (from_module(module, variables) for module in (theirs, ours))
    assert model.network == expected.network
    assert_same_bits(model.params, expected.params)
    module = rnnjax.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    assert_same_outputs(from_module(module), INPUTS, called(module, INPUTS))
