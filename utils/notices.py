"""Notices and warnings on stderr, each of them printed once per process."""

import sys

from utils import distributed

_printed: set[str] = set()


def notice(message: str, key: str | None = None) -> None:
    """Print a line on stderr from the main process, unless one with this ``key`` (default: the message) was printed."""
    key = message if key is None else key
    if key not in _printed:
        _printed.add(key)
        if distributed.is_main():
            print(message, file=sys.stderr)


def forget() -> None:
    """Print again what was printed before."""
    _printed.clear()
