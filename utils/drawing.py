"""Boxes and class names drawn on images."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def class_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class; hues of successive classes differ by the golden angle."""
    red, green, blue = colorsys.hsv_to_rgb((0.42 + 0.381966 * label) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image.Image, detections: Tensor, names: Sequence[str]) -> Image.Image:
    """A copy of ``image`` with detections (D, 6): x1, y1, x2, y2 in its pixels, score, class. The best is on top."""
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    size = max(min(image.size) / 28, 11)
    font = ImageFont.load_default(size)
    width = max(round(size / 6), 2)
    for x1, y1, x2, y2, score, label in reversed(detections.tolist()):
        colour = class_colour(int(label))
        draw.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=colour, width=width)
        _tag(draw, (x1, y1), f"{names[int(label)]} {score:.2f}", font, colour, image.size)
    return drawn


def _tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
    image: tuple[int, int],
) -> None:
    """Draw a label above the box, or inside the box where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(corner[0], 0), max(image[0] - width, 0))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, font=font, fill=(0, 0, 0))
