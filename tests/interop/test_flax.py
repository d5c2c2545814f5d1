"""Modules of Flax, run live: the same outputs and carries, and the same way back.

And trees of parameters by themselves: what is found in them, models of several, refusals.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from interop_helpers import assert_same_bits, distance

import rnnjax
from rnnjax import Bidirectional, Directions, GRUCell, LSTMCell, MGUCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Dense, Embedding, Model, Recurrent, Sequential
from rnnjax.interop.flax import from_params, to_params

TOLERANCE = 1e-5  # of the largest entry of each tree
FUNCTIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


INPUTS = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
IDS = np.array([[1, 4, 2], [0, 8, 3]], np.int32)


def randomized(tree: Any, seed: int = 0) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)),
        tree,
    )


def params_of(cell: rnnjax.Cell) -> Any:
    return randomized(jax.eval_shape(lambda: cell.init(jax.random.key(0), 3)))


def init(module: Any, inputs: Any = INPUTS, seed: int = 0) -> Any:
    return randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), inputs)), seed)


def outputs_of(model: Model, inputs: Any, *args: Any, **options: Any) -> Any:
    """Outputs as Flax has them, with the batch first, and the carry; in one program."""
    run = jax.jit(lambda params, *given: model.apply(params, *given, **options))
    carry, ys = run(model.params, np.swapaxes(inputs, 0, 1), *args)
    return np.swapaxes(np.asarray(ys), 0, 1), carry


def applied(module: Any, variables: Any, inputs: Any, **options: Any) -> Any:
    return jax.jit(lambda variables: module.apply(variables, inputs, **options))(variables)


def called(graph: Any, inputs: Any, **options: Any) -> Any:
    return nnx.jit(lambda graph: graph(inputs, **options))(graph)


def assert_same_outputs(model: Model, inputs: Any, expected: Any) -> None:
    np.testing.assert_allclose(outputs_of(model, inputs)[0], expected, rtol=0, atol=1e-5)


def to_flax_carry(carry: Any) -> Any:
    """Return Flax's carry: ``(c, h)`` of an LSTM, else ``h``; a pair of these for directions."""
    if isinstance(carry, Directions):
        return to_flax_carry(carry.forward), to_flax_carry(carry.backward)
    return (carry.cell, carry.hidden) if isinstance(carry, rnnjax.LSTMCarry) else carry.hidden


# Every kind of cell, flag and way to call is in one of these; nnx's OptimizedLSTMCell, which is an
# LSTMCell, is run below.
ALONE = {"activation_fn": "sigmoid", "reverse": True}
CASES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("linen", "GRUCell", "LSTMCell"), {}),
    (("linen", "OptimizedLSTMCell"), ALONE),
    (("linen", "MGUCell"), {"whole": True, "with_carry": False}),
    (("linen", "MGUCell", "SimpleCell"), {"gate_fn": "sigmoid", "with_carry": False}),
    (("nnx", "GRUCell", "LSTMCell"), {}),
    (("nnx", "SimpleCell"), ALONE | {"with_carry": False}),
    (("nnx", "LSTMCell"), ALONE | {"whole": True}),
]


@pytest.mark.parametrize(("args", "options"), CASES, ids=str)
def test_equals_flax(args: Any, options: Any) -> None:
    """Equal outputs and carries of one cell, or of two; parameters go back to the bit."""
    form, *kinds = args
    gate_fn = options.get("gate_fn", "hard_sigmoid")
    activation_fn = options.get("activation_fn", "tanh")
    reverse, with_carry = "reverse" in options, options.get("with_carry", True)

    def rnn(kind: str, **flags: bool) -> Any:
        own: dict[str, Any] = {"activation_fn": FUNCTIONS[activation_fn]}
        own |= {} if kind == "SimpleCell" else {"gate_fn": FUNCTIONS[gate_fn]}
        if form == "linen":
            return nn.RNN(getattr(nn, kind)(3, **own), **flags)
        return nnx.RNN(getattr(nnx, kind)(2, 3, rngs=nnx.Rngs(0), **own), **flags)

    def make() -> Any:
        if len(kinds) == 2:
            return (nn if form == "linen" else nnx).Bidirectional(*map(rnn, kinds))
        return rnn(kinds[0], reverse=reverse, keep_order=True)

    xs = np.random.default_rng(8).standard_normal((3, 4, 2)).astype(np.float32)
    if form == "linen":
        module = make()
        tree = init(module, xs, 7)
    else:
        module = nnx.jit(make)()  # one program, not one for each initializer
        tree = randomized(nnx.to_pure_dict(nnx.state(module, nnx.Param)), 7)
        nnx.update(module, tree)
    # What a module says in code is told.
    model = from_params(tree, gate_fn=gate_fn, activation_fn=FUNCTIONS[activation_fn])
    assert_same_bits(to_params(model), tree)
    if reverse:
        layer = dataclasses.replace(model.layers["rnn"], reverse=True)
        model = dataclasses.replace(model, network=Sequential((layer,)))
    start = randomized(model.initial_carry((3,)), 9)
    marks = None if "whole" in options else np.array([4, 1, 2])
    given: dict[str, Any] = {"return_carry": True, "seq_lengths": marks}
    if with_carry:
        given["initial_carry"] = to_flax_carry(start["rnn"])
    if form == "linen":
        theirs, expected = applied(module, tree, xs, **given)
    else:
        theirs, expected = called(module, xs, **given)
    ys, carry = outputs_of(model, xs, *[start] * with_carry, lengths=marks)
    if marks is not None:  # zeros after each row's length, where Flax leaves what it computed
        expected = np.where((np.arange(4) < marks[:, None])[..., None], expected, 0)
    assert distance((ys, to_flax_carry(carry["rnn"])), (expected, theirs)) < TOLERANCE


# --- Trees ---


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
    layers = [layer for part in parts for layer in part.layers.values()]
    params = {name: tree[name] for name in ("Embed_0", "Dense_0")}
    params |= parts[0].params | parts[1].params
    network = Sequential((Embedding("Embed_0", 9, 3), *layers, Dense("Dense_0", 2)))
    assert_same_outputs(Model(network, params), IDS, applied(Compact(), variables, IDS))
    with pytest.raises(InteropError, match=r"a module for each cell, .*; write each by itself"):
        to_params(Model(network, params))
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


def test_a_residual_cell_is_the_identity_in_the_recurrent_kernel() -> None:
    module = nn.RNN(nn.SimpleCell(4, residual=True))
    variables = init(module)
    model = from_params(variables)
    kernel = model.params["rnn"]["recurrent_kernel"] + jnp.eye(4)
    model = model.with_params({"rnn": {**model.params["rnn"], "recurrent_kernel": kernel}})
    assert_same_outputs(model, INPUTS, applied(module, variables, INPUTS))


def test_a_stack_of_ours_is_several_models() -> None:
    cell = Stack([Bidirectional(LSTMCell(3)), LSTMCell(4)])
    with pytest.raises(InteropError, match="a module for each cell"):
        to_params(Model.of(cell, params_of(cell)))


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
def cell_of(inputs: int) -> dict[str, Any]:
    kernels, bias = np.ones((inputs, 2), np.float32), np.ones(2, np.float32)
    hidden = {"kernel": np.ones((2, 2), np.float32), "bias": bias}
    return {f"i{g}": {"kernel": kernels} for g in "ifgo"} | {f"h{g}": hidden for g in "ifgo"}


CELL = cell_of(3)
LSTM = {"params": {"cell": CELL}}


def changed(gate: str, name: str, array: Any) -> Any:
    """The LSTM with another array, or without it."""
    arrays = CELL[gate] | {name: array}
    arrays = {key: one for key, one in arrays.items() if one is not None}
    return {"params": {"cell": CELL | {gate: arrays}}}


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        (changed("hi", "kernel", None), "a kernel of two axes"),
        (changed("hi", "kernel", np.ones(2)), "a kernel of two axes"),
        (changed("hi", "bias", None), "units, should have {'hi.bias': \\(2,\\)}, but has not;"),
        (changed("ii", "bias", np.ones(2, np.float32)), "should have no more, but has {'ii.bias'"),
        (changed("if", "kernel", np.ones((4, 2), "f")), "should have {'if.kernel': \\(3, 2\\)}"),
        (changed("ii", "kernel", np.ones((3, 2), int)), "int64"),
        (changed("ii", "kernel", np.ones((3, 2))), "float64"),
        (changed("hi", "bias", np.ones(2, np.float16)), "of one type"),
        (lambda: init(nn.RNN(nn.MGUCell(2, reset_gate=False))), "have {'hn.bias': "),
        ({"params": {"scale": np.ones(3, "f")}}, "one recurrent module, .* but params has '"),
        ({"params": {f"layers_{i}": {"cell": CELL} for i in range(2)}}, "'layers_0', 'layers_1"),
        ({"forward_rnn": {"cell": CELL}, "backward_rnn": {}}, "but backward_rnn has"),
        ({**dict.fromkeys(("forward_rnn", "backward_rnn"), CELL), "head": CELL}, "has '.*'head'"),
        ({"forward_rnn": {"cell": CELL}, "backward_rnn": {"cell": cell_of(2)}}, "of one size"),
        ({}, "one recurrent module"),
        ({"cell": 1.0}, "but the tree has 'cell'"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree: Any, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_params(tree() if callable(tree) else tree)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="State or a module of nnx"):
        from_params([1, 2])
    with pytest.raises(InvalidInputError, match="unknown activation 'step'"):
        from_params(LSTM, gate_fn="step")
    form: Any = "haiku"
    with pytest.raises(InvalidInputError, match="'linen' or 'nnx'"):
        to_params(from_params(LSTM), form=form)


def test_the_wrappers_are_read_as_flax() -> None:
    import rnnjax.linen
    import rnnjax.nnx

    theirs, ours = (m.RNN(nn.LSTMCell(4)) for m in (nn, rnnjax.linen))
    expected, model = (from_params(init(module)) for module in (theirs, ours))
    assert model.network == expected.network
    assert_same_bits(model.params, expected.params)
    module = rnnjax.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    assert_same_outputs(from_params(module), INPUTS, called(module, INPUTS))


def test_activations_that_a_module_was_read_with_stay_its_own() -> None:
    """The way that the error names: of parameters trained here into a module of Flax."""
    module = nn.RNN(nn.LSTMCell(4, activation_fn=nn.relu))
    cell = LSTMCell(4, activation="relu")
    read = from_params(init(module), activation_fn="relu")
    trained = {k: params_of(cell)[k] for k in read.params["rnn"]}
    ours = read.with_params({"rnn": trained})
    tree = to_params(ours)
    assert_same_outputs(ours, INPUTS, applied(module, tree, INPUTS))
    other = dataclasses.replace(ours.layers["rnn"], cell=LSTMCell(4))
    changed = dataclasses.replace(ours, network=Sequential((other,)))
    with pytest.raises(
        InteropError, match=r"should be 'sigmoid' and .*relu.*but are 'sigmoid' and"
    ):
        to_params(changed)


def test_biases_that_have_no_place() -> None:
    """Half precision is refused where sums round; test_torch_files.py has the sums themselves."""
    for dtype, form, says in (
        ("bfloat16", "linen", "add up in bfloat16, which rounds; cast them"),
        ("float32", "nnx", "a recurrent_bias of its candidate that is not zero"),
    ):
        gru: Any = GRUCell(4, param_dtype=jnp.dtype(dtype))
        with pytest.raises(InteropError, match=says):
            to_params(Model.of(gru, params_of(gru)), form=form)
