"""Files that are either the old one or the new one, never half of one."""

import csv
import errno
import io
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ABANDONED_AFTER = 60  # seconds without a write, of a temporary file whose process is gone


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of ``path`` only after it was written whole.

    The bytes go to a temporary file beside ``path``, are synced to the disk, and are renamed over ``path`` when the
    block ends. An exception inside the block leaves ``path`` as it was. Missing folders are made.

    Raises:
        InputError: the disk is full; what stood there is as it was. Or ``path`` is a folder.
    """
    path = Path(path)
    refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")  # keeps the suffix, which tells the format
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save raises an error of its own
        if not isinstance(cause, OSError) or cause.errno not in FULL:
            raise
        old = "; the one that was there before is as it was" if path.exists() else ""
        raise InputError(f"{path}: cannot be written: {cause.strerror}{old}") from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Raise an InputError where a file is to be written and a folder stands."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, so no file can be written there: add a name")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``."""
    for path in folder.glob(".*.tmp.*"):
        writer = re.match(r"\.(\d+)\.tmp\.", path.name)
        # On a disk that machines share a number says little, but a live writer writes.
        if writer and not _is_running(int(writer[1])) and path.stat().st_mtime < time.time() - ABANDONED_AFTER:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


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
    except (OSError, ValueError) as error:  # a folder, no permission, a name that no file can have
        raise InputError(f"{path}: cannot be read as a {what}: {getattr(error, 'strerror', error)}") from None


def read_names(path: str | Path, what: str = "file of class names") -> list[str]:
    """The names in a text file, one a line; ``what`` is what it should be.

    Raises:
        InputError: as :func:`read_lines`.
    """
    return [line.strip() for line in read_lines(path, what) if line.strip()]


def keep_old(path: str | Path) -> Path | None:
    """Give an existing file a second name, ``{stem}-1``, ``-2``, ..., before it is replaced; return that name.

    Where the file system has no links the file is renamed instead.
    """
    path = Path(path)
    if not path.exists():
        return None
    for number in itertools.count(1):
        free = path.with_stem(f"{path.stem}-{number}")
        try:
            os.link(path, free)
        except FileExistsError:
            continue
        except OSError:
            if free.exists():
                continue
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
