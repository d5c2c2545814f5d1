"""A model as one program that needs no Python: the state goes in and comes out."""

import functools
import itertools
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.export import Exported

from rnnjax.cells.base import Params
from rnnjax.engine import Scan
from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.interop.arrays import input_size
from rnnjax.interop.causal import follows
from rnnjax.interop.layers import Context, Embedding, OneHotIds, Recurrent
from rnnjax.interop.model import Functional, Model, check_model

_NAME = "InconclusiveDimensionOperation"
_INCONCLUSIVE: Any = getattr(jax.errors, _NAME, None) or getattr(jax.core, _NAME)  # of JAX 0.8


def export(
    model: Model, *, steps: int | None = None, platforms: Sequence[str] | None = None
) -> Exported:
    """Export a model with its parameters as a program ``(state, xs) -> (state, ys)``.

    ``program.serialize()`` returns bytes (``pip install 'rnnjax[export]'``), which need JAX alone:
    ``jax.export.deserialize(data).call(state, xs)``. ``state`` is a list of arrays, the leaves of
    the carry. Each row can be a client with its own state: pass it on to the next call.

    Args:
        model: an imported or trained model; `Model.of` makes one from a cell and its parameters.
        steps: the number of steps of a call, 1 if a server answers every step. By default any
            number, of each input its own unless the layers want one for all, or the model fixes it;
            behind a convolution that strides and pads nothing, from some power of two on.
        platforms: for which to export, such as ``["cpu", "cuda"]``; by default the current one.

    Returns:
        the program, for a batch of any size: ``program.in_avals`` shows its inputs. It begins with
        the leaves of `Model.initial_carry`, except layers that begin with the states of others.

    Raises:
        InvalidInputError: ``model`` is not a `Model`, ``steps`` is not a positive integer, or a
            layer does not accept that many.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> program = export(model, steps=1)
    >>> state = jax.tree.leaves(model.initial_carry((8,)))
    >>> state, ys = program.call(state, np.ones((1, 8, 3), np.float32))
    >>> ys.shape, program.in_avals[-1].shape
    ((1, 8, 5), (1, batch, 3))
    """
    check_model(model)
    if not isinstance(model.network, Functional):
        raise InvalidInputError(
            "a graph of ONNX is a program by itself: write it by onnx.save, or give model.apply "
            "to jax.export.export"
        )
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InvalidInputError(f"steps should be a positive integer or None, but is {steps!r}")

    xs, carry, _ = of_any(model, steps)
    state, tree = jax.tree.flatten(dict(carry))

    def program(state: Any, xs: Any) -> Any:
        after, ys = model(xs, jax.tree.unflatten(tree, state))
        return jax.tree.leaves({name: after[name] for name in carry}), ys

    return jax_export.export(jax.jit(program), platforms=platforms)(state, xs)


def of_any(model: Model, steps: Any) -> tuple[Any, Any, Any]:
    """A model's inputs and states for any batch: shapes and types, and the size of the batch.

    The states are in order and by name. Layers that begin with the states of others have none.
    Without ``steps`` each input has a time of its own, or all have one if they have to.
    """
    network: Any = model.network
    given = {call.name for call in network.calls if call.states}
    names = [name for name in network.stateful if name not in given]
    count = len(network.inputs)
    times = ["time", *(f"time_{i}" for i in range(2, 1 + count))]
    alike = [False, True] if count > 1 and not steps else [False]

    def run(params: Params, xs: Any) -> Any:
        return network.run(params, xs, {}, None, Context())[0]

    # Behind a convolution that strides and pads nothing, JAX can compare sizes only if sequences
    # have a least length. What follows from that for times the batch it has to be told as well.
    for least, one_time in itertools.product([2**n for n in range(11)], alike):
        known = [f"{time} >= {least}" for time in times]
        known += [f"batch*{time} >= {least}*batch" for time in times]
        batch: Any
        batch, size, *each = jax_export.symbolic_shape(
            ", ".join(["batch", "size", *times]), constraints=known if least > 1 else []
        )
        way = [steps] * count if steps else each[:1] * count if one_time else each
        try:
            xs = input_shapes(model, way, batch, size)
            carry = jax.eval_shape(run, model.params, xs)
        except _INCONCLUSIVE:
            continue
        except RnnjaxError:  # which may be a ValueError, and says more
            if one_time == alike[-1]:
                raise
        except NotImplementedError as error:  # so JAX says that it knows no open sizes there
            raise InvalidInputError(
                f"a layer computes what JAX does for a fixed number of steps alone ({error}); "
                "compute it by a scan, or fix the number in the inputs of the model"
            ) from error
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            if one_time == alike[-1]:
                raise InvalidInputError(
                    f"params do not belong to {', '.join(model.layers)}, or the kernel of your own "
                    f"cell does not tell how many features it takes ({error}); give each layer its "
                    "own params, and such a cell in a Functional, whose Input has them"
                ) from error
        else:
            return xs, OrderedDict((name, carry[name]) for name in names), batch
    raise InvalidInputError(
        f"the sizes of {', '.join(model.layers)} must follow from any number of steps, but do not; "
        "give the inputs of the model a fixed one"
    )


def input_shapes(model: Model, steps: Sequence[Any], batch: Any, size: Any = 3) -> Any:
    """Return the shapes and types of a model's inputs for as many steps of each.

    ``size`` stands for all other sizes that are open.
    """
    network: Any = model.network
    if not network.is_row:
        made = []
        for one, time in zip(network.inputs, steps, strict=True):
            shape = [batch, *(n or (size, time)[i == 0] for i, n in enumerate(one.shape))]
            if one.sequence and isinstance(time, int):
                shape[1] = time
            if one.sequence and network.time_first:
                shape[:2] = shape[1::-1]
            made.append(jax.ShapeDtypeStruct(shape, jnp.dtype(one.dtype)))
        return made[0] if len(made) == 1 else tuple(made)
    axes = (steps[0], batch) if network.time_first else (batch, steps[0])
    features = size
    for layer in model.layers.values():
        if isinstance(layer, Embedding | OneHotIds):
            # Ids of NumPy are of 64 bits, which programs have only where JAX has them.
            return jax.ShapeDtypeStruct(axes, jax.dtypes.canonicalize_dtype(np.int64))
        if model.params.get(layer.name):
            raw = layer.cell.raw_size if isinstance(layer, Recurrent) else 0
            features = input_size(model.params[layer.name]) + raw
            break
    return jax.ShapeDtypeStruct((*axes, features), np.dtype(np.float32))


def inputs_of(model: Model, steps: int = 1, axis: int = 0) -> dict[str, Any]:
    """The shapes and types of the inputs by name, for one row, and as many steps along an axis."""
    network: Any = model.network
    layers = isinstance(network, Functional)
    for one in network.inputs:
        if None in (one.shape or ())[1:] if layers else one.shape is None:
            raise InvalidInputError(
                f"input {one.name!r} has a shape that is not known, {one.shape}, where C needs all "
                "sizes but that of time; save the model with them"
            )
    if not layers:
        return dict(network.shapes(steps, axis))
    each = jax.tree.leaves(input_shapes(model, [(1, steps)[axis == 0]] * len(network.inputs), 1))
    return dict(zip([one.name for one in network.inputs], each, strict=True))


def streams(model: Model, start: Any) -> bool:
    """Whether steps one by one give what all give, from a carry for one row on.

    Without a free axis all that a graph takes is one step. Without a state a free axis may be time
    or the batch, and neither may mix.
    """
    network, windows = model.network, list[int]()
    context = Context(method=Scan(), language="steps")
    for name in sorted(start):  # the steps before are the second axis of a window, behind the batch
        own = -1 if isinstance(network.uses[name], Recurrent) else 1
        windows += [own] * len(jax.tree.leaves(start[name]))

    def run(carry: Any, xs: Any) -> Any:
        after, ys = network.run(model.params, xs, carry, None, context)
        return {name: after[name] for name in carry}, ys

    ways = [functools.partial(inputs_of, model, axis=axis) for axis in range(2)]
    free = [shapes for shapes in ways if shapes(2) != shapes(1)]
    verdicts = [follows(run, start, shapes, windows, _counted(network)) for shapes in free]
    return not verdicts or (any if jax.tree.leaves(start) else all)(verdicts)


def _counted(network: Any) -> int:
    """The largest number, below 1,000, by which slices may count; they end where the steps do."""
    told = [dict(getattr(layer, "config", ())).get("key") for layer in network.layer_list]
    for _, dtype, _, data in getattr(network, "constants", ()):
        told += np.frombuffer(data, dtype).tolist() if "int" in dtype else []
    each = re.findall(r"\d+", f"{told} {getattr(network, 'nodes', '')}")
    return max((n for n in map(int, each) if n < 1000), default=0)
