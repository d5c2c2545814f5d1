"""Two cells that read a sequence in opposite directions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Cell, Inputs, Params, PickLast, exportable
from rnnjax.cells.composite import CellGroup, LayerRun, beside
from rnnjax.cells.step import split_raw
from rnnjax.cells.validation import check_init
from rnnjax.checks import check_choice
from rnnjax.errors import InvalidInputError

_MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "average": lambda forward, backward: (forward + backward) / 2,
}


@exportable
class Directions(NamedTuple):
    """The parameters or the carry of a `Bidirectional` layer, one entry per direction."""

    forward: Any
    backward: Any


@dataclasses.dataclass(frozen=True)
class Bidirectional(CellGroup[Directions]):
    """Reads the sequence in both directions and merges the outputs (Schuster & Paliwal, 1997).

    It can be a layer of a `Stack`, and its cells can be stacks. Parameters and carry are
    `Directions(forward, backward)`. With ``lengths`` the backward direction begins at each row's
    last valid step. A reset separates two sequences for both directions, at the same place. The
    final carry of the backward direction is the one after step 0.

    Args:
        forward: the cell that reads from the first step to the last.
        backward: the cell that reads from the last step to the first; by default an equal cell with
            its own parameters.
        merge: how to merge the outputs: ``"concat"``, ``"sum"``, ``"mul"`` or ``"average"``.

    Raises:
        InvalidInputError: ``merge`` is another word, an argument is not a cell, or the outputs of
            the directions differ in size and are not concatenated.

    >>> import rnnjax
    >>> layer = Bidirectional(rnnjax.LSTMCell(5))
    >>> params = layer.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(layer, params, jnp.ones((10, 8, 3)))
    >>> ys.shape, carry.backward.hidden.shape
    ((10, 8, 10), (8, 5))
    """

    forward: Cell
    backward: Cell | None = None
    merge: Literal["concat", "sum", "mul", "average"] = "concat"

    def __post_init__(self) -> None:
        check_choice("merge", self.merge, tuple(_MERGES))
        self.check_cells()
        sizes = [cell.output_size for cell in self.cells]
        if self.merge != "concat" and sizes[0] != sizes[1]:
            raise InvalidInputError(
                f"merge={self.merge!r} needs outputs of one size, but the directions have {sizes}; "
                'take cells of one size, or merge="concat"'
            )

    @property
    def cells(self) -> Directions:
        """The cells of the two directions."""
        return Directions(self.forward, self.forward if self.backward is None else self.backward)

    @property
    def output_size(self) -> int:
        """The sum of both output sizes for ``"concat"``, else their common size."""
        sizes = [cell.output_size for cell in self.cells]
        return sum(sizes) if self.merge == "concat" else sizes[0]

    def init(self, key: jax.Array, input_size: int) -> Directions:
        """Initialise the parameters of both directions."""
        check_init(key, input_size)
        keys = jax.random.split(key)
        pairs, own = zip(self.cells, keys, strict=True), self.size_without_raw(input_size)
        return Directions(*(cell.init(k, own + cell.raw_size) for cell, k in pairs))

    def step(self, params: Params, carry: Directions, x: Inputs) -> NoReturn:
        """Raise: the backward direction needs the end of the sequence first."""
        raise InvalidInputError(
            "a Bidirectional layer cannot run step by step, because its backward direction begins "
            "at the end of the sequence; run rnnjax.unroll over the whole of it"
        )

    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Any, carry: Directions, key: jax.Array | None
    ) -> tuple[Directions, jax.Array]:
        """Run both directions over ``xs`` and merge their outputs."""
        self.check_entries("params", params)
        self.check_entries("carry", carry)
        keys = (None, None) if key is None else jax.random.split(key)
        xs, raw = split_raw(self, xs)
        inputs = [beside(cell, xs, raw) for cell in self.cells]
        # Two loops one after the other. Two equal cells could share one, with both kernels as a
        # batch: not tried. Small layers on a GPU, whose steps wait for launches, would decide.
        forward, ys = run(self.cells.forward, params[0], inputs[0], carry[0], key=keys[0])
        backward, back = run(
            self.cells.backward, params[1], inputs[1], carry[1], key=keys[1], reverse=True
        )
        return Directions(forward, backward), self.merge_outputs(ys, back)

    def last_output(self, carry: Any, ys: jax.Array, pick: PickLast) -> jax.Array:
        """Merge the last outputs of both directions, each at its own end of the sequence."""
        carries = (None, None) if carry is None else carry
        # Read only where a carry does not hold the output: `pick_own` refuses what is merged.
        parts = [ys, ys]
        if self.merge == "concat":
            parts = jnp.split(ys, [self.cells.forward.output_size], axis=-1)

        def pick_own(reverse: bool, ys: jax.Array, against: bool) -> jax.Array:
            if self.merge != "concat":
                raise InvalidInputError(
                    f"outputs of both directions that are merged by {self.merge!r} cannot be "
                    'parted to find the last of each; take merge="concat", or all outputs'
                )
            # Two reversals cancel: inside a backward direction, the backward cell runs forward.
            return pick(ys, against != reverse)

        picks = [functools.partial(pick_own, reverse) for reverse in (False, True)]
        return self.merge_outputs(
            self.cells.forward.last_output(carries[0], parts[0], picks[0]),
            self.cells.backward.last_output(carries[1], parts[-1], picks[1]),
        )

    def merge_outputs(self, forward: jax.Array, backward: jax.Array) -> jax.Array:
        """Merge the outputs of both directions as ``merge`` says."""
        return _MERGES[self.merge](forward, backward)
