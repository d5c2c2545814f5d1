import dataclasses
import io
import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments import runs
from experiments.text_generator.__main__ import main
from experiments.text_generator.config import Architecture, Text, Train
from experiments.text_generator.generate import Author, Decoder, begin, sample_keys
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.trained import Trained
from rnnjax.text import ByteVocabulary, Sampling, Vocabulary, sample

FOREVER = str(10**9)


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, untrained):
    def make_run(vocabulary, text):
        folder = tmp_path_factory.mktemp(vocabulary)
        (folder / "text.txt").write_text(text, encoding="utf-8")
        read = Text(str(folder / "text.txt"), vocabulary=vocabulary, seq_length=10)
        model = Architecture(layers=1, hidden_size=8)
        return untrained(Train(text=read, model=model, run_dir=folder / "run"))

    return make_run


@pytest.fixture(scope="module")
def run_dir(make_run):
    """A model that has learned nothing, so that all its characters occur."""
    rng = random.Random(0)
    return make_run("learned", "".join(rng.choice("abcde. \n") for _ in range(300)) + "é")


@pytest.fixture(scope="module")
def bytes_run(make_run):
    return make_run("bytes", "naïve\n" * 40)


@pytest.fixture(scope="module")
def trained(run_dir):
    return Trained.load(run_dir)


def write(model, vocabulary, params, *, prime, length, temperature, key):
    """Continue ``prime``, or one random character if it is empty."""
    author = Author(model, vocabulary, params, Sampling(temperature), length)
    position, keys = begin(author, prime, key[None])
    pieces = [position.ids[:, 0], *(row for (row,) in author.write(position, keys, []))]
    return vocabulary.decode(np.concatenate(pieces))


class Result:
    def __init__(self, status, stdout, stderr):
        self.status, self.stdout, self.stderr = status, stdout, stderr


def command(*arguments):
    return [sys.executable, "-m", "experiments.text_generator", "generate", *map(str, arguments)]


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.slow)])
def generate(request, environment, monkeypatch, capsys):
    """Run the command line here, which is quick, or in a process of its own."""

    def process(*arguments, stdin=""):
        ended = subprocess.run(
            command(*arguments), env=environment(), input=stdin, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        return Result(ended.returncode, ended.stdout, ended.stderr)

    def here(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["text_generator", "generate", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runs.exit_with(main)
        return Result(end.value.code, *capsys.readouterr())

    return process if request.param == "process" else here


def text_of(generate, run_dir, *arguments):
    result = generate("--run-dir", run_dir, *arguments)
    assert result.status == 0, result.stderr
    assert result.stderr.startswith("[")
    assert result.stdout.endswith("\n")
    return result.stdout[:-1]


WARM = ["--temperature", "1", "--length", "60", "--seed", "3"]


def test_the_text_alone_goes_to_the_standard_output(generate, run_dir, trained):
    written = text_of(generate, run_dir, *WARM, "--prime", "abé.\n")
    expected = write(trained.model, trained.vocabulary, trained.params, prime="abé.\n", length=60,
                     temperature=1.0, key=runs_key(3))  # fmt: skip
    assert written == expected
    assert len(written) == 65
    assert len(text_of(generate, run_dir, *WARM)) == 61
    assert text_of(generate, run_dir, *WARM) != text_of(generate, run_dir, *WARM[:-1], "4")


def runs_key(seed):
    """That of the first sample."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def test_a_prime_can_come_from_a_file(generate, run_dir, tmp_path):
    long = "ab. " * 200  # longer than the pieces in which texts are read
    (tmp_path / "prime.txt").write_bytes(b"\xef\xbb\xbf" + long.encode() + b"\r\n")
    from_file = text_of(generate, run_dir, *WARM, "--prime-file", tmp_path / "prime.txt")
    assert from_file == text_of(generate, run_dir, *WARM, "--prime", long + "\n")


def test_samples_are_the_same_however_many_there_are(generate, run_dir):
    for prime in ([], ["--prime", "abc"]):
        alone = text_of(generate, run_dir, *WARM, *prime)
        three = text_of(generate, run_dir, *WARM, *prime, "--samples", "3")
        texts = parts(three, 3)
        assert texts[0] == alone
        assert len(set(texts)) == 3
        assert {len(text) for text in texts} == {len(alone)}


def parts(printed, samples):
    texts = []
    for number in range(samples, 0, -1):
        printed, text = printed.split(f"--- sample {number} of {samples} ---\n")
        texts.append(text.removesuffix("\n") if number < samples else text)
    assert printed == ""
    return texts[::-1]


def test_a_stop_string_ends_each_sample_by_itself(generate, run_dir):
    whole = parts(text_of(generate, run_dir, *WARM, "--prime", "ab", "--samples", "3"), 3)
    stop = whole[1][19:22]
    ended = parts(
        text_of(generate, run_dir, *WARM, "--prime", "ab", "--samples", "3", "--stop", stop), 3
    )
    assert ended == [text[: 2 + (text[2:] + stop).find(stop)] for text in whole]
    assert len(ended[1]) < len(whole[1])
    assert len(ended[0]) != len(ended[1])


def test_every_filter_reaches_the_draws(generate, run_dir, trained):
    texts = {text_of(generate, run_dir, *WARM, "--prime", "ab")}
    for arguments, sampling in [
        (["--temperature", "0"], Sampling(0.0)),
        (["--top-k", "7", "--top-p", "0.7", "--repetition-penalty", "50", "--penalty-window", "2"],
         Sampling(1.0, 7, 0.7, 50.0, 2)),
    ]:  # fmt: skip
        written = text_of(generate, run_dir, *WARM, "--prime", "ab", *arguments)
        assert written == continued(trained, "ab", 60, sampling, runs_key(3))
        texts.add(written)
    assert len(texts) == 3


def continued(trained, prime, length, sampling, key):
    """By one call from the whole text."""
    ids = trained.vocabulary.encode(prime)[:, None]
    _, drawn = sample(trained.model.step, trained.params, read_by_hand(trained, ids[:-1]), ids[-1],
                      key=jax.random.split(key)[1][None], length=length, sampling=sampling,
                      history=ids)  # fmt: skip
    return prime + trained.vocabulary.decode(np.asarray(drawn)[:, 0])


step = jax.jit(CharacterModel.step, static_argnums=0)


def read_by_hand(trained, ids):
    """The state after characters ``(time, 1)``, one after the other."""
    carry = trained.model.initial_carry(1)
    for token in ids:
        carry, _ = step(trained.model, trained.params, carry, token)
    return carry


def test_bfloat16_products_reach_the_step(generate, run_dir, trained):
    length, rows = 1000, 40  # so many draws that the rounding decides one of them
    printed = []
    for products in ("float32", "bfloat16"):
        author = Author(trained.model, trained.vocabulary, trained.params, Sampling(1.0), length,
                        products)  # fmt: skip
        position, keys = begin(author, "ab", sample_keys(jax.random.key(3), rows))
        drawn = zip(*author.write(position, keys, []), strict=True)
        expected = ["ab" + trained.vocabulary.decode(np.concatenate(row)) for row in drawn]
        options = ["--length", length, "--samples", rows, "--products", products]
        printed.append(text_of(generate, run_dir, *WARM, "--prime", "ab", *options))
        assert parts(printed[-1], rows) == expected
    assert printed[0] != printed[1]


def test_bytes_are_written_as_text(generate, bytes_run):
    trained = Trained.load(bytes_run)
    written = text_of(generate, bytes_run, *WARM, "--prime", "naïve 日本")
    ids = write(trained.model, trained.vocabulary, trained.params, prime="naïve 日本", length=60,
                temperature=1.0, key=runs_key(3))  # fmt: skip
    assert written == ids
    assert written.startswith("naïve 日本")


def test_the_second_text_compiles_nothing(trained):
    from rnnjax.text import drawing, streaming

    def text(seed):
        return write(trained.model, trained.vocabulary, trained.params, prime="ab", length=9,
                     temperature=1.0, key=jax.random.key(seed))  # fmt: skip

    text(0)
    before = drawing.draw._cache_size(), streaming._read._cache_size()
    assert text(1) != text(2)
    assert (drawing.draw._cache_size(), streaming._read._cache_size()) == before


def test_a_byte_that_is_no_character_is_read_as_itself(generate, bytes_run):
    read = text_of(generate, bytes_run, *WARM, "--prime", "a\udcff")
    assert read.startswith("a\N{REPLACEMENT CHARACTER}")
    assert ByteVocabulary().encode("é\udcffa").tolist() == [0xC3, 0xA9, 0xFF, ord("a")]
    ended = generate("--run-dir", bytes_run, *WARM, "--prime", "a")
    assert "[60 bytes in" in ended.stderr


def test_a_window_longer_than_the_text_is_the_whole_text(generate, run_dir):
    options = [*WARM, "--prime", "ab", "--repetition-penalty", "1.3", "--penalty-window"]
    assert text_of(generate, run_dir, *options, 10**11) == text_of(generate, run_dir, *options, 62)


def test_no_input_at_all_is_the_end_of_the_conversation(run_dir, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "generate", "--run-dir", str(run_dir), "--interactive"])
    monkeypatch.setattr(sys, "stdin", None)
    assert main() == 0


def test_a_decoder_waits_for_the_whole_character():
    vocabulary = ByteVocabulary()
    rng = np.random.default_rng(0)
    text = "".join(map(chr, rng.choice([65, 233, 0x65E5, 0x1F600], 50)))
    for ids in (vocabulary.encode(text), rng.integers(0, 256, 200), np.array([65, 0xF0, 0x9F])):
        cuts = np.sort(rng.integers(0, len(ids), 40))
        decoder = Decoder(vocabulary)
        pieces = [decoder.text(piece) for piece in np.split(ids, cuts)]
        assert "".join(pieces) + decoder.end() == vocabulary.decode(ids)
    decoder = Decoder(Vocabulary("né"))
    assert decoder.text(np.array([0, 1])) + decoder.end() == "né"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "0"], "--length must be at least 1, but is 0"),
        (["--samples", "0"], "--samples must be at least 1, but is 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", str(2**32)], "at most 4294967295, but is 4294967296"),
        (["--repetition-penalty", "1e-46"], "repetition_penalty must be a number above 0"),
        (["--temperature", "1e39"], "temperature must be a number from 0"),
        (["--temperature", "-1"], "temperature must be a number from 0"),
        (["--temperature", "nan"], "but is nan"),
        (["--top-k", "-3"], "--top-k must not be negative"),
        (["--top-k", "2.5"], "invalid"),
        (["--top-p", "0"], "top_p must be a number above 0"),
        (["--top-p", "1.5"], "but is 1.5"),
        (["--repetition-penalty", "0"], "repetition_penalty must be a number above 0"),
        (["--penalty-window", "0"], "--penalty-window must be at least 1"),
        (["--prime", "xyz"], "'x', 'y', 'z'"),
        (["--prime", "a", "--prime-file", "b"], "--prime and --prime-file are both"),
        (["--prime-file", "nowhere.txt"], "no file 'nowhere.txt' exists"),
        (["--stop", "a☃"], "'☃' in 'a☃' is none of them"),
        (["--interactive", "--samples", "2"], "--interactive is one conversation"),
        (["--interactive", "--stop", "☃"], "--stop must be of characters that the model knows"),
        (["--interactive", "--prime", "xyz"], "'x', 'y', 'z'"),
    ],
)
def test_wrong_uses_get_one_sentence_and_status_2(generate, run_dir, arguments, message):
    result = generate("--run-dir", run_dir, *arguments, stdin="abc\n")
    assert (result.status, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("generate", ["here"], indirect=True)  # another process has the whole model
def test_a_model_without_numbers_is_an_error(generate, run_dir, monkeypatch, trained):
    nothing = jax.tree.map(lambda a: np.full_like(a, np.nan), trained.params)
    broken = dataclasses.replace(trained, params=nothing)
    monkeypatch.setattr(Trained, "load", lambda *_: broken)
    result = generate("--prime", "ab")
    assert result.status == 2
    assert "logits must have a finite maximum, but those for character 0 of row 0" in result.stderr


def answer(trained, text, turn, length, stop="\n"):
    """What the model answers to all that was said, read from the start, and whether it stopped."""
    ids = trained.vocabulary.encode(text)[:, None]
    key = jax.random.fold_in(jax.random.key(3), turn)
    _, drawn = sample(trained.model.step, trained.params, read_by_hand(trained, ids[:-1]), ids[-1],
                      key=key[None], length=length, temperature=1.0)  # fmt: skip
    written = trained.vocabulary.decode(np.asarray(drawn)[:, 0])
    found = written.find(stop) if stop else -1
    return (written, False) if found < 0 else (written[:found], True)


@pytest.mark.parametrize("stop", ["\n", "", "a"], ids=repr)
def test_a_conversation_goes_on_from_all_that_was_said(generate, run_dir, trained, stop):
    lines = ["abc", "", "ab é", "/reset", "abc", "e.", "/quit", "abc"]
    options = ["--temperature", "1", "--seed", "3", "--length", "60", "--prime", "de."]
    options += [] if stop == "\n" else ["--stop", stop]
    result = generate("--run-dir", run_dir, "--interactive", *options, stdin="\n".join(lines))
    assert result.status == 0, result.stderr
    text, turn, expected, ends = "de.", 0, [], set()
    for line in lines[:-2]:
        if line == "/reset":
            text, turn = "de.", 0
            continue
        text += line + "\n"
        said, stopped = answer(trained, text, turn, 60, stop)
        ends.add(stopped)
        expected.append(said)
        text += said + (stop if stopped else "\n")
        turn += 1
    assert result.stdout == "".join(said + "\n" for said in expected)
    assert (True in ends) == bool(stop)
    assert result.stderr == ""  # no prompt where nobody types
    assert expected[0] == expected[3]  # nothing is left of what was forgotten


def test_unknown_characters_of_a_line_are_dropped_with_a_note(generate, run_dir):
    options = ["--run-dir", run_dir, "--interactive", "--temperature", "1"]
    result = generate(*options, stdin="aXb☃cX\n")
    assert result.status == 0
    assert result.stderr == ("note: dropped 'X', '☃', which the model has never seen in training\n")
    assert result.stdout == generate(*options, stdin="abc\n").stdout
    assert generate(*options, stdin="").stdout == ""


@pytest.fixture
def piped(monkeypatch, capsys):
    """Run the command line here between two pipes, while another thread does what it is given."""

    def run(beside, *arguments):
        (stdin, to_it), (from_it, stdout) = os.pipe(), os.pipe()
        monkeypatch.setattr(sys, "argv", ["text_generator", "generate", *map(str, arguments)])

        def other():
            try:
                beside(to_it, from_it)
            finally:
                os.close(to_it)
                os.close(from_it)

        thread = threading.Thread(target=other)
        thread.start()
        with (
            open(stdin, encoding="utf-8") as reads,
            open(stdout, "w", encoding="utf-8") as writes,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", reads)
            patch.setattr(sys, "stdout", writes)
            with pytest.raises(SystemExit) as end:
                runs.exit_with(main)
        thread.join()
        return end.value.code, capsys.readouterr().err

    return run


def arrived(pipe, enough):
    """What a pipe has, as soon as it is enough, or after a minute."""
    seen, new = b"", b"begin"
    while new and not enough(seen) and select.select([pipe], [], [], 60)[0]:
        new = os.read(pipe, 300)
        seen += new
    return seen.decode(errors="ignore")


def test_each_answer_comes_before_the_next_line_is_read(piped, run_dir, trained):
    lines, answers = ["abc", "d e", ""], []

    def talk(to_it, from_it):
        for line in lines:
            os.write(to_it, f"{line}\n".encode())
            answers.append(arrived(from_it, lambda seen: seen.endswith(b"\n")))

    status, errors = piped(
        talk, "--run-dir", run_dir, "--interactive", "--temperature", 1, "--seed", 3, "--length",
        60,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    text = ""
    for turn, (line, answered) in enumerate(zip(lines, answers, strict=True)):
        text += line + "\n"
        said, stopped = answer(trained, text, turn, 60)
        assert stopped
        assert answered == said + "\n"
        text += said + "\n"


def test_a_pipe_that_breaks_ends_a_text_without_end(piped, run_dir):
    begins = []
    status, errors = piped(
        lambda _, from_it: begins.append(arrived(from_it, lambda seen: len(seen) >= 300)),
        "--run-dir", run_dir, "--temperature", 1, "--length", FOREVER, "--prime", "é",
    )  # fmt: skip
    assert (status, errors) == (141, "")
    assert begins[0].startswith("é")


# What follows needs processes: terminals, signals, and what Python does at its end.


# A shell starts what runs in its background, the tests too, with interrupts ignored.
HEED_INTERRUPTS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("experiments.text_generator", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def start(environment):
    processes = []

    def run(*arguments, **options):
        program = [sys.executable, "-c", HEED_INTERRUPTS, "generate", *map(str, arguments)]
        process = subprocess.Popen(program, env=environment(), **options)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


def test_on_a_terminal_characters_arrive_as_they_are_made(start, run_dir):
    """The text has no end within a lifetime, so what arrives cannot have waited for it."""
    ours, theirs = pty.openpty()
    process = start("--run-dir", run_dir, "--interactive", "--temperature", 1, "--length", FOREVER,
                    "--stop", "", stdin=theirs, stdout=theirs, stderr=theirs)  # fmt: skip
    os.close(theirs)
    seen = until(ours, lambda seen: seen.endswith(b"> "))
    assert b"/reset forgets" in seen
    os.write(ours, b"abX\n")
    seen = until(ours, lambda seen: len(seen) > 1500)
    assert b"note: dropped 'X'" in seen
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    seen = until(ours, lambda _: False)
    assert process.wait(timeout=60) == 130
    assert seen.endswith(b"\n")
    assert b"Traceback" not in seen
    os.close(ours)


def until(terminal, enough):
    seen, end = b"", time.monotonic() + 120
    while not enough(seen):
        left = end - time.monotonic()
        assert select.select([terminal], [], [], max(0, left))[0], (
            f"nothing more came: {seen[-200:]}"
        )
        assert left > 0, f"it has no end: {seen[-200:]}"
        try:
            new = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not new:
            break
        seen += new
    return seen


# An interrupt comes to a terminal above, and a pipe breaks there, too.
@pytest.mark.slow
@pytest.mark.parametrize("end", ["interrupt", "broken pipe"])
def test_writing_without_end_can_be_ended(start, run_dir, end):
    process = start("--run-dir", run_dir, "--temperature", 1, "--length", FOREVER, "--prime", "é",
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.read(300).decode("utf-8").startswith("é")
    if end == "interrupt":
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert rest.endswith(b"\n")
        assert process.returncode == 130
    else:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert errors == b""


@pytest.mark.slow
def test_what_a_terminal_cannot_show_is_written_as_its_number(run_dir, environment):
    ended = subprocess.run(
        command("--run-dir", run_dir, "--prime", "é", "--length", 1), capture_output=True,
        env=environment(PYTHONIOENCODING="ascii"), timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(b"\\xe9")


@pytest.mark.slow
def test_the_samples_of_a_pipe_that_breaks_late(run_dir, environment):
    """All of the text is in the pipe's buffer when it breaks, to be flushed at the end."""
    ended = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "bash",
         *command("--run-dir", run_dir, "--samples", 3, "--length", 20_000)],
        capture_output=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert ended.returncode == 141
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr
