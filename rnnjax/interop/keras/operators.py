"""The layers of Keras that have no time of their own: one row of a table each.

A row says what is computed, with which arrays, and what becomes of the mask. It sees arrays as
Keras has them, batch first; `Operation` turns the first two axes of what has a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.cells.base import Carry, Params
from rnnjax.errors import InvalidInputError
from rnnjax.interop.functions import get_function
from rnnjax.interop.layers import Context, Flow, Layer, Shape, Weights, single
from rnnjax.layers.dropout import factors


class At(NamedTuple):
    """What an operator is told beside its arrays."""

    config: Mapping[str, Any]  # the options of the layer, and those of its call
    params: Params  # its parameters
    masks: Sequence[jax.Array | None]  # of its arrays, (batch, time), or None
    key: jax.Array | None  # for dropout, or None


SEVERAL = (1, 2**20)


class Operator(NamedTuple):
    """A row of the table."""

    run: Callable[..., Any]  # (at, *arrays) to an array, or to a tuple of several
    # of the options, by the place below the layer where Keras has them
    weights: Callable[[Mapping[str, Any]], Mapping[str, Weights]] = lambda config: {}
    # (at, *arrays) to the mask of what it gives; None, where that has other steps
    mask: Callable[..., jax.Array | None] | None = None
    arrays: tuple[int, int] = (1, 1)  # how many it takes at least and at most
    options: tuple[str, ...] = ()  # those of the layer and its call that it reads


@dataclasses.dataclass(frozen=True)
class Operation(Layer):
    """A layer of Keras by the name of its row.

    Args:
        name: of the layer.
        kind: its class, or ``"ops."`` and its name for a function of ``keras.ops``.
        config: its options, those that its row reads.
        each_step: whether each step is an array by itself, as in Keras's TimeDistributed.
    """

    name: str
    kind: str
    config: tuple[tuple[str, Any], ...] = ()
    each_step: bool = False

    @property
    def gives_scores(self) -> bool:
        """Whether weights of attention come behind its output."""
        return bool(dict(self.config).get("return_attention_scores"))

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The shapes of its parameters, by the place below the layer."""
        return OPERATORS[self.kind].weights(dict(self.config))

    def run(
        self, params: Params, flow: Any, carry: Carry | None, context: Context
    ) -> tuple[None, Any]:
        """Run the row; ``flow`` is a tuple where the layer takes several arrays."""
        flows = (flow,) if isinstance(flow, Flow) else flow
        xs = [_turned(single(self, one), one.sequence) for one in flows]
        for x, one in zip(xs, flows, strict=True):
            if one.sequence and x.ndim == 2:
                raise InvalidInputError(
                    f"layer {self.name!r} takes sequences with a batch, (time, batch, features), "
                    f"but got {list(x.shape)}; give a batch of one row"
                )
        masks = [None if one.mask is None else _turned(one.mask, True) for one in flows]
        first, averages = masks[0], self.kind == "GlobalAveragePooling1D"
        if self.each_step and first is not None and (first.ndim > 2 or averages):
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, comes behind a mask that it would use inside of "
                "each step, which is not known here; leave the mask out"
            )
        if self.kind == "Softmax" and first is not None:
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, would take what is masked for a part of its sum; "
                "leave the mask and the lengths out"
            )
        row, at = OPERATORS[self.kind], At(dict(self.config), params, masks, context.key)
        run = functools.partial(row.run, at)
        try:
            ys = jax.vmap(run, 1, 1)(*xs) if self.each_step else run(*xs)
            mask = masks[0] if self.each_step else row.mask and row.mask(at, *xs)
        except (TypeError, ValueError, IndexError) as error:  # of JAX
            shapes = ", ".join(str(list(x.shape)) for x in xs)
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, does not take arrays of shapes {shapes}, batch "
                f"first: {str(error).splitlines()[0]}"
            ) from error
        made = [
            Flow(_turned(y, y.ndim > 2), None, y.ndim > 2)
            for y in (ys if isinstance(ys, tuple) else (ys,))
        ]
        made[0] = made[0]._replace(mask=None if mask is None else mask.T)
        return None, made[0] if len(made) == 1 else tuple(made)

    def __str__(self) -> str:
        shown = [f"{k}={v}" for k, v in self.config if v is not None and k in _SHOWN]
        inner = f"{self.kind}({', '.join(shown)})"
        return f"TimeDistributed({inner})" if self.each_step else inner


_SHOWN = ("filters", "kernel_size", "pool_size", "axis", "axes", "num_heads", "key_dim", "n")


def _turned(x: jax.Array, sequence: bool) -> jax.Array:
    return jnp.swapaxes(x, 0, 1) if sequence else x


# --- several arrays into one ---------------------------------------------------------------------


def _alike(xs: Sequence[jax.Array]) -> list[jax.Array]:
    """Of one rank: lower ones get axes behind the batch."""
    most = max(x.ndim for x in xs)
    return [jnp.expand_dims(x, tuple(range(1, 1 + most - x.ndim))) for x in xs]


def _merged(run: Callable[..., jax.Array]) -> Operator:
    return Operator(run, mask=_any_mask, arrays=SEVERAL)


def _one_by_one(function: Callable[[Any, Any], Any]) -> Operator:
    """Elementwise, whatever the masks say."""
    return _merged(lambda at, *xs: functools.reduce(function, _alike(xs)))


def _multiply(at: At, *xs: jax.Array) -> jax.Array:
    """What is masked in one array is left to the others, and where it is in all 0."""
    masks = [None if mask is None else mask[..., None] for mask in at.masks]
    shown = [x if m is None else jnp.where(m, x, 1) for x, m in zip(xs, masks, strict=True)]
    ys = functools.reduce(jnp.multiply, _alike(shown))
    mask = _any_mask(at)
    return ys if mask is None else jnp.where(mask[..., None], ys, 0)


def _extreme(function: Callable[[Any, Any], Any], at: At, *xs: jax.Array) -> jax.Array:
    """The same, one array after the other."""
    masks = [None if mask is None else mask[..., None] for mask in at.masks]
    (ys, *rest), seen = _alike(xs), masks[0]
    for x, mask in zip(rest, masks[1:], strict=True):
        x = x if mask is None else jnp.where(mask, x, ys)
        ys = ys if seen is None else jnp.where(seen, ys, x)
        seen = None if seen is None or mask is None else seen | mask
        ys = function(ys, x)
    return ys


def _arguments(at: At, xs: Sequence[jax.Array]) -> list[Any]:
    """Those of a function of ``keras.ops``, among which numbers may stand."""
    rest = iter(xs)
    template = at.config.get("arguments", (None,) * len(xs))
    return [next(rest) if value is None else value for value in template]


def _any_mask(at: At, *xs: jax.Array) -> jax.Array | None:
    masks = [mask for mask in at.masks if mask is not None]
    return functools.reduce(jnp.logical_or, masks) if len(masks) == len(at.masks) else None


def _concatenate(at: At, *xs: jax.Array) -> jax.Array:
    return jnp.concatenate(xs, at.config.get("axis", -1))


def _joined_mask(at: At, *xs: jax.Array) -> jax.Array | None:
    if all(mask is None for mask in at.masks):
        return None
    full = [
        jnp.ones(x.shape, bool) if mask is None else jnp.broadcast_to(mask[..., None], x.shape)
        for x, mask in zip(xs, at.masks, strict=True)
    ]
    return _concatenate(at, *full).any(-1)


def _dot(at: At, x: jax.Array, y: jax.Array) -> jax.Array:
    axes = at.config["axes"]
    i, j = (axes, axes) if isinstance(axes, int) else axes
    if at.config.get("normalize"):
        x, y = (
            z * lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis, keepdims=True), 1e-12))
            for z, axis in ((x, i), (y, j))
        )
    i, j = i % x.ndim, j % y.ndim
    ys = lax.dot_general(x, y, (((i,), (j,)), ((0,), (0,))))
    return ys[:, None] if ys.ndim == 1 else ys


# --- windows -------------------------------------------------------------------------------------


def _many(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _conv(at: At, x: jax.Array) -> jax.Array:
    kernel, rank = at.params["kernel"], x.ndim - 2
    dilation = _many(at.config.get("dilation_rate", 1), rank)
    padding = at.config.get("padding", "valid")
    spatial = "HWD"[:rank]
    ys = lax.conv_general_dilated(
        x,
        kernel,
        _many(at.config.get("strides", 1), rank),
        [(dilation[0] * (kernel.shape[0] - 1), 0)] if padding == "causal" else padding.upper(),
        rhs_dilation=dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=at.config.get("groups", 1),
    )
    ys = ys + at.params["bias"] if "bias" in at.params else ys
    return get_function(at.config["activation"])(ys)


def _conv_weights(rank: int) -> Callable[[Mapping[str, Any]], Mapping[str, Weights]]:
    def weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
        size = config["filters"]
        kernel = (*_many(config["kernel_size"], rank), None, size)
        return {"": {"kernel": kernel} | ({"bias": (size,)} if config["use_bias"] else {})}

    return weights


def _pool(maximum: bool, at: At, x: jax.Array) -> jax.Array:
    rank = x.ndim - 2
    window = _many(at.config["pool_size"], rank)
    strides = window if at.config.get("strides") is None else _many(at.config["strides"], rank)
    start, function = (-jnp.inf, lax.max) if maximum else (0.0, lax.add)
    slide = functools.partial(
        lax.reduce_window,
        computation=function,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=at.config.get("padding", "valid").upper(),
    )
    ys = slide(x, jnp.asarray(start, x.dtype))
    return ys if maximum else ys / slide(jnp.ones_like(x), jnp.asarray(start, x.dtype))


def _global(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def run(at: At, x: jax.Array) -> jax.Array:
        return function(x, tuple(range(1, x.ndim - 1)), keepdims=bool(at.config.get("keepdims")))

    return run


def _global_average(at: At, x: jax.Array) -> jax.Array:
    mask = at.masks[0]
    if mask is None:
        return _global(jnp.mean)(at, x)
    keep = bool(at.config.get("keepdims"))
    some = jnp.where(mask[..., None], x, 0)
    return some.sum(1, keepdims=keep) / mask[..., None].astype(x.dtype).sum(1, keepdims=keep)


def _cut(at: At, x: jax.Array) -> jax.Array:
    first, last = _many(at.config["cropping"], 2)
    return x[:, first : x.shape[1] - last]


# --- norms ---------------------------------------------------------------------------------------


def _axes(config: Mapping[str, Any]) -> tuple[int, ...]:
    return _many(config["axis"], 1)


def _norm_weights(*more: str) -> Callable[[Mapping[str, Any]], Mapping[str, Weights]]:
    def weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
        names = [name for name, asked in (("gamma", "scale"), ("beta", "center")) if config[asked]]
        return {"": dict.fromkeys((*names, *more), (None,) * len(_axes(config)))}

    return weights


def _normalize(at: At, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    ys = (x - mean) * lax.rsqrt(variance + at.config["epsilon"])
    ys = ys * _along(at, x, "gamma") if "gamma" in at.params else ys
    return ys + _along(at, x, "beta") if "beta" in at.params else ys


def _along(at: At, x: jax.Array, name: str) -> jax.Array:
    """A parameter with the axes of the array, for those that are normalised."""
    axes = {axis % x.ndim for axis in _axes(at.config)}
    return at.params[name].reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])


def _layer_norm(at: At, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):  # Keras rounds what comes out
        raise InvalidInputError(
            f"LayerNormalization must be given floating-point numbers, but {x.dtype} came; cast "
            "them before it, as keras.ops.cast does"
        )
    axes = _axes(at.config)
    mean = x.mean(axes, keepdims=True)
    return _normalize(at, x, mean, jnp.square(x - mean).mean(axes, keepdims=True))


def _batch_norm(at: At, x: jax.Array) -> jax.Array:
    """With what it kept of training; it learns no more of that here."""
    kept = (lax.stop_gradient(_along(at, x, f"moving_{name}")) for name in ("mean", "variance"))
    return _normalize(at, x, *kept)


# --- attention -----------------------------------------------------------------------------------


def _attend(at: At, scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The weights ``(..., queries, keys)``."""
    if at.config.get("use_causal_mask"):
        queries, keys = scores.shape[-2:]
        causal = jnp.arange(queries)[:, None] >= jnp.arange(keys)
        mask = causal if mask is None else mask & causal
    if mask is not None:
        scores = jnp.where(mask, scores, scores - 1e9)
    weights, rate = jax.nn.softmax(scores), at.config.get("dropout") or 0.0
    # A query without a key: Keras's heads give 0 where they make the weights, not in one kernel.
    heads = "num_heads" in at.config and (rate or at.config.get("return_attention_scores"))
    if heads and mask is not None:
        weights = jnp.where(mask, weights, 0)
    if rate and at.key is not None:
        weights = weights * factors(at.key, rate, weights.shape)
    return weights


def _attention(at: At, query: jax.Array, value: jax.Array, key: Any = None) -> Any:
    key = value if key is None else key
    scale = at.params.get("scale", 1.0)
    if at.config.get("score_mode") == "dot":
        scores = jnp.einsum("bqd,bkd->bqk", query, key) * scale
    elif at.config.get("score_mode") == "concat":
        pairs = query[:, :, None] + key[:, None]
        scores = at.params["concat_score_weight"] * jnp.tanh(scale * pairs).sum(-1)
    else:
        scores = (scale * jnp.tanh(query[:, :, None] + key[:, None])).sum(-1)
    valid = at.masks[1]
    weights = _attend(at, scores, None if valid is None else valid[:, None])
    ys = weights @ value
    if at.masks[0] is not None:
        ys = jnp.where(at.masks[0][..., None], ys, 0)
    return (ys, weights) if at.config.get("return_attention_scores") else ys


def _attention_weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
    shape: Shape = (None,) if "score_mode" not in config else ()
    names: Weights = {"scale": shape} if config.get("use_scale") else {}
    return {
        "": {**names, "concat_score_weight": ()} if config.get("score_mode") == "concat" else names
    }


def _heads(at: At, query: jax.Array, value: jax.Array, key: Any = None) -> Any:
    """Several heads side by side (Vaswani et al., 2017)."""

    def project(name: str, x: jax.Array) -> jax.Array:
        ys = jnp.einsum("btd,dhk->bthk", x, at.params[f"{name}_kernel"])
        return ys + at.params[f"{name}_bias"] if f"{name}_bias" in at.params else ys

    q, v, k = (project("query", query), project("value", value),
               project("key", value if key is None else key))  # fmt: skip
    mask = None
    for one, axis in zip(at.masks, (2, 1, 1), strict=False):
        if one is not None:
            one = jnp.expand_dims(one, axis)
            mask = one if mask is None else mask & one
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * at.config["key_dim"] ** -0.5
    weights = _attend(at, scores, None if mask is None else mask[:, None])
    ys = jnp.einsum("bhqk,bkhd,hde->bqe", weights, v, at.params["output_kernel"])
    ys = ys + at.params["output_bias"] if "output_bias" in at.params else ys
    return (ys, weights) if at.config.get("return_attention_scores") else ys


def _head_weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
    heads, size = config["num_heads"], config["key_dim"]
    wide = config.get("value_dim") or size
    shapes: dict[str, tuple[Shape, Shape]] = {
        "query": ((None, heads, size), (heads, size)),
        "key": ((None, heads, size), (heads, size)),
        "value": ((None, heads, wide), (heads, wide)),
        "output": ((heads, wide, None), (None,)),
    }
    return {
        f"{name}_dense": {f"{name}_kernel": kernel}
        | ({f"{name}_bias": bias} if config["use_bias"] else {})
        for name, (kernel, bias) in shapes.items()
    }


# --- the table -----------------------------------------------------------------------------------


_CONV = ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "activation",
         "use_bias")  # fmt: skip
_POOL, _NORM = ("pool_size", "strides", "padding"), ("axis", "epsilon", "center", "scale")
CALL_OPTIONS = "use_causal_mask", "return_attention_scores", "key"
"""What is said in a call of a layer, and not where it is made."""
_CALL = ("dropout", "use_causal_mask", "return_attention_scores")
_HEADS = ("num_heads", "key_dim", "value_dim", "use_bias", *_CALL)
_MOVING = "moving_mean", "moving_variance"


def _first_mask(at: At, *xs: jax.Array) -> jax.Array | None:
    return at.masks[0]


def _part_of(at: At, x: jax.Array) -> jax.Array:
    key = tuple(slice(*k) if isinstance(k, tuple) else k for k in at.config["key"])
    if all(isinstance(size, int) for size in x.shape):
        np.broadcast_to(False, x.shape)[key]  # JAX takes the nearest for an index that is not there
    return x[key]


def _plain(function: Callable[..., jax.Array]) -> Operator:
    """A function of ``keras.ops``; none of them hands a mask on."""
    return Operator(lambda at, *xs: function(*_arguments(at, xs)), arrays=SEVERAL)


def _along_axis(function: Callable[..., jax.Array]) -> Operator:
    def run(at: At, x: jax.Array) -> jax.Array:
        return function(x, at.config["axis"], keepdims=bool(at.config.get("keepdims")))

    return Operator(run, options=("axis", "keepdims"))


def _row(run: Callable[..., Any], *options: str) -> Operator:
    return Operator(run, options=options)


# By the names that JAX has for them, in the order of the alphabet.
_ARITHMETIC = ("absolute", "add", "divide", "exp", "log", "logical_and", "logical_not",
               "logical_or", "matmul", "maximum", "minimum", "multiply", "negative", "not_equal",
               "power", "sqrt", "square", "subtract", "tanh", "true_divide")  # fmt: skip

OPERATORS: Mapping[str, Operator] = {
    "Add": _one_by_one(jnp.add),
    "Subtract": _one_by_one(jnp.subtract),
    "Multiply": _merged(_multiply),
    "Maximum": _merged(functools.partial(_extreme, jnp.maximum)),
    "Minimum": _merged(functools.partial(_extreme, jnp.minimum)),
    "Average": _merged(lambda at, *xs: functools.reduce(jnp.add, _alike(xs)) / len(xs)),
    "Concatenate": Operator(_concatenate, mask=_joined_mask, arrays=SEVERAL, options=("axis",)),
    "Dot": Operator(_dot, arrays=(2, 2), options=("axes", "normalize")),
    "Conv1D": Operator(_conv, _conv_weights(1), options=_CONV),
    "Conv2D": Operator(_conv, _conv_weights(2), options=_CONV),
    "MaxPooling1D": Operator(functools.partial(_pool, True), options=_POOL),
    "MaxPooling2D": Operator(functools.partial(_pool, True), options=_POOL),
    "AveragePooling1D": Operator(functools.partial(_pool, False), options=_POOL),
    "AveragePooling2D": Operator(functools.partial(_pool, False), options=_POOL),
    "GlobalAveragePooling1D": _row(_global_average, "keepdims"),
    "GlobalAveragePooling2D": _row(_global(jnp.mean), "keepdims"),
    "GlobalMaxPooling1D": _row(_global(jnp.max), "keepdims"),
    "GlobalMaxPooling2D": _row(_global(jnp.max), "keepdims"),
    "UpSampling1D": _row(lambda at, x: jnp.repeat(x, at.config["size"], axis=1), "size"),
    "ZeroPadding1D": _row(
        lambda at, x: jnp.pad(x, ((0, 0), _many(at.config["padding"], 2), (0, 0))), "padding"
    ),
    "Cropping1D": _row(_cut, "cropping"),
    "Flatten": _row(lambda at, x: x.reshape(x.shape[0], -1)),
    "Reshape": _row(
        lambda at, x: x.reshape(x.shape[0], *at.config["target_shape"]), "target_shape"
    ),
    "Permute": _row(lambda at, x: x.transpose(0, *at.config["dims"]), "dims"),
    "Softmax": _row(lambda at, x: jax.nn.softmax(x, at.config["axis"]), "axis"),
    "RepeatVector": _row(lambda at, x: jnp.repeat(x[:, None], at.config["n"], axis=1), "n"),
    "BatchNormalization": Operator(
        _batch_norm, _norm_weights(*_MOVING), _first_mask, options=_NORM
    ),
    "LayerNormalization": Operator(_layer_norm, _norm_weights(), _first_mask, options=_NORM),
    "Attention": Operator(
        _attention, _attention_weights, _first_mask, (2, 3), ("use_scale", "score_mode", *_CALL)
    ),
    "AdditiveAttention": Operator(
        _attention, _attention_weights, _first_mask, (2, 3), ("use_scale", *_CALL)
    ),
    "MultiHeadAttention": Operator(_heads, _head_weights, _first_mask, (2, 3), _HEADS),
    # What a functional model computes of its masks, and arithmetic with tensors.
    **{f"ops.{n.title().replace('_', '')}": _plain(getattr(jnp, n)) for n in _ARITHMETIC},
    "ops.Relu": _plain(jax.nn.relu),
    "ops.Sigmoid": _plain(jax.nn.sigmoid),
    "ops.Softmax": _row(lambda at, x: jax.nn.softmax(x, at.config["axis"]), "axis"),
    "ops.Concatenate": Operator(_concatenate, arrays=SEVERAL, options=("axis",)),
    "ops.Any": _along_axis(jnp.any),
    "ops.Mean": _along_axis(jnp.mean),
    "ops.Sum": _along_axis(jnp.sum),
    "ops.Max": _along_axis(jnp.max),
    "ops.ConvertToTensor": _row(lambda at, x: x.astype(at.config["dtype"] or x.dtype), "dtype"),
    "ops.Cast": _row(lambda at, x: x.astype(at.config["dtype"]), "dtype"),
    "ops.GetItem": _row(_part_of, "key"),
    "ops.ExpandDims": _row(lambda at, x: jnp.expand_dims(x, at.config["axis"]), "axis"),
    "ops.ZerosLike": _row(lambda at, x: jnp.zeros_like(x, at.config["dtype"]), "dtype"),
    "ops.OnesLike": _row(lambda at, x: jnp.ones_like(x, at.config["dtype"]), "dtype"),
}
"""What runs a layer, its parameters, and what it does to the mask, by the class in Keras."""
