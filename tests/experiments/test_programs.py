"""What every program says of itself."""

import re
import subprocess
import sys

import pytest

from experiments.__main__ import main, programs
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


def test_the_list_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "experiments"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "experiments.t_maze" in out
