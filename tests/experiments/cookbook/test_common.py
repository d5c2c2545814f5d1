"""What the programs of the cookbook share."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.cookbook.common import data
from experiments.cookbook.common.report import Report
from experiments.text_tools.corpora import CorpusError
from rnnjax.errors import InvalidInputError

FOLDER = os.environ.get("RNNJAX_DATA")


@dataclasses.dataclass(frozen=True)
class Options:
    run_dir: Path
    seed: int = 0
    epochs: tuple[int, ...] = (1, 2)
    rate: float = 0.0


def test_sequences_side_by_side_with_time_first():
    array, lengths = data.padded([np.arange(3.0), np.arange(5.0)], length=4)
    assert array.T.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert lengths.tolist() == [3, 4]
    with pytest.raises(InvalidInputError, match="a sequence at least"):
        data.padded([])


def test_made_data_is_of_the_kind_of_the_real():
    digits = data.digits(data.MADE)
    assert digits.train_x.shape[1:] == digits.test_x.shape[1:] == (28, 28)
    assert set(digits.train_y.tolist()) == set(range(10))
    same = [x for x, y in zip(digits.train_x, digits.train_y, strict=True) if y == 1]
    assert 0 < np.mean(same[0] > 0) < 0.2
    assert all(german and english for german, english in data.pairs("val", data.MADE))
    assert data.pairs("val", data.MADE) != data.pairs("train", data.MADE)[:40]
    words, kinds = data.questions("train", data.MADE)
    assert len(words) == len(kinds)
    names, languages = data.names(data.MADE)
    assert len(names) == len(languages)
    assert data.chords("JSB_Chorales", data.MADE)["train"][0].sum(1).tolist() == [3] * 40
    assert data.table("airline-passengers", data.MADE).count(b"\n") == 144
    spoken = data.recordings(data.MADE)
    assert len(spoken.waves) == len(spoken.digits) == len(spoken.takes)
    assert len(data.text("tinyshakespeare", data.MADE)) > 10_000


def test_what_is_not_in_the_folder_is_said(tmp_path):
    with pytest.raises(CorpusError, match="give a folder that has it by --data"):
        data.read("mnist.npz", str(tmp_path))


@pytest.mark.parametrize("name", ["mnist.npz", "music/JSB_Chorales.mat"])
def test_a_damaged_file_is_one_sentence(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"garbage\n1,x\n")
    read = {"mnist.npz": data.digits}.get(name, data.chords)
    stem = [] if read is data.digits else [Path(name).stem]
    with pytest.raises(CorpusError, match=r"cannot be read .*the file is damaged"):
        read(*stem, str(tmp_path))


def test_bad_options(tmp_path):
    for options, message in (
        ({"seed": -1}, "--seed must be at least 0, but is -1"),
        ({"epochs": (1, 0)}, "--epochs must be at least 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Report.begin("program", "error", Options(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_every_file_has_an_address_a_checksum_and_a_licence():
    for address, digest, licence in data.FILES.values():
        assert address.startswith("https://")
        assert len(bytes.fromhex(digest)) == 32
        assert licence


@pytest.mark.parametrize(("bound", "status"), [(2.0, 0), (0.5, 1)])
def test_a_report_tells_what_was_missed(tmp_path, capsys, bound, status):
    report = Report.begin("program", "error", Options(tmp_path / "run"))
    report.add("ours", [1.0, 3.0])
    report.add("theirs", 1.5, "Somebody (2000)")
    report.accept("error of ours", 1.0, bound)
    report.accept("share", 0.9, 0.5, "least")
    assert report.end(more=3) == status
    printed = capsys.readouterr().out
    assert "2.00 ± 1.41" in printed
    assert ("MISSED: error of ours 1, at most 0.5" in printed) == (status == 1)
    stored = json.loads(Path(tmp_path, "run", "result.json").read_text())
    assert [row["shown"] for row in stored["rows"]] == ["2.00 ± 1.41", "1.50"]
    assert [one["holds"] for one in stored["accepts"]] == [status == 0, True]
    assert stored["more"] == 3
