"""Models written as ONNX graphs, run by onnxruntime and by ONNX's own reference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import drawn
from onnx.reference import ReferenceEvaluator
from onnx_helpers import BATCH, FEATURES, HIDDEN, TIME, TOLERANCE, session

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, Regularized, SimpleRNNCell, Stack
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
from rnnjax.interop import functions as fn
from rnnjax.interop import onnx as reader
from rnnjax.interop.onnx.export import save, to_proto

pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `parity`")
LENGTHS = np.array([3, 5, 1], np.int32)


def random_model(random_like: Callable[..., Any], *layers: Any, seed: int = 0) -> Model:
    """The layers with random parameters, for inputs of ``FEATURES``."""
    params, size, key = {}, FEATURES, jax.random.key(0)
    for layer in layers:
        match layer:
            case Recurrent(cell=cell):
                params[layer.name] = jax.eval_shape(lambda c=cell, s=size: c.init(key, s))
                size = cell.output_size
            case Dense(size=new):
                shapes = {"kernel": (size, new)} | ({"bias": (new,)} if layer.use_bias else {})
                params[layer.name] = {k: np.zeros(s) for k, s in shapes.items()}
                size = new
            case Embedding(vocabulary_size=count, size=size):
                params[layer.name] = {"embedding": np.zeros((count, size))}
            case OneHotIds(size=size):
                pass
    return Model(Sequential(layers), random_like(params, seed))


def inputs_of(model: Model) -> np.ndarray:
    rng = np.random.default_rng(1)
    first = next(iter(model.layers.values()))
    if isinstance(first, Embedding | OneHotIds):
        size = first.vocabulary_size if isinstance(first, Embedding) else first.size
        return rng.integers(0, size, (TIME, BATCH))
    return rng.standard_normal((TIME, BATCH, FEATURES), np.float32)


def run(runner: Any, proto: Any, xs: np.ndarray, others: dict[str, Any]) -> dict[str, np.ndarray]:
    feeds = {proto.graph.input[0].name: xs, **others}
    return dict(zip([o.name for o in proto.graph.output], runner.run(None, feeds), strict=True))


def states_of(name: str, cell: Any, carry: Any) -> dict[str, np.ndarray]:
    """The carry of a layer by the names of the inputs that take it."""
    cell = cell.cell if isinstance(cell, Regularized) else cell
    if isinstance(cell, Stack | Bidirectional):
        parts = range(len(carry)) if isinstance(cell, Stack) else ("forward", "backward")
        each = zip(parts, cell.cells, carry, strict=True)
        return {
            k: v for part, c, own in each for k, v in states_of(f"{name}_{part}", c, own).items()
        }
    return {f"{name}_{'hc'[i]}": np.asarray(leaf)[None] for i, leaf in enumerate(carry)}


def states_by_name(model: Model, carry: Any) -> dict[str, np.ndarray]:
    layers = model.network.recurrent.items()
    each = [states_of(name, layer.cell, carry[name]) for name, layer in layers if carry]
    return {name: array for states in each for name, array in states.items()}


def expected_outputs(model: Model, carry: Any, ys: Any) -> dict[str, np.ndarray]:
    """Ours, by the names that they have in the graph."""
    states = states_by_name(model, carry)
    return {"ys": ys} | {f"{name}_out": array for name, array in states.items()}


def streams(model: Model) -> bool:
    """Whether a sequence can be cut in two."""
    text = f"{model.network}"
    return "Bidirectional" not in text and "reverse=True" not in text


def check(
    model: Model, random_like: Any, assert_close: Any, *, lengths: bool = False, **options: Any
) -> Any:
    """Ours against onnxruntime, from random states, in one piece and in two; the graph."""
    xs, options = inputs_of(model), options | ({"lengths": True} if lengths else {})
    carry = random_like(lambda: model.initial_carry((BATCH,)), 2)
    semantics = {"lengths": LENGTHS} if lengths else {}
    after, ys = jax.device_get(jax.jit(model.__call__)(xs, carry, **semantics))
    expected = expected_outputs(model, after, ys)
    proto = to_proto(model, **options)
    runner = session(proto)
    states = states_by_name(model, carry)
    actual = run(runner, proto, xs, states | semantics)
    assert_close(actual, expected, TOLERANCE)
    if streams(model) and not lengths:
        first = run(runner, proto, xs[:2], states)
        second = run(runner, proto, xs[2:], {name: first[f"{name}_out"] for name in states})
        if actual["ys"].ndim == 3:
            second["ys"] = np.concatenate([first["ys"], second["ys"]])
        assert_close(second, expected, TOLERANCE)
    return proto


# --- Cells ---

CELLS = {
    "simple": SimpleRNNCell(HIDDEN),
    "simple_relu": SimpleRNNCell(HIDDEN, activation="relu", use_bias=False),
    "lstm": LSTMCell(HIDDEN),
    "lstm_no_bias": LSTMCell(HIDDEN, use_bias=False),
    "lstm_hard": LSTMCell(HIDDEN, activation="softsign", recurrent_activation="hard_sigmoid"),
    "gru": GRUCell(HIDDEN),
    "gru_before": GRUCell(HIDDEN, reset_after=False),
    "gru_no_bias": GRUCell(HIDDEN, use_bias=False),
    "gru_leaky": GRUCell(
        HIDDEN,
        activation=fn.LeakyReLU(0.25),
        recurrent_activation=fn.HardSigmoid(0.3, 0.4),
    ),
    "stack": Stack([GRUCell(3), LSTMCell(HIDDEN)], rnnjax.Dropout(0.5)),
    "regularized": Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.3, weight_drop=0.1),
    "both": Bidirectional(LSTMCell(HIDDEN)),
    "both_activations": Bidirectional(
        GRUCell(HIDDEN, activation="relu"),
        GRUCell(HIDDEN, recurrent_activation="legacy_hard_sigmoid"),
    ),
    "both_different": Bidirectional(SimpleRNNCell(HIDDEN), LSTMCell(3)),
    "both_sum": Bidirectional(GRUCell(HIDDEN), merge="sum"),
    "both_mul": Bidirectional(SimpleRNNCell(HIDDEN), merge="mul"),
    "both_average": Bidirectional(LSTMCell(HIDDEN), merge="average"),
    "both_stacked": Stack([Bidirectional(GRUCell(3)), Bidirectional(GRUCell(HIDDEN))]),
    "stacks_both_ways": Bidirectional(Stack([GRUCell(3), SimpleRNNCell(HIDDEN)])),
}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name: str, random_like: Any, assert_close: Any) -> None:
    """Written, run, read back, run, and written again."""
    model = random_model(random_like, Recurrent("rnn", CELLS[name]))
    check(model, random_like, assert_close)
    proto = to_proto(model, lengths=True)
    read, xs = reader.load(proto), inputs_of(model)
    assert not any(isinstance(layer.cell, Bidirectional) for layer in read.layers.values())
    theirs = [read.params[layer] for layer in read.layers]
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert to_proto(read) == proto
    _, ys = jax.jit(read.__call__)({"xs": xs, "lengths": LENGTHS})
    assert_close(ys, jax.jit(model.__call__)(xs, lengths=LENGTHS)[1], TOLERANCE)


# What `onnx.reference` computes: it knows the default activations alone, and no lengths.
@pytest.mark.parametrize(
    "name",
    [
        *("lstm_no_bias", "gru_before", "both_stacked"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("simple", "lstm", "gru", "stack")
        ),
    ],
)
def test_the_reference_of_onnx_agrees(name: str, random_like: Any, assert_close: Any) -> None:
    model = random_model(
        random_like,
        OneHotIds("ids", 7),
        Recurrent("rnn", CELLS[name]),
        Dense("dense", 3, "softmax"),
    )
    xs, carry = inputs_of(model), random_like(lambda: model.initial_carry((BATCH,)), 2)
    proto = to_proto(model)
    actual = run(ReferenceEvaluator(proto), proto, xs, states_by_name(model, carry))
    after, ys = jax.device_get(jax.jit(model.__call__)(xs, carry))
    assert_close(actual, expected_outputs(model, after, ys), TOLERANCE)


# --- Options of a recurrent layer ---

OPTIONS = {
    "reverse": (GRUCell(HIDDEN), {"reverse": True}),
    "computed_order": (GRUCell(HIDDEN), {"reverse": True, "keep_order": False}),
    "last": (LSTMCell(HIDDEN), {"return_sequences": False}),
    "last_reverse": (SimpleRNNCell(HIDDEN), {"return_sequences": False, "reverse": True}),
    "last_stack": (CELLS["stack"], {"return_sequences": False}),
    "last_both": (CELLS["both"], {"return_sequences": False}),
    "last_both_reverse": (CELLS["both"], {"return_sequences": False, "reverse": True}),
    "last_both_sum": (CELLS["both_sum"], {"return_sequences": False}),
    "last_stack_of_both": (CELLS["both_stacked"], {"return_sequences": False}),
    "both_reverse": (CELLS["both_stacked"], {"reverse": True}),
    "repeated": (CELLS["stack"], {"masked_outputs": "last"}),
}


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str, lengths: bool, random_like: Any, assert_close: Any) -> None:
    """Without lengths, and with lengths of the rows."""
    cell, options = OPTIONS[name]
    model = random_model(random_like, Recurrent("rnn", cell, **options))
    if lengths and name == "repeated":
        with pytest.raises(InteropError, match=r"layer 'rnn' .* lengths"):
            to_proto(model, lengths=True)
        return
    check(model, random_like, assert_close, lengths=lengths)


def test_a_plain_model_needs_no_states(random_like: Any, assert_close: Any) -> None:
    layers = (Recurrent("a", LSTMCell(3)), Recurrent("b", GRUCell(2)))
    model = random_model(random_like, *layers)
    xs, proto = inputs_of(model), to_proto(model, states=False, lengths=True)
    _, ys = model(xs, lengths=LENGTHS)
    actual = run(session(proto), proto, xs, {"lengths": LENGTHS})
    assert_close(actual, {"ys": ys}, TOLERANCE)
    assert not proto.metadata_props


# --- Other layers ---


def test_embedding_dropout_and_dense_layers(random_like: Any, assert_close: Any) -> None:
    model = random_model(
        random_like,
        Embedding("embedding", 11, 3),
        Dropout("dropout", rnnjax.Dropout(0.5)),
        Dense("dense", 4, "relu", use_bias=False),
        Recurrent("lstm", LSTMCell(HIDDEN), return_sequences=False),
        Dense("head", 6),
        Activation("softmax", "softmax"),
    )
    proto = check(model, random_like, assert_close)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "ids": ["time", "batch"],
        "lstm_h": [1, "batch", HIDDEN],
        "lstm_c": [1, "batch", HIDDEN],
        "ys": ["batch", 6],
        "lstm_h_out": [1, "batch", HIDDEN],
        "lstm_c_out": [1, "batch", HIDDEN],
    }


def test_layers_without_parameters_alone(random_like: Any) -> None:
    xs = np.ones((TIME, BATCH, FEATURES), np.float32)
    for layer in (Dropout("a", rnnjax.Dropout(0.1)), Activation("a", "linear")):
        proto = to_proto(random_model(random_like, layer))
        np.testing.assert_array_equal(run(session(proto), proto, xs, {})["ys"], xs)


NAMED = [*fn.FUNCTIONS]
FUNCTIONS = [*NAMED, *(kind(0.3) for kind in fn.SPELLINGS if isinstance(kind, type))]


def test_every_function(assert_close: Any) -> None:
    xs = 3 * np.random.default_rng(0).standard_normal((40, 3, 4), np.float32)
    expected = jax.jit(lambda xs: [fn.get_function(function)(xs) for function in FUNCTIONS])(xs)
    for function, ys in zip(FUNCTIONS, expected, strict=True):
        proto = to_proto(Model(Sequential((Activation("f", function),)), {}))
        assert_close(run(session(proto), proto, xs, {}), {"ys": ys}, TOLERANCE)


def test_functions_that_are_not_written_are_named() -> None:
    model = Model(Sequential((Activation("f", jnp.sin),)), {})
    with pytest.raises(InteropError, match=r"layer 'f' has the function .*those that are: linear"):
        to_proto(model)


def test_narrow_parameters_are_written_in_float32(random_like: Any, assert_close: Any) -> None:
    model = random_model(random_like, Recurrent("rnn", GRUCell(HIDDEN)), Dense("head", 3))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    assert to_proto(model.with_params(narrow)) == to_proto(model.with_params(wide))


# --- Files ---


def test_save_writes_what_to_proto_makes(random_like: Any, tmp_path: Any) -> None:
    model = random_model(random_like, Recurrent("rnn", GRUCell(HIDDEN)))
    path = tmp_path / "model.onnx"
    path.write_text("what was there")
    save(model, path, metadata={"vocabulary": "abc"})
    read = onnx.load(path)
    assert read == to_proto(model, metadata={"vocabulary": "abc"})
    assert [(prop.key, prop.value) for prop in read.metadata_props] == [("vocabulary", "abc")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(InvalidInputError, match=r"named \*\.onnx, but path is .*model\.bin"):
        save(model, tmp_path / "model.bin")


# --- What cannot be written ---

CANNOT = {
    "MGUCell": Recurrent("rnn", rnnjax.MGUCell(HIDDEN)),
    "LeakyRNNCell": Recurrent("rnn", rnnjax.LeakyRNNCell(HIDDEN, leak=0.5)),
    "LayerNormLSTMCell": Recurrent("rnn", Stack([rnnjax.LayerNormLSTMCell(HIDDEN)])),
    "ProjectionLSTMCell": Recurrent(
        "rnn", Bidirectional(rnnjax.ProjectionLSTMCell(HIDDEN, proj_size=2))
    ),
    "MinGRUCell": Recurrent("rnn", rnnjax.MinGRUCell(HIDDEN)),
    "have not all activations of .*silu": Recurrent("rnn", GRUCell(HIDDEN, activation="silu")),
    "computes LearnedCarry": Recurrent("rnn", rnnjax.LearnedCarry(LSTMCell(HIDDEN))),
    "computes PeepholeLSTMCell": Recurrent("rnn", rnnjax.PeepholeLSTMCell(HIDDEN)),
    "zoneout": Recurrent("rnn", Regularized(LSTMCell(HIDDEN), zoneout_cell=0.1)),
    "computes in bfloat16": Recurrent("rnn", LSTMCell(HIDDEN, dtype=jnp.bfloat16)),
}


@pytest.mark.parametrize("named", CANNOT)
def test_cells_that_onnx_has_not_are_named(named: str, random_like: Any) -> None:
    with pytest.raises(InteropError, match=named):
        to_proto(random_model(random_like, CANNOT[named]))


def test_layers_that_cannot_be_written_are_named(random_like: Any) -> None:
    gru = Recurrent("gru", GRUCell(FEATURES))
    with pytest.raises(InteropError, match="layer 'mask', a Masking, masks steps"):
        to_proto(random_model(random_like, Masking("mask"), gru))
    with pytest.raises(InteropError, match="layer 'rnn' does not merge its two directions"):
        to_proto(random_model(random_like, Recurrent("rnn", CELLS["both"], merged=False)))
    with pytest.raises(InteropError, match="layer 'table', a Embedding, masks steps"):
        to_proto(random_model(random_like, Embedding("table", 4, 2, mask_zero=True), gru))


def test_models_that_do_not_fit_together(random_like: Any) -> None:
    gru, lstm = Recurrent("gru", GRUCell(FEATURES)), Recurrent("lstm", LSTMCell(3))
    for options, message in {
        ("return_sequences", False): "layer 'lstm' needs a sequence",
        ("cell", GRUCell(5)): "params do not belong",
    }.items():
        model = random_model(random_like, gru, lstm)
        changed = Recurrent("gru", **({"cell": gru.cell} | dict([options])))
        with pytest.raises(InvalidInputError, match=message):
            to_proto(Model(Sequential((changed, lstm)), model.params))
    with pytest.raises(InvalidInputError, match=r"make them with cell\.init"):
        to_proto(Model(Sequential((gru,)), {}))
    behind = Sequential((Activation("tanh", "tanh"), Recurrent("gru", GRUCell(3))))
    with pytest.raises(InvalidInputError, match="params do not belong"):
        to_proto(Model(behind, random_model(random_like, gru).params))
    twice = Recurrent("a", Stack([GRUCell(2)])), Recurrent("a_0", GRUCell(2))
    with pytest.raises(InteropError, match="would be named 'a_0_h'"):
        to_proto(random_model(random_like, *twice))


def test_bad_arguments(random_like: Any) -> None:
    model = random_model(random_like, Recurrent("gru", GRUCell(2)))
    with pytest.raises(
        InvalidInputError, match=r"expected a rnnjax\.interop\.Model, but got .*GRUCell"
    ):
        to_proto(GRUCell(2))
    with pytest.raises(InvalidInputError, match="metadata must be strings, but has 'a': 3"):
        to_proto(model, metadata={"a": 3})
    read = reader.load(to_proto(model, metadata={"a": "1"}))
    for option in ({"states": False}, {"lengths": True}):
        with pytest.raises(InvalidInputError, match="written as the graph that it was read from"):
            to_proto(read, **option)
    again = to_proto(read, metadata={"a": "2"})
    assert [(entry.key, entry.value) for entry in again.metadata_props] == [("a", "2")]
    with pytest.raises(InvalidInputError, match="lengths are for recurrent layers"):
        to_proto(random_model(random_like, Dense("dense", 2)), lengths=True)


def test_parameters_in_float64_are_refused(random_like: Any, x64: None) -> None:
    model = random_model(random_like, Recurrent("gru", GRUCell(2)))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params)
    with pytest.raises(InteropError, match="layer 'gru' has parameters in float64"):
        to_proto(model.with_params(wide))


# --- Drawn models ---

DRAWN = ["tanh", "relu", "sigmoid", "softsign", "elu", "linear", fn.LeakyReLU(0.2)]
GATES = ["sigmoid", "hard_sigmoid", "legacy_hard_sigmoid", fn.HardSigmoid(0.3, 0.45)]


@st.composite
def cells(draw: Any, size: int | None = None) -> Any:
    size = draw(st.integers(1, 4)) if size is None else size
    shared = {"use_bias": draw(st.booleans()), "activation": draw(st.sampled_from(DRAWN))}
    kind = draw(st.sampled_from([SimpleRNNCell, LSTMCell, GRUCell]))
    if kind is SimpleRNNCell:
        return kind(size, **shared)
    if kind is GRUCell:
        shared["reset_after"] = draw(st.booleans())
    return kind(size, recurrent_activation=draw(st.sampled_from(GATES)), **shared)


@st.composite
def combinations(draw: Any) -> Any:
    kind = draw(st.sampled_from(["cell", "stack", "both", "both"]))
    if kind == "stack":
        return Stack(draw(st.lists(cells() | directions(), min_size=1, max_size=3)))
    return draw(cells() if kind == "cell" else directions())


@st.composite
def directions(draw: Any) -> Any:
    size = draw(st.integers(1, 4))
    backward = draw(cells(size)) if draw(st.booleans()) else None
    merge = draw(st.sampled_from(["concat", "concat", "sum", "mul", "average"]))
    return Bidirectional(draw(cells(size)), backward, merge)


@st.composite
def models(draw: Any) -> tuple[Any, ...]:
    layers: list[Any] = draw(
        st.sampled_from([[], [Embedding("embedding", 6, 3)], [OneHotIds("one_hot", 6)]])
    )
    count = draw(st.integers(1, 2))
    for i in range(count):
        options = {
            "reverse": draw(st.booleans()),
            "keep_order": draw(st.booleans()),
            "return_sequences": i < count - 1 or draw(st.booleans()),
        }
        layers = [*layers, Recurrent(f"rnn{i}", draw(combinations()), **options)]
    return (*layers, Dense("head", 3, draw(st.sampled_from(NAMED))))


def check_drawn(examples: int, random_like: Any, assert_close: Any) -> None:
    seen = []

    @drawn(examples)
    @given(models(), st.booleans(), st.integers(0, 2**16))
    def check_one(layers: tuple[Any, ...], lengths: bool, seed: int) -> None:
        model = random_model(random_like, *layers, seed=seed)
        check(model, random_like, assert_close, lengths=lengths)
        seen.append(seed)

    check_one()
    assert len(seen) >= examples


def test_drawn_models(random_like: Any, assert_close: Any) -> None:
    check_drawn(3, random_like, assert_close)


@pytest.mark.slow
def test_many_drawn_models(random_like: Any, assert_close: Any) -> None:
    check_drawn(300, random_like, assert_close)
