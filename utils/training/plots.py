"""The plots of a training run. Figures are made without pyplot, which keeps global state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.plots import AFTER, save_figure
from utils.pruning.gamma_history import GammaHistory


def plot_training(rows: Sequence[dict[str, Any]], gammas: GammaHistory, folder: Path) -> None:
    """Draw the plots of a run into ``folder``: training, quintiles, first layer, and distribution of gammas."""
    save_figure(training_figure(rows), folder / "training.png")
    if len(gammas.epochs) and len(gammas.first_layer[0]):
        epochs = np.array(gammas.epochs) + 1
        save_figure(quintiles_figure(epochs, gammas), folder / "gamma_quintiles.png")
        save_figure(first_layer_figure(epochs, gammas), folder / "gamma_first_layer.png")
        save_figure(distribution_figure(epochs, gammas), folder / "gamma_distribution.png")


def training_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Losses and mAP over the epochs, from the rows of the log."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    last = max(int(row["epoch"]) for row in rows) + 1
    for name, label in (("box_loss", "box, per positive"), ("objectness_loss", "objectness, per image")):
        _line(losses, rows, name, label)
    losses.set(title="loss", yscale="log")
    for name, label in (("mAP", "mAP@0.5"), ("mAP_50_95", "mAP@0.5:0.95"), ("f1", "F1")):
        _line(quality, rows, name, label)
    quality.set(title="validation", ylim=(0, 1))
    for axes in (losses, quality):
        axes.grid(alpha=0.3)
        _epoch_axis(axes, 0.5, last + 0.5)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", va="center", color="grey")
    return figure


def _line(axes: Axes, rows: Sequence[dict[str, Any]], name: str, label: str) -> None:
    epochs, values = series(rows, name)
    if epochs:
        axes.plot(epochs, values, label=label, marker="o" if len(epochs) == 1 else None)


def _epoch_axis(axes: Axes, low: float, high: float) -> None:
    axes.set(xlabel="epoch", xlim=(low, high))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def series(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The epochs, counted from 1, in which the log's column ``name`` was measured, and its values there."""
    measured = [row for row in rows if row.get(name) not in (None, "")]
    return [int(row["epoch"]) + 1 for row in measured], [float(row[name]) for row in measured]


def quintiles_figure(epochs: np.ndarray, gammas: GammaHistory) -> Figure:
    """The five quintiles of |gamma| over the epochs: bands that collapse to 0 are channels that die."""
    figure = Figure(figsize=(8.4, 4), layout="constrained")
    axes = figure.subplots()
    quintiles, near_zero = np.array(gammas.quintiles), np.array(gammas.near_zero)
    if len(epochs) == 1:  # a band needs a width
        epochs, quintiles, near_zero = epochs + np.array([-0.5, 0.5]), quintiles.repeat(2, 0), near_zero.repeat(2)
    lines = np.vstack([np.zeros(len(epochs)), quintiles.T])
    for k in range(5):
        shade = 0.25 + 0.15 * k
        label = f"{20 * k} to {20 * (k + 1)} % of channels"
        axes.fill_between(epochs, lines[k], lines[k + 1], color="#1f6f8b", alpha=shade, lw=0, label=label)
    axes.plot(epochs, lines[1:].T, color="#12455a", lw=0.8)
    share = axes.twinx()
    share.plot(epochs, near_zero, color=AFTER, lw=2, label="near zero (right axis)")
    share.set(ylim=(0, 1), ylabel="share of channels near zero")
    axes.set(ylabel="|gamma|", title="Quintiles of |gamma|", ylim=(0, None))
    _epoch_axis(axes, epochs[0], epochs[-1])
    handles, labels = axes.get_legend_handles_labels()
    more, names = share.get_legend_handles_labels()
    figure.legend(
        [*handles[::-1], *more], [*labels[::-1], *names], frameon=False, fontsize=8, loc="outside right upper"
    )
    return figure


def first_layer_figure(epochs: np.ndarray, gammas: GammaHistory) -> Figure:
    """|gamma| of each channel of the first BatchNorm over the epochs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    values = np.array(gammas.first_layer)
    shades = np.argsort(np.argsort(values[-1])) / max(values.shape[1] - 1, 1)
    for channel, shade in enumerate(shades):
        colour = (0.82 * shade + 0.07, 0.29, 0.55 - 0.2 * shade)
        axes.plot(epochs, values[:, channel], color=colour, lw=1.2, marker="o" if len(epochs) == 1 else None)
    axes.set(ylabel="|gamma|", title=f"The {values.shape[1]} channels of the first BatchNorm")
    _epoch_axis(axes, epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.set_ylim(0, 1.05 * values.max() or 1)
    axes.grid(alpha=0.3)
    return figure


def distribution_figure(epochs: np.ndarray, gammas: GammaHistory) -> Figure:
    """How many channels have which |gamma|, over the epochs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = np.array(gammas.histograms).T
    edges = np.concatenate([epochs - 0.5, epochs[-1:] + 0.5])
    levels = np.linspace(0, gammas.top, len(counts) + 1)
    visible = np.ma.masked_equal(counts, 0)
    mesh = axes.pcolormesh(edges, levels, visible, norm=LogNorm(1, max(counts.max(), 2)), cmap="viridis_r")
    figure.colorbar(mesh, ax=axes, label="channels")
    axes.set(ylabel="|gamma|", title="Distribution of |gamma|")
    _epoch_axis(axes, edges[0], edges[-1])
    return figure
