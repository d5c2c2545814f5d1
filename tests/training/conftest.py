"""What the tests of several processes share."""

import functools
import socket

import pytest

from rnnjax.training import fitting

# Programs that tests start; importing them would run them.
collect_ignore = ["sharded_run.py", "two_processes.py"]


@pytest.fixture(scope="session")
def free_port():
    def free_port():
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            return listener.getsockname()[1]

    return free_port


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Runs of one loss and optimiser share their compiled steps, which take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "make_train_steps", functools.cache(fitting.make_train_steps))
        yield
