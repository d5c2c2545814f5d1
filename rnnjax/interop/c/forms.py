"""What operations of JAX are in C: expressions of each entry, and functions that they call."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

TYPES = {"f": "float", "i": "int32_t", "b": "int32_t", "q": "int8_t"}
"""The types of C by kinds: floating-point numbers, integers, booleans, and integers of 8 bits."""
ARRAYS: Mapping[str, Any] = {"f": np.float32, "i": np.int32, "b": np.int32, "q": np.int8}
BYTES = {"float": 4, "int32_t": 4, "int8_t": 1}


def kind_of(dtype: Any) -> str:
    """The kind of a type of JAX; "" if C has none.

    >>> kind_of(jnp.bfloat16), kind_of(bool), kind_of("int32"), kind_of(jnp.int8), kind_of("uint8")
    ('f', 'b', 'i', 'q', '')
    """
    kinds: Any = {np.int8: "q", jnp.floating: "f", jnp.bool_: "b", np.int32: "i", np.int64: "i"}
    return next((kind for one, kind in kinds.items() if jnp.issubdtype(dtype, one)), "")


def literals(array: np.ndarray) -> list[str]:
    """Numbers of C, in the nine digits that tell every float32 from its neighbours.

    >>> literals(np.float32([0.1, -2, np.inf])), literals(np.array([True, False]))
    (['0.100000001f', '-2.0f', 'INFINITY'], ['1', '0'])
    """
    if kind_of(array.dtype) != "f":
        return [str(int(number)) for number in array.ravel().tolist()]
    odd = {"nan": "NAN", "inf": "INFINITY", "-inf": "(-INFINITY)"}
    # One format of all takes half the time of one for each.
    texts = ("%.9g " * array.size % (*array.ravel().astype(np.float32).tolist(),)).split()
    return [odd.get(text, text + ("f" if "." in text or "e" in text else ".0f")) for text in texts]


_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ARITHMETIC = {"add": "+", "add_any": "+", "sub": "-", "mul": "*", "div": "/"}
_MATH = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "cos", "cosh", "erf", "erfc",
    "exp", "exp2", "expm1", "floor", "log", "log1p", "log2", "sin", "sinh", "sqrt", "tan",
)  # fmt: skip
_COMMON = {name: f"({{}} {sign} {{}})" for name, sign in (_SIGNS | _ARITHMETIC).items()}
_COMMON |= {"neg": "(-{})"}
FORMS: Mapping[str, Mapping[str, str]] = {
    "f": _COMMON
    | {name: f"{name}f({{}})" for name in _MATH}
    | {name: f"@{name}({{}})" for name in ("square", "sign", "tanh", "logistic")}
    | {"max": "@max({}, {})", "min": "@min({}, {})", "abs": "fabsf({})",
       "rem": "fmodf({}, {})", "pow": "powf({}, (float)({}))", "atan2": "atan2f({}, {})",
       "is_finite": "isfinite({})", "round": "roundf({})", "round even": "rintf({})",
       "to i": "@truncated({})", "to q": "@narrowed({})", "to b": "({} != 0.0f)"},
    "i": _COMMON | {
        name: f"((int32_t)((uint32_t){{}} {sign} (uint32_t){{}}))"  # which overflows by wrapping
        for name, sign in _ARITHMETIC.items()
    } | {
        "max": "@imax({}, {})", "min": "@imin({}, {})", "div": "@idiv({}, {})",
        "rem": "@irem({}, {})", "neg": "((int32_t)(0u - (uint32_t){}))", "not": "(~{})",
        "and": "({} & {})", "or": "({} | {})", "to f": "(float){}", "to b": "({} != 0)",
    },
    "b": _COMMON | {
        "select_n": "({} ? {} : {})", "not": "(!{})", "and": "({} && {})", "or": "({} || {})",
        "to f": "(float){}", "to i": "{}",
    },
}  # fmt: skip
"""By the kind of the first operand and the operation: {} for operands, @ before the functions."""

REDUCTIONS: Mapping[str, tuple[str, ...]] = {
    "sum": ("add", "0"), "prod": ("mul", "1"), "and": ("and", "1", "-1"), "or": ("or", "0"),
    "max": ("max", "-INFINITY", "INT32_MIN"), "min": ("min", "INFINITY", "INT32_MAX"),
}  # fmt: skip
"""By how entries are combined the operation that takes in one more, and with what it begins; the
last is what integers begin with."""

FUNCTIONS: Mapping[str, str] = {
    "max": "static float @max(float a, float b) { return a < b || b != b ? b : a; }",
    "min": "static float @min(float a, float b) { return a > b || b != b ? b : a; }",
    "truncated": """\
static int32_t @truncated(float x) { /* as JAX: to the nearest that there is, and NaN to 0 */
  return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : (int32_t)x;
}""",
    "imax": "static int32_t @imax(int32_t a, int32_t b) { return a < b ? b : a; }",
    "imin": "static int32_t @imin(int32_t a, int32_t b) { return a > b ? b : a; }",
    "narrowed": """\
static int8_t @narrowed(float x) { return (int8_t)@imax(-128, @imin(@truncated(x), 127)); }""",
    "idiv": """\
static int32_t @idiv(int32_t a, int32_t b) { /* as JAX where C has no result */
  return b == 0 ? -1 : b == -1 ? (int32_t)(0u - (uint32_t)a) : a / b;
}""",
    "irem": """\
static int32_t @irem(int32_t a, int32_t b) { return b == 0 ? a : b == -1 ? 0 : a % b; }""",
    "square": "static float @square(float x) { return x * x; }",
    "sign": "static float @sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }",
    "tanh": """\
/* tanh |x| = m / (m + 2), m = exp(2 |x|) - 1. As (l + 2) l doubles the exponent of l = exp(t) - 1,
   three times do from t = |x| / 4, where l is a least-squares fit whose weights level the relative
   errors. Within 2e-7, and without a branch, so that loops vectorise; m may be 0 or infinite. */
static float @tanh(float x) {
  const float t = 0.25f * fabsf(x);
  const float h = (0.00196814407f * t + 0.00782545917f) * t + 0.0418488126f;
  const float l = ((h * t + 0.166640465f) * t + 0.500001136f) * t * t + t;
  const float k = l * (l + 2.0f), n = k * (k + 2.0f), m = n * (n + 2.0f);
  return copysignf(1.0f / (1.0f + 2.0f / m), x);
}""",
    "logistic": "static float @logistic(float x) { return 0.5f + 0.5f * @tanh(0.5f * x); }",
    "product": """\
/* y (m) += x (n) times w (n, m): four inputs at a time, each with a row of contiguous weights. */
static void @product(const float *x, float *restrict y, const float *w, int n, int m) {
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
/* The same of 8 bits, with a sum of 32. */
static void @product8(const int8_t *x, int32_t *restrict y, const int8_t *w, int n, int m) {
  for (int i = 0; i < n; i++, w += m) {
    const int32_t a = x[i];
    for (int j = 0; j < m; j++) y[j] += a * w[j];
  }
}""",
}
"""The static functions of a file; each is written where it is called."""
