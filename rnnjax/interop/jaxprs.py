"""What the writers of ONNX and of C read alike in programs of JAX, whose names change with it."""

import abc
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from numpy.lib.stride_tricks import sliding_window_view

_CALLS = ("jit", "call", "closed_call", "eval_jaxpr", "remat2", "composite",
          "custom_jvp_call", "custom_vjp_call")  # fmt: skip
SAME = "copy", "name", "optimization_barrier", "pvary", "sharding_constraint", "stop_gradient"
"""Operations that give what they are given."""


def program_of(equation: Any) -> Any:
    """The program that a call runs once on all that it is given; None where this is no call."""
    p = equation.params if equation.primitive.name in _CALLS else {}
    return p.get("jaxpr", p.get("call_jaxpr"))


def scan_sizes(equation: Any) -> tuple[int, int]:
    """Count the constants and the carried arrays of a scan.

    By their axes, for from JAX 0.12 on it has no such numbers: all others have the axis of steps.
    """
    step = equation.params["jaxpr"].jaxpr
    pairs = zip(equation.invars + equation.outvars, step.invars + step.outvars, strict=True)
    alike = [len(a.aval.shape) == len(b.aval.shape) for a, b in pairs]
    carried = sum(alike[len(step.invars) :])
    return sum(alike[: len(step.invars)]) - carried, carried


def numbers(shape: Sequence[int]) -> np.ndarray:
    """Number the entries of an array, the last axis first."""
    return np.arange(math.prod(shape)).reshape(shape)


def inside(equation: Any) -> tuple[slice, ...]:
    """Where in what is padded, or cut off by no less than nothing, its operand stands."""
    ways = zip(equation.params["padding_config"], equation.invars[0].aval.shape, strict=True)
    return tuple(slice(low, low + (step + 1) * n, step + 1) for (low, _, step), n in ways)


OTHERS: dict[str, Callable[..., Any]] = {
    "clamp": lambda p, low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "one_minus_square": lambda p, x: (1 + x) * (1 - x),  # which keeps its digits near 1
    "polynomial": lambda p, x, *of: functools.reduce(lambda y, c: y * x + c, reversed(of)),
    "rsqrt": lambda p, x: 1 / jnp.sqrt(x),
    "select_n": lambda p, which, *cases: (
        None
        if which.dtype == bool
        else functools.reduce(
            lambda y, i: jnp.where(which == i, cases[i], y), range(1, len(cases)), cases[0]
        )
    ),
    "stack": lambda p, *xs: jnp.concatenate(
        [lax.expand_dims(x, [p["axis"]]) for x in xs], p["axis"]
    ),
    "unstack": lambda p, x: [
        lax.index_in_dim(x, i, p["axis"], keepdims=False) for i in range(x.shape[p["axis"]])
    ],
}
"""By an operation what others make of its parameters and operands; None if it stays."""

MOVES: Mapping[str, Callable[..., Any]] = {
    "squeeze": lambda x, p, shape: x.reshape(shape),
    "reshape": lambda x, p, shape: x.transpose(p["dimensions"] or range(x.ndim)).reshape(shape),
    "broadcast_in_dim": lambda x, p, shape: np.broadcast_to(
        np.expand_dims(x, (*{*range(len(shape))} - {*p["broadcast_dimensions"]},)), shape, True
    ),
    "slice": lambda x, p, shape: x[
        (*map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * x.ndim),)
    ],
    "transpose": lambda x, p, shape: x.transpose(p["permutation"]),
    "rev": lambda x, p, shape: np.flip(x, p["dimensions"]),
    "split": lambda x, p, shape: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "tile": lambda x, p, shape: np.tile(x, p["reps"]),
}
"""By an operation that only moves entries what it makes of their numbers, and of a shape."""


def moved(equation: Any, others: Sequence[Any]) -> Any:
    """The numbers of the entries of the first operand that stand in a result, or in each of some.

    None if the operation does more than move, by known indices or none, or takes what is outside.
    """
    p, before = equation.params, numbers(equation.invars[0].aval.shape)
    if move := MOVES.get(equation.primitive.name):
        return move(before, p, equation.outvars[0].aval.shape)
    known = all(type(x) is np.ndarray for x in others)  # of which a Span is a subclass
    if equation.primitive.name not in ("gather", "dynamic_slice") or not known:
        return None
    lost = {key: -1 for key in p if key == "fill_value"}
    at = np.asarray(equation.primitive.bind(before, *others, **p | lost))
    return at if at.min(initial=0) >= 0 else None


ENTRYWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "cbrt", "ceil", "convert_element_type", "cos", "cosh", "div", "eq", "erf", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "log2",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision",
    "rem", "round", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh",
    "xor",
}  # fmt: skip
"""Operations of which each entry follows from those at its place, or from a number."""


def _windows(x: Any, value: Any, padding: Any, *ways: Any) -> Any:
    """Windows ``(*places, *sizes)`` of given sizes, dilations and steps."""
    x = lax.pad(x, jnp.asarray(value, x.dtype), [(*way, 0) for way in padding])
    sizes = [step * (n - 1) + 1 for n, step, _ in zip(*ways, strict=True)]
    seen = sliding_window_view(numbers(x.shape), sizes)
    steps = (slice(None, None, step) for step in (*ways[2], *ways[1]))
    return jnp.take(x, seen[(*steps,)], mode="clip")


def _convolution(p: Any, x: Any, w: Any) -> Any:
    """One product for each group: what the kernel sees at each place is a row."""
    spec, groups = p["dimension_numbers"], p["feature_group_count"]
    if p["batch_group_count"] > 1 or {*p["lhs_dilation"]} - {1} or not p["made"].size:
        return None
    x = x.transpose(spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1])
    w = w.transpose(*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
    sizes, steps = (
        (1, *w.shape[:-2], 1),
        ((1, *p[key], 1) for key in ("rhs_dilation", "window_strides")),
    )
    seen = _windows(x, 0, ((0, 0), *p["padding"], (0, 0)), sizes, *steps)
    seen = jnp.moveaxis(seen, x.ndim - 1, -1)  # (batch, *places, *kernel, channels)
    parts = zip(jnp.split(seen, groups, -1), jnp.split(w, groups, -1), strict=True)
    ys = [a.reshape(*seen.shape[: x.ndim - 1], -1) @ b.reshape(-1, b.shape[-1]) for a, b in parts]
    y = ys[0] if groups == 1 else jnp.concatenate(ys, -1)
    return y.transpose(np.argsort([spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1]]))


def _pool(value: float, reduce: Callable[..., Any], p: Any, x: Any) -> Any:
    keys = "padding", "window_dimensions", "window_dilation", "window_strides"
    if {*p["base_dilation"]} - {1} or not p["made"].size:
        return None
    return reduce(_windows(x, value, *(p[key] for key in keys)), axis=range(x.ndim, 2 * x.ndim))


SLIDING: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": functools.partial(_pool, -np.inf, jnp.max),
    "reduce_window_sum": functools.partial(_pool, 0, jnp.sum),
}
"""Operations on windows in terms of others; None where that is not so."""


class Walker(abc.ABC):
    """Runs equations on arrays, and on values of one type, ``unknown``, that stand for others.

    Calls are inlined, what follows from arrays alone is computed, and what nothing follows from,
    such as a print, is left out.
    """

    unknown: type[Any]
    rules: Mapping[str, Callable[..., Any]] = OTHERS

    def run(self, program: Any, given: Sequence[Any]) -> list[Any]:
        """Return what a program gives."""
        jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        ins = [*map(self.array, consts), *given]
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], ins, strict=True))
        uses, eqns = Counter(map(id, jaxpr.outvars)), list[Any]()
        for equation in reversed(jaxpr.eqns):
            if any(uses[id(var)] for var in equation.outvars):
                uses.update(map(id, equation.invars))
                eqns.append(equation)

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return np.asarray(atom.val, getattr(atom.aval, "dtype", None))
            if uses[id(atom)] > 1:
                values[atom] = self.shared(values[atom])
            return values[atom]

        for equation in reversed(eqns):
            made = self.made(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def shared(self, value: Any) -> Any:
        """Return a value that is read more than once."""
        return value

    def made(self, equation: Any, given: list[Any]) -> Sequence[Any]:
        """Return what an equation gives."""
        if equation.primitive.name in SAME:
            return given
        if (inside := program_of(equation)) is not None:
            return self.run(inside, given)
        known = self.computes(equation) and not any(isinstance(x, self.unknown) for x in given)
        made = self.known(equation, given) if known else self.result(equation, given)
        return made if type(made) in (list, tuple) else [made]  # a Value of C is a tuple of its own

    def known(self, equation: Any, given: list[Any]) -> Any:
        """Compute what follows from arrays alone."""
        move, p = MOVES.get(equation.primitive.name), equation.params
        if move and isinstance(given[0], np.ndarray):  # without a program to compile
            return move(given[0], p, equation.outvars[0].aval.shape)
        return jax.tree.map(self.array, equation.primitive.bind(*given, **p))

    def ruled(self, equation: Any, given: list[Any], **more: Any) -> Any:
        """Return what other equations give, by a rule of ``(parameters, *operands)``, or None."""
        if rule := self.rules.get(equation.primitive.name):
            own = {"equation": equation, "made": equation.outvars[0].aval}
            p = equation.params | own | more
            ins = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
            traced = jax.make_jaxpr(functools.partial(rule, p))(*ins)
            return self.run(traced, given) if traced.out_avals else None
        return None

    def array(self, x: Any) -> Any:
        """An array as one of NumPy, except of random keys, which NumPy does not hold."""
        held = isinstance(x, self.unknown) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if held else np.asarray(x)

    def computes(self, equation: Any) -> bool:
        """Whether it can be computed here."""
        return True

    @abc.abstractmethod
    def result(self, equation: Any, given: list[Any]) -> Any:
        """Return what follows from values that are not known."""
