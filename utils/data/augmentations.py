"""Augmentation of training images: flip, colour, scale and shift, mosaic.

One function, :func:`draw`, draws an image onto the network's input, and moves, clips and drops its boxes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from utils.boxes import Letterbox
from utils.sizes import AnySize, Size

GREY = 127  # Darknet fills the bars beside a letterboxed image with 0.5
MIN_VISIBLE = 0.25  # a box that keeps no more than this share of its area is dropped
REDUCTIONS = (8, 4, 2, 1)  # a JPEG file can be decoded at these fractions of its size

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


class LabelledImage(NamedTuple):
    """An image (H, W, 3) uint8 RGB with its boxes (N, 5): class, x1, y1, x2, y2 in its pixels."""

    pixels: np.ndarray
    boxes: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def reduction_for(scale: float) -> int:
    """The largest of REDUCTIONS that leaves an image no smaller than it is at ``scale``."""
    return next((reduction for reduction in REDUCTIONS if reduction * scale <= 1), 1)


def shrink(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Means of ``reduction`` x ``reduction`` pixels of an image (H, W, 3); what remains at the far edges is cut off.

    A side that is shorter than ``reduction`` becomes one pixel.
    """
    if reduction == 1:
        return pixels
    height, width = pixels.shape[:2]
    size = max(width // reduction, 1), max(height // reduction, 1)
    whole = pixels[: size[1] * reduction, : size[0] * reduction]
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)


def canvas(size: AnySize) -> np.ndarray:
    """A grey image of a network's input size, (H, W, 3) uint8."""
    return np.full((*Size.of(size), 3), GREY, dtype=np.uint8)


def draw(target: np.ndarray, labelled: LabelledImage, place: Letterbox, window: Window | None = None) -> np.ndarray:
    """Draw an image onto ``target``, in place, with bilinear interpolation; it is halved before where it is drawn so.

    Args:
        target: (H, W, 3) uint8.
        labelled: the image and its boxes.
        place: how the image is scaled and shifted.
        window: the part of ``target`` to draw in; None is all of it.

    Returns:
        The boxes (M, 5): class, x1, y1, x2, y2 in pixels of ``target``, clipped to the part that was drawn. Boxes of
        which no more than MIN_VISIBLE is left are dropped.
    """
    x1, y1, x2, y2 = drawn = drawn_window(labelled.size, place, window or (0, 0, target.shape[1], target.shape[0]))
    if x2 == x1 or y2 == y1:
        return labelled.boxes[:0]
    reduction = reduction_for(max(place.scale_x, place.scale_y))
    scale_x, scale_y = place.scale_x * reduction, place.scale_y * reduction
    # OpenCV counts from the centre of the first pixel.
    matrix = np.array(
        [
            [scale_x, 0, place.left - x1 + (scale_x - 1) / 2],
            [0, scale_y, place.top - y1 + (scale_y - 1) / 2],
        ]
    )
    cv2.warpAffine(
        shrink(labelled.pixels, reduction),
        matrix,
        (x2 - x1, y2 - y1),
        dst=target[y1:y2, x1:x2],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return move_boxes(labelled.boxes, place, drawn)


def drawn_window(size: tuple[int, int], place: Letterbox, window: Window) -> Window:
    """The part of ``window`` that an image of ``size``, width and height, covers at ``place``; it may be empty."""
    x1, y1, x2, y2 = window
    x1, y1 = max(x1, place.left), max(y1, place.top)
    width, height = place.scaled(*size)
    x2, y2 = min(x2, place.left + width), min(y2, place.top + height)
    return x1, y1, max(x2, x1), max(y2, y1)


def move_boxes(boxes: np.ndarray, place: Letterbox, window: Window) -> np.ndarray:
    """Boxes (N, 5): class, x1, y1, x2, y2, moved to where ``place`` draws their image and clipped to ``window``.

    Boxes of which no more than MIN_VISIBLE is left are dropped.
    """
    x1, y1, x2, y2 = window
    moved = boxes * np.array([1, place.scale_x, place.scale_y, place.scale_x, place.scale_y], boxes.dtype)
    moved += np.array([0, place.left, place.top, place.left, place.top], boxes.dtype)
    clipped = moved.copy()
    clipped[:, 1::2] = clipped[:, 1::2].clip(x1, x2)
    clipped[:, 2::2] = clipped[:, 2::2].clip(y1, y2)
    return clipped[_area(clipped) > MIN_VISIBLE * _area(moved)]


def letterbox(labelled: LabelledImage, size: AnySize) -> tuple[np.ndarray, np.ndarray]:
    """The whole image in the middle of a grey one of ``size``: (H, W, 3) uint8, and boxes (N, 5) in its pixels."""
    height, width = Size.of(size)
    place = Letterbox.fit(*labelled.size, size)
    boxes = move_boxes(labelled.boxes, place, (0, 0, width, height))
    return letterbox_pixels(labelled.pixels, size), boxes


def letterbox_pixels(pixels: np.ndarray, size: AnySize) -> np.ndarray:
    """Pixels (h, w, 3) uint8 in the middle of a grey image (H, W, 3) of ``size``.

    See :func:`resize` for the filter.
    """
    height, width = pixels.shape[:2]
    place = Letterbox.fit(width, height, size)
    target = canvas(size)
    fitted = resize(pixels, *place.scaled(width, height))
    target[place.top : place.top + fitted.shape[0], place.left : place.left + fitted.shape[1]] = fitted
    return target


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3) by an antialiased bilinear filter, the same as Pillow's."""
    if pixels.shape[:2] == (height, width):
        return pixels
    images = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Augmentation:
    """Augments images. Each image has its own random generator, so the result is the same with any number of workers.

    Attributes:
        mosaic: probability of a mosaic of four images around a random centre (YOLOv4, arXiv 2004.10934, section 3.3).
        first_plain_epoch: first epoch without mosaics, so that training ends on images like real ones; None: never.
        zoom: the scale is drawn from 1 - zoom to 1 + zoom; 1 fits the image into the input.
        stretch: the sides are scaled apart by a factor from 1 - stretch to 1 + stretch.
        shift: the image is shifted by at most this share of the input's width and height.
        hue: the hue is shifted by at most this share of the colour circle.
        saturation, value: these are scaled by a factor from 1 - share to 1 + share.
    """

    mosaic: float = 0.5
    first_plain_epoch: int | None = None
    zoom: float = 0.4
    stretch: float = 0.1
    shift: float = 0.15
    hue: float = 0.02
    saturation: float = 0.5
    value: float = 0.4

    def __call__(
        self,
        load: Callable[[int], LabelledImage],
        index: int,
        partners: np.ndarray,
        size: AnySize,
        epoch: int,
        random: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image.

        Args:
            load: returns the image of an index, with its boxes.
            index: which image.
            partners: the images to draw the other three of a mosaic from.
            size: of the network's input.
            epoch: the epoch, from 0.
            random: generator of this image in this epoch.

        Returns:
            The image (H, W, 3) uint8 of that size, and boxes (N, 5): class, x1, y1, x2, y2 in its pixels.
        """
        target = canvas(size)
        height, width = Size.of(size)
        allows_mosaic = self.first_plain_epoch is None or epoch < self.first_plain_epoch
        if allows_mosaic and random.random() < self.mosaic:
            images = [load(i) for i in (index, *random.choice(partners, size=3))]
            boxes, window = self._draw_mosaic(target, images, random), (0, 0, width, height)
        else:
            boxes, window = self._draw_single(target, load(index), random)
        self._shift_colours(target, window, random)
        if random.random() < 0.5:
            target = cv2.flip(target, 1)
            boxes = boxes * np.array([1, -1, 1, -1, 1], boxes.dtype) + np.array([0, width, 0, width, 0], boxes.dtype)
            boxes = boxes[:, [0, 3, 2, 1, 4]]
        return target, boxes

    def _draw_single(
        self, target: np.ndarray, labelled: LabelledImage, random: np.random.Generator
    ) -> tuple[np.ndarray, Window]:
        """The boxes, and the window that the image covers."""
        rows, columns = target.shape[:2]
        width, height = labelled.size
        fit = min(columns / width, rows / height)
        scale_x, scale_y = self._random_scales(fit, 1 - self.zoom, 1 + self.zoom, random)
        shift_x, shift_y = random.uniform(-self.shift, self.shift, size=2) * (columns, rows)
        left = round((columns - width * scale_x) / 2 + shift_x)
        top = round((rows - height * scale_y) / 2 + shift_y)
        place = Letterbox(scale_x, scale_y, left, top)
        return draw(target, labelled, place), drawn_window(labelled.size, place, (0, 0, columns, rows))

    def _draw_mosaic(self, target: np.ndarray, images: list[LabelledImage], random: np.random.Generator) -> np.ndarray:
        rows, columns = target.shape[:2]
        x, y = (int(random.integers(round(0.3 * side), round(0.7 * side) + 1)) for side in (columns, rows))
        windows = [(0, 0, x, y), (x, 0, columns, y), (0, y, x, rows), (x, y, columns, rows)]
        boxes = []
        for labelled, window in zip(images, windows, strict=True):
            width, height = labelled.size
            scale_x, scale_y = self._random_scales(min(columns / width, rows / height), 0.5, 1.0, random)
            left = x - round(width * scale_x) if window[0] == 0 else x
            top = y - round(height * scale_y) if window[1] == 0 else y
            boxes.append(draw(target, labelled, Letterbox(scale_x, scale_y, left, top), window))
        return np.concatenate(boxes)

    def _random_scales(self, fit: float, low: float, high: float, random: np.random.Generator) -> tuple[float, float]:
        scale = fit * random.uniform(low, high)
        stretch = 1 + random.uniform(-self.stretch, self.stretch)
        return scale * stretch, scale / stretch

    def _shift_colours(self, target: np.ndarray, window: Window, random: np.random.Generator) -> None:
        """Change the colours of ``target``, in place; outside of ``window`` it is grey."""
        change = random.uniform(-1, 1, size=3) * (self.hue, self.saturation, self.value)
        x1, y1, x2, y2 = window
        drawn = target[y1:y2, x1:x2]
        if drawn.size:
            hue, saturation, value = cv2.split(cv2.cvtColor(drawn, cv2.COLOR_RGB2HSV_FULL))
            hue += np.uint8(math.floor(256 * change[0]) % 256)  # the colour circle has 256 steps, as has the type
            saturation, value = (
                cv2.convertScaleAbs(channel, alpha=1 + share)
                for channel, share in zip((saturation, value), change[1:], strict=True)
            )
            cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB_FULL, dst=drawn)
        bars = min(round(GREY * (1 + change[2])), 255)
        target[:y1] = target[y2:] = target[y1:y2, :x1] = target[y1:y2, x2:] = bars


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
