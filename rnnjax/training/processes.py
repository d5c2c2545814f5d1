"""How the processes of a run meet, what they agree on, and how they are asked to stop."""

import atexit
import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rnnjax.errors import InvalidInputError, RnnjaxError

# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, n)]

# How many processes a launcher began, where JAX may not find it out: Open MPI 5 and MPICH.
_LAUNCHED = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"


def start_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> None:
    """Have the processes of a run meet, if there are several; before JAX is used for anything else.

    All processes run the same program, and each holds its share of every array (JAX's
    multi-controller model). Under SLURM, Open MPI 4, Kubernetes and on a Cloud TPU no numbers are
    needed: JAX reads them from what started the processes. Elsewhere each process is told three.
    A process that nobody told of others is alone, and the call does nothing.

    Args:
        coordinator_address: HOST:PORT where process 0 waits for the others; left out,
            JAX_COORDINATOR_ADDRESS.
        num_processes: how many there are; left out, JAX_NUM_PROCESSES. 1: this one is alone.
        process_id: which of them this is, from 0; left out, JAX_PROCESS_ID.
        options: the others of ``jax.distributed.initialize``: ``local_device_ids``, the GPUs of its
            machine that this process takes (JAX_LOCAL_DEVICE_IDS; SLURM and Open MPI give it one,
            and elsewhere it takes all), or ``cluster_detection_method="mpi4py"`` for another MPI.

    Raises:
        InvalidInputError: the numbers do not belong together, the others did not come, or JAX was
            used before.

    >>> start_processes(num_processes=1)
    """
    if jax.distributed.is_initialized():
        return
    known: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    for name, value in known.items():
        if value is None:
            known[name] = os.environ.get(f"JAX_{name.upper()}") or None
    try:
        for name in ("num_processes", "process_id"):
            known[name] = None if known[name] is None else int(known[name])
        if known["num_processes"] == 1:
            return
        complete = None not in known.values()
        found_by = {"cluster_detection_method": "deactivate"} if complete else {}
        # JAX's own answer to SIGTERM would take it from the training loop, which agrees on a step.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(**known, **found_by | options)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        says = str(error).strip().splitlines()[0][:200].rstrip(".")
        told = {name: value for name, value in known.items() if value is not None} | options
        told |= {n: os.environ[n] for n in _LAUNCHED if os.environ.get(n, "1") != "1"}
        if not told:
            return
        raise InvalidInputError(
            "the processes of a run must meet before anything else uses JAX, with one "
            "coordinator_address (HOST:PORT), one num_processes and a process_id each, but "
            f"{told} came, and JAX says: {says}; start all of them alike, under another MPI with "
            'cluster_detection_method="mpi4py", or set JAX_NUM_PROCESSES=1 for one alone'
        ) from error


def use_cores() -> int:
    """Make each core of the CPU a device of its own; before JAX is used for anything else.

    XLA runs the products of one step on one core, and one small loop after the other: what runs
    side by side are the loops of several devices, over which ``fit(..., sharding="cores")`` divides
    the rows of a batch. What does not divide its batch stays on the first device, which is as fast
    as before. Where the environment has said how many devices a CPU is (JAX_NUM_CPU_DEVICES,
    XLA_FLAGS), or JAX has begun, that stays.

    Returns:
        how many there are; 1 where JAX was told to do without the CPU (JAX_PLATFORMS=cuda).

    >>> use_cores() == len(jax.devices("cpu"))
    True
    """
    said = jax.config.values["jax_num_cpu_devices"] > 0  # not a name of its own in every JAX
    if not said and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        affinity = getattr(os, "sched_getaffinity", None)
        cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
        with contextlib.suppress(RuntimeError):  # it has begun
            jax.config.update("jax_num_cpu_devices", cores)
    try:
        return len(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes files."""
    return jax.process_index() == 0


# Whether this process is the first one, and does something for all of them.
_for_all = False


def _alone() -> bool:
    return jax.process_count() == 1 or _for_all


# A broadcast goes through the memory of the devices.
_BYTES_AT_ONCE = 2**26

# What the errors of JAX's collectives say when the process at the other end is gone.
_PEER_IS_GONE = ("Gloo", "NCCL", "coordination service", "closed by peer", "reset by peer")


@contextlib.contextmanager
def ending_with_peers() -> Iterator[None]:
    """Within this context the end of another process is one sentence, and ends this one soon.

    At its end Python shuts JAX down, which waits for the other processes for minutes. Where one of
    them is gone, this one ends without that, with the status 1.

    Raises:
        RnnjaxError: a collective failed because another process of the run ended.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        lost = any(words in str(error) for words in _PEER_IS_GONE)
        if jax.process_count() == 1 or isinstance(error, RnnjaxError) or not lost:
            raise
        atexit.register(_end_at_once)
        raise RnnjaxError(
            f"another process of the run ended, and process {jax.process_index()} cannot go on "
            "without it; see what that one says, and start all of them again: a run that has "
            "checkpoints goes on from the last one"
        ) from None


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def from_first(work: Callable[[], Any]) -> Any:
    """Do something on the first process alone, and return on all what came of it.

    All processes have to call it. What was raised on the first one is raised there, and on the
    others as a `RnnjaxError` with the same sentence, so that none waits for one that has ended.
    What the work itself would do with the other processes, it does alone: they do not call it.
    """
    global _for_all
    if _alone():
        return work()
    value, said = None, None
    raised: Exception | None = None
    if is_first():
        _for_all = True
        try:
            value = work()
        except Exception as error:
            raised = error
            said = str(error) if isinstance(error, RnnjaxError) else f"process 0 failed ({error!r})"
        finally:
            _for_all = False
    value, said = pickle.loads(_from_first(pickle.dumps((value, said))))
    if said is not None:
        raise raised or RnnjaxError(said)
    return value


def _from_first(data: bytes) -> bytes:
    """The bytes that the first process gives; what the others give does not count."""
    with ending_with_peers():
        # In two numbers, because JAX's integers have 32 bits.
        sizes = np.array(divmod(len(data), 2**30), np.int32)
        high, low = multihost_utils.broadcast_one_to_all(sizes)
        length = int(high) * 2**30 + int(low)
        found = bytearray()
        for at in range(0, length, _BYTES_AT_ONCE):
            size = min(length - at, _BYTES_AT_ONCE)
            # As integers, because a sum, which a broadcast is, makes 0.0 of -0.0.
            part = np.zeros(-(-size // 256) * 256, np.uint8)
            if is_first():
                part[:size] = np.frombuffer(data, np.uint8, size, at)
            found += np.asarray(multihost_utils.broadcast_one_to_all(part))[:size].tobytes()
        return bytes(found)


def together(work: Callable[[], Any]) -> Any:
    """Do something on every process; where it fails on one, it fails on all, and none waits."""
    if _alone():
        return work()
    value, raised = None, None
    try:
        value = work()
    except Exception as error:
        raised = error
    if agreed_signal(None if raised is None else 1):
        raise raised or RnnjaxError("another process failed; see what it says")
    return value


def agreed_signal(signal: int | None) -> int | None:
    """The signal that any of the processes got, so that all stop at the same step."""
    if _alone():
        return signal
    with ending_with_peers():
        return int(multihost_utils.process_allgather(np.int32(signal or 0)).max()) or None


def require_alike(values: Mapping[str, Any]) -> None:
    """Compare values with those of the first process.

    Raises:
        InvalidInputError: on all processes, if one of them has another value; it names which.
    """
    if _alone():
        return
    theirs = from_first(lambda: values)
    differing = sorted(n for n in {*values, *theirs} if values.get(n) != theirs.get(n))
    # All of them end, because the others would wait for those that do.
    if agreed_signal(len(differing)):
        which = ", ".join(differing) or "another process says which"
        raise InvalidInputError(
            f"process {jax.process_index()} of {jax.process_count()}: all processes of a run must "
            f"have the same options and data, but not all have those of process 0 ({which}); start "
            "them alike"
        )


class StopRequest:
    """Within this context SIGTERM, SIGHUP and SIGINT (Ctrl-C) ask for a stop, and end no process.

    The loop looks at `signal` between dispatches, and saves. A second SIGINT raises
    KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, it does
    nothing. What the signal would have done is left to the caller: ``signal.raise_signal``.

    Attributes:
        signal: the number of the signal that asked for a stop, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What is ignored stays so (nohup); what C has set could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
