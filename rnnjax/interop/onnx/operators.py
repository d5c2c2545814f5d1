"""The operators of ONNX that stand around recurrent ones: one table, one entry for each.

Where all inputs of one are known before it runs, NumPy computes it: the shapes that a graph
computes stay known under ``jit``, and what follows from them can have a shape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import RnnjaxError
from rnnjax.interop.functions import ELU, HardSigmoid, LeakyReLU, ThresholdedReLU
from rnnjax.interop.onnx import axes, control, elementwise, places, products, quantized, windows
from rnnjax.interop.onnx.at import At, by_jax, is_known, module_of
from rnnjax.interop.onnx.elementwise import each, each_by_class, each_by_jax, folded, pair


@dataclasses.dataclass(frozen=True)
class Operator:
    """All that is known of an operator; nothing else asks for its name."""

    # from `At` and the inputs, None where one is left out, to the output, or a tuple
    run: Callable[..., Any]
    # where its outputs have the axes of time and batch that an input has
    rule: axes.Rule = axes.lost
    # of how many inputs, from the first on, it only puts elements elsewhere; -1 for all
    moves: int = 0
    # whether what it makes of parameters alone is a parameter itself. What follows from other
    # constants always is constant.
    folds: bool = False
    kind: str = ""  # what readers of layers make of it; empty for those they have no use for
    # the function of `rnnjax.interop` that it is, by name or class
    activation: str | type[Any] | None = None
    in_cells: bool = False  # whether recurrent operators have that activation
    costly: bool = False  # whether it takes much longer than its output is large; not folded then

    def moved(self, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the inputs whose elements it puts elsewhere."""
        return inputs if self.moves < 0 else inputs[: self.moves]


_OF_INPUTS = (
    TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError, MemoryError,
    jax.errors.JaxRuntimeError,
)  # fmt: skip


def run_operator(op_type: str, at: At, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of a node."""
    operator = OPERATORS[op_type]
    try:
        with np.errstate(all="ignore"):  # as JAX does: infinities and NaN are values
            outputs = operator.run(at, *inputs)
    except RnnjaxError:
        raise
    except _OF_INPUTS as error:
        came = ", ".join("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise at.fail(f"{op_type} cannot take inputs {came}: {reason}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not operator.moves and all(map(is_known, inputs)):  # what is only moved is mostly a view
        at.bound([sum(y.size for y in outputs if is_known(y))])
    return tuple(np.asarray(y) if isinstance(y, np.generic) else y for y in outputs)


def kind_of(op_type: str) -> str:
    """`Operator.kind`; empty for a recurrent operator."""
    return OPERATORS[op_type].kind if op_type in OPERATORS else ""


def _function(run: Callable[..., Any], activation: str, **declared: Any) -> Operator:
    """Of each element, by a name of ours, which recurrent operators have too."""
    return Operator(run, axes.kept, activation=activation, in_cells=True, **declared)


def _class(kind: type[Any]) -> Operator:
    """Of each element, with numbers in it."""
    return Operator(each_by_class(kind), axes.kept, activation=kind, in_cells=True)


def _moving(
    run: Callable[..., Any], rule: axes.Rule = axes.lost, kind: str = "", moves: int = 1
) -> Operator:
    return Operator(run, rule, moves, folds=True, kind=kind)


def _softmax(function: Callable[..., Any], name: str) -> Operator:
    run = products.softmax(function)
    return Operator(run, axes.normalized, kind="softmax", activation=name)


def _counting(function: Callable[..., Any]) -> Operator:
    def run(at: At, x: Any) -> Any:
        return np.array(function(at, x), np.int64)

    return Operator(run, folds=True, kind="shape")


def _arithmetic(function: Any, kind: str = "") -> Operator:
    return Operator(pair(function), axes.broadcast, folds=True, kind=kind)


# By the name that NumPy has for them, which is the rest of the name here in small letters.
_SMALL = ("Abs", "Ceil", "Cos", "Cosh", "Floor", "IsNaN", "Log", "Reciprocal", "Round", "Sign",
          "Sin", "Sinh", "Sqrt", "Tan")  # fmt: skip
_INVERSE = ("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh")
_BINARY = ("And", "Or", "Xor")

OPERATORS: Mapping[str, Operator] = {
    # Of each element by itself.
    **{name: Operator(each(name.lower()), axes.kept) for name in _SMALL},
    **{name: Operator(each(f"arc{name[1:].lower()}"), axes.kept) for name in _INVERSE},
    "BitwiseNot": Operator(each("invert"), axes.kept),
    "Cast": _moving(elementwise.cast, axes.kept, "type"),
    "CastLike": Operator(lambda at, x, y: elementwise.as_type(at, x, y.dtype), axes.of_first),
    "Celu": Operator(each_by_jax(jax.nn.celu, "alpha"), axes.kept),
    "Clip": Operator(elementwise.clip, axes.kept),
    "Dropout": Operator(elementwise.dropout, axes.kept, kind="dropout"),
    "Elu": _class(ELU),
    "Erf": Operator(each_by_jax(jax.scipy.special.erf), axes.kept),
    "Exp": Operator(each("exp"), axes.kept, activation="exponential"),
    "Gelu": Operator(
        lambda at, x: each_by_jax(
            functools.partial(jax.nn.gelu, approximate=at.get("approximate", "none") == "tanh")
        )(at, x),
        axes.kept,
    ),
    "HardSigmoid": _class(HardSigmoid),
    "HardSwish": Operator(each_by_jax(jax.nn.hard_silu), axes.kept, activation="hard_silu"),
    "IsInf": Operator(elementwise.infinite, axes.kept),
    "LeakyRelu": _class(LeakyReLU),
    "Mish": Operator(each_by_jax(jax.nn.mish), axes.kept, activation="mish"),
    "Neg": Operator(each("negative"), axes.kept, folds=True),
    "Not": Operator(each("logical_not"), axes.kept),
    # Whose derivative at 0 is 0, unlike that of a maximum.
    "Relu": _function(each_by_jax(jax.nn.relu), "relu"),
    "Selu": Operator(each_by_jax(elementwise.selu, "alpha", "gamma"), axes.kept),
    "Shrink": Operator(each_by_jax(elementwise.shrink, "bias", "lambd"), axes.kept),
    "Sigmoid": _function(each_by_jax(jax.nn.sigmoid), "sigmoid"),
    "Softplus": _function(each_by_jax(jax.nn.softplus), "softplus"),
    "Softsign": _function(each_by_jax(jax.nn.soft_sign), "softsign"),
    "Swish": Operator(
        each_by_jax(lambda x, alpha=1.0: x * jax.nn.sigmoid(alpha * x), "alpha"), axes.kept
    ),
    "Tanh": _function(each("tanh"), "tanh"),
    "ThresholdedRelu": _class(ThresholdedReLU),
    # Of several arrays.
    **{name: Operator(pair(name.lower()), axes.broadcast) for name in ("Equal", "Greater", "Less")},
    **{name: Operator(pair(f"logical_{name.lower()}"), axes.broadcast) for name in _BINARY},
    **{f"Bitwise{n}": Operator(pair(f"bitwise_{n.lower()}"), axes.broadcast) for n in _BINARY},
    "Add": _arithmetic("add", "sum"),
    "BitShift": Operator(elementwise.shift, axes.broadcast),
    "Div": _arithmetic(elementwise.divide),
    "GreaterOrEqual": Operator(pair("greater_equal"), axes.broadcast),
    "LessOrEqual": Operator(pair("less_equal"), axes.broadcast),
    "Max": Operator(folded("maximum"), axes.broadcast),
    "Mean": Operator(
        lambda at, *xs: folded("add")(at, *xs) / np.asarray(len(xs), xs[0].dtype), axes.broadcast
    ),
    "Min": Operator(folded("minimum"), axes.broadcast),
    "Mod": Operator(
        lambda at, x, y: pair("fmod" if at.get("fmod", 0) else "mod")(at, x, y), axes.broadcast
    ),
    "Mul": _arithmetic("multiply"),
    "PRelu": Operator(elementwise.prelu, axes.broadcast),
    "Pow": Operator(elementwise.power, axes.broadcast),
    "Sub": _arithmetic("subtract"),
    "Sum": Operator(folded("add"), axes.broadcast),
    "Where": Operator(elementwise.where, axes.broadcast),
    # Which sum.
    **{f"Arg{name}": Operator(products.place_of(f"arg{name.lower()}")) for name in ("Max", "Min")},
    "BatchNormalization": Operator(products.batch_norm),
    "CumProd": Operator(products.cumulative(jnp.cumprod, 1)),
    "CumSum": Operator(products.cumulative(jnp.cumsum, 0)),
    "Einsum": Operator(products.einsum, costly=True),
    "Gemm": Operator(products.gemm, kind="affine", costly=True),
    "GroupNormalization": Operator(products.group_norm),
    "Hardmax": Operator(products.softmax(products.hardmax), axes.normalized),
    "InstanceNormalization": Operator(products.group_norm),
    "LayerNormalization": Operator(products.layer_norm, axes.normalized_from),
    "LogSoftmax": _softmax(jax.nn.log_softmax, "log_softmax"),
    "MatMul": Operator(products.matmul, axes.multiplied, kind="product", costly=True),
    "LpNormalization": Operator(products.power_norm),
    "MeanVarianceNormalization": Operator(products.mean_variance_norm),
    "RMSNormalization": Operator(products.rms_norm, axes.normalized_from),
    "ReduceL1": Operator(products.reduction(lambda xp, x, **o: xp.abs(x).sum(**o))),
    "ReduceL2": Operator(products.reduction(lambda xp, x, **o: xp.sqrt((x * x).sum(**o)))),
    "ReduceLogSum": Operator(products.reduction(lambda xp, x, **o: xp.log(x.sum(**o)))),
    "ReduceLogSumExp": Operator(
        products.reduction(lambda xp, x, **o: by_jax(lambda x: jax.nn.logsumexp(x, **o), x))
    ),
    **{f"Reduce{n}": Operator(products.reduction(n.lower())) for n in ("Mean", "Prod", "Sum")},
    "ReduceMax": Operator(products.reduction("max", start=-1)),
    "ReduceMin": Operator(products.reduction("min", start=1)),
    "ReduceSumSquare": Operator(products.reduction(lambda xp, x, **o: (x * x).sum(**o))),
    "Softmax": _softmax(jax.nn.softmax, "softmax"),
    "TopK": Operator(products.top_k),
    # Which slide over space.
    "AveragePool": Operator(windows.average_pool),
    "Conv": Operator(windows.conv, costly=True),
    "ConvTranspose": Operator(windows.conv_transpose, costly=True),
    "GlobalAveragePool": Operator(windows.whole_pool("mean")),
    "GlobalMaxPool": Operator(windows.whole_pool("max")),
    "MaxPool": Operator(windows.max_pool),
    "Pad": Operator(windows.pad),
    # Of integers that stand for real numbers.
    "ConvInteger": Operator(quantized.conv_integer, costly=True),
    "DequantizeLinear": Operator(quantized.dequantize, axes.kept),
    "DynamicQuantizeLinear": Operator(quantized.quantize_by_range, axes.kept),
    "MatMulInteger": Operator(quantized.matmul_integer, axes.multiplied, costly=True),
    "QLinearMatMul": Operator(quantized.quantized_matmul, costly=True),
    "QuantizeLinear": Operator(quantized.quantize, axes.kept),
    # Which put elements elsewhere.
    "Compress": Operator(places.compress),
    "Concat": _moving(places.concatenate, axes.joined, moves=-1),
    "DepthToSpace": _moving(places.depth_to_space),
    "Expand": _moving(places.expand),
    "Flatten": _moving(places.flatten, axes.reshaped, "flatten"),
    "Gather": _moving(places.gather, axes.looked_up, "look-up"),
    "GatherElements": Operator(places.gather_elements),
    "GatherND": Operator(places.gather_nd),
    "Identity": _moving(lambda at, x: x, axes.kept, "same"),
    "Reshape": _moving(places.reshape, axes.reshaped, "reshape"),
    "ReverseSequence": Operator(places.reverse_sequence),
    "ScatterElements": Operator(places.scatter_elements),
    "ScatterND": Operator(places.scatter_nd),
    "Slice": _moving(places.part, kind="part"),
    "SpaceToDepth": _moving(places.space_to_depth),
    "Split": _moving(places.split),
    "Squeeze": _moving(places.squeeze, axes.reshaped, "squeeze"),
    "Tile": _moving(places.tile),
    "Transpose": _moving(
        lambda at, x: module_of(x).transpose(x, at.get("perm")), axes.permuted, "permute"
    ),
    "Trilu": Operator(places.triangle),
    "Unsqueeze": _moving(places.unsqueeze, axes.reshaped),
    # Which make elements, or count them.
    "Constant": Operator(places.constant, folds=True),
    "ConstantOfShape": Operator(places.filled, folds=True, kind="fill"),
    "EyeLike": Operator(places.eye_like),
    "NonZero": Operator(places.nonzero),
    "OneHot": Operator(places.one_hot, axes.inserted, kind="one-hot"),
    "Range": Operator(places.count, folds=True),
    "Shape": _counting(lambda at, x: x.shape[at.get("start", 0) : at.get("end", None)]),
    "Size": _counting(lambda at, x: math.prod(x.shape)),
    # Which run graphs inside of them.
    "If": Operator(control.branch, kind="branch"),
    "Loop": Operator(control.loop),
    "Scan": Operator(control.scan),
}

SAME = next(name for name, one in OPERATORS.items() if one.kind == "same")
"""The operator that gives what it takes."""
