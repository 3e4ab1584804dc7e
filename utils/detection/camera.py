"""Live sources of frames: cameras by number or device, and streams by URL. A connection that is lost is made again."""

import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

Frame = tuple[int, Image.Image]
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d+\b)?", re.IGNORECASE)
TICK_SECONDS = 0.1  # how often a wait for a frame looks whether it should end
CLOSING_SECONDS = 2.0  # for the reading thread to end, which may be waiting for a frame


@dataclass(frozen=True)
class Patience:
    """How long to wait for a camera, in seconds.

    Attributes:
        connect: until a connection counts as failed.
        frame: for a frame, until the connection counts as lost.
        outage: for a frame from a lost connection, until the camera is given up.
        delay: before the first attempt to connect again; each further one waits twice as long.
        longest_delay: the limit of that.
    """

    connect: float = 10.0
    frame: float = 10.0
    outage: float = 120.0
    delay: float = 1.0
    longest_delay: float = 15.0


def is_url(source: str) -> bool:
    """Whether a source is given by its URL."""
    return URL.match(source) is not None


def safe_url(url: str) -> str:
    """The scheme, host and port of a URL. User names and passwords can stand in any other part of it."""
    scheme, _, remaining = url.partition("://")
    before_path = remaining.partition("/")[0]
    is_unclear = "?" in before_path and "@" in before_path  # where the password ends, if it is one
    host = None if is_unclear else HOST.match(remaining.partition("?")[0].rpartition("@")[2])
    return f"{scheme}://{host[0] if host else '...'}"


def host_name(url: str) -> str:
    """The host of a URL, as a file name."""
    host = HOST.match(safe_url(url).partition("://")[2])
    return re.sub(r"[^\w.-]+", "_", host[1]).strip("._") or "stream" if host else "stream"


class FrameClock:
    """Numbers the frames of a live source by the time that has passed, so that a video of them has their speed."""

    def __init__(self, fps: float):
        self.fps = fps
        self._start = self._latest = time.monotonic()
        self._number = -1

    def leave_out_gap(self) -> float:
        """Take the time since the latest frame out of the count, but for one frame's; return its seconds."""
        gap = time.monotonic() - self._latest
        self._start += gap - 1 / self.fps
        return gap

    def next_number(self) -> int | None:
        """The number of a frame that comes now, above those before.

        Frames that come in a burst get numbers of their own, up to one second ahead. None for frames beyond that, which
        a source sends that is faster than it says.
        """
        self._latest = time.monotonic()
        elapsed = (self._latest - self._start) * self.fps
        if self._number >= elapsed + self.fps:
            return None
        self._number = max(round(elapsed), self._number + 1)
        return self._number


class Camera:
    """The frames of a live source; only the newest is kept, so that a slow network skips frames and does not lag.

    A thread reads. When no frame comes, it connects again, with growing delays between the attempts; each outage is
    reported on stderr when it begins and when it ends. The iteration ends when ``stopped`` says so, or when an outage
    lasts too long, which is then in ``errors``.

    Args:
        label: the name of the source in messages, without passwords.
        connect: opens an OpenCV capture, which may fail.
        capture: the first such capture, which is open.
        fps: frames per second by which frames are numbered.
        patience: how long to wait.

    Attributes:
        dropped: the number of frames that were read and replaced by newer ones.
        outages: how often the connection was lost.
        errors: why the camera was given up: ``{"video": label, "error": reason}``, or nothing.
    """

    def __init__(
        self, label: str, connect: Callable[[], Any], capture: Any, fps: float, patience: Patience | None = None
    ):
        self.label = label
        self.fps = fps
        self.dropped = self.outages = 0
        self.errors: list[dict[str, str]] = []
        self._connect = connect
        self._capture = capture
        self._patience = patience or Patience()
        self._slot: queue.Queue = queue.Queue(1)
        self._closed = threading.Event()

    def frames(self, stopped: Callable[[], bool]) -> Iterator[Frame]:
        """Pairs of a frame's number and its RGB image, until ``stopped()``; numbers follow a clock without outages."""
        reader = threading.Thread(target=self._read_all, daemon=True)
        reader.start()
        try:
            while (item := self._wait(stopped)) is not None:
                if isinstance(item, Exception):
                    raise item
                number, pixels = item
                yield number, Image.fromarray(pixels[..., ::-1])
        finally:
            self._closed.set()
            reader.join(CLOSING_SECONDS)

    def _wait(self, stopped: Callable[[], bool]) -> Any:
        """The newest frame, or an error of the thread; None where there will be none."""
        began = time.monotonic()
        while not stopped():
            try:
                return self._slot.get(timeout=TICK_SECONDS)
            except queue.Empty:
                limit = self._patience.outage
                if time.monotonic() - began > limit:
                    self.errors.append({"video": self.label, "error": f"no frame for {limit:g} seconds: given up"})
                    return None
        return None

    def _read_all(self) -> None:
        try:
            self._read_until_closed()
        except Exception as error:  # passed on to the consumer, which would wait for ever otherwise
            self._put(error)
        finally:
            self._capture.release()

    def _read_until_closed(self) -> None:
        clock = FrameClock(self.fps)
        connected, delay, is_lost = time.monotonic(), self._patience.delay, False
        while not self._closed.is_set():
            is_read, pixels = self._capture.read()
            if is_read:
                if is_lost:
                    _say(f"{self.label}: frames again, after {clock.leave_out_gap():.0f} seconds without")
                is_lost = False
                self._take(clock.next_number(), pixels)
                continue
            if not is_lost:
                is_lost, self.outages = True, self.outages + 1
                limit = self._patience.outage
                _say(f"{self.label}: no frame comes: connecting again, for up to {limit:g} seconds")
                if time.monotonic() - connected > self._patience.longest_delay:  # it lasted: no flapping connection
                    delay = self._patience.delay
            self._capture.release()
            if self._closed.wait(delay):
                return
            delay = min(2 * delay, self._patience.longest_delay)
            self._capture = self._connect()
            connected = time.monotonic()

    def _take(self, number: int | None, pixels: np.ndarray) -> None:
        if number is None:
            self.dropped += 1
        else:
            self._put((number, pixels))

    def _put(self, item: tuple[int, np.ndarray] | Exception) -> None:
        """Put an item into the slot, in place of the one that nobody took."""
        try:
            self._slot.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass
        self._slot.put(item)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
