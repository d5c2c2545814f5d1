"""Modules of PyTorch, run live: the same outputs, states and gradients, and the same way back.

And whole models: which modules, in which order; training; refusals.
"""

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import assert_same_bits, distance, drawn, random_model

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, ProjectionLSTMCell, SimpleRNNCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    Masking,
    Model,
    OneHotIds,
    Recurrent,
    Sequential,
)
from rnnjax.interop.torch import from_state_dict, to_state_dict

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
nn, torch_rnn = torch.nn, torch.nn.utils.rnn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
TOLERANCE = 1e-5  # of the largest entry of each array


class Case(NamedTuple):
    """What is drawn: a module, and how it is called."""

    kind: str
    single_cell: bool
    layers: int
    bidirectional: bool
    proj_size: int
    bias: bool
    nonlinearity: str
    sizes: tuple[int, int]  # inputs, hidden
    time: int
    lengths: tuple[int, ...] | None
    batch: int
    with_state: bool
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    kind = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    single = draw(st.integers(0, 4)) == 0
    hidden = draw(st.integers(2, 4))
    time, batch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    packed = not single and draw(st.booleans())
    lengths = st.tuples(*[st.integers(1, time)] * batch)
    return Case(
        kind,
        single,
        1 if single else draw(st.integers(1, 3)),
        not single and draw(st.booleans()),
        draw(st.integers(0, hidden - 1)) if kind == "LSTM" and not single else 0,
        draw(st.booleans()),
        draw(st.sampled_from(["tanh", "relu"])) if kind == "RNN" else "tanh",
        (draw(st.integers(1, 3)), hidden),
        time,
        draw(lengths) if packed else None,
        batch,
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def randomize(module: Any, seed: int = 0) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(0.6 * rng.standard_normal(p.shape)))
    return module


def make(case: Case) -> Any:
    options: dict[str, Any] = {"bias": case.bias}
    if case.kind == "RNN":
        options["nonlinearity"] = case.nonlinearity
    if case.single_cell:
        module = getattr(torch.nn, case.kind + "Cell")(*case.sizes, **options)
    else:
        if case.proj_size:
            options["proj_size"] = case.proj_size
        module = getattr(torch.nn, case.kind)(
            *case.sizes, case.layers, bidirectional=case.bidirectional, **options
        )
    return randomize(module, case.seed)


def run_torch(case: Case, module: Any, xs: Any, states: list[Any] | None) -> tuple[Any, list[Any]]:
    """Outputs, and the final states: one array ``(layers * directions, batch, size)`` or two."""
    given_states: Any = None
    if states is not None:
        given_states = tuple(states) if len(states) == 2 else states[0]
    if case.single_cell:
        state, ys = given_states, []
        if state is not None:
            state = tuple(s[0] for s in states) if len(states or ()) == 2 else states[0][0]
        for x in xs:
            state = module(x, state)
            ys.append(state[0] if case.kind == "LSTM" else state)
        finals = state if case.kind == "LSTM" else (state,)
        return torch.stack(ys), [final[None] for final in finals]
    if case.lengths is not None:
        xs = torch_rnn.pack_padded_sequence(xs, torch.tensor(case.lengths), enforce_sorted=False)
    ys, finals = module(xs, given_states)
    if case.lengths is not None:
        ys, _ = torch_rnn.pad_packed_sequence(ys, total_length=case.time)
    return ys, list(finals) if case.kind == "LSTM" else [finals]


def check_parity(case: Case) -> float:
    """The largest error of outputs, final states and gradients; parameters go back to the bit."""
    module = make(case)
    state = module.state_dict()
    model = from_state_dict(state, nonlinearity=case.nonlinearity)
    rng = np.random.default_rng(case.seed + 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    xs = draw(case.time, case.batch, case.sizes[0])
    start = jax.tree.map(lambda leaf: draw(*leaf.shape), model.initial_carry((case.batch,)))
    entries = jax.tree.leaves(start["rnn"], is_leaf=lambda e: hasattr(e, "hidden"))
    entry_type = type(entries[0])
    tree = jax.tree.structure(start["rnn"], is_leaf=lambda e: hasattr(e, "hidden"))

    t_xs = torch.tensor(xs, requires_grad=True)
    t_states = None
    if case.with_state:
        t_states = [
            torch.tensor(np.stack(parts), requires_grad=True)
            for parts in zip(*entries, strict=True)
        ]
    t_ys, t_finals = run_torch(case, module, t_xs, t_states)
    w_ys, w_finals = draw(*t_ys.shape), [draw(*final.shape) for final in t_finals]
    loss = (t_ys * torch.tensor(w_ys)).sum()
    for weight, final in zip(w_finals, t_finals, strict=True):
        loss = loss + (final * torch.tensor(weight)).sum()
    loss.backward()

    def as_carry(arrays: list[Any]) -> Any:
        return tree.unflatten(
            [entry_type(*(array[i] for array in arrays)) for i in range(len(entries))]
        )

    w_carry = as_carry(w_finals)
    lengths = None if case.lengths is None else np.array(case.lengths)

    def our_loss(params: Any, xs: Any, start: Any) -> Any:
        carry, ys = model.apply(params, xs, start if case.with_state else None, lengths=lengths)
        total = jnp.vdot(w_ys, ys)
        total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, w_carry, carry["rnn"])))
        return total, (carry["rnn"], ys)

    (d_params, d_xs, d_start), actual = jax.jit(
        jax.grad(our_loss, argnums=(0, 1, 2), has_aux=True)
    )(model.params, xs, start)
    finals = as_carry([final.detach().numpy() for final in t_finals])
    gradients = to_state_dict(Model(model.network, d_params))
    if case.single_cell:
        gradients = {key.removesuffix("_l0"): array for key, array in gradients.items()}
    expected = {name: p.grad.numpy() for name, p in module.named_parameters()}
    ours, theirs = [gradients, d_xs], [expected, t_xs.grad.numpy()]
    if t_states is not None:
        ours.append(d_start["rnn"])
        theirs.append(as_carry([state.grad.numpy() for state in t_states]))
    assert_same_bits(to_state_dict(model), {k: v.numpy() for k, v in state.items()})
    error = distance(actual, (finals, t_ys.detach().numpy()))
    return max(error, distance(ours, theirs))


CASES = [
    Case("RNN", False, 1, True, 0, True, "relu", (3, 2), 4, (4, 2), 2, True, 1),
    Case("LSTM", False, 2, True, 2, True, "tanh", (2, 3), 4, (3, 4), 2, True, 2),
    Case("LSTM", False, 1, False, 0, False, "tanh", (2, 3), 4, None, 2, False, 3),
    Case("LSTM", True, 1, False, 0, True, "tanh", (2, 3), 3, None, 2, True, 4),
    Case("GRU", False, 2, True, 0, True, "tanh", (2, 3), 4, (3, 4), 2, True, 5),
    Case("GRU", True, 1, False, 0, False, "tanh", (2, 3), 3, None, 2, False, 6),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind + "Cell" * case.single_cell)
def test_equals_torch(case: Case) -> None:
    assert check_parity(case) < TOLERANCE


@pytest.mark.slow
def test_equals_torch_in_many_configurations() -> None:
    """Five hundred drawn ones; shown with ``-s``: of which kinds, and the largest error of all."""
    kinds: collections.Counter[str] = collections.Counter()
    errors = []

    @drawn(500)
    @given(case=cases())
    def check(case: Case) -> None:
        kinds[case.kind + "Cell" * case.single_cell + ", projected" * (case.proj_size > 0)] += 1
        errors.append(check_parity(case))
        assert errors[-1] < TOLERANCE

    check()
    print(f"{len(errors)} configurations, largest error {max(errors):.1e}: {dict(kinds)}")
    assert len(errors) >= 500


# --- Whole models ---


class Tagger(nn.Module):
    """A language model as people write one: registered in another order than it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 11)
        self.rnn = nn.LSTM(4, 3, num_layers=2, bidirectional=True)
        self.embed = nn.Embedding(11, 4)

    def forward(self, ids: Any) -> Any:
        return self.head(self.rnn(self.embed(ids))[0])


class Deep(nn.Module):
    """Two recurrent modules of one size, and functions between the linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(5, 5)
        self.body = nn.ModuleDict({"second": nn.RNN(5, 5, nonlinearity="relu")})
        self.hidden = nn.Linear(5, 5)
        self.out = nn.Linear(5, 2, bias=False)
        self.norm = nn.LayerNorm(5)

    def forward(self, xs: Any) -> Any:
        ys = self.body["second"](self.first(xs)[0])[0]
        return torch.softmax(self.out(torch.relu(self.hidden(ys))), -1)


def test_a_tagging_model_is_read_whole_and_goes_back() -> None:
    module = randomize(Tagger())
    model = from_state_dict(module.state_dict())
    assert list(model.layers) == ["embed", "rnn", "head"]
    assert model.layers["rnn"] == Recurrent(
        "rnn", Stack([Bidirectional(LSTMCell(3, use_recurrent_bias=True))] * 2)
    )
    ids = np.random.default_rng(1).integers(0, 11, (5, 2))
    expected = module(torch.tensor(ids)).detach().numpy()
    np.testing.assert_allclose(model(ids)[1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    other = Tagger()
    other.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(model).items()})
    assert torch.equal(other(torch.tensor(ids)), module(torch.tensor(ids)))


def test_modules_select_and_order_and_name_what_is_code() -> None:
    module = randomize(Deep())
    relu, softmax = Activation("relu", "relu"), Activation("softmax", "softmax")
    model = from_state_dict(
        module.state_dict(),
        modules=["first", "body.second", "hidden", relu, "out", softmax],
        nonlinearity="relu",
    )
    xs = np.random.default_rng(1).standard_normal((4, 3, 5)).astype(np.float32)
    expected = module(torch.tensor(xs)).detach().numpy()
    np.testing.assert_allclose(model(xs)[1], expected, rtol=0, atol=1e-5)
    state = to_state_dict(model)
    assert sorted(state) == sorted(k for k in module.state_dict() if not k.startswith("norm"))
    for key, array in state.items():
        np.testing.assert_array_equal(array, module.state_dict()[key].numpy())


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        ({"a": nn.LSTM(3, 3), "b": nn.LSTM(3, 3)}, "fit in one way alone.*'a' .*'b' "),
        ({"a": nn.LSTM(3, 4), "b": nn.GRU(5, 6)}, "fit in one way alone"),
        ({"a": nn.LSTM(3, 4), "b": nn.GRU(4, 3)}, "fit in one way alone"),
        ({"a": nn.LSTM(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)}, "in one way alone"),
        ({"a": nn.Embedding(3, 3), "b": nn.Linear(3, 3, bias=False)}, "in one way alone"),
        ({"a": nn.Embedding(9, 3), "b": nn.GRU(3, 3), "c": nn.Embedding(9, 3)}, "one way alone"),
        ({"a": nn.Embedding(3, 3), "b": nn.GRU(3, 3)}, "one way alone"),
        ({str(i): nn.LSTM(i + 1, i + 2) for i in range(9)}, "in one way alone"),
        ({"in": nn.Linear(3, 3), "gru": nn.GRU(3, 3)}, "'in' .* made before 'gru' and fits"),
        (
            {"a": nn.LSTM(3, 4), "between": nn.Linear(4, 4), "b": nn.LSTM(4, 4)},
            "'between' .* made before 'b' and fits there too; say in modules",
        ),
    ],
)
def test_an_order_that_is_not_certain_is_asked_for(modules: dict[str, Any], match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_state_dict(nn.ModuleDict(modules).state_dict())


def test_a_linear_module_that_was_made_last_is_the_last() -> None:
    """As in a model of one-hot characters; safetensors has all in the order of the alphabet."""
    state = nn.ModuleDict({"rnn": nn.LSTM(7, 4), "head": nn.Linear(4, 7)}).state_dict()
    assert [*from_state_dict(state).layers] == ["rnn", "head"]
    assert [*from_state_dict(dict(sorted(state.items()))).layers] == ["rnn", "head"]


def test_a_weight_alone_is_an_embedding_at_the_first_place() -> None:
    modules = nn.ModuleDict(
        {"a": nn.Embedding(9, 3), "b": nn.GRU(3, 3), "c": nn.Linear(3, 9, bias=False)}
    )
    state = modules.state_dict()
    layers = [*from_state_dict(state, modules=["a", "b", "c"]).layers.values()]
    assert layers[0] == Embedding("a", 9, 3)
    assert layers[2] == Dense("c", 9, use_bias=False)
    layers = [*from_state_dict(state, modules=["c", "b", "a"]).layers.values()]
    assert layers[0] == Embedding("c", 9, 3)
    projected = nn.ModuleDict({"a": nn.Linear(9, 3, bias=False), "b": nn.GRU(3, 2)})
    layers = [*from_state_dict(projected.state_dict(), modules=["a", "b"]).layers.values()]
    assert layers[0] == Dense("a", 3, use_bias=False)
    one_hot = [OneHotIds("ids", 9), "a", "b"]
    layers = [*from_state_dict(projected.state_dict(), modules=one_hot).layers.values()]
    assert layers[:2] == [OneHotIds("ids", 9), Dense("a", 3, use_bias=False)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_stay_what_they_are(dtype: str, request: Any) -> None:
    module = randomize(nn.LSTM(3, 4)).to(getattr(torch, dtype))
    if dtype == "float64":
        with pytest.raises(InteropError, match="jax_enable_x64"):
            from_state_dict(module.state_dict())
        request.getfixturevalue("x64")
    model = from_state_dict(module.state_dict())
    params = model.params["rnn"]
    assert {str(leaf.dtype) for leaf in params.values()} == {dtype}
    assert model.layers["rnn"].cell.param_dtype == jnp.dtype(dtype)
    expected = module.bias_hh_l0.detach().double().numpy()
    np.testing.assert_array_equal(np.asarray(params["recurrent_bias"], np.float64), expected)
    for key, array in to_state_dict(model).items():
        assert array.dtype == jnp.dtype(dtype)
        expected = module.state_dict()[key].double().numpy()
        np.testing.assert_array_equal(np.asarray(array, np.float64), expected)


def test_biases_go_back_each_as_it_was_trained() -> None:
    module = randomize(nn.LSTM(3, 4))
    state = {key: tensor.numpy().copy() for key, tensor in module.state_dict().items()}
    state["bias_hh_l0"][5] = np.nan
    state["bias_ih_l0"][6] = -0.0
    model = from_state_dict(state)
    bias = model.params["rnn"]["bias"].at[:4].add(0.25)
    trained = model.with_params({"rnn": {**model.params["rnn"], "bias": bias}})
    back = to_state_dict(trained)
    assert back["bias_hh_l0"].tobytes() == state["bias_hh_l0"].tobytes()
    assert back["bias_ih_l0"].tobytes() == np.asarray(bias).tobytes()


def test_the_arrays_are_copies() -> None:
    """PyTorch's optimizers write into their tensors."""
    module = randomize(nn.GRU(3, 4))
    model = from_state_dict(module.state_dict())
    before = jax.tree.map(np.array, model.params)
    state = to_state_dict(model)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        for array in state.values():
            torch.from_numpy(array).zero_()
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


ROWS = [
    Recurrent("rnn", SimpleRNNCell(4, activation="relu")),
    Recurrent("rnn", SimpleRNNCell(4, activation=jnp.tanh)),
    Recurrent("rnn", Stack([GRUCell(4, use_bias=False)] * 2)),
    Recurrent("rnn", Bidirectional(GRUCell(4)), return_sequences=False),
    Recurrent("rnn", Stack([Bidirectional(ProjectionLSTMCell(4, proj_size=2))] * 3)),
    Recurrent("rnn", rnnjax.Regularized(LSTMCell(4), recurrent_dropout=0.3)),
]


@pytest.mark.parametrize("layer", ROWS, ids=str)
def test_our_models_load_strictly_and_compute_the_same(layer: Recurrent) -> None:
    """What has no parameters is left out, and keys have no prefix."""
    drop = Dropout("drop", rnnjax.Dropout(0.2))
    model = random_model(Sequential((Masking("mask", -9.0), layer, drop)), 3)
    cell = layer.cell
    rows = cell.cells if isinstance(cell, Stack) else (cell,)
    one = rows[0].cells.forward if isinstance(rows[0], Bidirectional) else rows[0]
    one = one.cell if isinstance(one, rnnjax.Regularized) else one
    kinds = {SimpleRNNCell: "RNN", GRUCell: "GRU"}
    options: dict[str, Any] = {"bias": getattr(one, "use_bias", True)}
    options["bidirectional"] = isinstance(rows[0], Bidirectional)
    if isinstance(one, SimpleRNNCell):
        options["nonlinearity"] = "relu" if one.activation == "relu" else "tanh"
    if isinstance(one, ProjectionLSTMCell):
        options["proj_size"] = one.proj_size
    module = getattr(nn, kinds.get(type(one), "LSTM"))(3, 4, len(rows), **options)
    state = to_state_dict(model)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    xs = np.random.default_rng(3).standard_normal((5, 2, 3)).astype(np.float32)
    with torch.no_grad():
        expected, _ = module(torch.tensor(xs))
    if not layer.return_sequences:
        expected = torch.cat([expected[-1, :, :4], expected[0, :, 4:]], -1)
    np.testing.assert_allclose(model(xs)[1], expected.numpy(), rtol=0, atol=1e-5)


def test_names_are_prefixes() -> None:
    layers = (
        Embedding("embed", 7, 3),
        Recurrent("encoder.rnn", LSTMCell(4)),
        Dense("head", 7, activation="softmax"),
    )
    state = to_state_dict(random_model(Sequential(layers), 3))
    assert [*state] == [
        "embed.weight",
        "encoder.rnn.weight_ih_l0",
        "encoder.rnn.weight_hh_l0",
        "encoder.rnn.bias_ih_l0",
        "encoder.rnn.bias_hh_l0",
        "head.weight",
        "head.bias",
    ]
    assert not state["encoder.rnn.bias_hh_l0"].any()
    rnn = (Recurrent("rnn", LSTMCell(4)), Dense("head", 7))
    assert "rnn.weight_ih_l0" in to_state_dict(random_model(Sequential(rnn), 3))
    assert "lstm.weight_ih_l0" in to_state_dict(
        random_model(Sequential((Recurrent("lstm", LSTMCell(4)),)), 3)
    )


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (Recurrent("a", LSTMCell(4), reverse=True), "runs in reverse"),
        (Recurrent("a", rnnjax.PeepholeLSTMCell(4)), "PeepholeLSTMCell"),
        (Recurrent("a", rnnjax.LeakyRNNCell(4, leak=0.5)), "LeakyRNNCell"),
        (Recurrent("a", rnnjax.LearnedCarry(LSTMCell(4))), "LearnedCarry"),
        (Recurrent("a", GRUCell(4, reset_after=False)), "reset_after=False"),
        (Recurrent("a", LSTMCell(4, activation="relu")), "'relu'"),
        (Recurrent("a", LSTMCell(4, recurrent_activation="hard_sigmoid")), "'hard_sigmoid'"),
        (Recurrent("a", SimpleRNNCell(4, activation="sigmoid")), "'tanh' or 'relu'"),
        (Recurrent("a", ProjectionLSTMCell(4, proj_size=4)), "smaller than its hidden_size"),
        (Recurrent("a", Stack([LSTMCell(4), LSTMCell(3)])), "are not: "),
        (Recurrent("a", Stack([LSTMCell(4), GRUCell(4)])), "are not: "),
        (Recurrent("a", Bidirectional(LSTMCell(4), LSTMCell(3))), "are not: "),
        (Recurrent("a", Bidirectional(LSTMCell(4), merge="sum")), "merge='sum'"),
        (Recurrent("a", rnnjax.Regularized(LSTMCell(4), zoneout_cell=0.1)), "no zoneout"),
    ],
    ids=str,
)
def test_what_torch_cannot_express_is_refused(layer: Recurrent, match: str) -> None:
    with pytest.raises(InteropError, match=match):
        to_state_dict(random_model(Sequential((layer,)), 3))


def test_parameters_of_another_size_are_refused() -> None:
    network = Sequential((Recurrent("rnn", LSTMCell(4)),))
    good = random_model(network, 3).params["rnn"]
    for params in (
        {},
        {"rnn": GRUCell(4).init(jax.random.key(0), 3)},
        {"rnn": {"kernel": np.ones(3)}},
        {"rnn": {"kernel": 1.0}},
        {"rnn": 1.0},
    ):
        with pytest.raises(InvalidInputError, match="params"):
            to_state_dict(Model(network, params))
    head = Sequential((Dense("head", 7),))
    with pytest.raises(InvalidInputError, match="'kernel': \\(any, 7\\)"):
        to_state_dict(Model(head, {"head": {"kernel": np.ones((3, 4)), "bias": np.ones(7)}}))
    both = Sequential((Recurrent("rnn", Bidirectional(LSTMCell(4))),))
    with pytest.raises(InvalidInputError, match="Directions"):
        to_state_dict(Model(both, {"rnn": good}))
    stack = Sequential((Recurrent("rnn", Stack([LSTMCell(4)])),))
    with pytest.raises(InvalidInputError, match="a tuple with 1 entries"):
        to_state_dict(Model(stack, {"rnn": good}))


def changed(module: Any, **changes: Any) -> dict[str, Any]:
    """A state dict with some arrays in other shapes; None leaves one out."""
    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    for key, shape in changes.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = np.ones(shape, np.float32)
    return state


LSTM = nn.LSTM(3, 4, 2, bidirectional=True)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (changed(LSTM, weight_ih_l0=None), "_l0, an LSTM of 4 units, should have .*, but has"),
        (changed(LSTM, weight_hh_l1_reverse=None), "weight_hh of .* is missing"),
        (changed(LSTM, bias_hh_l0=None), "should have .*'bias_hh': \\(16,\\).*, but has"),
        (changed(LSTM, bias_hh_l0=None, bias_ih_l0=None), "does not fit the other layers"),
        (changed(LSTM, bias_hh_l0=(15,)), "but has .*'bias_hh': \\(15,\\)"),
        (changed(LSTM, weight_hh_l0=(16, 5)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_hh_l0=(4,)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_hh_l0=(8, 4)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_ih_l0=(16, 0)), "but has .*'weight_ih': \\(16, 0\\)"),
        (changed(LSTM, weight_ih_l1=(16, 7)), "does not fit the other layers"),
        (changed(LSTM, weight_ih_l0_reverse=(16, 2)), "does not fit the other layers"),
        (changed(LSTM, weight_hr_l0=(5, 5)), "weight_hh"),
        (changed(LSTM, weight_hh_l0=(), weight_hr_l0=(4, 4)), "4, 3 or 1 gates"),
        (changed(nn.GRU(3, 4), weight_hr_l0=(4, 4)), "4 where there is a weight_hr"),
        (changed(LSTM, weight_ih_l3=(16, 8)), "_l0, _l1 ..., "),
        (changed(LSTM, weight_ih=(16, 8)), "_l0, _l1 ..., "),
        (changed(nn.ModuleDict({"a": LSTM}), **{"a.weight_ih_l00": (16, 8)}), "a.weight_ih_l00"),
        (changed(LSTM, **{"rnn.weight_ih_l0": (16, 3)}), "has its name; rename"),
        (
            changed(LSTM, weight_hh_l0=None, weight_hh_l0_g=(16, 1)),
            "weight_hh of .*missing; .*weight_norm",
        ),
        (
            changed(nn.ModuleDict({"a": LSTM}), **{"a.weight_hh_l0_g": (16, 1)}),
            "'a.weight_hh_l0_g' is no part.*remove_weight_norm",
        ),
        ({"a.weight": np.ones((3, 3), np.int32)}, "int32"),
        ({"a.weight": np.ones((3, 3), bool)}, "bool"),
        ({"a.weight": "text"}, "no module to read, only 'a' \\(weight str\\)"),
        ({"state_dict": {"a": 1}, "epoch": 3}, "no module .*state_dict dict"),
        ({0: np.ones(3)}, "has text for keys"),
        ({"a.weight": torch.ones(3, 3).to_sparse()}, "plain tensor"),
        ({}, "no module"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(state: dict[str, Any], match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_state_dict(state)


def test_mixed_types_are_refused() -> None:
    state = changed(nn.LSTM(3, 4))
    state["bias_hh_l0"] = state["bias_hh_l0"].astype(np.float16)
    with pytest.raises(InteropError, match="float16 and float32"):
        from_state_dict(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"modules": ["lstm"]}, "names of \\['rnn'\\]"),
        ({"modules": "rnn"}, "a list"),
        ({"at": "model"}, "at should lead to a dict"),
        ({"modules": []}, "a list"),
        ({"modules": ["rnn", "rnn"]}, "takes 3 features, but gets 8"),
        ({"modules": ["rnn", Dense("a", 3)]}, "without parameters"),
        ({"nonlinearity": "gelu"}, "'tanh' or 'relu'"),
        ({"nonlinearity": {"rnn": "relu"}}, "'tanh' or 'relu'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidInputError, InteropError), match=match):
        from_state_dict(LSTM.state_dict(), **options)


def test_a_module_is_no_state_dict() -> None:
    with pytest.raises(InvalidInputError, match=r"call module\.state_dict"):
        from_state_dict(LSTM)


def test_batch_first_where_it_is_asked_for() -> None:
    module = nn.GRU(3, 2, batch_first=True)
    model = from_state_dict(module.state_dict(), time_first=False)
    xs = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    expected = module(torch.tensor(xs))[0].detach().numpy()
    np.testing.assert_allclose(model(xs)[1], expected, atol=1e-6)
    assert str(model).endswith("batch first")
