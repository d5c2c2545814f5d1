"""A model of other people, whole: silero-vad hears speech, chunk after chunk, as onnxruntime does.

Its files are those of the package ``silero-vad``, or of the folder that ``SILERO_VAD_DATA`` names.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import wave
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx_helpers import session

from rnnjax.interop import onnx as rnnjax_onnx

RATE, CHUNK, CONTEXT, CHUNKS = 16000, 512, 64, 300
FILES = ("silero_vad.onnx", "silero_vad_op18_ifless.onnx", "silero_vad_16k_op15.onnx")
TEXT = """
    The wind and the sun argued one day over which of them was the stronger. A traveller came along
    the road, wrapped in a warm cloak, and they agreed that the one who made him take it off had
    won. The wind blew as hard as it could, and the harder it blew, the closer he held the cloak.
"""


def folder() -> pathlib.Path | None:
    if "SILERO_VAD_DATA" in os.environ:
        return pathlib.Path(os.environ["SILERO_VAD_DATA"])
    found = importlib.util.find_spec("silero_vad")
    return pathlib.Path(found.origin).parent / "data" if found and found.origin else None


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Speech between silences, ``(300, 1, 576)``: each chunk behind the end of the one before."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("speech is made with espeak-ng")
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    subprocess.run(["espeak-ng", "-w", str(path), TEXT], check=True, timeout=60)
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        spoken = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 2**15
    seconds = np.arange(CHUNKS * CHUNK) / RATE - 1  # which begin with one of silence
    samples = np.interp(seconds, np.arange(len(spoken)) / rate, spoken, 0, 0)
    padded = np.concatenate([np.zeros(CONTEXT), samples]).astype(np.float32)
    return np.stack([padded[None, i * CHUNK :][:, : CONTEXT + CHUNK] for i in range(CHUNKS)])


@pytest.mark.parametrize("name", FILES)
def test_silero_vad_hears_what_onnxruntime_hears(name: str, chunks: np.ndarray) -> None:
    data = folder()
    if data is None or not (data / name).is_file():
        pytest.skip("the package silero-vad is not installed")
    model, runner = rnnjax_onnx.load(data / name), session(onnx.load(data / name))

    @jax.jit
    def step(chunk: jax.Array, state: jax.Array) -> Any:
        # The rate chooses a branch, so it is no array: one program is compiled for each.
        _, ys = model({"input": chunk, "state": state, "sr": RATE})
        return ys["output"], ys["stateN"]

    ours = theirs = np.zeros((2, 1, 128), np.float32)
    made = []
    for chunk in chunks:
        output, ours = step(jnp.asarray(chunk), ours)
        fed = {"input": chunk, "state": theirs, "sr": np.array(RATE)}
        expected, theirs = runner.run(["output", "stateN"], fed)
        made.append([output[0, 0], expected[0, 0], abs(ours - theirs).max(), abs(theirs).max()])
    heard, by_runtime, distances, sizes = np.array(made, np.float64).T
    assert heard.min() < 0.1
    assert heard.max() > 0.9
    assert abs(heard - by_runtime).max() < 1e-5
    assert distances.max() < 1e-5 * sizes.max()
