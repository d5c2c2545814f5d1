"""A loop over time as one Pallas call on a GPU: each program runs some rows for all steps.

The state stays in the program's registers; weights are read from the cache at each step. A step is
computed tile by tile, all tiles of the same units first, and each when it is needed. So few tiles
are in registers at once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engine.pallas.interpreter import evaluated
from rnnjax.engine.pallas.tile_rules import computed
from rnnjax.engine.pallas.tiles import BLOCK, ROWS, Tiled, Tiles, UntiledError
from rnnjax.engine.pallas.tpu import Form, Traced
from rnnjax.meshes import shaped_like

# Bytes of a row of a state that is multiplied. Each warp holds all of it as an operand: 64 of 255
# registers. With twice as many a program for an H100 (jaxlib 0.10.2) spills to memory.
_BYTES = 512
# Numbers that are summed over the steps, such as gradients of gains. An LSTM with layer norm has 14
# per unit, and with 128 units a program spills too.
_SUMS = 1024


def why_not(traced: Traced | None) -> str | None:
    """Return why a step traced at `ROWS` rows has no kernel, without asking the compiler."""
    if traced is None:
        return "its step for other rows is another one"
    own = traced.forms[1]
    if any(len(form.shape) > 2 for form in own if has_rows(form)):
        return "there is none for a state that is not a vector"
    width = max((form.shape[1] for form in own if has_rows(form) and form.shape[1:]), default=1)
    size = width * max((_itemsize(e) for e in equations(traced.jaxpr)), default=1)
    if size > _BYTES:
        return (
            f"a row of its state takes {size} bytes as an operand, more than the {_BYTES} that fit "
            "the registers with the rest"
        )
    try:  # without tiles nothing is computed
        shared, before, now = ([Tiled(f.shape, {}) for f in forms] for forms in traced.forms[:3])
        compute = functools.partial(computed, Tiles(unit(traced)))
        outs = evaluated(traced.jaxpr, shared, [*before, *now], compute)
    except UntiledError as error:
        return str(error)
    changed = [form for form, a, b in zip(own, before, outs, strict=False) if a is not b]
    sums = sum(math.prod(form.shape) for form in changed if not has_rows(form))
    if sums > _SUMS:
        return f"it sums {sums} gradients in the loop, more than the {_SUMS} that fit the registers"
    return None


def has_rows(form: Form) -> bool:
    """Whether an array has rows; a state without them is a sum over rows (see `loops.Step`)."""
    return ROWS in form.shape


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of the jaxprs that it calls."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            yield from equations(getattr(inner, "jaxpr", inner))
        yield equation


def _itemsize(equation: Any) -> int:
    """Return the bytes of a product's operand, doubled if no tensor core computes it."""
    if equation.primitive.name != "dot_general":
        return 1
    size, precision = int(equation.invars[0].aval.dtype.itemsize), equation.params["precision"]
    exact = size == 4 and precision is not None and jax.lax.Precision.HIGHEST in precision
    return 2 * size if exact else size


def unit(traced: Traced) -> int:
    """Return a common divisor of the sizes of states and of arrays that are split or joined."""
    atoms = [
        atom.aval.shape
        for equation in equations(traced.jaxpr)
        if equation.primitive.name in ("concatenate", "split", "slice")
        for atom in (*equation.invars, *equation.outvars)
    ]
    shapes = [*atoms, *(form.shape for form in traced.forms[1])]
    return math.gcd(*({shape[-1] for shape in shapes if shape} - {ROWS})) or 1


def run(traced: Traced, reverse: bool, interpret: bool) -> Any:
    """Run the loop in a kernel, as `over_time` does."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (shared, starts, given), (shared_f, own_f, given_f, made_f) = traced.arrays, traced.forms
    num_steps, tiles, rows = len(given[0]), Tiles(unit(traced)), rows_of(traced)
    programs, sums = -(-rows // BLOCK), [not has_rows(form) for form in own_f]
    entering = [form for form in own_f if has_rows(form)]

    def kernel(*refs: Any) -> None:
        program, rest = pl.program_id(0), iter(refs)
        counts = BLOCK if rows % BLOCK == 0 else jnp.minimum(BLOCK, rows - BLOCK * program)
        _all_steps(
            traced,
            dataclasses.replace(tiles, rows=counts),
            [
                [(next(rest), form) for form in forms]
                for forms in (shared_f, entering, given_f, own_f, made_f)
            ],
            num_steps,
            reverse,
        )

    def spec(form: Form, *time: int, partial: bool = False) -> Any:
        at = [n == ROWS for n in form.shape] or [False]

        def index(program: Any) -> Any:
            first = (program,) if partial else (0,) * len(time)
            return (*first, *(program if of_rows else 0 for of_rows in at))

        block = tiles.stored(form.shape)
        return pl.BlockSpec((None, *block) if partial else (*time, *block), index)

    def shape(form: Form, *first: int) -> Any:
        stored = tiles.stored(form.shape, programs * BLOCK)
        return shaped_like((*first, *stored), form.dtype, given[0])

    outs = pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=[*map(spec, (*shared_f, *entering)), *(spec(f, num_steps) for f in given_f)],
        # Each program sums over its own rows.
        out_specs=[
            *(spec(f, partial=p) for f, p in zip(own_f, sums, strict=True)),
            *(spec(f, num_steps) for f in made_f),
        ],
        out_shape=[
            *(shape(f, *[programs] * p) for f, p in zip(own_f, sums, strict=True)),
            *(shape(f, num_steps) for f in made_f),
        ],
        compiler_params=triton.CompilerParams(num_warps=8 if tiles.unit > 32 else 4, num_stages=1),
        interpret=interpret,
        name="rnnjax_all_steps",
    )(
        *(tiles.put(a, f.shape) for f, a in zip(shared_f, shared, strict=True)),
        *(tiles.put(a, f.shape) for f, a in zip(own_f, starts, strict=True) if has_rows(f)),
        *(tiles.put(a, f.shape, 1) for f, a in zip(given_f, given, strict=True)),
    )
    last = [
        start + tiles.get(out.sum(axis=0), form.shape, rows)
        if partial
        else tiles.get(out, form.shape, rows)
        for form, out, start, partial in zip(own_f, outs, starts, sums, strict=False)
    ]
    shift = zip(made_f, outs[len(own_f) :], strict=True)
    made = [tiles.get(out, form.shape, rows, 1) for form, out in shift]
    entries, output = jax.tree.unflatten(traced.tree[1], made)
    # Not in place: nothing orders reads and writes of two threads of a program.
    replaced = jax.tree.unflatten(traced.tree[1], made_f)[0] is not None
    return jax.tree.unflatten(traced.tree[0], last), entries if replaced else given[0], output


def rows_of(traced: Traced) -> int:
    """Return how many rows the arrays have."""
    given = zip(traced.forms[2], traced.arrays[2], strict=True)
    return next(a.shape[1 + f.shape.index(ROWS)] for f, a in given if has_rows(f))


def _all_steps(
    traced: Traced, tiles: Tiles, refs: list[list[tuple[Any, Form]]], num_steps: int, reverse: bool
) -> None:
    """Run all steps: the body of a program, over references to its inputs and outputs."""
    shared, starts, given, lasts, made = refs

    def read(some: list[tuple[Any, Form]], *time: Any) -> list[Tiled]:
        return [tiles.read(ref, form.shape, *time) for ref, form in some]

    def held(array: Tiled) -> Any:
        return {index: array.tiles[index] for index in tiles.indices(array.shape)}

    def step(k: Any, state: Any) -> Any:
        t = num_steps - 1 - k if reverse else k
        before = [Tiled(form.shape, s) for (_, form), s in zip(lasts, state, strict=True)]
        outs = evaluated(
            traced.jaxpr,
            read(shared),
            [*before, *read(given, t)],
            functools.partial(computed, tiles),
        )
        outs = [out if isinstance(out, Tiled) else Tiled((), {(): out}) for out in outs]
        # Tiles of the same units one after another, and the state, which needs all, last.
        writes = [
            (tiles.place(out.shape, index), ref, out, index)
            for (ref, _), out in zip(made, outs[len(lasts) :], strict=True)
            for index in tiles.indices(out.shape)
        ]
        for _, ref, out, index in sorted(writes, key=lambda write: write[0]):
            tiles.write(ref, out, index, t)
        for place, out in itertools.product(
            range(len(tiles.pieces(tiles.unit))), outs[: len(lasts)]
        ):
            for index in tiles.indices(out.shape):
                if tiles.place(out.shape, index) == place:
                    out.tiles[index]
        return [held(out) for out in outs[: len(lasts)]]

    begins = iter(read(starts))
    state = [
        held(next(begins) if has_rows(form) else tiles.full(form.shape, 0, form.dtype))
        for _, form in lasts
    ]
    last = jax.lax.fori_loop(0, num_steps, step, state)
    for (ref, form), new in zip(lasts, last, strict=True):
        for index in new:
            tiles.write(ref, Tiled(form.shape, new), index)
