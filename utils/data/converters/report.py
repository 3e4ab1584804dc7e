"""The report of a conversion: how many images and boxes each split has, and what was left out and why."""

from collections import Counter
from collections.abc import Mapping

from terminaltables import AsciiTable

COLUMNS = ("images", "boxes", "clipped", "dropped (no area)", "left out", "negatives", "size differs")


def format_report(counts: Mapping[str, Counter], reasons: Mapping[str, Counter]) -> str:
    """A table with a row of counts for each split, and a line for each reason to leave out objects.

    Args:
        counts: for each split, how many there are of each of ``COLUMNS``.
        reasons: for each split, how many objects its reader left out for which reason.
    """
    rows = [[split, *(counts[split][column] for column in COLUMNS)] for split in counts]
    lines = [
        f"{split}: left out {number} object(s): {reason}"
        for split in reasons
        for reason, number in sorted(reasons[split].items())
    ]
    return "\n".join([AsciiTable([["split", *COLUMNS], *rows]).table, *lines])
