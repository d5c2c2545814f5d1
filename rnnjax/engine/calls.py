"""What is done with a function that has parts written by hand, under any number of vmaps."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax

from rnnjax.cells.arguments import usual_promotion


def context_precision() -> str | None:
    """What ``jax.default_matmul_precision`` says here; None where nobody said anything."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


@dataclasses.dataclass(frozen=True)
class Call:
    """One of the things to be done with a function: the static half of the primitive.

    Attributes:
        function: a `rnnjax.engine.primitive.Function`.
        kind: ``run`` and ``forward`` are given the arguments; ``tangent`` those, what was kept and
            the tangents of what is wanted; ``backward`` those, and the cotangent of the result.
        tree: of the arguments.
        wanted: of which leaves of them there are tangents.
        result: the tree of the result.
        kept: the tree of what `Function.forward` kept.
        levels: the vmaps around it, the innermost first.
        precision: of its products, as ``jax.default_matmul_precision`` was where it was called: it
            is traced again when the program is lowered, which is outside of that context.
    """

    function: Any
    kind: Literal["run", "forward", "tangent", "backward"]
    tree: Any
    wanted: tuple[bool, ...] = ()
    result: Any = None
    kept: Any = None
    levels: tuple["Level", ...] = ()
    precision: str | None = dataclasses.field(default_factory=context_precision)

    def parts(self, flat: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """The arguments, what was kept, and tangents or cotangents."""
        first = self.tree.num_leaves
        second = first + (0 if self.kept is None else self.kept.num_leaves)
        return list(flat[:first]), list(flat[first:second]), list(flat[second:])

    @usual_promotion()
    def execute(self, platform: str | None, *flat: Any) -> Any:
        """Do it: for a platform, or in its plain form; perhaps traced long after `unroll`."""
        execute: Callable[..., Any] = functools.partial(_single, self, platform)
        # vmap works on what is done, not on the primitive: nothing has a batching rule of its own.
        for level in self.levels:
            execute = jax.vmap(execute, in_axes=[0 if axis else None for axis in level.axes])
            if level.own is not None:
                execute = _summed(execute, level.own)
        with jax.default_matmul_precision(self.precision):
            return execute(*flat)

    def of_wanted(self, leaves: Sequence[Any]) -> list[Any]:
        """Those of the arguments' leaves, in their order, that are wanted."""
        return list(itertools.compress(leaves, self.wanted))


class Level(NamedTuple):
    """A vmap around a call: which inputs have its axis, as their first, and which results.

    All results have it, but in a transpose: of what the rows share, cotangents are sums.
    """

    axes: tuple[bool, ...]
    own: tuple[bool, ...] | None = None


def _summed(execute: Callable[..., Any], own: tuple[bool, ...]) -> Callable[..., Any]:
    def run(*flat: Any) -> Any:
        ds, tree = jax.tree.flatten(execute(*flat))
        ds = [d if o else d.sum(axis=0) for d, o in zip(ds, own, strict=True)]
        return jax.tree.unflatten(tree, ds)

    return run


def _single(call: Call, platform: str | None, *flat: Any) -> Any:
    function, (leaves, kept, last) = call.function, call.parts(flat)
    args = jax.tree.unflatten(call.tree, leaves)
    if call.kind == "run":
        return function.plain(*args) if platform is None else function.run(platform, *args)
    if call.kind == "forward":
        return function.forward(platform or "any", *args)
    chosen = call.of_wanted(leaves)

    def of_chosen(*chosen: Any) -> Any:
        some = iter(chosen)
        merged = [next(some) if w else a for a, w in zip(leaves, call.wanted, strict=True)]
        return function.plain(*jax.tree.unflatten(call.tree, merged))

    # JAX asks of the plain form what nobody schedules by hand. In reverse mode this line is never
    # run: its program is transposed, and what is lowered is `Function.backward`.
    if call.kind == "tangent":
        return jax.jvp(of_chosen, chosen, last)[1]
    if platform is None:
        _, pull = jax.vjp(of_chosen, *chosen)
        return list(pull(jax.tree.unflatten(call.result, last)))
    wanted = jax.tree.unflatten(call.tree, call.wanted)
    d = jax.tree.unflatten(call.result, last)
    d_args = function.backward(platform, args, jax.tree.unflatten(call.kept, kept), d, wanted)
    return call.of_wanted(call.tree.flatten_up_to(d_args))
