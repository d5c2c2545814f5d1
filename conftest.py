"""How JAX runs in the tests and in the examples of docstrings.

It holds for the processes that they start too. JAX reads it when it is imported, which what pytest
reads behind this file does.
"""

import gc
import os
from importlib.metadata import version
from pathlib import Path

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
CACHE = Path(__file__).parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Nor does a program say which lines of Python each of its operations came from: 0.95 of the time of
# the laws and the tests of `fit`, what they compile in the cache.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# The threads of NumPy's linear algebra wait for one another with all their might: the forecasts'
# baselines take 5.5 s of CPU for 10.6 with them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Hypothesis looks for plugins, finds Trio's, and looks through all objects for random numbers: 2 s.
os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")
# Four devices, for what is divided; whatever is not runs on the first.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

# What JAX traces are many objects that live on: looking through them for what is garbage every 700
# new ones, as Python does, takes a fifth of the time of tracing and lowering.
gc.set_threshold(100_000, 20, 10)


def pytest_collection_finish() -> None:
    """Never look through what was imported: a tenth of the time of the laws, their cache warm."""
    gc.freeze()
