"""The gallery: each of its recurrences beside a plain loop of NumPy, written from its equation.

The cells are those of the pages. The last block of a page has the laws check them, in `make docs`.
"""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cell_table import alike
from reference import ACTIVATIONS, applied, outer, projected, sigmoid, silu, softplus, sums

import rnnjax

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
TIME, ROWS, FEATURES, UNITS = 6, 2, 3, 4
MARKS = {
    "lengths": np.array([6, 4]),
    "resets": np.array([[0, 0], [0, 0], [1, 0], [0, 1], [0, 0], [0, 0]], bool),
}


pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def blocks(page: str) -> list[str]:
    text = (GALLERY / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@functools.cache
def names(page: str) -> dict[str, Any]:
    """Run all blocks of a page except the last, which checks the cells, and return their names.

    Without what they print: each would run its cell over a hundred steps.
    """
    defined: dict[str, Any] = {"__name__": page}
    for block in blocks(page)[:-1]:
        block = re.sub(r"^left\(.*$", "", block, flags=re.MULTILINE)
        exec(compile(block, f"docs/gallery/{page}.md", "exec"), defined)
    return defined


# ---- the recurrences, from their papers
#
# A class for each page, whose functions have the names of its cells:
# `(parameters, x, *state) -> the new state`, with the output behind it if that is not its first
# array. Of inputs with time gaps x is two arrays. Keywords are hyperparameters of the cell.


relu = ACTIVATIONS["relu"]


def kernels(p, name, gates):
    return np.split(p[name], gates, -1)


def lstm(i, f, g, o, c):
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


class Gated:
    def UGRNNCell(p, x, h):
        g, c = sums(p, x, h, 2)
        return sigmoid(g) * h + (1 - sigmoid(g)) * np.tanh(c)

    def CoupledLSTMCell(p, x, h, c):
        i, g, o = sums(p, x, h, 3)
        c = (1 - sigmoid(i)) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def FastGRNNCell(p, x, h):
        pre, (b_z, b_n) = x @ p["kernel"] + h @ p["recurrent_kernel"], p["biases"]
        z, (zeta, nu) = sigmoid(pre + b_z), sigmoid(p["mix"])
        return (zeta * (1 - z) + nu) * np.tanh(pre + b_n) + z * h

    def RANCell(p, x, h, c):
        (i, f, g), (U_i, U_f) = projected(p, x, 3), kernels(p, "gate_kernel", 2)
        c = sigmoid(i + h @ U_i) * g + sigmoid(f + h @ U_f) * c
        return np.tanh(c), c

    def ATRCell(p, x, h):
        a, q = x @ p["kernel"] + p["bias"], h @ p["recurrent_kernel"]
        return sigmoid(a + q) * a + sigmoid(a - q) * h

    def MIRNNCell(p, x, h):
        wx, uh, (alpha, beta1, beta2, b) = x @ p["kernel"], h @ p["recurrent_kernel"], p["mix"]
        return np.tanh(alpha * wx * uh + beta1 * uh + beta2 * wx + b)

    def MultiplicativeLSTMCell(p, x, h, c):
        m, *gates = projected(p, x, 5)
        m = m * (h @ p["factor"])
        gates = (g + m @ U for g, U in zip(gates, kernels(p, "gate_kernel", 4), strict=True))
        return lstm(*gates, c)

    def MUT1Cell(p, x, h):
        z, r, n = projected(p, x, 3)
        z, r = sigmoid(z), sigmoid(r + h @ p["reset"])
        return z * np.tanh((r * h) @ p["candidate"] + np.tanh(n)) + (1 - z) * h

    def MUT3Cell(p, x, h):
        z, r, n = projected(p, x, 3)
        z, r = sigmoid(z + np.tanh(h) @ p["keep"]), sigmoid(r + h @ p["reset"])
        return z * np.tanh((r * h) @ p["candidate"] + n) + (1 - z) * h

    def MinimalRNNCell(p, x, h):
        z = np.tanh(x @ p["kernel"] + p["bias"])
        u = sigmoid(h @ p["recurrent_kernel"] + z @ p["embedded_kernel"])
        return u * h + (1 - u) * z

    def STARCell(p, x, h):
        z, k = projected(p, x, 2)
        k = sigmoid(k + h @ p["gate_kernel"])
        return np.tanh((1 - k) * h + k * np.tanh(z))

    def CFNCell(p, x, h):
        (theta, eta, n), (U_t, U_e) = projected(p, x, 3), kernels(p, "gate_kernel", 2)
        return sigmoid(theta + h @ U_t) * np.tanh(h) + sigmoid(eta + h @ U_e) * np.tanh(n)

    def BRCCell(p, x, h):
        (a, c, n), own = projected(p, x, 3), p["own"]
        a, c = 1 + np.tanh(a + own[0] * h), sigmoid(c + own[1] * h)
        return c * h + (1 - c) * np.tanh(n + a * h)

    def IndRNNCell(p, x, h):
        return relu(x @ p["kernel"] + p["own"] * h + p["bias"])

    def DiagonalGRUCell(p, x, h):
        (r, z, n), (U_r, U_z, U_n) = projected(p, x, 3), map(np.diag, p["own"])
        r, z = sigmoid(r + h @ U_r), sigmoid(z + h @ U_z)
        return (1 - z) * np.tanh(n + (r * h) @ U_n) + z * h

    def BlockGRUCell(p, x, h, *, blocks=2):
        new, W, b = [], kernels(p, "kernel", blocks), kernels(p, "bias", blocks)
        for g, own in enumerate(np.split(h, blocks, -1)):
            r, c, u = np.split(x @ W[g] + b[g] + own @ p["block_kernel"][g], 3, -1)
            u = sigmoid(u - 1)
            new.append(u * np.tanh(sigmoid(r) * c) + (1 - u) * own)
        return np.concatenate(new, -1)


def heads(p, x, gates):
    """The gates of two heads, (rows, 2, 2)."""
    return [part.reshape(ROWS, 2, 2) for part in projected(p, x, gates)]


def diagonal(a):
    return a[..., None] * np.eye(a.shape[-1])


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def scalar(x):
    """The number of a head, to scale its matrix."""
    return x[..., :1, None]


class Matrix:
    """A matrix as the state: S (rows, heads, values, keys)."""

    def LinearAttentionCell(p, x, s):
        q, k, v = heads(p, x, 3)
        q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q, k))
        S, z = s[..., :-1, :] + outer(v, k), s[..., -1, :] + k
        y = applied(S, q) / (z * q).sum(-1, keepdims=True)
        return np.concatenate([S, z[..., None, :]], -2), y

    def RetNetCell(p, x, S):
        q, k, v = heads(p, x, 3)
        S = np.array([1 - 1 / 32, 1 - 1 / 64])[:, None, None] * S + outer(v, k) / np.sqrt(2)
        return S, applied(S, q)

    def GLACell(p, x, S):
        q, k, a, v, r = heads(p, x, 5)
        S = S @ diagonal(sigmoid(a) ** (1 / 16)) + outer(v, k)
        read = applied(S, q / np.sqrt(2))
        return S, silu(r) * read / np.sqrt((read * read).mean(-1, keepdims=True) + 1e-5)

    def HGRN2Cell(p, x, S, *, floor=0.3):
        q, a, v = heads(p, x, 3)
        f = floor + (1 - floor) * sigmoid(a)
        S = S @ diagonal(f) + outer(v, 1 - f)
        return S, applied(S, q)

    def RWKV7Cell(p, x, S):
        r, d, k, v, kappa, a = heads(p, x, 6)
        decay, kappa = np.exp(-np.exp(-0.5) * sigmoid(d)), unit(kappa)
        S = S @ (diagonal(decay) - outer(kappa, sigmoid(a) * kappa)) + outer(v, k)
        return S, applied(S, r)

    def DeltaNetCell(p, x, S, *, most=2.0):
        q, k, v, b = heads(p, x, 4)
        q, k, beta = unit(silu(q)), unit(silu(k)), most * sigmoid(scalar(b))
        S = S @ (np.eye(2) - beta * outer(k, k)) + beta * outer(v, k)
        return S, applied(S, q)

    def KDACell(p, x, S):
        q, k, v, a, b = heads(p, x, 5)
        q, k, beta = unit(silu(q)), unit(silu(k)), sigmoid(scalar(b))
        S = S @ diagonal(np.exp(-softplus(a))) @ (np.eye(2) - beta * outer(k, k))
        S = S + beta * outer(v, k)
        return S, applied(S, q)

    def GatedDeltaNet2Cell(p, x, S):
        q, k, v, a, e, w = heads(p, x, 6)
        q, k = unit(silu(q)), unit(silu(k))
        S = S @ diagonal(np.exp(-softplus(a))) @ (np.eye(2) - outer(sigmoid(e) * k, k))
        S = S + outer(sigmoid(w) * v, k)
        return S, applied(S, q)

    def CombaCell(p, x, S):
        q, k, v, a, beta = heads(p, x, 5)
        (b, d), q, k = p["control"], unit(silu(q)), unit(silu(k))
        alpha, beta = np.exp(-softplus(scalar(a))), sigmoid(scalar(beta))
        S = S @ (alpha * np.eye(2) - sigmoid(b)[..., None] * beta * outer(k, k))
        S = S + beta * outer(v, k)
        return S, applied(S, q - d * k)

    def LonghornCell(p, x, S):
        q, k, v, b = projected(p, x, 4)
        delta = sigmoid(b) / (1 + sigmoid(b) * (k * k).sum(-1, keepdims=True))
        S = (1 - outer(delta, k * k)) * S + outer(delta * v, k)
        return S, applied(S, q)


class Time:
    """Time as an input, behind the others."""

    def RNNDecayCell(p, x, gap, h):
        h = h * np.exp(-softplus(p["speed"]) * gap)
        return np.tanh(x @ p["kernel"] + h @ p["own"] + p["bias"])

    def CfCCell(p, x, gap, h):
        f, g, k = sums(p, x, h, 3)
        early = sigmoid(-f * gap)
        return early * np.tanh(g) + (1 - early) * np.tanh(k)

    def LTCCell(p, x, gap, h):
        f, (level, speed) = sigmoid(sums(p, x, h, 1)[0]), p["level"]
        return (h + gap * f * level) / (1 + gap * (1 / softplus(speed) + f))

    def TimeAwareLSTMCell(p, x, gap, h, c):
        short = np.tanh(c @ p["short_kernel"] + p["short_bias"])
        return lstm(*sums(p, x, h, 4), c - short + short / np.log(np.e + gap))

    def PhasedLSTMCell(p, x, time, h, c, *, ratio=0.4):
        tau, r = np.exp(p["clock"][0]), ratio
        phi = np.mod(time - p["clock"][1], tau) / tau
        k = np.where(phi < r / 2, 2 * phi / r, np.where(phi < r, 2 - 2 * phi / r, 0.001 * phi))
        new = lstm(*sums(p, x, h, 4), c)
        return k * new[0] + (1 - k) * h, k * new[1] + (1 - k) * c

    def ClockworkCell(p, x, h, t, *, periods=(1, 3)):
        slow = p["own"][2:]  # all that the slow module hears
        new = np.tanh(x @ p["kernel"] + h[:, 2:] @ slow + p["bias"])
        own = x @ p["kernel"] + h @ p["own"] + p["bias"]
        new[:, :2] = np.tanh(own[:, :2])
        due = np.concatenate([t[:, :2] % periods[0], t[:, 2:] % periods[1]], -1) == 0
        return np.where(due, new, h), t + 1


class Linear:
    """Linear in the state."""

    def TRNNCell(p, x, h):
        z, f = projected(p, x, 2)
        return sigmoid(f) * h + (1 - sigmoid(f)) * z

    def GILRCell(p, x, h):
        g, n = projected(p, x, 2)
        return sigmoid(g) * h + (1 - sigmoid(g)) * np.tanh(n)

    def QRNNCell(p, x, h):
        n, f, o = projected(p, x, 3)
        h = sigmoid(f) * h + (1 - sigmoid(f)) * np.tanh(n)
        return h, sigmoid(o) * h

    def SRUCell(p, x, h):
        z, f, r, n = projected(p, x, 4)
        h = sigmoid(f) * h + (1 - sigmoid(f)) * z
        return h, sigmoid(r) * h + (1 - sigmoid(r)) * n

    def HGRNCell(p, x, re, im, *, floor=0.3):
        f, n, m, *g = projected(p, x, 5)
        f = floor + (1 - floor) * sigmoid(f)
        new = f * np.exp(1j * p["turn"]) * (re + 1j * im) + (1 - f) * (silu(n) + 1j * silu(m))
        state = new.real, new.imag
        return *state, sigmoid(np.concatenate(g, -1)) * np.concatenate(state, -1)

    def RWKV4Cell(p, x, a, b):
        (r, k, v), w, u = projected(p, x, 3), np.exp(p["time"][0]), p["time"][1]
        y = sigmoid(r) * (a + np.exp(u + k) * v) / (b + np.exp(u + k))
        return np.exp(-w) * a + np.exp(k) * v, np.exp(-w) * b + np.exp(k), y

    def MegaEMACell(p, x, h, *, averages=3):
        alpha, delta, beta, eta = p["average"]
        alpha, delta = sigmoid(alpha), sigmoid(delta)
        u = beta * (x @ p["kernel"] + p["bias"])[..., None]
        h = alpha * u + (1 - alpha * delta) * h
        return h, np.einsum("ij,...ij->...i", eta, h)

    def LinOSSCell(p, x, y, z):
        (a, d), u = p["spring"], x @ p["kernel"] + p["bias"]
        z = z + sigmoid(d) * (-relu(a) * y + u)
        return y + sigmoid(d) * z, z


class Dynamics:
    """From differential equations, and reservoirs."""

    def AntisymmetricRNNCell(p, x, h, *, epsilon=0.2, gamma=0.3):
        U = p["turn"] - p["turn"].T - gamma * np.eye(UNITS)
        return h + epsilon * np.tanh(x @ p["kernel"] + h @ U + p["bias"])

    def LipschitzRNNCell(p, x, h):
        A, U = (0.25 * (M + M.T) + 0.75 * (M - M.T) - 0.001 * np.eye(UNITS) for M in p["pair"])
        return h + 0.1 * (h @ A + np.tanh(x @ p["kernel"] + h @ U + p["bias"]))

    def CoRNNCell(p, x, y, z, *, dt=0.1, gamma=1.5, epsilon=3.0):
        pre = y @ p["recurrent_kernel"] + z @ p["speed"] + x @ p["kernel"] + p["bias"]
        z = z + dt * (np.tanh(pre) - gamma * y - epsilon * z)
        return y + dt * z, z

    def UnICORNNCell(p, x, y, z, *, dt=0.2, alpha=0.7):
        w, c = p["own"]
        pre = w * y + x @ p["kernel"] + p["bias"]
        z = z - dt * sigmoid(c) * (np.tanh(pre) + alpha * y)
        return y + dt * sigmoid(c) * z, z

    def LEMCell(p, x, y, z):
        (a, b, c, d), U = projected(p, x, 4), kernels(p, "from_y", 3)
        dt1, dt2 = sigmoid(a + y @ U[0]), sigmoid(b + y @ U[1])
        z = (1 - dt1) * z + dt1 * np.tanh(c + y @ U[2])
        return (1 - dt2) * y + dt2 * np.tanh(d + z @ p["from_z"]), z

    def EchoStateCell(p, x, h, *, leak=0.4):
        return (1 - leak) * h + leak * np.tanh(sums(p, x, h, 1)[0])

    def CycleReservoirCell(p, x, h, *, weight=0.8):
        ring = weight * np.roll(np.eye(UNITS), 1, axis=1)  # to each from the one before
        return np.tanh(x @ p["kernel"] + h @ ring)

    def JordanCell(p, x, y, *, outputs=3):
        return np.tanh(np.tanh(sums(p, x, y, 1)[0]) @ p["out"])


CASES = {
    name: (page.__name__.lower(), step)
    for page in (Gated, Matrix, Time, Linear, Dynamics)
    for name, step in vars(page).items()
    if name.endswith("Cell")
}
# Those without a cell, or in two of them, each with a test of its own.
FUNCTIONS = {
    "delta_product": "matrix", "ImputeCell": "time", "DecayGRUCell": "time",
    "legendre_memory": "linear", "griffin": "linear", "reservoir": "dynamics",
}  # fmt: skip


def loop(step: Any, start: Any, arrays: Any, first: Any = None) -> Any:
    """The last state of a step of NumPy, and all its outputs, with the resets and lengths.

    A reset sets the state to ``start``, and it begins with ``first``, by default with that too.
    """

    def choose(mark: Any, one: Any, other: Any) -> Any:
        return np.where(np.reshape(mark, (ROWS, *[1] * (np.ndim(one) - 1))), one, other)

    state, ys = start if first is None else first, []
    for t in range(TIME):
        state = [choose(MARKS["resets"][t], a, s) for a, s in zip(start, state, strict=True)]
        new = step(*(array[t] for array in arrays), *state)
        new = new if isinstance(new, tuple) else (new,)
        y, valid = new[0 if len(new) == len(state) else -1], t < MARKS["lengths"]
        state = [choose(valid, n, s) for n, s in zip(new, state, strict=False)]
        ys.append(choose(valid, y, np.zeros_like(y)))
    return state, np.stack(ys)


def built(name: str) -> Any:
    """The cell of a case, and the number of its inputs."""
    page, step = CASES[name]
    cell = names(page)[name](UNITS, **(step.__kwdefaults__ or {}))
    return cell, FEATURES + cell.raw_size


@functools.cache
def begins(page: str) -> dict[str, Any]:
    """The initial parameters of all cells of a page, by one program."""
    cells = {name: built(name) for name, (where, _) in CASES.items() if where == page}
    if page == "time":
        first, second = names(page)["gru_d"].cells
        cells |= {"ImputeCell": (first, 6), "DecayGRUCell": (second, 6)}
    draw = jax.jit(lambda key: {name: cell.init(key, size) for name, (cell, size) in cells.items()})
    return jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), draw(jax.random.key(0)))


@pytest.mark.parametrize("name", CASES)
def test_a_cell_is_its_equation(name: str, random_like: Any, assert_close: Any) -> None:
    """At drawn parameters, and at those that it begins with."""
    page, step = CASES[name]
    cell, size = built(name)
    drawn = jax.device_get(random_like(lambda: cell.init(jax.random.key(0), size), 1, "float64"))
    start = [np.zeros(a.shape) for a in jax.eval_shape(lambda: cell.initial_carry((ROWS,)))]
    xs = np.random.default_rng(3).normal(size=(TIME, ROWS, size))
    xs[..., FEATURES:] = np.abs(xs[..., FEATURES:])  # gaps
    parts = np.split(xs, [FEATURES], -1) if cell.raw_size else [xs]
    run = jax.jit(lambda *given: rnnjax.unroll(cell, *given, **MARKS))
    for params in (drawn, begins(page)[name]):
        last, ys = run(params, xs)
        carry, expected = loop(functools.partial(step, params), start, parts)
        assert_close((list(last), ys), (carry, expected.reshape(ys.shape)), 1e-12)


def delta_product(q: Any, keys: Any, values: Any, betas: Any, S: Any) -> Any:
    for k, v, b in zip(keys, values, betas[..., None, None], strict=True):
        S = S @ (np.eye(4) - b * outer(unit(k), unit(k))) + b * outer(v, unit(k))
    return S, applied(S, q)


HEADS = ROWS, 2, 4


def test_a_product_of_delta_rules_is_its_equation(assert_close: Any) -> None:
    rng, shapes = np.random.default_rng(4), [HEADS, (3, *HEADS), (3, *HEADS), (3, ROWS, 2)]
    given = [rng.uniform(0.1, 1, (TIME, *shape)) for shape in shapes]
    first = rng.normal(size=(*HEADS, 4))
    run = names("matrix")["delta_product"]
    carry, ys = jax.jit(lambda given, first: run(*given, rnnjax.MatrixCarry(first), **MARKS))(
        given, first
    )
    expected = loop(delta_product, [np.zeros_like(first)], given, [first])
    assert_close(([carry.memory], ys), expected, 1e-12)


def test_gru_d_imputes_and_decays(random_like: Any, assert_close: Any) -> None:
    cell = names("time")["gru_d"]
    drawn = random_like(lambda: cell.init(jax.random.key(0), 6), 1, "float64")
    rng = np.random.default_rng(3)
    shape = TIME, ROWS, 2
    x, seen, gap = rng.normal(size=shape), rng.random(shape) < 0.5, rng.random(shape)

    def step(x: Any, m: Any, gap: Any, last: Any, h: Any) -> Any:
        fade = np.exp(-relu(first["fade"][0] * gap + first["fade"][1]))
        filled = np.concatenate([m * x + (1 - m) * fade * last, m], -1)
        h = np.exp(-relu(gap @ second["gap"])) * h
        (r, z, n), (U_r, U_z) = projected(second, filled, 3), kernels(second, "gates", 2)
        r, z = sigmoid(r + h @ U_r), sigmoid(z + h @ U_z)
        h = (1 - z) * h + z * np.tanh(n + (r * h) @ second["new"])
        return m * x + (1 - m) * last, h, h

    run = jax.jit(lambda params, xs: rnnjax.unroll(cell, params, xs, **MARKS))
    begun = begins("time")["ImputeCell"], begins("time")["DecayGRUCell"]
    for params in (jax.device_get(drawn), begun):
        first, second = params
        (imputed, decayed), ys = run(params, np.concatenate([x, seen, gap], -1))
        expected = loop(step, [np.zeros((ROWS, 2)), np.zeros((ROWS, UNITS))], (x, seen, gap))
        assert_close(([imputed.hidden, decayed.hidden], ys), expected, 1e-12)


def test_legendre_memory_is_its_matrix(assert_close: Any) -> None:
    order, theta = 3, 8.0
    i, j = np.ogrid[:order, :order]
    A, B = (2 * i + 1) * np.where(i < j, -1, (-1.0) ** (i - j + 1)), (2 * i + 1) * (-1.0) ** i
    us = np.random.default_rng(5).normal(size=(TIME, ROWS, 2))

    def step(u: Any, m: Any) -> Any:
        return m + m @ A.T / theta + u[..., None] @ B.T / theta

    legendre_memory = names("linear")["legendre_memory"]  # a page that a trace runs keeps tracers
    run = jax.jit(lambda us: legendre_memory(us, order, theta, **MARKS))
    last, every = run(us)
    assert_close(([last], every), loop(step, [np.zeros((ROWS, 2, order))], [us]), 1e-12)


def test_griffin_is_a_gate_beside_a_convolution_and_a_recurrence(assert_close: Any) -> None:
    rng = np.random.default_rng(6)

    def drawn(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {name: rng.normal(size=shape) for name, shape in shapes.items()}

    conv = drawn(kernel=(3, 4), bias=(4,), taps=(4, 4), taps_bias=(4,))
    own = drawn(kernel=(4, 12), bias=(12,), decay=(4,))
    out = drawn(gate_kernel=(3, 4), gate_bias=(4,), out_kernel=(4, 5), out_bias=(5,))
    xs, options = rng.normal(size=(TIME, ROWS, 3)), reference.Options()

    def step(x: Any, *state: Any) -> Any:
        window, v = reference.temporal_conv(conv, x, options, state[0])
        h = reference.rglru(own, v, options, state[1])
        gate = ACTIVATIONS["gelu"](x @ out["gate_kernel"] + out["gate_bias"])
        return window, h, (gate * h) @ out["out_kernel"]

    params = {**out, "convolution": conv, "recurrence": own}
    griffin = names("linear")["griffin"]
    run = jax.jit(lambda params, xs: griffin(params, xs, **MARKS))
    (window, state), ys = run(params, xs)
    expected = loop(step, [np.zeros((ROWS, 3, 4)), np.zeros((ROWS, 4))], [xs])
    assert_close(([*window, *state], ys - out["out_bias"]), expected, 1e-12)


# ---- where the cells begin

# Parameters that begin alike for all units, and why they may: no sum can tell them from a clock or
# a decay, which may not. (That of a unit's own state begins at 1 in one paper, and is drawn in
# another, of the same equation.) Biases of the inputs' product need no reason: its columns differ.
ALIKE = {
    "BRCCell.own": "1 in the authors' code: feedback of the unit's own state, beside a product",
    "CombaCell.control": "1 in the authors' code, for each head",
    "EchoStateCell.recurrent_kernel": "rows of zeros, of which a small reservoir has some",
    "FastGRNNCell.biases": "1 in the authors' code, beside a product",
    "MIRNNCell.mix": "factors of 1, as in the paper, of products whose columns differ; a bias",
    "TimeAwareLSTMCell.short_bias": "a bias beside a product",
}


def test_units_begin_apart_unless_there_is_a_reason() -> None:
    found = {
        f"{cell}.{name}"
        for page in {page for page, _ in CASES.values()}
        for cell, params in begins(page).items()
        for name in alike(params)
    }
    assert found == {*ALIKE}, f"say in ALIKE of {__file__} why all units may begin alike"


def test_clocks_and_speeds_begin_as_their_authors_have_them() -> None:
    def drawn(page: str, cell: str, name: str) -> Any:
        param = names(page)[cell](500).parameters(3)[name]
        draw = jax.jit(lambda key: param.init(key, param.shape, jnp.float32))
        return np.asarray(draw(jax.random.key(1)), "float64")

    log_period, shift = drawn("time", "PhasedLSTMCell", "clock")
    weight, width = drawn("dynamics", "UnICORNNCell", "own")
    shift /= np.exp(log_period)
    for found, low, high in (
        (log_period, 1, 3), (shift, 0, 1), (weight, 0, 1), (width, -0.1, 0.1),
    ):  # fmt: skip
        quarters = np.quantile((found - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quarters, [0, 0.25, 0.5, 0.75, 1], atol=0.08)
        assert np.all((found > low - 1e-6) & (found < high + 1e-6))
    speed, bonus = drawn("linear", "RWKV4Cell", "time")
    np.testing.assert_allclose(speed, [8 * (k / 499) ** 0.7 - 5 for k in range(500)], atol=1e-5)
    np.testing.assert_allclose(bonus[:4], np.log(0.3) + np.array([0, 0.5, -0.5, 0]), rtol=1e-5)


def test_all_decays_of_gru_d_can_learn_from_where_they_begin() -> None:
    """For one feature, whose gap is never below 0, and so no weight that begins there."""
    first, second = names("time")["ImputeCell"](1), names("time")["DecayGRUCell"](8, features=1)
    cell, rng = rnnjax.Stack([first, second]), np.random.default_rng(7)
    xs, weights = rng.normal(size=(TIME, 8, 3)), rng.normal(size=(TIME, 8, 8))
    xs[..., 1:] = np.maximum(xs[..., 1:], 0)

    @jax.jit
    def gradient(key: jax.Array) -> Any:
        given = cell.init(key, 3)
        return jax.grad(lambda p: (weights * rnnjax.unroll(cell, p, xs)[1]).sum())(given)

    impute, decay = gradient(jax.random.key(0))
    assert np.all(impute["fade"] != 0)
    assert np.all(decay["gap"] != 0)


def test_a_reservoir_has_its_radius_and_holes() -> None:
    kernel = np.asarray(names("dynamics")["reservoir"](jax.random.key(0), (60, 60), "float64"))
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(kernel)).max(), 0.9, rtol=1e-6)
    assert 0.05 < np.mean(kernel != 0) < 0.15


def test_recurrences_are_short_and_each_is_tested_and_checked_by_its_page() -> None:
    tested = FUNCTIONS | {name: page for name, (page, _) in CASES.items()}
    shown = {}
    for page in {path.stem for path in GALLERY.glob("*.md")} - {"index"}:
        for block in blocks(page)[1:]:  # behind the head of the page
            for node in ast.parse(block).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    code = ast.get_source_segment(block, node).splitlines()
                    assert sum(bool(line.strip()) for line in code) + len(node.decorator_list) <= 15
                    assert f"{node.name}(" in blocks(page)[-1]
                    shown[node.name] = page
    assert shown == tested
