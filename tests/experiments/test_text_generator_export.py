"""A trained character model written for Keras, PyTorch and ONNX."""

import functools
import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")


import jax
import numpy as np
import pytest

from experiments.text_generator.export import export, how_to_run, to_interop
from rnnjax import InteropError, InvalidInputError
from rnnjax.text import Vocabulary

for package, extra in {"onnx": "onnx", "h5py": "keras-files", "safetensors": "safetensors"}.items():
    pytest.importorskip(package, reason=f"{package} is in the extra `{extra}`")

VOCABULARY = Vocabulary("abcé\n🙂")
TIME = 5


@functools.partial(jax.jit, static_argnums=0)
def unroll(model, params, ids):
    return model.unroll(params, ids, model.initial_carry(1))[1]


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, len(VOCABULARY), (TIME, 1))


@pytest.mark.parametrize(
    ("cell", "name", "stacked"),
    [
        ("lstm", "lstm", False),
        ("gru", "gru", True),
        ("gru_reset_before", "gru", False),
        ("simple", "simple_rnn", True),
    ],
)
def test_the_layers_give_the_logits(cell, name, stacked, character_model, assert_close, ids):
    model, params = character_model(len(VOCABULARY), cell=cell, hidden_size=4)
    expected = unroll(model, params, ids)
    layers = to_interop(model, params, stacked=stacked)
    assert_close(jax.jit(layers.__call__)(ids)[1], expected, 1e-6)
    recurrent = [name] if stacked else [name, f"{name}_1"]
    assert [*layers.layers] == ["one_hot", *recurrent, "dense"]


# With learned vectors, which the softmax shares, and noise in training, which is left behind.
LEARNED = {"embedding_size": 4, "tied": True, "dropout": 0.2, "recurrent_dropout": 0.2}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".onnx", LEARNED), (".keras", {}), (".weights.h5", LEARNED), (".safetensors", {})],
)
def test_what_is_printed_runs(suffix, options, character_model, assert_close, ids, tmp_path):
    """The lines that a user is told, in their framework, give our logits."""
    peers = {".onnx": "onnxruntime", ".safetensors": "torch"}
    peer = pytest.importorskip(peers.get(suffix, "keras"), reason="it is in the extra `parity`")
    model, params = character_model(len(VOCABULARY), hidden_size=4, **options)
    expected = unroll(model, params, ids)
    path = tmp_path / f"model{suffix}"
    export(model, VOCABULARY, params, path)
    lines = [line[4:] for line in how_to_run(model, path).splitlines() if line.startswith("    ")]
    inputs = ids if options else np.eye(len(VOCABULARY), dtype=np.float32)[ids]
    if suffix == ".onnx":
        names = {"onnxruntime": peer}
        exec("\n".join(lines), names)
        states = {
            value.name: np.zeros((1, 1, 4), np.float32)
            for value in names["session"].get_inputs()[1:]
        }
        assert len(states) == 4
        ys = names["session"].run(None, {"ids": ids, **states})[0]
    elif suffix == ".safetensors":
        import safetensors.torch

        module = peer.nn.Module()
        exec("\n".join(lines), {"torch": peer, "safetensors": safetensors, "self": module,
                                "module": module})  # fmt: skip
        with peer.no_grad():
            inputs = peer.from_numpy(inputs)
            inputs = module.embedding(inputs) if options else inputs
            ys = module.dense(module.lstm(inputs)[0]).numpy()
    else:
        names = {"keras": peer}
        exec("\n".join(lines), names)
        kinds = [*["Embedding"] * bool(options), *["LSTM"] * 2, "Dense"]
        assert [type(layer).__name__ for layer in names["model"].layers] == kinds
        ys = np.swapaxes(jax.jit(lambda xs: names["model"](xs))(np.swapaxes(inputs, 0, 1)), 0, 1)
    assert_close(ys, np.asarray(expected), 1e-5)


def test_what_cannot_be_written(character_model, tmp_path):
    model, params = character_model(len(VOCABULARY), cell="gru_reset_before", hidden_size=4)
    with pytest.raises(InteropError, match="reset_after"):
        export(model, VOCABULARY, params, tmp_path / "model.safetensors")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InvalidInputError, match=r"should end in \.keras"):
        export(model, VOCABULARY, params, tmp_path / "model.bin")
    (tmp_path / "other.onnx.vocabulary.json").write_text("before")
    with pytest.raises(InvalidInputError, match=r"other\.onnx\.vocabulary\.json is there already"):
        export(model, VOCABULARY, params, tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx.vocabulary.json").read_text() == "before"


def test_the_folder_of_a_run(program, text, untrained, tmp_path):
    onnx = pytest.importorskip("onnx")
    untrained(tmp_path, text, layers=2)
    made = program("text_generator", "export", "--run-dir", "run", "--to", "model.onnx").stdout
    assert "wrote model.onnx (" in made
    assert "wrote model.onnx.vocabulary.json" in made
    assert "lstm_1   LSTMCell(4)" in made
    characters = [*Vocabulary.tutorial().characters]
    beside = tmp_path / "model.onnx.vocabulary.json"
    assert json.loads(beside.read_text(encoding="utf-8")) == characters
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(metadata["vocabulary"]) == characters
