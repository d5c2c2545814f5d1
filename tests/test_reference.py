"""Compositions drawn at random, against the reference in plain NumPy of tests/reference.py.

Outputs, final carries and the derivative along a drawn direction of all arguments at once. The
other laws compare with the cell's own step, so that an error in a step would pass them. Each cell
has a draw that bears its name: ``pytest tests/test_reference.py -k MGUCell``.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cell_table import CELLS, PARALLEL, PUBLIC, bent
from jax.sharding import Mesh, PartitionSpec
from reference import Bidirectional, Layer, LearnedCarry, Options, Stack

import rnnjax
from rnnjax import Auto, Fused, Parallel, Scan
from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.cells.products import convolved

ORDINARY, SLOW, CHUNK = 40, 1000, 50
SEED = 4  # of which the ordinary draws reach most; see the test of that
TOLERANCE = 1e-10  # of the scale of each array, in float64

KINDS = [kind for kind in reference.EQUATIONS if kind in CELLS]
# Alone in a draw: in a stack each layer takes the raw features that it names from the inputs.
RAW = {kind: CELLS[kind].raw_size for kind in KINDS if CELLS[kind].raw}
GRIDS = {"convlstm-1d": 1, "convlstm-2d": 2}
WITHOUT_BOUNDS = {"relu", "elu", "selu", "gelu", "silu", "softplus", "linear"}
CONTEXTS = ["jit", "known marks", "eager", "checkpoint", "vmap", "shard_map"]
MASKED = ["zero", "last"]
OVER_TIME = {"xs", "ids", "mask", "resets"}


class Draw(NamedTuple):
    """A call of `rnnjax.unroll`: its arrays by name, differentiable or not, and what is static."""

    number: int
    node: Any
    features: int
    context: str
    static: Mapping[str, Any]
    smooth: Mapping[str, Any]
    rest: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(time, *batch)``."""
        return self.rest["ids"].shape if "ids" in self.rest else self.smooth["xs"].shape[:-1]

    def __str__(self) -> str:
        given = ", ".join([*self.smooth, *self.rest])
        return (
            f"draw {self.number}: {self.node} on {self.features} features, {self.shape} rows, "
            f"{self.context}, {self.static}, given {given}"
        )


@functools.lru_cache(ORDINARY)
def draw(number: int) -> Draw:
    """Everything from the number.

    The ordinary ones are small, so that they are quick to compile. First of all each kind has tanh
    and sigmoid and runs in parallel, if it can, or fused, if it can: only so are gates kept for the
    backward pass. It has steps and rows, mostly alone. Then come the merges of both directions.
    """
    rng = np.random.default_rng([SEED, number])
    large, usual = number >= ORDINARY, number < len(KINDS)
    count = rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25] if large else [0.9, 0.1, 0.0])
    kinds = [KINDS[number % len(KINDS)]]
    others = rng.choice([kind for kind in KINDS if kind not in RAW], count - 1)
    kinds += [] if kinds[0] in RAW else map(str, others)
    if usual or large:
        node = drawn_node(rng, kinds, 6 if large else 4, usual)
    else:
        part = drawn_node(rng, kinds, 4, usual)
        node = Bidirectional((part, part), [*reference.MERGES][number % len(reference.MERGES)])
    used = {layer.kind for layer in layers(node)}
    chance = [0.0, 0.0, 0.4, 0.6] if usual else [0.04, 0.16, 0.3, 0.5]
    time = int(rng.choice([0, 1, 2, 5], p=chance))
    rows = [(), (0,), (1,), (2,), (3,), (2, 1), (1, 3)]
    none = 0.0 if usual else 0.04  # of them
    rows = rows[rng.choice(len(rows), p=[0.15, none, 0.17 - none, 0.2, 0.26, 0.11, 0.11])]
    grid = rng.integers(1, 4, max(GRIDS.get(kind, 0) for kind in used))
    context = str(rng.choice(CONTEXTS, p=[0.3, 0.1, 0.06, 0.28, 0.16, 0.1]))
    if not (rows and rows[0]) and context in ("vmap", "shard_map"):
        context = "jit"
    raw = RAW.get(kinds[0], 0)
    features = int(rng.integers(1, 4)) + raw
    shape = (time, *rows, *map(int, grid))
    static = {
        "reverse": bool(rng.integers(2)),
        "masked_outputs": str(rng.choice(MASKED)),
        "method": drawn_method(rng, used, usual),
    }
    arrays = drawn_arrays(rng, build(node), features, shape, context, not grid.size and not raw)
    if raw:  # such as gaps and marks, which are not below zero
        np.abs(arrays[0]["xs"][..., -raw:], out=arrays[0]["xs"][..., -raw:])
    if usual and "ids" in arrays[1]:
        arrays[1]["ids"] %= features  # those outside of the range are zeros, and show no product
    return Draw(number, node, features, context, static, *arrays)


def drawn_node(rng: np.random.Generator, kinds: Sequence[str], largest: int, usual: bool) -> Any:
    """A composition with a layer of each kind, or of the first kind twice."""
    if len(kinds) == 1:
        node: Any = drawn_layer(rng, kinds[0], largest, usual)
    elif rng.random() < 0.3:  # one size, as all merges but "concat" need it
        part = drawn_node(rng, kinds[:1], largest, usual)
        node = Bidirectional((part, part), str(rng.choice(list(reference.MERGES))))
    else:
        flat = rng.random() < 0.5
        cuts = range(1, len(kinds)) if flat else [int(rng.integers(1, len(kinds)))]
        edges = itertools.pairwise([0, *cuts, len(kinds)])
        parts = tuple(drawn_node(rng, kinds[a:b], largest, usual) for a, b in edges)
        both_ways = len(parts) == 2 and rng.random() < 0.3
        node = Bidirectional(parts, "concat") if both_ways else Stack(parts)
    learned = rng.random() < 0.2
    free = all(not hasattr(CELLS[layer.kind].carry, "free") for layer in layers(node))
    return LearnedCarry(node) if learned and free else node


def drawn_layer(rng: np.random.Generator, kind: str, largest: int, usual: bool) -> Layer:
    act, gate = "tanh", "sigmoid"
    if rng.random() < 0.5:
        act, gate = map(str, rng.choice(list(reference.ACTIVATIONS), 2))
        # The state would be squared at each step, unless it passes through a bounded function.
        bounded = kind in reference.WITH_CELL - {"peephole"} and act not in WITHOUT_BOUNDS
        if gate in WITHOUT_BOUNDS and not bounded:
            gate = "sigmoid"
    if usual:
        act, gate = "tanh", "sigmoid"
    options = {
        "activation": act,
        "recurrent_activation": gate,
        "use_bias": bool(rng.random() < 0.7),
        "proj_size": int(rng.integers(1, largest + 1)),
        "epsilon": float(rng.choice([1e-5, 1e-2])),
        "kernel_shape": tuple(map(int, rng.integers(1, 4, GRIDS.get(kind, 0)))),
        "state_size": int(rng.integers(1, largest + 1)),
        "key_size": int(rng.integers(1, largest + 1)),
        # Of two ordinary kinds one has each.
        "exponential_forget": bool(rng.random() < 0.5) != (usual and kind == "slstm"),
    }
    # With one unit a factor before a product with a kernel is one behind it.
    size = int(rng.integers(2 if usual else 1, largest + 1))
    options["negative_eigenvalues"] = size % 2 == 0
    options["heads"] = int(rng.choice([n for n in (1, 2, 3) if size % n == 0]))
    fields = () if kind.startswith("user") else dataclasses.fields(CELLS[kind])
    taken = {field.name for field in fields}
    # What is not drawn is as in the table.
    as_is = {name: getattr(CELLS[kind], name) for name in Options._fields if name in taken}
    # Without a key only zoneout does anything. It needs fields of its names.
    rates, carry = {"input_dropout": 0.5}, CELLS[kind].carry
    if "hidden" in carry._fields:
        rates["zoneout_hidden"] = 0.3
        if "cell" in carry._fields and not hasattr(carry, "free"):
            rates["zoneout_cell"] = 0.6
    return Layer(
        kind,
        size,
        as_is | {name: value for name, value in options.items() if name in taken},
        rates if rng.random() < 0.25 else {},
    )


def drawn_method(rng: np.random.Generator, used: set[str], usual: bool) -> rnnjax.Method:
    every = int(rng.integers(1, 4))
    methods: list[rnnjax.Method] = [Scan(), Auto()]
    parallel = used <= PARALLEL
    if parallel:
        chunk = int(rng.integers(1, 4))
        methods.append(Parallel(chunk if used <= reference.MATRICES else None))
    if usual and parallel:
        methods = methods[2:]
    else:
        methods = [*(methods[2:] if usual else methods), Fused(), Fused(every)]
        if not any(kind.startswith("layernorm") for kind in used):
            methods.append(Fused(product_dtype="float64"))
    return methods[rng.integers(len(methods))]


def drawn_arrays(rng, cell, features, shape, context, one_hot) -> tuple[Any, Any]:
    """The arrays of a call; ``shape`` is (time, *batch)."""
    (time, *batch), rest = shape, {}

    def normal(like: Any) -> Any:
        return jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape), like)

    def marks(rate: float) -> Any:
        axes = int(rng.integers(1, len(shape) + 1))  # those at the end may be left out
        return rng.random(shape[:axes]) < rate

    smooth = {"params": normal(jax.eval_shape(lambda: cell.init(jax.random.key(0), features)))}
    if rng.random() < 0.4:
        rest["mask"] = marks(0.7)
    if rng.random() < 0.4:
        rest["resets"] = marks(0.3)
    if rng.random() < 0.4:
        known = context in ("eager", "known marks")  # else there can be more than there are steps
        axes = int(rng.integers(0, len(shape)))
        rest["lengths"] = rng.integers(0, time + (1 if known else 3), batch[:axes])
    if one_hot and rng.random() < 0.25:
        rest["ids"] = rng.integers(-1, features + 1, shape)
    else:
        smooth["xs"] = rng.normal(size=(*shape, features))
        if "mask" in rest and rng.random() < 0.5:
            smooth["xs"][~rest["mask"]] = np.nan
    carries = [jax.eval_shape(lambda b=b: cell.initial_carry(b)) for b in (tuple(batch), ())]
    if rng.random() < 0.5:
        smooth["carry"] = normal(carries[0])
    if rng.random() < 0.4:
        smooth["reset_carry"] = normal(carries[rng.integers(2)])
    return smooth, rest


def layers(node: Any) -> Iterator[Layer]:
    if isinstance(node, Layer):
        yield node
    for part in (node.inner,) if isinstance(node, LearnedCarry) else getattr(node, "parts", ()):
        yield from layers(part)


def build(node: Any) -> rnnjax.Cell:
    """What rnnjax calls this composition."""
    match node:
        case Layer(kind, size, options, rates):
            options = {name: bent if f == "bent" else f for name, f in options.items()}
            cell = dataclasses.replace(CELLS[kind], hidden_size=size, **options)
            return rnnjax.Regularized(cell, **rates) if rates else cell
        case LearnedCarry(inner):
            return rnnjax.LearnedCarry(build(inner))
        case Bidirectional((ahead, back), merge):
            return rnnjax.Bidirectional(build(ahead), None if back is ahead else build(back), merge)
    return rnnjax.Stack(map(build, node.parts))


def expected(draw: Draw, smooth: Mapping[str, Any]) -> Any:
    """The final carry and the outputs by the reference."""

    given, static = {**smooth, **draw.rest}, dict(draw.static)
    del static["method"]
    ids = given.pop("ids", None)
    xs = given.pop("xs") if ids is None else reference.one_hot(ids, draw.features)
    zeros = jax.eval_shape(build(draw.node).initial_carry)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), zeros)
    return reference.unroll(draw.node, given.pop("params"), xs, **given, **static, zeros=zeros)


def actual(draw: Draw) -> Callable[[Any, Any], Any]:
    """Return rnnjax's run, a function of the differentiable arguments and the rest."""
    cell = build(draw.node)

    def call(smooth: Any, rest: Any) -> Any:
        given = {**smooth, **rest}
        params = given.pop("params")
        xs = given.pop("xs") if "xs" in given else rnnjax.OneHot(given.pop("ids"), draw.features)
        return rnnjax.unroll(cell, params, xs, **given, **draw.static)

    match draw.context:
        case "checkpoint":
            return jax.checkpoint(call)
        case "vmap":
            axes = tuple(rows_axes(cell, part) for part in (draw.smooth, draw.rest))
            return jax.vmap(call, axes, (0, 1))
        case "shard_map":
            rows, devices = draw.shape[1], jax.devices()
            count = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
            specs = {None: PartitionSpec(), 0: PartitionSpec("rows")}
            specs[1] = PartitionSpec(None, "rows")
            smooth, rest = (
                {name: specs[axis] for name, axis in rows_axes(cell, part).items()}
                for part in (draw.smooth, draw.rest)
            )
            mesh, out = Mesh(np.array(devices[:count]), ("rows",)), (specs[0], specs[1])
            return jax.shard_map(call, mesh=mesh, in_specs=(smooth, rest), out_specs=out)
    return call


def rows_axes(cell: rnnjax.Cell, given: Mapping[str, Any]) -> dict[str, int | None]:
    """Where each argument has the first axis of the batch; None where it is for all rows."""
    axes: dict[str, int | None] = {}
    state = jax.tree.leaves(jax.eval_shape(cell.initial_carry))[0].ndim
    features_of = {"xs": 1, "carry": state, "reset_carry": state}
    for name, value in given.items():
        time, features = name in OVER_TIME, features_of.get(name, 0)
        some = name != "params" and jax.tree.leaves(value)[0].ndim > time + features
        axes[name] = int(time) if some else None
    return axes


class Solution(NamedTuple):
    """The reference's side: its outputs, and how a weighted sum of them changes."""

    leaves: list[Any]  # of the final carry and the outputs
    weights: list[Any]  # of each
    direction: Any  # of the differentiable arguments
    changes: list[Any]  # of each weighted leaf along it

    @property
    def scale(self) -> float:
        return sum(float(np.abs(change).sum()) for change in self.changes)


@functools.lru_cache(ORDINARY)
def solve(number: int) -> Solution:
    rng, one = np.random.default_rng([number, 1]), draw(number)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), one.smooth)
    out, slopes = reference.with_slopes(lambda smooth: expected(one, smooth), one.smooth, direction)
    leaves = jax.tree.leaves(out)
    weights = [rng.normal(size=leaf.shape) for leaf in leaves]
    changes = [w * slope for w, slope in zip(weights, jax.tree.leaves(slopes), strict=True)]
    return Solution(leaves, weights, direction, changes)


@pytest.mark.filterwarnings("ignore:the gradient of .* is taken without its dropout")
@pytest.mark.parametrize(
    "number",
    [
        *(
            pytest.param(n, id=f"{n}-{kind}-{type(CELLS[kind]).__name__}")
            for n, kind in enumerate(KINDS)
        ),
        *range(len(KINDS), ORDINARY),
        *(pytest.param(n, marks=pytest.mark.slow) for n in range(ORDINARY, ORDINARY + SLOW)),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_drawn_composition_equals_the_reference(number: int, assert_close: Any) -> None:
    drawn, solution = draw(number), solve(number)

    def both(smooth: Any, weights: Any, rest: Any = drawn.rest) -> Any:
        out, pull = jax.vjp(lambda smooth: actual(drawn)(smooth, rest), smooth)
        leaves, structure = jax.tree.flatten(out)
        return leaves, pull(jax.tree.unflatten(structure, weights))[0]

    rest = () if drawn.context == "known marks" else (drawn.rest,)
    run = both if drawn.context == "eager" else jax.jit(both)
    try:
        leaves, gradient = run(drawn.smooth, solution.weights, *rest)
        assert_close(leaves, solution.leaves, TOLERANCE)
        # Multiplied here, for a product and a sum of each parameter take long to compile.
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (gradient, solution.direction))))
        expected_slope = sum(change.sum() for change in solution.changes)
        assert abs(slope - expected_slope) <= TOLERANCE * max(solution.scale, 1e-3)
    except Exception as error:
        error.add_note(str(drawn))
        raise
    if number >= ORDINARY and number % CHUNK == 0:
        jax.clear_caches()  # of programs that are never run again


def test_the_ordinary_draws_reach_everything() -> None:
    """Results depend on the arguments, except for a few draws without steps or rows.

    A new cell changes what is drawn: if something is no longer reached, take another `SEED`.
    """
    draws = [draw(number) for number in range(ORDINARY)]
    live = [one for one in draws if one.shape[0] > 1 and solve(one.number).scale > 0.1]
    assert len(live) > 0.6 * ORDINARY
    written = " ".join(map(str, live))
    words = ["LearnedCarry", "Stack", "zoneout_cell", "keep_every", "float64"]
    words += [f"merge='{merge}'" for merge in reference.MERGES]
    missing = {word for word in words if word not in written}
    missing |= {*KINDS} - {layer.kind for one in live for layer in layers(one.node)}
    missing |= {*CONTEXTS} - {one.context for one in live}
    missing |= {*MASKED} - {one.static["masked_outputs"] for one in live if "mask" in one.rest}
    missing |= {Scan, Fused, Auto, Parallel} - {type(one.static["method"]) for one in live}
    for reverse in (False, True):
        ones = [one for one in live if one.static["reverse"] == reverse]
        given = [name for one in ones for name in one.smooth | one.rest]
        marks = ("mask", "resets", "lengths", "carry", "reset_carry")
        missing |= {f"{name}, reverse={reverse}" for name in marks if given.count(name) < 2}
    assert not missing, f"no ordinary draw has {missing}; try another SEED in {__file__}"


@pytest.mark.usefixtures("x64")
def test_every_activation_and_its_slope_equal_the_reference() -> None:
    assert reference.ACTIVATIONS.keys() == {*ACTIVATIONS, "bent"}, "write it in tests/reference.py"
    x = np.linspace(-4.0, 4.0, 40)
    functions = {**ACTIVATIONS, "bent": bent}
    run = jax.jit(lambda x: {k: jax.jvp(f, (x,), (jnp.ones(40),)) for k, f in functions.items()})
    for name, values in run(x).items():
        theirs = reference.with_slopes(reference.ACTIVATIONS[name], x, np.ones(40))
        np.testing.assert_allclose(values, theirs, atol=1e-13, err_msg=name)


def test_a_window_of_even_size_ends_behind_its_point() -> None:
    """As in Keras and TensorFlow; no ordinary draw may have one."""
    x, kernel = np.arange(1.0, 5.0)[:, None], np.array([1.0, 10.0]).reshape(2, 1, 1)
    np.testing.assert_array_equal(convolved(x, kernel)[:, 0], [21, 32, 43, 4])


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_cell_has_a_reference(kind: type[rnnjax.Cell]) -> None:
    rows = [name for name, cell in CELLS.items() if type(cell) is kind]
    assert rows, f"add a row of {kind.__name__} to make_cells() in tests/cell_table.py"
    assert {*rows} & {*KINDS}, (
        f"write the equation of {kind.__name__} from its paper into tests/reference.py, and add it "
        f"to EQUATIONS there by a name of its rows in tests/cell_table.py: {', '.join(rows)}"
    )


def test_every_option_is_drawn() -> None:
    """Guards an option whose row no draw takes: it would be compared by its default alone."""
    drawn = [layer.options for number in range(ORDINARY) for layer in layers(draw(number).node)]
    names = {"act": "activation", "gate": "recurrent_activation"}
    defaults = reference.Options._field_defaults | {"act": "tanh", "gate": "sigmoid"}
    for field, default in defaults.items():
        name = names.get(field, field)
        assert any(options.get(name, default) != default for options in drawn), (
            f"add a row with another {name} to EQUATIONS in tests/reference.py"
        )


def test_every_equation_has_a_row() -> None:
    without = sorted(reference.EQUATIONS.keys() - CELLS.keys())
    assert not without, (
        f"{', '.join(without)} of EQUATIONS in tests/reference.py must be the name of a row of "
        "make_cells() in tests/cell_table.py, with hyphens for underscores"
    )
