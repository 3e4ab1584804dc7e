"""Converts data sets of other formats to what the programs read: images, YOLO labels, and lists of images.

python data/converter.py                                      Oxford hands: data/hand_dataset -> data
python data/converter.py voc --source VOCdevkit/VOC2007       Pascal VOC -> data/voc
python data/converter.py coco --annotations_train ...         COCO -> data/coco
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from terminaltables import AsciiTable
from tqdm import tqdm

if not __package__:  # run as `python data/converter.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import ArgumentParser, run
from utils.data.images import IMAGE_SUFFIXES, read_image
from utils.errors import InputError
from utils.files import read_names, write_text

OXFORD_FOLDERS = {
    "train": ["training_dataset/training_data", "validation_dataset/validation_data"],
    "valid": ["test_dataset/test_data"],
}
COCO_FIELDS = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass
class Image:
    """An image and its boxes as the source has them.

    ``boxes`` is (N, 4): x1, y1, x2, y2 in pixels, where the image's top left corner is 0, 0; they may pass the
    border. ``classes`` has N class names. ``skipped`` counts the objects that were left out on purpose.
    ``stated_size`` is the width and height that the annotation claims, if it does.
    """

    source: Path
    annotation: Path
    boxes: np.ndarray
    classes: list[str]
    skipped: int = 0
    stated_size: tuple[float, float] | None = None


Splits = dict[str, list[Image]]


@dataclass
class Converted:
    """What becomes of an image: ``name`` is its copy's, ``label`` its YOLO lines, ``row`` its share of the summary."""

    source: Path
    name: str
    label: str
    row: dict[str, int]


def numbers(values: object, length: int, where: str | Path) -> np.ndarray:
    """``values``, numbers or their texts, as ``length`` finite floats; InputError saying ``where`` if they are not."""
    try:
        array = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.size != length or not np.isfinite(array).all():
        raise InputError(f"{where}: {values} should be {length} finite numbers")
    return array


# Oxford hands


def read_oxford(source: Path) -> Splits:
    """Read Oxford's ``hand_dataset`` (the folder or its parent): training and validation images, and test images.

    Raises InputError for a missing folder, an image without annotation or the other way round, and a broken ``.mat``.
    """
    roots = [root for root in (source, source / "hand_dataset") if (root / "training_dataset").is_dir()]
    if not roots:
        raise InputError(
            f"{source}: no folder training_dataset in it; data/download_oxford.sh fetches Oxford's images, "
            "data/synthetic_hands.py draws others"
        )
    return {
        split: [image for folder in folders for image in read_oxford_folder(roots[0] / folder)]
        for split, folders in OXFORD_FOLDERS.items()
    }


def read_oxford_folder(folder: Path) -> list[Image]:
    """Read the images of ``folder/images`` and their ``folder/annotations``, sorted by name."""
    images = visible_files(folder / "images", ".jpg")
    annotations = visible_files(folder / "annotations", ".mat")
    for stem in sorted(images.keys() - annotations.keys()):
        raise InputError(f"{images[stem]}: has no annotation {folder / 'annotations' / stem}.mat")
    for stem in sorted(annotations.keys() - images.keys()):
        raise InputError(f"{annotations[stem]}: has no image {folder / 'images' / stem}.jpg")
    return [read_mat(annotations[stem], images[stem]) for stem in tqdm(sorted(images), desc=f"reading {folder.name}")]


def visible_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files of ``folder`` with one of ``suffixes``, by stem, but for hidden ones (a Mac adds ``._x`` to ``x``)."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, but the data set should have one")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in files:
                raise InputError(f"{path}: there is {files[path.stem].name} too; one of them should go")
            files[path.stem] = path
    return files


def read_mat(annotation: Path, source: Path) -> Image:
    """Read one of Oxford's annotations: rotated boxes, whose upright bounding boxes are the labels."""
    try:
        cells = loadmat(annotation, variable_names=["boxes"])["boxes"].ravel()
        corners = [[numbers(cell[corner].item().tolist(), 2, annotation) for corner in "abcd"] for cell in cells]
    except InputError:
        raise
    except Exception as error:  # a broken file leads scipy into errors of every kind
        raise InputError(
            f"{annotation}: should hold a cell array `boxes` of structs with the corners a, b, c, d "
            f"({type(error).__name__}: {error})"
        ) from error
    # MATLAB has the row first, and the first pixel's centre at 1: half a pixel from the image's corner.
    corners = np.reshape(corners, (-1, 4, 2))[:, :, ::-1] - 0.5
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Image(source, annotation, boxes, ["hand"] * len(boxes))


# Pascal VOC


def read_voc(source: Path, split_files: dict[str, str], classes: list[str] | None) -> tuple[Splits, list[str]]:
    """Read a Pascal VOC folder: ``split_files`` says which file of ``ImageSets/Main`` is which split.

    Returns the images and the class names: ``classes`` if given (objects of others are skipped), else all there
    are, sorted. Raises InputError for a missing file, broken XML, and ``classes`` of which no object has one.
    """
    files = visible_files(source / "JPEGImages", *IMAGE_SUFFIXES)
    splits = {split: read_voc_split(source, name, files) for split, name in split_files.items()}
    found = sorted({name for image in chain(*splits.values()) for name in image.classes})
    if not found:
        raise InputError(f"{source / 'Annotations'}: no objects in the images of {', '.join(split_files.values())}")
    if classes is None:
        return splits, found
    if not set(found) & set(classes):
        raise InputError(f"--classes {','.join(classes)}: none is in {source}/Annotations, which has {','.join(found)}")
    return {split: [only(image, classes) for image in images] for split, images in splits.items()}, classes


def read_voc_split(source: Path, name: str, files: dict[str, Path]) -> list[Image]:
    """Read the images that ``ImageSets/Main/{name}.txt`` lists; ``files`` are the image files by stem."""
    path = source / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"{path}: no such split; there are {', '.join(sorted(visible_files(path.parent, '.txt')))}")
    images = []
    for stem in tqdm(dict.fromkeys(read_names(path, "list of images")), desc=f"reading {name}"):
        annotation = source / "Annotations" / f"{stem}.xml"
        if stem not in files:
            raise InputError(f"{path}: names {stem}, but there is no image {source / 'JPEGImages' / stem}.jpg")
        if not annotation.is_file():
            raise InputError(f"{path}: names {stem}, but there is no {annotation}")
        images.append(read_xml(annotation, files[stem]))
    return images


def read_xml(annotation: Path, source: Path) -> Image:
    """Read one VOC annotation. Its pixels are counted from 1, and ``xmax`` and ``ymax`` belong to the box."""
    try:
        root = ElementTree.parse(annotation).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{annotation}: not XML ({error})") from error
    classes, boxes = [], []
    for thing in root.iterfind("object"):
        classes.append((thing.findtext("name") or "").strip())
        if not classes[-1]:
            raise InputError(f"{annotation}: object {len(classes)} has no <name>")
        sides = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(numbers(sides, 4, f"{annotation}: xmin, ymin, xmax, ymax of object {len(classes)}"))
    boxes = np.reshape(boxes, (-1, 4))
    # Two corners on one line are a click without a drag, which has no area, and not a box one pixel wide.
    boxes[:, :2] -= boxes[:, 2:] > boxes[:, :2]
    size = stated_size(root.findtext("size/width"), root.findtext("size/height"), annotation)
    return Image(source, annotation, boxes, classes, stated_size=size)


def only(image: Image, classes: list[str]) -> Image:
    """``image`` without the objects of other classes, which it counts as skipped."""
    kept = [i for i, name in enumerate(image.classes) if name in classes]
    return replace(
        image,
        boxes=image.boxes[kept],
        classes=[image.classes[i] for i in kept],
        skipped=image.skipped + len(image.classes) - len(kept),
    )


def class_list(text: str) -> list[str]:
    """The class names of ``--classes``: the lines of a file, or names with commas between them."""
    names = read_names(text) if Path(text).is_file() else [name.strip() for name in text.split(",")]
    if not names or "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {text}: should be different names, one a line or with commas between them")
    return names


# COCO


def read_coco(sources: dict[str, tuple[Path, Path]]) -> tuple[Splits, list[str]]:
    """Read COCO instances: ``sources`` has every split's annotation file and folder of images.

    Returns the images and the class names in the order of the category ids. Raises InputError for a broken or
    incomplete file, and for splits whose categories contradict each other.
    """
    contents = {split: load_coco(annotation) for split, (annotation, _) in sources.items()}
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
    return {split: read_coco_split(contents[split], categories, *sources[split]) for split in sources}, names


def load_coco(path: Path) -> dict[str, list[dict]]:
    """The content of a COCO file; InputError if it is broken or an entry lacks one of ``COCO_FIELDS``."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    for key, fields in COCO_FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: has no list {key!r}, but COCO's instances files do")
        for i, entry in enumerate(content[key]):
            for field, kind in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                    raise InputError(f"{path}: {key}[{i}] should have {field!r}, of type {kind.__name__}")
    return content


def read_coco_split(content: dict[str, list], categories: dict[int, str], path: Path, folder: Path) -> list[Image]:
    """The images of one COCO file, sorted by name."""
    things: dict[int, list[dict]] = {}
    for image in content["images"]:
        if image["id"] in things:
            raise InputError(f"{path}: two images have the id {image['id']}, the second is {image['file_name']}")
        things[image["id"]] = []
    for i, thing in enumerate(content["annotations"]):
        if thing["image_id"] not in things:
            raise InputError(f"{path}: annotations[{i}] is on image {thing['image_id']}, which is not in images")
        if thing["category_id"] not in categories:
            raise InputError(
                f"{path}: annotations[{i}] has category {thing['category_id']}, which is not in categories"
            )
        things[thing["image_id"]].append(thing)
    images = sorted(content["images"], key=lambda image: image["file_name"])
    return [coco_image(image, things[image["id"]], categories, path, folder) for image in images]


def coco_image(image: dict, things: list[dict], categories: dict[int, str], path: Path, folder: Path) -> Image:
    """One image of a COCO file. Its boxes are x, y, width, height, from 0; a box around a crowd is no object."""
    where = f"{path}: image {image['file_name']}"
    single = [thing for thing in things if not thing.get("iscrowd")]
    boxes = np.reshape([numbers(thing["bbox"], 4, f"{where}: bbox") for thing in single], (-1, 4))
    boxes[:, 2:] += boxes[:, :2]
    return Image(
        source=folder / image["file_name"],
        annotation=path,
        boxes=boxes,
        classes=[categories[thing["category_id"]] for thing in single],
        skipped=len(things) - len(single),
        stated_size=stated_size(image.get("width"), image.get("height"), where),
    )


# What all formats share: checks, labels, files


def stated_size(width: object, height: object, where: str | Path) -> tuple[float, float] | None:
    """The size that an annotation claims, None if it claims none; InputError if it is not two numbers."""
    return None if width is None or height is None else tuple(numbers([width, height], 2, f"{where}: size"))


def image_size(image: Image) -> tuple[int, int]:
    """Width and height of an image file, upright as its EXIF data says; InputError if it is missing or broken."""
    if not image.source.is_file():
        raise InputError(f"{image.annotation}: names the image {image.source}, which is missing")
    return read_image(image.source).size  # decoded, so that a broken one fails now, not in training


def label_text(image: Image, size: tuple[int, int], names: list[str]) -> tuple[str, int]:
    """The YOLO label lines of an image of ``size`` (width, height) in pixels, and how many boxes were clipped.

    Boxes are clipped to the image. One without area there, or too little for a label's six decimals, has no line.
    """
    inside = np.clip(image.boxes, 0, [*size, *size])
    centres, sides = (inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]
    labels = np.round(np.concatenate([centres / size, sides / size], axis=1), 6)
    kept = (labels[:, 2:] > 0).all(axis=1)
    clipped = (np.abs(inside - image.boxes) > 1e-3).any(axis=1)  # less is the noise of floats
    lines = [
        f"{names.index(name)} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n"
        for name, (cx, cy, w, h), keep in zip(image.classes, labels, kept, strict=True)
        if keep
    ]
    return "".join(lines), int((clipped & kept).sum())


def free_name(source: Path, taken: set[str]) -> str:
    """A file name for the copy of ``source``: its own, with a number if its stem is ``taken``, which it then is."""
    stems = chain([source.stem], (f"{source.stem}_{number}" for number in count(2)))
    stem = next(stem for stem in stems if stem.lower() not in taken)
    taken.add(stem.lower())  # some file systems make no difference between a.jpg and A.jpg
    return stem + source.suffix


def convert_split(images: list[Image], names: list[str], taken: set[str]) -> list[Converted]:
    """Check and convert the images of one split; ``taken`` are the stems that have gone to other images."""
    with ThreadPoolExecutor() as pool:
        sizes = list(tqdm(pool.map(image_size, images), total=len(images), desc="checking images"))
    converted = []
    for image, size in zip(images, sizes, strict=True):
        label, clipped = label_text(image, size, names)
        boxes = label.count("\n")
        row = {
            "images": 1,
            "boxes": boxes,
            "clipped": clipped,
            "dropped (no area)": len(image.boxes) - boxes,
            "skipped": image.skipped,
            "negatives": int(not boxes),
            "size differs": int(image.stated_size not in (None, size)),
        }
        converted.append(Converted(image.source, free_name(image.source, taken), label, row))
    return converted


def write_images(images: list[Converted], output: Path) -> None:
    """Copy images to ``output/images`` and write their labels to ``output/labels``: all, or none if one fails."""
    for folder in ("images", "labels"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converter-", dir=output) as name:
        staging = Path(name)
        (staging / "images").mkdir()
        (staging / "labels").mkdir()
        for image in tqdm(images, desc="copying images"):
            shutil.copy2(image.source, staging / "images" / image.name)
            (staging / "labels" / image.name).with_suffix(".txt").write_text(image.label, encoding="utf-8")
        for path in sorted(staging.glob("*/*")):
            os.replace(path, output / path.relative_to(staging))


def write_data_set(splits: Splits, names: list[str], output: Path) -> None:
    """Check all of a data set, then write its images, labels and lists to ``output``, and print a summary.

    ``names`` are the classes in the order of their numbers. Files of the same names in ``output`` are replaced and
    others stay. InputError for a split without images and a missing or broken image: then all is as it was.
    """
    for split, images in splits.items():
        if not images:
            raise InputError(f"the {split} split has no images, but should have some")
    taken: set[str] = set()
    converted = {split: convert_split(images, names, taken) for split, images in splits.items()}
    write_images(list(chain(*converted.values())), output)
    for split, images in converted.items():
        write_text(output / f"{split}.txt", "".join(f"images/{image.name}\n" for image in images))
    print(summary(converted))


def summary(converted: dict[str, list[Converted]]) -> str:
    """A table with a row of counts a split."""
    columns = list(converted["train"][0].row)
    rows = [
        [split, *(sum(image.row[column] for image in images) for column in columns)]
        for split, images in converted.items()
    ]
    return AsciiTable([["split", *columns], *rows]).table


def write_description(names: list[str], output: Path) -> None:
    """Write the class names and the ``.data`` file that train.py's ``--data_config`` takes, named as the folder is."""
    name = output.resolve().name
    write_text(output / f"{name}.names", "".join(f"{class_name}\n" for class_name in names))
    write_text(output / f"{name}.data", f"classes={len(names)}\ntrain=train.txt\nvalid=valid.txt\nnames={name}.names\n")
    print(f"Train with --data_config {output / name}.data")


# The command line


def convert_oxford(args: argparse.Namespace) -> None:
    """Convert Oxford's hands. config/oxfordhand.data describes the result already."""
    write_data_set(read_oxford(args.source), ["hand"], args.output)


def convert_voc(args: argparse.Namespace) -> None:
    """Convert a Pascal VOC folder."""
    classes = None if args.classes is None else class_list(args.classes)
    splits, names = read_voc(args.source, {"train": args.train_split, "valid": args.valid_split}, classes)
    write_data_set(splits, names, args.output)
    write_description(names, args.output)


def convert_coco(args: argparse.Namespace) -> None:
    """Convert a training and a validation file of COCO instances."""
    splits, names = read_coco(
        {
            "train": (args.annotations_train, args.images_train),
            "valid": (args.annotations_valid, args.images_valid),
        }
    )
    write_data_set(splits, names, args.output)
    write_description(names, args.output)


class ModesParser(ArgumentParser):
    """The command line without a mode is that of the mode ``oxford``."""

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse ``args``, by default the program's, with ``oxford`` in front of options that no mode precedes."""
        words = sys.argv[1:] if args is None else list(args)
        first = next((word for word in words if word != "--debug"), "--")
        if first.startswith("-") and first not in ("-h", "--help"):
            words = ["oxford", *words]
        return super().parse_args(words, namespace)


def get_args_parser() -> ArgumentParser:
    """Build the command line."""
    parser = ModesParser("Convert a data set to images, YOLO labels, train.txt and valid.txt.")
    modes = parser.add_subparsers(metavar="mode", required=True, parser_class=ArgumentParser)

    about = "Oxford hands, or synthetic ones in their layout: training and validation data become train.txt (default)"
    oxford = modes.add_parser("oxford", help=about, description=about)
    oxford.add_argument("--source", type=Path, default=Path("data/hand_dataset"), help="hand_dataset or its parent")
    oxford.add_argument("--output", type=Path, default=Path("data"), help="folder to write to")
    oxford.set_defaults(convert=convert_oxford)

    about = "Pascal VOC; objects marked as difficult are kept"
    voc = modes.add_parser("voc", help=about, description=about)
    voc.add_argument("--source", type=Path, required=True, help="folder of Annotations, JPEGImages and ImageSets/Main")
    voc.add_argument("--train_split", default="trainval", help="file of ImageSets/Main for train.txt, without .txt")
    voc.add_argument("--valid_split", default="test", help="file of ImageSets/Main for valid.txt, without .txt")
    voc.add_argument(
        "--classes", help="names file, or names with commas between, others are skipped; without it, all there are"
    )
    voc.add_argument("--output", type=Path, default=Path("data/voc"), help="folder to write to")
    voc.set_defaults(convert=convert_voc)

    about = "COCO instances; boxes around crowds are skipped"
    coco = modes.add_parser("coco", help=about, description=about)
    for split in ("train", "valid"):
        coco.add_argument(
            f"--annotations_{split}", type=Path, required=True, help=f"instances JSON file for {split}.txt"
        )
        coco.add_argument(f"--images_{split}", type=Path, required=True, help="folder of its images")
    coco.add_argument("--output", type=Path, default=Path("data/coco"), help="folder to write to")
    coco.set_defaults(convert=convert_coco)
    return parser


def main(args: argparse.Namespace) -> None:
    """Convert as the mode says."""
    args.convert(args)


if __name__ == "__main__":
    run(get_args_parser(), main)
