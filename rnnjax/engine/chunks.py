"""How chunks of a sequence run: as rows of the batch, until what they hand on stands still."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.devices import alike_over_devices
from rnnjax.engine.nearness import moved, tolerance_of
from rnnjax.engine.pieces import cut_up
from rnnjax.engine.primitive import Function
from rnnjax.engine.scan import Scan
from rnnjax.engine.steps import AtStep, Steps


@dataclasses.dataclass(frozen=True)
class OwnSteps(Function):
    """A cell with a step of its own, whose rows may see each other: chunk by chunk, by `jax.vmap`.

    ``(params, steps, xs, each, carry) -> (carry, ys)``; but for `plain` the second axis of arrays
    over time, and the first of others, are the chunks.
    """

    cell: Cell

    def plain(self, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry) -> Any:
        """The plain scan."""
        return Scan().run(self.cell, params, xs, carry, False, steps._replace(each=each))

    def run(
        self, platform: str, params: Params, steps: Steps, xs: Any, each: AtStep, carry: Carry
    ) -> Any:
        """All chunks."""
        run = functools.partial(self.plain, params, steps)
        return jax.vmap(run, in_axes=(1, 1, 0), out_axes=(0, 1))(xs, each, carry)

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Nothing is kept: the backward pass runs the chunks again."""
        return self.run(platform, *args), ()

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """JAX's derivative."""
        ds = jax.vjp(functools.partial(self.run, platform), *args)[1](d)
        return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, ds)


@dataclasses.dataclass(frozen=True)
class Chunks(Function):
    """``(params, steps, xs, each, carry) -> (carry, ys)``, forward in time.

    Args:
        inner: the same of all chunks, which are the second axis of arrays over time, and the first
            of others; in its plain form without these axes.
        length: the steps of a chunk.
        warmup: the steps before a chunk that its first state is made of.
        tolerance: of what stands still.
    """

    inner: Function
    length: int
    warmup: int
    tolerance: float | None

    def refused(self, what: str) -> str:
        """Of the cell's update."""
        return self.inner.refused(what)

    def plain(self, *args: Any) -> Any:
        """Step by step."""
        return self.inner.plain(*args)

    def run(self, platform: str, *args: Any) -> Any:
        """Run all chunks until their ends stand still."""

        def inner(*args: Any) -> tuple[Any, Any]:
            return self.inner.run(platform, *args), ()

        return whole(self._until_still(inner, platform, *args)[0], args[2])

    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """What is kept of the chunks, as they ran last, and the states that these began with."""
        found, kept, starts = self._until_still(
            functools.partial(self.inner.forward, platform), platform, *args
        )
        return whole(found, args[2]), (kept, starts)

    def backward(self, platform: str, args: Any, kept: Any, d: Any, wanted: Any) -> Any:
        """The chunks' own backward passes, until what they send back stands still."""
        (params, steps, xs, each, _), (kept, starts), (d_last, d_ys) = args, kept, d
        num_steps = d_ys.shape[0]
        xs, each, d_ys = in_chunks((*filled(xs, each, self.length), d_ys), self.length)
        given = params, steps, xs, each, starts

        def backwards(d_ends: Carry, first: int, wanted: Any) -> Any:
            """Of the first steps of all chunks."""
            part = functools.partial(jax.tree.map, lambda leaf: leaf[:first])
            own = params, steps, part(xs), part(each), starts
            d = d_ends, part(d_ys)
            return self.inner.backward(platform, own, part(kept), d, wanted)

        def handed_on(d_starts: Carry) -> Carry:
            """What the chunk behind sends back; behind the last, what comes from outside."""
            return jax.tree.map(
                lambda d, last: jnp.concatenate([d[1:], last[None]]), d_starts, d_last
            )

        nothing = jax.tree.map(jnp.zeros_like, starts)
        none = jax.tree.map(lambda _: False, given)
        all_but = (*wanted[:4], jax.tree.map(lambda _: True, starts))
        if self.warmup:
            asked = (*none[:4], all_but[4])
            d_ends = handed_on(backwards(nothing, self.warmup, asked)[4])
        else:
            d_ends = handed_on(nothing)

        def again(d_ends: Carry) -> tuple[Carry, Any]:
            ds = backwards(d_ends, self.length, all_but)
            return handed_on(ds[4]), ds

        ds = self._repeated(again, d_ends)[1]
        d_params, d_steps, d_xs, d_each, d_starts = ds
        d_xs = jax.tree.map(lambda leaf: joined(leaf)[:num_steps], d_xs)
        return d_params, d_steps, d_xs, d_each, jax.tree.map(lambda leaf: leaf[0], d_starts)

    def _until_still(
        self,
        inner: Callable[..., tuple[Any, Any]],
        platform: str,
        params: Params,
        steps: Steps,
        xs: Any,
        each: AtStep,
        carry: Carry,
    ) -> tuple[Any, Any, Carry]:
        """The ends and outputs of all chunks, what is kept, and the states that they began with."""
        xs, each = in_chunks(filled(xs, each, self.length), self.length)
        number = jax.tree.leaves(xs)[0].shape[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(number, *leaf.shape)), carry)

        def handed_on(ends: Carry) -> Carry:
            return jax.tree.map(lambda c, e: jnp.concatenate([c[None], e[:-1]]), carry, ends)

        starts = zeros
        if self.warmup:
            last = jax.tree.map(lambda leaf: leaf[-self.warmup :], (xs, each))
            starts = self.inner.run(platform, params, steps, *last, zeros)[0]
        starts = handed_on(starts)

        def again(starts: Carry) -> tuple[Carry, Any]:
            found, kept = inner(params, steps, xs, each, starts)
            return handed_on(found[0]), (found, kept, starts)

        return self._repeated(again, starts)[1]

    def _repeated(self, again: Callable[[Any], tuple[Any, Any]], first: Any) -> tuple[Any, Any]:
        """Give what comes out in again, until it is what went in, or has gone through all chunks.

        The result is of what went in last.
        """
        tolerance = tolerance_of(self.tolerance, first)
        number = jax.tree.leaves(first)[0].shape[0]

        def goes_on(at: Any) -> jax.Array:
            count, gap, _, _ = at
            return (count == 0) | ((count < number) & ~(gap <= tolerance))

        def turn(at: Any) -> Any:
            count, _, given, _ = at
            new, result = again(given)
            return count + 1, moved(new, given), new, result

        shapes = jax.eval_shape(again, first)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        begin = jnp.int32(0), *alike_over_devices((jnp.float32(0), first, empty))
        return jax.lax.while_loop(goes_on, turn, begin)[2:]


def filled(xs: Any, each: AtStep, length: int) -> tuple[Any, AtStep]:
    """The inputs and marks up to the end of the last chunk, where there are no steps.

    The inputs are the last there again: of zeros, which nobody gave, a slope may be infinite.
    """
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    spare = -num_steps % length
    if not spare:
        return xs, each
    if each.valid is None:
        each = each._replace(valid=jnp.ones(num_steps, bool))

    def again(leaf: jax.Array) -> jax.Array:
        rest = jnp.broadcast_to(leaf[-1:], (spare, *leaf.shape[1:]))
        return jnp.concatenate([leaf, rest])

    return jax.tree.map(again, xs), each


def in_chunks(tree: Any, length: int, axis: int = 0) -> Any:
    """Arrays over time with an axis of the chunks, and one of their steps: the first or second."""

    def cut(leaf: jax.Array) -> jax.Array:
        leaf = cut_up(leaf, length)
        return leaf if axis else leaf.swapaxes(0, 1)

    return jax.tree.map(cut, tree)


def joined(leaf: jax.Array, axis: int = 0) -> jax.Array:
    """An array over the steps of chunks as one over time."""
    length, number = leaf.shape[:2]
    leaf = leaf if axis else leaf.swapaxes(0, 1)
    return leaf.reshape(length * number, *leaf.shape[2:])


def whole(found: tuple[Carry, jax.Array], xs: Any, axis: int = 0) -> tuple[Carry, jax.Array]:
    """The end of the last chunk, and the outputs of all in their order."""
    ends, ys = found
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    return jax.tree.map(lambda leaf: leaf[-1], ends), joined(ys, axis)[:num_steps]
