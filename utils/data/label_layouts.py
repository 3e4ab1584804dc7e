"""What four numbers mean that are not what they should be: centre and size in label lines, pixels in COCO and VOC."""

import numpy as np

from utils.data.labels import BORDER

MISFITS = 0.1  # share of the boxes that fit badly as centres, from which on other layouts are considered
MISFITS_OF_FEW = 0.5  # and that of a list of less than FEW boxes
FEW = 10
FITS = 0.99  # share of the boxes that a layout must fit
TINY = 2  # pixels; a data set whose boxes all lie in the first of an image has shares of the image


def guess_layout(values: np.ndarray) -> str | None:
    """What the boxes of a list seem to be instead of normalised centres and sizes; None where they are these.

    Args:
        values: (N, 4), the numbers of all boxes as they were written: cx, cy, w, h.

    Returns:
        A text such as "pixels", or None.
    """
    if not len(values):
        return None
    if (np.abs(values) > 2).any(axis=1).mean() > MISFITS:
        return "pixels"
    if not _misfits(*values.T):
        return None
    a, b, c, d = values.T
    layouts = {
        "corners: x1 y1 x2 y2": _fit((a + c) / 2, (b + d) / 2, c - a, d - b),
        "corners in another order: x1 x2 y1 y2": _fit((a + b) / 2, (c + d) / 2, b - a, d - c),
        "the upper left corner and the size: x1 y1 w h": _fit(a + c / 2, b + d / 2, c, d),
        "sizes in front: w h cx cy": _fit(c, d, a, b),
    }
    likely = [name for name, fit in layouts.items() if fit >= FITS and fit == max(layouts.values())]
    return " or ".join(likely) or None


def guess_pixel_layout(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """What the boxes of a data set seem to be that were read as x1, y1, w, h in pixels; None where they are these.

    Args:
        boxes: (N, 4) x1, y1, x2, y2, where the last two are the sums of what was read.
        sizes: (N, 2) width and height of the image of each.
    """
    if not len(boxes):
        return None
    if (boxes <= TINY).all(axis=1).mean() >= FITS:
        return "shares of the image"
    a, b, c, d = (boxes / np.tile(sizes, 2)).T
    if not _misfits((a + c) / 2, (b + d) / 2, c - a, d - b):
        return None
    c, d = c - a, d - b
    return "corners: x1 y1 x2 y2" if _fit((a + c) / 2, (b + d) / 2, c - a, d - b) >= FITS else None


def _misfits(cx: np.ndarray, cy: np.ndarray, w: np.ndarray, h: np.ndarray) -> bool:
    """Whether so many boxes do not fit that another layout is considered."""
    return 1 - _fit(cx, cy, w, h) >= (MISFITS_OF_FEW if len(cx) < FEW else MISFITS)


def _fit(cx: np.ndarray, cy: np.ndarray, w: np.ndarray, h: np.ndarray) -> float:
    """The share of the boxes that have an area and do not pass the border of the image."""
    inside = (np.abs(cx - 0.5) + w / 2 <= 0.5 + BORDER) & (np.abs(cy - 0.5) + h / 2 <= 0.5 + BORDER)
    return float((inside & (w > 0) & (h > 0)).mean())
