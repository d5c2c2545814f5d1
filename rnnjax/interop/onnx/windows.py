"""Operators that slide over space: convolutions, pools, and what is put around an array."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.interop.onnx.at import At, module_of


class _Window(NamedTuple):
    """How a window moves over the axes of space, those after batch and channels."""

    sizes: tuple[int, ...]  # of the window
    strides: tuple[int, ...]  # of its places
    dilations: tuple[int, ...]  # between its entries
    pads: tuple[tuple[int, int], ...]  # what is put before and after each axis
    reach: tuple[int, ...]  # of the window, from its first entry to its last
    # what is put after it as well, so that the last window fits; nothing counts it
    more: tuple[int, ...]


def _numbers(at: At, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    numbers = tuple(at.get(name) or (default,) * rank)
    lowest = 0 if default == 0 else 1
    if len(numbers) != rank or not all(lowest <= n < 2**31 for n in numbers):
        raise at.fail(f"its {name} are {list(numbers)[:8]}, but should be {rank} sizes")
    return numbers


def _window(at: At, x: Any, sizes: Sequence[int]) -> _Window:
    rank, space = len(sizes), x.shape[2:]
    if len(space) != rank or not rank:
        raise at.fail(
            f"its input has shape {list(x.shape)}, but should be batch, channels and {rank} more"
        )
    strides, dilations = _numbers(at, "strides", rank), _numbers(at, "dilations", rank)
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
    automatic = at.get("auto_pad", "NOTSET")
    pads: Sequence[tuple[int, int]]
    if automatic.startswith("SAME"):
        pads = lax.padtype_to_pads(space, reach, strides, automatic.removesuffix("_UPPER"))
    elif automatic == "VALID":
        pads = [(0, 0)] * rank
    else:
        given = _numbers(at, "pads", 2 * rank, 0)
        pads = [*zip(given[:rank], given[rank:], strict=True)]
    more = (0,) * rank
    if at.get("ceil_mode", 0):
        more = tuple(
            _missing(n, *pad, stride, long)
            for n, pad, stride, long in zip(space, pads, strides, reach, strict=True)
        )
    around = zip(space, pads, more, strict=True)
    at.bound((*x.shape[:2], *(n + low + high + extra for n, (low, high), extra in around)))
    return _Window(tuple(sizes), strides, dilations, tuple(pads), tuple(reach), more)


def _halves(total: int, upper: bool) -> tuple[int, int]:
    less = total // 2
    return (less, total - less) if upper else (total - less, less)


def _missing(size: int, before: int, after: int, stride: int, reach: int) -> int:
    """What the last window lacks, if it begins before the end of the axis."""
    count = -(-(size + before + after - reach) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return max(0, (count - 1) * stride + reach - size - before - after)


# --- Convolutions ---


def conv(at: At, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Products with a kernel at every place: cross-correlation, in groups of channels."""
    window = _window(at, x, kernel.shape[2:])
    groups = at.get("group", 1)

    def run(x: Any, kernel: Any, bias: Any) -> Any:
        return _convolved(x, kernel, bias, window, window.strides, window.pads, groups)

    return at.computed(run, x, kernel, bias)


def _convolved(
    x: Any, kernel: Any, bias: Any, window: _Window, strides: Any, pads: Any, groups: int,
    spread: Any = None,
) -> Any:  # fmt: skip
    y = lax.conv_general_dilated(
        x, kernel, strides, pads, spread, window.dilations, feature_group_count=groups
    )
    return y if bias is None else y + bias.reshape(-1, *[1] * len(window.sizes))


def conv_transpose(at: At, x: Any, kernel: Any, bias: Any = None) -> Any:
    """The transpose of a convolution: each entry adds its multiple of the kernel."""
    rank, groups = kernel.ndim - 2, at.get("group", 1)
    window = _window(at, x, kernel.shape[2:])
    extra = _numbers(at, "output_padding", rank, 0)
    shape = at.get("output_shape")
    automatic = at.get("auto_pad", "NOTSET")
    if shape is None and automatic.startswith("SAME"):
        shape = [n * stride for n, stride in zip(x.shape[2:], window.strides, strict=True)]
    reach, pads = window.reach, window.pads
    if shape is not None:
        whole = zip(x.shape[2:], window.strides, extra, reach, shape[-rank:], strict=True)
        pads = tuple(
            _halves(stride * (n - 1) + more + long - size, automatic == "SAME_UPPER")
            for n, stride, more, long, size in whole
        )
    around = [
        (long - 1 - low, long - 1 - high + more)
        for long, (low, high), more in zip(reach, pads, extra, strict=True)
    ]

    def run(x: Any, kernel: Any, bias: Any) -> Any:
        each = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
        turned = jnp.flip(each.reshape(-1, *each.shape[2:]), range(2, rank + 2))
        return _convolved(x, turned, bias, window, (1,) * rank, around, groups, window.strides)

    return at.computed(run, x, kernel, bias)


# --- Pools ---


def _reduced(x: Any, window: _Window, start: Any, function: Any, pads: Any) -> Any:
    return lax.reduce_window(
        x,
        start,
        function,
        (1, 1, *window.sizes),
        (1, 1, *window.strides),
        ((0, 0), (0, 0), *pads),
        window_dilation=(1, 1, *window.dilations),
    )


def _whole(window: _Window) -> list[tuple[int, int]]:
    return [(low, high + more) for (low, high), more in zip(window.pads, window.more, strict=True)]


def max_pool(at: At, x: Any) -> Any:
    """The largest entry in each window."""
    window = _window(at, x, _numbers(at, "kernel_shape", x.ndim - 2))
    if at.num_outputs > 1:
        raise at.fail("the places of the largest entries, its second output, are not read here")
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    low = np.array(-np.inf if floating else jnp.iinfo(x.dtype).min, x.dtype)
    return at.computed(lambda x: _reduced(x, window, low, lax.max, _whole(window)), x)


def average_pool(at: At, x: Any) -> Any:
    """The mean of each window, with what is around or without."""
    window = _window(at, x, _numbers(at, "kernel_shape", x.ndim - 2))

    def run(x: Any) -> Any:
        total = _reduced(x, window, np.zeros((), x.dtype), lax.add, _whole(window))
        ones, pads = jnp.ones((1, 1, *x.shape[2:]), x.dtype), _whole(window)
        if at.get("count_include_pad", 0):
            ones = jnp.pad(ones, ((0, 0), (0, 0), *window.pads), constant_values=1)
            pads = [(0, more) for more in window.more]
        return total / _reduced(ones, window, np.zeros((), x.dtype), lax.add, pads)

    return at.computed(run, x)


def whole_pool(name: str) -> Callable[..., Any]:
    """A reduction, by its name, over all of space."""

    def run(at: At, x: Any) -> Any:
        if x.ndim < 3:
            raise at.fail(f"its input has shape {list(x.shape)}, but should have axes of space")
        axes = tuple(range(2, x.ndim))
        return getattr(module_of(x), name)(x, axis=axes, keepdims=True).astype(x.dtype)

    return run


# --- Around ---


_MODES = "constant", "edge", "reflect", "wrap"


def pad(at: At, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    """``x`` with more around it, or with less where a number is negative."""
    numbers = at.listed("pads", pads)
    along = list(range(x.ndim)) if axes is None else at.integers(axes, "axes")
    mode = at.get("mode", "constant")
    if numbers is None or len(numbers) != 2 * len(along) or mode not in _MODES:
        raise at.fail(
            f"its pads are {numbers} and its mode is {mode!r}, but they should be two for each of "
            f"{len(along)} axes, and one of {', '.join(_MODES)}"
        )
    around = [(0, 0)] * x.ndim
    for axis, *both in zip(along, numbers[: len(along)], numbers[len(along) :], strict=True):
        around[at.axis(axis, x.ndim)] = (both[0], both[1])
    at.bound(n + max(0, a) + max(0, b) for n, (a, b) in zip(x.shape, around, strict=True))
    if any(n + min(0, a) + min(0, b) < 0 for n, (a, b) in zip(x.shape, around, strict=True)):
        raise at.fail(f"its pads {numbers} take away more than the sizes {list(x.shape)}")
    if mode != "constant" and (min(numbers) < 0 or not x.size):
        raise at.fail(f"its mode {mode!r} can neither take away nor repeat what is not there")

    def run(x: Any, value: Any) -> Any:
        if mode != "constant":
            return jnp.pad(x, around, mode)
        filling = jnp.asarray(0 if value is None else value, x.dtype).reshape(())
        return lax.pad(x, filling, [(low, high, 0) for low, high in around])

    return at.computed(run, x, at.get("value", value))
