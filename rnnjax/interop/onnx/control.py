"""The context of an operator, and the operators that contain graphs."""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnjax.errors import InteropError

# By TensorProto.DataType.
_TYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_MOST_TRIPS = 2**20  # of loops in each other: the product of how often each of them runs


@contextlib.contextmanager
def naming(label: str) -> Iterator[None]:
    """Name the node in an error."""
    try:
        yield
    except InteropError as error:
        inner = str(error).startswith("node ")
        raise InteropError(str(error) if inner else f"node {label}: {error}") from error


@dataclasses.dataclass(frozen=True)
class At:
    """The context of an operator besides its inputs."""

    node: Any
    place: int  # of the node in its graph
    run: Any  # of that graph
    values: Any  # that there are in it, a mapping by their names
    nodes: Any  # of that graph

    @property
    def key(self) -> jax.Array | None:
        """For what is random; None for prediction."""
        key = self.run.context.key
        return None if key is None else jax.random.fold_in(key, self.place)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node, or the default."""
        return self.node.get(name, default)

    @property
    def budget(self) -> str:
        """By which bound it makes elements: what follows from known ones is known."""
        inputs = [self.values.get(name) for name in self.node.inputs if name]
        return "known" if all(map(is_known, inputs)) and not self.node.bodies else "elements"

    def bound(self, shape: Any) -> tuple[Any, ...]:
        """The shape, if an array of it may be made."""
        sizes, most = tuple(shape), self.run.left[self.budget]
        # Others are of a program for any batch, whoever runs it. A size of 0 makes nothing, but
        # what is made next to it, of the other sizes, is made.
        fixed = [int(size) for size in sizes if is_fixed(size)]
        if min(fixed, default=0) < 0 or math.prod(max(1, size) for size in fixed) > most:
            raise InteropError(
                f"it asks for an array of shape {fixed[:8]}, but at most {most:,} elements may "
                "still be made; check the sizes in the file"
            )
        return sizes

    def known(self, array: Any, what: str) -> Any:
        """The array, if its values are known before the graph runs."""
        if not is_known(array):
            raise InteropError(
                f"its {what} follow from the values of an input, so that shapes are not known; "
                "make them constant before exporting"
            )
        return array

    def integers(self, array: Any, what: str) -> list[int]:
        """Axes, shapes, and so on, which have to be known; none where they are left out."""
        if array is None:
            return []
        if self.known(array, what).dtype.kind not in "iu" or array.ndim > 1:
            came = f"{array.dtype}{list(array.shape)}"
            raise InteropError(f"its {what} are {came}, but should be integers")
        return [int(number) for number in array.reshape(-1)]

    def axis(self, axis: int, rank: int) -> int:
        """The axis, counted from the first."""
        if not -rank <= axis < rank:
            raise InteropError(f"axis {axis} is not one of the {rank} axes of its input")
        return axis % rank

    def by_jax(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Compute by JAX; known arrays give a known result all the same, if it may be made."""

        def run() -> Any:
            return function(*(None if x is None else jnp.asarray(fitting(x)) for x in arrays))

        if not all(map(is_known, arrays)):
            return run()
        # Under jit as well, and with all bits: what is known may be the end of a slice, 2^63 - 1.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            leaves = jax.tree.leaves(jax.eval_shape(run))
            self.bound([sum(math.prod(leaf.shape) for leaf in leaves)])
            return jax.tree.map(np.asarray, run())

    def inside(self, body: Any, inputs: Sequence[Any], times: int | None = None) -> list[Any]:
        """Run a graph in the node's attributes on its inputs.

        ``times`` is how often it may run, or not at all; None where it runs once, here.
        """
        context = dataclasses.replace(self.run.context, key=self.key)
        trips, carries = self.run.trips, self.run.carries
        if times is not None:
            # States after a node that runs often, or not at all, are not those of a layer.
            trips, carries = max(1, trips) * max(1, times), {}
            if trips > _MOST_TRIPS:
                raise InteropError(
                    f"loops in each other run {trips:,} trips, but at most {_MOST_TRIPS:,} are "
                    "run; check the file, or give shorter sequences"
                )
        run = dataclasses.replace(self.run, context=context, trips=trips, carries=carries)
        own = dict(zip(body.inputs, inputs, strict=True))
        values: Any = collections.ChainMap(own, self.values)
        run.nodes(body.nodes, values)
        return [made(values, name) for name in body.outputs]


def made(values: Mapping[str, Any], name: str) -> Any:
    """A value of a graph that is an output."""
    if name not in values:
        raise InteropError(
            f"the graph gives {name!r}, which no node makes; export the model for inference"
        )
    return values[name]


def is_fixed(size: Any) -> bool:
    """Whether a size is a number, and not that of a program for any batch."""
    return isinstance(size, int | np.integer)


def is_known(array: Any) -> bool:
    """Whether the values are known before the graph runs."""
    return array is None or isinstance(array, np.ndarray | np.generic)


def module_of(*arrays: Any) -> Any:
    """NumPy where all are known, so that what follows from them stays known; else JAX's."""
    if all(map(is_known, arrays)):
        return np
    for array in arrays:
        fitting(array)
    return jnp


def fitting(array: Any, what: str = "it") -> Any:
    """The array; raise InteropError if it is known, and JAX would make other integers of it."""
    if isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "iu":
        narrow = jax.dtypes.canonicalize_dtype(array.dtype)
        if np.any(array.astype(narrow) != array):
            raise InteropError(
                f"{what} has {array.dtype} numbers that do not fit into {narrow}; set "
                'jax.config.update("jax_enable_x64", True), or give smaller ones'
            )
    return array


def traced_dtype(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """JAX's type for one of ONNX: integers of 64 bits are of 32 where JAX has no others."""
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if dtype == np.float64 and canonical != dtype:
        raise InteropError(
            f"the model computes in float64 ({what}); convert it to float32, or set "
            'jax.config.update("jax_enable_x64", True)'
        )
    return canonical


def dtype_of(data_type: Any, what: str) -> np.dtype[Any]:
    """The type with that number in ONNX; ``what`` has it, for the error."""
    if data_type not in _TYPES:
        raise InteropError(
            f"{what} is of ONNX's data type {data_type}, which is not read here; cast it to one "
            f"of {', '.join(_TYPES.values())}"
        )
    return jnp.dtype(_TYPES[data_type])


def branch(at: At, condition: Any) -> Any:
    """Run one of two graphs, chosen now if the condition is known, and else at run time."""
    if condition.size != 1 or condition.dtype != bool:
        came = f"{condition.dtype}{list(condition.shape)}"
        raise InteropError(f"its condition is {came}, but should be one boolean")
    condition = condition.reshape(())
    then, other = at.get("then_branch"), at.get("else_branch")
    if is_known(condition):
        return tuple(at.inside(then if condition else other, ()))

    def run(body: Any) -> list[jax.Array]:
        return [jnp.asarray(fitting(x)) for x in at.inside(body, (), 1)]

    return tuple(lax.cond(condition, lambda: run(then), lambda: run(other)))


def loop(at: At, trips: Any, condition: Any, *states: Any) -> Any:
    """The graph once for each trip, as long as it says so: how often has to be known."""
    body = at.get("body")
    count = None if trips is None else trips.reshape(())
    more = np.bool_(True) if condition is None else condition.reshape(())
    steps = _steps(at, body, count, more, states)
    if steps is None:
        raise InteropError(
            "how many steps it runs follows from an input, or takes long to count; make the number "
            "of trips constant before exporting"
        )

    def step(carry: Any, i: Any) -> list[Any]:
        return at.inside(body, (i, np.bool_(True), *carry), steps)[1:]

    numbers = np.arange(min(steps, _MOST_TRIPS + 1), dtype=jnp.result_type(int))
    return _scanned(at, step, states, steps, numbers)


def _steps(at: At, body: Any, count: Any, more: Any, states: Sequence[Any]) -> int | None:
    """Return how many steps it runs; None if that is unknown."""
    if not is_known(count) or not is_known(more):
        return None
    nodes = [node for node in body.nodes if not node.bodies and not node.layer]
    around = {name: x for name, x in at.values.items() if is_known(x)}

    def known(step: Any, *states: Any) -> list[Any]:
        """What follows from what is known; None where something else does."""
        if at.run.left["nodes"] < 0:
            return [None] * len(body.outputs)
        own = zip(body.inputs, (step, np.bool_(True), *states), strict=True)
        values: Any = collections.ChainMap({n: x for n, x in own if x is not None}, around)
        # To look at a node takes some of the time of running it, and a step without any takes some.
        at.run.left["nodes"] -= 1 + at.run.nodes(nodes, values) + len(nodes) // 64
        return [values.get(name) for name in body.outputs]

    if more and known(None, *[None] * len(states))[0]:  # whatever the state
        if count is None:
            raise InteropError("nothing ends it: it has no number of trips; give it one")
        return max(0, int(count))
    values: list[Any] = [state if is_known(state) else None for state in states]
    steps = 0
    while more and (count is None or steps < count):
        more, *after = known(np.int64(steps), *values)
        if more is None:
            return None
        values = after[: len(values)]
        steps += 1
    return steps


def scan(at: At, *inputs: Any) -> Any:
    """The graph once for each slice of some inputs, with states from step to step."""
    scanned, opset = at.get("num_scan_inputs"), at.run.graph.opset
    if opset < 9 or not 0 < scanned <= len(inputs):
        raise InteropError(
            f"it scans {scanned} of {len(inputs)} inputs in opset {opset}, but should scan some of "
            "them, in opset 9 or later; convert the model"
        )
    xs = list(map(jnp.asarray, inputs[-scanned:]))
    steps = xs[0].shape[0]

    def step(carry: Any, one: Any) -> list[Any]:
        return at.inside(at.get("body"), (*carry, *one), steps)

    return _scanned(at, step, inputs[:-scanned], steps, xs)


def _scanned(at: At, step: Any, states: Sequence[Any], steps: Any, xs: Any) -> Any:
    states = tuple(jnp.asarray(fitting(x)) for x in states)

    def one(carry: Any, x: Any) -> Any:
        outputs = tuple(jnp.asarray(fitting(y)) for y in step(carry, x))
        for y in outputs[len(states) :]:  # before anything is made of the steps
            at.bound((steps, *y.shape))
        return outputs[: len(states)], outputs[len(states) :]

    last, ys = lax.scan(one, states, xs)
    return (*last, *ys)
