"""A model as one program that needs no Python: the state goes in and comes out."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.export import Exported

from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.interop.compare import random_inputs
from rnnjax.interop.model import Functional, Model, check_model
from rnnjax.interop.onnx.graph import Graph


def export(
    model: Model, *, steps: int | None = None, platforms: Sequence[str] | None = None
) -> Exported:
    """The program ``(carry, xs) -> (carry, ys)`` of a model, its parameters inside.

    ``program.serialize()`` are bytes for any program with JAX (``pip install 'rnnjax[export]'``),
    and ``jax.export.deserialize(data).call(carry, xs)`` runs them; no class of a model is needed
    there. Each row of the batch is a client with a state of its own, and a call goes on where the
    call before it stood.

    Args:
        model: imported or trained; `Model.of` makes one of a cell and its parameters.
        steps: of a call, 1 where a server answers every step; left out, any number, the same for
            all sequences that it is given, unless the model says itself how many it takes.
        platforms: such as ``["cpu", "cuda"]``, of machines that need not be here; left out, this.

    Returns:
        the program, for a batch of any size: ``program.in_avals`` shows its inputs. ``carry`` is
        that of `Model.initial_carry`, without layers that begin with the states of others.

    Raises:
        InvalidInputError: ``model`` is no `Model`, ``steps`` is no positive number, or a layer does
            not take as many.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> program = export(model, steps=1)
    >>> carry, ys = program.call(model.initial_carry((8,)), np.ones((1, 8, 3), np.float32))
    >>> carry, ys = program.call(carry, np.ones((1, 8, 3), np.float32))
    >>> ys.shape, program.in_avals[-1].shape
    ((1, 8, 5), (1, batch, 3))
    """
    check_model(model)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InvalidInputError(f"steps should be a positive integer or None, but is {steps!r}")
    if steps is not None and isinstance(model.network, Functional):
        inputs = tuple(
            one._replace(shape=(None, *one.shape[1:])) if one.sequence else one
            for one in model.network.inputs
        )
        network = dataclasses.replace(model.network, inputs=inputs)
        model = dataclasses.replace(model, network=network)
    dimensions: Any = jax_export.symbolic_shape("time, batch")
    time, batch = dimensions
    # Which axes are which shows where inputs for other sizes differ.
    one, longer, wider = (_shapes(model, *sizes) for sizes in ((11, 13), (12, 13), (11, 14)))

    def spec(a: Any, b: Any, c: Any) -> jax.ShapeDtypeStruct:
        axes = zip(a.shape, b.shape, c.shape, strict=True)
        own: list[Any] = [
            (time if steps is None else steps) if n != t else batch if n != w else n
            for n, t, w in axes
        ]
        # Ids of NumPy are of 64 bits, which programs have only where JAX is told so.
        return jax.ShapeDtypeStruct(own, jax.dtypes.canonicalize_dtype(a.dtype))

    xs = jax.tree.map(spec, one, longer, wider)
    given = set()
    if isinstance(model.network, Functional):
        given = {call.name for call in model.network.calls if call.states}
    carry = jax.eval_shape(lambda: model.initial_carry((batch,)))
    carry = {name: state for name, state in carry.items() if name not in given}
    program = jax.jit(lambda carry, xs: model(xs, carry))
    return jax_export.export(program, platforms=platforms)(carry, xs)


def _shapes(model: Model, steps: int, batch: int) -> Any:
    sizes = (batch, steps) if _has_batch_first(model) else (steps, batch)
    return random_inputs(model, np.random.default_rng(0), *sizes)


def _has_batch_first(model: Model) -> bool:
    """Whether the first free axis of a graph of ONNX is the batch: its states tell."""
    if not isinstance(model.network, Graph):
        return False
    steps, batch = 5, 3
    carry = model.initial_carry((batch,))
    for batch_first, sizes in ((False, (steps, batch)), (True, (batch, steps))):
        xs = random_inputs(model, np.random.default_rng(0), *sizes)
        with contextlib.suppress(RnnjaxError, TypeError, ValueError):
            jax.eval_shape(model.apply, model.params, xs, carry)
            return batch_first
    return False
