import dataclasses
import functools
import importlib
import subprocess
import sys

import jax
import pytest

from experiments.shared import runs
from experiments.text_generator import train as training
from experiments.text_generator.checkpoints import described
from experiments.text_generator.config import Architecture, Text, Train
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel
from rnnjax.training import Checkpoints, fitting

# What most runs of the text generator are: of one size, which is compiled once.
TINY = ["--layers", "1", "--hidden-size", "4", "--batch-size", "4", "--seq-length", "10",
        "--sample-length", "3", "--corpus", "text.txt"]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    """Text generators of equal options share their compiled steps, as all draw alike already.

    To trace and lower them anew takes most of the time of a run of a few steps.
    """
    make_optimizer = functools.lru_cache(64)(training.make_optimizer)

    def of_its_length(options, *length):
        """A rate that stays as it is does so in a run of any length."""
        return make_optimizer(options, *((1, 1) if options.schedule == "constant" else length))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_optimizer", of_its_length)
        for module, name in ((training, "make_loss"), (fitting, "make_train_steps")):
            patch.setattr(module, name, functools.lru_cache(64)(getattr(module, name)))
        yield


@pytest.fixture(scope="session")
def untrained():
    """The run in a folder with a text, which has done no step: nothing is compiled to train it."""

    def untrained(folder, content, *, layers=1, hidden_size=4, encoding="utf-8", **options):
        (folder / "text.txt").write_text(content, encoding=encoding)
        text = Text(str(folder / "text.txt"), encoding=encoding, **options)
        model = Architecture(layers=layers, hidden_size=hidden_size)
        config = Train(text=text, model=model, run_dir=folder / "run")
        data = Data.load(config.text, config.seed)
        model = CharacterModel.build(config.model, len(data.vocabulary))
        state = training.new_state(
            model, config, training.make_optimizer(config.optimization, 1, 1)
        )
        # Large parameters, so that what is read makes a difference.
        state = dataclasses.replace(state, params=jax.tree.map(lambda a: 5 * a, state.params))
        about = {"config": described(config, data)}
        Checkpoints(config.run_dir / "checkpoints").save(state, about)
        return config.run_dir

    return untrained


@pytest.fixture(scope="session")
def character_model(random_like):
    """Make a model for so many characters, and draw parameters for it."""

    def character_model(size, layers=2, seed=0, **options):
        model = CharacterModel.build(Architecture(layers=layers, **options), size)
        return model, random_like(lambda: model.init(jax.random.key(0)), seed)

    return character_model


@pytest.fixture
def text(tmp_path):
    """What most runs of the text generator read: of one length, which is compiled once."""
    text = "The cat sat on a mat, and the dog ran. " * 9
    (tmp_path / "text.txt").write_text(text)
    return text


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Run ``python -m experiments.<name>`` in an empty folder: its whole command line, in here.

    A process for each run would spend its time on imports; `start` has real ones. And the picture
    of the loss, which takes a fifth of a short run, is drawn only if it is asked for.
    """

    def run(name, *arguments, check=True, picture=False):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        inside = "" if name.startswith("cookbook.") else ".__main__"
        main = importlib.import_module(f"experiments.{name}{inside}").main
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
def generator(program):
    """Run a command of the text generator."""
    return functools.partial(program, "text_generator")


@pytest.fixture
def tiny():
    """The options of `train` below, for those that start a process."""
    return TINY


@pytest.fixture
def train(generator):
    """Train a tiny model, in the folder ``run`` unless another is named."""
    return lambda *options, to="run", **more: generator(
        "train", *TINY, *options, "--run-dir", to, **more
    )


@pytest.fixture
def resume(generator):
    """Go on with the run in the folder ``run``."""
    return functools.partial(generator, "train", "--resume", "--run-dir", "run")


@pytest.fixture
def refusal(program):
    """What a program says that refuses with status 2 and a sentence."""

    def refusal(*command):
        result = program(*command, check=False)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        return result.stderr

    return refusal


@pytest.fixture
def refused(refusal):
    """What a command of the text generator says that is refused."""
    return functools.partial(refusal, "text_generator")


# A shell starts what runs in its background, the tests too, with interrupts ignored.
HEED_INTERRUPTS = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def start(tmp_path, begin):
    """Start a program in a process of its own, and go on."""
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def start(name, *arguments, devices=1, files=together, **variables):
        command = [sys.executable, "-c", HEED_INTERRUPTS, f"experiments.{name}"]
        given = map(str, arguments)
        return begin([*command, *given], devices, cwd=tmp_path, files=files, **variables)

    return start
