"""Augmentation of training images: flip, colour, scale and shift, mosaic.

One function, :func:`draw`, draws an image onto a square, and moves, clips and drops its boxes. An image is decoded when
it is drawn, no larger than that needs. Letterboxing, which has no randomness, decodes it in full.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from utils.boxes import Letterbox

GREY = 127  # Darknet fills the bars beside a letterboxed image with 0.5
MIN_VISIBLE = 0.25  # a box that keeps no more than this share of its area is dropped
REDUCTIONS = (8, 4, 2, 1)  # an image can be decoded at these fractions of its size


@dataclass(frozen=True)
class LabelledImage:
    """An image that is decoded when needed, with its boxes.

    Attributes:
        width, height: its size in pixels.
        boxes: (N, 5): class, x1, y1, x2, y2 in its pixels.
        decode: returns its pixels (height / r, width / r, 3) uint8 RGB for one of REDUCTIONS r. Pixel (x, y) is the
            mean of the r x r pixels from (r * x, r * y) on.
    """

    width: int
    height: int
    boxes: np.ndarray
    decode: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, pixels: np.ndarray, boxes: np.ndarray) -> "LabelledImage":
        """A decoded image (height, width, 3) uint8 RGB."""
        height, width = pixels.shape[:2]
        return cls(width, height, boxes, lambda reduction: shrink(pixels, reduction))


def reduction_for(scale: float) -> int:
    """The largest of REDUCTIONS that leaves an image no smaller than it is at ``scale``."""
    return next((reduction for reduction in REDUCTIONS if reduction * scale <= 1), 1)


def shrink(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Pixels (H, W, 3) as means of ``reduction`` x ``reduction`` pixels; what remains at the right and below is cut off.

    A side that is shorter becomes one pixel.
    """
    if reduction == 1:
        return pixels
    height, width = pixels.shape[:2]
    size = max(width // reduction, 1), max(height // reduction, 1)
    whole = pixels[: size[1] * reduction, : size[0] * reduction]
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)


def canvas(size: int) -> np.ndarray:
    """A grey square, (size, size, 3) uint8."""
    return np.full((size, size, 3), GREY, dtype=np.uint8)


def draw(
    target: np.ndarray, labelled: LabelledImage, place: Letterbox, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Draw an image onto ``target``, in place, with bilinear interpolation of the smallest image that is large enough.

    Args:
        target: (S, S, 3) uint8.
        labelled: the image and its boxes.
        place: how the image is scaled and shifted.
        window: the part (x1, y1, x2, y2) of ``target`` to draw in; None is all of it.

    Returns:
        The boxes (M, 5): class, x1, y1, x2, y2 in pixels of ``target``, clipped to the part that was drawn. Boxes of
        which no more than MIN_VISIBLE is left are dropped.
    """
    boxes = labelled.boxes
    x1, y1, x2, y2 = window or (0, 0, target.shape[1], target.shape[0])
    x1, y1 = max(x1, place.left), max(y1, place.top)
    x2 = min(x2, place.left + round(labelled.width * place.scale_x))
    y2 = min(y2, place.top + round(labelled.height * place.scale_y))
    if x2 <= x1 or y2 <= y1:
        return boxes[:0]
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
        labelled.decode(reduction),
        matrix,
        (x2 - x1, y2 - y1),
        dst=target[y1:y2, x1:x2],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return move_boxes(boxes, place, (x1, y1, x2, y2))


def move_boxes(boxes: np.ndarray, place: Letterbox, window: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes (N, 5): class, x1, y1, x2, y2 of an image that is drawn at ``place``, clipped to ``window`` (x1, y1, x2, y2).

    Boxes of which no more than MIN_VISIBLE is left are dropped.
    """
    x1, y1, x2, y2 = window
    moved = boxes * np.array([1, place.scale_x, place.scale_y, place.scale_x, place.scale_y], boxes.dtype)
    moved += np.array([0, place.left, place.top, place.left, place.top], boxes.dtype)
    clipped = moved.copy()
    clipped[:, 1::2] = clipped[:, 1::2].clip(x1, x2)
    clipped[:, 2::2] = clipped[:, 2::2].clip(y1, y2)
    return clipped[_area(clipped) > MIN_VISIBLE * _area(moved)]


def letterbox(labelled: LabelledImage, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole image in the middle of a grey square: (size, size, 3) uint8, and boxes (N, 5) in its pixels."""
    place = Letterbox.fit(labelled.width, labelled.height, size)
    boxes = move_boxes(labelled.boxes, place, (0, 0, size, size))
    return letterbox_pixels(labelled.decode(1), size), boxes


def letterbox_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 in the middle of a grey square (size, size, 3).

    They are reduced by averaging areas, which keeps small objects from flickering, and enlarged by bilinear
    interpolation.
    """
    height, width = pixels.shape[:2]
    place = Letterbox.fit(width, height, size)
    target = canvas(size)
    fitted = resize(pixels, round(width * place.scale_x), round(height * place.scale_y))
    target[place.top : place.top + fitted.shape[0], place.left : place.left + fitted.shape[1]] = fitted
    return target


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 as (height, width, 3): by averaging areas where that is smaller, else bilinear."""
    if pixels.shape[:2] == (height, width):
        return pixels
    is_smaller = width < pixels.shape[1] or height < pixels.shape[0]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Augmentation:
    """Augments images. Each image has its own random generator, so the result is the same with any number of workers.

    Attributes:
        mosaic: probability of a mosaic of four images around a random centre (YOLOv4, arXiv 2004.10934, section 3.3).
        first_plain_epoch: first epoch without mosaics, so that training ends on images like real ones; None: never.
        zoom: the scale is drawn from 1 - zoom to 1 + zoom; 1 fits the image into the square.
        stretch: the sides are scaled apart by a factor from 1 - stretch to 1 + stretch.
        shift: the image is shifted by at most this share of the square's side, in x and in y.
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
        count: int,
        size: int,
        epoch: int,
        random: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image.

        Args:
            load: returns the image of an index, with its boxes.
            index: which image.
            count: number of images to draw the other three of a mosaic from.
            size: the side of the square, in pixels.
            epoch: the epoch, from 0.
            random: generator of this image in this epoch.

        Returns:
            The square (size, size, 3) uint8 and boxes (N, 5): class, x1, y1, x2, y2 in its pixels.
        """
        target = canvas(size)
        allows_mosaic = self.first_plain_epoch is None or epoch < self.first_plain_epoch
        if allows_mosaic and random.random() < self.mosaic:
            images = [load(i) for i in (index, *random.integers(count, size=3))]
            boxes = self._draw_mosaic(target, images, random)
        else:
            boxes = self._draw_single(target, load(index), random)
        target = self._shift_colours(target, random)
        if random.random() < 0.5:
            target = cv2.flip(target, 1)
            boxes = boxes * np.array([1, -1, 1, -1, 1], boxes.dtype) + np.array([0, size, 0, size, 0], boxes.dtype)
            boxes = boxes[:, [0, 3, 2, 1, 4]]
        return target, boxes

    def _draw_single(self, target: np.ndarray, labelled: LabelledImage, random: np.random.Generator) -> np.ndarray:
        size = len(target)
        width, height = labelled.width, labelled.height
        scale_x, scale_y = self._random_scales(size / max(width, height), 1 - self.zoom, 1 + self.zoom, random)
        shift_x, shift_y = random.uniform(-self.shift, self.shift, size=2) * size
        left = round((size - width * scale_x) / 2 + shift_x)
        top = round((size - height * scale_y) / 2 + shift_y)
        return draw(target, labelled, Letterbox(scale_x, scale_y, left, top))

    def _draw_mosaic(self, target: np.ndarray, images: list[LabelledImage], random: np.random.Generator) -> np.ndarray:
        size = len(target)
        x, y = random.integers(round(0.3 * size), round(0.7 * size) + 1, size=2)
        windows = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        boxes = []
        for labelled, window in zip(images, windows, strict=True):
            width, height = labelled.width, labelled.height
            scale_x, scale_y = self._random_scales(size / max(width, height), 0.5, 1.0, random)
            left = x - round(width * scale_x) if window[0] == 0 else x
            top = y - round(height * scale_y) if window[1] == 0 else y
            boxes.append(draw(target, labelled, Letterbox(scale_x, scale_y, left, top), window))
        return np.concatenate(boxes)

    def _random_scales(self, fit: float, low: float, high: float, random: np.random.Generator) -> tuple[float, float]:
        scale = fit * random.uniform(low, high)
        stretch = 1 + random.uniform(-self.stretch, self.stretch)
        return scale * stretch, scale / stretch

    def _shift_colours(self, target: np.ndarray, random: np.random.Generator) -> np.ndarray:
        change = random.uniform(-1, 1, size=3) * (self.hue, self.saturation, self.value)
        levels = np.arange(256)
        hue = ((levels + 256 * change[0]) % 256).astype(np.uint8)
        saturation, value = ((levels * (1 + c)).clip(0, 255).astype(np.uint8) for c in change[1:])
        table = np.stack([hue, saturation, value], axis=-1)[None]
        hsv = cv2.cvtColor(target, cv2.COLOR_RGB2HSV_FULL)
        return cv2.cvtColor(cv2.LUT(hsv, table, dst=hsv), cv2.COLOR_HSV2RGB_FULL, dst=target)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
