"""The plots of pruning. Figures are made without pyplot, which keeps global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.files import atomic_writer

BEFORE, AFTER = "#b8c4d6", "#d1495b"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_writer(path) as file:
        figure.savefig(file, dpi=120, format="png")


def channels_figure(layers: Sequence[int], before: Sequence[int], after: Sequence[int]) -> Figure:
    """Channels of each convolution before and after pruning, on a logarithmic scale."""
    figure = Figure(figsize=(max(7, 0.16 * len(layers) + 2), 4), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(layers))
    axes.bar(positions, before, color=BEFORE, width=0.9, label=f"before: {sum(before):,} channels")
    axes.bar(positions, after, color=AFTER, width=0.5, label=f"after: {sum(after):,} channels")
    every = max(1, len(layers) // 25)
    axes.set_xticks(positions[::every], [str(layer) for layer in layers[::every]], fontsize=8)
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=0.7)  # so that a single channel is seen
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="layer", ylabel="channels", title="Channels of each convolution")
    axes.margins(x=0.01)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def sweep_figure(shares: Mapping[str, Sequence[float]], quality: Sequence[float]) -> Figure:
    """mAP@0.5 against the share of parameters and of MACs that is left, one point per ratio."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for (name, left), marker in zip(shares.items(), "os", strict=False):
        label = "MACs" if name == "macs" else name
        axes.plot([100 * share for share in left], quality, marker=marker, ms=4, label=label)
    axes.set(xlabel="% left", ylabel="mAP@0.5", title="What pruning costs", ylim=(0, 1.03))
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def latency_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], runtime: str) -> Figure:
    """mAP@0.5 against milliseconds, a curve (milliseconds, mAP) for each order of pruning."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for (name, (milliseconds, quality)), marker in zip(curves.items(), "osd", strict=False):
        axes.plot(milliseconds, quality, marker=marker, ms=4, label=name)
    axes.set(xlabel=f"ms per image, {runtime}", ylabel="mAP@0.5", title="What pruning gains", ylim=(0, 1.03))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
