"""The operations of JAX that are one expression of C, or a view of an array."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

View = Callable[[np.ndarray], np.ndarray]


def _broadcast(p: Any, shape: tuple[int, ...], count: int) -> list[View]:
    at = p["broadcast_dimensions"]

    def view(a: np.ndarray) -> np.ndarray:
        sizes = [a.shape[at.index(axis)] if axis in at else 1 for axis in range(len(shape))]
        return np.broadcast_to(a.reshape(sizes), shape)

    return [view]


def _slice(p: Any, shape: tuple[int, ...], count: int) -> list[View]:
    steps = p["strides"] or [1] * len(shape)
    parts = tuple(map(slice, p["start_indices"], p["limit_indices"], steps))
    return [lambda a: a[parts]]


def _split(p: Any, shape: tuple[int, ...], count: int) -> list[View]:
    # mypy infers no lambda that has a default, by which each keeps its own range; so below.
    pairs = itertools.pairwise(itertools.accumulate(p["sizes"], initial=0))
    return [lambda a, r=range(*pair): a.take(r, p["axis"]) for pair in pairs]  # type: ignore[misc]


def _unstack(p: Any, shape: tuple[int, ...], count: int) -> list[View]:
    return [lambda a, i=i: a.take(i, p["axis"]) for i in range(count)]  # type: ignore[misc]


def _reshape(p: Any, shape: tuple[int, ...], count: int) -> list[View]:
    return [lambda a: a.reshape(shape)]


VIEWS: Mapping[str, Callable[[Any, tuple[int, ...], int], Sequence[View]]] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "transpose": lambda p, shape, count: [lambda a: a.transpose(p["permutation"])],
    "rev": lambda p, shape, count: [lambda a: np.flip(a, p["dimensions"])],
}
"""By an operation the functions that make its results, of a shape, of the places of its operand."""


def convolution(p: Any, shape: tuple[int, ...]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A convolution as one product: what its kernel sees at each place is a row."""
    spec = p["dimension_numbers"]
    order = [spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]]
    kernel = [*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]]
    sizes = [shape[axis] for axis in spec.out_spec[2:]]
    back = np.argsort([spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1]])

    def products(x: jax.Array, w: jax.Array) -> jax.Array:
        x, w = jnp.pad(x.transpose(order), [(0, 0), *p["padding"], (0, 0)]), w.transpose(kernel)
        parts = []
        for at in np.ndindex(*w.shape[:-2]):
            ways = zip(at, sizes, p["window_strides"], p["rhs_dilation"], strict=True)
            part = [slice(k * d, k * d + (n - 1) * s + 1, s) for k, n, s, d in ways]
            parts.append(x[:, *part])
        rows = jnp.stack(parts, axis=-2).reshape(*parts[0].shape[:-1], -1)
        return (rows @ w.reshape(-1, w.shape[-1])).transpose(back)

    return products


Template = Callable[[Any, str, Any], str]
"""``(parameters, kind of the last operand, type of the first) -> expression``; empty for none."""


def _of_both(floats: str, integers: str = "") -> Template:
    return lambda p, kind, dtype: floats if kind == "float" else integers


def _same(text: str) -> Template:
    return lambda p, kind, dtype: text


def _converted(p: Any, kind: str, dtype: Any) -> str:
    if p["new_dtype"] == jnp.bool_:
        return "({} != 0.0f)" if kind == "float" else "({} != 0)"
    to = "float" if jnp.issubdtype(p["new_dtype"], jnp.floating) else "int32_t"
    return "{}" if to == kind else f"({to}){{}}"


def _power(p: Any, kind: str, dtype: Any) -> str:
    if kind != "float":
        return ""
    return {2: "@square({})", -1: "(1.0f / {})"}.get(p["y"], f"powf({{}}, {p['y']}.0f)")


def _bits(word: str, bit: str) -> Template:
    return lambda p, kind, dtype: word if dtype == jnp.bool_ else bit


_MATH = (
    "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "floor", "ceil", "sqrt", "cbrt",
)  # fmt: skip
_IDENTITIES = ("copy", "copy_p", "stop_gradient", "name", "reduce_precision")
ELEMENTWISE: Mapping[str, Template] = {
    **{name: _of_both(f"{name}f({{}})") for name in _MATH},
    **dict.fromkeys(_IDENTITIES, _same("{}")),
    **dict.fromkeys(("add", "add_any"), _same("({} + {})")),
    "sub": _same("({} - {})"),
    "mul": _same("({} * {})"),
    "div": _same("({} / {})"),
    "neg": _same("(-{})"),
    "rem": _of_both("fmodf({}, {})", "({} % {})"),
    "max": _of_both("@max({}, {})", "@imax({}, {})"),
    "min": _of_both("@min({}, {})", "@imin({}, {})"),
    "clamp": _of_both("@max({}, @min({}, {}))", "@imax({}, @imin({}, {}))"),
    "pow": _of_both("powf({}, {})"),
    "atan2": _of_both("atan2f({}, {})"),
    "integer_pow": _power,
    "square": _of_both("@square({})"),
    "abs": _of_both("fabsf({})"),
    "sign": _of_both("@sign({})"),
    "rsqrt": _of_both("(1.0f / sqrtf({}))"),
    "round": lambda p, kind, dtype: "rintf({})" if int(p["rounding_method"]) else "roundf({})",
    "tanh": _of_both("@tanh({})"),
    "logistic": _of_both("@logistic({})"),
    "is_finite": _of_both("isfinite({})"),
    "convert_element_type": _converted,
    "eq": _same("({} == {})"),
    "ne": _same("({} != {})"),
    "lt": _same("({} < {})"),
    "le": _same("({} <= {})"),
    "gt": _same("({} > {})"),
    "ge": _same("({} >= {})"),
    "not": _bits("(!{})", "(~{})"),
    "and": _bits("({} && {})", "({} & {})"),
    "or": _bits("({} || {})", "({} | {})"),
    "select_n": lambda p, kind, dtype: "({0} ? {2} : {1})" if dtype == jnp.bool_ else "",
}
"""By an operation the expression of each entry: {} for operands, @ before functions of the file."""

REDUCTIONS: Mapping[tuple[str, str], tuple[str, float]] = {
    ("reduce_sum", "float"): ("{} += {}", 0.0),
    ("reduce_sum", "int32_t"): ("{} += {}", 0),
    ("reduce_prod", "float"): ("{} *= {}", 1.0),
    ("reduce_max", "float"): ("{0} = @max({0}, {1})", -np.inf),
    ("reduce_min", "float"): ("{0} = @min({0}, {1})", np.inf),
    ("reduce_and", "int32_t"): ("{0} = {0} && {1}", 1),
    ("reduce_or", "int32_t"): ("{0} = {0} || {1}", 0),
}
"""By an operation and the type of what it reduces how an entry is taken in, and the start."""

FUNCTIONS: Mapping[str, str] = {
    "max": "float @max(float a, float b) { return a < b ? b : a; }",
    "min": "float @min(float a, float b) { return a > b ? b : a; }",
    "imax": "int32_t @imax(int32_t a, int32_t b) { return a < b ? b : a; }",
    "imin": "int32_t @imin(int32_t a, int32_t b) { return a > b ? b : a; }",
    "square": "float @square(float x) { return x * x; }",
    "sign": "float @sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }",
    "tanh": """\
/* x P(x^2) / Q(x^2), a least-squares fit on [0, 9] with weights that level the relative errors:
   within 4e-7 of tanh, as float32 rounds it, and in loops that a compiler vectorises. */
float @tanh(float x) {
  const float c = x < -9.0f ? -9.0f : x > 9.0f ? 9.0f : x;
  const float z = c * c;
  const float h = ((-1.22462249e-11f * z + 3.06424965e-08f) * z + 2.80312961e-05f) * z;
  const float p = ((h + 0.00386950723f) * z + 0.136808559f) * z + 1.0f;
  const float g = (1.28903412e-06f * z + 0.00039407119f) * z * z;
  const float q = (g + 0.0272501539f * z + 0.470141888f) * z + 1.0f;
  const float y = c * p / q;
  return y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y;
}""",
    "logistic": "float @logistic(float x) { return 0.5f + 0.5f * @tanh(0.5f * x); }",
    "product": """\
/* y (m) += x (n) times w (n, m): four inputs at a time, each with a row of contiguous weights. */
void @product(const float *x, float *y, const float *w, int n, int m) {
  int i = 0;
  for (; i + 4 <= n; i += 4, w += 4 * m) {
    const float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
    const float *u = w + m, *v = u + m, *t = v + m;
    for (int j = 0; j < m; j++) y[j] += a * w[j] + b * u[j] + c * v[j] + d * t[j];
  }
  for (; i < n; i++, w += m) {
    const float a = x[i];
    for (int j = 0; j < m; j++) y[j] += a * w[j];
  }
}""",
    "product8": """\
/* The same in 8 bits: x over its largest entry becomes q, s sums up, and r scales each output. */
void @product8(const float *x, float *y, const int8_t *w, const float *r, int8_t *q, int32_t *s,
               int n, int m) {
  float most = 0.0f;
  for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
  if (!(most > 0.0f)) return;
  for (int i = 0; i < n; i++) q[i] = (int8_t)rintf(x[i] / most * 127.0f);
  for (int j = 0; j < m; j++) s[j] = 0;
  for (int i = 0; i < n; i++, w += m) {
    const int32_t a = q[i];
    for (int j = 0; j < m; j++) s[j] += a * w[j];
  }
  for (int j = 0; j < m; j++) y[j] += most / 127.0f * r[j] * (float)s[j];
}""",
}
"""The static functions of a file; each is written where it is called."""
