"""From a corpus to ids, and to batches, however long and in whatever pieces."""

import hashlib
import itertools
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.text_generator import reading
from experiments.text_generator.config import Text
from experiments.text_generator.data import Data
from experiments.text_generator.reading import cleaned_pieces, read_text, text_bytes
from experiments.text_tools import corpora
from experiments.text_tools.corpora import CorpusError
from rnnjax.text import (
    Vocabulary,
    plain_lines,
    shuffled_batches,
    streams,
    windows,
)

ROOT = Path(__file__).parents[2]
TINY = ["--layers", "1", "--hidden-size", "4", "--batch-size", "4", "--seq-length", "10",
        "--sample-length", "3", "--corpus", "text.txt"]  # fmt: skip


@given(st.lists(st.text("ab \n\r*é\tİ"), max_size=8))
def test_pieces_are_cleaned_as_the_whole_text_is(pieces):
    text = "".join(pieces)
    for kind, whole in (
        ("tutorial", Vocabulary.tutorial().clean(text)),
        ("lines", plain_lines(text)),
        ("learned", text),
    ):
        assert "".join(cleaned_pieces(pieces, kind)) == whole


@pytest.mark.parametrize("kind", ["tutorial", "learned", "lines", "bytes"])
def test_a_text_that_is_read_in_pieces_is_the_whole_text(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("aB \n*é🐇字"), 1000))
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpora, "_PIECE", 7)
    read = read_text(Text(str(path), vocabulary=kind))
    cleaned = {"tutorial": Vocabulary.tutorial().clean(text), "lines": plain_lines(text)}
    cleaned = cleaned.get(kind, text)
    assert read.vocabulary.decode(read.ids) == cleaned
    assert read.digest == hashlib.sha256(cleaned.encode()).hexdigest()
    assert read.ids.dtype == np.uint8
    if kind == "lines":
        assert read.vocabulary == Vocabulary.learned(cleaned)
    unknown = {"tutorial": "*é🐇字", "lines": "é🐇字"}.get(kind, "")
    assert read.dropped == sum(map(text.count, unknown))


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (70_000, np.int32)])
def test_ids_are_of_the_narrowest_type(tmp_path, size, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + size)))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    options = Text(str(tmp_path / "text.txt"), vocabulary="learned", seq_length=9, batch_size=3)
    data = Data.load(options, seed=0)
    assert data.train.dtype == data.batches(0)["inputs"].dtype == dtype
    np.testing.assert_array_equal(data.train, np.arange(size))


@pytest.mark.parametrize("carry_state", [False, True])
def test_batches_are_those_of_the_library(tmp_path, text, carry_state):
    options = Text(str(tmp_path / "text.txt"), batch_size=4, seq_length=9, carry_state=carry_state)
    data = Data.load(options, seed=3)
    batches, ids = data.batches(2), Vocabulary.tutorial().encode(text)
    inputs, targets = streams(ids, 4, 9) if carry_state else windows(ids, 9)
    weights = np.ones(inputs.shape[:2], np.float32)
    if not carry_state:
        order, weights = shuffled_batches(len(inputs), 4, seed=3, epoch=2)
        inputs, targets = inputs[order], targets[order]
    for name, expected in (("inputs", inputs), ("targets", targets), ("weights", weights)):
        np.testing.assert_array_equal(batches[name], expected)


@pytest.mark.parametrize("data", [b"caf\xe9\r\n" * 90, b"\xef\xbb\xbf\xff\r\n" * 90])
def test_bytes_need_not_be_text(program, tmp_path, data):
    """A file that is not UTF-8 is read byte for byte; one that is, as text."""
    (tmp_path / "text.txt").write_bytes(data)
    options = [*TINY, "--vocabulary", "bytes", "--epochs", "1"]
    assert f"{len(data)} bytes" in program("text_generator", "train", *options).stdout
    read = read_text(Text(str(tmp_path / "text.txt"), vocabulary="bytes"))
    assert read.ids.tobytes() == data
    assert read.digest == hashlib.sha256(data).hexdigest()
    assert "going on" in program("text_generator", "train", "--resume").stdout
    (tmp_path / "prime.txt").write_bytes(data[:6])
    written = program("text_generator", "generate", "--prime-file", "prime.txt", "--length", "3")
    assert written.stdout.startswith(data[:6].decode(errors="replace"))
    scored = program("text_generator", "evaluate", "prime.txt", "--json", "bits.json").stdout
    assert "over 5 bytes" in scored
    assert json.loads((tmp_path / "bits.json").read_text())["bytes"] == list(data[:6])
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfas it was\r\n")
    assert text_bytes(tmp_path / "text.txt") == b"as it was\n"


def test_bytes_of_another_encoding_have_to_be_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    assert text_bytes(tmp_path / "text.txt", "cp1252") == "café".encode()
    for encoding, strip_licence in (("ascii", False), ("utf-8", True)):
        with pytest.raises(CorpusError, match="0xe9 at offset 3 is not"):
            text_bytes(tmp_path / "text.txt", encoding, strip_licence=strip_licence)


def test_long_reading_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("a" * 100)
    options = Text(str(tmp_path / "text.txt"), vocabulary="learned")
    read_text(options)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(corpora, "_PIECE", 10)
    seconds = itertools.count(0, 0.6)
    monkeypatch.setattr(reading, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    read_text(options)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"reading {tmp_path / 'text.txt'}: {done} characters so far" for done in (20, 40, 70)
    ]


MEASURED = """
import resource, sys, jax
from experiments.text_generator.config import Text
from experiments.text_generator.data import Data
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, data = peak(), Data.load(Text(sys.argv[1], vocabulary="learned"), 0)
print(peak() - before, data.length)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not in KiB")
def test_a_long_text_takes_a_few_bytes_a_character(tmp_path):
    """One emoji makes a str of four bytes a character."""
    (tmp_path / "text.txt").write_text(("The cat sat on a mat. " * 500_000 + "🐇") * 3)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "text.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    peak, length = map(int, done.stdout.split())
    assert length == 33_000_003
    assert peak * 1024 / length < 4
