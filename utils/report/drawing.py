"""The drawing of a network: its layers from top to bottom, what each reads, and its channels before and after."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.darknet.layers import Convolution, Layer, MaxPool, Route, Shortcut, Upsample, Yolo
from utils.darknet.spec import NetworkSpec
from utils.plots import AFTER, BEFORE
from utils.report.plots import Plot, Table
from utils.report.svg import STYLE, inline_svg

ROWS = 40  # of one part of the drawing, at most
WIDTH, ROW_HEIGHT = 3.9, 0.175  # inches
# Where things are, in percent of the width.
SPINE, LABEL, BAR, BAR_END = 13.0, 16.0, 50.0, 80.0
LANE = 1.8  # between two lines side by side
INK, FAINT, LINK = "#1c2430", "#5c6672", "#1f6f8b"


def draw_network(spec: NetworkSpec, after: Mapping[int, int]) -> list[Plot]:
    """Draw a network in parts of at most ROWS layers.

    Args:
        spec: the network before.
        after: the channels of each convolution after, by layer number; 0 where it was removed.
    """
    parts = -(-len(spec.layers) // ROWS)
    rows = -(-len(spec.layers) // parts)
    widest = max(layer.channels for layer in spec.convolutions)
    return [
        _draw_part(spec, spec.layers[start : start + rows], after, widest) for start in range(0, len(spec.layers), rows)
    ]


def _draw_part(spec: NetworkSpec, layers: Sequence[Layer], after: Mapping[int, int], widest: int) -> Plot:
    first, last = layers[0].index, layers[-1].index
    with matplotlib.rc_context(STYLE | {"font.size": 8}):
        figure = Figure(figsize=(WIDTH, ROW_HEIGHT * (len(layers) + 0.5)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 100), ylim=(last + 0.75, first - 0.75))
        axes.axis("off")
        _draw_links(axes, layers)
        _draw_bars(axes, layers, after, widest)
        values = {}
        for layer in layers:
            gid = f"layer-{layer.index}"
            axes.add_patch(Rectangle((0, layer.index - 0.5), 100, 1, alpha=0, zorder=9, gid=gid))
            values[gid] = [layer_text(spec, layer, after)]
        title = f"Layers {first} to {last}"
        label = f"{title} of the network, channels before and after. All values are in the table below."
        svg = inline_svg(figure, f"network-{first}", label, values)
    return Plot(title, svg, Table(ROW_COLUMNS, [layer_row(spec, layer, after) for layer in layers]))


def _draw_bars(axes: Axes, layers: Sequence[Layer], after: Mapping[int, int], widest: int) -> None:
    """The name of each layer, and the bars of each convolution."""

    def ends(channels: Sequence[int]) -> list[float]:
        return [BAR + (BAR_END - BAR) * (count / widest) ** 0.5 for count in channels]

    convolutions = [layer for layer in layers if isinstance(layer, Convolution)]
    rows = [layer.index for layer in convolutions]
    others = [layer.index for layer in layers if not isinstance(layer, Convolution)]
    points = 72 * ROW_HEIGHT
    axes.hlines(rows, BAR, ends([layer.channels for layer in convolutions]), colors=BEFORE, lw=0.8 * points)
    axes.hlines(rows, BAR, ends([after[row] for row in rows]), colors=AFTER, lw=0.45 * points)
    axes.plot([SPINE] * len(rows), rows, "s", color=INK, ms=3.5, zorder=3)
    axes.plot([SPINE] * len(others), others, "o", color="white", mec=FAINT, ms=3.5, zorder=3)
    for layer in layers:
        colour = INK if isinstance(layer, Convolution) else FAINT
        axes.text(LABEL, layer.index, f"{layer.index}  {describe(layer)}", va="center_baseline", color=colour)
    for layer in convolutions:
        left = after[layer.index]
        counts = f"{layer.channels}" if left == layer.channels else f"{layer.channels} → {left}"
        axes.text(100, layer.index, counts, ha="right", va="center_baseline", color=INK)


def _draw_links(axes: Axes, layers: Sequence[Layer]) -> None:
    """Lines from each layer to those that read it; a source in another part is an arrow from the left."""
    chained = [layer.index for previous, layer in pairwise(layers) if previous.index in layer.sources]
    axes.vlines([SPINE] * len(chained), [row - 1 for row in chained], chained, colors=FAINT, lw=1, zorder=1)
    ends: list[int] = []  # of the last line in each lane
    lines = []
    for layer in layers:
        for source in sorted((s for s in layer.sources if s != layer.index - 1), reverse=True):
            if source < layers[0].index:
                tip, tail = (SPINE - 1, layer.index), (SPINE - 6, layer.index)
                axes.annotate("", tip, tail, arrowprops={"arrowstyle": "->", "color": FAINT})
                continue
            lane = next((k for k, end in enumerate(ends) if end < source), len(ends))
            ends[lane : lane + 1] = [layer.index]
            x = max(SPINE - LANE * (lane + 1.5), 0.5)
            lines.append([(SPINE, source), (x, source), (x, layer.index), (SPINE, layer.index)])
    axes.add_collection(LineCollection(lines, colors=LINK, lw=1, zorder=1), autolim=False)


ROW_COLUMNS = ("layer", "what", "reads", "channels before", "channels after")


def layer_row(spec: NetworkSpec, layer: Layer, after: Mapping[int, int]) -> list[str]:
    """What the table says of a layer: its number, what it is, what it reads, its channels before and after."""
    kind = spec.section(layer.index)["type"]
    what = (
        f"{kind} {describe(layer).partition(' ')[2]}" if isinstance(layer, Convolution | MaxPool | Upsample) else kind
    )
    reads = " and ".join("image" if source < 0 else str(source) for source in layer.sources)
    counts = [str(layer.channels), str(after[layer.index])] if isinstance(layer, Convolution) else ["–", "–"]
    return [str(layer.index), what, reads, *counts]


def layer_text(spec: NetworkSpec, layer: Layer, after: Mapping[int, int]) -> str:
    """What one sees of a layer where the pointer is."""
    number, what, reads, before, left = layer_row(spec, layer, after)
    channels = f"; {before} channels before, {left} after" if isinstance(layer, Convolution) else ""
    return f"layer {number}, {what}, reads {reads}{channels}"


def describe(layer: Layer) -> str:
    """A layer in a few words."""
    others = " ".join(str(source) for source in layer.sources if source != layer.index - 1)
    match layer:
        case Convolution():
            stride = max(layer.stride)
            grouped = f" in {layer.groups} groups" if layer.groups > 1 else ""
            return f"conv {layer.size}×{layer.size}" + (f" /{stride}" if stride > 1 else "") + grouped
        case Shortcut():
            return f"add {others}"
        case Route():
            part = f", part {layer.group_id + 1} of {layer.groups}" if layer.groups > 1 else ""
            sources = " ".join(str(source) for source in layer.sources)
            return f"{'join' if len(layer.sources) > 1 else 'from'} {sources}{part}"
        case Upsample():
            return f"enlarge ×{layer.stride}"
        case MaxPool():
            return f"pool {layer.size}×{layer.size} /{max(layer.stride)}"
        case Yolo():
            return "detect"
    return f"{type(layer).__name__.lower()} {others}".strip()
