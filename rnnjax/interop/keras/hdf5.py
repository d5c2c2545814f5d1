"""Reads the arrays of an HDF5 file, as a program of its own: ``hdf5.py FILE MOST_BYTES SIZE``.

The library that reads HDF5 is large and written in C, and a damaged file can bring it to crash, to
loop or to ask for any amount of memory. So it runs in a process of its own, with limits, and gives
back what it read as plain bytes: a line of JSON, and the arrays one after the other. Nothing of
rnnjax is imported here, so that the process starts within a tenth of a second.

Everything that a file says of itself is checked before anything is read by it.
"""

import contextlib
import io
import json
import math
import sys
from typing import Any

# The groups at the top that hold weights; others, such as the optimizer's, are not looked at.
_WANTED = ("layers", "_layer_checkpoint_dependencies", "model_weights")
_OTHERS = ("optimizer", "optimizer_weights", "top_level_model_weights", "vars")
# The attributes that are read; long lists are in several, named layer_names0 and so on.
_ATTRIBUTES = ("layer_names", "weight_names", "model_config", "keras_version", "dtype")
_LONGEST_ATTRIBUTE = 16 * 2**20
_MOST_LINKS = 20_000


def read(h5py: Any, file: Any, most_bytes: int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Attributes by the paths of their groups, and arrays by theirs, of which none is read yet.

    Those of the groups with weights; a file of weights in the old layout has its own at the top.
    """
    attributes, found, links = {"": _attributes_of("", file)}, [], list[Any]()
    old, left = any(name.startswith("layer_names") for name in attributes[""]), most_bytes

    def meet(*link: Any) -> Any:
        links.append(link)
        return True if len(links) > _MOST_LINKS else None

    if file.visititems_links(meet):  # each once, also of a group that is inside of itself
        raise SystemExit(f"it should hold at most {_MOST_LINKS} groups and arrays")
    for name, link in links:
        # Keras 2.13 to 2.15 joined paths by the separator of the system.
        path = name if old else name.replace("\\", "/")
        top = path.partition("/")[0]
        if top in _OTHERS or (not old and top not in _WANTED):
            continue
        if not isinstance(link, h5py.HardLink):
            raise SystemExit(f"{path[:80]!r} is a link to another place, which is not followed")
        entry = file[name]
        if isinstance(entry, h5py.Group):
            attributes[path] = _attributes_of(path, entry)
            continue
        if not isinstance(entry, h5py.Dataset):
            raise SystemExit(f"{path[:80]!r} is neither a group nor an array")
        if entry.external or entry.is_virtual:
            raise SystemExit(f"the numbers of {path[:80]!r} are in another file, which is not read")
        if entry.shape is None or (entry.dtype.kind not in "fiub" and not is_bfloat16(entry)):
            raise SystemExit(f"{path[:80]!r} is of type {entry.dtype}, which are no numbers")
        left -= math.prod(entry.shape, start=entry.dtype.itemsize)
        if left < 0:
            raise SystemExit(
                f"with {path[:80]!r} it takes far more than the file holds, {most_bytes} bytes"
            )
        found.append((path, entry))
    return attributes, found


def is_bfloat16(dataset: Any) -> bool:
    """NumPy has no such type; Keras writes two bytes without one, and an attribute."""
    two = dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2 and not dataset.dtype.fields
    return two and _text(dataset.attrs.get("dtype")) == "bfloat16"


def _attributes_of(path: str, group: Any) -> dict[str, Any]:
    told = {}
    for name in group.attrs:
        if name.rstrip("0123456789") in _ATTRIBUTES:
            entry = group.attrs.get_id(name)
            if math.prod(entry.shape or (), start=entry.dtype.itemsize or 1) > _LONGEST_ATTRIBUTE:
                raise SystemExit(f"the attribute {name!r} of {path[:80]!r} is too long")
            told[name] = _text(group.attrs[name])
    return {name: value for name, value in told.items() if value is not None}


def _text(value: Any) -> Any:
    """A string, or a list of strings, as it is written in several ways; None for another value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        texts = [_text(entry) for entry in value]
        return texts if all(isinstance(text, str) for text in texts) else None
    return value if isinstance(value, str) else None


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
        # A system may lack one, or have a lower bound already, which stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))


def main(path: str, most_bytes: int, file_bytes: int) -> None:
    """Write what the file holds to the standard output, or one line that says why not."""
    _limit(most_bytes, file_bytes)
    out, arrays, names = sys.stdout.buffer, [], []
    try:
        import h5py
        import numpy

        with h5py.File(path, "r") as file:
            attributes, found = read(h5py, file, most_bytes)
            for name, dataset in found:
                arrays.append(dataset[()])
                names.append(name)
    except (Exception, SystemExit) as error:  # whatever the reader thinks of a damaged file
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        why = f"the HDF5 file is damaged ({words}); get it again"
        if isinstance(error, SystemExit):  # said above
            why = f"{error}; check where the file is from"
        elif isinstance(error, ImportError):  # of no file, but of this Python
            why = f"the process that reads HDF5 cannot import h5py ({words}); check that it can"
        out.write(json.dumps({"why": why}).encode())
        return
    out.write(json.dumps({"attributes": attributes, "arrays": names}).encode() + b"\n")
    for array in arrays:
        numpy.save(stream := io.BytesIO(), array, allow_pickle=False)
        out.write(stream.getbuffer())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
