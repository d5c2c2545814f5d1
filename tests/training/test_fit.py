import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_helpers import At, bits

import rnnjax
from rnnjax import CheckpointError, InvalidInputError, NonFiniteError
from rnnjax.training import (
    Checkpoints,
    CSVLog,
    EarlyStopping,
    Progress,
    RunFolder,
    Sharding,
    Silent,
    fit,
    minibatches,
)
from rnnjax.training.files import locked, read_lines, read_sealed, write_sealed
from rnnjax.training.identity import _sums
from rnnjax.training.parameters import load_params

PARAMS = {"kernel": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 20))
)
OPTIONS = {"steps_per_dispatch": 2, "epochs": 3, "on_signal": "return"}
OF_FOLDER = {"config", "free", "checkpoint_every", "keep_last", "on_signal"}


pytestmark = pytest.mark.usefixtures("heeded")


def loss_fn(params, carry, batch, key):
    carry = jnp.tanh(carry + batch["xs"] @ params["kernel"])
    noise = jax.random.normal(key, carry.shape)
    return jnp.mean((carry - noise) ** 2), (carry, {"weight": batch["weight"]})


def batches(epoch, spoilt=()):
    xs = np.random.default_rng(epoch).normal(size=(5, 3, 2)).astype(np.float32)
    for step in spoilt:
        if step // 5 == epoch:
            xs[step % 5] = np.nan
    return {"xs": xs, "weight": np.array([1, 1, 1, 1, 3], np.float32)}


def run(folder, progress=None, data=batches, optimizer=OPTIMIZER, hooks=(), **options):
    """Begin, or go on from the latest checkpoint: the same call."""
    options = {**OPTIONS, **options}
    of_folder = {name: options.pop(name) for name in OF_FOLDER & options.keys()}
    return fit(
        loss_fn, PARAMS, optimizer, data, options.pop("epochs"),
        key=jax.random.key(1), carry=jnp.zeros((3, 4)),
        run_dir=RunFolder(folder, **of_folder), hooks=[progress or Silent(), *hooks], **options,
    )  # fmt: skip


def left(folder, result):
    """All that a run leaves, except for its speed."""
    steps, epochs = (read_lines(folder / f"{name}.jsonl") for name in ("steps", "epochs"))
    assert epochs == result.history
    for entry in epochs:
        entry.pop("steps_per_second", None)
    return bits(result.state), steps, epochs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder)
    assert result.stopped_by is None
    assert int(result.state.step) == 15
    assert repr(result).startswith("Fit(3 epochs, best={'step': 15, ")
    assert "rray" not in repr(result)
    return left(folder, result)


def fail():
    raise RuntimeError("an accident")


def send(*numbers):
    return lambda *_: [os.kill(os.getpid(), number) for number in numbers]


@pytest.mark.parametrize(
    ("step", "number"),
    # Before the first epoch's end, at it, behind it, and at the very last.
    [(2, None), (5, None), (7, None), (15, None),
     (4, signal.SIGINT), (7, signal.SIGTERM), (10, signal.SIGHUP), (15, signal.SIGTERM)],
)  # fmt: skip
def test_a_run_that_was_ended_goes_on_exactly(undisturbed, tmp_path, step, number):
    """By an error; or by a signal, which saves the step. Guards the state of the optimiser."""
    if number is None:
        with pytest.raises(RuntimeError, match="an accident"):
            run(tmp_path, At(step, fail))
    else:
        handler = signal.getsignal(number)
        ended = run(tmp_path, At(step, send(number)))
        assert (int(ended.state.step), ended.stopped_by) == (step, number)
        assert signal.getsignal(number) == handler
        assert ended.finished == (tmp_path / "result.json").exists() == (step == 15)
    result = run(tmp_path)
    assert (result.stopped_by, result.finished) == (None, True)
    assert left(tmp_path, result) == undisturbed


def both(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    fail()


# In validation: it stops before the data of the next epoch are read.
VALIDATED = {"evaluate": lambda _: send(signal.SIGTERM)() and {"validation_loss": 1.0},
             "data": lambda epoch: [batches, pytest.fail][epoch](epoch)}  # fmt: skip


SAVED = "stopped after step 4, saved in {0}/checkpoints/4; the same call"
FAILED = "stopped by it and by an error; there is no checkpoint"


@pytest.mark.parametrize(
    ("options", "ends", "said"),
    [
        ({"progress": At(4, send(signal.SIGTERM))}, None, f"SIGTERM: {SAVED}"),
        ({"progress": At(15, send(signal.SIGTERM))}, None, "SIGTERM: the run was done, and is sav"),
        ({"progress": At(2, both)}, RuntimeError, f"SIGTERM: {FAILED}"),
        (VALIDATED, None, "SIGTERM: stopped after step 5, saved in"),
        ({"evaluate": both}, RuntimeError, f"SIGTERM: {FAILED}"),
        ({"progress": At(4, send(signal.SIGINT))}, KeyboardInterrupt, f"SIGINT: {SAVED}"),
        ({"progress": At(4, send(signal.SIGINT)), "folder": None}, KeyboardInterrupt,
         "interrupted after step 4: without a run_dir nothing is saved"),
    ],
)  # fmt: skip
def test_a_signal_does_what_it_would_have_done_once_its_step_is_saved(
    tmp_path, capsys, options, ends, said
):
    """A program that has a handler of its own is told, and goes on; the others end."""
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with contextlib.nullcontext() if ends is None else pytest.raises(ends):
        result = run(**{"folder": tmp_path, "on_signal": "raise", **options})
        assert result.stopped_by == signal.SIGTERM
    assert heard == [signal.SIGTERM] * ("SIGTERM" in said)
    assert said.format(tmp_path) in capsys.readouterr().err


def test_without_a_folder_a_run_is_the_same_and_a_signal_is_returned(undisturbed):
    assert bits(run(None, steps_per_dispatch=None).state) == undisturbed[0]
    result = run(None, At(4, send(signal.SIGINT)))
    assert (int(result.state.step), result.stopped_by, result.finished) == (4, signal.SIGINT, False)


def test_means_are_weighted(undisturbed):
    _, steps, epochs = undisturbed
    losses = np.reshape([entry["loss"] for entry in steps], (3, 5))
    expected = np.average(losses, axis=1, weights=[1, 1, 1, 1, 3])
    assert [entry["loss"] for entry in epochs] == pytest.approx(expected)
    nothing = run(None, data=lambda epoch: batches(epoch) | {"weight": np.zeros(5, np.float32)})
    assert all(np.isnan(entry["loss"]) for entry in nothing.history)


def test_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r'at step 9 .* nan.*free=\{"opt') as error:
        run(tmp_path, data=lambda epoch: batches(epoch, [8]), steps_per_dispatch=5)
    assert str(tmp_path / "checkpoints" / "5") in str(error.value)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5]
    shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "checkpoints" / "8")
    with (
        pytest.warns(UserWarning, match="8 is damaged"),
        pytest.raises(NonFiniteError, match=r"good checkpoint is .*checkpoints.5;"),
    ):
        run(tmp_path, data=lambda epoch: batches(epoch, [8]), steps_per_dispatch=5)
    # The steps before it, of the same dispatch, are recorded.
    assert [e["step"] for e in read_lines(tmp_path / "steps.jsonl")] == [*range(1, 9)]
    with pytest.raises(NonFiniteError, match=r"at step 1 .* there is no checkpoint yet"):
        run(tmp_path / "other", data=lambda epoch: batches(epoch, [0]))


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    result = run(tmp_path, data=functools.partial(batches, spoilt=[4, 6, 7]), skip_nonfinite=2)
    assert [entry.get("skipped", 0) for entry in result.history] == [1, 2, 0]
    assert read_lines(tmp_path / "steps.jsonl")[6] == {"step": 7, "epoch": 2, "skipped": True}
    assert np.isfinite([entry["loss"] for entry in result.history]).all()


def test_more_of_them_in_a_row_end_the_run_across_a_stop_too(tmp_path):
    options = {"data": functools.partial(batches, spoilt=[2, 3, 4]), "skip_nonfinite": 2}
    run(tmp_path, At(4, send(signal.SIGTERM)), **options)
    for folder in (None, tmp_path):
        with pytest.raises(
            NonFiniteError, match=r"at step 5 .*after 2 that were .* by skip_nonfinite=3"
        ):
            run(folder, **options)


def test_another_configuration_is_another_run_and_fewer_epochs_are_said(tmp_path, capsys):
    run(tmp_path, config={"cell": {"size": 1, "bias": True}, "epochs": 1}, epochs=1)
    with pytest.raises(CheckpointError, match=r"has cell.size=1 \(not 2\), and cannot resume"):
        run(tmp_path, config={"cell": {"size": 2, "bias": True}, "epochs": 1}, epochs=1)
    options = {"config": {"cell": {"size": 1, "bias": True}, "epochs": 2}, "free": ("epochs",)}
    assert len(run(tmp_path, Progress(io.StringIO()), epochs=2, **options).history) == 2
    assert "the run had epochs=1 (not 2), and resumes so" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="has done 10 steps, more than those of 1 epochs"):
        run(tmp_path, epochs=1, **options)


def scores(*losses):
    """Measures the parameters by how often it was asked, and keeps them."""

    def evaluate(params):
        seen.append(np.asarray(params["kernel"]))
        return {"validation_loss": losses[len(seen) - 1]}

    seen = evaluate.seen = []
    return evaluate


def test_each_better_epoch_is_saved_and_the_run_ends_when_none_comes(tmp_path):
    options = {"epochs": 8, "checkpoint_every": 50, "hooks": [EarlyStopping(2)]}
    options["optimizer"] = optax.sgd(0.1)  # no schedule by which the last epochs change nothing
    evaluate = scores(3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.0, 0.5)
    result = run(tmp_path, evaluate=evaluate, **options)
    assert (int(result.state.step), result.stopped_by) == (30, None)
    assert [e["validation_loss"] for e in result.history] == [3.0, 2.0, 2.5, 1.5, 1.6, 1.5]
    assert result.best["epoch"] == 4
    np.testing.assert_array_equal(result.params["kernel"], evaluate.seen[3])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.best().step == 20
    # The last three, of which the best is one; not after the third and the fifth epoch.
    assert checkpoints.steps() == [10, 20, 30]
    assert json.loads((tmp_path / "result.json").read_text())["best"]["step"] == 20
    # Which others may read meanwhile.
    files = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    for step, number in (("best", 3), ("last", 5), (10, 1)):
        loaded = load_params(tmp_path, step=step)
        np.testing.assert_array_equal(loaded["kernel"], evaluate.seen[number])
    loaded = load_params(tmp_path / "checkpoints", jax.eval_shape(lambda: PARAMS))
    np.testing.assert_array_equal(loaded["kernel"], evaluate.seen[3])
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == files
    # Going on with it does nothing more.
    again = run(tmp_path, evaluate=scores(), **options)
    np.testing.assert_array_equal(again.params["kernel"], evaluate.seen[3])


def test_the_best_entry_is_that_of_the_parameters(tmp_path, monkeypatch):
    measure = scores(1.0, 3.0, 2.0)

    def evaluate(params):
        if len(measure.seen) == 2:  # the best is damaged meanwhile: not to be taken, nor deleted
            (tmp_path / "checkpoints" / "5" / "about.json").write_text("{")
        return measure(params)

    with pytest.warns(UserWarning, match="5 is damaged"):
        result = run(tmp_path, evaluate=evaluate, keep_last=1)
    assert result.best["epoch"] == 3
    np.testing.assert_array_equal(result.params["kernel"], measure.seen[2])
    # It is not read where it is the last; and where nothing is a number, that is the best.
    monkeypatch.setattr(Checkpoints, "best", lambda *_: pytest.fail("reads what is in memory"))
    nan, falling = float("nan"), tmp_path / "falling"
    for folder, losses, epoch in (
        (falling, (3.0, 2.0, 1.0), 3), (None, (2.0, 1.0, 3.0), 2), (None, (nan, nan, nan), 3)
    ):  # fmt: skip
        measure = scores(*losses)
        result = run(folder, evaluate=measure)
        assert result.best["epoch"] == epoch
        np.testing.assert_array_equal(result.params["kernel"], measure.seen[epoch - 1])
    assert not np.array_equal(*measure.seen[1:])


def test_a_resumed_run_waits_as_long_as_an_undisturbed_one_whatever_became_of_its_records(tmp_path):
    """The history is written anew from the checkpoint; lines of steps that were lost stay so."""
    options = {"epochs": 8, "checkpoint_every": 1, "hooks": [EarlyStopping(2)]}
    with pytest.raises(RuntimeError, match="an accident"):
        run(tmp_path, At(17, fail), evaluate=scores(3.0, 2.0, 2.5), **options)
    (tmp_path / "epochs.jsonl").unlink()
    lines = (tmp_path / "steps.jsonl").read_text().split("\n")
    lines[1], lines[4] = "no JSON", '{"loss": 3}'
    (tmp_path / "steps.jsonl").write_text("\n".join(lines) + '[1]\n{"step": 4, "lo')
    result = run(tmp_path, evaluate=scores(2.4, 1.0), **options)
    assert int(result.state.step) == 20
    assert read_lines(tmp_path / "epochs.jsonl") == result.history
    assert len(read_lines(tmp_path / "steps.jsonl")) == 18


def test_a_folder_of_an_impossible_name_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written to \(File name too long\)"):
        run(tmp_path / ("a" * 300))


def elsewhere(call):
    """Call it in another thread, and wait for it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="locks are those of POSIX")
    # Of what has opened the file, not of a process; and it would share the lock, if it could.
    with (tmp_path / "lock").open("a+") as other:
        with locked(tmp_path), locked(tmp_path), pytest.raises(BlockingIOError):  # twice one may
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(CheckpointError, match="another process writes to"):
            run(tmp_path)

    # Nor two threads, which share the process's lock.
    def second():
        with pytest.raises(CheckpointError, match="another thread writes to"):
            run(tmp_path)

    begins = At(4, functools.partial(elsewhere, second))
    assert len(run(tmp_path, begins).history) == 3
    assert begins.reached == float("inf")


def test_an_ignored_signal_stays_ignored_and_a_second_ctrl_c_ends_at_once(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    result = run(tmp_path, At(4, send(signal.SIGHUP)))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert (int(result.state.step), result.stopped_by) == (15, None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", At(2, send(signal.SIGINT, signal.SIGINT)))


def test_a_run_without_its_checkpoints_is_not_begun_anew_silently(tmp_path, capsys):
    """A third attempt, which wrote no checkpoint, does not replace the records either."""
    (tmp_path / "steps.jsonl").write_text("of somebody else\n")
    run(tmp_path, epochs=1)
    assert (tmp_path / "steps.jsonl.before").read_text() == "of somebody else\n"
    (tmp_path / "checkpoints" / "5" / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="5 is damaged"), pytest.raises(CheckpointError):
        run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {name: (tmp_path / name).read_text() for name in ("steps.jsonl", "epochs.jsonl")}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="an accident"):
            run(tmp_path, Progress(io.StringIO()), hooks=[At(2, fail)])
    assert capsys.readouterr().out.count("its records so far are moved to *.before") == 1
    run(tmp_path)
    assert len(read_lines(tmp_path / "steps.jsonl")) == 15
    assert {name: (tmp_path / f"{name}.before").read_text() for name in before} == before


def test_the_run_of_a_later_version_is_left_as_it_is(tmp_path):
    run(tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "5" / "about.json"
    write_sealed(path, read_sealed(path) | {"format": 2})
    before = {each: each.read_bytes() for each in tmp_path.rglob("*.json*")}
    with pytest.raises(CheckpointError, match="5 has format 2 of another version of rnnjax, and"):
        run(tmp_path)
    assert before == {each: each.read_bytes() for each in tmp_path.rglob("*.json*")}
    assert load_params(tmp_path)["kernel"].shape == (2, 4)


@pytest.mark.parametrize("name", ["steps.jsonl", "epochs.jsonl", "result.json"])
def test_a_full_disk_is_named_with_its_path(undisturbed, tmp_path, monkeypatch, name):
    """Where no checkpoint is written; with room the same call comes to the same end."""
    real = Path.open

    def full(path, mode="r", **options):
        if path.name.startswith(name) and mode != "r" and (tmp_path / "checkpoints").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        message = rf"{re.escape(str(tmp_path / name))} cannot be written to \(No space left on dev"
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path)
    assert left(tmp_path, run(tmp_path)) == undisturbed


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


def tiny(**change):
    given = {"loss_fn": lambda p, b, k: jax.tree.leaves(p)[0].sum(), "params": jnp.ones(2),
             "batches": np.ones((2, 2), np.float32), "optimizer": optax.sgd(0.1), "epochs": 1,
             "key": jax.random.key(0), "hooks": [Silent()]}  # fmt: skip
    return fit(**{**given, **change})


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_inside_of_a_transformation_is_no_place_for_a_run(transform):
    with pytest.raises(InvalidInputError, match=r"are traced inside of jit .*; call fit outside"):
        transform(lambda params: tiny(params=params).params)(jnp.ones((3, 2)))


def test_a_gradient_that_is_not_finite_counts_too():
    given = {"loss_fn": lambda p, b, k: jnp.sqrt(jnp.sum(p * b)), "params": jnp.zeros(2)}
    with pytest.raises(NonFiniteError, match="the loss is 0 and the norm of the gradient"):
        tiny(**given)
    assert tiny(**given, skip_nonfinite=2).params.tolist() == [0, 0]


def test_the_parameters_given_are_left_as_they_are():
    params, key = jnp.ones(2), jax.random.key(0)
    result = tiny(params=params, key=key)
    assert params.tolist() == [1, 1]
    assert key == jax.random.key(0)  # the state is donated, and it has a copy of the key
    # What came out stays too where a run goes on from the state.
    jax.jit(lambda state: state, donate_argnums=0)(result.state)
    np.testing.assert_allclose(result.params, 0.8, rtol=1e-6)


def test_a_carry_may_be_a_number_over_devices_too():
    options = {"carry": 0.0, "sharding": Sharding.over(1)}
    assert tiny(loss_fn=lambda p, c, b, k: (p.sum(), (c + 1, {})), **options).state.carry == 2


def test_a_kept_carry_goes_on_from_epoch_to_epoch_and_over_a_stop(tmp_path):
    whole = run(None, keep_carry=True)
    assert bits(whole.state) != bits(run(None).state)
    run(tmp_path, At(10, send(signal.SIGTERM)), keep_carry=True)
    with pytest.raises(CheckpointError, match="another keep_carry, and cannot"):
        run(tmp_path)
    assert bits(run(tmp_path, keep_carry=True).state) == bits(whole.state)


GRU, LSTM = rnnjax.GRUCell(4), rnnjax.LSTMCell(4)
CELLS = {  # some of whose carries are pairs, as a carry and metrics are
    r"GRUCarry\(hidden\)": GRU, r"LSTMCarry\(hidden, cell\)": LSTM,
    "a tuple of 2": rnnjax.Stack([GRU, LSTM]), "a tuple of 3": rnnjax.Stack([GRU, LSTM, GRU]),
}  # fmt: skip


def zeros(cell):
    carry = jax.eval_shape(lambda: cell.initial_carry((2,)))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), carry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer, but is 0"),
        ({"evaluate": lambda params: 3.0}, "'validation_loss' among them, but returned 3.0"),
        ({"batches": {"xs": np.ones((5, 3)), "weight": np.ones(4)}}, r"\[\(4,\), \(5,\)\]"),
        ({"key": jax.random.split(jax.random.key(0))}, r"a JAX random key .*key<fry> \(2,\)"),
        ({"evaluate": 3}, r"evaluate must be arrays with a first axis .* are \[\(\)\]; give"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"of": {}})), "carry": ()},
         "must be real numbers or arrays of them, but of is a dict"),
        ({"loss_fn": lambda p, b, k: (p.sum(), 3)}, "must return the loss, or .loss, metrics"),
        ({"loss_fn": lambda p, b, k: p}, "must return a scalar loss"),
        ({"loss_fn": lambda p, c, b, k: p.sum(), "carry": ()}, "must return \\(loss, \\(carry"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), (1, {})), "carry": ()}, "a carry like the one"),
        *(({"loss_fn": lambda p, c, b, k: (p.sum(), c), "carry": zeros(cell)},
           rf"metrics a dict, but returned \(loss, {came}\); write return loss, \(carry, {{}}\)")
          for came, cell in CELLS.items()),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), (c, 3)), "carry": ()}, r"\(loss, a tuple of 2\)"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((*c,), {})), "carry": [jnp.ones(2)]},
         r"given, \['float32\[2\]'\], but returned \('float32\[2\]',\)"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"loss": 1})), "carry": ()}, "rename them"),
        ({"loss_fn": lambda p, c, b, k: p.sum()}, r"\(params, batch, key\), but: missing a req"),
        ({"carry": ()}, r"must take \(params, carry, batch, key\), but: too many positional"),
        ({"loss_fn": lambda p, b, k: (p.sum(), {1: p.sum()})}, "by texts, .* are a dict with 1;"),
        ({"sharding": "gpu"}, "sharding must be a Sharding, .* but is 'gpu'"),
        ({"optimizer": optax.sgd}, "optimizer must be one of optax, .* but is a function"),
        ({"optimizer": optax.sm3(0.1), "params": jnp.zeros(())}, "optimizer could not .* take ano"),
        ({"optimizer": optax.lookahead(optax.sgd(0.1), 5, 0.5)}, "no attribute fast.; see in it"),
        ({"batches": [np.ones(2), np.ones(2)]}, "a list came; give a function that iterates"),
        ({"batches": {"xs": object()}}, r"batches must be .* are \[\(\)\]; .* a loader of batches"),
        ({"batches": ()}, r"their first axes are \[\]"),
        ({"batches": np.ones((0, 2))}, r"their first axes are \[\(0,\)\]"),
        ({"batches": lambda epoch: iter(())}, "a batch in every epoch, but epoch 1 has none"),
        ({"evaluate": lambda p: {"validation_loss": None}}, "must return numbers"),
        ({"evaluate": lambda p: {"validation_loss": 1, "loss": 2}}, "which fit measures"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"right": 1})), "carry": (),
          "evaluate": lambda p: {"validation_loss": 1, "right": 2}}, r"returned \['right'\]"),
        ({"loss_fn": lambda p, c, b, k: (p.sum(), ((), {"weight": b})), "carry": ()},
         r"weight must be one number for a step, but has \(2,\)"),
        ({"batches": iter([np.ones(2)]), "epochs": 2}, "a list_iterator, which can be gone thr"),
        ({"batches": {"text": np.array(["a", "b"])}}, r"batches\['text'\] is of type <U1; encode"),
        ({"params": {"n": jnp.arange(3)}}, r"params\['n'\] is int32, which has no gradient"),
        ({"hooks": True}, "hooks must be a list of hooks and of functions .* but is True"),
        ({"hooks": [EarlyStopping]}, r"but is a list of 1; pass \[EarlyStopping"),
        ({"batches": lambda epoch: iter([None])}, "must be arrays of num.*, but one is None"),
        ({"evaluate": iter([np.ones((2, 2))]), "epochs": 2}, "evaluate must last for 2 epochs"),
        ({"skip_nonfinite": True}, "skip_nonfinite must be an integer from 0 up, but is True"),
        ({"sharding": Sharding.over(1, rows_axis="rows")}, "rows_axis must be a whole number"),
        *(({"params": params}, r"leave random state out, as .*nnx.split\(module, nnx.P")
          for params in ({"w": jnp.ones(2), "key": jax.random.key(0)}, {"n": jnp.uint32(0)})),
        ({"hooks": [lambda state, summary: summary.update(state={"params": state.params})]},
         "what hooks write into summary must be JSON"),
        ({"hooks": [lambda state, summary: 3]}, r"<lambda> returns must be True to .* but is 3"),
        ({"loss_fn": lambda p, b, k: p.sum() * jax.random.uniform(k), "evaluate": np.ones((2, 2))},
         "called with the key None where evaluate is data"),
    ],
)  # fmt: skip
def test_what_a_program_gets_wrong_is_one_sentence(tmp_path, change, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        tiny(**{"run_dir": tmp_path / "run", **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "abc"}, "config must be JSON .* no dict"),
        ({"config": {"rate": float("nan")}}, "config must be JSON"),
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


def line(params, batch, key):
    return jnp.mean((params["w"] * batch + params["v"] - (3 * batch - 1)) ** 2)


LINE = {"w": jnp.zeros(()), "v": jnp.zeros(())}
POINTS = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (10, 1))


def learn_a_line(optimizer, folder=None, epochs=20, loss=line, **options):
    options = {"key": jax.random.key(0), "hooks": [Silent()], **options}
    return fit(loss, LINE, optimizer, POINTS, epochs, run_dir=folder, **options)


@pytest.mark.parametrize(
    "make",
    [
        optax.lbfgs, optax.contrib.momo, lambda: optax.contrib.sophia(0.1, update_interval=3),
        lambda: optax.contrib.sam(optax.sgd(0.2), optax.sgd(0.1), opaque_mode=True),
        lambda: optax.contrib.sam(optax.sgd(0.2), optax.sgd(0.1)),
        lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        lambda: optax.MultiSteps(optax.sgd(0.3), 2).gradient_transformation(),
    ],
)  # fmt: skip
def test_optimizers_that_take_more_than_gradients_learn_and_go_on_exactly(tmp_path, make):
    optimizer = make()
    whole = learn_a_line(optimizer, epochs=3)
    assert whole.history[-1]["loss"] < 0.8 * whole.history[0]["loss"]
    with pytest.raises(RuntimeError, match="an accident"):
        learn_a_line(optimizer, tmp_path, epochs=3, hooks=[At(13, fail)], steps_per_dispatch=1)
    assert bits(learn_a_line(optimizer, tmp_path, epochs=3).state) == bits(whole.state)


def test_lookahead_takes_its_own_pair_of_parameters(tmp_path):
    """As by a loop of one's own."""
    optimizer = optax.chain(optax.lookahead(optax.sgd(0.2), 3, 0.5))
    params = optax.LookaheadParams.init_synced(LINE)

    def loss(params, batch, key):
        return line(params.fast, batch, key)

    found = fit(loss, params, optimizer, POINTS, 1, key=jax.random.key(0), hooks=[Silent()])
    state = optimizer.init(params)
    for points in POINTS:
        grads = jax.grad(line)(params.fast, points, None)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found.params, params)


def test_runs_at_once_share_options_and_data_and_are_refused_what_keeps_a_state(tmp_path):
    """Both come to where each comes alone; and what was refused is free when its run ends."""
    shared = {"run_dir": RunFolder(None), "sharding": Sharding.over(2), "evaluate": POINTS,
              "batches": minibatches(POINTS.ravel(), 8, axis=0)}  # fmt: skip
    kept = EarlyStopping(9), CSVLog(tmp_path / "log.csv"), Silent()
    read = {"batches": iter(POINTS), "evaluate": iter(POINTS)}

    def train(epochs, *hooks, **options):
        return fit(line, LINE, optax.adam(0.1), epochs=epochs, key=jax.random.key(0),
                   hooks=[Silent(), *hooks], **{**shared, **options})  # fmt: skip

    def second():
        refused = [([hook], {}) for hook in kept] + [([], {name: read[name]}) for name in read]
        for hooks, options in refused:
            with pytest.raises(InvalidInputError, match="but another one in progress has a"):
                train(1, *hooks, **options)
        found.append(train(2))

    found = []
    found.append(train(1, At(2, functools.partial(elsewhere, second)), *kept, **read))
    alone = train(2), train(1, *kept, batches=POINTS)
    for ours, expected in zip(found, alone, strict=True):
        assert bits(ours.state) == bits(expected.state)
        assert [e["step"] for e in ours.history] == [e["step"] for e in expected.history]
    with pytest.raises(dataclasses.FrozenInstanceError):
        shared["run_dir"].keep_last = 1


def closing_over(data):
    return lambda params, batch, key: line(params, batch, key) * data[2]


RUN = {"loss": closing_over(jnp.arange(4.0)), "optimizer": optax.adam(0.1), "params": LINE,
       "batches": POINTS, "key": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named", "free"),
    [
        ({"loss": lambda p, b, k: 2 * line(p, b, k)}, "another loss, and", "loss"),
        ({"loss": closing_over(jnp.arange(4.0).at[2].set(9.0))}, "another loss, and", None),
        ({"optimizer": optax.adam(0.2)}, "another optimizer, learning rate", "optimizer"),
        ({"optimizer": optax.adamw(0.1)}, "another optimizer", None),
        ({"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 40))},
         "one that depends on epochs changes with them", None),
        ({"batches": POINTS + 1}, "another data set in the first epoch, and", "batches"),
        ({"batches": POINTS[:5]}, "another data set in the first epoch", None),
        ({"batches": np.concatenate([POINTS[:9], 1 - POINTS[9:]])}, "another data set", None),
        ({"params": {**LINE, "w": jnp.ones(())}}, "another set of initial par", "params"),
        ({"key": 1}, "has another key, and", "key"),
        ({"loss": lambda p, b, k: -line(p, b, k), "batches": -POINTS},
         "another data set in the first epoch, another loss, and", None),
    ],
)  # fmt: skip
def test_another_run_in_the_same_folder_is_refused(tmp_path, change, named, free):
    def train(options, epochs, **more):
        given = {**RUN, **options}
        return fit(given["loss"], given["params"], given["optimizer"], given["batches"], epochs,
                   key=jax.random.key(given["key"]), run_dir=RunFolder(tmp_path, **more),
                   hooks=[Progress(io.StringIO())])  # fmt: skip

    train({}, 1)
    with pytest.raises(CheckpointError, match=named) as error:
        train(change, 2)
    assert str(tmp_path) in str(error.value)
    if free is None:
        assert len(train({}, 2).history) == 2  # epochs alone may grow
    else:
        assert len(train(change, 2, free={free}).history) == 2
        # And then it is that run.
        assert len(train(change, 3).history) == 3


def test_a_run_on_other_devices_goes_on_and_that_is_said(tmp_path, capsys):
    learn_a_line(optax.adam(0.1), tmp_path, epochs=1, sharding=Sharding.over(2))
    learn_a_line(optax.adam(0.1), tmp_path, epochs=2, hooks=[Progress(io.StringIO())])
    assert "the devices of the run were 2 and are 1 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "name", "said"),
    [
        (jax, "__version__", "and this is jax 0.0.1, optax "),
        (optax, "__version__", ", optax 0.0.1, rnnjax "),
        (rnnjax, "__version__", ", rnnjax 0.0.1 ("),
        (rnnjax, "__file__", f"rnnjax {rnnjax.__version__} (00000000), "),  # of other sources
    ],
)
def test_another_version_is_said_and_its_programs_are_not_compared(
    tmp_path, monkeypatch, capsys, package, name, said
):
    """What it makes of the loss and the optimizer is not what somebody changed."""
    learn_a_line(optax.adam(0.1), tmp_path, epochs=1)
    monkeypatch.setattr(package, name, str(tmp_path / "none" if name == "__file__" else "0.0.1"))
    options = {"loss": lambda *given: 2 * line(*given), "hooks": [Progress(io.StringIO())]}
    learn_a_line(optax.adam(0.2), tmp_path, epochs=2, **options)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert said in first
    assert "whether its loss and optimizer are the same cannot be told" in first
    assert "devices of the run" not in second


def test_what_is_not_finite_is_null_in_all_files(tmp_path):
    evaluate = scores(float("nan"), float("inf"), 1.0)
    first = run(tmp_path, evaluate=evaluate, epochs=2)
    assert np.isnan(first.history[0]["validation_loss"])
    result = run(tmp_path, evaluate=evaluate)
    assert np.isinf(result.history[1]["validation_loss"])
    with pytest.raises(NonFiniteError):
        run(tmp_path / "bad", data=lambda epoch: batches(epoch, [8]))
    read = functools.partial(json.loads, parse_constant=pytest.fail)
    for name in ("steps.jsonl", "epochs.jsonl", "bad/steps.jsonl"):
        lines = [read(line) for line in (tmp_path / name).read_text().splitlines()]
        assert name != "epochs.jsonl" or lines[1]["validation_loss"] is None
    assert read((tmp_path / "result.json").read_text())


def test_a_helper_may_have_another_name(tmp_path):
    def first(x):
        return x * 2

    def second(x):
        return x * 2

    for helper in (first, second):
        tiny(loss_fn=lambda p, b, k, helper=helper: jax.jit(helper)(p).sum(), run_dir=tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(8, dtype=np.float32), np.arange(8) % 2 == 0, np.ones((2, 4), np.complex64) * 1j,
        np.arange(8).astype(jnp.bfloat16), np.arange(8).astype(jnp.int4), np.array(3, np.int8),
        np.arange(64, dtype=np.float32).reshape(8, 8),
    ],
)  # fmt: skip
def test_checksums_of_arrays_notice_each_number_each_sign_and_each_place(array):
    flat = array.ravel()
    negated = ~array if array.dtype == bool else -array
    others = [negated.ravel(), np.roll(flat, 1), flat[::-1], np.r_[flat[:-1], flat[:1]]]
    different = {each.tobytes(): each for each in [flat, *others]}.values()
    sums = {tuple(_sums(each.reshape(array.shape)).tolist()) for each in different}
    assert len(sums) == len(different) > 1
    assert np.array_equal(_sums(jnp.asarray(array)), _sums(array))
