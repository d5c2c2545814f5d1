"""Helpers that several modules of tests need, as fixtures."""

import functools
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import weighted

import rnnjax

ROOT = Path(__file__).parents[1]
COMPILATION = "/jax/core/compile/backend_compile_duration"  # or a program that the cache has
# A test that compiles more programs, run alone, computes what it expects operation by operation, of
# which each is one: take NumPy, or one `jax.jit` around all of it (as `begun` of cell_table.py and
# `at_once` of interop_helpers.py). Those of which it is the library or a program that does so:
MOST_PROGRAMS = 60
MORE_PROGRAMS = {
    # The writer of C computes what depends on parameters alone, and weights of 8 bits.
    "tests/interop/test_c.py::test_operations": 80,
    "tests/interop/test_c.py::test_weights_of_8_bits_are_as_near_as_the_header_says": 80,
    "tests/interop/test_c_models.py::test_models_are_what_their_framework_computes": 150,
    "tests/interop/test_options.py::test_options_leave_or_are_named": 120,
    # A program for each of ONNX's own cases.
    "tests/interop/test_onnx_nodes.py::test_node_cases": 150,
    # Each wrong array is put on a device; each door of a user is opened as users do.
    "tests/test_arguments.py::test_a_wrong_argument_is_named": 80,
    "tests/test_arguments.py::test_a_random_key_in_a_carry_goes_through_every_door": 100,
    # What it is about.
    "tests/test_fused_forms.py::test_without_jit": 150,
    # The code of a page runs as its reader runs it, in whichever test is first.
    **{
        f"tests/test_gallery.py::test_{name}": 150
        for name in (
            "a_cell_is_its_equation",
            "units_begin_apart_unless_there_is_a_reason",
            "legendre_memory_is_its_matrix",
            "griffin_is_a_gate_beside_a_convolution_and_a_recurrence",
        )
    },
    # Whole commands and questions: `fit` copies each array, a checkpoint sums it.
    "tests/test_benchmarks.py::test_the_contenders_of_a_question_run_and_agree": 120,
    "tests/experiments/forecast/test_forecast.py"
    "::test_a_file_is_forecast_and_its_network_goes_on_with_a_longer_one": 120,
    "tests/experiments/language_models/test_commands.py"
    "::test_finetuning_resumes_exactly_and_what_it_writes_is_read": 120,
    "tests/experiments/language_models/test_commands.py"
    "::test_a_first_state_alone_learns_a_style_and_the_model_stays": 120,
    "tests/experiments/language_models/test_commands.py"
    "::test_what_is_frozen_stays_and_types_are_those_of_the_folder": 120,
}
_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _compiled.append(event) if event == COMPILATION else None
)


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


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, by the list that `tests.durations` writes, and what tests programs."""
    long = set((ROOT / "tests" / "long.txt").read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid.partition("[")[0] in long:
            item.add_marker("long")
        of_a_program = item.nodeid.startswith(("tests/experiments/", "experiments/"))
        if of_a_program and not item.get_closest_marker("smoke"):
            item.add_marker("programs")


@pytest.fixture
def heeded() -> Iterator[None]:
    """No signal is ignored by inheritance: nohup ignores hang-ups, a shell's background Ctrl-C."""
    usual: dict[int, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


assert_close = pytest.fixture(lambda: _assert_close, scope="session")
random_like = pytest.fixture(lambda: _random_like, scope="session")


@pytest.fixture(scope="session")
def equal_to_scan() -> Callable[..., Any]:
    """Hold outputs, carries and all gradients of a cell by some methods against those of `Scan`.

    All in one program, with drawn arguments; a function in the place of a method is called as
    `rnnjax.unroll` is. Inputs that are ids have no gradient.
    """

    def check(
        cell: rnnjax.Cell, methods: Any, batch: Any = (3,), *, steps: int = 5, features: int = 2,
        dtype: str = "float32", scale: float = 0.6, tolerance: float = 1e-5, xs: Any = None,
        **given: Any,
    ) -> None:  # fmt: skip
        begin = jax.eval_shape(lambda: cell.initial_carry(batch))
        trees = (
            jax.eval_shape(lambda: cell.init(jax.random.key(0), features)),
            jax.ShapeDtypeStruct((steps, *batch, features), dtype),
            begin,
            begin,
            (begin, jax.ShapeDtypeStruct((steps, *batch, cell.output_size), dtype)),
        )
        params, drawn, carry, start, weights = (
            _random_like(tree, i, dtype, scale) for i, tree in enumerate(trees, 1)
        )

        def run(method: Any, params: Any, drawn: Any, carry: Any, start: Any) -> Any:
            more = {**given, "reset_carry": start} if "resets" in given else given
            if isinstance(method, rnnjax.Method):
                more, method = {**more, "method": method}, rnnjax.unroll
            return method(cell, params, drawn if xs is None else xs, carry, **more)

        @jax.jit
        def by_all(*arguments: Any) -> Any:
            ways = (weighted(functools.partial(run, m)) for m in (*methods, rnnjax.Scan()))
            return [way(*arguments) for way in ways]

        *found, expected = by_all((params, drawn, carry, start), weights)
        for each in found:
            types = [jax.tree.map(lambda leaf: leaf.dtype, out) for out in (each, expected)]
            assert types[0] == types[1]
            _assert_close(each, expected, tolerance)

    return check


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """Return the environment of a program in its own process, with one device by default."""

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


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def free_port() -> int:
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            return int(listener.getsockname()[1])

    return free_port


@pytest.fixture(scope="module")
def begin(environment: Callable[..., dict[str, str]]) -> Iterator[Callable[..., Any]]:
    """Start a process; what still runs, with all that it has started, ends with the tests."""
    running = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def begin(
        command: Any, devices: int = 1, cwd: Any = None, files: Any = pipes, **own: Any
    ) -> Any:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(devices, **own), text=True, start_new_session=True,
            **files,
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(autouse=True)
def few_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that compiles too many programs, without those of what several share."""
    before = len(_compiled)
    yield
    made, name = len(_compiled) - before, request.node.nodeid.partition("[")[0]
    request.node.user_properties.append(("programs", made))
    most = MORE_PROGRAMS.get(name, MOST_PROGRAMS)
    # The code of a page runs as its reader runs it, operation by operation.
    free = [mark for mark in ("slow", "docs") if request.node.get_closest_marker(mark)]
    if made > most and not free:
        pytest.fail(f"it compiled {made} programs, and should at most {most}: see MOST_PROGRAMS in "
                    "tests/conftest.py", pytrace=False)  # fmt: skip


@pytest.fixture
def compilations() -> list[str]:
    """Grows by an entry whenever XLA compiles."""
    return _compiled


@pytest.fixture(scope="module")
def compiled_fast() -> Iterator[None]:
    """A page's programs run once: compiled without optimisations it takes 0.7 of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
