"""Numbers that are needed while something else is being traced."""

from collections.abc import Callable
from typing import Any

import jax


def computed_apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, as NumPy arrays, whatever is being traced around.

    One program: run one by one, as under `jax.ensure_compile_time_eval` alone, the operations that
    tell a minGRU affine took 1.9 s, and those that find what touches what in an LSTM with peepholes
    7 s, each compiled by itself (JAX 0.10.2).
    """
    # Of one device, and of no axis that stands around.
    with jax.debug_nans(False), jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        program = jax.jit(function).lower(*args).compile()
        with jax.ensure_compile_time_eval():
            return jax.device_get(program(*args))
