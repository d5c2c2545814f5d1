"""The cores of a CPU as devices, each with its rows of the batch."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rnnjax.cells.arguments import is_integer
from rnnjax.errors import InvalidInputError
from rnnjax.training.sharding import cores_for


def use_cores(number: int | None = None) -> int:
    """Make each core of the CPU a device of its own, which `over_cores` and `fit` can then use.

    XLA runs the products of one step on one core, and one small loop after the other: what runs
    side by side are the loops of several devices. Call it before anything else uses JAX; what does
    not divide its batch stays on the first device, which is as fast as before.

    Args:
        number: of devices; left out, as many as there are cores for this process, unless the
            environment has said it (JAX_NUM_CPU_DEVICES, XLA_FLAGS), or JAX has begun.

    Returns:
        how many there are; 1 where JAX was told to do without the CPU (JAX_PLATFORMS=cuda).

    Raises:
        InvalidInputError: a number came, but JAX has begun with another one.

    >>> use_cores() == use_cores(len(jax.devices("cpu"))) == len(jax.devices("cpu"))
    True
    """
    if number is None:
        said = jax.config.values["jax_num_cpu_devices"] > 0  # not a name of its own in every JAX
        if said or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return _cpus()
        affinity = getattr(os, "sched_getaffinity", None)
        cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
        with contextlib.suppress(RuntimeError):  # it has begun
            jax.config.update("jax_num_cpu_devices", cores)
        return _cpus()
    if not is_integer(number) or number < 1:
        raise InvalidInputError(
            f"number must be a whole number from 1 up, but is {number!r}; leave it out for all"
        )
    try:
        jax.config.update("jax_num_cpu_devices", int(number))
    except RuntimeError as error:
        there = _cpus()
        if there != number:
            raise InvalidInputError(
                f"{number} cores cannot become devices: JAX has begun with {there} already; call "
                "use_cores before anything else uses JAX"
            ) from error
    return number


def _cpus() -> int:
    """How many devices are a CPU's; 1 where JAX has none of it."""
    try:
        return len(jax.devices("cpu"))
    except RuntimeError:
        return 1


def over_cores(
    function: Callable[..., Any],
    rows: Sequence[int | None],
    *,
    devices: int | None = None,
    donate_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Compile a function, and divide the rows of its arguments over the cores of the CPU.

    The numbers are those of one device, but for the order of sums: losses, masks and carries mean
    what they mean without it, since XLA divides the work and adds what belongs together.

    Args:
        function: of arrays or trees of them, as ``jax.jit`` takes it: a step of training, or
            ``jax.value_and_grad`` of a loss.
        rows: for each argument the axis of its rows, in all of its leaves, or None for one that
            every device needs whole, the parameters above all. (As ``in_axes`` of `jax.vmap`.)
        devices: over how many; left out, `cores_for` decides by the arguments that are whole and
            the number of rows. 1: none are divided.
        donate_argnums: as ``jax.jit`` takes them.

    Returns:
        the compiled function. What it returns lies as XLA has it, and may be given to it again.

    Raises:
        InvalidInputError: ``rows`` is no such sequence; arguments differ from it, or in their
            rows; the rows cannot be divided; ``devices`` is no number of them; or the function is
            called, with rows to divide, inside of another that JAX transforms.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> def loss(params, carry, xs):
    ...     carry, ys = rnnjax.unroll(cell, params, xs, carry)
    ...     return (ys**2).mean(), carry
    >>> step = over_cores(jax.value_and_grad(loss, has_aux=True), rows=(None, 0, 1))
    >>> xs = np.ones((10, 8, 3), np.float32)
    >>> (value, carry), grads = step(params, cell.initial_carry((8,)), xs)
    >>> carry.hidden.shape, grads["kernel"].shape
    ((8, 4), (3, 16))
    """
    rows = tuple(rows) if isinstance(rows, Iterable) else (rows,)
    axes = [axis for axis in rows if axis is not None]
    if not axes or not all(is_integer(axis) and axis >= 0 for axis in axes):
        raise InvalidInputError(
            "rows must have for each argument the axis of its rows, or None for one that is whole, "
            f"and not all None, but is {rows!r}; pass (None, 1), say"
        )
    if devices is not None and (not is_integer(devices) or devices < 1):
        raise InvalidInputError(
            f"devices must be a whole number from 1 up, or None, but is {devices!r}; leave it "
            "out for all of them"
        )
    compiled = jax.jit(function, donate_argnums=donate_argnums)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        number = _rows_of(args, rows)
        whole = [arg for arg, axis in zip(args, rows, strict=True) if axis is None]
        along = cores_for(whole, number) if devices is None else devices
        if along == 1:
            return compiled(*args)
        if number % along:
            raise InvalidInputError(
                f"{number} rows cannot be divided over {along} devices; take a multiple of {along} "
                "rows, or fewer devices"
            )
        args = tuple(
            _lying(arg, _sharding(along, axis)) for arg, axis in zip(args, rows, strict=True)
        )
        # The mesh that is set tells `unroll` that XLA may divide what one device would join.
        with jax.set_mesh(_mesh(along)):
            return compiled(*args)

    return run


def _rows_of(args: tuple[Any, ...], rows: tuple[int | None, ...]) -> int:
    """The number of rows that all arguments agree on."""
    if len(args) != len(rows):
        raise InvalidInputError(
            f"rows names {len(rows)} arguments, {rows}, but {len(args)} came; give one entry for "
            "each, and the arguments by place"
        )
    found = set()
    for arg, axis in zip(args, rows, strict=True):
        if axis is not None:
            shapes = (np.shape(leaf) for leaf in jax.tree.leaves(arg))
            found |= {shape[axis] if len(shape) > axis else 0 for shape in shapes}
    if len(found) != 1 or 0 in found:
        raise InvalidInputError(
            f"the arguments must have the same number of rows along the axes {rows}, but have "
            f"{sorted(found)}; give all the same number, at least one"
        )
    return int(found.pop())


def _lying(arg: Any, sharding: NamedSharding) -> Any:
    """The argument so divided; one that lies so already is what came.

    To put it there again at each call of a small step took 190 us with all else that a call does;
    to ask takes 60, of which 44 are JAX's own for two devices.
    """
    leaves = jax.tree.leaves(arg)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise InvalidInputError(
            "over_cores divides arrays, but is called inside of a function that JAX transforms; "
            "put it around the whole, as in over_cores(jax.grad(loss), rows)"
        )
    if all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in leaves):
        return arg
    return jax.device_put(arg, sharding)


@functools.cache
def _sharding(number: int, axis: int | None) -> NamedSharding:
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "rows")
    return NamedSharding(_mesh(number), spec)


@functools.cache
def _mesh(number: int) -> Mesh:
    devices = jax.local_devices()
    if not 1 <= number <= len(devices):
        raise InvalidInputError(
            f"{number} devices came, but there are {len(devices)}; take as many, or call use_cores "
            "before anything else uses JAX"
        )
    return jax.make_mesh(
        (number,), ("rows",), axis_types=(AxisType.Auto,), devices=devices[:number]
    )
