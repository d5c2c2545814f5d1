"""Whatever is wrong with an argument: an error of the library, which names it and is short."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import OwnStepCell, UserCell, plain_loop, refusals, where, with_parameters
from flax import nnx
from jax import export
from jax.sharding import AxisType, PartitionSpec

import rnnjax
import rnnjax.linen
import rnnjax.nnx
import rnnjax.online
from rnnjax import Auto, Fused, GRUCarry, GRUCell, InvalidInputError, LSTMCell, Parallel, Scan
from rnnjax.cells import Chrono, LegS, Ring
from rnnjax.testing import check_cell

KEY = jax.random.key(0)
TIME, BATCH, FEATURES, HIDDEN = 4, 3, 2, 5
CELLS = {
    "lstm": LSTMCell(HIDDEN),
    "gru": GRUCell(HIDDEN),
    "layernorm": rnnjax.LayerNormGRUCell(HIDDEN),
    "projection": rnnjax.ProjectionLSTMCell(HIDDEN, proj_size=3),
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
        "params": params, "xs": xs, "carry": carry, "reset_carry": carry,
        "lengths": np.full(BATCH, TIME), "mask": marks, "resets": ~marks,
    }  # fmt: skip


NO_FLOATS = [np.int32, np.uint8, bool, np.complex64, jnp.float8_e4m3fn]


def other_arrays(array: np.ndarray) -> list[Any]:
    """Arrays of other types, ranks and sizes, and no array."""
    longer = [np.concatenate([array, array.take([0], axis)], axis) for axis in range(array.ndim)]
    types = [array.astype(dtype) for dtype in NO_FLOATS]
    return [*types, array[None], array.reshape(-1)[0], *longer, array.tolist()]


def other_trees(tree: Any) -> Iterator[Any]:
    """Trees of another structure, and those with one leaf that is another."""
    leaves, structure = jax.tree.flatten(tree)
    yield from ([*leaves], (*leaves, leaves[0]), 3.0, {"hidden": leaves[0]}, {})
    for at, leaf in enumerate(leaves):
        for other in other_arrays(leaf):
            yield jax.tree.unflatten(structure, [*leaves[:at], other, *leaves[at + 1 :]])


def others(name: str, value: Any) -> Iterator[Any]:
    """What an argument of this name cannot be."""
    if name in ("xs", "x"):
        yield from (*other_arrays(value)[:-2], value[..., :1], value[..., 0], {"image": value})
        yield from (None, [[1.0], [1.0, 2.0]], "xs")
    elif isinstance(value, np.ndarray):
        yield from (value.astype(np.float32), value.astype(np.complex64), value[..., :-1])
        yield from (value[None], [[1], [1, 2]], {"a": 1}, "all")
    else:
        yield from other_trees(value)


# One state, two of which one is narrower, and one on a grid.
@pytest.mark.parametrize("name", ["gru", "projection", "convlstm"])
def test_a_wrong_argument_is_named(name: str) -> None:
    """By `unroll` and by `step`."""
    cell, given = CELLS[name], arguments(name)
    step = {"params": given["params"], "carry": given["carry"], "x": given["xs"][0]}
    names = dict.fromkeys(("xs", "x"), "xs|inputs|carry|lengths|mask|resets")
    names["params"] = "params|xs"
    for call, right in ((functools.partial(rnnjax.unroll, cell), given), (cell.step, step)):
        for which, value in right.items():
            for other in others(which, value):
                message = f"^({names.get(which, which)})"
                with pytest.raises(InvalidInputError, match=message) as error:
                    call(**right | {which: other})
                assert len(str(error.value)) < 400


LSTM, GRU, STEP = LSTMCell(HIDDEN), GRUCell(HIDDEN), OwnStepCell(HIDDEN)
STACK = rnnjax.Stack([LSTM, LSTMCell(3)])
XS = np.zeros((TIME, BATCH, FEATURES), np.float32)
PARAMS, CARRY = (arguments("lstm")[name] for name in ("params", "carry"))
NARROW = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.float8_e4m3fn), (PARAMS, XS, CARRY))
IDS = np.zeros((TIME, BATCH), int)


def changed(**changes: Any) -> Any:
    """Parameters of the LSTM, some of them others or, for None, left out."""
    return {name: leaf for name, leaf in (PARAMS | changes).items() if leaf is not None}


def run(**given: Any) -> Any:
    """Run an LSTM whose other arguments are valid."""
    return rnnjax.unroll(**{"cell": LSTM} | arguments("lstm") | given)


def drawn(cell: Any, size: Any = FEATURES) -> Any:
    return jax.eval_shape(lambda: cell.init(KEY, size))


def prepared_step(x: Any) -> Any:
    """Arguments of a cell that was prepared for two features."""
    ready, laid_out = rnnjax.prepare(LSTM, PARAMS, XS[0])
    return ready.step(laid_out, CARRY, x)


def explained(cell: Any = LSTM, params: Any = PARAMS, xs: Any = XS, **options: Any) -> Any:
    return rnnjax.explain(cell, params, xs, **options)


@dataclasses.dataclass(frozen=True)
class Sizeless(rnnjax.Cell):
    """A user's cell without the field that shapes are made of."""

    carry = rnnjax.SimpleRNNCarry
    gates = ("h",)

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        return rnnjax.SimpleRNNCarry(jnp.tanh(x))


class Shaped(Sizeless):
    """A cell with shapes of its own, which needs no such field."""

    carry_shapes = property(lambda self: {"hidden": (HIDDEN,)})

    def parameters(self, input_size: int) -> Any:
        kernel = rnnjax.Param((input_size, HIDDEN), "ones", rnnjax.Role.INPUT)
        recurrent = rnnjax.Param((HIDDEN, HIDDEN), "orthogonal", rnnjax.Role.LOOP)
        return {"kernel": kernel, "recurrent_kernel": recurrent}


class Voltage(NamedTuple):
    """The state of a spiking cell, none of whose leaves is called hidden."""

    v: Any
    s: Any


class Spiking(UserCell):
    """A user's cell whose carry has other names, and which does not say their meaning."""

    carry = Voltage
    gates = ("x",)
    own = {"decay": "ones"}

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        v = params["decay"] * carry.v * (1 - carry.s) + x
        return Voltage(v, jax.nn.sigmoid(v - 1))


class Firing(Spiking):
    """It names the leaf that is multiplied and the output."""

    recurrent = output = "s"


@dataclasses.dataclass(frozen=True)
class Named:
    name: Any = dataclasses.field(default=1, compare=False)


def odd(*bases: type, **declared: Any) -> Any:
    """A user's class that declares something wrong."""
    return type("Odd", bases or (Firing,), declared)


def declaring(**changes: Any) -> Any:
    """A cell that declares its parameters like this; those that are None it has not."""
    return with_parameters(Firing, lambda *_: changes)(4)


def ran(cell: Any, **options: Any) -> Any:
    return rnnjax.unroll(cell, drawn(cell), XS, **options)


def updating(new: Any, base: Any = GRUCell, **declared: Any) -> Any:
    """A user's cell whose update returns something of the carry that it should."""

    def update(self: Any, params: Any, x: Any, carry: Any) -> Any:
        return new(base.update(self, params, x, carry))

    return type("Odd", (base,), {"update": update, **declared})(HIDDEN)


SLSTM, NOT_COMPARED = rnnjax.SLSTMCell(4, heads=2), dataclasses.field(default=1, compare=False)
ORTHOGONAL = jax.nn.initializers.orthogonal
NO_CARRY = r"Fused\(.*\) cannot run OwnStep.* declares no carry.*use method=Scan\(\) or"
TWO = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), drawn(STACK))
UNREAD = rnnjax.Param((4, 1), "ones", rnnjax.Role.OUT)
LARGER = odd(rnnjax.Mamba2Cell, carry_shapes=property(lambda self: {"memory": (2, 3, 1)}))
NO_SIZE = "Sizeless has no hidden_size; .* the field hidden_size: int, or write"
NAMES_A_LEAF = "of Spiking.* must name leaves of carry_shapes, v, s, or be None, but has 'hidden'"

SQUARE, TOO_FEW_AXES = rnnjax.ConvLSTMCell(4), r"be \(time, \*batch, \*grid, channels\) with a"
by_scan, by_fused = (functools.partial(rnnjax.unroll, method=m) for m in (Scan(), Fused()))

NARROWER = updating(lambda carry: GRUCarry(carry.hidden[..., :1]), rnnjax.MinGRUCell)
UNFIT = [
    (odd(LSTMCell, gates=("i", "f", "g"))(HIDDEN, unit_forget_bias=False), ""),  # too few
    (updating(lambda carry: carry.hidden), r"the next carry, not float32\[3, 5\];"),
    (NARROWER, r"carry, not GRUCarry\(hidden='float32\[3, 1\]'\);"),
    (updating(lambda carry: (carry, (carry.hidden, carry.hidden)), output=None), ""),
]
WRONG: list[tuple[Callable[[], Any], str]] = [
    # sizes, types and options
    (lambda: LSTMCell(True), "hidden_size must be a positive integer, but is True"),
    (lambda: LSTMCell(0), "hidden_size must be a positive integer, but is 0"),
    (lambda: LSTMCell(4, dtype=jnp.int32), "dtype must be a floating-point type"),
    (lambda: LSTMCell(4, dtype=jnp.complex64), "dtype must be a floating-point type"),
    (lambda: LSTMCell(4, dtype="float33"), "dtype must be .* but is 'float33'"),
    (lambda: LSTMCell(4, param_dtype=None), "param_dtype must be .* None"),
    (lambda: LSTMCell(4, dtype=jnp.float8_e5m2), "dtype must be .* of 16 bits .* float8_e5m2"),
    (lambda: LSTMCell(4, param_dtype="float8_e5m2"), "param_dtype must be .* of 16 bits"),
    (lambda: LSTMCell(size=8), "LSTMCell takes no size; use one of hidden_size, .*, param_dtype"),
    (lambda: LSTMCell(4, activation="tanhh"), "activation 'tanhh'; give one of tanh, sigmoid"),
    (lambda: LSTMCell(4, activation=None), "unknown activation None"),
    (lambda: LSTMCell(4, activation="swish"), r"'swish'; .* or a callable such as jax\.nn\."),
    (lambda: GRUCell(4, kernel_init="glorot"), "initializer 'glorot'; give one of glorot_uniform"),
    (lambda: LSTMCell(4, recurrent_kernel_init=3), "unknown initializer 3"),
    (lambda: GRUCell(4, bias_init="one"), "unknown initializer 'one'"),
    (lambda: GRUCell(5, reset_after="before"), "reset_after must be True or False"),
    (lambda: rnnjax.LayerNormGRUCell(5, epsilon=-1.0), "epsilon must be a number above 0"),
    (lambda: rnnjax.ConvLSTMCell(4, kernel_shape=3), "kernel_shape must be a tuple of one or two"),
    (lambda: rnnjax.LRUCell(4, state_size=0), "state_size must be a positive integer"),
    (lambda: rnnjax.S5Cell(4, state_size=1.5), "state_size must be a positive integer"),
    (lambda: rnnjax.S6Cell(4, state_size=0), "state_size must be a positive integer"),
    (lambda: rnnjax.LeakyRNNCell(4, leak=0), "leak must be above 0 and at most 1, but is 0"),
    (lambda: rnnjax.SLSTMCell(4, heads=3), "heads must divide the hidden_size of 4"),
    # initialisers
    (lambda: Chrono(1), "longest must be 2 steps or more, but is 1"),
    (lambda: Chrono(float("nan")), "longest must be"),
    (lambda: LegS(0), "blocks must be"),
    (lambda: Ring(0.9, 0.5), "0 <= r_min < r_max <= 1"),
    (lambda: Ring("a"), "r_min"),
    (lambda: Ring(max_phase=float("nan")), "max_phase"),
    (lambda: drawn(rnnjax.SimpleRNNCell(4, bias_init=Chrono(9))), "Chrono needs a cell that says"),
    (lambda: LegS(3)(KEY, (2, 4), jnp.float32), "blocks of LegS must divide the 4 states"),
    *(
        (lambda name=name: drawn(GRUCell(4, bias_init=name)), r"^bias_init .* draws bias \(12,\)")
        for name in ("glorot_uniform", "he_normal", "orthogonal")
    ),
    (lambda: drawn(LSTMCell(4, bias_init=ORTHOGONAL())), "^bias_init .* 'unit_uniform' draw any"),
    (lambda: drawn(LSTMCell(4, kernel_init=lambda *_: XS[0])), r"^kernel_init .* float32 \(3, 2"),
    (lambda: drawn(LSTMCell(4, kernel_init=lambda *_: 3.0)), "^kernel_init .* it returned 3.0"),
    (lambda: drawn(LSTMCell(4, kernel_init=lambda key: 0)), "^kernel_init .* takes 1 positional"),
    (lambda: drawn(LSTMCell(4, recurrent_kernel_init=ORTHOGONAL)), "^recurrent.* a function"),
    # init and initial_carry
    (lambda: LSTM.init(3, KEY), r"input_size must be a positive integer, but is .*cell.init\(key"),
    (lambda: LSTM.init(KEY, np.zeros((3, 2))), "input_size must be .* float64"),
    (lambda: LSTM.init(jax.random.split(KEY), 3), "key must be a JAX random key"),
    (lambda: LSTM.init(0, 3), "key must be a JAX random key"),
    (lambda: LSTM.init(np.zeros(3, np.uint32), 3), "key must be a JAX random key"),
    (lambda: rnnjax.Stack([LSTM]).init(KEY, 0), "input_size must be a positive integer, but is 0"),
    (lambda: LSTM.initial_carry((-1,)), "batch_shape must be .* from 0 up, but holds -1"),
    (lambda: LSTM.initial_carry(8), r"batch_shape must be a tuple, but is 8; write \(8,\)"),
    (lambda: LSTM.initial_carry(PARAMS), r"but is a dict with .*; write \(8,\) for eight rows"),
    (lambda: LSTM.initial_carry((8.0,)), "batch_shape must be a tuple of integers"),
    (lambda: LSTM.initial_carry((8,), dtype=int), "dtype must be a floating-point type"),
    (lambda: LSTM.initial_carry((8,), jnp.float8_e4m3fn), "dtype must be .* of 16 bits"),
    # layers around cells
    (lambda: rnnjax.Stack(LSTM, LSTM), r"come in a list, .* but LSTMCell\(5\) came"),
    (lambda: rnnjax.Stack(LSTMCell), "come in a list, .* but the class LSTMCell came"),
    (lambda: rnnjax.Stack([]), "needs at least one cell"),
    (lambda: rnnjax.Stack([LSTM, 5]), r"cells such as rnnjax.LSTMCell\(50\), but got 5"),
    (lambda: rnnjax.Stack(layers=[LSTM]), "Stack takes no layers; use one of cells, dropout"),
    (lambda: rnnjax.unroll(STACK, (PARAMS,), XS), "params of a Stack.* 2 cells.*1 entries"),
    (lambda: rnnjax.unroll(STACK, PARAMS, XS), "Stack.* 2 cells.*dict.* give its part"),
    (lambda: rnnjax.unroll(STACK, TWO, XS, (CARRY,)), "carry must be shaped like"),
    (lambda: STACK.step(TWO, (CARRY,), XS[0]), "carry of a Stack"),
    (lambda: rnnjax.unroll(STACK, TWO, XS, (CARRY, CARRY)), r"carry\[1\].hidden must have shape"),
    (lambda: rnnjax.unroll(rnnjax.LearnedCarry(LSTM), PARAMS, XS), "LearnedCarry.* give its part"),
    (lambda: rnnjax.LearnedCarry(rnnjax.Stack([GRU, SLSTM])), r"but SLSTM.* may not; take another"),
    (lambda: rnnjax.explain(GRU, drawn(GRU), (6, 2, 3)), r"jax.ShapeDtypeStruct\(\(6, 2, 3\), jnp"),
    (lambda: rnnjax.Regularized(SLSTM, zoneout_cell=0.5), "zoneout_cell keeps units of a leaf"),
    # runs
    (lambda: rnnjax.unroll({"a": 1}, LSTM, 0), r"a dict with a; call unroll\(cell, params, xs\)"),
    (lambda: rnnjax.unroll(LSTM, XS), r"xs must be .*, but is None; call unroll\(cell"),
    (lambda: rnnjax.unroll(LSTM, XS, {"a": 1}), r"xs must .* is a dict with a; call unroll"),
    (lambda: jax.jit(rnnjax.unroll)(LSTM, {}, XS), "cell must be .* is traced; .*static_argnums=0"),
    (lambda: run(cell=flax.linen.LSTMCell(8)), "LSTMCell of flax.linen; run it by rnnjax.linen.R"),
    (lambda: run(cell=nnx.LSTMCell(2, 8, rngs=nnx.Rngs(0))), "of flax.nnx; run it by rnnjax.nnx.R"),
    (lambda: run(cell=LSTMCell), "cell must be .* the class LSTMCell"),
    (lambda: run(method="scan"), "method"),
    (lambda: ran(STEP, method=Fused()), NO_CARRY),
    (lambda: rnnjax.unroll(rnnjax.Stack([STEP]), (drawn(STEP),), XS, method=Fused()), NO_CARRY),
    (lambda: run(params=changed(bias=None)), r"bias: expected \(20,\), got none"),
    (lambda: run(params=changed(extra=XS)), r"extra: expected none, got \(4, 3, 2\)"),
    (lambda: run(params=changed(kernel=None)), "init returns, but are a dict with bias, rec"),
    (lambda: run(params=arguments("gru")["params"]), "not belong to LSTMCell.*recurrent_bias"),
    (lambda: run(params={"cell": PARAMS}), "a dict with cell; of a whole network give the part"),
    (lambda: run(xs=(PARAMS,)), "is a tuple of 1; check the order of the arguments, and"),
    (lambda: run(params=drawn(LSTMCell(4))), r"bias: expected \(20,\), got \(16,\); kernel"),
    (lambda: run(params=(PARAMS,)), "that LSTMCell.init returns, but are a tuple of 1"),
    (lambda: run(xs=XS[..., :1]), "1 features, but params were initialised for 2"),
    (lambda: run(xs=XS[0, 0]), r"\(time, features\) without a batch.*\(2,\)"),
    (lambda: LSTM.step(PARAMS, LSTM.initial_carry(), np.float32(1)), "xs has no axes"),
    (lambda: run(xs=IDS), r"ids are given as rnnjax.OneHot\(ids, size\)"),
    (lambda: run(carry=GRU.initial_carry((BATCH,))), "must be shaped like .*LSTMCarry.*GRUCarry"),
    (lambda: run(carry=LSTM.initial_carry((TIME,))), r"den must .* \(4, 5\); .* are \(time, \*b"),
    (lambda: run(carry=CARRY._replace(cell=XS[0])), r"^carry.cell must have shape \(3, 5\), for"),
    (lambda: run(carry=rnnjax.LSTMCarry(CARRY.hidden > 0, CARRY.cell)), "hidden must be floating"),
    (lambda: run(lengths=IDS[:, 0]), "lengths .*; give one for each row, and check which axis"),
    *(
        (lambda value=value: run(reverse=value), "reverse must be True or False")
        for value in ("False", 1, None, np.array([True]))
    ),
    (lambda: jax.jit(lambda flag: run(reverse=flag))(True), "reverse must be True or False"),
    *(
        (lambda n=n, leaf=leaf: run(**{n: leaf}), rf"^{n}.* of 16 bits or more, but is float8")
        for n, leaf in zip(("params", "xs", "carry"), NARROW, strict=True)
    ),
    (lambda: prepared_step(XS[0, :, [0, 0, 0]].T), "xs has 3 features, .* for 2"),
    (lambda: prepared_step(rnnjax.OneHot(IDS[0], 9)), "xs has 9 features, .* for 2"),
    *(
        (lambda dtype=dtype: Fused(product_dtype=dtype), "product_dtype must be a floating")
        for dtype in (jnp.float8_e4m3fn, jnp.int8, "bf16", np.longdouble)
    ),
    (lambda: Fused(keep_every=0), "keep_every must be a positive"),
    (lambda: explained(platform=3), "platform must be one of cpu, cuda, rocm, gpu, tpu.* is 3"),
    (lambda: explained(STEP, drawn(STEP), method=Fused()), NO_CARRY),
    (lambda: explained(params={}), r"^params .* a dict"),
    (lambda: Scan(precision="fast"), r'"default", "high" or "highest".* \'fast\''),
    (lambda: check_cell(LSTMCell), "cell must be a cell such as"),
    (lambda: check_cell(LSTM, input_size=0), "input_size must be"),
    (lambda: check_cell(LSTM, online=1), "online must be True or False"),
    (lambda: explained(platform="any", method=Scan()), "platform must be .* 'any'"),
    # a cell of one's own, where the class is written and where it is used
    (lambda: odd(LSTMCell, step=0), "^Odd writes step, which follows from its update"),
    (lambda: odd(rnnjax.MinGRUCell, readout=0), "^Odd writes a readout, but its output is 'hidd"),
    (lambda: odd(output=property(lambda self: None), readout=0), "but its output is a property; "),
    (lambda: ran(odd(rnnjax.MinGRUCell, use_recurrent_bias=True)(4)), "use_recurrent_bias needs"),
    *(
        (lambda run=run, cell=cell, xs=xs: run(cell, drawn(cell), xs), TOO_FEW_AXES)
        for convolution, xs in ((SQUARE, XS), (CELLS["convlstm"], XS[:, 0]))
        for cell in (convolution, rnnjax.Stack([convolution]))
        for run in (rnnjax.unroll, rnnjax.explain, by_scan, by_fused)
    ),
    (lambda: odd(rnnjax.Mamba2Cell, update=0), "^Odd writes a memory, from which"),
    # A carry could be asked for by any call.
    (lambda: odd(rnnjax.Cell, initial_carry=lambda self: 0), r"of Odd must .* takes \(self\)"),
    (lambda: odd(rnnjax.Cell, initial_carry=lambda s, b=(): 0), r"must .* takes \(s, b=\(\)\)"),
    (lambda: odd(rnnjax.Cell, initial_carry=lambda s, b, dtype=1: 0), r"must .* \(s, b, dtype=1\)"),
    (lambda: odd(carry=dict), "^carry of Odd must be the class of a Named.*is the class dict;"),
    (lambda: odd(carry=Voltage(0, 0)), r"^carry of Odd must be the class .* is Voltage\(v, s\);"),
    (lambda: odd(gates="x"), "^gates of Odd must be a tuple of names, but is 'x';"),
    (lambda: odd(name=NOT_COMPARED), "^name of Odd must be compared, .* but has compare=False; le"),
    (lambda: odd(Named, Firing), "^name of Odd must be compared"),
    (lambda: odd(Firing, Named), "^name of Odd must be compared"),
    *(
        (lambda n=n: drawn(odd(raw=n)(4)), r"^raw of Odd\(4\) must have names other than")
        for n in (property(lambda _: {"gap": 0}), property(lambda _: {"a gap": 1}))
    ),
    (lambda: drawn(declaring(decay=(4,))), r"^decay of Odd\(4\) must be a rnnjax\.Param .* \(4,"),
    (lambda: drawn(declaring(decay=rnnjax.Param(4))), r"^decay of Odd\(4\) must be .* a tuple"),
    (lambda: drawn(declaring(kernel=None)), r"^parameters of Odd\(4\) must have a kernel, .* are "),
    (lambda: ran(declaring(decay=rnnjax.Param((4,), role="loop"))), r"^decay .* of Role\.INPUT, "),
    (lambda: ran(declaring(decay=UNREAD)), "^decay of Odd.* has the role OUT"),
    (lambda: ran(LARGER(4, heads=2), method=Scan()), r"Odd\(4"),
    (lambda: ran(LARGER(4, heads=2), method=rnnjax.Parallel()), r"Odd\(4"),
    (lambda: ran(updating(lambda c: (c, c.hidden))), r"^update .* not \(GRU.*; params has \["),
    *(
        (lambda cell=cell, m=m: ran(cell, method=m), rf"^update of Odd\(5\) .*{said}.*check gates")
        for cell, said in UNFIT
        for m in (Scan(), Fused())
    ),
    (lambda: drawn(Sizeless()), NO_SIZE),
    (lambda: Sizeless().initial_carry(), NO_SIZE),
    (lambda: rnnjax.unroll(Sizeless(), {"kernel": XS[0]}, XS), NO_SIZE),
    (lambda: drawn(Spiking(4)), f"^recurrent {NAMES_A_LEAF}"),
    (lambda: Spiking(4).output_size, f"^output {NAMES_A_LEAF}"),
]  # fmt: skip


test_what_is_wrong_is_said_in_a_sentence = refusals(WRONG)


def test_a_number_at_its_limit_is_taken() -> None:
    assert rnnjax.LeakyRNNCell(4, leak=1).leak == 1
    assert (Chrono(2).longest, Ring(0, 1).r_min, rnnjax.Dropout(0).rate) == (2, 0, 0)


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


def draws(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next random keys, and a number for each."""
    two = jax.vmap(jax.random.split)(keys.reshape(-1))
    numbers = jax.vmap(jax.random.normal)(two[:, 1]).reshape(keys.shape)
    return two[:, 0].reshape(keys.shape), numbers[..., None]


def odd_carry(kind: str) -> Own:
    """A user's cell whose state has a leaf of any type beside the usual one, in a dict."""

    def made(batch: Any, dtype: Any) -> Any:
        if kind == "key":
            own = jnp.broadcast_to(jax.random.key(7), batch)
        else:
            own = jnp.zeros((*batch, 1), int if kind == "int" else kind)
        return {"hidden": jnp.zeros((*batch, FEATURES), dtype), "own": own}

    def returned(carry: Any, x: Any) -> Any:
        own = carry["own"]
        if kind == "key":
            own, number = draws(own)
        else:
            own = ~own if kind == "bool" else (own.astype(jnp.float32) + 1).astype(own.dtype)
            number = own.astype(jnp.float32)
        hidden = jnp.tanh(carry["hidden"] + x + 0.3 * number)
        return {"hidden": hidden, "own": own}, hidden

    return Own(made, returned)


class KeyedCarry(NamedTuple):
    hidden: Any
    own: Any


export.register_namedtuple_serialization(KeyedCarry, serialized_name="tests.KeyedCarry")


class Keyed(UserCell):
    """A cell that declares its equation, and whose state holds a random key."""

    carry = KeyedCarry
    carry_shapes = property(lambda self: {"hidden": (self.hidden_size,), "own": ()})

    def initial_carry(self, batch_shape: Any = (), dtype: Any = None) -> Any:
        hidden = jnp.zeros((*batch_shape, self.hidden_size), dtype)
        return KeyedCarry(hidden, jnp.broadcast_to(jax.random.key(7), batch_shape))

    def update(self, params: Any, x: Any, carry: Any) -> Any:
        own, number = draws(carry.own)
        return KeyedCarry(jnp.tanh(x + number), own)


ODD = ["int32", "uint8", "bool", "bfloat16", "float8_e4m3fn", "key"]
DRAWN = np.random.default_rng(3).random((2, TIME, BATCH))
MARKS = {"mask": DRAWN[0] < 0.6, "resets": DRAWN[1] < 0.3}


def known(tree: Any) -> Any:
    """A tree in NumPy, random keys as their bits."""

    def bits(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(bits, tree)


def tenths(cell: Any) -> Any:
    return jax.tree.map(lambda p: np.full(p.shape, 0.1, p.dtype), drawn(cell))


@pytest.mark.parametrize("cell", [*map(odd_carry, ODD), Keyed(FEATURES)], ids=[*ODD, "keyed"])
def test_a_carry_of_a_users_own_has_a_type_of_its_own(cell: Any, assert_close: Any) -> None:
    """With a carry, masks and resets, alone and in layers, it is the loop of its steps."""
    params, begun, one = tenths(cell), cell.initial_carry((BATCH,)), cell.initial_carry()
    stack = rnnjax.Stack([rnnjax.Bidirectional(cell, merge="sum"), cell])
    all_params, hand = (rnnjax.Directions(params, params), params), plain_loop(cell)

    @jax.jit
    def run(xs: Any) -> Any:
        first, y = hand(params, xs, begun, begun, *MARKS.values())
        # A border is crossed on the way from the step behind it to that before.
        borders = np.concatenate([MARKS["resets"][1:], np.zeros((1, BATCH), bool)])[::-1]
        back, z = hand(params, xs[::-1], first, begun, MARKS["mask"][::-1], borders)
        second, ys = hand(params, y + z[::-1], back, begun, *MARKS.values())
        expected = (rnnjax.Directions(first, back), second), ys
        rows, carries = MARKS["mask"][0], (rnnjax.Directions(begun, first), back)
        return [
            (rnnjax.unroll(cell, params, xs, begun, **MARKS), (first, y)),
            (
                rnnjax.unroll(cell, params, xs, begun, **MARKS, reset_carry=one, method=Scan()),
                (first, y),
            ),
            (rnnjax.unroll(stack, all_params, xs, carries, **MARKS), expected),
            (rnnjax.restart(cell, params, back, rows), where(rows, begun, back)),
        ]

    xs = np.random.default_rng(2).normal(size=(TIME, BATCH, FEATURES)).astype(np.float32)
    for found, expected in run(xs):
        types = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (found, expected)]
        assert types[0] == types[1]
        assert_close(known(found), known(expected), 1e-6)


@pytest.mark.parametrize("cell", [odd_carry("key"), Keyed(FEATURES)], ids=["key", "keyed"])
def test_a_random_key_in_a_carry_goes_through_every_door(cell: Any, assert_close: Any) -> None:
    params, begun = tenths(cell), cell.initial_carry((BATCH,))
    xs = np.random.default_rng(2).normal(size=(TIME, BATCH, FEATURES)).astype(np.float32)
    check_cell(cell, input_size=FEATURES)

    @jax.jit
    def run(params: Any, xs: Any, carry: Any, resets: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, carry, resets=resets)

    args = params, xs, begun, MARKS["resets"]
    expected = known(run(*args))
    time, batch = export.symbolic_shape("time, batch")
    open_batch = jax.eval_shape(lambda: cell.initial_carry((batch,)))
    shapes = (
        jax.eval_shape(lambda: params),
        *(jax.ShapeDtypeStruct((time, batch, *leaf.shape[2:]), leaf.dtype) for leaf in args[1::2]),
    )
    program = export.export(run)(*shapes[:2], open_batch, shapes[2]).serialize()
    assert_close(known(export.deserialize(program).call(*args)), expected, 1e-6)

    linen, own = rnnjax.linen.RNN(cell, time_major=True, return_carry=True), rnnjax.nnx.RNN
    own = own(cell, FEATURES, time_major=True, return_carry=True, rngs=nnx.Rngs(0))
    own.params = nnx.data(jax.tree.map(nnx.Param, params))
    given = {"params": {"cell": params}}
    for found in (
        jax.jit(linen.apply)(given, xs, initial_carry=begun, resets=MARKS["resets"]),
        own(xs, initial_carry=begun, resets=MARKS["resets"]),
    ):
        assert_close(known(found), expected, 1e-6)

    def loss(carry: Any, ys: Any) -> Any:
        return ys.sum()

    slopes = jax.tree.leaves(rnnjax.state_gradients(loss, cell, params, xs, begun)[1])
    assert [bool(np.asarray(leaf).any()) for leaf in slopes] == [True, False]
    by_xs = jax.grad(lambda xs: run(params, xs, begun, MARKS["resets"])[1].sum())(xs)
    assert np.isfinite(by_xs).all()
    calls: list[Any] = [(f"{m} cannot run", lambda m=m: run_by(m)) for m in (Fused(), Parallel())]
    calls += [
        ("LearnedCarry may be any floating", lambda: rnnjax.LearnedCarry(cell)),
        ("AttentionCell compares", lambda: rnnjax.AttentionCell(cell, 2, 2)),
        ("SnAp1 cannot serve", lambda: rnnjax.online.SnAp1(cell)),
    ]

    def run_by(method: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, begun, method=method)

    for message, call in calls:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            call()


ROUNDED = [  # of a carry, its types
    ("int32", "int8"), ("int32", "uint32"), ("int32", "float32"), ("bool", "int32"),
    ("uint8", "int32"), ("float8_e4m3fn", "float32"), ("bfloat16", "int32"), ("key", "another key"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "came"), ROUNDED)
def test_a_carry_of_another_type_would_be_rounded_or_wrap(wanted: str, came: str) -> None:
    """An int8 in the place of an int32 wrapped at the 128th step."""
    cell, begun = odd_carry(wanted), odd_carry(came.split()[-1]).initial_carry((BATCH,))
    if came == "another key":
        begun["own"] = jnp.broadcast_to(jax.random.key(0, impl="rbg"), BATCH)
    for call in (
        lambda: rnnjax.unroll(cell, {}, XS, begun),
        lambda: rnnjax.unroll(cell, {}, XS, resets=MARKS["resets"], reset_carry=begun),
        lambda: rnnjax.restart(cell, {}, begun, MARKS["mask"][0]),
    ):
        with pytest.raises(InvalidInputError, match=r"carry\['own'\] must be .*, but is"):
            call()


def test_integers_of_a_carry_follow_the_options_of_jax() -> None:
    """Of which the shapes of a carry, kept from call to call, know."""
    cell = odd_carry("int")
    for more in (False, True, False):
        with jax.enable_x64(more):
            begun = cell.initial_carry((BATCH,))
            assert begun["own"].dtype == ("int64" if more else "int32")
            jax.eval_shape(functools.partial(rnnjax.unroll, cell), {}, XS, begun)


def keyed(changed: Any) -> Any:
    """Run a cell with a random key, whose update returns something else."""
    cell = type("Odd", (Keyed,), {"update": lambda self, params, x, carry: changed(carry)})
    return ran(cell(FEATURES))


OF_ANOTHER_KIND = jax.random.split(jax.random.key(0, impl="rbg"), BATCH)
test_an_update_keeps_a_random_key_a_key = refusals(
    [
        (functools.partial(keyed, changed), r"^update of Odd.* it returned .* for ")
        for changed in (
            lambda carry: carry._replace(own=carry.hidden[..., 0]),
            lambda carry: carry._replace(own=np.zeros(BATCH, "int32")),
            lambda carry: carry._replace(own=OF_ANOTHER_KIND),
            lambda carry: carry._replace(hidden=jnp.stack([carry.own] * FEATURES, axis=-1)),
        )
    ]
)


def begin(batch: Any, dtype: Any) -> Any:
    return OneState(jnp.zeros((*batch, 4), dtype))


BEGINS = [
    (lambda batch, dtype: 0.0, "it is 0.0"),
    (lambda batch, dtype: jnp.zeros((), dtype), r"it is float32 \(\)"),
    (lambda batch, dtype: OneState(jnp.zeros(5, dtype)), r"\.h is float32 \(5,\)"),
    (lambda batch, dtype: OneState(jnp.zeros((5, *batch))), r"\.h is float32 \(5, 3\)"),
    (lambda batch, dtype: {"h": "a"}, r"\['h'\] is 'a'"),
]
STEPS = [
    (lambda carry, x: x, r"\(carry, y\), y an array or several, but returned float32"),
    (lambda carry, x: (carry, None), r"\(carry, y\)"),
    (lambda carry, x: (carry, x, x), ".* a tuple of 3"),
    (lambda carry, x: ((x,), x), r"a carry like the one .* returned \('float32\["),
    (
        lambda carry, x: (OneState(carry.h.astype(jnp.float16)), x),
        r".*\(h='float32\[3, 4\]'\), but returned OneState\(h='float16\[3, 4\]'\); .* by astype",
    ),
    (lambda carry, x: (OneState(carry.h[..., :1]), x), r".* returned OneState\(h='float32\[3, 1\]"),
]
BATCH_FIRST = r"^initial_carry of a Own must .* batch_shape, here \(3,\), but {}; write"
VALID = np.ones((TIME, BATCH), bool)
RUNS: list[Callable[[Any], Any]] = [
    lambda own: rnnjax.unroll(own, {}, XS),
    lambda own: rnnjax.unroll(own, {}, XS, mask=VALID),
    lambda own: rnnjax.unroll(own, {}, XS, resets=VALID),
    lambda own: rnnjax.unroll(rnnjax.Stack([own]), ({},), XS),
    lambda own: rnnjax.unroll(own, {}, XS, begin((BATCH,), None)),
]
test_a_cell_of_a_users_own_returns_what_it_should = refusals(
    [
        *(
            (functools.partial(run, Own(made)), BATCH_FIRST.format(came))
            for run in (*RUNS, lambda own: rnnjax.explain(own, {}, XS))  # which asks for no step
            for made, came in BEGINS
        ),
        *(
            (functools.partial(run, Own(begin, step)), f"^step of a Own must return {said}")
            for run in RUNS
            for step, said in STEPS
        ),
    ]
)


@pytest.mark.parametrize("cell", [Shaped(), Firing(HIDDEN)], ids=["shaped", "named"])
def test_a_cell_may_have_shapes_and_names_of_its_own(cell: Any, equal_to_scan: Any) -> None:
    equal_to_scan(cell, [Fused(), Auto()])


def over_rows(run: Any, how: str) -> Any:
    """``run`` for each of two parts of an array, the second axis of which they are."""
    if how == "vmap":
        return jax.vmap(run, in_axes=1, out_axes=1, axis_name="parts")
    mesh = jax.make_mesh((2,), ("parts",), axis_types=(AxisType.Auto,))
    parts = PartitionSpec(None, "parts")
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=parts, out_specs=parts))


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_a_collective_in_an_update_is_for_the_scan(how: str, assert_close: Any) -> None:
    cell = updating(lambda carry: jax.lax.pmean(carry, "parts"), LSTMCell)
    params = jax.tree.map(lambda p: p + 0.1, PARAMS)
    xs = np.random.default_rng(0).normal(size=(TIME, 2, FEATURES)).astype(np.float32)

    def loss(params: Any, method: Any = Auto(), **marks: Any) -> Any:
        ys = over_rows(lambda xs: rnnjax.unroll(cell, params, xs, method=method, **marks)[1], how)
        return (ys(xs) ** 2).sum()

    def average(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf.mean(0), leaf.shape)

    of_rows = updating(lambda carry: jax.tree.map(average, carry), LSTMCell)

    def by_rows(params: Any) -> Any:
        return (rnnjax.unroll(of_rows, params, xs, method=Scan())[1] ** 2).sum()

    expected = jax.jit(jax.value_and_grad(by_rows))(params)
    for marks in [{}] + [{"mask": np.ones(TIME, bool)}] * (how == "vmap"):
        run = functools.partial(loss, method=Scan(), **marks)
        assert_close(jax.jit(jax.value_and_grad(run))(params), expected, 1e-5)
    message = r"^update of Odd\(5\) has a collective over the axis 'parts', .*; use method=Scan\(\)"
    for method in (Fused(), Auto()):
        with pytest.raises(InvalidInputError, match=message):
            loss(params, method)


def test_an_ordered_callback_in_an_update_is_for_the_scan() -> None:
    told: list[Any] = []

    def tell(carry: Any) -> Any:
        jax.debug.callback(told.append, carry.hidden.sum(), ordered=True)
        return carry

    cell, xs = updating(tell), XS + 1
    params = jax.tree.map(lambda p: p + np.float32(0.1), arguments("gru")["params"])
    for method in (Fused(), Auto()):
        message = r"^update of Odd\(5\) has a callback with ordered=True, .*use method=Scan"
        with pytest.raises(InvalidInputError, match=message):
            rnnjax.unroll(cell, params, xs, method=method)
    told.clear()
    _, ys = rnnjax.unroll(cell, params, xs, method=Scan())
    jax.effects_barrier()
    np.testing.assert_allclose(told, np.asarray(ys).sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "layernorm", "projection"])
def test_a_program_may_forbid_itself_promotion(name: str) -> None:
    cell, (params, xs, *_) = CELLS[name], arguments(name).values()
    method, lengths = Fused(product_dtype=jnp.bfloat16), np.full(BATCH, 2)

    def loss(params: Any) -> Any:
        _, ys = rnnjax.unroll(cell, params, xs, lengths=lengths, method=method)
        y = cell.step(params, cell.initial_carry((BATCH,)), x)[1]
        return ys.astype(jnp.float32).sum() + y.sum()

    x = jnp.asarray(xs[0])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(jax.grad(loss), jax.tree.map(jnp.asarray, params))


def test_float64_is_not_none() -> None:
    """NumPy's type of that name equals None, and jit's cache took one cell for the other."""
    assert LSTMCell(4, dtype=jnp.float64) != LSTMCell(4)
    assert Fused(product_dtype=jnp.float64) != Fused()
    assert LSTMCell(4, dtype="bfloat16") == LSTMCell(4, dtype=jnp.bfloat16)
    assert repr(Fused(product_dtype="bfloat16")) == "Fused(product_dtype=bfloat16)"
