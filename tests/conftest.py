"""How JAX runs in the tests, and helpers that several of their modules need, as fixtures."""

import gc
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Most of the tests' time is compilation, and how fast the compiled programs are is not what they
# test. Without what makes them faster, with one LLVM module for a program, and with XLA's older way
# to emit its loops (JAX 0.11 and later have it no more), it takes 0.14 of the CPU time: 1.4 s for
# twelve of the laws' programs, which take 10.5 s as users compile them (jaxlib 0.10.2).
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# And what a worker, an earlier run or a program that a test starts has compiled is not compiled
# again, however short that took.
ROOT = Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Nor does a program say which lines of Python each of its operations came from: 0.95 of the time of
# the laws and the tests of `fit`, what they compile in the cache.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# The threads of NumPy's linear algebra wait for one another with all their might.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Hypothesis looks for plugins, finds Trio's, and looks through all objects for random numbers: 2 s.
os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")
# Four devices, for what is divided; whatever is not runs on the first.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

# All of this holds for the processes that tests start too, and JAX reads it when it is imported.
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# What JAX traces are many objects that live on: looking through them for what is garbage every 700
# new ones, as Python does, takes a fifth of the time of tracing and lowering.
gc.set_threshold(100_000, 20, 10)


def pytest_collection_finish() -> None:
    """Never look through what was imported: a tenth of the time of the laws, their cache warm."""
    gc.freeze()


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
    """Normal numbers in the shapes of ``tree``: no two entries alike, so no swap can hide.

    Or of the tree that a function returns, which is not run: each operation would be compiled.
    """
    if callable(tree):
        tree = jax.eval_shape(tree)
    rng = np.random.default_rng(seed)
    # Rounded by NumPy and put there, as JAX would compile a program for each shape to round it, and
    # in `jnp.asarray` another one that does nothing.
    return jax.tree.map(
        lambda leaf: jax.device_put(np.asarray(scale * rng.standard_normal(leaf.shape), dtype)),
        tree,
    )


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    return _assert_close


@pytest.fixture(scope="session")
def random_like() -> Callable[..., Any]:
    return _random_like


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """Of a program in a process of its own, which has one device if it is given no more."""

    def environment(devices: int = 1, **more: str) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            # As pyproject.toml has it for the tests themselves.
            "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry:UserWarning",
        }
        if devices > 1:
            # Programs of several CPU devices that JAX 0.10.2 reads from its cache hang, each in
            # another of their collectives; those that it has compiled run.
            own["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return os.environ | own | more

    return environment


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
