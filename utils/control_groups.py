"""The limits of a container or a batch job: the files of Linux control groups, versions 1 and 2."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")  # a line for each hierarchy: number, controllers (none in version 2), path


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that limit this process: its own and all above it; some may not exist.

    Args:
        controller: ``memory`` or ``cpu``.
    """
    yield from (ROOT, ROOT / controller)  # what a container sees of its own group
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = ROOT / controller if controllers else ROOT
            own = top / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder != top)
