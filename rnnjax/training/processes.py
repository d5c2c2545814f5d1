"""What the processes of a run agree on, and how they are asked to stop."""

import atexit
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rnnjax.errors import InvalidInputError, RnnjaxError

# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, n)]


def is_first() -> bool:
    """Whether this process is the one that prints and writes files.

    >>> is_first()
    True
    """
    return jax.process_index() == 0


# Whether this process is the first one, and does something for all of them.
_for_all = False


def _alone() -> bool:
    return jax.process_count() == 1 or _for_all


# What the errors of JAX's collectives say when the process at the other end is gone.
_PEER_IS_GONE = ("Gloo", "NCCL", "coordination service", "closed by peer", "reset by peer")


@contextmanager
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

    >>> from_first(lambda: [1, None])
    [1, None]
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
        # As integers, because a sum, which a broadcast is, makes 0.0 of -0.0.
        padded = np.zeros(-(-length // 256) * 256, np.uint8)
        if is_first():
            padded[:length] = np.frombuffer(data, np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length])


def together(work: Callable[[], Any]) -> Any:
    """Do something on every process; where it fails on one, it fails on all, and none waits.

    >>> together(lambda: 3)
    3
    """
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
    """The signal that any of the processes got, so that all stop at the same step.

    >>> agreed_signal(None), agreed_signal(15)
    (None, 15)
    """
    if _alone():
        return signal
    with ending_with_peers():
        return int(multihost_utils.process_allgather(np.int32(signal or 0)).max()) or None


def require_alike(values: Mapping[str, Any]) -> None:
    """Compare values with those of the first process.

    Raises:
        InvalidInputError: on all processes, if one of them has another value; it names which.

    >>> require_alike({"epochs": 3})
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
