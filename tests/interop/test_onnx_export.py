"""Models written as ONNX graphs, run by onnxruntime and by ONNX's own reference."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_helpers import at_once, random_model
from onnx_helpers import BATCH, FEATURES, HIDDEN, TIME, TOLERANCE, session

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, Regularized, SimpleRNNCell, Stack
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Activation, Dense, Dropout, Embedding, Model, OneHotIds, Recurrent
from rnnjax.interop import functions as fn
from rnnjax.interop import onnx as reader
from rnnjax.interop.onnx.export import save, to_proto

pytest.importorskip("onnxruntime", reason="onnxruntime is in the group `test`")
LENGTHS = {"lengths": np.array([3, 5, 1], np.int32)}


def made(*layers: Any) -> Model:
    return random_model(*layers, inputs=FEATURES)


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


def by_name(proto: Any, carry: Any, end: str = "") -> dict[str, np.ndarray]:
    """The states by the names of the inputs that take them, which are in our order."""
    names = [one.name.removesuffix("_out") + end for one in proto.graph.output[1:]]
    states = [np.asarray(leaf)[None] for leaf in jax.tree.leaves(carry)]
    return dict(zip(names, states, strict=True))


@pytest.fixture
def check(random_like: Any, assert_close: Any) -> Any:
    """Ours against onnxruntime, from random states, without lengths and with them.

    Without them in one piece and in two. The last graph, what it was given, and the outputs.
    """

    def check(model: Model, lengths: bool = True) -> Any:
        xs, carry = inputs_of(model), random_like(lambda: model.initial_carry((BATCH,)), 2)
        ways: list[Any] = [{}, LENGTHS][: 1 + lengths]
        results = jax.jit(lambda xs, carry: [model(xs, carry, **way) for way in ways])(xs, carry)
        for way, (after, ys) in zip(ways, jax.device_get(results), strict=True):
            proto = to_proto(model, lengths=bool(way))
            expected = {"ys": ys} | by_name(proto, after, "_out")
            runner, states = session(proto), by_name(proto, carry)
            assert_close(run(runner, proto, xs, states | way), expected, TOLERANCE)
            text = str(model.network)
            if not (way or "Bidirectional" in text or "reverse=True" in text):
                first = run(runner, proto, xs[:2], states)
                second = run(runner, proto, xs[2:], {n: first[f"{n}_out"] for n in states})
                if ys.ndim == 3:
                    second["ys"] = np.concatenate([first["ys"], second["ys"]])
                assert_close(second, expected, TOLERANCE)
        return proto, {proto.graph.input[0].name: xs} | states | way, ys

    return check


# --- Cells ---

LEAKY, HARD = fn.Nonlinearity("LeakyRelu", 0.25), fn.Nonlinearity("HardSigmoid", 0.3, 0.4)
GRU_OLD = GRUCell(HIDDEN, recurrent_activation="legacy_hard_sigmoid")
CELLS = {
    "simple": SimpleRNNCell(HIDDEN),
    "simple_relu": SimpleRNNCell(HIDDEN, activation="relu", use_bias=False),
    "lstm": LSTMCell(HIDDEN),
    "lstm_no_bias": LSTMCell(HIDDEN, use_bias=False),
    "lstm_hard": LSTMCell(HIDDEN, activation="softsign", recurrent_activation="hard_sigmoid"),
    "gru": GRUCell(HIDDEN),
    "gru_before": GRUCell(HIDDEN, reset_after=False),
    "gru_no_bias": GRUCell(HIDDEN, use_bias=False),
    "gru_leaky": GRUCell(HIDDEN, activation=LEAKY, recurrent_activation=HARD),
    "stack": Stack([GRUCell(3), LSTMCell(HIDDEN)], rnnjax.Dropout(0.5)),
    "regularized": Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.3, weight_drop=0.1),
    "both": Bidirectional(LSTMCell(HIDDEN)),
    "both_activations": Bidirectional(GRUCell(HIDDEN, activation="relu"), GRU_OLD),
    "both_different": Bidirectional(SimpleRNNCell(HIDDEN), LSTMCell(3)),
    "both_sum": Bidirectional(GRUCell(HIDDEN), merge="sum"),
    "both_mul": Bidirectional(SimpleRNNCell(HIDDEN), merge="mul"),
    "both_average": Bidirectional(LSTMCell(HIDDEN), merge="average"),
    "both_stacked": Stack([Bidirectional(GRUCell(3)), Bidirectional(GRUCell(HIDDEN))]),
    "stacks_both_ways": Bidirectional(Stack([GRUCell(3), SimpleRNNCell(HIDDEN)])),
}


LAST, BACK = {"return_sequences": False}, {"reverse": True}
OPTIONS: dict[str, tuple[Any, Any]] = {
    "reverse": (CELLS["gru"], BACK), "computed_order": (CELLS["gru"], BACK | {"keep_order": False}),
    "last": (CELLS["lstm"], LAST), "last_reverse": (CELLS["simple"], LAST | BACK),
    "last_stack": (CELLS["stack"], LAST), "last_both": (CELLS["both"], LAST),
    "last_both_reverse": (CELLS["both"], LAST | BACK), "last_both_sum": (CELLS["both_sum"], LAST),
    "last_stack_of_both": (CELLS["both_stacked"], LAST),
    "both_reverse": (CELLS["both_stacked"], BACK),
    "repeated": (CELLS["stack"], {"masked_outputs": "last"}),
}  # fmt: skip
HEADED = {  # whose last output is no state
    "regularized_last": Regularized(LSTMCell(HIDDEN), recurrent_dropout=0.3),
    "projected_last": rnnjax.ProjectionLSTMCell(HIDDEN, proj_size=2),
    "heads_last": rnnjax.MLSTMCell(HIDDEN, heads=2),
}
ROWS: dict[str, list[Any]] = {
    **{name: [Recurrent("rnn", cell)] for name, cell in CELLS.items()},
    **{name: [Recurrent("rnn", cell, **options)] for name, (cell, options) in OPTIONS.items()},
    **{name: [Recurrent("rnn", cell, **LAST), Dense("d", 3)] for name, cell in HEADED.items()},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_cell_and_option(name: str, check: Any, assert_close: Any) -> None:
    """Written, run, and cells also read back, run, and written again.

    Guards a node's direction, and its lengths; with these a last output that is no state is
    gathered for each row.
    """
    model = made(*ROWS[name])
    proto, given, expected = check(model)
    if name in OPTIONS:
        return
    read = reader.load(proto)
    assert not any(isinstance(layer.cell, Bidirectional) for layer in read.layers.values())
    if name in CELLS:
        theirs = [read.params[layer] for layer in read.layers]
        for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
    assert to_proto(read) == proto
    ys = at_once(read, given)[1]
    assert_close(ys["ys"] if isinstance(ys, dict) else ys, expected, TOLERANCE)


def test_a_plain_model_needs_no_states(assert_close: Any) -> None:
    model = made(Recurrent("a", LSTMCell(3)), Recurrent("b", GRUCell(2)))
    xs, proto = inputs_of(model), to_proto(model, states=False, lengths=True)
    _, ys = jax.jit(lambda xs: model(xs, **LENGTHS))(xs)
    assert_close(run(session(proto), proto, xs, LENGTHS), {"ys": ys}, TOLERANCE)
    assert not proto.metadata_props


# --- Other layers ---


def test_embedding_dropout_and_dense_layers(check: Any) -> None:
    """Guards the axis of a softmax that is written."""
    model = made(
        Embedding("embedding", 11, 3),
        Dropout("dropout", rnnjax.Dropout(0.5)),
        Dense("dense", 4, "relu", use_bias=False),
        Recurrent("lstm", LSTMCell(HIDDEN), return_sequences=False),
        Dense("head", 6),
        Activation("softmax", "softmax"),
    )
    proto, *_ = check(model, lengths=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }
    names = "lstm_h", "lstm_c", "lstm_h_out", "lstm_c_out"
    states = {name: [1, "batch", HIDDEN] for name in names}
    assert shapes == {"ids": ["time", "batch"], "ys": ["batch", 6]} | states
    recurrent = Recurrent("rnn", LSTMCell(HIDDEN))
    check(made(OneHotIds("ids", 7), recurrent, Dense("dense", 3, "softmax")))


@pytest.mark.parametrize("outside", [-1, -12, 11, 2**31 - 1])
@pytest.mark.parametrize("mask_zero", [False, True])
def test_an_id_outside_of_an_embedding_is_an_error(outside: int, mask_zero: bool) -> None:
    """In the runtime, whose recurrent kernels give plausible numbers of NaN; here it is NaN."""
    model = made(
        Embedding("embedding", 11, 3, mask_zero=mask_zero),
        Recurrent("gru", GRUCell(HIDDEN), return_sequences=False),
    )
    ids, proto = np.full((TIME, BATCH), 5), to_proto(model, states=False)
    assert sum(node.op_type == "Gather" for node in proto.graph.node) == 1
    assert np.isfinite(session(proto).run(None, {"ids": ids})[0]).all()
    ids[1, 1] = outside
    assert np.isnan(np.asarray(model(ids)[1])[1]).all()
    with pytest.raises(Exception, match=r"indices element out of data bounds"):
        session(proto).run(None, {"ids": ids})


def test_states_are_named_after_their_directions() -> None:
    proto = to_proto(made(Recurrent("rnn", Stack([Bidirectional(LSTMCell(3))]))))
    states = [f"rnn_0_{side}_{state}" for side in ("forward", "backward") for state in "hc"]
    assert [one.name for one in proto.graph.input] == ["xs", *states]


def test_layers_without_parameters_alone() -> None:
    xs = np.ones((TIME, BATCH, FEATURES), np.float32)
    for layer in (Dropout("a", rnnjax.Dropout(0.1)), Activation("a", "linear")):
        proto = to_proto(made(layer))
        np.testing.assert_array_equal(run(session(proto), proto, xs, {})["ys"], xs)


FUNCTIONS = [*fn.FUNCTIONS, *(fn.Nonlinearity(kind, 0.3, 0.5) for kind in fn.NUMBERED)]


def test_every_function(assert_close: Any) -> None:
    xs = 3 * np.random.default_rng(0).standard_normal((40, 3, 4), np.float32)
    expected = jax.jit(lambda xs: [fn.get_function(function)(xs) for function in FUNCTIONS])(xs)
    for function, ys in zip(FUNCTIONS, expected, strict=True):
        proto = to_proto(made(Activation("f", function)))
        assert_close(run(session(proto), proto, xs, {}), {"ys": ys}, TOLERANCE)
        kind = getattr(function, "kind", fn.ONNX.get(function, ("",))[0])
        if kind and function != "linear":
            assert [one.op_type for one in proto.graph.node] == [kind]


def digits(x: jax.Array) -> jax.Array:
    """A small step, as `rnnjax.RGLRUCell` takes it, and a softplus far below 0, keep digits."""
    return jnp.expm1(1e-4 * x) * 1e4 + jnp.log1p(1e-8 * x) * 1e8 + jnp.log1p(1e8 * x * x)


def one_of_three(x: jax.Array) -> jax.Array:
    which = (x > 0).astype(jnp.int32) + (x > 1)
    return jax.lax.select_n(which, x, 2 * x, 3 * x)


def rows_of_a_table(x: jax.Array) -> jax.Array:
    """Ids before the first row count from the end; those beyond the table give NaN."""
    table, ids = jnp.arange(24.0).reshape(2, 6, 2), jnp.clip(8 * x[..., :3], -9, 9).astype(int)
    return jnp.nan_to_num(jnp.take(table, ids, axis=1), nan=-1).sum((0, -1)) + x[..., :3]


PROGRAMS: dict[str, Any] = {
    "places in float32": lambda x: x + jax.lax.broadcasted_iota(x.dtype, x.shape, 2),
    "digits of a small number": digits,
    "one of three": one_of_three,
    "the first condition that holds": lambda x: jnp.select([x > 1, x < -1], [2 * x, 3 * x], x),
    "rows of a table": rows_of_a_table,
    "windows over rows and features": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 3), (1, 1, 2), "SAME"
    ),
    "sums of windows": lambda x: jax.lax.reduce_window(
        x[..., 0], 0.0, jax.lax.add, (1, 2), (1, 1), "SAME"
    )[..., None],
    "an entry of each": lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1),
    "tiles": lambda x: jnp.tile(x, (1, 1, 2)),
    "random numbers that are constant": lambda x: x @ jax.random.normal(jax.random.key(1), (6, 2)),
    "a sum that does not overflow": lambda x: jax.nn.logsumexp(x, -1, keepdims=True),
    "any and all": lambda x: jnp.where(
        jnp.any(x > 1, -1, keepdims=True), x, jnp.all(x > -1, -1)[..., None]
    ),
    "arrays of no entries": lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 2)), "edge"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_one_function(name: str, check: Any) -> None:
    """What another type, fewer digits, or a size of 0 that copies another one would change."""
    check(made(Dense("dense", 6), Activation("f", PROGRAMS[name])), lengths=False)


def test_narrow_parameters_are_written_in_float32() -> None:
    model = made(Recurrent("rnn", GRUCell(HIDDEN)), Dense("head", 3))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    assert to_proto(model.with_params(narrow)) == to_proto(model.with_params(wide))


# --- Arguments ---


def test_arguments(tmp_path: Path) -> None:
    model = made(Recurrent("gru", GRUCell(2)))
    save(model, tmp_path / "a.onnx", metadata={"a": "1"})
    read = reader.load(tmp_path / "a.onnx")
    assert to_proto(read) == to_proto(model, metadata={"a": "1"})
    again = to_proto(read, metadata={"a": "2"})
    assert [(entry.key, entry.value) for entry in again.metadata_props] == [("a", "2")]
    for bad, options, says in (
        (GRUCell(2), {}, r"model must be a rnnjax\.interop\.Model, .*but is GRUCell"),
        (model, {"metadata": {"a": 3}}, "metadata must be strings, but has 'a': 3"),
        (read, {"states": False}, "written as the graph that it was read from"),
        (read, {"lengths": True}, "written as the graph that it was read from"),
        (made(Dense("dense", 2)), {"lengths": True}, "lengths are for recurrent layers"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            to_proto(bad, **options)


def test_parameters_in_float64_are_refused(x64: None) -> None:
    model = made(Recurrent("gru", GRUCell(2)))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params)
    with pytest.raises(InteropError, match="written in float32, but params has float64"):
        to_proto(model.with_params(wide))
