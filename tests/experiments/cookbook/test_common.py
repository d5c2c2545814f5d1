"""What the programs of the cookbook share."""

import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.cookbook import __main__ as cookbook
from experiments.shared import data
from experiments.shared.corpora import CorpusError
from experiments.shared.report import Options, Report


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("mnist.npz", data.digits),
        ("music/JSB_Chorales.mat", functools.partial(data.chords, "JSB_Chorales")),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_one_sentence(tmp_path, name, read):
    with pytest.raises(CorpusError, match="give a folder that has it by --data"):
        read(str(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"garbage\n1,x\n")
    with pytest.raises(CorpusError, match=r"cannot be read .*the file is damaged"):
        read(str(tmp_path))


def test_digits_by_either_name_and_a_made_series_that_has_logs(tmp_path):
    for names in ("train_x train_y test_x test_y", "x_train y_train x_test y_test"):
        np.savez(tmp_path / "mnist.npz", **dict(zip(names.split(), range(4), strict=True)))
        assert [int(part) for part in data.digits(str(tmp_path))] == [0, 1, 2, 3]
    lines = data.table("airline-passengers", data.MADE).decode().splitlines()[1:]
    assert min(float(line.split(",")[1]) for line in lines) > 0


@pytest.mark.smoke
@pytest.mark.parametrize(("bound", "status"), [(2.0, 0), (0.5, 1)])
def test_a_report_tells_what_was_missed(tmp_path, capsys, bound, status):
    options = Options(run_dir=tmp_path / "run")
    report = Report.begin("program", "error", options)
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


def test_nothing_has_to_be_reached_on_made_data(tmp_path):
    report = Report.begin("program", "error", Options(data=data.MADE, run_dir=tmp_path / "run"))
    report.add("ours", 1.0)
    report.accept("error of ours", 1.0, 0.5)
    assert (report.accepts, report.end()) == ([], 0)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_program_that_runs_and_then_the_cookbook(monkeypatch, number):
    raised = []
    monkeypatch.setattr(cookbook.signal, "raise_signal", raised.append)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    began = time.monotonic()
    timer.start()
    status = cookbook.run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert (status, raised) == (-signal.SIGTERM, [number])
    assert time.monotonic() - began < 30  # the program has ended
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("heeded")
def test_a_signal_that_is_ignored_ends_neither(monkeypatch):
    raised = []
    monkeypatch.setattr(cookbook.signal, "raise_signal", raised.append)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    send = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
    assert (cookbook.run([sys.executable, "-c", send]), raised) == (0, [])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
