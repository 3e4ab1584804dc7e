"""Files that are either the old one or the new one, never half of one."""

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import InputError


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of ``path`` only after it was written whole.

    The bytes go to a temporary file beside ``path``, are synced to the disk, and are renamed over ``path`` when the
    block ends. An exception inside the block leaves ``path`` as it was. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")  # keeps the suffix, which tells the format
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file.

    Raises:
        InputError: the file is missing or is not text; the message says ``what`` it should be.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, so not a {what}") from None


def set_aside(path: str | Path) -> Path | None:
    """Rename an existing file to ``{stem}-1``, ``-2``, ... so that its name is free; return what it is called now."""
    path = Path(path)
    if not path.exists():
        return None
    names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1))
    free = next(name for name in names if not name.exists())
    path.rename(free)
    return free


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to ``path`` as CSV, atomically; the columns are all that any row has, in the order they come up."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
