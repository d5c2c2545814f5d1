"""Batches from arrays, loaders or functions, grouped on the devices; a thread prefetches."""

import copy
import dataclasses
import functools
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import advised, brief, check_instance, check_size
from rnnjax.errors import CheckpointError, InvalidInputError
from rnnjax.training.identity import sums_of_steps
from rnnjax.training.processes import require_alike, together
from rnnjax.training.sharding import Sharding, axis_of_each, cores_for
from rnnjax.training.state import as_bits, as_keys, dtype_of, is_key

# Two groups are in memory at a time, and two more in transfer to another device.
_BYTES_OF_GROUP = 2**22
# A signal is answered between groups, so a slow stream makes small ones.
_STEPS_OF_STREAM = 64
_SECONDS_OF_STREAM = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """The result of `minibatches`: a function from the number of an epoch to its batches.

    It has the arguments of `minibatches`, with ``axis`` for each leaf, and ``rows``: the rows of
    every batch that this process reads, as from `Sharding.rows`, or None for all.
    """

    arrays: Any
    batch_size: int
    seed: int
    axis: Any
    rows: np.ndarray | None = None

    def __call__(self, epoch: int) -> Any:
        """Return the batches of an epoch; each leaf has a first axis of steps."""
        return self.cut(self.order(epoch))

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of each batch of an epoch: ``(steps, batch_size)``."""
        rows, size = min(_rows(self.arrays, self.axis)), self.batch_size
        order = np.random.default_rng((self.seed, epoch)).permutation(rows)
        order = order[: rows // size * size].reshape(-1, size)
        return order if self.rows is None else order[:, self.rows]

    def rest(self) -> np.ndarray:
        """Return the rows that fill no batch of epoch 0: ``(1, fewer than batch_size)``."""
        rows, size = min(_rows(self.arrays, self.axis)), self.batch_size
        return np.random.default_rng((self.seed, 0)).permutation(rows)[None, rows // size * size :]

    def cut(self, order: np.ndarray) -> Any:
        """Return the batches of some steps of an `order`; each leaf has a first axis of steps."""
        taken = functools.partial(_taken, order)
        return jax.tree.map(taken, self.arrays, self.axis)

    def split(self, fraction: float) -> tuple["Minibatches", "Minibatches"]:
        """Split into training batches of the first rows and validation batches of the last.

        As ``evaluate`` of `fit`, the second measures every one of its rows once.

        Args:
            fraction: the share of rows for validation, like Keras's ``validation_split``.

        Raises:
            InvalidInputError: one of the two would have no batch.

        >>> train, valid = minibatches(np.arange(10), 2, axis=0).split(0.2)
        >>> train(0).shape, sorted(valid(0).ravel().tolist())
        ((4, 2), [8, 9])
        """
        rows = min(_rows(self.arrays, self.axis))
        part_of = isinstance(fraction, float) and 0 < fraction < 1
        most = math.floor(rows * (1 - fraction)) if part_of else 0
        if not self.batch_size <= most <= rows - self.batch_size:
            raise InvalidInputError(
                f"fraction must leave a batch of {self.batch_size} of the {rows} rows on both "
                f"sides, but is {fraction!r}; pass 0.2, say, or make the batches smaller"
            )

        def part(rows: slice) -> Minibatches:
            cut = jax.tree.map(
                lambda leaf, axis: leaf[(slice(None),) * axis + (rows,)], self.arrays, self.axis
            )
            return dataclasses.replace(self, arrays=cut)

        return part(slice(most)), part(slice(most, None))


@advised
def minibatches(arrays: Any, batch_size: int, *, axis: Any, seed: int = 0) -> Minibatches:
    """Shuffle the rows of arrays into batches, in a new order every epoch, for `fit`.

    You must name the axis of rows, because only rows may be shuffled, not time. Rows must be
    independent: a batch has other rows than the one before, so a carry with a state for each row
    would go on in other rows. (`windows` cuts streams whose rows go on.)

    Args:
        arrays: a pytree of arrays with equally many rows.
        batch_size: the number of rows of a batch. A training epoch omits the rest, other rows each
            time, and `fit` says how many; as ``evaluate`` the rest is one smaller batch.
        axis: the axis of rows: 1 for ``(time, rows, ...)``, as `rnnjax.unroll` takes it, 0 for
            ``(rows, ...)``, as for lengths and labels. One number for all leaves, or a tree prefix
            of ``arrays``, like ``in_axes`` of `jax.vmap`: ``{"xs": 1, "lengths": 0}``.
        seed: the seed of the orders.

    Returns:
        a function from the number of an epoch to the tree, each leaf with a first axis of steps:
        ``(steps, time, rows, ...)`` and ``(steps, rows, ...)``.

    Raises:
        InvalidInputError: the arrays differ in their rows, or have too few; ``axis`` does not fit.

    For example with `rnnjax.pad`, and a label for each row:

    >>> import rnnjax
    >>> padded = rnnjax.pad([np.ones((5, 2)), np.ones((3, 2)), np.ones((4, 2))])
    >>> data = {"xs": padded.xs, "lengths": padded.lengths, "labels": np.array([1, 0, 1])}
    >>> batches = minibatches(data, 3, axis={"xs": 1, "lengths": 0, "labels": 0})
    >>> jax.tree.map(np.shape, batches(0))
    {'labels': (1, 3), 'lengths': (1, 3), 'xs': (1, 8, 3, 2)}
    """
    check_size("batch_size", batch_size)
    check_size("seed", seed, 0)
    arrays = jax.tree.map(_as_array, arrays)
    axes = axis_of_each("axis", axis, arrays)
    rows, shapes = _rows(arrays, axes), list(map(np.shape, jax.tree.leaves(arrays)))
    if len(rows) != 1 or batch_size > min(rows):
        raise InvalidInputError(
            f"arrays must have the same number of rows along axis, at least a batch of "
            f"{batch_size}, but have the shapes {shapes} and {sorted(rows)} along "
            f"{jax.tree.leaves(axes)}; say where rows stand in each of them, as "
            'axis={"xs": 1, "labels": 0}, or make the batch smaller'
        )
    return Minibatches(arrays, batch_size, seed, axes)


def _taken(order: np.ndarray, leaf: Any, axis: int) -> Any:
    """Return these rows of an array, the axes of ``order`` but for its last one first."""
    rows, steps = np.take(np.asarray(as_bits(leaf)), order, axis), range(order.ndim - 1)
    return as_keys(np.moveaxis(rows, [axis + i for i in steps], steps), leaf)


def _rows(tree: Any, axes: Any) -> set[int]:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(axes), strict=True)
    return {(*np.shape(leaf)[axis:], 0)[0] for leaf, axis in pairs}


def carries_rows(data: Sequence[Any], carry: Any, params: Any) -> bool:
    """Whether a carry, unless it is like parameters, has a state for each row of minibatches."""
    like = {np.shape(leaf) for leaf in jax.tree.leaves(params)}
    first = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(carry) if np.shape(leaf) not in like}
    return any(isinstance(each, Minibatches) and (each.batch_size,) in first for each in data)


def divided(
    batches: Any,
    sharding: Sharding | Literal["cores"] | None,
    params: Any,
    say: Callable[[str], None],
) -> tuple[Any, Sharding | None]:
    """Return the batches that this process reads, and their sharding.

    Raises:
        InvalidInputError: ``sharding`` is not a valid value; it is "cores" and the batches do not
            say which axis their rows are; or they cannot be sharded.
    """
    if isinstance(batches, Minibatches) and (left := batches.rest().size):
        say(f"each epoch leaves out {left} rows, which fill no batch, other ones each time")
    if sharding == "cores":
        expected = "those of minibatches, which know their rows (or pass a Sharding with rows_axis)"
        check_instance('batches of sharding="cores"', batches, Minibatches, expected)
        cores = cores_for(params, batches.batch_size)
        if cores == 1:
            say(
                'sharding="cores": training on one device, because JAX has no second core of a '
                "CPU (use_cores, before anything else, shows it them; Sharding.over() takes other "
                f"devices), or a batch of {batches.batch_size} rows would not be faster on more"
            )
        sharding = Sharding.over(cores) if cores > 1 else None
    if sharding is None:
        return batches, None
    check_instance("sharding", sharding, Sharding, 'a Sharding, "cores", or None')
    if isinstance(batches, Minibatches):
        axes = jax.tree.map(lambda axis: 1 + axis, batches.axis)
        sharding = dataclasses.replace(sharding, rows_axis=axes)
        batches = dataclasses.replace(batches, rows=sharding.rows(batches.batch_size))
    return batches, sharding


def pad_rows(batch: Any, rows: int, *, axis: Any = 0) -> tuple[Any, np.ndarray]:
    """Pad a batch to ``rows`` rows, and return weights that mark its own rows.

    The last batch of an epoch is often smaller than the others. Padded, it runs in the same
    program and fits the same carry. A loss that weighs its rows does not change.

    Args:
        batch: a pytree of arrays. The padding repeats the first row.
        rows: the number of rows of a full batch.
        axis: the axis of rows: one number for all leaves, or a tree prefix of ``batch``.

    Returns:
        the batch, and float32 weights ``(rows,)``: 1 for its own rows, and 0 for padding.

    Raises:
        InvalidInputError: the batch has more rows, or none, or its leaves differ in them.

    >>> batch, weights = pad_rows({"xs": np.ones((5, 3, 2)), "labels": np.ones(3)}, 4,
    ...                           axis={"xs": 1, "labels": 0})
    >>> batch["xs"].shape, weights.tolist()
    ((5, 4, 2), [1.0, 1.0, 1.0, 0.0])

    For a stream: ``fit(..., lambda epoch: (pad_rows(b, 32) for b in loader), ...)``.
    """
    check_size("rows", rows)
    batch = jax.tree.map(_as_array, batch)
    axes = axis_of_each("axis", axis, batch)
    found = _rows(batch, axes)
    if len(found) != 1 or not 1 <= min(found) <= rows:
        raise InvalidInputError(
            f"batch must have the same number of rows in all leaves, from 1 to {rows}, but has "
            f"{sorted(found)}; give rows of a whole batch, and axis where they are not first"
        )
    order = np.r_[np.arange(min(found)), np.zeros(rows - min(found), int)]
    counted = np.arange(rows) < min(found)
    return jax.tree.map(functools.partial(_taken, order), batch, axes), counted.astype(np.float32)


@dataclasses.dataclass
class Group:
    """A group of steps whose batches are on the devices."""

    batches: Any  # leaves (slots, ...), as many slots in all groups: one program does all of them
    start: int  # the first slot whose step is to be done
    stop: int  # the slot after the last one
    positions: list[Any] | None = None  # of a stream: where it stands after each slot, if it says


class Source:
    """The batches of `fit`, or the data of its ``evaluate``; errors call it ``name``.

    ``given`` is arrays with a first axis of steps, an iterable (a stream), or a function from the
    number of an epoch to either.
    """

    def __init__(self, name: str, given: Any, epochs: int, sharding: Sharding | None):
        self.name, self.given, self.sharding = name, given, sharding
        self._held: Group | None = None  # all steps of all epochs
        self._made: dict[int, Any] = {}  # what a function returned for the epoch in progress
        self.exact = True  # whether a run can resume from the middle of an epoch
        # A stream that `first_epoch` looked into: its first group, and what yields the others.
        self._begun: tuple[Group, Generator[Group, None, None]] | None = None
        if isinstance(given, Iterator) and epochs > 1:
            raise InvalidInputError(
                f"{name} must last for {epochs} epochs, but is {brief(given)}, which can be gone "
                "through only once; give a function from the number of an epoch to an iterator"
            )

    def epoch(
        self, number: int, first: int = 0, position: Any = None
    ) -> Generator[Group, None, None]:
        """Yield the groups of an epoch from a step on; a stream begins at ``position``."""
        if self._held is not None and first <= self._held.stop:
            yield dataclasses.replace(self._held, start=first)
            return
        if self._begun is not None:
            (peeked, others), self._begun = self._begun, None
            if number == first == 0:
                yield peeked
                yield from others
                return
            others.close()
            self._made.clear()
        groups, steps = self._groups(number, first, position), first
        config: Any = jax.config
        x64, device = config.jax_enable_x64, config.jax_default_device

        def ahead() -> Group | None:  # a thread has settings of its own
            with jax.enable_x64(x64), jax.default_device(device):
                return self._next(groups)

        with ThreadPoolExecutor(1) as pool:
            group = self._next(groups)
            while group is not None:
                # Several processes must agree, which threads cannot do.
                coming = pool.submit(ahead) if jax.process_count() == 1 else None
                steps += group.stop - group.start
                yield group
                group = self._next(groups) if coming is None else coming.result()
        if not steps:
            raise InvalidInputError(
                f"{self.name} must hold a batch in every epoch, but epoch {number + 1} has none; "
                "where it is a generator, give a function that begins a new one for each epoch"
            )

    def _next(self, groups: Iterator[Group]) -> Group | None:
        group = together(lambda: next(groups, None))
        require_alike({self.name: group and [group.start, group.stop]})
        put = jax.device_put if self.sharding is None else self.sharding.put_batches
        group = group and dataclasses.replace(group, batches=put(group.batches))
        if group and group.positions is None and not callable(self.given) and self._single:
            self._held = group
        return group

    def first_epoch(self) -> tuple[Any, str]:
        """Return the shapes of a batch, and a digest of the data of the first epoch.

        The digest is of what can be read again: the arrays of all steps, or the first batch of a
        stream that a function returns. A stream itself has only its shapes.
        """
        sums, epoch = list[bytes](), self.epoch(0)
        for group in epoch:
            shapes, is_stream = shapes_of(group.batches), group.positions is not None
            if callable(self.given) or not is_stream:
                stop = 1 if is_stream else group.stop
                sums.append(sums_of_steps(group.batches)[group.start : stop].tobytes())
            if is_stream:
                self._begun = group, epoch
                break
        return shapes, hashlib.sha256(str(shapes).encode() + b"".join(sums)).hexdigest()

    def _groups(self, number: int, first: int, position: Any) -> Iterator[Group]:
        data = self.given
        if isinstance(data, Minibatches):
            order, cut = data.order(number), data.cut
            yield from self._of_arrays(lambda a, b: cut(order[a:b]), len(order), first)
            return
        if callable(data):
            if number not in self._made:  # it may load a whole epoch: once, and one at a time
                self._made.clear()
                self._made[number] = data(number)
            data = self._made[number]
        if _is_stream(data):
            if callable(number_of := getattr(data, "cardinality", None)) and int(number_of()) == -1:
                raise InvalidInputError(
                    f"{self.name} must end, but is a tf.data.Dataset that repeats for ever; give "
                    "the steps of an epoch, as dataset.take(100)"
                )
            yield from self._of_stream(iter(data), first, position)
        else:
            steps, tree = self._length(data), jax.tree.map(_as_array, data)
            yield from self._of_arrays(
                lambda a, b: jax.tree.map(lambda leaf: leaf[a:b], tree), steps, first
            )

    def _of_arrays(self, cut: Callable[[int, int], Any], steps: int, first: int) -> Iterator[Group]:
        if first > steps:
            raise self._too_short(first)
        self._check_numbers(cut(0, 1))
        slots = min(steps, _slots(cut(0, 1)))
        self._single = slots == steps
        for at in range(first // slots * slots, steps, slots):
            stop = min(at + slots, steps)
            part = jax.tree.map(functools.partial(_filled, slots), cut(at, stop))
            yield Group(part, max(first - at, 0), stop - at)

    def _of_stream(self, stream: Any, first: int, position: Any) -> Iterator[Group]:
        says = hasattr(stream, "get_state") and hasattr(stream, "set_state")
        self.exact = says or callable(self.given)
        if first and says and position is not None:
            stream.set_state(position.encode("latin-1") if isinstance(position, str) else position)
        elif first and (not self.exact or sum(1 for _ in itertools.islice(stream, first)) < first):
            raise self._too_short(first)
        batches: list[Any] = []
        positions: list[Any] = []
        shapes: Any = None
        slots = 1

        def group() -> Group:
            stacked = jax.tree.map(lambda *leaves: _filled(slots, np.stack(leaves)), *batches)
            return Group(jax.tree.map(as_keys, stacked, shapes), 0, len(batches), positions)

        for batch in stream:
            batch = jax.tree.map(_as_array, batch)
            if batches and shapes_of(batch, 0) != shapes:
                yield group()
                batches, positions = [], []
            if not batches:
                self._check_numbers(batch)
                began, shapes = time.monotonic(), shapes_of(batch, 0)
                slots = min(_STEPS_OF_STREAM, _slots(batch))
            # Copied now, because a loader may reuse its buffers.
            batches.append(jax.tree.map(lambda leaf: np.array(as_bits(leaf)), batch))
            position = copy.deepcopy(stream.get_state()) if says else None
            positions.append(position.decode("latin-1") if type(position) is bytes else position)
            # All processes must make the same groups.
            slow = time.monotonic() - began > _SECONDS_OF_STREAM and jax.process_count() == 1
            if slow or len(batches) == slots:
                yield group()
                batches, positions = [], []
        if batches:
            yield group()

    def _too_short(self, first: int) -> CheckpointError:
        return CheckpointError(
            f"the run stopped after {first} steps of an epoch, from where {self.name} cannot go "
            "on; give what it had, or begin a new run in another folder"
        )

    def _check_numbers(self, tree: Any) -> None:
        if not jax.tree.leaves(tree):
            raise InvalidInputError(
                f"{self.name} must be arrays of numbers, but one is {tree!r}; give trees of them"
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not is_key(leaf) and (leaf.dtype.kind in "OSTUMm" or leaf.dtype.names):
                raise InvalidInputError(
                    f"{self.name} must be arrays of numbers, but "
                    f"{self.name}{jax.tree_util.keystr(path)} is of type {leaf.dtype}; encode "
                    "texts first, as rnnjax.text.Vocabulary does"
                )

    def _length(self, data: Any) -> int:
        if isinstance(data, list):
            raise InvalidInputError(
                f"{self.name} must be one tree with steps first, but a list came; give a function "
                "that iterates over its batches, lambda epoch: iter(batches), or stack them, as by "
                "jax.tree.map(lambda *leaves: numpy.stack(leaves), *batches)"
            )
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise InvalidInputError(
                f"{self.name} must be arrays with a first axis of steps, as long in all of them, "
                f"and not empty, but their first axes are {sorted(lengths)}; give all the same "
                "number of steps, or a loader of batches"
            )
        return int(lengths.pop()[0])


def _is_stream(data: Any) -> bool:
    """Whether data is an iterable of batches, and not a tree of arrays."""
    is_leaf = jax.tree_util.all_leaves([data]) and not isinstance(data, str | bytes)
    return is_leaf and hasattr(data, "__iter__") and not hasattr(data, "dtype")


def _as_array(leaf: Any) -> Any:
    """Convert an array of any library to NumPy or JAX; a memory map stays on the disk."""
    if hasattr(leaf, "numpy"):  # PyTorch's, TensorFlow's
        leaf = leaf.numpy()
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _slots(batch: Any) -> int:
    leaves = jax.tree.leaves(batch)
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return max(1, _BYTES_OF_GROUP // max(1, size))


def _filled(slots: int, leaf: Any) -> Any:
    """Pad an array ``(steps, ...)`` to ``slots`` steps; the padding is never read."""
    missing, module = slots - leaf.shape[0], jnp if isinstance(leaf, jax.Array) else np
    if not missing:
        return leaf
    return module.concatenate([leaf, module.broadcast_to(leaf[:1], (missing, *leaf.shape[1:]))])


def shapes_of(batches: Any, axis: int = 1) -> Any:
    """Return shapes and types without the first axes, by default that of steps."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[axis:], dtype_of(leaf)), batches
    )
