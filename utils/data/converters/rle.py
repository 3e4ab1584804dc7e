"""The boxes of COCO's run-length encoded masks, without unpacking the masks."""

import numpy as np

from utils.errors import InputError

MAX_SIDE = 1 << 20  # pixels; the product of two sides fits into 64 bits


def rle_box(mask: object, where: str) -> list[float]:
    """x, y, width, height in pixels of a mask ``{"size": [height, width], "counts": ...}``.

    The counts are lengths of runs of 0 and 1 in turns, down the columns: a list of numbers, or COCO's text of them.

    Raises:
        InputError: it is no such mask, or an empty one.
    """
    content = mask if isinstance(mask, dict) else {}
    try:
        height, width = (int(side) for side in content["size"])
        counts = content["counts"]
        runs = np.asarray(unpacked(counts) if isinstance(counts, str) else counts, dtype=np.int64).ravel()
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: the segmentation is no run-length encoded mask") from None
    inside = 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and (abs(runs) <= height * width).all()
    ends = np.cumsum(runs)
    starts, ends = ends[0:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not inside or not len(ends) or runs.min() < 0 or ends[-1] > height * width:
        raise InputError(f"{where}: the run-length encoded mask is empty, or does not fit its size")
    left, right = starts[0] // height, (ends[-1] - 1) // height
    spans = starts // height != (ends - 1) // height  # such a run reaches the bottom of a column, and a top
    top = 0 if spans.any() else (starts % height).min()
    bottom = height - 1 if spans.any() else ((ends - 1) % height).max()
    return [float(value) for value in (left, top, right - left + 1, bottom - top + 1)]


def unpacked(text: str) -> list[int]:
    """The counts in COCO's compressed text: 5 bits per character, the lowest first.

    From the fourth on, a count is the difference to the last but one.

    Raises:
        ValueError: the text is none of that.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("no character of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= 1 << shift if bits & 16 else 0  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the last count is cut off")
    return counts
