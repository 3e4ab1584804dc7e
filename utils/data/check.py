"""The data check before the first step: every image is decoded and every label file read, once.

The result of decoding is cached beside the list of images, in ``.{list}.checked.json``, by path, size and time of
change of each image. The cache may be deleted at any time. Labels are read again each time.
"""

import hashlib
import json
import os
import sys
import zlib
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from terminaltables import AsciiTable
from tqdm import tqdm

from utils import distributed
from utils.data.data_config import DataConfig, hidden_beside
from utils.data.image_lists import ListEntry, looked_at
from utils.data.images import ImageTraits, decode_strictly
from utils.data.label_layouts import guess_layout
from utils.data.labels import LENIENT, RULES, LabelFile, LabelRules, Labels, find_labels, label_candidates, scan_labels
from utils.errors import InputError
from utils.files import write_text

MAX_SHOWN = 10  # problems, changed boxes or images in two lists that are printed
MANY_CHANGED = 0.01  # share of changed boxes from which on there is a warning
# The cache of another version is not used: it may read other images, and does not hold the same.
READER = f"Pillow {PIL.__version__}, 8 bits, digests, PPM, lasting problems"
NEVER = -1  # the time of change of a file that is to be decoded again in any case


class Decoded(NamedTuple):
    """The result of decoding an image file.

    Attributes:
        size: bytes of the file.
        changed: when the file was last changed, in ns.
        turned: whether its EXIF orientation rotated or mirrored the image.
        deep: whether it has more than 8 bits per value.
        problem: the error message, or None.
        digest: of the pixels; equal images have equal digests, however their files are called or compressed.
    """

    size: int
    changed: int
    turned: bool
    deep: bool
    problem: str | None
    digest: str


@dataclass(frozen=True)
class CheckedImage:
    """An image of a list with its labels, and all error messages.

    Attributes:
        entry: the line of the list.
        label_file: None where the image has none.
        labels: its boxes.
        decoded: None where the image is missing.
        problems: the error messages.
    """

    entry: ListEntry
    label_file: LabelFile | None
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
        digests: for each image the digest of its pixels.
    """

    images: list[Path]
    labels: list[np.ndarray]
    counts: dict[str, int]
    digests: list[str]


def check_data(data: DataConfig, split: str, skip_bad: bool = False, rules: LabelRules = LENIENT) -> CheckedData:
    """Check the images and labels of ``split``, "train" or "valid", in parallel; warnings are printed on stderr.

    Args:
        data: the data set.
        split: which of its lists.
        skip_bad: leave out images that have a problem, instead of raising an error.
        rules: how label lines are read; whether they have keypoints, the data set says.

    Raises:
        InputError: an image has a problem; no image can be used, has a label file, or has a box; or the boxes are no
            normalised centres and sizes. The first problems are printed on stderr.
    """
    list_path = data.list_path(split)
    rules = replace(rules, keypoints=data.keypoints)
    checked = check_images(data.entries(split), data.classes, list_path, rules)
    check_layout(checked, list_path)
    bad = [image for image in checked if image.problems]
    if bad:
        report_problems(bad, list_path, skip_bad)
    good = [image for image in checked if not image.problems]
    if not good:
        raise InputError(f"{list_path}: none of its {len(checked)} images can be used")
    check_label_files(good, list_path)
    counts = count(good) | {"images left out": len(bad)}
    report_changed_boxes(good, list_path, counts["boxes"])
    if not counts["boxes"]:
        dropped = counts["boxes without area"]
        suffix = f": all {dropped} have no area in the image, and were dropped" if dropped else ""
        raise InputError(f"{list_path}: none of its {len(good)} images has a labelled box{suffix}")
    images, labels = [image.entry.path for image in good], [image.labels.boxes for image in good]
    return CheckedData(images, labels, counts, [image.decoded.digest for image in good if image.decoded])


def check_images(entries: list[ListEntry], classes: int, list_path: Path, rules: LabelRules) -> list[CheckedImage]:
    """Check each image of a list and its labels; images that have not changed since the last check are not decoded."""
    cache_path = hidden_beside(list_path, "checked.json")
    known = read_cache(cache_path)
    cache = decode_together(entries, list_path, known)
    checked: list[CheckedImage] = []
    try:
        with progress_bar(list_path, len(entries)) as bar, ThreadPoolExecutor() as pool:  # decoding releases the GIL
            for image in pool.map(partial(check_image, classes=classes, rules=rules, cache=cache), entries):
                checked.append(image)
                bar.update()
    finally:
        decoded = {os.path.abspath(image.entry.path): image.decoded for image in checked if image.decoded}
        if len(checked) < len(entries):  # an interrupted check goes on where it stopped
            decoded = cache | decoded
        if decoded != known:
            write_cache(cache_path, decoded)
    return checked


def progress_bar(list_path: Path, images: int) -> tqdm:
    """The progress bar of the main process."""
    hidden = not distributed.is_main()
    return tqdm(desc=f"checking {list_path.name}", total=images, unit=" images", leave=False, disable=hidden)


def decode_together(entries: list[ListEntry], list_path: Path, known: dict[str, Decoded]) -> dict[str, Decoded]:
    """What is ``known`` of the images, and of several processes what each finds of its share of them, too."""
    if distributed.world() == 1:
        return known
    share = distributed.share(len(entries), distributed.rank(), distributed.world())
    found = {}
    with progress_bar(list_path, len(share)) as bar, ThreadPoolExecutor() as pool:
        part = entries[share.start : share.stop]
        for entry, decoded in zip(part, pool.map(partial(decode_entry, cache=known), part), strict=True):
            bar.update()
            if decoded:
                found[os.path.abspath(entry.path)] = decoded
    return dict(ChainMap(*distributed.gather(found), known))


def check_image(entry: ListEntry, classes: int, rules: LabelRules, cache: Mapping[str, Decoded]) -> CheckedImage:
    """Check one image and its labels."""
    file = find_labels(entry.path)
    labels = scan_labels(file and file.path, classes, rules)
    decoded = decode_entry(entry, cache)
    if not decoded:
        return CheckedImage(entry, file, labels, None, [entry.missing, *labels.problems])
    problems = [f"{entry.path}: {decoded.problem}"] if decoded.problem else []
    return CheckedImage(entry, file, labels, decoded, [*problems, *labels.problems])


def decode_entry(entry: ListEntry, cache: Mapping[str, Decoded]) -> Decoded | None:
    """The result of decoding an image, from the cache where its file has not changed; None where there is no file."""
    try:
        status = os.stat(entry.path)
    except (OSError, ValueError):
        return None
    decoded = cache.get(os.path.abspath(entry.path))
    if decoded is None or (decoded.size, decoded.changed) != (status.st_size, status.st_mtime_ns):
        decoded = decode(entry.path, status)
    return decoded


def decode(path: Path, status: os.stat_result) -> Decoded:
    """Decode an image and record the result, without the pixels."""
    traits, problem, digest, changed = ImageTraits(False, False), None, "", status.st_mtime_ns
    try:
        pixels, traits = decode_strictly(path)
        digest = pixel_digest(pixels)
    except InputError as error:
        problem = str(error).removeprefix(f"{path}: ")
        if is_passing(error.__cause__):
            changed = NEVER
    return Decoded(status.st_size, changed, *traits, problem, digest)


def is_passing(error: BaseException | None) -> bool:
    """Whether an image could not be read because of the machine, such as its permissions, and not of its bytes."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def pixel_digest(pixels: np.ndarray) -> str:
    """A text that equal images (H, W, 3) uint8 share: the size, a checksum of all pixels, a hash of every 16th row.

    A hash of all pixels would take as long as a third of the decoding.
    """
    height, width = pixels.shape[:2]
    rows_hash = hashlib.blake2b(pixels[::16].tobytes(), digest_size=8).hexdigest()
    return f"{width}x{height}-{zlib.crc32(np.ascontiguousarray(pixels).data):08x}-{rows_hash}"


def count(images: Sequence[CheckedImage]) -> dict[str, int]:
    """The numbers of images, boxes, ... by column of :func:`summary`."""
    labels = [image.labels for image in images]
    decoded = [image.decoded for image in images if image.decoded]
    files = [image.label_file for image in images]
    rules = Counter(file.rule for file in files if file)
    return {
        "images": len(images),
        "boxes": sum(len(label.boxes) for label in labels),
        **{rule: rules[rule] for rule in RULES},
        "images without label file": files.count(None),
        "images without boxes": sum(bool(image.label_file) and not len(image.labels.boxes) for image in images),
        "boxes clipped": sum(label.clipped for label in labels),
        "boxes without area": sum(label.dropped for label in labels),
        "duplicate boxes": sum(label.repeated for label in labels),
        "polygons": sum(label.polygons for label in labels),
        "scores ignored": sum(label.scores for label in labels),
        "keypoints ignored": sum(label.keypoints for label in labels),
        "lines with commas": sum(label.commas for label in labels),
        "duplicate images": len(images) - len({pixels.digest for pixels in decoded}),
        "images turned by EXIF": sum(pixels.turned for pixels in decoded),
        "images scaled to 8 bits": sum(pixels.deep for pixels in decoded),
    }


def check_layout(checked: Sequence[CheckedImage], list_path: Path) -> None:
    """Raise an InputError where the boxes of a list are no normalised centres and sizes."""
    labelled = [image for image in checked if len(image.labels.values)]
    if not labelled:
        return
    values = np.concatenate([image.labels.values for image in labelled])
    if layout := guess_layout(values):
        example = " ".join(f"{value:g}" for value in values[0])
        first = labelled[0].label_file.path if labelled[0].label_file else labelled[0].entry.path
        raise InputError(
            f"{list_path}: its {len(values)} boxes look like {layout}; they must be the centre and the size as shares "
            f"of the image: cx cy w h; the first, in {first}, is {example}"
        )


def check_label_files(images: Sequence[CheckedImage], list_path: Path) -> None:
    """Check where the label files are.

    Warnings are printed where most images have none, where text files of another kind stand beside images, and where
    an image has two that differ.

    Raises:
        InputError: no image has a label file.
    """
    unlabelled = [image for image in images if not image.label_file]
    advice = "an empty label file says that an image shows no object"
    if unlabelled:
        where = f"for {unlabelled[0].entry.path} {looked_at(label_candidates(unlabelled[0].entry.path))}"
        if len(unlabelled) == len(images):
            raise InputError(f"{list_path}: none of its {len(images)} images has a label file; {where}; {advice}")
        if 2 * len(unlabelled) > len(images):
            warn(
                f"{list_path}: {len(unlabelled)} of its {len(images)} images have no label file, and are taken to show "
                f"no object; {where}; {advice}"
            )
    files = [image.label_file for image in images if image.label_file]
    if passed := [file for file in files if file.passed_over]:
        warn(
            f"{list_path}: {len(passed)} text files where labels may be are none, the first {passed[0].passed_over}; "
            f"{passed[0].path} is read"
        )
    if differing := [file for file in files if file.contradicting]:
        warn(
            f"{list_path}: {len(differing)} images have two label files that differ, the first {differing[0].path}, "
            f"which is read, and {differing[0].contradicting}"
        )


def report_changed_boxes(images: Sequence[CheckedImage], list_path: Path, boxes: int) -> None:
    """Print the first boxes that were clipped or dropped on stderr, and a warning where they are many."""
    changed = sum(image.labels.changed for image in images)
    if not (changed and distributed.is_main()):
        return
    notes = [note for image in images for note in image.labels.notes][:MAX_SHOWN]
    shown = [*notes, *["..."] * (changed > len(notes))]
    print(
        f"{list_path}: boxes that pass the border are clipped, those without area dropped ({changed}):",
        *shown,
        sep="\n  ",
        file=sys.stderr,
    )
    share = changed / (boxes + sum(image.labels.dropped for image in images))
    if share > MANY_CHANGED:
        warn(f"{list_path}: {share:.1%} of the boxes were clipped or dropped; --strict refuses such boxes")


def warn(text: str) -> None:
    """Print a warning on stderr, in the main process."""
    if distributed.is_main():
        print(f"warning: {text}", file=sys.stderr)


def report_problems(bad: list[CheckedImage], list_path: Path, skip_bad: bool) -> None:
    """Print the first problems on stderr.

    Raises:
        InputError: ``skip_bad`` is not set.
    """
    problems = [problem for image in bad for problem in image.problems]
    total = f"{len(problems)} problem(s) with {len(bad)} image(s)"
    if (len(problems) > 1 or skip_bad) and distributed.is_main():
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
    if shared := shared_images(list(checked.values())):
        pairs = [str(a) if a == b else f"{a} is {b}" for a, b in shared[:MAX_SHOWN]]
        text += "\n  ".join(
            [
                f"\nwarning: {len(shared)} images are in both lists, as their pixels show: "
                "the validation mAP says less about images that the model has not seen",
                *pairs,
                *["..."] * (len(shared) > MAX_SHOWN),
            ]
        )
    return text


def shared_images(splits: Sequence[CheckedData]) -> list[tuple[Path, Path]]:
    """The images of the last list that the first has too, under the same or another name: pairs of their paths."""
    if len(splits) < 2:
        return []
    first, last = (dict(zip(split.digests, split.images, strict=True)) for split in (splits[0], splits[-1]))
    return [(first[digest], image) for digest, image in last.items() if digest in first]


def read_cache(path: Path) -> dict[str, Decoded]:
    """The results of an earlier check; empty where the cache is missing, damaged, or written by another READER."""
    try:
        content = json.loads(path.read_bytes())
        if content["reader"] != READER:
            return {}
        return {str(name): _to_decoded(*values) for name, values in content["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}


def _to_decoded(size: int, changed: int, turned: bool, deep: bool, problem: str | None, digest: str) -> Decoded:
    if not (isinstance(problem, str | None) and isinstance(digest, str)):
        raise TypeError("a problem is a text or null, a digest is a text")
    return Decoded(int(size), int(changed), bool(turned), bool(deep), problem, digest)


def write_cache(path: Path, decoded: Mapping[str, Decoded]) -> None:
    """Cache the results; where the folder cannot be written to, the next check decodes every image again."""
    try:
        write_text(path, json.dumps({"reader": READER, "images": decoded}))
    except (OSError, InputError):
        return
