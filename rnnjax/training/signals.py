"""A polite stop: the step in progress is finished and saved before the process ends."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Within this context SIGTERM and SIGINT (Ctrl-C) ask for a stop instead of ending the process.

    The loop looks at `signal` between dispatches. A second SIGINT raises KeyboardInterrupt at once.
    Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        signal: the number of the signal that asked for a stop, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
