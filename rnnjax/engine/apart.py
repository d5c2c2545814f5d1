"""Numbers that are needed while something else is being traced."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp


def computed_apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, as NumPy arrays, whatever is being traced around.

    One program: run one by one, as under `jax.ensure_compile_time_eval` alone, the operations that
    tell a minGRU affine took 1.9 s, and those that find what touches what in an LSTM with peepholes
    7 s, each compiled by itself (JAX 0.10.2). In a thread of its own, to which JAX gives no trace,
    no axis and no mesh of another's: that of a machine for which one compiles cannot run it.
    """
    wide = jnp.result_type(float) == jnp.float64

    def run() -> Any:
        with jax.enable_x64(wide), jax.debug_nans(False):
            return jax.device_get(jax.jit(function)(*args))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()
