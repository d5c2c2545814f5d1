"""Whether a model can take its steps one by one: it is run over a few steps both ways."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.engine import Scan
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Carries, Embedding, OneHotIds, Recurrent
from rnnjax.interop.model import Functional, Model, Sequential, Value
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.serving import input_shapes

_STEPS = 6


def start_of(model: Model) -> Carries:
    """The state at the start of one row, which may be learned."""
    carry = model.initial_carry((1,))
    for name, layer in model.network.stateful.items():
        if isinstance(layer, Recurrent) and name in carry and layer.name in model.params:
            carry[name] = layer.cell.start(model.params[layer.name], (1,))
    return carry


def as_given(model: Model, named: dict[str, Any]) -> Any:
    """Inputs by name, as the model takes them."""
    return named if len(named) > 1 else next(iter(named.values()))


def check_streams(model: Model) -> dict[str, Any]:
    """Return the shapes and types of the inputs of one step by their names.

    Raises:
        InteropError: a layer gives other outputs where steps come one by one.
    """
    network = model.network
    for axis in (0, 1) if isinstance(network, Graph) else (0 if network.time_first else 1,):
        if _streams(model, axis):
            return _shapes(model, 1, axis)
    parts: list[tuple[Any, Any]] = []
    if isinstance(network, Sequential):
        layers = network.layer_list
        parts = [(x, dataclasses.replace(network, layer_list=layers[: i + 1]))
                 for i, x in enumerate(layers)]  # fmt: skip
    elif isinstance(network, Functional):
        calls = network.calls
        parts = [(network.layers[call.layer], dataclasses.replace(
                    network, calls=calls[: i + 1], outputs=(Value(call.name),), names=None))
                 for i, call in enumerate(calls)]  # fmt: skip
    for layer, part in parts:
        if not _streams(dataclasses.replace(model, network=part), 0 if part.time_first else 1):
            raise InteropError(
                f"C takes one step at a time, but layer {layer.name!r}, {layer}, gives other "
                "outputs then: it reads later steps, or makes fewer; write what is before it, or "
                "train a model whose layers run forward in time"
            )
    raise InteropError(
        "C takes one step at a time, but this graph gives other outputs then: it reads later steps "
        "or all of them; export one that runs forward in time, with a free axis of time"
    )


def _streams(model: Model, axis: int) -> bool:
    """Whether steps one by one, with the state between, give what all steps at once do."""
    rng, shapes = np.random.default_rng(0), _shapes(model, _STEPS, axis)
    tables = [x for x in model.layers.values() if isinstance(x, Embedding | OneHotIds)]
    known = [x.size if isinstance(x, OneHotIds) else x.vocabulary_size for x in tables]
    ids = (1, min(known)) if known and min(known) > 1 else (0, 2)  # 0 may be masked
    drawn = {
        name: rng.integers(*ids, one.shape).astype(one.dtype)
        if jnp.issubdtype(one.dtype, jnp.integer)
        else rng.normal(size=one.shape).astype(one.dtype)
        for name, one in shapes.items()
    }
    fixed = {name for name, one in _shapes(model, 1, axis).items() if one == shapes[name]}

    def run(carry: Any, xs: dict[str, Any]) -> Any:
        return model.apply(model.params, as_given(model, xs), carry, method=Scan())

    whole, carry, each = run(None, drawn)[1], start_of(model), []
    try:
        for t in range(_STEPS):
            now = {n: x if n in fixed else x.take([t], axis) for n, x in drawn.items()}
            carry, ys = run(carry, now)
            each.append(ys)
    except (InvalidInputError, InteropError, TypeError, ValueError):  # too few steps for a layer
        return False

    def same(whole: Any, *each: Any) -> bool:
        sizes = [one.shape[axis] if one.ndim > axis else 0 for one in (whole, each[0])]
        ys = np.concatenate(each, axis) if sizes == [_STEPS, 1] else np.asarray(each[-1])
        scale = 1e-4 * np.abs(np.nan_to_num(whole)).max(initial=1e-3)
        return ys.shape == whole.shape and np.allclose(ys, whole, 0, scale, equal_nan=True)

    return all(jax.tree.leaves(jax.tree.map(same, whole, *each)))


def _shapes(model: Model, steps: int, axis: int) -> dict[str, Any]:
    network = model.network
    odd = [one for one in getattr(network, "inputs", ()) if one.shape is None
           or (isinstance(network, Functional) and None in one.shape[1:])]  # fmt: skip
    if odd:
        raise InvalidInputError(
            f"input {odd[0].name!r} has a shape that is not known, {odd[0].shape}, where C needs "
            "all sizes but that of time; save the model with them"
        )
    if not isinstance(network, Graph):
        shapes = input_shapes(model, [steps] * len(getattr(network, "inputs", [None])), 1)
        names = [one.name for one in getattr(network, "inputs", ())]
        each = shapes if isinstance(shapes, tuple) else (shapes,)
        ids = jnp.issubdtype(each[0].dtype, jnp.integer)
        return dict(zip(names or ["ids" if ids else "x"], each, strict=True))
    made = {}
    for one in network.inputs:
        shape = [n or (steps if i == axis else 1) for i, n in enumerate(one.shape)]
        made[one.name] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(one.dtype))
    states = {name for node in network.nodes if node.layer for name in node.inputs[4:]}
    return {name: one for name, one in made.items() if name not in states}
