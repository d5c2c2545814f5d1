"""The text generator over several devices and processes."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.text_generator.checkpoints import sharding_of
from experiments.text_generator.config import Text, Train

TINY = ["--layers", "2", "--hidden-size", "16", "--batch-size", "8", "--seq-length", "10",
        "--corpus", "text.txt", "--sample-length", "4"]  # fmt: skip


def ends(status, *processes):
    """The outputs of processes that have to end with this status."""
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return outputs


def two(start, port, devices, *arguments):
    """The program in two processes that meet on this machine."""
    meet = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        start("text_generator", *arguments, devices=devices, JAX_PROCESS_ID=str(index), **meet)
        for index in (0, 1)
    ]


def losses(run_dir):
    lines = (run_dir / "steps.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return np.array([entry["loss"] for entry in entries])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--carry-state"], ["--cell", "gru", "--embedding-size", "8"]])
def test_every_mesh_has_the_losses_of_one_device(start, free_port, tmp_path, mode):
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ran."], k=800)
    (tmp_path / "text.txt").write_text(" ".join(words))
    options = ["train", *TINY, *mode, "--epochs", "2", "--test", "0.1", "--validation", "0.1"]
    ends(0, start("text_generator", *options, "--run-dir", "alone"))
    whole = losses(tmp_path / "alone")
    assert len(whole) >= 50
    for mesh in ("8", "4", "auto"):
        more = [*options, "--mesh", mesh, "--run-dir", mesh]
        ends(0, start("text_generator", *more, devices=8))
        assert np.abs(losses(tmp_path / mesh) - whole).max() < 1e-5
    ends(0, *two(start, free_port(), 2, *options, "--mesh", "auto", "--run-dir", "two"))
    assert np.abs(losses(tmp_path / "two") - whole).max() < 1e-5
    more = ["train", "--resume", "--epochs", "3", "--run-dir", "8", "--mesh", "4"]
    assert f"resumes from step {len(whole)}" in ends(0, *two(start, free_port(), 2, *more))[0]


def test_the_cores_are_taken_where_it_pays_unless_a_mesh_is_asked_for():
    params = {"kernel": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}
    every = jax.device_count()
    for rows, mesh, devices in [
        (32, None, every), (31, None, 1), (32, "auto", every), (32, "1", 1)
    ]:  # fmt: skip
        sharding = sharding_of(Train(text=Text(batch_size=rows), mesh=mesh), params)
        assert (1 if sharding is None else sharding.mesh.size) == devices
