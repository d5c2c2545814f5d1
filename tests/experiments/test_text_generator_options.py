"""What the options of `train` mean, alone and together."""

import dataclasses
import functools
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.runs import new_folder
from experiments.text_generator import blocks, checkpoints
from experiments.text_generator.__main__ import settled
from experiments.text_generator.checkpoints import check_alike, require_unchanged, write_about
from experiments.text_generator.config import Architecture, Optimization, Text, Train, flat
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel, make_loss, surprise
from experiments.text_generator.presets import load_preset
from experiments.text_generator.train import changed_schedule, learning_rate, make_optimizer
from experiments.text_generator.trained import Trained, existing
from rnnjax import InvalidInputError, unroll


def rates(options, epochs, steps_per_epoch):
    """Return the learning rates of all updates of a run."""
    rate = learning_rate(options, epochs, steps_per_epoch)
    updates = epochs * steps_per_epoch // options.accumulate
    return np.asarray(jax.jit(jax.vmap(rate))(np.arange(updates)))


@pytest.mark.parametrize(("steps_per_epoch", "accumulate"), [(3, 4), (28, 1)])
def test_a_cosine_ends_with_the_run_whatever_is_accumulated(steps_per_epoch, accumulate):
    options = Optimization(schedule="cosine", learning_rate=1.0, warmup=3, accumulate=accumulate)
    got = rates(options, 20, steps_per_epoch)
    assert got[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)
    assert (np.diff(got[3:]) < 0).all()
    assert 0.01 <= got[-1] < 0.06
    middle = (len(got) + 3) // 2
    assert got[middle] == pytest.approx(0.505, abs=0.06)


@pytest.mark.parametrize(
    ("decay_after", "warmup", "factors"),
    [(0, 0, [1, 0.5, 0.25, 0.125]), (1, 5, [1, 0.5, 0.25, 0.125]), (3, 0, [1, 1, 1, 0.5])],
)
def test_steps_fall_where_epochs_end_as_in_char_rnn(decay_after, warmup, factors):
    options = Optimization(
        schedule="steps", learning_rate=1.0, decay=0.5, decay_after=decay_after, warmup=warmup
    )
    got = rates(options, 4, 10)
    assert got[warmup:] == pytest.approx(np.repeat(factors, 10)[warmup:])
    assert got[:warmup] == pytest.approx(np.arange(warmup) / max(1, warmup))


def first_update(gradient, **options):
    """Return the first update of parameters that are ones."""
    optimizer = make_optimizer(Optimization(**options), 1, 10)
    params = jax.tree.map(jnp.ones_like, gradient)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_it_is_the_gradient_that_is_clipped():
    """So that the update is that of a smaller gradient, however large it is itself."""
    gradient = {"kernel": np.array([[3e-8, 4e-8]]), "bias": np.array([0.0])}  # the norm is 5e-8

    @jax.jit
    def updates(gradient):
        small = jax.tree.map(lambda leaf: leaf / 5, gradient)
        clipped = first_update(gradient, clip_norm=1e-8, learning_rate=10.0)
        return clipped, *(first_update(each, learning_rate=10.0) for each in (small, gradient))

    clipped, expected, plain = updates(gradient)
    for key in gradient:
        np.testing.assert_allclose(clipped[key], expected[key], rtol=1e-5)
    assert np.abs(plain["kernel"] / clipped["kernel"]).min() > 1.5
    assert np.abs(clipped["kernel"]).max() > 1e-6


def test_weights_decay_but_not_biases():
    nothing = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    options = {"optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}
    update = jax.jit(lambda gradient: first_update(gradient, **options))(nothing)
    np.testing.assert_allclose(update["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(update["bias"], 0)


def test_epochs_that_are_given_count_more_than_the_steps_of_a_preset(train, text, tmp_path):
    fast = ["--preset", "fast", "--dropout", "0", "--recurrent-dropout", "0"]
    assert ", 2 epochs of 7 steps" in train(*fast, "--epochs", "2").stdout
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 2
    assert Train(steps=9).epochs_of(7) == Train(steps=9, epochs=7).epochs_of(7) == 2


def test_what_was_given_is_known_from_what_is_the_default(
    train, resume, refused, text, tmp_path, monkeypatch
):
    train("--epochs", "1", "--seed", "7")
    for given, message in [
        (["--seed", "1"], "--seed 1 cannot be changed: the run has 7"),
        (["--preset", "fast"], "--preset fast cannot be changed: the run has tutorial"),
        (["--layers", "3"], "--layers 3 cannot be changed: the run has 1"),
        (["--patience", "2"], "no text is held out"),
    ]:
        assert message in refused("train", "--resume", "--run-dir", "run", *given)
    assert "resumes from step" in resume("--layers=1", "--keep-last", "3").stdout
    settled_as = []
    monkeypatch.setattr(
        "experiments.text_generator.__main__.run_training",
        lambda config: settled_as.append(config) or 0,
    )
    assert Train().epochs == 20
    resume("--epochs", "20")
    assert (settled_as[0].epochs, settled_as[0].seed) == (20, 7)


def test_epochs_replace_the_steps_of_a_run_that_goes_on():
    stored = Train(steps=50, epochs=5)
    for given, length in [
        ({}, (5, 50)),
        ({"epochs": 9}, (9, None)),
        ({"steps": 4900}, (5, 4900)),
        ({"steps": 4900, "epochs": 9}, (9, 4900)),
    ]:
        goes_on = settled(dataclasses.replace(stored, **given), stored)
        assert (goes_on.epochs, goes_on.steps) == length


def test_a_schedule_that_ends_elsewhere_is_said(train, resume, text):
    """Only the cosine depends on the length of the run."""
    cosine = ["--schedule", "cosine", "--epochs", "2", "--learning-rate", "0.01"]
    assert "learning rate" not in train(*cosine).stdout
    line = (
        "--schedule cosine falls to the end of the run, which was step 18 and is 36 now: after "
        "step 18 the learning rate is 0.00505 in place of 0.0001"
    )
    assert f"{line}\n" in resume("--epochs", "4").stdout

    def said(schedule, step=18, **changed):
        optimization = Optimization(schedule=schedule, learning_rate=0.01)
        before = Train(epochs=2, optimization=optimization)
        after = dataclasses.replace(before, **changed)
        return changed_schedule(after, flat(before.as_json()), step, 9)

    assert said("cosine", steps=28) == line
    assert said("cosine", step=0, steps=28) == line.partition(":")[0]  # the rates would be alike
    assert said("cosine", patience=9) is said("steps", epochs=4) is None


def test_the_text_of_a_run_may_be_elsewhere(train, resume, generator, refused, text, tmp_path):
    """It is known by its digest, and not by how its path or its encoding is spelled."""
    train("--epochs", "1")
    (tmp_path / "other.txt").write_text(text[1:])
    evaluate = ["evaluate", "--run-dir", "run"]
    for command in (["train", "--resume", "--run-dir", "run"], evaluate):
        said = refused(*command, "--corpus", "other.txt")
        assert "the text of 'other.txt' (SHA-256 " in said
        assert "is not the one that the run in run began with, that of 'text.txt'" in said
        (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
        there_is_none = f"there is no file {tmp_path / 'text.txt'}; name the new place"
        assert there_is_none in refused(*command)
        (tmp_path / "moved.txt").rename(tmp_path / "text.txt")
    wide = f"x\n*** START OF IT ***\n{text}\n*** END OF IT ***\n".encode("utf-16")
    (tmp_path / "wide.txt").write_bytes(wide)
    read_so = ["--corpus", "wide.txt", "--encoding", "utf-16", "--strip-licence"]
    assert "resumes from step 9, after 1 of 1 epochs" in resume(*read_so).stdout
    # What goes on knows the new place, and so do the commands that read it.
    assert generator(*evaluate).stdout.startswith("wide.txt, on which it was trained")
    (tmp_path / "copy.txt").write_bytes(wide)
    for same in ("./wide.txt", tmp_path / "copy.txt", "text.txt"):
        said = generator(*evaluate, same).stdout
        assert said.startswith(f"all of {Path(same).name}, most of which it was trained on: ")
    assert generator(*evaluate, "other.txt").stdout.startswith("other.txt: ")
    assert "one text is read" in refused(*evaluate, "wide.txt", "--corpus", "text.txt")


def test_processes_may_each_have_the_text_elsewhere(monkeypatch):
    """What each of them reads is compared by its digest."""
    compared, first = [], Train(text=Text("/a/text.txt"))
    monkeypatch.setattr(checkpoints, "require_alike", compared.append)
    elsewhere = dataclasses.replace(first, text=Text("/b/text.txt", encoding="ascii"))
    for config, digest in [(first, "x"), (elsewhere, "x"), (Train(seed=7), "x"), (first, "y")]:
        check_alike(config, digest)
    assert [one == compared[0] for one in compared] == [True, True, False, False]


def test_a_run_that_diverges_ends_by_patience_which_can_be_lifted(
    train, resume, generator, text, tmp_path
):
    """The test is of the model that the other commands take."""
    parts = ["--validation", "0.2", "--test", "0.15", "--checkpoint-every", "1"]
    options = [*parts, "--learning-rate", "1e4", "--epochs", "9", "--patience", "1"]
    done = train(*options)
    told = re.search(r"ended after (\d+) of (\d+) steps: no better validation loss", done.stdout)
    assert told, done.stdout
    assert int(told[1]) < int(told[2])
    trained = Trained.load(tmp_path / "run")
    measured = json.loads((tmp_path / "run" / "test.json").read_text())
    assert measured["step"] == trained.step < int(told[1])
    data = Data.load(trained.config.text, trained.config.seed)
    loss = surprise(trained.model, trained.params, data.test).mean()
    assert measured["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert "perplexity inf" in generator("evaluate", "--run-dir", "run").stdout
    assert "ended after" in resume().stdout
    assert "ended after" not in resume("--patience", "0").stdout
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 9


def test_samples_are_those_up_to_the_checkpoint(train, resume, text, tmp_path):
    train("--epochs", "4", "--checkpoint-every", "2")
    samples = tmp_path / "run" / "samples.txt"
    whole = samples.read_text()
    assert len(whole.splitlines()) == 4
    last = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    last.rename(tmp_path / "gone")  # as if it had been killed before the last checkpoint
    samples.write_bytes(b"\nepoch 1: 'of before'\n" + whole.encode() + b"epoch 5, st\xc3")
    resume()
    assert samples.read_text() == f"\nepoch 1: 'of before'\n{whole}"


# What is read: the commands on a model that has learned nothing.


@pytest.fixture
def begun(untrained, tmp_path):
    """Make the folder ``run`` of a model of a text."""

    def begun(text, **options):
        return ["--run-dir", untrained(tmp_path, text, seq_length=10, batch_size=4, **options)]

    return begun


def test_another_text_is_read_as_it_is_said_to_be(train, begun, generator, refused, tmp_path):
    """A line says how much of it the vocabulary lacks."""
    text = f"*** START OF IT ***\n{'café or naïve ' * 30}\n*** END OF IT ***\n"
    run = begun(text, vocabulary="learned", encoding="latin-1", strip_licence=True)
    options = ["--epochs", "1", "--encoding", "latin-1", "--strip-licence"]
    lost = "; 60 others were dropped, which --vocabulary learned keeps"
    assert f"(68 in the vocabulary{lost})" in train(*options, to="tutorial").stdout
    (tmp_path / "utf8.txt").write_text("café", encoding="utf-8")
    (tmp_path / "latin.txt").write_text("café", encoding="latin-1")
    utf8 = generator("evaluate", "utf8.txt", *run).stdout
    latin = generator("evaluate", "latin.txt", "--encoding", "latin-1", *run).stdout
    assert "over 3 characters" in utf8
    assert utf8.partition(":")[2] == latin.partition(":")[2]
    assert "0xe9 at offset 3" in refused("evaluate", "latin.txt", *run)
    (tmp_path / "unknown.txt").write_text("cake")
    for command in (["evaluate", "unknown.txt"], ["inspect", "unknown.txt", "--to", "page.html"]):
        said = refused(*command, *run)
        assert "unknown.txt must be of characters that the model was trained on" in said
        assert "'k'; leave them out" in said


@pytest.mark.parametrize("vocabulary", ["tutorial", "lines"])
def test_what_is_not_scored_is_said(begun, generator, refused, text, tmp_path, vocabulary):
    run = begun(f"{text}é", vocabulary=vocabulary)
    own = f"; 1 of the {len(text) + 1} characters of the whole text (0.28%) were"
    assert own in generator("evaluate", *run).stdout
    (tmp_path / "other.txt").write_text("the cat ñ\nand é, ñ ran.\n", encoding="utf-8")
    lost = (
        "; 3 of the 24 characters of the whole text (12.50%) were dropped before, because the "
        "model does not know them"
    )
    files = ["--json", "bits.json", "--page", "bits.html"]
    scored = generator("evaluate", "other.txt", *run, *files).stdout
    assert scored.endswith(f" characters{lost}\n")
    stored = json.loads((tmp_path / "bits.json").read_text())
    assert (stored["dropped"], stored["dropped_share"]) == (3, 0.125)
    assert f"at step 0{lost}." in (tmp_path / "bits.html").read_text()
    inside = generator("inspect", "other.txt", *run, "--to", "in.html").stdout
    assert inside.endswith(f" MB{lost}\n")
    assert f"on average{lost}." in (tmp_path / "in.html").read_text()
    (tmp_path / "greek.txt").write_text("αβγ", encoding="utf-8")
    for command in (["inspect", "--to", "text.txt"], ["evaluate", "--json", "text.txt"]):
        assert "replace" in refused(*command, *run)  # the run's own text
    said = refused("evaluate", "greek.txt", *run)
    assert "at least 2 characters that the model knows, but of its 3 it knows 0" in said


def test_bits_are_of_what_the_vocabulary_counts(begun, generator, tmp_path):
    run = begun("Ёлка, ель и ёж. " * 30, vocabulary="bytes")
    (tmp_path / "other.txt").write_text("ёж и ель", encoding="utf-8")
    printed = generator("evaluate", "other.txt", *run).stdout
    per_byte = float(re.search(r"([\d.]+) bits per byte", printed)[1])
    per_character = float(re.search(r"that is ([\d.]+) bits per character", printed)[1])
    # 13 bytes of 8 characters, the first of which is known by half.
    assert per_character == pytest.approx(per_byte * 13 / 8, rel=1e-3)


def test_the_newest_run_is_the_one_that_went_on_last(tmp_path, monkeypatch):
    """By what it says itself: a copy, or a backup, has other dates."""
    monkeypatch.chdir(tmp_path)
    for name in ("zebra", "20260101", "middle", "zebra"):
        folder = tmp_path / "runs" / "text_generator" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_about(folder, {})
    os.utime(tmp_path / "runs" / "text_generator" / "middle" / "run.json", (2e9, 2e9))
    assert existing(None).name == "zebra"
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be made"):
        new_folder("program", tmp_path / "file" / "run")


def test_a_damaged_run_json_is_told_and_the_options_of_the_checkpoint_taken(
    train, resume, refused, text, tmp_path
):
    train("--epochs", "1")
    about = tmp_path / "run" / "run.json"
    about.write_text('{"config": 3}')
    resumed = resume("--epochs", "2")
    assert re.search(r"warning: .*run\.json", resumed.stderr)
    assert "resumes from step 9, after" in resumed.stdout
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for content in ('{"config": 3}', "", "[]", "no JSON"):
        about.write_text(content)
        assert "begin a new run" in refused("train", "--resume", "--run-dir", "run")


def test_presets_set_fields(tmp_path):
    for name in ("tutorial", "fast", "quality", "next_character"):
        preset = load_preset(name)
        preset.check()
        assert preset.preset == name
    assert load_preset("tutorial") == Train()
    own = tmp_path / "own.toml"
    own.write_text("patience = 3\n[text]\nvalidation = 0.2\n[optimization]\nclip_norm = 1\n")
    preset = load_preset(str(own))
    assert (preset.patience, preset.text.validation, preset.optimization.clip_norm) == (3, 0.2, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be one of fast, next_character, quality, tutorial, or a TOML file"),
        ("epoch = 3", r"should set options of train, but has \['epoch'\]"),
        ("[text]\nbatch_size = '4'", "should set batch_size to int, but has '4'"),
        ("[model]\ncell = 'rnn'", "should set cell to .*lstm.*, but has 'rnn'"),
        ("[model]\nlayers = true", "should set layers to int, but has True"),
    ],
)
def test_a_preset_that_cannot_be_is_said(tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.toml").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_preset(str(tmp_path / "own.toml"))


def test_a_diverged_run_goes_on_with_a_smaller_learning_rate(
    train, resume, refused, text, tmp_path
):
    failed = train("--epochs", "3", "--learning-rate", "1e38", check=False)
    assert failed.returncode == 2
    assert "train --resume --run-dir run --learning-rate 1e+37" in failed.stderr
    refused("train", "--resume", "--run-dir", "run")
    resume("--learning-rate", "1e-3")
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 3


def test_an_option_that_a_run_did_not_know_was_as_by_default() -> None:
    ours = Train().as_json()
    stored = {group: options for group, options in ours.items() if group != "text"}
    stored["text"] = {k: v for k, v in ours["text"].items() if k not in ("encoding", "stride")}
    require_unchanged(ours, stored)
    changed = {**ours, "text": {**ours["text"], "stride": 3}}
    with pytest.raises(InvalidInputError, match=r"--stride 3 cannot .* the run has None"):
        require_unchanged(changed, stored)


@pytest.mark.parametrize("cell", ["mamba2", "gated_delta"])
def test_blocks_step_as_they_unroll_and_begin_anew_at_a_reset(cell, random_like, assert_close):
    options = Architecture(cell=cell, layers=2, hidden_size=32, embedding_size=32)
    options.check()
    model = CharacterModel.build(options, 7)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)), seed=1)
    ids = np.random.default_rng(0).integers(0, 7, (9, 2))
    carry, logits = jax.jit(model.unroll)(params, ids, model.initial_carry(2))
    stepped, ys = jax.jit(functools.partial(jax.lax.scan, functools.partial(model.step, params)))(
        model.initial_carry(2), ids
    )
    assert_close((stepped, ys), (carry, logits), 1e-5)
    # A stream that forgets the state of the batch before begins as a new text.
    batch = {"inputs": ids.T, "targets": ids.T, "weights": np.ones(2)}
    anew = jax.jit(make_loss(model, carry_state=False))(params, (), batch, None)[0]
    forgetting = jax.jit(make_loss(model, carry_state=True, forget=1.0))
    assert_close(forgetting(params, carry, batch, jax.random.key(0))[0], anew, 1e-6)
    xs, resets = np.asarray(jax.jit(model.embed)(params, ids)), np.zeros((9, 2), bool)
    resets[4] = True
    run = jax.jit(functools.partial(unroll, model.stack))
    assert_close(run(params["stack"], xs, resets=resets)[0], run(params["stack"], xs[4:])[0], 1e-5)


@pytest.mark.parametrize("block", [blocks.mamba2, blocks.gated_delta])
def test_a_block_may_have_any_multiple_of_32_units(block):
    for size in range(32, 513, 32):
        jax.eval_shape(lambda key, n=size: block(n).init(key, n), jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--embedding-size and --hidden-size must be one number, .* but are 0 and 32; make"),
        ({"embedding_size": 16}, "must be one number, a multiple of 32, but are 16 and 32"),
        ({"embedding_size": 32, "weight_drop": 0.1}, "--cell mamba2 has no recurrent product"),
        ({"embedding_size": 32, "products": "bfloat16"}, "--cell mamba2 has no recurrent product"),
    ],
)
def test_what_a_block_cannot_be_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        Architecture(cell="mamba2", layers=1, hidden_size=32, **options).check()
