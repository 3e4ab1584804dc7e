"""What the readers return: samples in the words of the source, and the checks that all formats need."""

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import InputError


@dataclass
class Sample:
    """An image file and its boxes, as the source describes them.

    Attributes:
        source: the image file.
        annotation: the file that describes it, for error messages.
        boxes: (N, 4) x1, y1, x2, y2 in pixels; the top left corner of the image is (0, 0). Boxes may pass the border.
        classes: the N class names.
        left_out: for each object that the reader left out on purpose, the reason.
        stated_size: the (width, height) in pixels that the annotation states, or None.
    """

    source: Path
    annotation: Path
    boxes: np.ndarray
    classes: list[str]
    left_out: list[str] = field(default_factory=list)
    stated_size: tuple[float, float] | None = None

    def keep_classes(self, names: Container[str]) -> None:
        """Leave out the objects whose class is not among ``names``."""
        kept = [i for i, name in enumerate(self.classes) if name in names]
        self.left_out += ["class is not in --classes"] * (len(self.classes) - len(kept))
        self.boxes = self.boxes[kept]
        self.classes = [self.classes[i] for i in kept]


@dataclass
class DataSet:
    """A data set as a reader returns it.

    Attributes:
        splits: the samples of "train" and "valid".
        names: the class names in the order of their numbers.
    """

    splits: dict[str, list[Sample]]
    names: list[str]


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
        raise InputError(f"{where}: {values} should be {length} finite numbers")
    return array


def read_stated_size(width: object, height: object, where: str | Path) -> tuple[float, float] | None:
    """The (width, height) that an annotation states, None where one is missing.

    Raises:
        InputError: they are not two finite numbers.
    """
    return None if width is None or height is None else tuple(finite_numbers([width, height], 2, f"{where}: size"))


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
