"""YOLO labels: a text file for each image, with one box per line: ``class cx cy w h`` in [0, 1] of the image."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.files import read_lines

BORDER = 1e-3  # share of the image by which a box may pass its border without being listed
ROUNDING = 1e-5  # a box that passes the border by less, as six decimals may, does not count as clipped
MAX_NOTES = 10  # changed boxes that are listed

# Where label files are, in order of preference; the names are the columns of the data check.
BESIDE, JPEG_IMAGES, PART, IMAGES, DARKNET = RULES = (
    "labels beside images",
    "JPEGImages -> labels",
    "x_images -> x_labels",
    "images -> labels",
    "Darknet's rule",
)


@dataclass(frozen=True)
class LabelRules:
    """How label lines are read.

    Attributes:
        strict: a box that passes the border of the image by more than BORDER, or has no area, is an error.
        with_score: a number behind the box, a confidence, is read and ignored instead of being an error.
        keypoints: so many numbers behind the box are its keypoints, and ignored.
    """

    strict: bool = False
    with_score: bool = False
    keypoints: int = 0


LENIENT = LabelRules()


class LabelFile(NamedTuple):
    """The label file of an image.

    Attributes:
        path: the file.
        rule: which of the RULES led to it.
        passed_over: a text file of a rule that comes first, but does not look like labels; or None.
        contradicting: a file of a later rule with another content; or None.
    """

    path: str
    rule: str
    passed_over: str | None = None
    contradicting: str | None = None


def label_candidates(image: str | Path) -> dict[str, str]:
    """The paths where the label file of an image may be, in order of preference, each with its rule.

    1. beside the image; 2. the folder ``JPEGImages`` becomes ``labels``; 3. in the name of a folder "image" becomes
    "label", ``train_images`` to ``train_labels``; 4. the folder ``images`` becomes ``labels``; 5. as Darknet does, the
    first "images", "JPEGImages" and "raw" of the whole path become "labels". The folders nearest to the image come
    first, and the case of the letters counts in the last rule only.
    """
    path = str(image)
    folder, name = os.path.split(path)
    label = f"{os.path.splitext(name)[0]}.txt"
    candidates: dict[str, str] = {}
    # A program may be started within the folder of the images.
    named = folder if "image" in folder.lower() else os.path.abspath(folder)
    for rule, place in ((BESIDE, folder), *_label_folders(named)):
        candidates.setdefault(os.path.join(place, label), rule)
    darknet = path
    for word in ("images", "JPEGImages", "raw"):
        darknet = darknet.replace(word, "labels", 1)
    candidates.setdefault(f"{os.path.splitext(darknet)[0]}.txt", DARKNET)
    candidates.pop(path, None)
    return candidates


@lru_cache(maxsize=4096)
def _label_folders(folder: str) -> tuple[tuple[str, str], ...]:
    parts = Path(folder).parts
    folders = []
    for number in reversed(range(len(parts))):
        name = parts[number].lower()
        if "image" in name:
            rule = JPEG_IMAGES if name == "jpegimages" else IMAGES if name in ("images", "image") else PART
            replaced = "labels" if rule == JPEG_IMAGES else re.sub("image", _label_word, parts[number], flags=re.I)
            folders.append((rule, os.path.join(*parts[:number], replaced, *parts[number + 1 :])))
    return tuple(sorted(folders, key=lambda pair: RULES.index(pair[0])))


def _label_word(match: re.Match) -> str:
    word = match[0]
    return "LABEL" if word.isupper() else "Label" if word[0].isupper() else "label"


def find_labels(image: str | Path) -> LabelFile | None:
    """The label file of an image: the first of the :func:`label_candidates` that exists; None where none does.

    A text file of another kind (a caption, a list) that stands in front of a label file is passed over.
    """
    files = [(path, rule) for path, rule in label_candidates(image).items() if os.path.exists(path)]
    if not files:
        return None
    first = 0
    if len(files) > 1 and not _looks_like_labels(files[0][0]):
        first = next((k for k, (path, _) in enumerate(files) if _looks_like_labels(path)), 0)
    path, rule = files[first]
    others = (other for other, _ in files[first + 1 :] if _differ(path, other))
    return LabelFile(path, rule, files[0][0] if first else None, next(others, None))


def label_path(image: Path) -> Path:
    """The label file of an image; where there is none, the place where most data sets would have it.

    That is the folder ``labels`` for the last folder ``images``, or else beside the image.
    """
    if file := find_labels(image):
        return Path(file.path)
    by_rule = {rule: path for path, rule in reversed(label_candidates(image).items())}
    return Path(by_rule.get(IMAGES) or by_rule[BESIDE])


def _looks_like_labels(path: str) -> bool:
    try:
        lines = [line for line in read_lines(path, "label file") if line.strip()]
        return not lines or any(len(_numbers(_words(line))) >= 5 for line in lines)
    except InputError:
        return False


def _differ(path: str, other: str) -> bool:
    try:
        return Path(path).read_bytes() != Path(other).read_bytes()
    except OSError:
        return True


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        boxes: (N, 5) float32: class, cx, cy, w, h in [0, 1] of the image.
        values: (M, 4) float64: cx, cy, w, h as they were written, those of dropped boxes too.
        clipped: number of boxes that were clipped to the border.
        dropped: number of boxes that were dropped, because they have no area in the image.
        repeated: number of boxes that equal an earlier one.
        polygons: number of boxes that were written as polygons.
        scores: number of boxes whose confidence was ignored.
        keypoints: number of boxes whose keypoints were ignored.
        commas: number of lines with commas or semicolons.
        changed: number of boxes that were dropped, or clipped by more than BORDER.
        notes: messages about the first of them, each with ``file:line``.
        problems: error messages of the lines that are not in ``boxes``, each with ``file:line``.
    """

    boxes: np.ndarray
    values: np.ndarray
    clipped: int = 0
    dropped: int = 0
    repeated: int = 0
    polygons: int = 0
    scores: int = 0
    keypoints: int = 0
    commas: int = 0
    changed: int = 0
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()


NO_LABELS = Labels(np.zeros((0, 5), np.float32), np.zeros((0, 4)))


class Line(NamedTuple):
    """A label line: its class, the edges x1, y1, x2, y2 and the four values as written, and how it was written."""

    label: float
    edges: tuple[float, float, float, float]
    values: tuple[float, float, float, float]
    is_polygon: bool = False
    has_score: bool = False
    has_keypoints: bool = False


def scan_labels(path: str | Path | None, classes: int, rules: LabelRules = LENIENT) -> Labels:
    """Read the YOLO labels of one image, and collect all errors instead of raising the first.

    None, a missing or an empty file mean that the image shows no object.
    """
    if path is None or not os.path.exists(path):
        return NO_LABELS
    try:
        texts = read_lines(path, "label file")
    except InputError as error:
        return Labels(NO_LABELS.boxes, NO_LABELS.values, problems=[str(error)])
    boxes: list[list[float]] = []
    lines: list[Line] = []
    notes: list[str] = []
    problems: list[str] = []
    clipped = changed = commas = 0
    for number, text in enumerate(texts, start=1):
        words = _words(text)
        if not words:
            continue
        where = f"{path}:{number}"
        try:
            line = _parse_label(words, classes, where, rules)
            box, beyond = _clip(line.edges)
            note = _note(line, box, where, beyond) if box is None or beyond > BORDER else None
            if note and rules.strict:
                raise InputError(note)
        except InputError as error:
            problems.append(str(error))
            continue
        lines.append(line)
        commas += "," in text or ";" in text
        if box:
            boxes.append([line.label, *box])
            clipped += beyond > ROUNDING
        if note:
            changed += 1
            notes += [note] * (changed <= MAX_NOTES)
    return Labels(
        np.array(boxes, np.float32).reshape(-1, 5),
        np.array([line.values for line in lines]).reshape(-1, 4),
        clipped=clipped,
        dropped=len(lines) - len(boxes),
        repeated=len(boxes) - len(set(map(tuple, boxes))),
        polygons=sum(line.is_polygon for line in lines),
        scores=sum(line.has_score for line in lines),
        keypoints=sum(line.has_keypoints for line in lines),
        commas=commas,
        changed=changed,
        notes=notes,
        problems=problems,
    )


def read_labels(path: str | Path, classes: int, rules: LabelRules = LENIENT) -> tuple[np.ndarray, int]:
    """Read the YOLO labels of one image; a missing or empty file means that the image shows no object.

    Boxes are clipped to the image, and those without area dropped, unless ``rules`` are strict.

    Returns:
        Boxes (N, 5) float32: class, cx, cy, w, h in [0, 1] of the image; and how many were clipped to its border.

    Raises:
        InputError: a line is neither five numbers nor a polygon, a class is not below ``classes``, or a box is wrong
            by strict rules. The message names file and line.
    """
    labels = scan_labels(path, classes, rules)
    if labels.problems:
        raise InputError(labels.problems[0])
    return labels.boxes, labels.clipped


def _words(text: str) -> list[str]:
    """The words of a line, which blanks, commas or semicolons separate; ``0 0,5 0,5 0,2 0,2`` has decimal commas."""
    if ";" in text:
        text = text.replace(";", " ")
    if "," in text:
        words = text.split()
        is_decimal = len(words) >= 5 and "." not in text and not any(word.endswith(",") for word in words)
        text = text.replace(",", "." if is_decimal else " ")
    return text.split()


def _numbers(words: Iterable[str]) -> list[float]:
    """The words as numbers; empty where one is no number."""
    try:
        return list(map(float, words))
    except ValueError:
        return []


def _parse_label(words: list[str], classes: int, where: str, rules: LabelRules) -> Line:
    has_keypoints = rules.keypoints > 0 and len(words) == 5 + rules.keypoints
    has_score = rules.with_score and len(words) >= 6 and len(words) % 2 == 0 and not has_keypoints
    count = 5 if has_keypoints else len(words) - has_score
    numbers = _numbers(words)
    if count >= 8 and _has_keypoints(numbers[1:count]):
        raise InputError(
            f"{where}: {count} values look like a box with keypoints, x y visibility each: a label line has the first "
            "five, class cx cy w h, and a data.yaml with their kpt_shape has the others ignored"
        )
    if count != 5 and (count < 7 or count % 2 == 0):
        hint = "; the sixth is a confidence? --labels_with_score ignores it" if count == 6 else ""
        raise InputError(
            f"{where}: {count} values, but a label line has five: class cx cy w h (or a polygon: class x1 y1 x2 y2 "
            f"x3 y3 ...){hint}"
        )
    if not numbers:
        raise InputError(f"{where}: {_shown(words)} is not {'five ' if count == 5 else ''}numbers")
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: {_shown(words)} holds a value that is not finite")
    label = numbers[0]
    if label != int(label) or not 0 <= label < classes:
        last = numbers[count - 1]
        hint = "; the class stands in front of the box" if label % 1 and last == int(last) and last < classes else ""
        raise InputError(f"{where}: class {words[0]}, but the classes are 0 to {classes - 1}{hint}")
    if count == 5:
        cx, cy, w, h = values = (numbers[1], numbers[2], numbers[3], numbers[4])
        edges = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        return Line(label, edges, values, False, has_score, has_keypoints)
    xs, ys = numbers[1:count:2], numbers[2:count:2]
    x1, y1, x2, y2 = edges = (min(xs), min(ys), max(xs), max(ys))
    return Line(label, edges, ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), True, has_score)


def _has_keypoints(numbers: list[float]) -> bool:
    """Whether a box cx, cy, w, h is followed by keypoints x, y, visibility; an unlabelled one is 0 0 0.

    A polygon may begin with four such numbers, so that the visible keypoints must lie in the box.
    """
    visibilities = numbers[6::3]
    if (len(numbers) - 4) % 3 or not any(visibilities) or not {0, 1, 2}.issuperset(visibilities):
        return False
    cx, cy, w, h = numbers[:4]
    points = zip(numbers[4::3], numbers[5::3], strict=False)
    return all(x == y == 0 or (abs(x - cx) <= w / 2 + BORDER and abs(y - cy) <= h / 2 + BORDER) for x, y in points)


def _clip(edges: Sequence[float]) -> tuple[list[float] | None, float]:
    """The box cx, cy, w, h within the image, None where nothing is; and by how much it passed the border."""
    x1, y1, x2, y2 = edges
    beyond = 0.0
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):  # true for few boxes
        beyond = max(-x1, -y1, x2 - 1, y2 - 1)
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
    if x1 >= x2 or y1 >= y2:
        return None, beyond
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], beyond


def _note(line: Line, box: list[float] | None, where: str, beyond: float) -> str:
    """What is wrong with a box that is dropped (``box`` is None) or clipped."""
    w, h = line.values[2:]
    if w <= 0 or h <= 0:
        return f"{where}: the box has no area: w={w:g} h={h:g}"
    if box is None:
        return f"{where}: the box has no area within the image"
    return f"{where}: the box passes the border of the image by {beyond:.4g} of its side"


def _shown(words: Sequence[str]) -> str:
    return repr(" ".join(words)[:100])
