"""What every program says of itself."""

import errno
import os
import re
import sys
from unittest.mock import Mock

import pytest

from experiments.__main__ import main, programs
from experiments.shared.runs import exit_with
from rnnjax import InvalidInputError
from rnnjax.interop.convert import make_parser

pytestmark = pytest.mark.smoke  # each program starts, and says what it takes

COMMANDS = [
    *(f"text_generator {c}" for c in ("train", "generate", "evaluate", "inspect", "export")),
    *(f"language_models {c}" for c in ("show", "generate", "finetune", "evaluate")),
]


def test_the_list_names_every_program_and_says_what_it_is(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Example: ")
    listed = [line.split()[2] for line in lines if line.startswith("  python")]
    assert sorted(listed) == [f"experiments.{name}" for name in programs()]
    assert "experiments.alphabet" in listed
    assert all(what.endswith((".", "?")) for what in programs().values())


@pytest.mark.parametrize("name", [*programs(), *COMMANDS])
def test_help_begins_with_an_example(program, name):
    usage, example, text = program(*name.split(), "--help").stdout.split("\n\n")[:3]
    assert usage.startswith(f"usage: python -m experiments.{name}")
    assert re.match(rf"Example: python -m experiments\.{re.escape(name)}\b", example)
    assert text[0].isupper()


@pytest.mark.parametrize("command", [[], ["show"], ["convert"]])
def test_help_of_the_converter_begins_with_an_example(command, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([*command, "--help"])
    example = " ".join(["rnnjax", *command])
    assert f"\n\nExample: {example}" in capsys.readouterr().out


# What a user types wrong, where there are a text, two that cannot be read and a broken run.
TRAIN = "text_generator train --layers 1 --hidden-size 4 --seq-length 10 --corpus text.txt"
SHORT = "text_generator train --corpus short.txt"
WRONG = [
    ("alphabet --seq-length 26", "--seq-length must be from 1 to 25"),
    ("alphabet --epochs 0", "--epochs must be at least 1"),
    ("alphabet --learning-rate -1", "--learning-rate must be above 0"),
    ("alphabet --batch-size 5", "must divide the 25 inputs, and be 1 where the state"),
    ("tasks --tasks sorting", "there is no task sorting; there are parity"),
    ("tasks --cells RNN", "there is no cell RNN; there are LSTM"),
    ("tasks --seeds 0", "--seeds must be at least 1, but is 0"),
    ("language_models finetune tiny --corpus text.txt --weight-decay -1", "must not be negative"),
    ("cookbook forecasts", "there is no program forecasts; there are anomalies"),
    ("forecast --level 100", "--level must be at least 1 and at most 99, but is 100"),
    ("forecast nothing.csv", "nothing.csv must be a file to read, but is not"),
    ("forecast text.txt", "text.txt must have another name for each column"),
    ("cookbook.dynamics --cell Gru", "--cell must name a cell of rnnjax"),
    ("cookbook.dynamics --units 1", "--units must be at least 2 for a plane, but is 1"),
    ("cookbook.flip_flop --cell ProjectionLSTM", "but is ProjectionLSTM ("),
    ("cookbook.flip_flop --bits 4", "--bits must be at most 3, but is 4"),
    ("cookbook.rows_of_digits --epochs 1 0 1", "--epochs must be at least 1"),
    ("cookbook.ppo --tasks maze", "there is no task maze; there are t_maze, repeat_previous"),
    ("text_generator train --corpus nothing.txt", "no file 'nothing.txt' exists"),
    ("text_generator train --corpus greek.txt", "use --vocabulary learned"),
    (SHORT, "needs at least 101 ids"),
    (f"{SHORT} --learning-rate inf", "not including, inf"),
    (f"{SHORT} --layers two", "invalid"),
    (f"{TRAIN} --cell mingru --recurrent-dropout 0.1", "recurrent dropout needs a product"),
    (f"{TRAIN} --sample-temperature inf", "temperature must be a number from 0"),
    (f"{TRAIN} --seed {2**32}", "--seed must be at least 0 and at most 4294967295"),
    (f"{TRAIN} --epochs 2 --accumulate 100", "makes one update of so many steps, but the"),
    (f"{TRAIN} --tensorboard", "pip install tensorboardX"),
    (f"{TRAIN} --mesh 8", "a mesh must take some of the 4 devices, at least 1, but takes 8"),
    (f"{TRAIN} --mesh 2 --batch-size 3", "--mesh 2 divides --batch-size"),
    (f"{TRAIN} --mesh 0", '--mesh must be a number of devices (8) or "auto", but is'),
    (f"{TRAIN} --mesh 4x2", "the rows of a batch are divided, and hidden units are not"),
    ("text_generator train --resume", "there is no run under"),
    ("text_generator train --resume --run-dir broken", "cannot be understood"),
    ("text_generator generate", "train a model first"),
    ("text_generator generate --run-dir broken", "there is no checkpoint in"),
    ("text_generator evaluate --run-dir nowhere", "is not a run folder"),
    ("text_generator evaluate --page .", "--page should name a file"),
    ("text_generator evaluate --json a/b", "--json should name a file in a folder"),
    ("text_generator evaluate short.txt --page broken/../short.txt", "which it would replace"),
    ("text_generator evaluate --page a.html --json a.html", "one would replace the other"),
    ("text_generator inspect short.txt --to short.txt", "which it would replace"),
    ("text_generator inspect --to b.html --characters 1", "--characters must be at least 2"),
]


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize(("command", "message"), WRONG)
def test_a_wrong_use_gets_one_sentence_and_writes_nothing(
    refusal, tmp_path, monkeypatch, command, message
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    (tmp_path / "short.txt").write_text("only a few words")
    (tmp_path / "greek.txt").write_text("αβγδ" * 100)
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "broken" / "run.json").write_text("{")
    assert message in refusal(*command.split())
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == {"text.txt", "short.txt", "greek.txt", "broken", "checkpoints", "run.json"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), 2, "error: there is no room for what was to be"),
        (PermissionError(errno.EACCES, "no"), 2, "error: a file or folder could not be read or"),
        (MemoryError("9 GB"), 2, "error: there is not enough memory (9 GB); take a smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 2, "error: there is not enough memory"),
        (InvalidInputError("it must be so"), 2, "error: it must be so"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_ends_a_program_is_a_sentence_and_a_status(error, status, message, capsys):
    with pytest.raises(SystemExit) as end:
        exit_with(Mock(side_effect=error))
    assert end.value.code == status
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("length", [3, 10**6])
def test_a_program_whose_reader_has_enough_ends_in_silence(length, monkeypatch, capsys):
    """While it prints, or where what is left is flushed at the end."""
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as end:
            exit_with(lambda: print("x" * length) or 0)
    assert (end.value.code, capsys.readouterr().err) == (141, "")
