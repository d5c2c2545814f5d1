"""From one file format of models to another: read, write, and read back."""

import argparse
import io
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError, InvalidInputError, RnnjaxError
from rnnjax.interop import keras, onnx, torch
from rnnjax.interop.layers import Embedding, OneHotIds
from rnnjax.interop.model import Model, with_axes
from rnnjax.interop.serving import input_shapes
from rnnjax.interop.torch.files import read_arrays

_OF_TORCH = (".safetensors", ".pt", ".pth", ".ckpt")
SOURCES = (".keras", ".weights.h5", ".h5", ".hdf5", *_OF_TORCH, ".onnx")
TARGETS = (".keras", ".weights.h5", ".safetensors", ".onnx")


def load(
    source: str | os.PathLike[str],
    *,
    at: str | None = None,
    modules: Sequence[str] | None = None,
    nonlinearity: str | None = None,
    like: str | os.PathLike[str] | None = None,
) -> Model:
    """Read a model of any format, which the name of the file tells.

    Args:
        source: the path of a file of Keras, PyTorch or ONNX.
        at: where a file of PyTorch has its state dict; see `rnnjax.interop.torch.load`.
        modules: of a file of PyTorch, in the order in which they run; see there.
        nonlinearity: of ``nn.RNN`` in a file of PyTorch; see there.
        like: another file, of Keras or PyTorch, with a model of the layers whose weights alone are
            in ``source``, a file of Keras.

    Returns:
        what the ``load`` of the format returns.

    Raises:
        InvalidInputError: the name ends like that of no format, or an option is one of another.
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
    path = pathlib.Path(source)
    if path.suffix == ".tflite":
        raise InvalidInputError(
            f"{path} is a model of TensorFlow Lite, which is not read; take the model from which "
            "it was made, as *.keras or *.h5"
        )
    suffix = suffix_of(source, SOURCES)
    _check_options(path, _OF_TORCH, at=at, modules=modules, nonlinearity=nonlinearity)
    _check_options(path, (".h5", ".hdf5"), like=like)
    if suffix in _OF_TORCH:
        return torch.load(path, at=at, modules=modules, nonlinearity=nonlinearity or "tanh")
    if suffix == ".onnx":
        return onnx.load(path)
    return keras.load(path, like=None if like is None else _layers(load(like), "like"))


def _check_options(path: pathlib.Path, suffixes: tuple[str, ...], **options: Any) -> None:
    """Raise where an option is given for a file of another kind."""
    for name, value in options.items():
        if value is not None and not path.name.endswith(suffixes):
            raise InvalidInputError(
                f"--{name} says what files named *{', *'.join(suffixes)} do not, but {path} tells "
                "it itself; leave it out"
            )


def _layers(model: Model, what: str) -> Model:
    """The model, unless it is a graph of ONNX."""
    if isinstance(model.network, onnx.Graph):
        raise InvalidInputError(
            f"{what} holds layers, but this model is a graph of ONNX; keep it as *.onnx, or take "
            "the model from the framework that it was exported from"
        )
    return model


def write(model: Model, target: str | os.PathLike[str], **options: Any) -> Model:
    """Write a model, by the writer of the suffix; returns the model as it was written.

    Options are those of `rnnjax.interop.onnx.to_proto`; the other formats have none.
    """
    path, suffix = pathlib.Path(target), suffix_of(target, TARGETS)
    if options and suffix != ".onnx":
        raise InvalidInputError(
            f"{', '.join(options)} are options of .onnx files, but {path} is none; leave them out"
        )
    if suffix == ".onnx":
        if not isinstance(model.network, onnx.Graph):
            model = with_axes(model, True)  # as it is read back
        onnx.save(model, path, **options)
        return model
    model = with_axes(_layers(model, f"a file named *{suffix}"), True)
    (torch if suffix == ".safetensors" else keras).save(model, path)
    return model


def suffix_of(path: str | os.PathLike[str], known: Sequence[str]) -> str:
    """The one of ``known`` in which the name of the file ends.

    >>> suffix_of("model.weights.h5", SOURCES), suffix_of("model.h5", SOURCES)
    ('.weights.h5', '.h5')
    """
    for suffix in known:
        if pathlib.Path(path).name.endswith(suffix):
            return suffix
    raise InvalidInputError(
        f"the name of the file must end in one of {', '.join(known)}, but is {os.fspath(path)!r}"
    )


def write_checked(
    model: Model, target: str | os.PathLike[str], *, force: bool = False, **options: Any
) -> Model:
    """`write` a model, and read the file back; returns the model as it was written.

    The file is written beside its place, and takes it only if it is read as the model; one that is
    there is replaced with ``force`` alone.
    """
    path, suffix = check_target(target, force), suffix_of(target, TARGETS)
    new = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}{suffix}")
    try:
        written = write(model, new, **options)
        if not _is_read_back(written, new):
            raise InteropError(
                f"{path} was not kept: what was written is read as something else than the source; "
                "this is an error of rnnjax, please report it"
            )
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return written


def _is_read_back(model: Model, path: pathlib.Path) -> bool:
    """Whether a file gives the arrays back, or, where it holds layers, computes the same."""
    if path.suffix == ".safetensors":
        ours, theirs = torch.to_state_dict(model), read_arrays(path.read_bytes())
    elif isinstance(model.network, onnx.Graph):
        ours, theirs = model.params, onnx.load(path).params
    else:
        alone = path.name.endswith(".weights.h5")
        read = keras.load(path, like=model) if alone else load(path)
        xs, first = _random_inputs(model), next(iter(model.layers.values()))
        ours = model(xs)[1]
        if isinstance(first, OneHotIds) and path.suffix == ".keras":  # which has no such layer
            xs = jax.nn.one_hot(xs, first.size)
        theirs = read(xs)[1]
    a, b = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    return len(a) == len(b) and all(_are_close(*pair) for pair in zip(a, b, strict=True))


def _are_close(ours: Any, theirs: Any) -> bool:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    scale = np.abs(a[np.isfinite(a)]).max(initial=1e-3)
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-5 * scale, equal_nan=True)


def _random_inputs(model: Model) -> Any:
    """Return inputs of a few steps, whose ids are in every vocabulary."""
    look_ups = [one for one in model.layers.values() if isinstance(one, Embedding | OneHotIds)]
    sizes = [one.size if isinstance(one, OneHotIds) else one.vocabulary_size for one in look_ups]
    rng, most = np.random.default_rng(0), min(sizes, default=2)

    def drawn(entry: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(entry.dtype, jnp.integer):
            return rng.integers(0, most, entry.shape).astype(entry.dtype)
        return rng.standard_normal(entry.shape).astype(entry.dtype)

    return jax.tree.map(drawn, input_shapes(model, 6, 2))


def check_target(target: str | os.PathLike[str], force: bool) -> pathlib.Path:
    """Raise unless a file can be written there; before a source is read, which may take longer."""
    path = pathlib.Path(target)
    suffix_of(path, TARGETS)
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise InvalidInputError(f"{path} is there already; give --force to replace it")
    if not path.parent.is_dir():
        raise InvalidInputError(f"there is no folder {path.parent}; make it first")
    return path


# --- The command line ---


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the status is 2 for an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for odd names of files and layers
    try:
        given = make_parser().parse_args(arguments)
        given.run(given)
    except RnnjaxError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror}; check the path"
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``rnnjax convert`` and ``rnnjax show``."""
    parser = _Parser(
        prog="rnnjax",
        description="Example: rnnjax convert model.keras model.onnx. "
        "Models of Keras, PyTorch and ONNX as files.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser(
        "show",
        help="print the layers of a model",
        description="Example: rnnjax show model.onnx. Print the layers of a model.",
    )
    show.set_defaults(run=_show)

    converter = commands.add_parser(
        "convert",
        help="write a model in another format",
        description="Example: rnnjax convert model.keras model.onnx. "
        "Write a model in another format; the suffixes say which. The result is read "
        "back and compared with the source.",
    )
    converter.set_defaults(run=_convert)

    for command in (show, converter):
        command.add_argument("source", metavar="SOURCE", help=f"ends in {', '.join(SOURCES)}")
        command.add_argument(
            "--at",
            metavar="KEYS",
            help="where a file of PyTorch has its state dict, as in model or models/first; needed "
            "where it has several",
        )
        command.add_argument(
            "--modules",
            metavar="NAMES",
            type=lambda names: names.split(","),
            help="the modules of a file of PyTorch in the order in which they run, as in "
            "embedding,lstm,head; needed where their sizes do not tell it",
        )
        command.add_argument(
            "--nonlinearity",
            choices=("tanh", "relu"),
            help="of nn.RNN in a file of PyTorch, which does not say it; tanh if left out",
        )
        command.add_argument(
            "--like",
            metavar="FILE",
            help="another file with a model of the same layers, where SOURCE is a file of Keras "
            "that holds weights alone and their sizes do not tell the layers",
        )
    converter.add_argument("target", metavar="TARGET", help=f"ends in {', '.join(TARGETS)}")
    converter.add_argument(
        "--force", action="store_true", help="replace TARGET if it is there already"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as all others of the program."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(f"{message}; see {self.prog} --help")


def _read(given: argparse.Namespace) -> Model:
    options = {name: getattr(given, name) for name in ("at", "modules", "nonlinearity", "like")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(given.source, **options)
    for one in caught:
        print(f"warning: {one.message}", file=sys.stderr)
    return model


def _show(given: argparse.Namespace) -> None:
    print(_read(given))


def _convert(given: argparse.Namespace) -> None:
    check_target(given.target, given.force)
    model = _read(given)
    print(f"{given.source} holds\n\n{model}\n", flush=True)
    write_checked(model, given.target, force=given.force)
    if given.target.endswith((".safetensors", ".weights.h5")):
        print(f"{given.target} holds the arrays alone: the layers are for the code to say")
    size = pathlib.Path(given.target).stat().st_size
    print(f"wrote {given.target} ({size:,} bytes), and read it back as the same model")
