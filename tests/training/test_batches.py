"""Rows in batches: shuffled, split, and by the axis of each leaf."""

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.training import minibatches


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
    assert minibatches(rows, 10, axis=1)(0)["ys"].shape == (1, 1, 10)
    with pytest.raises(InvalidInputError, match=r"the shapes \[\(3,\), \(4,\)\] and \[3, 4\]"):
        minibatches({"a": np.ones(3), "b": np.ones(4)}, 2, axis=0)


def test_what_pad_returns_goes_into_minibatches():
    sequences = [np.full((length, 1), length, np.float32) for length in (3, 1, 4, 2)]
    padded = rnnjax.pad(sequences)
    data = {"xs": padded.xs, "lengths": padded.lengths}
    for arrays, axis in ((padded, (1, 0)), (list(padded), [1, 0]), (data, {"xs": 1, "lengths": 0})):
        batches = jax.tree.leaves(minibatches(arrays, 2, axis=axis)(0))
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
    with pytest.raises(InvalidInputError, match="axis"):
        minibatches(data, 2)


def test_tensors_are_rows_too():
    torch = pytest.importorskip("torch")
    rows = torch.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(
        minibatches(rows, 2, axis=0)(0), minibatches(rows.numpy(), 2, axis=0)(0)
    )


@pytest.mark.parametrize(
    "given",
    [{"batch_size": 2.0}, {"batch_size": 0}, {"batch_size": 5}, {"seed": -1}, {"axis": -1},
     {"arrays": [1, 2, 3]}, {"arrays": {}}],
)  # fmt: skip
def test_minibatches_of_odd_sizes(given):
    with pytest.raises(InvalidInputError):
        minibatches(**{"arrays": np.ones((4, 3)), "batch_size": 2, "axis": 0, **given})


# As keras.src.trainers.data_adapters.array_slicing.train_validation_split has them (3.15).
@pytest.mark.parametrize(("fraction", "first"), [(0.25, 9), (0.5, 6), (0.1, 10)])
def test_a_split_is_that_of_keras(fraction, first):
    """The last rows are for validation, along each leaf's axis, in an order of every epoch's."""
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 12))
    xs = np.arange(12) + 100 * np.ones((3, 1), int)
    data = {"xs": xs, "keys": jax.random.wrap_key_data(keys)}
    train, valid = minibatches(data, 1, axis={"xs": 1, "keys": 0}, seed=3).split(fraction)
    for part, rows in ((train, range(first)), (valid, range(first, 12))):
        found, drawn = part(2), part(2)["xs"][:, 0, 0] - 100
        assert sorted(drawn) == list(rows)
        assert np.all(jax.random.key_data(found["keys"][:, 0]) == keys[drawn])
        assert part.seed == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.05, 0.95, 3, "0.2", None])
def test_a_split_leaves_a_batch_on_both_sides(fraction):
    with pytest.raises(InvalidInputError, match="fraction must leave a batch of 2 of the 10 rows"):
        minibatches(np.ones(10), 2, axis=0).split(fraction)
