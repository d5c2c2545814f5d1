"""Training on many devices: the rows of the batch are sharded."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rnnjax.checks import brief, is_integer
from rnnjax.errors import InvalidInputError
from rnnjax.training.state import TrainState, as_bits, as_keys

# Every device reads every kernel at every step, however few its rows are. Forward and backward over
# 100 steps on two cores, time on one device over that on two: LSTM(512) with 16 rows, 4 MiB for 8
# rows each, 1.08; LSTM(700) with 12, 7.5 MiB for 6 rows each, 0.84.
# More than two cores were not tried. They share the memory that each reads the kernel from, so the
# bound may be too high there: "rnnjax, cores" of ``benchmarks.layers shapes`` would decide.
_BYTES_PER_ROW = 2**19
# Less work than this is done before it is dispatched: LSTM(64) with 16 rows, 64 KiB for each, gains
# a quarter.
_LEAST_WORK = 2**20


def axis_of_each(name: str, axis: Any, tree: Any) -> Any:
    """Return the axis of each leaf of a tree from a tree prefix, like ``in_axes`` of `jax.vmap`.

    Raises:
        InvalidInputError: it is not a tree prefix, or an axis is not an integer of at least 0.

    >>> axis_of_each("axis", {"xs": 1, "lengths": 0}, {"xs": (2, 3), "lengths": 4})
    {'lengths': 0, 'xs': (1, 1)}
    """
    if is_integer(axis) and axis >= 0:
        return jax.tree.map(lambda _: int(axis), tree)
    children, structure = jax.tree.flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    parts = {jax.tree_util.keystr(path, simple=True): child for path, child in children}
    given = axis
    if isinstance(axis, tuple | list) and len(axis) == len(parts):  # of a NamedTuple too
        given = dict(zip(parts, axis, strict=True))
    below = {str(key): each for key, each in given.items()} if isinstance(given, Mapping) else {}
    if below.keys() != parts.keys() or "" in parts:
        raise InvalidInputError(
            f"{name} must be a whole number from 0 up, or such a number for each entry of "
            f"{brief(tree)}, but is {axis!r}; pass 1 for (time, rows, ...), 0 for (rows, ...)"
        )
    found = [axis_of_each(f"{name}[{key}]", below[key], child) for key, child in parts.items()]
    return jax.tree.unflatten(structure, found)


def cores_for(params: Any, rows: int) -> int:
    """Return over how many CPU devices to shard the ``rows`` of a batch, by a measured rule.

    More devices pay off if there is enough work, and if no kernel of ``params`` (arrays or shapes)
    is large for the rows per device, since each device reads all of it. The number divides
    ``rows``. It is 1 on devices that are not CPUs.

    >>> cores_for({"kernel": np.ones((700, 2800))}, rows=12)  # 15 MiB, for few rows
    1
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu" or jax.process_count() > 1:
        return 1
    arrays = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in arrays), default=0)
    if largest * rows < _LEAST_WORK:
        return 1
    fitting = (n for n in range(len(devices), 1, -1) if rows % n == 0)
    return next((n for n in fitting if largest <= rows // n * _BYTES_PER_ROW), 1)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How the arrays of a training run are sharded over the devices of a mesh.

    Each device has a part of the rows of every batch and of the carry, and all parameters with
    their optimiser state. Results equal those of one device, except for the order of sums. XLA
    partitions the work and adds the communication. `make_train_steps` takes it.

    Args:
        mesh: a mesh with the one axis "data"; see `over`.
        rows_axis: the axis of rows of the leaves of batches, whose first axis is steps: 2 if time
            precedes rows. If leaves differ, a tree prefix, like ``in_axes`` of `jax.vmap`.
            (`minibatches` provides it.) With None every device has all rows.

    Raises:
        InvalidInputError: the mesh has other axes.

    >>> import optax, rnnjax
    >>> from rnnjax.training import make_train_steps
    >>> sharding = Sharding.over(data=1)
    >>> cell, optimizer = rnnjax.LSTMCell(4), optax.sgd(0.1)
    >>> def loss_fn(params, carry, batch, key):
    ...     carry, ys = rnnjax.unroll(cell, params, batch.swapaxes(0, 1), carry)
    ...     return (ys**2).mean(), (carry, {})
    >>> state = TrainState.create(cell.init(jax.random.key(0), 3), optimizer,
    ...     key=jax.random.key(1), carry=cell.initial_carry((2,)))
    >>> batches = sharding.put_batches(jax.numpy.ones((5, 2, 7, 3)))  # steps, rows, time, features
    >>> train_steps = make_train_steps(loss_fn, optimizer, sharding)
    >>> state, metrics = train_steps(sharding.put_state(state), batches, 0, 5)
    >>> int(state.step), metrics["loss"].shape, dict(sharding.mesh.shape)
    (5, (5,), {'data': 1})
    """

    mesh: Mesh
    rows_axis: Any = dataclasses.field(default=1, hash=False)  # perhaps a dict

    def __post_init__(self) -> None:
        names = getattr(self.mesh, "axis_names", None)
        if names != ("data",):
            raise InvalidInputError(
                'the mesh of a Sharding must have the axes ("data",), along which rows are '
                f"divided, but has {names}; make one with Sharding.over"
            )

    @classmethod
    def over(cls, data: int | None = None, *, rows_axis: Any = 1) -> "Sharding":
        """Make a sharding over the devices of all processes.

        Args:
            data: the number of devices, over which rows are divided; by default all.
            rows_axis: that of the class.

        Raises:
            InvalidInputError: there are too few devices, or several processes would not use all of
                theirs.
        """
        devices = jax.devices()
        along = len(devices) if data is None else data
        exact = jax.process_count() > 1
        if not (len(devices) if exact else 1) <= along <= len(devices):
            raise InvalidInputError(
                f"a mesh must take {'all' if exact else 'some'} of the {len(devices)} devices, "
                f"at least 1, but takes {along}; take another number (on a CPU "
                "JAX_NUM_CPU_DEVICES=8 simulates 8 devices)"
            )
        auto = (AxisType.Auto,)
        mesh = jax.make_mesh((along,), ("data",), axis_types=auto, devices=devices[:along])
        return cls(mesh, rows_axis)

    def rows(self, batch_size: int) -> np.ndarray:
        """Return the rows of a batch that this process must load: all, if it is the only one.

        Raises:
            InvalidInputError: the batch cannot be sharded over the devices.

        >>> Sharding.over(data=1).rows(3).tolist()
        [0, 1, 2]
        """
        self._check_rows(batch_size, self.mesh.size)
        sharding = self._named(0)
        parts = sharding.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))

    def put_batches(self, batches: Any) -> Any:
        """Shard the rows of batches over the devices.

        Args:
            batches: leaves with a first axis of steps and, at ``rows_axis``, the `rows` of this
                process; leaves without that axis are the same for all rows.

        Raises:
            InvalidInputError: the rows cannot be sharded over the devices; or two processes gave
                the same rows in the first step, which would count twice.
        """
        if self.rows_axis is None:
            return jax.tree.map(lambda leaf: _laid(leaf, self._named()), batches)
        along = self.mesh.local_mesh.size
        first: list[np.ndarray] = []

        def put(leaf: Any, axis: int) -> jax.Array:
            if np.ndim(leaf) <= axis:
                return _laid(leaf, self._named())
            named = self._named(axis)
            if isinstance(leaf, jax.Array) and leaf.sharding == named:
                return leaf
            self._check_rows(leaf.shape[axis], along)
            value = np.asarray(as_bits(leaf))
            first.append(value[:1])
            return as_keys(jax.make_array_from_process_local_data(named, value), leaf)

        laid = jax.tree.map(put, batches, axis_of_each("rows_axis", self.rows_axis, batches))
        if first and jax.process_count() > 1:
            self._check_shares(first)
        return laid

    def _check_shares(self, first: list[np.ndarray]) -> None:
        """Compare a checksum of the first step's rows with those of the other processes."""
        checksum = zlib.crc32(b"".join(value.tobytes() for value in first))
        # Made-up data may be the same everywhere.
        constant = all(not value.size or (value == value.flat[0]).all() for value in first)
        ours = np.array([checksum, constant], np.uint32)
        seen: dict[int, int] = {}
        for index, (checksum, constant) in enumerate(
            multihost_utils.process_allgather(ours).tolist()
        ):
            other = seen.setdefault(checksum, index)
            if other != index and not constant:
                raise InvalidInputError(
                    "processes must give different rows of a batch, but those of processes "
                    f"{other} and {index} are the same; give each the rows that "
                    "Sharding.rows(batch_size) names, or all of them what minibatches returns"
                )

    def put_state(self, state: TrainState) -> TrainState:
        """Shard a state, which every process has whole, over the devices."""
        return jax.tree.map(_laid, state, self.of_state(state))

    def keep(self, state: TrainState) -> TrainState:
        """Constrain the state inside ``jit`` to the sharding of `put_state`."""
        return jax.lax.with_sharding_constraint(state, self.of_state(state))

    def keep_everywhere(self, tree: Any) -> Any:
        """Constrain arrays inside ``jit`` to be replicated on all devices."""
        return jax.lax.with_sharding_constraint(tree, self._named())

    def whole(self, tree: Any) -> Any:
        """Gather copies of whole arrays on a device of this process; all processes must call it."""
        everywhere = self._named()
        tree = jax.tree.map(lambda x: jax.device_put(x, everywhere).addressable_data(0), tree)
        return jax.device_put(tree, may_alias=False)  # the next step donates what is there

    def of_state(self, state: TrainState) -> TrainState:
        """Return a `jax.sharding.NamedSharding` for every array of a state, in its structure.

        An array of the carry has rows first, if they can be divided. Every device has the others,
        and one of the carry with the shape of a parameter whose path ends its own.
        """
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        params = {(_names(path), leaf.shape) for path, leaf in leaves}

        def of_carry(path: Any, leaf: Any) -> NamedSharding:
            names = _names(path)
            like = any((names[i:], leaf.shape) in params for i in range(len(names) + 1))
            divides = leaf.ndim and not leaf.shape[0] % self.mesh.size
            return self._named(0 if divides and not like else None)

        carry = jax.tree_util.tree_map_with_path(of_carry, state.carry)
        everywhere = jax.tree.map(lambda _: self._named(), state)
        return dataclasses.replace(everywhere, carry=carry)

    def _check_rows(self, rows: int, devices: int) -> None:
        if rows % devices:
            raise InvalidInputError(
                f"a batch of {rows} rows cannot be divided over {devices} devices; take a multiple "
                f"of {devices} rows, or fewer devices"
            )

    def _named(self, axis: int | None = None) -> NamedSharding:
        """Return the sharding of arrays with rows at this axis, or without rows."""
        # Of one device in XLA's own spelling: another one would compile once more.
        spec = () if axis is None or self.mesh.size == 1 else (*[None] * axis, "data")
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def _laid(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Shard an array that every process has whole."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    # A copy, because the state is donated, and the caller's array should survive.
    value = np.array(as_bits(leaf))
    laid = jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])
    return as_keys(laid, leaf)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
