"""What the tests of C share: compilers, and a compiled step with its state."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STRICT = ["-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"the compiler {name} is not installed")
    return path


def library(folder: Path, *options: str, by: str = "gcc") -> ctypes.CDLL:
    """All files of a folder, compiled by one call of a compiler."""
    sources = sorted(map(str, folder.glob("*.c")))
    way = ["-x", "c++", "-std=c++11"] if "++" in by else ["-std=c99"]
    command = [compiler(by), *way, *STRICT, "-O1", *options, "-shared", "-fPIC", *sources, "-lm"]
    done = subprocess.run([*command, "-o", str(folder / "all.so")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "all.so"))


def parts_of(cell: Any, xs: np.ndarray) -> list[np.ndarray]:
    """What a step is given: the inputs of the product, and raw features by their names."""
    ends = np.cumsum([xs.shape[-1] - cell.raw_size, *cell.raw.values()])[:-1]
    return [part for part in np.split(xs, ends, -1) if part.size]


class Stream:
    """A state of a compiled step."""

    def __init__(self, lib: ctypes.CDLL, folder: Path, name: str) -> None:
        self.lib, self.name = lib, name
        sizes = re.findall(r"#define (\w+) (\d+)", (folder / f"{name}.h").read_text())
        self.sizes = {key[len(name) + 1 :]: int(n) for key, n in sizes}
        held = self.sizes["STATE_BYTES"] + self.sizes["SCRATCH_BYTES"]
        self.state = np.full(held // 4 + 16, np.nan, np.float32)
        self.call("reset", self.state)

    def call(self, function: str, *arrays: np.ndarray) -> None:
        run = getattr(self.lib, f"{self.name}_{function}")
        run(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))

    def step(self, *inputs: Any, outputs: Sequence[str] = ("Y",)) -> Any:
        ys = [np.full(self.sizes[f"SIZE_OF_{name}"], np.nan, np.float32) for name in outputs]
        self.call("step", self.state, *map(np.ascontiguousarray, inputs), *ys)
        return ys[0] if len(ys) == 1 else ys
