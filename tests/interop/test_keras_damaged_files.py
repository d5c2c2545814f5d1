"""Whatever is in a file, loading it gives a model or one error, soon and in little memory."""

import functools
import io
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from interop_helpers import change, check_damaged, random_model, sequential, write_old

import rnnjax
from rnnjax import InteropError
from rnnjax.interop import Dense, Dropout, Embedding, Model, Recurrent
from rnnjax.interop import keras as interop
from rnnjax.interop.keras import hdf5

KINDS = {"keras": ".keras", "weights": ".weights.h5", "old": ".h5"}


def small_model() -> Model:
    return random_model(
        Embedding("embedding", 5, 3),
        Recurrent("lstm", rnnjax.LSTMCell(2)),
        Dropout("dropout", rnnjax.Dropout(0.2)),
        Recurrent("both", rnnjax.Bidirectional(rnnjax.GRUCell(2))),
        Dense("dense", 2, "softmax"),
    )


def write_keras_2(path: Path) -> None:
    lstm = {"name": "lstm_1", "units": 2, "return_sequences": True}
    config = sequential(("LSTM", lstm), ("Dense", {"name": "dense_1", "units": 2}))
    shapes = {"lstm_1": ((3, 8), (2, 8), (8,)), "dense_1": ((2, 2), (2,))}
    arrays = {
        layer: [(f"{layer}/{i}", np.ones(shape, np.float32)) for i, shape in enumerate(each)]
        for layer, each in shapes.items()
    }
    write_old(path, arrays, config, "2.4.0")


def whole_file(kind: str, folder: Path) -> bytes:
    path = folder / f"whole{KINDS[kind]}"
    write_keras_2(path) if kind == "old" else interop.save(small_model(), path)
    return path.read_bytes()


# --- mutations -----------------------------------------------------------------------------------


def virtual(file: Any, where: str) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset(where, layout)


def large(file: Any, where: str) -> None:
    """It says to be, and holds nothing."""
    file.create_dataset(where, (2**40, 8), "f4", chunks=(1024, 8), compression="gzip")


def outside(file: Any, where: str) -> None:
    file.create_dataset(where, (16,), "u1", external=[("/etc/passwd", 0, 16)])


def held(value: Any) -> Callable[[Any, str], None]:
    return lambda file, where: file.__setitem__(where, value)


# What stands in the place of an array, and what is said of it.
ARRAYS: list[tuple[Callable[[Any, str], None], str]] = [
    (held(h5py.ExternalLink("/etc/passwd", "/")), "is a link to another place"),
    (held(h5py.SoftLink("/layers/dense/vars/0")), "is a link to another place"),
    (outside, "in another file"),
    (virtual, "in another file"),
    (large, "far more than the file holds"),
    *(
        (held(value), "which are no numbers")
        for value in ("kernel", ["a", "b"], np.zeros(3, "f4,i2"), h5py.Empty("f4"), 1j)
    ),
    *((held(np.ones(shape)), "arrays of the shapes") for shape in ((), (3, 0), (1, 2, 3, 4))),
    (lambda file, where: file.__setitem__("layers/loop", file["/"]), "should have 3 arrays"),
    (lambda file, where: [file.create_group(f"layers/{i}") for i in range(50)], "hold at most 50"),
]


def restructure_hdf5(rng: random.Random, content: bytes) -> bytes:
    """Change what the file says, and leave it a sound HDF5 file."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        paths: list[str] = []
        file.visit(paths.append)
        arrays = [path for path in paths if isinstance(file[path], h5py.Dataset)]
        path, where = rng.choice(paths), rng.choice(arrays)
        old = file[where][()]
        change = rng.randrange(9)
        if change == 0:
            file.move(path, f"{path}_{rng.choice(['', 'x', '7', 'ä', '/y'])}")
        elif change == 1:
            del file[path]
        elif change < 5:
            del file[where]
            rng.choice(ARRAYS)[0](file, where)
        elif change == 5:
            name = rng.choice(["model_config", "layer_names", "weight_names", "keras_version"])
            values = [3, b"\xff", "x" * 1000, ["a"], "[" * 5000, "{}", "null", h5py.Empty("f4")]
            file[rng.choice(["/", path])].attrs[name] = rng.choice(values)
        elif change == 6:
            del file[where]
            kind = rng.choice(["f8", "f2", ">f4", "i4"])
            with np.errstate(all="ignore"):  # of numbers that the kind has not
                file[where] = (old * rng.choice([np.nan, 1e300, 1])).astype(kind)
        elif change == 7:
            file[f"{rng.choice(paths)}_more"] = old
        else:
            file.require_group(f"{path}_deep{'/deep' * 29}")
    return stream.getvalue()


def junk(rng: random.Random) -> Any:
    simple = [None, True, -1, 0, 3, 2**40, 1.5, float("nan"), 1e308, "", "tanh", "../x", "x" * 300]
    nested = [[], [1], {}, [[["lstm", 0, 0]]], {"class_name": "LSTM"}]
    layers = [{"class_name": 3, "config": {}}, {"class_name": "Lambda", "config": {"function": 0}}]
    return rng.choice([*simple, *nested, *layers])


def restructure_json(rng: random.Random, value: Any) -> Any:
    """Change, drop or repeat something somewhere inside."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        action = rng.randrange(12)
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, list):
            value.append(value[key])
        elif action == 2 and isinstance(value, dict):
            value[str(junk(rng))] = value[key]
        else:
            value[key] = restructure_json(rng, value[key])
        return value
    return junk(rng)


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return stream.getvalue()


def restructure_archive(rng: random.Random, content: bytes) -> bytes:
    members, change = members_of(content), rng.randrange(8)
    config = json.loads(members["config.json"])
    if change < 4:
        for _ in range(rng.randrange(1, 4)):
            config = restructure_json(rng, config)
        members["config.json"] = json.dumps(config).encode()
    elif change == 4:
        members["model.weights.h5"] = restructure_hdf5(rng, members["model.weights.h5"])
    elif change == 5:
        del members[rng.choice(list(members))]
    elif change == 6:
        outside = ["../x", "/x", "a/../../x", "..\\x", "C:\\x", "assets/../../x"]
        members[rng.choice(outside)] = b"x"
    else:
        bombs = [b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b" " * (20 * 2**20)]
        members[rng.choice(["config.json", "metadata.json"])] = rng.choice(bombs)
    return zipped(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def mutate(kind: str, seed: int, content: bytes) -> bytes:
    rng = random.Random(seed)
    if rng.random() < 0.6:
        return change(rng, content)
    return restructure_archive(rng, content) if kind == "keras" else restructure_hdf5(rng, content)


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, count: int, tmp_path: Path) -> None:
    whole = whole_file(kind, tmp_path)
    load = functools.partial(interop.load, like=small_model() if kind == "weights" else None)
    contents = (mutate(kind, seed, whole) for seed in range(20, 20 + count))
    said = check_damaged(tmp_path / f"changed{KINDS[kind]}", contents, load)
    print(f"{len(said)} of {count} mutations of {kind} are refused")
    assert count // 10 < len(said) <= count - count // 100


# --- one by one ----------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.weights.h5"
    interop.save(small_model(), path)
    return path


KERNEL = "layers/lstm/cell/vars/0"


@pytest.mark.parametrize(("change", "says"), ARRAYS)
def test_what_is_refused_in_hdf5(
    change: Callable[[Any, str], None], says: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "_MOST_LINKS", 50)
    with h5py.File(sound, "r+") as file:
        del file[KERNEL]
        change(file, KERNEL)
    with pytest.raises(InteropError, match=says):
        interop.load(sound, like=small_model())


def archive(folder: Path, **changes: bytes | None) -> Path:
    """A sound archive with members changed, added or dropped."""
    interop.save(small_model(), folder / "sound.keras")
    members = members_of((folder / "sound.keras").read_bytes())
    members |= {{"config": "config.json"}.get(k, k): v for k, v in changes.items()}
    path = folder / "model.keras"
    path.write_bytes(zipped({name: data for name, data in members.items() if data is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": b" " * (17 * 2**20)}, "unfolds to more than"),
        ({"model.weights.h5": b"\0" * (65 * 2**20)}, "unfolds to more than"),
        ({"config": b"[" * 200_000}, "cannot be read as JSON|nested too deep"),
        ({"config": b"\xff"}, "cannot be read as JSON"),
        ({"config": None}, "should have one member config.json"),
        ({"model.weights.h5": None}, "should have one member model.weights.h5"),
        ({"model.weights.h5": b"nothing"}, "the HDF5 file is damaged"),
    ],
)
def test_what_is_refused_in_archives(changes: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InteropError, match=says):
        interop.load(archive(tmp_path, **changes))


def test_other_members_are_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path, **{"assets/big": b"\0" * (80 * 2**20)})
    assert set(interop.load(path).params) == {"embedding", "lstm", "both", "dense"}


@pytest.mark.usefixtures("process_of_its_own")
def test_a_reader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the HDF5 library does on some files: what stops it does not depend on finding one."""

    endless, source = tmp_path / "endless.py", Path(hdf5.__file__).read_text()
    for old, new in (
        ("found = read(h5py, file, most_bytes)", "found = {}, []\n            while True: pass"),
        ("resource.RLIMIT_CPU: 3 +", "resource.RLIMIT_CPU: 1 +"),  # seconds, which all pass
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    endless.write_text(source)
    path = tmp_path / "model.weights.h5"
    interop.save(small_model(), path)
    monkeypatch.setattr(hdf5, "__file__", str(endless))
    with pytest.raises(InteropError, match="the HDF5 library fails on it"):
        interop.load(path, like=small_model())


def test_the_reader_is_a_process_of_any_place(tmp_path: Path) -> None:
    """The package may be a zip, and the path of the file have any letters."""
    path = tmp_path / "a \u00e9" / "-c.weights.h5"
    path.parent.mkdir()
    interop.save(small_model(), path)
    interop.save(small_model(), tmp_path / "whole.keras")
    package = tmp_path / "rnnjax.zip"
    with zipfile.ZipFile(package, "w") as archive:
        top = Path(rnnjax.__file__).parent
        for module in top.rglob("*.py"):
            archive.write(module, module.relative_to(top.parent))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rnnjax.interop import keras; "
        "assert sys.argv[1] in keras.__file__; "
        "like = keras.load(sys.argv[3]); print(set(keras.load(sys.argv[2], like=like).params))"
    )
    command = [sys.executable, "-c", code, package, path.name, tmp_path / "whole.keras"]
    assert "lstm" in subprocess.check_output(command, cwd=path.parent, text=True)


@pytest.mark.usefixtures("process_of_its_own")
@pytest.mark.parametrize("lacks", ["", None, "frozen", "h5py"])
def test_without_a_python_to_read_with(
    lacks: str | None, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "a Python process of its own"
    if lacks == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif lacks == "h5py":
        says = "cannot import h5py .*broken here"
        (tmp_path / "h5py.py").write_text("raise ImportError('broken here')")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setattr(sys, "executable", lacks)
    with pytest.raises(InteropError, match=says):
        interop.load(sound, like=small_model())


SCRIPT = "a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(50), "a TFLite model"),
        (b"\x20\0\0\0\0\0\0\0" + b'{"a": 1}' + bytes(30), r"\.safetensors.*interop\.torch\.load"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"torch\.save; call .*torch\.load"),
        (zipped({"a/data.pkl": b"", "a/data/0": b""}), r"torch\.save; call .*torch\.load"),
        (zipped(dict.fromkeys(SCRIPT, b"")), "a TorchScript program"),
        (b"", "neither a .keras archive nor"),
        (b"hello", "neither a .keras archive nor"),
    ],
)
def test_files_of_others_are_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(content)
    with pytest.raises(InteropError, match=says):
        interop.load(tmp_path / "model.h5")
