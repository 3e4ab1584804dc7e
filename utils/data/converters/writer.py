"""Writes a converted data set: images, YOLO labels, lists of images, class names and the ``.data`` file."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.data.converters.report import format_counts, format_left_out
from utils.data.converters.samples import CROWD, DataSet, LeftOut, Sample
from utils.data.converters.split import Split, difference_hash
from utils.data.converters.stated_size import fit_boxes
from utils.data.images import read_image
from utils.data.label_layouts import guess_pixel_layout
from utils.errors import InputError
from utils.files import keep_old, write_text
from utils.text import is_unicode

FLOAT_NOISE = 1e-3  # pixels; a box that is moved by less counts as not clipped


@dataclass(frozen=True)
class ConvertedImage:
    """An image of the converted data set.

    Attributes:
        source: the file to copy.
        name: the file name of the copy.
        labels: the text of its YOLO label file.
        counts: what it adds to the columns of the report.
        left_out: the objects that the reader left out.
    """

    source: Path
    name: str
    labels: str
    counts: Counter
    left_out: list[LeftOut]


class Decoded(NamedTuple):
    """The size (width, height) of an image, upright as its EXIF orientation says, and its difference hash."""

    size: tuple[int, int]
    hash: int


@dataclass(frozen=True)
class Prepared:
    """A data set whose images were decoded, with its split; what could not be used is in ``left_out``."""

    splits: dict[str, list[Sample]]
    decoded: dict[Path, Decoded]
    left_out: list[LeftOut]
    notes: list[str]


def write_data_set(data: DataSet, output: Path, split: Split | None = None, strict: bool = False) -> None:
    """Check all of a data set, then write its images, labels and lists to ``output``, and print the report.

    Images and labels of the same names in ``output`` are replaced, older lists are kept under numbered names, and other
    files stay. Where an error is raised, ``output`` is unchanged.

    Args:
        data: what the reader returned.
        output: the folder to write to.
        split: how to split a data set that has no split.
        strict: refuse a data set with a problem, instead of leaving out the image or object.

    Raises:
        InputError: a split has no images, there is no box or all look like something else, ``split`` is missing or of
            no use, or there is a problem and ``strict``.
    """
    prepared = prepare(data, split, strict)
    if not any(len(sample.boxes) for sample in chain(*prepared.splits.values())):
        problem = next((f": {item.problem}" for item in prepared.left_out if item.problem), "")
        raise InputError(f"no image has a box{problem}")
    notes = prepared.notes
    converted = convert_splits(prepared.splits, prepared.decoded, data.names)
    if shared := set.intersection(*({image.name for image in images} for images in converted.values())):
        notes.append(f"warning: {len(shared)} images are in both splits, the first {min(shared)}")
    write_images(list({image.name: image for image in chain(*converted.values())}.values()), output)
    write_lists({name: [f"images/{image.name}" for image in images] for name, images in converted.items()}, output)
    counts = {name: sum((image.counts for image in images), Counter()) for name, images in converted.items()}
    objects = {name: list(chain(*(image.left_out for image in images))) for name, images in converted.items()}
    print(*notes, format_counts(counts), *format_left_out(objects, prepared.left_out), sep="\n")


def write_list_files(data: DataSet, output: Path, split: Split | None = None, strict: bool = False) -> None:
    """Write lists of images that stay where they are; arguments and errors as of :func:`write_data_set`."""
    prepared = prepare(data, split, strict)
    lists = {name: [os.path.abspath(sample.source) for sample in samples] for name, samples in prepared.splits.items()}
    write_lists(lists, output)
    counts = [f"{name}: {len(images)} images" for name, images in lists.items()]
    print(*prepared.notes, *counts, *format_left_out({}, prepared.left_out), sep="\n")


def prepare(data: DataSet, split: Split | None, strict: bool) -> Prepared:
    """Decode all images, fit their boxes, and split them; arguments and errors as of :func:`write_data_set`."""
    check_split(data, split)
    left_out = list(data.left_out)
    decoded = decode_samples(data, left_out)
    splits = {name: fit_samples(samples, decoded, left_out) for name, samples in data.splits.items()}
    check_layout(list(chain(*splits.values())), decoded)
    splits = {name: [s for s in of if is_usable(s, decoded[s.source].size, left_out)] for name, of in splits.items()}
    objects = [item for samples in splits.values() for sample in samples for item in sample.left_out]
    problems = [item.problem for item in (*objects, *left_out) if item.problem]
    if strict and problems:
        raise InputError(problems[0] + (f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""))
    for name, samples in splits.items():
        if not samples:
            cause = f": {problems[0]}" if problems else ""
            raise InputError(f"the {name} split has no images, but should have some{cause}")
    notes = list(data.notes)
    if split:
        splits, note = split_samples(splits["train"], decoded, split)
        notes.append(note)
    return Prepared(splits, decoded, left_out, notes)


def fit_samples(samples: Sequence[Sample], decoded: Mapping[Path, Decoded], left_out: list[LeftOut]) -> list[Sample]:
    """The samples whose images could be decoded, with boxes in pixels of these.

    Those whose annotations are of another image are added to ``left_out``.
    """
    fitted = []
    for sample in samples:
        if sample.source in decoded:
            try:
                fitted.append(fit_boxes(sample, decoded[sample.source].size))
            except InputError as error:
                left_out.append(LeftOut("image", "its annotation is of another size", str(error)))
    return fitted


def is_usable(sample: Sample, size: tuple[int, int], left_out: list[LeftOut]) -> bool:
    """False for an image of ``size`` none of whose objects can be used: it is no negative.

    Why that is so is added to ``left_out``.
    """
    objects = list(sample.left_out)
    if sample.classes and not normalised(sample.boxes, size)[1].any():
        problem = f"{sample.annotation}: no box has an area inside {sample.source}"
        objects.append(LeftOut("object", "no area", problem))
    elif sample.classes or not any(item.problem or item.reason == CROWD for item in objects):
        return True
    left_out += [*objects, LeftOut("image", "none of its objects can be used")]
    return False


def check_layout(samples: Sequence[Sample], decoded: Mapping[Path, Decoded]) -> None:
    """Raise an InputError where boxes do not seem to be in pixels."""
    samples = [sample for sample in samples if len(sample.boxes)]
    if not samples:
        return
    boxes = np.concatenate([sample.boxes for sample in samples])
    sizes = np.concatenate([[decoded[s.source].size] * len(s.boxes) for s in samples])
    if layout := guess_pixel_layout(boxes, sizes):
        x1, y1, x2, y2 = boxes[0]
        raise InputError(
            f"{samples[0].annotation}: the {len(boxes)} boxes look like {layout}, not like pixels from the upper left "
            f"corner; the first, of {samples[0].source.name}, was read as x1={x1:g} y1={y1:g} x2={x2:g} y2={y2:g}"
        )


def check_split(data: DataSet, split: Split | None) -> None:
    """Raise an InputError where a data set has no split and none is asked for, or has one and another is asked for."""
    if "valid" not in data.splits and split is None:
        raise InputError("the data set has no split into training and validation images: --split 0.9 makes one")
    if "valid" in data.splits and split is not None:
        raise InputError("--split: the data set has a split into training and validation images already")


def split_samples(
    samples: list[Sample], decoded: Mapping[Path, Decoded], split: Split
) -> tuple[dict[str, list[Sample]], str]:
    """The samples of "train" and "valid" in the order of their paths, and a line that says how they were split."""
    samples = sorted(samples, key=lambda sample: sample.source)
    if len(samples) < 2:
        raise InputError("--split: there are fewer than two images to split")
    paths = [sample.source for sample in samples]
    validates, note = split(paths, [decoded[path].hash for path in paths])
    train = [sample for sample, is_valid in zip(samples, validates, strict=True) if not is_valid]
    valid = [sample for sample, is_valid in zip(samples, validates, strict=True) if is_valid]
    return {"train": train, "valid": valid}, note


def write_lists(splits: Mapping[str, Sequence[str]], output: Path) -> None:
    """Write ``train.txt`` and ``valid.txt``, one image per line."""
    for name, images in splits.items():
        replace_text(output / f"{name}.txt", "".join(f"{image}\n" for image in images))


def write_data_config(names: list[str], output: Path) -> None:
    """Write ``.names`` and ``.data``, named as the folder ``output``, and print the option that uses them."""
    name = output.resolve().name
    replace_text(output / f"{name}.names", "".join(f"{class_name}\n" for class_name in names))
    entries = {"classes": len(names), "train": "train.txt", "valid": "valid.txt", "names": f"{name}.names"}
    replace_text(output / f"{name}.data", "".join(f"{key}={value}\n" for key, value in entries.items()))
    print(f"Train with --data_config {output / name}.data")


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; an older file with another content is kept, and its new name printed."""
    if path.exists() and path.read_bytes() != text.encode():
        print(f"the old {path} is kept as {keep_old(path)}")
    write_text(path, text)


def decode_samples(data: DataSet, left_out: list[LeftOut]) -> dict[Path, Decoded]:
    """Decode all images, so that a damaged one is met now and not during training; it is added to ``left_out``."""
    samples = list({sample.source: sample for sample in chain(*data.splits.values())}.values())
    decoded: dict[Path, Decoded] = {}
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        results = tqdm(pool.map(decode_sample, samples), total=len(samples), desc="checking images")
        for sample, result in zip(samples, results, strict=True):
            if isinstance(result, Decoded):
                decoded[sample.source] = result
            else:
                left_out.append(result)
    return decoded


def decode_sample(sample: Sample) -> Decoded | LeftOut:
    """Decode the image of a sample."""
    if not os.path.isfile(sample.source):
        problem = f"{sample.annotation}: names the image {sample.source}, which is missing"
        return LeftOut("image", "missing", problem)
    if not is_unicode(path := os.path.abspath(sample.source)):
        return LeftOut("image", "its name is not UTF-8", f"{path!a}: rename it, since lists of images are in UTF-8")
    try:
        image = read_image(sample.source)
    except InputError as error:
        return LeftOut("image", "damaged", str(error))
    return Decoded(image.size, difference_hash(image))


def convert_splits(
    splits: Mapping[str, Sequence[Sample]], decoded: Mapping[Path, Decoded], names: list[str]
) -> dict[str, list[ConvertedImage]]:
    """Convert the samples of all splits. An image in two splits, with the same labels, is one file in two lists."""
    used_stems: dict[str, int] = {}
    copies: dict[tuple[Path, str], str] = {}
    converted: dict[str, list[ConvertedImage]] = {}
    for split, samples in splits.items():
        converted[split] = []
        for sample in samples:
            image = convert_sample(sample, decoded[sample.source].size, names)
            key = sample.source.resolve(), image.labels
            if key not in copies:
                copies[key] = unique_name(sample.source, used_stems)
            converted[split].append(replace(image, name=copies[key]))
    return converted


def convert_sample(sample: Sample, size: tuple[int, int], names: list[str]) -> ConvertedImage:
    """Convert one sample, whose image has ``size`` (width, height)."""
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
    return ConvertedImage(sample.source, sample.source.name, labels, counts, sample.left_out)


def format_labels(sample: Sample, size: tuple[int, int], names: list[str]) -> tuple[str, int]:
    """The YOLO label lines of a sample whose image has ``size`` (width, height), and how many boxes were clipped.

    Boxes are clipped to the image. A box whose width or height is then 0, rounded to six decimals, has no line.
    """
    labels, kept = normalised(sample.boxes, size)
    outside = sample.boxes - np.clip(sample.boxes, 0, [*size, *size])
    clipped = (np.abs(outside) > FLOAT_NOISE).any(axis=1)
    lines = [
        f"{names.index(name)} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n"
        for name, (cx, cy, w, h), keep in zip(sample.classes, labels, kept, strict=True)
        if keep
    ]
    return "".join(lines), int((clipped & kept).sum())


def normalised(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) xyxy in pixels, clipped to an image of ``size``, as (N, 4) cx, cy, w, h in shares of it.

    Also which of them (N,) have an area when they are rounded to six decimals.
    """
    inside = np.clip(boxes, 0, [*size, *size])
    centres, sides = (inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]
    shares = np.round(np.concatenate([centres / size, sides / size], axis=1), 6)
    return shares, np.all(shares[:, 2:] > 0, axis=1)


def unique_name(source: Path, used_stems: dict[str, int]) -> str:
    """A file name for the copy of ``source``: its own, numbered where its stem is used.

    ``used_stems`` has for each stem the number to try next; the stem of the copy is added.
    """
    stem = source.stem
    key = stem.lower()  # for some file systems a.jpg and A.jpg are the same file
    if key in used_stems:
        number = next(n for n in count(used_stems[key]) if f"{key}_{n}" not in used_stems)
        used_stems[key] = number + 1
        stem = f"{stem}_{number}"
    used_stems.setdefault(stem.lower(), 2)
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
