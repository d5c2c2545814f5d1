"""From a corpus to ids, and to batches, however long and in whatever pieces."""

import dataclasses
import hashlib
import itertools
import json
import tracemalloc
import types

import numpy as np
import pytest

from experiments.shared import corpora
from experiments.shared.corpora import CorpusError
from experiments.text_generator import reading
from experiments.text_generator.config import Text
from experiments.text_generator.data import Data
from experiments.text_generator.reading import read_text, text_bytes
from rnnjax.text import Vocabulary, plain_lines, shuffled_batches, streams, windows


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
    mine = dataclasses.replace(data, rows=np.array([1, 3]))  # of one of several processes
    part = mine.batches(2)
    for name, expected in (("inputs", inputs), ("targets", targets), ("weights", weights)):
        np.testing.assert_array_equal(batches[name], expected)
        np.testing.assert_array_equal(part[name], np.asarray(expected)[:, [1, 3]])
    assert mine.steps_per_epoch == data.steps_per_epoch


def test_bytes_need_not_be_text(train, resume, generator, tmp_path):
    """A file that is not UTF-8 is read byte for byte; one that is, as text."""
    data = b"\xef\xbb\xbfcaf\xe9\r\n" * 60
    (tmp_path / "text.txt").write_bytes(data)
    done = train("--vocabulary", "bytes", "--epochs", "1")
    assert f"{len(data)} bytes (256 in the vocabulary)" in done.stdout
    assert "bits per byte" in done.stdout + done.stderr
    read = read_text(Text(str(tmp_path / "text.txt"), vocabulary="bytes"))
    assert read.ids.tobytes() == data
    assert read.digest == hashlib.sha256(data).hexdigest()
    assert "resumes from" in resume().stdout
    (tmp_path / "prime.txt").write_bytes(data[:8])
    run = ["--run-dir", "run"]
    written = generator("generate", *run, "--prime-file", "prime.txt", "--length", "3").stdout
    assert written.startswith(data[:8].decode(errors="replace"))
    scored = generator("evaluate", "prime.txt", *run, "--json", "bits.json").stdout
    assert "over 7 bytes" in scored
    assert json.loads((tmp_path / "bits.json").read_text())["bytes"] == list(data[:8])
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


def test_a_long_text_takes_a_few_bytes_a_character(tmp_path, monkeypatch):
    """One emoji makes a str of four bytes a character."""
    monkeypatch.setattr(corpora, "_PIECE", 2**14)
    peaks = []
    for length in (200_000, 1_200_000):
        (tmp_path / "text.txt").write_text("The cat " * (length // 8) + "🐇")
        tracemalloc.start()
        Data.load(Text(str(tmp_path / "text.txt"), vocabulary="learned"), 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4e6
