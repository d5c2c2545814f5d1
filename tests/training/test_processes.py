"""Two processes: what one reads all have, and the end of one ends the other."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnnjax.training import Checkpoints
from tests.training import two_processes

SCRIPT = Path(two_processes.__file__)
# What `srun` tells its processes, next to the number of each.
SLURM = {"SLURM_JOB_ID": 7, "SLURM_STEP_NODELIST": "127.0.0.1"}


@pytest.fixture(scope="module")
def start(begin, free_port):
    def start(folder, scene, number=2):
        # Orbax names while it is imported what JAX 0.12.1 deprecates, as pyproject.toml says.
        orbax = "ignore:jax.sharding.SingleDeviceSharding is deprecated:DeprecationWarning"
        command = [sys.executable, "-W", "error", "-W", orbax, str(SCRIPT), str(folder), scene]
        launcher = {name: str(value) for name, value in SLURM.items()}
        launcher |= dict.fromkeys(("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), str(number))
        launcher["JAX_COORDINATOR_PORT"] = str(free_port())
        numbers = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(number)]
        return [begin(command, 2, **launcher, **each) for each in numbers]

    return start


def ended(processes, timeout=100):
    """The status of each, and what it said."""
    said = [process.communicate(timeout=timeout) for process in processes]
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory, start):
    """What two processes saw before a signal to one of them ended both."""
    folder = tmp_path_factory.mktemp("two")
    ends = ended(start(folder, "term-1"))
    assert [status for status, *_ in ends] == [-signal.SIGTERM] * 2, ends
    paths = [folder / f"seen-{i}.json" for i in range(2)]
    return [
        json.loads(path.read_text()) | {"folder": folder, "said": said}
        for path, (_, _, said) in zip(paths, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What this process sees on its first device."""
    return two_processes.together(tmp_path_factory.mktemp("one"), {"whole": {}}, None)


def test_all_restore_what_the_first_one_saved(seen, alone):
    expected = [[0, 1, 2, 3, 4]] * 2 + [[True] * 3]
    assert [each["restored"] for each in (*seen, alone)] == [expected] * 3


@pytest.mark.parametrize("rows", ["divided", "by hand", "whole", "stream", "carried"])
def test_two_train_validate_and_go_on_as_one(seen, alone, rows):
    first, second = (each[rows] for each in seen)
    assert first == second
    for ours, theirs in zip(first, alone.get(rows, alone["whole"]), strict=True):
        for name, expected in theirs.items():  # the first one's measures decide
            np.testing.assert_allclose(ours[name], expected, rtol=1e-5, err_msg=name)
    assert len(first[-1]["losses"]) == {"stream": 2, "carried": 3}.get(rows, 4)


@pytest.mark.parametrize(
    ("scene", "first", "second"),
    [
        ("missing", "CheckpointError: there is no .* of step 7", "RnnjaxError: .* of step 7"),
        ("another loss", "CheckpointError: the run in .* has another loss, and cannot", None),
        ("other data", r"InvalidInputError: process 0 of 2: all .* \(another process says which\)",
         r"InvalidInputError: process 1 of 2: all .* have those of process 0 \(batches\)"),
        ("epochs", r"InvalidInputError: process 0 of 2: all .* \(another process says which\)",
         r"InvalidInputError: process 1 of 2: .*\(epochs\); start them alike"),
        ("a state", r"InvalidInputError: process 0 of 2: all .* \(another process says which\)",
         r"InvalidInputError: process 1 of 2: .*\(the state that hooks return\); start them"),
        ("raises", "RnnjaxError: another process failed; see what it says", "OSError: a disk of i"),
        ("unread", "RnnjaxError: another process failed; see what it says", "OSError: a disk of i"),
        ("doubled", "InvalidInputError: processes must .* of processes 0 and 1 are the sa", None),
    ],
)  # fmt: skip
def test_what_one_cannot_do_ends_both(seen, scene, first, second):
    """Guards that rows which two processes have in common are refused."""
    assert re.match(first, seen[0][scene])
    assert re.match(second or first, seen[1][scene])


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_death_of_one_ends_the_other_at_once(tmp_path, start, who):
    processes = start(tmp_path, f"kill-{who}")
    assert "on\n" in iter(processes[1 - who].stdout.readline, "")  # Gloo greets before
    processes[who].wait(60)
    began = time.monotonic()
    killed, left = ended(processes, 30)[:: 1 if who == 0 else -1]
    assert time.monotonic() - began < 5
    assert killed[0] == -signal.SIGKILL
    assert left[0] != 0
    if who == 1:  # of the first one JAX's own client tells, and ends the process
        assert left[0] == 1
        assert "PeerEndedError: another process of the run ended, and process 0 cannot" in left[2]
        assert left[2].count("Traceback") == 1
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.latest().step == 8


FAILS = {
    "hook": "RuntimeError: 3",
    "disk": "OSError: [Errno 28] No space left on device",
    "interrupt": "KeyboardInterrupt: 3",
    "epoch": "RuntimeError: 3",
    "state": "InvalidInputError: process {} of {}: all processes of a run must have",
}
# The first process of two in each run of the tests: if it exits first, JAX aborts the other.
WAYS = [(kind, who, number) for kind in FAILS for who, number in ((0, 2), (1, 2), (0, 3), (2, 3))]
OTHER_WAYS = [way for way in WAYS[1:] if way[0] != "disk" or not way[1]]


@pytest.mark.parametrize(
    ("kind", "who", "number"),
    [WAYS[0], *(pytest.param(*way, marks=pytest.mark.slow) for way in OTHER_WAYS)],
)
def test_one_that_fails_alone_ends_all_each_with_a_sentence(tmp_path, start, kind, who, number):
    processes = start(tmp_path, f"alone-{kind}-{who}", number)
    assert "fails\n" in iter(processes[who].stdout.readline, "")
    began = time.monotonic()
    ends = ended(processes, 60)
    assert time.monotonic() - began < 20
    for index, (status, _, said) in enumerate(ends):
        assert status == 1, ends
        assert "Check failure stack trace" not in said
        if index != who:
            told = {
                "epoch": "RnnjaxError: another process failed; see what it says",
                "state": FAILS["state"].format(index, number),
                "disk": "RnnjaxError: process 0 failed (OSError(28, 'No space left on device'))",
            }
            by_thread = (
                f"process {who} of the run ended ({FAILS[kind]}), and process {index} cannot"
            )
            assert told.get(kind, by_thread) in said
        else:
            assert FAILS[kind].partition(":")[0] in said


@pytest.mark.slow
def test_processes_that_fail_alike_end_as_usual(tmp_path, start):
    """By an error that all of them catch, here."""
    ends = ended(start(tmp_path, "alone-hook-all"), 60)
    assert [(status, "process" in said) for status, _, said in ends] == [(0, False)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_what_fails_when_the_others_are_done_ends_nobody_else(tmp_path, start, who):
    ends = ended(start(tmp_path, f"alone-close-{who}"), 60)
    assert [status for status, *_ in ends] == [int(index == who) for index in range(2)]
    assert ["RuntimeError: 3" in said for *_, said in ends] == [index == who for index in range(2)]
    assert not any("of the run ended" in said for *_, said in ends)


def test_a_signal_to_one_saves_and_ends_both(seen):
    step = Checkpoints(seen[0]["folder"] / "run" / "checkpoints").latest().step
    assert f"SIGTERM: stopped after step {step}, saved in" in seen[0]["said"]
