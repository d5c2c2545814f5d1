"""Layers, packed sequences, both directions and projections against PyTorch, run live."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Bidirectional, Directions, GRUCell, LSTMCell, ProjectionLSTMCell, Stack

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
torch_rnn = torch.nn.utils.rnn

BATCH, TIME, FEATURES, HIDDEN, PROJECTED = 4, 6, 2, 4, 3
LENGTHS = np.array([4, 6, 1, 3])  # in no order
TOLERANCE = 1e-5  # of the largest entry of each array

RELU = {"nonlinearity": "relu"}
CASES = {
    "simple": (rnnjax.SimpleRNNCell(HIDDEN), "RNN", {}),
    "simple-relu": (rnnjax.SimpleRNNCell(HIDDEN, activation="relu"), "RNN", RELU),
    "lstm": (LSTMCell(HIDDEN), "LSTM", {}),
    "lstm-no-bias": (LSTMCell(HIDDEN, use_bias=False), "LSTM", {"bias": False}),
    "gru": (GRUCell(HIDDEN), "GRU", {}),
    "gru-no-bias": (GRUCell(HIDDEN, use_bias=False), "GRU", {"bias": False}),
    "projection": (
        ProjectionLSTMCell(HIDDEN, proj_size=PROJECTED),
        "LSTM",
        {"proj_size": PROJECTED},
    ),
}


def module_with(arrays_seed: int, kind: str, *sizes: int, **options: Any) -> Any:
    """A module of torch with random weights."""
    module = getattr(torch.nn, kind)(*sizes, **options)
    rng = np.random.default_rng(arrays_seed)
    module.load_state_dict(
        {
            key: torch.tensor(0.6 * rng.standard_normal(p.shape, np.float32))
            for key, p in module.named_parameters()
        }
    )
    return module


def from_torch(cell: rnnjax.Cell, arrays: dict[str, Any], place: str) -> Any:
    """Our parameters of a layer: kernels transposed; all but the GRU add torch's two biases."""
    params = {
        "kernel": arrays[f"weight_ih_{place}"].T,
        "recurrent_kernel": arrays[f"weight_hh_{place}"].T,
    }
    if cell.use_bias:
        x_bias, h_bias = arrays[f"bias_ih_{place}"], arrays[f"bias_hh_{place}"]
        params["bias"] = x_bias if isinstance(cell, GRUCell) else x_bias + h_bias
        if isinstance(cell, GRUCell):
            params["recurrent_bias"] = h_bias
    if isinstance(cell, ProjectionLSTMCell):
        params["projection_kernel"] = arrays[f"weight_hr_{place}"].T
    return params


def to_torch_gradients(gradients: Any, place: str) -> dict[str, Any]:
    """The gradients of torch's parameters: where a sum is our bias, each of its terms has ours."""
    named = {
        f"weight_ih_{place}": gradients["kernel"].T,
        f"weight_hh_{place}": gradients["recurrent_kernel"].T,
    }
    if "bias" in gradients:
        named[f"bias_ih_{place}"] = gradients["bias"]
        named[f"bias_hh_{place}"] = gradients.get("recurrent_bias", gradients["bias"])
    if "projection_kernel" in gradients:
        named[f"weight_hr_{place}"] = gradients["projection_kernel"].T
    return named


def arrays_of(module: Any) -> dict[str, np.ndarray]:
    return {key: p.detach().numpy() for key, p in module.named_parameters()}


def run_packed(module: Any, xs: Any, states: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The padded outputs, and the final states as a tuple of one or two arrays."""
    packed = torch_rnn.pack_padded_sequence(xs, torch.tensor(LENGTHS), enforce_sorted=False)
    ys, finals = module(packed, tuple(states) if len(states) == 2 else states[0])
    padded, lengths = torch_rnn.pad_packed_sequence(ys, total_length=TIME)
    assert lengths.tolist() == LENGTHS.tolist()
    return padded, finals if len(states) == 2 else (finals,)


# The projection's gradients are those of the layers below.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "projection" else n for n in CASES],
)
def test_packed_sequences_are_lengths(
    name: str, random_like: Callable[..., Any], assert_close: Any
) -> None:
    """Outputs, final states, and all gradients; ``proj_size`` among them."""
    cell, kind, options = CASES[name]
    module = module_with(0, kind, FEATURES, HIDDEN, **options)
    params = from_torch(cell, arrays_of(module), "l0")
    state = jax.eval_shape(lambda: cell.initial_carry((BATCH,)))
    trees = (
        jax.ShapeDtypeStruct((TIME, BATCH, FEATURES), float),
        state,
        (state, jax.ShapeDtypeStruct((TIME, BATCH, cell.output_size), float)),
    )
    xs, carry, weights = (random_like(tree, seed) for seed, tree in enumerate(trees))

    t_xs = torch.tensor(np.asarray(xs), requires_grad=True)
    t_states = [torch.tensor(np.asarray(leaf)[None], requires_grad=True) for leaf in carry]
    t_ys, t_finals = run_packed(module, t_xs, t_states)
    loss = (t_ys * torch.tensor(np.asarray(weights[1]))).sum()
    for weight, final in zip(weights[0], t_finals, strict=True):
        loss = loss + (final[0] * torch.tensor(np.asarray(weight))).sum()
    loss.backward()

    def our_loss(params: Any, xs: jax.Array, carry: Any) -> Any:
        out = rnnjax.unroll(cell, params, xs, carry, lengths=LENGTHS)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, out))), out

    (d_params, *rest), actual = jax.jit(jax.grad(our_loss, argnums=(0, 1, 2), has_aux=True))(
        params, xs, carry
    )
    finals = type(carry)(*(final.detach().numpy()[0] for final in t_finals))
    assert_close(actual, (finals, t_ys.detach().numpy()), TOLERANCE)
    expected_gradients = (
        {key: p.grad.numpy() for key, p in module.named_parameters()},
        t_xs.grad.numpy(),
        type(carry)(*(leaf.grad.numpy()[0] for leaf in t_states)),
    )
    assert_close((to_torch_gradients(d_params, "l0"), *rest), expected_gradients, TOLERANCE)


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("lstm", "gru")), "projection"]
)
def test_two_bidirectional_layers(
    name: str, random_like: Callable[..., Any], assert_close: Any
) -> None:
    """``num_layers=2, bidirectional=True``, with lengths and initial states, and gradients."""
    cell, kind, options = CASES[name]
    module = module_with(0, kind, FEATURES, HIDDEN, 2, bidirectional=True, **options)
    stack = Stack([Bidirectional(cell), Bidirectional(cell)])
    arrays = arrays_of(module)
    places = [Directions(f"l{layer}", f"l{layer}_reverse") for layer in range(2)]
    params = tuple(
        Directions(*(from_torch(cell, arrays, place) for place in both)) for both in places
    )
    trees = (
        jax.ShapeDtypeStruct((TIME, BATCH, FEATURES), float),
        jax.eval_shape(lambda: stack.initial_carry((BATCH,))),
        jax.ShapeDtypeStruct((TIME, BATCH, stack.output_size), float),
    )
    xs, carry, w_ys = (random_like(tree, seed) for seed, tree in enumerate(trees))

    # Torch keeps the states of all layers and directions in one array: forward, then backward.
    flat = [state for both in carry for state in both]
    t_states = [
        torch.tensor(np.stack([np.asarray(state[k]) for state in flat]))
        for k in range(len(flat[0]))
    ]
    t_xs = torch.tensor(np.asarray(xs), requires_grad=True)
    t_ys, t_finals = run_packed(module, t_xs, t_states)
    (t_ys * torch.tensor(np.asarray(w_ys))).sum().backward()
    finals = [
        type(flat[0])(*(final.detach().numpy()[i] for final in t_finals)) for i in range(len(flat))
    ]

    def our_loss(params: Any, xs: jax.Array) -> Any:
        out = rnnjax.unroll(stack, params, xs, carry, lengths=LENGTHS)
        return jnp.vdot(w_ys, out[1]), out

    (d_params, d_xs), actual = jax.jit(jax.grad(our_loss, argnums=(0, 1), has_aux=True))(params, xs)
    expected = (Directions(*finals[:2]), Directions(*finals[2:])), t_ys.detach().numpy()
    assert_close(actual, expected, TOLERANCE)
    named: dict[str, Any] = {}
    for both, gradients in zip(places, d_params, strict=True):
        for place, gradient in zip(both, gradients, strict=True):
            named |= to_torch_gradients(gradient, place)
    expected_gradients = {key: p.grad.numpy() for key, p in module.named_parameters()}
    assert_close((named, d_xs), (expected_gradients, t_xs.grad.numpy()), TOLERANCE)
