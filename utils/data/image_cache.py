"""Images that were read once and are kept in one file, so that not every epoch decodes them again.

The file is in memory (Linux's memfd, which ends with the processes that use it, however they end) or in a folder beside
the list of images. All processes of a machine, DataLoader workers as well as those of torchrun, map the same file.
"""

import hashlib
import itertools
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL

from utils import distributed
from utils.control_groups import control_groups
from utils.errors import InputError
from utils.files import remove_leftovers

KINDS = ("none", "ram", "disk")
FORMAT = 1  # to be raised where images are read in another way, so that files on disk are not used any more
MEMORY_SHARE = 0.5  # share of the free memory that images may take
# Of a control group, versions 2 and 1: limit, usage, and the part of the usage that is reclaimable.
MEMORY_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class ImageCache:
    """The first images of a data set, (H, W, 3) uint8 each, read-only.

    Args:
        path: a file that holds their pixels one after another.
        sizes: width and height of each.
    """

    def __init__(self, path: str | Path, sizes: Sequence[tuple[int, int]]):
        self.path = path
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(3 * self._sizes.prod(axis=1))
        self._bytes = self._map()

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        width, height = self._sizes[index]
        end = self._ends[index]
        return self._bytes[end - 3 * width * height : end].reshape(height, width, 3)

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        return int(self._ends[-1]) if len(self) else 0

    def _map(self) -> np.ndarray:
        # Not the memmap itself: its subclass makes each slice slower.
        return np.asarray(np.memmap(self.path, np.uint8, "r")) if self.nbytes else np.zeros(0, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bytes = self._map()


@dataclass(frozen=True)
class Source:
    """The images to cache.

    Attributes:
        files: the image files.
        sizes: width and height at which each is read.
        read: reads one, by its index.
        key: the options that the pixels depend on, besides the files.
        folder: where to cache them on disk.
    """

    files: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    read: Callable[[int], np.ndarray]
    key: str
    folder: Path

    def sums(self) -> list[int]:
        """The bytes of the first image, of the first two, ..."""
        return list(itertools.accumulate(3 * width * height for width, height in self.sizes))

    def digest(self) -> str:
        """A name for the pixels: another one where any image, its file or how it is read has changed."""
        digest = hashlib.sha256(f"{FORMAT} {self.key} Pillow {PIL.__version__} OpenCV {cv2.__version__}".encode())
        for file, size in zip(self.files, self.sizes, strict=True):
            status = os.stat(file)
            seen = f"{os.path.abspath(file)}\0{status.st_size} {status.st_mtime_ns} {size}\0"
            digest.update(seen.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


class _File(NamedTuple):
    """The file of a cache, which the first process of a machine has made.

    Attributes:
        path: where the processes of the machine find it.
        count: how many images it holds.
        filled: whether an earlier run has filled it.
        descriptor: of a file in memory, open in the first process.
    """

    path: str
    count: int  # type: ignore[assignment]  # hides tuple.count
    filled: bool = False
    descriptor: int | None = None


def build_cache(source: Source, kind: str, max_bytes: int) -> ImageCache:
    """Read the images of ``source``, each in one of the processes of this machine, into a file that all of them map.

    Args:
        source: the images.
        kind: "ram": in memory, the first that fit into ``max_bytes``; "disk": in a file, all of them. A file of an
            earlier run is used if nothing has changed.
        max_bytes: see ``kind``.

    Raises:
        InputError: an image cannot be read, the folder cannot be written to, or the disk is full.
    """
    local = local_ranks()
    is_first = distributed.rank() == local[0]
    make = _file_in_memory if kind == "ram" else _file_on_disk
    file = _together(lambda: make(source, max_bytes) if is_first else None)[local[0]]
    path = file.path
    part = distributed.share(file.count, local.index(distributed.rank()), len(local))
    # Of several machines, each may have its file already or not; all processes must meet here.
    _together(lambda: None if file.filled else _fill(path, source, part))
    if kind == "disk":
        path = str(_disk_path(source))
        _together(lambda: os.replace(file.path, path) if is_first and not file.filled else None)
    cache = ImageCache(path, source.sizes[: file.count])
    if is_first and file.descriptor is not None:
        weakref.finalize(cache, _release, path, file.descriptor)
    _together(lambda: None)  # until all have mapped the file
    return cache


def local_ranks() -> list[int]:
    """The ranks of the processes of this machine; torchrun's GROUP_RANK is the number of the machine."""
    machine = socket.gethostname(), os.environ.get("GROUP_RANK")
    return [rank for rank, other in enumerate(distributed.gather(machine)) if other == machine]


def _together(task: Callable[[], Any]) -> list[Any]:
    """The results of ``task`` in all processes, by rank. An InputError or OSError in one of them is raised in all."""
    try:
        answer: tuple[Any, str | None] = (task(), None)
    except InputError as error:
        answer = (None, str(error))
    except OSError as error:
        answer = (None, f"--cache: {error.filename or 'its file'}: {error.strerror}")
    answers = distributed.gather(answer)
    if problem := next((problem for _, problem in answers if problem), None):
        raise InputError(problem)
    return [result for result, _ in answers]


def _file_in_memory(source: Source, max_bytes: int) -> _File:
    """An empty file without a name, which lasts as long as a process uses it; where Linux is not, a temporary one."""
    count = sum(size <= max_bytes for size in source.sums())
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("images")
        return _File(f"/proc/{os.getpid()}/fd/{descriptor}", count, descriptor=descriptor)
    descriptor, path = tempfile.mkstemp(prefix="images_")
    return _File(path, count, descriptor=descriptor)


def _release(path: str, descriptor: int) -> None:
    """Give up a file in memory."""
    os.close(descriptor)
    if not path.startswith("/proc/"):
        Path(path).unlink(missing_ok=True)


def _disk_path(source: Source) -> Path:
    return source.folder / f"{source.key}-{source.digest()}.pixels"


def _file_on_disk(source: Source, _: int) -> _File:
    """The file of an earlier run, or a new one; older ones are deleted."""
    path, count, size = _disk_path(source), len(source.files), source.sums()[-1]
    if path.exists() and path.stat().st_size == size:
        return _File(str(path), count, filled=True)
    source.folder.mkdir(exist_ok=True)
    remove_leftovers(source.folder)
    for old in source.folder.glob(f"{source.key}-*.pixels"):
        old.unlink()
    free = shutil.disk_usage(source.folder).free
    if size > free:
        raise InputError(
            f"--cache disk: {source.folder}: the images take {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free"
        )
    unfinished = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    unfinished.touch()
    return _File(str(unfinished), count)


def _fill(path: str, source: Source, part: range) -> None:
    """Read a part of the images, and write them to their places; a file on disk is deleted if that fails."""
    ends = source.sums()
    descriptor = os.open(path, os.O_WRONLY)

    def write(index: int) -> None:
        pixels = source.read(index)
        width, height = source.sizes[index]
        if pixels.shape != (height, width, 3):
            raise InputError(f"{source.files[index]}: was changed while it was read")
        _write_all(descriptor, pixels, ends[index] - pixels.size)

    try:
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            for _ in pool.map(write, part):
                pass
    except BaseException:
        if not path.startswith("/proc/"):
            Path(path).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, pixels: np.ndarray, offset: int) -> None:
    """Write to a place of a file. Unlike a memory map this raises an error where the disk is full."""
    content = memoryview(np.ascontiguousarray(pixels).data).cast("B")
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def budget() -> int:
    """Bytes of images that this machine may keep in memory: MEMORY_SHARE of what is free."""
    return int(MEMORY_SHARE * free_memory())


def free_memory() -> int:
    """Bytes of memory that programs can still take: Linux's estimate, within the limits of a container or a batch job.

    Where there is no estimate it is half of the physical memory.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for folder, (limit, used, cached) in itertools.product(control_groups("memory"), MEMORY_LIMITS):
        try:
            remaining = int((folder / limit).read_text()) - int((folder / used).read_text())
            numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, remaining + int(numbers.get(cached, 0)))
        except (OSError, ValueError):  # the group does not exist, or has no limit
            continue
    return max(free, 0)
