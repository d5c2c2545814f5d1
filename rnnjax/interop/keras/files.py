"""The files of Keras, read into plain values and written from them; no layer is known here.

An HDF5 file is read by a short-lived process of its own, `rnnjax.interop.keras.hdf5`, because the
library that reads it does not survive every damaged file.
"""

import dataclasses
import inspect
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.files import HDF5, ZIP, describe, in_a_line, opened, package, write_whole
from rnnjax.interop.keras import hdf5

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LONGEST_JSON = 16 * 2**20
_AT_LEAST = 64 * 2**20  # bytes that any file may unfold to
# All that Python's reader of archives is known to raise on damaged ones.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError,
               ValueError, RuntimeError, OverflowError, IndexError)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """The contents of a Keras file."""

    config: Any  # of the model, from JSON; None where the file holds weights alone
    version: str  # of Keras, such as "2.4.0"; empty where the file does not say
    arrays: Mapping[str, np.ndarray]  # by their paths: "layers/lstm/cell/vars/0"
    # of a file in the old layout, for each layer in order its name and the paths of its arrays by
    # their names in the file; None for the new layout
    groups: tuple[tuple[str, dict[str, str]], ...] | None = None


def read_file(path: str | os.PathLike[str]) -> KerasFile:
    """Read a ``.keras`` archive or an HDF5 file, known by its first bytes and not by its name.

    Nothing in it is run and nothing unpickled, no link is followed, and no more is read than its
    size can account for.
    """
    with opened(path) as file:
        start = file.read(16)
        if start.startswith(ZIP):
            return _read_archive(Path(path))
        if start.startswith(HDF5):
            return _from_hdf5(*_read_hdf5(Path(path)))
        neither = "neither a .keras archive nor an HDF5 file; save it with model.save('a.keras')"
        raise InteropError(f"it is {describe(start) or neither}")


def _read_archive(path: Path) -> KerasFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()  # nothing is put anywhere by them
            if _CONFIG not in names and (what := describe(b"", names)):
                raise InteropError(f"it is {what}")
            bound = max(_AT_LEAST, 4 * path.stat().st_size)
            config = _member(archive, _CONFIG, _LONGEST_JSON)
            metadata = _member(archive, _METADATA, _LONGEST_JSON)
            weights = _member(archive, _WEIGHTS, bound)
    except _ZIP_ERRORS as error:
        raise InteropError(f"the archive is damaged ({in_a_line(error)}); get it again") from error
    about = _parsed(_METADATA, metadata)
    version = about.get("keras_version") if isinstance(about, dict) else None
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / _WEIGHTS
        inner.write_bytes(weights)
        _, arrays = _read_hdf5(inner)
    parsed = _parsed(_CONFIG, config)
    return KerasFile(parsed, version if isinstance(version, str) else "3", arrays)


def _member(archive: zipfile.ZipFile, name: str, bound: int) -> bytes:
    count = archive.namelist().count(name)
    if count != 1:
        raise InteropError(
            f"it should have one member {name}, but has {count}; save it with Keras 3"
        )
    with archive.open(name) as file:
        content = file.read(bound + 1)  # what comes is counted, not what is said to come
    if len(content) > bound:
        raise InteropError(f"its member {name} unfolds to more than {bound} bytes")
    return content


def _parsed(name: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:  # TypeError of what is no text
        raise InteropError(
            f"{name} cannot be read as JSON ({in_a_line(error)}); get it again"
        ) from error


def _read_hdf5(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Attributes and arrays by path, from a process that may crash without harm."""
    package("h5py", "files of Keras", "keras-files")
    if not sys.executable or getattr(sys, "frozen", False):
        raise InteropError("HDF5 is read by a Python process of its own; load it in a plain Python")
    try:
        size = path.stat().st_size
        bound = max(_AT_LEAST, 4 * size)
        # The program is given as text: the package may lie in a zip. With -P the working folder
        # is not searched for modules; a warning is no error, whatever it is here.
        program = [sys.executable, "-P", "-W", "ignore", "-c", inspect.getsource(hdf5)]
        done = subprocess.run(
            [*program, str(path), str(bound), str(size)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120 + size / 2**20,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(str(entry) for entry in sys.path if entry),
                "HDF5_USE_FILE_LOCKING": "FALSE",
                "HDF5_PLUGIN_PATH": "::",  # a file may name a filter, but not have one loaded
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
    except subprocess.TimeoutExpired as error:
        raise InteropError(
            "the HDF5 library does not come to an end with it; get it again"
        ) from error
    except (OSError, ValueError) as error:  # the former also where rnnjax has no sources
        raise InteropError(f"it cannot be read ({error}); check the path") from error
    header, _, data = done.stdout.partition(b"\n")
    try:
        said = json.loads(header)
        if "why" in said:
            raise InteropError(said["why"])
        stream = io.BytesIO(data)
        arrays = {name: _native(np.load(stream)) for name in said["arrays"]}
    except (ValueError, KeyError, TypeError, EOFError) as error:
        code = done.returncode
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise InteropError(f"the HDF5 library fails on it ({how}); get the file again") from error
    return said["attributes"], arrays


def _native(array: np.ndarray) -> np.ndarray:
    """The array in the order of bytes of this machine, or in bfloat16, which no file spells."""
    if array.dtype.kind == "V":
        return array.view(jnp.bfloat16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_hdf5(attributes: dict[str, dict[str, Any]], arrays: dict[str, np.ndarray]) -> KerasFile:
    top = attributes.get("", {})
    config = top.get("model_config")
    if config is not None:
        config = _parsed("its attribute model_config", config)
    if any(name.startswith(("layers/", "_layer_checkpoint_dependencies/")) for name in arrays):
        return KerasFile(config, "3", arrays)
    places = [at for at in ("model_weights", "") if _names(attributes, at, "layer_names")]
    if not places:
        raise InteropError("it has no weights of Keras; save them with model.save or save_weights")
    above, groups = places[0], []
    for layer in _names(attributes, above, "layer_names"):
        at = f"{above}/{layer}" if above else layer
        inside = {}
        for name in _names(attributes, at, "weight_names"):
            if f"{at}/{name}" not in arrays:
                raise InteropError(
                    f"layer {layer[:80]!r} lists {name[:80]!r}, which is not in the file"
                )
            inside[name] = f"{at}/{name}"
        groups.append((layer, inside))
    version = top.get("keras_version") or attributes.get(above, {}).get("keras_version")
    known = version if isinstance(version, str) else ""
    return KerasFile(config, known, arrays, tuple(groups))


def _names(attributes: dict[str, dict[str, Any]], path: str, name: str) -> list[str]:
    """A list of names, which a long one has in pieces."""
    here = attributes.get(path, {})
    pieces = [here[key] for key in (name, *(f"{name}{i}" for i in range(len(here)))) if key in here]
    return [entry for piece in pieces if isinstance(piece, list) for entry in piece]


def plain(name: str) -> str:
    """The name of a layer as Keras 3 allows it: no slash, and on PyTorch no point either."""
    return name.replace("/", "_").replace(".", "_")


def write_file(path: Path, file: KerasFile) -> None:
    """Write an archive, or the HDF5 file of weights that is in one."""
    h5py = package("h5py", "files of Keras", "keras-files")
    content = io.BytesIO()
    with h5py.File(content, "w") as inner:
        for place, array in file.arrays.items():
            dataset = inner.create_dataset(place, data=array)
            if array.dtype == jnp.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
    if path.name.endswith(".keras"):
        weights, content = content.getvalue(), io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(_METADATA, json.dumps({"keras_version": file.version}))
            archive.writestr(_CONFIG, json.dumps(file.config))
            archive.writestr(_WEIGHTS, weights)
    write_whole(path, content.getvalue())
