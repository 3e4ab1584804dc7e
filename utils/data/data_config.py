"""The ``.data`` or ``data.yaml`` file of a data set: the number of classes, their names, and the lists of images."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.image_lists import ListEntry, existing_images, looked_at, places, read_list_entries, resolve_path
from utils.data.yolo_yaml import MAX_CLASSES, SUFFIXES, read_data_yaml
from utils.errors import InputError
from utils.files import read_lines, read_names
from utils.notices import notice

PATHS = ("train", "valid", "names")  # keys whose values are paths
MAKE_LISTS = (
    "to make one: python data/converter.py voc --source FOLDER --output data/mine, then --data_config "
    "data/mine/mine.data (coco likewise: --help); for Oxford's hands: bash data/download_oxford.sh && python "
    "data/converter.py"
)


def hidden_beside(images: Path, name: str) -> Path:
    """The path of a hidden file beside a list or folder of images, called like that and ``name``."""
    place = Path(os.path.abspath(images))  # "." has no name
    return place.with_name(f".{place.name}.{name}")


@dataclass(frozen=True)
class DataConfig:
    """The content of a ``.data`` or ``data.yaml`` file.

    Attributes:
        path: the file.
        classes: the number of classes.
        train, valid: the lists of training and of validation images, or folders of images; None where the file has
            none.
        names: the class names.
        values: the paths as the file has them by key, for messages.
        parts: the folders and lists of a split by key, where there are several; ``train`` or ``valid`` is then a name
            for all of them.
        missing: an error message by key for a split of which a part is not there.
        keypoints: the numbers of keypoints that follow the box on each label line.
    """

    path: Path
    classes: int
    train: Path | None
    valid: Path | None
    names: list[str]
    values: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    keypoints: int = 0

    @property
    def files(self) -> list[Path]:
        """The file itself, and those that it names: lists or folders of images, and class names."""
        names = [resolve_path(self.values["names"], self.path)] if "names" in self.values else []
        splits = ("train", "valid")
        parts = [part for split in splits for part in self.parts.get(split, (getattr(self, split),)) if part]
        return [self.path, *names, *parts]

    def list_path(self, split: str) -> Path:
        """The list or folder of the images of ``split``, "train" or "valid"; a name for them where there are several.

        Raises:
            InputError: the file has none, or the list is missing.
        """
        if split in self.missing:
            raise InputError(self.missing[split])
        path = getattr(self, split)
        if path is None and self.path.suffix.lower() in SUFFIXES:
            key = {"train": "train", "valid": "val"}[split]
            raise InputError(f"{self.path}: {key} is missing: a folder of images, a list of them, or a list of both")
        if path is None:
            raise InputError(
                f"{self.path}: {split}= is missing: add a line {split}=LIST, where LIST is a text file with the path "
                "of an image per line; python data/converter.py yolo --source FOLDER --split 0.9 makes both lists"
            )
        if split in self.values and not os.path.exists(path):
            where = looked_at(places(self.values[split], self.path))
            raise InputError(
                f"{self.path}: {split}={self.values[split]}: there is no such list of images; {where}; {MAKE_LISTS}"
            )
        return path

    def entries(self, split: str) -> list[ListEntry]:
        """The entries of the lists and folders of ``split``; see :func:`utils.data.image_lists.read_list_entries`."""
        path = self.list_path(split)
        return [entry for part in self.parts.get(split, (path,)) for entry in read_list_entries(part)]

    def images(self, split: str) -> list[Path]:
        """The images of ``split``; see :func:`utils.data.image_lists.existing_images`."""
        return existing_images(self.entries(split))


def read_data_config(path: str | Path) -> DataConfig:
    """Read a ``.data`` file, or a ``data.yaml`` (:mod:`utils.data.yolo_yaml`).

    A ``.data`` file has ``classes``, ``train``, ``valid``, ``names``, one ``key=value`` per line. As in Darknet, the
    first of duplicate keys counts, and a line without ``=`` is ignored; it is also warned of.

    Raises:
        InputError: a file or key is missing, or the number of names differs from the number of classes.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return _from_yaml(path)
    values = _read_values(path)
    classes = _parse_classes(values.get("classes", ""), path)
    if "names" in values:
        names = _read_class_names(values["names"], path)
        if len(names) != classes:
            raise InputError(f"{path}: classes={classes}, but {values['names']} names {len(names)}")
    else:
        names = [str(number) for number in range(classes)]
    paths = {key: values[key] for key in PATHS if values.get(key)}
    lists = {key: resolve_path(paths[key], path) if key in paths else None for key in ("train", "valid")}
    return DataConfig(path, classes, lists["train"], lists["valid"], names, paths)


def _from_yaml(path: Path) -> DataConfig:
    content = read_data_yaml(path)
    parts = {split: paths for split, paths in content.splits.items() if len(paths) > 1}
    lists = {
        split: path.with_name(f"{path.name}.{split}") if split in parts else next(iter(paths), None)
        for split, paths in content.splits.items()
    }
    return DataConfig(
        path,
        len(content.names),
        lists["train"],
        lists["valid"],
        content.names,
        parts=parts,
        missing=content.missing,
        keypoints=content.keypoints,
    )


def _read_class_names(text: str, origin: Path) -> list[str]:
    path = resolve_path(text, origin)
    try:
        missing = not path.exists()
    except OSError:  # a name that no file can have; reading it says so
        missing = False
    if missing:
        where = looked_at(places(text, origin))
        raise InputError(f"{origin}: names={text}: there is no such file of class names; {where}")
    return read_names(path)


def _read_values(path: Path) -> dict[str, str]:
    values: dict[str, str] = {}
    strays = []
    for number, line in enumerate(read_lines(path, ".data file"), start=1):
        # A comment begins at the beginning of the line or after white space; the path data/c#1 holds none.
        entry = re.split(r"(?:^|\s)[#;]", line, maxsplit=1)[0].strip()
        if not entry:
            continue
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not (key and equals):
            strays.append(number)
            continue
        whole = line.partition("=")[2].strip()
        if key in PATHS and whole != value and os.path.exists(resolve_path(whole, path)):
            value = whole  # "my data #2/list.txt"
        values.setdefault(key, value)
    if strays and not values:
        raise InputError(f"{path}: no line is key=value, so not a .data file")
    if strays:
        lines = f"line {strays[0]} is" if len(strays) == 1 else f"{len(strays)} lines, the first {strays[0]}, are"
        notice(f"warning: {path}: {lines} not key=value, and ignored")
    return values


def _parse_classes(digits: str, path: Path) -> int:
    if not digits.isdecimal() or len(digits) > len(str(MAX_CLASSES)) or not 1 <= int(digits) <= MAX_CLASSES:
        raise InputError(f"{path}: classes={digits[:20]} must be a number from 1 to {MAX_CLASSES}")
    return int(digits)
