"""Numbers that are needed while something else is being traced."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.arguments import usual_promotion


def computed_apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, as NumPy arrays, whatever is being traced around.

    One program: run one by one, as under `jax.ensure_compile_time_eval` alone, the operations that
    tell a minGRU affine took 1.9 s, and those that find what touches what in an LSTM with peepholes
    7 s, each compiled by itself (JAX 0.10.2). In a thread of its own, to which JAX gives no trace,
    no axis and no mesh of another's: that of a machine for which one compiles cannot run it.
    """
    wide = jnp.result_type(float) == jnp.float64
    found: Future[Any] = Future()

    def run() -> None:
        try:
            with usual_promotion(), jax.enable_x64(wide), jax.debug_nans(False):
                found.set_result(jax.device_get(jax.jit(function)(*args)))
        except BaseException as error:  # whatever it is, it is raised where the numbers are needed
            found.set_exception(error)

    threading.Thread(target=run, name="rnnjax.computed_apart").start()
    return found.result()
