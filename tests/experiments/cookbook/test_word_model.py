import collections
import itertools

import numpy as np
import pytest

from experiments.cookbook import word_model
from experiments.cookbook.word_model import UNKNOWN, Config, kneser_ney


@pytest.fixture
def far(monkeypatch):
    """Sentences whose last word is their first, four words before: too far for a trigram."""
    rng = np.random.default_rng(0)
    people = ["king", "queen", "duke", "fool"]
    text = " ".join(f"{who} went to the {who} ." for who in rng.choice(people, 400))
    monkeypatch.setattr(word_model.data, "text", lambda name, _: text)
    monkeypatch.setattr(word_model, "TEXTS", {"far": (2, 16, 4, 0.05)})
    monkeypatch.setattr(word_model, "STEPS", 12)
    monkeypatch.setattr(word_model, "UNITS", 32)
    monkeypatch.setattr(word_model, "LEARNING_RATE", 0.02)


@pytest.mark.usefixtures("far")
@pytest.mark.slow
def test_the_lstm_remembers_what_is_too_far_for_the_trigram(ran):
    _, scores = ran(word_model, "seen", seeds=2)
    scores = {name.removeprefix("far: "): score for name, score in scores.items()}
    # Two of six words are free to one of four, or the first of them alone.
    assert scores["trigram"] == pytest.approx(4 ** (2 / 6), rel=0.03)
    assert scores["single words"] > scores["bigram"] > scores["trigram"] - 0.01
    assert max(scores["LSTM"]) < 4 ** (1.6 / 6)
    assert max(scores["LSTM"]) < min(scores["mean of trigram and LSTM"]) < scores["trigram"]


def naive(words, known, size, context, word):
    """The equations of Kneser & Ney as they stand, for a trigram."""
    text = words[:known]
    grams = [collections.Counter(zip(*(text[i:] for i in range(n)), strict=False)) for n in (2, 3)]
    pairs, triples = (dict(counts) for counts in grams)
    # Behind how many words: of pairs those before them, and of words likewise.
    of_pair = {p: len({t for t in triples if t[1:] == p}) for p in pairs}
    of_word = {w: len({p for p in of_pair if of_pair[p] and p[1] == w}) for w in text}

    def discount(counts):
        once, twice = (sum(c == n for c in counts) for n in (1, 2))
        return once / (once + 2 * twice)

    def mixed(counts, lower):  # by the last word, of one context
        found = discount(counts[1])
        total = sum(counts[0].values())
        if not total:
            return lower
        share = found * sum(c > 0 for c in counts[0].values()) / total
        return max(counts[0].get(word, 0) - found, 0) / total + share * lower

    one = mixed((of_word, of_word.values()), 1 / size)
    behind = {p[1]: c for p, c in of_pair.items() if p[0] == context[1]}
    two = mixed((behind, [c for c in of_pair.values() if c]), one)
    behind = {t[2]: c for t, c in triples.items() if t[:2] == context}
    return mixed((behind, triples.values()), two)


@pytest.mark.smoke
def test_kneser_ney_probabilities():
    rng = np.random.default_rng(0)
    text = [*(rng.integers(0, 4, 150) ** 2 % 7).tolist(), 7]
    size = 9  # of which 3, 5, 6 and 8 are never there
    for context in [(0, 1), (1, 4), (2, 2), (3, 1), (4, 8), (8, 8), (7, 0)]:
        found = [np.exp(kneser_ney([*text, *context, w], len(text), size)[-1]) for w in range(size)]
        assert sum(found) == pytest.approx(1)
        assert min(found) > 0
        expected = [naive(text, len(text), size, context, word) for word in range(size)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    logs = kneser_ney([*text, 0, 1, 4], len(text), size)
    np.testing.assert_allclose(logs[-1], np.log(naive(text, len(text), size, (0, 1), 4)))


def test_words_and_parts(monkeypatch):
    text = "The licence\n*** START OF IT ***\n" + "O'er here, we're\nwell.\n\n" * 40
    text += "late " * 5 + "\n\n*** END OF IT ***\nthe licence"  # often, but in the test part
    monkeypatch.setattr(word_model.data, "text", lambda name, _: text)
    words, known, valid, size = word_model.read("tinyshakespeare", Config())
    assert words[:8] == [1, 2, 3, 4, 5, 6, 7, 1]  # o'er here , we're well . and a new paragraph
    assert words[-6:] == [7, *[0] * 5]
    assert size == 8
    assert (known, valid) == (len(words) * 9 // 10, len(words) // 20)


@pytest.mark.usefixtures("far")
def test_words_are_told_from_those_before_them_alone(monkeypatch):
    monkeypatch.setattr(word_model, "TEXTS", {"far": (2, 1, 4, 0.1)})
    words, known, valid, size = word_model.read("far", Config())
    logs = word_model.learn(Config(), "far", 0)
    assert logs.shape == (len(words) - known,)
    assert -logs.mean() < np.log(size)
    changed = [*words]
    changed[known + valid + 5] = UNKNOWN
    monkeypatch.setattr(word_model, "read", lambda *_: (changed, known, valid, size))
    others = word_model.learn(Config(), "far", 0)
    differs = np.flatnonzero(np.abs(logs - others) > 1e-6)
    assert differs[0] == valid + 5
    assert differs[-1] > valid + 10  # by the state, which is carried on
    assert list(itertools.islice(differs, 2)) == [valid + 5, valid + 6]


def test_words_by_how_often_those_before_them_were_seen(ran, pictures, monkeypatch):
    text = " ".join(np.random.default_rng(0).choice(list("aabc"), 900))
    monkeypatch.setattr(word_model.data, "text", lambda *_: text)
    monkeypatch.setattr(word_model, "TEXTS", {"few": (1, 1, 1, 0)})
    monkeypatch.setattr(word_model, "learn", lambda _, name, n: np.full(90, -np.log(2 + n)))
    monkeypatch.setattr(word_model.data, "MADE", "elsewhere")
    result, scores = ran(word_model)
    words, known, valid, size = word_model.read("few", Config())
    logs = kneser_ney(words, known, size)[valid:]
    np.testing.assert_allclose(scores["few: LSTM"], [2, 3])
    accepted = [(one["score"], one["bound"]) for one in result["accepts"]]
    np.testing.assert_allclose(accepted, [(2.5, np.exp(-logs.mean()))])
    seen = [sum(words[k : k + 2] == words[i - 2 : i] for k in range(known - 1))
            for i in range(known + valid, 900)]  # fmt: skip
    eighths = np.array_split(logs[np.argsort(seen, kind="stable")], 8)
    expected = [[np.exp(-each.mean()) for each in eighths], [2] * 8]
    np.testing.assert_allclose([*pictures["seen"].values()], expected)
