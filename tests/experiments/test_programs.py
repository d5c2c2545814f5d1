"""What every program says of itself."""

import errno
import re
import sys
from unittest.mock import Mock

import pytest

from experiments.__main__ import main, programs
from experiments.runs import exit_with
from rnnjax import InvalidInputError
from rnnjax.interop.convert import make_parser

COMMANDS = [f"text_generator {c}" for c in ("train", "generate", "evaluate", "inspect", "export")]


def test_the_list_names_every_program_and_says_what_it_is(capsys: pytest.CaptureFixture) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Example: ")
    listed = [line.split()[2] for line in lines if line.startswith("  python")]
    assert listed == [f"experiments.{name}" for name in programs()]
    assert len(listed) == 22
    assert all(what.endswith((".", "?")) for what in programs().values())


@pytest.mark.parametrize("name", [*programs(), *COMMANDS])
def test_help_begins_with_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module, *arguments = name.split()
    source = f"experiments.{module}" + ("" if module.startswith("cookbook.") else ".__main__")
    if module == "cookbook":
        source = "experiments.cookbook.__main__"
    __import__(source)
    monkeypatch.setattr(sys, "argv", ["program", *arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        sys.modules[source].main()
    assert end.value.code == 0
    usage, example, text = capsys.readouterr().out.split("\n\n")[:3]
    assert usage.startswith(f"usage: python -m experiments.{name}")
    assert re.match(rf"Example: python -m experiments\.{re.escape(name)}\b", example)
    assert text[0].isupper()


@pytest.mark.parametrize("command", [[], ["show"], ["convert"]])
def test_help_of_the_converter_begins_with_an_example(
    command: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args([*command, "--help"])
    example = " ".join(["rnnjax", *command])
    assert f"\n\nExample: {example}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), 2, "error: there is no room for what was to be"),
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
