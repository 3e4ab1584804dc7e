"""Lists of images: text files that name one image per line."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.files import read_lines


@dataclass(frozen=True)
class ListEntry:
    """A line of a list. The image that it names may be missing.

    Attributes:
        text: the line.
        path: the image.
        origin: the list.
        line: the number of the line, from 1.
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

    The path is absolute, relative to the working directory, or relative to the folder of ``origin``. A path with the
    backslashes of Windows also counts with slashes.
    """
    for spelling in (text, text.replace("\\", "/")) if "\\" in text else (text,):
        path = Path(spelling)
        yield path
        if not path.is_absolute():
            yield origin.parent / path


def resolve_path(text: str, origin: Path) -> Path:
    """The first of the :func:`places` where there is a file or folder; the last where there is none."""
    place = Path(text)
    for place in places(text, origin):
        if os.path.exists(place):
            break
    return place


def looked_at(paths: Iterable[str | Path]) -> str:
    """The part of a message that says where a missing file was looked for."""
    return "looked at " + ", ".join(dict.fromkeys(map(os.path.abspath, paths)))


def read_list_entries(path: str | Path) -> list[ListEntry]:
    """Read the entries of a list without looking for the images.

    Raises:
        InputError: the list is missing or empty.
    """
    path = Path(path)
    lines = [line.strip() for line in read_lines(path, "list of images")]
    entries = [
        ListEntry(line, resolve_path(line, path), path, number) for number, line in enumerate(lines, start=1) if line
    ]
    if not entries:
        raise InputError(f"{path}: the list names no image")
    return entries


def read_image_list(path: str | Path) -> list[Path]:
    """Read the images of a list, all of which must exist.

    Raises:
        InputError: the list is missing or empty, or images are missing; the message names the first and how many.
    """
    entries = read_list_entries(path)
    missing = [entry for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        raise InputError(missing[0].missing + (f" (and {len(missing) - 1} more images)" if len(missing) > 1 else ""))
    return [entry.path for entry in entries]
