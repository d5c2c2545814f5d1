import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path):
    """Run ``python -m experiments.<name>`` in an empty folder, as a user would."""

    def run(name, *arguments, check=True):
        result = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def start(tmp_path):
    """Start a program and go on; it is ended with the test."""
    processes = []

    def run(name, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def environment():
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
