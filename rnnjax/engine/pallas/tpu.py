"""A loop over time as one Pallas call on a TPU: what all steps share stays in VMEM."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from rnnjax.engine.fused.loops import LoopArgs
from rnnjax.engine.pallas.interpreter import by_entries, evaluated
from rnnjax.meshes import shaped_like

# Unrolled steps of a grid iteration. An iteration has an overhead of 165 instruction bundles on a
# v5e; a step of LSTM(256) over 32 rows takes 225. With more bytes of weights, times steps,
# compilation takes minutes.
_FEWEST, _MOST, _BYTES = 4, 16, 2**25


class Form(NamedTuple):
    """The layout of one step's array on the chip: at least two axes, and booleans as numbers.

    Attributes:
        shape: its shape outside the kernel.
        dtype: its type outside the kernel.
    """

    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, leaves: Sequence[Any], skipped: int = 0) -> list["Form"]:
        """Return the forms of arrays, without their first ``skipped`` axes."""
        return [cls(leaf.shape[skipped:], leaf.dtype) for leaf in leaves]

    @property
    def on_chip(self) -> tuple[int, ...]:
        """Return the shape on the chip: a vector is one row, the marks of rows are one column."""
        if len(self.shape) >= 2:
            return self.shape
        return (*self.shape, 1, 1)[:2] if self.dtype == jnp.bool_ else (1, 1, *self.shape)[-2:]

    @property
    def stored_dtype(self) -> Any:
        """Return the stored type: booleans cannot be stored."""
        return jnp.float32 if self.dtype == jnp.bool_ else self.dtype

    @property
    def size(self) -> int:
        """Return the size in bytes, in tiles of 8 by 128 numbers of four bytes."""
        *outer, rows, columns = self.on_chip
        packed = 32 // jnp.dtype(self.stored_dtype).itemsize
        return math.prod(outer) * -(-rows // packed) * -(-columns // 128) * 4096

    def put(self, array: jax.Array, *time: int) -> jax.Array:
        """Convert an array to this form for the kernel."""
        return array.reshape(*time, *self.on_chip).astype(self.stored_dtype)

    def get(self, array: jax.Array, *time: int) -> jax.Array:
        """Convert an array of the kernel back."""
        array = array > 0.5 if self.dtype == jnp.bool_ else array
        return array.reshape(*time, *self.shape)

    def read(self, ref: Any, *time: int) -> jax.Array:
        """Read in the kernel, where scalars have their own memory."""
        return self.get(ref[time or ...]) if self.shape else ref[*time, 0, 0].astype(self.dtype)

    def write(self, ref: Any, new: jax.Array, *time: int) -> None:
        """Write in the kernel; a scalar goes to its own memory."""
        if self.shape:
            ref[time or ...] = self.put(new)
        else:
            ref[*time, 0, 0] = jnp.asarray(new, self.stored_dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A traced step with the arrays that it runs over, including those that it captures.

    Attributes:
        jaxpr: the flat step ``(shared; state, entries) -> (state, replacement, output)``.
        tree: the trees of the state, and of the replacement and the output.
        arrays: what all steps share, the state before the first step, and the entries of each step.
        forms: the forms of these three, and of the results of each step.
    """

    jaxpr: Any
    tree: tuple[Any, Any]
    arrays: tuple[Sequence[jax.Array], Sequence[jax.Array], Sequence[jax.Array]]
    forms: tuple[list[Form], list[Form], list[Form], list[Form]]

    @classmethod
    def of(cls, args: LoopArgs) -> "Traced":
        """Trace the step of a loop with its arguments."""
        starts, state_tree = jax.tree.flatten(args.state)
        given, given_tree = jax.tree.flatten((args.first, args.others))

        def flat(*leaves: jax.Array) -> Any:
            before = jax.tree.unflatten(state_tree, leaves[: len(starts)])
            return args.step(before, *jax.tree.unflatten(given_tree, leaves[len(starts) :]))

        at_step = [leaf[0] for leaf in given]
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*starts, *at_step)
        made, made_tree = jax.tree.flatten(shapes[1:])
        # Captured values become arguments if they are read.
        outs, saved = [True] * len(closed.jaxpr.outvars), [True] * len(closed.jaxpr.invars)
        jaxpr, read, _ = partial_eval.dce_jaxpr_consts(
            closed.jaxpr, outs, [False] * len(closed.consts) + saved
        )
        shared = [jnp.asarray(leaf) for leaf in itertools.compress(closed.consts, read)]
        forms = Form.of(shared), Form.of(starts), Form.of(given, 1), Form.of(made)
        return cls(jaxpr, (state_tree, made_tree), (shared, starts, given), forms)

    def at(self, other: "Traced") -> "Traced | None":
        """Return another trace's step with these arrays; None if the steps differ.

        The other trace has other rows. JAX lists captured values in the same order each time.
        """
        sizes = [
            [[form.shape for form in forms] for forms in traced.forms] for traced in (self, other)
        ]
        trees: Any = [jax.tree.structure(size) for size in sizes]
        return dataclasses.replace(other, arrays=self.arrays) if trees[0] == trees[1] else None

    def size(self, block: int) -> int:
        """Return the bytes that a kernel holds: two blocks of streamed arrays, the rest once."""
        shared, own, given, made = (sum(form.size for form in forms) for forms in self.forms)
        return shared + 3 * own + 2 * block * (given + made)

    def block(self, room: int) -> int:
        """Return how many steps of a grid iteration fit, if possible a divisor of all steps."""
        num_steps, weights = len(self.arrays[2][0]), sum(form.size for form in self.forms[0])
        most = max(_FEWEST, min(_MOST, _BYTES // max(1, weights)))
        fits = [k for k in range(min(most, num_steps), 0, -1) if self.size(k) <= room]
        some = fits[: 1 + len(fits) // 2]
        return next((k for k in some if num_steps % k == 0), max(fits, default=1))

    def run(self, reverse: bool, block: int, vmem: int, interpret: Any) -> Any:
        """Run the loop in blocks, as `over_time` does, within ``vmem`` bytes of memory."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        (shared, starts, given), (shared_f, own_f, given_f, made_f) = self.arrays, self.forms
        num_steps = len(given[0])
        turns = -(-num_steps // block)

        def at(body: Any) -> Any:
            return turns - 1 - body if reverse else body

        def kernel(*refs: Any) -> None:
            counts = [len(forms) for forms in (shared_f, own_f, given_f, own_f, made_f, own_f)]
            rest = iter(refs)
            shared_r, start_r, given_r, last_r, made_r, state_r = (
                list(itertools.islice(rest, count)) for count in counts
            )
            body = pl.program_id(0)

            @pl.when(body == 0)
            def _() -> None:
                for form, ref, start in zip(own_f, state_r, start_r, strict=True):
                    form.write(ref, form.read(start))

            def one(k: int) -> None:
                sources: list[Any] = [(shared_f, shared_r), (own_f, state_r), (given_f, given_r, k)]
                held, before, now = (
                    [form.read(ref, *time) for form, ref in zip(forms, some, strict=True)]
                    for forms, some, *time in sources
                )
                outs = evaluated(self.jaxpr, held, [*before, *now], by_entries)
                for form, ref, new in zip(own_f, state_r, outs, strict=False):
                    form.write(ref, new)
                for form, ref, new in zip(made_f, made_r, outs[len(own_f) :], strict=True):
                    form.write(ref, new, k)

            for k in range(block)[:: -1 if reverse else 1]:
                if num_steps % block == 0:
                    one(k)
                else:
                    pl.when(at(body) * block + k < num_steps)(functools.partial(one, k))

            @pl.when(body == turns - 1)
            def _() -> None:
                for form, ref, last in zip(own_f, state_r, last_r, strict=True):
                    form.write(last, form.read(ref))

        def whole(form: Form) -> Any:
            if not form.shape:
                return pl.BlockSpec(memory_space=pltpu.SMEM)
            zeros = (0,) * len(form.on_chip)
            # No second buffer: there is no next block.
            return pl.BlockSpec(form.on_chip, lambda _: zeros, pipeline_mode=pl.Buffered(1))

        def over_time(form: Form) -> Any:
            zeros, where = (0,) * len(form.on_chip), None if form.shape else pltpu.SMEM
            return pl.BlockSpec(
                (block, *form.on_chip), lambda body: (at(body), *zeros), memory_space=where
            )

        def shape(form: Form, *time: int) -> Any:
            return shaped_like((*time, *form.on_chip), form.stored_dtype, given[0])

        replaced = jax.tree.unflatten(self.tree[1], made_f)[0] is not None
        outs = pl.pallas_call(
            kernel,
            grid=(turns,),
            in_specs=[*map(whole, (*shared_f, *own_f)), *map(over_time, given_f)],
            out_specs=[*map(whole, own_f), *map(over_time, made_f)],
            out_shape=[*map(shape, own_f), *(shape(form, num_steps) for form in made_f)],
            scratch_shapes=[
                (pltpu.VMEM if form.shape else pltpu.SMEM)(form.on_chip, form.stored_dtype)
                for form in own_f
            ],
            # Written in place: a block is read before it is written.
            input_output_aliases={len(shared) + len(starts): len(own_f)} if replaced else {},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem
            ),
            interpret=interpret,
            name=f"rnnjax_{block}_steps",
        )(
            *(form.put(a) for form, a in zip(shared_f, shared, strict=True)),
            *(form.put(a) for form, a in zip(own_f, starts, strict=True)),
            *(form.put(a, num_steps) for form, a in zip(given_f, given, strict=True)),
        )
        made = [form.get(a, num_steps) for form, a in zip(made_f, outs[len(own_f) :], strict=True)]
        entries, output = jax.tree.unflatten(self.tree[1], made)
        last = [form.get(a) for form, a in zip(own_f, outs, strict=False)]
        state = jax.tree.unflatten(self.tree[0], last)
        return state, entries if replaced else given[0], output
