import contextlib
import functools
import inspect
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import CheckpointError, InvalidInputError, NonFiniteError
from rnnjax.training import (
    Checkpoints,
    EarlyStopping,
    Progress,
    RunFolder,
    Sharding,
    Silent,
    fit,
    minibatches,
)
from rnnjax.training.files import locked, read_lines, write_lines
from rnnjax.training.identity import _sums

CELL = rnnjax.GRUCell(4)
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 20))
)
OPTIONS = {"steps_per_dispatch": 2, "epochs": 3, "on_signal": "return"}
OF_FOLDER = {"config", "free", "checkpoint_every", "keep_last", "on_signal"}


@pytest.fixture(autouse=True)
def signals():
    """Signals that nohup or a shell's background ignores stay ignored in a run."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def loss_fn(params, carry, batch, key):
    carry, ys = rnnjax.unroll(CELL, params, batch["xs"], carry)
    noise = jax.random.normal(key, ys.shape)
    return jnp.mean((ys - noise) ** 2), (carry, {"weight": batch["weight"]})


def batches(epoch, spoilt=()):
    xs = np.random.default_rng(epoch).normal(size=(5, 3, 2, 2)).astype(np.float32)
    for step in spoilt:
        if step // 5 == epoch:
            xs[step % 5] = np.nan
    return {"xs": xs, "weight": np.array([1, 1, 1, 1, 3], np.float32)}


def run(folder, progress=None, data=batches, optimizer=OPTIMIZER, hooks=(), **options):
    """Begin, or go on from the latest checkpoint: the same call."""
    options = {**OPTIONS, **options}
    of_folder = {name: options.pop(name) for name in OF_FOLDER & options.keys()}
    return fit(
        loss_fn, CELL.init(jax.random.key(0), 2), optimizer, data, options.pop("epochs"),
        key=jax.random.key(1), carry=CELL.initial_carry((2,)),
        run_dir=RunFolder(folder, **of_folder), hooks=[progress or Silent(), *hooks], **options,
    )  # fmt: skip


def bits(state):
    arrays = jax.tree.map(np.asarray, (state.params, state.opt_state, state.carry))
    return b"".join(leaf.tobytes() for leaf in jax.tree.leaves(arrays))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder)
    assert result.stopped_by is None
    assert int(result.state.step) == 15
    return bits(result.state), read_lines(folder / "steps.jsonl")


class At(Silent):
    """Does something when a step is reached."""

    def __init__(self, step, action):
        super().__init__()
        self.reached, self.action = step, action

    def on_dispatch(self, step, losses, seconds):
        if step >= self.reached:
            self.reached = float("inf")
            self.action()


def fail():
    raise RuntimeError("an accident")


@pytest.mark.parametrize(
    # Before the first epoch's end, at it, behind it, and at the very last.
    "step",
    [2, 5, 7, 15, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 10, 12, 14))],
)
def test_a_run_that_failed_goes_on_exactly(undisturbed, tmp_path, step):
    with pytest.raises(RuntimeError, match="an accident"):
        run(tmp_path, At(step, fail))
    result = run(tmp_path)
    assert bits(result.state) == undisturbed[0]
    assert read_lines(tmp_path / "steps.jsonl") == undisturbed[1]


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 4), (signal.SIGHUP, 10), (signal.SIGINT, 4)]
)
def test_a_signal_saves_the_step_in_progress(undisturbed, tmp_path, number, step):
    handler = signal.getsignal(number)
    result = run(tmp_path, At(step, lambda: os.kill(os.getpid(), number)))
    assert (result.stopped_by, result.finished) == (number, False)
    assert int(result.state.step) == step
    assert signal.getsignal(number) == handler
    result = run(tmp_path)
    assert result.stopped_by is None
    assert bits(result.state) == undisturbed[0]
    assert read_lines(tmp_path / "steps.jsonl") == undisturbed[1]


def test_a_signal_at_the_very_end_is_returned_too_and_the_run_is_finished(undisturbed, tmp_path):
    result = run(tmp_path, At(15, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (result.stopped_by, result.finished) == (signal.SIGTERM, True)
    assert bits(result.state) == undisturbed[0]
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize("step", [4, 15])
def test_a_signal_does_what_it_would_have_done_once_its_step_is_saved(tmp_path, capsys, step):
    """A program that has a handler of its own is told, and goes on; the others end."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stop = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        result = run(tmp_path, stop, on_signal="raise")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert (int(result.state.step), result.stopped_by) == (step, signal.SIGTERM)
    said = {
        4: f"stopped after step 4, saved in {tmp_path / 'checkpoints' / '4'}; the same call",
        15: f"the run was done, and is saved in {tmp_path}",
    }
    assert f"SIGTERM: {said[step]}" in capsys.readouterr().err


SWEEP = """
import sys, jax, jax.numpy as jnp, optax
from rnnjax.training import Silent, fit
for n in range(3):
    fit(lambda p, b, k: jnp.mean((p * b - 3 * b) ** 2), jnp.zeros(()), optax.sgd(0.1 ** (n + 3)),
        jnp.ones((1000, 4)), 10**6, key=jax.random.key(0), run_dir=f"{sys.argv[1]}/{n}",
        hooks=[type("Told", (Silent,), {"on_dispatch": lambda *_: print("on", flush=True)})()])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_signal_ends_a_sweep(tmp_path, environment, number, status):
    program = [sys.executable, "-c", SWEEP, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=environment(1), **pipes) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (status, -number)  # a shell reports both as 128 + number
    assert not (tmp_path / "1").exists()
    step = Checkpoints(tmp_path / "0" / "checkpoints", read_only=True).latest().step
    assert f"{signal.Signals(number).name}: stopped after step {step}, saved" in said


def test_what_ctrl_c_loses_without_a_folder_is_said(capsys):
    with pytest.raises(KeyboardInterrupt):
        run(None, At(4, lambda: os.kill(os.getpid(), signal.SIGINT)), on_signal="raise")
    said = capsys.readouterr().err
    assert "interrupted after step 4: without a run_dir nothing is saved" in said


def test_how_many_steps_a_dispatch_does_and_where_it_is_kept_change_no_number(undisturbed):
    result = run(None, steps_per_dispatch=None)
    assert bits(result.state) == undisturbed[0]


def test_means_are_weighted_and_complete_after_a_resume(tmp_path):
    run(tmp_path, At(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    history = run(tmp_path).history
    steps = read_lines(tmp_path / "steps.jsonl")
    assert read_lines(tmp_path / "epochs.jsonl") == history
    assert [e["epoch"] for e in history] == [1, 2, 3]
    for entry in history:
        losses = [s["loss"] for s in steps if s["epoch"] == entry["epoch"]]
        assert entry["loss"] == pytest.approx(np.average(losses, weights=[1, 1, 1, 1, 3]))


def test_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step 9 the loss is nan") as error:
        run(tmp_path, data=lambda epoch: batches(epoch, [8]), steps_per_dispatch=5)
    assert str(tmp_path / "checkpoints" / "5") in str(error.value)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [5]
    # The steps before it, of the same dispatch, are recorded.
    assert [e["step"] for e in read_lines(tmp_path / "steps.jsonl")] == [*range(1, 9)]
    with pytest.raises(NonFiniteError, match=r"at step 1 .* there is no checkpoint yet"):
        run(tmp_path / "other", data=lambda epoch: batches(epoch, [0]))


def test_a_diverged_run_goes_on_with_a_smaller_learning_rate(tmp_path):
    with pytest.raises(NonFiniteError, match=r'free=\{"optimizer"\}'):
        run(tmp_path, optimizer=optax.adam(1e-2), data=lambda epoch: batches(epoch, [8]))
    with pytest.raises(CheckpointError, match="another optimizer, learning rate or schedule"):
        run(tmp_path, optimizer=optax.adam(1e-3))
    result = run(tmp_path, optimizer=optax.adam(1e-3), free={"optimizer"})
    assert int(result.state.step) == 15
    assert np.isfinite([entry["loss"] for entry in result.history]).all()


def test_steps_that_are_not_finite_are_skipped_counted_and_exact(tmp_path):
    spoilt = functools.partial(batches, spoilt=[6, 7])
    result = run(tmp_path, data=spoilt, skip_nonfinite=2)
    assert [entry.get("skipped", 0) for entry in result.history] == [0, 2, 0]
    steps = read_lines(tmp_path / "steps.jsonl")
    assert steps[6] == {"step": 7, "epoch": 2, "skipped": True}
    assert np.isfinite([entry["loss"] for entry in result.history]).all()
    with pytest.raises(NonFiniteError, match=r"at step 8 .*after 1 that were skipped"):
        run(None, data=spoilt, skip_nonfinite=1)
    # What they change is nothing: steps, keys and schedule go on, the rest is as it was before.
    params = []
    for data in (spoilt, batches):
        state = run(None, data=data, skip_nonfinite=2, epochs=2).state
        params.append(np.asarray(jax.tree.leaves(state.params)[0]))
    assert np.isfinite(params[0]).all()
    assert not np.array_equal(*params)


def test_another_configuration_is_another_run(tmp_path):
    run(tmp_path, config={"layers": 1, "epochs": 3})
    with pytest.raises(CheckpointError, match="has layers 1, but 2 came"):
        run(tmp_path, config={"layers": 2, "epochs": 3})
    result = run(tmp_path, config={"layers": 1, "epochs": 4}, free=("epochs",), epochs=4)
    assert len(result.history) == 4


def scores(*losses):
    """Measures the parameters by how often it was asked: the loss of the first epoch ..."""
    left = list(losses)
    return lambda params: {"validation_loss": left.pop(0)}


def test_each_better_epoch_is_saved_and_the_run_ends_when_none_comes(tmp_path):
    options = {"epochs": 8, "checkpoint_every": 50, "hooks": [EarlyStopping(2)]}
    seen = []

    class Seen(Silent):
        def on_epoch(self, state, summary):
            seen.append(np.asarray(jax.tree.leaves(state.params)[0]))

    evaluate = scores(3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.0, 0.5)
    result = run(tmp_path, Seen(), evaluate=evaluate, **options)
    assert (int(result.state.step), result.stopped_by) == (30, None)
    assert [e["validation_loss"] for e in result.history] == [3.0, 2.0, 2.5, 1.5, 1.6, 1.5]
    assert result.best["epoch"] == 4
    np.testing.assert_array_equal(jax.tree.leaves(result.params)[0], seen[3])
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best().step == 20
    # The last three, of which the best is one; not after the third and the fifth epoch.
    assert checkpoints.steps() == [10, 20, 30]
    assert json.loads((tmp_path / "result.json").read_text())["best"]["step"] == 20
    # Going on with it does nothing more.
    again = run(tmp_path, evaluate=scores(), **options)
    assert bits(again.state) == bits(result.state)
    np.testing.assert_array_equal(jax.tree.leaves(again.params)[0], seen[3])


def test_the_best_parameters_without_a_folder():
    seen = []

    def evaluate(params):
        seen.append(np.asarray(jax.tree.leaves(params)[0]))
        return {"validation_loss": (2.0, 1.0, 3.0)[len(seen) - 1]}

    result = run(None, evaluate=evaluate)
    np.testing.assert_array_equal(jax.tree.leaves(result.params)[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_a_resumed_run_waits_as_long_as_an_undisturbed_one_whatever_became_of_its_records(tmp_path):
    """The history is written anew from the checkpoint; lines of steps that were lost stay so."""
    options = {"epochs": 8, "checkpoint_every": 1, "hooks": [EarlyStopping(2)]}
    with pytest.raises(RuntimeError, match="an accident"):
        run(tmp_path, At(17, fail), evaluate=scores(3.0, 2.0, 2.5), **options)
    (tmp_path / "epochs.jsonl").unlink()
    lines = (tmp_path / "steps.jsonl").read_text().split("\n")
    lines[1], lines[4] = "no JSON", '{"loss": 3}'
    (tmp_path / "steps.jsonl").write_text("\n".join(lines))
    result = run(tmp_path, evaluate=scores(2.4, 1.0), **options)
    assert int(result.state.step) == 20
    assert read_lines(tmp_path / "epochs.jsonl") == result.history
    assert len(read_lines(tmp_path / "steps.jsonl")) == 18


def test_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "r.jsonl"
    write_lines(path, [{"step": 1}])
    write_lines(path, [{"step": 2}, {"step": 3}], more=True)
    with path.open("a") as file:
        file.write('[1]\n{"step": 4, "lo')
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


# As `locked`, without the imports that take its time; and it would share the lock, if it could.
WRITER = """
import fcntl, sys
lock = open(sys.argv[1] + "/lock", "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError:
    print("refused", flush=True)
    fcntl.flock(lock, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl", reason="locks are those of POSIX")
    with locked(tmp_path), locked(tmp_path):  # but one may, in two places
        other = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert other.stdout.readline() == b"refused\n"
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(CheckpointError, match="another process writes to"):
        run(tmp_path)
    other.kill()
    other.communicate()
    assert len(run(tmp_path).history) == 3


def test_two_threads_cannot_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl", reason="locks are those of POSIX")
    refused = []

    def second():
        with pytest.raises(CheckpointError, match="another thread writes to") as error:
            run(tmp_path)
        refused.append(error)

    def begin_another():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    assert len(run(tmp_path, At(4, begin_another)).history) == 3
    assert refused


class Screen:
    """A terminal."""

    def __init__(self):
        self.written = []

    def isatty(self):
        return True

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


def test_the_progress_says_what_is_done_and_its_rate_is_that_of_training(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("rnnjax.training.hooks._SECONDS_TERMINAL", 0)  # each move is shown
    screen = Screen()
    progress = Progress(screen)
    run(tmp_path, progress, evaluate=scores(3.0, 2.0, 1.0))
    shown = "".join(screen.written)
    for what in ("compiling", "training", "validating", "writing"):
        assert f"{what}: step" in shown
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]
    assert "validation_loss 2" in lines[1]
    # Compiling, validating and writing are no part of it.
    progress.step = 0
    progress._recent.clear()
    progress.on_dispatch(10, [1.0], None)
    progress.on_dispatch(20, [1.0], 2.0)
    assert progress.rate == 5


def test_batches_of_rows_are_new_each_epoch_and_hold_each_row_once():
    rows = {"xs": np.arange(20).reshape(2, 10), "ys": np.arange(10)[None]}
    of_epoch = minibatches(rows, 3, seed=5, axis=1)
    first, second = of_epoch(0), of_epoch(1)
    assert first["xs"].shape == (3, 2, 3)
    np.testing.assert_array_equal(first["xs"][:, 0], first["ys"][:, 0])
    assert len(set(first["ys"].ravel().tolist())) == 9
    assert not np.array_equal(first["ys"], second["ys"])
    np.testing.assert_array_equal(first["ys"], of_epoch(0)["ys"])
    assert not np.array_equal(first["ys"], minibatches(rows, 3, seed=6, axis=1)(0)["ys"])
    with pytest.raises(InvalidInputError, match=r"the shapes \[\(3,\), \(4,\)\] and \[3, 4\]"):
        minibatches({"a": np.ones(3), "b": np.ones(4)}, 2, axis=0)


def test_what_pad_returns_goes_into_minibatches():
    sequences = [np.full((length, 1), length, np.float32) for length in (3, 1, 4, 2)]
    padded = rnnjax.pad(sequences)
    data = {"xs": padded.xs, "lengths": padded.lengths}
    for batches in (minibatches(padded, 2, axis=(1, 0))(0), minibatches(
        data, 2, axis={"xs": 1, "lengths": 0})(0).values()):  # fmt: skip
        xs, lengths = sorted(batches, key=np.ndim, reverse=True)
        assert (xs.shape, lengths.shape) == ((2, 8, 2, 1), (2, 2))
        np.testing.assert_array_equal(xs.max(axis=(1, 3)), lengths)
    nested = {"p": padded, "y": np.arange(4)}
    assert minibatches(nested, 2, axis={"p": (1, 0), "y": 0})(0)["p"].lengths.shape == (2, 2)
    for axis in ({"xs": 1}, {"xs": 1, "length": 0}, "1", {"xs": 1, "lengths": -1}, None, (1,)):
        with pytest.raises(InvalidInputError, match=r"axis.* must be a whole number from 0 up, or"):
            minibatches(data, 2, axis=axis)
    with pytest.raises(InvalidInputError, match=r"axis\[p\] must be .* Padded\(xs, lengths\)"):
        minibatches(nested, 2, axis={"p": (1,), "y": 0})
    with pytest.raises(TypeError, match="axis"):
        minibatches(data, 2)


def test_minibatches_of_a_list_are_a_tree():
    xs, targets = np.ones((3, 8), np.float32), np.ones(8, np.float32)
    result = fit(lambda p, b, k: ((p * b[0] - b[1]) ** 2).mean(), jnp.zeros(()), optax.sgd(0.1),
                 minibatches([xs, targets], 4, axis=[1, 0]), 1, key=jax.random.key(0),
                 hooks=[Silent()])  # fmt: skip
    assert int(result.state.step) == 2


def test_a_terminal_that_is_gone_ends_no_run(undisturbed, tmp_path, monkeypatch):
    class Gone(Screen):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdout", Gone())
    result = run(tmp_path, Progress(Gone()))
    assert bits(result.state) == undisturbed[0]


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        result = run(tmp_path, At(4, lambda: os.kill(os.getpid(), signal.SIGHUP)))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (int(result.state.step), result.stopped_by) == (15, None)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, At(2, twice))


def test_a_signal_in_validation_stops_before_the_next_epoch(tmp_path):
    asked = []

    def data(epoch):
        asked.append(epoch)
        return batches(epoch)

    def evaluate(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"validation_loss": 1.0}

    result = run(tmp_path, data=data, evaluate=evaluate)
    assert (int(result.state.step), result.stopped_by) == (5, signal.SIGTERM)
    assert set(asked) == {0}


def test_what_was_damaged_once_is_not_begun_anew_silently(tmp_path, capsys):
    run(tmp_path, epochs=1)
    (tmp_path / "checkpoints" / "5" / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="5 is damaged"), pytest.raises(CheckpointError):
        run(tmp_path)
    with pytest.raises(CheckpointError, match="were damaged, and are set aside"):
        run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {name: (tmp_path / name).read_text() for name in ("steps.jsonl", "epochs.jsonl")}
    run(tmp_path, Progress(Screen()))
    assert "its records so far are moved to *.before" in capsys.readouterr().out
    assert len(read_lines(tmp_path / "steps.jsonl")) == 15
    assert {name: (tmp_path / f"{name}.before").read_text() for name in before} == before


def test_records_are_on_the_disk_before_a_checkpoint(tmp_path, monkeypatch):
    """Or a machine that loses its power could have the checkpoint, and no records before it."""
    synced, fsync, save = set(), os.fsync, Checkpoints.save

    def synced_save(self, *args, **options):
        assert (tmp_path / "steps.jsonl").stat().st_ino in synced
        synced.clear()
        save(self, *args, **options)

    monkeypatch.setattr(Checkpoints, "save", synced_save)
    monkeypatch.setattr(os, "fsync", lambda d: (synced.add(os.fstat(d).st_ino), fsync(d)))
    run(tmp_path)


def test_the_best_entry_is_that_of_the_parameters(tmp_path, monkeypatch):
    seen = []

    def evaluate(params):
        seen.append(np.asarray(jax.tree.leaves(params)[0]))
        if len(seen) == 3:  # the best is damaged meanwhile, and must not be taken, nor deleted
            (tmp_path / "checkpoints" / "5" / "about.json").write_text("{")
        return {"validation_loss": (1.0, 3.0, 2.0)[len(seen) - 1]}

    with pytest.warns(UserWarning, match="5 is damaged"):
        result = run(tmp_path, evaluate=evaluate, keep_last=1)
    assert result.best["epoch"] == 3
    np.testing.assert_array_equal(jax.tree.leaves(result.params)[0], seen[2])
    # The best is not read where it is the last.
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "best", lambda *_: pytest.fail("reads what is in memory"))
        falling = itertools.count(3, -1)
        result = run(
            tmp_path / "falling", evaluate=lambda _: {"validation_loss": float(next(falling))}
        )
    assert result.best["epoch"] == 3
    # And where nothing is a number, the last.
    nothing = run(None, evaluate=lambda params: {"validation_loss": float("nan")})
    assert nothing.best["epoch"] == 3


def test_skipped_steps_in_a_row_are_counted_across_a_stop(tmp_path):
    spoilt = functools.partial(batches, spoilt=[2, 3, 4])
    with pytest.raises(NonFiniteError, match="at step 5 "):
        run(None, data=spoilt, skip_nonfinite=2)
    stop = At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path, stop, data=spoilt, skip_nonfinite=2)
    with pytest.raises(NonFiniteError, match="at step 5 "):
        run(tmp_path, data=spoilt, skip_nonfinite=2)
    # But not those that are apart.
    result = run(None, data=lambda epoch: batches(epoch, [1, 3, 7]), skip_nonfinite=1)
    assert sum(entry.get("skipped", 0) for entry in result.history) == 3


def test_a_gradient_that_is_not_finite_counts_too():
    def loss_of_a_root(params, batch, key):
        return jnp.sqrt(jnp.sum(params * batch))

    with pytest.raises(NonFiniteError, match="the loss is 0 and the norm of the gradient"):
        fit(loss_of_a_root, jnp.zeros(2), optax.sgd(0.1), np.ones((3, 2)), 1,
            key=jax.random.key(0), hooks=[Silent()])  # fmt: skip


def test_the_parameters_given_are_left_as_they_are():
    params = jnp.ones(2)
    batches = np.ones((3, 2), np.float32)
    result = fit(lambda params, batch, key: jnp.sum(params * batch), params, optax.sgd(0.1),
                 batches, 1, key=(key := jax.random.key(0)), hooks=[Silent()])  # fmt: skip
    assert params.tolist() == [1, 1]
    assert key == jax.random.key(0)  # the state is donated, and it has a copy of the key
    # What came out stays too where a run goes on from the state.
    jax.jit(lambda state: state, donate_argnums=0)(result.state)
    np.testing.assert_allclose(result.params, 0.7, rtol=1e-6)


def test_a_carry_may_be_a_number_over_devices_too():
    result = fit(lambda p, c, b, k: ((p * b).sum(), (c + 1, {})), jnp.ones(2), optax.sgd(0.1),
                 np.ones((3, 2), np.float32), 1, key=jax.random.key(0), carry=0.0,
                 sharding=Sharding.over(1), hooks=[Silent()])  # fmt: skip
    assert result.state.carry == 3


def test_a_kept_carry_goes_on_from_epoch_to_epoch_and_over_a_stop(tmp_path):
    whole = run(None, keep_carry=True)
    assert bits(whole.state) != bits(run(None).state)
    stop = At(10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path, stop, keep_carry=True)
    with pytest.raises(CheckpointError, match="another keep_carry than came"):
        run(tmp_path)
    assert bits(run(tmp_path, keep_carry=True).state) == bits(whole.state)


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_keys_of_any_kind_come_back(tmp_path, impl):
    def noisy(params, carry, batch, key):
        noise, carry = jax.random.split(carry)
        return jnp.sum(params * batch) + jax.random.normal(noise), (carry, {})

    def train(epochs):
        return fit(noisy, jnp.zeros(2), optax.sgd(0.1), np.ones((3, 2), np.float32), epochs,
                   key=jax.random.key(1, impl=impl), carry=jax.random.key(2, impl=impl),
                   run_dir=tmp_path, hooks=[Silent()])  # fmt: skip

    train(1)
    assert train(2).state.carry.dtype == jax.random.key(0, impl=impl).dtype


def test_fewer_epochs_than_were_done_are_said(tmp_path):
    run(tmp_path, epochs=2)
    with pytest.warns(UserWarning, match="has done 10 steps, more than those of 1 epochs"):
        run(tmp_path, epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer, but is 0"),
        ({"hooks": [EarlyStopping(2)]}, "monitor must be a measure .* is 'validation_loss', and"),
        ({"evaluate": lambda params: 3.0}, "'validation_loss' among them, but returned 3.0"),
        ({"batches": {"xs": np.ones((5, 3)), "weight": np.ones(4)}}, r"\[\(4,\), \(5,\)\]"),
        ({"key": 3}, "key must be one key, as jax.random.key makes it, but is 3"),
        ({"key": jax.random.split(jax.random.key(0))}, r"key must be one key, .*key<fry> \(2,\)"),
        ({"params": {"n": "a"}}, r"params\['n'\] is <U1, which has no gradient"),
        ({"evaluate": 3}, r"evaluate must be arrays with a first axis .* are \[\(\)\]; give"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"of": {}})), "carry": ()},
         "must be real numbers or arrays of them, but of is a dict"),
        ({"loss_fn": lambda p, b, k: (p.sum(), 3)}, "must return the loss, or .loss, metrics"),
        ({"loss_fn": lambda p, b, k: p}, "must return a scalar loss"),
        ({"loss_fn": lambda p, c, b, k: p.sum(), "carry": ()}, "must return \\(loss, \\(carry"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), (1, {})), "carry": ()}, "a carry like the one"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((*c,), {})), "carry": [jnp.ones(2)]},
         r"given, \['float32\[2\]'\], but returned \('float32\[2\]',\)"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"loss": 1})), "carry": ()}, "rename them"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"step": 1})), "carry": ()}, "rename them"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"validation_loss": 1})), "carry": ()},
         "rename them"),
        ({"loss_fn": lambda p, c, b, k: p.sum()}, r"\(params, batch, key\), but: missing a req"),
        ({"carry": ()}, r"must take \(params, carry, batch, key\), but: too many positional"),
        ({"sharding": "gpu"}, "sharding must be a Sharding, .* but is 'gpu'"),
        ({"optimizer": optax.sgd}, "optimizer must be one of optax, .* but is a function"),
        ({"batches": [np.ones(2), np.ones(2)]}, "a list came; give a function that iterates"),
        ({"batches": {"xs": object()}}, r"batches must be .* are \[\(\)\]; .* a loader of batches"),
        ({"batches": ()}, r"their first axes are \[\]"),
        ({"batches": lambda epoch: iter(())}, "a batch in every epoch, but epoch 1 has none"),
        ({"evaluate": lambda p: {"validation_loss": None}}, "must return numbers"),
        ({"evaluate": lambda p: {"validation_loss": 1, "loss": 2}}, "which fit measures"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"right": 1})), "carry": (),
          "evaluate": lambda p: {"validation_loss": 1, "right": 2}}, r"returned \['right'\]"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"weight": b})), "carry": ()},
         r"weight must be one number for a step, but has \(2,\)"),
        ({"batches": iter([np.ones(2)]), "epochs": 2}, "a list_iterator, which can be gone thr"),
        ({"batches": (x for x in [np.ones(2)]), "epochs": 2}, "is a generator, which can be gone"),
        ({"batches": iter([np.array(["a"])])}, r"batches is of type <U1; encode"),
        ({"batches": {"text": np.array(["a", "b"])}}, r"batches\['text'\] is of type <U1; encode"),
        ({"params": {"n": jnp.arange(3)}}, r"params\['n'\] is int32, which has no gradient"),
        ({"hooks": True}, "hooks must be a list of hooks and of functions .* but is True"),
        ({"hooks": [lambda state, summary: 3]}, r"<lambda> must return True to .* but returned 3"),
        ({"loss_fn": lambda p, b, k: p.sum() * jax.random.uniform(k), "evaluate": np.ones((2, 2))},
         "called with the key None where evaluate is data"),
    ],
)  # fmt: skip
def test_what_a_program_gets_wrong_is_one_sentence(tmp_path, change, message):
    given = {"loss_fn": lambda p, b, k: jax.tree.leaves(p)[0].sum(),
             "batches": np.ones((2, 2), np.float32), "params": jnp.ones(2), "hooks": [Silent()],
             "optimizer": optax.sgd(0.1), "key": jax.random.key(0), "run_dir": tmp_path / "run",
             "epochs": 1, **change}  # fmt: skip
    with pytest.raises(InvalidInputError, match=message):
        fit(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "abc"}, "config must be JSON .* no dict"),
        ({"config": {"rate": float("nan")}}, "config must be JSON"),
        ({"config": {"cell": object()}}, "config must be JSON"),
        ({"free": "optimizer"}, "free must be a set of names in config or of key, params"),
        ({"free": {"optimiser"}}, r"but is {'optimiser'}; pass {\"optimizer\"}, say"),
        ({"on_signal": "exit"}, 'on_signal must be "raise" or "return", but is \'exit\''),
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive"),
        ({"keep_last": 1.5}, "keep_last must be a positive"),
    ],
)  # fmt: skip
def test_a_folder_says_what_it_cannot_be(options, message):
    with pytest.raises(InvalidInputError, match=message):
        RunFolder("run", **options)


@pytest.mark.parametrize(
    "given", [{"batch_size": 2.0}, {"batch_size": 0}, {"seed": -1}, {"axis": -1}, {"axis": 0.5}]
)
def test_minibatches_of_odd_sizes(given):
    with pytest.raises(InvalidInputError):
        minibatches(np.ones((4, 3)), **{"batch_size": 2, "axis": 0, **given})


def line(params, batch, key):
    return jnp.mean((params["w"] * batch + params["v"] - (3 * batch - 1)) ** 2)


LINE = {"w": jnp.zeros(()), "v": jnp.zeros(())}
POINTS = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (10, 1))


def learn_a_line(optimizer, folder=None, epochs=20, **options):
    options = {"key": jax.random.key(0), "hooks": [Silent()], **options}
    return fit(line, LINE, optimizer, POINTS, epochs, run_dir=folder, **options)


@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
@pytest.mark.parametrize(
    "make",
    [
        optax.lbfgs, optax.polyak_sgd, lambda: optax.contrib.prodigy(), optax.contrib.cocob,
        lambda: optax.contrib.dog(1.0), lambda: optax.contrib.dowg(1.0), optax.contrib.momo,
        lambda: optax.contrib.mechanize(optax.adam(0.1)),
        lambda: optax.contrib.sam(optax.sgd(0.2), optax.sgd(0.1)),
        lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=10)),
        lambda: optax.contrib.schedule_free_adamw(0.1), lambda: optax.contrib.muon(0.1),
        lambda: optax.MultiSteps(optax.sgd(0.3), 2).gradient_transformation(),
    ],
)  # fmt: skip
def test_optimizers_that_take_more_than_gradients_learn(make):
    history = learn_a_line(make(), epochs=30).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        optax.lbfgs, optax.polyak_sgd, optax.contrib.prodigy,
    ],
)  # fmt: skip
def test_optimizers_that_take_more_go_on_exactly(tmp_path, make):
    optimizer = make()
    whole = learn_a_line(optimizer, epochs=2)
    with pytest.raises(RuntimeError, match="an accident"):
        learn_a_line(optimizer, tmp_path, epochs=2, hooks=[At(13, fail)], steps_per_dispatch=1)
    again = learn_a_line(optimizer, tmp_path, epochs=2)
    assert bits(again.state) == bits(whole.state)


@pytest.mark.parametrize("make", [lambda: optax.sm3(0.1), lambda: optax.contrib.sophia(0.1)])
def test_an_optimizer_that_cannot_is_one_sentence(make):
    with pytest.raises(InvalidInputError, match=r"the optimizer could not .* take another one"):
        learn_a_line(make())


RUN = {"loss": line, "optimizer": optax.adam(0.1), "params": LINE, "batches": POINTS,
       "key": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named", "free"),
    [
        ({"loss": lambda p, b, k: 2 * line(p, b, k)}, "another loss than", "loss"),
        ({"optimizer": optax.adam(0.2)}, "another optimizer, learning rate", "optimizer"),
        ({"optimizer": optax.adamw(0.1)}, "another optimizer", None),
        ({"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 40))},
         "one that depends on epochs changes with them", None),
        ({"batches": POINTS + 1}, "another data of the first epoch than", "batches"),
        ({"batches": POINTS[:5]}, "another data of the first epoch", None),
        ({"batches": np.concatenate([POINTS[:9], 1 - POINTS[9:]])}, "another data of", None),
        ({"params": {**LINE, "w": jnp.ones(())}}, "another initial parameters", "params"),
        ({"key": 1}, "another key than came", "key"),
        ({"loss": lambda p, b, k: -line(p, b, k), "batches": -POINTS},
         "another data of the first epoch, another loss than came", None),
    ],
)  # fmt: skip
def test_another_run_in_the_same_folder_is_refused(tmp_path, change, named, free):
    def train(options, epochs, **more):
        given = {**RUN, **options}
        return fit(given["loss"], given["params"], given["optimizer"], given["batches"], epochs,
                   key=jax.random.key(given["key"]), run_dir=RunFolder(tmp_path, **more),
                   hooks=[Progress(Screen())])  # fmt: skip

    train({}, 1)
    for epochs in (1, 2):
        with pytest.raises(CheckpointError, match=named) as error:
            train(change, epochs)
        assert str(tmp_path) in str(error.value)
    assert len(train({}, 2).history) == 2  # epochs alone may grow
    if free:
        assert len(train(change, 3, free={free}).history) == 3
        # And then it is that run.
        assert len(train(change, 4).history) == 4


def test_what_a_loss_closes_over_is_part_of_it(tmp_path):
    def train(data):
        return fit(lambda p, b, k: ((p * data[b] - 1) ** 2).mean(), jnp.zeros(()), optax.sgd(0.1),
                   np.arange(4).reshape(2, 2), 1, key=jax.random.key(0), run_dir=tmp_path,
                   hooks=[Silent()])  # fmt: skip

    train(jnp.arange(4.0))
    train(jnp.arange(4.0))
    with pytest.raises(CheckpointError, match="another loss"):
        train(jnp.arange(4.0).at[2].set(9.0))


def test_a_run_of_another_version_goes_on_and_that_is_said(tmp_path, monkeypatch, capsys):
    learn_a_line(optax.adam(0.1), tmp_path, 1)
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    learn_a_line(optax.adam(0.1), tmp_path, 2, hooks=[Progress(Screen())])
    assert "and this is jax 0.0.1, rnnjax" in capsys.readouterr().out


def test_rows_and_batches_may_be_keys(tmp_path):
    keys = jax.random.split(jax.random.key(3), 8)
    batches = minibatches({"keys": keys, "ys": np.arange(8)}, 4, axis=0)(0)
    data, found = map(jax.random.key_data, (keys, batches["keys"]))
    np.testing.assert_array_equal(found, data[batches["ys"]])
    sharding = Sharding.over(2, rows_axis={"keys": 1, "ys": 1})
    assert isinstance(hash(sharding), int)
    laid = sharding.put_batches(batches)
    assert laid["keys"].dtype == keys.dtype
    assert len(jax.random.key_data(laid["keys"]).sharding.device_set) == 2
    result = fit(lambda p, b, k: p + jax.random.normal(b), jnp.zeros(()), optax.sgd(0.1), keys, 1,
                 key=jax.random.key(0), run_dir=tmp_path, hooks=[Silent()])  # fmt: skip
    assert int(result.state.step) == 8


def strictly(path):
    """The objects of a file, by JSON alone."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    text = path.read_text()
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(part, parse_constant=refuse) for part in parts]


def test_what_is_not_finite_is_null_in_all_files(tmp_path):
    evaluate = scores(float("nan"), float("inf"), 1.0)
    first = run(tmp_path, evaluate=evaluate, epochs=2)
    assert np.isnan(first.history[0]["validation_loss"])
    result = run(tmp_path, evaluate=evaluate)
    assert np.isinf(result.history[1]["validation_loss"])
    for name in ("steps.jsonl", "epochs.jsonl", "result.json"):
        assert strictly(tmp_path / name)
    assert strictly(tmp_path / "epochs.jsonl")[1]["validation_loss"] is None
    with pytest.raises(NonFiniteError):
        run(tmp_path / "bad", data=lambda epoch: batches(epoch, [8]))
    strictly(tmp_path / "bad" / "steps.jsonl")


def test_a_mean_where_nothing_counts_is_none():
    result = run(None, data=lambda epoch: batches(epoch) | {"weight": np.zeros(5, np.float32)})
    assert all(np.isnan(entry["loss"]) for entry in result.history)


def optimizers():
    """Yield the optimisers of optax that need only a learning rate."""
    for module in (optax, optax.contrib):
        for name, make in sorted(vars(module).items()):
            if not inspect.isfunction(make) or name.startswith("scale_by"):
                continue
            parameters = inspect.signature(make).parameters
            needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind < 2]
            if "learning_rate" in parameters and needed in ([], ["learning_rate"]):
                default = parameters["learning_rate"].default in (None, inspect.Parameter.empty)
                rate = {"adadelta": 1.0, "fromage": 0.1}.get(name, 0.01) if default else None
                given = {} if rate is None else {"learning_rate": rate}
                yield pytest.param(functools.partial(make, **given), id=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", list(optimizers()))
def test_every_optimizer_learns_or_says_in_a_sentence_why_not(make):
    history = None
    with contextlib.suppress(InvalidInputError):  # whose sentence another test reads
        history = learn_a_line(make(), epochs=30).history
    assert history is None or history[-1]["loss"] < 0.9999 * history[0]["loss"]
    assert history is not None or make.func.__name__ in {"sm3", "sophia"}


def test_a_helper_may_have_another_name(tmp_path):
    def first(x):
        return x * 2

    def second(x):
        return x * 2

    def train(helper):
        fit(lambda p, b, k: jax.jit(helper)(p).sum(), jnp.ones(2), optax.sgd(0.1), np.ones((2, 2)),
            1, key=jax.random.key(0), run_dir=tmp_path, hooks=[Silent()])  # fmt: skip

    train(first)
    train(second)


@pytest.mark.parametrize("where", ["step", "evaluate"])
def test_a_signal_before_an_error_is_raised_too(tmp_path, capsys, where):
    def both(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("an accident")

    heard, options = [], {"on_signal": "raise"}
    options |= {"evaluate": both} if where == "evaluate" else {"progress": At(2, both)}
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(RuntimeError, match="an accident"):
            run(tmp_path, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert (
        "SIGTERM: stopped by it and by an error; there is no checkpoint" in capsys.readouterr().err
    )


def test_a_signal_is_returned_without_a_folder_too():
    result = run(None, At(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (int(result.state.step), result.stopped_by, result.finished) == (4, signal.SIGINT, False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jnp.arange(8.0), lambda: jnp.arange(8) % 2 == 0, lambda: jnp.ones((2, 4)) * 1j,
        lambda: jnp.arange(8).astype(jnp.bfloat16), lambda: jnp.arange(8).astype(jnp.int4),
        lambda: jnp.array(3, jnp.int8), lambda: jnp.arange(64.0).reshape(8, 8),
    ],
)  # fmt: skip
def test_checksums_of_arrays_notice_each_number_each_sign_and_each_place(make):
    array = make()
    flat = array.ravel()
    negated = array ^ True if array.dtype == bool else -array
    others = [negated, jnp.roll(flat, 1), flat[::-1], flat.at[-1].set(flat[0])]
    others = [o for o in others if not np.array_equal(o.ravel(), flat)]
    sums = {tuple(np.asarray(_sums(o.reshape(array.shape))).tolist()) for o in [array, *others]}
    assert len(sums) == 1 + len({np.asarray(o.ravel()).tobytes() for o in others})
    assert np.array_equal(_sums(np.asarray(array)), _sums(array))
