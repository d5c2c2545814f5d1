"""What an operator is told besides its inputs, and what all of them ask of these."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError


@dataclasses.dataclass
class Budget:
    """What one run of a graph may still make, whatever its file asks for."""

    elements: int  # in all arrays together
    nodes: float  # of bodies, each time that it is traced or written out


@dataclasses.dataclass(frozen=True)
class At:
    """What an operator is told besides its inputs."""

    name: str  # of the node, for errors
    opset: int  # the version of ONNX's operators in the model
    attributes: Mapping[str, Any]  # of the node
    num_outputs: int  # how many outputs it has
    budget: Budget  # of the run
    key: jax.Array | None = None  # for what is random; None for prediction

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def fail(self, message: str) -> InteropError:
        """An error that names the node."""
        return InteropError(f"node {self.name}: {message}")

    def bound(self, shape: Any) -> tuple[int, ...]:
        """The shape, if an array of it may be made."""
        sizes = tuple(shape)
        if not all(map(is_fixed, sizes)):  # of a program for any batch, whoever runs it
            return sizes
        sizes = tuple(map(int, sizes))
        # A size of 0 makes nothing, but what is made next to it, of the other sizes, is made.
        if any(size < 0 for size in sizes) or (
            math.prod(max(1, n) for n in sizes) > self.budget.elements
        ):
            raise InteropError(
                f"node {self.name}: it asks for an array of shape {list(sizes)[:8]}, but at most "
                f"{self.budget.elements:,} elements may still be made; check the sizes in the file"
            )
        return sizes

    def integers(self, array: Any, what: str) -> list[int]:
        """Axes, shapes, and so on: they have to be known."""
        if not is_known(array):
            raise self.fail(
                f"its {what} follow from the values of an input, so that shapes are not known when "
                "the graph is compiled; make them constant before exporting"
            )
        if array.dtype.kind not in "iu" or array.ndim > 1:
            raise self.fail(
                f"its {what} are {array.dtype}{list(array.shape)}, but should be integers"
            )
        return [int(number) for number in array.reshape(-1)]

    def listed(self, name: str, given: Any) -> list[int] | None:
        """Integers from an attribute in old models and from an input in new ones."""
        if name in self.attributes:
            return [int(number) for number in self.attributes[name]]
        return None if given is None else self.integers(given, name)

    def axis(self, axis: int, rank: int) -> int:
        """The axis, counted from the first."""
        if not -rank <= axis < rank:
            raise self.fail(f"axis {axis} is not one of the {rank} axes of its input")
        return axis % rank

    def computed(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """What JAX makes of arrays, if arrays of that size may be made; see `by_jax`."""
        shapes = (
            None
            if x is None
            else jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
            for x in arrays
        )
        made = jax.eval_shape(function, *shapes)
        self.bound([sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))])
        return by_jax(function, *arrays)


def is_fixed(size: Any) -> bool:
    """Whether a size is a number, and not that of a program for any batch."""
    return isinstance(size, int | np.integer)


def is_known(array: Any) -> bool:
    """Whether the values are known before the graph runs."""
    return array is None or isinstance(array, np.ndarray | np.generic)


def module_of(*arrays: Any) -> Any:
    """NumPy where all are known, so that what follows from them stays known; else JAX's."""
    return np if all(map(is_known, arrays)) else jnp


def by_jax(function: Callable[..., Any], *arrays: Any) -> Any:
    """Compute by JAX; known arrays give a known result all the same."""
    if not all(map(is_known, arrays)):
        return function(*(None if x is None else jnp.asarray(x) for x in arrays))
    # Under jit as well, and with all bits: what is known may be the end of a slice, 2^63 - 1.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        made = function(*(None if x is None else jnp.asarray(x) for x in arrays))
        return jax.tree.map(np.asarray, made)


def traced_dtype(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """JAX's type for one of ONNX: integers of 64 bits are of 32 where JAX has no others."""
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if dtype == np.float64 and canonical != dtype:
        raise InteropError(
            f"the model computes in float64 ({what}), which JAX has only where it is told so: "
            'jax.config.update("jax_enable_x64", True), or convert the model to float32'
        )
    return canonical
