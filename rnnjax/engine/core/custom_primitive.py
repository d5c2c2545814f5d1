"""A function with a hand-written forward and backward pass for each platform.

JAX's `custom_vjp` has no forward mode, and code traced under it cannot know the platform of the
program. So a `Function` is a primitive of its own. Its rule for the platform is chosen when the
program is lowered: compiled, or exported for another machine. The transpose of its derivative is
the hand-written backward pass. Everything else follows from its `plain` form, which JAX
differentiates: ``jvp``, ``linearize``, second derivatives, and ``vmap`` of all of these.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, partial_eval

from rnnjax.checks import usual_promotion
from rnnjax.errors import InvalidInputError

# ---- the static parameters of one call


def context_precision() -> str | None:
    """Return the ``jax.default_matmul_precision`` in force; None where none is set."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a function: the static parameters of the primitive.

    Attributes:
        function: the `Function`.
        kind: ``run`` and ``forward`` take the arguments; ``tangent`` also the residuals and the
            tangents of the differentiated leaves; ``backward`` also the residuals and the cotangent
            of the result.
        tree: the tree of the arguments.
        needs_grad: which of their leaves have tangents.
        result: the tree of the result; None for ``run``.
        saved: the tree of the residuals of `Function.forward`.
        levels: the vmaps around the call, the innermost first.
        precision: ``jax.default_matmul_precision`` at the call. The function is traced again when
            the program is lowered, outside that context.
    """

    function: Any
    kind: Literal["run", "forward", "tangent", "backward"]
    tree: Any
    needs_grad: tuple[bool, ...] = ()
    result: Any = None
    saved: Any = None
    levels: tuple["Level", ...] = ()
    precision: str | None = dataclasses.field(default_factory=context_precision)

    def parts(self, flat: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Split flat operands into arguments, residuals, and tangents or cotangents."""
        first = self.tree.num_leaves
        second = first + (0 if self.saved is None else self.saved.num_leaves)
        return list(flat[:first]), list(flat[first:second]), list(flat[second:])

    @usual_promotion()
    def execute(self, platform: str | None, *flat: Any) -> Any:
        """Run the call for a platform, or for None in its plain form."""
        execute: Callable[..., Any] = functools.partial(_single, self, platform)
        # vmap acts on the function inside the call: the primitive has no other batching rule.
        for level in self.levels:
            execute = jax.vmap(execute, in_axes=[0 if axis else None for axis in level.axes])
            if level.own is not None:
                execute = _summed(execute, level.own)
        with jax.default_matmul_precision(self.precision):
            return execute(*flat)

    def differentiated(self, leaves: Sequence[Any]) -> list[Any]:
        """Return the leaves of the arguments whose gradients are needed, in their order."""
        return list(itertools.compress(leaves, self.needs_grad))


class Level(NamedTuple):
    """A vmap around a call: which inputs and which results have its axis, always as the first.

    All results have it, except in a transpose: the cotangents of shared arguments are sums.
    """

    axes: tuple[bool, ...]
    own: tuple[bool, ...] | None = None


def _summed(execute: Callable[..., Any], own: tuple[bool, ...]) -> Callable[..., Any]:
    def run(*flat: Any) -> Any:
        ds, tree = jax.tree.flatten(execute(*flat))
        # An argument a without the axis of the vmap is shared by all f(a, x_i): its cotangent is
        # the sum over i of what each gives it. An argument with the axis has one for each i.
        ds = [d if o else d.sum(axis=0) for d, o in zip(ds, own, strict=True)]
        return jax.tree.unflatten(tree, ds)

    return run


def _single(call: Call, platform: str | None, *flat: Any) -> Any:
    function, (leaves, saved, last) = call.function, call.parts(flat)
    args = jax.tree.unflatten(call.tree, leaves)
    if call.kind == "run":
        return function.plain(*args) if platform is None else function.run(platform, *args)
    if call.kind == "forward":
        return function.forward(platform or "any", *args)
    # Only the leaves that have tangents are arguments of what is differentiated. The others are
    # closed over as constants, so that no derivative of data is computed.
    chosen = call.differentiated(leaves)

    def of_chosen(*chosen: Any) -> Any:
        some = iter(chosen)
        merged = [next(some) if w else a for a, w in zip(leaves, call.needs_grad, strict=True)]
        return function.plain(*jax.tree.unflatten(call.tree, merged))

    # JAX differentiates the plain form. In reverse mode this line never runs: its program is
    # transposed, and `Function.backward` is lowered.
    if call.kind == "tangent":
        return jax.jvp(of_chosen, chosen, last)[1]
    if platform is None:
        _, vjp_fn = jax.vjp(of_chosen, *chosen)
        return list(vjp_fn(jax.tree.unflatten(call.result, last)))
    needs_grad = jax.tree.unflatten(call.tree, call.needs_grad)
    d = jax.tree.unflatten(call.result, last)
    d_args = function.backward(platform, args, jax.tree.unflatten(call.saved, saved), d, needs_grad)
    return call.differentiated(call.tree.flatten_up_to(d_args))


class Function(abc.ABC):
    """A differentiable function of arrays; the object is its hashable, static part."""

    @abc.abstractmethod
    def plain(self, *args: Any) -> Any:
        """Compute the result in a form that JAX differentiates to any order."""

    @abc.abstractmethod
    def run(self, platform: str, *args: Any) -> Any:
        """Compute the result without residuals, if no gradient is needed."""

    @abc.abstractmethod
    def forward(self, platform: str, *args: Any) -> tuple[Any, Any]:
        """Compute the result, and the residuals that `backward` needs besides the arguments."""

    @abc.abstractmethod
    def backward(self, platform: str, args: Any, saved: Any, d: Any, needs_grad: Any) -> Any:
        """Compute the cotangents of the arguments from that of the result.

        Args:
            platform: the platform that the program is lowered for.
            args: the arguments of `forward`.
            saved: its residuals.
            d: the cotangent of the result.
            needs_grad: a tree like ``args``: whether the cotangent of each leaf is needed.

        Returns:
            a tree like ``args``; leaves that are not needed are ignored.
        """

    def refused(self, what: str) -> str:
        """Return the error message for an effect ``what``, which a primitive cannot have."""
        return f"a function may not have {what}; leave it out"

    def may_cross(self, axis: Any) -> bool:
        """Whether collectives over this mesh axis of `jax.shard_map` are allowed."""
        return False

    def __call__(self, *args: Any) -> Any:
        """Apply the function; each argument is a tree of arrays."""
        leaves, tree = jax.tree.flatten(args)
        return _bind(Call(self, "run", tree), leaves)


_p = Primitive("rnnjax")
_p.multiple_results = True


@functools.partial(jax.jit, static_argnums=(0, 1))
def _executed(call: Call, platform: str, *flat: Any) -> Any:
    """Run a call under ``jit``, which traces it once for all equal layers."""
    return call.execute(platform, *flat)


def traced(run: Callable[..., Any], *args: Any) -> tuple[Any, Any, bool]:
    """Trace a function: its program, its results, and whether it reads a tracer besides arguments.

    It does if a cell's function closes over a value that the caller's loss computes, which no cell
    can declare. A primitive would silently lose the gradient of that value.
    """
    # Lowering treats an empty mesh as none, and would trace again (JAX 0.8.2 to 0.10.2).
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        program, results = jax.make_jaxpr(run, return_shape=True)(*args)
    return program, results, any(isinstance(c, jax.core.Tracer) for c in program.consts)


def equations(program: Any) -> Iterator[Any]:
    """Yield the equations of a program, and of those that it calls."""

    def is_program(one: Any) -> bool:
        return hasattr(one, "eqns")

    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves([*equation.params.values()], is_leaf=is_program):
            if is_program(inner):
                yield from equations(inner)


def _bind(call: Call, flat: Sequence[Any]) -> Any:
    # The types of the results are the same on all platforms.
    program, results, closes = traced(functools.partial(_executed, call, "cpu"), *flat)
    if closes:  # the plain form, which JAX differentiates and batches by itself
        return call.execute(None, *flat)
    for effect in program.effects:
        _check_effect(call.function, effect)
    outs = _p.bind(*flat, call=call, avals=tuple(program.out_avals))
    return jax.tree.unflatten(jax.tree.structure(results), outs)


def _check_effect(function: Function, effect: Any) -> None:
    """Raise if an effect would lose its order among others, or the axis name of its vmap."""
    # JAX's effect classes are private.
    what = None
    if hasattr(effect, "name") and not function.may_cross(effect.name):
        what = f"a collective over the axis {effect.name!r}"
    elif "Ordered" in type(effect).__name__:
        what = "a callback with ordered=True"
    if what is not None:
        raise InvalidInputError(function.refused(what))


# The types of the results are a parameter: to find them here would trace the function again.
_p.def_abstract_eval(lambda *_, call, avals: avals)
# Under ``jax.disable_jit``; otherwise a program is compiled.
_p.def_impl(lambda *flat, call, avals: jax.tree.leaves(call.execute("any", *flat)))


def _lowering(platform: str) -> Any:
    def execute(*flat: Any, call: Call, avals: Any) -> Any:
        return jax.tree.leaves(_executed(call, platform, *flat))

    return mlir.lower_fun(execute, multiple_results=True)


mlir.register_lowering(_p, _lowering("cpu"), platform="cpu")
mlir.register_lowering(_p, _lowering("any"))


def _not_zero(tangents: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(not isinstance(t, ad.Zero) for t in tangents)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, avals: Any) -> Any:
    if call.kind in ("tangent", "backward"):
        # Second derivatives are JAX's own, of the plain form. Residuals follow from the arguments,
        # whose tangents are enough.
        args, saved, last = call.parts(_not_zero(tangents))
        chosen = list(
            itertools.compress(range(len(primals)), [*args, *[False] * len(saved), *last])
        )

        def of_chosen(*some: Any) -> Any:
            flat = list(primals)
            for i, leaf in zip(chosen, some, strict=True):
                flat[i] = leaf
            return jax.tree.leaves(call.execute(None, *flat))

        own, tangents_in = [primals[i] for i in chosen], [tangents[i] for i in chosen]
        return _p.bind(*primals, call=call, avals=avals), jax.jvp(of_chosen, own, tangents_in)[1]
    results = call.result or jax.tree.structure(list(avals))
    forward = dataclasses.replace(call, kind="forward", result=results)
    out, saved = _bind(forward, primals)
    saved, tree = jax.tree.flatten(saved)
    outs, result = jax.tree.flatten(out)
    # An argument without a tangent, such as data in training, costs no gradient.
    needs_grad = _not_zero(tangents)
    # The derivative is linear in the tangents, so that JAX transposes it for a gradient. With the
    # residuals among its operands, the backward pass need not run the forward loop again.
    linear = dataclasses.replace(
        call, kind="tangent", needs_grad=needs_grad, result=result, saved=tree, levels=()
    )
    levels = tuple(
        Level((*axes, *[True] * len(saved), *linear.differentiated(axes)))
        for axes, _ in call.levels
    )
    linear = dataclasses.replace(linear, levels=levels)
    # Their types follow from those of the results. Tracing the plain form for them took 6 % of the
    # tracing time of the tests.
    types = tuple(aval.to_tangent_aval() for aval in avals[: len(outs)])
    d_out = _p.bind(*primals, *saved, *linear.differentiated(tangents), call=linear, avals=types)
    # A second derivative, as for a Hessian, differentiates the forward pass. What it saved may have
    # zeros for tangents: only `backward` reads it, and its derivative ignores them.
    if call.kind == "forward":
        outs, d_out = [*outs, *saved], [*d_out, *map(jnp.zeros_like, saved)]
    return outs, d_out


ad.primitive_jvps[_p] = _jvp


def _needed(used: list[bool], *given: Any) -> tuple[list[bool], Any]:
    """Leave out residuals that no backward pass reads, as where a gradient is stopped later."""
    eqn = given[-1]  # before which JAX from 0.12 on says which inputs are live
    call, avals = eqn.params["call"], eqn.params["avals"]
    if call.kind == "forward" and not any(used[(number := call.result.num_leaves) :]):
        run = dataclasses.replace(call, kind="run", result=None)
        params = {"call": run, "avals": avals[:number]}
        eqn = eqn.replace(params=params, outvars=eqn.outvars[:number])
    return [any(used)] * len(eqn.invars), eqn if any(used) else None


partial_eval.dce_rules[_p] = _needed


def _transposed(cts: Sequence[Any], *flat: Any, call: Call, avals: Any) -> Any:
    args, saved, tangents_in = call.parts(flat)
    # A loss that reads the outputs alone has no cotangent of the final carry.
    cts = [ad.instantiate_zeros(ct) for ct in cts]
    fixed = len(args) + len(saved)
    levels = tuple(
        Level((*axes[:fixed], *(own or [True] * len(cts))), own=axes[fixed:])
        for axes, own in call.levels
    )
    # The transpose of the backward pass, which is linear in the cotangents, is the tangent again.
    other: Any = "backward" if call.kind == "tangent" else "tangent"
    transposed = dataclasses.replace(call, kind=other, levels=levels)
    ds = jax.tree.leaves(_bind(transposed, [*args, *saved, *cts]))
    return [None] * fixed + [
        d if ad.is_undefined_primal(t) else None for t, d in zip(tangents_in, ds, strict=True)
    ]


ad.primitive_transposes[_p] = _transposed


def _batched(flat: Sequence[Any], dims: Sequence[Any], *, call: Call, avals: Any) -> Any:
    axes = tuple(dim is not None for dim in dims)
    flat = [jnp.moveaxis(a, d, 0) if b else a for a, d, b in zip(flat, dims, axes, strict=True)]
    # The new vmap is the outermost: `execute` applies each level around those before.
    around = dataclasses.replace(call, levels=(*call.levels, Level(axes)))
    outs = jax.tree.leaves(_bind(around, flat))
    return outs, [0] * len(outs)


batching.primitive_batchers[_p] = _batched
