"""The method that runs affine recurrences and matrix memories in parallel over time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.checks import check_instance, check_size
from rnnjax.engine.core.masking import Steps, expand, read_out, without_row, zero_masked
from rnnjax.engine.core.method import Method, why_no_equation
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.parallel.chunkwise import chunk_length, chunkwise
from rnnjax.engine.parallel.linear_recurrence import AffineRecurrence, affine_states
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import MeshAxis


@dataclasses.dataclass(frozen=True, repr=False)
class Parallel(Method):
    r"""Compute the factors and constants of all steps at once, and then the states.

    The state of an affine cell (`rnnjax.Coupling.AFFINE`) obeys

    .. math::
        s_t = A_t \odot s_{t-1} + b_t

    :math:`A_t` and :math:`b_t` of all steps come from its ``update`` by `jax.jvp`, and are stored.
    The states follow by a parallel prefix sum on an accelerator (Blelloch, 1990; Martin & Cundy,
    2018), and by a loop on a CPU. Gradients of every order are exact. A prefix sum overflows if
    many :math:`A_t` are above 1.

    A matrix memory (`rnnjax.MLSTMCell`, `rnnjax.GatedDeltaNetCell`) runs in chunks, as products of
    matrices (Hua et al., 2022; Yang et al., 2024). Other cells are refused.

    Args:
        chunk: the steps of a chunk of a matrix memory; by default 64, or 16 if each key entry has
            its own decay.
        axis_name: a mesh axis inside `jax.shard_map` over which the steps are sharded. ``xs``,
            ``mask`` and ``resets`` are this device's; ``carry``, ``lengths`` and the returned carry
            are those of the whole sequence. Not for matrix memories.

    Raises:
        InvalidInputError: ``chunk`` is not a positive integer, ``axis_name`` is not a string, or no
            mesh axis has that name.

    >>> import functools, rnnjax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> cell = rnnjax.MinGRUCell(4)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jnp.ones((100, 2, 3))
    >>> mesh = jax.make_mesh((1,), ("time",), (AxisType.Auto,))  # of so many devices
    >>> whole, steps = PartitionSpec(), PartitionSpec("time")
    >>> @functools.partial(
    ...     jax.shard_map, mesh=mesh, in_specs=(whole, steps), out_specs=(whole, steps))
    ... def run(params, xs):
    ...     return rnnjax.unroll(cell, params, xs, method=Parallel(axis_name="time"))
    >>> carry, ys = run(params, xs)
    >>> bool(jnp.allclose(ys, rnnjax.unroll(cell, params, xs)[1], atol=1e-5))
    True
    """

    chunk: int | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None:
            check_size("chunk", self.chunk)
        if self.axis_name is not None:
            check_instance("axis_name", self.axis_name, str, "an axis of the mesh, or None")

    @property
    def along(self) -> MeshAxis:
        """The mesh axis ``axis_name``, over which the steps are sharded."""
        return MeshAxis(self.axis_name)

    def refusal(self, cell: Cell) -> str | None:
        """Refuse cells that are not affine or that mix units."""
        if cell.has_memory and self.axis_name is not None:
            return "its matrix memory is not handed on between devices"
        if self.chunk is not None and not cell.has_memory:
            return "it has no matrix memory to split into chunks"
        return why_not_affine(cell)

    def check_known(self, num_steps: Any) -> None:
        """Raise unless the number of steps is known, as that of a program for any number is not."""
        if not isinstance(num_steps, int):
            raise InvalidInputError(
                f"{self} needs a number of steps that is known, but {num_steps} came; use "
                "method=Scan()"
            )

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``."""
        self.check_known(xs.shape[0])
        if xs.shape[0] == 0:
            last, ys = Scan().run(cell, params, xs, carry, reverse, steps)
            if self.axis_name is not None:  # it is the same on all devices, and has to say so
                last = jax.tree.map(lambda every: every[0], self.along.gathered(last))
            return last, ys
        batch = xs.shape[1:-1]
        if len(batch) == 1 and isinstance(batch[0], int) and batch[0] == 1:
            # XLA copies arrays (time, 1, width) before and after products and loops. Without the
            # axis a gradient of an LRU takes about half of the time.
            xs, steps, carry = without_row(xs, steps, carry)
            last, ys = self.run(cell, params, xs, carry, reverse, steps)
            return jax.tree.map(lambda leaf: leaf[None], last), ys[:, None]
        if reverse:
            xs, per_step = jax.tree.map(lambda leaf: leaf[::-1], (xs, steps.per_step))
            steps = steps._replace(per_step=per_step)
        if cell.has_memory:
            last, ys = chunkwise(cell, params, xs, carry, steps, self.chunk)
        else:
            solved = AffineRecurrence(self.along, reverse)
            last, ys = affine_states(cell, params, xs, carry, steps, solved)
        ys = read_out(cell, params, ys, xs, steps.per_step)
        return last, ys[::-1] if reverse else ys

    def held(
        self, ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool
    ) -> jax.Array:
        """Hold the last valid output, possibly of another device, as an affine recurrence."""
        if self.axis_name is None or ys.shape[0] == 0:
            return super().held(ys, valid, resets, reverse)
        # held_t = where(valid_t, y_t, held_(t-1)): a recurrence with a factor of 1 that restarts at
        # each valid step from y_t, and at each reset from zero.
        begins = valid if resets is None else expand(valid, resets) | expand(resets, valid)
        given = zero_masked(ys, valid), begins
        ys, begins = jax.tree.map(lambda leaf: leaf[::-1], given) if reverse else given
        solved = AffineRecurrence(self.along, reverse)
        (held,), _, _ = solved([ys], [[jnp.ones_like(ys)]], [jnp.zeros_like(ys[0])], begins)
        return held[::-1] if reverse else held

    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say what is computed for all steps at once, and what step by step."""
        if cell.has_memory:
            length = chunk_length(cell, params, shape, self.chunk)
            return [
                f"the products of {length} steps at a time as those of matrices, all chunks side "
                f"by side; {-(-shape[0] // length)} memories wait for the one before",
                "the gradient backwards through the same, computed again",
            ]
        states = "a loop" if platform == "cpu" else "a prefix sum"
        lines = [
            f"the factors and constants of {shape[0]} steps at once; the states by {states}",
            "the gradient the same way, from the last step to the first",
        ]
        if self.axis_name is not None:
            lines.append(
                f"on each device of the axis {self.axis_name!r}, and then all know what the steps "
                "of each make of a state: one gather forward, and one backwards"
            )
        return lines


def why_not_affine(cell: Cell) -> str | None:
    """Return why a cell is not declared affine and elementwise in its state; else None."""
    # S' = S (A - r w^T) + beta v k^T is affine in S, and the update follows from the memory.
    if cell.has_memory:
        return None
    if reason := why_no_equation(cell):
        return reason
    if cell.recurrent is not None:
        return "its units see each other's state in a product"
    if cell.coupling < Coupling.AFFINE:
        return f"its coupling is declared as {cell.coupling.name}, not as AFFINE or CONTRACTING"
    return None
