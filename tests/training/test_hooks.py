"""Hooks of `fit`: each decides from the history, so that a run that was killed goes on exactly."""

import csv
import dataclasses
import errno
import io
import json
import os
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import CheckpointError, InvalidInputError
from rnnjax.training import (
    EarlyStopping,
    ReduceOnPlateau,
    Sharding,
    Silent,
    TrainState,
    fit,
    hooks,
)
from rnnjax.training.hooks import CSVLog, Hook, Progress, TensorBoard

POINTS = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
RATE = np.float32(1e-9)


def line(params, batch, key):
    return jnp.mean((params["w"] * batch - 3 * batch) ** 2), {"each": batch[:2]}


def train(epochs=3, folder=None, hooks=(), optimizer=SGD, **options):
    options = {"key": jax.random.key(0), "run_dir": folder, **options}
    return fit(line, {"w": jnp.zeros(())}, optimizer, POINTS, epochs,
               hooks=[Silent(), *hooks], **options)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({"patience": 2, "min_delta": 0.1}, (3.0, 2.0, 1.95, 1.91, 1.0), 4),
        ({"patience": 2, "min_delta": 0.01}, (3.0, 2.0, 1.95, 1.91, 1.0), 7),
        ({"patience": 2, "min_delta": 0.5}, (3.0, 2.5, 2.5), 3),  # it must be more
        ({"patience": 1, "mode": "max"}, (0.1, 0.4, 0.4, 0.9), 3),
        ({"patience": 2, "mode": "max"}, (0.1, float("nan"), 0.05, 0.9), 3),
        ({"patience": 1, "mode": "max", "min_delta": 0.3}, (0.0, 0.25, 0.9), 2),
        ({"patience": 1}, (float("nan"), float("nan"), 0.0), 2),
        ({"patience": 3}, (3.0, 4.0, 4.0, 2.0, 2.5, 2.0, 2.0), 7),
    ],
)
def test_early_stopping_waits_for_an_improvement(options, values, epochs):
    """Where it ends a run, the other hook that waits reduces the rate for the first time."""
    hook, other = (kind(monitor="score", **options) for kind in (EarlyStopping, ReduceOnPlateau))
    state = TrainState(0, (), SGD.init(())._replace(hyperparams={"learning_rate": RATE}), (), 0)
    ended, reduced = [], []
    for value in (*values, 9.0, 9.0):
        hook.history = other.history = [*hook.history, {"score": value}]
        ended.append(hook.on_epoch(state, {}))
        reduced.append(other.on_epoch(state, {}))
    assert ended.index(True) + 1 == epochs
    first = next(each for each in reduced if each is not None)
    assert reduced.index(first) + 1 == epochs
    assert first.opt_state.hyperparams["learning_rate"] == pytest.approx(1e-10)


def test_a_longer_patience_goes_on_and_the_same_call_does_nothing(tmp_path):
    def measured(params):
        return {"validation_loss": abs(float(params["w"]) - 1.0)}  # grows again on the way to 3

    first = train(50, tmp_path, [EarlyStopping(1)], evaluate=measured)
    again = train(50, tmp_path, [EarlyStopping(1)], evaluate=None)
    assert 1 < len(first.history) == len(again.history) < 50
    more = train(50, tmp_path, [EarlyStopping(3)], evaluate=measured)
    assert len(more.history) == len(first.history) + 2
    assert more.best == first.best
    np.testing.assert_array_equal(more.params["w"], first.params["w"])


def test_a_function_ends_the_run_for_good(tmp_path):
    seen = []

    def enough(state, summary):
        seen.append((int(state.step), summary["epoch"]))
        return np.bool_(summary["epoch"] == 2)

    for _ in range(2):
        result = train(5, tmp_path, [enough])
        assert (len(result.history), result.finished) == (2, True)
    assert seen == [(4, 1), (8, 2)]
    # Without it, or with one that does not say so, it goes on.
    assert len(train(5, tmp_path).history) == 5


def killed(epoch):
    """In an epoch, before it is saved."""

    def kill(state, summary):
        assert summary["epoch"] != epoch, "an accident"

    return kill


def test_the_rate_falls_on_a_plateau_and_after_a_kill_the_same(tmp_path):
    rates = []

    def noted(state, summary):
        rates.append(round(float(state.opt_state[1].hyperparams["learning_rate"]), 6))

    def go(folder, *more):
        return train(7, folder, [ReduceOnPlateau(2, factor=0.5, min_rate=0.03), *more, noted],
                     optax.chain(optax.clip_by_global_norm(1.0), SGD),
                     evaluate=lambda _: {"validation_loss": (3, 2, 2, 2.5, 2.5, 2.5, 1)[len(rates)]}
                     )  # fmt: skip

    whole = go(None)
    assert rates == [0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03]
    rates.clear()
    with pytest.raises(AssertionError, match="an accident"):
        go(tmp_path, killed(4))
    assert go(tmp_path).state.params["w"] == whole.state.params["w"]
    assert rates == [0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03]


@pytest.mark.parametrize(
    ("options", "optimizer", "named"),
    [
        ({"patience": 0}, SGD, "patience must be a positive"),
        ({"mode": "auto"}, SGD, "but are 'auto' and 0.0"),
        ({"min_delta": -1.0}, SGD, "but are 'min' and -1.0"),
        ({"factor": 1}, SGD, "factor must be between 0 and 1, but is 1"),
        ({"factor": 0}, SGD, "factor must be between 0 and 1, but is 0"),
        ({"monitor": "score"}, SGD, "monitor must be a measure .* is 'score', and there"),
        ({"monitor": 3}, SGD, "monitor must be a measure of an epoch, but is 3, and there are"),
        ({}, optax.adam(0.1), "one learning_rate, but holds none.*inject_hyp"),
        ({}, optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 9)),
         "one learning_rate, but holds two, as.*inject_hyp"),
    ],
)  # fmt: skip
def test_what_a_patience_cannot_be(options, optimizer, named):
    with pytest.raises(InvalidInputError, match=named):
        train(1, hooks=[ReduceOnPlateau(**{"patience": 1, **options})], optimizer=optimizer)


@pytest.mark.parametrize("first", [True, False])
def test_what_a_hook_writes_is_in_the_history_and_in_all_files_after_a_resume_too(tmp_path, first):
    """Numbers of NumPy and JAX too; once, and also of an epoch in which a hook then fails.

    So is a state that it returns.
    """
    table, folder = CSVLog(tmp_path / "log.csv"), tmp_path / "run"

    def write(state, summary):
        summary["half"] = jnp.float32(summary["epoch"] / 2)
        summary["seen"] = np.arange(summary["epoch"])
        summary["loss"] = -summary["epoch"]
        return dataclasses.replace(state, params={"w": state.params["w"] / 2})

    def go(epochs, *more):
        given = [table, write, *more] if first else [write, *more, table]
        return train(epochs, folder, given, evaluate=lambda _: {"validation_loss": 1.0})

    def check(history, more=()):
        lines = map(json.loads, (folder / "epochs.jsonl").read_text().splitlines())
        rows = csv.DictReader(io.StringIO(table.path.read_text()))
        rows = [{n: json.loads(row[n]) for n in expected[0]} for row in rows]
        for found in (rows, lines, [*history, *more]):
            assert [{n: entry.get(n) for n in expected[0]} for entry in found] == expected

    expected = [{"epoch": 1, "half": 0.5, "seen": [0], "loss": -1},
                {"epoch": 2, "half": 1.0, "seen": [0, 1], "loss": -2}]  # fmt: skip
    history = go(2).history
    check(history)
    expected.append({"epoch": 3, "half": 1.5, "seen": [0, 1, 2], "loss": -3})
    with pytest.raises(AssertionError, match="an accident"):
        go(4, killed(3))
    check(history, expected[2:])
    result = go(3)
    check(result.history)
    whole, plain = train(3, hooks=[write]), train(3)
    assert result.state.params == whole.state.params != plain.state.params
    last = json.loads((folder / "result.json").read_text())["last"]
    assert {n: last[n] for n in expected[0]} == expected[-1]


def test_a_table_makes_its_folder_or_says_before_the_first_epoch_that_it_cannot(
    tmp_path, monkeypatch
):
    path = tmp_path / "new" / "log.csv"
    train(1, hooks=[CSVLog(path)])
    assert len(path.read_text().splitlines()) == 2
    started = []
    with pytest.raises(CheckpointError, match=r"x.csv cannot be written to \(File exists\)"):
        train(1, hooks=[CSVLog(path / "x.csv"), lambda *_: started.append(1)])
    assert not started

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hooks, "write_whole", full)
    with pytest.raises(CheckpointError, match=r"log.csv cannot be written to \(No space left on"):
        train(1, hooks=[CSVLog(path)])


@pytest.mark.parametrize("devices", [None, 2])
def test_parameters_may_be_kept(devices):
    """By a function, by a hook, and by one that returns what it has kept."""
    kept = []

    def evaluate(params):
        kept.append(params)
        return {"validation_loss": 1.0}

    def keep(state, summary):
        kept.append(state.params)

    def restore(state, summary):
        return dataclasses.replace(state, params=kept[1])

    sharding = devices and Sharding.over(devices)
    result = train(3, hooks=[keep], evaluate=evaluate, sharding=sharding)
    values = [float(params["w"]) for params in kept]
    assert values[::2] == values[1::2]
    assert len(set(values)) == 3
    kept.clear()
    result = train(3, hooks=[keep, restore], evaluate=evaluate, sharding=sharding)
    values = [float(params["w"]) for params in kept]
    assert values == [values[0]] * 2 + [values[2]] * 4
    assert float(result.params["w"]) == values[0] != values[2]


def test_an_error_of_a_hook_names_the_hook_and_another_shape_too():
    class Breaks(Hook):
        def __init__(self, method):
            setattr(self, method, self.breaks)

        def breaks(self, *args):
            raise ZeroDivisionError

    for method in ("on_start", "on_phase", "on_dispatch", "on_epoch", "close"):
        with pytest.raises(ZeroDivisionError) as caught:
            train(1, hooks=[Breaks(method)])
        (note,) = caught.value.__notes__
        assert note == f"It was raised by {method} of the hook {Breaks.__qualname__}."
    for change in (jnp.zeros(2), jnp.zeros((), jnp.int32), None, {"w": jnp.zeros(())}):

        def spoil(state, summary, change=change):
            return dataclasses.replace(state, params={"w": change})

        with pytest.raises(
            InvalidInputError, match=r"the hook .*spoil must return a state like the one"
        ):
            train(1, hooks=[spoil])


def test_hooks_hear_of_everything_in_turn(tmp_path):
    heard = []

    class Hears(Hook):
        def on_start(self, state):
            heard.append(("start", int(state.step), len(self.history), self.epochs))

        def on_phase(self, phase):
            heard.append(phase)

        def on_dispatch(self, step, losses, seconds):
            heard.append((step, len(losses), seconds is None))
            self.seconds = seconds

        def on_epoch(self, state, summary):
            assert self.history[-1] is summary
            heard.append(("epoch", summary["epoch"], summary["steps_per_second"] * self.seconds))

        def close(self):
            heard.append("close")

    train(1, tmp_path, [Hears()], steps_per_dispatch=2, evaluate=POINTS)
    assert heard == [
        ("start", 0, 0, 1), "reading", "compiling", (2, 2, True), "training", (4, 2, False),
        "validating", ("epoch", 1, pytest.approx(2)), "writing", "close",
    ]  # fmt: skip
    train(2, tmp_path, [Hears()], steps_per_dispatch=2)
    assert heard[10] == ("start", 4, 1, 2)


class Screen:
    """A terminal."""

    def __init__(self, terminal=True):
        self.written, self.isatty = [], lambda: terminal

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


STATE = SimpleNamespace(step=4)


def test_a_terminal_shows_the_phase_and_the_rate_of_training_alone(monkeypatch, capsys):
    screen, now = Screen(), [5.0]
    monkeypatch.setattr(hooks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(hooks.shutil, "get_terminal_size", lambda: SimpleNamespace(columns=54))
    progress = Progress(screen)
    progress.epochs, progress.history = 3, [{}]
    progress.on_start(STATE)
    progress.on_phase("compiling")
    progress.on_dispatch(1014, [9.0, 1.5], None)  # which was compiled, and is too soon to show
    now[0] += 0.125
    progress.on_dispatch(1024, [1.0], 2.0)
    assert progress.rate == 5
    progress.history *= 3
    progress.on_phase("validating")
    entry = {"step": 8, "epoch": 1, "loss": 0.25, "each": [1.0], "validation_loss": 2.0}
    progress.on_epoch(None, entry)
    progress.close()
    progress.on_start(STATE)  # of another run
    assert progress.rate is None
    progress.on_phase("reading")
    assert screen.written[-2] == "\r\x1b[Kreading: step 4, epoch 3 of 3"
    del screen.written[-2:]
    assert screen.written == [
        "\r\x1b[Kcompiling: step 4, epoch 2 of 3", "",
        "\r\x1b[Ktraining: step 1,024, epoch 2 of 3, loss 1, 5.0 steps", "",
        "\r\x1b[Kvalidating: step 1,024, epoch 3 of 3, loss 1, 5.0 ste", "", "\r\x1b[K", "",
    ]  # fmt: skip
    assert capsys.readouterr().out == "epoch 1: loss 0.25, validation_loss 2\n"


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch):
    screen = Screen()
    screen.write = lambda text: os.stat("/nowhere/at/all")  # an OSError, as the terminal's
    monkeypatch.setattr("sys.stdout", screen)
    Progress(screen).on_phase("training")
    Progress(screen).say("a line")


@pytest.mark.parametrize(("terminal", "name"), [(False, "xterm"), (True, "dumb")])
def test_a_log_has_a_line_a_minute(monkeypatch, terminal, name):
    """So does a terminal that cannot erase one, as of Emacs."""
    monkeypatch.setenv("TERM", name)
    log, now = Screen(terminal), [5.0]
    monkeypatch.setattr(hooks.time, "monotonic", lambda: now[0])
    progress = Progress(log)
    progress.on_start(STATE)
    for seconds, phase in ((59.5, "reading"), (0.5, "training"), (59.5, "writing")):
        now[0] += seconds
        progress.on_phase(phase)
    progress.close()
    assert "".join(log.written) == "training: step 4, epoch 0 of 0\n"


def test_tensorboard_has_the_steps_and_the_epochs_or_names_the_extra(tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("close")

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=SummaryWriter))
    (entry,) = train(1, hooks=[TensorBoard(tmp_path)], steps_per_dispatch=3).history
    losses = [value for name, value, _ in told[1:5]]
    assert np.mean(losses) == pytest.approx(entry["loss"])
    assert told == [
        (str(tmp_path), 1), *(("loss", loss, 1 + i) for i, loss in enumerate(losses)),
        *((f"epoch/{name}", entry[name], 4) for name in entry if name != "each"), "close",
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InvalidInputError, match=r"pip install '\S+\[tensorboard\]'"):
        train(hooks=[TensorBoard(tmp_path)])
