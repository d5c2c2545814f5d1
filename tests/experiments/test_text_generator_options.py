"""What the options of `train` mean, alone and together."""

import dataclasses
import errno
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

from experiments.runs import new_folder
from experiments.text_generator.__main__ import settled
from experiments.text_generator.checkpoints import (
    check_alike,
    in_options,
    require_unchanged,
    write_about,
)
from experiments.text_generator.config import Optimization, Text, Train
from experiments.text_generator.data import Data
from experiments.text_generator.model import surprise
from experiments.text_generator.presets import load_preset
from experiments.text_generator.train import learning_rate, make_optimizer, run_training
from experiments.text_generator.trained import Trained, existing
from rnnjax import InvalidInputError
from rnnjax.training import processes
from rnnjax.training.files import read_sealed
from rnnjax.training.sharding import Sharding

# As in `test_text_generator`, whose runs are compiled with these.
TINY = ["--layers", "1", "--hidden-size", "4", "--batch-size", "4", "--seq-length", "10",
        "--sample-length", "3", "--corpus", "text.txt"]  # fmt: skip
FAST = ["--preset", "fast", *TINY, "--dropout", "0", "--recurrent-dropout", "0"]
# Of a run that diverges, in three tests: a part held out for each purpose, and as much to train on.
DIVERGING = ["--learning-rate", "1e4", "--validation", "0.2", "--test", "0.15"]


def rates(options, epochs, steps_per_epoch):
    """Return the learning rates of all updates of a run."""
    rate = learning_rate(options, epochs, steps_per_epoch)
    updates = epochs * steps_per_epoch // options.accumulate
    return np.asarray(jax.jit(jax.vmap(rate))(np.arange(updates)))


@pytest.mark.parametrize("steps_per_epoch", [3, 7, 28])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_cosine_ends_with_the_run_whatever_is_accumulated(steps_per_epoch, accumulate):
    options = Optimization(schedule="cosine", learning_rate=1.0, warmup=3, accumulate=accumulate)
    got = rates(options, 20, steps_per_epoch)
    assert got[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)
    assert (np.diff(got[3:]) < 0).all()
    assert 0.01 <= got[-1] < 0.06
    middle = (len(got) + 3) // 2
    assert got[middle] == pytest.approx(0.505, abs=0.06)


@pytest.mark.parametrize("warmup", [0, 5])
def test_steps_fall_where_epochs_end_as_in_char_rnn(warmup):
    for decay_after, factors in [
        (0, [1, 0.5, 0.25, 0.125]), (1, [1, 0.5, 0.25, 0.125]), (2, [1, 1, 0.5, 0.25]),
        (3, [1, 1, 1, 0.5]),
    ]:  # fmt: skip
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


@functools.partial(jax.jit, static_argnums=1)
def clipped_and_not(gradient, name):
    """The first update of a gradient that is clipped, of one that is a fifth, and of it itself."""
    options = {"optimizer": name, "learning_rate": 10.0}
    small = jax.tree.map(lambda leaf: leaf / 5, gradient)
    clipped = first_update(gradient, clip_norm=1e-8, **options)
    return clipped, *(first_update(g, **options) for g in (small, gradient))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_it_is_the_gradient_that_is_clipped(name):
    """So that the update is that of a smaller gradient, however large it is itself."""
    gradient = {"kernel": np.array([[3e-8, 4e-8]]), "bias": np.array([0.0])}  # the norm is 5e-8
    clipped, expected, plain = clipped_and_not(gradient, name)
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


def test_epochs_that_are_given_count_more_than_the_steps_of_a_preset(program, text, tmp_path):
    done = program("text_generator", "train", *FAST, "--epochs", "2", "--run-dir", "run")
    assert ", 2 epochs of 7 steps" in done.stdout
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 2
    assert Train(steps=9).epochs_of(7) == Train(steps=9, epochs=7).epochs_of(7) == 2


def test_what_was_given_is_known_from_what_is_the_default(program, text, monkeypatch):
    program("text_generator", "train", *TINY, "--epochs", "1", "--seed", "7", "--run-dir", "run")
    resume = ["train", "--resume", "--run-dir", "run"]
    for given, message in [
        (["--seed", "1"], "--seed 1 cannot be changed: the run has 7"),
        (["--preset", "fast"], "--preset fast cannot be changed: the run has tutorial"),
        (["--layers", "3"], "--layers 3 cannot be changed: the run has 1"),
    ]:
        refused = program("text_generator", *resume, *given, check=False)
        assert refused.returncode == 2
        assert message in refused.stderr
    assert "going on from step" in program("text_generator", *resume, "--layers=1").stdout
    settled_as = []
    monkeypatch.setattr(
        "experiments.text_generator.__main__.run_training",
        lambda config: settled_as.append(config) or 0,
    )
    assert Train().epochs == 20
    program("text_generator", *resume, "--epochs", "20")
    assert (settled_as[0].epochs, settled_as[0].seed) == (20, 7)


def test_epochs_replace_the_steps_of_a_run_that_goes_on():
    stored = Train(steps=50, epochs=5)

    def length(**values):
        goes_on = settled(dataclasses.replace(stored, **values), stored)
        return goes_on.epochs, goes_on.steps

    assert length() == (5, 50)
    assert length(epochs=9) == (9, None)
    assert length(steps=4900) == (5, 4900)
    assert length(steps=4900, epochs=9) == (9, 4900)


def test_a_schedule_that_ends_elsewhere_is_said(program, text, tmp_path):
    """Only the cosine depends on the length of the run."""
    said = {}
    for schedule in ("cosine", "steps"):
        options = ["--schedule", schedule, "--epochs", "2", "--learning-rate", "0.01"]
        program("text_generator", "train", *TINY, *options, "--run-dir", schedule)
        resume = ["train", "--resume", "--run-dir", schedule]
        assert "learning rate" not in program("text_generator", *resume, "--epochs", "2").stdout
        said[schedule] = program("text_generator", *resume, "--epochs", "4").stdout
        assert "learning rate" not in program("text_generator", *resume).stdout
    assert "learning rate" not in said["steps"]
    line = (
        "--schedule cosine falls to the end of the run, which was step 18 and is 36 now: after "
        "step 18 the learning rate is 0.00505 in place of 0.0001\n"
    )
    assert line in said["cosine"]
    steps = program("text_generator", "train", "--resume", "--run-dir", "cosine", "--steps", "50",
                    "--learning-rate", "0.1").stdout  # fmt: skip
    assert "was step 36 and is 54 now" in steps
    assert "is 0.0257 in place of 0.0001" in steps


def test_a_text_that_moved_is_the_same_text(program, text, tmp_path):
    """It is known by its digest, and not by how its path or its encoding is spelled."""
    moved = tmp_path / "elsewhere" / "moved.txt"
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    resume = ["train", "--resume", "--run-dir", "run"]
    for corpus in (tmp_path / "text.txt", "./text.txt"):
        said = program("text_generator", *resume, "--corpus", corpus).stdout
        assert "going on from step 9, after 1 of 1 epochs" in said
    moved.parent.mkdir()
    (tmp_path / "text.txt").rename(moved)
    commands = (
        [*resume, "--corpus", "text.txt"],
        ["evaluate", "--run-dir", "run", "--corpus", "text.txt"],
        ["inspect", "--run-dir", "run", "--to", "page.html", "--corpus", "text.txt"],
    )
    for command in commands:
        refused = program("text_generator", *command, check=False)
        assert refused.returncode == 2
        assert f"there is no file {tmp_path / 'text.txt'}; name the new place" in refused.stderr
        program("text_generator", *command[:-1], moved)
    # What goes on knows the new place, and so do the commands that read it.
    program("text_generator", *resume, "--epochs", "2")
    assert (
        "moved.txt, on which it was trained"
        in program("text_generator", "evaluate", "--run-dir", "run").stdout
    )
    (tmp_path / "wide.txt").write_text(
        f"\n*** START OF IT ***\n{text}\n*** END OF IT ***\n", encoding="utf-16"
    )
    read_so = ["--corpus", "wide.txt", "--encoding", "utf-16", "--strip-licence"]
    assert "going on" in program("text_generator", *resume, *read_so).stdout
    assert "wide.txt, on which" in program("text_generator", "evaluate", "--run-dir", "run").stdout
    both = program("text_generator", "evaluate", "wide.txt", "--corpus", moved, check=False)
    assert (both.returncode, "one text is read" in both.stderr) == (2, True)


def test_another_text_is_refused_with_the_name_of_each(program, text, tmp_path):
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    (tmp_path / "other.txt").write_text(text[1:])
    for command in (["train", "--resume", "--run-dir", "run"], ["evaluate", "--run-dir", "run"]):
        refused = program("text_generator", *command, "--corpus", "other.txt", check=False)
        assert refused.returncode == 2
        assert "the text of 'other.txt' (SHA-256 " in refused.stderr
        assert "is not the one that the run in run began with, that of 'text.txt'" in refused.stderr


def test_processes_may_each_have_the_text_elsewhere(monkeypatch):
    """What each of them reads is compared by its digest."""
    first = Train(text=Text("/a/text.txt"))
    theirs = {}
    monkeypatch.setattr(processes, "_alone", lambda: False)
    monkeypatch.setattr(processes, "agreed_signal", lambda differing: differing)
    monkeypatch.setattr(processes, "from_first", lambda ours: theirs.setdefault("of 0", ours()))
    check_alike(first, "digest")
    check_alike(dataclasses.replace(first, text=Text("/b/text.txt", encoding="ascii")), "digest")
    for other, digest, message in [
        (dataclasses.replace(first, seed=7), "digest", "(seed)"),
        (first, "another", "(the text of the corpus)"),
    ]:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            check_alike(other, digest)


def test_no_update_at_all_is_refused(text, tmp_path):
    options = Train(
        text=Text(str(tmp_path / "text.txt"), seq_length=10, batch_size=4),
        optimization=Optimization(accumulate=100),
        epochs=2,
        run_dir=tmp_path / "run",
    )
    with pytest.raises(InvalidInputError, match="makes one update of so many steps, but the run"):
        run_training(options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cell", "mingru", "--recurrent-dropout", "0.1"], "recurrent dropout needs a product"),
        (["--cell", "mingru", "--weight-drop", "0.1"], "weight_drop needs a recurrent_kernel"),
        (["--sample-temperature", "inf"], "temperature must be a number from 0"),
        (["--seed", str(2**32)], "--seed must be at least 0 and at most 4294967295"),
    ],
)
def test_options_that_do_not_go_together_leave_no_run_behind(
    program, text, tmp_path, options, message
):
    refused = program("text_generator", "train", *TINY, *options, check=False)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_tensorboard_leaves_no_run_behind(program, text, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    refused = program("text_generator", "train", *TINY, "--tensorboard", check=False)
    assert refused.returncode == 2
    assert "pip install tensorboardX" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_the_test_is_of_the_model_that_the_other_commands_take(program, text, tmp_path):
    options = ["--epochs", "4", "--checkpoint-every", "1", *DIVERGING]
    for name, more in [("last", ["--validation", "0", "--test", "0.35"]), ("best", [])]:
        program("text_generator", "train", *TINY, *options, *more, "--run-dir", name)
        trained = Trained.load(tmp_path / name)
        measured = json.loads((tmp_path / name / "test.json").read_text())
        assert measured["step"] == trained.step
        data = Data.load(trained.config.text, trained.config.seed)
        loss = surprise(trained.model, trained.params, data.test).mean()
        assert measured["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_end_by_patience_is_told_and_can_be_lifted(program, text, tmp_path):
    options = [*DIVERGING, "--epochs", "9", "--patience", "1"]
    done = program("text_generator", "train", *TINY, *options, "--run-dir", "run")
    told = re.search(r"ended after (\d+) of (\d+) steps: no better validation loss", done.stdout)
    assert told, done.stdout
    assert int(told[1]) < int(told[2])
    resume = ["train", "--resume", "--run-dir", "run"]
    assert "ended after" in program("text_generator", *resume).stdout
    lifted = program("text_generator", *resume, "--patience", "0")
    assert "ended after" not in lifted.stdout
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 9


def test_options_are_checked_with_those_of_the_run(program, text, tmp_path):
    options = [*FAST, "--epochs", "2", "--run-dir", "run"]
    program("text_generator", "train", *options)
    resume = ["train", "--resume", "--run-dir", "run", "--epochs", "2"]
    decay = str(load_preset("fast").optimization.weight_decay)
    same = ["--forget", "0.01", "--weight-decay", decay, "--patience", "3"]
    assert "going on from step" in program("text_generator", *resume, *same).stdout
    stored = read_sealed(tmp_path / "run" / "run.json")["options"]
    assert (stored["patience"], stored["epochs"]) == (3, 2)
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "plain")
    refused = program(
        "text_generator", "train", "--resume", "--run-dir", "plain", "--patience", "2", check=False
    )
    assert refused.returncode == 2
    assert "no text is held out" in refused.stderr


def test_what_is_left_of_a_sample_does_not_stop_a_run(program, text, tmp_path):
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    samples = tmp_path / "run" / "samples.txt"
    whole = samples.read_text()
    samples.write_bytes(b"\nepoch 1: 'of before'\n" + whole.encode() + b"epoch 2, st\xc3")
    program("text_generator", "train", "--resume", "--epochs", "2", "--run-dir", "run")
    lines = samples.read_text().splitlines()
    assert lines[:3] == ["", "epoch 1: 'of before'", whole.strip()]
    assert len(lines) == 4
    assert lines[3].startswith("epoch 2, step ")


def test_samples_behind_the_checkpoint_are_taken_back(program, text, tmp_path):
    options = [*TINY, "--epochs", "4", "--checkpoint-every", "2", "--run-dir", "run"]
    program("text_generator", "train", *options)
    samples = tmp_path / "run" / "samples.txt"
    whole = samples.read_text()
    last = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    last.rename(tmp_path / "gone")  # as if it had been killed before the last checkpoint
    program("text_generator", "train", "--resume", "--run-dir", "run")
    assert samples.read_text() == whole
    assert len(whole.splitlines()) == 4


def test_another_text_is_read_as_it_is_said_to_be(program, tmp_path):
    """A line says how much of it the vocabulary lacks."""
    inside = "café or naïve\n" * 30
    (tmp_path / "text.txt").write_text(
        f"*** START OF IT ***\n{inside}*** END OF IT ***\n", encoding="latin-1"
    )
    options = [*TINY, "--epochs", "1", "--encoding", "latin-1", "--strip-licence"]
    lost = "; 60 others were dropped, which --vocabulary learned keeps"
    said = program("text_generator", "train", *options).stdout
    assert f"(68 in the vocabulary{lost})" in said
    said = program("text_generator", "train", *options, "--vocabulary", "learned").stdout
    assert "(12 in the vocabulary)" in said
    (tmp_path / "utf8.txt").write_text("café", encoding="utf-8")
    (tmp_path / "latin.txt").write_text("café", encoding="latin-1")
    utf8 = program("text_generator", "evaluate", "utf8.txt").stdout
    latin = program("text_generator", "evaluate", "latin.txt", "--encoding", "latin-1").stdout
    assert "over 3 characters" in utf8
    assert utf8.partition(":")[2] == latin.partition(":")[2]
    wrong = program("text_generator", "evaluate", "latin.txt", check=False)
    assert wrong.returncode == 2
    (tmp_path / "unknown.txt").write_text("cake")
    for command in (["evaluate", "unknown.txt"], ["inspect", "unknown.txt", "--to", "page.html"]):
        refused = program("text_generator", *command, check=False)
        assert refused.returncode == 2
        assert "unknown.txt must be of characters that the model was trained on" in refused.stderr
        assert "'k'; leave them out" in refused.stderr


@pytest.mark.parametrize("vocabulary", ["tutorial", "lines"])
def test_what_is_not_scored_is_said(program, text, tmp_path, vocabulary):
    options = [*TINY, "--vocabulary", vocabulary, "--epochs", "1"]
    program("text_generator", "train", *options, "--run-dir", "run")
    run = ["--run-dir", "run"]
    own = program("text_generator", "evaluate", *run, "--json", "bits.json").stdout
    assert "dropped" not in own
    assert json.loads((tmp_path / "bits.json").read_text())["dropped"] == 0
    (tmp_path / "other.txt").write_text("the cat ñ\nand é, ñ ran.\n", encoding="utf-8")
    lost = (
        "; 3 of the 24 characters of the whole text (12.50%) were dropped before, because the "
        "model does not know them"
    )
    files = ["--json", "bits.json", "--page", "bits.html"]
    scored = program("text_generator", "evaluate", "other.txt", *run, *files).stdout
    assert scored.endswith(f" characters{lost}\n")
    stored = json.loads((tmp_path / "bits.json").read_text())
    assert (stored["dropped"], stored["dropped_share"]) == (3, 0.125)
    assert f"at step 9{lost}." in (tmp_path / "bits.html").read_text()
    inside = program("text_generator", "inspect", "other.txt", *run, "--to", "in.html").stdout
    assert inside.endswith(f" MB{lost}\n")
    assert f"on average{lost}." in (tmp_path / "in.html").read_text()
    begun = program("text_generator", "generate", *run, "--prime-file", "other.txt")
    assert "note: dropped 3 of the 24 characters of other.txt" in begun.stderr
    (tmp_path / "greek.txt").write_text("αβγ", encoding="utf-8")
    refused = program("text_generator", "evaluate", "greek.txt", *run, check=False)
    assert refused.returncode == 2
    assert "at least 2 characters that the model knows, but of its 3 it knows 0" in refused.stderr


def test_what_a_run_dropped_of_its_own_text_is_said(program, text, tmp_path):
    (tmp_path / "text.txt").write_text(f"{text}é", encoding="utf-8")
    program("text_generator", "train", *TINY, "--epochs", "1", "--validation", "0.3")
    for command in (["evaluate"], ["evaluate", "text.txt"]):
        said = program("text_generator", *command).stdout
        assert f"; 1 of the {len(text) + 1} characters of the whole text (0.28%) were" in said


def test_the_text_of_a_run_is_known_wherever_it_is(program, text, tmp_path):
    wide = f"x\n*** START OF IT ***\n{text}\n*** END OF IT ***\n".encode("utf-16")
    (tmp_path / "wide.txt").write_bytes(wide)
    options = [*TINY, "--corpus", "wide.txt", "--encoding", "utf-16", "--strip-licence"]
    program("text_generator", "train", *options, "--epochs", "1")
    (tmp_path / "copy.txt").write_bytes(wide)
    for same in ("wide.txt", "./wide.txt", tmp_path / "copy.txt", "text.txt"):
        said = program("text_generator", "evaluate", same).stdout
        assert said.startswith(f"all of {Path(same).name}, most of which it was trained on: ")
    (tmp_path / "copy.txt").write_text(text[1:])
    assert program("text_generator", "evaluate", "copy.txt").stdout.startswith("copy.txt: ")


def test_bits_are_of_what_the_vocabulary_counts(program, tmp_path):
    (tmp_path / "text.txt").write_text("Ёлка, ель и ёж. " * 30, encoding="utf-8")
    options = [*TINY, "--vocabulary", "bytes", "--epochs", "1"]
    done = program("text_generator", "train", *options)
    assert "bits per byte" in done.stdout + done.stderr
    assert "per character" not in done.stdout + done.stderr
    assert "bytes (256 in the vocabulary)" in done.stdout
    (tmp_path / "other.txt").write_text("ёж и ель", encoding="utf-8")
    printed = program("text_generator", "evaluate", "other.txt").stdout
    per_byte = float(re.search(r"([\d.]+) bits per byte", printed)[1])
    per_character = float(re.search(r"that is ([\d.]+) bits per character", printed)[1])
    # 13 bytes of 8 characters, the first of which is known by half.
    assert per_character == pytest.approx(per_byte * 13 / 8, rel=1e-3)


def test_no_text_is_replaced_by_a_page(program, text, tmp_path):
    program("text_generator", "train", *TINY, "--epochs", "1")
    (tmp_path / "other.txt").write_text("the cat")
    before = [(tmp_path / name).read_text() for name in ("text.txt", "other.txt")]
    for command in (
        ["inspect", "other.txt", "--to", "other.txt"],
        ["inspect", "--to", "text.txt"],
        ["evaluate", "other.txt", "--page", "./other.txt"],
        ["evaluate", "--json", "text.txt"],
        ["evaluate", "other.txt", "--page", "a.html", "--json", "a.html"],
    ):
        refused = program("text_generator", *command, check=False)
        assert refused.returncode == 2
        assert "replace" in refused.stderr
    assert [(tmp_path / name).read_text() for name in ("text.txt", "other.txt")] == before
    assert not (tmp_path / "a.html").exists()


def test_a_model_that_diverged_has_an_infinite_perplexity(program, text):
    program("text_generator", "train", *TINY, "--epochs", "2", *DIVERGING)
    assert "perplexity inf" in program("text_generator", "evaluate").stdout


def test_the_newest_run_is_the_one_that_went_on_last(tmp_path, monkeypatch):
    """By what it says itself: a copy, or a backup, has other dates."""
    monkeypatch.chdir(tmp_path)
    for name in ("zebra", "20260101", "middle", "zebra"):
        folder = tmp_path / "runs" / "program" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_about(folder, {})
    os.utime(tmp_path / "runs" / "program" / "middle" / "run.json", (2e9, 2e9))
    assert existing("program", None).name == "zebra"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be made"):
        new_folder("program", tmp_path / "file" / "run")


def test_a_damaged_run_json_is_told_and_the_options_of_the_checkpoint_taken(
    program, text, tmp_path
):
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    for epochs, content in enumerate(('{"config": 3}', "", "[]", "no JSON"), start=2):
        (tmp_path / "run" / "run.json").write_text(content)
        resume = ["train", "--resume", "--run-dir", "run", "--epochs", epochs]
        resumed = program("text_generator", *resume)
        assert "warning: " in resumed.stderr
        assert "run.json" in resumed.stderr
        assert f"going on from step {9 * epochs - 9}, after" in resumed.stdout
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for content in ('{"config": 3}', "", "[]", "no JSON"):
        (tmp_path / "run" / "run.json").write_text(content)
        refused = program("text_generator", *resume, check=False)
        assert refused.returncode == 2
        assert "begin a new run" in refused.stderr


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
        ("epochs = [", "must be one of"),
        ("epoch = 3", r"should set options of train, but has \['epoch'\]"),
        ("[text]\nbatch_size = '4'", "should set batch_size to int, but has '4'"),
        ("[model]\ncell = 'rnn'", "should set cell to .*lstm.*, but has 'rnn'"),
        ("[model]\nlayers = true", "should set layers to int, but has True"),
        ("model = 3", "should set options of train, but has 3"),
    ],
)
def test_a_preset_that_cannot_be_is_said(tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.toml").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_preset(str(tmp_path / "own.toml"))


def test_a_diverged_run_goes_on_with_a_smaller_learning_rate(program, text, tmp_path):
    options = [*TINY, "--epochs", "3", "--run-dir", "run"]
    failed = program("text_generator", "train", *options, "--learning-rate", "1e38", check=False)
    assert failed.returncode == 2
    assert "train --resume --run-dir run --learning-rate 1e+37" in failed.stderr
    assert "Traceback" not in failed.stderr
    resume = ["train", "--resume", "--run-dir", "run"]
    assert program("text_generator", *resume, check=False).returncode == 2
    program("text_generator", *resume, "--learning-rate", "1e-3")
    assert len((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()) == 3


def test_a_folder_that_cannot_be_written_to_gets_one_sentence(program, text, tmp_path, monkeypatch):
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    # A superuser may write anywhere: the system's answer is put in its place.
    real = Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if "r" not in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    for command in (
        ["train", "--resume", "--run-dir", "run", "--epochs", "2"],
        ["evaluate", "--run-dir", "run", "--json", "bits.json"],
    ):
        refused = program("text_generator", *command, check=False)
        assert refused.returncode == 2
        assert "Permission denied" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_an_option_that_a_run_did_not_know_was_as_by_default() -> None:
    ours = Train().as_json()
    stored = {group: options for group, options in ours.items() if group != "text"}
    stored["text"] = {k: v for k, v in ours["text"].items() if k not in ("encoding", "stride")}
    require_unchanged(ours, stored)
    changed = {**ours, "text": {**ours["text"], "stride": 3}}
    with pytest.raises(InvalidInputError, match=r"--stride 3 cannot .* the run has None"):
        require_unchanged(changed, stored)


def test_what_a_mesh_cannot_divide_is_said_in_options() -> None:
    with (
        pytest.raises(InvalidInputError, match=r"3 rows .*: --mesh 2 divides --batch-size"),
        in_options(Train(mesh="2")),
    ):
        Sharding.over(2).rows(3)
