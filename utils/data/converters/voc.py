"""Reads Pascal VOC: ``JPEGImages``, XML in ``Annotations``, and the splits in ``ImageSets/Main``."""

import xml.etree.ElementTree as ElementTree
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.converters.samples import DataSet, Sample, files_by_stem, finite_numbers, read_stated_size
from utils.data.images import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.files import read_names


def read_voc(source: Path, split_files: dict[str, str], classes: list[str] | None) -> DataSet:
    """Read a Pascal VOC folder.

    Args:
        source: the folder that holds ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.
        split_files: for each split, the name of its file in ``ImageSets/Main``, without ``.txt``.
        classes: the class names; objects of other classes are left out. None takes all classes, sorted by name.

    Raises:
        InputError: a file is missing, XML is malformed, or no object has one of ``classes``.
    """
    files = files_by_stem(source / "JPEGImages", *IMAGE_SUFFIXES)
    splits = {split: read_split(source, name, files) for split, name in split_files.items()}
    samples = list(chain(*splits.values()))
    annotated = sorted({name for sample in samples for name in sample.classes})
    if not annotated:
        raise InputError(
            f"{source / 'Annotations'}: there are no objects in the images of {', '.join(split_files.values())}"
        )
    if classes is None:
        return DataSet(splits, annotated)
    if not set(annotated) & set(classes):
        raise InputError(
            f"--classes {','.join(classes)}: none is in {source}/Annotations, which has {','.join(annotated)}"
        )
    for sample in samples:
        sample.keep_classes(classes)
    return DataSet(splits, classes)


def read_split(source: Path, name: str, files: dict[str, Path]) -> list[Sample]:
    """Read the images that ``ImageSets/Main/{name}.txt`` lists; ``files`` are the image files by stem."""
    path = source / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        splits = ", ".join(sorted(files_by_stem(path.parent, ".txt")))
        raise InputError(f"{path}: there is no such split; the folder has {splits}")
    samples = []
    for stem in tqdm(dict.fromkeys(read_names(path, "list of images")), desc=f"reading {name}"):
        annotation = source / "Annotations" / f"{stem}.xml"
        if stem not in files:
            raise InputError(f"{path}: names {stem}, but there is no image {source / 'JPEGImages' / stem}.jpg")
        if not annotation.is_file():
            raise InputError(f"{path}: names {stem}, but there is no annotation {annotation}")
        samples.append(read_xml(annotation, files[stem]))
    return samples


def read_xml(annotation: Path, source: Path) -> Sample:
    """Read one annotation file. Its pixels are numbered from 1, and ``xmax`` and ``ymax`` are inside the box."""
    try:
        root = ElementTree.parse(annotation).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{annotation}: not XML ({error})") from error
    classes, boxes = [], []
    for element in root.iterfind("object"):
        classes.append((element.findtext("name") or "").strip())
        if not classes[-1]:
            raise InputError(f"{annotation}: object {len(classes)} has no <name>")
        sides = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(finite_numbers(sides, 4, f"{annotation}: xmin, ymin, xmax, ymax of object {len(classes)}"))
    boxes = np.reshape(boxes, (-1, 4))
    # xmin == xmax is a click without a drag, so the box has no area; it is not one pixel wide.
    boxes[:, :2] -= boxes[:, 2:] > boxes[:, :2]
    size = read_stated_size(root.findtext("size/width"), root.findtext("size/height"), annotation)
    return Sample(source, annotation, boxes, classes, stated_size=size)
