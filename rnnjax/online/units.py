"""The influence of each parameter on its own unit, and no other.

Entry ``k`` of an array that an update reads belongs to unit ``k % units``, as gates stand side by
side. So entries of one ``k // units`` share a *colour* (Curtis, Powell & Reid, 1974): one `jax.jvp`
of the update gives all derivatives of a colour, and its influence has the size of the state.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.arguments import as_inputs
from rnnjax.cells.base import Carry, Cell, Coupling, Params
from rnnjax.cells.composite import CompositeCell
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.products import product
from rnnjax.engine.core.method import why_no_equation
from rnnjax.engine.parallel.linear_recurrence import affine
from rnnjax.online.influence import Influence


def why_not_unitwise(cell: Cell) -> str | None:
    """Why a cell does not declare that parameters belong to units; None where it does."""
    if isinstance(cell, CompositeCell):
        return "it is made of other cells"
    if reason := why_no_equation(cell):
        return reason
    if type(cell).start is not Cell.start:
        return "its sequences begin with a state that is made of parameters"
    if cell.coupling < Coupling.ELEMENTWISE:
        return f"its coupling is declared as {cell.coupling.name}, not as ELEMENTWISE or more"
    shapes = {*cell.carry_shapes.values()}
    if len(shapes) > 1 or len(min(shapes)) != 1:
        return "the leaves of its carry have not all one number for each unit"
    for name, (shape, *_) in cell.loop_params(cell.parameters(1)).items():
        entries = shape[-1] if name in cell.kernels_outside else math.prod(shape)
        if entries % _units(cell):
            return f"{name} of shape {shape} has not as many entries for each of its units"
    return None


@dataclasses.dataclass(frozen=True)
class Units(Influence):
    r"""Exact for an elementwise update; paths through products that mix units are cut off.

    .. math::
        J_t = \frac{\partial s_t}{\partial w} + \frac{\partial s_t}{\partial s_{t-1}} J_{t-1}

    for each unit and the entries of :math:`w` that belong to it. Stored by the name of a parameter,
    and for each leaf of the carry, as an array ``(*batch, rows, colours, units)``: a kernel has a
    row for each number that it is multiplied with, others have one.

    Args:
        cell: one for which `why_not_unitwise` has no reason.
        own: whether the path from a unit to itself through the recurrent product counts, or is cut
            off like the rest of that product.
    """

    own: bool = True

    def step(self, params: Params, carry: Carry, x: Any) -> tuple[Carry, jax.Array]:
        """The derivative by the state passes the recurrent product from a unit to itself alone."""
        x = as_inputs(x)
        new, emitted = _update(self.cell, self._read(params, carry, x), carry)
        return new, self.cell.read(params, emitted, x)

    def initial(self, params: Params, batch_shape: tuple[int, ...], key: jax.Array | None) -> Any:
        """Zeros: the initial state depends on no parameter."""
        leaves = self.start(params, batch_shape)
        return {
            name: [
                jnp.zeros((*batch_shape, *self._by_unit(name, param).shape), leaf.dtype)
                for leaf in leaves
            ]
            for name, param in self.cell.loop_params(params).items()
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
        """One step of the recursion of the class."""
        carry, x = self.begin(params, carry, reset), as_inputs(x)
        _, factors = affine(
            lambda carry: _update(self.cell, self._read(params, carry, x), carry)[0], carry
        )
        read, multiplied = self._read(params, carry, x), self._multiplied(carry, x)
        new = {}
        for name, before in influence.items():
            slopes = self._slopes(name, read, carry)
            if name in multiplied:
                made = [multiplied[name][..., None, None] * s[..., None, :, :] for s in slopes]
            else:
                made = [s[..., None, :, :] for s in slopes]
            new[name] = [
                sum(
                    (f[..., None, None, :] * m for f, m in zip(row, before, strict=True)),
                    start=own,
                )
                for row, own in zip(factors, made, strict=True)
            ]
        return new

    def credit(self, params: Params, influence: Any, d_carry: Carry) -> Params:
        """Each unit's cotangent times its influence."""
        gradients = jax.tree.map(jnp.zeros_like, params)
        for name, leaves in influence.items():
            total = sum(
                jnp.einsum("bu,brcu->rcu", d.reshape(-1, d.shape[-1]), m.reshape(-1, *m.shape[-3:]))
                for d, m in zip(d_carry, leaves, strict=True)
            )
            gradients[name] = jnp.reshape(total, params[name].shape)
        return gradients

    def _by_unit(self, name: str, param: jax.Array) -> jax.Array:
        """A parameter as ``(rows, colours, units)``."""
        rows = param.shape[0] if name in self.cell.kernels_outside else 1
        return param.reshape(rows, -1, _units(self.cell))

    def _read(self, params: Params, carry: Carry, x: Any) -> dict[str, Any]:
        """What the update reads besides the carry: products in the places of their kernels."""
        cell = self.cell
        cell.project(params, x)  # which checks both
        read = cell.update_params(params) | {"kernel": product(x, params["kernel"], cell.dtype)}
        if cell.recurrent is not None:
            state, kernel = getattr(carry, cell.recurrent), params["recurrent_kernel"]
            held = jax.lax.stop_gradient(state)
            recurrent = product(held, kernel, cell.dtype)
            if self.own:
                # Zero as a value; its derivative is the diagonal of the kernel.
                nothing = (state - held)[..., None, :]
                own = jnp.diagonal(self._by_unit("recurrent_kernel", kernel), axis1=0, axis2=2)
                back = jax.lax.stop_gradient(own) * nothing
                recurrent += back.reshape(recurrent.shape)
            read["recurrent_kernel"] = recurrent
        return read

    def _multiplied(self, carry: Carry, x: Any) -> dict[str, jax.Array]:
        """What each kernel is multiplied with, which makes the derivative by the kernel."""
        if isinstance(x, OneHot):
            x = jax.nn.one_hot(x.ids, x.size)
        if self.cell.recurrent is None:
            return {"kernel": x}
        return {"kernel": x, "recurrent_kernel": getattr(carry, self.cell.recurrent)}

    def _slopes(self, name: str, read: dict[str, Any], carry: Carry) -> list[jax.Array]:
        """The derivative of each unit by its entry of each colour: ``(*batch, colours, units)``."""
        array, batch = read[name], carry[0].shape[:-1]
        shape = array.shape[-1:] if name in self.cell.kernels_outside else array.shape
        entries = math.prod(shape)
        colours = np.arange(entries // _units(self.cell))[:, None]
        seeds = (np.arange(entries) // _units(self.cell) == colours).reshape(-1, *shape)

        def slope(seed: jax.Array) -> Any:
            tangent = jnp.broadcast_to(seed, array.shape).astype(array.dtype)
            return jax.jvp(
                lambda array: _update(self.cell, read | {name: array}, carry)[0],
                (array,),
                (tangent,),
            )[1]

        return list(jax.vmap(slope, out_axes=len(batch))(jnp.asarray(seeds)))


def _units(cell: Cell) -> int:
    return next(iter(cell.carry_shapes.values()))[0]


def _update(cell: Cell, read: Mapping[str, Any], carry: Carry) -> tuple[Carry, jax.Array]:
    """The cell's update, with products in the places of their kernels."""
    projected = cell.biased(read["kernel"], read, "bias")
    recurrent = None
    if cell.recurrent is not None:
        recurrent = cell.biased(read["recurrent_kernel"], read, "recurrent_bias")
    return cell.apply_update(read, cell.combine(projected, recurrent), carry)
