"""What ``torch.save`` writes, read without PyTorch.

Since PyTorch 1.6 it is a zip of bare entries: ``data.pkl``, a pickle in which each tensor names its
storage, and ``data/0``, ``data/1`` ..., the bytes of the storages. Before that it was one stream:
five pickles, and then the storages.
"""

import dataclasses
import functools
import io
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

from rnnjax.errors import InteropError
from rnnjax.interop.torch.pickles import ALONE, Storage, run_pickle

_LONGEST_PICKLE = 64 * 2**20
_LONGEST_DIRECTORY = 16 * 2**20  # of a zip: some 200,000 entries
_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of a stream, behind its protocol


class Place(NamedTuple):
    """Where bytes lie in a file; without a checksum in a stream."""

    start: int
    size: int
    checksum: int | None = None


def is_saved_by_torch(start: bytes) -> bool:
    """Whether a file begins so that `read_saved` is the reader to ask."""
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[2:15] == _MAGIC)


def read_saved(file: BinaryIO) -> Any:
    """What was saved: containers of text, numbers and `Tensor`, which reads from ``file``.

    Raises:
        InteropError: it is damaged, another format, holds anything else, or means to use more
            memory than it has itself.
    """
    source = _Source(file, file.seek(0, io.SEEK_END))
    try:
        return (_read_zip if source.bytes(Place(0, 1)) == b"P" else _read_stream)(source)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        said = " ".join(str(error).split())[:120]
        raise InteropError(f"it is damaged ({said}); get it again") from error


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file and its length, beyond which nothing is looked for and no memory taken."""

    file: BinaryIO
    length: int

    def bytes(self, place: Place) -> bytes:
        """Those that lie there."""
        if place.start < 0 or not 0 <= place.size <= self.length - place.start:
            raise InteropError("it is cut off; get it again")
        self.file.seek(place.start)
        content = self.file.read(place.size)
        if place.checksum is not None and zlib.crc32(content) != place.checksum:
            raise InteropError("it is damaged: a checksum is another; get it again")
        return content

    def hold(self, storage: Storage, place: Place | None, swapped: bool = False) -> None:
        """Have a storage read from there, where it fits."""
        size = None if place is None else place.size
        if place is None or size != storage.size * storage.dtype.itemsize:
            raise ValueError(
                f"its storage {storage.key[:20]} should have {storage.size} numbers in "
                f"{storage.dtype}, but {'is not there' if size is None else f'has {size} bytes'}"
            )
        storage.read, storage.swapped = functools.partial(self.bytes, place), swapped


def _read_zip(source: _Source) -> Any:
    places = _directory(source)
    root = next(iter(places), "").partition("/")[0]
    strange = [n for n in places if not n.startswith(f"{root}/") or ".." in n.split("/")]
    if not root or strange or f"{root}/data.pkl" not in places:
        why = f"has an entry {strange[0][:80]!r}" if strange else "has no data.pkl"
        raise InteropError(
            f"it is a zip that torch.save did not write: it {why}; check which file it is"
        )
    pickled, order = places[f"{root}/data.pkl"], places.get(f"{root}/byteorder", Place(0, 0))
    if pickled.size > _LONGEST_PICKLE or order.size > len("little"):
        raise InteropError(
            f"its data.pkl has {pickled.size:,} bytes, where {_LONGEST_PICKLE:,} are read at most, "
            f"or its byteorder is none; {ALONE}"
        )
    storages: dict[str, Storage] = {}
    tree = run_pickle(io.BytesIO(source.bytes(pickled)), storages)
    swapped = source.bytes(order) == b"big"
    for key, storage in storages.items():
        source.hold(storage, places.get(f"{root}/data/{key}"), swapped)
    return tree


def _read_stream(source: _Source) -> Any:
    """The form before PyTorch 1.6; its numbers are little-endian, whatever the machine was."""
    storages: dict[str, Storage] = {}
    pickles = io.BytesIO(source.bytes(Place(0, min(source.length, _LONGEST_PICKLE))))
    pickles.seek(2 + len(_MAGIC))
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
        (size,) = struct.unpack("<q", source.bytes(Place(at, 8)))
        source.hold(storage, Place(at + 8, size * storage.dtype.itemsize))
        at += 8 + size * storage.dtype.itemsize
    for storage in left.values():
        source.hold(storage, None)
    source.bytes(Place(at, 0))  # the last is whole
    return tree


def _directory(source: _Source) -> dict[str, Place]:
    """The entries of a zip by name, none of them compressed, and no byte in two of them."""
    end = source.bytes(Place(source.length - 22, 22))
    signature, _, _, _, _, size, start, _ = struct.unpack("<4s4H2LH", end)
    if signature != b"PK\x05\x06":
        raise ValueError("it has no directory at its end")
    locator = source.bytes(Place(max(source.length - 42, 0), 20))
    if locator[:4] == b"PK\x06\x07":  # sizes of 64 bits are told in front of it
        end = source.bytes(Place(struct.unpack_from("<Q", locator, 8)[0], 56))
        signature, *_, size, start = struct.unpack("<4sQ2H2L4Q", end)
        if signature != b"PK\x06\x06":
            raise ValueError("its directory is not where it should be")
    if size > _LONGEST_DIRECTORY:
        raise ValueError(f"its directory has {size} bytes")
    directory, at = source.bytes(Place(start, size)), 0
    places: dict[str, Place] = {}
    headers: list[tuple[int, int]] = []
    while at < size:
        name, place, header, at = _entry(directory, at)
        fields = struct.unpack("<4s5H3L2H", source.bytes(Place(header, 30)))
        if fields[0] != b"PK\x03\x04" or name in places or at > size:
            raise ValueError(f"its entry {name[:80]!r} is there twice, or not where it should be")
        places[name] = place._replace(start=header + 30 + sum(fields[-2:]))
        headers.append((header, places[name].start + place.size))
    headers.sort()
    following = [*(first for first, _ in headers[1:]), start]
    if any(end > next_one for (_, end), next_one in zip(headers, following, strict=False)):
        raise ValueError("its entries overlap")
    return places


def _entry(directory: bytes, at: int) -> tuple[str, Place, int, int]:
    """An entry of the directory, where its header is in the file, and where the next entry is."""
    fields = struct.unpack_from("<4s6H3L5H2L", directory, at)
    flags, method = fields[3:5]
    checksum, packed, size, name_size, extra_size, comment_size = fields[7:13]
    if fields[0] != b"PK\x01\x02":
        raise ValueError("its directory holds something else")
    name = directory[at + 46 : at + 46 + name_size].decode()
    extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
    header = fields[-1]
    while len(extra) >= 4:
        kind, extent = struct.unpack_from("<2H", extra)
        if kind == 1:  # 64 bits, of those that do not fit in 32
            wide = iter(struct.unpack_from(f"<{extent // 8}Q", extra, 4))
            size, packed, header = (
                next(wide, 0) if value == 2**32 - 1 else value for value in (size, packed, header)
            )
        extra = extra[4 + extent :]
    if method or flags & 1 or packed != size:
        raise InteropError(
            f"its entry {name[:80]!r} is compressed or encrypted, and not of torch.save; {ALONE}"
        )
    return name, Place(0, size, checksum), header, at + 46 + name_size + extra_size + comment_size
