"""Lists of images: text files that name one image per line."""

import os
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
        where: ``file:line``.
    """

    text: str
    path: Path
    where: str

    @property
    def missing(self) -> str:
        """The error message for an image that does not exist."""
        return f"{self.where}: there is no image {self.text}"


def resolve_path(text: str, origin: Path) -> Path:
    """The path that a line of the file ``origin`` names.

    It is absolute, relative to the working directory if it exists there, or else relative to the folder of ``origin``.
    """
    path = Path(text)
    return path if path.is_absolute() or os.path.exists(path) else origin.parent / path


def read_list_entries(path: str | Path) -> list[ListEntry]:
    """Read the entries of a list without looking for the images.

    Raises:
        InputError: the list is missing or empty.
    """
    path = Path(path)
    entries = [
        ListEntry(line.strip(), resolve_path(line.strip(), path), f"{path}:{number}")
        for number, line in enumerate(read_lines(path, "list of images (data/converter.py writes one)"), start=1)
        if line.strip()
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
        raise InputError(missing[0].missing + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))
    return [entry.path for entry in entries]
