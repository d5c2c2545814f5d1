"""RNN, LSTM and GRU of one and two layers against PyTorch, run live."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Fused, GRUCell, LSTMCell, Scan, SimpleRNNCell, Stack

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")

BATCH, TIME, FEATURES, HIDDEN = 3, 5, 2, 4
TOLERANCE = 1e-5  # of the largest entry of each array

CASES = {
    "simple": (SimpleRNNCell(HIDDEN), "RNN", {}),
    "simple-relu": (SimpleRNNCell(HIDDEN, activation="relu"), "RNN", {"nonlinearity": "relu"}),
    "lstm": (LSTMCell(HIDDEN), "LSTM", {}),
    "lstm-no-bias": (LSTMCell(HIDDEN, use_bias=False), "LSTM", {"bias": False}),
    "gru": (GRUCell(HIDDEN), "GRU", {}),
    "gru-no-bias": (GRUCell(HIDDEN, use_bias=False), "GRU", {"bias": False}),
}


def from_torch(cell: rnnjax.Cell, arrays: dict[str, np.ndarray], layer: int) -> Any:
    """Our parameters of a layer: kernels transposed; all but the GRU add torch's two biases."""
    params = {
        "kernel": arrays[f"weight_ih_l{layer}"].T,
        "recurrent_kernel": arrays[f"weight_hh_l{layer}"].T,
    }
    if cell.use_bias:
        x_bias, h_bias = arrays[f"bias_ih_l{layer}"], arrays[f"bias_hh_l{layer}"]
        if isinstance(cell, GRUCell):
            params |= {"bias": x_bias, "recurrent_bias": h_bias}
        else:
            params |= {"bias": x_bias + h_bias}
    return jax.tree.map(jnp.asarray, params)


def to_torch_gradients(cell: rnnjax.Cell, gradients: Any, layer: int) -> dict[str, Any]:
    """The gradients of torch's parameters: where a sum is our bias, each of its terms has ours."""
    named = {
        f"weight_ih_l{layer}": gradients["kernel"].T,
        f"weight_hh_l{layer}": gradients["recurrent_kernel"].T,
    }
    if cell.use_bias:
        named[f"bias_ih_l{layer}"] = gradients["bias"]
        named[f"bias_hh_l{layer}"] = gradients.get("recurrent_bias", gradients["bias"])
    return named


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(
    name: str, num_layers: int, random_like: Callable[..., Any], assert_close: Any
) -> None:
    cell, kind, options = CASES[name]
    module = getattr(torch.nn, kind)(FEATURES, HIDDEN, num_layers, **options)
    rng = np.random.default_rng(0)
    arrays = {
        key: 0.6 * rng.standard_normal(p.shape, np.float32) for key, p in module.named_parameters()
    }
    module.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})

    stack = Stack([cell] * num_layers)
    params = tuple(from_torch(cell, arrays, layer) for layer in range(num_layers))
    state = stack.initial_carry((BATCH,))
    ys = jnp.zeros((TIME, BATCH, HIDDEN))
    xs, carry, w_ys, w_carry = (
        random_like(tree, seed)
        for seed, tree in enumerate((jnp.zeros((TIME, BATCH, FEATURES)), state, ys, state))
    )

    # Torch keeps the states of all layers in one array, one array for h and one for c.
    t_xs = torch.tensor(np.asarray(xs), requires_grad=True)
    t_states = [
        torch.tensor(np.stack([np.asarray(entry[k]) for entry in carry]), requires_grad=True)
        for k in range(len(carry[0]))
    ]
    t_ys, t_finals = module(t_xs, tuple(t_states) if kind == "LSTM" else t_states[0])
    t_finals = t_finals if kind == "LSTM" else (t_finals,)
    loss = (t_ys * torch.tensor(np.asarray(w_ys))).sum()
    for k, final in enumerate(t_finals):
        weights = np.stack([np.asarray(entry[k]) for entry in w_carry])
        loss = loss + (final * torch.tensor(weights)).sum()
    loss.backward()

    def by_layer(arrays: Any) -> Any:
        return tuple(
            type(carry[layer])(*(array.detach().numpy()[layer] for array in arrays))
            for layer in range(num_layers)
        )

    expected = by_layer(t_finals), t_ys.detach().numpy()
    expected_gradients = (
        {key: p.grad.numpy() for key, p in module.named_parameters()},
        t_xs.grad.numpy(),
        by_layer([state.grad for state in t_states]),
    )
    for method in (Scan(), Fused()):

        def our_loss(params: Any, xs: jax.Array, carry: Any, method: Any = method) -> Any:
            out = rnnjax.unroll(stack, params, xs, carry, method=method)
            terms = jax.tree.map(jnp.vdot, (w_carry, w_ys), out)
            return sum(jax.tree.leaves(terms)), out

        (d_params, *rest), actual = jax.jit(jax.grad(our_loss, argnums=(0, 1, 2), has_aux=True))(
            params, xs, carry
        )
        named: dict[str, Any] = {}
        for layer in range(num_layers):
            named |= to_torch_gradients(cell, d_params[layer], layer)
        assert_close(actual, expected, TOLERANCE)
        assert_close((named, *rest), expected_gradients, TOLERANCE)
