import io
import os
import pty
import random
import select
import signal
import sys

import jax
import numpy as np
import pytest

from experiments.text_generator.__main__ import main
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.trained import Trained
from rnnjax.text import Sampling, sample, streaming
from rnnjax.text.sampling import draw

FOREVER = str(10**9)


SMALL = {"hidden_size": 8, "seq_length": 10}


@pytest.fixture(scope="module")
def run_dir(untrained, tmp_path_factory):
    """A model that has learned nothing, so that all its characters occur."""
    rng = random.Random(0)
    text = "".join(rng.choice("abcde. \n") for _ in range(300)) + "é"
    return untrained(tmp_path_factory.mktemp("learned"), text, vocabulary="learned", **SMALL)


@pytest.fixture(scope="module")
def trained(run_dir):
    return Trained.load(run_dir)


@pytest.fixture
def generate(generator, run_dir, monkeypatch):
    """Run the command on the model that has learned nothing."""

    def generate(*arguments, stdin="", run_dir=run_dir, **more):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        return generator("generate", "--run-dir", run_dir, *arguments, **more)

    return generate


@pytest.fixture
def written(generate):
    """The text that the command writes, with draws from seed 3."""

    def written(*arguments, **more):
        result = generate(*WARM, *arguments, **more)
        assert result.stderr.startswith("[")
        assert result.stdout.endswith("\n")
        return result.stdout[:-1]

    return written


WARM = ["--temperature", "1", "--length", "60", "--seed", "3"]


def test_the_text_alone_goes_to_the_standard_output(written, trained):
    text = written("--prime", "abé.\n")
    assert text == continued(trained, "abé.\n", Sampling(1.0))
    assert len(written()) == 61
    assert written() != written("--seed", "4")


def test_a_prime_can_come_from_a_file(written, tmp_path):
    long = "ab. " * 200  # longer than the pieces in which texts are read
    (tmp_path / "prime.txt").write_bytes(b"\xef\xbb\xbf" + long.encode() + b"\r\n")
    assert written("--prime-file", "prime.txt") == written("--prime", long + "\n")


def test_samples_are_the_same_however_many_there_are(written):
    for prime in ([], ["--prime", "abc"]):
        alone = written(*prime)
        texts = parts(written(*prime, "--samples", "3"), 3)
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


def test_a_stop_string_ends_each_sample_by_itself(written):
    whole = parts(written("--prime", "ab", "--samples", "3"), 3)
    stop = whole[1][19:22]
    ended = parts(written("--prime", "ab", "--samples", "3", "--stop", stop), 3)
    assert ended == [text[: 2 + (text[2:] + stop).find(stop)] for text in whole]
    assert len(ended[1]) < len(whole[1])
    assert len(ended[0]) != len(ended[1])


def test_every_filter_reaches_the_draws(written, trained):
    """Guards too that the last character of the prime text is read once."""
    texts = {written("--prime", "ab")}
    for arguments, sampling in [
        (["--temperature", "0"], Sampling(0.0)),
        (["--top-k", "7", "--top-p", "0.7", "--repetition-penalty", "50", "--penalty-window", "2"],
         Sampling(1.0, 7, 0.7, 50.0, 2)),
    ]:  # fmt: skip
        text = written("--prime", "ab", *arguments)
        assert text == continued(trained, "ab", sampling)
        texts.add(text)
    assert len(texts) == 3
    window = ["--prime", "ab", "--repetition-penalty", "1.3", "--penalty-window"]
    assert written(*window, 10**11) == written(*window, 62)  # the whole text


def continued(trained, prime, sampling):
    """With the key of the first sample."""
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), 0))[1]
    return prime + drawn_after(trained, prime, key, sampling)


def drawn_after(trained, text, key, sampling):
    """By one call from the whole text, which is read character by character."""
    ids, carry = trained.vocabulary.encode(text)[:, None], trained.model.initial_carry(1)
    for token in ids[:-1]:
        carry, _ = step(trained.model, trained.params, carry, token)
    _, drawn = sample(trained.model.step, trained.params, carry, ids[-1], key=key[None],
                      length=60, sampling=sampling, history=ids)  # fmt: skip
    return trained.vocabulary.decode(np.asarray(drawn)[:, 0])


step = jax.jit(CharacterModel.step, static_argnums=0)


def test_bfloat16_products_reach_the_step(written):
    many = ["--length", 1000, "--samples", 40]  # so many draws that rounding decides one of them
    assert written(*many, "--products", "bfloat16") != written(*many)


def test_bytes_are_written_as_text(written, generate, untrained, tmp_path):
    bytes_run = untrained(tmp_path, "naïve\n" * 40, vocabulary="bytes", **SMALL)
    trained = Trained.load(bytes_run)
    text = written("--prime", "naïve 日本", run_dir=bytes_run)
    assert text.startswith("naïve 日本")
    assert text == continued(trained, "naïve 日本", Sampling(1.0))
    read = generate(*WARM, "--prime", "a\udcff", run_dir=bytes_run)
    assert read.stdout.startswith("a\N{REPLACEMENT CHARACTER}")
    assert "[60 bytes in" in read.stderr


def test_the_second_text_compiles_nothing(written):
    texts = {written("--prime", "ab", "--seed", "1")}
    before = draw._cache_size(), streaming._read._cache_size()
    assert written("--prime", "ab", "--seed", "2") not in texts
    assert (draw._cache_size(), streaming._read._cache_size()) == before


def test_no_input_at_all_is_the_end_of_the_conversation(run_dir, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "generate", "--run-dir", str(run_dir), "--interactive"])
    monkeypatch.setattr(sys, "stdin", None)
    assert main() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "0"], "--length must be at least 1, but is 0"),
        (["--seed", str(2**32)], "at most 4294967295, but is 4294967296"),
        (["--temperature", "nan"], "temperature must be a number from 0"),
        (["--top-k", "-3"], "--top-k must not be negative"),
        (["--top-k", "2.5"], "invalid"),
        (["--prime", "xyz"], "'x', 'y', 'z'"),
        (["--prime", "a", "--prime-file", "b"], "--prime and --prime-file are both"),
        (["--prime-file", "nowhere.txt"], "--prime-file must name a text file, but nowhere.txt is"),
        (["--stop", "a☃"], "'☃' in 'a☃' is none of them"),
        (["--interactive", "--samples", "2"], "--interactive is one conversation"),
        (["--interactive", "--stop", "☃"], "--stop must be of characters that the model knows"),
    ],
)
def test_wrong_uses_get_one_sentence_and_status_2(generate, arguments, message):
    result = generate(*arguments, stdin="abc\n", check=False)
    assert (result.returncode, result.stdout, "Traceback" in result.stderr) == (2, "", False)
    assert message in result.stderr


@pytest.mark.parametrize(
    ("stop", "stopping"), [("\n", {True}), ("", {False}), ("bc", {True, False})]
)
def test_a_conversation_goes_on_from_all_that_was_said(generate, trained, stop, stopping):
    lines = ["abc", "", "ab é", "d", "/reset", "abc", "e.", "/quit", "abc"]
    options = ["--temperature", "1", "--seed", "3", "--length", "60", "--prime", "de."]
    options += [] if stop == "\n" else ["--stop", stop]
    result = generate("--interactive", *options, stdin="\n".join(lines))
    text, turn, expected, ends = "de.", 0, [], set()
    for line in lines[:-2]:
        if line == "/reset":
            text, turn = "de.", 0
            continue
        text += line + "\n"
        # What the model answers to all that was said, read from the start.
        key = jax.random.fold_in(jax.random.key(3), turn)
        written = drawn_after(trained, text, key, Sampling(1.0))
        said, stopped, _ = written.partition(stop or "what it cannot write")
        ends.add(bool(stopped))
        expected.append(said)
        text += said + (stopped or "\n")
        turn += 1
    assert result.stdout == "".join(said + "\n" for said in expected)
    assert ends == stopping
    assert result.stderr == ""  # no prompt where nobody types
    assert expected[0] == expected[4]  # nothing is left of what was forgotten


def test_unknown_characters_of_a_line_are_dropped_with_a_note(generate):
    options = ["--interactive", "--temperature", "1"]
    result = generate(*options, stdin="aXb☃cX\n")
    assert result.stderr == ("note: dropped 'X', '☃', which the model has never seen in training\n")
    assert result.stdout == generate(*options, stdin="abc\n").stdout
    assert generate(*options, stdin="").stdout == ""


def test_on_a_terminal_characters_arrive_as_they_are_made(start, run_dir):
    """The text has no end within a lifetime, so what arrives cannot have waited for it."""
    ours, theirs = pty.openpty()
    options = ["--run-dir", run_dir, "--interactive", "--temperature", 1, "--length", FOREVER]
    files = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start("text_generator", "generate", *options, "--stop", "", files=files)
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
    seen = b""
    while not enough(seen) and select.select([terminal], [], [], 120)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
    return seen
