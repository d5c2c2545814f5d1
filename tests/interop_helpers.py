"""What the tests of the readers share: drawn cases, comparisons, damaged files."""

import json
import pathlib
import random
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import h5py
import jax
import numpy as np
from hypothesis import HealthCheck, settings

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import Dense, Embedding, Layer, Model, OneHotIds, Recurrent, Sequential


def drawn(count: int) -> Callable[..., Any]:
    """A test of as many drawn cases, the same each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def at_once(run: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """What a function, or a model of ours or of Keras, makes of arrays, in one program.

    Called as it is, each of its operations is compiled as one.
    """
    return jax.jit(lambda *given: run(*given, **more))(*given)


def distance(actual: Any, expected: Any) -> float:
    """The largest difference of two trees of the same shapes, by the largest entry of all.

    Of all, because an array of one entry may be the small difference of large terms.
    """
    shapes, expected_shapes = (jax.tree.map(np.shape, tree) for tree in (actual, expected))
    assert shapes == expected_shapes
    scale = max(np.abs(leaf).max(initial=0.0) for leaf in jax.tree.leaves(expected))
    difference = jax.tree.map(
        lambda a, e: np.abs(np.asarray(a) - e).max(initial=0.0), actual, expected
    )
    return float(max(jax.tree.leaves(difference)) / max(scale, 1e-3))


def random_model(*layers: Layer, inputs: int = 0, seed: int = 0) -> Model:
    """Random parameters for a row of layers; no two numbers alike, so that no swap can hide."""
    rng, params, key = np.random.default_rng(seed), {}, jax.random.key(0)
    for layer in layers:
        shapes: Any
        if isinstance(layer, Recurrent):
            shapes = jax.eval_shape(lambda c=layer.cell, n=inputs: c.init(key, n))
            inputs = layer.cell.output_size
        elif isinstance(layer, Dense | Embedding):
            weights = layer.weights[""].items()
            shapes = {k: np.zeros([inputs if n is None else n for n in one]) for k, one in weights}
            inputs = layer.size
        else:
            inputs = layer.size if isinstance(layer, OneHotIds) else inputs
            continue
        params[layer.name] = jax.tree.map(
            lambda leaf: jax.device_put((0.6 * rng.standard_normal(leaf.shape)).astype(np.float32)),
            shapes,
        )
    return Model(Sequential(layers), params)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Trees of the same keys, types, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def arrays_of(model: Any) -> list[np.ndarray]:
    """The parameters of a model of ours, or of Keras."""
    if isinstance(model, Model):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]
    return [np.asarray(variable.value) for variable in model.weights]


def same_arrays(model: Any, expected: list[np.ndarray]) -> None:
    for a, e in zip(arrays_of(model), expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def change(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut out, put in, cut off, doubled."""
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.randrange(1, 9))
    return rng.choice(
        [
            data[:at] + rng.randbytes(to - at) + data[to:],
            data[:at] + data[to:],
            data[:at] + rng.randbytes(rng.randrange(9)) + data[at:],
            data[:at],
            data[:to] + data[at:],
        ]
    )


def check_damaged(
    path: pathlib.Path, contents: Iterable[bytes], load: Callable[[pathlib.Path], Model]
) -> list[str]:
    """Each is a model or one sentence, within 5 s of CPU and 1 GiB; return the sentences."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    for content in contents:
        path.write_bytes(content)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of keys that changed
                assert isinstance(load(path), Model)
        except (InteropError, InvalidInputError) as error:
            said.append(str(error))
            assert said[-1].isprintable()
            assert len(said[-1]) < 1500
        assert time.process_time() - start < 5
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30
    return said


Named = dict[str, list[tuple[str, np.ndarray]]]
"""The arrays of each layer, with the names that they have in a file of Keras 1 or 2."""


def write_old(
    path: pathlib.Path,
    layers: Named,
    config: Any = None,
    version: str | None = None,
    split: bool = False,
) -> pathlib.Path:
    """A file in the layout of Keras 1 and 2; ``split`` writes the list of names in pieces."""
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        top = file if config is None else file.create_group("model_weights")
        if version is not None:
            top.attrs["keras_version"] = version.encode()
            top.attrs["backend"] = b"tensorflow"
        names = [name.encode() for name in layers]
        if split:
            for i, name in enumerate(names):
                top.attrs[f"layer_names{i}"] = [name]
        else:
            top.attrs["layer_names"] = names
        for name, arrays in layers.items():
            group = top.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key, _ in arrays]
            for key, array in arrays:
                group[key] = array
    return path


def sequential(*entries: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A row of layers, each by its class and its options, as Keras 1 and 2 wrote it."""
    layers = [{"class_name": kind, "config": config} for kind, config in entries]
    return {"class_name": "Sequential", "config": layers}
