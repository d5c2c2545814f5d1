"""Modules of PyTorch, run live: the same outputs and states, and the same way back.

And whole models: which modules, in which order; training; refusals.
"""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_helpers import assert_same_bits, distance, random_model

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, ProjectionLSTMCell, SimpleRNNCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Activation, Dense, Dropout, Embedding, Masking, OneHotIds, Recurrent
from rnnjax.interop.torch import from_state_dict, to_state_dict

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
nn, torch_rnn = torch.nn, torch.nn.utils.rnn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
TOLERANCE = 1e-5  # of the largest entry of each array


def randomize(module: Any, seed: int = 0) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(0.6 * rng.standard_normal(p.shape)))
    return module


def run_torch(module: Any, xs: Any, states: Any, lengths: Any) -> tuple[Any, list[Any]]:
    """Outputs, and the final states: one array ``(layers * directions, batch, size)`` or two."""
    given = states and (tuple(states) if len(states) == 2 else states[0])
    if isinstance(module, nn.RNNCellBase):
        if given is not None:
            given = tuple(one[0] for one in given) if len(states) == 2 else given[0]
        ys = []
        for x in xs:
            given = module(x, given)
            ys.append(given[0] if isinstance(given, tuple) else given)
        return torch.stack(ys), [s[None] for s in (given if isinstance(given, tuple) else [given])]
    if lengths is None:
        ys, finals = module(xs, given)
    else:
        packed = torch_rnn.pack_padded_sequence(xs, torch.tensor(lengths), enforce_sorted=False)
        ys, finals = module(packed, given)
        ys, _ = torch_rnn.pad_packed_sequence(ys, total_length=len(xs))
    return ys, list(finals) if isinstance(finals, tuple) else [finals]


def stacked(carry: Any) -> list[np.ndarray]:
    """The states of all layers and directions, as PyTorch has them."""
    each = jax.tree.leaves(carry["rnn"], is_leaf=lambda e: hasattr(e, "hidden"))
    return [np.stack(parts) for parts in zip(*each, strict=True)]


CASES: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("RNN", 3, 2), {"nonlinearity": "relu", "bidirectional": True, "lengths": (4, 2)}),
    (("LSTM", 2, 3, 2), {"bidirectional": True, "proj_size": 2, "lengths": (3, 4)}),
    (("LSTM", 2, 3), {"bias": False, "with_state": False}),
    (("LSTMCell", 2, 3), {}),
    (("GRU", 2, 3, 2), {"bidirectional": True, "lengths": (3, 4)}),
    (("GRUCell", 2, 3), {"bias": False, "with_state": False}),
    (("GRU", 2, 3), {"batch_first": True}),
    (("RNN", 2, 3, 3), {"bias": False, "with_state": False, "lengths": (1, 4)}),
    (("RNNCell", 2, 3), {"nonlinearity": "relu"}),
    (("LSTM", 1, 4, 3), {"proj_size": 1, "lengths": (4, 1)}),
    (("GRU", 3, 2, 2), {"bias": False, "bidirectional": True}),
]


@pytest.mark.parametrize(("args", "options"), CASES, ids=str)
def test_equals_torch(args: Any, options: Any) -> None:
    """Equal outputs and final states; parameters go back to the bit."""
    kind, *sizes = args
    lengths, with_state = options.get("lengths"), options.get("with_state", True)
    told = {key: v for key, v in options.items() if key not in ("lengths", "with_state")}
    module = randomize(getattr(nn, kind)(*sizes, **told))
    state, time_first = module.state_dict(), "batch_first" not in options
    nonlinearity: Any = options.get("nonlinearity", "tanh")
    model = from_state_dict(state, nonlinearity=nonlinearity, time_first=time_first)
    assert_same_bits(to_state_dict(model), {k: v.numpy() for k, v in state.items()})
    axes, rng = (4, 2) if time_first else (2, 4), np.random.default_rng(1)
    start = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        (np.zeros((*axes, sizes[0])), model.initial_carry((2,))),
    )
    states = [*map(torch.tensor, stacked(start[1]))] if with_state else None
    with torch.no_grad():
        expected = run_torch(module, torch.tensor(start[0]), states, lengths)
    marks = None if lengths is None else np.array(lengths)
    given = start if with_state else start[:1]
    carry, ys = jax.jit(lambda *given: model(*given, lengths=marks))(*given)
    assert distance((ys, stacked(carry)), jax.tree.map(np.asarray, expected)) < TOLERANCE


# --- Whole models ---


def test_a_tagging_model_is_read_whole_and_goes_back() -> None:
    """Registered in another order than it runs."""
    rnn, embedding = nn.LSTM(4, 3, num_layers=2, bidirectional=True), nn.Embedding(11, 4)
    module = randomize(nn.ModuleDict({"head": nn.Linear(6, 11), "rnn": rnn, "embed": embedding}))
    model = from_state_dict(module.state_dict())
    assert list(model.layers) == ["embed", "rnn", "head"]
    assert model.layers["rnn"] == Recurrent(
        "rnn", Stack([Bidirectional(LSTMCell(3, use_recurrent_bias=True))] * 2)
    )
    ids = np.random.default_rng(1).integers(0, 11, (5, 2))
    expected = module["head"](rnn(embedding(torch.tensor(ids)))[0]).detach().numpy()
    assert distance(jax.jit(model.__call__)(ids)[1], expected) < TOLERANCE
    assert_same_bits(to_state_dict(model), {k: v.numpy() for k, v in module.state_dict().items()})


def test_modules_select_and_order_and_name_what_is_code() -> None:
    """Two recurrent modules of one size, and functions between the linear ones."""
    body = nn.ModuleDict({"second": nn.RNN(5, 5, nonlinearity="relu")})
    module = {"first": nn.GRU(5, 5), "body": body, "hidden": nn.Linear(5, 5)}
    module |= {"out": nn.Linear(5, 2, bias=False), "norm": nn.LayerNorm(5)}
    state = randomize(nn.ModuleDict(module)).state_dict()
    relu, softmax = Activation("relu", "relu"), Activation("softmax", "softmax")
    model = from_state_dict(
        state,
        modules=["first", "body.second", "hidden", relu, "out", softmax],
        nonlinearity="relu",
    )
    xs = np.random.default_rng(1).standard_normal((4, 3, 5)).astype(np.float32)
    ys = body["second"](module["first"](torch.tensor(xs))[0])[0]
    expected = torch.softmax(module["out"](torch.relu(module["hidden"](ys))), -1)
    assert distance(jax.jit(model.__call__)(xs)[1], expected.detach().numpy()) < TOLERANCE
    kept = {key: tensor.numpy() for key, tensor in state.items() if not key.startswith("norm")}
    assert_same_bits(to_state_dict(model), kept)


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        ({"a1": nn.LSTM(3, 3), "a2": nn.LSTM(3, 3)}, "fit in one way alone.*'a1' .*'a2' "),
        ({"a1": nn.LSTM(3, 4), "a2": nn.GRU(5, 6)}, "fit in one way alone"),
        ({"a1": nn.LSTM(3, 4), "a2": nn.GRU(4, 3)}, "fit in one way alone"),
        ({"a": nn.LSTM(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)}, "in one way alone"),
        ({"a": nn.Embedding(3, 3), "b": nn.Linear(3, 3, bias=False)}, "in one way alone"),
        ({"a": nn.Embedding(9, 3), "b": nn.GRU(3, 3), "c": nn.Embedding(9, 3)}, "one way alone"),
        ({"a": nn.Embedding(3, 3), "b": nn.GRU(3, 3)}, "one way alone"),
        ({str(i): nn.LSTM(i + 1, i + 2) for i in range(9)}, "in one way alone"),
        ({"in": nn.Linear(3, 3), "gru": nn.GRU(3, 3)}, "in one way alone.*'in' .*'gru' "),
        ({"rnn": nn.LSTM(7, 4), "b": nn.Linear(4, 7)}, "in one way alone, a linear one last"),
        ({"linear0": nn.Linear(4, 7), "gru": nn.GRU(7, 4)}, "in one way alone"),
        ({"in": nn.Linear(3, 4), "gru": nn.GRU(4, 5)}, "a linear one last"),
        ({"a1": nn.LSTM(3, 4), "b": nn.Linear(4, 4), "a2": nn.LSTM(4, 4)}, "in one way alone"),
        # Side by side, and an encoder and a decoder.
        ({"left": nn.GRU(3, 4), "right": nn.LSTM(3, 2), "fc": nn.Linear(6, 2)}, "side by side"),
        ({"rnn_x": nn.GRU(4, 4), "rnn_y": nn.GRU(4, 4), "fc": nn.Linear(8, 2)}, "side by side"),
        ({"lstm1": nn.LSTM(4, 5), "lstm2": nn.LSTM(3, 4)}, "names count recurrent ones in it"),
    ],
)
def test_an_order_that_is_not_certain_is_asked_for(modules: dict[str, Any], match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_state_dict(nn.ModuleDict(modules).state_dict())


@pytest.mark.parametrize(
    ("names", "read"),
    [("rnn fc", True), ("lstm linear", True), ("net.gru net.dense", True), ("head rnn", True),
     ("rnn decoder", True), ("classifier gru", True), ("lstm output_layer", True),
     ("rnn lm_head", True), ("fc rnn", False), ("rnn fcn", False), ("rnn outer", False)],
)  # fmt: skip
def test_the_name_of_a_linear_module_says_that_it_is_last(names: str, read: bool) -> None:
    """Where it would fit before the recurrent one too, with a bias or an embedding or without."""
    for options in ({}, {"bias": False}):
        made = {name: nn.Linear(5, 5, **options) for name in names.split()}
        made |= {name: nn.GRU(5, 5) for name in made if name.endswith(("rnn", "gru", "lstm"))}
        for first in ({}, {"emb": nn.Embedding(9, 5)}):
            state = nested(first | made).state_dict()
            if not read:
                with pytest.raises(InteropError, match="in one way alone"):
                    from_state_dict(state)
                continue
            assert isinstance([*from_state_dict(state).layers.values()][-1], Dense)


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Dropout(0.5), nn.Sequential(nn.Tanh())])
@pytest.mark.parametrize("count", [1, 2])
def test_a_module_without_parameters_is_not_passed_over(between: Any, count: int) -> None:
    """A number that is missing tells that there is one, and not which."""
    head, lstm = nn.Linear(8, 2), nn.LSTM(5, 8)
    inner = nn.Sequential(*[between] * count, nn.ModuleDict({"out": head}))
    flat = nn.Sequential(*[between] * count, head)
    for module, row in (
        (nn.ModuleDict({"lstm": lstm, "fc": flat}), ["lstm", f"fc.{count}"]),
        (nn.ModuleDict({"lstm": lstm, "fc": inner}), ["lstm", f"fc.{count}.out"]),
        (nn.Sequential(lstm, *flat), ["0", f"{count + 1}"]),
    ):
        state = module.state_dict()
        says = (
            f"before {row[1]!r} stands a module without parameters: left out, if it is a Dropout, "
            "or Activation('relu', 'relu'), if it is a ReLU; say in modules=[...] what runs, as in "
            f"modules={row}, of "
        )
        with pytest.raises(InteropError, match=re.escape(says)):
            from_state_dict(state)
        assert [*from_state_dict(state, modules=row).layers] == row
    behind = nn.ModuleDict({"lstm": lstm, "fc": nn.Sequential(head, between)})
    assert [*from_state_dict(behind.state_dict()).layers] == ["lstm", "fc.0"]


def nested(modules: dict[str, Any]) -> Any:
    """A module of modules, whose names have dots."""
    root = nn.Module()
    for path, module in modules.items():
        *above, name = path.split(".")
        at = root
        for one in above:
            if not hasattr(at, one):
                at.add_module(one, nn.Module())
            at = getattr(at, one)
        at.add_module(name, module)
    return root


ENCODERS = ["encoder decoder", "enc.rnn dec.rnn", "encoder.lstm1 encoder.lstm2 decoder.lstm1",
            "lstm gru", "lstm_enc lstm_dec"]  # fmt: skip


@pytest.mark.parametrize("names", ENCODERS)
def test_an_encoder_and_a_decoder_are_two_models(names: str) -> None:
    """Their sizes follow each other, but the one hands its states to the other."""
    sizes = zip((5, 6, 7), (6, 7, 8), strict=True)
    rows = {name: nn.LSTM(*next(sizes)) for name in names.split()}
    first, *_, last = rows
    state = nested({**rows, "fc": nn.Linear(rows[last].hidden_size, 5)}).state_dict()
    match = f"modules '{first}', .*'{last}' may run .* encoder and a decoder, which are two models;"
    with pytest.raises(InteropError, match=rf"{match} .* modules=\['{first}'\], of '{first}' \("):
        from_state_dict(state)
    assert [*from_state_dict(state, modules=[first]).layers] == [first]


def test_a_row_whose_names_count() -> None:
    """Whatever the order in which its modules were made."""
    for names in ("lstm1 lstm2", "lstm lstm2", "rnn9 rnn10", "layers.0.rnn layers.1.rnn"):
        one, two = names.split()
        modules = {"head": nn.Linear(4, 2), two: nn.LSTM(6, 4), one: nn.LSTM(5, 6)}
        read = from_state_dict(nested(modules | {"embed": nn.Embedding(9, 5)}).state_dict())
        assert [*read.layers] == ["embed", one, two, "head"]


def drawn_row(rng: np.random.Generator) -> list[tuple[str, Any]]:
    """Modules in the order of their use, named by it, by what they are, or by neither."""

    def pick(*some: Any) -> Any:
        return some[rng.integers(len(some))]

    def size() -> int:  # small, so that sizes fit by chance too
        return int(rng.integers(2, 8))

    row, width = list[tuple[str, Any]](), size()
    if rng.random() < 0.3:
        row.append((pick("embedding", "z", "encoder"), nn.Embedding(size(), width)))
    elif rng.random() < 0.2:
        row.append((pick("inp", "fc0", "z"), nn.Linear(width, width := size())))
    count = int(rng.integers(1, 4 - len(row)))
    form = pick("lstm{}", "layers.{}.rnn", "rnns.{}", "")
    numbers = [1, 2, 3] if rng.random() < 0.8 else [count, *range(1, count)]
    for i in range(count):
        name = form.format(numbers[i] - ("." in form)) if form else ["gru", "a", "top"][i]
        row.append((name, pick(nn.LSTM, nn.GRU, nn.RNN)(width, width := size())))
    if rng.random() < 0.25:
        row.append(("bn", nn.BatchNorm1d(width)))
    if rng.random() < 0.6:
        row.append((pick("head", "fc", "decoder_out"), nn.Linear(width, size(), bias=pick(0, 1))))
    return row


@pytest.mark.slow
def test_drawn_rows_are_never_read_wrong() -> None:
    """Each is what its modules compute in a row, or refused by the names of all of them."""
    reasons, equal = Counter[str](), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        row = drawn_row(rng)
        made = [row[i] for i in rng.permutation(len(row))] if rng.random() < 0.5 else row
        state, names = randomize(nested(dict(made)), seed).state_dict(), [name for name, _ in row]
        first, models = vars(row[0][1]), []
        size = first.get("in_features") or first.get("input_size", 1)
        xs = rng.standard_normal((4, 3, size), np.float32)
        xs = rng.integers(0, first["num_embeddings"], (4, 3)) if "num_embeddings" in first else xs
        y = torch.tensor(xs)
        for _, module in row * ("bn" not in names):
            y = module(y)
            y = (y[0] if isinstance(y, tuple) else y).detach()
        why = ""
        try:
            models = [from_state_dict(state)]
        except InteropError as error:
            why = str(error)
            reasons.update(one for one in ("cannot be read here", "in one way alone") if one in why)
        assert not why or all(repr(name) in why for name in names), f"seed {seed}: {why}"
        equal += len(models)
        if "bn" not in names:
            models.append(from_state_dict(state, modules=names))
        for model in models:
            ys = jax.jit(model.__call__)(xs)[1]
            assert distance(ys, y.numpy()) < TOLERANCE, f"seed {seed}: {made}, run as {names}"
    print(f"of 100 drawn state dicts, {equal} are equal, refused are {reasons}")
    assert equal >= 20
    assert len(reasons) == 2


def test_a_weight_alone_is_an_embedding_at_the_first_place() -> None:
    def read(modules: dict[str, Any], row: list[Any]) -> list[Any]:
        state = nn.ModuleDict(modules).state_dict()
        return [*from_state_dict(state, modules=row).layers.values()]

    both = {"a": nn.Embedding(9, 3), "b": nn.GRU(3, 3), "c": nn.Linear(3, 9, bias=False)}
    first, _, last = read(both, ["a", "b", "c"])
    assert (first, last) == (Embedding("a", 9, 3), Dense("c", 9, use_bias=False))
    assert read(both, ["c", "b", "a"])[0] == Embedding("c", 9, 3)
    projected = {"a": nn.Linear(9, 3, bias=False), "b": nn.GRU(3, 2)}
    dense, one_hot = Dense("a", 3, use_bias=False), OneHotIds("ids", 9)
    assert read(projected, ["a", "b"])[0] == dense
    assert read(projected, [one_hot, "a", "b"])[:2] == [one_hot, dense]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_stay_what_they_are(dtype: str, request: Any) -> None:
    module = randomize(nn.LSTM(3, 4)).to(getattr(torch, dtype))
    if dtype == "float64":
        with pytest.raises(InteropError, match="jax_enable_x64"):
            from_state_dict(module.state_dict())
        request.getfixturevalue("x64")
    model = from_state_dict(module.state_dict())
    assert model.layers["rnn"].cell.param_dtype == jnp.dtype(dtype)
    for key, array in to_state_dict(model).items():
        assert array.dtype == jnp.dtype(dtype)
        expected = module.state_dict()[key].double().numpy()
        np.testing.assert_array_equal(np.asarray(array, np.float64), expected)


def test_numbers_of_a_big_endian_machine_are_the_same_numbers() -> None:
    state = {key: tensor.numpy() for key, tensor in randomize(nn.GRU(3, 4)).state_dict().items()}
    swapped = {key: array.astype(array.dtype.newbyteorder()) for key, array in state.items()}
    assert_same_bits(to_state_dict(from_state_dict(swapped)), state)


def test_biases_go_back_each_as_it_was_trained() -> None:
    state = {k: x.numpy().copy() for k, x in randomize(nn.LSTM(3, 4)).state_dict().items()}
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


PROJECTED = {"bidirectional": True, "proj_size": 2}
ROWS = [
    (SimpleRNNCell(4, activation="relu"), "RNN", {"nonlinearity": "relu"}),
    (SimpleRNNCell(4, activation=jnp.tanh), "RNN", {}),
    (Stack([GRUCell(4, use_bias=False)] * 2), "GRU", {"num_layers": 2, "bias": False}),
    (Bidirectional(GRUCell(4)), "GRU", {"bidirectional": True}),
    (Stack([Bidirectional(ProjectionLSTMCell(4, proj_size=2))]), "LSTM", PROJECTED),
    (rnnjax.Regularized(LSTMCell(4), recurrent_dropout=0.3), "LSTM", {}),
]


@pytest.mark.parametrize(("cell", "kind", "options"), ROWS, ids=str)
def test_our_models_load_strictly_and_compute_the_same(cell: Any, kind: str, options: Any) -> None:
    """What has no parameters is left out, and keys have no prefix."""
    last = isinstance(cell, Bidirectional)
    layer, drop = Recurrent("rnn", cell, return_sequences=not last), rnnjax.Dropout(0.2)
    model = random_model(Masking("mask", -9.0), layer, Dropout("drop", drop), inputs=3)
    module = getattr(nn, kind)(3, 4, **options)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(model).items()})
    xs = np.random.default_rng(3).standard_normal((5, 2, 3)).astype(np.float32)
    with torch.no_grad():
        expected, _ = module(torch.tensor(xs))
    if last:
        expected = torch.cat([expected[-1, :, :4], expected[0, :, 4:]], -1)
    assert distance(jax.jit(model.__call__)(xs)[1], expected.numpy()) < TOLERANCE


def test_names_are_prefixes() -> None:
    layers = (
        Embedding("embed", 7, 3),
        Recurrent("encoder.rnn", LSTMCell(4)),
        Dense("head", 7, activation="softmax"),
    )
    state = to_state_dict(random_model(*layers))
    rnn = [f"encoder.rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert [*state] == ["embed.weight", *rnn, "head.weight", "head.bias"]
    assert not state["encoder.rnn.bias_hh_l0"].any()
    rnn, lstm = (Recurrent(name, LSTMCell(4)) for name in ("rnn", "lstm"))
    assert "rnn.weight_ih_l0" in to_state_dict(random_model(rnn, Dense("head", 7), inputs=3))
    assert "lstm.weight_ih_l0" in to_state_dict(random_model(lstm, inputs=3))


def changed(module: Any, **changes: Any) -> dict[str, Any]:
    """A state dict with some arrays in other shapes; None leaves one out."""
    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    for key, shape in changes.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = np.ones(shape, np.float32)
    return state


LSTM = nn.LSTM(3, 4, 2, bidirectional=True)
IN_A = nn.ModuleDict({"a": LSTM})


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (changed(LSTM, weight_ih_l0=None), "LSTM with .*size=4, num_.*=2 and .*=True, .*ih_l0'"),
        (changed(LSTM, weight_hh_l1_reverse=None), "have {'weight_hh_l1_reverse': .*has not;"),
        (changed(LSTM, bias_hh_l0=None), "should have {'bias_hh_l0': \\(16,\\)}, but has not;"),
        (changed(LSTM, bias_hh_l0=None, bias_ih_l0=None), "have {'bias_hh_l0': .*, but has not;"),
        (changed(LSTM, bias_hh_l0=(15,)), "but has {'bias_hh_l0': \\(15,\\)}"),
        (changed(LSTM, weight_hh_l0=(16, 5)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_hh_l0=(4,)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_hh_l0=(8, 4)), "4, 3 or 1 gates"),
        (changed(LSTM, weight_ih_l0=(16, 0)), "but has .*'weight_ih_l0': \\(16, 0\\)"),
        (changed(LSTM, weight_ih_l1=(16, 7)), "{'weight_ih_l1': \\(16, 8\\)}, but has {"),
        (changed(LSTM, weight_ih_l0_reverse=(16, 2)), "{'weight_ih_l0_reverse': \\(16, 3\\)}, but"),
        (changed(LSTM, weight_hr_l0=(5, 5)), "weight_hh"),
        (changed(LSTM, weight_hh_l0=(), weight_hr_l0=(4, 4)), "4, 3 or 1 gates"),
        (changed(nn.GRU(3, 4), weight_hr_l0=(4, 4)), "4 where there is a weight_hr"),
        (changed(IN_A, **{f"a.weight_ih_l0_{'b' * 99}": (16,)}), f"{{'weight_ih_l0_{'b' * 67}': "),
        (changed(LSTM, weight_ih_l3=(16, 8)), "bias_hh_l2.*, but has {'weight_ih_l3': \\(16"),
        (changed(LSTM, weight_ih=(16, 8)), "bias_hh_l2.*, but has {'weight_ih': \\(16, 8"),
        (changed(nn.LSTM(3, 4), weight_hh_l0_reverse=(16, 4)), "'weight_ih_l0_reverse': .*has not"),
        (changed(nn.LSTM(3, 4, bias=False), bias_ih_l0=(16,)), "'bias_hh_l0': \\(16,\\)}"),
        (changed(IN_A, **{"a.weight_ih_l00": (16, 8)}), "{'weight_ih_l00': "),
        (changed(LSTM, **{"rnn.weight_ih_l0": (16, 3)}), "has its name; rename"),
        (changed(LSTM, weight_hh_l0=None, weight_hh_l0_g=(16, 1)), "missing; .*weight_norm"),
        (changed(IN_A, **{"a.weight_hh_l0_g": (16, 1)}), "no more, .*_l0_g': .*remove_weight_norm"),
        ({"a.weight": np.ones((3, 3), np.int32)}, "int32"),
        ({"a.weight": np.ones((3, 3), bool)}, "bool"),
        ({"a.weight": np.ones((3, 3), np.longdouble)}, "but is (float128|longdouble)"),
        ({"a.weight": nn.parameter.UninitializedParameter()}, r"no .*\(weight UninitializedP"),
        ({"a.weight": "text"}, "no module to read, only 'a' \\(weight str\\)"),
        ({"state_dict": {"a": 1}, "epoch": 3}, "no module .*state_dict dict"),
        ({0: np.ones(3)}, "has text for keys"),
        ({"a.weight": torch.ones(3, 3).to_sparse()}, "plain tensor"),
        ({}, "no module"),
        (changed(nn.GRU(3, 4)) | {"bias_hh_l0": np.ones(12, np.float16)}, "float16 and float32"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(state: dict[str, Any], match: str) -> None:
    with pytest.raises(InteropError, match=match):
        from_state_dict(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"modules": ["lstm"]}, "names of \\['rnn'\\]"),
        ({"mapping": LSTM}, r"as module\.state_dict\(\) gives, but is"),
        ({"modules": "rnn"}, "a list"),
        ({"at": "model"}, "at should lead to a dict"),
        ({"modules": []}, "a list"),
        ({"modules": ["rnn", "rnn"]}, "takes 3 features, but gets 8"),
        ({"modules": ["rnn", Dense("a", 3)]}, "without parameters"),
        ({"nonlinearity": "gelu"}, '"tanh" or "relu"'),
        ({"time_first": "no"}, "time_first must be True or False.*but is 'no'"),
        ({"nonlinearity": {"rnn": "relu"}}, '"tanh" or "relu"'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidInputError, InteropError), match=match):
        from_state_dict(**{"mapping": LSTM.state_dict()} | options)


def test_parameters_are_no_model() -> None:
    with pytest.raises(InvalidInputError, match=r"must be .* a load returns, but is a dict"):
        to_state_dict({})
