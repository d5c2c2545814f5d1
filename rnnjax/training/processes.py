"""How the processes of a run connect, agree and stop."""

import atexit
import contextlib
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rnnjax.errors import InvalidInputError, PeerEndedError, RnnjaxError

# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, n)]

# The number of processes of launchers that JAX may not detect: Open MPI 5 and MPICH.
_LAUNCHED = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"


def start_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> None:
    """Connect the processes of a run, if there are several. Call it before any other use of JAX.

    All processes run the same program, and each holds its shard of every array (JAX's
    multi-controller model). Under SLURM, Open MPI 4, Kubernetes and on a Cloud TPU, JAX detects the
    processes itself. Elsewhere pass the first three arguments. For a single process it does
    nothing.

    Args:
        coordinator_address: HOST:PORT where process 0 waits for the others; by default
            JAX_COORDINATOR_ADDRESS.
        num_processes: the number of processes; by default JAX_NUM_PROCESSES.
        process_id: the index of this process, from 0; by default JAX_PROCESS_ID.
        options: other arguments of ``jax.distributed.initialize``: ``local_device_ids``, the GPUs
            of this process (by default JAX_LOCAL_DEVICE_IDS, else one under SLURM and Open MPI,
            else all); or ``cluster_detection_method="mpi4py"`` for another MPI.

    Raises:
        InvalidInputError: the numbers are inconsistent, the other processes did not connect, or JAX
            was used before.

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
        # JAX's own SIGTERM handler would hide it from the training loop, which agrees on a step.
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
    """Make each core of the CPU a separate JAX device. Call it before any other use of JAX.

    XLA runs a recurrent loop mostly on one core, but the loops of several devices in parallel.
    ``fit(..., sharding="cores")`` shards the rows of a batch over these devices. Other programs run
    on the first device, as fast as before. It changes nothing if the environment sets the number of
    devices (JAX_NUM_CPU_DEVICES, XLA_FLAGS), or if JAX is already in use.

    Returns:
        the number of devices; 1 if JAX runs without the CPU (JAX_PLATFORMS=cuda).

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
    """Whether this is the first process, which prints and writes files."""
    return jax.process_index() == 0


# Whether this process is the first one and works for all.
_for_all = False


def _alone() -> bool:
    return jax.process_count() == 1 or _for_all


# A broadcast goes through the memory of the devices.
_BYTES_AT_ONCE = 2**26

# Messages of JAX's collectives when the process at the other end is gone, as JAX has no class for
# that error. Those of Gloo were seen. No run over several GPUs was tried: the first that ends so
# says whether "NCCL" is enough.
_PEER_IS_GONE = ("Gloo", "NCCL", "coordination service", "closed by peer", "reset by peer")


_DONE = "done"
_ADVICE = (
    "see what that one says, and start all of them again: a run with checkpoints resumes from the "
    "last one"
)

# Processes that fail alike may take so long to say so each in its own words, and one that failed
# waits so long until the others know.
_SECONDS_ALIKE, _SECONDS_TO_TELL = 5.0, 12.0
_runs = itertools.count()


@contextlib.contextmanager
def telling_peers() -> Iterator[None]:
    """Tell the other processes if this one leaves by an exception, and end if another one does.

    The others wait in a collective, out of Python's reach, for the one that has left. So a thread
    of each looks once a second whether any has, in the store of JAX's coordination service. It then
    prints one sentence, and exits with status 1. The process that has left waits for that, because
    JAX aborts the others if process 0 exits before them. If all leave, they go on as usual.

    A process that is killed tells nothing. The collective of the others fails then, as a rule at
    once; but Gloo may miss a death while a collective begins, and JAX aborts the others only when
    the heartbeats stop (``heartbeat_timeout_seconds`` of `start_processes`, 100).
    """
    if jax.process_count() == 1 or not jax.distributed.is_initialized():
        with ending_with_peers():
            yield
        return
    from jax._src import distributed  # there is no public name, and Orbax takes this one

    client: Any = distributed.global_state.client
    ours, folder, over = jax.process_index(), f"rnnjax/left/{next(_runs)}/", threading.Event()

    def tell(what: str, seconds: float = _SECONDS_TO_TELL) -> None:
        client.key_value_set(f"{folder}{ours}", what)
        until = time.monotonic() + seconds
        while len(left := client.key_value_dir_get(folder)) < jax.process_count():
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        if len(left) < jax.process_count() or not all(said for _, said in left):
            _end_last()
            atexit.register(_end_at_once)

    def watch() -> None:
        while not over.wait(1.0):
            for other, what in client.key_value_dir_get(folder):
                if what == _DONE or over.wait(_SECONDS_ALIKE):
                    continue
                who = f"process {other.rpartition('/')[2]} of the run ended ({what})"
                alone = f"process {ours} cannot continue without it; {_ADVICE}"
                print(f"{who}, and {alone}", file=sys.stderr)
                tell("")  # no error of its own
                _end_at_once()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        with ending_with_peers():
            yield
        client.key_value_set(f"{folder}{ours}", _DONE)
    except BaseException as error:
        over.set()
        # Those that are gone hear nothing.
        seconds = 0 if isinstance(error, PeerEndedError) else _SECONDS_TO_TELL
        tell(f"{type(error).__name__}: {error}".splitlines()[0][:200], seconds)
        raise
    finally:
        over.set()
        watching.join()


@contextlib.contextmanager
def ending_with_peers() -> Iterator[None]:
    """End this process soon, with one sentence, if a collective fails because another one ended.

    At exit Python shuts JAX down, which waits minutes for the other processes. If one of them is
    gone, this process exits without the shutdown, with status 1.

    Raises:
        PeerEndedError: a collective failed because another process of the run ended.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        lost = any(words in str(error) for words in _PEER_IS_GONE)
        if jax.process_count() == 1 or isinstance(error, RnnjaxError) or not lost:
            raise
        atexit.register(_end_at_once)
        raise PeerEndedError(
            f"another process of the run ended, and process {jax.process_index()} cannot continue "
            f"without it; {_ADVICE}"
        ) from None


def _end_last() -> None:
    """Let the others end first: if process 0 does, which has the service, JAX aborts them."""
    if is_first() and jax.process_count() > 1:
        time.sleep(1)


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def from_first(work: Callable[[], Any]) -> Any:
    """Call ``work`` on the first process only, and return its result on all.

    All processes must call it. An exception is raised on the first process, and on the others as a
    `RnnjaxError` with the same message, so that none waits. ``work`` must not communicate with the
    other processes, since they do not call it.
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
    # From the first process of the same run, which is as trusted as this one; never from a file.
    value, said = pickle.loads(_from_first(pickle.dumps((value, said))))
    if said is not None:
        raise raised or RnnjaxError(said)
    return value


def _from_first(data: bytes) -> bytes | bytearray:
    """Broadcast the bytes of the first process to all."""
    with ending_with_peers():
        # In two numbers, because JAX's integers have 32 bits.
        sizes = np.array(divmod(len(data), _BYTES_AT_ONCE), np.int32)
        high, low = multihost_utils.broadcast_one_to_all(sizes)
        length = int(high) * _BYTES_AT_ONCE + int(low)
        found = bytearray()
        for at in range(0, length, _BYTES_AT_ONCE):
            size = min(length - at, _BYTES_AT_ONCE)
            # As integers, because a sum, which a broadcast is, makes 0.0 of -0.0.
            part = np.zeros(-(-size // 256) * 256, np.uint8)
            if is_first():
                part[:size] = np.frombuffer(data, np.uint8, size, at)
            found += np.asarray(multihost_utils.broadcast_one_to_all(part))[:size].tobytes()
        return found


def together(work: Callable[[], Any]) -> Any:
    """Call ``work`` on every process; if it fails on one, it fails on all, and none waits."""
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
    """Return the signal that any process received, so that all stop at the same step."""
    if _alone():
        return signal
    with ending_with_peers():
        return int(multihost_utils.process_allgather(np.int32(signal or 0)).max()) or None


def require_alike(values: Mapping[str, Any]) -> None:
    """Compare values with those of the first process.

    Raises:
        InvalidInputError: on all processes, if any has another value; the message names it.
    """
    if _alone():
        return
    theirs = from_first(lambda: values)
    differing = sorted(n for n in {*values, *theirs} if values.get(n) != theirs.get(n))
    # All processes raise, because the others would wait for those that do.
    if agreed_signal(len(differing)):
        which = ", ".join(differing) or "another process says which"
        raise InvalidInputError(
            f"process {jax.process_index()} of {jax.process_count()}: all processes of a run must "
            f"have the same options and data, but not all have those of process 0 ({which}); start "
            "them alike"
        )


class StopRequest:
    """A context in which SIGTERM, SIGHUP and SIGINT (Ctrl-C) only request a stop.

    The loop checks `signal` between dispatches, and saves. A second SIGINT raises KeyboardInterrupt
    at once. Outside the main thread, where Python allows no handlers, the context does nothing.

    Attributes:
        signal: the number of the signal that requested a stop, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Ignored signals stay ignored (nohup); a handler set in C could not be restored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_again(self) -> None:
        """Raise the signal that requested a stop, outside of the context: it ends the program."""
        if self.signal is not None:
            _end_last()
            signal.raise_signal(self.signal)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
