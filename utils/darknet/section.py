"""A section of a cfg: typed access to its keys, and where it stands, for messages."""

import difflib
import math
from collections.abc import Callable
from typing import NoReturn

from utils.darknet.activations import ACTIVATIONS
from utils.darknet.cfg_keys import NOT_BUILT, training_only
from utils.errors import InputError
from utils.notices import notice

LARGEST_SIDE = 16_384


class SizeError(InputError):
    """Layers do not fit together at one input size, but may at another."""


class CfgSection:
    """Typed access to the keys of one section, which remembers the keys that were read."""

    def __init__(self, block: dict[str, str], where: str):
        self.where = where
        self.type = block["type"]
        self._block = block
        self._known = {"type"}

    def fail(self, message: str, error: type[InputError] = InputError) -> NoReturn:
        """Raise an ``error`` that names file, line and layer."""
        raise error(f"{self.where}: {message}")

    def _get(self, key: str, default: object, parse: Callable[[str], object], kind: str):
        self._known.add(key)
        if key not in self._block:
            if default is None:
                self.fail(f"{key}= is missing{self.nearest(key, set(self._block) - self._known)}")
            return default
        try:
            return parse(self._block[key])
        except ValueError:
            self.fail(f"{key}={self._block[key]} is not {kind}")

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; with ``default=None`` the key is required, here and below."""
        value = self._get(key, default, float, "a number")
        return value if math.isfinite(value) else self.fail(f"{key}={value} is not a finite number")

    def integer(self, key: str, default: int | None = None, low: int = 0, high: int = LARGEST_SIDE) -> int:
        """An integer within [low, high]."""
        value = self._get(key, default, int, "an integer")
        return value if low <= value <= high else self.fail(f"{key}={value} must be from {low} to {high}")

    def flag(self, key: str) -> bool:
        """Whether an integer is not 0; a missing key counts as 0."""
        return self._get(key, 0, int, "0 or 1") != 0

    def numbers(self, key: str, kind: type = int, default: tuple | None = None) -> tuple:
        """A list of numbers of ``kind`` separated by commas; a trailing comma is allowed, as in Darknet."""
        return self._get(
            key, default, lambda text: tuple(kind(n) for n in text.rstrip(",").split(",")), "a list of numbers"
        )

    def text(self, key: str, default: str) -> str:
        """A name."""
        return self._get(key, default, str, "a name")

    def activation(self, default: str) -> str:
        """The name of a supported activation."""
        name = self.text("activation", default)
        return name if name in ACTIVATIONS else self.fail(f"activation={name} is not one of {', '.join(ACTIVATIONS)}")

    def check_unread(self) -> None:
        """Refuse keys of NOT_BUILT unless they are neutral; warn of those that Darknet does not know either.

        Darknet reports the latter as unused and goes on, so they have no effect. They stay in the cfg.

        Raises:
            InputError: an option that changes what the layer computes and is not supported.
        """
        for key, neutral in (NOT_BUILT["any"] | NOT_BUILT.get(self.type, {})).items():
            if self._get(key, neutral, float, "a number") != neutral:
                self.fail(f"{key}={self._block[key]} changes what the layer computes and is not supported")
        self._known |= training_only(self.type)
        for key in self._block:
            if key not in self._known:
                hint = self.nearest(key, self._known - {"type"})
                notice(
                    f"warning: {self.where}: option {key}={self._block[key]} is not known and has no effect{hint}",
                    key=f"[{self.type}] {key}",
                )

    @staticmethod
    def nearest(key: str, names: set[str]) -> str:
        """The part of a message that asks whether one of ``names`` was meant; empty where none is like ``key``."""
        nearest = difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.7)
        return f": did you mean {nearest[0]}?" if nearest else ""


def place(block: dict[str, str], index: int | None = None) -> str:
    """Where a section stands, for messages: ``file:line: layer 3 [route]``."""
    source, line = getattr(block, "source", "cfg"), getattr(block, "line", None)
    position = source if line is None else f"{source}:{line}"
    return f"{position}: " + (f"[{block['type']}]" if index is None else f"layer {index} [{block['type']}]")
