"""The choice between a kernel and the loop of XLA, and the reason for it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from rnnjax.engine.fused.loops import Loop, LoopArgs, LoopSpec, over_time
from rnnjax.engine.pallas import gpu
from rnnjax.engine.pallas.tiles import BLOCK, ROWS
from rnnjax.engine.pallas.tpu import Traced
from rnnjax.meshes import varies

# Shares of VMEM: for the arrays of a kernel, and for all including the compiler's own.
_FOR_ARRAYS, _FOR_ALL = 0.75, 0.95
# The VMEM of a v5e and a v6e, for a program that is compiled for an unknown TPU.
_USUAL_MEMORY = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class KernelLoops:
    """A backend that runs loops as kernels if a TPU or GPU has room, and else as XLA's loops.

    Args:
        interpret: as in `Kernel`, or the parameters of Pallas's TPU interpreter.
        notes: collects what became of each loop, for `rnnjax.explain`; None to record nothing.
    """

    interpret: Any
    notes: list[str] | None = dataclasses.field(default=None, compare=False)

    def on(self, platform: str, spec: LoopSpec) -> tuple[str, Loop | None]:
        """Return the platform to plan the rest of a layer for, and the loop."""
        if self.interpret:
            platform = self.interpret if isinstance(self.interpret, str) else "tpu"
        if platform == "tpu":
            return platform, self._on_tpu
        if platform == "cuda":
            return platform, functools.partial(self._on_gpu, spec)
        none = "one for cuda alone" if platform == "gpu" else f"none for {platform}"
        self._note(f"XLA's, not a kernel, because there is {none}")
        return platform, None

    def _on_gpu(self, spec: LoopSpec, args: LoopArgs) -> tuple[Any, jax.Array, Any]:
        arrays = args.state, args.first, args.others
        reason = self._why_not(arrays, "GPU")
        if varies(arrays) and jax.__version_info__ < (0, 10):
            reason = "inside of jax.shard_map JAX before 0.10 does not trace it"
        if reason is None:
            traced = Traced.of(args).at(of_rows(spec, ROWS))
            reason = gpu.why_not(traced)
            if traced is not None and reason is None:
                run = functools.partial(
                    gpu.run, reverse=args.reverse, interpret=bool(self.interpret)
                )
                if not self.interpret:
                    reason = _why_not_lowered(traced, run, "cuda")
                if reason is None:
                    self._note(f"one kernel, {BLOCK} rows a program, all steps")
                    return run(traced)
        self._note(f"XLA's, not a kernel, because {reason}")
        return over_time(args)

    def _on_tpu(self, args: LoopArgs) -> tuple[Any, jax.Array, Any]:
        reason, note = self._why_not((args.state, args.first, args.others), "TPU"), ""
        if reason is None:
            traced, whole = Traced.of(args), memory()
            room = int(_FOR_ARRAYS * whole)
            block = traced.block(room)
            size, limit = traced.size(block), int(_FOR_ALL * whole)
            if size > room:
                reason = f"it would hold {_mebibytes(size)}, more than {_FOR_ARRAYS:.0%} of the "
                reason += f"chip's {_mebibytes(whole)}"
            elif not self.interpret:
                run = functools.partial(
                    Traced.run, reverse=args.reverse, block=block, vmem=limit, interpret=False
                )
                reason = _why_not_lowered(traced, run, "tpu")
            note = f"one kernel, {block} steps at a time, which holds {_mebibytes(size)} of the "
            note += f"chip's {_mebibytes(whole)}"
        self._note(f"XLA's, not a kernel, because {reason}" if reason else note)
        if reason is not None:
            return over_time(args)
        return traced.run(args.reverse, block, limit, self.interpret)

    def _note(self, note: str) -> None:
        if self.notes is not None:
            self.notes.append(note)

    def _why_not(self, arrays: Any, kind: str) -> str | None:
        """Return why no kernel of any size is possible; else None."""
        leaves = jax.tree.leaves(arrays)
        if any(map(is_symbolic_dim, itertools.chain(*(leaf.shape for leaf in leaves)))):
            return "a size is not known"
        if not all(leaf.size for leaf in leaves):
            return "there is nothing to compute"
        wide = {leaf.dtype.name for leaf in leaves if leaf.dtype.itemsize > 4}
        if wide and not self.interpret:
            return f"a {kind}'s kernels compute no {', '.join(sorted(wide))}"
        return None


def _why_not_lowered(traced: Traced, run: Callable[..., Any], platform: str) -> str | None:
    """Return why Mosaic or Triton cannot lower a kernel; None if they can."""

    def of_arrays(arrays: Any) -> Any:
        return run(dataclasses.replace(traced, arrays=arrays))

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), traced.arrays)
    try:
        # For one device, whatever mesh is set.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            jax.jit(of_arrays).trace(shapes).lower(lowering_platforms=(platform,))
    except Exception as error:  # of no class of its own
        return f"its compiler says: {(str(error) or repr(error)).splitlines()[0]}"
    return None


@dataclasses.dataclass(frozen=True)
class _Noted:
    """A backend that runs XLA's loops and records their step."""

    traced: list[Traced] = dataclasses.field(compare=False)

    def on(self, platform: str, spec: LoopSpec) -> tuple[str, Loop | None]:
        return platform, self._run

    def _run(self, args: LoopArgs) -> Any:
        self.traced.append(Traced.of(args))
        return over_time(args)


def of_rows(spec: LoopSpec, rows: int) -> Traced:
    """Trace the step of a loop for another number of rows, without computing anything."""
    noted = _Noted([])
    recurrence = dataclasses.replace(spec.recurrence, loops=noted)

    def run(*args: Any) -> None:
        if spec.kind == "run":
            recurrence.run("cuda", *args)
            return
        out, saved = recurrence.forward("cuda", *args)
        if spec.kind == "backward":
            # Ids and marks have no cotangents.
            needs_grad = jax.tree.map(lambda a: jnp.issubdtype(a.dtype, jnp.floating), args)
            recurrence.backward("cuda", args, saved, out, needs_grad)

    def sized(axis: int, tree: Any) -> Any:
        def leaf(a: Any) -> Any:
            shape = (*a.shape[:axis], rows, *a.shape[axis + 1 :])
            return jax.ShapeDtypeStruct(shape, a.dtype)

        return jax.tree.map(leaf, tree)

    params, steps, xs, per_step, carry = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)), spec.args
    )
    steps = steps._replace(start=sized(0, steps.start), recurrent=sized(0, steps.recurrent))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        jax.eval_shape(run, params, steps, sized(1, xs), sized(1, per_step), sized(0, carry))
    return noted.traced[-1]


def memory() -> int:
    """Return the bytes of VMEM of the chip that the program is compiled for."""
    from jax.experimental.pallas import tpu as pltpu  # takes its time, and few need it

    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return _USUAL_MEMORY


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
