"""How JAX runs in the tests and in the examples of docstrings.

It holds for the processes that they start too. JAX reads it when it is imported, which what pytest
reads behind this file does.
"""

import collections
import gc
import os
import re
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
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
CACHE = Path(__file__).parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Nor does a program say which lines of Python each of its operations came from: 0.95 of the time of
# the laws and the tests of `fit`, what they compile in the cache.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# TensorFlow and the Triton that PyTorch brings for cards have an LLVM each, and the process aborts
# where TensorFlow's comes first.
if find_spec("tensorflow") and find_spec("triton"):
    import_module("triton")
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


def pytest_addoption(parser: Any) -> None:
    """Two runs with different Pythons share the tests: the second leaves out what passed."""
    group = parser.getgroup("rnnjax")
    group.addoption("--passed", metavar="FILE", help="write the names of the tests that pass")
    group.addoption("--but", metavar="FILE", help="leave out the tests that such a file names")


def pytest_configure(config: Any) -> None:
    """Write what passes; of several processes the one that hears of all does it."""
    if config.option.passed and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Passed(Path(config.option.passed)))


class _Passed:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(exist_ok=True)
        path.write_text("", encoding="utf-8")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid!r}\n")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what passed elsewhere, but the laws, which hold with every version."""
    if config.option.but:
        done = set(Path(config.option.but).read_text(encoding="utf-8").splitlines())
        left = [i for i in items if "test_laws.py" in i.nodeid or repr(i.nodeid) not in done]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
        items[:] = left


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line what the tests that were skipped lack."""
    lacked = collections.Counter[str]()
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2].removeprefix("Skipped: ").partition(",")[0]
        module = re.match(r"could not import '([^'.]+)|([\w-]+) is in the", reason)
        lacked[(module[1] or module[2]) if module else reason] += 1
    if lacked:
        line = ", ".join(f"{number} for {what}" for what, number in lacked.most_common())
        terminalreporter.write_line(f"skipped: {line} (`make parity` installs the peers)")


def pytest_collection_finish() -> None:
    """Never look through what was imported: a tenth of the time of the laws, their cache warm."""
    gc.freeze()
