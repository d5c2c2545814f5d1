import functools
import importlib
import subprocess
import sys

import pytest

from experiments import runs
from experiments.text_generator import train
from rnnjax.training import fitting


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    """Text generators of equal options share their compiled steps, as all draw alike already.

    To trace and lower them anew takes most of the time of a run of a few steps.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (train, "make_loss"), (train, "make_optimizer"), (fitting, "make_train_steps"),
        ):  # fmt: skip
            patch.setattr(module, name, functools.lru_cache(32)(getattr(module, name)))
        yield


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Run ``python -m experiments.<name>`` in an empty folder: its whole command line, in here.

    A process for each run would spend its time on imports; `start` has real ones. And the picture
    of the loss, which takes a fifth of a short run, is drawn only if it is asked for.
    """

    def run(name, *arguments, check=True, picture=False):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        main = importlib.import_module(f"experiments.{name}.__main__").main
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if name == "text_generator" and not picture:
                patch.setattr("experiments.text_generator.train.plot_loss", lambda *_: None)
            with pytest.raises(SystemExit) as end:
                runs.exit_with(main)
        result = subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def start(tmp_path, environment):
    """Start a program in a process of its own, and go on; it is ended with the test."""
    processes = []

    def run(name, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()
