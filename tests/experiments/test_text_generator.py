import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.text_generator.config import Architecture, Text, Train
from experiments.text_generator.data import Data
from experiments.text_generator.model import CharacterModel, make_loss, surprise
from experiments.text_generator.train import thinned, write_sample
from experiments.text_generator.trained import Trained
from rnnjax.text import Vocabulary
from rnnjax.training import Checkpoints, Saved

# As in `test_text_generator_options`, whose runs are compiled with these.
TINY = ["--layers", "1", "--hidden-size", "4", "--batch-size", "4", "--seq-length", "10",
        "--sample-length", "3", "--corpus", "text.txt"]  # fmt: skip


@pytest.fixture
def long(text, tmp_path):
    """A text whose epochs last long enough to be disturbed."""
    (tmp_path / "text.txt").write_text(10 * text)
    return 10 * text


def arrays(run_dir):
    """The step of the last checkpoint, and the bytes of all of its arrays."""
    saved = Checkpoints(run_dir / "checkpoints", read_only=True).latest()
    return str(saved.step), {name: array.tobytes() for name, array in saved._arrays.items()}


def wait_for_step(process, run_dir, step):
    """Wait until the records of the run have reached a step."""
    path = run_dir / "steps.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)


WINDOWS = ["--epochs", "3", "--dropout", "0.2"]
PLAIN_STREAMS = ["--epochs", "3", "--carry-state", "--forget", "0.1", "--validation", "0.1",
                 "--accumulate", "2"]  # fmt: skip
STREAMS = [*PLAIN_STREAMS, "--vocabulary", "bytes", "--weight-drop", "0.2"]


def kill_and_resume(program, start, tmp_path, mode, signals, seed=0):
    """Whatever ends the processes of a run, and when: it ends like one that nothing disturbed."""
    options = [*TINY, *mode, "--checkpoint-every", "1", "--steps-per-dispatch", "7"]
    program("text_generator", "train", *options, "--run-dir", "whole")
    whole = arrays(tmp_path / "whole")
    steps = (tmp_path / "whole" / "steps.jsonl").read_text()

    rng = random.Random(seed)
    victim = start("text_generator", "train", *options, "--run-dir", "killed")
    # Moments drawn over the run: when a step is reached, and a little later.
    moments = sorted(rng.randint(1, steps.count("\n")) for _ in signals)
    resume = "text_generator", "train", "--resume", "--run-dir", "killed"
    for turn, (number, moment) in enumerate(zip(signals, moments, strict=True)):
        if turn > 0:
            victim = start(*resume)
        wait_for_step(victim, tmp_path / "killed", moment)
        time.sleep(rng.random() * 0.1)
        os.kill(victim.pid, number)
        status = victim.wait(timeout=60)
        assert status in (-number, 128 + number, 0)
    program(*resume)  # in here, which spares a process
    assert arrays(tmp_path / "killed") == whole
    assert (tmp_path / "killed" / "steps.jsonl").read_text() == steps


@pytest.mark.parametrize(
    ("mode", "signals"),
    [
        pytest.param(WINDOWS, [signal.SIGTERM], marks=pytest.mark.slow),
        (PLAIN_STREAMS, [signal.SIGKILL]),
        pytest.param(STREAMS, [signal.SIGKILL, signal.SIGTERM], marks=pytest.mark.slow),
    ],
    ids=["windows", "streams", "streams twice"],
)
def test_killed_and_stopped_runs_end_like_the_undisturbed_one(
    program, start, long, tmp_path, mode, signals
):
    kill_and_resume(program, start, tmp_path, mode, signals)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("mode", [WINDOWS, STREAMS], ids=["windows", "streams"])
def test_twenty_moments(program, start, long, tmp_path, mode, number):
    which = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 4]
    kill_and_resume(program, start, tmp_path, mode, [which], seed=number)


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(program, start, long, tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can limit another process")
    # On one device, which the processes have; here are four, whose sums differ by rounding.
    options = [*TINY, *STREAMS, "--hidden-size", "64", "--checkpoint-every", "1", "--mesh", "1"]
    program("text_generator", "train", *options, "--run-dir", "whole")
    checkpoints = tmp_path / "full" / "checkpoints"
    begin = options
    for largest_file, message in [
        # Enough for records and plot, too little for the parameters; and too little for anything.
        (200_000, "the checkpoints before it are untouched"),
        (1000, "there is no room for what was to be written"),
    ]:
        victim = start("text_generator", "train", *begin, "--run-dir", "full")
        before = names_of_steps(checkpoints)
        while victim.poll() is None and names_of_steps(checkpoints) == before:
            time.sleep(0.01)
        resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
        output, _ = victim.communicate(timeout=120)
        assert victim.returncode == 2
        assert message in output.decode()
        begin = ["--resume"]
    saved = names_of_steps(checkpoints)
    resumed = program("text_generator", "train", "--resume", "--run-dir", "full")
    assert f"going on from step {max(map(int, saved))}, after" in resumed.stdout
    assert arrays(tmp_path / "full") == arrays(tmp_path / "whole")


def names_of_steps(checkpoints):
    there = checkpoints.iterdir() if checkpoints.exists() else []
    return {path.name for path in there if path.name.isdigit()}


def test_a_damaged_last_checkpoint_costs_a_warning(program, text, tmp_path):
    options = [*TINY, "--epochs", "3", "--checkpoint-every", "1"]
    program("text_generator", "train", *options, "--run-dir", "run")
    whole = arrays(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / whole[0]
    for file in last.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-500])
    resumed = program("text_generator", "train", "--resume", "--run-dir", "run")
    assert "warning:" in resumed.stderr
    assert "is damaged" in resumed.stderr
    assert arrays(tmp_path / "run") == whole


def damage(path, rng):
    """Whatever may become of a file."""
    content = path.read_bytes()
    at = rng.randrange(max(1, len(content)))
    kind = rng.randrange(5)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(content[:at])
    elif kind == 2:
        path.write_bytes(bytes(len(content)))
    elif kind == 3:
        path.write_bytes(rng.randbytes(len(content) + rng.randint(0, 9)))
    else:
        byte = content[at] if content else 0
        path.write_bytes(content[:at] + bytes([byte ^ rng.randint(1, 255)]) + content[at + 1 :])


def damage_a_run(program, tmp_path, number, seed):
    """Damage any files of a run folder, and go on: exact, with a warning, or one sentence."""
    options = [*TINY, "--epochs", "3", "--checkpoint-every", "1", "--validation", "0.1"]
    program("text_generator", "train", *options, "--run-dir", "whole")
    whole, rng, ends = tmp_path / "whole", random.Random(seed), {0: 0, 2: 0}
    expected = arrays(whole)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    for _ in range(number):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        for path in rng.sample(files, rng.choice([1, 1, 2, 5])):
            damage(tmp_path / "run" / path, rng)
        resumed = program("text_generator", "train", "--resume", "--run-dir", "run", check=False)
        assert "Traceback" not in resumed.stderr
        ends[resumed.returncode] += 1
        if resumed.returncode == 0:
            assert arrays(tmp_path / "run") == expected
            generated = program("text_generator", "generate", "--run-dir", "run", "--length", "3")
            assert len(generated.stdout) == 5
        else:
            assert resumed.stderr.splitlines()[-1].startswith("error: ")
    return ends


def test_a_damaged_run_goes_on_exactly_or_says_why_not(program, text, tmp_path):
    assert damage_a_run(program, tmp_path, 5, seed=0)[0] > 0


@pytest.mark.slow
def test_hundreds_of_damaged_runs(program, text, tmp_path):
    print(damage_a_run(program, tmp_path, 300, seed=1))


def test_train_generate_evaluate(program, text, tmp_path):
    train = ["train", *TINY, "--epochs", "2"]
    trained = program("text_generator", *train, picture=True)
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

    generated = program("text_generator", "generate", "--prime", "The cat", "--length", "30")
    assert len(generated.stdout.splitlines()[0]) == 37
    assert generated.stdout.startswith("The cat")
    warm = ["generate", "--temperature", "0.9", "--length", "30", "--seed"]
    texts = [program("text_generator", *warm, seed).stdout.splitlines()[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]

    evaluated = program("text_generator", "evaluate")
    assert "bits per character, perplexity" in evaluated.stdout
    (tmp_path / "other.txt").write_text("The cat sat on a mat.")
    other = program("text_generator", "evaluate", "other.txt")
    assert other.stdout.startswith("other.txt: ")
    assert "over 20 characters" in other.stdout

    # More epochs go on from the end.
    more = program("text_generator", "train", "--resume", "--epochs", "3", "--run-dir", run_dir)
    assert "going on from step" in more.stdout
    assert len((run_dir / "epochs.jsonl").read_text().splitlines()) == 3
    changed = program("text_generator", "train", "--resume", "--layers", "2", check=False)
    assert changed.returncode == 2
    assert "--layers 2 cannot be changed: the run has 1" in changed.stderr
    (tmp_path / "text.txt").write_text(text[1:])
    moved = program("text_generator", "train", "--resume", check=False)
    assert moved.returncode == 2
    assert "is not the one that the run in" in moved.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--corpus", "nothing.txt"], "no file 'nothing.txt' exists"),
        (["train", "--corpus", "empty.txt"], "empty"),
        (["train", "--corpus", "short.txt"], "needs at least 101 ids"),
        (["train", "--corpus", "greek.txt"], "use --vocabulary learned"),
        (["train", "--corpus", "short.txt", "--batch-size", "0"], "--batch-size must be at least"),
        (["train", "--corpus", "short.txt", "--learning-rate", "0"], "must be above 0"),
        (["train", "--corpus", "short.txt", "--learning-rate", "inf"], "not including, inf"),
        (["train", "--corpus", "short.txt", "--layers", "two"], "invalid"),
        (["train", "--resume"], "there is no run under"),
        (["train", "--resume", "--run-dir", "."], "is not a run folder"),
        (["generate"], "train a model first"),
        (["generate", "--run-dir", "broken"], "there is no checkpoint in"),
        (["train", "--resume", "--run-dir", "broken"], "cannot be understood"),
        (["evaluate", "--run-dir", "nowhere"], "is not a run folder"),
    ],
)
def test_what_a_user_types_wrong_gets_one_sentence_and_status_2(
    program, tmp_path, arguments, message
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("only a few words")
    (tmp_path / "greek.txt").write_text("αβγδ" * 100)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "broken" / "checkpoints").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = program("text_generator", *arguments, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_generate_refuses_what_the_model_cannot_do(program, text, tmp_path):
    program("text_generator", "train", *TINY, "--epochs", "1", "--run-dir", "run")
    for arguments, message in [
        (["--prime", "naïve"], "'ï'"),
        (["--temperature", "-1"], "temperature must be a number from 0"),
        (["--length", "0"], "length must be at least 1"),
        (["--step", "5"], "there is no checkpoint of step 5"),
    ]:
        result = program("text_generator", "generate", "--run-dir", "run", *arguments, check=False)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def model():
    return CharacterModel.build(Architecture(layers=2, hidden_size=9), 68)


@pytest.fixture(scope="module")
def params(model, random_like):
    return random_like(lambda: model.init(jax.random.key(0)), 0)


def test_greedy_writing_is_the_most_probable_character_of_the_whole_text_so_far(model, params):
    """The carried state gives what the tutorial computes by reading everything again."""
    vocabulary = Vocabulary.tutorial()
    text = write_sample(model, vocabulary, Train(sample_length=12), params, epoch=1)
    assert len(text) == 13
    unroll = jax.jit(model.unroll)
    for end in range(1, len(text)):
        # Of one length, which is compiled once: what comes later is not read before.
        ids = vocabulary.encode(text[:end].ljust(len(text)))[:, None]
        _, logits = unroll(params, ids, model.initial_carry(1))
        assert np.asarray(logits)[end - 1, 0].argmax() == vocabulary.encode(text[end])[0]


def test_the_loss_leaves_out_windows_of_weight_0(model, params):
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


def test_each_row_of_an_evaluation_has_read_what_comes_before(model, params):
    """The first begins with the text, and the others 256 characters before their own part."""
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


def test_the_parts_of_a_text_are_the_text(long, tmp_path):
    """In their order, and nothing of one is in another."""
    options = Text(
        corpus=str(tmp_path / "text.txt"), validation=0.2, test=0.3, batch_size=4, seq_length=10
    )
    data = Data.load(options, seed=0)
    parts = [data.train, data.validation, data.test]
    np.testing.assert_array_equal(np.concatenate(parts), data.vocabulary.encode(long))
    np.testing.assert_allclose([len(p) / len(long) for p in parts], [0.5, 0.2, 0.3], atol=1e-3)


def test_an_epoch_reads_every_window_once(text, tmp_path):
    data = Data.load(Text(corpus=str(tmp_path / "text.txt"), batch_size=4, seq_length=10), seed=0)
    batches = {name: np.asarray(array) for name, array in data.batches(3).items()}
    assert batches["inputs"].shape == (data.steps_per_epoch, 4, 10)
    kept = batches["inputs"][batches["weights"] == 1]
    whole = [text[start : start + 10] for start in range(0, len(text) - 10, 10)]
    assert sorted(map(data.vocabulary.decode, kept)) == sorted(whole)


def test_a_long_curve_is_drawn_by_its_extremes():
    curve = np.stack([np.arange(1, 9004), np.random.default_rng(0).normal(size=9003)], axis=1)
    drawn = thinned(curve, groups=100)
    assert len(drawn) == 200
    assert (np.diff(drawn[:, 0]) > 0).all()
    for part in np.array_split(curve, 100):
        for extreme in (part[:, 1].min(), part[:, 1].max()):
            assert extreme in drawn[:, 1]
    np.testing.assert_array_equal(thinned(curve[:200], groups=100), curve[:200])


def test_the_model_of_a_run_that_deletes_it_meanwhile_was_read(program, text, tmp_path):
    """The other commands read beside a run that goes on."""
    program("text_generator", "train", *TINY, "--epochs", "3", "--checkpoint-every", "1",
            "--run-dir", "run")  # fmt: skip
    steps = sorted(map(int, names_of_steps(tmp_path / "run" / "checkpoints")))
    real = Saved.restore

    def restore(saved, like):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(steps[-1]), ignore_errors=True)
        return real(saved, like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saved, "restore", restore)
        assert Trained.load(tmp_path / "run").step == steps[-1]


BOOK = Path(__file__).parents[2].parent / "shared" / "data" / "alice_gutenberg11.txt"


@pytest.mark.slow
@pytest.mark.skipif(not BOOK.exists(), reason="the book is not beside the checkout")
def test_one_epoch_of_a_middle_sized_model_on_the_book(program):
    program("text_generator", "train", "--corpus", BOOK, "--layers", "1", "--hidden-size", "128",
            "--epochs", "3", "--run-dir", "run")  # fmt: skip
    result = program("text_generator", "evaluate", "--run-dir", "run")
    assert float(result.stdout.split(":")[-1].split()[0]) < 2.6
