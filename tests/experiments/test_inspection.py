"""What is recorded of a model, what its units are compared with, and the command."""

import json
import math

import jax
import numpy as np
import pytest

from experiments.text_generator.evaluate import Evaluate, run_evaluation
from experiments.text_generator.inspect import Inspect, run_inspection
from experiments.text_generator.model import CELLS, surprise
from experiments.text_generator.pages import LIMIT
from experiments.text_generator.pages.properties import PROPERTIES, properties, score
from experiments.text_generator.pages.recording import record
from rnnjax import InvalidInputError
from rnnjax.errors import NonFiniteError

SIZE = 11
BLOCKS = "mamba2", "gated_delta"  # whose states are matrices


def by_hand(model, params, ids):
    """States, and probabilities of the next character, one step after the other."""
    carry, states, logits = model.initial_carry(1), [], []
    step = jax.jit(model.step)
    for token in ids:
        carry, out = step(params, carry, token[None])
        states.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(carry)]))
        logits.append(np.asarray(out[0], np.float64))
    p = np.exp(np.array(logits) - np.max(logits, axis=1, keepdims=True))
    return np.array(states), p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {}),
        ("gru", {"recurrent_dropout": 0.3, "weight_drop": 0.2, "dropout": 0.5}),
        ("mgu", {"embedding_size": 4, "tied": True}),
        *(pytest.param(cell, {}, marks=pytest.mark.slow) for cell in CELLS if cell not in BLOCKS),
    ],
)
def test_the_recording_is_what_stepping_by_hand_gives(character_model, cell, options):
    model, params = character_model(SIZE, seed=3, cell=cell, hidden_size=4, **options)
    ids = np.random.default_rng(0).integers(0, SIZE, 1013)  # more than a piece, and not whole ones
    recording = record(model, params, ids)
    few = 25
    states, probabilities = by_hand(model, params, ids[:few])
    np.testing.assert_allclose(recording.states[:few], states, atol=2e-5, rtol=2e-5)
    order = np.argsort(-probabilities, axis=1)[:, :5]
    top = np.take_along_axis(probabilities, order, axis=1)
    np.testing.assert_allclose(recording.probabilities[:few], top, atol=2e-5)
    np.testing.assert_array_equal(recording.expected[:few], order)
    assert math.isnan(recording.surprise[0])
    bits = -np.log2(probabilities[np.arange(few - 1), ids[1:few]])
    np.testing.assert_allclose(recording.surprise[1:few], bits, atol=1e-4, rtol=1e-5)
    # The state goes on from piece to piece: the whole text at once says the same.
    whole = surprise(model, params, ids, rows=1) / math.log(2)
    np.testing.assert_allclose(recording.surprise[1:], whole, atol=1e-3, rtol=1e-5)
    assert recording.states.shape == (1013, sum(group.size for group in recording.groups))


@pytest.mark.parametrize(
    ("cell", "letters", "kinds"),
    [
        ("lstm", "ifo", ("hidden", "cell")),
        ("gru", "rz", ("hidden",)),  # with the noise of training around it
        ("mgu", "f", ("hidden",)),
        ("gru_reset_before", "", ("hidden",)),
        ("peephole_lstm", "", ("hidden", "cell")),
        ("minlstm", "", ("hidden",)),
    ],
)
def test_gates_are_those_that_the_step_computes_with(character_model, cell, letters, kinds):
    noise = {"recurrent_dropout": 0.5} if cell == "gru" else {}
    model, params = character_model(SIZE, seed=3, cell=cell, hidden_size=4, **noise)
    ids = np.array([1, 5, 2, 7, 3])
    recording = record(model, params, ids)
    assert [(g.layer, g.name) for g in recording.gates] == [(k, c) for k in (0, 1) for c in letters]
    assert tuple(g.kind for g in recording.groups if g.layer == 1) == kinds
    assert all((g.values >= 0).all() and (g.values <= 1).all() for g in recording.gates)
    gates = {(g.layer, g.name): g.values.astype(float) for g in recording.gates}
    # Every gate of the first layer is the logistic function of its own columns of the kernels.
    order = {"lstm": "ifgo", "gru": "rzn", "mgu": "fn"}.get(cell, "")
    weights = {name: np.asarray(a, np.float64) for name, a in params["stack"][0].items()}
    before = np.concatenate([np.zeros((1, 4)), recording.states[:-1, :4]])
    sums = weights["kernel"][ids] + weights["bias"]
    if order:
        sums = sums + before @ weights["recurrent_kernel"] + weights.get("recurrent_bias", 0)
    for position, letter in enumerate(order):
        if letter in letters:
            column = sums[:, 4 * position : 4 * position + 4]
            np.testing.assert_allclose(gates[0, letter], 1 / (1 + np.exp(-column)), atol=1e-3)
    if cell == "lstm":  # and in both layers h = o tanh(c)
        states = np.split(recording.states, 4, axis=1)
        for layer in (0, 1):
            hidden, cells = states[2 * layer : 2 * layer + 2]
            np.testing.assert_allclose(hidden, gates[layer, "o"] * np.tanh(cells), atol=2e-3)


def test_too_short_a_text_and_a_broken_model_are_refused(character_model):
    model, params = character_model(SIZE, hidden_size=4)
    with pytest.raises(InvalidInputError, match="needs at least 2 characters, but has 1"):
        record(model, params, np.array([1]))
    blocks, own = character_model(SIZE, cell="mamba2", hidden_size=4, embedding_size=4)
    with pytest.raises(InvalidInputError, match="must have vectors of units as its state"):
        record(blocks, own, np.array([1, 2, 3]))
    broken = params | {"bias": np.full_like(params["bias"], np.nan)}
    with pytest.raises(NonFiniteError, match="choose another checkpoint by --step"):
        record(model, broken, np.array([1, 2, 3]))


# Properties and scores.

PROSE = 'THE KING:\nI said "no (never) to him" at 10.\n\n  Go, now! "Oh\n\nwell.\n'


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("inside quotes", '"no (never) to him"Oh\n'),
        ("inside brackets", "(never"),
        ("inside a word", "THEKINGIsaidnonevertohimat10GonowOhwell"),
        ("first letter of a word", "TKIsnntha1GnOw"),
        ("space", " " * 12),
        ("end of a line", "\n" * 6),
        ("blank line", "\n\n"),
        ("capital letter", "THEKINGIGO"),
        ("word in capitals", "THEKING"),
        ("heading (a short line with a colon at its end)", "THE KING:"),
        ("indentation", "  "),
        ("vowel", "EIIaioeeoiaooOe"),
        ("digit", "10"),
        ("punctuation", ':"()".,!".'),
    ],
)
def test_properties_mark_the_characters_they_name(name, marked):
    values = properties(list(PROSE))[name].astype(bool)
    got = "".join(c for c, m in zip(PROSE, values, strict=True) if m)
    assert got == marked


def test_counting_properties_count():
    values = properties(list("ab c.\nde"))
    assert values["position in the line"].tolist() == [1, 2, 3, 4, 5, 0, 1, 2]
    assert values["position in the word"].tolist() == [1, 2, 0, 1, 0, 0, 1, 2]
    assert values["length of the sentence so far"].tolist() == [1, 2, 3, 4, 0, 1, 2, 3]
    assert values["right after punctuation"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    odd = "odd line number (a control: nothing should follow it)"
    assert values[odd].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_planted_unit_ranks_first_and_its_score_is_the_held_out_one():
    rng, words = np.random.default_rng(1), []  # of which some are quoted, with line breaks
    while sum(map(len, words)) < 8000:
        word = "".join(rng.choice(list("abcdefgh"), rng.integers(1, 8)))
        words.append(f'"{word} {word}"' if rng.random() < 0.2 else word)
        words.append("\n" if rng.random() < 0.1 else " ")
    values = properties(list("".join(words)[:8000]))
    states = rng.normal(size=(8000, 200))
    states[:, 137] = 0.3 - 2.0 * values["inside quotes"] + 0.2 * rng.normal(size=8000)
    scores = score(states, values)
    first, second, *_ = scores.of_units()
    assert (first.unit, first.name) == (137, "inside quotes")
    assert first.chosen < -0.95
    odd = np.arange(8000) // 500 % 2 == 1
    expected = np.corrcoef(states[odd, 137], values["inside quotes"][odd])[0, 1]
    assert first.reported == pytest.approx(expected, abs=1e-5)
    # The best of 199 units of noise looks better where it was chosen than where it was not.
    noise = [f for f in scores.of_units() if f.unit != 137]
    assert abs(second.chosen) < 0.1
    chosen = np.mean([abs(f.chosen) for f in noise])
    reported = np.mean([f.reported * np.sign(f.chosen) for f in noise])
    assert chosen > 0.02
    assert abs(reported) < chosen / 3
    assert {f.name for f in scores.of_properties()} == set(scores.names)
    best = {f.name: f.unit for f in scores.of_properties()}
    assert best["inside quotes"] == 137
    assert "digit" in scores.unchanging
    assert set(scores.names) | set(scores.unchanging) == set(PROPERTIES)


def test_constant_units_and_constant_properties_score_nothing():
    rng = np.random.default_rng(0)
    states = np.stack([np.full(4000, 0.1), rng.normal(size=4000)], axis=1).astype(np.float32)
    scores = score(states, {"a": rng.normal(size=4000), "b": np.ones(4000)})
    assert scores.unchanging == ("b",)
    assert scores.chosen[0, 0] == scores.reported[0, 0] == 0
    assert score(states[:1], {"a": np.ones(1)}).of_units() == []
    with pytest.raises(InvalidInputError, match="one number for each of 4000 characters"):
        score(states, {"a": np.ones(7)})


# The commands, on a model that has learned nothing.

CORPUS = (
    'ANN:\nShe said "Go (now)" to 3 of us; tab\there.\n\nBOB:\nHe went < away & didn\'t stop.\n\n'
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, untrained):
    options = {"vocabulary": "learned", "validation": 0.3, "layers": 2, "hidden_size": 6}
    return untrained(tmp_path_factory.mktemp("inspected"), CORPUS * 30, **options)


def test_inspect_writes_a_page_of_the_text_held_out(run_dir, tmp_path, capsys):
    to = tmp_path / "page.html"
    assert run_inspection(Inspect(to, run_dir=run_dir)) == 0
    page = to.read_text(encoding="utf-8")
    assert "the validation part of text.txt" in page
    assert "position in the line" in capsys.readouterr().out
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert {group["kind"] for group in data["groups"]} == {"hidden", "cell"}
    assert [gate["name"] for gate in data["gates"]] == ["i", "f", "o"]
    assert len(page.encode()) < LIMIT
    assert list(tmp_path.iterdir()) == [to]


def test_inspect_reads_a_file_and_stops_after_so_many_characters(run_dir, tmp_path):
    (tmp_path / "other.txt").write_text("He went (now). " * 40)
    to = tmp_path / "page.html"
    command = Inspect(to, str(tmp_path / "other.txt"), run_dir=run_dir, characters=100)
    assert run_inspection(command) == 0
    page = to.read_text(encoding="utf-8")
    assert "other.txt" in page
    assert "read 100 " in page
    assert "every other block of 12 characters" in page
    assert "a text of less than 4,000 characters" in page


def test_evaluate_writes_json_and_a_page(run_dir, tmp_path, capsys):
    to, page = tmp_path / "bits.json", tmp_path / "page.html"
    assert run_evaluation(Evaluate(run_dir=run_dir, json=to, page=page)) == 0
    printed = capsys.readouterr().out
    stored = json.loads(to.read_text())
    assert "".join(stored["characters"]) == (CORPUS * 30)[-len(stored["bits"]) :]
    assert printed.startswith("the validation part of text.txt, which it was not trained on: ")
    assert stored["bits"][0] is None
    assert len(stored["bits"]) == len(stored["characters"])
    mean = np.mean(stored["bits"][1:])
    assert mean == pytest.approx(stored["bits_per_character"], abs=1e-3)
    assert f"{stored['bits_per_character']:.3f} bits per character" in printed
    assert f"<strong>{stored['bits_per_character']:.3f}</strong>" in page.read_text("utf-8")
