"""Decoded images kept in memory, so that not every epoch decodes them again.

They are arrays that nothing writes to. Worker processes that are forked share this memory; where they are spawned
(the default on macOS and Windows) each worker gets a copy.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.images import image_size

MEMORY_SHARE = 0.5  # share of the free memory that images may take
# For versions 2 and 1 of Linux control groups: folder, limit, usage, and the part of the usage that is reclaimable.
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def budget() -> int:
    """Bytes of images that this process may keep: its part of MEMORY_SHARE of the free memory."""
    return int(MEMORY_SHARE * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def free_memory() -> int:
    """Bytes of memory that programs can still take: Linux's estimate, within the limit of a container.

    Where there is no estimate it is half of the physical memory.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for folder, limit, used, cached in CGROUPS:
        try:
            remaining = int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text())
            numbers = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            free = min(free, remaining + int(numbers.get(cached, 0)))
        except (OSError, ValueError):  # the group does not exist, or has no limit
            continue
    return max(free, 0)


def decode_all(paths: Sequence[Path], read: Callable[[Path], Image.Image], max_bytes: int) -> list[np.ndarray]:
    """Decode the first of ``paths`` to RGB arrays (H, W, 3) uint8: as many as fit into ``max_bytes`` together."""
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        sizes = pool.map(decoded_bytes, paths)
        fitting = sum(size <= max_bytes for size in accumulate(sizes))
        return list(pool.map(lambda path: np.asarray(read(path)), paths[:fitting]))


def decoded_bytes(path: Path) -> int:
    """The bytes that an image takes as RGB."""
    return 3 * math.prod(image_size(path))
