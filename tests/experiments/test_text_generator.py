import functools
import json
import os
import random
import signal
import time

import jax
import numpy as np
import pytest

from experiments.text_generator.config import Architecture, Text, Train
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel, make_loss, surprise
from experiments.text_generator.train import thinned, write_sample
from rnnjax.text import Vocabulary
from rnnjax.training import Checkpoints


@pytest.fixture
def long(text, tmp_path):
    """A text whose epochs last long enough to be disturbed."""
    (tmp_path / "text.txt").write_text(10 * text)
    return 10 * text


def arrays(run_dir):
    """The step of the last checkpoint, and the bytes of all of its arrays."""
    saved = Checkpoints(run_dir / "checkpoints").latest()
    return str(saved.step), {name: array.tobytes() for name, array in saved._arrays.items()}


WINDOWS = ["--epochs", "3", "--dropout", "0.2"]
PLAIN_STREAMS = ["--epochs", "3", "--carry-state", "--forget", "0.1", "--validation", "0.1",
                 "--accumulate", "2"]  # fmt: skip
STREAMS = [*PLAIN_STREAMS, "--vocabulary", "bytes", "--weight-drop", "0.2"]


def kill_and_resume(train, resume, start, tiny, tmp_path, mode, signals, seed=0):
    """Whatever ends the processes of a run, and when: it ends like one that nothing disturbed."""
    options = [*mode, "--checkpoint-every", "1", "--steps-per-dispatch", "7"]
    train(*options, to="whole")
    whole = arrays(tmp_path / "whole")
    steps = (tmp_path / "whole" / "steps.jsonl").read_text()
    path = tmp_path / "run" / "steps.jsonl"
    rng = random.Random(seed)
    begin = functools.partial(start, "text_generator", "train", *tiny, *options)
    # Moments drawn over the run: when a step is reached, and a little later.
    for number, moment in zip(
        signals, sorted(rng.randint(1, steps.count("\n")) for _ in signals), strict=True
    ):
        victim = begin("--run-dir", "run")
        while victim.poll() is None:
            if path.exists() and path.read_text().count("\n") >= moment:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        os.kill(victim.pid, number)
        assert victim.wait(timeout=300) in (-number, 128 + number, 0)
        begin = functools.partial(start, "text_generator", "train", "--resume")
    resume()  # in here, which spares a process
    assert arrays(tmp_path / "run") == whole
    assert path.read_text() == steps


def test_a_killed_run_ends_like_the_undisturbed_one(train, resume, start, tiny, long, tmp_path):
    kill_and_resume(train, resume, start, tiny, tmp_path, PLAIN_STREAMS, [signal.SIGKILL])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("mode", [WINDOWS, STREAMS], ids=["windows", "streams"])
def test_twenty_moments(train, resume, start, tiny, long, tmp_path, mode, number):
    ends = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    ends = ends[number % 4 :][: 1 + number // 10]
    kill_and_resume(train, resume, start, tiny, tmp_path, mode, ends, seed=number)


@pytest.mark.smoke
def test_train_generate_evaluate(generator, tiny, refused, text, tmp_path):
    trained = generator("train", *tiny, "--epochs", "2", picture=True)
    assert "bits per character" in trained.stderr + trained.stdout
    (run_dir,) = (tmp_path / "runs" / "text_generator").iterdir()
    assert {p.name for p in run_dir.iterdir()} == {
        "checkpoints", "epochs.jsonl", "lock", "loss.png", "result.json", "run.json", "samples.txt",
        "steps.jsonl",
    }  # fmt: skip
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    epochs = [json.loads(line) for line in (run_dir / "epochs.jsonl").read_text().splitlines()]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert len((run_dir / "samples.txt").read_text().splitlines()) == 2

    generated = generator("generate", "--prime", "The cat", "--length", "30")
    assert len(generated.stdout.splitlines()[0]) == 37
    assert generated.stdout.startswith("The cat")
    assert "there is no checkpoint of step 5" in refused("generate", "--step", "5")
    assert "bits per character, perplexity" in generator("evaluate").stdout
    (tmp_path / "other.txt").write_text("The cat sat on a mat.")
    other = generator("evaluate", "other.txt")
    assert other.stdout.startswith("other.txt: ")
    assert "over 20 characters" in other.stdout

    # More epochs go on from the end.
    more = generator("train", "--resume", "--epochs", "3")
    assert "resumes from step" in more.stdout
    assert len((run_dir / "epochs.jsonl").read_text().splitlines()) == 3


def test_greedy_writing_is_the_most_probable_character_of_the_whole_text_so_far(character_model):
    """The carried state gives what the tutorial computes by reading everything again."""
    model, params = character_model(68, hidden_size=9)
    vocabulary = Vocabulary.tutorial()
    text = write_sample(model, vocabulary, Train(sample_length=12), params, epoch=1)
    assert len(text) == 13
    unroll = jax.jit(model.unroll)
    for end in range(1, len(text)):
        # Of one length, which is compiled once: what comes later is not read before.
        ids = vocabulary.encode(text[:end].ljust(len(text)))[:, None]
        _, logits = unroll(params, ids, model.initial_carry(1))
        assert np.asarray(logits)[end - 1, 0].argmax() == vocabulary.encode(text[end])[0]


def test_the_loss_leaves_out_windows_of_weight_0(character_model):
    model, params = character_model(68, hidden_size=9)
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.integers(0, 68, (3, 6)), "targets": rng.integers(0, 68, (3, 6))}
    loss_fn = jax.jit(make_loss(model, carry_state=False))
    key = jax.random.key(0)
    two, (carry, metrics) = loss_fn(params, (), batch | {"weights": np.array([1.0, 1, 0])}, key)
    first = {name: array[:2] for name, array in batch.items()}
    alone, _ = loss_fn(params, (), first | {"weights": np.ones(2)}, key)
    np.testing.assert_allclose(two, alone, rtol=1e-6)
    assert carry == ()
    assert float(metrics["weight"]) == 2


def test_the_loss_drops_and_forgets_in_training(random_like):
    """Each kind of noise that the options name changes the loss with its key; and forgetting."""
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 20, (4, 6)) for name in ("inputs", "targets")}
    batch["weights"] = np.ones(4)

    def model_with(**noise):
        options = Architecture(layers=1, hidden_size=9, embedding_size=9, **noise)
        return CharacterModel.build(options, 20)

    model = model_with()
    params = random_like(lambda: model.init(jax.random.key(0)), 0)
    carry = random_like(lambda: model.initial_carry(4), 1)
    kinds = ("dropout", "embedding_dropout", "recurrent_dropout", "weight_drop")

    @jax.jit
    def losses_of(key):
        losses = {kind: make_loss(model_with(**{kind: 0.5}), carry_state=False) for kind in kinds}
        losses["plain"] = make_loss(model, carry_state=False)
        found = {kind: loss_fn(params, (), batch, key)[0] for kind, loss_fn in losses.items()}
        for name, forget in (("kept", 0.0), ("forgotten", 1.0)):
            loss_fn = make_loss(model, carry_state=True, forget=forget)
            found[name] = loss_fn(params, carry, batch, key)[0]
        return found

    losses, others = (losses_of(jax.random.key(seed)) for seed in (5, 6))
    plain = losses["plain"]
    assert others["plain"] == plain
    for kind in kinds:
        assert abs(losses[kind] - plain) > 1e-4, kind
        assert losses[kind] != others[kind], kind
    np.testing.assert_allclose(losses["forgotten"], plain, rtol=1e-6)
    assert abs(losses["kept"] - plain) > 1e-4
    noisy = make_loss(model_with(**dict.fromkeys(kinds, 0.5)), carry_state=False)
    with jax.debug_key_reuse(True):  # each kind has a key of its own
        jax.jit(noisy)(params, (), batch, jax.random.key(5))


def test_each_row_of_an_evaluation_has_read_what_comes_before(character_model, monkeypatch):
    """The first begins with the text, and the others 256 characters before their own part."""
    model, params = character_model(68, hidden_size=9)
    ids = np.random.default_rng(0).integers(0, 68, 2060)  # two rows of 1,030 characters
    losses = surprise(model, params, ids)
    assert losses.shape == (2059,)
    read = jax.jit(model.losses)
    for begin, end in ((0, 1030), (1030, 2059)):
        before = min(begin, 256)
        # Of one length, which is compiled once: what comes later is not read before.
        inputs, targets = (ids[None, begin - before + k :][:, :1285] for k in (0, 1))
        alone = np.asarray(read(params, model.initial_carry(1), inputs, targets)[1])[0]
        alone = alone[before : before + end - begin]
        np.testing.assert_allclose(losses[begin:end], alone, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("experiments.text_generator.model._losses", lambda *given: given[-1])
    for length in (2, 3, 1025, 2059):
        np.testing.assert_array_equal(surprise(model, params, ids[:length]), ids[1:length])


def test_the_parts_of_a_text_are_the_text(long, tmp_path):
    """In their order, and nothing of one is in another."""
    options = Text(
        corpus=str(tmp_path / "text.txt"), validation=0.2, test=0.3, batch_size=4, seq_length=10
    )
    data = Data.load(options, seed=0)
    parts = [data.train, data.validation, data.test]
    np.testing.assert_array_equal(np.concatenate(parts), data.vocabulary.encode(long))
    np.testing.assert_allclose([len(p) / len(long) for p in parts], [0.5, 0.2, 0.3], atol=1e-3)


def test_a_long_curve_is_drawn_by_its_extremes():
    curve = np.stack([np.arange(1, 9004), np.random.default_rng(0).normal(size=9003)], axis=1)
    drawn = thinned(curve, groups=100)
    assert len(drawn) == 200
    assert (np.diff(drawn[:, 0]) > 0).all()
    for part in np.array_split(curve, 100):
        assert {part[:, 1].min(), part[:, 1].max()} <= {*drawn[:, 1]}
    np.testing.assert_array_equal(thinned(curve[:200], groups=100), curve[:200])
