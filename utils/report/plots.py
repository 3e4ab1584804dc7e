"""The page's plots of numbers: curves with values to hover over, and the same values as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.report.svg import STYLE, inline_svg

# Told apart by lightness, too, with a contrast of at least 3 to white.
COLOURS = ("#1f6f8b", "#b3304a", "#8a6d00", "#5b3a8e", "#3f7d3a", "#4a5058")
MARKERS = "os^DvP"
SIZE = (4.8, 3.1)  # inches; on a phone its text is as large as that of the page
FRAME = (0.14, 0.31, 0.81, 0.66)  # left, bottom, width and height of the axes, as shares of the figure
LEGEND = 64  # letters that fit into a line of the legend
LEGEND_LINES = 2  # that have a place in SIZE
LEGEND_LINE = 0.19  # inches
MANY_POINTS = 40  # from so many on, a line has no markers


@dataclass(frozen=True)
class Curve:
    """A line of a plot: the points (x, y), whose values are finite, and the name of each point, if it has one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under column names; the first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A plot in the page, and its values as a table."""

    title: str
    svg: Markup
    table: Table


def curves_plot(
    name: str,
    title: str,
    axes_labels: tuple[str, str],
    curves: Sequence[Curve],
    log: bool = False,
    unit: bool = False,
    falling: bool = False,
) -> Plot:
    """A plot of curves.

    Args:
        name: begins the ids of its elements.
        title: what it shows.
        axes_labels: of x and y.
        curves: at least one, with at least one point each.
        log: y is logarithmic; points with a y of 0 are left out.
        unit: y is from 0 to 1.
        falling: x goes from right to left.
    """
    with matplotlib.rc_context(STYLE):
        columns = min(len(curves), max(1, LEGEND // (max(len(curve.label) for curve in curves) + 6)))
        lower = LEGEND_LINE * max(0, -(-len(curves) // columns) - LEGEND_LINES)
        height = SIZE[1] + lower
        figure = Figure(figsize=(SIZE[0], height))
        left, bottom, width, tall = FRAME
        axes = figure.add_axes((left, (bottom * SIZE[1] + lower) / height, width, tall * SIZE[1] / height))
        lines, values = [], {}
        for k, (curve, colour, marker) in enumerate(zip(curves, cycle(COLOURS), cycle(MARKERS), strict=False)):
            shown = [i for i, y in enumerate(curve.y) if y > 0 or not log]
            x, y = np.array(curve.x)[shown], np.array(curve.y)[shown]
            lines += axes.plot(x, y, color=colour, marker=marker, ms=4 if len(x) < MANY_POINTS else 0)
            axes.plot(x, y, "o", ms=10, alpha=0, gid=f"values-{k}")
            values[f"values-{k}"] = [_point_text(curve, i, axes_labels[0]) for i in shown]
        axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
        if log:
            axes.set_yscale("log")
        if unit:
            axes.set_ylim(0, 1.03)
        if falling:
            axes.invert_xaxis()
        if axes_labels[0] == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            _add_legend(figure, lines, [curve.label for curve in curves], columns)
        svg = inline_svg(figure, name, f"{title}. {_ranges(curves)} All values are in the table below.", values)
    return Plot(title, svg, _table(axes_labels[0], curves))


def _add_legend(figure: Figure, lines: Sequence[Line2D], labels: Sequence[str], columns: int) -> None:
    """The names of curves, drawn as they are: matplotlib would leave out ``_a``, and read ``$a$`` as a formula."""
    numbers = [str(number) for number in range(len(lines))]
    legend = figure.legend(lines, numbers, frameon=False, loc="lower center", ncols=columns, fontsize=9)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)


def _point_text(curve: Curve, point: int, x_label: str) -> str:
    name = f"{curve.names[point]}: " if curve.names else ""
    return f"{name}{curve.label} {number(curve.y[point])} ({x_label} {number(curve.x[point])})"


def _ranges(curves: Sequence[Curve]) -> str:
    return " ".join(f"{c.label}: from {number(c.y[0])} to {number(c.y[-1])}." for c in curves)


def _table(x_label: str, curves: Sequence[Curve]) -> Table:
    """The values of the curves: a row for each name of a point and x, a column for each curve."""
    values: list[dict[tuple[str, float], float]] = [
        dict(zip(zip(c.names or [""] * len(c.x), c.x, strict=True), c.y, strict=True)) for c in curves
    ]
    points = dict.fromkeys(point for of_curve in values for point in of_curve)
    named = any(name for name, _ in points)
    rows = [
        [*([name] if named else []), number(x), *(_cell(of_curve.get((name, x))) for of_curve in values)]
        for name, x in (points if named else sorted(points))
    ]
    return Table([*(["point"] if named else []), x_label, *(curve.label for curve in curves)], rows)


def _cell(value: float | None) -> str:
    return "–" if value is None else number(value)


def number(value: float) -> str:
    """A number with four digits that count."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
