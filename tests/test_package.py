import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import rnnjax

ROOT = Path(__file__).parents[1]
CALL = re.compile(r"^\s*(?:- run: |.*entry: )?make ([a-z][\w-]*)", re.M)


def test_what_is_built_holds_the_library_and_can_run_the_readme_commands(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rnnjax"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "rnnjax").rglob("*.py")}
    words = {f"rnnjax/from/{path.name}" for path in (ROOT / "docs/from").glob("*.md")}
    assert modules | words | {"rnnjax/py.typed"} <= set(names)
    assert "License-Expression: Apache-2.0" in metadata
    # What an index shows: no link leads into a folder that is not there.
    links = re.findall(r"\]\(([^)]+)\)", metadata.partition("\n\n")[2])
    assert len(links) > 10
    assert all(link.startswith("https://") for link in links)
    assert "\npip install rnnjax\n" in metadata
    assert "pip install '." not in metadata
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Makefile", "pyproject.toml", "hatch_build.py", "mkdocs.yml", "README.md"}
    needed |= {"requirements.lock", "requirements-oldest.lock", "docs/install.md", "conftest.py"}
    needed |= {str(p.relative_to(ROOT)) for p in (ROOT / "experiments").rglob("*.toml")}
    assert needed | {"tests/conftest.py"} <= names


def test_shapes_are_asked_of_numpy():
    """Converters of programs, as jax2onnx, take `jax.numpy.shape` for an operator of theirs."""
    found = [p for p in (ROOT / "rnnjax").rglob("*.py") if "jnp.shape(" in p.read_text()]
    assert found == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Steps", "; write rnnjax.engine.Steps"),
        ("Explanation", "; write rnnjax.engine"),
        ("Pooling", "; write rnnjax.layers.Pooling"),
        ("Packed", "; write rnnjax.packing.Packed"),
        ("Metrics", "; write rnnjax.training.Metrics"),
    ],
)
def test_a_missing_name_is_told_by_the_one_that_is_meant(name, meant):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'{meant}"):
        getattr(rnnjax, name)


def test_what_a_room_imports_is_no_advice():
    """Such as NumPy for ``rnnjax.np``, or its own files."""
    rooms = [
        importlib.import_module(f"rnnjax.{name}")
        for name in ("cells", "engine", "errors", "layers", "packing", "training", "testing")
    ]
    told = {}
    for name in {name for room in rooms for name in vars(room)} - {*dir(rnnjax)}:
        with pytest.raises(AttributeError) as caught:
            getattr(rnnjax, name)
        told[name] = str(caught.value).partition("; write ")[2]
    public = [path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md")]
    public = " ".join([*public, *rnnjax.training.__all__, "Params", "Pooling"])
    assert {"np", "jax", "Any", "step", "brief", "optimizers"} <= told.keys()
    assert sorted(name for name, meant in told.items() if meant and name not in public) == []
    assert not any(told[name] for name in ("np", "jax", "Any", "step", "brief", "optimizers"))


def test_the_tests_for_every_version_are_there():
    core = re.search(
        r"^CORE := .*?suffix \.py,(.*?)\)\)", (ROOT / "Makefile").read_text(), re.M | re.S
    )
    names = core[1].replace("\\", "").split()
    assert len(names) > 9
    assert [name for name in names if not (ROOT / f"tests/test_{name}.py").is_file()] == []


def test_what_calls_make_names_its_targets():
    """The workflows, CI and the hooks are thin, so that all they do can be tried here."""
    rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.M)
    targets = {target for rule in rules for target in rule.split()}
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".ci/run", ROOT / ".pre-commit-config.yaml"]
    called = {name for path in files for name in CALL.findall(path.read_text())}
    needed = {"test", "lint", "docs", "dist", "test-library", "test-shard", "test-oldest"}
    assert needed <= called <= targets


KINDS = (  # of change, which the map in CONTRIBUTING.md leads through; and words of the row
    ("a cell", ""), ("an option of a cell", "Write a class instead where"), ("a method", ""),
    ("an option of `unroll`", ""), ("an option of `unroll` that returns more", "typing.overload"),
    ("a hook of `fit`", ""), ("a program", ""), ("a family of language models", "make durations"),
)  # fmt: skip


def test_the_map_names_files_that_exist_and_has_each_kind_of_change():
    """Guards names too: where it says "`NAME` in `FILE`", that file has the name."""
    table = (
        (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to begin")[2].split("\n\n")[1]
    )
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    for kind, words in KINDS:
        (row,) = (read + touch for name, read, touch in rows if name == kind)
        assert words in row, kind
    for kind, *told in rows:
        text = " | ".join(told)
        # Paths from the root, in commands too; a bare name stands in a folder that the row names.
        paths = re.findall(
            r"(?<![\w/.])((?:[\w-]+/)+[\w-]+(?:\.\w+)?|[\w-]+\.(?:py|yml|md|txt))", text
        )
        folders = {(ROOT / path).parent for path in paths if "/" in path} | {ROOT}
        lost = [path for path in paths if not any((f / path).exists() for f in folders)]
        assert not lost, (kind, lost)
        for name, path in re.findall(r"`(\w+)(?:\(\))?` (?:in|of) `([\w/-]+\.py)`", text):
            file = next(f / path for f in folders if (f / path).exists())
            assert re.search(rf"\b{name}\b", file.read_text()), (kind, name, path)


@pytest.mark.parametrize(
    ("tag", "addresses", "ready"),
    [("v0.1.0", "own.dev", True), ("v0.1.1", "own.dev", False), ("v0.1.0", "example.org", False)],
)
def test_only_the_tag_of_the_version_is_published(tmp_path, tag, addresses, ready):
    """From a project with addresses of its own."""
    project = (ROOT / "pyproject.toml").read_text().replace("example.org", addresses)
    (tmp_path / "pyproject.toml").write_text(project)
    command = ["make", "-C", tmp_path, "-f", ROOT / "Makefile", "tagged", f"TAG={tag}"]
    assert (subprocess.run(command, capture_output=True).returncode == 0) == ready


def test_every_file_of_tests_is_in_a_shard():
    def files(shard):
        command = ["make", "-n", "test-shard", f"SHARD={shard}", "SHARDS=3", "VENV=."]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return {word for word in out.split() if word.startswith(("tests/", "rnnjax/"))}

    shards = [files(shard) for shard in (1, 2, 3)]
    together = set.union(*shards)
    assert sum(map(len, shards)) == len(together)
    assert together >= {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py")}
    assert together >= {
        f"rnnjax/{p.name}" for p in (ROOT / "rnnjax").iterdir() if p.suffix == ".py"
    }


def test_two_pythons_share_the_tests_but_the_laws(tmp_path):
    """Also where several processes run them."""
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_a.py").write_text("def test_passes(): pass\ndef test_fails(): assert 0\n")
    (tmp_path / "test_laws.py").write_text("def test_law(): pass\n")

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options]
        ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        return set(re.findall(r"^(?:PASSED|FAILED) \w+\.py::(\w+)", ended.stdout, re.MULTILINE))

    assert run("-n", "2", "--passed", "seen/passed") == {"test_passes", "test_fails", "test_law"}
    assert run("--but", "seen/passed") == {"test_fails", "test_law"}


@pytest.mark.parametrize("goals", ["docs dist", "parity docs", "demo lint"])
def test_one_environment_is_made_once_whatever_is_made_side_by_side(tmp_path, goals):
    """By a Python and tools that do nothing but say when two of pip are at work."""
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    for name in ("Makefile", "README.md", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs").mkdir()
    command = ["make", "-j4", *goals.split(), f"PYTHON={stub}", f"VENV={tmp_path}/venv"]
    own = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    own.pop("SIDE_BY_SIDE", None)  # of the make that runs the tests
    subprocess.run(command, cwd=tmp_path, env=own, check=True, capture_output=True)
    log = (tmp_path / "log").read_text().split()
    assert log.count("venv") == 1
    assert log.count("begins") == log.count("ends") > 1
    assert "begins begins" not in " ".join(log)


STUB = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
case "$(basename "$0") $*" in
*" -m venv "*)
    echo venv >> "$here/log"
    mkdir -p "$3/bin"
    for name in python pip ruff mypy lint-imports twine check-wheel-contents; do
        ln -sf "$here/stub" "$3/bin/$name"
    done ;;
"pip install"*)
    echo begins >> "$here/log"
    sleep 0.1
    echo ends >> "$here/log" ;;
esac
"""


def test_importing_the_library_is_quick_and_rooms_come_when_they_are_named():
    code = (
        "import jax, sys, time; start = time.process_time(); import rnnjax;"
        "print(time.process_time() - start);"
        "more = 'flax', 'optax', 'orbax', 'pooch', 'rnnjax.training';"
        "print([m for m in more if m in sys.modules]);"
        "assert {'training', 'linen', 'LSTMCell'} <= set(dir(rnnjax));"
        "rnnjax.training.fit, rnnjax.testing.check_cell, rnnjax.online.RTRL, rnnjax.text.sampling;"
        "rnnjax.interop.keras.load, rnnjax.linen.RNN, rnnjax.nnx.RNN"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, brought = out.stdout.splitlines()
    assert float(seconds) < 2
    assert brought == "[]"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-oldest.lock"])
def test_a_lock_pins_versions_and_names_no_host(lock):
    lines = (ROOT / lock).read_text().splitlines()
    assert len(lines) > 20
    pin = r"[a-z0-9.-]+==[a-z0-9.+!-]+( ; [A-Za-z0-9_.'<>=!*() ]+)?"
    assert all(re.fullmatch(pin, line) for line in lines)


def test_versions_agree_and_the_oldest_lock_has_the_lowest_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rnnjax.__version__
    lines = (ROOT / "requirements-oldest.lock").read_text().splitlines()
    pins = dict(line.partition(" ;")[0].split("==") for line in lines[::-1])
    for bound in project["dependencies"]:
        name, version = bound.split(">=")
        assert f"{pins[name]}.".startswith(f"{version}."), bound
