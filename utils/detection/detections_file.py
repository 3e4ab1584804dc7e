"""The JSON file of detect.py: detections and errors, written again and again while they come."""

import json
import time
from pathlib import Path
from typing import Any, Self

from utils.files import atomic_writer, refuse_folder

INTERVAL_SECONDS = 5.0
# The whole file is written each time. At most one part in so many of the time goes into that.
SHARE = 20


class DetectionsFile:
    """A context that keeps a JSON file: an object with the lists ``kind`` and ``errors``, a record per line.

    The file is replaced atomically every few seconds, and when the block ends. If an error ends the block before there
    is a record, nothing is written.

    Args:
        path: the file.
        kind: the name of the list of results: "images" or "frames".

    Raises:
        InputError: ``path`` is a folder, or cannot be written.
    """

    def __init__(self, path: Path, kind: str):
        refuse_folder(path)
        self.path = path
        self.kind = kind
        self.results: list[str] = []
        self.errors: list[dict[str, str]] = []
        self._due = time.monotonic() + INTERVAL_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None or self.results or self.errors:
            self.save()

    def add(self, record: dict[str, Any]) -> None:
        """Add a result, which must be on the disk already where it names a file."""
        self.results.append(json.dumps(record, allow_nan=False))
        self._save_if_due()

    def fail(self, record: dict[str, str]) -> None:
        """Add an error."""
        self.errors.append(record)
        self._save_if_due()

    def _save_if_due(self) -> None:
        began = time.monotonic()
        if began >= self._due:
            self.save()
            ended = time.monotonic()
            self._due = ended + max(INTERVAL_SECONDS, SHARE * (ended - began))

    def save(self) -> None:
        """Write the file."""
        errors = [json.dumps(record) for record in self.errors]
        with atomic_writer(self.path) as file:
            file.write(b"{")
            for position, (name, lines) in enumerate(((self.kind, self.results), ("errors", errors))):
                file.write(f'{"," if position else ""}\n"{name}": ['.encode())
                file.writelines(f"{',' if row else ''}\n{line}".encode() for row, line in enumerate(lines))
                file.write(b"\n]" if lines else b"]")
            file.write(b"\n}\n")
