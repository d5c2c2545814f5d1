"""Data as people have it: every kind of source gives the numbers of arrays, bit for bit."""

import io
import itertools
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_helpers import At, bits

from rnnjax import CheckpointError, InvalidInputError
from rnnjax.training import (
    Progress,
    RunFolder,
    Sharding,
    Silent,
    fit,
    minibatches,
    pad_rows,
    sources,
)
from rnnjax.training.sources import Source, _filled

STEPS, ROWS = 11, 6
OPTIMIZER = optax.adam(1e-2)
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(STEPS, ROWS, 5, 3)).astype(np.float32)  # steps, rows, time, features
YS = RNG.normal(size=(STEPS, ROWS)).astype(np.float32)
PARAMS = {"kernel": RNG.normal(size=(3, 4)).astype(np.float32), "out": jnp.ones(4)}


def errors(params, xs, ys, key):
    noise = 0.0 if key is None else jax.random.normal(key, ys.shape)
    return (jnp.tanh(xs @ params["kernel"]).mean(1) @ params["out"] - ys + 0.1 * noise) ** 2


def loss_fn(params, batch, key):
    return errors(params, *batch, key).mean()


def train(batches, epochs=2, loss=loss_fn, **options):
    options = {"key": jax.random.key(1), "hooks": [Silent()], **options}
    return fit(loss, PARAMS, OPTIMIZER, batches, epochs, **options)


def told(result):
    return [entry["loss"] for entry in result.history], bits(result.state)


@pytest.fixture(scope="module")
def of_arrays():
    return told(train((XS, YS)))


@pytest.fixture
def small(monkeypatch):
    """Groups of three steps."""
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * (XS[0].nbytes + YS[0].nbytes))


def generator(epoch):
    buffer = np.empty_like(XS[0])  # which is used again for each batch
    for xs, ys in zip(XS, YS, strict=True):
        buffer[:] = xs
        yield buffer, ys


def donated(epoch):
    """Takes each batch back: it is copied before the next is asked for."""
    for batch in generator(epoch):
        given = jax.tree.map(jnp.array, batch)
        yield given
        jax.tree.map(lambda leaf: leaf.delete(), given)


def loader():
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")
    rows = [torch.from_numpy(each.reshape(-1, *each.shape[2:])) for each in (XS, YS)]
    # A batch of it is a list.
    return data.DataLoader(data.TensorDataset(*rows), batch_size=ROWS)


class OnDisk:
    """An array that is read when it is cut, as h5py's."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, part):
        self.read.append(part.stop - part.start)
        return self.array[part]


class Loader:
    """What is iterated over, and says nothing more."""

    def __init__(self, begin):
        self.begin = begin

    def __iter__(self):
        return self.begin()


class Stated:
    """An iterator that says where it stands, in a dict of its own or in bytes."""

    def __init__(self, kind):
        self.kind, self.state = kind, {"at": 0}

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["at"] == STEPS:
            raise StopIteration
        self.state["at"] += 1
        return XS[self.state["at"] - 1], YS[self.state["at"] - 1]

    def get_state(self):
        return self.state if self.kind is dict else bytes([255, self.state["at"]])

    def set_state(self, state):
        assert type(state) is self.kind
        self.state = {"at": state["at"] if self.kind is dict else state[1]}


SOURCES = {
    "a function to arrays": lambda: lambda epoch: (XS, YS),
    "arrays of JAX": lambda: (jnp.asarray(XS), jnp.asarray(YS)),
    "arrays on the disk": lambda: (OnDisk(XS), OnDisk(YS)),
    "a generator": lambda: generator,
    "a generator that donates": lambda: donated,
    "a function to a list's iterator": lambda: lambda epoch: iter(list(zip(XS, YS, strict=True))),
    "a state in a dict": lambda: Loader(lambda: Stated(dict)),
    "a state in bytes": lambda: Loader(lambda: Stated(bytes)),
    "a DataLoader": loader,
    "tf.data": lambda: pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((XS, YS)),
    "grain": lambda: (
        pytest.importorskip("grain").MapDataset.source(list(zip(XS, YS, strict=True)))
    ).to_iter_dataset(),
}


# To import TensorFlow takes longer than all tests here.
TF_DATA = pytest.param("tf.data", marks=pytest.mark.slow)
NAMES = [TF_DATA if name == "tf.data" else name for name in SOURCES]


@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_the_numbers_of_arrays(of_arrays, small, name):
    """To train on, and to evaluate on."""
    given, data = SOURCES[name](), SOURCES[name]()
    if callable(data):  # which would be a function of the parameters
        data = Loader(lambda: generator(0))
    result = train(given, evaluate=data)
    assert told(result) == of_arrays
    each = [errors(result.state.params, xs, ys, None).mean() for xs, ys in zip(XS, YS, strict=True)]
    assert result.history[-1]["validation_loss"] == pytest.approx(np.mean(each), rel=1e-5)


def test_a_function_to_arrays_is_called_once_an_epoch(of_arrays, tmp_path):
    asked = []
    result = train(lambda epoch: asked.append(epoch) or (XS, YS), run_dir=tmp_path)
    assert (told(result), asked) == (of_arrays, [0, 1])


def test_groups_of_steps(small, monkeypatch):
    """As many slots in each, so that one program does them, and another where shapes differ."""

    def groups(given, *args):
        of_steps = Source("batches", given, 1, None).epoch(0, *args)
        return [(group.start, group.stop, len(group.batches[0])) for group in of_steps]

    assert groups((XS, YS)) == groups(generator) == [(0, 3, 3)] * 3 + [(0, 2, 3)]
    disk = OnDisk(XS)
    assert groups((disk, YS)) == groups(generator)
    assert disk.read == [1, 1, 3, 3, 3, 2]  # nothing else is in memory
    assert groups((XS, YS), 4) == [(1, 3, 3), (0, 3, 3), (0, 2, 3)]
    assert not any(stop - start for start, stop, _ in groups((XS, YS), STEPS))
    assert groups(generator, 4) == [(0, 3, 3), (0, 3, 3), (0, 1, 3)]
    assert groups(Stated(dict), 4, {"at": 10}) == [(0, 1, 3)]
    cut = [(XS[i, :, : 2 + i // 2], YS[i]) for i in range(5)]
    assert groups(lambda epoch: iter(cut)) == [(0, 2, 6), (0, 2, 4), (0, 1, 3)]
    monkeypatch.setattr(sources, "_SECONDS_OF_STREAM", -1)
    assert groups(generator) == [(0, 1, 3)] * STEPS
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 1)
    assert groups((XS, YS)) == [(0, 1, 1)] * STEPS


def test_what_fills_a_group_is_no_garbage_of_float64():
    """Which overflows in the cast to float32, with a warning that says nothing to the user."""
    steps = np.arange(6.0).reshape(3, 2)
    assert _filled(3, steps) is steps
    assert _filled(5, steps).tolist() == [*steps.tolist(), [0, 1], [0, 1]]


def test_arrays_of_one_group_stay_on_the_device_and_what_a_function_returns_does_not():
    for given, stays in (((XS, YS), True), (lambda epoch: (XS, YS), False)):
        source = Source("batches", given, 2, None)
        (first,), (again,) = source.epoch(0), source.epoch(1, 2)
        assert (again.batches[0] is first.batches[0], again.start) == (stays, 2)


def test_measures_on_data_are_weighted_means_with_the_carry_of_every_row():
    def loss(params, carry, batch, key):
        wrong = errors(params, *batch, key)
        return wrong.mean(), (carry + 1, {"seen": carry, "weight": 1.0 + carry})

    data = minibatches((XS[0, :5], YS[0, :5]), 2, axis=0, seed=3)  # in each epoch another is left
    result = train((XS, YS), 2, loss, carry=jnp.zeros(()), evaluate=data)
    cuts = [*zip(*data(0), strict=True), [leaf[0] for leaf in data.cut(data.rest())]]
    each = [errors(result.state.params, *batch, None).mean() for batch in cuts]
    found = result.history[1]
    assert found["validation_loss"] == pytest.approx(np.average(each, weights=[1, 2, 3]), rel=1e-5)
    assert found["validation_seen"] == pytest.approx((0 + 2 + 6) / 6)


@pytest.mark.parametrize("devices", [None, 4])
def test_validation_counts_every_row_once(devices):
    """300 rows by 32, a fifth of them to validate on: 60, of which 28 fill no batch."""
    rows = np.arange(300.0, dtype=np.float32)
    train_rows, valid = minibatches({"row": rows}, 32, axis=0).split(0.2)

    def loss(params, batch, key):
        return jnp.mean(params * 0 + batch["row"] ** 2), {"one": jnp.mean(batch["row"] >= 240.0)}

    def measured(loss_fn, **options):
        sharding = devices and Sharding.over(devices)
        (entry,) = fit(
            loss_fn, jnp.zeros(()), optax.sgd(0.1), train_rows, 1, key=jax.random.key(0),
            hooks=[Silent()], evaluate=valid, sharding=sharding, **options,
        ).history  # fmt: skip
        return entry

    found = measured(loss)
    assert found["validation_loss"] == pytest.approx(np.mean(rows[240:] ** 2), rel=1e-6)
    assert found["validation_one"] == 1

    def counted(params, batch, key):
        odd = batch["row"] % 2
        mean = (odd * batch["row"]).sum() / odd.sum()
        return mean + params * 0, {"weight": odd.sum()}  # the loss says what counts

    assert measured(counted)["validation_loss"] == pytest.approx(rows[241::2].mean(), rel=1e-6)


def test_rows_that_an_epoch_leaves_out_are_said_once(capsys):
    for size, said in ((4, 1), (5, 0)):
        data = minibatches((XS.reshape(-1, 5, 3)[:30], YS.ravel()[:30]), size, axis=0)
        train(data, hooks=[Progress(io.StringIO())], evaluate=data)
        line = "each epoch leaves out 2 rows, which fill no batch, other ones each time\n"
        assert capsys.readouterr().out.count(line) == said


def test_a_carry_of_rows_does_not_follow_shuffled_rows(capsys):
    """It is said, and not of a mean of the parameters or of metrics, though of as many rows."""
    rows = minibatches(np.arange(12.0, dtype=np.float32), 4, axis=0)
    params = {"kernel": jnp.zeros((4, 2))}

    def loss(params, carry, batch, key):
        return (params["kernel"] * 0).sum(), (carry, {})

    for data, evaluate, carry in (
        (rows, None, {"a": jnp.zeros((4, 3)), "b": jnp.zeros(())}),
        (rows(0), rows, jnp.zeros(4)),
        (rows(0), rows(0), jnp.zeros(4)),
        (rows, rows, {"mean": params, "classes": jnp.zeros(3), "n": jnp.zeros(())}),
    ):
        fit(
            loss, params, OPTIMIZER, data, 1, key=jax.random.key(0), evaluate=evaluate,
            carry=carry, hooks=[Progress(io.StringIO())],
        )  # fmt: skip
        found = capsys.readouterr().out.count("the carry has a state for each row, but")
        assert found == (
            (data is rows or evaluate is rows) and not (isinstance(carry, dict) and "mean" in carry)
        )


def test_an_endless_dataset_is_told():
    class Repeats(Loader):
        def cardinality(self):
            return np.int64(-1)  # tf.data.INFINITE_CARDINALITY

    with pytest.raises(InvalidInputError, match=r"repeats for ever; give .* dataset.take\(100\)"):
        train(Repeats(lambda: generator(0)))


def test_minibatches_are_cut_when_they_are_used(small, monkeypatch):
    data, sizes = minibatches((XS.reshape(-1, 5, 3), YS.ravel()), 5, axis=0, seed=2), []
    cut = sources.Minibatches.cut
    monkeypatch.setattr(sources.Minibatches, "cut", lambda *a: sizes.append(len(a[1])) or cut(*a))
    found = told(train(data))
    assert max(sizes) == 3
    assert found == told(train(lambda epoch: data(epoch)))


def test_a_partial_batch_is_filled_up_or_runs_as_it_is():
    rows = XS.reshape(-1, 5, 3)[:37], YS.ravel()[:37]  # six batches of six, and one of one
    cuts = [tuple(each[at : at + 6] for each in rows) for at in range(0, 37, 6)]

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
    keys = jax.random.split(jax.random.key(0), 2)
    assert (pad_rows(keys, 3)[0] == keys[np.array([0, 1, 0])]).all()
    for batch in (np.ones((7, 2)), np.ones((0, 2)), (np.ones(2), np.ones(3)), None):
        with pytest.raises(InvalidInputError, match="same number of rows in all leaves, from 1 to"):
            pad_rows(batch, 6)


def test_epochs_of_other_lengths():
    parts = [(XS[:n], YS[:n]) for n in (3, 1, 4)]
    result = train(lambda epoch: zip(*parts[epoch], strict=True), 3)
    assert [entry["step"] for entry in result.history] == [3, 4, 8]
    assert told(train(lambda epoch: parts[epoch], 3)) == told(result)


def test_an_iterator_lasts_for_one_epoch(tmp_path, of_arrays):
    one = train(generator(0), 1, run_dir=tmp_path)
    assert one.history[0]["loss"] == of_arrays[0][0]
    left = generator(0)
    with pytest.raises(InvalidInputError, match="epoch 2 has none; where it is a generator"):
        train(lambda epoch: left, 2)
    with pytest.raises(ZeroDivisionError):  # what is raised in it is raised as it is
        train(lambda epoch: (xs[: 1 // i] for i, xs in enumerate(XS)))


def stopped(batches, folder, step, **options):
    stop = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    where = RunFolder(folder, **{"on_signal": "return", **options})
    return train(batches, run_dir=where, hooks=[stop], steps_per_dispatch=1)


@pytest.mark.parametrize("step", [4, STEPS, STEPS + 2])
@pytest.mark.parametrize(
    "name",
    ["a generator", "grain", "a state in a dict", "a state in bytes", "a function to arrays"],
)
def test_a_run_goes_on_amid_an_epoch(of_arrays, tmp_path, small, name, step):
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
        stopped(SOURCES[name](), tmp_path, STEPS + 2, on_signal="raise")
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert f"stopped after step {STEPS + 2}, amid an epoch of batches that cannot say where" in said
    assert f"resumes from the last checkpoint in {tmp_path}" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(STEPS)]
    assert told(train(SOURCES[name](), run_dir=tmp_path)) == of_arrays


def test_an_epoch_that_became_shorter_is_refused(tmp_path):
    stopped(generator, tmp_path, 5)
    for batches in (lambda epoch: itertools.islice(generator(epoch), 3), (XS[:3], YS[:3])):
        with pytest.raises(CheckpointError, match="after 5 steps of an epoch, from where batch"):
            train(batches, run_dir=RunFolder(tmp_path, free={"batches"}))


def test_keys_and_rows_of_several_devices_in_a_stream(tmp_path):
    keys = jax.random.split(jax.random.key(3), STEPS)
    batches = list(zip(keys, XS, strict=True))

    def loss(params, batch, key):
        return errors(params, batch[1], jax.random.normal(batch[0], (ROWS,)), None).mean()

    whole = told(train((keys, XS), 1, loss, run_dir=tmp_path))
    assert told(train(lambda epoch: iter(batches), 1, loss)) == whole
    sharding = Sharding.over(2, rows_axis=(9, 1))
    np.testing.assert_allclose(
        told(train(lambda epoch: iter(batches), 1, loss, sharding=sharding))[0], whole[0], rtol=1e-5
    )


def test_one_group_is_read_ahead_and_no_more_than_two(monkeypatch):
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", XS[0].nbytes + YS[0].nbytes)
    asked = [threading.Event() for _ in range(STEPS)]

    def noted(epoch):
        for event, batch in zip(asked, generator(epoch), strict=True):
            event.set()
            yield batch

    class Waits(Silent):
        def on_dispatch(self, step, losses, seconds):
            assert step == STEPS or asked[step].wait(60)
            assert sum(event.is_set() for event in asked) <= step + 2

    train(noted, 1, hooks=[Waits()])


def test_the_digest_is_of_all_steps_of_arrays_or_the_first_of_a_stream(monkeypatch):
    def digest(given):
        return Source("batches", given, 1, None).first_epoch()

    whole = digest((XS, YS))
    monkeypatch.setattr(sources, "_BYTES_OF_GROUP", 3 * (XS[0].nbytes + YS[0].nbytes))
    assert digest((XS, YS)) == digest(lambda epoch: (XS, YS)) == whole
    other = XS.copy()
    other[-1, -1, -1, -1] += 1
    assert digest((other, YS)) != whole
    first = digest(generator)
    assert digest(lambda epoch: itertools.islice(generator(epoch), 1)) == first
    assert digest(lambda epoch: ((xs + 1, ys) for xs, ys in generator(epoch))) != first


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
