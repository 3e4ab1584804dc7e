"""Random changes of training images: flip, colour, scale and shift, mosaic.

An image is a PIL image with boxes (N, 5): class, x1, y1, x2, y2 in its pixels. Everything is drawn onto a square by
one function, :func:`draw`, which also moves, clips and drops the boxes; letterboxing is the case without chance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.boxes import Letterbox

GREY = 127  # Darknet fills the bars beside a letterboxed image with 0.5
# A box of which less than this share is left is no longer an example of its class.
LEAST_VISIBLE = 0.25

LabelledImage = tuple[Image.Image, np.ndarray]


def canvas(size: int) -> np.ndarray:
    """A grey square, (size, size, 3) uint8."""
    return np.full((size, size, 3), GREY, dtype=np.uint8)


def draw(
    target: np.ndarray, labelled: LabelledImage, place: Letterbox, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Draw an image onto ``target`` (S, S, 3) where ``place`` says, within ``window`` (x1, y1, x2, y2).

    Returns:
        The boxes (M, 5) class, x1, y1, x2, y2 in pixels of ``target``, clipped to what was drawn.
    """
    image, boxes = labelled
    x1, y1, x2, y2 = window or (0, 0, target.shape[1], target.shape[0])
    x1, y1 = max(x1, place.left), max(y1, place.top)
    x2 = min(x2, place.left + round(image.width * place.scale_x))
    y2 = min(y2, place.top + round(image.height * place.scale_y))
    if x2 <= x1 or y2 <= y1:
        return boxes[:0]
    source = (
        (x1 - place.left) / place.scale_x,
        (y1 - place.top) / place.scale_y,
        min((x2 - place.left) / place.scale_x, image.width),
        min((y2 - place.top) / place.scale_y, image.height),
    )
    target[y1:y2, x1:x2] = np.asarray(image.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, box=source))

    moved = boxes * np.array([1, place.scale_x, place.scale_y, place.scale_x, place.scale_y], boxes.dtype)
    moved += np.array([0, place.left, place.top, place.left, place.top], boxes.dtype)
    clipped = moved.copy()
    clipped[:, 1::2] = clipped[:, 1::2].clip(x1, x2)
    clipped[:, 2::2] = clipped[:, 2::2].clip(y1, y2)
    return clipped[_area(clipped) > LEAST_VISIBLE * _area(moved)]


def letterbox(image: LabelledImage, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole image in the middle of a grey square: (size, size, 3) uint8 and boxes (N, 5) in its pixels."""
    target = canvas(size)
    boxes = draw(target, image, Letterbox.fit(*image[0].size, size))
    return target, boxes


@dataclass(frozen=True)
class Augmentation:
    """How much to change; every image gets its own random generator, so a run is the same with any worker count.

    Attributes:
        mosaic: chance that an image is drawn with three others around a random centre (YOLOv4, arXiv 2004.10934).
        first_plain_epoch: from this epoch on images stand alone, so that training ends on images like real ones.
        zoom: an image is scaled by 1 - zoom to 1 + zoom, with an aspect that changes by at most ``stretch``.
        shift: it is moved by at most this share of the square.
        hue, saturation, value: colour changes by at most this share.
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
        """Draw image ``index`` of ``count`` changed onto a square of ``size`` pixels, as :func:`letterbox` does."""
        target = canvas(size)
        early = self.first_plain_epoch is None or epoch < self.first_plain_epoch
        if early and random.random() < self.mosaic:
            images = [load(i) for i in (index, *random.integers(count, size=3))]
            boxes = self._mosaic(target, images, random)
        else:
            boxes = self._single(target, load(index), random)
        target = self._recolour(target, random)
        if random.random() < 0.5:
            target = target[:, ::-1]
            boxes = boxes * np.array([1, -1, 1, -1, 1], boxes.dtype) + np.array([0, size, 0, size, 0], boxes.dtype)
            boxes = boxes[:, [0, 3, 2, 1, 4]]
        return np.ascontiguousarray(target), boxes

    def _single(self, target: np.ndarray, image: LabelledImage, random: np.random.Generator) -> np.ndarray:
        size = len(target)
        width, height = image[0].size
        scale_x, scale_y = self._scales(size / max(width, height), 1 - self.zoom, 1 + self.zoom, random)
        shift_x, shift_y = random.uniform(-self.shift, self.shift, size=2) * size
        left = round((size - width * scale_x) / 2 + shift_x)
        top = round((size - height * scale_y) / 2 + shift_y)
        return draw(target, image, Letterbox(scale_x, scale_y, left, top))

    def _mosaic(self, target: np.ndarray, images: list[LabelledImage], random: np.random.Generator) -> np.ndarray:
        size = len(target)
        x, y = random.integers(round(0.3 * size), round(0.7 * size) + 1, size=2)
        windows = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        boxes = []
        for image, window in zip(images, windows, strict=True):
            width, height = image[0].size
            scale_x, scale_y = self._scales(size / max(width, height), 0.5, 1.0, random)
            left = x - round(width * scale_x) if window[0] == 0 else x
            top = y - round(height * scale_y) if window[1] == 0 else y
            boxes.append(draw(target, image, Letterbox(scale_x, scale_y, left, top), window))
        return np.concatenate(boxes)

    def _scales(self, fit: float, low: float, high: float, random: np.random.Generator) -> tuple[float, float]:
        scale = fit * random.uniform(low, high)
        stretch = 1 + random.uniform(-self.stretch, self.stretch)
        return scale * stretch, scale / stretch

    def _recolour(self, target: np.ndarray, random: np.random.Generator) -> np.ndarray:
        change = random.uniform(-1, 1, size=3) * (self.hue, self.saturation, self.value)
        levels = np.arange(256)
        hue = ((levels + 256 * change[0]) % 256).astype(np.uint8)
        saturation, value = ((levels * (1 + c)).clip(0, 255).astype(np.uint8) for c in change[1:])
        table = np.concatenate([hue, saturation, value])
        return np.array(Image.fromarray(target).convert("HSV").point(table.tolist()).convert("RGB"))


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
