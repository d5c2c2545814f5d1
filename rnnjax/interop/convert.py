"""The command ``rnnjax``: print the layers of a model file, or convert it to another format."""

import argparse
import io
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rnnjax.errors import InvalidInputError, RnnjaxError
from rnnjax.interop import c, keras, onnx, torch
from rnnjax.interop.files import check_path
from rnnjax.interop.model import Model, with_axes, with_layers

_OF_TORCH, _OF_KERAS = (".safetensors", ".pt", ".pth", ".ckpt"), (".weights.h5", ".h5", ".hdf5")
SOURCES = (".keras", *_OF_KERAS, *_OF_TORCH, ".onnx")
TARGETS = (".keras", ".weights.h5", ".safetensors", ".onnx", ".c")
_OPTIONS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "at": (_OF_TORCH, {"help": "where a PyTorch file has its state dict, such as models/first"}),
    "modules": (_OF_TORCH, {
        "type": lambda names: names.split(","),
        "help": "the modules of a PyTorch file in the order in which they run, such as "
        "embedding,lstm,head",
    }),
    "nonlinearity": (_OF_TORCH, {
        "choices": ("tanh", "relu"),
        "help": "that of nn.RNN, which a PyTorch file does not store; by default tanh",
    }),
    "like": (_OF_KERAS, {
        "help": "a file with a model of the same layers, if SOURCE is a Keras file of weights alone"
    }),
}  # fmt: skip
"""The options of the command line: the files that each is for, and its arguments of the parser."""

_SPOKEN: Mapping[str, Any] = {
    r"load\(path, like=model\)": "--like FILE",
    r"modules=\[\.\.\.\]": "--modules a,b",
    r"modules=\[(.*?)\]": lambda found: "--modules " + re.sub("[' ]", "", found[1]),
    r"""at=('[^']*'|"[^"]*")""": r"--at \1",
}
"""What errors call the options of `load`, and the command line's words for it."""


def load(source: str | os.PathLike[str], **options: Any) -> Model:
    """Read a model of any format, by the suffix of the file name.

    Args:
        source: the path of a Keras, PyTorch or ONNX file.
        options: options of the ``load`` of the format, such as ``at``, ``modules`` and
            ``nonlinearity`` of `rnnjax.interop.torch.load`. Here ``like`` is another Keras or
            PyTorch file with a model of the same layers, for a Keras file with only weights.

    Raises:
        InvalidInputError: the suffix is unknown, or an option belongs to another format.
        InteropError: the file cannot be read; see the ``load`` of the format.

    >>> import jax, tempfile, rnnjax
    >>> cell = rnnjax.LSTMCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(model, f"{folder}/model.onnx")
    ...     print(load(f"{folder}/model.onnx"))
    layer  what it is   parameters
    rnn    LSTMCell(5)  180  bias (20,), kernel (3, 20), recurrent_kernel (5, 20)
    axes   the graph's own
    """
    suffix = suffix_of(source, SOURCES)
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if suffix not in _OPTIONS.get(name, (SOURCES,))[0]:
            files = ", *".join(_OPTIONS[name][0])
            raise InvalidInputError(f"--{name} says what files named *{files} do not; leave it out")
    if "like" in options:
        options["like"] = with_layers(load(options["like"]), "like")
    reader = torch if suffix in _OF_TORCH else onnx if suffix == ".onnx" else keras
    return reader.load(source, **options)


def write(model: Model, target: str | os.PathLike[str], **options: Any) -> None:
    """Write a model by the suffix, with ``options`` of ``save`` of ONNX or C."""
    suffix = suffix_of(target, TARGETS)
    if suffix == ".onnx":
        return onnx.save(model, target, **options)
    if suffix == ".c":
        return c.save(model, target, **options)
    if options:
        raise InvalidInputError(
            f"{', '.join(options)} are options of .onnx and .c files; leave them out"
        )
    save = torch.save if suffix == ".safetensors" else keras.save
    return save(with_layers(model, f"a file named *{suffix}"), target)


def suffix_of(path: str | os.PathLike[str], known: Sequence[str]) -> str:
    """The one of ``known`` in which the name of the file ends.

    >>> suffix_of("model.weights.h5", SOURCES), suffix_of("model.h5", SOURCES)
    ('.weights.h5', '.h5')
    """
    check_path(path, *known)
    return next(suffix for suffix in known if pathlib.Path(path).name.endswith(suffix))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the status is 2 for an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for odd names of files and layers
    try:
        given = make_parser().parse_args(arguments)
        given.run(given)
    except RnnjaxError as error:
        message = str(error)
        for words, option in _SPOKEN.items():
            message = re.sub(words, option, message)
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror}; check the path"
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``rnnjax convert`` and ``rnnjax show``."""
    parser = argparse.ArgumentParser(
        prog="rnnjax",
        description="Example: rnnjax convert model.keras model.onnx. "
        "Models of Keras, PyTorch and ONNX as files.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, example, does in (
        ("show", _show, "model.onnx", "print the layers of a model"),
        ("convert", _convert, "model.keras model.onnx", "write a model in another format"),
    ):
        told = f"Example: rnnjax {name} {example}. {does.capitalize()}; suffixes tell the formats."
        command = commands.add_parser(name, help=does, description=told)
        command.set_defaults(run=run)
        command.add_argument("source", metavar="SOURCE", help=f"ends in {', '.join(SOURCES)}")
        for option, (_, more) in _OPTIONS.items():
            command.add_argument(f"--{option}", **more)
    # The last command, which writes.
    command.add_argument("target", metavar="TARGET", help=f"ends in {', '.join(TARGETS)}")
    for flag, does in (
        ("force", "replace TARGET if it exists"),
        ("batch-first", "an .onnx whose inputs and outputs have the batch before the time"),
        ("stateless", "an .onnx without states: every sequence begins with zeros"),
    ):
        command.add_argument(f"--{flag}", action="store_true", help=does)
    return parser


def _read(given: argparse.Namespace) -> Model:
    return load(given.source, **{name: getattr(given, name) for name in _OPTIONS})


def _show(given: argparse.Namespace) -> None:
    model = _read(given)
    print(
        model, *onnx.ends_of(model.origin["message"]) if "message" in model.origin else (), sep="\n"
    )


def _convert(given: argparse.Namespace) -> None:
    suffix = suffix_of(given.target, TARGETS)  # before the source is read, which may take longer
    target = pathlib.Path(given.target)
    if target.exists() and not given.force:
        raise InvalidInputError(f"{target} is there already; give --force to replace it")
    asked = given.batch_first or given.stateless
    if asked and (suffix != ".onnx" or suffix_of(given.source, SOURCES) == ".onnx"):
        raise InvalidInputError(
            "--batch-first and --stateless are for *.onnx out of a file of layers, and a graph of "
            "ONNX keeps its axes and states; leave them out"
        )
    model = _read(given)
    print(f"{given.source} holds\n\n{model}\n", flush=True)
    if given.batch_first:
        model = with_axes(model, False)
    write(model, target, **{"states": False} if given.stateless else {})
    if suffix in (".safetensors", ".weights.h5"):
        print(f"{target} holds the arrays alone: the layers are for the code to say")
    if suffix == ".onnx":
        print(*onnx.ends_of(onnx.load(target).origin["message"]), "", sep="\n")
    print(f"wrote {target} ({target.stat().st_size:,} bytes)")
