import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rnnjax

ROOT = Path(__file__).parents[1]


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_the_library_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rnnjax"}
    assert "rnnjax/py.typed" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "rnnjax").rglob("*.py")}
    assert modules <= set(names)
    assert "License-Expression: Apache-2.0" in metadata


def test_importing_the_library_is_quick_and_brings_no_training_or_wrapper():
    out = run(
        "import jax, flax, sys, time; start = time.perf_counter(); import rnnjax;"
        "print(time.perf_counter() - start);"
        "print([m for m in ('optax', 'orbax', 'pooch', 'rnnjax.training') if m in sys.modules])"
    )
    seconds, brought = out.splitlines()
    assert float(seconds) < 2
    assert brought == "[]"


def test_flax_is_not_needed_to_import_the_core():
    assert run("import rnnjax, sys; print('flax' in sys.modules)").strip() == "False"


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rnnjax.__version__


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-oldest.lock"])
def test_a_lock_pins_versions_and_names_no_host(lock):
    lines = (ROOT / lock).read_text().splitlines()
    assert len(lines) > 20
    pin = r"[a-z0-9.-]+==[a-z0-9.+!-]+( ; [A-Za-z0-9_.'<>=!*() ]+)?"
    assert all(re.fullmatch(pin, line) for line in lines)


def test_the_oldest_lock_has_the_lowest_versions_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements-oldest.lock").read_text().splitlines()
    pins = dict(line.partition(" ;")[0].split("==") for line in lines[::-1])
    for bound in project["dependencies"]:
        name, version = bound.split(">=")
        assert f"{pins[name]}.".startswith(f"{version}."), bound


def test_the_public_names_exist():
    assert all(hasattr(rnnjax, name) for name in rnnjax.__all__)
    assert rnnjax.__all__ == sorted(rnnjax.__all__)


def test_the_readme_quick_start_runs_as_written():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    quick_start = next(block for block in blocks if block.startswith("import jax, rnnjax"))
    names = {}
    exec(quick_start, names)
    assert names["ys"].shape == (100, 8, 50)
    assert names["y"].shape == (8, 50)
    assert {name: array.shape for name, array in names["params"].items()} == {
        "kernel": (3, 200), "recurrent_kernel": (50, 200), "bias": (200,),
    }  # fmt: skip
