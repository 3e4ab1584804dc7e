"""The data check before the first step: every image is decoded and every label file read, once.

The result of decoding is cached beside the list of images, in ``.{list}.checked.json``, by path, size and time of
change of each image. The cache may be deleted at any time. Labels are read again each time.
"""

import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from terminaltables import AsciiTable
from tqdm import tqdm

from utils.data.data_config import DataConfig
from utils.data.image_lists import ListEntry, read_list_entries
from utils.data.images import ImageTraits, decode_strictly
from utils.data.labels import Labels, label_path, scan_labels
from utils.distributed import is_main
from utils.errors import InputError
from utils.files import write_text

MAX_SHOWN = 10  # problems that are printed
READER = f"Pillow {PIL.__version__}, 8 bits"  # the cache of another version is not used: it may read other images


class Decoded(NamedTuple):
    """The result of decoding an image file.

    Attributes:
        size: bytes of the file.
        changed: when the file was last changed, in ns.
        turned: whether its EXIF orientation rotated or mirrored the image.
        deep: whether it has more than 8 bits per value.
        problem: the error message, or None.
    """

    size: int
    changed: int
    turned: bool
    deep: bool
    problem: str | None


@dataclass(frozen=True)
class CheckedImage:
    """An image of a list with its labels, and all error messages; ``decoded`` is None where the image is missing."""

    entry: ListEntry
    labels: Labels
    decoded: Decoded | None
    problems: list[str]


@dataclass(frozen=True)
class CheckedData:
    """The usable images of a list.

    Attributes:
        images: the image files.
        labels: for each image its boxes (N, 5): class, cx, cy, w, h in [0, 1].
        counts: the numbers of images, boxes, ... by column of :func:`summary`.
    """

    images: list[Path]
    labels: list[np.ndarray]
    counts: dict[str, int]


def check_data(data: DataConfig, split: str, skip_bad: bool = False) -> CheckedData:
    """Check the images and labels of ``split``, "train" or "valid", in parallel.

    Args:
        data: the data set.
        split: which of its lists.
        skip_bad: leave out images that have a problem, instead of raising an error.

    Raises:
        InputError: an image has a problem, or there is no usable image or no box. The first problems are printed on
            stderr.
    """
    list_path = data.list_path(split)
    checked = check_images(read_list_entries(list_path), data.classes, list_path)
    bad = [image for image in checked if image.problems]
    if bad:
        report_problems(bad, list_path, skip_bad)
    good = [image for image in checked if not image.problems]
    if not good:
        raise InputError(f"{list_path}: none of its {len(checked)} images can be used")
    labels = [image.labels.boxes for image in good]
    if not any(map(len, labels)):
        raise InputError(f"{list_path}: none of its {len(good)} images has a labelled box")
    images = [image.entry.path for image in good]
    counts = {
        "images": len(good),
        "boxes": sum(map(len, labels)),
        "images without boxes": sum(not len(boxes) for boxes in labels),
        "boxes clipped": sum(image.labels.clipped for image in good),
        "duplicate boxes": sum(image.labels.repeated for image in good),
        "duplicate images": len(images) - len(set(map(os.path.realpath, images))),
        "images turned by EXIF": sum(image.decoded.turned for image in good),
        "images scaled to 8 bits": sum(image.decoded.deep for image in good),
        "images left out": len(bad),
    }
    return CheckedData(images, labels, counts)


def check_images(entries: list[ListEntry], classes: int, list_path: Path) -> list[CheckedImage]:
    """Check each image of a list and its labels; images that have not changed since the last check are not decoded."""
    cache_path = list_path.with_name(f".{list_path.name}.checked.json")
    cache = read_cache(cache_path)
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        results = pool.map(partial(check_image, classes=classes, cache=cache), entries)
        checked = list(
            tqdm(
                results,
                f"checking {list_path.name}",
                len(entries),
                unit=" images",
                leave=False,
                disable=not is_main(),
            )
        )
    decoded = {os.path.abspath(image.entry.path): image.decoded for image in checked if image.decoded}
    if decoded != cache:
        write_cache(cache_path, decoded)
    return checked


def check_image(entry: ListEntry, classes: int, cache: Mapping[str, Decoded]) -> CheckedImage:
    """Check one image and its labels."""
    labels = scan_labels(label_path(entry.path), classes)
    try:
        status = os.stat(entry.path)
    except (OSError, ValueError):
        return CheckedImage(entry, labels, None, [entry.missing, *labels.problems])
    decoded = cache.get(os.path.abspath(entry.path))
    if decoded is None or (decoded.size, decoded.changed) != (status.st_size, status.st_mtime_ns):
        decoded = decode(entry.path, status)
    problems = [f"{entry.path}: {decoded.problem}"] if decoded.problem else []
    return CheckedImage(entry, labels, decoded, problems + labels.problems)


def decode(path: Path, status: os.stat_result) -> Decoded:
    """Decode an image and record the result, without the pixels."""
    traits, problem = ImageTraits(False, False), None
    try:
        _, traits = decode_strictly(path)
    except InputError as error:
        problem = str(error).removeprefix(f"{path}: ")
    return Decoded(status.st_size, status.st_mtime_ns, *traits, problem)


def report_problems(bad: list[CheckedImage], list_path: Path, skip_bad: bool) -> None:
    """Print the first problems on stderr.

    Raises:
        InputError: ``skip_bad`` is not set.
    """
    problems = [problem for image in bad for problem in image.problems]
    total = f"{len(problems)} problem(s) with {len(bad)} image(s)"
    if (len(problems) > 1 or skip_bad) and is_main():
        shown = problems[:MAX_SHOWN] + ["..."] * (len(problems) > MAX_SHOWN)
        print(f"{list_path}: {total}:", *shown, sep="\n  ", file=sys.stderr)
    if not skip_bad:
        suffix = f" ({total} in all)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{suffix}; --skip_bad leaves such images out")


def summary(checked: Mapping[str, CheckedData]) -> str:
    """A table with a row of counts for each list, and a warning where lists share images."""
    counts = {name: split.counts for name, split in checked.items()}
    always = ("images", "boxes")
    columns = [key for key in next(iter(counts.values())) if key in always or any(row[key] for row in counts.values())]
    rows = [["list", *columns], *([name, *(row[key] for key in columns)] for name, row in counts.items())]
    text = AsciiTable(rows).table
    if deep := sum(row["images scaled to 8 bits"] for row in counts.values()):
        text += (
            f"\nwarning: {deep} images have more than 8 bits per value: each is scaled to 8 bits from the range that "
            "its file states, or else from that of its values"
        )
    sets = [set(map(os.path.realpath, split.images)) for split in checked.values()]
    if len(sets) > 1 and (shared := set.intersection(*sets)):
        text += (
            f"\nwarning: {len(shared)} images are in both lists: "
            "the validation mAP says less about images that the model has not seen"
        )
    return text


def read_cache(path: Path) -> dict[str, Decoded]:
    """The results of an earlier check; empty where the cache is missing, damaged, or written by another READER."""
    try:
        content = json.loads(path.read_bytes())
        if content["reader"] != READER:
            return {}
        return {str(name): _to_decoded(*values) for name, values in content["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _to_decoded(size: int, changed: int, turned: bool, deep: bool, problem: str | None) -> Decoded:
    if not isinstance(problem, str | None):
        raise TypeError("a problem is a text or null")
    return Decoded(int(size), int(changed), bool(turned), bool(deep), problem)


def write_cache(path: Path, decoded: Mapping[str, Decoded]) -> None:
    """Cache the results; where the folder cannot be written to, the next check decodes every image again."""
    try:
        write_text(path, json.dumps({"reader": READER, "images": decoded}))
    except (OSError, InputError):
        return
