"""Tags, sessions, engines, heart beats, dates and a sweep: what is made, and what is computed."""

import datetime
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import (
    anomalies,
    many_models,
    recommendation,
    remaining_life,
    seq2seq,
    tagging,
)  # fmt: skip


@pytest.mark.smoke
def test_the_crf_is_a_distribution_over_all_taggings():
    """Beside all 7 ** 3 taggings of a sentence, one step of which is padding."""
    rng = np.random.default_rng(0)
    count = len(tagging.TAGS)
    scores = rng.normal(size=(4, 1, count)).astype(np.float32)
    pairs = rng.normal(size=(count,) * 2).astype(np.float32)
    valid = np.array([True, True, True, False])[:, None]
    every = np.array([(*tags, 0) for tags in itertools.product(range(count), repeat=3)]).T
    spread = [np.broadcast_to(x, (4, every.shape[1], *x.shape[2:])) for x in (scores, valid)]
    logs = np.asarray(jax.jit(tagging.log_likelihood)(spread[0], pairs, every, spread[1]))
    assert np.log(np.exp(logs).sum()) == pytest.approx(0, abs=1e-5)
    best = np.asarray(jax.jit(tagging.best)(scores, pairs, valid))
    assert best[:3, 0].tolist() == every[:3, logs.argmax()].tolist()


def test_names_are_found_whole_or_not_at_all():
    tags = [[tagging.TAGS.index(tag) for tag in line.split()] for line in (
        "B-PER I-PER O B-LOC B-LOC", "B-PER O O B-LOC B-LOC", "B-PER I-LOC O I-PER O",
    )]  # fmt: skip
    right, shorter, broken = (np.array(line)[:, None] for line in tags)
    assert tagging.names_in(tags[0]) == {(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")}
    assert tagging.names_in(tags[2]) == {(0, 1, "PER")}
    assert tagging.f1(right, right, [5]) == 100
    assert tagging.f1(shorter, right, [5]) == pytest.approx(100 * 2 / 3)
    assert tagging.f1(broken, right, [5]) == 0
    assert tagging.f1(shorter, right, [4]) == 50  # what lies behind the end counts for nothing


def test_names_are_found_whatever_the_kinds_are_called(monkeypatch):
    """As in tags of your own: long ones, with dots and signs between."""
    tags = ["O", "B-to", "I-to", "B-from.city-name", "I-from.city-name"]
    monkeypatch.setattr(tagging, "TAGS", tags)
    expected = {(0, 2, "from.city-name"), (3, 4, "to"), (4, 6, "to")}
    assert tagging.names_in([3, 4, 0, 1, 1, 2, 4]) == expected


def test_each_tag_of_a_made_sentence_goes_with_its_word():
    made = jax.tree.map(np.asarray, tagging.sentences(0, 200))
    names = {tagging.WORDS.index(name) for name in tagging.NAMES.split()}
    for words, tags, length in zip(made["words"].T, made["tags"].T, made["lengths"], strict=True):
        assert [int(w) in names for w in words[:length]] == [int(t) > 0 for t in tags[:length]]
        assert not words[length:].any()


@pytest.mark.smoke
def test_a_lane_is_reset_where_a_session_begins():
    made = recommendation.sessions(0, 400)
    window = recommendation.lanes(made)
    steps = window.inputs["items"].reshape(-1, recommendation.LANES).T.ravel()
    follow = window.targets.reshape(-1, recommendation.LANES).T.ravel()
    begins = window.inputs["resets"].reshape(-1, recommendation.LANES).T.ravel()
    assert steps.size > 2000
    assert (steps[begins] // recommendation.EACH < recommendation.INTENTS).all()
    # Behind an item is the next of its session; the topic of the next step is that one's.
    inside = ~begins[1:] & (np.arange(1, steps.size) % (steps.size // recommendation.LANES) > 0)
    assert (follow[:-1][inside] == steps[1:][inside]).all()


def test_places_and_measures_of_a_ranking():
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert recommendation.places(scores, np.array([2, 2])).tolist() == [2, 3]
    found = recommendation.measures(np.array([1, 2, 21, 40]))
    assert found == {"recall": 50, "MRR": pytest.approx(100 * 1.5 / 4)}


@pytest.mark.smoke
def test_an_engine_runs_until_nothing_is_left():
    seen, left = remaining_life.histories(0, 20)
    assert len({len(one) for one in seen}) > 10
    for one, there in zip(seen, left, strict=True):
        assert one.shape == (len(there), remaining_life.SENSORS + remaining_life.LOADS)
        assert there[-1] == 0 < there[0] <= remaining_life.CAP
        assert set(np.diff(there)) <= {-1, 0}
        assert (one[:, remaining_life.SENSORS :].sum(axis=1) == 1).all()
    changed = seen[0] + np.arange(len(seen[0]))[:, None]
    first = remaining_life.features(changed) - remaining_life.features(seen[0])
    np.testing.assert_allclose(first[:-2].max() - first[:-2].min(), 20, rtol=1e-4)
    assert remaining_life.features(seen[0])[-2] == len(seen[0])  # a network can count, too


@pytest.mark.smoke
@pytest.mark.parametrize("kind", anomalies.KINDS)
def test_an_anomaly_is_one_beat_or_one_lead(kind):
    normal, odd = (anomalies.beats(np.random.default_rng(3), 1, k)[:, 0] for k in (None, kind))
    apart = np.abs(odd - normal).max(axis=0) > 0.15
    least = {"slow wave": 1, "swapped leads": 2}.get(kind, 3)
    assert apart.sum() == least
    assert np.abs(odd).max() < 1.3 * np.abs(normal).max()


def test_dates_are_written_in_each_form_and_read_again():
    texts, right = seq2seq.dates(0, 300)
    found = set()
    for text, iso in zip(texts, right, strict=True):
        day = datetime.date.fromisoformat(iso)
        forms = {form for form in seq2seq.FORMS if f"{day:{form}}".lower() == text}
        assert forms
        found |= forms
    assert found == set(seq2seq.FORMS)
    numbers, lengths = seq2seq.numbered(texts, seq2seq.READ)
    again = "".join(seq2seq.CHARACTERS[i] for i in np.asarray(numbers)[: lengths[0], 0])
    assert again == texts[0]


@pytest.mark.smoke
def test_a_wider_beam_finds_what_is_at_least_as_probable():
    """By the loss that is trained; a beam of one is the greedy choice, step by step."""
    model = seq2seq.Model(6)
    text, lengths = map(np.asarray, seq2seq.numbered(["3 mar 1998"], seq2seq.READ))

    @jax.jit
    def by_each(key):
        params = jax.tree.map(lambda x: 3 * x, model.init(key))
        written = [model.write(params, text[:, 0], lengths[0], beam)[0] for beam in (1, 3)]
        batches = ({"text": text, "iso": one[:, None], "lengths": lengths} for one in written)
        losses = [model.loss(params, batch) for batch in batches]
        carry, ready = model.read(params, text, lengths)

        def step(state, _):
            carry, y = model.decoder.step(ready, state[0], params["embedding"][state[1]])
            best = (y @ params["kernel"]).argmax(axis=-1)
            return (carry, best), best[0]

        begin = jnp.array([seq2seq.NUMBER[seq2seq.BEGIN]])
        return written, losses, jax.lax.scan(step, (carry, begin), length=seq2seq.LENGTH)[1]

    written, losses, greedy = by_each(jax.random.key(1))
    assert losses[1] <= losses[0] + 1e-6
    assert written[0].tolist() == greedy.tolist()


@pytest.mark.smoke
def test_a_model_of_a_sweep_is_the_one_that_is_trained_alone():
    config = many_models.Config(units=3, numbers=5, updates=3)
    drawn = [jax.jit(many_models.init, static_argnums=0)(config, seed) for seed in (0, 1)]
    rates, seeds = np.array([1e-3, 1e-2], np.float32), np.array([0, 1])
    given = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn), rates, seeds

    def train(each):
        return many_models.train(config, *each)

    losses, validation, scores = jax.jit(jax.vmap(train))(given)
    alone = jax.jit(train)((drawn[1], rates[1], seeds[1]))
    np.testing.assert_allclose(losses[1], alone[0], rtol=1e-5)
    np.testing.assert_allclose(validation[1], alone[1], rtol=1e-5)
    np.testing.assert_allclose(scores[1], alone[2], rtol=1e-5)
    assert scores[1] != validation[1]
    assert not np.allclose(losses[0], losses[1], rtol=1e-3)
    draw = jax.jit(many_models.draw, static_argnums=(1, 2))
    xs, sums = map(np.asarray, draw(jax.random.key(2), 5, 7))
    np.testing.assert_array_equal(xs[..., 1].sum(axis=0), 2)
    np.testing.assert_allclose((xs[..., 0] * xs[..., 1]).sum(axis=0), sums, rtol=1e-6)


@pytest.mark.slow
def test_a_padded_history_is_predicted_as_by_itself():
    config = remaining_life.Config(units=4)
    cell = rnnjax.GRUCell(4)
    params = {"gru": cell.init(jax.random.key(0), 9), "kernel": jnp.ones(4), "bias": jnp.zeros(())}
    seen, _ = remaining_life.histories(0, 2)
    xs, lengths = rnnjax.pad(seen, sizes=[remaining_life.LONGEST])
    both = remaining_life.predict(config, params, xs, jnp.array(lengths))
    alone = remaining_life.predict(config, params, jnp.array(seen[1])[:, None], None)
    np.testing.assert_allclose(both[: lengths[1], 1], alone[:, 0], rtol=1e-5)
