"""What ``torch.save`` writes, read without PyTorch.

Since PyTorch 1.6 it is a zip of bare entries: ``data.pkl``, a pickle in which each tensor names its
storage, and ``data/0``, ``data/1`` ..., the bytes of the storages. Before that it was one stream:
five pickles, and then the storages.
"""

import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

from rnnjax.errors import InteropError
from rnnjax.interop.files import TORCH_STREAM, ZIP, describe, in_a_line
from rnnjax.interop.torch.pickles import ALONE, Storage, run_pickle

_LONGEST_PICKLE = 32 * 2**20  # which may be a text that takes four bytes a letter
_LONGEST_DIRECTORY = 16 * 2**20  # of a zip: some 200,000 entries, which take 20 times as much
# NotImplementedError is of a method of compression that Python does not know.
_DAMAGED = (ValueError, IndexError, KeyError, AttributeError, struct.error, EOFError, OSError,
            zipfile.BadZipFile, pickle.UnpicklingError, NotImplementedError)  # fmt: skip


def is_saved_by_torch(start: bytes) -> bool:
    """Whether a file begins so that `read_saved` is the reader to ask."""
    return start.startswith(ZIP) or (start[:1] == b"\x80" and start[2:].startswith(TORCH_STREAM))


def read_saved(file: BinaryIO) -> Any:
    """What was saved: containers of text, numbers and `Tensor`, which reads from ``file``."""
    file.seek(0)
    read = _read_zip if file.read(1) == b"P" else _read_stream
    return _in_our_words(read, _Bounded(file))


class _Bounded(io.BufferedIOBase):
    """A file of which no more can be asked for than it has, so that no size takes memory."""

    def __init__(self, file: BinaryIO):
        self.file, self.length, self.most = file, file.seek(0, io.SEEK_END), _LONGEST_DIRECTORY

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        """The next, at most so many; refused where they would be more than ``most``."""
        left = self.length - self.tell()
        size = left if size is None or size < 0 else size
        if size > self.most:
            raise ValueError(f"{size} bytes of it should be read, but {self.most} are the most")
        return self.file.read(size)

    def part(self, start: int, size: int) -> bytes:
        """All of a part."""
        if not 0 <= size <= self.length - start:
            raise ValueError("it is cut off")
        self.seek(start)
        return self.file.read(size)


def _in_our_words(read: Callable[..., Any], *args: Any) -> Any:
    """What a reader returns, or InteropError where the file does not hold what it says."""
    try:
        return read(*args)
    except _DAMAGED as error:
        raise InteropError(f"it is damaged ({in_a_line(error)}); get it again") from error


def _hold(storage: Storage, size: int | None, read: Callable[[], bytes]) -> None:
    """Have a storage read by that, where the number of bytes fits."""
    if size != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"its storage {storage.key[:20]} should have {storage.size} numbers in "
            f"{storage.dtype}, but {'is not there' if size is None else f'has {size} bytes'}"
        )
    storage.read = functools.partial(_in_our_words, read)


def _read_zip(file: _Bounded) -> Any:
    archive = zipfile.ZipFile(file)
    file.most = file.length
    names = archive.namelist()
    root, sizes = next(iter(names), "").partition("/")[0], dict.fromkeys(names, 0)
    what = describe(b"", names)
    if what and "torch.load" not in what:
        raise InteropError(f"it is {what}")
    strange = [n for n in names if not n.startswith(f"{root}/") or ".." in n.split("/")]
    if not root or strange or f"{root}/data.pkl" not in sizes:
        why = f"has an entry {strange[0][:80]!r}" if strange else "has no data.pkl"
        raise InteropError(
            f"it is a zip that torch.save did not write: it {why}; check which file it is"
        )
    for entry in archive.infolist():
        sizes[entry.filename] += entry.file_size
        if entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise InteropError(
                f"its entry {entry.filename[:80]!r} is compressed or encrypted, and not of "
                f"torch.save; {ALONE}"
            )
    # Entries that lie in each other would let the same bytes be read again and again.
    places = {entry.header_offset for entry in archive.infolist()}
    if min(len(sizes), len(places)) < len(names) or sum(sizes.values()) > file.length:
        raise ValueError("its entries overlap, or two have one name")
    pickled, order = f"{root}/data.pkl", f"{root}/byteorder"
    if sizes[pickled] > _LONGEST_PICKLE or sizes.get(order, 0) > len("little"):
        raise InteropError(
            f"its data.pkl has {sizes[pickled]:,} bytes, where {_LONGEST_PICKLE:,} are read at "
            f"most, or its byteorder is none; {ALONE}"
        )
    storages: dict[str, Storage] = {}
    tree = run_pickle(io.BytesIO(archive.read(pickled)), storages)
    swapped = order in sizes and archive.read(order) == b"big"
    for key, storage in storages.items():
        entry_name, storage.swapped = f"{root}/data/{key}", swapped
        _hold(storage, sizes.get(entry_name), functools.partial(archive.read, entry_name))
    return tree


def _read_stream(file: _Bounded) -> Any:
    """The form before PyTorch 1.6; its numbers are little-endian, whatever the machine was."""
    storages: dict[str, Storage] = {}
    pickles = io.BytesIO(file.part(0, min(file.length, _LONGEST_PICKLE)))
    pickles.seek(2 + len(TORCH_STREAM))
    if run_pickle(pickles, storages) != 1001:
        raise InteropError("it is of a form that PyTorch has left; save it again with a new one")
    run_pickle(pickles, storages)  # the machine's sizes of numbers
    tree, keys = run_pickle(pickles, storages), run_pickle(pickles, storages)
    if type(keys) is not list:
        raise ValueError("its storages are no list")
    at, left = pickles.tell(), dict(storages)
    for key in keys:
        storage = left.pop(key, None) if type(key) is str else None
        if storage is None:
            raise ValueError("it has a storage that no tensor is in")
        size = struct.unpack("<q", file.part(at, 8))[0] * storage.dtype.itemsize
        _hold(storage, size, functools.partial(file.part, at + 8, size))
        at += 8 + size
    for storage in left.values():
        _hold(storage, None, bytes)
    file.part(at, 0)  # the last is whole
    return tree
