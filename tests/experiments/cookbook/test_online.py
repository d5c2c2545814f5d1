import functools

import jax
import numpy as np
import pytest

from experiments.cookbook import online
from experiments.cookbook.online import Config


@pytest.mark.slow
def test_rtrl_recalls_what_one_step_cannot(ran):
    result, rows = ran(online, "learning", seeds=1, wait=10, rows=64, steps=2400)
    assert rows["chance"] == 0.25
    assert min(rows["DiagonalLSTM, RTRL"]) > 0.95
    assert min(rows["DiagonalLSTM, backpropagation"]) > 0.9
    assert max(rows["DiagonalLSTM, one step"]) < 0.8
    assert len(result["curves"]["DiagonalLSTM, RTRL"]) == 20


def test_a_stream_asks_for_the_letter_that_was_marked():
    config = Config(wait=3, rows=5)
    places, answers = np.arange(5), np.zeros(5, np.int32)
    read = jax.jit(functools.partial(online.read, config))
    last = np.zeros(5, int)
    asked_rows = set()
    for time in range(20):
        x, marked, asked, answers = map(np.asarray, read(7, time, places, answers))
        assert x.shape == (5, 6)
        assert marked.sum() == asked.sum() == 1  # each row at another place
        assert (x[:, 4] == marked).all()
        assert (x[:, 5] == asked).all()
        assert (x[:, :4].sum(axis=1) == 1 - asked).all()
        last = np.where(marked, x[:, :4].argmax(axis=1), last)
        if time >= 4:  # rows have begun before
            row = int(asked.argmax())
            assert answers[row] == last[row]
            asked_rows.add(row)
    assert asked_rows == set(range(5))
