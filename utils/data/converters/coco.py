"""Reads COCO instances: one JSON file and one folder of images for each split."""

import json
from pathlib import Path

import numpy as np

from utils.data.converters.samples import DataSet, Sample, finite_numbers, read_stated_size
from utils.errors import InputError

FIELDS = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


def read_coco(sources: dict[str, tuple[Path, Path]]) -> DataSet:
    """Read COCO instances. The class names are in the order of the category ids.

    Args:
        sources: for each split, its annotation file and its folder of images.

    Raises:
        InputError: a file is malformed or incomplete, or the categories of the splits contradict each other.
    """
    contents = {split: load_instances(annotation) for split, (annotation, _) in sources.items()}
    categories: dict[int, str] = {}
    for split, content in contents.items():
        for category in content["categories"]:
            number, name = category["id"], category["name"]
            if categories.setdefault(number, name) != name:
                raise InputError(
                    f"{sources[split][0]}: category {number} is {name}, but {categories[number]} elsewhere"
                )
    names = [categories[number] for number in sorted(categories)]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{sources['train'][0]}: should have categories of different names, not {names}")
    return DataSet({split: read_split(contents[split], categories, *sources[split]) for split in sources}, names)


def load_instances(path: Path) -> dict[str, list[dict]]:
    """The content of a COCO file.

    Raises:
        InputError: the file is not JSON, or an entry lacks one of ``FIELDS``.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    for key, fields in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: has no list {key!r}, which a COCO instances file has")
        for i, entry in enumerate(content[key]):
            for field, kind in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                    raise InputError(f"{path}: {key}[{i}] should have {field!r}, of type {kind.__name__}")
    return content


def read_split(content: dict[str, list], categories: dict[int, str], path: Path, folder: Path) -> list[Sample]:
    """The samples of one COCO file, sorted by file name.

    Args:
        content: what the file holds, see :func:`load_instances`.
        categories: the class names by category id.
        path: the file, for error messages.
        folder: the folder of the images.
    """
    annotations: dict[int, list[dict]] = {}
    for image in content["images"]:
        if image["id"] in annotations:
            raise InputError(f"{path}: two images have the id {image['id']}, the second is {image['file_name']}")
        annotations[image["id"]] = []
    for i, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in annotations:
            raise InputError(f"{path}: annotations[{i}] is on image {annotation['image_id']}, which is not in images")
        if annotation["category_id"] not in categories:
            raise InputError(
                f"{path}: annotations[{i}] has category {annotation['category_id']}, which is not in categories"
            )
        annotations[annotation["image_id"]].append(annotation)
    images = sorted(content["images"], key=lambda image: image["file_name"])
    return [read_image_entry(image, annotations[image["id"]], categories, path, folder) for image in images]


def read_image_entry(
    image: dict, annotations: list[dict], categories: dict[int, str], path: Path, folder: Path
) -> Sample:
    """One image of a COCO file. Boxes are x, y, width, height in pixels from 0; a box around a crowd is left out."""
    where = f"{path}: image {image['file_name']}"
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    boxes = np.reshape([finite_numbers(entry["bbox"], 4, f"{where}: bbox") for entry in objects], (-1, 4))
    boxes[:, 2:] += boxes[:, :2]
    return Sample(
        source=folder / image["file_name"],
        annotation=path,
        boxes=boxes,
        classes=[categories[entry["category_id"]] for entry in objects],
        left_out=["box around a crowd"] * (len(annotations) - len(objects)),
        stated_size=read_stated_size(image.get("width"), image.get("height"), where),
    )
