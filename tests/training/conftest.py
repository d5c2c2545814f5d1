"""What the tests of several processes share."""

import os
import signal
import socket
import subprocess

import pytest
from training_helpers import share_steps


@pytest.fixture(scope="session")
def free_port():
    def free_port():
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            return listener.getsockname()[1]

    return free_port


@pytest.fixture(scope="module")
def begin(environment):
    """Start a process; what still runs, with all that it has started, ends with the tests."""
    running = []

    def begin(command, devices=1, cwd=None, **own):
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(devices, **own), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    with pytest.MonkeyPatch.context() as patch:
        share_steps(patch.setattr)
        yield
