"""Which tests are quick: measured here, and read by `make check`.

    python -m tests.durations     # runs `make test`'s tests, and writes tests/long.txt

A test is long if its cases take more than `LIMIT` seconds of CPU each, on average, and so is every
test of a file of which a fixture takes more than `SETUP`. Time of the CPU, with that of the
processes that a test starts, is the same on a machine that does other things too. Run it where the
tests were run before, so that what they compile is in the cache, as it is for whoever runs `make
check` again. A test that is not in the list, such as a new one, is quick.
"""

import collections
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT, SETUP = 0.3, 2.0
LONG = Path(__file__).with_name("long.txt")
SPENT: dict[str, list[float]] = collections.defaultdict(list)
PREPARED: dict[str, float] = collections.defaultdict(float)
PROGRAMS: dict[str, int] = collections.defaultdict(int)


def name_of(nodeid: str) -> str:
    """A test without its parameters, as it stands in the list."""
    return nodeid.partition("[")[0]


def file_of(name: str) -> str:
    return name.partition("::")[0]


def is_there(name: str) -> bool:
    """Whether a test of the list still exists."""
    path = LONG.parents[1] / file_of(name)
    made = rf"\b{name.rpartition('::')[2]}( = refusals)?\("
    return path.is_file() and bool(re.search(made, path.read_text(encoding="utf-8")))


def spent() -> float:
    """Seconds of CPU of this process and of those that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.user_properties.append(("began", spent()))
    try:
        return (yield)
    finally:
        began = dict(item.user_properties)["began"]
        item.user_properties.append(("prepared", spent() - began))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        began = dict(item.user_properties).get("began", spent())
        item.user_properties.append(("spent", spent() - began))


def pytest_runtest_logreport(report: Any) -> None:
    """Collect the report of each worker, in the main process."""
    if report.when == "teardown":
        told, (file, _, _) = dict(report.user_properties), report.nodeid.partition("::")
        SPENT[name_of(report.nodeid)].append(told["spent"])
        PREPARED[file] = max(PREPARED[file], told["prepared"])
        name = name_of(report.nodeid)
        PROGRAMS[name] = max(PROGRAMS[name], told.get("programs", 0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or not SPENT:
        return
    means = {name: sum(each) / len(each) for name, each in SPENT.items()}
    long = {name for name in means if means[name] > LIMIT or PREPARED[file_of(name)] > SETUP}
    before = set(LONG.read_text(encoding="utf-8").splitlines()) - means.keys()
    long |= {name for name in before if is_there(name)}  # of other files than those that ran
    LONG.write_text("".join(f"{name}\n" for name in sorted(long)))
    quick = sum(sum(SPENT[name]) for name in means.keys() - long)
    print(f"\nquick: {quick:.0f} s of CPU of {sum(map(sum, SPENT.values())):.0f}; the longest:")
    for name in sorted(SPENT, key=lambda name: -sum(SPENT[name]))[:80]:
        print(f"{sum(SPENT[name]):7.1f} s in {len(SPENT[name]):3d}  {name}")
    print("more than 30 programs:")
    for name in sorted(PROGRAMS, key=lambda name: -PROGRAMS[name]):
        if PROGRAMS[name] > 30:
            print(f"{PROGRAMS[name]:4d}  {name}")


if __name__ == "__main__":
    command = ["-m", "pytest", "-n", "2", "--dist", "worksteal", "-p", "tests.durations", "-q"]
    sys.exit(subprocess.run([sys.executable, *command, *sys.argv[1:]]).returncode)
