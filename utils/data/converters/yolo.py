"""Finds YOLO data that lacks a ``.data`` file or a split: exports of CVAT, Label Studio, labelImg and Roboflow.

The images and their label files stay where they are.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.data.converters.layout import by_split
from utils.data.converters.samples import DataSet, LeftOut, Sample
from utils.data.data_config import read_data_config
from utils.data.image_lists import files_below
from utils.data.images import IMAGE_SUFFIXES
from utils.data.labels import find_labels
from utils.data.yolo_yaml import load_mapping, read_class_names
from utils.errors import InputError
from utils.files import read_names, read_text


def read_yolo(source: Path, classes: list[str] | None) -> DataSet:
    """Find the images with label files below a folder; the samples have no boxes, which stay in the label files.

    Args:
        source: the folder.
        classes: the class names; None takes those of a file below ``source``, see NAMES.

    Raises:
        InputError: no image has a label file, or the class names are missing or ambiguous.
    """
    images = files_below(source, IMAGE_SUFFIXES)
    samples, left_out = [], []
    for image in images:
        if file := find_labels(image):
            samples.append(Sample(image, Path(file.path), np.zeros((0, 4)), []))
        else:
            left_out.append(LeftOut("image", "has no label file"))
    if not samples:
        raise InputError(f"{source}: none of the {len(images)} images below it has a label file (x.txt for x.jpg)")
    splits, elsewhere = by_split(samples, source)
    return DataSet(splits, classes or find_names(source), left_out + elsewhere)


def find_names(source: Path) -> list[str]:
    """The class names in the files below ``source``.

    Raises:
        InputError: there are none, or they contradict each other.
    """
    paths = files_below(source, {".names", ".txt", ".labels", ".json", ".yaml", ".yml"})
    for pattern, read in NAMES.items():
        files = {tuple(read(path)): path for path in paths if path.match(pattern)}
        if len(files) > 1:
            first, second = list(files.values())[:2]
            raise InputError(f"{first} and {second} have different class names: give them with --classes")
        if files and (names := next(iter(files))):
            return list(names)
    raise InputError(f"{source}: no file names the classes ({', '.join(NAMES)}): give them with --classes")


def names_of_notes(path: Path) -> list[str]:
    """The class names of Label Studio's ``notes.json``, in the order of their numbers."""
    try:
        categories = json.loads(read_text(path, "notes.json"))["categories"]
        return [str(entry["name"]) for entry in sorted(categories, key=lambda entry: int(entry["id"]))]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: should hold categories with id and name ({type(error).__name__})") from error


def names_of_yaml(path: Path) -> list[str]:
    """The class names of a ``data.yaml``."""
    return read_class_names(load_mapping(path), path)


# The files that name classes and how to read them; the first pattern that a file matches counts.
NAMES: dict[str, Callable[[Path], list[str]]] = {
    "*.names": read_names,
    "classes.txt": read_names,
    "_darknet.labels": read_names,
    "notes.json": names_of_notes,
    "data.yaml": names_of_yaml,
    "data.yml": names_of_yaml,
}


def complete_config(source: Path) -> Path | None:
    """A ``.data`` or ``.yaml`` file below ``source`` whose training and validation images exist, or None."""
    for path in files_below(source, {".data", ".yaml", ".yml"}):
        try:
            data = read_data_config(path)
            if data.images("train") and data.images("valid"):
                return path
        except InputError:
            continue
    return None
