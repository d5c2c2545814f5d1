"""One character model in Keras, PyTorch and onnxruntime: the same next characters everywhere."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.text_generator.config import Architecture
from experiments.text_generator.model import CharacterModel
from experiments.text_tools.export import to_interop
from rnnjax.interop import Model
from rnnjax.interop import keras as our_keras
from rnnjax.interop import torch as our_torch
from rnnjax.interop.onnx.export import to_proto

keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `parity`")


def drawn(model: CharacterModel, steps: int, scale: float, seed: int) -> Any:
    """Random weights of the size that training gives: logits have a standard deviation near 3.

    With kernels of the size that is drawn for training the state hardly moves, and a text that
    feeds on itself soon repeats one character; those here, and the seed, are such that it does not.
    """
    params = jax.device_get(jax.jit(model.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    stack = tuple(
        {
            "kernel": (10 if i else 20) * cell["kernel"],
            "recurrent_kernel": scale * cell["recurrent_kernel"],
            "bias": cell["bias"] + 0.3 * rng.standard_normal(cell["bias"].shape, np.float32),
        }
        for i, cell in enumerate(params["stack"])
    )
    params |= {"stack": stack}
    ids = rng.integers(0, model.vocabulary_size, (steps, 1))
    _, logits = jax.jit(model.unroll)(params, ids, model.initial_carry(1))
    bias = 0.3 * rng.standard_normal(params["bias"].shape, np.float32)
    return params | {"kernel": 3 / np.std(logits) * params["kernel"], "bias": bias}


def by_keras(layers: Model, xs: np.ndarray, folder: Path) -> Any:
    our_keras.save(layers, folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    return jax.jit(lambda xs: loaded(xs))(xs[None])[0]


def by_torch(stacked: Model, xs: np.ndarray, hidden: int, count: int) -> Any:
    module = torch.nn.Module()
    module.lstm = torch.nn.LSTM(xs.shape[1], hidden, num_layers=count)
    module.dense = torch.nn.Linear(hidden, xs.shape[1])
    state = our_torch.to_state_dict(stacked)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    with torch.no_grad():
        return module.dense(module.lstm(torch.from_numpy(xs))[0]).numpy()


def by_onnxruntime(layers: Model, ids: np.ndarray, hidden: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(to_proto(layers).SerializeToString(), options)
    names = [value.name for value in session.get_inputs()[1:]]
    assert [value.name for value in session.get_outputs()[1:]] == [f"{n}_out" for n in names]
    state, pieces = [np.zeros((1, 1, hidden), np.float32) for _ in names], []
    for piece in np.split(ids, len(ids) // 100):
        ys, *state = session.run(None, {"ids": piece, **dict(zip(names, state, strict=True))})
        pieces.append(ys[:, 0])
    return np.concatenate(pieces)


def check_everywhere(
    layers: int, hidden: int, size: int, steps: int, scale: float, seed: int, folder: Path
) -> None:
    """Each most probable character is the next: where all say so of one text, all write it."""
    model = CharacterModel.build(Architecture(layers=layers, hidden_size=hidden), size)
    params = jax.device_put(drawn(model, steps, scale, seed))
    run, carry, text, logits = jax.jit(model.unroll), model.initial_carry(1), [0], []
    for _ in range(steps):
        carry, ys = run(params, np.array([text[-1:]]), carry)
        logits.append(np.asarray(ys[0, 0]))
        text.append(int(logits[-1].argmax()))
    expected = np.stack(logits)
    assert 2 < expected.std() < 4
    assert len(set(text[-200:])) > 5  # a text that stands still would show nothing

    xs, row = np.eye(size, dtype=np.float32)[text[:-1]], to_interop(model, params)
    stacked = to_interop(model, params, stacked=True)
    theirs = {
        "keras": by_keras(row, xs, folder),
        "torch": by_torch(stacked, xs, hidden, layers),
        "onnxruntime": by_onnxruntime(row, np.array(text[:-1])[:, None], hidden),
    }
    differences = {
        name: float(np.abs(np.asarray(ys) - expected).max()) for name, ys in theirs.items()
    }
    print(differences, f"logits up to {np.abs(expected).max():.1f}, {len(set(text))} characters")
    assert max(differences.values()) < 1e-4
    for name, ys in theirs.items():
        assert np.argmax(ys, -1).tolist() == text[1:], name


def test_a_small_model(tmp_path: Path) -> None:
    check_everywhere(2, 16, 20, 200, 2.0, 3, tmp_path)


@pytest.mark.slow
def test_three_layers_of_700(tmp_path: Path) -> None:
    check_everywhere(3, 700, 68, 1000, 1.0, 1, tmp_path)
