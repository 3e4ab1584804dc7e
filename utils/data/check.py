"""Data sets are checked before the first step: every image is decoded and every label read, once.

What decoding found is remembered beside the list of images, in ``.{list}.checked.json``, by path, size and time of
each image; the file may be deleted at any time. Labels are read again each time.
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

from utils.data.datasets import DataConfig, ListEntry, read_list_entries
from utils.data.images import decode_image
from utils.data.labels import Labels, label_path, scan_labels
from utils.distributed import is_main
from utils.errors import InputError
from utils.files import write_text

SHOWN = 10  # problems that are shown one by one
READER = f"Pillow {PIL.__version__}"  # another one may read other images


class Decoded(NamedTuple):
    """An image as it was when it was decoded: bytes, time of its last change (ns), what was found."""

    size: int
    changed: int
    turned: bool
    problem: str | None


@dataclass(frozen=True)
class Finding:
    """An image of a list, its labels, and all that is wrong with the two; ``decoded`` is None where it is missing."""

    entry: ListEntry
    labels: Labels
    decoded: Decoded | None
    problems: list[str]


@dataclass(frozen=True)
class CheckedData:
    """The images of a list that can be used, and the boxes of each, (N, 5): class, cx, cy, w, h in [0, 1].

    Attributes:
        counts: how many images, boxes, ... there are, for :func:`summary`.
    """

    images: list[Path]
    labels: list[np.ndarray]
    counts: dict[str, int]


def check_data(data: DataConfig, split: str, skip_bad: bool = False) -> CheckedData:
    """Check the images and labels of ``split``, "train" or "valid", in parallel.

    Args:
        data: the data set.
        split: which of its lists.
        skip_bad: leave out images with which something is wrong.

    Raises:
        InputError: something is wrong, or there is no image or no box at all. The first places are on stderr.
    """
    listing = data.listing(split)
    findings = examine(read_list_entries(listing), data.classes, listing)
    bad = [finding for finding in findings if finding.problems]
    if bad:
        report(bad, listing, skip_bad)
    good = [finding for finding in findings if not finding.problems]
    if not good:
        raise InputError(f"{listing}: none of its {len(findings)} images can be used")
    labels = [finding.labels.boxes for finding in good]
    if not any(map(len, labels)):
        raise InputError(f"{listing}: none of its {len(good)} images has a labelled box")
    images = [finding.entry.path for finding in good]
    counts = {
        "images": len(good),
        "boxes": sum(map(len, labels)),
        "without a box": sum(not len(boxes) for boxes in labels),
        "boxes clipped": sum(finding.labels.clipped for finding in good),
        "boxes repeated": sum(finding.labels.repeated for finding in good),
        "listed again": len(images) - len(set(map(os.path.realpath, images))),
        "turned by EXIF": sum(finding.decoded.turned for finding in good),
        "left out": len(bad),
    }
    return CheckedData(images, labels, counts)


def examine(entries: list[ListEntry], classes: int, listing: Path) -> list[Finding]:
    """Look at each image of a list and its labels; images as they were the last time are not decoded again."""
    memory = listing.with_name(f".{listing.name}.checked.json")
    known = read_memory(memory)
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        found = pool.map(partial(examine_one, classes=classes, known=known), entries)
        findings = list(
            tqdm(found, f"checking {listing.name}", len(entries), unit=" images", leave=False, disable=not is_main())
        )
    decoded = {os.path.abspath(f.entry.path): f.decoded for f in findings if f.decoded}
    if decoded != known:
        write_memory(memory, decoded)
    return findings


def examine_one(entry: ListEntry, classes: int, known: Mapping[str, Decoded]) -> Finding:
    """Look at one image and its labels."""
    labels = scan_labels(label_path(entry.path), classes)
    try:
        about = os.stat(entry.path)
    except (OSError, ValueError):
        return Finding(entry, labels, None, [entry.missing, *labels.problems])
    decoded = known.get(os.path.abspath(entry.path))
    if decoded is None or (decoded.size, decoded.changed) != (about.st_size, about.st_mtime_ns):
        decoded = decode(entry.path, about)
    problems = [f"{entry.path}: {decoded.problem}"] if decoded.problem else []
    return Finding(entry, labels, decoded, problems + labels.problems)


def decode(path: Path, about: os.stat_result) -> Decoded:
    """Decode an image and keep what there is to say about it."""
    turned, problem = False, None
    try:
        _, turned = decode_image(path)
    except InputError as error:
        problem = str(error).removeprefix(f"{path}: ")
    return Decoded(about.st_size, about.st_mtime_ns, turned, problem)


def report(bad: list[Finding], listing: Path, skip_bad: bool) -> None:
    """Show the first problems; without ``skip_bad`` they end the program."""
    problems = [problem for finding in bad for problem in finding.problems]
    what = f"{len(problems)} problem(s) with {len(bad)} image(s)"
    if (len(problems) > 1 or skip_bad) and is_main():
        shown = problems[:SHOWN] + ["..."] * (len(problems) > SHOWN)
        print(f"{listing}: {what}:", *shown, sep="\n  ", file=sys.stderr)
    if not skip_bad:
        more = f" ({what} in all)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; --skip_bad goes on without such images")


def summary(checked: Mapping[str, CheckedData]) -> str:
    """A table with a row of counts for each list, and a line where lists share images."""
    counts = {name: split.counts for name, split in checked.items()}
    always = ("images", "boxes")
    columns = [key for key in next(iter(counts.values())) if key in always or any(row[key] for row in counts.values())]
    rows = [["list", *columns], *([name, *(row[key] for key in columns)] for name, row in counts.items())]
    text = AsciiTable(rows).table
    sets = [set(map(os.path.realpath, split.images)) for split in checked.values()]
    if len(sets) > 1 and (shared := set.intersection(*sets)):
        text += f"\nwarning: {len(shared)} images are in both lists, so that measuring says little about new ones"
    return text


def read_memory(path: Path) -> dict[str, Decoded]:
    """What an earlier check remembered; nothing where the file is missing, damaged, or another reader's."""
    try:
        content = json.loads(path.read_bytes())
        if content["reader"] != READER:
            return {}
        return {str(name): _decoded(*values) for name, values in content["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _decoded(size: int, changed: int, turned: bool, problem: str | None) -> Decoded:
    if not isinstance(problem, str | None):
        raise TypeError("a problem is a text")
    return Decoded(int(size), int(changed), bool(turned), problem)


def write_memory(path: Path, decoded: Mapping[str, Decoded]) -> None:
    """Remember what was decoded; where that cannot be written, the next check takes as long as this one."""
    try:
        write_text(path, json.dumps({"reader": READER, "images": decoded}))
    except (OSError, InputError):
        return
