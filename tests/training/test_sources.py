"""Data as people have it: every kind of source gives the numbers of arrays, bit for bit."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import CheckpointError, InvalidInputError
from rnnjax.training import (
    RunFolder,
    Sharding,
    Silent,
    fit,
    minibatches,
    pad_rows,
    sources,
)
from rnnjax.training.sources import Source

CELL, STEPS, ROWS = rnnjax.GRUCell(4), 11, 6
OPTIMIZER = optax.adam(1e-2)
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(STEPS, ROWS, 5, 3)).astype(np.float32)  # steps, rows, time, features
YS = RNG.normal(size=(STEPS, ROWS)).astype(np.float32)
PARAMS = {"cell": CELL.init(jax.random.key(0), 3), "kernel": jnp.ones(4)}


def errors(params, xs, ys, key):
    _, last = rnnjax.unroll(CELL, params["cell"], xs.swapaxes(0, 1), outputs="last")
    noise = 0.0 if key is None else jax.random.normal(key, ys.shape)
    return (last @ params["kernel"] - ys + 0.1 * noise) ** 2


def loss_fn(params, batch, key):
    return errors(params, *batch, key).mean()


def train(batches, epochs=2, loss=loss_fn, **options):
    options = {"key": jax.random.key(1), "hooks": [Silent()], **options}
    return fit(loss, PARAMS, OPTIMIZER, batches, epochs, **options)


def bits(result):
    leaves = jax.tree.leaves((result.state.params, result.state.opt_state))
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves)


def told(result):
    return [entry["loss"] for entry in result.history], bits(result)


@pytest.fixture(scope="module")
def of_arrays():
    return told(train((XS, YS)))


def generator(epoch):
    buffer = np.empty_like(XS[0])  # which is used again for each batch
    for xs, ys in zip(XS, YS, strict=True):
        buffer[:] = xs
        yield buffer, ys


def loader():
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")
    rows = [torch.from_numpy(each.reshape(-1, *each.shape[2:])) for each in (XS, YS)]
    # A batch of it is a list.
    return data.DataLoader(data.TensorDataset(*rows), batch_size=ROWS)


def tensors():
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((XS, YS))


def grains():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(list(zip(XS, YS, strict=True))).to_iter_dataset()


class OnDisk:
    """An array that is read when it is cut, as h5py's."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, part):
        return self.array[part]


class Loader:
    """What is iterated over, and says nothing more."""

    def __iter__(self):
        return generator(0)


SOURCES = {
    "a function to arrays": lambda: lambda epoch: (XS, YS),
    "arrays of JAX": lambda: (jnp.asarray(XS), jnp.asarray(YS)),
    "arrays on the disk": lambda: (OnDisk(XS), OnDisk(YS)),
    "a generator": lambda: generator,
    "a function to a list's iterator": lambda: lambda epoch: iter(list(zip(XS, YS, strict=True))),
    "a DataLoader": loader,
    "tf.data": tensors,
    "grain": grains,
}


# To import TensorFlow takes longer than all tests here.
TF_DATA = pytest.param("tf.data", marks=pytest.mark.slow)
NAMES = [TF_DATA if name == "tf.data" else name for name in SOURCES]


@pytest.mark.parametrize("small", [False, True], ids=["one group", "many groups"])
@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_the_numbers_of_arrays(of_arrays, monkeypatch, name, small):
    if small:
        monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * (XS[0].nbytes + YS[0].nbytes))
    assert told(train(SOURCES[name]())) == of_arrays


@pytest.mark.parametrize("name", NAMES)
def test_data_to_evaluate_on_is_what_batches_may_be(name):
    given = SOURCES[name]()
    if callable(given):  # which would be a function of the parameters
        given = Loader()
    result = train((XS, YS), evaluate=given)
    each = [errors(result.state.params, xs, ys, None).mean() for xs, ys in zip(XS, YS, strict=True)]
    assert result.history[-1]["validation_loss"] == pytest.approx(np.mean(each), rel=1e-5)


def test_measures_on_data_are_weighted_means_with_the_carry_and_by_minibatches():
    def loss(params, carry, batch, key):
        assert key is None or jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        wrong = errors(params, *batch, key)
        return wrong.mean(), (carry + 1, {"seen": carry, "weight": 1.0 + carry})

    data = minibatches((XS[0], YS[0]), 2, axis=0, seed=3)
    result = train((XS, YS), 1, loss, carry=jnp.zeros(()), evaluate=data)
    each = [
        errors(result.state.params, *batch, None).mean() for batch in zip(*data(0), strict=True)
    ]
    found = result.history[0]
    assert found["validation_loss"] == pytest.approx(np.average(each, weights=[1, 2, 3]), rel=1e-5)
    assert found["validation_seen"] == pytest.approx((0 + 2 + 6) / 6)
    assert result.best == found


def test_minibatches_are_cut_when_they_are_used(monkeypatch):
    rows = XS.reshape(-1, 5, 3), YS.ravel()
    data = minibatches(rows, 5, axis=0, seed=2)
    whole = told(train(lambda epoch: data(epoch)))
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 4 * 5 * (rows[0][0].nbytes + 4))
    assert told(train(data)) == whole


def test_a_partial_batch_is_filled_up_or_runs_as_it_is():
    rows = XS.reshape(-1, 5, 3)[:40], YS.ravel()[:40]  # six batches of six, and one of four
    cuts = [tuple(each[at : at + 6] for each in rows) for at in range(0, 40, 6)]

    def padded(params, carry, given, key):
        (xs, ys), weights = given
        wrong = errors(params, xs, ys, None)
        return jnp.average(wrong, weights=weights), (carry, {"weight": weights.sum()})

    def alone(params, carry, batch, key):
        wrong = errors(params, *batch, None)
        return wrong.mean(), (carry, {"weight": 1.0 * len(wrong)})

    filled = train(lambda epoch: (pad_rows(batch, 6) for batch in cuts), 2, padded, carry=())
    as_it_is = train(lambda epoch: iter(cuts), 2, alone, carry=())
    np.testing.assert_allclose(told(filled)[0], told(as_it_is)[0], rtol=1e-5)
    assert int(filled.state.step) == 14


@pytest.mark.parametrize("batch", [np.ones((7, 2)), np.ones((0, 2)), (np.ones(2), np.ones(3))])
def test_what_cannot_be_filled_up(batch):
    with pytest.raises(InvalidInputError, match="the same number of rows in all leaves, from 1 to"):
        pad_rows(batch, 6)


def test_epochs_of_other_lengths_and_shapes():
    lengths = [3, 1, 4]

    def of(epoch):
        return iter(zip(XS[: lengths[epoch]], YS[: lengths[epoch]], strict=True))

    def arrays(epoch):
        return XS[: lengths[epoch]], YS[: lengths[epoch]]

    result = train(of, 3)
    assert [entry["step"] for entry in result.history] == [3, 4, 8]
    assert told(train(arrays, 3)) == told(result)
    # Batches of several lengths of time, in turn.
    cut = [(xs[:, : 2 + i % 3], ys) for i, (xs, ys) in enumerate(zip(XS, YS, strict=True))]
    assert int(train(lambda epoch: iter(cut), 1).state.step) == STEPS


def test_an_iterator_lasts_for_one_epoch(tmp_path, of_arrays):
    one = train(generator(0), 1, run_dir=tmp_path)
    assert one.history[0]["loss"] == of_arrays[0][0]
    with pytest.raises(InvalidInputError, match="must last for 2 epochs, but is a generator"):
        train(generator(0), 2)
    left = generator(0)
    with pytest.raises(InvalidInputError, match="epoch 2 has none; where it is a generator"):
        train(lambda epoch: left, 2)


class At(Silent):
    def __init__(self, step, action):
        super().__init__()
        self.reached, self.action = step, action

    def on_dispatch(self, step, losses, seconds):
        if step == self.reached:
            self.action()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(batches, folder, step, action=terminate):
    where = RunFolder(folder, on_signal="return")
    return train(batches, run_dir=where, hooks=[At(step, action)], steps_per_dispatch=1)


@pytest.mark.parametrize("step", [4, STEPS, STEPS + 2])
@pytest.mark.parametrize("name", ["a generator", "grain", "a function to arrays"])
def test_a_run_goes_on_amid_an_epoch(of_arrays, tmp_path, monkeypatch, name, step):
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * (XS[0].nbytes + YS[0].nbytes))
    result = stopped(SOURCES[name](), tmp_path, step)
    assert (int(result.state.step), result.stopped_by) == (step, signal.SIGTERM)
    again = train(SOURCES[name](), run_dir=tmp_path)
    assert told(again) == of_arrays


@pytest.mark.parametrize("name", ["a DataLoader", TF_DATA])
def test_a_source_that_cannot_say_where_it_stands_goes_on_from_the_last_epoch(
    of_arrays, tmp_path, capsys, name
):
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        train(SOURCES[name](), run_dir=tmp_path, hooks=[At(STEPS + 2, terminate)],
              steps_per_dispatch=1)  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert f"stopped after step {STEPS + 2}, amid an epoch of batches that cannot say where" in said
    assert f"goes on from the last checkpoint in {tmp_path}" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(STEPS)]
    assert told(train(SOURCES[name](), run_dir=tmp_path)) == of_arrays


def test_an_epoch_that_became_shorter_is_refused(tmp_path):
    stopped(generator, tmp_path, 5)
    short = RunFolder(tmp_path, free={"batches"})
    with pytest.raises(
        CheckpointError, match="stopped after 5 steps of an epoch, from where batch"
    ):
        train(lambda epoch: itertools.islice(generator(epoch), 3), run_dir=short)
    with pytest.raises(
        CheckpointError, match="stopped after 5 steps of an epoch, from where batch"
    ):
        train((XS[:3], YS[:3]), run_dir=short)


def test_another_first_batch_is_another_run(tmp_path):
    train(generator, 1, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="another data of the first epoch"):
        train(lambda epoch: ((xs + 1, ys) for xs, ys in generator(epoch)), run_dir=tmp_path)


def test_keys_and_rows_of_several_devices_in_a_stream():
    keys = jax.random.split(jax.random.key(3), STEPS)
    batches = list(zip(keys, XS, strict=True))

    def loss(params, batch, key):
        return errors(params, batch[1], jax.random.normal(batch[0], (ROWS,)), None).mean()

    whole = told(train((keys, XS), 1, loss))
    assert told(train(lambda epoch: iter(batches), 1, loss)) == whole
    sharding = Sharding.over(2, rows_axis=(9, 1))
    np.testing.assert_allclose(
        told(train(lambda epoch: iter(batches), 1, loss, sharding=sharding))[0], whole[0], rtol=1e-5
    )


@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_a_batch_is_copied_before_the_next_is_asked_for(of_arrays, kind):
    """A loader may write into the same array, or donate it."""

    def reused(epoch):
        for batch in generator(epoch):
            given = tuple(kind(leaf) for leaf in batch)
            yield given
            for leaf in given:
                leaf.fill(np.nan) if kind is np.array else leaf.delete()

    assert told(train(reused)) == of_arrays


def test_a_function_to_arrays_is_called_once_an_epoch(of_arrays, tmp_path):
    asked = []

    def load(epoch):
        asked.append(epoch)
        return XS, YS

    assert told(train(load, run_dir=tmp_path)) == told(train((XS, YS)))
    assert asked == [0, 1]


def test_an_error_of_a_source_is_raised_as_it_is():
    def breaks(epoch):
        yield XS[0], YS[0]
        raise OSError("a disk")

    with pytest.raises(OSError, match="a disk"):
        train(breaks)


def test_no_more_than_two_groups_are_read_ahead(monkeypatch):
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", XS[0].nbytes + YS[0].nbytes)
    read, ahead = [], []

    def counted(epoch):
        for batch in generator(epoch):
            read.append(batch)
            yield batch

    class Counts(Silent):
        def on_dispatch(self, step, losses, seconds):
            ahead.append(len(read) - step)

    train(counted, 1, hooks=[Counts()])
    assert max(ahead) <= 2


def test_the_digest_of_arrays_is_that_of_their_steps(monkeypatch):
    whole = Source("batches", (XS, YS), 1, None).first_epoch()
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * (XS[0].nbytes + YS[0].nbytes))
    assert Source("batches", (XS, YS), 1, None).first_epoch() == whole
    other = XS.copy()
    other[-1, -1, -1, -1] += 1
    assert Source("batches", (other, YS), 1, None).first_epoch() != whole


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
import test_sources as t
from rnnjax.training import Silent

class Killed(Silent):
    def on_dispatch(self, step, losses, seconds):
        if step >= int(sys.argv[3]): os.kill(os.getpid(), 9)

t.train(t.shuffled(), 6, run_dir=sys.argv[1], hooks=[Killed()], steps_per_dispatch=2)
"""


def shuffled():
    grain = pytest.importorskip("grain")
    pairs = list(zip(XS, YS, strict=True))
    return lambda epoch: grain.MapDataset.source(pairs).seed(epoch).shuffle().to_iter_dataset()


@pytest.mark.slow
def test_grain_after_kills_is_the_same_bit_for_bit(tmp_path, environment):
    pytest.importorskip("grain")
    here = str(Path(__file__).parent)
    for step in (STEPS + 4, 3 * STEPS + 1, 5 * STEPS + 7):
        program = [sys.executable, "-c", KILLED, str(tmp_path), here, str(step)]
        ended = subprocess.run(
            program, env=environment(1, PYTHONPATH=os.pathsep.join(sys.path)), check=False
        )
        assert ended.returncode == -signal.SIGKILL
    result = train(shuffled(), 6, run_dir=tmp_path)
    assert told(result) == told(train(shuffled(), 6))


def test_a_thread_has_the_settings_of_the_one_that_called(monkeypatch):
    xs = np.linspace(0, 1, 40).reshape(10, 4)

    def train_wide():
        return fit(lambda p, b, k: jnp.mean((p * b - 3 * b) ** 2), np.zeros(()), optax.sgd(0.1),
                   lambda epoch: iter(xs), 1, key=jax.random.key(0), hooks=[Silent()])  # fmt: skip

    with jax.enable_x64(True):
        whole = train_wide()
        monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * xs[0].nbytes)
        result = train_wide()
    assert result.params.dtype == np.float64
    assert result.params == whole.params


MEASURED = """
import jax, jax.numpy as jnp, numpy as np, optax, sys
from rnnjax.training import Silent, fit, minibatches

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def train(batches):
    fit(lambda p, b, k: jnp.mean((b * p) ** 2), jnp.ones(()), optax.sgd(0.1), batches, 1,
        key=jax.random.key(0), hooks=[Silent()])

data = np.ones((2000, 100, 250), np.float32)
train(data[:300])  # what compiling takes
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
train(data if sys.argv[1] == "arrays" else minibatches(data, 10, axis=0))
print((resident("VmHWM") - before) / data.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("which", ["arrays", "minibatches"])
def test_memory_beside_the_data_does_not_grow_with_it(environment, which):
    program = [sys.executable, "-c", MEASURED, which]
    ended = subprocess.run(program, env=environment(1), check=True, capture_output=True, text=True)
    assert float(ended.stdout) < 0.3
