"""Arrays of other frameworks as arrays of NumPy, and parameters of ours that are to become such."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Cell
from rnnjax.cells.validation import check_features
from rnnjax.checks import is_floating
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.layers import Dense, Embedding, fits
from rnnjax.interop.options import check_options
from rnnjax.layers import Regularized

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of arrays by their names."""


def as_jax(array: Any) -> jax.Array:
    """A copy as an array of JAX.

    Put there by its bytes: `jnp.array` compiles a program for each shape, 15 ms of reading a file.
    """
    return jax.device_put(np.array(array))


def float_array(name: str, value: Any) -> np.ndarray:
    """An array, or a tensor of PyTorch, as an array that nobody else writes to.

    >>> float_array("weight", jnp.ones(2))
    array([1., 1.], dtype=float32)
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # NumPy has none; float32 holds it exactly
                value = np.asarray(value.float().numpy(), jnp.bfloat16)
            else:
                value = value.numpy()
        if not hasattr(value, "shape"):  # lists in a file might hold each other a million times
            raise TypeError("no array")
        array = np.array(value, np.asarray(value).dtype.newbyteorder("="))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InteropError(
            f"{name[:80]!r} should be a plain tensor or array, but is {type(value).__name__}, and "
            "does not become one; convert it, or leave it out"
        ) from error
    if not is_floating(array.dtype):
        raise InteropError(
            f"{name[:80]!r} should be in float16, bfloat16, float32 or float64, but is "
            f"{array.dtype}; give its parameters as such numbers, and alone"
        )
    if array.dtype == np.float64 != jnp.result_type(float):
        raise InteropError(
            f"{name[:80]!r} is in float64, which JAX keeps only with jax.config.update("
            "'jax_enable_x64', True); set it, or convert the model to float32"
        )
    return array


def input_size(params: Any) -> int:
    """Return how many features a layer takes: the rows of its (first cell's) kernel."""
    while not (isinstance(params, Mapping) and "kernel" in params):
        params = params["cell"] if isinstance(params, Mapping) else params[0]
    return int(np.shape(params["kernel"])[0])


def check_shapes(where: str, expected: Shapes, came: Shapes, advice: str) -> None:
    """Raise InteropError, with what differs, unless the arrays have these shapes."""
    if expected != came:
        should, has = (
            {name[:80]: shape for name, shape in sorted(one.items() - other.items())[:6]}
            for one, other in ((expected, came), (came, expected))
        )
        raise InteropError(
            f"{where} should have {should or 'no more'}, but has {has or 'not'}; {advice}"
        )


def check_one_type(where: str, arrays: Iterable[np.ndarray]) -> None:
    """Raise InteropError unless all arrays are of one type."""
    types = sorted({str(array.dtype) for array in arrays})
    if len(types) > 1:
        came = " and ".join(types)
        raise InteropError(f"arrays of {where} should be of one type, but are {came}; convert them")


def cell_arrays(cell: Cell, params: Any) -> dict[str, np.ndarray]:
    """The parameters of a cell as arrays of NumPy."""
    inputs: tuple[int, ...] = (0,)
    if isinstance(params, Mapping) and np.ndim(params.get("kernel", 0)):
        inputs = np.shape(params["kernel"])[:1]
    elif isinstance(params, Mapping):
        params = {name: array for name, array in params.items() if name != "kernel"}
    check_features(cell, params, jnp.zeros(inputs))
    return {name: np.asarray(array) for name, array in params.items()}


def in_prediction(cell: Cell, where: str, framework: str) -> Cell:
    """The cell without what is off in prediction; zoneout takes its expectation there."""
    if type(cell) is not Regularized:  # a class derived from it may compute something else
        return cell
    check_options(cell, (), where, framework)
    return cell.cell


def with_one_bias(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a cell that adds its biases up, for a format that has their sum alone."""
    one = {name: np.asarray(array) for name, array in arrays.items()}
    second = one.pop("recurrent_bias", None)
    if second is not None and second.any():  # in half precision the sum would be rounded
        one = {n: array.astype(jnp.promote_types(array.dtype, "f4")) for n, array in one.items()}
        with np.errstate(all="ignore"):  # what is not finite stays what it was
            one["bias"] = one["bias"] + second
    return one


def layer_arrays(layer: Dense | Embedding, params: Any) -> dict[str, np.ndarray]:
    """The parameters of a layer as arrays of NumPy."""
    came = {k: np.shape(v) for k, v in params.items()} if isinstance(params, Mapping) else {}
    expected = layer.weights[""]
    if not fits(expected, came):
        spelled = str(dict(expected)).replace("None", "any")
        raise InvalidInputError(
            f"params of {layer.name!r} should have the shapes {spelled}, but have {came}; train "
            "from model.params"
        )
    return {name: np.asarray(array) for name, array in params.items()}
