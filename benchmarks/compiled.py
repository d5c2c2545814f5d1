"""Programs compiled ahead of time for an accelerator that is not there, and what they consist of.

On a TPU a program's instructions are scheduled in bundles, one a cycle at best: of a loop their
number a step is a lower bound of its cycles, without stalls and copies. On a GPU each operation of
XLA's loop is a launch. Of several devices of a CPU it is what they send each other. All follow from
the compiler's version and the program alone; none is a time.
(XLA's own ``estimated_cycles`` are none either: they rank what is scheduled otherwise.)
"""

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# What XLA asks of a GPU where there is none (an H100 with 80 GB).
_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_MESSAGES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
# Operations of a loop's body that launch nothing.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "after-all"}


class Compiled(NamedTuple):
    """What a program consists of.

    Attributes:
        a_step: of all loops together, scheduled bundles of a TPU, or launches of a GPU; of a CPU's
            devices the bytes of the messages.
        messages: how many sums, gathers and exchanges between devices the program has, those in a
            loop once.
    """

    a_step: int
    messages: int


class Target:
    """A kind of accelerator; make one a process, before JAX compiles anything."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory()
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # or libtpu looks for the machine that has one
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # as there is none, two can compile for it
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={self._folder.name} --xla_jf_dump_llo_text=true"
        )
        if kind in ("cpu", "h100"):
            more = (
                "--xla_force_host_platform_device_count=8"
                if kind == "cpu"
                else f"--xla_gpu_cuda_data_dir={_cuda()}"
            )
            flags = f"--xla_dump_to={self._folder.name} {more}"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        if kind == "cpu":
            self.devices: Any = jax.devices("cpu")
            return
        from jax.experimental import topologies

        if kind == "h100":
            found = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology="1x1x1", target_config=_H100
            )
        else:
            found = topologies.get_topology_desc(TOPOLOGIES[kind], platform="tpu")
        self.devices = found.devices

    def mesh(self, devices: int = 1) -> Mesh:
        """So many devices in a row, ``over``."""
        auto = (jax.sharding.AxisType.Auto,)
        return Mesh(np.array(self.devices[:devices]), ("over",), axis_types=auto)

    def compile(
        self, function: Callable[..., Any], *shapes: Any, rows: Any = None, devices: int = 1
    ) -> Compiled:
        """Compile a function for arguments of some shapes.

        Args:
            function: what to compile.
            shapes: a tree for each argument.
            rows: for each how it lies over the devices, a tree like it or one for all of it; None:
                whole.
            devices: how many.
        """
        mesh = self.mesh(devices)
        specs = [PartitionSpec()] * len(shapes) if rows is None else rows
        arguments = [
            jax.tree.map(
                lambda s, a: jax.ShapeDtypeStruct(
                    a.shape, a.dtype, sharding=NamedSharding(mesh, s)
                ),
                jax.tree.broadcast(spec, tree),
                tree,
            )
            for tree, spec in zip(shapes, specs, strict=True)
        ]
        for file in Path(self._folder.name).rglob("*"):
            if file.is_file():
                file.unlink()
        jitted = function if hasattr(function, "lower") else jax.jit(function)
        return self._read(jitted.lower(*arguments).compile().as_text())

    def sent(self, name: str) -> Compiled:
        """What the devices of a CPU send each other in the last program of that name that ran."""
        files = Path(self._folder.name).glob(f"*{name}*cpu_after_optimizations.txt")
        text = max(files, key=lambda file: file.stat().st_mtime_ns).read_text()
        found = re.findall(rf" = (.*?) (?:{_MESSAGES})(?:-start)?\(", text)
        arrays = [each for types in found for each in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", types)]
        sizes = (
            int(bits) // 8 * math.prod(map(int, filter(None, shape.split(","))))
            for bits, shape in arrays
        )
        return Compiled(sum(sizes), len(found))

    def _read(self, text: str) -> Compiled:
        bundles, a_step = _bundles(Path(self._folder.name)), 0
        for body in set(re.findall(r" while\(.*body=%([\w.\-]+)", text)):
            operations = _operations(text, body)
            if self.kind == "h100":
                a_step += sum(kind not in _FREE for _, kind in operations)
            else:
                a_step += sum(bundles.get(name, 0) for name, _ in operations)
        messages = len(re.findall(rf" (?:{_MESSAGES})(?:-start)?\(", text))
        return Compiled(a_step, messages)


def _cuda() -> Path:
    """Where the compilers of the wheels are."""
    found = importlib.util.find_spec("nvidia.cu13")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("there is no nvidia.cu13; `make accelerators-gpu` installs it")
    return Path(found.submodule_search_locations[0])


def _bundles(folder: Path) -> dict[str, int]:
    """The scheduled bundles of each fusion and kernel, as the compiler wrote them down."""
    found = {}
    for file in folder.glob("*-schedule-analysis_final_bundles.txt"):
        name = re.sub(r"^\d+-|-\d+-schedule-analysis_final_bundles.txt$", "", file.name)
        total = re.search(r"total scheduled bundles:\s+(\d+)", file.read_text()[:1000])
        if total:
            found[name] = int(total[1])
    return found


def _operations(text: str, computation: str) -> list[tuple[str, str]]:
    """The names and kinds of the operations of a computation of an HLO module."""
    start = re.search(rf"^%{re.escape(computation)} \(.*\{{$", text, re.MULTILINE)
    if start is None:
        return []
    body = text[start.end() : text.index("\n}", start.end())]
    lines = re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$", body, re.MULTILINE)
    return [(name, _kind(rest)) for name, rest in lines]


def _kind(rest: str) -> str:
    """Return the operator of an instruction: ``add`` of ``f32[8]{0} add(...)``, tuples too."""
    found = re.search(r"(?:^|\s)([a-z][a-z\-0-9]*)\(", rest)
    return found[1] if found else ""
