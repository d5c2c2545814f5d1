"""Windows, shuffled batches, and streams that continue."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.errors import InvalidInputError
from rnnjax.text import shuffled_batches, streams, window_starts, windows
from rnnjax.text.batches import stream_starts

sizes = st.integers(1, 12)


@given(sizes, st.integers(0, 60))
def test_windows_cover_the_text_once_and_in_order(seq_length, extra):
    length = seq_length + 1 + extra
    ids = np.random.default_rng(length).integers(0, 99, length)
    inputs, targets = windows(ids, seq_length)
    covered = inputs.size
    assert inputs.shape == targets.shape == ((length - 1) // seq_length, seq_length)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(inputs.ravel(), ids[:covered])
    np.testing.assert_array_equal(targets.ravel(), ids[1 : covered + 1])
    assert length - 1 - covered < seq_length  # no further window would have fitted


def test_stream_starts_are_the_first_characters_of_streams():
    starts = stream_starts(60, 3, 4)
    np.testing.assert_array_equal(starts, streams(np.arange(60), 3, 4)[0][..., 0])
    assert starts.dtype == np.int32


def test_window_by_window():
    ids = np.arange(100, 121)
    inputs, targets = windows(ids, 5)
    assert len(inputs) == 4
    for i in range(4):
        np.testing.assert_array_equal(inputs[i], ids[i * 5 : (i + 1) * 5])
        np.testing.assert_array_equal(targets[i], ids[i * 5 + 1 : (i + 1) * 5 + 1])


def test_the_books_windows_and_steps():
    inputs, _ = windows(np.zeros(160_406, np.int32), 100)
    indices, weights = shuffled_batches(len(inputs), 12, seed=7, epoch=0)
    assert len(inputs) == 1604
    assert indices.shape == (134, 12)
    assert weights.sum() == 1604


@pytest.mark.parametrize("ids", [[3, 1, 2], (3, 1, 2), jnp.array([3, 1, 2])])
def test_windows_and_streams_take_arrays_and_sequences(ids):
    assert windows(ids, 2)[1].tolist() == [[1, 2]]
    assert streams(ids, 2, 1)[1].tolist() == [[[1], [2]]]


@pytest.mark.parametrize("cut", [lambda ids: windows(ids, 2), lambda ids: streams(ids, 2, 2)])
def test_batches_share_no_memory(cut):
    ids = np.arange(9, dtype=np.int32)
    inputs, targets = cut(ids)
    before = targets.copy()
    inputs[:] = -1
    np.testing.assert_array_equal(targets, before)
    np.testing.assert_array_equal(ids, np.arange(9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows(range(100), 100), "seq_length 100 needs at least 101 .* but 100 came"),
        (lambda: windows([], 1), "needs at least 2 .* but 0 came"),
        (lambda: windows(range(9), 0), "seq_length must be at least 1, but 0"),
        (lambda: windows(range(9), -2), "seq_length must be at least 1, but -2"),
        (lambda: windows([[1, 2, 3]], 1), "one dimension"),
        (lambda: windows([1.0, 2.0, 3.0], 1), "integers"),
        (lambda: streams(range(12), 3, 4), "at least 13 ids .* but 12 came"),
        (lambda: streams([], 1, 1), "at least 2 ids .* but 0 came"),
        (lambda: streams(range(9), 0, 4), "batch_size must be at least 1, but 0"),
        (lambda: streams(range(9), 2, 0), "seq_length must be at least 1, but 0"),
        (lambda: streams([[1, 2, 3]], 1, 1), "one dimension"),
        (lambda: shuffled_batches(0, 4, seed=0, epoch=0), "num_windows must be at least 1"),
        (lambda: shuffled_batches(4, 0, seed=0, epoch=0), "batch_size must be at least 1"),
        (lambda: shuffled_batches(4, 2, seed=-1, epoch=0), "seed must be at least 0, but -1"),
        (lambda: shuffled_batches(4, 2, seed=0, epoch=-1), "epoch must be at least 0, but -1"),
        (lambda: window_starts(8, 2, stride=1.5), r"stride must be at least 1, but 1\.5"),
        (lambda: windows(range(9), True), "seq_length must be at least 1, but True"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_the_shortest_texts_that_are_taken():
    assert windows(range(101), 100)[0].shape == (1, 100)
    assert streams(range(13), 3, 4)[0].shape == (1, 3, 4)


@given(st.integers(1, 60), sizes, st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_holds_every_window_once(num_windows, batch_size, seed, epoch):
    indices, weights = shuffled_batches(num_windows, batch_size, seed=seed, epoch=epoch)
    steps = int(np.ceil(num_windows / batch_size))
    assert indices.shape == weights.shape == (steps, batch_size)
    assert indices.dtype == np.int32
    assert weights.dtype == np.float32
    assert sorted(indices.ravel()[:num_windows]) == list(range(num_windows))
    assert (weights.ravel()[:num_windows] == 1).all()
    # What fills the last batch up counts nothing and is a window that exists.
    assert not weights.ravel()[num_windows:].any()
    assert not indices.ravel()[num_windows:].any()


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, batch_size=10):
        return shuffled_batches(200, batch_size, seed=seed, epoch=epoch)[0].ravel().tolist()

    expected = np.random.default_rng([7, 3]).permutation(200).tolist()
    np.random.default_rng().random()
    assert order(7, 3) == order(7, 3, batch_size=8) == expected
    assert expected != list(range(200))
    different = [order(7, 3), order(7, 4), order(8, 3), order(3, 7)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


@given(sizes, sizes, st.integers(0, 200))
def test_streams_continue_and_targets_lie_one_on(batch_size, seq_length, extra):
    length = batch_size * seq_length + 1 + extra
    ids = np.arange(length)  # the id tells the place in the text
    inputs, targets = streams(ids, batch_size, seq_length)
    steps = (length - 1) // (batch_size * seq_length)
    assert inputs.shape == targets.shape == (steps, batch_size, seq_length)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(targets, inputs + 1)
    for row in range(batch_size):
        first = row * steps * seq_length
        np.testing.assert_array_equal(
            inputs[:, row].ravel(), np.arange(first, first + steps * seq_length)
        )
    assert targets.max() < length
    assert length - 1 - inputs.size < batch_size * seq_length
