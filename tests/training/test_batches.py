"""Rows to train with and to validate with."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import numpy as np
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import minibatches


@pytest.mark.parametrize(("fraction", "first"), [(0.25, 9), (0.5, 6), (0.1, 10)])
def test_a_split_is_that_of_keras(fraction: float, first: int) -> None:
    """The last rows are for validation, along each leaf's axis, in an order of every epoch's."""
    data = {"xs": np.arange(12) + 100 * np.ones((3, 1), int), "keys": jax.random.split(
        jax.random.key(0), 12)}  # fmt: skip
    train, valid = minibatches(data, 1, axis={"xs": 1, "keys": 0}, seed=3).split(fraction)
    for part, rows in ((train, range(first)), (valid, range(first, 12))):
        xs, keys = part(2)["xs"], part(2)["keys"]
        assert sorted(xs[:, 0, 0]) == [100 + row for row in rows]
        drawn = xs[:, 0, 0] - 100
        assert np.all(jax.random.key_data(keys[:, 0]) == jax.random.key_data(data["keys"])[drawn])
        assert part.seed == 3
    keras_src = pytest.importorskip("keras.src.trainers.data_adapters.array_slicing")
    (theirs,), (held,) = keras_src.train_validation_split((np.arange(12),), fraction)
    assert (len(theirs), held.tolist()) == (first, list(range(first, 12)))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.05, 0.95, 3, "0.2", None])
def test_a_split_leaves_a_batch_on_both_sides(fraction: object) -> None:
    with pytest.raises(InvalidInputError, match="fraction must leave a batch of 2 of the 10 rows"):
        minibatches(np.ones(10), 2, axis=0).split(fraction)  # type: ignore[arg-type]
