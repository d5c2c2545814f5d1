"""What the tests of several processes share."""

import socket

import pytest

# Programs that tests start; importing them would run them.
collect_ignore = ["sharded_run.py", "two_processes.py"]


@pytest.fixture(scope="session")
def free_port():
    def free_port():
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            return listener.getsockname()[1]

    return free_port
