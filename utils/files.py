"""Files written atomically, so that a reader sees the old or the new content; text files read; free file names."""

import csv
import errno
import io
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import InputError
from utils.text import announce, declared_encoding, decode_text

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NAME_END = 40  # characters of a file's name that its temporary file has as well
ABANDONED_AFTER = 60  # seconds without a write after which the temporary file of a dead process may be removed


class _OwnFile(io.BufferedWriter):
    """A file that Python alone writes to: libraries that get its number do not notice a full disk, Pillow for one."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("use write()")


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` only when it is complete.

    The bytes go to a temporary file beside ``path``. When the block ends, that is synced to the disk and renamed to
    ``path``. An exception inside the block leaves ``path`` unchanged. Missing folders are created.

    Raises:
        InputError: ``path`` is a folder, or the disk is full; then ``path`` is unchanged.
    """
    path = Path(path)
    refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers choose the format by it; a name may be as long as the file system allows.
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name[-NAME_END:]}")
    try:
        raw = io.FileIO(temporary, "wb")
        with _OwnFile(raw) as file:
            yield file
            file.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = (
            error if isinstance(error, OSError) else error.__context__
        )  # torch.save raises another error in its place
        if not isinstance(cause, OSError) or cause.errno not in FULL:
            raise
        unchanged = "; the file that was there before is unchanged" if path.exists() else ""
        raise InputError(f"{path}: cannot be written: {cause.strerror}{unchanged}") from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Raise an InputError if ``path``, where a file is to be written, is a folder."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder: give the name of a file to write")


def refuse_inputs(inputs: Iterable[Path], targets: Iterable[str | Path | None]) -> None:
    """Raise an InputError if a file to be written is one of the inputs; a target of None is not written."""
    resolved = {path.resolve() for path in inputs}
    if lost := next((target for target in targets if target and Path(target).resolve() in resolved), None):
        raise InputError(f"{lost}: would be overwritten, but is an input: give another --output or --json")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``."""
    for path in folder.glob(".*.tmp.*"):
        writer = re.match(r"\.(\d+)\.tmp\.", path.name)
        # On a shared disk the process may run on another machine; but a file that is being written is recent.
        if writer and not _is_running(int(writer[1])) and path.stat().st_mtime < time.time() - ABANDONED_AFTER:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def read_text(path: str | Path, what: str, xml: bool = False) -> str:
    """The content of a text file in any encoding of :func:`utils.text.decode_text`; says one that is not Unicode.

    Args:
        path: the file.
        what: what the file should be, for messages.
        xml: the encoding that an XML declaration names counts first.

    Raises:
        InputError: the file is missing, not text or not readable.
    """
    try:
        content = Path(path).read_bytes()
        text, encoding = decode_text(content, declared_encoding(content) if xml else None)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what}") from None
    except UnicodeError:
        raise InputError(f"{path}: not a text file, so not a {what}") from None
    except (OSError, ValueError) as error:  # a folder, no permission, a name that no file can have
        raise InputError(f"{path}: cannot be read as a {what}: {getattr(error, 'strerror', error)}") from None
    if not encoding.startswith("UTF"):
        announce(Path(path), what, encoding)
    return text


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file.

    Raises:
        InputError: as :func:`read_text`.
    """
    return read_text(path, what).splitlines()


def read_names(path: str | Path, what: str = "file of class names") -> list[str]:
    """The names in a text file, one per line; ``what`` the file should be is for messages.

    Raises:
        InputError: as :func:`read_lines`.
    """
    return [line.strip() for line in read_lines(path, what) if line.strip()]


def numbered_names(name: str) -> Iterator[str]:
    """``{name}-1``, ``{name}-2``, ...: the names for what was called ``name`` before; use the first free one."""
    return (f"{name}-{number}" for number in itertools.count(1))


def keep_old(path: str | Path) -> Path | None:
    """Give an existing file the first free of the :func:`numbered_names` as a second name; return its path.

    The file can then be replaced without being lost. On a file system without links it is renamed instead.
    """
    path = Path(path)
    if not path.exists():
        return None
    for stem in numbered_names(path.stem):
        free = path.with_stem(stem)
        try:
            os.link(path, free)
        except FileExistsError:
            continue
        except OSError:
            if free.exists():
                continue
            path.rename(free)
        return free
    raise AssertionError("the names do not end")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to ``path`` as CSV, atomically; the columns are the keys of all rows, in order of first appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
