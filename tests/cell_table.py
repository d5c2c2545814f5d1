"""The table of cells and methods that drives the laws, and the loop that they are held against."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Auto, Fused, GRUCell, LSTMCell, Parallel, Role, Scan, SimpleRNNCell, Stack
from rnnjax.cells import CompositeCell
from rnnjax.cells.activations import activate_gates

# Not a batch of 4: XLA:CPU (jaxlib 0.10.2) sums a scan's bias gradient wrongly for some float64
# shapes, such as batch 4 and hidden size 5, in plain JAX too.
TIME, BATCH, FEATURES = 5, 3, 2
# One row is whole, one has two steps, one has none; holes in two; borders at the first step, in
# the middle, two in a row, and at a masked step.
LENGTHS = np.array([5, 2, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
RESETS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
ALL = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}
# Gradients and outputs, as a part of the largest entry of each array.
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}


def begun(cell: Any, features: Any, seed: int = 0) -> Any:
    """What a cell begins with, in one program: eagerly, `init` compiles each of its operations."""
    return jax.jit(cell.init, static_argnums=1)(jax.random.key(seed), features)


def blank(cell: Any, features: int = FEATURES) -> Any:
    """Parameters, all zero, for what does not look at their numbers: none is compiled."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def refusals(rows: Any) -> Any:
    """A test of calls, each with what its error says: that is one sentence, and short."""

    @pytest.mark.parametrize(("call", "message"), rows, ids=range(len(rows)))
    def refused(call: Callable[[], Any], message: str) -> None:
        with pytest.raises(rnnjax.InvalidInputError, match=message) as error:
            call()
        assert {ValueError, rnnjax.RnnjaxError} < {*type(error.value).__mro__}
        assert len(str(error.value)) < 400
        assert not re.search(r"\n|\. ", str(error.value))

    return refused


@dataclasses.dataclass(frozen=True)
class UserCell(rnnjax.Cell):
    """What the cells of users have here unless they say something else: one gate, of one leaf.

    Of ``own`` each is a vector that the update reads, and how it begins.
    """

    hidden_size: int
    dtype: Any = None
    carry = rnnjax.SimpleRNNCarry
    gates = ("h",)
    own = {}

    def parameters(self, input_size: int) -> dict[str, rnnjax.Param]:
        own = {name: rnnjax.Param((self.hidden_size,), init) for name, init in self.own.items()}
        return super().parameters(input_size) | own


def with_parameters(base: type, more: Callable[..., dict[str, Any]], **declared: Any) -> Any:
    """A class of cells with other parameters, of their units and features; None takes one away."""

    def parameters(self: Any, input_size: int) -> Any:
        found = base.parameters(self, input_size) | more(self.hidden_size, input_size)
        return {name: param for name, param in found.items() if param is not None}

    return type("Odd", (base,), {"parameters": parameters, **declared})


class PeepholeCarry(NamedTuple):
    hidden: jax.Array
    memory: jax.Array


class PeepholeCell(UserCell):
    """A user's cell: an LSTM with peepholes (Gers & Schmidhuber, 2000), and a gain on the output.

    Its update reads parameters, whose gradients the engine has to sum over time. ``bias`` is read
    there too, and by `project`.
    """

    carry = PeepholeCarry
    gates = "i", "f", "g", "o"
    coupling = rnnjax.Coupling.ELEMENTWISE
    output = None

    def parameters(self, input_size: int) -> dict[str, rnnjax.Param]:
        return super().parameters(input_size) | {
            "a_gain": rnnjax.Param((self.hidden_size,), "ones"),
            "peephole": rnnjax.Param((3, self.hidden_size)),
        }

    def update(
        self, params: Any, x: jax.Array, carry: PeepholeCarry
    ) -> tuple[PeepholeCarry, jax.Array]:
        i, f, g, o = jnp.split(x, 4, axis=-1)
        p_i, p_f, p_o = params["peephole"]
        i = jax.nn.sigmoid(i + p_i * carry.memory)
        f = jax.nn.sigmoid(f + p_f * carry.memory)
        memory = f * carry.memory + i * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o + p_o * memory) * jnp.tanh(memory)
        y = params["a_gain"] * hidden + params["bias"][: self.hidden_size]
        return PeepholeCarry(hidden, memory), y


class GainCell(UserCell):
    """A user's cell with gates: its update reads a parameter, and the carry before the step."""

    gates = "candidate", "z"
    coupling = rnnjax.Coupling.ELEMENTWISE
    output = None
    own = {"gain": "ones"}

    def update(
        self, params: Any, x: jax.Array, carry: rnnjax.SimpleRNNCarry
    ) -> tuple[rnnjax.SimpleRNNCarry, jax.Array]:
        candidate, z = jnp.split(activate_gates(x, ("tanh", "sigmoid")), 2, axis=-1)
        hidden = (1 - z) * params["gain"] * candidate + z * carry.hidden
        return rnnjax.SimpleRNNCarry(hidden), hidden * z


class GapCell(UserCell):
    """A user's cell with a raw feature: its units forget with the time since the last step."""

    raw = {"gap": 1}
    coupling = rnnjax.Coupling.ELEMENTWISE
    own = {"speed": "unit_uniform"}

    def update(
        self, params: Any, x: jax.Array, carry: rnnjax.SimpleRNNCarry, gap: jax.Array
    ) -> rnnjax.SimpleRNNCarry:
        keeps = jnp.exp(-jax.nn.softplus(params["speed"]) * gap)
        return rnnjax.SimpleRNNCarry(keeps * carry.hidden + (1 - keeps) * jnp.tanh(x))


@dataclasses.dataclass(frozen=True)
class SCRNCell(UserCell):
    """A user's cell with slow units and two products in the loop (Mikolov et al., 2014)."""

    context_size: int = 3
    decay: float = 0.95
    carry = PeepholeCarry
    gates = "hidden", "context"
    additive = False
    carry_shapes = property(lambda s: {"hidden": (s.hidden_size,), "memory": (s.context_size,)})

    def parameters(self, input_size: int) -> dict[str, rnnjax.Param]:
        hidden, context = self.hidden_size, self.context_size
        return {
            "kernel": rnnjax.Param((input_size, hidden + context), "lecun_normal", Role.INPUT),
            "recurrent_kernel": rnnjax.Param((hidden, hidden), "orthogonal", Role.LOOP),
            "context_kernel": rnnjax.Param((context, hidden), "lecun_normal", Role.LOOP),
        }

    def update(self, params: Any, x: Any, carry: PeepholeCarry) -> PeepholeCarry:
        fast, slow = jnp.split(x[0], [self.hidden_size], axis=-1)
        context = (1 - self.decay) * slow + self.decay * carry.memory
        hidden = activate_gates(fast + x[1] + context @ params["context_kernel"], ["sigmoid"])
        return PeepholeCarry(hidden, context)


@dataclasses.dataclass(frozen=True)
class OwnPastCell(UserCell):
    """A user's cell of one gate, whose units see their own past alone (Li et al., 2018)."""

    linear: bool = False
    recurrent = None
    own = {"own": "unit_uniform"}

    @property
    def coupling(self) -> rnnjax.Coupling:
        return rnnjax.Coupling.AFFINE if self.linear else rnnjax.Coupling.ELEMENTWISE

    def update(
        self, params: Any, x: jax.Array, carry: rnnjax.SimpleRNNCarry
    ) -> rnnjax.SimpleRNNCarry:
        new = x + params["own"] * carry.hidden
        return rnnjax.SimpleRNNCarry(new if self.linear else jax.nn.relu(new))


@dataclasses.dataclass(frozen=True)
class OwnStepCell(rnnjax.Cell):
    """A user's cell that declares nothing: it has a step, and so runs on the scan alone."""

    hidden_size: int
    dtype: Any = None
    output_size = property(lambda self: 2 * self.hidden_size)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        return {"kernel": jnp.ones((input_size + self.hidden_size, self.hidden_size))}

    def initial_carry(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def step(self, params: Any, carry: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        kernel = params["kernel"].astype(self.dtype or params["kernel"].dtype)
        new = jnp.tanh(jnp.concatenate([x, carry], axis=-1).astype(kernel.dtype) @ kernel)
        new = new.astype(carry.dtype)
        return new, jnp.concatenate([new, carry], axis=-1).astype(self.dtype or carry.dtype)


def bent(x: jax.Array) -> jax.Array:
    """An activation of the user's own."""
    return x / (1 + x * x)


def make_cells() -> dict[str, rnnjax.Cell]:
    """Every cell in several configurations; built anew at each call."""
    return {
        "simple": SimpleRNNCell(5),
        "simple-relu": SimpleRNNCell(5, activation="relu"),
        "leaky": rnnjax.LeakyRNNCell(5, leak=0.3),
        "lstm": LSTMCell(5),
        "lstm-no-bias": LSTMCell(5, use_bias=False),
        "lstm-two-biases": LSTMCell(5, use_recurrent_bias=True),
        "lstm-hard": LSTMCell(5, recurrent_activation="hard_sigmoid"),
        "lstm-callable": LSTMCell(5, recurrent_activation="legacy_hard_sigmoid", activation=bent),
        "gru": GRUCell(5),
        "gru-no-bias": GRUCell(5, use_bias=False, activation="softsign"),
        "gru-reset-before": GRUCell(5, reset_after=False),
        "peephole": rnnjax.PeepholeLSTMCell(5),
        "projection": rnnjax.ProjectionLSTMCell(5, proj_size=3),
        "layernorm-lstm": rnnjax.LayerNormLSTMCell(5),
        "layernorm-gru": rnnjax.LayerNormGRUCell(5),
        "mgu": rnnjax.MGUCell(5),
        "mgu-reset-before": rnnjax.MGUCell(5, reset_after=False),
        "mingru": rnnjax.MinGRUCell(5),
        "minlstm": rnnjax.MinLSTMCell(5),
        "lru": rnnjax.LRUCell(5, state_size=3),
        "s5": rnnjax.S5Cell(5, state_size=3),
        "rglru": rnnjax.RGLRUCell(5),
        "temporal-conv": rnnjax.TemporalConvCell(5),
        "s6": rnnjax.S6Cell(5, state_size=3),
        "diagonal-lstm": rnnjax.DiagonalLSTMCell(5),
        "slstm": rnnjax.SLSTMCell(6, heads=2),
        "mlstm": rnnjax.MLSTMCell(4, heads=2),
        "mamba2": rnnjax.Mamba2Cell(4, heads=2, state_size=3),
        "deltanet": rnnjax.GatedDeltaNetCell(4, heads=2),
        "convlstm-1d": rnnjax.ConvLSTMCell(2, kernel_shape=(3,)),
        "convlstm-2d": rnnjax.ConvLSTMCell(2, kernel_shape=(2, 3)),
        "user-peephole": PeepholeCell(5),
        "user-gain": GainCell(5),
        "user-gap": GapCell(5),
        "user-scrn": SCRNCell(5),
        "user-step": OwnStepCell(5),
        "learned-carry": rnnjax.LearnedCarry(GRUCell(5)),
        "stack": Stack([LSTMCell(5), GRUCell(4), SimpleRNNCell(3)]),
        "stack-nested": Stack(
            [
                GRUCell(4, reset_after=False, use_bias=False),
                Stack([LSTMCell(3, unit_forget_bias=False), PeepholeCell(2)]),
            ]
        ),
    }


CELLS = make_cells()
# The library's own, but those that are made of others: each has a row above and an equation in
# tests/reference.py.
PUBLIC = [
    kind
    for kind in map(vars(rnnjax).get, rnnjax.__all__)
    if isinstance(kind, type)
    and issubclass(kind, rnnjax.Cell)
    and not issubclass(kind, CompositeCell | rnnjax.AttentionCell)
    and kind is not rnnjax.Cell
]
SINGLE = [name for name, cell in CELLS.items() if not isinstance(cell, CompositeCell)]
# One for each way through the engine (gates kept or not, a sum or two halves, products and
# parameters in the update, a step of its own), for the laws whose check is slow to compile.
FEW = ["lstm", "lstm-callable", "gru", "gru-reset-before", "user-peephole", "user-step"]


def layers(cell: rnnjax.Cell) -> list[rnnjax.Cell]:
    if isinstance(cell, Stack):
        return [layer for inner in cell.cells for layer in layers(inner)]
    return [cell.cell if isinstance(cell, rnnjax.LearnedCarry) else cell]


def grid(name: str) -> tuple[int, ...]:
    """The axes that follow the batch: those of the grid of a convolutional cell."""
    cell = CELLS[name]
    return (4, 3)[: len(cell.kernel_shape)] if isinstance(cell, rnnjax.ConvLSTMCell) else ()


# Where Auto is run too; for every other cell it is Scan or Fused itself.
AUTO = {"gru", "user-step", "stack-nested"}
# Where steps are kept two at a time and computed again: two segments, of which one is shorter.
AGAIN = {"lstm", "gru", "user-peephole", "mingru", "stack"}
# What declares that it is affine in the carry.
PARALLEL = {
    name
    for name, cell in CELLS.items()
    if not any(Parallel().refusal(layer) for layer in layers(cell))
}


def methods(name: str) -> list[rnnjax.Method]:
    return [
        Scan(),
        *([Fused(keep_every=2)] if name in AGAIN else []),
        *([Fused()] if name != "user-step" else []),
        *([Parallel()] if name in PARALLEL else []),
        *([Auto()] if name in AUTO else []),
    ]


# ---- what an ordinary run takes of cells times methods times directions; the rest is slow
#
# A fault in an equation is caught by tests/test_reference.py, where every cell runs by one method
# against NumPy. A method looks at few things of a cell: so the laws take all methods of `BY_ALL`
# (gates that are kept, an update that reads parameters, a state that runs in parallel), and of
# those that differ in what a method can see, `FEW` and `WAYS`, the method of `USUAL` that runs the
# fewest cells; of each one direction, and the other one with masks and resets. A new method so runs
# the cells of `BY_ALL`. `make test-slow` takes all cells by all methods in both directions.

USUAL = Auto(), Parallel(), Fused(), Scan()

# Where what is held against the loop or the scan does not depend on the equation: those ways, and
# the steps that read more axes than their last, a second product, none, one behind the loop, and
# layers.
BROAD = [*FEW, "user-gain", "projection", "layernorm-lstm", "mingru", "lru", "convlstm-2d", "stack"]
# And one of each kind whose state is no vector of a layer: earlier inputs, heads, matrices, a stack
# of its own.
WAYS = [*BROAD, "temporal-conv", "s6", "slstm", "mlstm", "deltanet"]
BY_ALL = ["lstm", "user-peephole", "mingru"]
# So that each method has cells that run forward and others in reverse.
IN_REVERSE = {"lstm-callable", "gru", "user-peephole", "mingru", "lru", "convlstm-2d", "deltanet"}


def table(
    *skip: type[rnnjax.Method], names: Any = CELLS, ordinary: Any = WAYS, by_all: Any = BY_ALL
) -> list[Any]:
    """Cells and methods by the rule above, for a law that asks for fewer with fewer ``names``."""
    rows = []
    for name in names:
        taken = [method for method in methods(name) if not isinstance(method, skip)]
        usual = next(method for method in USUAL if method in taken)
        for method in taken:
            runs = name in by_all or (name in ordinary and method == usual)
            marks = [] if runs else pytest.mark.slow
            rows.append(pytest.param(name, method, id=f"{name}-{method}", marks=marks))
    return rows


def in_reverse(name: str, marked: bool = False) -> bool:
    """In which direction an ordinary run takes a cell."""
    return (name in IN_REVERSE) != marked


def both_ways(rows: list[Any], marked: bool = False) -> list[Any]:
    """Each row in both directions, of which one is slow."""
    return [
        pytest.param(
            *row.values,
            reverse,
            marks=row.marks if reverse == in_reverse(row.values[0], marked) else pytest.mark.slow,
            id=f"{row.id}-{'reverse' if reverse else 'forward'}",
        )
        for row in rows
        for reverse in (False, True)
    ]


def alike(params: dict[str, Any]) -> list[str]:
    """The parameters of a cell that are the same for all units, or heads, in a row of theirs.

    Apart from biases of the inputs' product, whose columns differ.
    """
    rows = {
        name: leaf[..., 0] if leaf.shape[-1] == 1 else leaf
        for name, leaf in params.items()
        if name not in ("bias", "recurrent_bias") and leaf.size
    }
    return [name for name, row in rows.items() if np.any(np.all(row == row[..., :1], -1))]


# ---- the loop that the laws are held against


def weighted(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with the gradients of a sum that sees every output, to all differentiable inputs.

    ``(differentiable, weights, *rest) -> (outputs, gradients)``, where ``run`` takes the
    differentiable arguments and then the rest.
    """

    def both(differentiable: Any, weights: Any, *rest: Any) -> Any:
        out, pull = jax.vjp(lambda given: run(*given, *rest), differentiable)
        weights = jax.tree.map(lambda w, o: w.astype(o.dtype), weights, out)
        return out, pull(weights)[0]

    return both


def where(marks: jax.Array, new: Any, old: Any) -> Any:
    """The rows of one tree, and of another."""
    return jax.tree.map(
        lambda n, o: jnp.where(marks.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old
    )


def plain_loop(cell: Any) -> Callable[..., Any]:
    """The loop of `rnnjax.unroll`'s docstring: nothing of the engine."""

    def run(params: Any, xs: Any, carry: Any, start: Any, valid: Any, resets: Any) -> Any:
        def step(carry: Any, at: Any) -> Any:
            x, valid, reset = at
            carry = where(reset, start, carry)
            new, y = cell.step(params, carry, x)
            return where(valid, new, carry), where(valid, y, jnp.zeros_like(y))

        return jax.lax.scan(step, carry, (xs, valid, resets))

    return run


@functools.cache
def compiled_loop(name: str) -> Callable[..., Any]:
    return jax.jit(weighted(plain_loop(CELLS[name])))


def loop(name: str, arguments: Any, weights: Any, marks: dict[str, Any], reverse: bool) -> Any:
    """Outputs and gradients, as of `weighted`, of ``(params, xs, carry, reset_carry)``.

    In reverse it is the same program, which is given all steps turned around.
    """
    (params, xs, carry, start), (of_carry, of_ys) = arguments, weights
    steps, rows = xs.shape[:2]
    valid = marks.get("mask", np.ones((steps, rows), bool))
    if "lengths" in marks:
        valid = valid & (np.arange(steps)[:, None] < marks["lengths"])
    resets = marks.get("resets", np.zeros((steps, rows), bool))
    if reverse:  # the border before t is crossed on the way from t to t - 1
        resets = np.concatenate([resets[1:], np.zeros_like(resets[:1])])
    turn = slice(None, None, -1 if reverse else 1)
    given = (params, xs[turn], carry, start), (of_carry, of_ys[turn]), valid[turn], resets[turn]
    (carry, ys), (d_params, d_xs, *d_rest) = compiled_loop(name)(*given)
    return (carry, ys[turn]), (d_params, d_xs[turn], *d_rest)
