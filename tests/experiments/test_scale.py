"""The text generator over several devices and processes."""

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.text_generator.checkpoints import (
    divided_axis,
    require_unchanged,
    sharding_of,
)
from experiments.text_generator.config import Architecture, Text, Train
from experiments.text_generator.data import Data
from experiments.text_generator.trained import options_of
from rnnjax import InvalidInputError
from rnnjax.training import Checkpoints

TINY = ["--layers", "2", "--hidden-size", "16", "--batch-size", "8", "--seq-length", "10",
        "--corpus", "text.txt", "--sample-length", "4"]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran."]
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(800)))


@pytest.fixture
def begin(tmp_path, environment):
    """Start the program on so many simulated devices; it is ended with the test."""
    processes = []

    def begin(devices, *arguments, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.text_generator", *map(str, arguments)],
            cwd=tmp_path, env=environment(devices, **variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ends(status, *processes, timeout=200):
    """The outputs of processes that have to end with this status."""
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            outputs.append(f"hung: {process.communicate()[0]}")
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return outputs


def two(begin, devices, *arguments, seeds=(1, 1)):
    """The program in two processes that meet on this machine."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        where = f"localhost:{listener.getsockname()[1]}"
    meet = {"JAX_COORDINATOR_ADDRESS": where, "JAX_NUM_PROCESSES": "2"}
    return [
        begin(devices, *arguments, "--seed", seed, **meet, JAX_PROCESS_ID=str(index))
        for index, seed in enumerate(seeds)
    ]


def losses(run_dir):
    lines = (run_dir / "steps.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return np.array([entry["loss"] for entry in entries])


def test_a_stopped_run_of_two_processes_goes_on_as_one_and_ends_like_it(
    begin, program, text, tmp_path
):
    """A signal to one process stops both at one step; any number of devices goes on from there."""
    options = [*TINY, "--layers", "1", "--cell", "simple", "--carry-state", "--validation", "0.2"]
    options += ["--epochs", "3", "--steps-per-dispatch", "3", "--checkpoint-every", "1"]
    program("text_generator", "train", *options, "--mesh", "1", "--run-dir", "alone")
    pair = two(begin, 1, "train", *options, "--run-dir", "pair")
    steps = tmp_path / "pair" / "steps.jsonl"
    while all(p.poll() is None for p in pair) and not (steps.exists() and steps.read_text()):
        time.sleep(0.01)
    os.kill(pair[1].pid, signal.SIGTERM)
    first, second = ends(128 + signal.SIGTERM, *pair)
    assert "stopped and saved at step" in first
    assert "step" not in second.replace("steps", "")  # the second one prints nothing of its own
    stopped = len(losses(tmp_path / "pair"))
    whole = losses(tmp_path / "alone")
    assert stopped < len(whole)
    assert f"step {stopped}; go on" in first
    (saved,) = (tmp_path / "pair" / "checkpoints").glob(f"{stopped}*")
    assert saved.name == str(stopped)

    resume = "train", "--resume", "--run-dir", "pair", "--mesh", "1"
    resumed = program("text_generator", *resume)
    output = resumed.stdout + resumed.stderr
    assert f"going on from step {stopped}, after" in output
    assert "the devices of the run were 2 and are 1 now" in output
    assert np.abs(losses(tmp_path / "pair") - whole).max() < 1e-5
    scores = [
        [json.loads(line)["validation_loss"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("pair/epochs.jsonl", "alone/epochs.jsonl")
    ]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert len((tmp_path / "pair" / "samples.txt").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [[], ["--carry-state"], ["--cell", "gru", "--embedding-size", "8"]]
)
def test_every_mesh_has_the_losses_of_one_device(begin, text, tmp_path, mode):
    options = [*TINY, *mode, "--epochs", "2", "--test", "0.1", "--validation", "0.1"]
    ends(0, begin(1, "train", *options, "--run-dir", "alone"))
    whole = losses(tmp_path / "alone")
    assert len(whole) >= 50
    for mesh in ("8", "4x2", "auto"):
        ends(0, begin(8, "train", *options, "--mesh", mesh, "--run-dir", mesh))
        assert np.abs(losses(tmp_path / mesh) - whole).max() < 1e-5
    for mesh in ("auto", "2x2", "1x4"):
        ends(0, *two(begin, 2, "train", *options, "--mesh", mesh, "--run-dir", f"two-{mesh}"))
        assert np.abs(losses(tmp_path / f"two-{mesh}") - whole).max() < 1e-5
    more = ["train", "--resume", "--epochs", "3", "--run-dir", "8"]
    for output in ends(0, *two(begin, 2, *more, "--mesh", "2x2"))[:1]:
        assert f"going on from step {len(whole)}" in output


@pytest.mark.slow
def test_a_run_on_a_mesh_goes_on_exactly(begin, text, tmp_path):
    options = [*TINY, "--carry-state", "--mesh", "2x2", "--dropout", "0.1", "--checkpoint-every", 1]
    ends(0, begin(4, "train", *options, "--epochs", "2", "--run-dir", "whole"))
    ends(0, begin(4, "train", *options, "--epochs", "1", "--run-dir", "half"))
    ends(0, begin(4, "train", "--resume", "--epochs", "2", "--run-dir", "half"))
    whole, half = (
        Checkpoints(tmp_path / name / "checkpoints", read_only=True).latest()._arrays
        for name in ("whole", "half")
    )
    assert {n: x.tobytes() for n, x in whole.items()} == {n: x.tobytes() for n, x in half.items()}
    assert (losses(tmp_path / "whole") == losses(tmp_path / "half")).all()


@pytest.mark.slow
def test_processes_that_differ_all_end_with_one_sentence(begin, text, tmp_path):
    outputs = ends(2, *two(begin, 1, "train", *TINY, "--run-dir", "run", seeds=(1, 2)))
    assert "process 1 of 2: all processes of a run must have the same options" in outputs[1]
    assert "(seed)" in outputs[1]
    assert "Traceback" not in outputs[0] + outputs[1]
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for output in ends(2, *two(begin, 1, "train", *TINY, "--run-dir", "full")):
        assert "full holds something already" in output


# ---- without a second device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "8"], "a mesh of 8 x 1 must take some of the"),
        (["--mesh", "0"], '--mesh must be a number of devices (8), two of them (4x2), or "auto"'),
        (["--mesh", "4x2x1"], "but is '4x2x1'"),
    ],
)
def test_what_a_user_types_wrong_gets_one_sentence(options, message, program, text, tmp_path):
    refused = program("text_generator", "train", *TINY, *options, check=False)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "text.txt"]


def test_the_mesh_is_free_to_change_and_the_rest_is_not():
    stored = options_of({"options": Train(mesh="8", epochs=4).as_json()}, "run")
    assert (stored.mesh, stored.epochs) == ("8", 4)
    moved = dataclasses.replace(stored, mesh="4x2")
    require_unchanged(moved.as_json(), stored.as_json())
    with pytest.raises(InvalidInputError, match="--seed 2 cannot be changed: the run has 1"):
        require_unchanged(dataclasses.replace(stored, seed=2).as_json(), stored.as_json())


def test_hidden_units_are_divided_and_characters_are_not():
    assert divided_axis(("stack", "0", "kernel"), (68, 64)) == 1
    assert divided_axis(("stack", "1", "bias"), (64,)) == 0
    assert divided_axis(("kernel",), (16, 67)) == 0
    assert divided_axis(("embedding",), (67, 16)) == 1
    assert divided_axis(("bias",), (67,)) is None


def test_the_cores_are_taken_where_it_pays_unless_a_mesh_is_asked_for():
    def kernel(hidden: int) -> dict:
        return {"kernel": jax.ShapeDtypeStruct((hidden, 4 * hidden), jnp.float32)}

    def devices(config: Train, params: dict) -> int:
        sharding = sharding_of(config, params)
        if sharding is None:
            return 1
        assert sharding.mesh.shape["hidden"] == 1
        return sharding.mesh.shape["data"]

    all_of_them = jax.device_count()
    assert all_of_them in (2, 4)
    rows = {n: Train(text=Text(batch_size=n)) for n in (12, 31, 32)}
    assert devices(rows[32], kernel(512)) == all_of_them
    assert devices(rows[12], kernel(700)) == 1  # few rows for a large kernel
    assert devices(rows[32], kernel(16)) == 1  # too little to do
    assert devices(rows[31], kernel(512)) == 1  # cannot be divided
    for mesh, number in (("1", 1), ("1x1", 1), ("auto", all_of_them)):
        config = Train(mesh=mesh, model=Architecture(hidden_size=7))
        assert sharding_of(config, kernel(512)).mesh.size == number


def test_each_process_reads_its_rows_alone(text, tmp_path):
    for carry_state in (False, True):
        options = Text(str(tmp_path / "text.txt"), batch_size=4, seq_length=9,
                       carry_state=carry_state)  # fmt: skip
        data = Data.load(options, seed=3)
        mine = dataclasses.replace(data, rows=np.array([1, 3]))
        whole, part = data.batches(2), mine.batches(2)
        for name in whole:
            np.testing.assert_array_equal(np.asarray(whole[name])[:, [1, 3]], part[name])
        assert mine.steps_per_epoch == data.steps_per_epoch
