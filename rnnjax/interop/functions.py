"""Functions that several formats share, and their names for cells and activations."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax import cells
from rnnjax.cells.activations import ACTIVATIONS
from rnnjax.cells.base import Cell
from rnnjax.errors import InvalidInputError

Function = Callable[[jax.Array], jax.Array]
"""A function from an array to one of the same shape, with a hash of what it computes."""


@dataclasses.dataclass(frozen=True)
class Nonlinearity:
    """A function with numbers in it, by ONNX's name; equal ones hash alike, and compile once.

    ``"HardSigmoid"`` is ``clip(alpha x + beta, 0, 1)``. Where ``x`` is negative ``"LeakyRelu"`` is
    ``alpha x`` and ``"Elu"`` is ``alpha (exp(x) - 1)``; elsewhere both are ``x``.
    """

    kind: str
    alpha: float
    beta: float = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidInputError for another kind."""
        if self.kind not in NUMBERED:
            known = ", ".join(NUMBERED)
            raise InvalidInputError(f"kind must be one of {known}, but is {self.kind!r}; give that")

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of every entry of ``x``."""
        numbers = (str(getattr(self, key)) for key in NUMBERED[self.kind])
        return _program(" ".join([self.kind, *numbers]), self._of)(x)

    def _of(self, x: jax.Array) -> jax.Array:
        if self.kind == "HardSigmoid":
            return jnp.clip(self.alpha * x + self.beta, 0, 1)
        below = x if self.kind == "LeakyRelu" else jnp.expm1(jnp.minimum(x, 0))
        return jnp.where(x >= 0, x, self.alpha * below)


NUMBERED: Mapping[str, Mapping[str, float]] = {
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
}
"""The kinds of `Nonlinearity`, and ONNX's numbers where none are given."""


@functools.cache
def _program(name: str, function: Function) -> Function:
    """The function as a program with a name of ours, by which a writer knows it in another one."""

    def run(x: jax.Array) -> jax.Array:
        return function(x)

    run.__name__ = f"rnnjax.{name}"
    program: Any = jax.jit(run)
    program.__name__ = name
    return cast("Function", program)


FUNCTIONS: Mapping[str, Function] = {
    name: _program(name, function)
    for name, function in {
        **ACTIVATIONS,
        "softmax": jax.nn.softmax,
        "log_softmax": jax.nn.log_softmax,
        "log_sigmoid": jax.nn.log_sigmoid,
        "exponential": jnp.exp,
        "relu6": jax.nn.relu6,
        "mish": jax.nn.mish,
        "hard_silu": jax.nn.hard_silu,
        "exact_gelu": functools.partial(jax.nn.gelu, approximate=False),  # "gelu" has a tanh
    }.items()
}


IN_CELLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "relu": ("Relu", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "linear": ("Affine", {"alpha": 1.0, "beta": 0.0}),
    "elu": ("Elu", {"alpha": 1.0}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "legacy_hard_sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
}
"""By a name of ``FUNCTIONS``, what ONNX's recurrent operators call it, and its numbers there."""

ONNX: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **IN_CELLS,
    "selu": ("Selu", {}),
    "exponential": ("Exp", {}),
    "hard_silu": ("HardSwish", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "mish": ("Mish", {}),
    "gelu": ("Gelu", {"approximate": "tanh"}),
    "exact_gelu": ("Gelu", {}),
}
"""By a name of ``FUNCTIONS``, the one operator of ONNX that is it, and its attributes."""


def operator_of(program: Any) -> tuple[str, Mapping[str, Any]] | None:
    """The one operator of ONNX that a program with a name of ours is, and its attributes; or None.

    >>> operator_of("rnnjax.LeakyRelu 0.25"), operator_of("relu")
    (('LeakyRelu', {'alpha': 0.25}), None)
    """
    if not str(program).startswith("rnnjax."):
        return None
    kind, *numbers = program.removeprefix("rnnjax.").split()
    if kind in NUMBERED:
        return kind, dict(zip(NUMBERED[kind], map(float, numbers), strict=True))
    return None if kind == "linear" else ONNX.get(kind)


def get_function(function: str | Function) -> Function:
    """Return the function of that name; a callable is returned as it is.

    >>> print(get_function("softmax")(jnp.zeros(2)), Nonlinearity("Elu", 0.5)(jnp.ones(1)))
    [0.5 0.5] [1.]
    """
    if callable(function):
        return function
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    raise InvalidInputError(
        f"unknown function {function!r}; give one of {', '.join(FUNCTIONS)}, or a callable"
    )


_GRU, _LSTM = ("GRU", ("z", "r", "n")), ("LSTM", ("i", "o", "f", "g"))

FORMS: Mapping[str, dict[type[Cell], tuple[str, tuple[str, ...]]]] = {
    "keras": {
        cells.SimpleRNNCell: ("SimpleRNN", ()), cells.LSTMCell: ("LSTM", ()), cells.GRUCell: _GRU,
        cells.ConvLSTMCell: ("ConvLSTM", ()),
    },
    "onnx": {
        cells.SimpleRNNCell: ("RNN", ()), cells.GRUCell: _GRU, cells.LSTMCell: _LSTM,
        cells.PeepholeLSTMCell: _LSTM,
    },
}  # fmt: skip
"""By the format, the cells that it has: the name there of a class, an operator or a module, and the
gates in its order, by the names that the cell declares; none where it is the cell's own."""


def places(where: str, cell: Cell) -> tuple[int, ...]:
    """Return the position of each of a cell's gates in the order of a format."""
    theirs = FORMS[where][type(cell)][1] or cell.gates
    return tuple(theirs.index(gate) for gate in cell.gates)


def reordered(array: Any, order: Sequence[int], axis: int = -1) -> Any:
    """Equal parts of an axis, put in another order; as it is where it has no such parts."""
    if [*order] == sorted(order) or array.ndim == 0 or array.shape[axis] % len(order):
        return array
    places = np.arange(array.shape[axis]).reshape(len(order), -1)[[*order]].reshape(-1)
    return array.take(places, axis)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int = 1,
    spread: Sequence[int] | None = None,
) -> jax.Array:
    """Products with a kernel ``(*space, channels / groups, filters)`` at every place of ``x``.

    ``padding`` is ``"VALID"`` or ``"SAME"``, or what is put before and after each axis of space;
    ``spread`` is how far apart the entries of ``x`` are put, with zeros between them.
    """
    space = "HWD"[: x.ndim - 2]
    ys = lax.conv_general_dilated(
        x, kernel, strides, padding, spread, dilation, (f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )  # fmt: skip
    return ys if bias is None else ys + bias


def pool(
    x: jax.Array,
    maximum: bool,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    dilation: Sequence[int] | None = None,
) -> jax.Array:
    """The largest entry of each window, or the mean of those that are not around ``x``."""

    def slide(x: jax.Array, start: Any, function: Any) -> jax.Array:
        around = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
        return lax.reduce_window(
            x, np.array(start, x.dtype), function, (1, *window, 1), (1, *strides, 1), around,
            window_dilation=None if dilation is None else (1, *dilation, 1),
        )  # fmt: skip

    if maximum:
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        return slide(x, -np.inf if floats else jnp.iinfo(x.dtype).min, lax.max)
    return slide(x, 0, lax.add) / slide(jnp.ones_like(x), 0, lax.add)


def normalize(
    x: jax.Array, mean: jax.Array, variance: jax.Array, epsilon: float, scale: Any, shift: Any
) -> jax.Array:
    """Normalise by a mean and a variance, then scale and shift if given."""
    ys = (x - mean) * lax.rsqrt(variance + epsilon)
    ys = ys if scale is None else ys * scale
    return ys if shift is None else ys + shift


def standardize(
    x: jax.Array, axes: int | Sequence[int], epsilon: float, scale: Any, shift: Any
) -> jax.Array:
    """Normalise by mean and variance over axes, computed in at least 32 bits."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    return normalize(wide, mean, variance, epsilon, scale, shift).astype(x.dtype)
