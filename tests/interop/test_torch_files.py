"""Files of ``torch.save`` and safetensors: what they hold, to the bit, and hostile ones.

All but what PyTorch itself makes is read without PyTorch.
"""

import argparse
import collections
import gc
import importlib.util
import io
import json
import os
import pathlib
import pickle
import random
import re
import struct
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import change, check_damaged, drawn
from safetensors.numpy import save as safetensors_of

from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Model, convert, keras
from rnnjax.interop import flax as from_flax
from rnnjax.interop.torch import from_state_dict, load, load_state_dict, save, to_state_dict
from rnnjax.interop.torch.modules import find_state
from rnnjax.interop.torch.saved import _Unpickler, read_saved

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is in the extra `parity`")

# ---- a small writer of the same files, for machines without PyTorch and for files of no machine


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def written(value: Any, storages: list[np.ndarray], form: str = "zip") -> bytes:
    """The steps of a pickle that make a value; arrays are tensors, and ``storages`` gets them."""

    def many(values: Any) -> bytes:
        return b"".join(written(one, storages, form) for one in values)

    if isinstance(value, bytes):  # steps already
        return value
    if isinstance(value, np.ndarray):
        kind = named("torch", {"f": "FloatStorage", "i": "LongStorage"}[value.dtype.kind])
        place = ["storage", kind, str(len(storages)), "cpu", value.size, *[None] * (form != "zip")]
        storages.append(value)
        strides = tuple(stride // value.itemsize for stride in value.strides)
        call = named("torch._utils", "_rebuild_tensor_v2") + b"((" + many(place) + b"tQ"
        hooks = named("collections", "OrderedDict") + b")R"
        return call + many([0, value.shape, strides, False, hooks]) + b"tR"
    if isinstance(value, dict):
        return b"}(" + many(one for pair in value.items() for one in pair) + b"u"
    if isinstance(value, list):
        return b"](" + many(value) + b"e"
    if isinstance(value, tuple):
        return b"(" + many(value) + b"t"
    steps = pickle.dumps(value, 2)[2:-1]
    return steps[:-2] if isinstance(value, str) else steps  # without its place in the memo


def zip_of(entries: Mapping[str, bytes], **options: Any) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as file:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in entries.items():
            file.writestr(name.rstrip("*"), data, **options)
    return content.getvalue()


def packed(body: bytes, storages: list[np.ndarray]) -> bytes:
    """A zip of a pickle and storages."""
    data = {f"archive/data/{i}": array.tobytes() for i, array in enumerate(storages)}
    return zip_of({"archive/data.pkl": body, **data, "archive/version": b"3\n"})


def saved(tree: Any, form: str = "zip") -> bytes:
    """A file of the form ``"zip"`` or ``"stream"``."""
    storages: list[np.ndarray] = []
    body = b"\x80\x02" + written(tree, storages, form) + b"."
    if form == "zip":
        return packed(body, storages)
    keys = [str(i) for i in range(len(storages))]
    heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pickles = [pickle.dumps(head, 2) for head in heads] + [body, pickle.dumps(keys, 2)]
    return b"".join([*pickles, *(struct.pack("<q", a.size) + a.tobytes() for a in storages)])


@pytest.fixture
def read(tmp_path: pathlib.Path) -> Callable[..., Model]:
    """Read a file in which a tree was saved."""

    def read(tree: Any, form: str = "zip", **options: Any) -> Model:
        (tmp_path / "a.pt").write_bytes(saved(tree, form))
        return load(tmp_path / "a.pt", **options)

    return read


def state_of(module: str = "", seed: int = 0, gates: int = 4) -> dict[str, np.ndarray]:
    """The state dict of an LSTM of 4 units, or of a GRU with 3 gates."""
    rng, n = np.random.default_rng(seed), 4 * gates
    shapes = {"weight_ih": (n, 3), "weight_hh": (n, 4), "bias_ih": (n,), "bias_hh": (n,)}
    return {
        f"{module}{name}_l0": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def linear(name: str, outputs: int) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(outputs).standard_normal((outputs, 4)).astype(np.float32)
    return {f"{name}.weight": weight, f"{name}.bias": weight[:, 0].copy()}


NORM = {"bn.weight": np.ones(4, np.float32), "bn.num_batches_tracked": np.array(7)}


def spelled(tree: Any) -> Any:
    """Equal for equal values of equal types, tensors and arrays to the bit."""
    if isinstance(tree, dict):
        return [(repr(key), spelled(value)) for key, value in tree.items()]
    if isinstance(tree, list | tuple):
        return [type(tree), *map(spelled, tree)]
    if isinstance(tree, np.ndarray):
        return str(tree.dtype), tree.shape, tree.tobytes()
    if torch is not None and isinstance(tree, torch.Tensor):
        alone = tree.detach().clone(memory_format=torch.contiguous_format)
        data = bytes(alone.untyped_storage().tolist())
        return str(tree.dtype).removeprefix("torch."), tuple(tree.shape), data
    return repr(tree)


def check_read(model: Model, state: Any, *layers: str) -> None:
    """It has these layers, if any are given, and goes back to the bit."""
    assert not layers or [*model.layers] == [*layers]
    assert spelled(to_state_dict(model)) == spelled(state)


# ---- what whole files hold

MODULES = {
    "lstm": lambda: torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "gru": lambda: torch.nn.GRU(3, 4, bias=False),
    "rnn-cell": lambda: torch.nn.RNNCell(3, 4),
    "tagger": lambda: torch.nn.ModuleDict(
        {"a": torch.nn.Embedding(9, 3), "b": torch.nn.LSTM(3, 4), "c": torch.nn.Linear(4, 9)}
    ),
}


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODULES)
def test_safetensors_go_both_ways_to_the_bit(name: str, dtype: str, tmp_path: pathlib.Path) -> None:
    """Guards float16 and bfloat16, which are equally wide."""
    import safetensors.torch

    module = MODULES[name]().to(getattr(torch, dtype))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    save(load(tmp_path / "theirs.safetensors"), tmp_path / "ours.safetensors")
    state = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert dict(spelled(state)) == dict(spelled(module.state_dict()))
    module.load_state_dict(state)


def test_arrays_are_in_the_order_of_their_names(tmp_path: Any) -> None:
    """So that a model of one-hot characters, whose sizes say it less, is read alike each time."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_of({name: np.zeros(1) for name in "hgfedcba"}))
    assert [*load_state_dict(path)] == [*"abcdefgh"]


TYPES = [
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64", "complex128"),
]


@st.composite
def trees(draw: Any) -> Any:
    """Containers in each other, and tensors that lie in shared storages in any way; these."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    storages = []
    for name in draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3)):
        storage = torch.zeros(40, dtype=getattr(torch, name))
        numbers = rng.integers(0, 2 if name == "bool" else 256, storage.nbytes, np.uint8)
        storage.view(torch.uint8)[:] = torch.from_numpy(numbers)
        storages.append(storage)
    storages.append(torch.zeros(0))

    def view() -> Any:
        storage = draw(st.sampled_from(storages))
        if len(storage) == 0:
            return storage
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        strides = [draw(st.integers(0, 4)) for _ in shape]
        return storage.as_strided(shape, strides, draw(st.integers(0, 3)))

    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
        st.builds(view), st.builds(lambda: torch.nn.Parameter(view(), requires_grad=False)),
    )  # fmt: skip
    keys = st.one_of(st.text(max_size=5), st.integers(-5, 5))
    whole = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(keys, inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
        ),
        max_leaves=12,
    )
    return [draw(whole), *(view() for _ in range(3))], storages


@needs_torch
@pytest.mark.parametrize("form", ["zip", "big", "stream"])
def test_drawn_files_are_read_to_the_bit(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch saves, also as a big-endian machine does."""
    if form == "big":
        monkeypatch.setattr(sys, "byteorder", "big")

    @drawn(25)
    @given(trees())
    def check(made: Any) -> None:
        (tree, storages), file = made, io.BytesIO()
        expected = spelled(tree)
        for storage in storages * (form == "big"):
            storage.untyped_storage().byteswap(storage.dtype)
        torch.save(tree, file, _use_new_zipfile_serialization=form != "stream")
        assert spelled(read_saved(file)[0]) == expected

    check()


@needs_torch
@pytest.mark.parametrize("new", [True, False])
def test_a_checkpoint_of_torch(new: bool, tmp_path: pathlib.Path) -> None:
    """Any protocol of pickle is read, and parameters that have attributes."""
    module, path = MODULES["tagger"](), tmp_path / "a.pt"
    optimizer = torch.optim.Adam(module.parameters())
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    module.b.weight_hh_l0.no_decay = True
    rest = {"optimizer": optimizer.state_dict(), "epoch": 3}
    for protocol in (2, 3, 4, 5):
        for state in (module.state_dict(), dict(module.named_parameters())):
            tree, more = {"model": state, **rest}, {"_use_new_zipfile_serialization": new}
            torch.save(tree, path, pickle_protocol=protocol, **more)
            check_read(load(path), state, "a", "b", "c")


@needs_torch
def test_numbers_of_other_types_are_passed_over_where_their_end_is_said(tmp_path: Any) -> None:
    tree, path = {"model": torch.nn.GRU(3, 4).state_dict()}, tmp_path / "a.pt"
    tree["scales"] = torch.eye(3).to(torch.float8_e4m3fn)
    torch.save(tree, path)
    check_read(load(path), tree["model"])
    torch.save(tree, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InteropError, match=r"holds 'torch\..*' and numbers .*; save the par"):
        load(path)


@needs_torch
def test_a_file_without_checksums_is_told_from_a_damaged_one(tmp_path: Any) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.nn.GRU(3, 4).state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(InteropError, match=r"Bad CRC-32.*, unless .*set_crc32_options\(False\)"):
        load(tmp_path / "a.pt")


def test_old_pickles_and_new_ones_are_read() -> None:
    """Text in bytes and pairs in lists, as Python 2 wrote them; frames and memos of protocol 4."""
    two = b"\x80\x02" + named("collections", "OrderedDict") + b"(](](U\x01aK\x01eetR."
    four = pickle.dumps({"a": [1, 2.5, "text" * 100], "b": ("a", 1, None)}, 4)
    sized = b"\x80\x02" + named("torch", "Size") + b"(K\x02K\x03\x86tR."
    for body, expected in ((two, {"a": 1}), (four, pickle.loads(four)), (sized, (2, 3))):
        assert read_saved(io.BytesIO(packed(body, []))) == (expected, "")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_checkpoints_hold_besides_is_not_read(protocol: int, read: Any) -> None:
    state = state_of()
    besides = {
        "best": np.float64(3), "seen": {1, 2}, "key": b"abc", "type": np.dtype("<f4"),
        "history": np.arange(3.0), "by number": {np.int64(3): 0.5}, "frozen": frozenset({1}),
        "options": argparse.Namespace(rate=0.1), "folder": pathlib.PurePosixPath("a"),
        "counts": collections.OrderedDict(a=collections.defaultdict(list, b=[1])),
        "rows": collections.deque([1, 2]), "random": random.Random(0), "pairs": {None: 1, b"a": 2},
    }  # fmt: skip
    steps = pickle.dumps(besides, protocol)
    steps = steps[11:-1] if protocol > 2 else steps[2:-1]  # without its frame and its end
    device = named("torch", "device") + b"(" + written("cpu", []) + b"tR"
    check_read(read({"model": state, "besides": steps, "device": device}), state)


# ---- checkpoints


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_the_one_state_dict_in_a_file_is_found(form: str, read: Callable[..., Model]) -> None:
    state = state_of("lstm.") | linear("head", 2)
    moments = {i: {"step": 3, "exp_avg": array} for i, array in enumerate(state.values())}
    rest = {"optimizer": {"state": moments, "param_groups": [{"weight_decay": 0.1}]}, "epoch": 3}
    for tree in (state, {"model": state, **rest}, {"nets": [{"first": state}], **rest}):
        check_read(read(tree, form), state, "lstm", "head")
    check_read(from_state_dict({"model": state, **rest}), state)


def test_paths_of_a_million_dicts_take_no_memory() -> None:
    dicts: list[Any] = [{} for _ in range(20_000)]
    tree: Any = dicts + 20_000 * [dicts[0]]
    for level in range(4):
        tree = {chr(0x1F600 + level) * 60: tree}
    tracemalloc.start()
    try:
        assert find_state(tree, None) == tree
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_no_name_moves_the_terminal(read: Callable[..., Model]) -> None:
    model = read(state_of("a\x1b[31m."))
    assert [*model.layers] == ["a\x1b[31m"]
    assert str(model).replace("\n", "").isprintable()


def test_several_state_dicts_are_listed_and_chosen(read: Callable[..., Model]) -> None:
    first, second = state_of(seed=1), state_of(seed=2)
    tree = {"model": first, "ema": {"shadow": second}, "epoch": 3}
    with pytest.raises(InteropError, match=r"2 state dicts, 'model', 'ema/shadow';.*at='model'"):
        read(tree)
    check_read(read(tree, at="model"), first)
    check_read(read(tree, at="ema/shadow"), second)
    said = r"as 'model', 'ema', 'ema/shadow' does, but is 'best'"
    with pytest.raises(InvalidInputError, match=said):
        read(tree, at="best")
    check_read(from_state_dict({"model": first, "best": first}), first)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wraps_a_module_is_no_part_of_its_names(wrapper: str) -> None:
    """They go back with it."""
    many = state_of("lstm.") | linear("head", 2)
    for state, layers in ((state_of(), ["rnn"]), (many, ["lstm", "head"])):
        wrapped = {wrapper + key: array for key, array in state.items()}
        for options in ({}, {"modules": layers}):
            check_read(from_state_dict({"state_dict": wrapped}, **options), wrapped, *layers)


def test_what_no_layer_holds_is_named(read: Callable[..., Model]) -> None:
    state = state_of("gru.", gates=3) | NORM | {"scale": np.ones(3, np.float32)}
    state["conv.weight"] = np.ones((2, 3, 4), np.float32)
    match = r"a\.pt .*: 'bn' \(weight \(4,\).*''.*'conv' .* cannot be read .*of 'gru' "
    with pytest.raises(InteropError, match=match) as told:
        read({"model": state})
    assert "\n" not in str(told.value)
    with pytest.raises(InteropError, match=r"'bn'.*; say in modules"):
        from_state_dict(state)
    assert [*read(state, modules=["gru"]).layers] == ["gru"]  # the choice is the user's
    with pytest.raises(InteropError, match=r"'bn' .* is none of these"):
        read(state, modules=["gru", "bn"])
    both = {"head": linear("out", 2), "encoder": state_of("gru.", gates=3)}
    with pytest.raises(InteropError, match=r"2 state dicts, 'head', 'encoder'; .* at='encoder'"):
        from_state_dict(both)
    assert [*from_state_dict(both, at="encoder").layers] == ["gru"]


def test_the_command_line_shows_and_converts(tmp_path: pathlib.Path, capsys: Any) -> None:
    path, target = str(tmp_path / "a.pth"), str(tmp_path / "a.onnx")
    for name, spelled_so in (("it's", '"it\'s"'), ("a", "'a'")):
        tree = {name: state_of("net.lstm.") | NORM, "b": state_of(seed=1)}
        pathlib.Path(path).write_bytes(saved(tree))
        assert convert.main(["show", path]) == 2
        assert f"as in --at {spelled_so}" in capsys.readouterr().err
    assert convert.main(["show", path, "--at", "a"]) == 2
    said = capsys.readouterr().err
    assert "'bn' (weight (4,), num_batches_tracked ()) cannot be read" in said
    assert "say in --modules a,b what runs, as in --modules net.lstm, of" in said
    assert convert.main(["show", path, "--at", "a", "--modules", "net.lstm"]) == 0
    printed = capsys.readouterr()
    assert "LSTMCell(4)" in printed.out
    assert printed.err == ""
    assert convert.main(["convert", path, target, "--at", "a", "--modules", "net.lstm"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("gates", [1, 4])
def test_formats_of_one_bias_get_the_sum(gates: int, dtype: str, tmp_path: pathlib.Path) -> None:
    """Which is not rounded."""
    model = from_state_dict(
        {k: x.astype(jnp.dtype(dtype)) for k, x in state_of(gates=gates).items()}
    )
    xs = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    for name in ("a.keras", "a.onnx"):
        convert.write(model, tmp_path / name)
    read = keras.load(tmp_path / "a.keras")
    assert read.params["rnn"].keys() == {"kernel", "recurrent_kernel", "bias"}
    flax = from_flax.from_params(from_flax.to_params(model))
    others = [read, convert.load(tmp_path / "a.onnx"), flax]
    expected, *all_ys = jax.jit(lambda xs: [one(xs)[1] for one in (model, *others)])(xs)
    for ys in all_ys:
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-6)


# ---- hostile files


class Runs:
    """What pickle would run when it is loaded."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def steps(*values: Any) -> bytes:
    return b"".join(written(value, []) for value in values)


def place(*parts: Any) -> bytes:
    return b"(" + steps(*parts) + b"tQ"


FLOATS, SIZE, DEVICE = (named("torch", name) for name in ("FloatStorage", "Size", "device"))
REBUILD, DICT = named("torch._utils", "_rebuild_tensor_v2"), named("collections", "OrderedDict")
PLACE = place("storage", FLOATS, "0", "cpu", 4)


def tensor(*arguments: Any, place: bytes = PLACE) -> bytes:
    """A tensor with that offset, shape and strides."""
    return REBUILD + b"(" + place + steps(*arguments) + b"\x89}tR"


def many(count: int, function: bytes, again: bytes) -> bytes:
    """A tuple of so many and a function, which are called for again and again."""
    return b"(" + b"N" * count + b"tq\0" + function + b"q\x01" + again * count


# The steps of each, without its head and its end.
PICKLES: dict[str, tuple[bytes, str]] = {
    "os.system": (named("os", "system") + b"(X\x04\x00\x00\x00truetR", r"'os\.system'"),
    "by texts": (b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x041+1x\x85R", r"'builtins\.exec'"),
    "by texts with a space": (b"\x8c\x0atorch Size\x8c\x00\x93", r"'torch Size\.'"),
    "by no texts": (b"]]\x93", "STACK_GLOBAL requires str"),
    "of another module": (named("os", "_rebuild_tensor_v2"), r"'os\._rebuild_tensor_v2'"),
    "a whole module": (
        named("torch.nn.modules.rnn", "LSTM") + b")\x81}b",
        r"torch\.nn\.modules\.rnn\.LSTM.*torch\.save\(model\.state_dict\(\), 'model\.pt'\)"),
    "a call of a text": (b"X\x01\x00\x00\x00a)R", "calls what is no function"),
    "a call with a list": (SIZE + b"]R", "calls what is no function"),
    "a new object": (SIZE + b")\x81", "so no state dict"),
    "an old object": (b"(" + SIZE + b"o", "step OBJ"),
    "an instance": (b"(ios\nsystem\n", "step INST"),
    "a buffer": (b"\x97", "step NEXT_BUFFER"),
    "a build of a tensor": (tensor(0, (4,), (1,)) + b"}b", "so no state dict"),
    "a memo of gigabytes": (b"}r\xff\xff\xff\x7f", "no module to read"),
    "a frame of gigabytes": (b"\x95" + b"\xff" * 7 + b"\x7f}", "no module to read"),
    "bytes of gigabytes": (b"\x8e\0\0\0\0\1\0\0\0", "damaged"),
    "an array of gigabytes": (b"\x96\0\0\0\0\1\0\0\0", "damaged"),
    "a text of gigabytes": (b"\x8d\0\0\0\0\1\0\0\0", "damaged"),
    "marks in marks": (b"(" * 2_000_001, "more than 2,000,000 steps"),
    "many arguments, again and again": (many(90_000, DEVICE, b"h\x01h\x00R"), r"'torch\.device'"),
    "a set of tuples in tuples": (
        b"\x8f()" + b"\x94h\x00h\x00\x86" * 60 + b"\x90", "damaged|so no state dict"),
    "an item of a tuple": (b")K\x01K\x01s", "a SETITEM of a tuple"),
    "an append to a dict": (b"}K\x01a", "damaged"),
    "half a pair": (b"}(K\x01u", "damaged"),
    "a tuple for a key": (b"}))s", "a tuple for a key.*; save the parameters alone"),
    "twice in the next, again and again": (
        b"]}q\x00a" + b"".join(b"}q%cX\x01\0\0\0ah%csX\x01\0\0\0bh%csa" % (i, i - 1, i - 1)
                             for i in range(1, 64)), "so no state dict"),
    "a dict in itself": (b"}q\x00X\x01\x00\x00\x00ah\x00s", "no module"),
    "numbers of one hash for keys": (
        # In a dict, each would be compared with all before it: 15 s wherever tests are collected.
        b"}(" + b"".join(steps(i * (2**61 - 1), None) for i in range(1, 50_000)) + b"u",
        "a int for a key, or a huge num"),
    "a million times a million numbers": (
        b"}(X\1\0\0\0a](" + b"K\1" * 10_000 + b"eq\0X\1\0\0\0b](" + b"h\0" * 10_000 + b"eq\1"
        + steps("weight_ih_l0", [b"h\x01" * 10_000], "weight_hh_l0", tensor(0, (4, 1), (1, 1)))
        + b"u", "'weight_ih_l0' should be a plain tensor or array, but is list"),
    "a module in modules": (steps({"module." * 10**6: 1}), "no module to read"),
    "a name that moves a terminal": (steps({"\x1b[31m": 1}), r"'' \(\\x1b\[31m int"),
    "no mark": (b"t", "damaged"),
    "no memo": (b"h\x07", "damaged"),
    "no number": (b"K", "damaged"),
    "no text": (b"X\x02\x00\x00\x00\xff\xff", "damaged"),
    "a longer text": (b"X\xff\xff\xff\x7fa", "damaged"),
    "a long number": (b"\x8b\xff\xff\xff\x7f1", "step LONG4"),
    "no step": (b"\xff", "damaged"),
    "a number": (b"K\x01", "so no state dict"),
    "a dict of numbers": (DICT + b"](K\x01e\x85R", "pairs"),
    "a long size, again and again": (many(20_000, SIZE, b"h\x01h\0\x85R"), "so no state dict"),
    "a long dict, again and again": (
        DICT + b"q\0" + steps([[i, None] for i in range(20_000)]) + b"q\x01"
        + b"h\0h\x01\x85R" * 20_000, "no module to read"),
    "a tensor of nothing": (REBUILD + b")R", "without a storage"),
    "a tensor in the place of a storage": (
        tensor(0, (2**20,), (1,), place=tensor(0, (2**20,), (0,))), "without a storage"),
    "a tensor without strides": (tensor(0, (4,), ()), "strides, if given, must be"),
    "65 axes": (tensor(0, (1,) * 65, (1,) * 65), "damaged"),
    "a negative stride": (tensor(3, (4,), (-1,)), "a shape or strides"),
    "a fraction": (tensor(0, (4.0,), (1,)), "a shape or strides"),
    "a stride of many digits": (tensor(0, (4,), (2**900,)), "Maximum allowed dimension"),
    "beyond the storage": (tensor(0, (5,), (1,)), "strides is incompatible .* size of buffer"),
    "beyond all storages": (tensor(2**70, (4,), (1,)), "int too "),
    "a gigantic shape": (tensor(0, (2**40, 2**40), (0, 0)), "array is too big"),
    "a gigantic shape of nothing": (tensor(0, (0, 2**61), (0, 0)), "array is too big"),
    "one number, again and again": (
        steps({"weight_hh_l0": tensor(0, (2**20, 2**10), (0, 0))}),
        "views of few numbers: they would have 4,294,967,296 bytes"),
    "one tensor, again and again": (
        b"}K\0" + tensor(0, (2**16,), (0,)) + b"q\x01s"
        + b"".join(steps(f"weight_hh_l{i}") + b"h\x01s" for i in range(500)), "views of few num"),
    "a conjugate": (
        REBUILD + b"(" + PLACE + steps(0, (4,), (1,)) + b"\x89}}X\x04\0\0\0conj\x88stR",
        "negated or conjugated"),
    "a place of three": (place("storage", FLOATS, "0"), "something else than a storage"),
    "a place of a function": (place("storage", REBUILD, "0", "cpu", 4), "without a type"),
    "quantized": (named("torch", "QInt8Storage"), r"torch\.QInt8Storage"),
    "a path for a key": (place("storage", FLOATS, "../data.pkl", "cpu", 4), "not there"),
    "a count of no bytes": (place("storage", FLOATS, "0", "cpu", 2**58), "has 16 bytes"),
    "a storage too small": (place("storage", FLOATS, "0", "cpu", 5), "has 16 bytes"),
    "a storage of two types": (
        steps([PLACE, place("storage", named("torch", "IntStorage"), "0", "cpu", 4)]), "named tw"),
}  # fmt: skip

EMPTY = saved({}, "stream")
NO_KEYS = EMPTY.removesuffix(pickle.dumps([], 2))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "stream", "bare"])
def test_nothing_in_a_file_is_run(form: str, protocol: int, tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "it-was-run"
    body = pickle.dumps({"a.weight_hh_l0": Runs(marker)}, protocol)
    content = {
        "zip": packed(body, []),
        "stream": EMPTY[: EMPTY.index(b"\x80\x02}(u.")] + body,
        "bare": body,
    }[form]
    assert check_damaged(tmp_path / "a.pt", [content], load)
    assert not marker.exists()


def edited(content: bytes, find: bytes, at: int, new: bytes, last: bool = False) -> bytes:
    """Bytes behind a mark changed."""
    place = (content.rindex if last else content.index)(find) + at
    return content[:place] + new + content[place + len(new) :]


GOOD = saved(state_of())
END, DIRECTORY, LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
ENTRIES = {"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(16)}
FILES: dict[str, tuple[bytes, str]] = {
    "no pickle": (zip_of({"a/b": b""}), "has no data.pkl"),
    "a .keras archive": (zip_of({"config.json": b"", "model.weights.h5": b""}), "of Keras; call"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), r"call rnnjax\.interop\.keras\.load"),
    "TorchScript": (
        zip_of(dict.fromkeys(("a/data.pkl", "a/code/t", "a/constants.pkl"), b""), compress_type=8),
        r"a TorchScript program.*save\(module\.state_dict"),
    "a name twice": (zip_of(ENTRIES | {"a/data/0*": bytes(16)}), "two have one name"),
    "a bomb": (zip_of({"a/data.pkl": bytes(10**7)}, compress_type=8), "compressed or encrypted"),
    "encrypted": (edited(GOOD, DIRECTORY, 8, b"\x01"), "compressed or encrypted"),
    "a size of its own": (edited(GOOD, DIRECTORY, 24, b"\xff\xff\xff\x7f"), "compressed or encr"),
    "sizes of their own": (edited(GOOD, DIRECTORY, 20, b"\xff\xff\xff\x7f" * 2), "overlap"),
    "an entry in another": (edited(GOOD, b"archive/data/3", -4, bytes(4), last=True), "s overlap"),
    "an entry at the end": (edited(GOOD, DIRECTORY, 42, b"\xff\xff\xff\x7f"), "Truncated file"),
    "a checksum": (edited(GOOD, b"weight_hh", 0, b"weight_ih"), "Bad CRC-32"),
    "no end": (GOOD[:-1], "not a zip file"),
    "a directory of gigabytes": (edited(GOOD, END, 12, b"\xff\xff\xff\x7f"), "damaged"),
    "a directory of many entries": (
        LOCAL + bytes(2**25) + struct.pack("<4s4H2LH", END, 0, 0, 1, 1, 2**25, 4, 0),
        "33554432 bytes of it should be read, but 16777216"),
    "wide sizes elsewhere": (
        GOOD[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1) + GOOD[-22:], "damaged"),
    "an order of many words": (zip_of(ENTRIES | {"a/byteorder": bytes(100)}), "data.pkl has"),
    "a long pickle": (zip_of({"a/data.pkl": bytes(33 * 2**20)}), "33,554,432 are read at most"),
    "a stream that ends": (saved(state_of(), "stream")[:-1], "has 63 bytes"),
    "a stream of gigabytes": (
        EMPTY.replace(b"}(u", place("storage", FLOATS, "0", "cpu", 2**30, None)), "it is cut off"),
    "a stream of another version": (EMPTY.replace(b"\xe9\x03", b"\xe8\x03"), "save it again"),
    "a storage that nobody has": (NO_KEYS + pickle.dumps(["0"], 2), "no tensor is in"),
    "storages of no list": (NO_KEYS + pickle.dumps({}, 2), "are no list"),
    "a pickle of Python's": (pickle.dumps({"a": 1}), "none that torch.save wrote"),
}  # fmt: skip
FILES |= {
    name: (packed(b"\x80\x05" + steps + b".", [np.zeros(4, np.float32)]), match)
    for name, (steps, match) in PICKLES.items()
}

# ---- those of safetensors


def file_of(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADER_OF_A_PICKLE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x280)
TWICE = b'"a.weight":{"dtype":"F32","shape":[1],"data_offsets":'
LINES = {"a\nb.weight_ih_l0": entry([4, 1], 0, 16)}
FILES |= {
    "empty": (b"", "0 bytes"),
    "absurd length": (file_of({}, size=2**63), "a header that fits in"),
    "no json": (file_of(b"{]"), "is damaged"),
    "deep": (file_of(b'{"a":' + b"[" * 200_000), "is damaged"),
    "a name of two lines": (file_of(LINES, bytes(16)), r"weight_hh_l0 of 'a\\nb' .*missing"),
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
    "a layer far up": (file_of({"weight_hh_l9999": entry([1, 1], 0, 4)}, bytes(4)), "l0 .*mis"),
    "html": (b"<!DOCTYPE html><html></html>", "no .safetensors file"),
    "a long header": (file_of(b"{}".ljust(11 * 2**20)), "split the file"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused_in_a_sentence(name: str, tmp_path: pathlib.Path) -> None:
    """One of ours, in little time and memory; or they hold arrays by name, but no such modules."""
    path, (content, match) = tmp_path / "a.pt", FILES[name]
    (said,) = check_damaged(path, [content], load)
    assert re.search(match, said)
    for each in (said, *check_damaged(path, [content], loaded_any)):
        assert each.startswith(f"{path} cannot be loaded: ")


def loaded_any(path: pathlib.Path) -> Model:
    state = load_state_dict(path)
    assert all(isinstance(x, np.ndarray) and isinstance(key, str) for key, x in state.items())
    sum(int(x.view(np.uint8).sum()) if x.ndim and x.size else 0 for x in state.values())
    return object.__new__(Model)


# ---- an index of several files

ARRAYS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(["a.w", "b", "c"])}


def shards(folder: pathlib.Path, weight_map: Any = None) -> pathlib.Path:
    """Two files and their index, which may be another one."""
    (folder / "1.safetensors").write_bytes(safetensors_of({"a.w": ARRAYS["a.w"], "x": np.ones(1)}))
    (folder / "2.bin").write_bytes(saved({"b": ARRAYS["b"], "c": ARRAYS["c"]}, "zip"))
    usual = {"a.w": "1.safetensors", "b": "2.bin", "c": "2.bin"}
    path = folder / "model.safetensors.index.json"
    index = {"metadata": {"total_size": 72}, "weight_map": weight_map or usual}
    path.write_text(json.dumps(index))
    return path


def test_an_index_names_files_of_either_format(tmp_path: pathlib.Path) -> None:
    """A file may have arrays that the index does not name."""
    state = load_state_dict(shards(tmp_path))
    assert state.keys() == ARRAYS.keys()
    for name, wanted in ARRAYS.items():
        np.testing.assert_array_equal(state[name], wanted)


OTHER_FILES = ("../1.safetensors", "/etc/passwd", "C:\\1.safetensors", ".", "",
               "model.safetensors.index.json")  # fmt: skip


def test_an_index_that_does_not_fit_is_refused_in_a_sentence(tmp_path: pathlib.Path) -> None:
    for weight_map, match in [
        *(({"a.w": name}, "own folder") for name in OTHER_FILES),
        ({"a.w": "3.safetensors"}, "3.safetensors cannot be read: No such file"),
        ({"a.w": "1.safetensors", "b": "1.safetensors"}, "'b' is in 1.safetensors"),
        (["a.w"], "no index"),
        ({"a.w": 3}, "3 cannot be read"),
    ]:
        path = shards(tmp_path, weight_map)
        with pytest.raises(InteropError, match=match):
            load_state_dict(path)
    for content in (b"", b"[1]", b"{}", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InteropError, match="it is no index"):
            load_state_dict(path)


def test_arrays_of_safetensors_are_views_of_the_file(tmp_path: pathlib.Path) -> None:
    """No byte is read before it is used: the files are larger than the memory here."""
    path, size = tmp_path / "large.safetensors", 2**37
    header = json.dumps({"a": entry([size], 0, size, "U8"), "b": entry([], size, size + 4)})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size + 4)
    state = load_state_dict(path)
    assert state["a"].shape == (size,)
    assert not state["a"].flags.writeable
    assert state["a"][-1] == state["b"] == 0


# ---- damaged files


def mutations(form: str, count: int) -> Iterator[bytes]:
    """Bytes changed, cut out, put in, doubled: of a file, and of the pickle or header in a whole.

    Numbers and names of a header are changed too.
    """
    rng, storages = random.Random(0), list[np.ndarray]()
    state = state_of("a.", gates=3) | linear("b", 2)
    body = b"\x80\x02" + written(state, storages, form) + b"."
    content = safetensors_of(state) if form == "safetensors" else saved(state, form)
    size = int.from_bytes(content[:8], "little")
    words = re.findall(rb"\w+|\W", content[8 : 8 + size])
    others = [b"F16", b"0", b"9" * 20, b"-1", b"1e9", b"weight_hh_l0_reverse", *words]
    for _ in range(count):
        which = rng.randrange(3)
        if form == "stream" or which == 0:
            yield change(rng, content)
        elif form == "zip":
            yield packed(change(rng, body), storages)
        else:  # the length is made to fit, so that what is behind it is reached
            changed = [*words]
            changed[rng.randrange(len(words))] = rng.choice(others)
            text = b"".join(changed) if which == 1 else change(rng, b"".join(words))
            yield len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["zip", "stream", "safetensors"])
def test_mutated_files_are_models_or_refusals(form: str, count: int, tmp_path: Any) -> None:
    said = check_damaged(tmp_path / "a.pt", mutations(form, count), load)
    print(f"{len(said)} of {count} mutations of a {form} are refused")
    assert count // 100 <= len(said) <= count - count // 100


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_file_that_was_read_takes_no_memory(form: str, read: Callable[..., Model]) -> None:
    read(state_of(), form)
    gc.collect()
    gc.disable()
    try:
        read(state_of(), form)
        assert not [one for one in gc.get_objects() if isinstance(one, _Unpickler)]
    finally:
        gc.enable()
