"""``rnnjax convert`` and ``rnnjax show``: between all formats, and what a user types wrong."""

import importlib
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx as onnx_package
import pytest
from interop_helpers import random_model
from onnx_helpers import needs_runtime, session

import rnnjax
from rnnjax import InvalidInputError, interop
from rnnjax.interop import Activation, Dense, Embedding, Model, Recurrent, convert, keras, onnx
from rnnjax.interop.convert import main

ROOT = Path(__file__).parents[2]

WRITERS = (".keras", ".weights.h5", ".safetensors", ".onnx")


def tagger(cell: rnnjax.Cell | None = None) -> Model:
    """What every format can hold: an embedding, a recurrent layer, a dense one."""
    recurrent = Recurrent("lstm", cell or rnnjax.LSTMCell(4))
    return random_model(Embedding("embedding", 7, 3), recurrent, Dense("dense", 5))


def written(model: Model, path: Path) -> Path:
    convert.write(model, path)
    return path


def same(model: Model, other: Model, shape: tuple[int, ...] = ()) -> bool:
    """Whether both compute the same of ids, or of numbers of a shape."""
    rng = np.random.default_rng(0)
    xs = rng.standard_normal(shape).astype("float32") if shape else rng.integers(0, 7, (6, 2))
    ours, theirs = (np.asarray(jax.jit(one.__call__)(xs)[1]) for one in (model, other))
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-5)


def sorted_arrays(model: Model) -> list[np.ndarray]:
    """Whatever the layers are called."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]
    return sorted(arrays, key=lambda array: (array.shape, array.sum()))


@pytest.mark.parametrize("source", WRITERS)
def test_between_all_formats(source: str, tmp_path: Path, capsys: Any) -> None:
    """From each to each, on the command line; the arrays are the same."""
    model = tagger()
    path = written(model, tmp_path / f"source{source}")
    targets = [".onnx"] if source == ".onnx" else [*WRITERS]
    like = written(model, tmp_path / "like.keras")  # of weights alone
    more = ["--like", str(like)] if source == ".weights.h5" else []
    for target in targets:
        result = tmp_path / f"target{target}"
        assert main(["convert", str(path), str(result), *more]) == 0
        printed = capsys.readouterr()
        assert not printed.err
        assert "LSTMCell(4)" in printed.out
        assert "kernel (3, 16)" in printed.out
        alone = f"{result} holds the arrays alone: the layers are for the code to say"
        assert (alone in printed.out) == (target in (".weights.h5", ".safetensors"))
        assert f"wrote {result} ({result.stat().st_size:,} bytes)" in printed.out
        # The second bias that a PyTorch LSTM has besides is zeros.
        back = interop.load(result, like=like if target == ".weights.h5" else None)
        read = [array for array in sorted_arrays(back) if array.any()]
        for ours, theirs in zip(sorted_arrays(model), read, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    names = {path.name, like.name} | {f"target{suffix}" for suffix in targets}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_relu_of_pytorch_and_the_order_of_modules(tmp_path: Path, capsys: Any) -> None:
    model = tagger(rnnjax.SimpleRNNCell(4, activation="relu"))
    path = written(model, tmp_path / "a.safetensors")
    target = tmp_path / "a.onnx"
    options = ["--modules", "embedding,lstm,dense", "--nonlinearity", "relu"]
    assert main(["convert", str(path), str(target), *options]) == 0
    assert "SimpleRNNCell(4, activation=relu)" in capsys.readouterr().out
    assert onnx.load(target).layers["lstm"].cell.activation == "relu"
    assert same(model, onnx.load(target))
    assert not same(tagger(rnnjax.SimpleRNNCell(4)), onnx.load(target))


def test_weights_alone_take_their_layers_from_another_file(tmp_path: Path, capsys: Any) -> None:
    """Where sizes leave the order of two layers open, a file of any format tells it."""
    cell = rnnjax.LSTMCell(4)
    row = Recurrent("lstm", cell), Recurrent("lstm_1", cell), Dense("dense", 6, "tanh")
    model, other = (random_model(*row, inputs=6, seed=seed) for seed in range(2))
    source = written(model, tmp_path / "a.weights.h5")
    assert main(["show", str(source)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "as in --like FILE" in said
    assert "layers/dense/vars/0 (4, 6)" in said
    like, target = written(other, tmp_path / "like.keras"), tmp_path / "a.onnx"
    assert main(["convert", str(source), str(target), "--like", str(like)]) == 0
    read = onnx.load(target)
    for ours, theirs in zip(sorted_arrays(model), sorted_arrays(read), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert same(model, read, (6, 2, 6))
    assert not same(other, read, (6, 2, 6))
    capsys.readouterr()
    assert main(["show", str(source), "--like", str(target)]) == 2
    assert "like holds layers, but this model is a graph of ONNX" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match="is a graph of ONNX; keep it as"):
        keras.save(read, tmp_path / "b.keras")


@needs_runtime
def test_what_is_written_says_how_it_is_fed(tmp_path: Path, capsys: Any) -> None:
    model = tagger()
    source, target = written(model, tmp_path / "a.keras"), tmp_path / "a.onnx"
    assert main(["convert", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert "input   lstm_h      float32 (1, batch, 4)  a state: zeros, then the last" in said
    assert "input   ids         int64 (time, batch)\n" in said
    assert main(["show", str(target)]) == 0
    assert "output  ys          float32 (time, batch, 5)\n" in capsys.readouterr().out
    alone = ["--force", "--batch-first", "--stateless"]
    assert main(["convert", str(source), str(target), *alone]) == 0
    said = capsys.readouterr().out
    assert "input   ids  int64 (batch, time)\noutput  ys   float32 (batch, time, 5)\n" in said
    ids = np.random.default_rng(0).integers(0, 7, (2, 6))
    (ys,) = session(onnx_package.load(target)).run(None, {"ids": ids})
    expected = np.swapaxes(model(ids.T)[1], 0, 1)
    np.testing.assert_allclose(ys, expected, atol=1e-5)
    assert main(["convert", str(source), str(tmp_path / "b.keras"), "--stateless"]) == 2
    assert "--batch-first and --stateless are for *.onnx" in capsys.readouterr().err
    for option in ("--batch-first", "--stateless"):
        assert main(["convert", str(target), str(tmp_path / "b.onnx"), option]) == 2
        assert "a graph of ONNX keeps its axes and states" in capsys.readouterr().err
    for suffix in (".keras", ".safetensors", ".weights.h5"):
        assert main(["convert", str(target), str(tmp_path / f"b{suffix}")]) == 2
        message = capsys.readouterr().err
        assert f"a file named *{suffix} holds layers, but this model is a graph" in message
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.onnx", "a.keras"}


def test_a_name_may_be_a_suffix_alone(tmp_path: Path) -> None:
    """It was the weights of a model without its layers."""
    assert str(interop.load(written(tagger(), tmp_path / ".keras"))) == str(tagger())


# --- The command line ---


def test_the_program_itself(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``python -m`` runs; the next test has a process of its own."""
    monkeypatch.setattr(sys, "argv", ["rnnjax", "show", str(tmp_path / "missing.onnx")])
    monkeypatch.delitem(sys.modules, "rnnjax.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("rnnjax", run_name="__main__")
    wrong = capsys.readouterr()
    assert (ended.value.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: ")
    assert "missing.onnx" in wrong.err
    assert wrong.err.count("\n") == 1


def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    written(random_model(Activation("\u00e9", "tanh")), tmp_path / "a.keras")
    command = [sys.executable, "-m", "rnnjax", "show", "a.keras"]
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9" in done.stdout


def test_the_console_script_is_this_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["rnnjax"].split(":")
    assert getattr(importlib.import_module(module), function) is main


WRONG = {
    "source suffix": (["show", "model.pkl"], "should end in .keras or .weights.h5 or .h5"),
    "target suffix": (["convert", "a.onnx", "b.h5"], "should end in .keras or .weights.h5 or .sa"),
    "source": (["show", "missing.keras"], "missing.keras"),
    "there": (["convert", "a.onnx", "there.keras"], "there.keras is there already; give --force"),
    "folder": (["convert", "m.safetensors", "no/b.onnx"], "no/b.onnx cannot be written: No such"),
    "modules": (["show", "a.onnx", "--modules", "a,b"],
                "--modules says what files named *.safetensors, *.pt, *.pth, *.ckpt do not"),
    "damaged": (["convert", "a.onnx", "b.keras"], "a.onnx"),
    "like": (["show", "a.onnx", "--like", "m.pt"], "files named *.weights.h5, *.h5, *.hdf5 do not"),
    "unknown module": (["show", "m.safetensors", "--modules", "a"], "modules should hold names of"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_a_user_types_wrong_gets_one_sentence_and_status_2(
    what: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.onnx").write_bytes(b"nothing of the kind")
    Path("there.keras").write_bytes(b"")
    interop.torch.save(tagger(), "m.safetensors")
    arguments, message = WRONG[what]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["a.onnx", "m.safetensors", "there.keras"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("convert a.onnx", "arguments are required: TARGET"),
        ("train", "invalid choice: 'train'"),
        ("show a.onnx --fast", "unrecognized arguments: --fast"),
        ("show a.onnx --nonlinearity sin", "invalid choice: 'sin'"),
    ],
)
def test_wrong_arguments_end_with_the_usage(arguments: str, message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert message in capsys.readouterr().err


def test_options_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"lengths are options of \.onnx and \.c"):
        convert.write(tagger(), tmp_path / "a.keras", lengths=True)
