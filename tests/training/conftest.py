"""What the tests of several processes share."""

import functools
import os
import signal
import socket
import subprocess

import pytest

from rnnjax.training import fitting

# A program that tests start; importing it would run it.
collect_ignore = ["two_processes.py"]


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
    """Runs of one loss and optimiser share their compiled steps, which take most of their time."""
    made = {}

    def once(make, loss_fn, *given, **options):
        # A loss without a carry is wrapped anew for each run.
        key = make, getattr(loss_fn, "args", loss_fn), given, *options.items()
        if key not in made:
            made[key] = make(loss_fn, *given, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        for make in (fitting.make_train_steps, fitting.make_eval_steps):
            patch.setattr(fitting, make.__name__, functools.partial(once, make))
        yield
