"""State dicts in ``.safetensors`` files: both ways with PyTorch, refusals, and damaged files."""

import json
import pathlib
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from interop_helpers import change, check_damaged

from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.torch import load, save
from rnnjax.interop.torch.files import read_arrays

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
files = pytest.importorskip("safetensors.torch", reason="it needs PyTorch")

MODULES = {
    "lstm": lambda: torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "gru": lambda: torch.nn.GRU(3, 4, bias=False),
    "rnn-cell": lambda: torch.nn.RNNCell(3, 4),
    "tagger": lambda: torch.nn.ModuleDict(
        {"a": torch.nn.Embedding(9, 3), "b": torch.nn.LSTM(3, 4), "c": torch.nn.Linear(4, 9)}
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODULES)
def test_files_go_both_ways_to_the_bit(name: str, dtype: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().to(getattr(torch, dtype))
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    files.save_file(module.state_dict(), theirs)
    save(load(theirs), ours)
    state = files.load_file(ours)
    assert sorted(state) == sorted(module.state_dict())
    for key, tensor in module.state_dict().items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor)
    module.load_state_dict(state)


def test_arrays_are_in_the_order_of_their_names() -> None:
    """So that a model of one-hot characters, whose sizes say it less, is read alike each time."""
    names = "hgfedcba"
    content = files.save({name: torch.zeros(1) for name in names})
    assert [*read_arrays(content)] == sorted(names)


def file_of(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADER_OF_A_PICKLE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x280)
TWICE = b'"a.weight":{"dtype":"F32","shape":[1],"data_offsets":'
LINES = {"a\nb.weight_ih_l0": entry([4, 1], 0, 16)}
DAMAGED = {
    "empty": (b"", "0 bytes"),
    "absurd length": (file_of({}, size=2**63), "a header that fits in"),
    "no json": (file_of(b"{]"), "is damaged"),
    "deep": (file_of(b'{"a":' + b"[" * 200_000), "is damaged"),
    "a name of two lines": (file_of(LINES, bytes(16)), r"weight_hh of 'a\\nb'_l0 .*missing"),
    "a list": (file_of([1, 2]), "no .safetensors file"),
    "overlap": (file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "damaged"),
    "no type here": (file_of({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)), "is of type F8_E4M3"),
    "twice": (file_of(b"{%b[0,4]},%b[4,8]}}" % (TWICE, TWICE), bytes(8)), "is damaged"),
    "integers": (file_of({"a.weight": entry([1, 1], 0, 4, "I32")}, bytes(4)), "int32"),
    "a shape that is none": (file_of({"a.weight": entry([4], 0, 16)}, bytes(16)), "only 'a'"),
    "nothing": (file_of({}), "no module"),
    "as long as nothing is": (file_of({"a": entry([0, 2**62, 2**62], 0, 0)}), "a shape that no"),
    "of many axes": (file_of({"a": entry([1] * 100, 0, 4)}, bytes(4)), "a shape that no|damaged"),
    "a header as long as a pickle's mark": (file_of(HEADER_OF_A_PICKLE, bytes(4)), "'a'|''"),
    "a layer far up": (file_of({"weight_hh_l9999": entry([1, 1], 0, 4)}, bytes(4)), "_l0, _l1 ..."),
    "html": (b"<!DOCTYPE html><html></html>", "no .safetensors file"),
    "a long header": (file_of(b"{}".ljust(11 * 2**20)), "split the file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_hostile_files_are_refused_in_a_sentence(
    name: str, tmp_path: pathlib.Path
) -> None:
    content, match = DAMAGED[name]
    (said,) = check_damaged(tmp_path / "a.safetensors", [content], load)
    assert re.search(match, said)


def test_what_is_no_file_is_told(tmp_path: pathlib.Path) -> None:
    model = load(gru_file(tmp_path))
    for path, says in (
        (tmp_path / "a.safetensors", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "a\0b.safetensors", "cannot be read"),
    ):
        with pytest.raises(InteropError, match=says):
            load(path)
    for call in (lambda: load(3), lambda: save(model, b"a.safetensors")):
        with pytest.raises(InvalidInputError, match="name of a file"):
            call()
    before = set(tmp_path.iterdir())
    with pytest.raises(InteropError, match="cannot be written"):
        save(model, tmp_path / "a\0b.safetensors")
    assert set(tmp_path.iterdir()) == before


def gru_file(tmp_path: pathlib.Path) -> pathlib.Path:
    torch.manual_seed(0)
    files.save_file(torch.nn.GRU(3, 4).state_dict(), tmp_path / "gru.safetensors")
    return tmp_path / "gru.safetensors"


def test_writing_is_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    model = load(gru_file(tmp_path))
    with pytest.raises(InvalidInputError, match=r"end in \.safetensors"):
        save(model, tmp_path / "a.pt")
    with pytest.raises(InteropError, match="cannot be written"):
        save(model, tmp_path / "no-such-folder" / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"before")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InteropError, match="No space left"):
        save(model, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"
    assert not [*tmp_path.glob("*.part")]


def test_a_missing_package_is_told(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    path = gru_file(tmp_path)
    model = load(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: load(path), lambda: save(model, tmp_path / "b.safetensors")):
        with pytest.raises(InteropError, match=r"pip install 'rnnjax\[safetensors\]'"):
            call()


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes changed, cut out, put in, doubled; numbers and names of the header changed."""
    rng = random.Random(seed)
    size = int.from_bytes(content[:8], "little")
    words = re.findall(rb"\w+|\W", content[8 : 8 + size])

    def change_word() -> bytes:
        changed = [*words]
        others = [
            *words,
            b"F16",
            b"0",
            b"99999999999999999999",
            b"-1",
            b"1e9",
            b"weight_hh_l0_reverse",
        ]
        changed[rng.randrange(len(words))] = rng.choice(others)
        return b"".join(changed)

    for _ in range(count):
        which = rng.randrange(3)
        if which == 0:
            yield change(rng, content)
        else:  # the length is made to fit, so that what is behind it is reached
            text = change_word() if which == 1 else change(rng, b"".join(words))
            yield len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_models_or_refusals(count: int, tmp_path: pathlib.Path) -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.GRU(3, 4), "b": torch.nn.Linear(4, 3)})
    whole = files.save(module.state_dict())
    said = check_damaged(tmp_path / "a.safetensors", mutations(whole, count, 0), load)
    print(f"{len(said)} of {count} mutations are refused")
    assert count // 100 <= len(said) <= count - count // 100
