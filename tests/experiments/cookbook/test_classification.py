from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.cookbook import classification
from experiments.cookbook.classification import CELLS, SETTINGS, Config, prepare
from experiments.shared import data

CONFIG = Config(data="made", seeds=2)
TEXTS = [list("abba"), list("aab"), list("bbacab"), list("ad"), list("badderee"), list("d")]


@pytest.fixture
def small(monkeypatch):
    """Few numbers, small batches, and more updates than so little data would have."""
    for name, (kinds, steps, *_) in SETTINGS.items():
        dropouts = classification.rnnjax.Dropout(0.1), classification.rnnjax.Dropout(0.1)
        monkeypatch.setitem(SETTINGS, name, (kinds, steps, 12, 12, 25, 18, 0.02, *dropouts))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_made_questions_and_names_are_classified(ran, monkeypatch):
    for name in ("SimpleRNN", "LSTM"):  # for the time
        monkeypatch.delitem(CELLS, name)
    _, scores = ran(classification, *SETTINGS, seeds=2)
    networks = ["bag of words and pairs", "CNN", *CELLS]
    for name in networks:
        assert np.mean(scores[f"questions: {name}"]) > 80, name  # by chance 17
    for name in networks[1:]:  # of four kinds of ends; by chance 25
        assert np.mean(scores[f"names: {name}"]) > 75, name


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["CNN", *CELLS])
@pytest.mark.usefixtures("small")
def test_what_is_behind_a_text_changes_nothing(name, random_like):
    task = prepare(CONFIG, "names", TEXTS, [0, 1, 2, 0, 1, 2], 6)
    task = task._replace(ids=np.asarray(task.ids), labels=np.asarray(task.labels))
    # Large ones, so that what is read makes a difference.
    params = random_like(lambda: classification.init(name, task, jax.random.key(0)), 0)
    apply = jax.jit(
        lambda ids, rows: classification.apply(name, task._replace(ids=ids), params, rows)
    )
    rows, ids = np.arange(6), task.ids
    logits = np.asarray(apply(ids, rows))
    assert logits.shape == (6, 3)
    behind = np.arange(14)[:, None] >= task.lengths
    filled = apply(np.where(behind, 1, ids), rows)
    np.testing.assert_allclose(logits, filled, rtol=1e-5, atol=1e-6)
    turned = np.asarray(apply(np.concatenate([ids[5::-1], ids[6:]]), rows))
    assert np.abs(turned[2] - logits[2]).max() > 1e-3  # and the order counts


def test_texts_as_numbers_and_their_parts():
    task = prepare(Config(seeds=3), "names", TEXTS[:4] * 5 + TEXTS[4:], [0] * 22, 20)
    assert task.ids[:6, [0, 2]].T.tolist() == [[1, 2, 2, 1, 0, 0], [2, 2, 1, 3, 1, 2]]
    # Of the test part, "e" and "r" are unknown.
    assert task.ids[:6, 20].tolist() == [2, 1, 4, 4, 0, 0]
    assert task.lengths.tolist()[-3:] == [2, 8, 1]
    assert task.test.tolist() == [[20] * 3, [21] * 3]
    for train, held_out in zip(task.train.T, task.held_out.T, strict=True):
        assert sorted([*train, *held_out]) == list(range(20))
    assert len({tuple(held_out) for held_out in task.held_out.T}) > 1


def test_a_name_is_in_one_part_alone(monkeypatch):
    names, languages = data.names("made")
    many = names + names[:50], np.concatenate([languages, languages[:50]])
    monkeypatch.setattr(classification.data, "names", lambda _: many)
    questions, task = classification.tasks(CONFIG)
    assert questions.test[0, 0] == 60  # those that are the test part of TREC
    assert task.ids.shape[1] == len(set(zip(names, languages.tolist(), strict=True)))
    train, test = (task.ids[:, rows[:, 0]].T.tolist() for rows in (task.train, task.test))
    known = [row for row in test if 0 not in row[:6]]
    assert known
    assert not {tuple(row) for row in known} & {tuple(row) for row in train}


def test_every_seed_has_a_network_of_its_own(monkeypatch):
    task = prepare(Config(seeds=3), "names", TEXTS, [0, 1, 2, 0, 1, 2], 4)
    for name, stub in {
        "init": lambda name, task, key: jax.random.normal(key, (50,)),
        "apply": lambda name, task, params, rows: params + 0 * rows[:, None],
        "fit": lambda loss, params, *_, **more: SimpleNamespace(params=params),
    }.items():
        monkeypatch.setattr(classification, name, stub)
    found = classification.learn(Config(seeds=3), task, "LSTM")
    assert [len(set(part)) for part in (*found, found[:, 0])] == [1, 1, 1, 3]
