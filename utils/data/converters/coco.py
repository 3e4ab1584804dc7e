"""Reads COCO instances, as COCO, CVAT, Label Studio and Roboflow write them: a JSON file and a folder of images."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import numpy as np

from utils.data.converters.layout import Images, base_name
from utils.data.converters.rle import rle_box
from utils.data.converters.samples import CROWD, DataSet, LeftOut, Sample, finite_numbers, read_stated_size, shortened
from utils.data.images import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.files import read_text


@dataclass
class CocoFile:
    """A file of COCO instances.

    Attributes:
        path: the file.
        folder: the folder of its images.
        content: its lists "images", "annotations" and "categories".
        categories: the names of its categories by id.
        left_out: what was left out so far.
    """

    path: Path
    folder: Path
    content: dict[str, list]
    categories: dict[str, str]
    left_out: list[LeftOut] = field(default_factory=list)

    @cached_property
    def images(self) -> Images:
        """The images below the folder."""
        return Images(self.folder, IMAGE_SUFFIXES)

    def leave_out(self, what: str, reason: str, where: str, problem: str) -> None:
        """Note that an entry of the file is left out, because of a ``problem`` with it."""
        self.left_out.append(LeftOut(what, reason, f"{self.path}: {where} {problem}"))

    def find_images(self, names: Iterable[str]) -> dict[str, Path]:
        """The image that each entry names; it need not exist.

        That is a file of the name as given, or with "/" for Windows' separators; else one of the last part of its path,
        beside or below the folder, unless another entry has that one.
        """
        found = {name: self._file(name, separated(name), unquote(separated(name))) for name in names}
        guesses = {name: self._guess(base_name(name)) for name, path in found.items() if not path}
        uses = Counter(filter(None, (*set(found.values()), *guesses.values())))
        only = {name: path if path and uses[path] == 1 else None for name, path in guesses.items()}
        return {name: path or only[name] or self.folder / separated(name) for name, path in found.items()}

    def _file(self, *spellings: str) -> Path | None:
        paths = [root / spelling for root in (self.folder, self.folder.parent) for spelling in spellings]
        return next((path for path in paths if os.path.isfile(path)), None)  # not so for a name that no file can have

    def _guess(self, name: str) -> Path | None:
        return self._file(name) or (self.images.named(unquote(name)) if self.folder.is_dir() else None)


def read_coco(sources: dict[str, tuple[Path, Path]]) -> DataSet:
    """Read COCO instances. The class names are in the order of the category ids.

    Args:
        sources: for each split, its annotation file and its folder of images.

    Raises:
        InputError: a file is no COCO instances file, the categories of the splits contradict each other, or all boxes
            are around crowds.
    """
    files = {split: load_instances(path, folder) for split, (path, folder) in sources.items()}
    notes: list[str] = []
    categories: dict[str, str] = {}
    for file in files.values():
        unify_ids(file, categories, notes)
    categories = distinct_names(without_groups(categories, list(files.values()), notes), notes)
    names = [categories[number] for number in sorted(categories, key=number_first)]
    splits = {split: read_split(file, categories) for split, file in files.items()}
    samples = [sample for split in splits.values() for sample in split]
    crowds = sum(item.reason == CROWD for sample in samples for item in sample.left_out)
    if crowds and not any(sample.classes for sample in samples):
        raise InputError(
            f"{sources['train'][0]}: all {crowds} boxes have iscrowd=1, around crowds, which COCO leaves out: "
            "where they are around single objects, set iscrowd to 0"
        )
    return DataSet(splits, names, [item for file in files.values() for item in file.left_out], notes)


def load_instances(path: Path, folder: Path) -> CocoFile:
    """Read a COCO file, whose images are in ``folder``.

    Raises:
        InputError: the file is not JSON, lacks one of the three lists, or has no category with an id and a name.
    """
    try:
        content = json.loads(read_text(path, "COCO file"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({shortened(error)})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: has no list {key!r}, which a COCO instances file has")
        for i, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise InputError(f"{path}: {key}[{i}] should be an object with fields")
    categories: dict[str, str] = {}
    for i, entry in enumerate(content["categories"]):
        number, name = identity(entry.get("id")), " ".join(str(entry.get("name") or "").split())
        if number is None or not name or categories.setdefault(number, name) != name:
            raise InputError(f"{path}: categories[{i}] should have an 'id' of its own and a 'name'")
    if not categories:
        raise InputError(f"{path}: categories is empty, but should name the classes")
    return CocoFile(path, folder, content, categories)


def identity(value: object) -> str | None:
    """An id as a text: 1, 1.0 and "1" are the same. None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value).strip() if isinstance(value, str) or abs(value) < 1 << 63 else None


def number_first(number: str) -> tuple[bool, int, str]:
    """Sorts ids by value; texts that are no numbers come after them."""
    is_number = re.fullmatch(r"-?\d{1,19}", number, re.ASCII) is not None
    return (not is_number, int(number) if is_number else 0, number)


def unify_ids(file: CocoFile, categories: dict[str, str], notes: list[str]) -> None:
    """Add the categories of a file to those of other files; one that has another id there gets that, by its name.

    Raises:
        InputError: two categories of different names have the same id, and only one is in both files.
    """
    counts, merged_counts = Counter(file.categories.values()), Counter(categories.values())
    numbers = {name: number for number, name in categories.items()}
    renumbered = {
        number: numbers[name]
        for number, name in file.categories.items()
        if counts[name] == merged_counts[name] == 1 and categories.get(number) != name
    }
    for number, name in file.categories.items():
        if number not in renumbered and categories.setdefault(number, name) != name:
            raise InputError(f"{file.path}: category {number} is {name}, but {categories[number]} elsewhere")
    file.categories = {renumbered.get(number, number): name for number, name in file.categories.items()}
    for key, entries in (("id", file.content["categories"]), ("category_id", file.content["annotations"])):
        for entry in entries:
            entry[key] = renumbered.get(str(identity(entry.get(key))), entry.get(key))
    notes += [f"{file.path}: category {old}, {categories[new]}, is {new} elsewhere" for old, new in renumbered.items()]


def without_groups(categories: dict[str, str], files: list[CocoFile], notes: list[str]) -> dict[str, str]:
    """The categories without Roboflow's root, which only groups the others: no box has it, and it has no parent."""
    used = {identity(entry.get("category_id")) for file in files for entry in file.content["annotations"]}
    above: dict[str, set[str]] = {number: set() for number in categories}
    for file in files:
        for entry in file.content["categories"]:
            above[cast(str, identity(entry["id"]))].add(str(entry.get("supercategory") or "none"))
    roots = [
        number
        for number, name in categories.items()
        if number not in used
        and above[number] <= {"none", name}
        and any(name in above[other] for other in categories if other != number)
    ]
    notes += [f"category {number}, {categories[number]}, groups others and has no box: not a class" for number in roots]
    return {number: name for number, name in categories.items() if number not in roots}


def distinct_names(categories: dict[str, str], notes: list[str]) -> dict[str, str]:
    """The categories with the id added to each name that several have."""
    counts = Counter(categories.values())
    names = {number: name if counts[name] == 1 else f"{name}_{number}" for number, name in categories.items()}
    notes += [f"category {n}, {categories[n]}, is called {names[n]}" for n in names if names[n] != categories[n]]
    if len(set(names.values())) < len(names):
        raise InputError(f"categories should have different names, not {', '.join(names.values())}")
    return names


def read_split(file: CocoFile, categories: dict[str, str]) -> list[Sample]:
    """The samples of one COCO file, sorted by file name.

    Args:
        file: the file; entries that cannot be used are noted in it.
        categories: the class names by category id.
    """
    images = read_images(file)
    annotations: dict[str, list[tuple[str, dict]]] = {number: [] for number in images}
    for i, entry in enumerate(file.content["annotations"]):
        number, category = identity(entry.get("image_id")), identity(entry.get("category_id"))
        where = f"annotations[{i}]"
        if number not in annotations:
            file.leave_out("object", "its image is not there", where, f"is on image {number}, which is not in images")
        elif category not in categories:
            file.leave_out(
                "object", "its category is not there", where, f"has category {category}, which is not in categories"
            )
        else:
            annotations[number].append((where, entry))
    by_source: dict[Path, tuple[dict, list[tuple[str, dict]]]] = {}
    sources = file.find_images(image["file_name"] for image in images.values())
    for number, image in sorted(images.items(), key=lambda item: item[1]["file_name"]):
        by_source.setdefault(sources[image["file_name"]], (image, []))[1].extend(annotations[number])
    return [
        read_image_entry(file, source, image, entries, categories) for source, (image, entries) in by_source.items()
    ]


def separated(name: str) -> str:
    """A file name with "/" for Windows' separators."""
    return name.strip().replace("\\", "/")


def stated_name(entry: Mapping[str, object]) -> str:
    """The file name of an image; LVIS has only the address where the image was, ``coco_url``. Empty where it has none.

    Of an address the path counts.
    """
    names = (entry.get(key) for key in ("file_name", "coco_url", "flickr_url"))
    name = next((name for name in names if isinstance(name, str) and name.strip()), "")
    address = urlsplit(name) if re.match(r"https?://", name) else None
    return address.path.lstrip("/") if address else name


def read_images(file: CocoFile) -> dict[str, dict]:
    """The entries of the images by id, without those that have no file name or share an id with another image."""
    images: dict[str, dict] = {}
    shared = set()
    for i, entry in enumerate(file.content["images"]):
        number, name = identity(entry.get("id")), stated_name(entry)
        if number is None or not name:
            file.leave_out("image", "no id or file name", f"images[{i}]", "should have an 'id' and a 'file_name'")
        elif images.setdefault(number, entry | {"file_name": name})["file_name"] != name:
            file.leave_out("image", "its id is that of another", f"two images have the id {number}:", name)
            shared.add(number)
    for number in shared:
        name = images.pop(number)["file_name"]
        file.leave_out("image", "its id is that of another", f"two images have the id {number}:", name)
    return images


def read_image_entry(
    file: CocoFile, source: Path, image: dict, entries: list[tuple[str, dict]], categories: dict[str, str]
) -> Sample:
    """One image of a COCO file. Boxes are x, y, width, height in pixels from 0; a box around a crowd is left out."""
    left_out = []
    boxes: list[list[float]] = []
    classes = []
    for where, entry in entries:
        if entry.get("iscrowd") in (1, True, "1"):
            left_out.append(LeftOut("object", CROWD))
            continue
        try:
            boxes.append(read_box(entry, f"{file.path}: image {image['file_name']}: {where}"))
        except InputError as error:
            left_out.append(LeftOut("object", "no box", str(error)))
        else:
            classes.append(categories[str(identity(entry["category_id"]))])
    array = np.reshape(np.array(boxes, np.float64), (-1, 4))
    array[:, 2:] += array[:, :2]
    size = read_stated_size(image.get("width"), image.get("height"))
    return Sample(source, file.path, array, classes, left_out, size)


def read_box(entry: dict, where: str) -> list[float]:
    """x, y, width, height of an annotation: its ``bbox``, or else the box of its polygons or of its mask.

    Raises:
        InputError: it has none of them, or not finite numbers.
    """
    if entry.get("bbox"):
        return finite_numbers(entry["bbox"], 4, f"{where}: bbox").tolist()
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return rle_box(segmentation, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{where} has neither a 'bbox' nor a 'segmentation'")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points = []
    for polygon in polygons:
        count = len(polygon) if isinstance(polygon, list) else 0
        if count < 6 or count % 2:
            raise InputError(f"{where} has no 'bbox', and a polygon that is not of three points or more")
        points.append(finite_numbers(polygon, count, f"{where}: segmentation").reshape(-1, 2))
    corners = np.concatenate(points)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
