"""Whether two models compute the same: both run on the same random inputs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rnnjax.cells.base import Carry
from rnnjax.errors import InteropError
from rnnjax.interop.layers import Embedding, OneHotIds
from rnnjax.interop.model import Model
from rnnjax.interop.onnx.graph import Graph
from rnnjax.interop.onnx.layers import input_size

TOLERANCE = 1e-5
"""How far the outputs of two models that are the same may be apart, of the largest of them."""

_STEPS, _BATCH, _FEATURES = 6, 2, 3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far the outputs of two models are apart.

    Attributes:
        difference: the largest; infinite where one is NaN and the other is not.
        scale: the largest of the outputs.
        shapes: of the outputs of a call, in words.
    """

    difference: float
    scale: float
    shapes: str

    @property
    def fits(self) -> bool:
        """Whether they are the same to `TOLERANCE`."""
        return self.difference <= TOLERANCE * max(self.scale, 1e-3)


def compare(model: Model, other: Model, seed: int = 0) -> Comparison:
    """Run both on the same random inputs, in two calls between which each keeps its own state.

    Args:
        model: whose inputs are drawn: ids where its first layer takes them, else normal numbers.
        other: another that takes the same.
        seed: of the inputs.

    >>> import rnnjax
    >>> cell = rnnjax.GRUCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> compare(model, model)  # doctest: +ELLIPSIS
    Comparison(difference=0.0, scale=..., shapes='(6, 2, 5)')
    """
    rng = np.random.default_rng(seed)
    pieces = [random_inputs(model, rng) for _ in range(2)]
    outputs = [_run(one, pieces) for one in (model, other)]
    difference = scale = 0.0
    shapes = [[array.shape for array in arrays] for arrays in outputs]
    if shapes[0] != shapes[1]:
        raise InteropError(
            f"the written model gives outputs {shapes[1]}, but the source gives {shapes[0]}; this "
            "is an error of rnnjax, please report it"
        )
    for ours, theirs in zip(*outputs, strict=True):
        with np.errstate(invalid="ignore"):  # infinity from itself
            apart = np.abs(ours - theirs)
        apart[(ours == theirs) | (np.isnan(ours) & np.isnan(theirs))] = 0
        apart[np.isnan(apart)] = np.inf
        difference = max(difference, float(apart.max(initial=0)))
        finite = ours[np.isfinite(ours)]
        scale = max(scale, float(np.abs(finite).max(initial=0)))
    return Comparison(difference, scale, ", ".join(map(str, shapes[0][: len(shapes[0]) // 2])))


def random_inputs(model: Model, rng: np.random.Generator) -> Any:
    """Inputs of a few steps that the model takes."""
    if isinstance(model.network, Graph):
        arrays = {
            entry.name: _random(rng, _sizes(entry.shape), entry.dtype)
            for entry in model.network.inputs
            if entry.role == "data"
        }
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))
    for layer in model.layers.values():
        if isinstance(layer, Embedding | OneHotIds):
            size = layer.size if isinstance(layer, OneHotIds) else layer.vocabulary_size
            return rng.integers(0, size, (_STEPS, _BATCH))
        if model.params.get(layer.name):
            return _random(rng, [_STEPS, _BATCH, input_size(model.params[layer.name])], "float32")
    return _random(rng, [_STEPS, _BATCH, _FEATURES], "float32")


def _sizes(shape: Sequence[int | None] | None) -> list[int]:
    """Of an input of a graph: which of its free axes is time is not known, most often the first."""
    free = iter((_STEPS, *[_BATCH] * len(shape or ())))
    return [next(free) if size is None else size for size in shape or ()]


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    if np.issubdtype(np.dtype(dtype), np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _run(model: Model, pieces: Sequence[Any]) -> list[np.ndarray]:
    carry: Mapping[str, Carry] | None = None
    outputs: list[np.ndarray] = []
    for xs in pieces:  # not compiled as a whole: models of equal cells share what `unroll` compiles
        carry, ys = model(xs, carry)
        outputs.extend(np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(ys))
    return outputs
