"""What the four numbers of label lines mean where they are not centre, width and height in [0, 1] of the image."""

import numpy as np

from utils.data.labels import BORDER

MISFITS = 0.1  # share of the boxes that fit badly as centres, from which on other layouts are considered
MISFITS_OF_FEW = 0.5  # and that of a list of less than FEW boxes
FEW = 10
FITS = 0.99  # share of the boxes that a layout must fit


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
    misfits = 1 - _fit(*values.T)
    if misfits < (MISFITS_OF_FEW if len(values) < FEW else MISFITS):
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


def _fit(cx: np.ndarray, cy: np.ndarray, w: np.ndarray, h: np.ndarray) -> float:
    """The share of the boxes that have an area and do not pass the border of the image."""
    inside = (np.abs(cx - 0.5) + w / 2 <= 0.5 + BORDER) & (np.abs(cy - 0.5) + h / 2 <= 0.5 + BORDER)
    return float((inside & (w > 0) & (h > 0)).mean())
