"""Frames read from a video file or a camera, and frames written to a video file, by OpenCV."""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import atomic_writer
from utils.optional import optional

AHEAD = 8  # frames of a file that are decoded before they are needed
Frame = tuple[int, Image.Image]
USUAL_FPS = 25.0  # for a source that does not tell its rate


class Video:
    """The frames of a video file, or of a camera by its number.

    A thread reads, so that the network does not wait for the decoder. It reads every frame of a file, some frames
    ahead; of a camera it keeps only the newest frame, so that a slow network skips frames instead of falling behind.

    Attributes:
        live: whether it is a camera.
        fps: frames per second.
        size: (width, height) in pixels.

    Raises:
        InputError: OpenCV is not installed, or there is no such video or camera.
    """

    def __init__(self, source: str):
        self.live = source.isdecimal()
        self._cv2 = optional("cv2")
        if not self.live and not Path(source).is_file():
            raise InputError(
                f"--video {source}: there is no such file; a camera is given by its number, the first by 0"
            )
        self._capture = self._cv2.VideoCapture(int(source) if self.live else source)
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self.fps = fps if 1 <= fps <= 1000 else USUAL_FPS
        sides = self._cv2.CAP_PROP_FRAME_WIDTH, self._cv2.CAP_PROP_FRAME_HEIGHT
        self.size = tuple(int(self._capture.get(side)) for side in sides)
        if not self._capture.isOpened() or not all(self.size):
            raise InputError(f"--video {source}: " + ("no such camera" if self.live else "cannot be read as a video"))

    def __iter__(self) -> Iterator[Frame]:
        """Pairs of a frame's number and its RGB image; the numbers of a camera's frames follow the clock."""
        return newest(self._frames()) if self.live else ahead(self._frames())

    def _frames(self) -> Iterator[Frame]:
        start = time.perf_counter()
        for count in itertools.count():
            is_read, frame = self._capture.read()
            if not is_read:
                return
            number = round((time.perf_counter() - start) * self.fps) if self.live else count
            yield number, Image.fromarray(self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))


def ahead(items: Iterator[Frame]) -> Iterator[Frame]:
    """The same items; a thread computes the next AHEAD of them in advance."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(AHEAD))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item


def newest(items: Iterator[Frame]) -> Iterator[Frame]:
    """At each step the newest of ``items``; a thread reads them and drops those in between."""
    slot: queue.Queue = queue.Queue(1)
    stopped = threading.Event()

    def fill() -> None:
        end = None
        try:
            for item in items:
                if stopped.is_set():
                    return
                with contextlib.suppress(queue.Empty):
                    slot.get_nowait()
                slot.put(item)
        except Exception as error:  # passed on to the consumer, which would wait for ever otherwise
            end = error
        slot.put(end)  # waits until the last item is taken

    threading.Thread(target=fill, daemon=True).start()
    try:
        while (item := slot.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()


@contextlib.contextmanager
def video_writer(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[int, Image.Image], None]]:
    """Within the block, a function that writes an image of ``size`` (width, height) as frame ``number`` of a new video.

    Where numbers were skipped, the image fills those frames too, so that the video keeps its speed. The file appears
    under its name when it is complete.

    Raises:
        InputError: the installed OpenCV cannot write MPEG-4.
    """
    cv2 = optional("cv2")
    with atomic_writer(path) as file:
        writer = cv2.VideoWriter(file.name, cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise InputError(f"{path}: this OpenCV cannot write MPEG-4 video: pip install 'opencv-python-headless<5'")
        length = 0

        def write(number: int, image: Image.Image) -> None:
            nonlocal length
            pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
            for _ in range(length, number + 1):
                writer.write(pixels)
            length = max(length, number + 1)

        try:
            yield write
        finally:
            writer.release()
