"""Decoded images kept in memory, so that an epoch does not decode them again.

They are arrays that nothing writes to. Worker processes are forked from the one that holds them, and so read the same
memory; where processes are not forked (by default on macOS and Windows) each worker gets a copy.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

SHARE = 0.5  # of the free memory that images may take
# Of each version of Linux' control groups: the limit, what is used, and what of that the system would take back.
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def budget() -> int:
    """How many bytes of images this process may keep: its part of a share of the free memory."""
    return int(SHARE * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def free_memory() -> int:
    """Bytes that programs can still take: what Linux says is available, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for folder, limit, used, cached in CGROUPS:
        try:
            left = int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text())
            numbers = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            free = min(free, left + int(numbers.get(cached, 0)))
        except (OSError, ValueError):  # no such group, or one without a limit
            continue
    return max(free, 0)


def decode_all(paths: Sequence[Path], read: Callable[[Path], Image.Image], most: int) -> list[np.ndarray]:
    """The first of ``paths`` as RGB arrays (H, W, 3) uint8: as many as take at most ``most`` bytes."""
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(decoded_bytes, paths)
        fitting = sum(size <= most for size in accumulate(sizes))
        return list(pool.map(lambda path: np.asarray(read(path)), paths[:fitting]))


def decoded_bytes(path: Path) -> int:
    """What an image takes as RGB."""
    with Image.open(path) as image:
        return 3 * image.width * image.height
