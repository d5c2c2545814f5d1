"""Modules of Flax, run live: the same outputs, carries and gradients, and the same way back."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnjax import Directions, LSTMCarry
from rnnjax.interop import Model, Sequential
from rnnjax.interop.flax import from_params, to_params

TOLERANCE = 1e-5  # of the largest entry of each tree
LINEN = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell")
NNX = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
FUNCTIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


class Case(NamedTuple):
    """What is drawn: a module, and how it is called."""

    kinds: tuple[str, ...]  # two for both directions
    around: str  # "rnn", "bidirectional", "sequential"
    gate_fn: str
    activation_fn: str
    sizes: tuple[int, int]  # inputs, hidden
    time: int
    batch: int
    lengths: tuple[int, ...] | None
    reverse: bool
    with_carry: bool
    seed: int


@st.composite
def cases(draw: Any, kinds: tuple[str, ...]) -> Case:
    around = draw(st.sampled_from(["rnn", "rnn", "bidirectional", "sequential"]))
    time, batch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    lengths = st.tuples(*[st.integers(1, time)] * batch)
    # A Sequential of Flax's hands neither lengths nor a carry to its second module.
    alone = around != "sequential"
    return Case(
        tuple(draw(st.sampled_from(kinds)) for _ in range(1 if around == "rnn" else 2)),
        around,
        draw(st.sampled_from(["sigmoid", "hard_sigmoid"])),
        draw(st.sampled_from(["tanh", "sigmoid"])),
        (draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        time,
        batch,
        draw(lengths) if alone and draw(st.booleans()) else None,
        draw(st.booleans()),
        alone and draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def make_linen(case: Case) -> Any:
    def cell(kind: str) -> Any:
        options: dict[str, Any] = {"activation_fn": FUNCTIONS[case.activation_fn]}
        if kind != "SimpleCell":
            options["gate_fn"] = FUNCTIONS[case.gate_fn]
        return getattr(nn, kind)(case.sizes[1], **options)

    flags = {"reverse": case.reverse, "keep_order": True}
    if case.around == "bidirectional":
        return nn.Bidirectional(*(nn.RNN(cell(kind)) for kind in case.kinds))
    if case.around == "sequential":
        return nn.Sequential([nn.RNN(cell(kind), **flags) for kind in case.kinds])
    return nn.RNN(cell(case.kinds[0]), **flags)


def make_nnx(case: Case) -> Any:
    rngs = nnx.Rngs(0)

    def cell(kind: str, inputs: int = case.sizes[0]) -> Any:
        options: dict[str, Any] = {"activation_fn": FUNCTIONS[case.activation_fn]}
        if kind != "SimpleCell":
            options["gate_fn"] = FUNCTIONS[case.gate_fn]
        return getattr(nnx, kind)(inputs, case.sizes[1], rngs=rngs, **options)

    flags = {"reverse": case.reverse, "keep_order": True}
    if case.around == "bidirectional":
        return nnx.Bidirectional(*(nnx.RNN(cell(kind)) for kind in case.kinds))
    if case.around == "sequential":
        first, second = case.kinds
        return nnx.Sequential(
            nnx.RNN(cell(first), **flags), nnx.RNN(cell(second, case.sizes[1]), **flags)
        )
    return nnx.RNN(cell(case.kinds[0]), **flags)


def randomized(tree: Any, seed: int) -> Any:
    """Normal numbers for all parameters: no two alike, so that no swap can hide."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)),
        tree,
    )


def to_flax_carry(carry: Any) -> Any:
    """Of an LSTM the pair ``(c, h)``, of the others ``h``; a pair of these for directions."""
    if isinstance(carry, Directions):
        return to_flax_carry(carry.forward), to_flax_carry(carry.backward)
    return (carry.cell, carry.hidden) if isinstance(carry, LSTMCarry) else carry.hidden


def valid_steps(case: Case, ys: Any) -> Any:
    """The outputs with zeros after each row's length, where Flax leaves what it computed."""
    if case.lengths is None:
        return ys
    steps = np.arange(case.time)[:, None, None]
    return jnp.where(steps < np.array(case.lengths)[:, None], ys, 0)


def distance(actual: Any, expected: Any) -> float:
    """The largest difference of two trees of the same shapes, by the largest entry of all.

    Of all, because an array of one entry may be the small difference of large terms.
    """
    shapes, expected_shapes = (jax.tree.map(np.shape, tree) for tree in (actual, expected))
    assert shapes == expected_shapes
    scale = max(np.abs(leaf).max(initial=0.0) for leaf in jax.tree.leaves(expected))
    difference = jax.tree.map(
        lambda a, e: np.abs(np.asarray(a) - e).max(initial=0.0), actual, expected
    )
    return float(max(jax.tree.leaves(difference)) / max(scale, 1e-3))


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def read(case: Case, tree: Any) -> Model:
    """The model of the parameters, told what a module says in code."""
    names = None
    if case.around == "sequential":
        names = ["layers_0", "layers_1"] if "params" in tree else ["layers.0", "layers.1"]
    model = from_params(
        tree, modules=names, gate_fn=case.gate_fn, activation_fn=FUNCTIONS[case.activation_fn]
    )
    if not case.reverse or case.around == "bidirectional":
        return model
    layers = [dataclasses.replace(layer, reverse=True) for layer in model.layers.values()]
    return dataclasses.replace(model, network=Sequential(tuple(layers)))


def check_parity(case: Case, form: str) -> float:
    """The largest error of outputs, carries and gradients; parameters go back to the bit."""
    rng = np.random.default_rng(case.seed + 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    xs = draw(case.time, case.batch, case.sizes[0])
    if form == "linen":
        module = make_linen(case)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), np.swapaxes(xs, 0, 1)))
        tree = randomized(shapes, case.seed)

        def call(tree: Any, *args: Any, **options: Any) -> Any:
            return module.apply(tree, *args, **options)

    else:
        module = nnx.jit(lambda: make_nnx(case))()  # one program, not one for each initializer
        graph, state, rest = nnx.split(module, nnx.Param, ...)
        tree = randomized(nnx.to_pure_dict(state), case.seed)
        nnx.update(module, tree)

        def call(tree: Any, *args: Any, **options: Any) -> Any:
            # A copy, because a call changes the counters of random numbers.
            traced = nnx.merge(graph, state, rest, copy=True)
            nnx.update(traced, tree)
            return traced(*args, **options)

    model = read(case, tree)
    assert_same_bits(to_params(model), tree)
    start = jax.tree.map(lambda leaf: draw(*leaf.shape), model.initial_carry((case.batch,)))
    width = case.sizes[1] * (2 if case.around == "bidirectional" else 1)
    w_ys = draw(case.time, case.batch, width)
    w_carry = jax.tree.map(lambda leaf: draw(*leaf.shape), start)
    options: dict[str, Any] = {}
    if case.lengths is not None:
        options["seq_lengths"] = jnp.array(case.lengths)
    (name,) = start if len(start) == 1 else (None,)

    def flax_loss(tree: Any, xs: Any, start: Any) -> Any:
        inputs = jnp.swapaxes(xs, 0, 1)
        if name is None:
            ys, carry = call(tree, inputs), None
        else:
            if case.with_carry:
                options["initial_carry"] = to_flax_carry(start[name])
            carry, ys = call(tree, inputs, return_carry=True, **options)
        ys = valid_steps(case, jnp.swapaxes(ys, 0, 1))
        total = jnp.vdot(w_ys, ys)
        if carry is not None:
            weights = to_flax_carry(w_carry[name])
            total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, carry)))
        return total, (ys, carry)

    def our_loss(params: Any, xs: Any, start: Any) -> Any:
        lengths = None if case.lengths is None else np.array(case.lengths)
        carry, ys = model.apply(params, xs, start if case.with_carry else None, lengths=lengths)
        total, states = jnp.vdot(w_ys, ys), None
        if name is not None:
            total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, w_carry, carry)))
            states = to_flax_carry(carry[name])
        return total, (ys, states)

    @jax.jit  # of both at once, because compiling is what takes the time
    def gradients_of(tree: Any, params: Any, xs: Any, start: Any) -> Any:
        flax_gradient, our_gradient = (
            jax.grad(loss, argnums=(0, 1, 2), has_aux=True) for loss in (flax_loss, our_loss)
        )
        return flax_gradient(tree, xs, start), our_gradient(params, xs, start)

    results = jax.device_get(gradients_of(tree, model.params, xs, start))
    ((d_tree, *d_rest), expected), ((d_params, *d_ours), actual) = results
    # Where Flax has one bias for our two, each of the two has its gradient.
    for layer, entry in d_params.items():
        for one in entry if isinstance(entry, tuple) else [entry]:
            if "recurrent_bias" in one:
                gates = one["bias"].shape[0] // case.sizes[1]
                kept = slice((gates - 1) * case.sizes[1], None) if form == "linen" else slice(0, 0)
                moved = np.zeros(one["bias"].shape, np.float32)
                moved[kept] = one["recurrent_bias"][kept]
                one["recurrent_bias"] = moved
        assert layer in model.layers
    gradients = to_params(Model(model.network, d_params, model.origin))
    error = distance(actual, expected)
    return max(error, distance([gradients, *d_ours], [d_tree, *d_rest]))


def drawn(count: int) -> Callable[..., Any]:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Every kind of cell, flag and way to call is in one of these; nnx's OptimizedLSTMCell, which is an
# LSTMCell, is run in test_flax_models.py.
SHAPE: dict[str, Any] = {"sizes": (2, 3), "time": 4, "batch": 3, "seed": 7}
BOTH = Case(
    kinds=("GRUCell", "LSTMCell"),
    around="bidirectional",
    gate_fn="hard_sigmoid",
    activation_fn="tanh",
    lengths=(4, 1, 2),
    reverse=False,
    with_carry=True,
    **SHAPE,
)
ALONE = BOTH._replace(
    kinds=("OptimizedLSTMCell",), around="rnn", activation_fn="sigmoid", reverse=True
)
TWO = BOTH._replace(
    kinds=("SimpleCell", "MGUCell"),
    around="sequential",
    lengths=None,
    reverse=True,
    with_carry=False,
)


@pytest.mark.parametrize("case", [BOTH, ALONE, TWO], ids=lambda case: case.around)
def test_equals_linen(case: Case) -> None:
    assert check_parity(case, "linen") < TOLERANCE


SIMPLE = TWO._replace(
    kinds=("SimpleCell",), around="rnn", activation_fn="sigmoid", lengths=(4, 1, 2)
)


@pytest.mark.parametrize("case", [BOTH, SIMPLE], ids=lambda case: case.around)
def test_equals_nnx(case: Case) -> None:
    assert check_parity(case, "nnx") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("form", "kinds"), [("linen", LINEN), ("nnx", NNX)])
def test_equals_flax_in_many_configurations(form: str, kinds: tuple[str, ...]) -> None:
    """Five hundred drawn ones; shown with ``-s``: of which kinds, and the largest error of all."""
    counts: collections.Counter[str] = collections.Counter()
    errors = []

    @drawn(500)
    @given(case=cases(kinds))
    def check(case: Case) -> None:
        counts[f"{case.around} {case.kinds[0]}"] += 1
        errors.append(check_parity(case, form))
        assert errors[-1] < TOLERANCE

    check()
    print(f"{form}: {len(errors)} configurations, largest error {max(errors):.1e}: {dict(counts)}")
    assert len(errors) >= 500
