"""The command `export`: a trained model as a file of another framework."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import rnnjax
from experiments.text_generator import pages
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.reading import AnyVocabulary
from experiments.text_generator.trained import OfRun, Trained
from rnnjax.errors import InvalidInputError
from rnnjax.interop import Dense, Embedding, Layer, Model, OneHotIds, Recurrent, Sequential
from rnnjax.interop.convert import TARGETS, suffix_of, write
from rnnjax.text import Vocabulary

_NAMES = {rnnjax.LSTMCell: "lstm", rnnjax.GRUCell: "gru", rnnjax.SimpleRNNCell: "simple_rnn"}


@dataclasses.dataclass(frozen=True)
class Export(OfRun):
    """Write a trained model as a file of Keras, PyTorch or ONNX."""

    to: Path
    """The file to create: *.keras, *.weights.h5, *.safetensors or *.onnx."""


def run_export(config: Export) -> int:
    """Write a trained model for another framework, and say how it is used there."""
    trained = Trained.load(config.run_dir, config.step)
    written = export(trained.model, trained.vocabulary, trained.params, config.to)
    print(
        f"{written}\n\nwrote {config.to} ({config.to.stat().st_size:,} bytes)\n"
        f"wrote {vocabulary_path(config.to)}; the place of a character in it is its id\n\n"
        f"{how_to_run(trained.model, config.to)}"
    )
    return 0


def to_interop(model: CharacterModel, params: Any, *, stacked: bool = False) -> Model:
    """The model as layers, from ids ``(time, batch)`` to logits ``(time, batch, size)``.

    What is noise in training is left out, and a kernel that is tied to the characters' vectors
    becomes one of its own.

    Args:
        model: of the run.
        params: its parameters, as they were trained.
        stacked: whether the recurrent layers are one layer, ``lstm``, as the ``nn.LSTM`` of several
            layers that a user of PyTorch expects; otherwise they are ``lstm``, ``lstm_1`` and so
            on, as in a ``keras.Sequential``.

    >>> import jax
    >>> model = CharacterModel(rnnjax.Stack([rnnjax.LSTMCell(5)] * 2), vocabulary_size=4)
    >>> print(to_interop(model, model.init(jax.random.key(0))))
    layer    what it is    parameters
    one_hot  OneHotIds(4)  none
    lstm     LSTMCell(5)   200  bias (20,), kernel (4, 20), recurrent_kernel (5, 20)
    lstm_1   LSTMCell(5)   220  bias (20,), kernel (5, 20), recurrent_kernel (5, 20)
    dense    Dense(4)      24  bias (4,), kernel (5, 4)
    axes     time first
    """
    cells, size = _cells(model), model.vocabulary_size
    name = _name(cells[0])
    if stacked:
        recurrent, arrays = [Recurrent(name, rnnjax.Stack(cells))], [params["stack"]]
    else:
        names = [f"{name}_{i}" if i else name for i in range(len(cells))]
        recurrent = [Recurrent(*layer) for layer in zip(names, cells, strict=True)]
        arrays = list(params["stack"])
    first: Layer = OneHotIds("one_hot", size)
    kernel = params["embedding"].T if model.tied else params["kernel"]
    own = {layer.name: array for layer, array in zip(recurrent, arrays, strict=True)}
    if model.embedding_size:
        first = Embedding("embedding", size, model.embedding_size)
        own["embedding"] = {"embedding": params["embedding"]}
    own["dense"] = {"kernel": kernel, "bias": params["bias"]}
    return Model(Sequential((first, *recurrent, Dense("dense", size))), own)


def _cells(model: CharacterModel) -> list[rnnjax.Cell]:
    """The recurrent cells, without the noise that they have in training."""
    return [c.cell if isinstance(c, rnnjax.Regularized) else c for c in model.stack.cells]


def _name(cell: rnnjax.Cell) -> str:
    return _NAMES.get(type(cell), "rnn")


def export(model: CharacterModel, vocabulary: AnyVocabulary, params: Any, path: Path) -> Model:
    """Write the model, and its vocabulary beside it; returns its layers.

    The suffix of ``path`` says the format: ``.onnx``, ``.keras``, ``.weights.h5`` or
    ``.safetensors``. The vocabulary is a list in JSON, in which the place of a character is its id
    (or the word "bytes"); an ONNX file has it also in its metadata.

    Raises:
        InteropError: the format has no such cell, or the package that writes it is missing.
        InvalidInputError: the suffix is another, or one of the files is there already.
    """
    suffix, beside = suffix_of(path, TARGETS), vocabulary_path(path)
    for one in (path, beside):
        if one.exists():
            raise InvalidInputError(
                f"{one} is there already, and nothing is overwritten; choose another --to"
            )
    characters = json.dumps(
        list(vocabulary.characters) if isinstance(vocabulary, Vocabulary) else "bytes"
    )
    options: dict[str, Any] = {}
    if suffix == ".onnx":
        options["metadata"] = {"vocabulary": characters}
    stacked = suffix == ".safetensors"
    written = to_interop(model, params, stacked=stacked)
    write(written, path, **options)
    pages.write(beside, characters + "\n")
    return written


def vocabulary_path(path: Path) -> Path:
    """Where the vocabulary of an exported model is."""
    return path.with_name(path.name + ".vocabulary.json")


def how_to_run(model: CharacterModel, path: Path) -> str:
    """What to do with the file in its framework."""
    size, hidden, vectors = model.vocabulary_size, model.stack.output_size, model.embedding_size
    cells = _cells(model)
    name, count = _name(cells[0]), len(cells)
    kind = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}.get(name, "")
    suffix = suffix_of(path, TARGETS)
    if suffix == ".onnx":
        return (
            "Its inputs are ids (time, batch), int64, and the state of each layer, zeros "
            f"(1, batch, {hidden}) where a text begins. Its first output is the logits "
            f"(time, batch, {size}); the others are the state, to be fed back:\n\n"
            f"    session = onnxruntime.InferenceSession({str(path)!r})"
        )
    takes = "ids" if vectors else "one-hot vectors"
    if suffix == ".safetensors":
        embedding = f"    self.embedding = torch.nn.Embedding({size}, {vectors})\n" * bool(vectors)
        features, torch_kind = vectors or size, kind.removeprefix("Simple")
        return (
            f"It is the state dict of a module with these, which takes {takes} (time, batch"
            f"{'' if vectors else f', {size}'}):\n\n{embedding}"
            f"    self.{name} = torch.nn.{torch_kind}({features}, {hidden}, num_layers={count})\n"
            f"    self.dense = torch.nn.Linear({hidden}, {size})\n"
            f"    module.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
        )
    text = f"It takes {takes} (batch, time{'' if vectors else f', {size}'}) and gives logits:\n\n"
    if suffix == ".keras":
        return f"{text}    model = keras.saving.load_model({str(path)!r})"
    option = ", reset_after=False" if getattr(cells[0], "reset_after", True) is False else ""
    layer = f"keras.layers.{kind}({hidden}, return_sequences=True{option})"
    first = "keras.Input((None, size))"
    if vectors:
        first = f"keras.Input((None,)), keras.layers.Embedding(size, {vectors})"
    layers = ", ".join([first, *["layer()"] * count, "dense"])
    return (
        f"{text}    size, layer = {size}, lambda: {layer}\n"
        f"    dense = keras.layers.Dense(size)\n"
        f"    model = keras.Sequential([{layers}])\n"
        f"    model.load_weights({str(path)!r})"
    )
