"""Lists of images: text files that name one image per line, or folders with all images below them."""

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from utils.data.images import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.files import read_lines

MAX_PARTS = 6  # of a path of another machine that are looked for


@dataclass(frozen=True)
class ListEntry:
    """A line of a list. The image that it names may be missing.

    Attributes:
        text: the line.
        path: the image.
        origin: the list, or the folder that holds the image.
        line: the number of the line, or of the image in the folder, from 1.
    """

    text: str
    path: Path
    origin: Path
    line: int

    @property
    def missing(self) -> str:
        """The error message for an image that does not exist."""
        return f"{self.origin}:{self.line}: there is no image {self.text}; {looked_at(places(self.text, self.origin))}"


def places(text: str, origin: Path) -> Iterator[Path]:
    """Where the file may be that a line of the file ``origin`` names, in the order in which they are looked at.

    The path is absolute, or relative to: the folder of ``origin``, so that a data set stays the same wherever a program
    is started; the working directory; the folder above that of ``origin``, where Darknet is started in a project with a
    folder ``data``; or, without its first folder, the folder of ``origin``, as CVAT's export is, which is to be
    unpacked to ``data``. A path with the backslashes of Windows also counts with slashes. Of an absolute path of
    another machine its end counts, see :func:`endings`.
    """
    for spelling in (text, text.replace("\\", "/")) if "\\" in text else (text,):
        path = Path(spelling)
        is_absolute = path.is_absolute() or PureWindowsPath(spelling).drive
        if not is_absolute:
            yield origin.parent / path
        yield path
        if is_absolute:
            for folder in (origin.parent, origin.absolute().parent.parent):
                yield from endings(spelling, folder)
        elif len(path.parts) > 1 and path.parts[0] != "..":
            yield origin.absolute().parent.parent / path
            yield origin.parent.joinpath(*path.parts[1:])


def endings(text: str, folder: Path) -> Iterator[Path]:
    """Where below ``folder`` a file may be whose absolute path is of another machine: its last parts, two at least."""
    parts = PureWindowsPath(text).parts[1:][-MAX_PARTS:]
    if ".." not in parts:
        yield from (folder.joinpath(*parts[start:]) for start in range(len(parts) - 1))


def resolve_path(text: str, origin: Path) -> Path:
    """The first of the :func:`places` where there is a file or folder; relative to ``origin`` where there is none."""
    existing = (place for place in places(text, origin) if os.path.exists(place))
    return next(existing, origin.parent / text.replace("\\", "/"))


def looked_at(paths: Iterable[str | Path]) -> str:
    """The part of a message that says where a missing file was looked for."""
    return "looked at " + ", ".join(dict.fromkeys(map(os.path.abspath, paths)))


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files below ``folder`` with one of ``suffixes``, sorted, without hidden ones (macOS adds ``._x`` to ``x``).

    Links to folders are followed, each folder once.

    Raises:
        InputError: ``folder`` is none, or is the root of the file system.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    if os.path.realpath(folder) == os.path.realpath(os.sep):
        raise InputError(f"{folder}: is the whole file system: give a folder of the data set")
    paths = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()  # a link to where the walk has been
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        paths += [Path(parent, n) for n in names if Path(n).suffix.lower() in suffixes and not n.startswith(".")]
    return sorted(paths)


def read_list_entries(path: str | Path) -> list[ListEntry]:
    """Read the entries of a list without looking for the images; of a folder, the images below it.

    Raises:
        InputError: the list is missing or empty.
    """
    if os.path.isdir(path):
        images = files_below(Path(path), IMAGE_SUFFIXES)
        if not images:
            raise InputError(f"{path}: the folder holds no image")
        return [ListEntry(str(image), image, Path(path), number) for number, image in enumerate(images, start=1)]
    path = Path(path)
    lines = [line.strip() for line in read_lines(path, "list of images")]
    entries = [
        ListEntry(line, resolve_path(line, path), path, number) for number, line in enumerate(lines, start=1) if line
    ]
    if not entries:
        raise InputError(f"{path}: the list names no image")
    return entries


def existing_images(entries: Sequence[ListEntry]) -> list[Path]:
    """The images of entries, all of which must exist.

    Raises:
        InputError: images are missing; the message names the first and how many.
    """
    missing = [entry for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        raise InputError(missing[0].missing + (f" (and {len(missing) - 1} more images)" if len(missing) > 1 else ""))
    return [entry.path for entry in entries]
