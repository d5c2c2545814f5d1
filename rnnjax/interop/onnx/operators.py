"""The operators of ONNX that stand around recurrent ones: one table, one entry for each.

Where all inputs of one are known before it runs, NumPy computes it: the shapes that a graph
computes stay known under ``jit``, and what follows from them can have a shape.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import RnnjaxError
from rnnjax.interop.functions import ELU, HardSigmoid, LeakyReLU, ThresholdedReLU
from rnnjax.interop.onnx import axes, control, elementwise, places, products, quantized, windows
from rnnjax.interop.onnx.at import At, is_known
from rnnjax.interop.onnx.elementwise import each, each_by_class, each_by_jax, folded, pair


@dataclasses.dataclass(frozen=True)
class Operator:
    """All that is known of an operator; nothing else asks for its name.

    Attributes:
        run: from `At` and the inputs, None where one is left out, to the output, or a tuple.
        rule: where its outputs have the axes of time and batch that an input has.
        moves: of how many inputs, from the first on, it only puts elements elsewhere; -1 for all.
        folds: whether what it makes of parameters alone is a parameter itself. What follows from
            other constants always is constant.
        kind: what readers of layers make of it; empty for those they have no use for.
        activation: the function of `rnnjax.interop` that it is, by name or class.
        in_cells: whether recurrent operators have that activation.
        costly: whether it takes much longer than its output is large; not folded then.
    """

    run: Callable[..., Any]
    rule: axes.Rule = axes.lost
    moves: int = 0
    folds: bool = False
    kind: str = ""
    activation: str | type[Any] | None = None
    in_cells: bool = False
    costly: bool = False

    def moved(self, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the inputs whose elements it puts elsewhere."""
        return inputs if self.moves < 0 else inputs[: self.moves]


_OF_INPUTS = (
    TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError, MemoryError,
    jax.errors.JaxRuntimeError,
)  # fmt: skip


def run_operator(op_type: str, at: At, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of a node.

    Raises:
        InteropError: the inputs do not fit, with the name of the node.
    """
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


def _arithmetic(function: Any, kind: str = "") -> Operator:
    return Operator(pair(function), axes.broadcast, folds=True, kind=kind)


OPERATORS: Mapping[str, Operator] = {
    # Of each element by itself.
    "Abs": Operator(each("abs"), axes.kept),
    "Acos": Operator(each("arccos"), axes.kept),
    "Acosh": Operator(each("arccosh"), axes.kept),
    "Asin": Operator(each("arcsin"), axes.kept),
    "Asinh": Operator(each("arcsinh"), axes.kept),
    "Atan": Operator(each("arctan"), axes.kept),
    "Atanh": Operator(each("arctanh"), axes.kept),
    "BitwiseNot": Operator(each("invert"), axes.kept),
    "Cast": _moving(elementwise.cast, axes.kept, "type"),
    "CastLike": Operator(elementwise.cast_like, axes.of_first),
    "Ceil": Operator(each("ceil"), axes.kept),
    "Celu": Operator(each_by_jax(jax.nn.celu, "alpha"), axes.kept),
    "Clip": Operator(elementwise.clip, axes.kept),
    "Cos": Operator(each("cos"), axes.kept),
    "Cosh": Operator(each("cosh"), axes.kept),
    "Dropout": Operator(elementwise.dropout, axes.kept, kind="dropout"),
    "Elu": _class(ELU),
    "Erf": Operator(each_by_jax(jax.scipy.special.erf), axes.kept),
    "Exp": Operator(each("exp"), axes.kept, activation="exponential"),
    "Floor": Operator(each("floor"), axes.kept),
    "Gelu": Operator(elementwise.gelu, axes.kept),
    "HardSigmoid": _class(HardSigmoid),
    "HardSwish": Operator(each_by_jax(jax.nn.hard_silu), axes.kept, activation="hard_silu"),
    "IsInf": Operator(elementwise.infinite, axes.kept),
    "IsNaN": Operator(each("isnan"), axes.kept),
    "LeakyRelu": _class(LeakyReLU),
    "Log": Operator(each("log"), axes.kept),
    "Mish": Operator(each_by_jax(jax.nn.mish), axes.kept, activation="mish"),
    "Neg": Operator(each("negative"), axes.kept, folds=True),
    "Not": Operator(each("logical_not"), axes.kept),
    "Reciprocal": Operator(each("reciprocal"), axes.kept),
    # Whose derivative at 0 is 0, unlike that of a maximum.
    "Relu": _function(each_by_jax(jax.nn.relu), "relu"),
    "Round": Operator(each("round"), axes.kept),
    "Selu": Operator(each_by_jax(elementwise.selu, "alpha", "gamma"), axes.kept),
    "Shrink": Operator(each_by_jax(elementwise.shrink, "bias", "lambd"), axes.kept),
    "Sigmoid": _function(each_by_jax(jax.nn.sigmoid), "sigmoid"),
    "Sign": Operator(each("sign"), axes.kept),
    "Sin": Operator(each("sin"), axes.kept),
    "Sinh": Operator(each("sinh"), axes.kept),
    "Softplus": _function(each_by_jax(jax.nn.softplus), "softplus"),
    "Softsign": _function(each_by_jax(jax.nn.soft_sign), "softsign"),
    "Sqrt": Operator(each("sqrt"), axes.kept),
    "Swish": Operator(each_by_jax(elementwise.swish, "alpha"), axes.kept),
    "Tan": Operator(each("tan"), axes.kept),
    "Tanh": _function(each("tanh"), "tanh"),
    "ThresholdedRelu": _class(ThresholdedReLU),
    # Of several arrays.
    "Add": _arithmetic("add", "sum"),
    "And": Operator(pair("logical_and"), axes.broadcast),
    "BitShift": Operator(elementwise.shift, axes.broadcast),
    "BitwiseAnd": Operator(pair("bitwise_and"), axes.broadcast),
    "BitwiseOr": Operator(pair("bitwise_or"), axes.broadcast),
    "BitwiseXor": Operator(pair("bitwise_xor"), axes.broadcast),
    "Div": _arithmetic(elementwise.divide),
    "Equal": Operator(pair("equal"), axes.broadcast),
    "Greater": Operator(pair("greater"), axes.broadcast),
    "GreaterOrEqual": Operator(pair("greater_equal"), axes.broadcast),
    "Less": Operator(pair("less"), axes.broadcast),
    "LessOrEqual": Operator(pair("less_equal"), axes.broadcast),
    "Max": Operator(folded("maximum"), axes.broadcast),
    "Mean": Operator(elementwise.mean, axes.broadcast),
    "Min": Operator(folded("minimum"), axes.broadcast),
    "Mod": Operator(elementwise.modulo, axes.broadcast),
    "Mul": _arithmetic("multiply"),
    "Or": Operator(pair("logical_or"), axes.broadcast),
    "PRelu": Operator(elementwise.prelu, axes.broadcast),
    "Pow": Operator(elementwise.power, axes.broadcast),
    "Sub": _arithmetic("subtract"),
    "Sum": Operator(folded("add"), axes.broadcast),
    "Where": Operator(elementwise.where, axes.broadcast),
    "Xor": Operator(pair("logical_xor"), axes.broadcast),
    # Which sum.
    "ArgMax": Operator(products.place_of("argmax")),
    "ArgMin": Operator(products.place_of("argmin")),
    "BatchNormalization": Operator(products.batch_norm),
    "CumProd": Operator(products.cumulative(jnp.cumprod, 1)),
    "CumSum": Operator(products.cumulative(jnp.cumsum, 0)),
    "Einsum": Operator(products.einsum, costly=True),
    "Gemm": Operator(products.gemm, kind="affine", costly=True),
    "GroupNormalization": Operator(products.group_norm),
    "Hardmax": Operator(products.softmax(products.hardmax), axes.normalized),
    "InstanceNormalization": Operator(products.group_norm),
    "LayerNormalization": Operator(products.layer_norm, axes.normalized_from),
    "LogSoftmax": Operator(
        products.softmax(jax.nn.log_softmax),
        axes.normalized,
        kind="softmax",
        activation="log_softmax",
    ),
    "MatMul": Operator(products.matmul, axes.multiplied, kind="product", costly=True),
    "LpNormalization": Operator(products.power_norm),
    "MeanVarianceNormalization": Operator(products.mean_variance_norm),
    "RMSNormalization": Operator(products.rms_norm, axes.normalized_from),
    "ReduceL1": Operator(products.reduction(lambda xp, x, **o: xp.abs(x).sum(**o))),
    "ReduceL2": Operator(products.reduction(lambda xp, x, **o: xp.sqrt((x * x).sum(**o)))),
    "ReduceLogSum": Operator(products.reduction(lambda xp, x, **o: xp.log(x.sum(**o)))),
    "ReduceLogSumExp": Operator(products.reduction(products.log_sum_exp)),
    "ReduceMax": Operator(products.reduction("max", start=-1)),
    "ReduceMean": Operator(products.reduction("mean")),
    "ReduceMin": Operator(products.reduction("min", start=1)),
    "ReduceProd": Operator(products.reduction("prod")),
    "ReduceSum": Operator(products.reduction("sum")),
    "ReduceSumSquare": Operator(products.reduction(lambda xp, x, **o: (x * x).sum(**o))),
    "Softmax": Operator(
        products.softmax(jax.nn.softmax), axes.normalized, kind="softmax", activation="softmax"
    ),
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
    "Transpose": _moving(places.transpose, axes.permuted, "permute"),
    "Trilu": Operator(places.triangle),
    "Unsqueeze": _moving(places.unsqueeze, axes.reshaped),
    # Which make elements, or count them.
    "Constant": Operator(places.constant, folds=True),
    "ConstantOfShape": Operator(places.filled, folds=True, kind="fill"),
    "EyeLike": Operator(places.eye_like),
    "NonZero": Operator(places.nonzero),
    "OneHot": Operator(places.one_hot, axes.inserted, kind="one-hot"),
    "Range": Operator(places.count, folds=True),
    "Shape": Operator(places.shape_of, folds=True, kind="shape"),
    "Size": Operator(places.size_of, folds=True, kind="shape"),
    # Which run graphs inside of them.
    "If": Operator(control.branch, kind="branch"),
    "Loop": Operator(control.loop),
    "Scan": Operator(control.scan),
}

SAME = next(name for name, one in OPERATORS.items() if one.kind == "same")
"""The operator that gives what it takes."""
