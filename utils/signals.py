"""Ctrl-C and SIGTERM: a program that is asked to stop does so at a point of its own choice."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The program was asked to stop, and stops; the message is for the user.

    Attributes:
        status: the exit status that shells use: 128 plus the signal's number, so 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.status = 128 + received


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is only recorded; the second has its usual effect.

    Signals can be handled in the main thread only; in other threads the context does nothing.

    Args:
        notice: the text to print when a signal arrives; nothing is printed if it is empty.

    Attributes:
        received: the signal that arrived; None before.
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
            os.write(
                2, f"\n{self.received.name}: {self.notice}\n".encode()
            )  # print may have been interrupted, and is not reentrant

    def agree(self, largest: Callable[[int], int]) -> None:
        """Take over a signal that another process received; ``largest`` gives a number's maximum over processes."""
        if number := largest(self.received or 0):
            self.received = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Stopped` if the program was asked to stop."""
        if self.received is not None:
            raise Stopped(f"stopped by {self.received.name}", self.received)

    def watch(self, batches: Collection) -> "Watched":
        """The same batches; before each of them :meth:`check` is called."""
        return Watched(batches, self)


class Watched:
    """Batches whose iteration raises :class:`Stopped` once the program was asked to stop."""

    def __init__(self, batches: Collection, request: StopRequest):
        self._batches = batches
        self._request = request

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        for batch in self._batches:
            self._request.check()
            yield batch
