"""The influence of each parameter on the units that it touches in one step, and no other.

Which entry of which parameter touches which unit is found out once for a cell: a NaN is put in the
place of one number after the other, and where it comes out, that number has gone in. Entries that
touch no unit in common share a *colour* (Curtis, Powell & Reid, 1974): all derivatives of a colour
are one `jax.jvp` of the update, and its influence is one array of the size of the state.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import as_inputs, drawn
from rnnjax.cells.base import Carry, Cell, Params, as_it_runs
from rnnjax.cells.composite import CompositeCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.products import at_least_float32, product
from rnnjax.engine.affine import affine
from rnnjax.engine.apart import computed_apart
from rnnjax.online.influence import Influence


class Pattern(NamedTuple):
    """Which units the numbers that an update reads touch.

    Attributes:
        kept: of each leaf of the carry, whether a step reads it: others influence nothing later.
        places: by name of a parameter, integers ``(colours, units)``: the entry of that colour that
            touches the unit, or the number of entries where there is none. Of the kernels of
            products outside of the update an entry is a column. Others than these touch nothing.
        unit_of: of each column of the recurrent product the unit that it touches, or the number of
            units where it touches none.
    """

    kept: tuple[bool, ...]
    places: Mapping[str, np.ndarray]
    unit_of: np.ndarray


def why_not_unitwise(cell: Cell) -> str | None:
    """Why the update of a cell does not take each unit by itself; None where it does."""
    found = _pattern_or_reason(as_it_runs(cell), True)
    return found if isinstance(found, str) else None


def pattern_of(cell: Cell, own: bool) -> Pattern:
    """The pattern of a cell for which `why_not_unitwise` has no reason.

    Args:
        cell: the cell.
        own: whether its step reads the state of each unit through the recurrent product, too.
    """
    found = _pattern_or_reason(as_it_runs(cell), own)
    assert isinstance(found, Pattern)
    return found


@dataclasses.dataclass(frozen=True)
class Units(Influence):
    r"""Exact for an update that takes each unit by itself; what products mix is cut off.

    .. math::
        J_t = \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1}

    where both are kept for a unit and the entries of :math:`w` that touch it alone. By the name of
    a parameter, and for each leaf of the carry that is read, an array ``(*batch, rows, colours,
    units)``: a kernel has a row for each number that it is multiplied with, others have one.

    Args:
        cell: one for which `why_not_unitwise` has no reason.
        own: whether what comes back to a unit of its own state through the recurrent product counts
            as its own, or is cut off like the rest of that product.
    """

    own: bool = True

    def step(self, params: Params, carry: Carry, x: Any) -> tuple[Carry, jax.Array]:
        """The derivative by the state goes through the recurrent product to each unit alone."""
        x = as_inputs(x)
        new, shown = _update(self.cell, self._read(params, carry, x), carry)
        return new, self.cell.read(params, shown, x)

    def initial(self, params: Params, batch_shape: tuple[int, ...], key: jax.Array | None) -> Any:
        """Nothing: a sequence begins with a state that no parameter touched."""
        leaves = self._kept(self.start(params, batch_shape))
        return {
            name: [
                jnp.zeros((*batch_shape, self._rows(params, name), *places.shape), leaf.dtype)
                for leaf in leaves
            ]
            for name, places in self._pattern.places.items()
        }

    def after(
        self,
        params: Params,
        influence: Any,
        carry: Carry,
        x: Any,
        reset: jax.Array | None,
        key: jax.Array | None,
    ) -> Any:
        """Each unit's own factors times what was, and what this step's parameters do."""
        carry, x = self.begin(params, carry, reset), as_inputs(x)
        _, factors = affine(
            lambda carry: _update(self.cell, self._read(params, carry, x), carry)[0], carry
        )
        factors = self._kept([self._kept(row) for row in factors])
        read, multiplied = self._read(params, carry, x), self._multiplied(carry, x)
        new = {}
        for name, before in influence.items():
            slopes = self._slopes(name, read, carry)
            if name in multiplied:
                made = [multiplied[name][..., None, None] * s[..., None, :, :] for s in slopes]
            else:
                made = [s[..., None, :, :] for s in slopes]
            new[name] = [
                sum((_over_units(f, m) * m for f, m in zip(row, before, strict=True)), start=own)
                for row, own in zip(factors, made, strict=True)
            ]
        return new

    def credit(self, params: Params, influence: Any, d_carry: Carry) -> Params:
        """Each unit's cotangent times its influence, and each entry's sum over its units."""
        gradients = jax.tree.map(jnp.zeros_like, params)
        for name, places in self._pattern.places.items():
            total = sum(
                jnp.einsum(
                    "bu,brcu->rcu",
                    d.reshape(-1, places.shape[-1]),
                    m.reshape(-1, *m.shape[-3:]),
                )
                for d, m in zip(self._kept(d_carry), influence[name], strict=True)
            )
            rows = self._rows(params, name)
            entries = jnp.zeros((rows, params[name].size // rows), jnp.result_type(total))
            # What is no entry lies behind the last one.
            entries = entries.at[:, places.reshape(-1)].add(
                jnp.reshape(total, (rows, -1)), mode="drop"
            )
            gradients[name] = entries.reshape(params[name].shape)
        return gradients

    @property
    def _pattern(self) -> Pattern:
        return pattern_of(self.cell, self.own)

    def _kept(self, carry: Any) -> list[Any]:
        """The leaves, or what belongs to each, that a step reads."""
        return [leaf for leaf, kept in zip(carry, self._pattern.kept, strict=True) if kept]

    def _rows(self, params: Params, name: str) -> int:
        return params[name].shape[0] if name in self.cell.kernels_outside else 1

    def _read(self, params: Params, carry: Carry, x: Any) -> dict[str, Any]:
        """What the update reads beside the carry, products in the places of their kernels."""
        cell = self.cell
        cell.project(params, x)  # which checks both
        read = cell.in_update(params) | {"kernel": product(x, params["kernel"], cell.dtype)}
        if cell.recurrent is not None:
            state, kernel = getattr(carry, cell.recurrent), params["recurrent_kernel"]
            held = jax.lax.stop_gradient(state)
            recurrent = product(held, kernel, cell.dtype)
            if self.own:
                units, columns = self._pattern.unit_of, np.arange(kernel.shape[-1], dtype=np.int32)
                # Zeros, whose slope is that of each unit's own entry of the kernel.
                nothing = (state - held).at[..., units].get(mode="fill", fill_value=0)
                diagonal = kernel.at[units, columns].get(mode="fill", fill_value=0)
                recurrent += jax.lax.stop_gradient(diagonal) * nothing
            read["recurrent_kernel"] = recurrent
        return read

    def _multiplied(self, carry: Carry, x: Any) -> dict[str, jax.Array]:
        """What the kernels outside are multiplied with: a derivative by them is its product."""
        if isinstance(x, OneHot):
            x = jax.nn.one_hot(x.ids, x.size)
        if self.cell.recurrent is None:
            return {"kernel": x}
        return {"kernel": x, "recurrent_kernel": getattr(carry, self.cell.recurrent)}

    def _slopes(self, name: str, read: dict[str, Any], carry: Carry) -> list[jax.Array]:
        """The derivative of each unit by its entry of each colour: ``(*batch, colours, units)``."""
        places, array = self._pattern.places[name], read[name]
        units = next(iter(self.cell.carry_shapes.values()))
        batch = jax.tree.leaves(carry)[0].shape
        batch = batch[: len(batch) - len(units)]
        outside = name in self.cell.kernels_outside
        entries = array.shape[-1] if outside else array.size
        seeds = np.stack([np.isin(np.arange(entries), colour) for colour in places])

        def slope(seed: jax.Array) -> list[jax.Array]:
            tangent = seed if outside else seed.reshape(array.shape)
            tangent = jnp.broadcast_to(tangent, array.shape).astype(array.dtype)
            new = jax.jvp(
                lambda array: _update(self.cell, read | {name: array}, carry)[0],
                (array,),
                (tangent,),
            )[1]
            return [leaf.reshape(*batch, math.prod(units)) for leaf in self._kept(new)]

        return jax.vmap(slope, out_axes=len(batch))(jnp.asarray(seeds))


def _over_units(factor: jax.Array, influence: jax.Array) -> jax.Array:
    """A factor ``(*batch, *units)`` for an array ``(*batch, rows, colours, units)``."""
    batch, units = influence.shape[:-3], influence.shape[-1]
    return factor.reshape(*batch, 1, 1, units)


def _update(cell: Cell, read: Mapping[str, Any], carry: Carry) -> tuple[Carry, jax.Array]:
    """The cell's own, with products in the places of their kernels: the new carry, and its show."""
    projected = cell.biased(read["kernel"], read, "bias")
    recurrent = None
    if cell.recurrent is not None:
        recurrent = cell.biased(read["recurrent_kernel"], read, "recurrent_bias")
    return cell.advance(read, cell.meet(projected, recurrent), carry)


# ---- what touches what


@functools.lru_cache(maxsize=256)
def _pattern_or_reason(cell: Cell, own: bool) -> Pattern | str:
    if isinstance(cell, CompositeCell):
        return "it is made of other cells"
    if cell.carry is None:
        return "it declares no carry and update, but a step"
    if type(cell).start is not Cell.start:
        return "its sequences begin with a state that is made of parameters"
    product, leaves, shapes = cell.recurrent, list(cell.carry_shapes), {*cell.carry_shapes.values()}
    units = min(shapes)
    if len(shapes) > 1 or (product is not None and len(units) > 1):
        return "the leaves of its carry have not all one number for each unit"

    seen, carried = _all_seen(cell)
    between = [carried[name] for name in leaves]
    others = ~np.eye(math.prod(units), dtype=bool)[:, None]
    mixes = any((touched & others).any() for touched, _ in between)
    if mixes:
        return "its update mixes units"
    spreads = any((touched.any(axis=1).sum(axis=1) > 1).any() for touched, _ in seen.values())
    # What one of them made of it would come back to the other through the product.
    if product is not None and spreads:
        return "a number that its update reads touches several units"
    kept = tuple(
        bool(touched.any() or shown.any()) or (own and name == product)
        for name, (touched, shown) in zip(leaves, between, strict=True)
    )
    # What touches no leaf that is read leaves nothing to carry forward.
    read_later = np.array(kept)
    counted = {name: np.any(touched[:, read_later], axis=1) for name, (touched, _) in seen.items()}
    places = {name: _coloured(entries) for name, entries in counted.items() if entries.any()}
    unit_of = np.zeros(0, np.int32)
    if product is not None:
        of_column = np.any(seen["recurrent_kernel"][0], axis=1)
        unit_of = np.where(of_column.any(axis=1), of_column.argmax(axis=1), *units).astype(np.int32)
    return Pattern(kept, places, unit_of)


@functools.lru_cache(maxsize=256)
def _all_seen(cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where what an update reads, and the leaves of its carry, come out, by their names."""

    def all_seen(carry: Carry, read: dict[str, jax.Array]) -> tuple[Any, ...]:
        names = read, cell.carry_shapes
        return tuple({n: _seen(cell, carry, read, n) for n in some} for some in names)

    # What is drawn in the same program makes it take as long again to compile.
    seen, carried = computed_apart(all_seen, *_drawn(cell))
    return seen, carried


def _drawn(cell: Cell) -> tuple[Carry, dict[str, Any]]:
    """A carry without a batch, and what the update reads beside it, with numbers in them."""
    params, wide = cell.parameters(1), at_least_float32(cell.param_dtype)
    shapes = jax.eval_shape(cell.initial_carry)
    products = {
        name: jax.ShapeDtypeStruct(params[name].shape[-1:], shapes[0].dtype)
        for name in cell.kernels_outside
    }
    rng, others = np.random.default_rng(0), cell.in_update(params)
    carry, products = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), (shapes, products)
    )

    def read(seed: jax.Array) -> Params:
        keys = jax.random.split(jax.random.key(seed), len(others))
        return {
            name: drawn(cell, name, param, key, wide).astype(cell.param_dtype)
            for key, (name, param) in zip(keys, others.items(), strict=True)
        }

    return carry, (computed_apart(read, np.uint32(0)) if others else {}) | products


def _seen(
    cell: Cell, carry: Any, read: Mapping[str, Any], name: str
) -> tuple[jax.Array, jax.Array]:
    """Where a NaN in the place of each entry of an array comes out.

    Args:
        cell: the cell.
        carry: without a batch.
        read: what the update reads beside it.
        name: of one of the arrays in ``read``, or else of a leaf of the carry.

    Returns:
        booleans ``(entries, leaves, units)`` of the new carry, and ``(entries,)`` of what is shown.
    """
    array = read[name] if name in read else getattr(carry, name)

    def out(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        changed = {name: array.reshape(-1).at[index].set(jnp.nan).reshape(array.shape)}
        if name in read:
            new, shown = _update(cell, {**read, **changed}, carry)
        else:
            new, shown = _update(cell, read, carry._replace(**changed))
        return jnp.stack([jnp.isnan(leaf).reshape(-1) for leaf in new]), jnp.isnan(shown).any()

    # A few at a time, or a layer of 4,096 units would take gigabytes.
    return jax.lax.map(out, jnp.arange(array.size), batch_size=64)


def _coloured(touched: np.ndarray) -> np.ndarray:
    """Entries that touch no unit in common under one colour.

    Args:
        touched: booleans ``(entries, units)``.

    Returns:
        integers ``(colours, units)``, the number of entries where there is none.

    >>> print(_coloured(np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)))
    [[0 2]
     [1 4]]
    """
    entries, units = touched.shape
    colours: list[np.ndarray] = []
    for entry in np.flatnonzero(touched.any(axis=1)):
        free = (colour for colour in colours if (colour[touched[entry]] == entries).all())
        colour = next(free, None)
        if colour is None:
            colour = np.full(units, entries, np.int32)
            colours.append(colour)
        colour[touched[entry]] = entry
    return np.stack(colours)
