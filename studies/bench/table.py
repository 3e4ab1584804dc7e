"""What a row of the benchmark says, and the table of them."""

from dataclasses import dataclass

from terminaltables import AsciiTable

from utils.timing import Timing


@dataclass(frozen=True)
class Memory:
    """An amount of memory."""

    mebibytes: float

    def __str__(self) -> str:
        return f"{self.mebibytes:.0f} MiB"


@dataclass(frozen=True)
class Precision:
    """How well a network detects."""

    mAP: float

    def __str__(self) -> str:
        return f"mAP {self.mAP:.4f}"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: what was measured.
        ours, reference: its time and that of a reference, taken in turns; or its memory and a limit; or two mAPs.
        value: the ratio to judge by; ``meaning`` tells of what.
        bar: the largest good ratio, or with ``at_least`` the smallest.
    """

    name: str
    ours: Timing | Memory | Precision
    reference: Timing | Memory | Precision
    value: float
    meaning: str
    bar: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the ratio is good."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def table(rows: list[Row]) -> str:
    """The rows as a table for the terminal."""
    lines = [["What", "Ours", "Against", "Ratio", "Bar", ""]]
    for row in rows:
        bar = f"at {'least' if row.at_least else 'most'} {row.bar:.2f}"
        reached = "reached" if row.reached else "MISSED"
        lines.append([row.name, str(row.ours), str(row.reference), f"{row.value:.2f} {row.meaning}", bar, reached])
    return AsciiTable(lines).table
