import json

import jax
import numpy as np
import pytest

from experiments.alphabet import framings
from experiments.alphabet.config import Config
from experiments.alphabet.model import LETTERS, Model, pairs


def test_the_program_learns_the_alphabet(program, tmp_path):
    result = program("alphabet", "--run-dir", "out")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("training pairs: A -> B, B -> C,")
    assert "accuracy: 100%" in result.stdout
    assert "fed on its own predictions: " + " -> ".join(LETTERS) in lines
    assert any(line.startswith("a new start at K: K -> ") for line in lines)
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["config"]["hidden_size"] == 50
    assert len(saved["losses"][0]) == 300
    assert saved["results"][0]["loss"] == saved["losses"][0][-1] < 0.05

    again = program("alphabet", "--run-dir", "out", check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: out holds something already")


def test_substrings_stand_behind_zeros():
    inputs, targets = pairs(Config(seq_length=5, mode="variable"))
    assert inputs.shape == (1000, 5)
    assert (inputs[:, -1] + 1 == targets).all()
    begun = np.diff(inputs) == 1  # within a sub-string each letter follows the one before
    assert (np.sort(begun) == begun).all()
    assert (inputs[:, :-1][~begun] == 0).all()
    assert set(begun.sum(axis=1)) == {0, 1, 2, 3, 4}
    assert {targets.min(), targets.max()} == {1, 25}


def test_inputs_are_shuffled_unless_the_state_goes_on():
    batches = jax.jit(Model(Config(stateful=False, batch_size=5)).batches)
    inputs, targets = map(np.ravel, batches(jax.random.key(0)))
    assert (inputs + 1 == targets).all()
    assert sorted(inputs) == list(range(25))
    assert not (inputs == np.ravel(batches(jax.random.key(1))[0])).all()
    inputs, _ = Model(Config()).batches(jax.random.key(0))
    assert inputs.ravel().tolist() == list(range(25))


def test_the_table_of_the_framings(program, tmp_path, monkeypatch):
    one = framings.FRAMINGS[3]
    one = one._replace(
        options={**one.options, "epochs": 2, "hidden_size": 4}, published=0, within=50, perfect=0
    )
    monkeypatch.setattr(framings, "SEEDS", 2)
    monkeypatch.setattr(framings, "FRAMINGS", [one, one._replace(perfect=1)])
    # As tests compile, which is quicker than as the program does.
    plain = jax.jit(framings._accuracies.__wrapped__, static_argnums=0)
    monkeypatch.setattr(framings, "_accuracies", plain)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one after the other: compiled once
    result = program("alphabet", "--all", "--run-dir", "out", check=False)
    assert result.returncode == 1
    first, second = (line for line in result.stdout.splitlines() if " of 2" in line)
    assert "falls short" not in first
    assert second.endswith("0 of 2  falls short")
    saved = json.loads((tmp_path / "out" / "result.json").read_text())["framings"]
    assert [row["reached"] for row in saved] == [True, False]
    assert len(saved[1]["accuracies"]) == 2


@pytest.mark.smoke
@pytest.mark.parametrize(("mode", "cell"), [("steps", "lstm"), ("features", "gru")])
def test_every_mode_and_cell_trains(mode, cell):
    config = Config(seq_length=3, mode=mode, cell=cell, epochs=20, hidden_size=16)
    model = Model(config)

    @jax.jit
    def trained(key):
        params, losses = model.train(key)
        return params["cell"]["kernel"], losses, model.chain(params, np.arange(3), 5)

    kernel, losses, chain = trained(jax.random.key(1))
    assert kernel.shape[0] == (3 if mode == "features" else 1)
    assert losses[-1] < losses[0]
    assert chain.shape == (5,)


def test_a_chain_carries_state_and_a_cold_start_does_not(random_like):
    """The chain equals feeding letters by hand with the carry handed on."""
    model = Model(Config(hidden_size=8))
    params = random_like(lambda: model.init(jax.random.key(2)), 0, scale=2.0)
    letters, carry, expected = np.array([0]), model.cell.initial_carry(), []
    step = jax.jit(model)
    for _ in range(6):
        carry, logits = step(params, carry, letters)
        letters = np.array([int(np.argmax(logits))])
        expected.append(letters[0])
    assert len(set(expected)) > 1
    assert jax.jit(model.chain, static_argnums=2)(params, np.array([0]), 6).tolist() == expected


@pytest.mark.slow
def test_the_framings_reach_the_published_accuracies(program):
    assert "falls short" not in program("alphabet", "--all").stdout
