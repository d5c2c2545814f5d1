"""Helpers that several test modules need, as fixtures: test modules do not import each other."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Most of the tests' time is compilation, and what LLVM makes faster is not what they test: 0.7 of
# the time without. JAX reads it with its first array.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"


def _assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Same tree, same shapes, and no leaf differs by more than ``tolerance`` times its scale."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape, jax.tree_util.keystr(path)
        scale = max(np.abs(e).max(initial=0.0), 1e-3)
        np.testing.assert_allclose(
            a, e, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def _random_like(tree: Any, seed: int, dtype: Any = jnp.float32, scale: float = 0.6) -> Any:
    """Normal numbers in the shapes of ``tree``: no two entries alike, so no swap can hide."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), dtype), tree
    )


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    return _assert_close


@pytest.fixture(scope="session")
def random_like() -> Callable[..., Any]:
    return _random_like


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
