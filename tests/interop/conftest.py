import io
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from rnnjax.interop.keras import files, hdf5


@pytest.fixture(autouse=True)
def read_in_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 is read by the same program, but not in a process of its own: each takes 0.3 s."""
    if "process_of_its_own" in request.fixturenames:
        return

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        out, (path, most_bytes, size) = io.BytesIO(), command[-3:]
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(hdf5, "_limit", lambda *_: None)
            patch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
            hdf5.main(path, int(most_bytes), int(size))
        return subprocess.CompletedProcess(command, 0, out.getvalue(), b"")

    monkeypatch.setattr(files, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))


@pytest.fixture
def process_of_its_own() -> None:
    """HDF5 is read as users read it."""
