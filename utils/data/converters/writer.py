"""Writes a converted data set: images, YOLO labels, lists of images, class names and the ``.data`` file."""

import os
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.converters.report import format_report
from utils.data.converters.samples import DataSet, Sample
from utils.data.images import read_image
from utils.errors import InputError
from utils.files import write_text

FLOAT_NOISE = 1e-3  # pixels; a box that is moved by less counts as not clipped


@dataclass
class ConvertedImage:
    """An image of the converted data set.

    Attributes:
        source: the file to copy.
        name: the file name of the copy.
        labels: the text of its YOLO label file.
        counts: what it adds to the columns of the report.
        left_out: for each object that the reader left out, the reason.
    """

    source: Path
    name: str
    labels: str
    counts: Counter
    left_out: list[str]


def write_data_set(data: DataSet, output: Path) -> None:
    """Check all of a data set, then write its images, labels and lists to ``output``, and print the report.

    Files of the same names in ``output`` are replaced; other files stay. Where an error is raised, ``output`` is
    unchanged.

    Raises:
        InputError: a split has no images, or an image is missing or damaged.
    """
    for split, samples in data.splits.items():
        if not samples:
            raise InputError(f"the {split} split has no images, but should have some")
    used_stems: set[str] = set()
    converted = {split: convert_split(samples, data.names, used_stems) for split, samples in data.splits.items()}
    write_images(list(chain(*converted.values())), output)
    for split, images in converted.items():
        write_text(output / f"{split}.txt", "".join(f"images/{image.name}\n" for image in images))
    counts = {split: sum((image.counts for image in images), Counter()) for split, images in converted.items()}
    reasons = {split: Counter(chain(*(image.left_out for image in images))) for split, images in converted.items()}
    print(format_report(counts, reasons))


def write_data_config(names: list[str], output: Path) -> None:
    """Write ``.names`` and ``.data``, named as the folder ``output``, and print the option that uses them."""
    name = output.resolve().name
    write_text(output / f"{name}.names", "".join(f"{class_name}\n" for class_name in names))
    write_text(output / f"{name}.data", f"classes={len(names)}\ntrain=train.txt\nvalid=valid.txt\nnames={name}.names\n")
    print(f"Train with --data_config {output / name}.data")


def convert_split(samples: list[Sample], names: list[str], used_stems: set[str]) -> list[ConvertedImage]:
    """Check and convert the samples of one split; ``used_stems`` are those of the file names already given."""
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        sizes = list(tqdm(pool.map(checked_size, samples), total=len(samples), desc="checking images"))
    return [convert_sample(sample, size, names, used_stems) for sample, size in zip(samples, sizes, strict=True)]


def checked_size(sample: Sample) -> tuple[int, int]:
    """Width and height of a sample's image, upright as its EXIF orientation says.

    The image is decoded, so that a damaged one is found now and not during training.

    Raises:
        InputError: the image is missing or damaged.
    """
    if not sample.source.is_file():
        raise InputError(f"{sample.annotation}: names the image {sample.source}, which is missing")
    return read_image(sample.source).size


def convert_sample(sample: Sample, size: tuple[int, int], names: list[str], used_stems: set[str]) -> ConvertedImage:
    """Convert one sample, whose image has ``size`` (width, height); see :func:`convert_split`."""
    labels, clipped = format_labels(sample, size, names)
    boxes = labels.count("\n")
    counts = Counter(
        {
            "images": 1,
            "boxes": boxes,
            "clipped": clipped,
            "dropped (no area)": len(sample.boxes) - boxes,
            "left out": len(sample.left_out),
            "negatives": int(not boxes),
            "size differs": int(sample.stated_size not in (None, size)),
        }
    )
    return ConvertedImage(sample.source, unique_name(sample.source, used_stems), labels, counts, sample.left_out)


def format_labels(sample: Sample, size: tuple[int, int], names: list[str]) -> tuple[str, int]:
    """The YOLO label lines of a sample whose image has ``size`` (width, height), and how many boxes were clipped.

    Boxes are clipped to the image. A box whose width or height is then 0, rounded to six decimals, has no line.
    """
    inside = np.clip(sample.boxes, 0, [*size, *size])
    centres, sides = (inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]
    labels = np.round(np.concatenate([centres / size, sides / size], axis=1), 6)
    kept = (labels[:, 2:] > 0).all(axis=1)
    clipped = (np.abs(inside - sample.boxes) > FLOAT_NOISE).any(axis=1)
    lines = [
        f"{names.index(name)} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n"
        for name, (cx, cy, w, h), keep in zip(sample.classes, labels, kept, strict=True)
        if keep
    ]
    return "".join(lines), int((clipped & kept).sum())


def unique_name(source: Path, used_stems: set[str]) -> str:
    """A file name for the copy of ``source``: its own, numbered where its stem is used. Adds it to ``used_stems``."""
    stems = chain([source.stem], (f"{source.stem}_{number}" for number in count(2)))
    stem = next(stem for stem in stems if stem.lower() not in used_stems)
    used_stems.add(stem.lower())  # for some file systems a.jpg and A.jpg are the same file
    return stem + source.suffix


def write_images(images: list[ConvertedImage], output: Path) -> None:
    """Copy images to ``output/images`` and write labels to ``output/labels``; where one fails, none is written."""
    for folder in ("images", "labels"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converter-", dir=output) as name:
        staging = Path(name)
        (staging / "images").mkdir()
        (staging / "labels").mkdir()
        for image in tqdm(images, desc="copying images"):
            shutil.copy2(image.source, staging / "images" / image.name)
            (staging / "labels" / image.name).with_suffix(".txt").write_text(image.labels, encoding="utf-8")
        for path in sorted(staging.glob("*/*")):
            os.replace(path, output / path.relative_to(staging))
