"""Whatever is wrong with an argument: an error of the library, which names it and is short."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import rnnjax
from rnnjax import Auto, Fused, GRUCell, InvalidInputError, LSTMCarry, LSTMCell, Scan

KEY = jax.random.key(0)
TIME, BATCH, FEATURES, HIDDEN = 4, 3, 2, 5
CELLS = {
    "lstm": LSTMCell(HIDDEN),
    "gru": GRUCell(HIDDEN),
    "gru-reset-before": GRUCell(HIDDEN, reset_after=False),
    "mgu-reset-before": rnnjax.MGUCell(HIDDEN, reset_after=False),
    "layernorm": rnnjax.LayerNormGRUCell(HIDDEN),
    "projection": rnnjax.ProjectionLSTMCell(HIDDEN, proj_size=3),
    "diagonal": rnnjax.DiagonalLSTMCell(HIDDEN),
    "convlstm": rnnjax.ConvLSTMCell(HIDDEN, kernel_shape=(3,)),
}
GRID = 6


@functools.cache
def arguments(name: str) -> dict[str, Any]:
    """Return valid arguments of `rnnjax.unroll`, as NumPy arrays, which compile nothing."""
    cell = CELLS[name]
    batch = (BATCH, GRID) if name == "convlstm" else (BATCH,)
    params = jax.eval_shape(lambda: cell.init(KEY, FEATURES))
    carry = jax.eval_shape(lambda: cell.initial_carry(batch))
    params, carry = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (params, carry))
    xs = np.zeros((TIME, *batch, FEATURES), np.float32)
    marks = np.ones((TIME, BATCH), bool)
    return {
        "cell": cell, "params": params, "xs": xs, "carry": carry, "reset_carry": carry,
        "lengths": np.full(BATCH, TIME), "mask": marks, "resets": ~marks,
    }  # fmt: skip


NO_FLOATS = [np.int32, np.uint8, bool, np.complex64, jnp.float8_e4m3fn]


@st.composite
def wrong(draw: st.DrawFn) -> tuple[str, dict[str, Any], str]:
    """A cell, its arguments with one that is wrong, and the name of that one."""
    name = draw(st.sampled_from(sorted(CELLS)))
    given = dict(arguments(name))
    which = draw(st.sampled_from(sorted(set(given) - {"cell"})))
    if which in ("params", "carry", "reset_carry"):
        leaves, structure = jax.tree.flatten(given[which])
        at = draw(st.integers(0, len(leaves) - 1))
        leaf, how = leaves[at], draw(st.sampled_from(["type", "rank", "size", "structure"]))
        if how == "type":
            leaves[at] = leaf.astype(draw(st.sampled_from(NO_FLOATS)))
        elif how == "rank":
            leaves[at] = draw(st.sampled_from([leaf[None], leaf.reshape(-1)[:1].reshape(())]))
        elif how == "size":
            axis = draw(st.integers(0, leaf.ndim - 1))
            leaves[at] = np.concatenate([leaf, leaf.take([0], axis)], axis)
        given[which] = jax.tree.unflatten(structure, leaves)
        if how == "structure":
            given[which] = draw(
                st.sampled_from([[*leaves], (*leaves, leaves[0]), 3.0, {"hidden": leaves[0]}])
            )
        expected = "params|xs" if which == "params" else which
    elif which == "xs":
        xs = given["xs"]
        given["xs"] = draw(
            st.sampled_from(
                [*(xs.astype(dtype) for dtype in NO_FLOATS), xs[0, 0], xs[..., :1], xs[..., 0],
                 None, [[1.0], [1.0, 2.0]], {"image": xs}, "xs", xs[:, :2]]
            )
        )  # fmt: skip
        expected = "xs|inputs|carry|lengths|mask|resets"
    else:
        array = given[which]
        other = np.float32 if array.dtype == bool else bool
        given[which] = draw(
            st.sampled_from(
                [array.astype(other), array[..., :-1], array[None], [[1], [1, 2]], {"a": 1}, "all"]
            )
        )
        expected = which
    return name, given, expected


@hypothesis.given(wrong(), st.sampled_from([Scan(), None]))
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_a_wrong_argument_of_unroll_is_named(case: Any, method: Any) -> None:
    _, given, expected = case
    options = {} if method is None else {"method": method}
    with pytest.raises(InvalidInputError, match=rf"^({expected})") as error:
        rnnjax.unroll(**given, **options)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", CELLS)
def test_right_arguments_are_let_through(name: str) -> None:
    given = dict(arguments(name))
    cell = given.pop("cell")
    ys = jax.eval_shape(lambda given: rnnjax.unroll(cell, **given)[1], given)
    assert ys.shape[:2] == (TIME, BATCH)
    carry = jax.eval_shape(cell.step, given["params"], given["carry"], given["xs"][0])[0]
    assert jax.tree.structure(carry) == jax.tree.structure(given["carry"])


@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_given_one_step(name: str) -> None:
    """Not a whole sequence, nor a carry without a batch, nor parameters of another cell."""
    cell, params, xs, carry, *_ = arguments(name).values()
    for wrong in [xs, xs[0, 0], xs[0].astype(np.int32), xs[0, :2], None, xs[0][..., :1]]:
        with pytest.raises(InvalidInputError, match=r"^(carry|xs|inputs)"):
            cell.step(params, carry, wrong)
    alone = jax.tree.map(np.asarray, cell.initial_carry())
    integers = jax.tree.map(lambda leaf: leaf.astype(int), carry)
    larger = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf], -1), carry)
    one = carry._replace(hidden=carry.hidden[..., :1])
    for wrong in [
        alone,
        integers,
        larger,
        one,
        tuple(carry) if len(carry) > 1 else carry.hidden,
        None,
    ]:
        with pytest.raises(InvalidInputError, match=r"^carry"):
            cell.step(params, wrong, xs[0])
    larger = np.concatenate([params["kernel"]] * 2, axis=-1)
    for wrong in [
        {**params, "kernel": larger}, {**params, "bais": params["bias"]}, list(params.values()),
        {name: leaf for name, leaf in params.items() if name != "bias"},
        {**params, "bias": params["bias"].astype(int)}, {**params, "bias": params["bias"].tolist()},
    ]:  # fmt: skip
        with pytest.raises(InvalidInputError, match=r"^params"):
            cell.step(wrong, carry, xs[0])


LSTM = LSTMCell(HIDDEN)
XS = np.zeros((TIME, BATCH, FEATURES), np.float32)


def prepared_step(x: Any) -> Any:
    """Arguments of a cell that was prepared for two features."""
    _, params, _, carry, *_ = arguments("lstm").values()
    ready, laid_out = rnnjax.prepare(LSTM, params, XS[0])
    return ready.step(laid_out, carry, x)


def explained(**options: Any) -> Any:
    """Call an LSTM whose other arguments are valid."""
    cell, params, xs, *_ = arguments("lstm").values()
    return rnnjax.explain(cell, params, xs, **options)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: LSTMCell(3, 8), "LSTMCell takes its hidden_size by position .* given to init"),
    (lambda: LSTMCell(True), "hidden_size must be a positive integer, but is True"),
    (lambda: LSTMCell(4.0), "hidden_size must be"),
    (lambda: rnnjax.ConvLSTMCell(True), "hidden_size"),
    (lambda: LSTMCell(4, dtype=jnp.int32), "dtype must be a floating-point type"),
    (lambda: LSTMCell(4, dtype=bool), "dtype must be a floating-point type"),
    (lambda: LSTMCell(4, dtype=jnp.complex64), "dtype must be a floating-point type"),
    (lambda: LSTMCell(4, dtype="float33"), "dtype must be .* but is 'float33'"),
    (lambda: LSTMCell(4, param_dtype=jnp.int32), "param_dtype must be"),
    (lambda: rnnjax.ConvLSTMCell(4, param_dtype=int), "param_dtype must be"),
    (lambda: LSTM.init(3, KEY), r"input_size must be a positive integer, but is .*cell.init\(key"),
    (lambda: LSTM.init(KEY, np.zeros((3, 2))), "input_size must be .* float64"),
    (lambda: LSTM.init(KEY, 3.0), "input_size must be"),
    (
        lambda: GRUCell(5, reset_after="before"),
        "reset_after must be True or False",
    ),
    (lambda: rnnjax.LayerNormGRUCell(5, epsilon=-1.0), "epsilon must be a number above 0"),
    (lambda: LSTM.initial_carry((-1,)), "batch_shape must be .* from 0 up, but holds -1"),
    (lambda: LSTM.init(jax.random.split(KEY), 3), "key must be a JAX random key"),
    (
        lambda: rnnjax.unroll(rnnjax.LearnedCarry(LSTM), arguments("lstm")["params"], XS),
        "params of a LearnedCarry must be",
    ),
    (lambda: prepared_step(np.zeros((BATCH, 7), np.float32)), "xs has 7 features, .* for 2"),
    (lambda: prepared_step(rnnjax.OneHot(np.zeros(BATCH, int), 9)), "xs has 9 features, .* for 2"),
    (lambda: LSTM.init(0, 3), "key must be a JAX random key"),
    (lambda: rnnjax.Stack([LSTM]).init(KEY, 0), "input_size must be"),
    (lambda: rnnjax.Bidirectional(LSTM).init(3, 3), "key must be"),
    (lambda: rnnjax.ConvLSTMCell(4).init(3, 3), "key must be"),
    (lambda: LSTM.initial_carry(8), r"batch_shape must be a tuple, but is 8; write \(8,\)"),
    (lambda: LSTM.initial_carry((8.0,)), "batch_shape must be a tuple of integers"),
    (lambda: LSTM.initial_carry((8,), dtype=int), "dtype must be a floating-point type"),
    (lambda: rnnjax.ConvLSTMCell(4).initial_carry((8, 5, 5), int), "dtype must be"),
    (lambda: rnnjax.Stack(LSTM, LSTM), r"come in a list, .* but LSTMCell\(5\) came"),
    (lambda: rnnjax.Stack(None), "come in a list, .* but None came"),
    (lambda: rnnjax.Stack(LSTMCell), "come in a list, .* but the class LSTMCell came"),
    (lambda: rnnjax.ConvLSTMCell(4, kernel_shape=3), "kernel_shape must be a tuple of one or two"),
    (lambda: LSTMCell(4, param_dtype=None), "param_dtype must be .* None"),
    (lambda: LSTMCell(4, dtype=jnp.float8_e5m2), "dtype must be .* of 16 bits .* float8_e5m2"),
    (lambda: LSTMCell(4, param_dtype="float8_e5m2"), "param_dtype must be .* of 16 bits"),
    (lambda: LSTM.initial_carry((8,), jnp.float8_e4m3fn), "dtype must be .* of 16 bits"),
    (lambda: Fused(product_dtype=jnp.float8_e4m3fn), "product_dtype must be bfloat16"),
    (lambda: explained(platform=3), "platform must be one of cpu, cuda, rocm, gpu, tpu.* is 3"),
    (lambda: explained(platform="cupu"), "platform must be .* 'cupu'"),
    (lambda: explained(platform="any", method=Scan()), "platform must be .* 'any'"),
    (lambda: LSTMCell(4, dtype=np.ones(99)), "dtype must be a floating-point type"),
    (lambda: LSTMCell(units=8), "LSTMCell takes hidden_size, .*, but got units; use one of these"),
    (lambda: LSTMCell(features=8), "LSTMCell takes hidden_size, .*, but got features;"),
    (lambda: rnnjax.Stack(layers=[LSTM]), "Stack takes cells, dropout, but got layers;"),
    (lambda: LSTM({}, XS), r"LSTMCell\(5\) must be run by .*, but was called; write carry, y"),
    (lambda: rnnjax.unroll({"a": 1}, LSTM, 0), r"a dict with a; call unroll\(cell, params, xs\)"),
    (lambda: rnnjax.unroll(LSTM, XS), r"xs must be .*, but is None; call unroll\(cell"),
    (lambda: rnnjax.unroll(LSTM, XS, {"a": 1}), r"xs must .* is a dict with a; call unroll"),
    (lambda: jax.jit(rnnjax.unroll)(LSTM, {}, XS), "cell must be .* is traced; .*static_argnums=0"),
    (
        lambda: rnnjax.unroll(flax.linen.LSTMCell(8), {}, XS),
        "but is a LSTMCell of flax.linen; run it by rnnjax.linen.RNN",
    ),
    (
        lambda: rnnjax.unroll(nnx.LSTMCell(2, 8, rngs=nnx.Rngs(0)), {}, XS),
        "but is a LSTMCell of flax.nnx; run it by rnnjax.nnx.RNN",
    ),
    (
        lambda: rnnjax.unroll(LSTM, arguments("lstm")["params"], XS, lengths=np.zeros(TIME, int)),
        "lengths must have shape .*; give one for each row, and check which axis is time",
    ),
    (
        lambda: rnnjax.unroll(LSTM, arguments("lstm")["params"], XS, LSTM.initial_carry((TIME,))),
        r"carry.hidden must have shape .*, and check that the axes of xs are \(time, \*batch, fea",
    ),
    (
        lambda: rnnjax.unroll(LSTMCell, {}, 0),
        "cell must be .* the class LSTMCell",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_other_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        call()
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("reverse", ["False", 1, None, np.array([True])])
def test_reverse_is_true_or_false(reverse: Any) -> None:
    cell, params, xs, *_ = arguments("lstm").values()
    with pytest.raises(InvalidInputError, match="reverse must be True or False"):
        rnnjax.unroll(cell, params, xs, reverse=reverse)
    with pytest.raises(InvalidInputError, match="reverse must be True or False"):
        jax.jit(lambda flag: rnnjax.unroll(cell, params, xs, reverse=flag))(True)


def test_ids_are_sent_to_one_hot() -> None:
    cell, params, *_ = arguments("lstm").values()
    with pytest.raises(InvalidInputError, match=r"ids are given as rnnjax.OneHot\(ids, size\)"):
        rnnjax.unroll(cell, params, np.zeros((TIME, BATCH), int))


def test_no_step_cuts_an_integer_carry_off() -> None:
    cell, params, xs, *_ = arguments("lstm").values()
    for dtype in (int, bool):
        zeros = np.zeros((BATCH, HIDDEN), dtype)
        with pytest.raises(InvalidInputError, match=r"carry.hidden must be floating-point"):
            rnnjax.unroll(cell, params, xs, LSTMCarry(zeros, zeros))


class Wide(LSTMCell):
    """With a wrong number of gates."""

    gates = "i", "f", "g"


class Bare(GRUCell):
    """With an update that returns an array in the place of a carry."""

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return super().update(params, x, carry).hidden


class Narrow(rnnjax.MinGRUCell):
    """With an update that returns a smaller carry, which a loop cannot go on with."""

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[..., :1], super().update(params, x, carry))


class Several(GRUCell):
    """With an update that returns several outputs, which only a step of one's own may."""

    output = None

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        new = super().update(params, x, carry)
        return new, (new.hidden, new.hidden)


@pytest.mark.parametrize("method", [Scan(), Fused()], ids=str)
@pytest.mark.parametrize("kind", [Wide, Bare, Narrow, Several])
def test_an_update_that_does_not_fit_the_carry_is_named(kind: Any, method: Any) -> None:
    cell, xs = kind(HIDDEN, unit_forget_bias=False) if kind is Wide else kind(HIDDEN), XS
    params = jax.eval_shape(lambda: cell.init(KEY, FEATURES))
    with pytest.raises(InvalidInputError, match=rf"^update of {kind.__name__}\(5\) .*check gates"):
        jax.eval_shape(lambda p: rnnjax.unroll(cell, p, xs, method=method), params)


@dataclasses.dataclass(frozen=True)
class Counting(rnnjax.Cell):
    """A user's cell whose state is not floating point."""

    output_size = 1

    def init(self, key: Any, input_size: int) -> Any:
        return {}

    def initial_carry(self, batch_shape: Any = (), dtype: Any = None) -> Any:
        return jnp.zeros((*batch_shape, 1), jnp.int32)

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        return carry + 1, carry.astype(jnp.float32)


def test_a_cell_may_count() -> None:
    carry, _ = rnnjax.unroll(Counting(), {}, XS)
    carry, ys = rnnjax.unroll(Counting(), {}, XS, carry)
    assert ys[:, 0, 0].tolist() == [4, 5, 6, 7]
    with pytest.raises(InvalidInputError, match="carry must be int32, but is float32"):
        rnnjax.unroll(Counting(), {}, XS, carry.astype(jnp.float32))


class OneState(NamedTuple):
    h: Any


@dataclasses.dataclass(frozen=True)
class Own(rnnjax.Cell):
    """A user's cell with a step; the cases say with which carry it begins."""

    made: Callable[..., Any]
    returned: Callable[..., Any] = lambda carry, x: (carry, x)
    output_size = FEATURES

    def init(self, key: Any, input_size: int) -> Any:
        return {}

    def initial_carry(self, batch_shape: Any = (), dtype: Any = None) -> Any:
        return self.made(batch_shape, dtype)

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        return self.returned(carry, x)


def test_a_carry_of_a_users_own_has_a_type_of_its_own() -> None:
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn):
        own = Own(lambda batch, _, dtype=dtype: OneState(jnp.zeros((*batch, 4), dtype)))
        for marks in ({}, {"resets": np.zeros((TIME, BATCH), bool)}):

            def twice(own: Any = own, marks: Any = marks) -> Any:
                carry, _ = rnnjax.unroll(own, {}, XS, **marks)
                return rnnjax.unroll(own, {}, XS, carry, **marks)[0]

            assert jax.eval_shape(twice).h.dtype == dtype


@pytest.mark.parametrize(
    ("made", "came"),
    [
        (lambda batch, dtype: 0.0, "it is 0.0"),
        (lambda batch, dtype: jnp.zeros((), dtype), r"it is float32 \(\)"),
        (lambda batch, dtype: OneState(jnp.zeros(5, dtype)), r"\.h is float32 \(5,\)"),
        (lambda batch, dtype: OneState(jnp.zeros((5, *batch))), r"\.h is float32 \(5, 3\)"),
        (lambda batch, dtype: {"h": "a"}, r"\['h'\] is 'a'"),
    ],
    ids=range(5),
)
def test_a_carry_of_a_users_own_begins_with_the_batch(made: Any, came: str) -> None:
    own = Own(made)
    message = rf"^initial_carry of a Own must .* batch_shape, here \(3,\), but {came}; write"
    resets = np.zeros((TIME, BATCH), bool)
    for call in [
        lambda: rnnjax.unroll(own, {}, XS),
        lambda: rnnjax.unroll(own, {}, XS, resets=resets),
        lambda: rnnjax.unroll(own, {}, XS, OneState(jnp.zeros((BATCH, 5)))),
        lambda: rnnjax.unroll(rnnjax.Stack([own]), ({},), XS),
        lambda: rnnjax.explain(own, {}, XS),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_an_initial_carry_takes_a_dtype() -> None:
    """It is said where the class is written: a carry could be asked for by any call."""
    for made, came in [
        (lambda self, batch_shape=(): 0, r"\(self, batch_shape=\(\)\)"),
        (lambda self, batch_shape, dtype=None: 0, r"\(self, batch_shape, dtype=None\)"),
        (lambda self: 0, r"\(self\)"),
    ]:
        with pytest.raises(InvalidInputError, match=rf"initial_carry of Odd must .* takes {came}"):
            type("Odd", (rnnjax.Cell,), {"initial_carry": made})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda carry, x: x,
            r"must return \(carry, y\), y an array or several, but returned float32",
        ),
        (lambda carry, x: (carry, None), r"must return \(carry, y\)"),
        (lambda carry, x: (carry, x, x), r"must return .* a tuple of 3"),
        (lambda carry, x: ((x,), x), r"must return a carry of the shapes .* returned \[0\]"),
        (
            lambda carry, x: (OneState(carry.h.astype(jnp.float16)), x),
            r"must .*, \.h float32 \(3, 4\), but returned \.h float16 \(3, 4\); .* by astype",
        ),
        (
            lambda carry, x: (OneState(carry.h[..., :1]), x),
            r"must .* returned \.h float32 \(3, 1\)",
        ),
    ],
    ids=range(6),
)
def test_a_step_of_a_users_own_returns_a_carry_like_the_last(returned: Any, message: str) -> None:
    own = Own(lambda batch, dtype: OneState(jnp.zeros((*batch, 4), dtype)), returned)
    for marks in ({}, {"mask": np.ones((TIME, BATCH), bool)}):
        with pytest.raises(InvalidInputError, match=f"^step of a Own {message}"):
            rnnjax.unroll(own, {}, XS, **marks)


@dataclasses.dataclass(frozen=True)
class Sizeless(rnnjax.Cell):
    """A user's cell without the field that shapes are made of."""

    carry = rnnjax.SimpleRNNCarry
    gates = ("h",)

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return rnnjax.SimpleRNNCarry(jnp.tanh(x))


class Shaped(Sizeless):
    """A cell with shapes of its own, which needs no such field."""

    @property
    def carry_shapes(self) -> Any:
        return {"hidden": (HIDDEN,)}

    def parameters(self, input_size: int) -> Any:
        kernel = rnnjax.Param((input_size, HIDDEN), "ones", rnnjax.Role.INPUT)
        recurrent = rnnjax.Param((HIDDEN, HIDDEN), "orthogonal", rnnjax.Role.LOOP)
        return {"kernel": kernel, "recurrent_kernel": recurrent}


@pytest.mark.parametrize("method", [Scan(), Fused(), Auto()], ids=str)
def test_a_cell_without_hidden_size_has_shapes(method: Any) -> None:
    message = "Sizeless has no hidden_size, .*; add the field hidden_size: int, or write"
    for call in [
        lambda: Sizeless().init(KEY, FEATURES),
        lambda: Sizeless().initial_carry(),
        lambda: rnnjax.unroll(Sizeless(), {"kernel": XS[0]}, XS, method=method),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            call()
    cell = Shaped()
    params = jax.eval_shape(lambda: cell.init(KEY, FEATURES))
    run = functools.partial(rnnjax.unroll, cell, method=method)
    assert jax.eval_shape(run, params, XS)[1].shape == (TIME, BATCH, cell.output_size)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    assert rnnjax.explain(cell, params, XS, method=method).layers


class Voltage(NamedTuple):
    """The state of a spiking cell, none of whose leaves is called hidden."""

    v: Any
    s: Any


@dataclasses.dataclass(frozen=True)
class Spiking(rnnjax.Cell):
    """A user's cell whose carry has other names, and which does not say their meaning."""

    hidden_size: int
    role: Any = rnnjax.Role.UNIT

    carry = Voltage
    gates = ("x",)

    def parameters(self, input_size: int) -> Any:
        decay = rnnjax.Param((self.hidden_size,), "ones", self.role)
        return super().parameters(input_size) | {"decay": decay}

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        v = params["decay"] * carry.v * (1 - carry.s) + x
        return Voltage(v, jax.nn.sigmoid(v - 1))


class Firing(Spiking):
    """It names the leaf that is multiplied and the output."""

    recurrent = "s"
    output = "s"


def test_a_cell_says_which_leaf_is_multiplied_and_which_is_the_output() -> None:
    message = "of Spiking.* must name a leaf of its carry, v, s, or be None, but is 'hidden'"
    with pytest.raises(InvalidInputError, match=f"^recurrent {message}"):
        Spiking(4).init(KEY, FEATURES)
    with pytest.raises(InvalidInputError, match=f"^output {message}"):
        _ = Spiking(4).output_size
    cell = Firing(4)
    _, ys = jax.eval_shape(lambda: rnnjax.unroll(cell, cell.init(KEY, FEATURES), XS))
    assert ys.shape == (TIME, BATCH, 4)


def test_a_role_is_one_of_those_there_are() -> None:
    cell = Firing(4, role="loop")
    with pytest.raises(InvalidInputError, match=r"^decay of Firing.* give one of Role\.INPUT, "):
        rnnjax.unroll(cell, cell.init(KEY, FEATURES), XS)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"carry": dict}, "carry of Odd must be the class of a NamedTuple, .* is the class dict;"),
        ({"carry": Voltage(0, 0)}, r"carry of Odd must be the class .* is Voltage\(v, s\);"),
        ({"gates": "x"}, "gates of Odd must be a tuple of names, but is 'x';"),
        ({"gates": 2}, "gates of Odd must be a tuple of names, but is 2;"),
        (
            {"name": dataclasses.field(default=1, compare=False)},
            "name of Odd must be compared, .* but has compare=False; leave that out",
        ),
    ],
)
def test_a_class_declares_what_it_must(declared: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        type("Odd", (Firing,), declared)


@dataclasses.dataclass(frozen=True)
class Named:
    name: Any = dataclasses.field(default=1, compare=False)


def test_a_base_that_is_no_cell_has_fields_that_are_compared() -> None:
    for bases in ((Named, Firing), (Firing, Named)):
        with pytest.raises(InvalidInputError, match=r"^name of Odd must be compared"):
            type("Odd", bases, {})


@pytest.mark.parametrize("number", [-1, 1.0, None])
def test_a_number_of_raw_inputs_is_one(number: Any) -> None:
    cell: Any = type("Odd", (Firing,), {"raw_inputs": number})(4)
    with pytest.raises(InvalidInputError, match=r"^raw_inputs of Odd\(4\) must be an integer"):
        cell.init(KEY, FEATURES)


FOUR: Any = 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decay": (4,)}, r"decay of Odd\(4\) must be a rnnjax\.Param .* but is \(4,\);"),
        ({"decay": rnnjax.Param(FOUR)}, r"decay of Odd\(4\) must be a rnnjax\.Param .* a tuple"),
        ({"kernel": None}, r"parameters of Odd\(4\) must have a kernel, .* but are "),
    ],
)
def test_a_parameter_is_declared_as_one(parameters: Any, message: str) -> None:
    def declared(self: Any, input_size: int) -> Any:
        given = Firing.parameters(self, input_size) | parameters
        return {name: param for name, param in given.items() if param is not None}

    cell: Any = type("Odd", (Firing,), {"parameters": declared})(4)
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        cell.init(KEY, FEATURES)


@pytest.mark.parametrize("method", [Scan(), Fused()], ids=str)
def test_no_operand_has_eight_bits(method: Any) -> None:
    cell, params, xs, carry, *_ = arguments("lstm").values()
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.float8_e4m3fn), (params, xs, carry))
    for given, name in [
        ((narrow[0], xs), "params"), ((params, narrow[1]), "xs"), ((params, xs, narrow[2]), "carry")
    ]:  # fmt: skip
        with pytest.raises(
            InvalidInputError, match=rf"^{name}.* of 16 bits or more, but is float8"
        ):
            rnnjax.unroll(cell, *given, method=method)


def mean_over(axis: str) -> Any:
    """An LSTM whose update is the mean over an axis with a name."""

    class Mean(LSTMCell):
        def update(self, params: Any, x: Any, carry: Any) -> Any:
            return jax.lax.pmean(super().update(params, x, carry), axis)

    return Mean(HIDDEN)


def over_rows(run: Any, how: str) -> Any:
    """``run`` for each of two parts of an array, the second axis of which they are."""
    if how == "vmap":
        return jax.vmap(run, in_axes=1, out_axes=1, axis_name="parts")
    mesh = jax.make_mesh((2,), ("parts",), axis_types=(AxisType.Auto,))
    parts = PartitionSpec(None, "parts")
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=parts, out_specs=parts))


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_a_collective_in_an_update_is_for_the_scan(how: str, assert_close: Any) -> None:
    cell, params, *_ = arguments("lstm").values()
    cell, params = mean_over("parts"), jax.tree.map(lambda p: p + 0.1, params)
    xs = np.random.default_rng(0).normal(size=(TIME, 2, FEATURES)).astype(np.float32)

    def loss(params: Any, method: Any = Auto(), **marks: Any) -> Any:
        ys = over_rows(lambda xs: rnnjax.unroll(cell, params, xs, method=method, **marks)[1], how)
        return (ys(xs) ** 2).sum()

    def loop(params: Any) -> Any:
        carry, total = cell.initial_carry((2,)), 0.0
        for x in xs:
            new, _ = LSTM.step(params, carry, x)
            carry = jax.tree.map(lambda n: jnp.broadcast_to(n.mean(0), n.shape), new)
            total += (carry.hidden**2).sum()
        return total

    functions = lambda params: loss(params, Scan()), loop
    assert_close(*(jax.jit(jax.value_and_grad(f))(params) for f in functions), 1e-5)
    collective = "a collective over the axis 'parts'"
    for method in (Fused(), Auto()):
        message = rf"^update of Mean\(5\) has {collective}, .*; use method=Scan\(\)"
        with pytest.raises(InvalidInputError, match=message):
            loss(params, method)
    if how == "vmap":
        whole = functools.partial(loss, method=Scan(), mask=np.ones(TIME, bool))
        assert_close(jax.value_and_grad(whole)(params), jax.value_and_grad(loop)(params), 1e-5)


class Telling(GRUCell):
    """With an update that tells of itself, each step after the one before."""

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        jax.debug.callback(TOLD.append, carry.hidden.sum(), ordered=True)
        return super().update(params, x, carry)


TOLD: list[Any] = []


def test_an_ordered_callback_in_an_update_is_for_the_scan() -> None:
    cell, xs = Telling(HIDDEN), XS + 1
    params = jax.tree.map(lambda p: p + np.float32(0.1), arguments("gru")["params"])
    for method in (Fused(), Auto()):
        message = r"^update of Telling\(5\) has a callback with ordered=True, .*use method=Scan"
        with pytest.raises(InvalidInputError, match=message):
            rnnjax.unroll(cell, params, xs, method=method)
    TOLD.clear()
    _, ys = rnnjax.unroll(cell, params, xs, method=Scan())
    jax.effects_barrier()
    np.testing.assert_allclose(TOLD, [0, *np.asarray(ys).sum(axis=(1, 2))[:-1]], rtol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "layernorm", "projection"])
def test_a_program_may_forbid_itself_promotion(name: str) -> None:
    cell, params, xs, *_ = arguments(name).values()
    method, lengths = Fused(product_dtype=jnp.bfloat16), np.full(BATCH, 2)

    def loss(params: Any) -> Any:
        _, ys = rnnjax.unroll(cell, params, xs, lengths=lengths, method=method)
        return (
            ys.astype(jnp.float32).sum()
            + cell.step(params, cell.initial_carry((BATCH,)), x)[1].sum()
        )

    x = jnp.asarray(xs[0])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(jax.grad(loss), jax.tree.map(jnp.asarray, params))


def test_float64_is_not_none() -> None:
    """NumPy's type of that name equals None, and jit's cache took one cell for the other."""
    assert LSTMCell(4, dtype=jnp.float64) != LSTMCell(4)
    assert Fused(product_dtype=jnp.float64) != Fused()
    assert LSTMCell(4, dtype="bfloat16") == LSTMCell(4, dtype=jnp.bfloat16)
    assert repr(Fused(product_dtype="bfloat16")) == "Fused(product_dtype=bfloat16)"
