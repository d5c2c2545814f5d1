"""The examples of the README's "Bring your model" run as they stand."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "jax"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Bring your model") :]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", SECTION[: SECTION.index("\n## ", 5)], re.M | re.S)


# Keras 3.15 converts its variables in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize(
    ("needed", "size"), [("keras", 2), ("torch", 16), ("flax", 16), ("onnx", 8)]
)
def test_the_example_runs(
    needed: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in BLOCKS if f"{needed} as from_{needed}" in block)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert np.shape(names["ys"])[1:] == (4, size)


def test_there_is_one_for_each() -> None:
    assert len(BLOCKS) == 4
