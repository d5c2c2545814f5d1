"""A model as one program that needs no Python: the state goes in and comes out."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.export import Exported

from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.interop.layers import Embedding, OneHotIds
from rnnjax.interop.model import Functional, Model, check_model
from rnnjax.interop.onnx.graph import Graph, assumed_shape
from rnnjax.interop.onnx.recurrent import input_size


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
    return input_shapes(model, *sizes)


def _has_batch_first(model: Model) -> bool:
    """Whether the first free axis of a graph of ONNX is the batch: its states tell."""
    if not isinstance(model.network, Graph):
        return False
    steps, batch = 5, 3
    carry = model.initial_carry((batch,))
    for batch_first, sizes in ((False, (steps, batch)), (True, (batch, steps))):
        xs = input_shapes(model, *sizes)
        with contextlib.suppress(RnnjaxError, TypeError, ValueError):
            jax.eval_shape(model.apply, model.params, xs, carry)
            return batch_first
    return False


def input_shapes(model: Model, steps: int, batch: int) -> Any:
    """What a model takes, as shapes and types; a graph says itself how many, or has these."""
    network = model.network
    if isinstance(network, Functional):
        made = []
        for one in network.inputs:
            shape = [batch, *(n or (3, steps)[i == 0] for i, n in enumerate(one.shape))]
            if one.sequence and network.time_first:
                shape[:2] = shape[1::-1]
            made.append(jax.ShapeDtypeStruct(shape, jnp.dtype(one.dtype)))
        return made[0] if len(made) == 1 else tuple(made)
    if isinstance(network, Graph):
        arrays = {}
        for entry in network.inputs:
            if entry.role == "data":
                sizes = assumed_shape(entry, network, model.params, (steps, batch))
                arrays[entry.name] = jax.ShapeDtypeStruct(sizes, jnp.dtype(entry.dtype))
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))
    axes = (steps, batch) if network.time_first else (batch, steps)
    features = 3  # any number, where no layer has parameters
    for layer in model.layers.values():
        if isinstance(layer, Embedding | OneHotIds):
            return jax.ShapeDtypeStruct(axes, np.dtype(np.int64))
        if model.params.get(layer.name):
            features = input_size(model.params[layer.name])
            break
    return jax.ShapeDtypeStruct((*axes, features), np.dtype(np.float32))
