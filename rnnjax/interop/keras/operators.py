"""The layers of Keras that have no time of their own: one row of a table each.

A row says what is computed, with which arrays and options, and what becomes of the mask. It sees
arrays as Keras has them, batch first; `Operation` turns the first two axes of what has a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.cells.base import Carry, Params
from rnnjax.errors import InvalidInputError
from rnnjax.interop import functions
from rnnjax.interop.functions import get_function
from rnnjax.interop.layers import Context, Flow, Layer, Ran, Recurrent, Shape, Weights, single
from rnnjax.layers.dropout import factors


class At(NamedTuple):
    """The context of an operator besides its arrays."""

    config: Mapping[str, Any]  # the options of the layer, and those of its call
    params: Params  # its parameters
    masks: Sequence[jax.Array | None]  # of its arrays, (batch, time), or None
    key: jax.Array | None  # for dropout, or None


SEVERAL = (1, 2**20)


class Operator(NamedTuple):
    """An operator of the table: its function and its arrays."""

    run: Callable[..., Any]  # (at, *arrays) to an array, or to a tuple of several
    # of its arrays, by the place below the layer where Keras has them
    weights: Callable[[Mapping[str, Any]], Mapping[str, Weights]] = lambda config: {}
    # (at, *arrays) to the mask of what it gives; True for that of its first array, None where what
    # it gives has other steps
    mask: Callable[..., jax.Array | None] | bool | None = None
    arrays: tuple[int, int] = (1, 1)  # how many it takes at least and at most
    # those of the layer and its call that it reads, and what counts where they are left out; ...
    # where they may not be
    options: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Operation(Layer):
    """A layer of Keras by the name of its row.

    Args:
        name: of the layer.
        kind: its class, or ``"ops."`` and its name for a function of ``keras.ops``.
        config: its options, those that its row reads, and the ``version`` of Keras.
    """

    name: str
    kind: str
    config: tuple[tuple[str, Any], ...] = ()

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The shapes of its parameters, by the place below the layer."""
        return OPERATORS[self.kind].weights(dict(self.config))

    @property
    def _lags(self) -> int:
        """How many steps before each one a causal convolution sees; 0 for other layers."""
        config = dict(self.config)
        if config.get("padding") != "causal" or _many(config["strides"], 1)[0] > 1:
            return 0
        size, step = (_many(config[name], 1)[0] for name in ("kernel_size", "dilation_rate"))
        return step * (size - 1)

    @property
    def has_state(self) -> bool:
        """Whether it is a causal convolution, whose state is the steps before."""
        return self._lags > 0

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...], dtype: Any) -> Carry:
        """A window of zeros ``(*batch, steps, channels)``, oldest first, for a convolution."""
        if not self.has_state:
            return None
        kernel, groups = params["kernel"], dict(self.config)["groups"]
        channels = kernel.shape[1] * groups
        return jnp.zeros((*batch_shape, self._lags, channels), dtype or kernel.dtype)

    def run(self, params: Params, flow: Any, carry: Carry | None, context: Context) -> Ran:
        """Run the row; ``flow`` is a tuple where the layer takes several arrays."""
        flows = (flow,) if isinstance(flow, Flow) else flow
        xs = [_turned(_with_batch(self, one), one.sequence) for one in flows]
        config = dict(self.config)
        blind = self.kind == "MultiHeadAttention" and config["version"] < 2.10
        masks = [None if one.mask is None or blind else _turned(one.mask, True) for one in flows]
        named = f"layer {self.name!r}, {self},"
        if self.kind == "Softmax" and masks[0] is not None:
            raise InvalidInputError(
                f"{named} would take what is masked for a part of its sum; leave the mask out"
            )
        if self.has_state and context.resets is not None:
            raise InvalidInputError(
                f"{named} keeps the steps before, which resets do not cut off here; call the model "
                "for each sequence by itself"
            )
        row, at = OPERATORS[self.kind], At(config, params, masks, context.key)
        try:
            if self.has_state:  # the steps before stand for the zeros of the padding
                config["padding"] = "valid"
                x = xs[0]
                before = self.initial_carry(params, x.shape[:1], None) if carry is None else carry
                xs[0] = x = jnp.concatenate([before.astype(x.dtype), x], axis=1)
                carry = lax.slice_in_dim(x, x.shape[1] - self._lags, x.shape[1], axis=1)
            ys = row.run(at, *xs)
            mask = row.mask(at, *xs) if callable(row.mask) else masks[0] if row.mask else None
        except (TypeError, ValueError, IndexError, AttributeError) as error:  # of JAX
            shapes, why = [x.shape for x in xs], str(error).splitlines()[0]
            raise InvalidInputError(
                f"{named} does not take arrays of shapes {shapes}, batch first: {why}"
            ) from error
        sequence, mask = ys.ndim > 2, None if mask is None else mask.T
        return carry if self.has_state else None, Flow(_turned(ys, sequence), mask, sequence)

    def __str__(self) -> str:
        shown = [f"{k}={v}" for k, v in self.config if v is not None and k in _SHOWN]
        return f"{self.kind}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True)
class TimeDistributed(Layer):
    """A layer that takes each step by itself: an array, or a sequence, for which it begins anew.

    ``xs`` is ``(time, batch, ...)``, and the layer sees a batch of ``time * batch`` entries.
    """

    name: str
    layer: Layer

    def run(self, params: Params, flow: Flow, carry: Carry | None, context: Context) -> Ran:
        """Run the layer on all steps side by side."""
        x, inner = _with_batch(self, flow), self.layer
        uses = isinstance(inner, Recurrent) or getattr(inner, "kind", "") in _USE_MASKS
        if flow.mask is not None and (flow.mask.ndim > 2 or uses):
            raise InvalidInputError(
                f"layer {self.name!r}, {self}, comes after a mask that it would use inside of each "
                "step; leave it out"
            )
        each, sequence = x.reshape(-1, *x.shape[2:]), x.ndim > 3
        inside = Flow(_turned(each, sequence), None, sequence)
        _, made = inner.run(params, inside, None, dataclasses.replace(context, resets=None))
        ys = _turned(made.xs, made.sequence)
        return None, Flow(ys.reshape(*x.shape[:2], *ys.shape[1:]), flow.mask)

    def __str__(self) -> str:
        return f"TimeDistributed({self.layer})"


_USE_MASKS = "GlobalAveragePooling1D", "Softmax"


def _with_batch(layer: Layer, flow: Any) -> jax.Array:
    x = single(layer, flow)
    if flow.sequence and x.ndim == 2:
        raise InvalidInputError(
            f"layer {layer.name!r} takes sequences with a batch, (time, batch, features), but got "
            f"{list(x.shape)}; give a batch of one row"
        )
    return x


_SHOWN = ("filters", "kernel_size", "pool_size", "axis", "axes", "num_heads", "key_dim", "n")


def _turned(x: jax.Array, sequence: bool) -> jax.Array:
    return jnp.swapaxes(x, 0, 1) if sequence else x


def _merge(function: Callable[..., jax.Array], at: At, *xs: jax.Array) -> jax.Array:
    """Merge arrays of one rank, with new axes after the batch, entry by entry."""
    most = max(x.ndim for x in xs)
    alike = (jnp.expand_dims(x, tuple(range(1, 1 + most - x.ndim))) for x in xs)
    return functools.reduce(function, alike)


def _leave_out(function: Callable[..., jax.Array], neutral: float, at: At, *xs: Any) -> jax.Array:
    """What is masked in one array Keras 3.4 leaves to the others, by a number without effect.

    Where it is masked in all, a product is 0, and a maximum that of the first array.
    """
    if at.config["version"] < 3.04:
        return _merge(function, at, *xs)
    masks = [None if mask is None else mask[..., None] for mask in at.masks]
    shown = [x if m is None else jnp.where(m, x, neutral) for x, m in zip(xs, masks, strict=True)]
    ys, mask = _merge(function, at, *shown), _any_mask(at)
    rest = 0 if function is jnp.multiply else xs[0]
    return ys if mask is None else jnp.where(mask[..., None], ys, rest)


def _any_mask(at: At, *xs: jax.Array) -> jax.Array | None:
    """Where one of several arrays counts, or before Keras 3.4 all of those that have a mask."""
    masks = [mask for mask in at.masks if mask is not None]
    if masks and at.config["version"] < 3.04:
        return functools.reduce(jnp.logical_and, masks)
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
    whole = _concatenate(at, *full)
    return whole.all(-1) if at.config["version"] < 3.04 else whole.any(-1)


def _dot(at: At, x: jax.Array, y: jax.Array) -> jax.Array:
    i, j = _many(at.config["axes"], 2)
    i, j = i % x.ndim, j % y.ndim
    if at.config["normalize"]:
        x, y = _unit(x, i, 1e-7), _unit(y, j, 1e-7)
    ys = lax.dot_general(x, y, (((i,), (j,)), ((0,), (0,))))
    return ys[:, None] if ys.ndim == 1 else ys


def _many(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _unit(x: jax.Array, axis: Any, epsilon: float) -> jax.Array:
    square = jnp.square(x).sum(axis, keepdims=True)
    return x * jnp.minimum(lax.rsqrt(square), 1 / epsilon)


def _conv(at: At, x: jax.Array) -> jax.Array:
    """A convolution; without groups one of each channel by itself, and then one of each step."""
    kernel, rank = at.params.get("depthwise_kernel", at.params.get("kernel")), x.ndim - 2
    config, groups = at.config, at.config.get("groups")
    strides, dilation = (_many(config[name], rank) for name in ("strides", "dilation_rate"))
    padding = config["padding"].upper()
    if padding == "CAUSAL":
        padding = [(dilation[0] * (kernel.shape[0] - 1), 0)]
    if groups is None:
        groups, kernel = x.shape[-1], kernel.reshape(*kernel.shape[:-2], 1, -1)
    ys = functions.conv(x, kernel, None, strides, padding, dilation, groups)
    if "pointwise_kernel" in at.params:
        ys = ys @ at.params["pointwise_kernel"].reshape(ys.shape[-1], -1)
    ys = ys + at.params["bias"] if "bias" in at.params else ys
    return get_function(config["activation"])(ys)


def _conv_weights(rank: int, config: Mapping[str, Any]) -> Mapping[str, Weights]:
    size, space = config.get("filters"), _many(config["kernel_size"], rank)
    shapes: dict[str, Shape] = {"kernel": (*space, None, config.get("depth_multiplier", size))}
    if size and "depth_multiplier" in config:
        shapes["depthwise_kernel"] = shapes.pop("kernel")
        shapes["pointwise_kernel"] = (*(1,) * rank, None, size)
    return {"": shapes | ({"bias": (size,)} if config["use_bias"] else {})}


def _pool(maximum: bool, at: At, x: jax.Array) -> jax.Array:
    window = _many(at.config["pool_size"], x.ndim - 2)
    strides = window if at.config["strides"] is None else _many(at.config["strides"], x.ndim - 2)
    return functions.pool(x, maximum, window, strides, at.config["padding"].upper())


def _crop(at: At, x: jax.Array) -> jax.Array:
    begin, end = _many(at.config["cropping"], 2)
    return lax.slice_in_dim(x, begin, x.shape[1] - end, axis=1)


def _global_average(at: At, x: jax.Array) -> jax.Array:
    mask = at.masks[0]
    if mask is None:
        return x.mean(1)
    some = jnp.where(mask[..., None], x, 0)
    return some.sum(1) / mask[..., None].astype(x.dtype).sum(1)


def _norm_weights(more: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Weights]:
    names = [name for name, asked in (("gamma", "scale"), ("beta", "center")) if config.get(asked)]
    return {"": dict.fromkeys((*names, *more), (None,) * len(_many(config["axis"], 1)))}


def _along(at: At, x: jax.Array, name: str) -> Any:
    """A parameter with the axes of the array, for those that are normalised."""
    # IndexError for an axis out of range.
    axes = {range(x.ndim)[axis] for axis in _many(at.config["axis"], 1)}
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    return at.params[name].reshape(shape) if name in at.params else None


def _layer_norm(at: At, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):  # Keras rounds what comes out
        raise InvalidInputError(f"it takes floating-point numbers, but {x.dtype} came; cast them")
    scale, shift = (_along(at, x, name) for name in ("gamma", "beta"))
    axes, epsilon = _many(at.config["axis"], 1), at.config["epsilon"]
    return functions.standardize(x, axes, epsilon, scale, shift)


def _batch_norm(at: At, x: jax.Array) -> jax.Array:
    """Normalise by the moments of training, which do not change here."""
    names = "moving_mean", "moving_variance", "gamma", "beta"
    mean, variance, scale, shift = (_along(at, x, name) for name in names)
    kept = lax.stop_gradient(mean), lax.stop_gradient(variance)
    return functions.normalize(x, *kept, at.config["epsilon"], scale, shift)


def _rms_norm(at: At, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.square(wide).mean(_many(at.config["axis"], 1), keepdims=True)
    ys = wide * lax.rsqrt(square + at.config["epsilon"]) * _along(at, x, "scale")
    return ys.astype(x.dtype)


def _moment_weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
    own = _norm_weights(("mean", "variance"), config)[""]
    return {"": {**own, "count": ()}} if config["mean"] is None else {}


def _standardise(at: At, x: jax.Array) -> jax.Array:
    """Normalise by the moments of the data, which do not change here, or back."""
    x = x * 1.0  # of integers too
    told = (at.config[name] for name in ("mean", "variance"))
    mean, variance = (
        lax.stop_gradient(_along(at, x, name)) if one is None else jnp.asarray(one, x.dtype)
        for name, one in zip(("mean", "variance"), told, strict=True)
    )
    scale = jnp.maximum(jnp.sqrt(variance), 1e-7)
    return mean + x * scale if at.config["invert"] else (x - mean) / scale


def _rescale(at: At, x: jax.Array) -> jax.Array:
    x = x * 1.0  # of integers too
    scale, offset = (jnp.asarray(at.config[name], x.dtype) for name in ("scale", "offset"))
    return x * scale + offset


def _attend(at: At, scores: jax.Array, mask: jax.Array | None, heads: bool) -> jax.Array:
    """The attention weights ``(..., queries, keys)``; Keras's heads hand no gradient to a mask."""
    if at.config["use_causal_mask"]:
        query, key = (jnp.arange(size) for size in scores.shape[-2:])
        before = key <= query[:, None]
        mask = before if mask is None else mask & before
    if mask is not None:
        far = min(1e9, float(jnp.finfo(scores.dtype).max))  # infinite it would be NaN
        scores = jnp.where(mask, scores, -far if heads else scores - far)
    weights, rate = jax.nn.softmax(scores), at.config["dropout"]
    # A query without a key: Keras's heads give 0 where they make the weights, not in one kernel.
    if heads and rate and mask is not None and at.config["version"] >= 3.10:
        weights = jnp.where(mask, weights, 0)
    if rate and at.key is not None:
        weights = weights * factors(at.key, rate, weights.shape)
    return weights


def _attention(
    additive: bool, at: At, query: jax.Array, value: jax.Array, key: Any = None
) -> jax.Array:
    """Attend by sums of queries and keys (Bahdanau et al., 2015), or products (Luong et al.)."""
    scale, valid = at.params.get("scale", 1.0), at.masks[1]
    key = value if key is None else key
    if additive:
        scores = (scale * jnp.tanh(query[:, :, None] + key[:, None])).sum(-1)
    else:
        scores = scale * jnp.einsum("bqd,bkd->bqk", query, key)
    ys = _attend(at, scores, None if valid is None else valid[:, None], heads=False) @ value
    return ys if at.masks[0] is None else jnp.where(at.masks[0][..., None], ys, 0)


def _heads(at: At, query: jax.Array, value: jax.Array, key: Any = None) -> jax.Array:
    """Several heads side by side (Vaswani et al., 2017)."""

    def project(name: str, x: jax.Array) -> jax.Array:
        ys = jnp.einsum("btd,dhk->bthk", x, at.params[f"{name}_kernel"])
        return ys + at.params[f"{name}_bias"] if f"{name}_bias" in at.params else ys

    q, v = project("query", query), project("value", value)
    k = project("key", value if key is None else key)
    marks = zip(at.masks, ((1, 3), (1, 2), (1, 2)), strict=False)
    masks = [jnp.expand_dims(mask, axis) for mask, axis in marks if mask is not None]
    mask = functools.reduce(jnp.logical_and, masks) if masks else None
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * at.config["key_dim"] ** -0.5
    weights = _attend(at, scores, mask, heads=True)
    ys = jnp.einsum("bhqk,bkhd,hde->bqe", weights, v, at.params["output_kernel"])
    return ys + at.params["output_bias"] if "output_bias" in at.params else ys


def _scale_weights(shape: Shape, config: Mapping[str, Any]) -> Mapping[str, Weights]:
    return {"": {"scale": shape} if config["use_scale"] else {}}


def _head_weights(config: Mapping[str, Any]) -> Mapping[str, Weights]:
    heads, size = config["num_heads"], config["key_dim"]
    wide = config.get("value_dim") or size
    each = (("query", size), ("key", size), ("value", wide))
    shapes: dict[str, tuple[Shape, Shape]]
    shapes = {name: ((None, heads, n), (heads, n)) for name, n in each}
    shapes["output"] = (heads, wide, None), (None,)
    return {
        f"{name}_dense": {f"{name}_kernel": kernel}
        | ({f"{name}_bias": bias} if config["use_bias"] else {})
        for name, (kernel, bias) in shapes.items()
    }


_WINDOW = {
    "kernel_size": ..., "strides": 1, "padding": "valid", "dilation_rate": 1,
    "activation": "linear", "use_bias": True,
}  # fmt: skip
_CONV = {"filters": ..., "groups": 1, **_WINDOW}
_DEPTHWISE = {"depth_multiplier": 1, **_WINDOW}
_SEPARABLE = {"filters": ..., **_DEPTHWISE}
_POOL = {"pool_size": ..., "strides": None, "padding": "valid"}
_NORM = {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True}
_MOMENTS = {"axis": -1, "mean": None, "variance": None, "invert": False}
_HEADS = {
    "num_heads": ..., "key_dim": ..., "value_dim": None, "use_bias": True, "dropout": 0.0,
    "output_shape": None, "use_causal_mask": False,
}  # fmt: skip


def _part_of(at: At, x: jax.Array) -> jax.Array:
    key = tuple(slice(*k) if isinstance(k, tuple) else k for k in at.config["key"])
    if all(isinstance(size, int) for size in x.shape):
        np.broadcast_to(False, x.shape)[key]  # JAX takes the nearest for an index that is not there
    return x[key]


def _arithmetic(function: Callable[..., jax.Array], at: At, *xs: jax.Array) -> jax.Array:
    rest = iter(xs)
    return function(*(next(rest) if value is None else value for value in at.config["arguments"]))


def _row(run: Callable[..., Any], **options: Any) -> Operator:
    return Operator(run, options=options)


# By the names that JAX has for them, in the order of the alphabet.
_ARITHMETIC = ("add", "divide", "logical_and", "logical_or", "matmul", "multiply", "not_equal",
               "subtract", "true_divide")  # fmt: skip

# Left out on purpose, for no recurrent model was seen to have it: a transposed convolution.
OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(partial(_merge, jnp.add), mask=_any_mask, arrays=SEVERAL),
    "Subtract": Operator(partial(_merge, jnp.subtract), mask=_any_mask, arrays=(2, 2)),
    "Multiply": Operator(partial(_leave_out, jnp.multiply, 1), mask=_any_mask, arrays=SEVERAL),
    "Maximum": Operator(partial(_leave_out, jnp.maximum, -np.inf), mask=_any_mask, arrays=SEVERAL),
    "Minimum": Operator(partial(_leave_out, jnp.minimum, np.inf), mask=_any_mask, arrays=SEVERAL),
    "Average": Operator(
        lambda at, *xs: _merge(jnp.add, at, *xs) / len(xs), mask=_any_mask, arrays=SEVERAL
    ),
    "Concatenate": Operator(_concatenate, mask=_joined_mask, arrays=SEVERAL, options={"axis": -1}),
    "Dot": Operator(_dot, arrays=(2, 2), options={"axes": ..., "normalize": False}),
    "Conv1D": Operator(_conv, partial(_conv_weights, 1), options=_CONV),
    "Conv2D": Operator(_conv, partial(_conv_weights, 2), options=_CONV),
    **{
        f"{kind}{n}D": Operator(_conv, partial(_conv_weights, n), options=told)
        for n in (1, 2)
        for kind, told in (("SeparableConv", _SEPARABLE), ("DepthwiseConv", _DEPTHWISE))
    },
    "MaxPooling1D": Operator(partial(_pool, True), options=_POOL),
    "MaxPooling2D": Operator(partial(_pool, True), options=_POOL),
    "AveragePooling1D": Operator(partial(_pool, False), options=_POOL),
    "AveragePooling2D": Operator(partial(_pool, False), options=_POOL),
    "GlobalAveragePooling1D": _row(_global_average),
    "GlobalMaxPooling1D": _row(lambda at, x: x.max(1)),
    "GlobalAveragePooling2D": _row(lambda at, x: x.mean((1, 2))),
    "GlobalMaxPooling2D": _row(lambda at, x: x.max((1, 2))),
    "Flatten": _row(lambda at, x: x.reshape(x.shape[0], -1)),
    "Reshape": _row(
        lambda at, x: x.reshape(x.shape[0], *at.config["target_shape"]), target_shape=...
    ),
    "Permute": _row(lambda at, x: x.transpose(0, *at.config["dims"]), dims=...),
    "ZeroPadding1D": _row(
        lambda at, x: jnp.pad(x, [(0, 0), _many(at.config["padding"], 2), (0, 0)]), padding=1
    ),
    "Cropping1D": _row(_crop, cropping=(1, 1)),
    "UpSampling1D": _row(lambda at, x: jnp.repeat(x, at.config["size"], axis=1), size=2),
    "Softmax": _row(lambda at, x: jax.nn.softmax(x, at.config["axis"]), axis=-1),
    "RepeatVector": _row(lambda at, x: jnp.repeat(x[:, None], at.config["n"], axis=1), n=...),
    "BatchNormalization": Operator(
        _batch_norm, partial(_norm_weights, ("moving_mean", "moving_variance")), True, options=_NORM
    ),
    "LayerNormalization": Operator(_layer_norm, partial(_norm_weights, ()), True, options=_NORM),
    "RMSNormalization": Operator(
        _rms_norm, partial(_norm_weights, ("scale",)), options={"axis": -1, "epsilon": 1e-6}
    ),
    "UnitNormalization": Operator(
        lambda at, x: _unit(x, at.config["axis"], 1e-12), mask=True, options={"axis": -1}
    ),
    "Normalization": Operator(_standardise, _moment_weights, True, options=_MOMENTS),
    "Rescaling": Operator(_rescale, mask=True, options={"scale": ..., "offset": 0}),
    "PReLU": Operator(
        lambda at, x: jnp.where(x > 0, x, at.params["alpha"] * x),
        lambda config: {"": {"alpha": None}},
        mask=True,
        options={"shared_axes": None},
    ),
    **{
        kind: Operator(
            partial(_attention, additive),
            partial(_scale_weights, (None,) * additive),
            True,
            (2, 3),
            {"use_scale": additive, "dropout": 0.0, "use_causal_mask": False},
        )
        for kind, additive in (("Attention", False), ("AdditiveAttention", True))
    },
    "MultiHeadAttention": Operator(_heads, _head_weights, True, (2, 3), _HEADS),
    # What a functional model computes of its masks, and arithmetic with tensors.
    **{
        f"ops.{name.title().replace('_', '')}": Operator(
            partial(_arithmetic, getattr(jnp, name)), arrays=SEVERAL, options={"arguments": ...}
        )
        for name in _ARITHMETIC
    },
    "ops.Concatenate": Operator(_concatenate, arrays=SEVERAL, options={"axis": 0}),
    "ops.Any": _row(lambda at, x: jnp.any(x, at.config["axis"]), axis=None),
    "ops.Mean": _row(lambda at, x: jnp.mean(x, at.config["axis"]), axis=None),
    "ops.Sum": _row(lambda at, x: jnp.sum(x, at.config["axis"]), axis=None),
    "ops.ConvertToTensor": _row(lambda at, x: x.astype(at.config["dtype"] or x.dtype), dtype=None),
    "ops.GetItem": _row(_part_of, key=...),
    "ops.ExpandDims": _row(lambda at, x: jnp.expand_dims(x, at.config["axis"]), axis=...),
    "ops.ZerosLike": _row(lambda at, x: jnp.zeros_like(x, at.config["dtype"]), dtype=None),
    "ops.OnesLike": _row(lambda at, x: jnp.ones_like(x, at.config["dtype"]), dtype=None),
}
"""The function, the parameters and the mask of each layer, by its class in Keras."""

MERGES = [kind for kind, row in OPERATORS.items() if callable(row.mask)]
"""The layers that make one mask of several."""


def keeps_mask(layer: Layer) -> bool:
    """Whether what a layer gives has the mask of what it takes, if it makes none of its own."""
    if isinstance(layer, Operation):
        return OPERATORS[layer.kind].mask is not None
    return getattr(layer, "return_sequences", not hasattr(layer, "mask_zero"))
