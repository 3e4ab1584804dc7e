"""Pruned networks over a range of ratios: rows of measures, tables and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terminaltables import AsciiTable
from tqdm import tqdm

from utils.detection.complexity import count_parameters
from utils.files import write_json
from utils.plots import latency_figure, save_figure, sweep_figure
from utils.pruning.compare import Bench
from utils.pruning.latency import Latency
from utils.pruning.pruner import Pruner

SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # ratios


def sweep(pruner: Pruner, bench: Bench, folder: Path, json: str | None) -> None:
    """Measure the pruned network at a range of ratios; print the table, draw the curve.

    Args:
        pruner: of the network.
        bench: measures the networks.
        folder: for sweep.png and sweep.json.
        json: a further file for the numbers.
    """
    parameters, macs = count_parameters(pruner.model), bench.macs(pruner.model)
    rows = measure_sweep(pruner, bench)
    print(sweep_table(rows, parameters, macs))
    plot = folder / "sweep.png"
    whole = {"parameters": parameters, "macs": macs}
    shares: dict[str, Sequence[float]] = {name: [row[name] / whole[name] for row in rows] for name in whole}
    save_figure(sweep_figure(shares, [row["mAP"] for row in rows]), plot)
    print(f"{plot}: mAP against size")
    content = {"strategy": pruner.strategy, "parameters": parameters, "macs": macs, "sweep": rows}
    for path in (plot.with_suffix(".json"), json):  # the page of the pruned network shows the first
        if path:
            write_json(path, content)


def sweep_orders(pruners: Mapping[str, Pruner], bench: Bench, latency: Latency, folder: Path, json: str | None) -> None:
    """Measure a range of ratios of each order of pruning; print the tables, draw the curves.

    Args:
        pruners: of one network, by what the order is called.
        bench: measures the networks.
        latency: times in a runtime.
        folder: for latency_sweep.png.
        json: a file for the numbers.
    """
    model = next(iter(pruners.values())).model
    parameters, macs = count_parameters(model), bench.macs(model)
    report: dict[str, Any] = {"table": latency.table.title, "parameters": parameters, "macs": macs}
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for order, pruner in pruners.items():
        rows = measure_sweep(pruner, bench, latency)
        print(f"{order}:\n{sweep_table(rows, parameters, macs)}")
        report[order] = rows
        curves[order] = [row["ms"] for row in rows], [row["mAP"] for row in rows]
    plot = folder / "latency_sweep.png"
    save_figure(latency_figure(curves, latency.table.title), plot)
    print(f"{plot}: mAP against milliseconds")
    if json:
        write_json(json, report)


def measure_sweep(pruner: Pruner, bench: Bench, latency: Latency | None = None) -> list[dict[str, Any]]:
    """The pruned network at each ratio of SWEEP: a row of measures per ratio.

    Args:
        pruner: of the network.
        bench: measures the networks.
        latency: times in a runtime, which are then in the rows as ``ms``.
    """
    rows, specs = [], []
    for ratio in tqdm(SWEEP, "sweep", leave=False, unit="ratio"):
        result = pruner.at(ratio)
        compact = result.pruned.model
        specs.append(compact.spec.at(bench.img_size))
        rows.append(
            {
                "percent": ratio,
                "mAP": bench.mean_ap(compact),
                "threshold": result.selection.threshold,
                "parameters": count_parameters(compact),
                "macs": bench.macs(compact),
                "forward_share": bench.forward_share(compact, pruner.model),
            }
        )
    if latency:
        for row, ms in zip(rows, latency.milliseconds(specs), strict=True):
            row["ms"] = ms
    return rows


def sweep_table(rows: Sequence[dict[str, Any]], parameters: int, macs: int) -> str:
    """The rows of :func:`measure_sweep` as a table for the terminal, beside the full network's counts."""
    table = [["Ratio", "mAP@0.5", "Parameters left", "MACs left", "Forward time left", "|gamma| up to"]]
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
