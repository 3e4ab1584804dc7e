"""The ``.data`` file of a data set: the number of classes, their names, and the lists of images."""

from dataclasses import dataclass
from pathlib import Path

from utils.data.image_lists import read_image_list, resolve_path
from utils.errors import InputError
from utils.files import read_lines, read_names

MAX_CLASSES = 65_536  # a larger number is a mistake, and would take all memory


@dataclass(frozen=True)
class DataConfig:
    """The content of a ``.data`` file.

    Attributes:
        path: the file.
        classes: the number of classes.
        train, valid: the lists of training and of validation images; None where the file has none.
        names: the class names.
    """

    path: Path
    classes: int
    train: Path | None
    valid: Path | None
    names: list[str]

    def list_path(self, split: str) -> Path:
        """The list of the images of ``split``, "train" or "valid".

        Raises:
            InputError: the ``.data`` file has none.
        """
        path = getattr(self, split)
        if path is None:
            raise InputError(f"{self.path}: {split}= is missing: the list of images")
        return path

    def images(self, split: str) -> list[Path]:
        """The images of ``split``; see :func:`utils.data.image_lists.read_image_list`."""
        return read_image_list(self.list_path(split))


def read_data_config(path: str | Path) -> DataConfig:
    """Read a ``.data`` file: ``classes``, ``train``, ``valid``, ``names``, one ``key=value`` per line.

    Raises:
        InputError: a file or key is missing, or the number of names differs from the number of classes.
    """
    path = Path(path)
    values = _read_values(path)
    classes = _parse_classes(values.get("classes", ""), path)
    if "names" in values:
        names = read_names(resolve_path(values["names"], path))
        if len(names) != classes:
            raise InputError(f"{path}: classes={classes}, but {values['names']} names {len(names)}")
    else:
        names = [str(number) for number in range(classes)]
    lists = {key: resolve_path(values[key], path) if values.get(key) else None for key in ("train", "valid")}
    return DataConfig(path, classes, lists["train"], lists["valid"], names)


def _read_values(path: Path) -> dict[str, str]:
    values: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, ".data file"), start=1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InputError(f"{path}:{number}: {line!r} is not key=value")
        values.setdefault(key, value)
    return values


def _parse_classes(digits: str, path: Path) -> int:
    if not digits.isdecimal() or len(digits) > len(str(MAX_CLASSES)) or not 1 <= int(digits) <= MAX_CLASSES:
        raise InputError(f"{path}: classes={digits[:20]} must be a number from 1 to {MAX_CLASSES}")
    return int(digits)
