"""Recurrences without a cell: functions from arrays to the states of all steps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from rnnjax.cells.matrix import MatrixCarry, Memory, remembered
from rnnjax.cells.temporalconv import windowed
from rnnjax.checks import as_array, brief, check_instance, state_type, usual_promotion
from rnnjax.engine.auto import Auto
from rnnjax.engine.core.masking import StepMarks, Steps, expand, zero_masked
from rnnjax.engine.core.method import Method
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.core.validation import check_runs, marks_of
from rnnjax.engine.parallel.chunkwise import run_memory, usual_length
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence
from rnnjax.engine.parallel.method import Parallel
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import match_devices


@usual_promotion()
def linear_recurrence(
    decay: jax.Array,
    drive: jax.Array,
    carry: jax.Array | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    method: Method = Auto(),
) -> tuple[jax.Array, jax.Array]:
    r"""Compute the states of a linear recurrence.

    .. math::
        h_t = a_t \odot h_{t-1} + b_t

    Arrays are real or complex, and gradients of every order are exact. It runs as a loop on a CPU,
    and as a parallel prefix sum elsewhere (Blelloch, 1990; Martin & Cundy, 2018).

    Args:
        decay: :math:`a`, which broadcasts to the shape of ``drive``; or ``(time, *batch, features,
            k, k)``, a matrix for each group of k numbers.
        drive: :math:`b` ``(time, *batch, features)``; with matrices ``(time, *batch, features,
            k)``.
        carry: the state before the first step, ``drive``'s shape without time; zeros by default.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`; a reset sets the state to zeros.
        reverse: as in `unroll`.
        method: ``Auto()``; ``Parallel()``, with ``axis_name`` over several devices; ``Scan()`` for
            a loop everywhere. A prefix sum may overflow if many decays are above 1.

    Returns:
        the last state, and all states, of the shape of ``drive``.

    Raises:
        InvalidInputError: the shapes do not fit each other, or as `unroll`.

    >>> carry, h = linear_recurrence(jnp.full((4, 1), 0.5), jnp.ones((4, 1)))
    >>> print(h[:, 0], carry)
    [1.    1.5   1.75  1.875] [1.875]
    """
    decay, drive = as_array("decay", decay), as_array("drive", drive)
    groups = decay.ndim == drive.ndim + 1
    shape = (*drive.shape, drive.shape[-1]) if groups else drive.shape
    spread = *[1] * (len(shape) - decay.ndim), *decay.shape
    fits = all(size in (1, whole) for size, whole in zip(spread, shape, strict=False))
    some = 0 not in shape[-1 - 2 * groups :]
    if drive.ndim < 2 + groups or len(spread) != len(shape) or not fits or not some:
        raise InvalidInputError(
            f"decay must have the shape of drive, (time, *batch, features), or of matrices "
            f"(time, *batch, features, k, k) with (time, *batch, features, k), but decay has "
            f"{decay.shape} and drive {drive.shape}; check the order of their axes, and that there "
            "are features"
        )
    carry = _shaped("carry", carry, drive.shape[1:], "that of drive without time")
    dtype = state_type(decay, drive, carry)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    if is_complex and groups:
        raise InvalidInputError(
            f"decay, drive and carry must be real where decay is matrices, but one is {dtype}; "
            "write a complex number as a matrix of two rows"
        )
    xs = drive[..., 0] if groups else drive
    order, *marks = _Order.of(xs, lengths, mask, resets, reverse, method)
    if getattr(method, "chunk", None) is not None:
        raise InvalidInputError(
            f"chunk must be None, as there is no matrix memory to split, but is {method}; leave "
            "it out"
        )
    decay = jnp.broadcast_to(decay.astype(dtype), shape)
    return _linear(order, decay, drive.astype(dtype), carry.astype(dtype), *marks)


@functools.partial(jax.jit, static_argnums=0)
def _linear(
    order: "_Order", decay: jax.Array, drive: jax.Array, carry: jax.Array, valid: Any, resets: Any
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over arrays of one type, under ``jit`` as `unroll` does."""
    groups, is_complex = decay.ndim > drive.ndim, jnp.issubdtype(drive.dtype, jnp.complexfloating)
    size = drive.shape[-1] if groups else 1 + is_complex
    identity: Any = jnp.eye(size, dtype=drive.dtype) if groups else 1
    if valid is not None:
        # A masked step multiplies by the identity and adds zero: its state is the one before.
        decay = jnp.where(expand(valid, decay), decay, identity)
    drive = zero_masked(drive, valid)

    def split(x: jax.Array) -> list[jax.Array]:
        """Split into arrays with one number per feature."""
        if groups:
            return [x[..., i] for i in range(size)]
        return [x.real, x.imag] if is_complex else [x]

    factors = [split(decay[..., i, :]) for i in range(size)] if groups else [[decay]]
    if is_complex:
        # (a + ib)(x + iy) as the real matrix [[a, -b], [b, a]] applied to (x, y).
        real, imag = split(decay)
        factors = [[real, -imag], [imag, real]]
    factors, drives = order.running((factors, split(drive)))
    given = match_devices((drives, factors, split(carry), order.running(resets)))
    run = AffineRecurrence(order.method.along, order.reverse)
    if drive.shape[0]:
        states, _, last = run.plain(*given) if isinstance(order.method, Scan) else run(*given)
    else:
        states, last = drives, given[2]

    def whole(parts: list[jax.Array]) -> jax.Array:
        if is_complex:
            return jax.lax.complex(*parts)
        return jnp.stack(parts, axis=-1) if groups else parts[0]

    return whole(last), zero_masked(whole(order.running(states)), valid)


@usual_promotion()
def matrix_memory(
    memory: Memory,
    carry: MatrixCarry | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    method: Method = Auto(),
) -> tuple[MatrixCarry, jax.Array]:
    r"""Compute the last state of a matrix memory, and the reads of all steps.

    .. math::
        S_t = S_{t-1} \, (A_t - r_t w_t^\top) + \beta_t \, v_t k_t^\top, \qquad y_t = S_t q_t

    It is linear attention with decays, with ``erase`` the gated delta rule (Yang et al., 2024), and
    with a key of removal RWKV-7 (Peng et al., 2025): `rnnjax.Memory` has all forms. It runs chunks
    of steps as matrix products. For several writes per step, as in DeltaProduct, pass as many steps
    and use the read of the last.

    Args:
        memory: arrays of all steps, each ``(time, *batch, heads, ...)``, without ``log_beta``. The
            heads of keys and queries may be a divisor of those of the values, which share them.
        carry: the state before the first step, ``(*batch, heads, value_size, key_size)``; zeros by
            default.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`; a reset sets the state to zeros.
        reverse: as in `unroll`.
        method: ``Auto()`` or ``Parallel()``, whose ``chunk`` is the number of steps of a chunk;
            ``Scan()`` runs step by step.

    Returns:
        the last state, and the reads ``(time, *batch, heads, value_size)``.

    Raises:
        InvalidInputError: the shapes do not fit each other, or as `unroll`.

    >>> q = k = v = jnp.ones((5, 2, 1, 3))  # 5 steps, 2 rows, one head, sizes of 3
    >>> decay = jnp.zeros((5, 2, 1))
    >>> carry, y = matrix_memory(Memory(q, k / 3, v, decay, beta=decay + 1, erase=decay + 3))
    >>> y.shape, carry.memory.shape, bool(jnp.allclose(y, 1))
    ((5, 2, 1, 3), (2, 1, 3, 3), True)
    """
    if not isinstance(memory, Memory) or any(x is None for x in memory[:4]):
        raise InvalidInputError(
            "memory must be a rnnjax.Memory with query, key, value and log_decay, but is "
            f"{brief(memory)}; write Memory(query, key, value, log_decay)"
        )
    given = {name: as_array(name, x) for name, x in memory._asdict().items() if x is not None}
    if "log_beta" in given:
        raise InvalidInputError(
            "memory must have no log_beta, whose stabilizer belongs to a cell, but has one; give "
            "beta, or write a cell with a memory"
        )
    _check_memory(given)
    rows, heads = given["key"].shape[:-2], given["value"].shape[-2]
    if method.along.name is not None:
        raise InvalidInputError(
            f"axis_name must be None, for a memory is not handed on between devices, but is "
            f"{method}; leave it out"
        )
    shape = *rows[1:], heads, given["value"].shape[-1], given["key"].shape[-1]
    check_instance("carry", carry, MatrixCarry | None, "a MatrixCarry, as is returned")
    state = None if carry is None else carry.memory
    state = _shaped("carry.memory", state, shape, "(*batch, heads, value_size, key_size)")
    order, *marks = _Order.of(given["key"][..., 0], lengths, mask, resets, reverse, method)
    state = state.astype(state_type(given, state))
    return _memory(order, Memory(**given), state, *marks)


def _check_memory(given: dict[str, jax.Array]) -> None:
    """Raise unless the arrays of a memory fit each other."""
    (*rows, keys, size), values = given["key"].shape, given["value"].shape[-2:]
    if len(values) < 2 or not keys * size or values[0] % keys:
        raise InvalidInputError(
            f"the key must be (time, *batch, key_heads, key_size), with heads that divide those of "
            f"the value, but has {given['key'].shape}, and the value {given['value'].shape}; check "
            "their axes"
        )
    few, whole = [(*rows, k) for k in {keys: None, values[0]: None}], (*rows, values[0])
    by_key = [(*heads, size) for heads in few]
    fits = {"query": by_key, "removal_query": by_key, "removal_key": by_key, "beta": [whole]}
    fits |= {"key": by_key[:1], "value": [(*whole, values[1])]}
    fits |= {"log_decay": [whole, (*whole, size)], "erase": [whole, (*whole, size)]}
    for name, x in given.items():
        if x.shape not in fits[name] or not rows:
            raise InvalidInputError(
                f"{name} must have shape {' or '.join(map(str, fits[name]))}, (time, *batch, "
                f"heads, ...) as the key and the value, but has {x.shape}; check its axes"
            )


@functools.partial(jax.jit, static_argnums=0)
def _memory(
    order: "_Order", memory: Memory, state: jax.Array, valid: Any, resets: Any
) -> tuple[MatrixCarry, jax.Array]:
    """Run the memory over all steps, under ``jit`` as `unroll` does."""
    masked, num_steps, method = valid, memory.key.shape[0], order.method
    memory = zero_masked(memory, masked)
    steps = Steps(StepMarks(*order.running((valid, resets))), MatrixCarry(jnp.zeros_like(state)))
    memory, steps, first = match_devices((order.running(memory), steps, MatrixCarry(state)))
    with method.precisely():
        if isinstance(method, Scan) or num_steps < 2:  # a chunk of one step is the equation
            last, reads = jax.lax.scan(
                lambda carry, at: _memory_step(steps, carry, *at),
                first,
                (memory, steps.per_step),
                unroll=num_steps == 1,
            )
        else:
            length = usual_length(memory, num_steps, getattr(method, "chunk", None))
            last, reads, _ = run_memory(memory, first, steps, length)
    return last, zero_masked(order.running(reads), masked)


def _memory_step(steps: Steps, carry: Any, memory: Memory, at: StepMarks) -> Any:
    carry = steps.reset(carry, at)
    new, read, _ = remembered(memory, carry)
    return steps.mask(carry, new, read, at, None)


@usual_promotion()
def causal_convolution(
    xs: jax.Array,
    taps: jax.Array,
    bias: jax.Array | None = None,
    carry: jax.Array | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Convolve each channel with the steps before, as Mamba and Griffin do before a recurrence.

    .. math::
        y_t = d + \sum_{i=0}^{n-1} k_{n-1-i} \odot x_{t-i}

    It equals a loop over the steps that carries the last n - 1 of them: masked steps enter no
    window, and a window reaches no further back than to a reset.

    Args:
        xs: ``(time, *batch, features)``.
        taps: :math:`k` ``(n, features)``, the factors of the oldest step first; PyTorch's
            ``Conv1d.weight[:, 0].T`` with ``groups=features``.
        bias: :math:`d` ``(features,)``, or None.
        carry: the steps before the first, ``(*batch, n - 1, features)``, oldest first; zeros by
            default.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`; a reset sets the carry to zeros.
        reverse: as in `unroll`.

    Returns:
        the last n - 1 steps, to go on from, and ``(time, *batch, features)``.

    Raises:
        InvalidInputError: the shapes do not fit each other, or as `unroll`.

    >>> xs, taps = jnp.arange(1.0, 5.0)[:, None], jnp.array([[10.0], [1.0]])
    >>> carry, ys = causal_convolution(xs, taps)
    >>> print(ys[:, 0], carry[:, 0])
    [ 1. 12. 23. 34.] [4.]
    >>> print(causal_convolution(xs, taps, carry=carry)[1][:, 0])
    [41. 12. 23. 34.]
    """
    xs, taps = as_array("xs", xs), as_array("taps", taps)
    features = xs.shape[-1:]
    if xs.ndim < 2 or taps.ndim != 2 or taps.shape[1:] != features or not len(taps):
        raise InvalidInputError(
            f"taps must be (n, features) for xs (time, *batch, features), but has {taps.shape}, "
            f"and xs {xs.shape}; check their axes"
        )
    shape = *xs.shape[1:-1], len(taps) - 1, *features
    these = f"for taps {taps.shape} and xs {xs.shape}"
    given = [_shaped("carry", carry, shape, these)]
    given += [] if bias is None else [_shaped("bias", bias, features, these)]
    order, *marks = _Order.of(xs, lengths, mask, resets, reverse, Scan())
    dtype = state_type(xs, taps, given)
    return _convolution(order, *marks, *(x.astype(dtype) for x in (xs, taps, *given)))


@functools.partial(jax.jit, static_argnums=0)
def _convolution(
    order: "_Order", valid: Any, resets: Any, xs: Any, taps: Any, *given: Any
) -> tuple[jax.Array, jax.Array]:
    """Convolve, under ``jit`` as `unroll` does."""
    valid, resets = (
        None if marks is None else jnp.broadcast_to(expand(marks, xs[..., 0]), xs.shape[:-1])
        for marks in (valid, resets)
    )
    if not xs.shape[0]:
        return given[0], xs
    running = order.running((zero_masked(xs, valid), valid, resets))
    running, taps, given = match_devices((running, taps, given))
    window, ys = windowed(running[0], taps, given[0], *running[1:])
    ys = ys if len(given) == 1 else ys + given[1]
    return window, zero_masked(order.running(ys), valid)


def _shaped(name: str, x: Any, shape: tuple[int, ...], which: str) -> jax.Array:
    """Return an array, or zeros for None; raise unless it has that shape."""
    x = jnp.zeros(shape, jnp.float32) if x is None else as_array(name, x)
    if x.shape != shape:
        raise InvalidInputError(
            f"{name} must have shape {shape}, {which}, but has {x.shape}; check its axes, of which "
            "none is time"
        )
    return x


@dataclasses.dataclass(frozen=True)
class _Order:
    """The static arguments of a call.

    Attributes:
        method: a method that runs arrays.
        reverse: whether steps run from the last to the first.
    """

    method: Method
    reverse: bool

    @classmethod
    def of(
        cls, xs: jax.Array, lengths: Any, mask: Any, resets: Any, reverse: Any, method: Method
    ) -> tuple["_Order", Any, Any]:
        """Check the method, and the marks of inputs ``xs (time, *batch, features)``.

        Also return the valid steps and the resets, in running order.
        """
        check_runs(method, reverse)
        if type(method) not in (Auto, Scan, Parallel):  # what a subclass adds would not run
            raise InvalidInputError(
                f"method must be Auto(), Parallel() or Scan(), which is all that runs arrays, but "
                f"is {method}; leave it out"
            )
        # A program exported for any number of steps cannot split them into chunks. A chunk of one
        # step, as where a text is written, computes the step with more operations.
        if isinstance(method, Parallel):
            method.check_known(xs.shape[0])
        elif is_symbolic_dim(xs.shape[0]) or xs.shape[0] == 1:
            method = Scan(precision=method.precision)
        marks = marks_of(xs, lengths, mask, resets, method.along).crossed(reverse, method.along)
        return cls(method, bool(reverse)), marks.valid, marks.resets

    def running(self, tree: Any) -> Any:
        """Return arrays over time in running order: reversed if the steps run in reverse."""
        return jax.tree.map(lambda leaf: leaf[::-1], tree) if self.reverse else tree
