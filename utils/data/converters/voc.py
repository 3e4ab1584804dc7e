"""Reads Pascal VOC: an XML file for each image, in any layout; splits in ``ImageSets``, in folders, or none."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.converters.layout import Images, by_split
from utils.data.converters.samples import (
    DataSet,
    LeftOut,
    Sample,
    finite_numbers,
    read_stated_size,
    shortened,
)
from utils.data.image_lists import files_below
from utils.data.images import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.files import read_names, read_text

# Lists of ImageSets for train.txt and valid.txt where the command line names none; the first pair that is there.
USUAL_LISTS = (("trainval", "test"), ("train", "val"), ("train", "valid"), ("train", "validation"), ("train", "test"))
MAX_BYTES = 1 << 24  # of an XML file; annotations of one image are far smaller


@dataclass
class VocFolder:
    """The files of a Pascal VOC folder.

    Attributes:
        source: the folder.
        images: its images.
        annotations: its XML files.
        left_out: what was left out so far.
        unread: the images whose XML files cannot be read.
    """

    source: Path
    images: Images
    annotations: list[Path]
    left_out: list[LeftOut] = field(default_factory=list)
    unread: set[Path] = field(default_factory=set)

    @cached_property
    def near(self) -> set[Path]:
        """The images that are near an annotation."""
        return set(chain(*map(self.images.near, self.annotations)))

    def read(self, annotation: Path) -> Sample | None:
        """The sample of an XML file; None where it cannot be read or has no image, which is then in ``left_out``."""
        try:
            root = parse_xml(annotation)
            if root.tag == "annotations":
                raise InputError(f"{annotation}: is XML of CVAT itself: export the data as Pascal VOC, COCO or YOLO")
            image = self.images.of(annotation, root.findtext("filename") or "", self.near)
        except InputError as error:
            self.left_out.append(LeftOut("image", "no image, or no XML", str(error)))
            with suppress(InputError):
                self.unread.add(self.images.of(annotation, taken=self.near))
            return None
        return read_annotation(root, annotation, image)


def read_voc(source: Path, train_list: str | None, valid_list: str | None, classes: list[str] | None) -> DataSet:
    """Read a Pascal VOC folder.

    Args:
        source: the folder; XML files and images may lie anywhere below it.
        train_list, valid_list: the names of the splits' files in ``ImageSets/Main``, without ``.txt``; None takes the
            first of USUAL_LISTS, or else the split that the names of the folders tell.
        classes: the class names; objects of other classes are left out. None takes all classes, sorted by name.

    Raises:
        InputError: a list is missing, there is no annotation, or no object has one of ``classes``.
    """
    folder = VocFolder(source, Images(source, IMAGE_SUFFIXES), files_below(source, {".xml"}))
    if not folder.annotations:
        raise InputError(f"{source}: there is no XML file in it, which Pascal VOC has for each image")
    lists = find_lists(source, train_list, valid_list)
    if lists:
        splits = {split: read_list(folder, path) for split, path in lists.items()}
    else:
        samples = [sample for path in tqdm(folder.annotations, desc="reading XML") if (sample := folder.read(path))]
        used = folder.unread | {sample.source for sample in samples}
        folder.left_out += [LeftOut("image", "has no XML file")] * sum(path not in used for path in folder.images.paths)
        splits, elsewhere = by_split(samples, source)
        folder.left_out += elsewhere
    samples = list(chain(*splits.values()))
    annotated = sorted({name for sample in samples for name in sample.classes})
    if not annotated:
        left_out = chain(folder.left_out, *(sample.left_out for sample in samples))
        problem = next((f": {item.problem}" for item in left_out if item.problem), "")
        raise InputError(f"{source}: no XML file of an image has an object with a name and a box{problem}")
    if classes is None:
        return DataSet(splits, annotated, folder.left_out)
    if not set(annotated) & set(classes):
        raise InputError(f"--classes {','.join(classes)}: none is in {source}, which has {','.join(annotated)}")
    for sample in samples:
        sample.keep_classes(classes)
    return DataSet(splits, classes, folder.left_out)


def find_lists(source: Path, train_list: str | None, valid_list: str | None) -> dict[str, Path]:
    """The lists of images in ``ImageSets/Main`` or ``ImageSets``, by split; empty where there is no usual pair.

    Raises:
        InputError: a list that is named does not exist, a list for validation has none for training beside it, or
            there are several folders ``ImageSets``.
    """
    lists: dict[str, Path] = {}
    folders = set()
    for path in files_below(source, {".txt"}):
        folder = path.parent.parent if path.parent.name.lower() == "main" else path.parent
        if folder.name.lower() == "imagesets":
            folders.add(folder)
            lists[path.stem] = path
    if len(folders) > 1:
        raise InputError(f"{source}: has folders ImageSets in {min(folders)} and elsewhere: convert them one by one")
    for name in filter(None, (train_list, valid_list)):
        if name not in lists:
            raise InputError(
                f"{source / 'ImageSets' / 'Main' / name}.txt: there is no such split; "
                f"the folder has {', '.join(sorted(lists)) or 'none'}"
            )
    for train, valid in USUAL_LISTS:
        if (train_list or train) in lists and (valid_list or valid) in lists:
            return {"train": lists[train_list or train], "valid": lists[valid_list or valid]}
    if valid_list:
        usual = ", ".join(dict.fromkeys(train for train, _ in USUAL_LISTS))
        raise InputError(f"--valid_split {valid_list}: there is no list {usual}: name the other one by --train_split")
    return {"train": lists[train_list]} if train_list else {}


def read_list(folder: VocFolder, path: Path) -> list[Sample]:
    """Read the images that a list names; lists of one class (``dog_train.txt``) mark those without it by -1."""
    annotations = by_ending(folder.annotations)
    samples: dict[Path, tuple[Sample, str]] = {}
    for line in tqdm(dict.fromkeys(read_names(path, "list of images")), desc=f"reading {path.stem}"):
        name, column = list_entry(line, annotations)
        annotation = annotations.get(name)
        if annotation is None:
            problem = f"{path}: names {shortened(line)}, but there is no annotation {name}.xml below {folder.source}"
            folder.left_out.append(LeftOut("image", "no image, or no XML", problem))
        elif annotation not in samples and (sample := folder.read(annotation)):
            samples[annotation] = sample, column
    if any(path.stem.startswith(f"{name}_") for sample, _ in samples.values() for name in sample.classes):
        return [sample for sample, column in samples.values() if column != "-1"]
    return [sample for sample, _ in samples.values()]


def by_ending(paths: list[Path]) -> dict[str, Path]:
    """Paths by what a list may call them: the stem, or the folder and the stem, ... joined by "/"."""
    endings: dict[str, Path] = {}
    for path in paths:
        parts = path.with_suffix("").parts
        for start in range(1, len(parts)):
            endings.setdefault("/".join(parts[start:]), path)
    return endings


def list_entry(line: str, names: Container[str]) -> tuple[str, str]:
    """Which of ``names`` a line of a list means, as ``a``, ``a.jpg``, ``images/a.jpg`` or ``a 1``; and its column."""
    columns = re.fullmatch(r"(.*?)\s+(-?\d+)", line)
    readings = [(line, "")] + ([(columns[1], columns[2])] if columns else [])
    for text, column in readings:
        path = text.replace("\\", "/")
        last = path.rpartition("/")[2]
        for name in (path, without_suffix(path), last, without_suffix(last)):
            if name in names:
                return name, column
    return without_suffix(last), column


def without_suffix(name: str) -> str:
    """``name`` without the suffix of an image or of an annotation; the rest of its dots stay."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in {*IMAGE_SUFFIXES, ".xml"} else name


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; namespaces are left out.

    Raises:
        InputError: it is not XML, is far too large, or declares entities (which may expand to gigabytes).
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: has more than {MAX_BYTES >> 20} MiB, too much for the annotation of an image")
    text = read_text(path, "XML file", xml=True)
    if "<!ENTITY" in text:
        raise InputError(f"{path}: declares entities, which an annotation does not need")
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path}: not XML ({error})") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def read_annotation(root: ElementTree.Element, annotation: Path, source: Path) -> Sample:
    """The sample of an XML file. Its pixels are numbered from 1, and ``xmax`` and ``ymax`` are inside the box."""
    classes: list[str] = []
    boxes: list[np.ndarray] = []
    left_out: list[LeftOut] = []
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = " ".join((element.findtext("name") or "").split())
        where = f"{annotation}: object {number}"
        try:
            if not name:
                raise InputError(f"{where} has no <name>")
            boxes.append(read_box(element, where))
        except InputError as error:
            left_out.append(LeftOut("object", "no name or no box", str(error)))
        else:
            classes.append(name)
    array = np.reshape(np.array(boxes, np.float64), (-1, 4))
    # xmin == xmax is a click without a drag, so the box has no area; it is not one pixel wide.
    array[:, :2] -= array[:, 2:] > array[:, :2]
    size = read_stated_size(root.findtext("size/width"), root.findtext("size/height"))
    return Sample(source, annotation, array, classes, left_out, size)


def read_box(element: ElementTree.Element, where: str) -> np.ndarray:
    """xmin, ymin, xmax, ymax of an object: of its <bndbox>, or of the points of its <polygon>.

    Raises:
        InputError: it has neither, or not four finite numbers.
    """
    polygon = element.find("polygon")
    if element.find("bndbox") is not None:
        sides = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        return finite_numbers(sides, 4, f"{where}: xmin, ymin, xmax, ymax")
    if polygon is None:
        raise InputError(f"{where} has neither <bndbox> nor <polygon>")
    xs, ys = (list(polygon_values(polygon, axis)) for axis in "xy")
    if len(xs) != len(ys) or len(xs) < 3:
        raise InputError(f"{where} has no <bndbox>, and its <polygon> is not of three points or more")
    points = finite_numbers([xs, ys], 2 * len(xs), f"{where}: <polygon>").reshape(2, -1)
    return np.concatenate([points.min(axis=1), points.max(axis=1)])


def polygon_values(polygon: ElementTree.Element, axis: str) -> Iterator[str | None]:
    """The coordinates "x" or "y" of a polygon, of tags <x1>, <x2>, ... or of points <pt><x>."""
    return (child.text for child in polygon.iter() if re.fullmatch(rf"{axis}\d*", child.tag))
