"""What a network costs in a runtime: milliseconds of its convolutions from a table, added up.

Runtimes compute convolutions in memory layouts of their own, and convert where a graph begins and ends. A convolution
that is measured alone would therefore cost more than it does in a network, so each is measured between two 1x1
convolutions, and half of what these two cost without it, at its input and at its output, is subtracted. What is wrong
with the halves cancels over a network, because the output of a convolution is the input of the next.

The table holds these graphs over a grid of channels; between the grid's points the time is interpolated. It also holds
the whole network at several widths. By them the sum over the convolutions is fitted to the time of the network: a
factor, a rate per value that another layer writes, and a constant. A table is for one network and one image size.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from utils.darknet import layers
from utils.darknet.layers import IMAGE, Convolution
from utils.darknet.spec import NetworkSpec, parse_network
from utils.errors import InputError
from utils.optional import optional
from utils.pruning.coupling import Coupling, couple
from utils.pruning.graph_timer import ACTIVATIONS, PACKAGES, Graph, measure, measure_to_file, read_rows
from utils.pruning.surgery import compact_blocks
from utils.sizes import AnySize

WIDTHS = (1.0, 0.6, 0.3, 0.0)  # shares of the channels with which the whole network is measured
UNEVEN = 8  # further networks that are measured whole, each group of channels with another share
STEP = 8  # channels: runtimes compute so many or twice as many at once
TABLES = Path("runs/latency")  # where tables of this machine are kept
BORDER = 8  # channels of the input of the convolution before the measured one, and of the output of the one after it


def grid(most: int) -> list[int]:
    """The numbers of channels to measure up to ``most``: closer where there are few.

    >>> grid(100), grid(600)[-5:]
    ([8, 16, 24, 32, 40, 48, 56, 64, 96, 100], [192, 256, 384, 512, 600])
    """
    points = list(range(STEP, 8 * STEP, STEP))
    points += [size * 2**power for power in range(3, 12) for size in (STEP, 12)]
    return [point for point in points if point < most] + [most]


@dataclass(frozen=True)
class Kind:
    """Convolutions that differ in their channels alone.

    Attributes:
        height, width: of the input.
        size, stride, padding, dilation, activation: as the cfg has them; the stride is (y, x).
        groups: 0 for a depthwise convolution, which has as many as channels.
        from_image: whether it reads the image.
    """

    height: int
    width: int
    size: int
    stride: tuple[int, int]
    padding: int
    dilation: int
    groups: int
    activation: str
    from_image: bool

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of the output."""
        reach = 2 * self.padding - self.dilation * (self.size - 1) - 1
        return (self.height + reach) // self.stride[0] + 1, (self.width + reach) // self.stride[1] + 1

    def name(self, inputs: int, outputs: int) -> str:
        """The name of its graph in a table."""
        down, right = self.stride
        options = [f"{self.size}x{self.size}", f"stride {down}" if down == right else f"stride {down}x{right}"]
        options += [f"padding {self.padding}"] if self.padding != self.size // 2 else []
        options += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        options += ["depthwise"] if self.groups == 0 else [f"groups {self.groups}"] if self.groups > 1 else []
        options += [self.activation, f"{self.width}x{self.height}", "of the image"][: 3 if self.from_image else 2]
        return f"{' '.join(options)}: {inputs} to {outputs}"

    def graph(self, inputs: int, outputs: int) -> Graph:
        """Its graph: a 1x1 convolution, unless it reads the image; the convolution; a 1x1 convolution."""
        before = [] if self.from_image else [pointwise(BORDER, inputs, IMAGE)]
        conv = {
            "op": "conv",
            "from": [len(before) - 1],
            "inputs": inputs,
            "outputs": outputs,
            "size": self.size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups or inputs,
            "activation": self.activation,
        }
        chain = [*before, conv, pointwise(outputs, BORDER, len(before))]
        channels = inputs if self.from_image else BORDER
        return {"channels": channels, "height": self.height, "width": self.width, "layers": chain}


def pointwise(inputs: int, outputs: int, source: int) -> Graph:
    """A 1x1 convolution in a graph."""
    conv = {"op": "conv", "from": [source], "inputs": inputs, "outputs": outputs, "size": 1, "stride": (1, 1)}
    return conv | {"padding": 0, "dilation": 1, "groups": 1, "activation": "leaky"}


def border_name(size: tuple[int, int], channels: int) -> str:
    """The name in a table of the two 1x1 convolutions that a convolution is measured between."""
    return f"border {size[1]}x{size[0]}: {channels}"


def border_graph(size: tuple[int, int], channels: int) -> Graph:
    """The two 1x1 convolutions that a convolution is measured between, without it."""
    chain = [pointwise(BORDER, channels, IMAGE), pointwise(channels, BORDER, 0)]
    return {"channels": BORDER, "height": size[0], "width": size[1], "layers": chain}


def kind_of(spec: NetworkSpec, layer: Convolution) -> Kind:
    """The kind of a convolution."""
    (source,) = layer.sources
    height, width = (spec.height, spec.width) if source == IMAGE else shape(spec.layers[source])
    groups = 0 if layer.depthwise else layer.groups
    options = layer.size, layer.stride, layer.padding, layer.dilation, groups, layer.activation
    return Kind(height, width, *options, source == IMAGE)


def shape(layer: layers.Layer) -> tuple[int, int]:
    """The height and width of a layer's output."""
    return layer.height, layer.width


def network_graph(spec: NetworkSpec) -> Graph:
    """A whole network as a graph, from the image to the decoded predictions.

    Raises:
        InputError: it has a layer that no table can be made for.
    """
    graph: list[Graph] = []
    number = {IMAGE: IMAGE}  # of the layer in the graph, by that in the network

    def add(op: str, sources: Sequence[int], **options: object) -> int:
        graph.append({"op": op, "from": list(sources), **options})
        return len(graph) - 1

    for layer in spec.layers:
        sources = [number[source] for source in layer.sources]
        activation = getattr(layer, "activation", "linear")
        if activation not in ACTIVATIONS:
            raise InputError(f"{layer.where}: tables of latencies know no activation {activation}")
        match layer:
            case layers.Deconvolution():
                raise InputError(f"{layer.where}: no table of latencies can be made for this layer")
            case Convolution():
                options = {name: getattr(layer, name) for name in ("inputs", "size", "stride", "padding", "dilation")}
                options |= {"outputs": layer.channels, "groups": layer.groups, "activation": activation}
                new = add("conv", sources, **options)
            case layers.Shortcut():
                widths = [spec.layers[source].channels for source in layer.sources]
                new = sources[0]
                for source, width in zip(sources[1:], widths[1:], strict=True):
                    if width > layer.channels:
                        source, width = add("slice", [source], begin=0, end=layer.channels), layer.channels
                    first = add("slice", [new], begin=0, end=width) if width < layer.channels else new
                    both = add("add", [first, source])
                    if width < layer.channels:
                        kept = add("slice", [new], begin=width, end=layer.channels)
                        both = add("concat", [both, kept])
                    new = both
                graph[new]["activation"] = activation
            case layers.Route():
                if layer.groups > 1:
                    parts = [spec.layers[source].channels // layer.groups for source in layer.sources]
                    sources = [
                        add("slice", [source], begin=layer.group_id * part, end=(layer.group_id + 1) * part)
                        for source, part in zip(sources, parts, strict=True)
                    ]
                new = add("concat", sources) if len(sources) > 1 else sources[0]
            case layers.Upsample():
                new = add("upsample", sources, stride=layer.stride)
            case layers.MaxPool():
                before = layer.padding // 2
                op = "meanpool" if isinstance(layer, layers.LocalAvgPool) else "maxpool"
                ends = {"before": before, "after": layer.padding - before}
                new = add(op, sources, size=layer.size, stride=layer.stride, **ends)
            case layers.AvgPool():
                new = add("avgpool", sources)
            case layers.ScaleChannels() | layers.Sam():
                new = add("multiply", sources, activation=activation)
            case layers.Activation():
                new = add("activation", sources, activation=activation)
            case layers.Reorg() | layers.Reorg3d():
                new = add("reorg", sources, stride=layer.stride)
            case layers.Yolo():
                head = {"anchors": len(layer.anchors), "values": 5 + layer.classes}
                new = add("yolo", sources, height=layer.height, width=layer.width, **head)
            case layers.Dropout() | layers.Empty():
                (new,) = sources
            case _:
                raise InputError(f"{layer.where}: no table of latencies can be made for this layer")
        number[layer.index] = new
    return {"channels": spec.channels, "height": spec.height, "width": spec.width, "layers": graph}


def whole_networks(spec: NetworkSpec) -> dict[str, NetworkSpec]:
    """The network at the widths that it is measured at, by their names in a table."""
    content = json.dumps(network_graph(spec)).encode()
    title = f"network {hashlib.sha256(content).hexdigest()[:10]} {spec.width}x{spec.height}"
    coupling, size = couple(spec), (spec.height, spec.width)
    networks = {f"{title}: width {share:g}": with_width(coupling, size, share) for share in WIDTHS}
    for number in range(UNEVEN):
        networks[f"{title}: uneven {number + 1}"] = with_width(coupling, size, uneven_shares(coupling, number))
    return networks


def uneven_shares(coupling: Coupling, seed: int) -> dict[tuple[int, ...], float]:
    """Random shares of the channels of each group, of which most are small where ``seed`` is odd."""
    random = np.random.default_rng(seed)
    return {key: float(random.uniform() ** (1 + 2 * (seed % 2))) for key in set_groups(coupling)}


def with_width(coupling: Coupling, img_size: AnySize, shares: Mapping[tuple, float] | float) -> NetworkSpec:
    """The network with a share of its channels, a multiple of STEP wherever it has so many.

    Args:
        coupling: its coupled channels.
        img_size: the size of the images that the result is for.
        shares: of each group of sets over the same layers, or of all.
    """
    keep = np.ones(len(coupling.sets), bool)
    for key, numbers in set_groups(coupling).items():
        share = shares if isinstance(shares, float) else shares[key]
        count = min(max(round(share * len(numbers) / STEP), 1) * STEP, len(numbers))
        keep[numbers[count:]] = False
    return spec_of(coupling, keep, img_size)


def set_groups(coupling: Coupling) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the sets that are not fixed, by the layers that they lie in."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, channel_set in enumerate(coupling.sets):
        if not channel_set.fixed:
            groups.setdefault(channel_set.layers, []).append(number)
    return groups


def spec_of(coupling: Coupling, keep: np.ndarray, img_size: AnySize) -> NetworkSpec:
    """The network of the sets ``keep``, (number of sets,) bool."""
    counts = {layer.index: int(keep[coupling.outputs[layer.index]].sum()) for layer in coupling.spec.convolutions}
    return parse_network(compact_blocks(coupling.spec.blocks, counts)).at(img_size)


def table_graphs(spec: NetworkSpec) -> dict[str, Graph]:
    """The graphs that a table for this network, at its size, must have, by name.

    Raises:
        InputError: it has a layer that no table can be made for.
    """
    graphs: dict[str, Graph] = {}
    for kind, (inputs, outputs) in axes(spec).items():
        pairs = [(n, n) for n in inputs] if kind.groups == 0 else [(i, o) for i in inputs for o in outputs]
        for i, o in pairs:
            if not kind.from_image:
                graphs[border_name((kind.height, kind.width), i)] = border_graph((kind.height, kind.width), i)
            graphs[border_name(kind.output_size, o)] = border_graph(kind.output_size, o)
            graphs[kind.name(i, o)] = kind.graph(i, o)
    # A machine gets slower and faster with what else it does: networks are measured all along, not at one time.
    names, networks = list(graphs), whole_networks(spec)
    every = -(-len(names) // len(networks))
    for number, (name, network) in enumerate(networks.items()):
        names.insert(number * (every + 1), name)
        graphs[name] = network_graph(network)
    return {name: graphs[name] for name in names}


def axes(spec: NetworkSpec) -> dict[Kind, tuple[list[int], list[int]]]:
    """The kinds of convolutions of a network, and the numbers of input and output channels to measure each with."""
    coupling = couple(spec)
    fixed = np.array([channel_set.fixed is not None for channel_set in coupling.sets])
    points: dict[Kind, tuple[set[int], set[int]]] = {}
    for layer in spec.convolutions:
        sides = coupling.inputs(layer), coupling.outputs[layer.index]
        for side, of_kind in zip(sides, points.setdefault(kind_of(spec, layer), (set(), set())), strict=True):
            of_kind.update([len(side)] if fixed[side].all() else grid(len(side)))
    return {kind: (sorted(inputs), sorted(outputs)) for kind, (inputs, outputs) in points.items()}


@dataclass(frozen=True)
class Fit:
    """The time of a network: ``factor`` * the sum over its convolutions + ``rate`` * values + ``constant``, in ms."""

    factor: float
    rate: float
    constant: float


class LatencyTable:
    """The times of the convolutions of one network in one runtime: :class:`utils.pruning.costs.Costs` in milliseconds.

    Args:
        spec: the network at the size of its images.
        milliseconds: of each graph of :func:`table_graphs`, by name.
        title: what was measured, for messages, e.g. "onnx 1.20, 1 thread".

    Raises:
        InputError: graphs are missing.
    """

    step = STEP

    def __init__(self, spec: NetworkSpec, milliseconds: Mapping[str, float], title: str):
        self.spec = spec
        self.title = title
        self._ms = milliseconds
        missing = [name for name in table_graphs(spec) if name not in milliseconds]
        if missing:
            raise InputError(missing_graphs(missing, milliseconds))
        self._axes = axes(spec)
        self._kinds = {layer.index: kind_of(spec, layer) for layer in spec.convolutions}
        self._costs: dict[tuple[Kind, float, float], float] = {}

    @property
    def per_value(self) -> float:
        """The milliseconds of a value that a layer other than a convolution writes."""
        return self.fit.rate

    def convolution_cost(self, index: int, inputs: float, outputs: float) -> float:
        """The milliseconds of the convolution of layer ``index`` with so many channels, see :class:`Costs`."""
        return self.fit.factor * self.convolution(self._kinds[index], inputs, outputs)

    def convolution(self, kind: Kind, inputs: float, outputs: float) -> float:
        """The milliseconds of a convolution of one of the network's kinds, interpolated between points of the grid.

        Beyond the grid it is that of the nearest point.
        """
        key = kind, inputs, outputs
        if key not in self._costs:
            self._costs[key] = self._interpolate(*key)
        return self._costs[key]

    def _interpolate(self, kind: Kind, inputs: float, outputs: float) -> float:
        of_inputs, of_outputs = (
            bracket(points, n) for points, n in zip(self._axes[kind], (inputs, outputs), strict=True)
        )
        if kind.groups == 0:
            return sum(share * self._measured(kind, n, n) for n, share in of_inputs)
        return sum(s * t * self._measured(kind, i, o) for i, s in of_inputs for o, t in of_outputs)

    def _measured(self, kind: Kind, inputs: int, outputs: int) -> float:
        before = 0.0 if kind.from_image else self._ms[border_name((kind.height, kind.width), inputs)]
        after = self._ms[border_name(kind.output_size, outputs)]
        return max(self._ms[kind.name(inputs, outputs)] - (before + after) / 2, 0.0)

    @cached_property
    def fit(self) -> Fit:
        """How sums become times of networks, by least squares of the relative error of the whole networks."""
        networks = whole_networks(self.spec)
        rows = [[self.total(spec), written_values(spec), 1.0] for spec in networks.values()]
        matrix = np.array(rows) / np.array([self._ms[name] for name in networks])[:, None]
        scale = matrix.max(axis=0).clip(min=np.finfo(float).tiny)
        solution = nnls(matrix / scale, np.ones(len(rows)))[0] / scale
        return Fit(*solution.tolist())

    def total(self, spec: NetworkSpec) -> float:
        """The milliseconds of all convolutions of a pruned network, before the fit."""
        return sum(self.convolution(kind_of(spec, c), c.inputs, c.channels) for c in spec.convolutions)

    def predict(self, spec: NetworkSpec) -> float:
        """The milliseconds of the network, pruned in any way."""
        spec = spec.at((self.spec.height, self.spec.width))
        return self.fit.factor * self.total(spec) + self.fit.rate * written_values(spec) + self.fit.constant


def bracket(points: Sequence[int], value: float) -> list[tuple[int, float]]:
    """The neighbours of a value among sorted points, and the share of each in a linear interpolation.

    >>> bracket([8, 16, 32], 20), bracket([8, 16], 16), bracket([8, 16], 3)
    ([(16, 0.75), (32, 0.25)], [(16, 1.0)], [(8, 1.0)])
    """
    value = min(max(value, points[0]), points[-1])
    if value in points:
        return [(int(value), 1.0)]
    high = next(point for point in points if point > value)
    low = points[points.index(high) - 1]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def written_values(spec: NetworkSpec) -> int:
    """How many values the layers other than convolutions and heads write for one image."""
    free = (Convolution, layers.Yolo, layers.Dropout, layers.Empty)  # what they cost is elsewhere, or nothing
    return sum(
        layer.channels * layer.height * layer.width
        for layer in spec.layers
        if not isinstance(layer, free) and not (isinstance(layer, layers.Route) and len(layer.sources) == 1)
    )


def missing_graphs(missing: Sequence[str], milliseconds: Iterable[str]) -> str:
    """What is wrong with a table in which graphs are missing, in words."""
    network = next((name for name in missing if name.startswith("network")), None)
    others = [name for name in milliseconds if name.startswith("network")]
    if network and others:
        return f"is a table for another network or image size: it has {others[0]!r}, not {network!r}"
    return f"is not complete: {missing[0]!r} and {len(missing) - 1} more are missing: measure on, on the same device"


def read_table(path: str | Path, spec: NetworkSpec, runtime: str | None = None) -> LatencyTable:
    """Read a table for this network, at its size.

    Args:
        path: the CSV file that :mod:`utils.pruning.graph_timer` wrote.
        spec: the network at the size of its images.
        runtime: the runtime that the table must be of; None takes any.

    Raises:
        InputError: the file is missing, is no table, mixes devices, or is that of another network or runtime.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such table of latencies; export.py --latency_table makes one elsewhere")
    try:
        rows = read_rows(path)
        milliseconds = {row["graph"]: float(row["ms"]) for row in rows}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table of latencies: {error}") from None
    measured = {(row["runtime"], row["version"], row["threads"], row["device"]) for row in rows}
    if len(measured) != 1:
        raise InputError(f"{path}: {'mixes several devices or runtimes' if measured else 'holds no measurement'}")
    ((measured_runtime, version, threads, device),) = measured
    if runtime and runtime != measured_runtime:
        raise InputError(f"{path}: was measured in {measured_runtime}, not in {runtime}")
    bad = next((name for name, ms in milliseconds.items() if not 0 < ms < float("inf")), None)
    if bad:
        raise InputError(f"{path}: {milliseconds[bad]} is no number of milliseconds for {bad!r}")
    plural = "" if threads == "1" else "s"
    title = f"{measured_runtime} {version}, {threads} thread{plural}, {device}"
    try:
        return LatencyTable(spec, milliseconds, title)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def measured_table(spec: NetworkSpec, runtime: str, threads: int = 1, device: str = "cpu") -> LatencyTable:
    """A table for this network, at its size, of this machine: what is missing in its file under TABLES is measured.

    An interrupted measurement goes on at the next call.

    Args:
        spec: the network at the size of its images.
        runtime: one of :data:`utils.pruning.graph_timer.RUNNERS`.
        threads: of the runtime.
        device: "cpu" or "cuda".

    Raises:
        InputError: the runtime is not installed, or the network has a layer that no table can be made for.
    """
    optional(PACKAGES[runtime])
    path = TABLES / f"{runtime}_{device}_{threads}.csv"
    with tqdm(desc=f"times in {runtime}", unit="graph", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            measure_to_file(table_graphs(spec), path, runtime, threads, device, progress)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it") from None
    return read_table(path, spec, runtime)


def network_times(specs: Sequence[NetworkSpec], runtime: str, threads: int = 1, device: str = "cpu") -> list[float]:
    """The milliseconds that whole networks, at the size of their images, take in a runtime here, in turns."""
    graphs = {str(number): network_graph(spec) for number, spec in enumerate(specs)}
    return [ms for _, ms in measure(graphs, runtime, threads, device)]
