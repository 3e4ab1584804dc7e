"""Ctrl-C, SIGTERM and a lost terminal: a program that is asked to stop does so at a point of its own choice."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any, Protocol, Self

Largest = Callable[[int], int]  # the maximum of a number over the processes
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal is gone; torchrun passes it on even where nohup ignores it


class Batches(Protocol):
    """What can be counted and iterated over, such as a DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator: ...


class Stopped(Exception):
    """The program was asked to stop, and stops; the message is for the user.

    Attributes:
        received: the signal that asked for it.
        status: the exit status that shells use: 128 plus the signal's number, so 130 for Ctrl-C, 143 for SIGTERM and
            129 for SIGHUP.
    """

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.received = received
        self.status = 128 + received


class StopRequest:
    """A context in which the first SIGINT, SIGTERM or SIGHUP is only recorded; the second has its usual effect.

    A SIGHUP that is ignored, as by nohup, stays so. Signals can be handled in the main thread only; in other threads
    the context does nothing.

    Args:
        notice: the text to print when a signal arrives; nothing is printed if it is empty.

    Attributes:
        received: the signal that arrived; None before.
    """

    def __init__(self, notice: str):
        self.notice = notice
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
                self._before[HANGUP] = signal.signal(HANGUP, self._note)
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

    def agree(self, largest: Largest) -> None:
        """Take over a signal that another process received; ``largest`` gives a number's maximum over processes."""
        if number := largest(self.received or 0):
            self.received = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Stopped` if the program was asked to stop."""
        if self.received is not None:
            raise Stopped(f"stopped by {self.received.name}", self.received)

    def watch(self, batches: Batches, largest: Largest = int) -> "Watched":
        """The same batches; before each of them :meth:`check` is called.

        Args:
            batches: those of this process; the processes may have different numbers of them.
            largest: gives a number's maximum over the processes, which then stop together;
                by default there is one process.
        """
        return Watched(batches, self, largest)


class Watched:
    """Batches whose iteration raises :class:`Stopped` once the program, or another process of it, was asked to stop."""

    def __init__(self, batches: Batches, request: StopRequest, largest: Largest):
        self._batches = batches
        self._request = request
        self._largest = largest

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        batches = iter(self._batches)
        for _ in range(self._largest(len(self))):  # a process without a batch left still takes part in agreeing
            self._request.agree(self._largest)
            self._request.check()
            yield from islice(batches, 1)
