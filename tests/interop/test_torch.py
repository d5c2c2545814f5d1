"""Modules of PyTorch, run live: the same outputs, states and gradients, and the same way back."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnjax.interop import Model
from rnnjax.interop.torch import from_state_dict, to_state_dict

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
torch_rnn = torch.nn.utils.rnn

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


def randomize(module: Any, seed: int) -> Any:
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
    assert_same_bits(to_state_dict(model), state)
    error = distance(actual, (finals, t_ys.detach().numpy()))
    return max(error, distance(ours, theirs))


def assert_same_bits(ours: dict[str, np.ndarray], theirs: Any) -> None:
    """The same keys, types, shapes and bits."""
    assert sorted(ours) == sorted(theirs)
    for key, array in ours.items():
        tensor = theirs[key]
        expected = tensor if isinstance(tensor, np.ndarray) else tensor.detach().numpy()
        assert array.dtype == expected.dtype, key
        assert array.shape == expected.shape, key
        assert array.tobytes() == np.ascontiguousarray(expected).tobytes(), key


def drawn(count: int) -> Callable[..., Any]:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


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
