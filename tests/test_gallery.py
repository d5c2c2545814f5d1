"""The gallery: each of its recurrences beside a plain loop of NumPy, written from its equation.

The cells are those of the pages. The last block of a page has the laws check them, in `make docs`.
"""

import ast
import functools
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rnnjax

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
TIME, ROWS, FEATURES, UNITS = 6, 2, 3, 4
LENGTHS = np.array([6, 4])
RESETS = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [0, 0], [0, 0]], bool)
Params, State = dict[str, np.ndarray], tuple[Any, ...]
Step = Callable[[Params, np.ndarray, State], tuple[State, np.ndarray]]


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def blocks(page: str) -> list[str]:
    text = (GALLERY / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@functools.cache
def names(page: str) -> dict[str, Any]:
    """Run all blocks of a page except the last, which checks the cells, and return their names."""
    defined: dict[str, Any] = {"__name__": page}
    for block in blocks(page)[:-1]:
        exec(compile(block, f"docs/gallery/{page}.md", "exec"), defined)
    return defined


# ---- the recurrences, from their papers

CASES: dict[str, tuple[str, Any, Step]] = {}
FUNCTIONS: dict[str, str] = {}  # those without a cell, each with a test of its own


def recurrence(page: str, name: str, **hyperparameters: Any) -> Callable[[Step], Step]:
    """A step in NumPy is that of this cell of this page."""

    def add(step: Step) -> Step:
        CASES[name] = page, lambda: names(page)[name](UNITS, **hyperparameters), step
        return step

    return add


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def parts(p: Params, *counts: int) -> list[Any]:
    """The matrices of the gates: of inputs, of the state, and biases, each in so many parts."""
    found = ("kernel", "recurrent_kernel", "bias")
    return [np.split(p[n], c, -1) for n, c in zip(found, counts, strict=True) if c]


def sums(p: Params, x: Any, h: Any, gates: int) -> list[Any]:
    """Return x W + h U + b for each gate."""
    W, U, b = parts(p, gates, gates, gates)
    return [x @ W[i] + h @ U[i] + b[i] for i in range(gates)]


@recurrence("gated", "UGRNNCell")
def ugrnn(p: Params, x: Any, s: State) -> Any:
    g, c = sums(p, x, s[0], 2)
    h = sigmoid(g) * s[0] + (1 - sigmoid(g)) * np.tanh(c)
    return (h,), h


@recurrence("gated", "JANETCell", beta=0.7)
def janet(p: Params, x: Any, s: State) -> Any:
    gate, c = sums(p, x, s[0], 2)
    h = sigmoid(gate) * s[0] + (1 - sigmoid(gate - 0.7)) * np.tanh(c)
    return (h,), h


@recurrence("gated", "SubLSTMCell")
def sub_lstm(p: Params, x: Any, s: State) -> Any:
    i, f, z, o = map(sigmoid, sums(p, x, s[0], 4))
    c = f * s[1] + z - i
    h = sigmoid(c) - o
    return (h, c), h


@recurrence("gated", "CoupledLSTMCell")
def coupled(p: Params, x: Any, s: State) -> Any:
    i, g, o = sums(p, x, s[0], 3)
    c = (1 - sigmoid(i)) * s[1] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


@recurrence("gated", "LiGRUCell")
def li_gru(p: Params, x: Any, s: State) -> Any:
    z, n = sums(p, x, s[0], 2)
    h = sigmoid(z) * s[0] + (1 - sigmoid(z)) * relu(n)
    return (h,), h


@recurrence("gated", "FastGRNNCell")
def fast_grnn(p: Params, x: Any, s: State) -> Any:
    pre, (zeta, nu), (b_z, b_n) = (
        x @ p["kernel"] + s[0] @ p["recurrent_kernel"],
        p["mix"],
        p["biases"],
    )
    z, n = sigmoid(pre + b_z), np.tanh(pre + b_n)
    h = (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * n + z * s[0]
    return (h,), h


@recurrence("gated", "RANCell")
def ran(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    U = np.split(p["gate_kernel"], 2, -1)
    i, f = (sigmoid(x @ W[k] + s[0] @ U[k] + b[k]) for k in range(2))
    c = i * (x @ W[2] + b[2]) + f * s[1]
    return (np.tanh(c), c), np.tanh(c)


@recurrence("gated", "ATRCell")
def atr(p: Params, x: Any, s: State) -> Any:
    a, q = x @ p["kernel"] + p["bias"], s[0] @ p["recurrent_kernel"]
    h = sigmoid(a + q) * a + sigmoid(a - q) * s[0]
    return (h,), h


@recurrence("gated", "MIRNNCell")
def mi_rnn(p: Params, x: Any, s: State) -> Any:
    wx, uh, (alpha, beta1, beta2, b) = x @ p["kernel"], s[0] @ p["recurrent_kernel"], p["mix"]
    h = np.tanh(alpha * wx * uh + beta1 * uh + beta2 * wx + b)
    return (h,), h


@recurrence("gated", "MultiplicativeLSTMCell")
def multiplicative_lstm(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 5, 0, 5)
    U = np.split(p["gate_kernel"], 4, -1)
    m = (x @ W[0] + b[0]) * (s[0] @ p["factor"])
    i, f, g, o = (x @ W[k + 1] + m @ U[k] + b[k + 1] for k in range(4))
    c = sigmoid(f) * s[1] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


@recurrence("gated", "MUT1Cell")
def mut1(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    z = sigmoid(x @ W[0] + b[0])
    r = sigmoid(x @ W[1] + s[0] @ p["reset"] + b[1])
    new = np.tanh((r * s[0]) @ p["candidate"] + np.tanh(x @ W[2] + b[2]))
    h = z * new + (1 - z) * s[0]
    return (h,), h


@recurrence("gated", "MUT3Cell")
def mut3(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    z = sigmoid(x @ W[0] + np.tanh(s[0]) @ p["keep"] + b[0])
    r = sigmoid(x @ W[1] + s[0] @ p["reset"] + b[1])
    new = np.tanh((r * s[0]) @ p["candidate"] + x @ W[2] + b[2])
    h = z * new + (1 - z) * s[0]
    return (h,), h


@recurrence("gated", "MinimalRNNCell")
def minimal_rnn(p: Params, x: Any, s: State) -> Any:
    z = np.tanh(x @ p["kernel"] + p["bias"])
    u = sigmoid(s[0] @ p["recurrent_kernel"] + z @ p["embedded_kernel"])
    h = u * s[0] + (1 - u) * z
    return (h,), h


@recurrence("gated", "STARCell")
def star(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 2, 0, 2)
    z, k = np.tanh(x @ W[0] + b[0]), sigmoid(x @ W[1] + s[0] @ p["gate_kernel"] + b[1])
    h = np.tanh((1 - k) * s[0] + k * z)
    return (h,), h


@recurrence("gated", "CFNCell")
def chaos_free(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    U = np.split(p["gate_kernel"], 2, -1)
    theta, eta = (sigmoid(x @ W[k] + s[0] @ U[k] + b[k]) for k in range(2))
    h = theta * np.tanh(s[0]) + eta * np.tanh(x @ W[2] + b[2])
    return (h,), h


@recurrence("gated", "BRCCell")
def bistable(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    a = 1 + np.tanh(x @ W[0] + p["own"][0] * s[0] + b[0])
    c = sigmoid(x @ W[1] + p["own"][1] * s[0] + b[1])
    h = c * s[0] + (1 - c) * np.tanh(x @ W[2] + a * s[0] + b[2])
    return (h,), h


@recurrence("gated", "IndRNNCell")
def independent(p: Params, x: Any, s: State) -> Any:
    h = relu(x @ p["kernel"] + p["own"] * s[0] + p["bias"])
    return (h,), h


@recurrence("gated", "DiagonalGRUCell")
def diagonal_gru(p: Params, x: Any, s: State) -> Any:
    (W, b), (U_r, U_z, U_n), (h,) = parts(p, 3, 0, 3), map(np.diag, p["own"]), s
    r, z = sigmoid(x @ W[0] + h @ U_r + b[0]), sigmoid(x @ W[1] + h @ U_z + b[1])
    h = (1 - z) * np.tanh(x @ W[2] + (r * h) @ U_n + b[2]) + z * h
    return (h,), h


@recurrence("gated", "BlockGRUCell", blocks=2)
def block_gru(p: Params, x: Any, s: State) -> Any:
    new = []
    for g, h in enumerate(np.split(s[0], 2, -1)):
        W, b = (np.split(p[name], 2, -1)[g] for name in ("kernel", "bias"))
        r, c, u = np.split(x @ W + b + h @ p["block_kernel"][g], 3, -1)
        u = sigmoid(u - 1)
        new.append(u * np.tanh(sigmoid(r) * c) + (1 - u) * h)
    h = np.concatenate(new, -1)
    return (h,), h


# ---- a matrix as the state: S (rows, heads, values, keys)


def heads(p: Params, x: Any, gates: int) -> list[Any]:
    """The gates of two heads, (rows, 2, 2)."""
    return [part.reshape(ROWS, 2, 2) for part in np.split(x @ p["kernel"] + p["bias"], gates, -1)]


def outer(v: Any, k: Any) -> Any:
    return v[..., :, None] * k[..., None, :]


def apply(S: Any, q: Any) -> Any:
    return np.einsum("...vk,...k->...v", S, q)


def diagonal(a: Any) -> Any:
    return a[..., None] * np.eye(a.shape[-1])


def unit(x: Any) -> Any:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def scalar(x: Any) -> Any:
    """The number of a head, to scale its matrix."""
    return x[..., :1, None]


@recurrence("matrix", "LinearAttentionCell")
def linear_attention(p: Params, x: Any, s: State) -> Any:
    q, k, v = heads(p, x, 3)
    q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q, k))
    S, z = s[0][..., :-1, :] + outer(v, k), s[0][..., -1, :] + k
    y = apply(S, q) / (z * q).sum(-1, keepdims=True)
    return (np.concatenate([S, z[..., None, :]], -2),), y.reshape(ROWS, -1)


@recurrence("matrix", "RetNetCell")
def ret_net(p: Params, x: Any, s: State) -> Any:
    q, k, v = heads(p, x, 3)
    S = np.array([1 - 1 / 32, 1 - 1 / 64])[:, None, None] * s[0] + outer(v, k) / np.sqrt(2)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "SimpleGLACell")
def simple_gla(p: Params, x: Any, s: State) -> Any:
    q, k, v, a = heads(p, x, 4)
    S = sigmoid(scalar(a)) * s[0] + outer(v, k)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "GLACell")
def gla(p: Params, x: Any, s: State) -> Any:
    q, k, a, v, r = heads(p, x, 5)
    S = s[0] @ diagonal(sigmoid(a) ** (1 / 16)) + outer(v, k)
    read = apply(S, q / np.sqrt(2))
    norm = read / np.sqrt((read * read).mean(-1, keepdims=True) + 1e-5)
    return (S,), (silu(r) * norm).reshape(ROWS, -1)


@recurrence("matrix", "HGRN2Cell", floor=0.3)
def hgrn2(p: Params, x: Any, s: State) -> Any:
    q, a, v = heads(p, x, 3)
    f = 0.3 + 0.7 * sigmoid(a)
    S = s[0] @ diagonal(f) + outer(v, 1 - f)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "DeltaNetCell", most=2.0)
def delta_net(p: Params, x: Any, s: State) -> Any:
    q, k, v, b = heads(p, x, 4)
    q, k, beta = unit(silu(q)), unit(silu(k)), 2 * sigmoid(scalar(b))
    S = s[0] @ (np.eye(2) - beta * outer(k, k)) + beta * outer(v, k)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "KDACell")
def kimi_delta(p: Params, x: Any, s: State) -> Any:
    q, k, v, a, b = heads(p, x, 5)
    q, k, beta = unit(silu(q)), unit(silu(k)), sigmoid(scalar(b))
    S = s[0] @ diagonal(np.exp(-softplus(a))) @ (np.eye(2) - beta * outer(k, k))
    S = S + beta * outer(v, k)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "GatedDeltaNet2Cell")
def gated_delta_net2(p: Params, x: Any, s: State) -> Any:
    q, k, v, a, e, w = heads(p, x, 6)
    q, k = unit(silu(q)), unit(silu(k))
    S = s[0] @ diagonal(np.exp(-softplus(a))) @ (np.eye(2) - outer(sigmoid(e) * k, k))
    S = S + outer(sigmoid(w) * v, k)
    return (S,), apply(S, q).reshape(ROWS, -1)


@recurrence("matrix", "CombaCell")
def comba(p: Params, x: Any, s: State) -> Any:
    q, k, v, a, beta = heads(p, x, 5)
    (b, d), q, k = p["control"], unit(silu(q)), unit(silu(k))
    alpha, beta = np.exp(-softplus(scalar(a))), sigmoid(scalar(beta))
    S = s[0] @ (alpha * np.eye(2) - sigmoid(b)[..., None] * beta * outer(k, k))
    S = S + beta * outer(v, k)
    return (S,), apply(S, q - d * k).reshape(ROWS, -1)


@recurrence("matrix", "LonghornCell")
def longhorn(p: Params, x: Any, s: State) -> Any:
    q, k, v, b = np.split(x @ p["kernel"] + p["bias"], 4, -1)
    delta = sigmoid(b) / (1 + sigmoid(b) * (k * k).sum(-1, keepdims=True))
    S = (1 - outer(delta, k * k)) * s[0] + outer(delta * v, k)
    return (S,), apply(S, q)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Numbers between 0.1 and 1."""
    rng = np.random.default_rng(4)
    return [rng.uniform(0.1, 1, (TIME, *shape)) for shape in shapes]


def as_function(page: str, name: str) -> Callable[[Any], Any]:
    def add(test: Any) -> Any:
        FUNCTIONS[name] = page
        return test

    return add


@as_function("matrix", "delta_product")
def test_delta_product_is_several_delta_rules_a_step(assert_close: Any) -> None:
    writes, row = 3, (ROWS, 2, 4)
    given = arrays(row, (writes, *row), (writes, *row), (writes, ROWS, 2))

    def step(at: Any, s: State) -> Any:
        (q, k, v, beta), S = at, s[0]
        for j in range(writes):
            b, key = beta[j][..., None, None], unit(k[j])
            S = S @ (np.eye(4) - b * outer(key, key)) + b * outer(v[j], key)
        return (S,), apply(S, q)

    run = jax.jit(
        lambda given: names("matrix")["delta_product"](*given, resets=RESETS, lengths=LENGTHS)
    )
    carry, ys = run(given)
    assert_close(((carry.memory,), ys), loop(step, (np.zeros((ROWS, 2, 4, 4)),), given), 1e-12)


@as_function("matrix", "rwkv7")
def test_rwkv7_erases_at_a_key_of_its_own(assert_close: Any) -> None:
    given = arrays(*[(ROWS, 2, 4)] * 6)

    def step(at: Any, s: State) -> Any:
        r, w, k, v, kappa, a = at
        kappa = unit(kappa)
        S = s[0] @ (diagonal(w) - outer(kappa, a * kappa)) + outer(v, k)
        return (S,), apply(S, r)

    run = jax.jit(lambda given: names("matrix")["rwkv7"](*given, resets=RESETS, lengths=LENGTHS))
    carry, ys = run(given)
    assert_close(((carry.memory,), ys), loop(step, (np.zeros((ROWS, 2, 4, 4)),), given), 1e-12)


# ---- time as an input


def gapped(x: Any) -> tuple[Any, Any]:
    return x[:, :-1], x[:, -1:]


@recurrence("time", "RNNDecayCell")
def rnn_decay(p: Params, x: Any, s: State) -> Any:
    x, gap = gapped(x)
    h = s[0] * np.exp(-softplus(p["speed"]) * gap)
    h = np.tanh(x @ p["kernel"] + h @ p["own"] + p["bias"])
    return (h,), h


@recurrence("time", "ODERNNCell")
def ode_rnn(p: Params, x: Any, s: State) -> Any:
    x, gap = gapped(x)
    h = s[0] + gap * np.tanh(s[0] @ p["flow"])
    h = np.tanh(x @ p["kernel"] + h @ p["own"] + p["bias"])
    return (h,), h


@recurrence("time", "CfCCell")
def closed_form(p: Params, x: Any, s: State) -> Any:
    x, gap = gapped(x)
    f, g, k = sums(p, x, s[0], 3)
    early = sigmoid(-f * gap)
    h = early * np.tanh(g) + (1 - early) * np.tanh(k)
    return (h,), h


@recurrence("time", "LTCCell")
def liquid(p: Params, x: Any, s: State) -> Any:
    x, gap = gapped(x)
    f, (level, speed) = sigmoid(sums(p, x, s[0], 1)[0]), p["level"]
    h = (s[0] + gap * f * level) / (1 + gap * (1 / softplus(speed) + f))
    return (h,), h


def lstm(p: Params, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = sums(p, x, h, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@recurrence("time", "TimeAwareLSTMCell")
def time_aware(p: Params, x: Any, s: State) -> Any:
    x, gap = gapped(x)
    short = np.tanh(s[1] @ p["short_kernel"] + p["short_bias"])
    h, c = lstm(p, x, s[0], s[1] - short + short / np.log(np.e + gap))
    return (h, c), h


@recurrence("time", "PhasedLSTMCell", ratio=0.4)
def phased(p: Params, x: Any, s: State) -> Any:
    x, time = gapped(x)
    tau, r = np.exp(p["clock"][0]), 0.4
    phi = np.mod(time - p["clock"][1], tau) / tau
    k = np.where(phi < r / 2, 2 * phi / r, np.where(phi < r, 2 - 2 * phi / r, 0.001 * phi))
    h, c = lstm(p, x, *s)
    h, c = k * h + (1 - k) * s[0], k * c + (1 - k) * s[1]
    return (h, c), h


@recurrence("time", "ClockworkCell", periods=(1, 3))
def clockwork(p: Params, x: Any, s: State) -> Any:
    slow = p["own"][2:]  # all that the slow module hears
    new = np.tanh(x @ p["kernel"] + s[0][:, 2:] @ slow + p["bias"])
    own = x @ p["kernel"] + s[0] @ p["own"] + p["bias"]
    new[:, :2] = np.tanh(own[:, :2])
    h = np.where(np.concatenate([s[1][:, :2] % 1, s[1][:, 2:] % 3], -1) == 0, new, s[0])
    return (h, s[1] + 1), h


@as_function("time", "ImputeCell")
@as_function("time", "DecayGRUCell")
def test_gru_d_is_a_cell_that_imputes_and_one_that_decays(
    random_like: Any, assert_close: Any
) -> None:
    cell = names("time")["gru_d"]
    first, second = params = jax.device_get(
        random_like(lambda: cell.init(jax.random.key(0), 6), 1, "float64")
    )
    rng = np.random.default_rng(3)
    shape = TIME, ROWS, 2
    x, seen, gap = rng.normal(size=shape), rng.random(shape) < 0.5, rng.random(shape)

    def step(at: Any, s: State) -> Any:
        (x, m, gap), (last, h) = at, s
        fade = np.exp(-relu(first["fade"][0] * gap + first["fade"][1]))
        filled = np.concatenate([m * x + (1 - m) * fade * last, m], -1)
        h = np.exp(-relu(gap @ second["gap"])) * h
        W, b = parts(second, 3, 0, 3)
        U = np.split(second["gates"], 2, -1)
        r, z = (sigmoid(filled @ W[k] + h @ U[k] + b[k]) for k in range(2))
        h = (1 - z) * h + z * np.tanh(filled @ W[2] + (r * h) @ second["new"] + b[2])
        return (m * x + (1 - m) * last, h), h

    run = jax.jit(
        lambda params, xs: rnnjax.unroll(cell, params, xs, lengths=LENGTHS, resets=RESETS)
    )
    (imputed, decayed), ys = run(params, np.concatenate([x, seen, gap], -1))
    start = np.zeros((ROWS, 2)), np.zeros((ROWS, UNITS))
    expected = loop(step, start, (x, seen, gap))
    assert_close(((imputed.hidden, decayed.hidden), ys), expected, 1e-12)


# ---- linear in the state


@recurrence("linear", "TRNNCell")
def strongly_typed(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 2, 0, 2)
    f = sigmoid(x @ W[1] + b[1])
    h = f * s[0] + (1 - f) * (x @ W[0] + b[0])
    return (h,), h


@recurrence("linear", "GILRCell")
def impulses(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 2, 0, 2)
    g = sigmoid(x @ W[0] + b[0])
    h = g * s[0] + (1 - g) * np.tanh(x @ W[1] + b[1])
    return (h,), h


@recurrence("linear", "QRNNCell")
def quasi_recurrent(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    f, o = (sigmoid(x @ W[i] + b[i]) for i in (1, 2))
    h = f * s[0] + (1 - f) * np.tanh(x @ W[0] + b[0])
    return (h,), o * h


@recurrence("linear", "SRUCell")
def simple_recurrent_unit(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 4, 0, 4)
    z, f, r, n = (x @ W[i] + b[i] for i in range(4))
    h = sigmoid(f) * s[0] + (1 - sigmoid(f)) * z
    return (h,), sigmoid(r) * h + (1 - sigmoid(r)) * n


@recurrence("linear", "HGRNCell", floor=0.3)
def hgrn(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 5, 0, 5)
    f, n, m, *g = (x @ W[i] + b[i] for i in range(5))
    f = 0.3 + 0.7 * sigmoid(f)
    new = f * np.exp(1j * p["turn"]) * (s[0] + 1j * s[1]) + (1 - f) * (silu(n) + 1j * silu(m))
    state = new.real, new.imag
    return state, sigmoid(np.concatenate(g, -1)) * np.concatenate(state, -1)


@recurrence("linear", "RWKV4Cell")
def rwkv4(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 3, 0, 3)
    r, k, v = (x @ W[i] + b[i] for i in range(3))
    w, u = np.exp(p["time"][0]), p["time"][1]
    y = sigmoid(r) * (s[0] + np.exp(u + k) * v) / (s[1] + np.exp(u + k))
    return (np.exp(-w) * s[0] + np.exp(k) * v, np.exp(-w) * s[1] + np.exp(k)), y


@recurrence("linear", "MegaEMACell", averages=3)
def moving_average(p: Params, x: Any, s: State) -> Any:
    alpha, delta, beta, eta = p["average"]
    alpha, delta = sigmoid(alpha), sigmoid(delta)
    u = beta * (x @ p["kernel"] + p["bias"])[..., None]
    h = alpha * u + (1 - alpha * delta) * s[0]
    return (h,), np.einsum("ij,...ij->...i", eta, h)


@recurrence("linear", "LinOSSCell")
def lin_oss(p: Params, x: Any, s: State) -> Any:
    (a, d), (y, z) = p["spring"], s
    dt = sigmoid(d)
    z = z + dt * (-relu(a) * y + x @ p["kernel"] + p["bias"])
    y = y + dt * z
    return (y, z), y


@as_function("linear", "legendre_memory")
def test_legendre_memory_is_its_matrix(assert_close: Any) -> None:
    order, theta = 3, 8.0
    A, B = np.zeros((order, order)), np.zeros((order, 1))
    for i in range(order):
        B[i] = (2 * i + 1) * (-1) ** i
        for j in range(order):
            A[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1))
    us = np.random.default_rng(5).normal(size=(TIME, ROWS, 2))

    def step(u: Any, s: State) -> Any:
        m = s[0] + s[0] @ A.T / theta + u[..., None] @ B.T / theta
        return (m,), m

    run = jax.jit(
        lambda us: names("linear")["legendre_memory"](
            us, order, theta, lengths=LENGTHS, resets=RESETS
        )
    )
    last, every = run(us)
    assert_close(((last,), every), loop(step, (np.zeros((ROWS, 2, order)),), us), 1e-12)


@as_function("linear", "griffin")
def test_griffin_is_a_gate_beside_a_convolution_and_a_recurrence(assert_close: Any) -> None:
    rng = np.random.default_rng(6)

    def drawn(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {name: rng.normal(size=shape) for name, shape in shapes.items()}

    conv = drawn(kernel=(3, 4), bias=(4,), taps=(4, 4), taps_bias=(4,))
    own = drawn(kernel=(4, 12), bias=(12,), decay=(4,))
    out = drawn(gate_kernel=(3, 4), gate_bias=(4,), out_kernel=(4, 5), out_bias=(5,))
    xs = rng.normal(size=(TIME, ROWS, 3))

    def step(x: Any, s: State) -> Any:
        *window, h = s
        u = x @ conv["kernel"] + conv["bias"]
        seen = (u, *window)
        v = sum(k * w for k, w in zip(conv["taps"][::-1], seen, strict=True)) + conv["taps_bias"]
        r, i, n = np.split(v @ own["kernel"] + own["bias"], 3, -1)
        a = np.exp(-8 * softplus(own["decay"]) * sigmoid(r))
        h = a * h + np.sqrt(1 - a**2) * sigmoid(i) * n
        z = x @ out["gate_kernel"] + out["gate_bias"]
        gate = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        return (*seen[:3], h), (gate * h) @ out["out_kernel"]

    params = {**out, "convolution": conv, "recurrence": own}
    run = jax.jit(
        lambda params, xs: names("linear")["griffin"](params, xs, lengths=LENGTHS, resets=RESETS)
    )
    (window, state), ys = run(params, xs)
    expected = loop(step, (np.zeros((ROWS, 4)),) * 4, xs)
    assert_close(((*window, *state), ys - out["out_bias"]), expected, 1e-12)


# ---- from differential equations, and reservoirs


@recurrence("dynamics", "AntisymmetricRNNCell", epsilon=0.2, gamma=0.3)
def antisymmetric(p: Params, x: Any, s: State) -> Any:
    U = p["turn"] - p["turn"].T - 0.3 * np.eye(UNITS)
    h = s[0] + 0.2 * np.tanh(x @ p["kernel"] + s[0] @ U + p["bias"])
    return (h,), h


@recurrence("dynamics", "LipschitzRNNCell")
def lipschitz(p: Params, x: Any, s: State) -> Any:
    def mixed(M: Any) -> Any:
        return 0.25 * (M + M.T) + 0.75 * (M - M.T) - 0.001 * np.eye(UNITS)

    A, U = map(mixed, p["pair"])
    h = s[0] + 0.1 * (s[0] @ A + np.tanh(x @ p["kernel"] + s[0] @ U + p["bias"]))
    return (h,), h


@recurrence("dynamics", "CoRNNCell", dt=0.1, gamma=1.5, epsilon=3.0)
def coupled_oscillators(p: Params, x: Any, s: State) -> Any:
    y, z = s
    pre = y @ p["recurrent_kernel"] + z @ p["speed"] + x @ p["kernel"] + p["bias"]
    z = z + 0.1 * (np.tanh(pre) - 1.5 * y - 3.0 * z)
    y = y + 0.1 * z
    return (y, z), y


@recurrence("dynamics", "UnICORNNCell", dt=0.2, alpha=0.7)
def unicornn(p: Params, x: Any, s: State) -> Any:
    (w, c), (y, z) = p["own"], s
    z = z - 0.2 * sigmoid(c) * (np.tanh(w * y + x @ p["kernel"] + p["bias"]) + 0.7 * y)
    y = y + 0.2 * sigmoid(c) * z
    return (y, z), y


@recurrence("dynamics", "LEMCell")
def long_expressive(p: Params, x: Any, s: State) -> Any:
    W, b = parts(p, 4, 0, 4)
    U = np.split(p["from_y"], 3, -1)
    y, z = s
    dt1, dt2 = (sigmoid(x @ W[i] + y @ U[i] + b[i]) for i in range(2))
    z = (1 - dt1) * z + dt1 * np.tanh(x @ W[2] + y @ U[2] + b[2])
    y = (1 - dt2) * y + dt2 * np.tanh(x @ W[3] + z @ p["from_z"] + b[3])
    return (y, z), y


@recurrence("dynamics", "EchoStateCell", leak=0.4)
def echo_state(p: Params, x: Any, s: State) -> Any:
    h = 0.6 * s[0] + 0.4 * np.tanh(sums(p, x, s[0], 1)[0])
    return (h,), h


@as_function("dynamics", "reservoir")
def test_a_reservoir_has_its_radius_and_holes() -> None:
    kernel = np.asarray(names("dynamics")["reservoir"](jax.random.key(0), (60, 60), "float64"))
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(kernel)).max(), 0.9, rtol=1e-6)
    assert 0.05 < np.mean(kernel != 0) < 0.15


@recurrence("dynamics", "CycleReservoirCell", weight=0.8)
def cycle(p: Params, x: Any, s: State) -> Any:
    ring = np.zeros((UNITS, UNITS))
    for i in range(UNITS):
        ring[i - 1, i] = 0.8  # from the one before
    h = np.tanh(x @ p["kernel"] + s[0] @ ring)
    return (h,), h


@recurrence("dynamics", "JordanCell", outputs=3)
def jordan(p: Params, x: Any, s: State) -> Any:
    y = np.tanh(np.tanh(sums(p, x, s[0], 1)[0]) @ p["out"])
    return (y,), y


# ---- the tests


def loop(step: Step, start: State, arrays: Any) -> Any:
    """All outputs of a step of NumPy, with the resets and lengths, and the last state."""
    state, ys = start, []
    for t in range(TIME):
        again, valid = RESETS[t], t < LENGTHS

        def choose(mark: Any, one: Any, other: Any) -> Any:
            return np.where(np.reshape(mark, (ROWS, *[1] * (np.ndim(one) - 1))), one, other)

        state = tuple(choose(again, a, s) for a, s in zip(start, state, strict=True))
        new, y = step(jax.tree.map(lambda leaf, t=t: leaf[t], arrays), state)
        state = tuple(choose(valid, n, s) for n, s in zip(new, state, strict=True))
        ys.append(choose(valid, y, np.zeros_like(y)))
    return state, np.stack(ys)


@pytest.mark.parametrize("name", CASES)
def test_a_cell_is_its_equation(name: str, random_like: Any, assert_close: Any) -> None:
    _, make, step = CASES[name]
    cell = make()
    raw = getattr(cell, "raw_inputs", 0)
    size = FEATURES + raw if cell.gates else raw
    params = jax.device_get(random_like(lambda: cell.init(jax.random.key(0), size), 1, "float64"))
    start = jax.device_get(random_like(lambda: cell.initial_carry((ROWS,)), 2, "float64"))
    start = jax.tree.map(np.zeros_like, start)
    xs = np.random.default_rng(3).normal(size=(TIME, ROWS, size))
    xs[..., size - raw :] = np.abs(xs[..., size - raw :])  # gaps
    (last, ys) = jax.jit(
        lambda params, xs: rnnjax.unroll(cell, params, xs, lengths=LENGTHS, resets=RESETS)
    )(params, xs)
    expected = loop(functools.partial(step, params), tuple(start), xs)
    assert_close((tuple(last), ys), expected, 1e-12)


def defined(page: str) -> dict[str, tuple[int, bool]]:
    """Lines of code of each class and function of a page, and whether it is one of its head."""
    found = {}
    for i, block in enumerate(blocks(page)):
        lines = block.splitlines()
        for node in ast.parse(block).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                code = [line for line in lines[first - 1 : node.end_lineno] if line.strip()]
                found[node.name] = len(code), i == 0
    return found


def test_recurrences_are_many_and_short_and_each_is_tested() -> None:
    pages = [path.stem for path in GALLERY.glob("*.md") if path.stem != "index"]
    every = {name: at for page in pages for name, at in defined(page).items()}
    shown = {name: lines for name, (lines, head) in every.items() if not head}
    assert sorted(shown) == sorted([*CASES, *FUNCTIONS])
    assert len(shown) > 45
    assert max(shown.values()) <= 15, shown
    assert statistics.median(shown.values()) <= 12, shown


def test_every_cell_is_checked_by_its_page() -> None:
    pages = {name: page for name, (page, _, _) in CASES.items()} | FUNCTIONS
    for name, page in pages.items():
        assert f"{name}(" in blocks(page)[-1], name
