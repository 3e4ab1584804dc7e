"""The report of a conversion: how many images and boxes each split has, and what was left out and why."""

from collections import Counter
from collections.abc import Mapping, Sequence

from terminaltables import AsciiTable

from utils.data.converters.samples import LeftOut

COLUMNS = ("images", "boxes", "clipped", "dropped (no area)", "left out", "negatives", "size differs")
MAX_SHOWN = 10  # problems that are listed


def format_counts(counts: Mapping[str, Counter]) -> str:
    """A table with a row for each split: how many there are of each of ``COLUMNS``."""
    rows = [[split, *(counts[split][column] for column in COLUMNS)] for split in counts]
    return AsciiTable([["split", *COLUMNS], *rows]).table


def format_left_out(objects: Mapping[str, Sequence[LeftOut]], others: Sequence[LeftOut]) -> list[str]:
    """A line for each reason to leave out something, and the first problems.

    Args:
        objects: for each split, the objects that were left out of its images.
        others: images that were left out, and objects of no image.
    """
    lines = []
    for place, left_out in [*((f"{split}: ", items) for split, items in objects.items()), ("", others)]:
        reasons = Counter((item.what, item.reason) for item in left_out)
        lines += [f"{place}left out {number} {what}(s): {reason}" for (what, reason), number in sorted(reasons.items())]
    every = [item.problem for left_out in (*objects.values(), others) for item in left_out if item.problem]
    problems = list(dict.fromkeys(every))  # those of an image in both splits once
    if problems:
        lines.append(f"{len(problems)} problem(s), which --strict refuses:")
        lines += [f"  {problem}" for problem in problems[:MAX_SHOWN]] + ["  ..."] * (len(problems) > MAX_SHOWN)
    return lines
