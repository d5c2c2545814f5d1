"""Packing: nothing is lost or mixed up, and packed runs are those of each sequence alone."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_table import refusals

import rnnjax
from rnnjax import Bidirectional, SimpleRNNCell
from rnnjax.packing import Packed, pack, pad, unpack

FEATURES = 2
LENGTHS = [4, 1, 2, 4, 2, 1, 1]  # 15 steps in rows of 6: some rows full, and one not
CELL = SimpleRNNCell(3)
LAYER = Bidirectional(CELL)


def vectors(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, FEATURES), np.float32) for length in lengths]


def laid_out(packed: Packed) -> np.ndarray:
    """Which sequence lies at each step of each row, by rows and starts; -1 where there is none."""
    owner = np.full(packed.resets.shape, -1)
    for i, (row, start, length) in enumerate(
        zip(packed.rows, packed.starts, packed.lengths, strict=True)
    ):
        place = owner[start : start + length, row]
        assert len(place) == length, "a sequence runs over the end of its row"
        assert np.all(place == -1), "two sequences overlap"
        place[:] = i
    return owner


# ---- the layout


@hypothesis.settings(deadline=None)
@hypothesis.given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    room=st.integers(0, 6),
    extra=st.integers(0, 2),
    integers=st.booleans(),
)
def test_every_layout(lengths: list[int], room, extra, integers):
    row_length = max(lengths) + room
    if integers:
        ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
        sequences = np.split(ids, np.cumsum(lengths)[:-1])
    else:
        sequences = vectors(lengths)
    needed = pack(sequences, row_length).resets.shape[1]
    packed = pack(sequences, row_length, num_rows=needed + extra)
    owner = laid_out(packed)
    rows = owner.shape[1]
    assert owner.shape == packed.mask.shape == packed.xs.shape[:2] == (row_length, needed + extra)

    # Not fewer rows than there are steps for, nor more than a row for each; and as each sequence
    # went into a row that was begun wherever one had room, no two rows would fit in one.
    filled = np.sort(packed.mask.sum(axis=0))[::-1][:needed]
    assert sum(lengths) / row_length <= needed <= len(lengths)
    assert np.all(filled > 0)
    assert needed == 1 or filled[-1] + filled[-2] > row_length

    # The mask, the resets and the zeros follow from who lies where.
    np.testing.assert_array_equal(packed.mask, owner >= 0)
    before = np.concatenate([np.full((1, rows), -2), owner[:-1]])
    np.testing.assert_array_equal(packed.resets, owner != before)
    assert np.all(packed.xs[~packed.mask] == 0)

    assert packed.lengths.tolist() == lengths
    assert packed.xs.dtype == sequences[0].dtype
    for back, sequence in zip(unpack(packed, packed.xs), sequences, strict=True):
        np.testing.assert_array_equal(back, sequence)
    last = packed.last(packed.xs)
    np.testing.assert_array_equal(last, np.stack([sequence[-1] for sequence in sequences]))
    targets = [np.arange(length, dtype=np.int32) - 50 for length in lengths]
    laid = packed.lay(targets)
    assert laid.shape == owner.shape
    assert laid.dtype == np.int32
    for back, target in zip(unpack(packed, laid), targets, strict=True):
        np.testing.assert_array_equal(back, target)


def test_the_longest_go_first_and_where_they_fit_best():
    packed = pack([np.zeros(n) for n in (2, 6, 3, 5, 1, 2)], row_length=np.int64(8))
    # 6; 5; 3 beside the 5, which leaves it none; 2 beside the 6; then nothing fits but a new row.
    assert packed.rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert packed.starts.tolist() == [6, 0, 5, 0, 2, 0]


ONE, TWO = [np.zeros(9)], [np.zeros(2), np.zeros((2, 1))]
PACKED = pack(vectors([2, 3]), 4)


test_what_is_wrong_is_said = refusals(
    [
        (lambda: pack([], 4), "at least one sequence, but none came"),
        (lambda: pack(None, 4), "several arrays .*, but is None"),
        (lambda: pack([ONE[0][:2], ONE[0][:0]], 4), r"sequence 1 has 0 steps.* 1 to row_leng"),
        (lambda: pack([ONE[0][:2], ONE[0][:5]], 4), r"sequence 1 has 5 steps.*take longer rows"),
        (lambda: pack([np.zeros((2, 3)), TWO[1]], 4), r"alike.*\(1,\).*\(3,\)"),
        (lambda: pack([np.zeros(2), np.zeros(2, int)], 4), r"alike.*float64.*int64"),
        (lambda: pack([np.zeros(2), 3.0], 4), r"arrays \(length, ...\)"),
        (lambda: pack(ONE, 0), "row_length must be a positive integer, but is 0"),
        (lambda: pack(ONE, 9, num_rows=2.5), "num_rows must be a positive integer, but is 2.5"),
        (lambda: pack(ONE * 3, 9, num_rows=2), "need 3 rows of 9 steps, but num_rows is 2"),
        (lambda: PACKED.lay(vectors([2])), "the 2 lengths that were packed.*have 1"),
        (lambda: PACKED.lay(vectors([3, 2])), "give them in the same order"),
        (lambda: PACKED.lay([]), "at least one sequence"),
        (lambda: unpack(PACKED, np.zeros((2, 4, 5))), r"\(4, 2\), but is float64 \(2, 4, 5\); t"),
        (lambda: PACKED.last(np.zeros((2, 4, 5))), r"\(4, 2\), but is float64 \(2, 4, 5\); time"),
        (lambda: unpack(PACKED, [[1.0]]), "is a list of 1; time comes first"),
        (lambda: unpack((1, 2), TWO[0]), "packed must be what pack returned, but is a tuple of 2"),
        (lambda: pack([[[1], [1, 2]]], 3), "but one has rows of several lengths; each of its"),
        (lambda: jax.jit(lambda p: unpack(p, p.xs))(PACKED), "traced .*packed.mask or packed.last"),
        (lambda: jax.jit(lambda x: PACKED.lay([x[:2], x]))(TWO[1]), "sequences must be known"),
        (lambda: jax.jit(lambda x: pack([x], 4))(TWO[1]), "sequences must be known"),
        (lambda: pad([]), "at least one sequence"),
        (lambda: pad(ONE, sizes=[4, 8]), r"longest .* has 9 steps, but the sizes are \[4, 8\]"),
        (lambda: pad(ONE, sizes=[]), r"the sizes are \[\]"),
        (lambda: pad(ONE, sizes=[4.0, 16]), r"several positive integers, .*, but are \[4.0, 16\]"),
        (lambda: pad(ONE, sizes=16), r"several positive integers, as in \(16, 64\), but are 16"),
        (lambda: pad([np.array(["a"])]), "must hold numbers, but hold <U1"),
        (lambda: pad([{"a": [1]}, {"a": [1], "b": [2]}]), r"all have the names \['a', 'b'\]"),
        (lambda: pad([{"a": [1], "b": [1, 2]}]), "and each one length"),
    ]
)


# ---- runs


@pytest.fixture(scope="module")
def draw(random_like):
    return lambda layer: random_like(lambda: layer.init(jax.random.key(0), FEATURES), 1)


def test_packed_and_padded_runs_are_those_of_each_sequence_alone(draw, assert_close):
    params, sequences = draw(LAYER), vectors(LENGTHS)
    packed, (xs, lengths) = pack(sequences, 6, num_rows=4), pad(sequences, sizes=iter((2, 9, 6)))
    assert (xs.shape, xs.dtype) == ((6, len(LENGTHS), FEATURES), np.float32)
    assert lengths.tolist() == LENGTHS
    ys = np.asarray(rnnjax.unroll(LAYER, params, packed.xs, resets=packed.resets)[1])
    outputs = unpack(packed, ys)
    carry, padded = jax.device_get(rnnjax.unroll(LAYER, params, xs, lengths=lengths))
    for row, sequence in enumerate(sequences):
        last, alone = rnnjax.unroll(LAYER, params, sequence)
        of_row = jax.tree.map(lambda leaf, row=row: leaf[row], carry)
        found = outputs[row], padded[: len(sequence), row], of_row
        assert_close(found, (alone, alone, last), 1e-5)
    np.testing.assert_array_equal(packed.last(ys), np.stack([out[-1] for out in outputs]))


def test_ids_and_amounts_are_padded_together():
    rows = [{"ids": np.arange(n), "amounts": np.ones((n, 2), np.float32)} for n in (3, 9)]
    xs, lengths = pad(rows, sizes=iter((9, 16)))
    assert jax.tree.map(np.shape, xs) == {"ids": (9, 2), "amounts": (9, 2, 2)}
    assert xs["ids"][:4, 0].tolist() == [0, 1, 2, 0]
    assert lengths.tolist() == [3, 9]


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_the_padded_run(reverse, draw, assert_close):
    """The loss is laid out as the sequences are; one direction alone, and both."""
    layer, sequences = (CELL if reverse else LAYER), vectors(LENGTHS)
    packed, (padded, lengths) = pack(sequences, 6), pad(sequences, sizes=(4,))
    each = [np.cos(np.arange(n * 6, dtype="f")).reshape(n, 6) for n in LENGTHS]
    each = [weights[:, : layer.output_size] for weights in each]

    def loss(params, xs, weights, **marks):
        _, ys = rnnjax.unroll(layer, params, xs, reverse=reverse, **marks)
        return jnp.where(weights != 0, weights * jnp.sin(3 * ys), 0).sum()

    by_both = jax.jit(jax.grad(loss, (0, 1)))
    params = draw(layer)
    actual, d_packed = by_both(params, packed.xs, packed.lay(each), resets=packed.resets)
    expected, d_padded = by_both(params, padded, pad(each, sizes=(4,))[0], lengths=lengths)
    assert_close(actual, expected, 1e-5)
    d_padded = [d_padded[:n, i] for i, n in enumerate(LENGTHS)]
    assert_close(unpack(packed, np.asarray(d_packed)), d_padded, 1e-5)


def test_packed_is_an_argument_under_jit(draw):
    """Batches of as many rows and sequences compile once; losses are weighted by the mask."""
    params, traces = draw(CELL), []

    @jax.jit
    def loss(params, packed: Packed, targets):
        traces.append(packed)
        _, ys = rnnjax.unroll(CELL, params, packed.xs, resets=packed.resets)
        each = jnp.square(ys[..., 0] - targets)
        loss = jnp.where(packed.mask, each, 0).sum() / packed.mask.sum()
        return loss, packed.last(ys)

    for lengths in (LENGTHS, LENGTHS[::-1], [4, 4, 4, 4, 1, 1, 2]):
        sequences = vectors(lengths, seed=2)
        targets = [sequence[:, 1] for sequence in sequences]
        packed = pack(sequences, 6, num_rows=4)
        actual, last = loss(params, packed, packed.lay(targets))
        _, ys = rnnjax.unroll(CELL, params, packed.xs, resets=packed.resets)
        outputs = unpack(packed, np.asarray(ys))
        np.testing.assert_allclose(last, np.stack([output[-1] for output in outputs]), atol=1e-6)
        expected = (np.concatenate(outputs)[:, 0] - np.concatenate(targets)) ** 2
        np.testing.assert_allclose(actual, expected.mean(), rtol=1e-5)
    assert len(traces) == 1


def test_what_is_packed_outside_of_jit_can_be_taken_apart_inside():
    parts = jax.jit(lambda ys: unpack(PACKED, ys))(PACKED.xs)
    assert [len(part) for part in parts] == [2, 3]


def test_sixty_lengths_are_six_programs(draw, compilations):
    cell = SimpleRNNCell(7)  # no other test has compiled it
    params, shapes = draw(cell), []
    before = len(compilations)
    for n in range(61):
        xs, lengths = pad([np.zeros((n, FEATURES))])
        carry, _ = rnnjax.unroll(cell, params, xs, lengths=lengths)
        assert carry.hidden.shape == (1, 7)
        shapes.append(xs.shape)
    assert sorted(set(shapes)) == [(8, 1, 2), (16, 1, 2), (32, 1, 2), (64, 1, 2)]
    assert all(n <= shape[0] <= max(8, 2 * n - 2) for n, shape in enumerate(shapes))
    assert 4 <= len(compilations) - before <= 6


def test_a_size_of_one_step_is_a_size():
    assert pad([np.ones((1, 2))], sizes=[1]).xs.shape == (1, 1, 2)
