"""Windows, shuffled batches, and streams that continue."""

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
    ids = np.random.default_rng(length).integers(0, 99, length, [np.int32, np.int64][extra % 2])
    inputs, targets = windows(ids, seq_length)
    covered = inputs.size
    assert inputs.shape == targets.shape == ((length - 1) // seq_length, seq_length)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(inputs.ravel(), ids[:covered])
    np.testing.assert_array_equal(targets.ravel(), ids[1 : covered + 1])
    assert length - 1 - covered < seq_length  # no further window would have fitted
    assert not any(map(np.may_share_memory, (inputs, inputs, targets), (targets, ids, ids)))


@given(sizes, sizes, st.integers(0, 200))
def test_streams_continue_and_targets_lie_one_on(batch_size, seq_length, extra):
    length = batch_size * seq_length + 1 + extra
    ids = np.arange(length, dtype=[np.int32, np.int64][extra % 2])  # the place in the text
    inputs, targets = streams(ids, batch_size, seq_length)
    steps = (length - 1) // (batch_size * seq_length)
    assert inputs.shape == targets.shape == (steps, batch_size, seq_length)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(targets, inputs + 1)
    rows = np.arange(inputs.size).reshape(batch_size, steps, seq_length)
    np.testing.assert_array_equal(inputs, rows.swapaxes(0, 1))
    starts = stream_starts(length, batch_size, seq_length)
    np.testing.assert_array_equal(starts, inputs[..., 0])
    assert starts.dtype == np.int32
    assert not any(map(np.may_share_memory, (inputs, inputs, targets), (targets, ids, ids)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows(range(100), 100), "seq_length 100 needs at least 101 .* but 100 came"),
        (lambda: windows([], 1), "needs at least 2 .* but 0 came"),
        (lambda: window_starts(2**31, 1), r"must have fewer than 2\^31 ids, but has 2147483648"),
        (lambda: windows(range(9), 0), "seq_length must be a positive integer, but is 0"),
        (lambda: windows([[1, 2, 3]], 1), "one dimension"),
        (lambda: windows([1.0, 2.0, 3.0], 1), "integers"),
        (lambda: streams(range(12), 3, 4), "at least 13 ids .* but 12 came"),
        (lambda: streams(range(9), 0, 4), "batch_size must be a positive integer, but is 0"),
        (lambda: streams(range(9), 2, 0), "seq_length must be a positive integer, but is 0"),
        (lambda: shuffled_batches(0, 4, seed=0, epoch=0), "num_windows must be a positive integer"),
        (lambda: shuffled_batches(4, 0, seed=0, epoch=0), "batch_size must be a positive integer"),
        (lambda: shuffled_batches(4, 2, seed=-1, epoch=0), "seed must be an integer from 0 up"),
        (lambda: window_starts(8, 2, stride=1.5), r"stride must be .* integer, but is 1\.5"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


@given(st.integers(1, 60), sizes, st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_holds_every_window_once(num_windows, batch_size, seed, epoch):
    indices, weights = shuffled_batches(num_windows, batch_size, seed=seed, epoch=epoch)
    steps = int(np.ceil(num_windows / batch_size))
    assert indices.shape == weights.shape == (steps, batch_size)
    assert indices.dtype == np.int32
    assert weights.dtype == np.float32
    # An order of its own for seed and epoch; what fills the last batch up is a window that exists.
    order = np.random.default_rng([seed, epoch]).permutation(num_windows)
    filling = steps * batch_size - num_windows
    assert indices.ravel().tolist() == [*order, *[0] * filling]
    assert weights.ravel().tolist() == [1] * num_windows + [0] * filling
