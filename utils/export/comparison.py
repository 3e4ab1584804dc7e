"""What the runtimes of a network give, as the rows of a table: time, difference to PyTorch, and mAP."""

import math
import textwrap
from collections.abc import Iterable
from typing import Any

import torch
from terminaltables import AsciiTable
from torch import Tensor, nn

from utils.detection.runtimes import prediction_difference
from utils.export.deployment import Deployment
from utils.timing import Timing

MIN_SCORE = 0.25  # of the boxes that are compared; low-scoring ones can be of any size
PROBLEM_WIDTH = 60  # letters in a line of why a runtime has no row


@torch.inference_mode()
def differences(models: list[nn.Module], batches: Iterable[Tensor]) -> list[float | None]:
    """The largest difference of each model to the first over all images; None if no image has a box."""
    gaps = []
    for images in batches:
        outputs = [model(images) for model in models]
        gaps.append([prediction_difference(outputs[0], output, MIN_SCORE) for output in outputs])
    # Python's max may lose a NaN.
    return [
        float(torch.tensor(known).max()) if (known := [gap for gap in of_model if gap is not None]) else None
        for of_model in zip(*gaps, strict=True)
    ]


def runtime_row(
    deployment: Deployment, forward: Timing | None, gap: float | None, score: float | None
) -> dict[str, Any]:
    """One row of the table, as plain values."""
    description = {name: getattr(deployment, name) for name in ("runtime", "format", "size_bytes", "problem")}
    return description | {"forward_ms": forward and forward.median, "largest_difference": gap, "mAP": score}


def without_infinities(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON, which has no such numbers: None in place of what is infinite or not a number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def runtimes_table(rows: list[dict[str, Any]]) -> str:
    """The table of the check for the terminal."""
    columns = {
        "MB": lambda row: f"{row['size_bytes'] / 1e6:.2f}",
        "Forward (ms)": lambda row: f"{row['forward_ms']:.2f}",
        "Difference": lambda row: "no box" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}",
        "mAP@0.5": lambda row: "" if row["mAP"] is None else f"{row['mAP']:.4f}",
    }
    lines = [["Runtime", "Format", *columns]]
    for row in rows:
        problem = textwrap.fill(row["problem"] or "", PROBLEM_WIDTH, break_long_words=False, break_on_hyphens=False)
        cells = [problem, "", "", ""] if problem else [cell(row) for cell in columns.values()]
        lines.append([row["runtime"], row["format"], *cells])
    table = AsciiTable(lines)
    table.justify_columns = dict.fromkeys(range(2, 6), "right")
    return table.table
