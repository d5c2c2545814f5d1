import jax
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import rows_of_digits


@pytest.mark.slow
def test_made_digits_are_read_by_rows_and_by_a_cnn(ran, monkeypatch):
    few = {"GRU by rows": (0, rnnjax.GRUCell(32)), "CNN": (1, None),
           "GRU by pixels": (2, rnnjax.GRUCell(8))}  # fmt: skip
    monkeypatch.setattr(rows_of_digits, "NETWORKS", few)
    monkeypatch.setattr(rows_of_digits, "KERNELS", ((3, 3, 1, 4), (3, 3, 4, 8), (3, 3, 8, 48)))
    result, scores = ran(
        rows_of_digits, "wrong", seeds=2, epochs=(25, 12, 1), batch_size=25, learning_rate=0.02
    )
    assert list(scores)[:3] == ["GRU by rows", "CNN", "GRU by pixels, 14 x 14"]
    assert [len(scores[name]) for name in list(scores)[:3]] == [2, 2, 1]
    # By chance 10 %: a digit is one of ten.
    assert min(scores["GRU by rows"]) > 60
    assert min(scores["CNN"]) > 80
    assert scores["TCN by pixels, 28 x 28"] == 99
    gru, cnn = (scores[name][0] / 100 * 60 for name in ("GRU by rows", "CNN"))
    both, no_gru, no_cnn, neither = result["images"].values()
    assert (both + no_cnn, both + no_gru) == pytest.approx((gru, cnn))
    assert both + no_gru + no_cnn + neither == 60


@pytest.mark.parametrize("by", ["rows", "pixels"])
def test_a_network_reads_an_image_from_the_top_line_by_line(monkeypatch, by):
    cell = rnnjax.GRUCell(5)
    monkeypatch.setattr(rows_of_digits, "NETWORKS", {by: (2 * (by == "pixels"), cell)})
    init = jax.jit(rows_of_digits.init, static_argnums=(0, 1))
    params = init(cell, 28 if by == "rows" else 1, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    apply = jax.jit(rows_of_digits.apply, static_argnums=0)
    found = np.asarray(apply(by, params, images.swapaxes(0, 1)))
    head, bias = np.asarray(params["head"]), np.asarray(params["bias"])
    step = jax.jit(lambda carry, x: cell.step(params["body"], carry, x))
    for image, logits in zip(images / 255, found, strict=True):
        carry = cell.initial_carry()
        small = [
            [image[i : i + 2, j : j + 2].mean()] for i in range(0, 28, 2) for j in range(0, 28, 2)
        ]
        for x in image if by == "rows" else small:
            carry, y = step(carry, np.asarray(x, np.float32))
        np.testing.assert_allclose(logits, np.asarray(y) @ head + bias, atol=1e-5)
