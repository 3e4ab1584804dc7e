"""YOLO labels: a text file for each image, with one box per line: ``class cx cy w h`` in [0, 1] of the image."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_lines

BORDER = 1e-3  # share of the image by which a box may pass its border; it is clipped
ROUNDING = 1e-5  # a box that passes the border by less, as six decimals may, does not count as clipped


def label_path(image: Path) -> Path:
    """The label file of an image: the last folder named ``images`` becomes ``labels``, the suffix becomes ``.txt``."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        boxes: (N, 5) float32: class, cx, cy, w, h in [0, 1] of the image.
        clipped: number of boxes that were clipped to the border.
        repeated: number of boxes that equal an earlier one.
        problems: error messages of the lines that are not in ``boxes``, each with ``file:line``.
    """

    boxes: np.ndarray
    clipped: int
    repeated: int
    problems: list[str]


def scan_labels(path: str | Path, classes: int) -> Labels:
    """Read the YOLO labels of one image, and collect all errors instead of raising the first.

    A missing or empty file means that the image shows no object.
    """
    if not os.path.exists(path):
        return Labels(np.zeros((0, 5), np.float32), 0, 0, [])
    boxes: list[list[float]] = []
    problems: list[str] = []
    clipped = 0
    try:
        lines = read_lines(path, "label file")
    except InputError as error:
        lines = []
        problems.append(str(error))
    for number, line in enumerate(lines, start=1):
        if words := line.split():
            try:
                box, outside = _parse_label(words, classes, f"{path}:{number}")
            except InputError as error:
                problems.append(str(error))
            else:
                boxes.append(box)
                clipped += outside
    repeated = len(boxes) - len(set(map(tuple, boxes)))
    return Labels(np.array(boxes, np.float32).reshape(-1, 5), clipped, repeated, problems)


def read_labels(path: str | Path, classes: int) -> tuple[np.ndarray, int]:
    """Read the YOLO labels of one image; a missing or empty file means that the image shows no object.

    Returns:
        Boxes (N, 5) float32: class, cx, cy, w, h in [0, 1] of the image; and how many were clipped to its border.

    Raises:
        InputError: a line is not five numbers, a class is not below ``classes``, or a box has no area or passes the
            border by more than BORDER. The message names file and line.
    """
    labels = scan_labels(path, classes)
    if labels.problems:
        raise InputError(labels.problems[0])
    return labels.boxes, labels.clipped


def _parse_label(words: Sequence[str], classes: int, where: str) -> tuple[list[float], bool]:
    if len(words) != 5:
        raise InputError(f"{where}: {len(words)} values, but a label line has five: class cx cy w h")
    try:
        label, cx, cy, w, h = map(float, words)
    except ValueError:
        raise InputError(f"{where}: {' '.join(words)!r} is not five numbers") from None
    if not all(map(math.isfinite, (label, cx, cy, w, h))):
        raise InputError(f"{where}: {' '.join(words)!r} holds a value that is not finite")
    if label != int(label) or not 0 <= label < classes:
        raise InputError(f"{where}: class {words[0]}, but the classes are 0 to {classes - 1}")
    edges = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    beyond = max(-edges[0], -edges[1], edges[2] - 1, edges[3] - 1)
    if w <= 0 or h <= 0:
        raise InputError(f"{where}: the box has no area: w={words[3]} h={words[4]}")
    if beyond > BORDER:
        raise InputError(f"{where}: the box passes the border of the image by {beyond:.4g} of its side")
    x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
    if x1 >= x2 or y1 >= y2:
        raise InputError(f"{where}: the box has no area within the image")
    return [label, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], beyond > ROUNDING
