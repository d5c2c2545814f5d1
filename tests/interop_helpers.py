"""What the tests of the readers share: drawn cases, comparisons, damaged files."""

import pathlib
import random
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, settings

from rnnjax.errors import InteropError
from rnnjax.interop import Model
from rnnjax.interop.torch import load, to_state_dict


def drawn(count: int) -> Callable[..., Any]:
    """A test of as many drawn cases, the same each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


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


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Trees of the same keys, types, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


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


def check_damaged(path: pathlib.Path, contents: Iterable[bytes]) -> dict[str, int]:
    """Each is a model or one sentence, within 5 s and 1 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"models": 0, "refusals": 0}
    for content in contents:
        path.write_bytes(content)
        start, refusal = time.perf_counter(), ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of keys that changed
                model = load(path)
        except InteropError as error:
            refusal = str(error)
            outcomes["refusals"] += 1
        else:
            outcomes["models"] += 1
            assert isinstance(model, Model)
            assert to_state_dict(model)
        assert refusal.isprintable()
        assert len(refusal) < 2000
        assert time.perf_counter() - start < 5
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30
    return outcomes
