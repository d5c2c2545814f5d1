"""Whether two models compute the same: both run on the same random inputs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells.base import Carry
from rnnjax.errors import InteropError
from rnnjax.interop.layers import Embedding, OneHotIds
from rnnjax.interop.model import Functional, Model, Sequential, with_axes
from rnnjax.interop.onnx.graph import BATCH, CONSTANTS, STEPS, Graph, assumed_shape
from rnnjax.interop.onnx.recurrent import input_size

TOLERANCE = 1e-5
"""How far the outputs of two models that are the same may be apart, of the largest of them."""

_FEATURES = 3


class SelfCheckError(InteropError):
    """What was written does not compute what the source does."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far the outputs of two models are apart."""

    difference: float  # the largest; infinite where one is NaN and the other is not
    scale: float  # the largest of the outputs
    shapes: str  # of the outputs of a call, in words

    @property
    def fits(self) -> bool:
        """Whether they are the same to the tolerance."""
        return self.difference <= TOLERANCE * max(self.scale, 1e-3)

    def insist(self, what: str) -> None:
        """Raise SelfCheckError, where ``what`` differs, unless they are the same."""
        if not self.fits:
            raise SelfCheckError(
                f"{what} by {self.difference:.1e} where outputs are up to {self.scale:.1e}; this "
                "is an error of rnnjax, please report it"
            )


def compare(model: Model, other: Model, seed: int = 0) -> Comparison:
    """Run both on the same random inputs, in two calls between which each keeps its own state.

    Ids are drawn where the first layer of ``model`` takes them, else normal numbers.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> compare(model, model)  # doctest: +ELLIPSIS
    Comparison(difference=0.0, scale=..., shapes='(6, 2, 5)')
    """
    model, other = (  # one may be read batch first, and the other not
        with_axes(one, True) if isinstance(one.network, Sequential | Functional) else one
        for one in (model, other)
    )
    rng = np.random.default_rng(seed)
    pieces = [random_inputs(model, rng) for _ in range(2)]
    ours, theirs = _run(model, pieces), _run(other, pieces)
    shapes, others = ([array.shape for array in arrays] for arrays in (ours, theirs))
    if shapes != others:
        raise SelfCheckError(
            f"the other model gives outputs {others}, but the source gives {shapes}; this is an "
            "error of rnnjax, please report it"
        )
    difference = scale = 0.0
    for a, b in zip(ours, theirs, strict=True):
        with np.errstate(invalid="ignore"):  # infinity from itself
            apart = np.abs(a - b)
        apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        apart[np.isnan(apart)] = np.inf
        difference = max(difference, float(apart.max(initial=0)))
        finite = a[np.isfinite(a)]
        scale = max(scale, float(np.abs(finite).max(initial=0)))
    return Comparison(difference, scale, ", ".join(map(str, shapes[: len(shapes) // 2])))


def random_inputs(
    model: Model, rng: np.random.Generator, steps: int = STEPS, batch: int = BATCH
) -> Any:
    """Inputs of a few steps that the model takes; a graph says itself how many, or has a few."""
    ids = min(_vocabularies(model), default=2)
    if isinstance(model.network, Functional):
        drawn = []
        for one in model.network.inputs:
            sizes = [n or (_FEATURES, steps)[i == 0] for i, n in enumerate(one.shape)]
            x = _random(rng, [batch, *sizes], one.dtype, ids)
            turned = one.sequence and model.network.time_first
            drawn.append(np.swapaxes(x, 0, 1) if turned else x)
        return drawn[0] if len(drawn) == 1 else tuple(drawn)
    if isinstance(model.network, Graph):
        arrays = {}
        for entry in model.network.inputs:
            if entry.role == "data":
                shape = assumed_shape(entry, model.network, model.params, (steps, batch))
                arrays[entry.name] = _random(rng, shape, entry.dtype, ids)
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))
    sizes = [steps, batch] if model.network.time_first else [batch, steps]
    for layer in model.layers.values():
        if isinstance(layer, Embedding | OneHotIds):
            size = layer.size if isinstance(layer, OneHotIds) else layer.vocabulary_size
            return rng.integers(0, size, sizes)
        if model.params.get(layer.name):
            return _random(rng, [*sizes, input_size(model.params[layer.name])])
    return _random(rng, [*sizes, _FEATURES])


def _vocabularies(model: Model) -> Iterator[int]:
    """How many ids the look-ups of a model have."""
    for layer in model.layers.values():
        if isinstance(layer, Embedding):
            yield layer.vocabulary_size
    if isinstance(model.network, Graph):
        arrays = model.params.get(CONSTANTS, {})
        for node in model.network.nodes:
            if node.op_type == "Gather" and node.inputs[0] in arrays:
                yield np.shape(arrays[node.inputs[0]])[node.get("axis", 0)]


def _random(
    rng: np.random.Generator, shape: Sequence[int], dtype: str = "float32", ids: int = 2
) -> np.ndarray:
    if jnp.issubdtype(jnp.dtype(dtype), jnp.integer):
        return rng.integers(0, ids, shape).astype(dtype)
    return rng.standard_normal(shape).astype(jnp.dtype(dtype))


def _run(model: Model, pieces: Sequence[Any]) -> list[np.ndarray]:
    carry: Mapping[str, Carry] | None = None
    outputs: list[np.ndarray] = []
    for xs in pieces:  # not compiled as a whole: models of equal cells share what `unroll` compiles
        carry, ys = model(xs, carry)
        outputs.extend(np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(ys))
    return outputs
