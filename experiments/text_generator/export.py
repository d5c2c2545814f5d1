"""A trained model as a file of another framework."""

import json
from pathlib import Path
from typing import Any

import rnnjax
from experiments.text_generator.model import CharacterModel
from rnnjax.errors import InvalidInputError
from rnnjax.interop import Dense, Model, OneHotIds, Recurrent, Sequential
from rnnjax.interop.convert import TARGETS, Written, suffix_of, write_checked
from rnnjax.text import Vocabulary

_NAMES = {rnnjax.LSTMCell: "lstm", rnnjax.GRUCell: "gru", rnnjax.SimpleRNNCell: "simple_rnn"}


def to_interop(model: CharacterModel, params: Any, *, stacked: bool = False) -> Model:
    """The model as layers, from ids ``(time, batch)`` to logits ``(time, batch, size)``.

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
    """
    cells, size = model.stack.cells, model.vocabulary_size
    name = _NAMES[type(cells[0])]
    if stacked:
        recurrent, arrays = [Recurrent(name, model.stack)], [params["stack"]]
    else:
        names = [f"{name}_{i}" if i else name for i in range(len(cells))]
        recurrent = [Recurrent(*layer) for layer in zip(names, cells, strict=True)]
        arrays = list(params["stack"])
    return Model(
        Sequential((OneHotIds("one_hot", size), *recurrent, Dense("dense", size))),
        {layer.name: own for layer, own in zip(recurrent, arrays, strict=True)}
        | {"dense": {"kernel": params["kernel"], "bias": params["bias"]}},
    )


def export(model: CharacterModel, vocabulary: Vocabulary, params: Any, path: Path) -> Written:
    """Write the model, compared with what was trained, and its vocabulary beside it.

    The suffix of ``path`` says the format: ``.onnx``, ``.keras``, ``.weights.h5`` or
    ``.safetensors``. The vocabulary is a list in JSON, in which the place of a character is its id;
    an ONNX file has it also in its metadata.

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
    characters = json.dumps(list(vocabulary.characters))
    options: dict[str, Any] = {}
    if suffix == ".onnx":
        options["metadata"] = {"vocabulary": characters}
    stacked = suffix == ".safetensors"
    written = write_checked(to_interop(model, params, stacked=stacked), path, **options)
    new = beside.with_name(beside.name + ".new")
    new.write_text(characters + "\n", encoding="utf-8")
    new.replace(beside)
    return written


def vocabulary_path(path: Path) -> Path:
    """Where the vocabulary of an exported model is."""
    return path.with_name(path.name + ".vocabulary.json")


def how_to_run(model: CharacterModel, path: Path) -> str:
    """What to do with the file in its framework."""
    size, hidden = model.vocabulary_size, model.stack.output_size
    count, cell = len(model.stack.cells), model.stack.cells[0]
    kind = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}[_NAMES[type(cell)]]
    suffix = suffix_of(path, TARGETS)
    if suffix == ".onnx":
        return (
            "Its inputs are ids (time, batch), int64, and the state of each layer, zeros "
            f"(1, batch, {hidden}) where a text begins. Its first output is the logits "
            f"(time, batch, {size}); the others are the state, to be fed back:\n\n"
            f"    session = onnxruntime.InferenceSession({str(path)!r})"
        )
    if suffix == ".safetensors":
        torch_kind = kind.removeprefix("Simple")
        name = _NAMES[type(cell)]
        return (
            f"It is the state dict of a module with these two, which takes one-hot vectors "
            f"(time, batch, {size}):\n\n"
            f"    self.{name} = torch.nn.{torch_kind}({size}, {hidden}, num_layers={count})\n"
            f"    self.dense = torch.nn.Linear({hidden}, {size})\n"
            f"    module.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
        )
    text = f"It takes one-hot vectors (batch, time, {size}) and gives logits:\n\n"
    if suffix == ".keras":
        return f"{text}    model = keras.saving.load_model({str(path)!r})"
    option = ", reset_after=False" if getattr(cell, "reset_after", True) is False else ""
    layer = f"keras.layers.{kind}({hidden}, return_sequences=True{option})"
    layers = ", ".join(["keras.Input((None, size))", *["layer()"] * count, "dense"])
    return (
        f"{text}    size, layer = {size}, lambda: {layer}\n"
        f"    dense = keras.layers.Dense(size)\n"
        f"    model = keras.Sequential([{layers}])\n"
        f"    model.load_weights({str(path)!r})"
    )
