"""Files of ``torch.save``, read without PyTorch: what they hold, to the bit, and hostile ones."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import random
import resource
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop_helpers import change, check_damaged, drawn

from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import convert, keras
from rnnjax.interop import flax as from_flax
from rnnjax.interop.torch import from_state_dict, load, to_state_dict
from rnnjax.interop.torch.modules import find_state
from rnnjax.interop.torch.saved import read_saved

# ---- a small writer of the same files, for machines without PyTorch

STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool", "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip


class View(NamedTuple):
    """A tensor: part of an array that is stored whole."""

    storage: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, array: np.ndarray) -> "View":
        """All of an array, in the order in which it lies."""
        flat = np.array(array, order="C")
        return cls(flat.reshape(-1), 0, flat.shape, tuple(s // flat.itemsize for s in flat.strides))

    def array(self) -> np.ndarray:
        """What it shows, entry by entry."""
        places = np.full((), self.offset)
        for axis, (n, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            places = places + np.arange(n).reshape(-1, *[1] * (len(self.shape) - axis - 1)) * stride
        return np.array(self.storage[places])


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


class Parameter(NamedTuple):
    """An ``nn.Parameter`` of a tensor."""

    data: View


def written(value: Any, storages: list[np.ndarray], form: str = "zip") -> bytes:
    """The steps of a pickle that make a value; ``storages`` gets those that it names."""

    def many(values: Any) -> bytes:
        return b"".join(written(one, storages, form) for one in values)

    if isinstance(value, bytes):  # steps already
        return value
    if isinstance(value, Parameter):
        arguments = many([value.data, True, {}])
        return named("torch._utils", "_rebuild_parameter") + b"(" + arguments + b"tR"
    if isinstance(value, View):
        same = [i for i, array in enumerate(storages) if array is value.storage]
        key = same[0] if same else len(storages)
        storages += [] if same else [value.storage]
        kind = named("torch", f"{STORAGES[str(value.storage.dtype)]}Storage")
        place = ["storage", kind, str(key), "cpu", value.storage.size, *[None] * (form == "stream")]
        call = named("torch._utils", "_rebuild_tensor_v2") + b"((" + many(place) + b"tQ"
        hooks = named("collections", "OrderedDict") + b")R"
        return call + many([value.offset, value.shape, value.strides, False, hooks]) + b"tR"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"}(" + many(one for pair in value.items() for one in pair) + b"u"
    if isinstance(value, list):
        return b"](" + many(value) + b"e"
    assert isinstance(value, tuple)
    return b"(" + many(value) + b"t"


def zip_of(entries: Mapping[str, bytes], **options: Any) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as file:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in entries.items():
            file.writestr(name.rstrip("*"), data, **options)
    return content.getvalue()


def saved(tree: Any, form: str = "zip") -> bytes:
    """A file of the form ``"zip"``, ``"big"`` (a zip of a big-endian machine) or ``"stream"``."""
    storages: list[np.ndarray] = []
    body = b"\x80\x02" + written(tree, storages, form) + b"."
    if form == "stream":
        keys = [str(i) for i in range(len(storages))]
        heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        pickles = [pickle.dumps(head, 2) for head in heads] + [body, pickle.dumps(keys, 2)]
        data = [struct.pack("<q", array.size) + array.tobytes() for array in storages]
        return b"".join([*pickles, *data])
    swapped = [array.byteswap() if form == "big" else array for array in storages]
    order = {"archive/byteorder": b"big"} if form == "big" else {}
    data_of = {f"archive/data/{i}": array.tobytes() for i, array in enumerate(swapped)}
    return zip_of({"archive/data.pkl": body, **order, **data_of, "archive/version": b"3\n"})


FORMS = ["zip", "big", "stream"]


def state_of(module: str = "", seed: int = 0, gates: int = 4, **sizes: int) -> dict[str, View]:
    """The state dict of an LSTM, or of a GRU with 3 gates."""
    inputs, hidden = sizes.get("inputs", 3), sizes.get("hidden", 4)
    rng = np.random.default_rng(seed)
    shapes = {
        "weight_ih_l0": (gates * hidden, inputs), "weight_hh_l0": (gates * hidden, hidden),
        "bias_ih_l0": (gates * hidden,), "bias_hh_l0": (gates * hidden,),
    }  # fmt: skip
    return {
        f"{module}{name}": View.of(rng.standard_normal(shape).astype(np.float32))
        for name, shape in shapes.items()
    }


def linear(name: str, inputs: int, outputs: int) -> dict[str, View]:
    rng = np.random.default_rng(inputs)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    return {f"{name}.weight": View.of(weight), f"{name}.bias": View.of(weight[:, 0].copy())}


def norm(name: str, size: int) -> dict[str, View]:
    """A BatchNorm1d: its count is of integers and has no axis."""
    keys = ("weight", "bias", "running_mean", "running_var")
    entries = dict.fromkeys(keys, np.ones(size, np.float32))
    entries["num_batches_tracked"] = np.array(7)
    return {f"{name}.{key}": View.of(array) for key, array in entries.items()}


def put(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def arrays(tree: Any) -> Any:
    """Tensors and what they were written from, as arrays."""
    if isinstance(tree, dict):
        return {key: arrays(value) for key, value in tree.items()}
    if isinstance(tree, View):
        return tree.array()
    if isinstance(tree, Parameter):
        return tree.data.array()
    return type(tree)(map(arrays, tree)) if isinstance(tree, list | tuple) else tree


def assert_same(ours: Any, theirs: Any) -> None:
    """Require equal values of equal types, arrays to the bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(ours, dict):
        assert [*ours] == [*theirs]
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)


# ---- what whole files hold


@st.composite
def trees(draw: Any) -> Any:
    """Containers in each other, and tensors that share storages and lie in them in any way."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    storages = []
    for name in draw(st.lists(st.sampled_from([*STORAGES]), min_size=1, max_size=3)):
        dtype = np.dtype(jnp.bfloat16) if name == "bfloat16" else np.dtype(name)
        content = rng.bytes(draw(st.integers(0, 30)) * dtype.itemsize)
        storages.append(np.frombuffer(content, dtype) if name != "bool" else rng.random(9) < 0.5)

    def view() -> View:
        storage = storages[draw(st.integers(0, len(storages) - 1))]
        shape, strides, left = [], [], storage.size - 1
        for _ in range(draw(st.integers(0, 3))):
            stride = draw(st.integers(0, 4))
            most = 4 if stride == 0 else max(left, 0) // stride + 1
            shape.append(draw(st.integers(0, min(most, 4))))
            strides.append(stride)
            left -= max(shape[-1] - 1, 0) * stride
        if storage.size == 0 and 0 not in shape:
            shape, strides = [*shape, 0], [*strides, 1]
        return View(storage, draw(st.integers(0, max(left, 0))), tuple(shape), tuple(strides))

    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
        st.builds(view), st.builds(lambda: Parameter(view())),
    )  # fmt: skip
    keys = st.one_of(st.text(max_size=5), st.integers(-5, 5))
    return draw(
        st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(keys, inner, max_size=4),
                st.lists(inner, max_size=4).map(tuple),
            ),
            max_leaves=12,
        )
    )


@pytest.mark.parametrize("form", FORMS)
@drawn(25)
@given(tree=trees())
def test_drawn_files_are_read_to_the_bit(form: str, tree: Any) -> None:
    assert_same(arrays(read_saved(io.BytesIO(saved(tree, form)))[0]), arrays(tree))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gates", [3, 4])
def test_a_file_is_a_model(form: str, gates: int, tmp_path: pathlib.Path) -> None:
    state = state_of("rnn.", gates=gates) | linear("head", 4, 2)
    path = put(tmp_path / "a.pt", saved(state, form))
    model = load(path)
    assert [*model.layers] == ["rnn", "head"]
    assert_same(to_state_dict(model), arrays(state))
    assert model(jnp.ones((5, 2, 3)))[1].shape == (5, 2, 2)
    assert str(convert.load(path)) == str(model)


def test_old_pickles_and_new_ones_are_read() -> None:
    """Text in bytes and pairs in lists, as Python 2 wrote them; frames and memos of protocol 4."""
    two = b"\x80\x02" + named("collections", "OrderedDict") + b"(](](U\x01aK\x01eetR."
    four = pickle.dumps({"a": [1, 2.5, "text" * 100], "b": ("a", 1, None)}, 4)
    sized = b"\x80\x02" + named("torch", "Size") + b"(K\x02K\x03\x86tR."
    for body, expected in ((two, {"a": 1}), (four, pickle.loads(four)), (sized, (2, 3))):
        content = zip_of({"a/data.pkl": body})
        assert read_saved(io.BytesIO(content)) == (expected, "")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_checkpoints_hold_besides_is_not_read(protocol: int, tmp_path: pathlib.Path) -> None:
    state = state_of()
    besides = {
        "best": np.float64(3), "seen": {1, 2}, "key": b"abc", "type": np.dtype("<f4"),
        "history": np.arange(3.0), "by number": {np.int64(3): 0.5}, "frozen": frozenset({1}),
        "options": argparse.Namespace(rate=0.1), "folder": pathlib.PurePosixPath("a"),
        "counts": collections.OrderedDict(a=collections.defaultdict(list, b=[1])),
        "rows": collections.deque([1, 2]), "random": random.Random(0),
    }  # fmt: skip
    steps = pickle.dumps(besides, protocol)
    steps = steps[11:-1] if protocol > 2 else steps[2:-1]  # without its frame and its end
    device = named("torch", "device") + b"(" + written("cpu", []) + b"tR"
    tree = {"model": state, "besides": steps, "device": device}
    assert_same(to_state_dict(load(put(tmp_path / "a.pt", saved(tree)))), arrays(state))


# ---- checkpoints


def test_the_one_state_dict_in_a_checkpoint_is_found(tmp_path: pathlib.Path) -> None:
    state = state_of("lstm.") | linear("head", 4, 2)
    moments = {i: {"step": 3, "exp_avg": view} for i, view in enumerate(state.values())}
    rest = {"optimizer": {"state": moments, "param_groups": [{"weight_decay": 0.1}]}, "epoch": 3}
    for key in ("model", "state_dict", "net"):
        model = load(put(tmp_path / "a.pt", saved({key: state, **rest})))
        assert_same(to_state_dict(model), arrays(state))
    deep = {"nets": [{"first": state}], **rest}
    assert_same(to_state_dict(load(put(tmp_path / "a.pt", saved(deep)))), arrays(state))
    numpy = from_state_dict({"model": arrays(state), **arrays(rest)})
    assert_same(to_state_dict(numpy), arrays(state))


def test_paths_of_a_million_dicts_take_no_memory() -> None:
    dicts: list[Any] = [{} for _ in range(20_000)]
    tree: Any = dicts + 20_000 * [dicts[0]]
    for level in range(4):
        tree = {chr(0x1F600 + level) * 60: tree}
    tracemalloc.start()
    try:
        assert find_state(tree, None) == (tree, [])
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_no_name_moves_the_terminal(tmp_path: pathlib.Path) -> None:
    model = load(put(tmp_path / "a.pt", saved(state_of("a\x1b[31m."))))
    assert [*model.layers] == ["a\x1b[31m"]
    assert str(model).replace("\n", "").isprintable()


def test_several_state_dicts_are_listed_and_chosen(tmp_path: pathlib.Path) -> None:
    first, second = state_of(seed=1), state_of(seed=2)
    path = put(tmp_path / "a.pt", saved({"model": first, "ema": {"shadow": second}, "epoch": 3}))
    with pytest.raises(InteropError, match=r"2 state dicts, 'model', 'ema/shadow';.*at='model'"):
        load(path)
    assert_same(to_state_dict(load(path, at="model")), arrays(first))
    assert_same(to_state_dict(load(path, at="ema/shadow")), arrays(second))
    with pytest.raises(
        InvalidInputError, match=r"as 'model', 'ema', 'ema/shadow' does, but is 'best'"
    ):
        load(path, at="best")
    one = arrays(first)
    assert_same(to_state_dict(from_state_dict({"model": one, "best": one})), one)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wraps_a_module_is_no_part_of_its_names(wrapper: str, tmp_path: pathlib.Path) -> None:
    state = {wrapper + key: v for key, v in (state_of("lstm.") | linear("head", 4, 2)).items()}
    path = put(tmp_path / "a.pt", saved({"state_dict": state}))
    for model in (load(path), load(path, modules=["lstm", "head"])):
        assert [*model.layers] == ["lstm", "head"]
        assert_same(to_state_dict(model), arrays(state))
    alone = {wrapper + key: view for key, view in state_of().items()}
    model = load(put(tmp_path / "b.pt", saved(alone)))
    assert [*model.layers] == ["rnn"]
    assert_same(to_state_dict(model), arrays(alone))


def test_what_no_layer_holds_is_named(tmp_path: pathlib.Path) -> None:
    state = state_of("gru.", gates=3) | norm("bn", 4) | {"scale": View.of(np.ones(3, np.float32))}
    state["conv.weight"] = View.of(np.ones((2, 3, 4), np.float32))
    path = put(tmp_path / "a.pt", saved({"model": state}))
    match = r"a\.pt: .*without 'bn' \(weight \(4,\).*''.*'conv'"
    with pytest.warns(UserWarning, match=match) as told:
        model = load(path)
    assert "\n" not in str(told[0].message)
    assert [*model.layers] == ["gru"]
    with pytest.warns(UserWarning, match="'bn'"):
        from_state_dict(arrays(state))
    assert [*load(path, modules=["gru"]).layers] == ["gru"]  # the choice is the user's
    assert [*from_state_dict(arrays(state), modules=["gru"]).layers] == ["gru"]
    with pytest.raises(InteropError, match=r"'bn' .* is none of these"):
        load(path, modules=["gru", "bn"])
    apart = {"encoder": state_of("gru.", gates=3), "head": linear("out", 4, 2)}
    with pytest.warns(UserWarning, match="'head', a state dict"):
        load(put(tmp_path / "b.pt", saved(apart)))


def test_of_several_heads_one_is_chosen(tmp_path: pathlib.Path) -> None:
    state = state_of("lstm.") | linear("first", 4, 2) | linear("second", 4, 5)
    path = put(tmp_path / "a.pt", saved(state))
    with pytest.raises(InteropError, match=r"give it, as in modules=\[.*'first'.*'second'"):
        load(path)
    assert load(path, modules=["lstm", "second"])(jnp.ones((2, 1, 3)))[1].shape == (2, 1, 5)


def test_the_command_line_shows_and_converts(tmp_path: pathlib.Path, capsys: Any) -> None:
    state = state_of("lstm.") | norm("bn", 4)
    path = put(tmp_path / "a.pth", saved({"a": state, "b": state_of(seed=1)}))
    assert convert.main(["show", str(path)]) == 2
    assert "as in at='a'" in capsys.readouterr().err
    assert convert.main(["show", str(path), "--at", "a"]) == 0
    printed = capsys.readouterr()
    assert "LSTMCell(4)" in printed.out
    assert printed.err.startswith(f"warning: {path}: the model was read without 'bn'")
    target = str(tmp_path / "a.onnx")
    assert convert.main(["convert", str(path), target, "--at", "a", "--modules", "lstm"]) == 0
    assert capsys.readouterr().err == ""


# ---- both biases


@pytest.mark.parametrize("gates", [1, 4])
def test_formats_of_one_bias_get_the_sum(gates: int, tmp_path: pathlib.Path) -> None:
    model = from_state_dict(arrays(state_of(gates=gates)))
    xs = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    for name in ("a.keras", "a.weights.h5", "a.onnx"):
        convert.write(model, tmp_path / name)
    expected = jax.jit(model.__call__)(xs)[1]
    for name in ("a.keras", "a.onnx"):
        ys = jax.jit(convert.load(tmp_path / name).__call__)(xs)[1]
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-6)
    assert keras.load(tmp_path / "a.keras").params["rnn"].keys() == {
        "kernel", "recurrent_kernel", "bias",
    }  # fmt: skip
    back = from_flax.from_params(from_flax.to_params(model))
    np.testing.assert_allclose(jax.jit(back.__call__)(xs)[1], expected, rtol=0, atol=1e-6)


# ---- hostile files


def body_of(*steps: bytes) -> bytes:
    return b"\x80\x02" + b"".join(steps) + b"."


class Runs:
    """What pickle would run when it is loaded."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


STORAGE = b"(" + written("storage", []) + named("torch", "FloatStorage")
PLACE = STORAGE + written("0", []) + written("cpu", []) + b"K\x04tQ"  # four numbers
REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def tensor(*arguments: Any, place: bytes = PLACE) -> bytes:
    """A tensor with that offset, shape and strides."""
    return REBUILD + b"(" + place + b"".join(written(a, []) for a in arguments) + b"\x89}tR"


def place(*parts: Any) -> bytes:
    return b"(" + b"".join(written(part, []) for part in parts) + b"tQ"


FLOATS = named("torch", "FloatStorage")
PICKLES: dict[str, tuple[bytes, str]] = {
    "os.system": (body_of(named("os", "system"), b"(X\x04\x00\x00\x00truetR"), r"'os\.system'"),
    "by texts": (
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x041+1x\x85R.",
        r"'builtins\.exec'",
    ),
    "by texts with a space": (b"\x80\x04\x8c\x0atorch Size\x8c\x00\x93.", r"'torch Size\.'"),
    "by no texts": (b"\x80\x04]]\x93.", "STACK_GLOBAL requires str"),
    "a function that is known, of another module": (
        body_of(named("os", "_rebuild_tensor_v2")),
        r"'os\._rebuild_tensor_v2'",
    ),
    "a whole module": (
        body_of(named("torch.nn.modules.rnn", "LSTM"), b")\x81}b"),
        r"torch\.nn\.modules\.rnn\.LSTM.*torch\.save\(model\.state_dict\(\), 'model\.pt'\)",
    ),
    "a call of a text": (body_of(b"X\x01\x00\x00\x00a)R"), "calls what is no function"),
    "a call with a list": (body_of(named("torch", "Size"), b"]R"), "calls what is no function"),
    "a new object": (body_of(named("torch", "Size"), b")\x81"), "so no state dict"),
    "an old object": (body_of(b"(", named("torch", "Size"), b"o"), "step OBJ"),
    "an instance": (body_of(b"(ios\nsystem\n"), "step INST"),
    "a buffer": (b"\x80\x05\x97.", "step NEXT_BUFFER"),
    "a build of a tensor": (body_of(tensor(0, (4,), (1,)), b"}b"), "so no state dict"),
    "a memo of gigabytes": (body_of(b"}r\xff\xff\xff\x7f"), "no module to read"),
    "a frame of gigabytes": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.", "no module to read"),
    "bytes of gigabytes": (b"\x80\x04\x8e\0\0\0\0\1\0\0\0.", "damaged"),
    "an array of gigabytes": (b"\x80\x05\x96\0\0\0\0\1\0\0\0.", "damaged"),
    "a text of gigabytes": (b"\x80\x04\x8d\0\0\0\0\1\0\0\0.", "damaged"),
    "marks in marks": (body_of(b"(" * 1_900_000), "damaged"),
    "many arguments, again and again": (
        body_of(b"(" + b"N" * 900_000 + b"tq\x00", named("torch", "device"), b"q\x01")[:-1]
        + b"h\x01h\x00R" * 300_000
        + b".",
        r"'torch\.device'",
    ),
    "a set of tuples in tuples": (
        b"\x80\x04\x8f()" + b"\x94h\x00h\x00\x86" * 60 + b"\x90.",
        "damaged|so no state dict",
    ),
    "an item of a tuple": (body_of(b")K\x01K\x01s"), "a SETITEM of a tuple"),
    "an append to a dict": (body_of(b"}K\x01a"), "damaged"),
    "half a pair": (body_of(b"}(K\x01u"), "damaged"),
    "a tuple for a key": (body_of(b"}))s"), "a tuple for a key"),
    "twice in the next, again and again": (
        body_of(
            b"]}q\x00a",
            *(
                b"}q%cX\x01\x00\x00\x00ah%csX\x01\x00\x00\x00bh%csa" % (i, i - 1, i - 1)
                for i in range(1, 64)
            ),
        ),
        "so no state dict",
    ),
    "a dict in itself": (body_of(b"}q\x00X\x01\x00\x00\x00ah\x00s"), "no module"),
    "numbers of one hash for keys": (
        body_of(b"}(", *(written(i * (2**61 - 1), []) + b"N" for i in range(1, 50_000)), b"u"),
        "a int for a key, or a huge number",
    ),
    "a million times a million numbers": (
        body_of(
            b"}(X\x01\x00\x00\x00a](",
            b"K\x01" * 10_000,
            b"eq\x00X\x01\x00\x00\x00b](",
            b"h\x00" * 10_000,
            b"eq\x01",
            written("weight_ih_l0", []),
            b"](",
            b"h\x01" * 10_000,
            b"e",
            written("weight_hh_l0", []),
            tensor(0, (4, 1), (1, 1)),
            b"u",
        ),
        "'weight_ih_l0' should be a plain tensor or array, but is list",
    ),
    "a module in modules": (body_of(written({"module." * 10**6: 1}, [])), "no module to read"),
    "a name that moves a terminal": (body_of(written({"\x1b[31m": 1}, [])), r"'' \(\\x1b\[31m int"),
    "no mark": (body_of(b"t"), "damaged"),
    "no memo": (body_of(b"h\x07"), "damaged"),
    "no end": (b"\x80\x02K\x01", "damaged"),
    "no text": (body_of(b"X\x02\x00\x00\x00\xff\xff"), "damaged"),
    "a longer text": (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
    "a long number": (body_of(b"\x8b\xff\xff\xff\x7f1"), "step LONG4"),
    "no step": (b"\x80\x02\xff.", "damaged"),
    "too many steps": (b"\x80\x04N" + b"\x94" * 2_000_001 + b".", "more than 2,000,000 steps"),
    "a number": (body_of(b"K\x01"), "so no state dict"),
    "a dict of numbers": (body_of(named("collections", "OrderedDict"), b"](K\x01e\x85R"), "pairs"),
    "a long size, again and again": (
        body_of(b"(" + b"N" * 20_000 + b"tq\x00", named("torch", "Size"), b"q\x01")[:-1]
        + b"h\x01h\x00\x85R" * 20_000
        + b".",
        "so no state dict",
    ),
    "a long dict, again and again": (
        body_of(named("collections", "OrderedDict"), b"q\x00](")[:-1]
        + b"".join(b"](J" + i.to_bytes(4, "little") + b"Ne" for i in range(20_000))
        + b"eq\x01"
        + b"h\x00h\x01\x85R" * 20_000
        + b".",
        "no module to read",
    ),
    "a tensor of nothing": (body_of(REBUILD, b")R"), "without a storage"),
    "a tensor in the place of a storage": (
        body_of(tensor(0, (2**20,), (1,), place=tensor(0, (2**20,), (0,)))),
        "without a storage",
    ),
    "a tensor without strides": (body_of(tensor(0, (4,), ())), "a shape or strides"),
    "65 axes": (body_of(tensor(0, (1,) * 65, (1,) * 65)), "damaged"),
    "a negative stride": (body_of(tensor(3, (4,), (-1,))), "a shape or strides"),
    "a fraction": (body_of(tensor(0, (4.0,), (1,))), "a shape or strides"),
    "a stride of many digits": (body_of(tensor(0, (4,), (2**900,))), "ends behind 4 numbers"),
    "beyond the storage": (body_of(tensor(0, (5,), (1,))), "ends behind 4 numbers"),
    "a gigantic shape": (body_of(tensor(0, (2**40, 2**40), (0, 0))), "no memory has"),
    "a gigantic shape of nothing": (body_of(tensor(0, (0, 2**61), (0, 0))), "no memory has"),
    "one number, again and again": (
        body_of(written({"weight_hh_l0": tensor(0, (2**20, 2**10), (0, 0))}, [])),
        "views of few numbers: they would have 4,294,967,296 bytes",
    ),
    "one tensor, again and again": (
        body_of(
            b"}X\x01\x00\x00\x00a",
            tensor(0, (2**16,), (0,)),
            b"q\x01s",
            *(written(f"weight_hh_l{i}", []) + b"h\x01s" for i in range(500)),
        ),
        "views of few numbers",
    ),
    "a conjugate": (
        body_of(REBUILD, b"(", PLACE, b"K\x00K\x04\x85K\x01\x85\x89}}X\x04\x00\x00\x00conj\x88stR"),
        "negated or conjugated",
    ),
    "a place of three": (body_of(place("storage", FLOATS, "0")), "something else than a storage"),
    "a place of a function": (body_of(place("storage", REBUILD, "0", "cpu", 4)), "without a type"),
    "quantized": (body_of(named("torch", "QInt8Storage")), r"torch\.QInt8Storage"),
    "a path for a key": (body_of(place("storage", FLOATS, "../data.pkl", "cpu", 4)), "not there"),
    "a count of no bytes": (body_of(place("storage", FLOATS, "0", "cpu", 2**58)), "has 16 bytes"),
    "a storage too small": (body_of(place("storage", FLOATS, "0", "cpu", 5)), "has 16 bytes"),
    "a storage of two types": (
        body_of(
            b"]", PLACE, b"a", place("storage", named("torch", "IntStorage"), "0", "cpu", 4), b"a"
        ),
        "named twice",
    ),
}


def refused(path: pathlib.Path, match: str) -> None:
    """One sentence of ours, in little time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InteropError, match=match) as caught:
        load(path)
    assert time.process_time() - start < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**30
    assert str(caught.value).startswith(f"{path} cannot be loaded: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles_are_refused_in_a_sentence(name: str, tmp_path: pathlib.Path) -> None:
    body, match = PICKLES[name]
    content = zip_of({"a/data.pkl": body, "a/data/0": bytes(16)})
    refused(put(tmp_path / "a.pt", content), match)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "stream", "bare"])
def test_nothing_in_a_file_is_run(form: str, protocol: int, tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "it-was-run"
    body = pickle.dumps({"a.weight_hh_l0": Runs(marker)}, protocol)
    first = saved({}, "stream")
    content = {
        "zip": zip_of({"a/data.pkl": body}),
        "stream": first[: first.index(b"\x80\x02}(u.")] + body,
        "bare": body,
    }[form]
    refused(put(tmp_path / "a.pt", content), "cannot be loaded")
    assert not marker.exists()


def edited(content: bytes, find: bytes, at: int, new: bytes, last: bool = False) -> bytes:
    """Bytes behind a mark changed."""
    place = (content.rindex if last else content.index)(find) + at
    return content[:place] + new + content[place + len(new) :]


GOOD = saved(state_of())
END, DIRECTORY, LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
ENTRIES = {"a/data.pkl": body_of(b"}"), "a/data/0": bytes(16)}
FILES = {
    "no pickle": (zip_of({"a/b": b""}), "has no data.pkl"),
    "a .keras archive": (
        zip_of({"config.json": b"{}", "model.weights.h5": b""}),
        r"a model of Keras; call rnnjax\.interop\.keras\.load",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), r"call rnnjax\.interop\.keras\.load"),
    "TorchScript": (
        zip_of(
            {"a/data.pkl": b"N.", "a/code/__torch__.py": b"", "a/constants.pkl": b""},
            compress_type=zipfile.ZIP_DEFLATED,
        ),
        r"a TorchScript program.*save\(module\.state_dict",
    ),
    "a name twice": (zip_of(ENTRIES | {"a/data/0*": bytes(16)}), "two have one name"),
    "a bomb": (
        zip_of({"a/data.pkl": bytes(10**7)}, compress_type=zipfile.ZIP_DEFLATED),
        "compressed or encrypted",
    ),
    "encrypted": (edited(GOOD, DIRECTORY, 8, b"\x01"), "compressed or encrypted"),
    "a size of its own": (edited(GOOD, DIRECTORY, 24, b"\xff\xff\xff\x7f"), "compressed or encr"),
    "sizes of their own": (edited(GOOD, DIRECTORY, 20, b"\xff\xff\xff\x7f" * 2), "overlap"),
    "an entry in another": (
        edited(GOOD, b"archive/data/3", -4, bytes(4), last=True),
        "its entries overlap",
    ),
    "an entry at the end": (edited(GOOD, DIRECTORY, 42, b"\xff\xff\xff\x7f"), "Truncated file"),
    "a checksum": (edited(GOOD, b"weight_hh", 0, b"weight_ih"), "Bad CRC-32"),
    "no end": (GOOD[:-1], "not a zip file"),
    "a directory of gigabytes": (edited(GOOD, END, 12, b"\xff\xff\xff\x7f"), "damaged"),
    "a directory of many entries": (
        LOCAL + bytes(2**25) + struct.pack("<4s4H2LH", END, 0, 0, 1, 1, 2**25, 4, 0),
        "33554432 bytes of it should be read, but 16777216",
    ),
    "wide sizes elsewhere": (
        GOOD[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1) + GOOD[-22:],
        "damaged",
    ),
    "an order of many words": (zip_of(ENTRIES | {"a/byteorder": bytes(100)}), "data.pkl has"),
    "a long pickle": (zip_of({"a/data.pkl": bytes(33 * 2**20)}), "33,554,432 are read at most"),
    "a stream that ends": (saved(state_of(), "stream")[:-1], "has 63 bytes"),
    "a stream of another version": (
        saved({}, "stream").replace(struct.pack("<H", 1001), struct.pack("<H", 1000)),
        "save it again",
    ),
    "a storage that nobody has": (
        saved({}, "stream")[: -len(pickle.dumps([], 2))] + pickle.dumps(["0"], 2),
        "no tensor is in",
    ),
    "storages of no list": (
        saved({}, "stream")[: -len(pickle.dumps([], 2))] + pickle.dumps({}, 2),
        "are no list",
    ),
    "a pickle of Python's": (pickle.dumps({"a": 1}), "none that torch.save wrote"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused_in_a_sentence(name: str, tmp_path: pathlib.Path) -> None:
    content, match = FILES[name]
    refused(put(tmp_path / "a.pt", content), match)


# ---- damaged files


def mutations(form: str, count: int, seed: int) -> list[bytes]:
    """Bytes changed, cut out, put in, doubled: of a file, or of the pickle in a whole zip."""
    rng = random.Random(seed)
    state = {"model": state_of("a.", gates=3) | linear("b", 4, 3), "epoch": 3}
    content = saved(state, form)
    storages: list[np.ndarray] = []
    body = b"\x80\x02" + written(state, storages, form) + b"."

    results = []
    for _ in range(count):
        if form == "zip" and rng.randrange(3):
            changed = change(rng, body)
            data = {f"archive/data/{i}": array.tobytes() for i, array in enumerate(storages)}
            results.append(zip_of({"archive/data.pkl": changed, **data}))
        else:
            results.append(change(rng, content))
    return results


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_mutated_files_are_models_or_refusals(
    form: str, count: int, tmp_path: pathlib.Path
) -> None:
    outcomes = check_damaged(tmp_path / "a.pt", mutations(form, count, 0), load)
    print(f"{count} mutations of a {form}: {outcomes}")
    assert min(outcomes.values()) >= count // 100


# ---- against PyTorch, where it is installed


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "projected"])
def test_what_torch_saves_is_what_torch_loads(
    kind: str, dtype: str, zipped: bool, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    torch.manual_seed(0)
    options = {"proj_size": 2} if kind == "projected" else {}
    rnn = getattr(torch.nn, "LSTM" if kind == "projected" else kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of projections without oneDNN
        module = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(9, 3),
                "rnn": rnn(3, 4, 2, bidirectional=True, **options),
                "bn": torch.nn.BatchNorm1d(8),
                "conv": torch.nn.Conv1d(8, 3, 2),
                "head": torch.nn.Linear(4 if kind == "projected" else 8, 9),
            }
        ).to(getattr(torch, dtype))
    optimizer = torch.optim.Adam(module.parameters())
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    tree = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    path = tmp_path / "a.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    with path.open("rb") as file:
        ours = arrays(read_saved(file)[0])
    assert_same(ours, plain(torch.load(path, weights_only=True)))
    if dtype != "float64":
        modules = ["embedding", "rnn", "head"]
        state = to_state_dict(load(path, modules=modules))
        kept = {k: v for k, v in ours["model"].items() if k.partition(".")[0] in modules}
        assert_same({k: state[k] for k in kept}, kept)


def plain(tree: Any) -> Any:
    """What PyTorch loaded, with arrays in the place of tensors."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    if isinstance(tree, torch.Tensor):
        tree = tree.detach()
        if tree.dtype == torch.bfloat16:
            return tree.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return tree.resolve_conj().numpy()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return type(tree)(map(plain, tree)) if isinstance(tree, list | tuple) else tree


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_lie_in_their_storages_as_torch_left_them(
    zipped: bool, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    base = torch.arange(24.0).reshape(2, 3, 4)
    tree = {
        "base": base, "turned": base.permute(2, 0, 1), "part": base[:, 1:, ::2],
        "last": base[1, 2, 3], "again": base, "repeated": torch.ones(1).expand(5, 3),
        "none": torch.zeros(0, 3), "a parameter": torch.nn.Parameter(base),
        "integers": [torch.arange(3, dtype=getattr(torch, f"int{n}")) for n in (8, 16, 32, 64)],
        "bytes": torch.arange(3, dtype=torch.uint8), "flags": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]), "wide": torch.tensor([1 + 2j], dtype=torch.complex128),
        "size": torch.Size([2, 3]), "numbers": (1, 2.5, None, "text", True, -(2**40)),
    }  # fmt: skip
    torch.save(tree, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with (tmp_path / "a.pt").open("rb") as file:
        ours = arrays(read_saved(file)[0])
    theirs = plain(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_same(ours, theirs | {"size": (2, 3)})


def test_the_writer_here_is_read_by_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    state = state_of() | norm("bn", 4)
    for form in FORMS:
        theirs = torch.load(io.BytesIO(saved(state, form)), weights_only=True)
        assert_same(plain(theirs), arrays(state))


def test_training_goes_on_as_in_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    import optax

    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4)
    model = from_state_dict(module.state_dict())
    xs = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    theirs = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    ours = optax.adamw(0.05, weight_decay=0.1)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(lambda p: (model.apply(p, xs)[1] ** 2).mean())(params)
        updates, state = ours.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = model.params, jax.jit(ours.init)(model.params)
    for _ in range(5):
        theirs.zero_grad()
        (module(torch.tensor(xs))[0] ** 2).mean().backward()
        theirs.step()
        params, state = step(params, state)
    for key, array in to_state_dict(model.with_params(params)).items():
        expected = module.state_dict()[key].numpy()
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)
