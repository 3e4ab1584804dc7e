"""Anchors, (width, height) in pixels: those of Darknet's networks, and how a cfg and a command line write them."""

import math

from utils.errors import InputError

Anchor = tuple[float, float]

DARKNET_SIZE = 416
DARKNET_ANCHORS: dict[int, list[Anchor]] = {
    9: [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)],
    6: [(10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)],
}


def scale_anchors(anchors: list[Anchor], longest: int) -> list[Anchor]:
    """Scale anchors for an input of 416 pixels to one whose longer side is ``longest``; whole pixels, at least 1."""

    def scale(side: float) -> int:
        return max(1, round(side * longest / DARKNET_SIZE))

    return [(scale(width), scale(height)) for width, height in anchors]


def parse_anchors(text: str, count: int) -> list[Anchor]:
    """Parse ``"w,h, w,h, ..."`` to ``count`` pairs in pixels, sorted by area.

    Raises:
        InputError: the text is not ``count`` pairs of positive numbers.
    """
    expected = f"it must be {count} pairs of width,height: {2 * count} positive numbers with commas between them"
    try:
        sides = [float(side) for side in text.split(",")]
    except ValueError:
        raise InputError(f"--anchors {text!r} is not a list of numbers; {expected}") from None
    if len(sides) != 2 * count:
        raise InputError(f"--anchors has {len(sides)} numbers; {expected}")
    if not all(0 < side < math.inf for side in sides):
        raise InputError(f"--anchors {text!r} has a number out of range; {expected}")
    return sorted(zip(sides[::2], sides[1::2], strict=True), key=math.prod)


def format_anchors(anchors: list[Anchor]) -> str:
    """The anchors as text, for a cfg and for ``--anchors``: ``10,13, 16,30, ...``."""
    return ", ".join(f"{width:g},{height:g}" for width, height in anchors)
