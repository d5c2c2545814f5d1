import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.data import digits as digits_of
from experiments.tasks import __main__ as tasks
from experiments.tasks import data
from experiments.tasks.__main__ import CELLS, PUBLISHED, TASKS, Config
from rnnjax import Memory, matrix_memory
from rnnjax.cells.step import apply_update

RNG = np.random.default_rng


def test_words_and_what_is_to_be_said_of_each_beginning():
    bits, odd, places = data.parity(RNG(0), 3, 9, 50)
    assert bits.shape == odd.shape == places.shape == (9, 50)
    assert (places.sum(axis=1) == [0, 0, *[50] * 7]).all()
    changes = data.even_pairs(RNG(0), 1, 9, 50)[1]
    places_on_circle = data.cycle(RNG(0), 1, 9, 50)[:2]
    for t in range(1, 10):
        assert (odd[t - 1] == bits[:t].sum(axis=0) % 2).all()
        assert (changes[t - 1] == (bits[1:t] != bits[: t - 1]).sum(axis=0) % 2).all()
        steps = [[0, 1, -1][step] for step in places_on_circle[0][:t, 0]]
        assert places_on_circle[1][t - 1, 0] == sum(steps) % 5


def test_arithmetic_is_python_s():
    symbols, values, places = data.arithmetic(RNG(1), 4, 11, 40)
    assert set(np.flatnonzero(places.all(axis=1))) == {4, 6, 8, 10}
    assert places.sum() == 4 * 40
    for row in range(40):
        word = "".join("01234+-*"[s] for s in symbols[:, row])
        for end in range(0, 11, 2):
            assert values[end, row] == eval(word[: end + 1]) % 5, word


def test_permutations_are_done_one_after_the_other():
    cases = (
        (data.S3, 6, None), (data.A5, 60, data.GENERATORS), (data.S5, 120, data.SWAP_AND_CYCLE),
    )  # fmt: skip
    for group, order, words in cases:
        symbols, answers, places = data.products(group, RNG(7), 15, 40, 500, words)
        assert len({tuple(one) for one in group.tolist()}) == order
        assert (places.sum(axis=1) == [*[0] * 14, *[500] * 26]).all()
        assert set(np.unique(answers)) == set(range(order))
        for row in range(20):
            letters = np.arange(group.shape[1])
            for symbol, answer in zip(symbols[:, row], answers[:, row], strict=True):
                letters = letters[(group if words is None else words)[symbol]]
                assert (group[answer] == letters).all()


def test_several_writes_a_step_are_those_of_a_matrix_memory():
    cell, rng = tasks.DeltaProductCell(8, writes=2), RNG(8)
    x = rng.normal(size=(5, 3, 7, 2, 4)).astype(np.float32)  # the gates, in heads
    q, *writes = np.moveaxis(x, 2, 0)
    keys, values, betas = (np.stack(writes[i::3], 1).reshape(10, 3, 2, 4) for i in range(3))

    @jax.jit
    def both(q, keys, values, betas):
        q, keys = (tasks._unit(jax.nn.silu(one)) for one in (q, keys))
        beta = 2 * jax.nn.sigmoid(betas)
        memory = Memory(q, keys, jax.nn.silu(values), 0 * beta, beta, beta)
        expected, read = matrix_memory(memory)
        carry, ys = cell.initial_carry((3,)), []
        for step in x.reshape(5, 3, 56):
            carry, y = apply_update(cell, {}, step, carry, {})
            ys.append(y)
        made = expected.memory, 2 * tasks._unit(read[1::2]).reshape(5, 3, 8)
        return (carry.memory, jnp.stack(ys)), made

    (memory, ys), expected = both(q.repeat(2, axis=0), keys, values, betas[..., 0])
    np.testing.assert_allclose(memory, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ys, expected[1], rtol=1e-4, atol=1e-4)


def test_letters_are_said_in_their_order_and_keys_ask_for_their_values():
    symbols, said, places = data.selective_copying(RNG(2), 1, 30, 20)
    assert (places.sum(axis=0) == data.LETTERS).all()
    for row in range(20):
        letters = [s for s in symbols[:22, row] if s < data.LETTERS]
        assert letters == said[places[:, row], row].tolist()
    symbols, said, places = data.copying(RNG(2), 1, 1020, 4)
    assert (symbols[:10] == said).all()
    assert (symbols[10:] >= data.LETTERS).all()
    symbols, values, _ = data.recall(RNG(3), 1, 3 * data.PAIRS, 20)
    first, asked = symbols[: 2 * data.PAIRS], symbols[2 * data.PAIRS :]
    for row in range(20):
        known = dict(zip(first[::2, row], first[1::2, row] - 2 * data.PAIRS, strict=True))
        assert [known[key] for key in asked[:, row]] == values[:, row].tolist()
    assert (first[::2] != asked).any()


def test_each_key_asks_once_for_its_own_value():
    symbols, values, places = data.mqar(RNG(8), 1, 64, 30)
    assert symbols.shape == (64, 30)
    assert values.shape == places.shape == (48, 30)
    assert (places.sum(axis=0) == 8).all()
    shown, later = symbols[:16], symbols[16:]
    assert (later[~places] == 2 * data.WORDS).all()
    for row in range(30):
        known = dict(zip(shown[::2, row], shown[1::2, row] - data.WORDS, strict=True))
        assert len(known) == 8
        asked = places[:, row]
        assert sorted(later[asked, row]) == sorted(known)
        assert [known[key] for key in later[asked, row]] == values[asked, row].tolist()


def test_cards_are_asked_as_in_the_games():
    suits, answers, places = data.repeat_previous(RNG(9), 1, 103, 20, k=32)
    assert places.all()
    assert answers.shape == (104 - 32, 20)  # the games divide a return by as many
    for step, answer in enumerate(answers, start=103 - len(answers)):
        assert (answer == suits[step + 1 - 32]).all()
    assert set(np.bincount(suits[:, 0])) == {25, 26}  # two decks but for a card
    symbols, answers, places = data.autoencode(RNG(9), 1, 103, 20)
    assert symbols.shape == (103, 20)
    assert (answers == np.concatenate([symbols[:51], symbols[51:52] - 4])[::-1]).all()
    assert (np.sort(answers, axis=0) == np.repeat(range(4), 13)[:, None]).all()
    assert (symbols[52:] == 8).all()
    assert len(answers) == 52


@pytest.mark.smoke
def test_a_sum_is_right_within_its_bound():
    xs, sums, places = data.adding(RNG(4), 1, 20, 300)
    np.testing.assert_allclose((xs[..., 0] * xs[..., 1]).sum(axis=0), sums[-1], rtol=1e-6)
    halves = xs[..., 1].reshape(2, 10, 300)
    assert (halves.sum(axis=1) == 1).all()  # one number is marked in each half,
    assert halves.any(axis=2).all()  # and each may be
    sums, places = sums[:, :3], places[:, :3]
    off = np.array([0.1, -0.1, 0.2])
    loss, right = jax.jit(tasks.measure)((sums + off)[..., None], sums, places)
    np.testing.assert_allclose(loss, 0.02, rtol=1e-5)
    assert right.tolist()[-1] == [True, True, False]


def test_a_quick_run_fills_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "parity", dataclasses.replace(TASKS["parity"], rows=4))
    # What a GRU learns stands for the other cell, too, which takes as long to compile.
    learn = functools.cache(tasks.learn)
    monkeypatch.setattr(tasks, "learn", lambda config, task, kind: learn(config, task, "GRU"))
    config = Config(("parity",), ("GRU", "sLSTM"), None, True, tmp_path / "run", seeds=2)
    assert tasks.run(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = [(row["name"], row["source"]) for row in result["rows"]]
    published = [(name, by) for name, (_, by) in PUBLISHED.items() if name.startswith("parity: ")]
    assert rows == [("parity: GRU", "here"), ("parity: sLSTM", "here"), *published]
    assert [len(row["score"]) for row in result["rows"][:2]] == [2, 2]
    assert {len(line) for line in result["parity_by_length"].values()} == {24}
    assert (tmp_path / "run" / "parity.png").stat().st_size > 10_000
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.startswith("| cell | parity |\n|---|---|\n| GRU | ")
    monkeypatch.setattr(tasks, "learn", lambda *_: ([0.25], np.zeros(48), 1))
    one = dataclasses.replace(config, tasks=("cycle",), run_dir=tmp_path / "one", seeds=1)
    assert tasks.run(one) == 0


def test_digits_are_read_pixel_by_pixel():
    images, digits, _, _ = digits_of("made")
    xs, answers, places = data.pixels(images, digits, RNG(6), 1, 784, 40)
    assert xs.shape == (784, 40, 1)
    assert answers.shape == places.shape == (1, 40)
    for pixels, digit in zip(np.rint(255 * xs[..., 0]).T, answers[0], strict=True):
        (found,) = np.flatnonzero((images.reshape(300, 784) == pixels).all(axis=1))
        assert digits[found] == digit
    few = data.pixels(images, digits, RNG(6), 1, 24, 40)[0]
    assert (few[[0, -1]] == xs[[0, -1]]).all()


def test_every_task_is_drawn_as_it_says():
    for name, task in TASKS.items():
        for lengths in (task.learned, task.tested or task.learned):
            images = digits_of("made")[:2] if task.draw is data.pixels else ()
            symbols, answers, places = task.draw(*images, RNG(5), *lengths, 2)
            assert symbols.shape[:2] == (lengths[1], 2), name
            assert answers.shape == places.shape == (len(answers), 2), name
            assert places.any(axis=0).all()
            if task.symbols:
                assert symbols.max() < task.symbols
                assert 0 <= answers.min() <= answers.max() < task.answers
        assert set(task.cells) <= set(CELLS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
def test_parity_tells_cells_apart(kind):
    task = dataclasses.replace(TASKS["parity"], epochs=10)
    scores, by_length, _ = tasks.learn(Config(seeds=1), task, kind)
    assert scores[0] == 1 if kind == "sLSTM" else scores[0] < 0.6
    assert by_length[:40].max() == 0
