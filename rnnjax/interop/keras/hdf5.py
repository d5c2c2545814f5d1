"""Reads the arrays of an HDF5 file, as a program of its own: ``hdf5.py FILE MOST_BYTES SIZE``.

The library that reads HDF5 is large and written in C, and a damaged file can bring it to crash, to
loop or to ask for any amount of memory. So it runs in a process of its own, with limits, and gives
back what it read as plain bytes: a line of JSON, and the arrays one after the other. Nothing of
rnnjax is imported here, so that the process starts within a tenth of a second.

Everything that a file says of itself is checked before anything is read by it.
"""

import contextlib
import json
import sys
from typing import Any

WANTED = ("layers", "_layer_checkpoint_dependencies", "model_weights")
"""The groups at the top that hold weights; others, such as the optimizer's, are not looked at."""

ATTRIBUTES = ("layer_names", "weight_names", "model_config", "keras_version", "backend", "dtype")
"""The attributes that are read; long lists are in several, named ``layer_names0`` and so on."""

_LONGEST_ATTRIBUTE = 16 * 2**20
_MOST_OBJECTS = 20_000
_DEEPEST = 20
_OTHER_GROUPS = ("optimizer", "optimizer_weights", "top_level_model_weights", "vars")


class Refused(Exception):
    """What is wrong with the file, in words."""


class Reader:
    """The walk through one open file: attributes and arrays by their paths."""

    def __init__(self, h5py: Any, numpy: Any, most_bytes: int) -> None:
        self.h5py, self.numpy = h5py, numpy
        self.left = self.most_bytes = most_bytes
        self.objects = 0
        self.attributes: dict[str, dict[str, Any]] = {}
        self.arrays: list[tuple[str, Any]] = []

    def read(self, file: Any) -> None:
        """Read the groups with weights; a file of weights in the old layout has its own at the top.

        Sizes are known for all arrays before the first is read.
        """
        self._attributes_of("", file)
        old = any(name.startswith("layer_names") for name in self.attributes.get("", {}))
        found: list[tuple[str, Any]] = []
        for name in file:
            # Keras 2.13 to 2.15 joined paths by the separator of the system.
            path = name if old else name.replace("\\", "/")
            if name not in _OTHER_GROUPS and (old or path.partition("/")[0] in WANTED):
                self._visit(file, name, path, 1, found)
        self.arrays = [(path, self._array(dataset)) for path, dataset in found]

    def _visit(self, group: Any, name: str, path: str, depth: int, found: list[Any]) -> None:
        self.objects += 1
        if self.objects > _MOST_OBJECTS or depth > _DEEPEST:
            raise Refused(
                f"it should hold at most {_MOST_OBJECTS} groups and arrays, {_DEEPEST} deep, but "
                f"has more at {path[:80]!r}"
            )
        kind = group.get(name, getlink=True, getclass=True)
        if kind is not self.h5py.HardLink:
            raise Refused(
                f"{path[:80]!r} is a link to another place ({kind.__name__}), which is not followed"
            )
        entry = group[name]
        if isinstance(entry, self.h5py.Dataset):
            self._check(path, entry)
            found.append((path, entry))
        elif isinstance(entry, self.h5py.Group):
            self._attributes_of(path, entry)
            for inner in entry:
                self._visit(entry, inner, f"{path}/{inner}", depth + 1, found)
        else:
            raise Refused(f"{path[:80]!r} is neither a group nor an array")

    def _check(self, path: str, dataset: Any) -> None:
        """Numbers that lie in this file, and not more of them than the file could hold."""
        if dataset.external or dataset.is_virtual:
            raise Refused(f"the numbers of {path[:80]!r} are in another file, which is not read")
        if dataset.shape is None or (
            dataset.dtype.kind not in "fiub" and not _is_bfloat16(dataset)
        ):
            raise Refused(f"{path[:80]!r} is of type {dataset.dtype}, which are no numbers")
        if len(dataset.shape) > 8:
            raise Refused(f"{path[:80]!r} has {len(dataset.shape)} axes, which no layer has")
        size = dataset.dtype.itemsize
        for length in dataset.shape:
            size *= int(length)
        self.left -= size
        if self.left < 0:
            raise Refused(
                f"its arrays are said to take more than {self.most_bytes} bytes with "
                f"{path[:80]!r} {dataset.shape}, which is far more than the file holds"
            )

    def _array(self, dataset: Any) -> Any:
        array = self.numpy.ascontiguousarray(dataset[()]).reshape(dataset.shape)
        if _is_bfloat16(dataset):
            array = array.view(self.numpy.uint16)
        else:
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return array, "bfloat16" if _is_bfloat16(dataset) else array.dtype.str

    def _attributes_of(self, path: str, group: Any) -> None:
        for name in group.attrs:
            if name.rstrip("0123456789") not in ATTRIBUTES:
                continue
            entry = group.attrs.get_id(name)
            length = 1
            for axis in entry.shape or ():
                length *= int(axis)
            if length * max(1, entry.dtype.itemsize) > _LONGEST_ATTRIBUTE:
                raise Refused(f"the attribute {name!r} of {path[:80]!r} is too long")
            value = _text(group.attrs[name])
            if value is not None:
                self.attributes.setdefault(path, {})[name] = value


def _is_bfloat16(dataset: Any) -> bool:
    """NumPy has no such type; Keras writes two bytes without one, and an attribute."""
    return (
        dataset.dtype.kind == "V"
        and dataset.dtype.itemsize == 2
        and dataset.dtype.fields is None
        and _text(dataset.attrs.get("dtype")) == "bfloat16"
    )


def _text(value: Any) -> Any:
    """A string, or a list of strings, as it is written in several ways; None for another value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [_text(entry) for entry in value]
        return texts if all(isinstance(text, str) for text in texts) else None
    return None


def _limit(most_bytes: int, file_bytes: int) -> None:
    """Bound the memory and the processor time of this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    bounds = {
        # Python, NumPy and the reader take some hundred MiB of addresses, and an array is copied.
        resource.RLIMIT_AS: 2**30 + 3 * most_bytes + file_bytes,
        resource.RLIMIT_CPU: 3 + file_bytes // (20 * 2**20),
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        with contextlib.suppress(ValueError, OSError):  # a system without this one
            resource.setrlimit(kind, (bound, bound))


def main(path: str, most_bytes: int, file_bytes: int) -> None:
    """Write what the file holds to the standard output, or one line that says why not."""
    _limit(most_bytes, file_bytes)
    out = sys.stdout.buffer
    try:
        import h5py
        import numpy

        reader = Reader(h5py, numpy, most_bytes)
        with h5py.File(path, "r") as file:
            reader.read(file)
    except Exception as error:  # whatever the reader thinks of a damaged file
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        why = f"the HDF5 file is damaged ({words}); get it again"
        if isinstance(error, Refused):
            why = f"{error}; check where the file is from"
        elif isinstance(error, ImportError):  # of no file, but of this Python
            why = f"the process that reads HDF5 cannot import h5py ({words}); check that it can"
        out.write(json.dumps({"why": why}).encode())
        return
    header = {
        "attributes": reader.attributes,
        "arrays": [(name, kind, array.shape) for name, (array, kind) in reader.arrays],
    }
    out.write(json.dumps(header).encode() + b"\n")
    for _, (array, _) in reader.arrays:
        out.write(array.tobytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
