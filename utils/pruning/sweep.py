"""Pruned networks over a range of ratios: rows of measures, tables and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from terminaltables import AsciiTable
from tqdm import tqdm

from utils.data.datasets import DetectionDataset
from utils.detection.complexity import count_parameters
from utils.kept_rows import KeptRows
from utils.plots import latency_figure, save_figure, sweep_figure
from utils.pruning.compare import Bench
from utils.pruning.latency import Latency
from utils.pruning.pruner import Pruner

SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # ratios


def sweep(pruners: Mapping[str, Pruner], bench: Bench, latency: Latency | None, kept: KeptRows) -> list[dict[str, Any]]:
    """Measure pruned networks at each ratio of SWEEP.

    Args:
        pruners: of one network, by what their order of pruning is called.
        bench: measures the networks.
        latency: times in a runtime, which are then in the rows as ``ms``.
        kept: the rows that an interrupted sweep has measured; each new one is added.

    Returns:
        A row for each order and ratio.
    """
    rows = []
    total = len(pruners) * len(SWEEP)
    with tqdm(desc="sweep", total=total, initial=len(kept), leave=False, unit="ratio") as bar:
        for order, pruner in pruners.items():
            for ratio in SWEEP:
                name = f"{order} {ratio:g}"
                if (row := kept.get(name)) is None:
                    row = {"order": order} | sweep_row(pruner, ratio, bench, latency)
                    kept.keep(name, row)
                    bar.update()
                rows.append(row)
    return rows


def sweep_row(pruner: Pruner, ratio: float, bench: Bench, latency: Latency | None) -> dict[str, Any]:
    """What is measured of the network pruned at ``ratio``, see :func:`sweep`."""
    result = pruner.at(ratio)
    compact = pruner.finished(result)
    row = {
        "percent": ratio,
        "mAP": bench.mean_ap(compact),
        "threshold": result.selection.threshold,
        "parameters": count_parameters(compact),
        "macs": bench.macs(compact),
        "forward_share": bench.forward_share(compact, pruner.model),
    }
    if latency:
        (row["ms"],) = latency.milliseconds([compact])
    return row


def sweep_subject(bench: Bench, latency: Latency | None) -> dict[str, Any]:
    """What a sweep measures besides :func:`utils.kept_rows.measured_network`.

    Args:
        bench: measures the networks.
        latency: times in a runtime.
    """
    return {
        "images": cast(DetectionDataset, bench.batches.dataset).fingerprint,
        "img_size": list(bench.img_size),
        "device": str(bench.image.device),
        "torch": torch.__version__,
        "table": [latency.table.title, latency.table.digest] if latency else None,
    }


def print_sweep(report: Mapping[str, Any]) -> None:
    """Print a table for each order of pruning, see :func:`plot_sweep`."""
    orders = list(dict.fromkeys(row["order"] for row in report["sweep"]))
    for order in orders:
        rows = [row for row in report["sweep"] if row["order"] == order]
        title = f"{order}:\n" if len(orders) > 1 else ""
        print(title + sweep_table(rows, report))


def plot_sweep(report: Mapping[str, Any], folder: Path) -> Path:
    """Draw mAP against milliseconds where they were measured, else against size; return the plot's path.

    Args:
        report: ``sweep``, the rows of :func:`sweep`; the ``parameters`` and ``macs`` of the whole network; the title
            of the ``table`` of latencies, or None; and which ``importance`` the thresholds are of.
        folder: for the plot.
    """
    rows = report["sweep"]
    if report["table"]:
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for row in rows:
            milliseconds, quality = curves.setdefault(row["order"], ([], []))
            milliseconds.append(row["ms"])
            quality.append(row["mAP"])
        path, figure = folder / "latency_sweep.png", latency_figure(curves, report["table"])
    else:
        shares = {name: [row[name] / report[name] for row in rows] for name in ("parameters", "macs")}
        path, figure = folder / "sweep.png", sweep_figure(shares, [row["mAP"] for row in rows])
    save_figure(figure, path)
    return path


def sweep_table(rows: Sequence[dict[str, Any]], report: Mapping[str, Any]) -> str:
    """Rows of :func:`sweep` as a table for the terminal; ``report`` as :func:`plot_sweep` takes it."""
    parameters, macs, up_to = report["parameters"], report["macs"], f"{report['importance']} up to"
    table = [["Ratio", "mAP@0.5", "Parameters left", "MACs left", "Forward time left", up_to]]
    in_runtime = "ms" in rows[0]
    table[0] += ["ms in the runtime"] if in_runtime else []
    table += [
        [
            f"{row['percent']:.0%}",
            f"{row['mAP']:.4f}",
            f"{row['parameters'] / parameters:.1%}",
            f"{row['macs'] / macs:.1%}",
            f"{row['forward_share']:.1%}",
            f"{row['threshold']:.3g}",
            *([f"{row['ms']:.2f}"] if in_runtime else []),
        ]
        for row in rows
    ]
    return AsciiTable(table).table
