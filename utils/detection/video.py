"""Frames of videos, folders and cameras in one form, and frames written to a video file, by OpenCV."""

import contextlib
import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from utils.data.images import find_images, read_image
from utils.detection.camera import Camera, Frame, Patience, host_name, is_url, safe_url
from utils.errors import InputError
from utils.files import atomic_writer

AHEAD = 8  # frames of a file that are decoded before they are needed
DAMAGED = 0.9  # a file that ends before this share of its duration
USUAL_FPS = 25.0  # for a source that does not tell its rate
MOST_TICKS = 65535  # of a second: MPEG-4's frame rate is a fraction, whose numerator has 16 bits


@dataclass
class Video:
    """A source of frames.

    Attributes:
        label: what to call it in messages; of a URL without passwords.
        name: a name for the file with the boxes, without suffix.
        fps: frames per second.
        size: (width, height) of the first frame in pixels.
        frames: begins to read; gives pairs of a frame's number and its RGB image, until the callable that it is given
            says that the program is to stop. A thread reads, so that the network does not wait for the decoder: every
            frame of a file, some frames ahead; of a camera the newest one.
        camera: the camera, of a live source.
        errors: what could not be read, each ``{"image" or "video": where, "error": reason}``.
    """

    label: str
    name: str
    fps: float
    size: tuple[int, int]
    frames: Callable[[Callable[[], bool]], Iterator[Frame]]
    camera: Camera | None = None
    errors: list[dict[str, str]] = field(default_factory=list)


def open_video(source: str, patience: Patience | None = None) -> Video:
    """A video file, a folder of frames, or a camera by its number, its device or its URL.

    A URL of a file, whose length is known, is read like a file.

    Raises:
        InputError: there is no such source. Messages contain no passwords of a URL.
    """
    if Path(source).is_dir():
        return _open_folder(Path(source))
    is_stream, is_device = is_url(source), source.isdecimal() or source.startswith("/dev/")
    if not is_stream and not is_device and not Path(source).is_file():
        raise InputError(
            f"--video {source}: there is no such file or folder; a camera is given by its number (the first is 0), "
            "its device (/dev/video0) or its URL (rtsp://, http://)"
        )
    patience = patience or Patience()
    connect = partial(_capture, cv2, source, patience)
    capture = connect()
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 1 <= fps <= 1000 else USUAL_FPS
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened() or not all(size):
        raise InputError(_refusal(source, patience))
    if is_device or (is_stream and capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0):
        label = safe_url(source) if is_stream else f"camera {source}"
        name = host_name(source) if is_stream else f"camera{source}" if source.isdecimal() else Path(source).name
        camera = Camera(label, connect, capture, fps, patience)
        return Video(label, name, fps, size, camera.frames, camera, camera.errors)
    label, name = (safe_url(source), host_name(source)) if is_stream else (source, Path(source).stem)
    errors: list[dict[str, str]] = []
    decoded = partial(_decoded, cv2, capture, label, errors)
    return Video(label, name, fps, size, lambda stopped: _until(stopped, ahead(decoded())), errors=errors)


def _capture(cv2: Any, source: str, patience: Patience) -> Any:
    """An OpenCV capture, which may have failed to open. Its libraries print nothing: they would print passwords."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read at the first capture
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if source.isdecimal():
        return cv2.VideoCapture(int(source))
    if not is_url(source):
        return cv2.VideoCapture(source)
    limits = {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: patience.connect, cv2.CAP_PROP_READ_TIMEOUT_MSEC: patience.frame}
    settings = [value for name, seconds in limits.items() for value in (name, round(1000 * seconds))]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, settings)


def _refusal(source: str, patience: Patience) -> str:
    """Why a source that OpenCV does not open may not open."""
    if is_url(source):
        return (
            f"--video {safe_url(source)}: cannot be opened (refused, or no video within {patience.connect:g} seconds): "
            "check address, path, user name and password"
        )
    if source.isdecimal():
        return f"--video {source}: there is no such camera, or another program uses it"
    if source.startswith("/dev/"):
        reason = "another program uses it, or it is no camera"
        if not Path(source).exists():
            reason = "there is no such camera"
        elif not os.access(source, os.R_OK | os.W_OK):
            reason = "permission denied: the group video may be needed"
        return f"--video {source}: {reason}"
    return f"--video {source}: it cannot be read as a video"


def _open_folder(folder: Path) -> Video:
    """The images of a folder as frames, sorted by name, numbers by their value; unreadable ones are left out."""
    try:
        paths = sorted(find_images(str(folder)), key=_by_number)
    except InputError:
        raise InputError(f"--video {folder}: there is no image in this folder") from None
    errors: list[dict[str, str]] = []

    def read(start: int = 0) -> Iterator[Frame]:
        for number in range(start, len(paths)):
            try:
                yield number, read_image(paths[number])
            except InputError as error:
                errors.append({"image": str(paths[number]), "error": str(error)})

    first = next(read(), None)
    if first is None:
        raise InputError(f"--video {folder}: no frame can be read: {errors[0]['error']}")
    name = folder.resolve().name or "frames"

    def frames(stopped: Callable[[], bool]) -> Iterator[Frame]:
        return _until(stopped, ahead(read(first[0])))  # what is unreadable before it is in the list already

    return Video(str(folder), name, USUAL_FPS, first[1].size, frames, errors=errors)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """A key that sorts ``frame9`` before ``frame10``."""
    parts = re.findall(r"(\d+)|(\D+)", path.name)
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts]


def _decoded(cv2: Any, capture: Any, label: str, errors: list[dict[str, str]]) -> Iterator[Frame]:
    """The frames of a file; where it ends long before it should, that is added to ``errors``."""
    number, seconds = 0, 0.0
    while (frame := capture.read())[0]:
        yield number, Image.fromarray(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB))
        number += 1
        seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    # Times, since where the frame rate changes the number of frames is a guess.
    rate = capture.get(cv2.CAP_PROP_FPS) or USUAL_FPS
    duration, ended = capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate, seconds + 1 / rate
    if seconds and ended < DAMAGED * duration:
        reason = f"is damaged: it ends after {ended:.1f} of {duration:.1f} seconds, with {number} frames"
        errors.append({"video": label, "error": reason})


def _until(stopped: Callable[[], bool], items: Iterator[Frame]) -> Iterator[Frame]:
    for item in items:
        if stopped():
            return
        yield item


def ahead(items: Iterator[Frame]) -> Iterator[Frame]:
    """The same items; a thread computes the next AHEAD of them in advance."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(AHEAD))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item


def mpeg4_rate(fps: float) -> float:
    """The nearest frame rate that MPEG-4 can hold, of up to three decimals as OpenCV writes them; ``fps`` is above 0.

    >>> mpeg4_rate(29.97003), mpeg4_rate(119.917)
    (29.97, 119.92)
    """
    decimals = next(d for d in (3, 2, 1, 0) if d == 0 or fps * 10**d <= MOST_TICKS)
    return round(fps, decimals)


@contextlib.contextmanager
def video_writer(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[int, Image.Image], None]]:
    """Within the block, a function that writes an image as frame ``number`` of a new video of ``size``, width x height.

    Where numbers were skipped, the image fills those frames too, so that the video keeps its speed. An image of another
    size is resized. The file appears under its name when it is complete. Its rate is ``fps`` as exactly as MPEG-4 can.

    Raises:
        InputError: the installed OpenCV cannot write MPEG-4, or the video did not become complete: the disk is full.
    """
    with atomic_writer(path) as file:
        file.write(bytes(4096))  # tells a full disk from an OpenCV that cannot write
        file.flush()
        writer = cv2.VideoWriter(file.name, cv2.VideoWriter.fourcc(*"mp4v"), mpeg4_rate(fps), size)
        if not writer.isOpened():
            raise InputError(f"{path}: this OpenCV cannot write MPEG-4 video: pip install 'opencv-python-headless<5'")
        length = 0

        def write(number: int, image: Image.Image) -> None:
            nonlocal length
            image = image if image.size == size else image.resize(size)
            pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
            for _ in range(length, number + 1):
                writer.write(pixels)
            length = max(length, number + 1)

        try:
            yield write
        finally:
            writer.release()
        if not cv2.VideoCapture(file.name).isOpened():  # OpenCV does not say when the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
