"""Every cell and way to combine them in plain NumPy, written from the papers' equations.

Independent of the library: nothing of it, and nothing of JAX, is imported. What is taken from it is
the layout of the parameters alone, their names and the order of the gates along the last axis.

All functions take complex arrays too, and are analytic in them but for the kinks of piecewise
activations: they branch on real parts, and use neither absolute values nor conjugates. That is how
`with_slopes` differentiates them, to rounding and without any rule of differentiation.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Tree = Any
"""Arrays in nested tuples and dicts; None where there is none."""


# ---- activations


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, with the exponential of a negative number alone: no overflow."""
    small = np.exp(-_magnitude(x))
    return np.where(x.real < 0, small, 1) / (1 + small)


def _magnitude(x: Array) -> Array:
    return np.where(x.real < 0, -x, x)


def _clip(x: Array, low: float, high: float) -> Array:
    return np.where(x.real < low, low, np.where(x.real > high, high, x))


def _elu(x: Array) -> Array:
    """Clevert et al., 2016: ``x`` above 0, ``exp(x) - 1`` below."""
    return np.where(x.real > 0, x, np.expm1(np.where(x.real > 0, 0, x)))


def _gelu(x: Array) -> Array:
    """Hendrycks & Gimpel, 2016: ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _selu(x: Array) -> Array:
    """Klambauer et al., 2017: ``1.0507 (x above 0, 1.6733 (exp(x) - 1) below)``."""
    return 1.0507009873554805 * np.where(x.real > 0, x, 1.6732632423543772 * _elu(x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.where(x.real > 0, x, 0) + np.log1p(np.exp(-_magnitude(x)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda x: _clip(x / 6 + 0.5, 0, 1),
    "legacy_hard_sigmoid": lambda x: _clip(0.2 * x + 0.5, 0, 1),
    "hard_tanh": lambda x: _clip(x, -1, 1),
    "relu": lambda x: np.where(x.real > 0, x, 0),
    "elu": _elu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": silu,
    "softplus": softplus,
    "softsign": lambda x: x / (1 + _magnitude(x)),
    "linear": lambda x: x,
    "bent": lambda x: x / (1 + x * x),  # the callable of tests/cell_table.py
}


# ---- cells: (parameters, x, options, *state) -> the new state, and the output behind it if that is
# not its first array


class Options(NamedTuple):
    """What an equation reads besides its parameters, named as rnnjax's cells do."""

    act: Callable[[Array], Array] = np.tanh
    gate: Callable[[Array], Array] = sigmoid
    epsilon: float = 0.0
    exponential_forget: bool = False
    heads: int = 1
    leak: float = 1.0
    negative_eigenvalues: bool = False


def projected(p: Any, x: Array, gates: int, times: Any = np.matmul) -> list[Array]:
    """``x W + b`` of each gate, its part of their last axis; b is 0 if there is none."""
    return np.split(times(x, p["kernel"]) + p.get("bias", 0.0), gates, axis=-1)


def sums(p: Any, x: Array, h: Array, gates: int, times: Any = np.matmul) -> list[Array]:
    """``x W + h U + b`` of each gate."""
    own = np.split(times(h, p["recurrent_kernel"]), gates, axis=-1)
    return [a + b for a, b in zip(projected(p, x, gates, times), own, strict=True)]


def simple(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Elman, 1990: ``h' = tanh(W x + U h + b)``."""
    return o.act(sums(p, x, h, 1)[0])


def leaky(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Jaeger et al., 2007: ``h' = (1 - a) h + a tanh(W x + U h + b)``."""
    return (1 - o.leak) * h + o.leak * simple(p, x, o, h)


def _gated(i: Array, f: Array, g: Array, out: Array, c: Array, o: Options) -> Any:
    """``c' = f c + i g; h' = o tanh(c')``."""
    c = o.gate(f) * c + o.gate(i) * o.act(g)
    return o.gate(out) * o.act(c), c


def lstm(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """Hochreiter & Schmidhuber, 1997; the forget gate of Gers, Schmidhuber & Cummins, 2000.

    i, f, o = sigma(W x + U h + b) and g = tanh(W x + U h + b), each with weights of its own;
    c' = f c + i g; h' = o tanh(c').
    """
    return _gated(*sums(p, x, h, 4), c, o)


def projection(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """LSTMP of Sak, Senior & Beaufays, 2014: ``m = o tanh(c')`` of an LSTM, and ``r' = R m``.

    The recurrent products read r in the place of h, and r' is the output.
    """
    m, c = lstm(p, x, o, h, c)
    return m @ p["projection_kernel"], c


def convlstm(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """Shi et al., 2015, equation 3 without peepholes: an LSTM with convolutions for products."""
    return _gated(*sums(p, x, h, 4, _correlated), c, o)


def _correlated(x: Array, kernel: Array) -> Array:
    """``sum over k of x[at + k - (size - 1) // 2] @ kernel[k]``, zeros around: the grid stays."""
    sizes = kernel.shape[:-2]
    grid = x.shape[-1 - len(sizes) : -1]
    rows = [(0, 0)] * (x.ndim - 1 - len(sizes))
    padded = np.pad(x, [*rows, *(((k - 1) // 2, k // 2) for k in sizes), (0, 0)])
    total: Any = 0
    for at in np.ndindex(*sizes):
        window = tuple(slice(k, k + n) for k, n in zip(at, grid, strict=True))
        total = total + padded[(..., *window, slice(None))] @ kernel[at]
    return total


def peephole(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """Gers & Schmidhuber, 2000: i and f see the old cell state too, and o sees the new one.

    i, f = sigma(W x + U h + p c + b); c' = f c + i tanh(W x + U h + b);
    o = sigma(W x + U h + p c' + b); h' = o tanh(c').
    """
    (i, f, g, out), (p_i, p_f, p_o) = sums(p, x, h, 4), p["peephole"]
    c = o.gate(f + p_f * c) * c + o.gate(i + p_i * c) * o.act(g)
    return o.gate(out + p_o * c) * o.act(c), c


def gru(p: Any, x: Array, o: Options, h: Array, gates: int = 3) -> Any:
    """Cho et al., 2014, with the reset gate after the product and its bias, as in cuDNN.

    r, z = sigma(W x + b + U h + c); n = tanh(W x + b + r (U h + c)); h' = z h + (1 - z) n.
    """
    own = h @ p["recurrent_kernel"] + p.get("recurrent_bias", 0.0)
    return _reset_after(projected(p, x, gates), np.split(own, gates, axis=-1), o, h)


def _reset_after(a: list[Array], b: list[Array], o: Options, h: Array) -> Array:
    *gates, n = a
    gates = [o.gate(one + other) for one, other in zip(gates, b, strict=False)]
    return gates[-1] * h + (1 - gates[-1]) * o.act(n + gates[0] * b[-1])


def gru_reset_before(p: Any, x: Array, o: Options, h: Array, gates: int = 3) -> Any:
    """Cho et al., 2014, equations 5 to 8: `gru` with ``n = tanh(W x + U (r h) + b)``."""
    r, *z = map(o.gate, sums(p, x, h, gates)[:-1])
    z = z[0] if z else r
    return z * h + (1 - z) * o.act(sums(p, x, r * h, gates)[-1])


def mgu(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Zhou et al., 2016, in Flax's form: `gru` with one gate f for r and z."""
    return gru(p, x, o, h, gates=2)


def mgu_reset_before(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Zhou et al., 2016: `gru_reset_before` with one gate f; f and 1 - f are swapped in h'."""
    return gru_reset_before(p, x, o, h, gates=2)


def _rms(x: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def _normalized(x: Array, epsilon: float) -> Array:
    """Ba, Kiros & Hinton, 2016, equation 3: less the mean, over the standard deviation."""
    return _rms(x - x.mean(-1, keepdims=True), epsilon)


def _normalized_products(p: Any, x: Array, h: Array, gates: int, epsilon: float) -> Any:
    """Both products, each normalised over all gates at once and scaled; the first with the bias."""
    from_x = _normalized(x @ p["kernel"], epsilon) * p["kernel_scale"] + p.get("bias", 0.0)
    from_h = _normalized(h @ p["recurrent_kernel"], epsilon) * p["recurrent_scale"]
    return [np.split(s, gates, axis=-1) for s in (from_x, from_h)]


def layernorm_lstm(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """Ba, Kiros & Hinton, 2016, equations 20 to 22: `lstm` of normalised products.

    c' is normalised, scaled and shifted too, where h' reads it.
    """
    i, f, g, out = map(sum, zip(*_normalized_products(p, x, h, 4, o.epsilon), strict=True))
    c = o.gate(f) * c + o.gate(i) * o.act(g)
    return o.gate(out) * o.act(_normalized(c, o.epsilon) * p["cell_scale"] + p["cell_bias"]), c


def layernorm_gru(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Ba, Kiros & Hinton, 2016: `gru` of normalised products."""
    return _reset_after(*_normalized_products(p, x, h, 3, o.epsilon), o, h)


def mingru(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Feng et al., 2024: ``z = sigma(W x + b), n = W x + b, h' = (1 - z) h + z n``."""
    z, n = projected(p, x, 2)
    return (1 - sigmoid(z)) * h + sigmoid(z) * o.act(n)


def minlstm(p: Any, x: Array, o: Options, h: Array) -> Any:
    """Feng et al., 2024: ``i, f = sigma(W x + b), h' = f / (f + i) h + i / (f + i) (W x + b)``."""
    i, f, g = projected(p, x, 3)
    i, f = sigmoid(i), sigmoid(f)
    return f / (f + i) * h + i / (f + i) * o.act(g)


def _rotated(size: Array, angle: Array, s: Any, added: Any) -> Any:
    """``size e^(i angle) s + added`` of complex numbers as pairs, real and imaginary part."""
    (re, im), (add_re, add_im) = s, added
    cos, sin = size * np.cos(angle), size * np.sin(angle)
    return cos * re - sin * im + add_re, cos * im + sin * re + add_im


def _real_part(p: Any, s: Any) -> Array:
    """``Re(s C)``; below the real part of C stands its imaginary part, negated."""
    real, minus_imag = np.split(p["output_kernel"], 2)
    return s[0] @ real + s[1] @ minus_imag


def lru(p: Any, x: Array, o: Options, re: Array, im: Array) -> Any:
    """Orvieto et al., 2023: ``s' = lambda s + gamma B x, y = Re(C s') + D x``.

    lambda = exp(-exp(nu) + i exp(theta)); B, C complex, D real.
    """
    nu, theta, log_gamma = p["ring"]
    added = [np.exp(log_gamma) * u for u in np.split(x @ p["kernel"], 2, axis=-1)]
    s = _rotated(np.exp(-np.exp(nu)), np.exp(theta), (re, im), added)
    return *s, _real_part(p, s) + x @ p["skip_kernel"]


def s5(p: Any, x: Array, o: Options, re: Array, im: Array) -> Any:
    """Smith et al., 2023: ``s' = exp(L d) s + L^-1 (exp(L d) - 1) B x, y = 2 Re(C s') + D x``.

    L = -exp(a) + i w is diagonal and one of each conjugate pair, d the step; a zero-order hold.
    """
    (a, w), d = p["eigenvalue"], np.exp(p["log_step"])
    size, (u_re, u_im) = np.exp(-np.exp(a) * d), np.split(x @ p["kernel"], 2, axis=-1)
    top_re, top_im = size * np.cos(w * d) - 1, size * np.sin(w * d)
    below = np.exp(2 * a) + w**2
    held = (-top_re * np.exp(a) + top_im * w) / below, (-top_im * np.exp(a) - top_re * w) / below
    added = held[0] * u_re - held[1] * u_im, held[0] * u_im + held[1] * u_re
    s = _rotated(size, w * d, (re, im), added)
    return *s, 2 * _real_part(p, s) + x @ p["skip_kernel"]


def rglru(p: Any, x: Array, o: Options, h: Array) -> Any:
    """RG-LRU of De et al., 2024: ``h' = a h + sqrt(1 - a^2) i (W x + b), a = exp(-8 s(L) r)``.

    r, i = sigma(W x + b); s is softplus.
    """
    r, i, n = projected(p, x, 3)
    a = np.exp(-8 * softplus(p["decay"]) * sigmoid(r))
    return a * h + np.sqrt(1 - a**2) * sigmoid(i) * n


def temporal_conv(p: Any, x: Array, o: Options, *window: Array) -> Any:
    """A causal convolution of each channel of W x + b: ``y_t = sum_j k_j u_(t-n+1+j) + d``."""
    seen = np.concatenate([window[0], (x @ p["kernel"] + p.get("bias", 0))[..., None, :]], -2)
    return seen[..., 1:, :], (p["taps"] * seen).sum(-2) + p.get("taps_bias", 0)


def s6(p: Any, x: Array, o: Options, s: Array) -> Any:
    """Gu & Dao, 2023, algorithm 2: delta, B and C of the input; channel k has states of its own.

    s' = exp(delta A) s + delta B u, y = C s' + D u; A = -exp(a).
    """
    units, states = p["log_decay"].shape
    d, u, b, c = np.split(x @ p["kernel"], np.cumsum([units, units, states]), axis=-1)
    d = softplus(d + p["step_bias"])
    s = np.exp(d[..., None] * -np.exp(p["log_decay"])) * s + outer(d * u, b)
    return s, applied(s, c) + p["skip"] * u


def diagonal_lstm(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """Danieli et al., 2025: `lstm` with a diagonal matrix for each U."""
    gates = zip(projected(p, x, 4), p["recurrent_kernel"], strict=True)
    return _gated(*(s + u * h for s, u in gates), c, o)


def slstm(p: Any, x: Array, o: Options, h: Array, c: Array, n: Array, m: Array) -> Any:
    """Beck et al., 2024, equations 8 to 17: ``c' = f c + i z, n' = f n + i, h' = o c' / n'``.

    i = exp(W x + R h + b), f = sigma of that or exp, z = tanh and o = sigma. c and n are kept times
    exp(-m), and m' = max(log f + m, log i); R sees the units of the same head.
    """
    heads = h.shape[-1] // len(p["recurrent_kernel"])
    each = np.split(p["recurrent_kernel"], heads, axis=-1), np.split(h, heads, axis=-1)
    own = [np.split(of_head @ R, 4, axis=-1) for R, of_head in zip(*each, strict=True)]
    of_gate = (np.concatenate(parts, -1) for parts in zip(*own, strict=True))
    log_i, f, z, out = (a + b for a, b in zip(projected(p, x, 4), of_gate, strict=True))
    log_f = f if o.exponential_forget else -softplus(-f)
    before = np.where(n == 0, log_i, log_f + m)  # nothing was summed yet, so m says nothing
    m = np.where(before.real > log_i.real, before, log_i)
    i, f = np.exp(log_i - m), np.exp(before - m)
    c, n = f * c + i * o.act(z), f * n + i
    return sigmoid(out) * (c / n), c, n, m


def _of_heads(p: Any, x: Array, heads: int, *widths: int) -> list[Array]:
    """Each part of ``x W + b``, of so many columns a head: ``(*batch, heads, columns)``."""
    (whole,), sizes = projected(p, x, 1), [heads * width for width in widths]
    parts = zip(np.split(whole, np.cumsum(sizes)[:-1], axis=-1), widths, strict=True)
    return [part.reshape(*x.shape[:-1], heads, width) for part, width in parts]


def _joined(y: Array) -> Array:
    """The outputs of all heads, side by side."""
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


def outer(v: Array, k: Array) -> Array:
    return v[..., :, None] * k[..., None, :]


def applied(s: Array, q: Array) -> Array:
    return (s @ q[..., None])[..., 0]


def mlstm(p: Any, x: Array, o: Options, memory: Array, stabilizer: Array) -> Any:
    """Beck et al., 2024, equations 19 to 27: ``C' = f C + i v k, n' = f n + i k``, and

    h = o C' q / max(|n' q|, 1), with i = exp(W x + b), f = sigma of that or exp, o = sigma and k
    over the root of its size. C and n are kept times exp(-m), and m' = max(log f + m, log i).
    """
    values, keys = memory.shape[-2] - 1, memory.shape[-1]
    q, k, v, out, log_i, log_f = _of_heads(p, x, o.heads, keys, keys, values, values, 1, 1)
    log_f = log_f if o.exponential_forget else -softplus(-log_f)
    kept, k = log_f + stabilizer[..., None], k / np.sqrt(keys)
    m = np.where(kept.real > log_i.real, kept, log_i)
    i, f = np.exp(log_i - m), np.exp(kept - m)
    c = f[..., None] * memory[..., :-1, :] + i[..., None] * outer(v, k)
    n = f * memory[..., -1, :] + i * k
    along, least = _magnitude((n * q).sum(-1, keepdims=True)), np.exp(-m)
    y = sigmoid(out) * applied(c, q) / np.where(along.real > least.real, along, least)
    return np.concatenate([c, n[..., None, :]], -2), m[..., 0], _joined(y)


def mamba2(p: Any, x: Array, o: Options, memory: Array) -> Any:
    """Dao & Gu, 2024: ``S' = exp(delta A) S + delta B u, y = C S' + D u``, A = -exp(a) a number."""
    heads, units, states = memory.shape[-3:]
    cuts = np.cumsum([heads, heads * units, states])
    delta, u, b, c = np.split(projected(p, x, 1)[0], cuts, axis=-1)
    delta = softplus(delta + p["step_bias"])[..., None]
    u, b, c = u.reshape(*x.shape[:-1], heads, units), b[..., None, :], c[..., None, :]
    keeps = np.exp(-delta * np.exp(p["log_decay"])[:, None])
    memory = keeps[..., None] * memory + outer(delta * u, b)
    return memory, _joined(applied(memory, c) + p["skip"][:, None] * u)


def deltanet(p: Any, x: Array, o: Options, memory: Array) -> Any:
    """Yang, Kautz & Hatamizadeh, 2025, equation 10: ``S' = a S (I - b k k) + b v k``.

    a = exp(-exp(c) softplus(W x + d)), b = sigma(W x), or twice that (Grazzi et al., 2025); q and k
    are silu(W x) of length 1, v = silu(W x), and the output is silu(r) norm(S' q).
    """
    heads, values, keys = memory.shape[-3:]
    q, k, v, r, a, beta = _of_heads(p, x, heads, keys, keys, values, values, 1, 1)
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + o.epsilon) for z in map(silu, (q, k)))
    a = np.exp(-np.exp(p["log_decay"])[:, None] * softplus(a + p["step_bias"][:, None]))
    beta = (2 if o.negative_eigenvalues else 1) * sigmoid(beta)[..., None]
    turn = np.eye(keys) - beta * outer(k, k)
    memory = a[..., None] * memory @ turn + beta * outer(silu(v), k)
    return memory, _joined(silu(r) * p["gain"] * _rms(applied(memory, q), o.epsilon))


def user_peephole(p: Any, x: Array, o: Options, h: Array, c: Array) -> Any:
    """PeepholeCell of tests/cell_table.py: `peephole`, with ``y = a_gain h' + b_i``."""
    h, c = peephole(p, x, o, h, c)
    return h, c, p["a_gain"] * h + p["bias"][: h.shape[-1]]


def user_gain(p: Any, x: Array, o: Options, h: Array) -> Any:
    """GainCell of tests/cell_table.py: ``h' = (1 - z) gain n + z h``, and ``y = z h'``."""
    n, z = sums(p, x, h, 2)
    h = (1 - sigmoid(z)) * p["gain"] * np.tanh(n) + sigmoid(z) * h
    return h, sigmoid(z) * h


def user_gap(p: Any, x: Array, o: Options, h: Array) -> Any:
    """GapCell of tests/cell_table.py: ``h' = k h + (1 - k) tanh(x W + h U + b)``, and

    k = exp(-softplus(v) gap), where the gap is the last feature.
    """
    keeps = np.exp(-softplus(p["speed"]) * x[..., -1:])
    return keeps * h + (1 - keeps) * np.tanh(sums(p, x[..., :-1], h, 1)[0])


EQUATIONS: dict[str, Callable[..., Any]] = {
    equation.__name__.replace("_", "-"): equation
    for equation in (
        simple, gru, gru_reset_before, layernorm_gru, mgu, mgu_reset_before, mingru, minlstm,
        user_gain, user_gap, lstm, peephole, projection, layernorm_lstm, user_peephole,
        diagonal_lstm, lru, s5, rglru, temporal_conv, s6, slstm, mlstm, mamba2, deltanet,
    )
}  # fmt: skip
EQUATIONS |= {"convlstm-1d": convlstm, "convlstm-2d": convlstm, "leaky": leaky}
"""By the names of tests/cell_table.py."""
WITH_CELL, COMPLEX, MATRICES = (
    {name for name, equation in EQUATIONS.items() if state in signature(equation).parameters}
    for state in ("c", "im", "memory")
)
"""Whose carry begins with (hidden, cell), is (real, imag), or begins with the memory of heads."""


# ---- compositions


class Layer(NamedTuple):
    """One cell by its name above, with its arguments besides its size.

    And the rates of `rnnjax.Regularized` around it, of which only zoneout's say anything in
    evaluation.
    """

    kind: str
    size: int
    options: Mapping[str, Any] = {}
    rates: Mapping[str, float] = {}

    def __repr__(self) -> str:
        options = {**self.options, **self.rates}.items()
        return f"{self.kind}({', '.join([str(self.size), *(f'{k}={v}' for k, v in options)])})"

    @property
    def outputs(self) -> int:
        """The size of the output."""
        return self.options.get("proj_size", self.size)

    def step(self, params: Tree, carry: Tree, x: Array) -> tuple[Tree, Array]:
        """The equation, and ``h' <- z h + (1 - z) h'`` (Krueger et al., 2017, in expectation)."""
        named = {name: v for name, v in self.options.items() if name in Options._fields}
        for short, name in (("act", "activation"), ("gate", "recurrent_activation")):
            if name in self.options:
                named[short] = ACTIVATIONS[self.options[name]]
        new = EQUATIONS[self.kind](params, x, Options(**named), *carry)
        new = new if isinstance(new, tuple) else (new,)
        rates = [self.rates.get(f"zoneout_{name}", 0.0) for name in ("hidden", "cell")]
        rates = [*rates, 0.0, 0.0]
        kept = tuple(z * h + (1 - z) * n for z, h, n in zip(rates, carry, new, strict=False))
        return kept, kept[0] if len(new) == len(carry) else new[-1]


class LearnedCarry(NamedTuple):
    """Sequences begin with ``params["initial_carry"]``."""

    inner: Any


class Stack(NamedTuple):
    """Each part reads the outputs of the one before."""

    parts: tuple[Any, ...]


class Bidirectional(NamedTuple):
    """Schuster & Paliwal, 1997: two parts read the same inputs in opposite directions."""

    parts: tuple[Any, Any]
    merge: str


MERGES: Mapping[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: np.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "average": lambda a, b: 0.5 * a + 0.5 * b,
}


def one_hot(ids: Array, size: int) -> Array:
    """A 1 at the place of each id; zeros for an id outside of ``0 .. size - 1``."""
    return (ids[..., None] == np.arange(size)).astype(float)


def unroll(
    node: Any,
    params: Tree,
    xs: Array,
    carry: Tree = None,
    *,
    zeros: Tree,
    lengths: Array | None = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_carry: Tree = None,
    masked_outputs: str = "zero",
    reverse: bool = False,
) -> tuple[Tree, Array]:
    """What the docstring of `rnnjax.unroll` promises of these arguments, as a loop.

    ``node`` is a layer or a combination of layers, whose parameters and carry are tuples with an
    entry for each part, ``zeros`` are the carry of a row, and ``xs (time, *batch, features)`` are
    vectors.
    """
    rows = xs.shape[:-1]

    def for_rows(marks: Any) -> Array:
        return np.broadcast_to(marks.reshape(*marks.shape, *[1] * (len(rows) - marks.ndim)), rows)

    valid = np.ones(rows, bool) if mask is None else for_rows(mask)
    if lengths is not None:
        times = np.arange(len(xs)).reshape(-1, *[1] * np.ndim(lengths))
        valid = valid & for_rows(times < lengths)
    xs = np.where(valid[..., None], xs, 0)  # whatever stands at a masked step
    borders = np.zeros((len(xs) + 1, *rows[1:]), bool)  # borders[t] is between t - 1 and t
    if resets is not None:
        borders[: len(xs)] = for_rows(resets)
    start = _start(node, params, zeros)
    begin = tree_map(
        lambda leaf, like: np.broadcast_to(leaf, (*rows[1:], *like.shape)),
        start if reset_carry is None else reset_carry,
        zeros,
    )
    steps = _Steps(valid, borders, masked_outputs)
    return steps.run(node, params, xs, begin if carry is None else carry, begin, reverse)


def _start(node: Any, params: Tree, zeros: Tree) -> Tree:
    if isinstance(node, LearnedCarry):
        return params["initial_carry"]
    parts = getattr(node, "parts", None)
    return zeros if parts is None else tuple(map(_start, parts, params, zeros))


class _Steps(NamedTuple):
    """What is the same for every layer: marks ``(time, *batch)``, and what masked outputs are."""

    valid: Array
    borders: Array
    masked_outputs: str

    def run(
        self, node: Any, params: Tree, xs: Array, carry: Tree, begin: Tree, reverse: bool
    ) -> tuple[Tree, Array]:
        if isinstance(node, LearnedCarry):
            return self.run(node.inner, params["cell"], xs, carry, begin, reverse)
        if isinstance(node, Bidirectional):
            directions = zip(node.parts, params, carry, begin, (reverse, not reverse), strict=True)
            runs = [self.run(part, p, xs, c, b, back) for part, p, c, b, back in directions]
            return tuple(new for new, _ in runs), MERGES[node.merge](*(ys for _, ys in runs))
        if isinstance(node, Stack):
            carries = []
            for part, p, c, b in zip(node.parts, params, carry, begin, strict=True):
                new, xs = self.run(part, p, xs, c, b, reverse)
                carries.append(new)
            return tuple(carries), xs
        last = np.zeros((*xs.shape[1:-1], node.outputs))
        ys = np.zeros((*xs.shape[:-1], node.outputs), complex)
        for t in range(len(xs))[:: -1 if reverse else 1]:
            border = self.borders[t + 1 if reverse else t]
            carry, last = _where(border, begin, carry), _where(border, np.zeros_like(last), last)
            new, y = node.step(params, carry, xs[t])
            carry = _where(self.valid[t], new, carry)
            masked = {"zero": np.zeros_like(last), "last": last}[self.masked_outputs]
            ys[t] = _where(self.valid[t], y, masked)
            last = _where(self.valid[t], y, last)
        return carry, ys


def _where(marks: Array, new: Tree, old: Tree) -> Tree:
    def chosen(new: Array, old: Array) -> Array:
        return np.where(marks.reshape(*marks.shape, *[1] * (np.ndim(old) - marks.ndim)), new, old)

    return tree_map(chosen, new, old)


def tree_map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """A function of the arrays of trees of one structure; named tuples come back as tuples."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {k: tree_map(function, tree[k], *(r[k] for r in rest)) for k in tree}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *rest, strict=True))
    return function(tree, *rest)


def with_slopes(function: Callable[[Tree], Tree], at: Tree, direction: Tree) -> tuple[Tree, Tree]:
    """``function(at)``, and its derivative along ``direction``, both trees like its result.

    By a complex step (Squire & Trapp, 1998): ``f'(x) d = Im f(x + i s d) / s``, which subtracts
    nothing, so that s can be far below the precision of x and the error is that of rounding alone.
    """
    step = 1e-30
    out = function(tree_map(lambda x, d: x + 1j * step * d, at, direction))
    return tree_map(np.real, out), tree_map(lambda leaf: np.imag(leaf) / step, out)
