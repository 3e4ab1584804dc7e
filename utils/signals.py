"""Ctrl-C and SIGTERM: a program that is asked to stop ends at a point of its own choice."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The program was asked to stop, and did; the message is for the user.

    Attributes:
        status: the exit status as a shell gives it: 128 and the signal's number, 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.status = 128 + received


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is only noted, and the second does what it always did.

    Outside of the main thread signals cannot be caught; there the context does nothing.

    Args:
        notice: what to say when it comes; empty: nothing.

    Attributes:
        received: the signal that came; None while none did.
    """

    def __init__(self, notice: str):
        self.notice = notice
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.received = signal.Signals(number)
        if self.notice:
            os.write(2, f"\n{self.received.name}: {self.notice}\n".encode())  # print may be what was interrupted

    def agree(self, largest: Callable[[int], int]) -> None:
        """Take over a signal that another process got; ``largest`` gives the largest of the processes' numbers."""
        if number := largest(self.received or 0):
            self.received = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Stopped` if the program was asked to stop."""
        if self.received is not None:
            raise Stopped(f"stopped by {self.received.name}", self.received)

    def watch(self, batches: Collection) -> "Watched":
        """The same batches, before each of which the request is looked at."""
        return Watched(batches, self)


class Watched:
    """Batches that end in :class:`Stopped` where the program was asked to stop."""

    def __init__(self, batches: Collection, request: StopRequest):
        self._batches = batches
        self._request = request

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        for batch in self._batches:
            self._request.check()
            yield batch
