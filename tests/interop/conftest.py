import io
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from rnnjax.interop.keras import files, hdf5

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported


@pytest.fixture(autouse=True)
def read_in_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 is read by the same program, but not in a process of its own: each takes 0.3 s."""
    if "process_of_its_own" in request.fixturenames or request.node.get_closest_marker("slow"):
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


@pytest.fixture(autouse=True)
def drawn_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras draws its weights without JAX, which compiles up to ten programs for each shape.

    The tests that look at numbers draw all weights anew, or begin with constants.
    """
    keras = sys.modules.get("keras")
    if keras is None:
        return
    assert keras.backend.backend() == "jax", "keras was imported with another backend before"
    rng, initializers = np.random.default_rng(0), keras.initializers

    def draw(self: Any, shape: Any, dtype: Any = None) -> jax.Array:
        drawn = 0.5 * rng.standard_normal(shape)
        return jax.device_put(drawn.astype(dtype or keras.config.floatx()))

    for kind in (initializers.Orthogonal, initializers.VarianceScaling, initializers.RandomUniform):
        monkeypatch.setattr(kind, "__call__", draw)
    for kind, value in ((initializers.Zeros, 0), (initializers.Ones, 1)):
        monkeypatch.setattr(
            kind,
            "__call__",
            lambda self, shape, dtype=None, value=value: jax.device_put(
                np.full(shape, value, dtype or keras.config.floatx())
            ),
        )


@pytest.fixture
def process_of_its_own() -> None:
    """HDF5 is read as users read it."""
