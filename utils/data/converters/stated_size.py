"""Boxes of an image that has another size than its annotation states: it was scaled since, or EXIF turns it."""

from dataclasses import replace

import numpy as np

from utils.data.converters.samples import Sample
from utils.data.images import SWAPS_SIDES, orientation_of
from utils.errors import InputError

SAME_SHAPE = 0.02  # width and height may have been scaled by factors that differ by this share


def fit_boxes(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample with boxes in pixels of its image, which has ``size`` (width, height) when it is upright.

    Where boxes reach further beyond the stated size than beyond the image, or that is the image's with width and height
    exchanged, which EXIF does not explain, the size was stated wrongly, and the boxes stay.

    Raises:
        InputError: the annotation states the size of another image.
    """
    stated = sample.stated_size
    if stated is None or stated == size or reach(sample.boxes, stated) > reach(sample.boxes, size):
        return sample
    if is_scaled(stated, size):
        return replace(sample, boxes=scale_boxes(sample.boxes, stated, size))
    orientation = orientation_of(sample.source)
    unturned = size[::-1]
    if orientation in SWAPS_SIDES and is_scaled(stated, unturned):
        return replace(sample, boxes=turn_boxes(scale_boxes(sample.boxes, stated, unturned), unturned, orientation))
    if stated == unturned:
        return sample
    raise InputError(
        f"{sample.annotation}: states {stated[0]:g}x{stated[1]:g} pixels, but {sample.source} has "
        f"{size[0]}x{size[1]}: its boxes are of another image"
    )


def reach(boxes: np.ndarray, size: tuple[float, float]) -> float:
    """How many pixels boxes (N, 4) xyxy reach beyond the right and lower border of an image of ``size``."""
    return max((boxes - np.tile(size, 2)).max(initial=0.0), 0.0)


def is_scaled(stated: tuple[float, float], size: tuple[int, int]) -> bool:
    """Whether an image of ``size`` may be one of the ``stated`` size that was scaled."""
    across, down = size[0] / stated[0], size[1] / stated[1]
    return abs(across - down) <= SAME_SHAPE * max(across, down)


def scale_boxes(boxes: np.ndarray, stated: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) xyxy in pixels, scaled with their image from the ``stated`` size to ``size``."""
    return boxes * np.tile(np.divide(size, stated), 2)


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Boxes (N, 4) xyxy of an image of ``size``, turned with it by one of the EXIF orientations that swap its sides."""
    x1, y1, x2, y2 = boxes.T
    width, height = size
    across = (height - y2, height - y1) if orientation in (6, 7) else (y1, y2)
    down = (width - x2, width - x1) if orientation in (7, 8) else (x1, x2)
    return np.stack([across[0], down[0], across[1], down[1]], axis=1)
