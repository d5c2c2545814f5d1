"""The C of a step, compiled here and called from Python; each cell and model: test_leaving.py."""

import concurrent.futures
import copy
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from c_helpers import compiler
from cell_table import CELLS
from interop_helpers import random_model

import rnnjax
from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Dense, Embedding, Model, Recurrent, c, onnx
from rnnjax.interop.model import Call, Functional, Input, Value

XS = np.random.default_rng(0).standard_normal((30, 4, 3)).astype(np.float32)
CELL = rnnjax.LSTMCell(6)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.device_get(jax.jit(lambda: CELL.init(jax.random.key(0), 3))())


@pytest.fixture(scope="module")
def whole(params: Any) -> Any:
    """The carry and the outputs of all rows."""
    return jax.device_get(rnnjax.unroll(CELL, params, XS))


@pytest.fixture(scope="module")
def step(params: Any) -> Any:
    """A stream that only copies run."""
    return c.stream(CELL, params)


def test_it_goes_on_from_call_to_call_and_to_unroll_and_back(
    step: Any, params: Any, whole: Any
) -> None:
    one, (_, expected) = step.copy(), whole
    got = np.stack([one(XS[0, 0]), *one(XS[1:8, 0]), *one(XS[8:9, 0]), *one(XS[:0, 0])])
    np.testing.assert_allclose(got, expected[:9, 0], atol=1e-6)
    carry, ys = rnnjax.unroll(CELL, params, XS[9:20, 0], one.carry)
    np.testing.assert_allclose(ys, expected[9:20, 0], atol=1e-6)
    one.carry = carry
    np.testing.assert_allclose(one(XS[20:, 0]), expected[20:, 0], atol=1e-6)
    one.reset()
    np.testing.assert_allclose(one(XS[0, 0].astype(np.float64)), expected[0, 0], atol=1e-6)


def test_outputs_are_new_and_inputs_may_have_any_order_of_axes(params: Any, whole: Any) -> None:
    rows, expected = c.stream(CELL, params, rows=4), whole[1]
    first = rows(XS[0])
    kept = first.copy()
    turned = np.asfortranarray(XS[1:])
    np.testing.assert_allclose(rows(turned), expected[1:], atol=1e-6)
    np.testing.assert_array_equal(first, kept)
    assert [leaf.shape for leaf in rows.carry] == [(4, 6)] * 2


def test_copies_go_on_by_themselves_also_in_threads(step: Any) -> None:
    begin = step.copy()
    begin(XS[:10, 0])
    alone = begin.copy()(XS[10:, 0])
    copies = [begin.copy(), copy.copy(begin), copy.deepcopy(begin), begin]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in range(20):
            made = [*pool.map(lambda one: one.copy()(XS[10:, 0]), copies)]
            assert all(np.array_equal(one, alone) for one in made)
    with pytest.raises(TypeError, match="save its `carry`"):
        pickle.dumps(step)


def test_raw_features_are_the_last_ones_as_in_unroll(random_like: Any) -> None:
    cell = next(cell for cell in CELLS.values() if cell.raw)
    params = random_like(lambda: cell.init(jax.random.key(0), 3), 0)
    xs = np.abs(XS[:, 0])
    wanted = rnnjax.unroll(cell, params, xs)[1]
    stream = c.stream(cell, params, input_size=3)
    np.testing.assert_allclose([stream(x) for x in xs], wanted, atol=1e-5)
    with pytest.raises(InvalidInputError, match=r"should have 3 features \(x, \w+: \[2, 1\]\)"):
        stream(xs[0, :2])


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_ids_and_a_model_by_rows(weights: str) -> None:
    layers = Embedding("a", 9, 3), Recurrent("b", CELL), Dense("c", 1)
    model, ids = random_model(*layers, inputs=3), np.random.default_rng(0).integers(0, 9, (20, 2))
    carry, wanted = jax.device_get(model(ids))
    stream = c.stream(model, rows=2, weights=weights, data=None if weights == "float32" else ids)
    assert stream(ids[0]).shape == (2, 1)
    most = 1e-5 if weights == "float32" else 0.05
    ys = stream(ids[1:])
    np.testing.assert_allclose(ys, wanted[1:], atol=most)
    assert weights == "float32" or np.abs(ys - wanted[1:]).max() > 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=most), stream.carry, carry)
    alone = c.stream(model) if weights == "float32" else stream.copy()
    assert alone(ids[0, 0] if weights == "float32" else ids[0]).shape[-1] == 1
    with pytest.raises(InvalidInputError, match="should be numbers for int32, but is float64"):
        stream(ids + 0.5)


def test_a_graph_of_onnx_streams(params: Any, whole: Any) -> None:
    stream = c.stream(onnx.load(onnx.to_proto(Model.of(CELL, params))))
    got = np.stack([stream(XS[0, 0]), *stream(XS[1:, 0])])
    np.testing.assert_allclose(got, whole[1][:, 0], atol=1e-6)


def test_a_model_over_a_grid_streams_where_its_input_has_the_sizes(random_like: Any) -> None:
    """A row of layers does not say them, which is the reason that it gets."""
    cell, ends = CELLS["convlstm-1d"], (Value("a"),)
    params = random_like(lambda: cell.init(jax.random.key(0), 2), 0)
    calls = (Call("a", "a", (Value("x"),)),)
    network = Functional((Input("x", (None, 4, 2)),), (Recurrent("a", cell),), calls, ends)
    model, xs = Model(network, {"a": params}), np.random.default_rng(0).normal(size=(9, 2, 4, 2))
    stream = c.stream(model, rows=2)
    carry, ys = jax.device_get(jax.jit(model.__call__)(xs.astype(np.float32)))
    np.testing.assert_allclose(stream(xs), ys, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stream.carry, carry)
    with pytest.raises(InteropError, match=r"does not say over which grid .* give the cell with"):
        c.stream(Model.of(cell, params))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda s: s(XS[:, :, 0]), r"x should have shape \(3,\) for one step, or \(time, 3\) for"),
        (lambda s: s(XS), "make the stream with rows= for rows side by side"),
        (lambda s: s({"y": XS[0, 0]}), "should be a dict of x, but y came; give each by its name"),
        (lambda s: s(["a", "b", "c"]), "x should be numbers for float32, but is <U1; convert it"),
        (lambda s: setattr(s, "carry", XS), "the carry should have the shapes LSTMCarry"),
        (lambda s: c.stream(CELL), "model must be a rnnjax.interop.Model, such as"),
        (lambda s: c.stream(), "takes .cell, params. or .model., but 0 arguments came"),
        (lambda s: c.stream(CELL, {}, rows=0), "rows must be a positive integer, but is 0"),
        (lambda s: c.stream(CELL, {}, weights="int4"), "weights should be 'float32', or 'int8'"),
    ],
)
def test_a_wrong_use_gets_one_sentence(step: Any, use: Any, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        use(step.copy())


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, r"needs a compiler of C, but .*none -pipe is not installed; install one"),
        (
            "echo 'x.c: error: no such machine' >&2; exit 1",
            "should compile .* says 'x.c: error: no",
        ),
        ("echo text > net.so", "should load what .* made, but cannot"),
    ],
)
def test_a_compiler_that_is_none_gets_one_sentence(
    script: str | None, sentence: str, params: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Also one of several words."""
    path = tmp_path / ("none" if script is None else "cc")
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("CC", f"{path} -pipe")
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path))
    with pytest.raises(InteropError, match=sentence):
        c.stream(CELL, params)


@pytest.mark.parametrize("name", ["clang-14", "g++"])
def test_another_compiler(name: str, params: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CC", f"{compiler(name)} -Wall")
    xs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = rnnjax.unroll(CELL, params, xs)[1]
    np.testing.assert_allclose(c.stream(CELL, params)(xs), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_c_stream.py", "test_leaving.py"])
def test_no_stream_leaves_its_memory(file: str) -> None:
    """Arrays of NumPy have guarded ends too, where the sanitizer is loaded before Python."""
    flags = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
    paths = [Path(subprocess.run([compiler("gcc"), f"-print-file-name=lib{name}.so"], check=True,
                                 capture_output=True, text=True).stdout.strip())
             for name in ("asan", "stdc++")]  # fmt: skip
    if not all(path.is_absolute() for path in paths):
        pytest.skip("the sanitizers of gcc are not installed")
    env = os.environ | {
        "LD_PRELOAD": " ".join(map(str, paths)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "CC": f"gcc {flags}",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    command.append(str(Path(__file__).with_name(file)))
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
