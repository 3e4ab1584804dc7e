"""The size of a network's input.

Options, checkpoints and parameters hold an AnySize: the side of a square, or (height, width), in pixels. Code that
needs the sides makes a :class:`Size` of it.
"""

from typing import NamedTuple

from utils.errors import InputError

AnySize = int | tuple[int, int]


class Size(NamedTuple):
    """Height and width in pixels, of the network's input. It is also a tuple."""

    height: int
    width: int

    @classmethod
    def of(cls, size: AnySize) -> "Size":
        """The sides of an AnySize.

        Raises:
            InputError: ``size`` is neither; it may come from a file.
        """
        sides = size if isinstance(size, tuple) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise InputError(f"{size!r} is no input size: it must be one number for a square, or height and width")
        return cls(*sides)

    @classmethod
    def parse(cls, text: str) -> "Size":
        """The size that ``str(size)`` gave the text of.

        Raises:
            InputError: the text is no size.
        """
        sides = [int(word) for word in text.split() if word.isdecimal()]
        if len(sides) not in (1, 2):
            raise InputError(f"{text!r} is no input size: it must be one number for a square, or height and width")
        return cls.of((sides[0], sides[-1]))

    @property
    def plain(self) -> AnySize:
        """The AnySize, for options and files: an int for a square."""
        return self.height if self.height == self.width else (self.height, self.width)

    def __str__(self) -> str:
        """The size as ``--img_size`` takes it: ``416``, or height and width, ``256 416``."""
        return " ".join(map(str, self[:1] if self.height == self.width else self))

    @property
    def pixels(self) -> str:
        """The size for messages: ``416 pixels``, or ``256x416 pixels (height x width)``."""
        return f"{self} pixels" if self.height == self.width else f"{self.height}x{self.width} pixels (height x width)"

    def rounded(self, multiple: AnySize) -> "Size":
        """The nearest size whose sides are multiples of those of ``multiple``."""
        sides = zip(self, Size.of(multiple), strict=True)
        return Size(*(max(round(side / step), 1) * step for side, step in sides))
