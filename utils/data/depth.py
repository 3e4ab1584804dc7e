"""Images of more than 8 bits per value: 16-bit integers, of which often 10, 12 or 14 bits are used, and floats."""

from typing import SupportsFloat, cast

import cv2
import numpy as np
from PIL import Image

BITS = (8, 10, 12, 14, 16)  # what cameras and scanners use of the 16 bits of a file
# TIFF tags: BitsPerSample, and the smallest and the largest value, of integers and of any type.
BITS_PER_SAMPLE, LOWEST, HIGHEST = 258, (280, 340), (281, 341)


def is_deep(image: Image.Image) -> bool:
    """Whether the file of an image, which was opened but not decoded, has more than 8 bits per value."""
    # Of colours of 16 bits Pillow drops the lower 8. Only how it will decode them tells that they are there: by a name
    # such as "RGB;16B", or of a PPM file by its largest value.
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return image.mode[0] in "IF" or any(";16" in str(a) or a == ("RGB", 2**16 - 1) for a in arguments)


def to_8_bits(image: Image.Image, content: bytes) -> np.ndarray:
    """The pixels (H, W) or (H, W, 3) uint8 of a deep image, scaled from the range of its values to 0 to 255.

    The range is what a TIFF file says. Otherwise, of integers from 0 on, it is that of as many bits (BITS) as the
    largest value takes; of all others it is from the smallest to the largest value. What is not finite counts as the
    smallest value.

    Args:
        image: the opened image.
        content: the bytes of its file.

    Raises:
        ValueError: it has 16 bits per colour in a form that cannot be read.
    """
    is_float = image.mode[0] == "F"
    low, high = _stated_range(image)
    values = np.asarray(image) if image.mode[0] in "IF" else _colours(image, content)
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min() if finite.any() else 0).astype(np.float64)
    lowest, highest = values.min(), values.max()
    if low is None or high is None or not low <= lowest <= highest <= high or low == high:
        low, high = _range(lowest, highest, is_float)
    return ((values - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def _range(lowest: float, highest: float, is_float: bool) -> tuple[float, float]:
    if not is_float and lowest >= 0 and highest < 2 ** BITS[-1]:
        return 0.0, next(2.0**bits - 1 for bits in BITS if highest < 2**bits)
    return (lowest, highest) if highest > lowest else (lowest - 1, lowest + 1)


def _stated_range(image: Image.Image) -> tuple[float | None, float | None]:
    """The range that a TIFF file says its values have, as far as it does."""
    tags = getattr(image, "tag_v2", {})
    low, high = (next((_number(tags[tag]) for tag in names if tag in tags), None) for names in (LOWEST, HIGHEST))
    bits = _number(tags.get(BITS_PER_SAMPLE))
    if high is None and bits is not None and 8 < bits < 16:
        high = 2.0**bits - 1
    return (0.0 if low is None and high is not None else low), high


def _number(value: object) -> float | None:
    """The first of the values of a TIFF tag."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return None if value is None else float(cast(SupportsFloat, value))


def _colours(image: Image.Image, content: bytes) -> np.ndarray:
    """The pixels (H, W, 3) uint16 RGB; OpenCV reads them, and Pillow's upper 8 bits, cut or rounded, must agree."""
    upper = np.asarray(image.convert("RGB"))
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError("16 bits per colour that cannot be read: convert it to 8 bits")
    colours = pixels[:, :, 2::-1]
    if colours.shape != upper.shape or (np.abs(np.right_shift(colours, 8).astype(np.int16) - upper) > 1).any():
        raise ValueError("16 bits per colour that cannot be read: convert it to 8 bits")
    return colours
