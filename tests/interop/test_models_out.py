"""Whole models of Keras go out: to ONNX, as onnxruntime runs them, and to files of Keras 3."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cell_table import CELLS
from interop_helpers import distance
from made_models import MODELS, made
from onnx_helpers import session

from rnnjax import InteropError
from rnnjax.interop import Dense, Functional, Model, keras, onnx
from rnnjax.interop.model import Call, Input, Value

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*therefore destroy the mask information"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
MOST = 1e-5
FEW = ("lrcn", "transformer", "translator_masked")


def both(*few: str) -> list[Any]:
    """The table of models by both packages; in an ordinary run a few by one."""
    rows = []
    for name in ("keras", "tf_keras"):
        for build in MODELS:
            marks = [] if name == "keras" and build.__name__ in few else pytest.mark.slow
            rows.append(pytest.param(name, build, id=f"{name}-{build.__name__}", marks=marks))
    return rows


def read(name: str, build: Any, folder: Path) -> tuple[Model, list[np.ndarray], list[np.ndarray]]:
    """A model out of a file, its inputs, batch first, and what its package makes of them."""
    of = pytest.importorskip(name, reason=f"{name} is in the extra `parity`")
    model, arrays = made(build, of)
    path = folder / ("theirs.h5" if name == "tf_keras" else "theirs.keras")
    model.save(path)
    ys = model(arrays if arrays[1:] else arrays[0], training=False)
    expected = [np.asarray(y) for y in (ys if isinstance(ys, list | tuple) else [ys])]
    return keras.load(path, time_first=False), arrays, expected


def run(proto: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of arrays, in the order of the inputs."""
    runner = session(proto)
    pairs = zip(runner.get_inputs(), arrays, strict=True)
    wide = {one.name: a.astype(np.int64) if "int64" in one.type else a for one, a in pairs}
    return list(runner.run(None, wide))


@pytest.mark.parametrize(("name", "build"), both(*FEW))
def test_to_onnx(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """Read back, the graph computes what the model does."""
    model, arrays, expected = read(name, build, tmp_path)
    proto = onnx.to_proto(model, states=False)
    assert distance(run(proto, arrays), expected) < MOST
    named = dict(zip([one.name for one in proto.graph.input], arrays, strict=True))
    ys = onnx.load(proto)(named)[1]
    ys = [ys[one.name] for one in proto.graph.output] if isinstance(ys, dict) else [ys]
    assert distance(ys, expected) < MOST


@pytest.mark.parametrize(("name", "build"), both("translator_masked"))
def test_to_keras(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """Out of a file of either package, as Keras 3 opens it."""
    model, arrays, expected = read(name, build, tmp_path)
    keras.save(model, tmp_path / "ours.keras")
    opened = pytest.importorskip("keras").saving.load_model(tmp_path / "ours.keras")
    ys = opened(arrays if arrays[1:] else arrays[0])
    assert distance([*map(np.asarray, ys if expected[1:] else [ys])], expected) < MOST


def test_names_of_layers_in_a_file(tmp_path: Path) -> None:
    """Keras 3 takes no slash in them; no format takes one for two."""
    dense, params = Dense("a/b", 2), {"kernel": np.ones((3, 2), "f"), "bias": np.ones(2, "f")}
    call = Call("a/b", "a/b", (Value("x"),))
    for inputs in (("x",), ("x", "x")):
        given = tuple(Input(name, (None, 3)) for name in inputs)
        network = Functional(given, (dense,), (call,), (Value("a/b"),))
        model = Model(network, {"a/b": params})
        if inputs == ("x",):
            keras.save(model, tmp_path / "a.keras")
            opened = pytest.importorskip("keras").saving.load_model(tmp_path / "a.keras")
            np.testing.assert_array_equal(opened(np.ones((1, 4, 3), "f")), np.full((1, 4, 2), 4))
            continue
        with pytest.raises(InteropError, match="two values of the graph would be named 'x'"):
            onnx.to_proto(model)
        with pytest.raises(InteropError, match="two layers or inputs of the model would have one"):
            keras.save(model, tmp_path / "b.keras")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(b, id=b.__name__, marks=[] if b.__name__ == "crnn" else pytest.mark.slow)
        for b in MODELS
    ],
)
def test_three_times_around(build: Callable[..., Any], tmp_path: Path) -> None:
    """From an .h5 to a .keras, to an .onnx, and back, and again with what came."""
    model, arrays, expected = read("tf_keras", build, tmp_path)
    for i in range(3):
        keras.save(model, tmp_path / f"{i}.keras")
        model = keras.load(tmp_path / f"{i}.keras", time_first=False)
        onnx.save(model, tmp_path / f"{i}.onnx", states=False)
        back = onnx.load(tmp_path / f"{i}.onnx")
        assert distance(run(onnx.to_proto(back), arrays), expected) < MOST


# --- A law of leaving: any cell, its state and all ---

ORDINARY = ("peephole", "mlstm", "lru", "stack-nested")
# Whose kernels do not tell how many features they take.
UNTOLD = ("user-step", "convlstm-1d", "convlstm-2d")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ORDINARY else pytest.mark.slow)
        for name in CELLS
        if name not in UNTOLD
    ],
)
def test_every_cell_leaves_with_its_state(name: str, random_like: Any) -> None:
    cell: Any = CELLS[name]
    model = Model.of(cell, random_like(lambda: cell.init(jax.random.key(0), 3), 0))
    carry = random_like(lambda: cell.initial_carry((2,)), 1)
    xs = np.random.default_rng(2).standard_normal((5, 2, 3), np.float32)
    after, ys = model(xs, {"rnn": carry})
    states = [np.asarray(leaf)[None] for leaf in jax.tree.leaves(carry)]
    made = run(onnx.to_proto(model), [xs, *states])
    assert distance(made, [ys, *(leaf[None] for leaf in jax.tree.leaves(after))]) < MOST
