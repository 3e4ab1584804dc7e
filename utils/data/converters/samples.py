"""What the readers return: samples in the words of the source, and the checks that all formats need."""

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import InputError

CROWD = "box around a crowd"


@dataclass(frozen=True)
class LeftOut:
    """An object or an image that a reader left out.

    Attributes:
        what: "object" or "image".
        reason: why; the report counts by it.
        problem: for what is wrong in the source, one line that names it; None where it was left out on purpose.
    """

    what: str
    reason: str
    problem: str | None = None


@dataclass
class Sample:
    """An image file and its boxes, as the source describes them.

    Attributes:
        source: the image file.
        annotation: the file that describes it, for error messages.
        boxes: (N, 4) x1, y1, x2, y2 in pixels; the top left corner of the image is (0, 0). Boxes may pass the border.
        classes: the N class names.
        left_out: the objects that the reader left out.
        stated_size: the (width, height) in pixels that the annotation states, or None.
    """

    source: Path
    annotation: Path
    boxes: np.ndarray
    classes: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    stated_size: tuple[float, float] | None = None

    def keep_classes(self, names: Container[str]) -> None:
        """Leave out the objects whose class is not among ``names``."""
        kept = [i for i, name in enumerate(self.classes) if name in names]
        self.left_out += [LeftOut("object", "class is not in --classes")] * (len(self.classes) - len(kept))
        self.boxes = self.boxes[kept]
        self.classes = [self.classes[i] for i in kept]


@dataclass
class DataSet:
    """A data set as a reader returns it.

    Attributes:
        splits: the samples of "train" and "valid"; of "train" alone where the source has no split.
        names: the class names in the order of their numbers.
        left_out: images that the reader left out, and objects that belong to no image.
        notes: lines for the report: what the reader decided.
    """

    splits: dict[str, list[Sample]]
    names: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finite_numbers(values: object, length: int, where: str | Path) -> np.ndarray:
    """Convert ``values``, numbers or their texts, to ``length`` finite floats.

    Raises:
        InputError: they are not that; the message begins with ``where``.
    """
    try:
        array = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.size != length or not np.isfinite(array).all():
        raise InputError(f"{where}: {shortened(values)} should be {length} finite numbers")
    return array


def shortened(value: object) -> str:
    """``value`` for a message, in one line that is not long."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def read_stated_size(width: object, height: object) -> tuple[float, float] | None:
    """The (width, height) that an annotation states; None where it states no two positive numbers."""
    try:
        size = finite_numbers([width, height], 2, "size")
    except InputError:
        return None
    return (float(size[0]), float(size[1])) if (size > 0).all() else None


def files_by_stem(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files of ``folder`` with one of ``suffixes``, by stem, without hidden ones (macOS adds ``._x`` to ``x``).

    Raises:
        InputError: the folder is missing, or two files have the same stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder, but the data set should have one")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in files:
                raise InputError(f"{path}: {files[path.stem].name} has the same stem; remove one of the two")
            files[path.stem] = path
    return files
