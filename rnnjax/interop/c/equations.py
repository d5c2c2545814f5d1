"""Equations of JAX as statements of C."""

import contextlib
import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from rnnjax.errors import InteropError
from rnnjax.interop.c.loops import Writer
from rnnjax.interop.c.operations import ELEMENTWISE, REDUCTIONS, VIEWS, convolution
from rnnjax.interop.c.values import (
    TYPES,
    Computed,
    Known,
    Sum,
    Value,
    added,
    affine,
    kind_of,
    literals,
)

_JAX = pathlib.PurePath(jax.__file__).parent
_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
_METHODS = {
    "dot_general", "conv_general_dilated", "pad", "concatenate", "stack", "cumsum", "gather",
    "dynamic_slice",
}  # fmt: skip


class _NoFormError(Exception):
    """An operation has options for which no C is written."""


class Equations(Writer):
    """A writer of what depends on inputs and state; the rest is computed when it is written."""

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Value]) -> list[Value]:
        """Write the equations that depend on what is not known, and return the results."""
        atoms = [atom for e in jaxpr.eqns for atom in e.invars] + list(jaxpr.outvars)
        uses = Counter(atom for atom in atoms if not isinstance(atom, Literal))
        values: dict[Any, Value] = dict(zip(jaxpr.invars, given, strict=True))
        values |= {
            var: Known(np.asarray(c)) for var, c in zip(jaxpr.constvars, consts, strict=True)
        }

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return Known(np.asarray(atom.val, getattr(atom.aval, "dtype", None)))
            if uses[atom] > 1 and isinstance(values[atom], Computed | Sum):
                values[atom] = self.stored(values[atom])
            return values[atom]

        around = self._where
        for equation in jaxpr.eqns:
            self._where = origin(equation) or around  # a function of JAX knows no line of ours
            results = self._results(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        self._where = around
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: Any, values: list[Value]) -> Sequence[Value]:
        name, p, where = equation.primitive.name, equation.params, self._where
        inner = inner_of(equation)
        known = [value.array for value in values if isinstance(value, Known)]
        if inner is not None:
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
        if name == "scan" and p["length"] == 1:
            outside = p["num_consts"] + p["num_carry"]
            xs = [self.view(value, lambda a: a[0]) for value in values[outside:]]
            made = self.run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*values[:outside], *xs])
            ys = [self.view(value, lambda a: a[None]) for value in made[p["num_carry"] :]]
            return [*made[: p["num_carry"]], *ys]
        outs = [var.aval for var in equation.outvars]
        if name in VIEWS:
            views = VIEWS[name](p, outs[0].shape, len(outs))
            whole = values[0] if len(views) == 1 else self.summed(values[0])
            return [self.view(whole, view) for view in views]
        if len(known) == len(values):
            made = equation.primitive.bind(*map(jnp.asarray, known), **p)
            names = " and ".join(dict.fromkeys(v.name for v in values if v.name))  # type: ignore[union-attr]  # all are Known
            each = made if equation.primitive.multiple_results else [made]
            return [Known(np.asarray(array), names) for array in each]
        out, kind = outs[0], kind_of(outs[0].dtype)
        self.label = f"{where.rpartition(' ')[2]}: {name}"
        sums = [value.shape == out.shape for value in values if isinstance(value, Sum)]
        if name in ("add", "add_any") and sums and all(sums):
            return [added(self.alike(values, out.shape), out.shape, self.label)]
        values = [self.summed(value) for value in values]
        if name == "optimization_barrier":
            return values
        if name in ELEMENTWISE:
            ins = [value.kind if not isinstance(value, Known) else kind_of(value.array.dtype)
                   for value in values]  # fmt: skip
            template = ELEMENTWISE[name](p, ins[-1], equation.invars[0].aval.dtype)
            if template:
                return [self.computed(template, values, out.shape, kind)]
        elif (name, kind) in REDUCTIONS:
            return [self.reduced(values[0], p["axes"], *REDUCTIONS[name, kind], kind)]
        with contextlib.suppress(_NoFormError):  # refused below, with its name and line
            if name in _METHODS:
                return [getattr(self, f"_{name}")(p, *values, shape=out.shape)]
        shapes = ", ".join(str(list(atom.aval.shape)) for atom in equation.invars)
        raise InteropError(
            f"C is written of operations in a table, which has no {name} of {shapes}, as in "
            f"{where or 'a function of JAX'}; write that with others, such as sums, products and "
            "jnp.where"
        )

    # ---- operations that are more than an expression, by their names in JAX

    def _dot_general(self, p: Any, left: Value, right: Value, shape: tuple[int, ...]) -> Value:
        (of_left, of_right), (batch_left, batch_right) = p["dimension_numbers"]
        if isinstance(left, Known):  # weights come second, and what is free of them last
            swapped = {"dimension_numbers": ((of_right, of_left), (batch_right, batch_left))}
            value = self._dot_general(swapped, right, left, shape)
            ends = len(batch_left), len(shape) - (left.array.ndim - len(of_left) - len(batch_left))
            axes = [*range(ends[0]), *range(ends[1], len(shape)), *range(*ends)]
            return self.view(value, lambda a: a.transpose(axes))
        free_left, free_right = (
            [axis for axis in range(len(value.shape)) if axis not in (*one, *two)]
            for value, one, two in ((left, batch_left, of_left), (right, batch_right, of_right))
        )
        batch = [left.shape[axis] for axis in batch_left]
        lead = batch + [left.shape[axis] for axis in free_left]
        inputs = math.prod(left.shape[axis] for axis in of_left)
        x_axes, w_axes = [*batch_left, *free_left, *of_left], [*batch_right, *of_right, *free_right]
        x = self.view(left, lambda a: a.transpose(x_axes).reshape(*lead, inputs))
        w = self.view(right, lambda a: a.transpose(w_axes).reshape(*batch, inputs, -1))
        whole = *lead, w.shape[-1]
        if isinstance(w, Known):
            zero = Known(np.zeros(whole, np.float32))
            return self.view(Sum(zero, ((x, w),), whole, self.label), lambda a: a.reshape(shape))
        full, between = (*lead, inputs, w.shape[-1]), [1] * len(free_left)
        x = self.view(x, lambda a: np.broadcast_to(a[..., None], full))
        w = self.view(
            w, lambda a: np.broadcast_to(a.reshape(*batch, *between, *a.shape[-2:]), full)
        )
        value = self.computed("({} * {})", [x, w], full, "float")
        if inputs > 1:  # else it is an outer product
            value = self.reduced(value, [len(lead)], *REDUCTIONS["reduce_sum", "float"], "float")
        return self.view(value, lambda a: a.reshape(shape))

    def _conv_general_dilated(self, p: Any, x: Value, w: Value, shape: tuple[int, ...]) -> Value:
        if not p["feature_group_count"] == p["batch_group_count"] == 1 == max(p["lhs_dilation"]):
            raise _NoFormError
        avals = (jax.ShapeDtypeStruct(value.shape, np.float32) for value in (x, w))
        closed = jax.make_jaxpr(convolution(p, shape))(*avals)
        return self.run(closed.jaxpr, closed.consts, [x, w])[0]

    def _pad(self, p: Any, value: Value, around: Value, shape: tuple[int, ...]) -> Value:
        if any(min(entry) < 0 for entry in p["padding_config"]):
            raise _NoFormError
        into = self.buffer(shape, getattr(value, "kind", "float"))
        self.assign(into, around)
        ways = zip(p["padding_config"], value.shape, strict=True)
        part = tuple(slice(low, low + (n - 1) * (m + 1) + 1, m + 1) for (low, _, m), n in ways)
        self.assign(dataclasses.replace(into, places=into.places[part]), value)
        return into

    def _concatenate(self, p: Any, *values: Value, shape: tuple[int, ...]) -> Value:
        kinds = [value.kind for value in values if not isinstance(value, Known)]
        into, axis, start = self.buffer(shape, kinds[0]), p["dimension"], 0
        for value in values:
            places = into.places.take(range(start, start := start + value.shape[axis]), axis)
            self.assign(dataclasses.replace(into, places=places), value)
        return into

    def _stack(self, p: Any, *values: Value, shape: tuple[int, ...]) -> Value:
        axis = p["axis"]
        each = [self.view(value, lambda a: np.expand_dims(a, axis)) for value in values]
        return self._concatenate({"dimension": axis}, *each, shape=shape)

    def _cumsum(self, p: Any, value: Value, shape: tuple[int, ...]) -> Value:
        into = self.buffer(shape, getattr(value, "kind", "float"))
        self.assign(into, value)
        along = np.moveaxis(into.places, p["axis"], 0)[:: -1 if p["reverse"] else 1]
        later, before = (dataclasses.replace(into, places=a) for a in (along[1:], along[:-1]))
        self.assign(later, before, "{} += {}")
        return into

    def _gather(self, p: Any, table: Value, ids: Value, shape: tuple[int, ...]) -> Value:
        """A row of a table by one id, or another block by the indices of its corner."""
        axes = p["dimension_numbers"].start_index_map
        if math.prod(ids.shape) != len(axes) or p["dimension_numbers"].operand_batching_dims:
            raise _NoFormError
        at = self.stored(ids)
        corner = {axis: f"{at.name}[{i}]" for axis, i in zip(axes, at.places.flat, strict=True)}
        fill = None if "CLIP" in str(p["mode"]) else p["fill_value"]
        return self._block(table, corner, p["slice_sizes"], shape, fill)

    def _dynamic_slice(self, p: Any, table: Value, *starts: Value, shape: tuple[int, ...]) -> Value:
        each = enumerate(map(self.stored, starts))
        corner = {axis: f"{at.name}[{at.places.flat[0]}]" for axis, at in each}
        return self._block(table, corner, p["slice_sizes"], shape, None)

    def _block(
        self, table: Value, corner: dict[int, str], sizes: Any, shape: tuple[int, ...], fill: Any
    ) -> Value:
        """A part of an array from indices on that C computes; without ``fill`` they are clipped."""
        rows = self.regular(table)
        into = self.buffer(shape, rows.kind)
        most = {axis: rows.shape[axis] - sizes[axis] for axis in corner}
        if fill is None:
            corner = {k: f"@imax(0, @imin({i}, {most[k]}))" for k, i in corner.items()}
        inside = " && ".join(f"{i} >= 0 && {i} <= {most[k]}" for k, i in corner.items())
        _, strides = affine(rows.places) or (0, [])
        offset = " + ".join(f"{strides[axis]} * {i}" for axis, i in corner.items())

        def text(y: str, row: str) -> str:
            found = f"{rows.name}[{offset} + {row}]"
            if fill is None:
                return f"{into.name}[{y}] = {found};"
            other = literals(np.array(fill, TYPES[rows.kind]))[0]
            return f"{into.name}[{y}] = {inside} ? {found} : {other};"

        places = rows.places[tuple(map(slice, sizes))].reshape(shape)
        block = dataclasses.replace(rows, places=places)
        self.loop(f"{self.label} {list(shape)}", shape, [into, block], text)
        return into


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr."""
    return tuple(atom.aval.shape)


def inner_of(equation: Any) -> Any:
    """The equations that an equation stands for, as one of ``jit`` does; else None."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr") if equation.primitive.name in _CALLS else ()
    return next((equation.params[key] for key in keys if key in equation.params), None)


def origin(equation: Any) -> str:
    """The file and line of the cell, or of what it called, that made an equation; empty if none."""
    trace = equation.source_info.traceback
    frames = trace.frames if trace is not None else []
    for frame in frames:
        path = pathlib.PurePath(frame.file_name)
        if not path.is_relative_to(_JAX):
            return f"{path.name}:{frame.line_num}, {frame.function_name}"
    return ""
