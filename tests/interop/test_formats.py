"""What the readers and writers of all formats refuse, each in a sentence."""

import concurrent.futures
import stat
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from interop_helpers import random_model

import rnnjax
from rnnjax import Bidirectional, GRUCell, LSTMCell, Stack
from rnnjax.errors import InteropError, InvalidInputError, RnnjaxError
from rnnjax.interop import (
    Activation,
    Dense,
    Masking,
    Model,
    OneHotIds,
    Recurrent,
    Sequential,
    flax,
    keras,
    onnx,
    torch,
)
from rnnjax.interop.files import write_whole

# --- Models ---

LSTM, BOTH = LSTMCell(4), Bidirectional(LSTMCell(4))
LAST = Recurrent("last", LSTM, return_sequences=False)
RNN, IDS, GRU = Recurrent("rnn", LSTM), OneHotIds("ids", 3), Recurrent("gru", GRUCell(4))
OF_DENSE = {"rnn": {"kernel": np.ones((3, 4)), "bias": np.ones(7)}}
PARAMS, SMALLER, OF_GRU = (
    random_model(Recurrent("rnn", cell), inputs=3).params
    for cell in (LSTM, LSTMCell(2), GRUCell(4))
)


def model_of(params: Any, *layers: Any) -> Model:
    return Model(Sequential(layers), params)


class Wide(Dense):
    """A layer of the user's own."""


class Deep(Recurrent):
    """Another one."""


CANNOT: list[tuple[str, Any, str]] = [
    ("keras", [Wide("wide", 2)], "is a Wide, which Keras has not"),
    ("keras", [Deep("deep", LSTM)], "is a Deep, which Keras has not"),
    # The formats, a cell, layers or a model, and what is said. Of options: test_options.py.
    ("keras torch flax", rnnjax.LayerNormLSTMCell(4), "LayerNormLSTMCell"),
    ("keras torch flax", rnnjax.LeakyRNNCell(4, leak=0.5), "LeakyRNNCell"),
    ("keras torch flax", rnnjax.LearnedCarry(GRUCell(4)), "LearnedCarry"),
    ("keras torch flax", rnnjax.MinGRUCell(4), "MinGRUCell"),
    ("keras torch flax", rnnjax.Regularized(LSTM, zoneout_cell=0.1), "zoneout"),
    ("keras flax", Bidirectional(rnnjax.ProjectionLSTMCell(4, proj_size=2)), "Projection"),
    ("keras onnx", LSTMCell(4, dtype=jnp.bfloat16), "computes in bfloat16"),
    ("keras torch", [Recurrent("rnn", LSTM, reverse=True)], "runs in reverse"),
    ("torch flax", Bidirectional(LSTM, merge="sum"), "merge='sum'"),
    ("flax", Bidirectional(Stack([LSTM])), "Stack"),
    ("torch", rnnjax.SimpleRNNCell(4, activation="sigmoid"), "'tanh' or 'relu'"),
    ("torch", rnnjax.ProjectionLSTMCell(4, proj_size=4), "smaller than its hidden_size"),
    ("torch", Stack([LSTM, GRUCell(4)]), "are not: "),
    ("torch", Bidirectional(LSTM, LSTMCell(3)), "are not: "),
    ("keras", [Recurrent("rnn", Stack([BOTH]), reverse=True)], "'rnn' is made of Bidirectional"),
    ("keras", [Recurrent("rnn", BOTH, masked_outputs="last")], "masked_outputs of layer 'rnn' is"),
    ("keras", [Recurrent("rnn", LSTM, masked_outputs="a third")], "masked_outputs .* is 'a third'"),
    ("keras", [IDS], "nothing to write"),
    ("keras", rnnjax.ConvLSTMCell(4), "'rnn' runs over a grid, whose sizes Keras has to know"),
    ("keras", Stack([rnnjax.ConvLSTMCell(4)]), "which Keras has not at this place"),
    ("keras", [Masking("m"), IDS], "'ids' is a OneHotIds"),
    ("onnx", [Activation("a", jnp.cbrt)], "'a' computes the operator 'cbrt' of JAX"),
    ("onnx", [Recurrent("a", Stack([GRUCell(2)])), Recurrent("a_0", GRUCell(2))], "named 'a_0_h'"),
    ("onnx", [LAST, GRU], "layer 'gru' needs a sequence"),
    # Parameters that are not those of the layers.
    ("torch flax", model_of({}, RNN), "params have no entry for 'rnn'; make them"),
    ("keras", model_of({}, RNN), "'rnn' should have parameters"),
    ("onnx", model_of({}, RNN), r"make them with cell\.init"),
    ("torch flax", model_of({"rnn": 1.0}, RNN), "params"),
    ("torch", model_of({"rnn": {"kernel": 1.0}}, RNN), "params"),
    ("torch", model_of({"rnn": {"kernel": np.ones(3)}}, RNN), "params"),
    ("torch", model_of(OF_GRU, RNN), "params"),
    ("torch", model_of(OF_DENSE, Dense("rnn", 7)), r"\(any, 7\)"),
    ("torch", model_of(PARAMS, Recurrent("rnn", BOTH)), "Directions"),
    ("torch", model_of(PARAMS, Recurrent("rnn", Stack([LSTM]))), "a tuple with 1 entries"),
    ("keras", model_of(SMALLER, RNN), "should have parameters kernel"),
    ("onnx", model_of(SMALLER, RNN), "params do not belong"),
    ("onnx", model_of(SMALLER, Activation("tanh", "tanh"), RNN), "params do not belong"),
]
WRITERS: dict[str, Any] = {
    "keras": lambda model, folder: keras.save(model, folder / "a.keras"),
    "torch": lambda model, folder: torch.save(model, folder / "a.safetensors"),
    "flax": lambda model, folder: flax.to_params(model),
    "onnx": lambda model, folder: onnx.save(model, folder / "a.onnx"),
}


@pytest.mark.parametrize(("formats", "what", "says"), CANNOT, ids=lambda one: f"{one!s:.50}")
def test_what_a_format_has_not_is_named(formats: str, what: Any, says: str, tmp_path: Path) -> None:
    layers = what if isinstance(what, list) else [Recurrent("rnn", what)]
    model = what if isinstance(what, Model) else random_model(*layers, inputs=3)
    for name in formats.split():
        with pytest.raises(RnnjaxError, match=says):
            WRITERS[name](model, tmp_path)
    assert not [*tmp_path.iterdir()]


# --- Files ---

FILES = {".keras": keras, ".weights.h5": keras, ".safetensors": torch, ".onnx": onnx}
EXTRAS = {keras: "keras-files", torch: "safetensors", onnx: "onnx"}
PACKAGES = ("h5py", "safetensors", "safetensors.numpy", "onnx")


@pytest.mark.parametrize("suffix", FILES)
def test_files_that_cannot_be_read_or_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays, and nothing else is."""
    model, there, form = model_of(PARAMS, RNN), tmp_path / f"there{suffix}", FILES[suffix]
    (tmp_path / f"folder{suffix}").mkdir()
    there.write_bytes(b"before")
    before = {*tmp_path.iterdir()}
    for name, says in (("none", "No such file"), ("folder", "directory"), ("a\0b", "be read")):
        with pytest.raises(InteropError, match=says):
            form.load(tmp_path / f"{name}{suffix}")
    for name in ("a\0b", "no-such-folder/a"):
        with pytest.raises(InteropError, match="cannot be written"):
            form.save(model, tmp_path / f"{name}{suffix}")
    for path, says in ((tmp_path / "a.h5", r"end in .*, but is 'a\.h5'"), (b"a", "name of a file")):
        with pytest.raises(InvalidInputError, match=says):
            form.save(model, path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InteropError, match="No space left"):
        form.save(model, there)
    assert there.read_bytes() == b"before"
    assert {*tmp_path.iterdir()} == before


def test_threads_may_write_one_path_at_once(tmp_path: Path) -> None:
    """The last file stays, readable by all whom the umask lets."""
    path, contents = tmp_path / "a.c", {bytes([i]) * 50_000 for i in range(8)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_whole(path, content), [*contents] * 20))
    assert path.read_bytes() in contents
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {one.name for one in tmp_path.iterdir()} == {"a.c", "plain"}


@pytest.mark.parametrize("suffix", FILES)
def test_a_missing_package_is_told(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, form = model_of(PARAMS, RNN), tmp_path / f"a{suffix}", FILES[suffix]
    form.save(model, path)
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    like = {"like": model} if suffix == ".weights.h5" else {}
    for call in (lambda: form.load(path, **like), lambda: form.save(model, path)):
        with pytest.raises(InteropError, match=rf"pip install 'rnnjax\[{EXTRAS[form]}\]'"):
            call()
