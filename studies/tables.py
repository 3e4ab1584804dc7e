"""What the rows of a study's CSV say, in words and tables."""

from collections.abc import Iterable, Sequence

import numpy as np

METRICS = {"mAP": "mAP@0.5", "mAP_50_95": "mAP@0.5:0.95"}
Row = dict[str, str]


def spread(values: Iterable[float], digits: int = 4) -> str:
    """Mean, and where values differ their standard deviation; nothing where nothing was measured."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return ""
    text = f"{np.mean(values):.{digits}f}"
    return text if min(values) == max(values) else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size_of(row: Row, rows: Sequence[Row], name: str) -> float:
    """The parameters or MACs of a network, in per cent of the largest of its data set."""
    return 100 * float(row[name]) / max(float(row[name]) for row in rows)


def whole_cost(row: Row, rows: Sequence[Row]) -> float:
    """What a network costs beside the baseline, in epochs of the whole one: 0 for the baseline.

    Fine-tuning after sparse training costs what that does, too.
    """
    if row["stage"] == "baseline":
        return 0.0
    alike = [
        r for r in rows if (r["data"], r["seed"], r["target_macs"]) == (row["data"], row["seed"], row["target_macs"])
    ]
    before = [float(r["cost"]) for r in alike if r["stage"] == "sparse" and row["stage"] == "control_slimming"]
    return float(row["cost"]) + sum(before)


def last_epoch(row: Row, metric: str) -> float:
    """A metric after the last epoch of a run; of what no epoch changed, the only one."""
    return float(row.get(f"{metric}_last") or row[metric])
