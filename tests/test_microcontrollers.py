"""The page about C: its program in C prints what the page says, and 8 bits hear as well."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_helpers import STRICT, Stream, compiler, library

from benchmarks import keyword_bits

PAGE = Path(__file__).parents[1] / "docs" / "do" / "microcontrollers.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the Python of the page defines, run in a folder of its own."""
    defined: dict[str, Any] = {"__name__": "page", "folder": tmp_path_factory.mktemp("page")}
    with contextlib.chdir(defined["folder"]), contextlib.redirect_stdout(io.StringIO()):
        for block in blocks("python"):
            exec(compile(block, str(PAGE), "exec"), defined)
    return defined


def test_the_program_of_the_page_is_short() -> None:
    assert len(blocks("c")[0].splitlines()) <= 30


@pytest.mark.docs
def test_the_program_of_the_page_prints_what_it_says(names: dict[str, Any]) -> None:
    compiler("cc")
    folder = names["folder"]
    (folder / "main.c").write_text(blocks("c")[0])
    build, call = next(b for b in blocks("sh") if b.startswith("cc")).splitlines()
    subprocess.run([*shlex.split(build), *STRICT], cwd=folder, check=True)
    command, _, heard = call.partition(" < ")
    with (folder / heard).open("rb") as file:
        done = subprocess.run(command, cwd=folder, stdin=file, capture_output=True, check=True)
    assert done.stdout.decode() in blocks("text")


@pytest.mark.docs
def test_8_bits_hear_as_well(names: dict[str, Any]) -> None:
    folder, test = names["folder"], names["test"]
    (folder / "main.c").unlink(missing_ok=True)
    lib, right = library(folder), {}
    for name in ("spotter", "small"):
        said = []
        for row, length in enumerate(test["lengths"][0]):
            stream = Stream(lib, folder, name)
            said.append(sum(stream.step(x) for x in test["xs"][:length, row]).argmax())
        right[name] = np.mean(said == test["digits"][0])
    assert right["spotter"] == 1
    assert right["small"] > right["spotter"] - 0.005


@pytest.mark.slow
def test_the_command_of_the_page_measures_its_columns(monkeypatch: Any, capsys: Any) -> None:
    """On made tones, which are heard after a few epochs; the sizes are those of the page."""
    compiler("cc")
    monkeypatch.setattr(sys, "argv", ["keyword_bits", "--data", "made", "--epochs", "12"])
    keyword_bits.main()
    rows = re.findall(r"^\| (\w+) \| ([0-9.]+) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [weights for weights, *_ in rows] == ["float32", "int8"]
    for weights, right, sizes in rows:
        assert float(right) > 90
        assert f"| {weights} | 99.0 | {sizes} |" in TEXT


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_a_benchmark_without_its_data_ends_with_a_sentence(
    folder: str | None, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.delenv("RNNJAX_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["keyword_bits", *(["--data", folder] if folder else [])])
    monkeypatch.delitem(sys.modules, "benchmarks.keyword_bits")  # to be run as a program
    with pytest.raises(SystemExit) as end:
        runpy.run_module("benchmarks.keyword_bits", run_name="__main__")
    said = capsys.readouterr().err
    assert (end.value.code, said[:7], said.count("\n")) == (2, "error: ", 1)
